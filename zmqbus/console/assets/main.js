// Puts the page together.

import * as compose from "./compose.js";
import * as detail from "./detail.js";
import { $, h, narrow, say, show, toast } from "./dom.js";
import * as feed from "./feed.js";
import * as graph from "./graph.js";
import * as keys from "./keys.js";
import { post, Stream } from "./net.js";
import * as sessions from "./sessions.js";
import { all, hear, known, ofSearch, on, showSource, shown } from "./store.js";
import { line, plural } from "./text.js";

/** Without a word about the broker for so long, it is said that there is none. The console asks it every second. */
const SILENT_MS = 4000;
/** New messages are told to screen readers no more often than this. */
const TELL_MS = 5000;

let searching = 0; // the timer of a search that is being typed

// --- views (one at a time where there is no room for three)

function view(name, focus = true) {
  $("desk").dataset.view = name;
  for (const tab of document.querySelectorAll(".tabs button")) {
    if (tab.dataset.view === name) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (focus) ({ sessions: $("sessions"), flow: $("feed"), detail: $("detail") })[name].focus();
}
for (const tab of document.querySelectorAll(".tabs button")) tab.addEventListener("click", () => view(tab.dataset.view));

function close() {
  if (!detail.opened()) return false;
  detail.empty();
  view("flow");
  return true;
}

on("opened", ({ message, session }) => {
  feed.choose(message?.id ?? null);
  sessions.choose(session?.id ?? null);
  graph.choose(session?.id ?? null);
  if ((message || session) && narrow.matches) view("detail", false);
  $("detail").scrollTop = 0;
});
on("close", close);
on("open-session", (id) => detail.openSession(id));
on("shown", (source) => {
  if (source.kind !== "all" && narrow.matches) view("flow", false);
  // A search that was typed and has not begun does not take the place of what was chosen since.
  clearTimeout(searching);
  if (source.kind !== "search") $("search").value = "";
});

// --- the state of the bus, and of the way to it

let link = "connecting"; // to the console
let retryS = 0;
let trouble = null;

function status() {
  const silent = known.link === "live" && known.broker === "up" && performance.now() - known.heardMs > SILENT_MS;
  const broker = link !== "live" ? "unknown" : silent ? "silent" : known.broker;
  const pill = $("broker");
  pill.dataset.state = link === "live" ? broker : link;
  say(
    $("broker-text"),
    link === "connecting" ? "Connecting"
    : link !== "live" ? "No connection"
    : { up: `Broker ${known.port}`, gone: "No broker", silent: "Broker silent", unknown: "Looking" }[broker],
  );
  banner(broker);
}

let bannerKey = "";
function banner(broker) {
  let content = null;
  let key = "";
  if (link === "lost") {
    key = `lost ${retryS}`;
    content = [
      h("b", {}, "The console is out of reach. "),
      `What you see is as it was. Trying again ${retryS < 1 ? "now" : `every ${Math.round(retryS)} s`}; if it has ended, start it anew, and open the link that it prints: zmqbus console. `,
      h("button", { type: "button", onclick: () => stream.open() }, "Try now"),
    ];
  } else if (link === "elsewhere") {
    key = "elsewhere";
    content = [h("b", {}, "Paused. "), "Too many tabs show the console; the newer ones go on. ", h("button", { type: "button", onclick: () => stream.open() }, "Use this one")];
  } else if (link === "live" && broker === "gone") {
    key = "gone";
    content = [
      h("b", {}, "No broker is running. "),
      "The history is there; sessions start one when they connect. ",
      h("button", { type: "button", id: "start-broker", onclick: startBroker }, "Start the broker"),
    ];
  } else if (link === "live" && broker === "silent") {
    key = `silent ${known.brokerText}`;
    content = [h("b", {}, "The broker does not answer. "), known.brokerText ? line(known.brokerText) : "Waiting for it; see zmqbus broker --status."];
  } else if (trouble) {
    key = `trouble ${trouble}`;
    content = [h("b", {}, "Trouble: "), line(trouble)];
  }
  if (key === bannerKey) return;
  bannerKey = key;
  $("banner").replaceChildren(...(content ?? []));
  show($("banner"), content !== null);
}

async function startBroker(event) {
  event.target.disabled = true;
  try {
    await post("/api/broker", {});
    toast("The broker runs");
  } catch (error) {
    toast(line(error.message), "wrong");
    event.target.disabled = false;
  }
}

on("roster", status);
on("beat", status);
on("trouble", (text) => {
  trouble = text;
  status();
  setTimeout(() => ((trouble = null), status()), 5000);
});
setInterval(status, 1000);

// --- search

let regex = false;

function search() {
  clearTimeout(searching);
  const text = $("search").value;
  if (!text.trim()) {
    feed.clear();
    return;
  }
  const mode = regex ? "regex" : "words";
  if (shown.source.query === `${mode} ${text}` && !shown.source.problem) return; // it is there already
  const source = ofSearch(text, mode);
  source.query = `${mode} ${text}`;
  showSource(source);
}
$("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
  $("feed").focus();
});
$("search").addEventListener("input", () => {
  clearTimeout(searching);
  // An expression that is half typed is another one, or none; so that waits for Enter.
  if (!regex || !$("search").value) searching = setTimeout(search, 350);
});
$("search").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") $("feed").focus();
});
$("regex").addEventListener("click", () => {
  regex = !regex;
  $("regex").setAttribute("aria-pressed", String(regex));
  $("search").placeholder = regex ? "Search by regular expression" : "Search all messages";
  if ($("search").value) search();
  $("search").focus();
});

