// Entry point: connects the parts of the page.

import * as compose from "./compose.js";
import * as detail from "./detail.js";
import { $, h, narrow, setText, show, toast } from "./dom.js";
import * as feed from "./feed.js";
import * as graph from "./graph.js";
import * as keys from "./keys.js";
import { post, Stream } from "./net.js";
import * as sessions from "./sessions.js";
import { all, applyEvent, known, ofSearch, on, showSource, shown } from "./store.js";
import { line, plural } from "./text.js";

/** Show the broker as silent after so long without a report. The console polls it every second. */
const SILENT_MS = 4000;
/** Between two announcements of new messages to screen readers. */
const ANNOUNCE_MS = 5000;

let searching = 0; // timer of a search that is being typed

// --- views (small screens show one at a time)

function view(name, focus = true) {
  $("desk").dataset.view = name;
  for (const tab of document.querySelectorAll(".tabs button")) {
    if (tab.dataset.view === name) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (focus) ({ sessions: $("sessions"), messages: $("feed"), detail: $("detail") })[name].focus();
}
for (const tab of document.querySelectorAll(".tabs button")) tab.addEventListener("click", () => view(tab.dataset.view));

function close() {
  if (!detail.opened()) return false;
  detail.empty();
  view("messages");
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
  if (source.kind !== "all" && narrow.matches) view("messages", false);
  // Cancel a search that was typed but has not started: the user has chosen something else.
  clearTimeout(searching);
  if (source.kind !== "search") $("search").value = "";
});

// --- the state of the bus, and of the connection to the console

let link = "connecting"; // state of the event stream
let retryS = 0;
let trouble = null;

function status() {
  const silent = known.link === "live" && known.broker === "up" && performance.now() - known.reportedMs > SILENT_MS;
  const broker = link !== "live" ? "unknown" : silent ? "silent" : known.broker;
  const pill = $("broker");
  pill.dataset.state = link === "live" ? broker : link;
  setText(
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
      `The page shows its last state. Trying again ${retryS < 1 ? "now" : `every ${Math.round(retryS)} s`}. If the console has ended, start it again and open the link that it prints: zmqbus console. `,
      h("button", { type: "button", onclick: () => stream.open() }, "Try now"),
    ];
  } else if (link === "superseded") {
    key = "superseded";
    content = [h("b", {}, "Paused. "), "Too many tabs show the console; the newer ones stay connected. ", h("button", { type: "button", onclick: () => stream.open() }, "Use this one")];
  } else if (link === "live" && broker === "gone") {
    key = "gone";
    content = [
      h("b", {}, "No broker is running. "),
      "The history is still readable; a session that connects starts a broker. ",
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

on("sessions", status);
on("heartbeat", status);
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
  if (shown.source.query === `${mode} ${text}` && !shown.source.problem) return; // shown already
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
  // A half-typed regular expression is a different or an invalid one, so regular expressions wait for Enter.
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
  [["k", "ArrowUp"], "Previous line", () => ($("feed").focus(), feed.step(-1))],
  [["Enter"], "Open the line", null],
  [["1"], "Go to the sessions", () => view("sessions")],
  [["2"], "Go to the messages", () => view("messages")],
  [["3"], "Go to the detail", () => view("detail")],
  [["g"], "Show or hide the graph", () => graph.toggle()],
  [["t"], "Change the theme", () => keys.nextTheme()],
  [["Escape"], "Close the search or the detail", (event) => {
    if (event.target === $("search")) {
      clearTimeout(searching);
      $("search").value = "";
      $("search").blur();
    }
    return close() || feed.clear();
  }],
  [["?"], "Keyboard shortcuts", () => keys.help()],
]);

// --- announcements to screen readers

let announcedMs = -ANNOUNCE_MS;
let pending = 0; // new messages not announced yet
let announcing = 0; // timer

function announce() {
  announcing = 0;
  announcedMs = performance.now();
  const [newest] = shown.source.items;
  setText($("live"), pending === 1 && newest?.text ? `${newest.name}: ${line(newest.text).slice(0, 120)}` : plural(pending, "new message"));
  pending = 0;
}
on("source", ({ source, fresh }) => {
  if (source !== shown.source || !fresh) return;
  pending += fresh.length;
  announcing ||= setTimeout(announce, Math.max(0, announcedMs + ANNOUNCE_MS - performance.now()));
});

// --- the event stream

function onEvent(kind, data) {
  applyEvent(kind, data);
  // The console dropped events that this page did not read: fetch the present state.
  if (kind === "overflow") stream.open();
  if (kind === "hello") {
    trouble = data.trouble;
    document.documentElement.dataset.ready = "true";
    status();
  }
}

/** Why the login page is shown, for people: title and text by the code of the refusal. */
const LOGIN_TEXTS = {
  not_in: ["This page needs a link", "This tab is not signed in, or the console that it was signed in to has ended."],
  link_used: ["This link has been used", "Each link opens the console once. If that was not you, somebody else may have seen it: end the console with Ctrl C, and start it again."],
  link_expired: ["This link has expired", "A link is good for five minutes."],
  link_unknown: ["This link is not from this console", "It is incomplete, or comes from a console that has ended."],
  link_elsewhere: ["This link is for another browser", "It only works in a browser that runs as the same user as the console, on the same machine."],
  no_crypto: ["This browser cannot open the console", "It offers no Web Crypto to this page. Open the link exactly as printed, in a current browser."],
};

/** Shows the login page with the reason for a code, or hides it for null. */
function showLogin(code) {
  const closed = code !== null;
  show($("login"), closed);
  // Nothing behind the login page can be reached, and open dialogs are closed.
  for (const part of document.body.children) if (part !== $("login")) part.inert = closed;
  if (!closed) return;
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  const [title, text] = LOGIN_TEXTS[code] ?? LOGIN_TEXTS.not_in;
  setText($("login-title"), title);
  setText($("login-text"), text);
  show($("login-help"), code !== "no_crypto");
  $("login").focus();
}

const stream = new Stream(onEvent, (state, detail) => {
  link = known.link = state;
  retryS = state === "lost" ? detail : 0;
  showLogin(state === "login" ? detail : null);
  status();
});
// Retry at once when a laptop wakes up.
addEventListener("online", () => link === "lost" && stream.open());
document.addEventListener("visibilitychange", () => !document.hidden && link === "lost" && stream.open());
addEventListener("pagehide", () => stream.abort?.abort());
addEventListener("pageshow", (event) => event.persisted && stream.open());
if (all.items.length) status();
