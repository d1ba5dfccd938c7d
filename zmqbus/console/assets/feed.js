// The list of messages.

import { $, fill, h, narrow, setText, show, stateOf } from "./dom.js";
import { List } from "./list.js";
import { all, on, sessionOf, shown, showSource } from "./store.js";
import { bytes, clock, fullTime, line, plural } from "./text.js";

/** New messages are highlighted when at most this many arrive at once. */
const LIT = 12;
/** Sizes are shown from here on. */
const LARGE_BYTES = 4000;

let list;
let chosen = null; // id of the opened message
let unseen = 0; // new messages that arrived while the list was scrolled down
let lit = new Set();

/** Returns the display name of a message's receiver, and whether it stands for many. */
export function target(item) {
  if (item.to === "all") return { text: "everyone", many: true };
  if (item.to.startsWith("#")) return { text: line(item.to), many: true };
  if (item.to.startsWith("%")) return { text: `project ${line(item.to.slice(1))}`, many: true };
  if (item.to.startsWith("@")) return { text: `group ${line(item.to.slice(1))}`, many: true };
  const session = item.toId && sessionOf(item.toId);
  return { text: session ? session.name : line(item.to), many: false };
}

/** Prefixes by which sessions mark the purpose of a message. */
const PREFIX = /^(done|status|answer|question):/;

export function render(item, element) {
  if (item.gap) {
    element.classList.add("gap");
    element.append(
      h("span", {}, item.loading ? "Loading the skipped messages …" : (item.problem ?? "Messages were skipped here. Show them")),
    );
    return;
  }
  element.classList.add("message");
  if (lit.has(item.id)) element.classList.add("lit");
  const to = target(item);
  const text = line(item.text);
  const prefix = PREFIX.exec(text);
  element.title = fullTime(item.ts);
  fill(
    element,
    h("time", { class: "time", datetime: new Date(item.ts * 1000).toISOString() }, clock(item.ts)),
    h(
      "span",
      { class: "route" },
      h("span", { class: "name" }, line(item.name)),
      h("span", { class: "arrow", "aria-label": "to" }, "→"),
      h("span", { class: to.many ? "name many" : "name" }, to.text),
    ),
    h(
      "span",
      { class: "text", dir: "auto" },
      item.re ? h("span", { class: "re", "aria-label": "answer:" }, "↳ ") : null,
      prefix ? [h("b", {}, prefix[0]), text.slice(prefix[0].length)] : text,
      item.whole ? null : "…",
    ),
    h(
      "span",
      { class: "meta" },
      item.kind === "request" || item.kind === "answer" ? h("span", { class: "tag" }, item.kind) : null,
      item.bytes > LARGE_BYTES ? h("span", { class: "size" }, bytes(item.bytes)) : null,
    ),
  );
}

function subtitle(source) {
  const { count } = source;
  const last = source.items.findLast?.((item) => !item.gap);
  if (source.kind === "search") {
    const found = plural(count, "message");
    if (source.loading) return `${found} so far …`;
    if (source.problem) return "";
    return source.ended ? `${found} in the whole history` : `${found}, back to ${last ? clock(last.ts) : "the beginning"}`;
  }
  if (!count) return "";
  const some = source.gaps ? ` · ${plural(source.gaps, "gap")}` : "";
  return `${source.ended ? plural(count, "message") : `the latest ${count.toLocaleString()}, back to ${clock(last.ts)}`}${some}`;
}

const EMPTY = {
  all: () => stateOf("No messages yet", "Messages between sessions appear here at once. Try it:", h("pre", {}, 'zmqbus send --as me --to NAME --text "hello"')),
  session: () => stateOf("No messages", "The log holds no message from or to this session."),
  search: (source) => stateOf("Nothing found", `No message contains “${source.title}”. All words have to occur; case does not matter.`),
};

function refresh(change = {}) {
  const source = shown.source;
  if (change.source && change.source !== source) return;
  lit = new Set(change.fresh && change.fresh.length <= LIT ? change.fresh.map((item) => item.id) : []);
  const scrolled = $("feed").scrollTop > 10;
  list.set(source.items, change.added ?? 0);
  if (change.fresh) {
    unseen = scrolled ? unseen + change.fresh.length : 0;
    newer();
  }
  setText($("feed-title"), source.kind === "search" ? `“${line(source.title)}”` : source.title);
  setText($("feed-sub"), subtitle(source));
  show($("feed-clear"), source !== all);
  $("feed").parentElement.classList.toggle("searching", source.kind === "search");
  const state = $("feed-state");
  const empty = source.items.length === 0;
  show($("feed"), !empty);
  show(state, empty);
  if (!empty) return;
  state.setAttribute("aria-busy", String(!source.started && !source.problem));
  if (source.problem) {
    state.replaceChildren(
      ...stateOf(source.kind === "search" ? "The search failed" : "The history cannot be read", line(source.problem)),
      h("button", { type: "button", onclick: () => ((source.problem = null), source.more()) }, "Try again"),
    );
  } else if (source.loading || !source.ended) {
    state.replaceChildren(h("div", { class: "bones wide", "aria-label": "Loading" }, ...Array.from({ length: 8 }, () => h("i"))));
  } else {
    state.replaceChildren(...EMPTY[source.kind](source));
  }
}

function newer() {
  const button = $("newer");
  show(button, unseen > 0);
  if (unseen > 0) setText(button, `↑ ${plural(unseen, "new message")}`);
}

function toTop() {
  unseen = 0;
  newer();
  $("feed").scrollTop = 0;
}

export function choose(id) {
  chosen = id;
  list.draw();
}

/** Moves the cursor without opening a message. */
export const step = (by) => list.move(list.active + by, by);
export const openActive = () => list.choose(list.active);

export function setUp({ open }) {
  list = new List($("feed"), {
    label: "Messages, newest first",
    render,
    open: (item) => (item.gap ? shown.source.fill(item) : open(item)),
    near: () => shown.source.problem || shown.source.more(),
    height: () => (narrow.matches ? 54 : 30),
  });
  list.selected = (item) => item.id !== undefined && item.id === chosen;
  $("feed").addEventListener("scroll", () => $("feed").scrollTop < 10 && unseen && toTop(), { passive: true });
  $("newer").addEventListener("click", () => {
    toTop();
    $("feed").focus();
  });
  $("feed-clear").addEventListener("click", () => clear());
  on("source", refresh);
  on("shown", () => {
    unseen = 0;
    newer();
    list.active = -1;
    $("feed").scrollTop = 0;
    refresh();
  });
  on("sessions", () => list.draw(true)); // names of receivers
  narrow.addEventListener("change", () => refresh());
  refresh();
}

/** Shows all messages again; returns false when they are shown already. */
export function clear() {
  if (shown.source === all) return false;
  showSource(all);
  return true;
}
