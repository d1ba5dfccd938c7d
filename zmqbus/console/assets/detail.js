// The detail pane: one whole message with its thread, or one session.

import { $, fill, h, show, stateOf, toast } from "./dom.js";
import { target } from "./feed.js";
import { get, post } from "./net.js";
import { agentAge, agentOf, sinceOf } from "./sessions.js";
import { emit, known, nowS, ofSession, on, sessionOf, showSource } from "./store.js";
import { age, bytes, clock, fullTime, line, pieces, plural, projectName, visible } from "./text.js";

/** Characters of a text in one element. The browser lays out only visible elements. */
const PIECE = 8 * 1024;

let current = null; // {message} or {session}
let abort = null; // cancels the requests for it
let actions = {};

const button = (text, act, attributes = {}) => h("button", { type: "button", onclick: act, ...attributes }, text);

function person(id, name, label) {
  const session = sessionOf(id);
  return h(
    "span",
    { class: "person" },
    session ? button(session.name, () => emit("open-session", id), { class: "link" }) : h("span", { class: "name" }, line(name)),
    label ? h("span", { class: "label", dir: "auto" }, line(label)) : null,
  );
}

function fact(term, ...what) {
  return [h("dt", {}, term), h("dd", {}, ...what)];
}

export function empty() {
  current = null;
  abort?.abort();
  $("detail").replaceChildren();
  fill(
    $("detail"),
    h("div", { class: "state" }, ...stateOf("Nothing opened", "Choose a message to read all of it and its thread, or a session.")),
  );
  emit("opened", {});
}

// --- a message

export function openMessage(item) {
  abort?.abort();
  abort = new AbortController();
  const signal = abort.signal;
  current = { message: item };
  const to = target(item);
  const text = h("div", { class: "body", tabindex: "0", role: "document", "aria-label": "Text" });
  const more = h("p", { class: "more sub", hidden: true });
  const thread = h("div", { class: "thread-list" });
  const size = h("dd", {}, bytes(item.bytes));
  const whole = wholeText(item);
  $("detail").replaceChildren();
  fill(
    $("detail"),
    h(
      "div",
      { class: "detail-head" },
      h(
        "h2",
        { class: "route" },
        person(item.from, item.name, item.label),
        h("span", { class: "arrow", "aria-label": "to" }, "→"),
        to.many || !item.toId ? h("span", { class: "name many" }, to.text) : person(item.toId, to.text),
      ),
      button("✕", () => emit("close"), { class: "icon", "aria-label": "Close" }),
    ),
    h(
      "div",
      { class: "actions" },
      item.fmt === "text" || item.kind === "message" ? button("Reply", () => actions.reply(item), { class: "primary", id: "reply" }) : null,
      button("Copy", () => copy(whole)),
      button("Save", () => save(item, whole)),
    ),
    text,
    h(
      "dl",
      { class: "facts" },
      fact("Sent", fullTime(item.ts)),
      fact("Id", h("code", {}, item.id)),
      item.kind === "message" ? [] : fact("Kind", item.kind),
      h("dt", {}, "Size"),
      size,
    ),
    h("section", { class: "thread", "aria-label": "Thread" }, h("h3", {}, "Thread"), thread),
  );
  thread.append(h("div", { class: "bones" }, h("i"), h("i")));
  showText(item, text, more, size, signal);
  threadOf(item, thread, signal);
  emit("opened", { message: item });
}

async function fetchPart(item, from, signal) {
  return get(`/api/message/${encodeURIComponent(item.id)}`, { at: item.at, from }, signal);
}

/** Adds a part of the text before the last line, which says how much is shown. */
function append(text, part) {
  for (const piece of pieces(part, PIECE)) text.lastChild.before(h("div", { class: "piece", dir: "auto" }, visible(piece)));
}