// --- the parts

sessions.setUp({ open: (id) => detail.openSession(id) });
feed.setUp({ open: (item) => detail.openMessage(item) });
graph.setUp({ open: (id) => detail.openSession(id) });
compose.setUp();
detail.setUp({
  reply: (item) => compose.open({ reply: item }),
  write: (session) => compose.open({ to: session }),
  confirm: compose.confirm,
});
keys.setUp([
  [["/"], "Search", () => $("search").focus()],
  [["c"], "New message", () => compose.open()],
  [["r"], "Reply to the opened message", () => $("reply")?.click()],
  [["j", "ArrowDown"], "Next line", () => ($("feed").focus(), feed.step(1))],
  [["k", "ArrowUp"], "Line before", () => ($("feed").focus(), feed.step(-1))],
  [["Enter"], "Open the line", null],
  [["1"], "To the sessions", () => view("sessions")],
  [["2"], "To the messages", () => view("flow")],
  [["3"], "To the detail", () => view("detail")],
  [["g"], "Show or hide the graph", () => graph.toggle()],
  [["t"], "Change the theme", () => keys.nextTheme()],
  [["Escape"], "Back: out of the search, the detail", (event) => {
    if (event.target === $("search")) {
      clearTimeout(searching);
      $("search").value = "";
      $("search").blur();
    }
    return close() || feed.clear();
  }],
  [["?"], "This sheet", () => keys.help()],
]);

// --- telling those who do not see it

let toldMs = -TELL_MS;
let untold = 0;
let telling = 0;

function tell() {
  telling = 0;
  toldMs = performance.now();
  const [newest] = shown.source.items;
  say($("live"), untold === 1 && newest?.text ? `${newest.name}: ${line(newest.text).slice(0, 120)}` : plural(untold, "new message"));
  untold = 0;
}
on("source", ({ source, fresh }) => {
  if (source !== shown.source || !fresh) return;
  untold += fresh.length;
  telling ||= setTimeout(tell, Math.max(0, toldMs + TELL_MS - performance.now()));
});

// --- go

function hearAll(kind, data) {
  hear(kind, data);
  // What was waiting for this page was dropped: begin anew.
  if (kind === "lost") stream.open();
  if (kind === "hello") {
    trouble = data.trouble;
    document.documentElement.dataset.ready = "true";
    status();
  }
}

/** Why the page is shut: what a person is told, by the code of the refusal. */
const DOOR = {
  not_in: ["This page needs a link", "This tab has not been let in, or the console that let it in has ended."],
  link_used: ["This link has been used", "Each link opens the console once. If that was not you, somebody else may have seen it: end the console with Ctrl C, and start it again."],
  link_expired: ["This link is too old", "A link is good for five minutes."],
  link_unknown: ["This link is not from this console", "It was cut, or comes from a console that has ended."],
  link_elsewhere: ["This link is for another browser", "It was made for a browser that runs as the same user as the console, on the same machine."],
  no_crypto: ["This browser cannot open the console", "It does not offer Web Crypto to this page. Open the link as it was printed, in a browser of today."],
};

function shut(code) {
  const closed = code !== null;
  show($("door"), closed);
  // Nothing behind it can be reached, and nothing that was open stays so.
  for (const part of document.body.children) if (part !== $("door")) part.inert = closed;
  if (!closed) return;
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  const [title, text] = DOOR[code] ?? DOOR.not_in;
  say($("door-title"), title);
  say($("door-text"), text);
  show($("door-help"), code !== "no_crypto");
  $("door").focus();
}

const stream = new Stream(hearAll, (state, detail) => {
  link = known.link = state;
  retryS = state === "lost" ? detail : 0;
  shut(state === "shut" ? detail : null);
  status();
});
// A laptop that wakes up does not wait for the next try.
addEventListener("online", () => link === "lost" && stream.open());
document.addEventListener("visibilitychange", () => !document.hidden && link === "lost" && stream.open());
addEventListener("pagehide", () => stream.abort?.abort());
addEventListener("pageshow", (event) => event.persisted && stream.open());
if (all.items.length) status();