/** Shows the text: the first part at once, further parts as the user scrolls to them. */
async function showText(item, text, more, size, signal) {
  text.append(h("div", { class: "piece", dir: "auto" }, visible(item.text)), more);
  text.classList.toggle("loading", !item.whole);
  let next = 0;
  const load = async () => {
    try {
      const answer = await fetchPart(item, next, signal);
      if (signal.aborted) return;
      if (next === 0) {
        text.replaceChildren(more);
        text.classList.remove("loading");
        size.replaceChildren(`${bytes(answer.message.bytes)} · ${plural(answer.chars, "character")}`);
        if (answer.message.fmt !== "text") size.append(` · ${answer.message.fmt}`);
      }
      append(text, answer.part);
      // The console counts code points; characters outside the basic plane are two in JavaScript.
      next = answer.from + Array.from(answer.part).length;
      show(more, answer.more);
      if (answer.more) {
        more.replaceChildren(`${Math.round((next / answer.chars) * 100)} % shown. Scroll on for the rest.`);
        watch(more, load, signal);
      }
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      text.classList.remove("loading");
      show(more, true);
      more.replaceChildren(h("span", { class: "wrong" }, line(error.message)), " ", button("Try again", () => (show(more, false), load())));
    }
  };
  await load();
}

function watch(element, act, signal) {
  const observer = new IntersectionObserver(
    ([entry]) => {
      if (!entry.isIntersecting) return;
      observer.disconnect();
      act();
    },
    { root: element.parentElement, rootMargin: "600px" },
  );
  observer.observe(element);
  signal.addEventListener("abort", () => observer.disconnect());
}

/** Returns a function that fetches the whole text. */
function wholeText(item) {
  return async () => {
    let text = "";
    let next = 0;
    for (;;) {
      const answer = await fetchPart(item, next);
      text += answer.part;
      next += Array.from(answer.part).length;
      if (!answer.more || !answer.part) return text;
    }
  };
}

async function copy(whole) {
  try {
    await navigator.clipboard.writeText(await whole());
    toast("Copied exactly as sent");
  } catch (error) {
    toast(`Not copied: ${line(error.message)}`, "wrong");
  }
}

async function save(item, whole) {
  try {
    const url = URL.createObjectURL(new Blob([await whole()], { type: "text/plain" }));
    h("a", { href: url, download: `message-${item.id}.txt` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  } catch (error) {
    toast(`Not saved: ${line(error.message)}`, "wrong");
  }
}

async function threadOf(item, box, signal) {
  let items;
  try {
    ({ items } = await get(`/api/thread/${encodeURIComponent(item.id)}`, {}, signal));
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    box.replaceChildren(
      h("p", { class: "wrong" }, line(error.message)),
      button("Try again", () => threadOf(item, box, signal)),
    );
    return;
  }
  if (signal.aborted) return;
  if (items.length < 2) {
    box.replaceChildren(h("p", { class: "sub" }, item.re ? "The message that it answers is no longer in the log." : "This message answers none and has no answers yet."));
    return;
  }
  box.replaceChildren(
    h(
      "ol",
      {},
      ...items.map((one) =>
        h(
          "li",
          { class: `depth-${Math.min(one.depth, 5)}` },
          h(
            "button",
            {
              type: "button",
              class: "thread-row",
              "aria-current": one.id === item.id ? "true" : null,
              onclick: () => (one.id === item.id ? null : openMessage(one)),
            },
            h("span", { class: "name" }, line(one.name)),
            h("time", { class: "time" }, clock(one.ts)),
            h("span", { class: "text", dir: "auto" }, line(one.text)),
          ),
        ),
      ),
    ),
  );
}

// --- a session

export function openSession(id) {
  const session = sessionOf(id);
  if (!session) {
    toast("This session is no longer on the bus", "wrong");
    return;
  }
  abort?.abort();
  abort = new AbortController();
  current = { session };
  drawSession(session);
  emit("opened", { session });
}

function drawSession(session, gone = false) {
  const own = session.id === known.self;
  const ended = gone ? "It has left the bus." : null;
  $("detail").replaceChildren();
  fill(
    $("detail"),
    h(
      "div",
      { class: "detail-head" },
      h("h2", {}, session.name, session.label ? h("span", { class: "label", dir: "auto" }, line(session.label)) : null),
      button("✕", () => emit("close"), { class: "icon", "aria-label": "Close" }),
    ),
    h(
      "div",
      { class: "actions" },
      own ? null : button("Write to it", () => actions.write(session), { class: "primary", disabled: gone }),
      button("Its messages", () => showSource(ofSession(session.id, session.name))),
      session.listener && !gone ? button("Disconnect", () => askDisconnect(session), { class: "danger-quiet", id: "disconnect" }) : null,
    ),
    ended ? h("p", { class: "note" }, ended) : null,
    h(
      "dl",
      { class: "facts" },
      fact("State", h("span", { class: "mark", "data-state": gone ? "away" : session.state }), " ", gone ? "gone" : session.state, session.state === "busy" ? " — has not taken its messages for a while" : ""),
      fact(session.state === "away" ? "Away for" : "Since", h("span", { class: "age-now" }, ageText(session))),
      agentOf(session) && !gone
        ? fact("Agent", session.agent, " ", h("span", { class: "agent-age" }, age(agentAge(session))), session.agentDetail ? `: ${line(session.agentDetail)}` : "")
        : [],
      fact("Waiting", session.waiting ? plural(session.waiting, "message") : "nothing"),
      fact("Project", projectName(session.project), h("span", { class: "path" }, line(session.project))),
      session.cwd === session.project ? [] : fact("Directory", h("span", { class: "path" }, line(session.cwd))),
      session.pid ? fact("Process", h("code", {}, String(session.pid))) : [],
      fact("Id", h("code", {}, session.id)),
    ),
    session.listener || own || gone ? null : h("p", { class: "note" }, "This session is a program, which ends where it runs. Only sessions with a listener can be disconnected from here."),
    own ? h("p", { class: "note" }, "This is the page's own session: messages sent from this page come from it, and answers arrive here.") : null,
  );
}

function ageText(session) {
  const text = age(sinceOf(session));
  return session.state === "away" ? text : `${text} (${clock(session.since)})`;
}

function disconnectText(session) {
  const kept = session.waiting ? ` Its unread mail (${plural(session.waiting, "message")}) is kept, and shown then.` : "";
  return `Its listener ends, and its name is free at once. Messages to it are refused until it connects again.${kept}`;
}

function askDisconnect(session) {
  actions.confirm({
    title: `Disconnect ${session.name}?`,
    text: disconnectText(session),
    yes: "Disconnect",
    act: async () => {
      await post("/api/disconnect", { session: session.id });
      toast(`${session.name} is disconnected`);
    },
  });
}

function refreshSession() {
  if (!current?.session) return;
  const now = sessionOf(current.session.id);
  const before = JSON.stringify(current.session);
  if (!now) {
    if (!current.gone && known.broker === "up") {
      current.gone = true;
      drawSession(current.session, true);
    }
  } else if (JSON.stringify(now) !== before || current.gone) {
    const focused = document.activeElement?.id;
    current = { session: now };
    drawSession(now);
    if (focused && $(focused)) $(focused).focus();
  }
}

export const opened = () => current;

export function setUp(given) {
  actions = given;
  on("sessions", refreshSession);
  // Show new answers of the opened thread.
  on("source", (change) => {
    if (!current?.message || !change.fresh) return;
    const box = $("detail").querySelector(".thread-list");
    if (box && change.fresh.some((item) => item.re)) threadOf(current.message, box, abort.signal);
  });
  setInterval(() => {
    const box = $("detail").querySelector(".age-now");
    if (box && current?.session && !document.hidden) box.textContent = ageText(current.session);
    const agent = $("detail").querySelector(".agent-age");
    if (agent && current?.session && !document.hidden) agent.textContent = age(agentAge(current.session));
  }, 10_000);
  empty();
  return nowS;
}
