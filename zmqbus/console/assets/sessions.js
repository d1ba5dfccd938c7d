// The list of sessions, grouped by project.

import { $, fill, h, narrow, setText, show, stateOf } from "./dom.js";
import { List } from "./list.js";
import { all, known, nowS, on } from "./store.js";
import { age, line, plural, projectName } from "./text.js";

/** Number of sessions from which on the filter is shown. */
const FILTER_FROM = 12;
const WORDS = { live: "live", busy: "busy: has not taken its messages for a while", away: "away" };

/** What agents do, in words; others are not shown. */
const AGENTS = { working: "working", blocked: "blocked: waits for a person", idle: "idle" };

let list;
let filter = "";
let chosen = null; // id of the opened session

function rowsOf() {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (session) => {
    const text = `${session.name} ${session.label ?? ""} ${session.project} ${session.state} ${agentOf(session) ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word));
  };
  const groups = new Map();
  const blocked = [];
  for (const session of known.sessions) {
    if (!fits(session)) continue;
    if (session.agent === "blocked") {
      blocked.push(session);
      continue;
    }
    if (!groups.has(session.project)) groups.set(session.project, []);
    groups.get(session.project).push(session);
  }
  const rows = [];
  if (blocked.length) {
    rows.push({ heading: "Waiting for you", title: "Their agents are blocked", alarm: true, count: blocked.length });
    rows.push(...blocked.sort((a, b) => a.agentSince - b.agentSince)); // the longest first
  }
  for (const [project, sessions] of [...groups].sort(([a], [b]) => projectName(a).localeCompare(projectName(b)))) {
    rows.push({ heading: projectName(project), title: line(project), count: sessions.length });
    const rank = (session) => (session.state === "away" ? 1 : 0);
    rows.push(...sessions.sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name)));
  }
  return rows;
}

/** What a session's agent does; null: nothing tells, or it is gone. */
export const agentOf = (session) => (session.agent in AGENTS ? session.agent : null);
export const agentAge = (session) => nowS() - session.agentSince;
export const sinceOf = (session) => (session.state === "away" ? session.away : nowS() - session.since);

function render(row, element) {
  if (row.heading !== undefined) {
    element.classList.add("group");
    element.classList.toggle("alarm", row.alarm === true);
    element.title = row.title;
    element.append(h("span", { class: "group-name" }, row.heading), h("span", { class: "count" }, String(row.count)));
    return;
  }
  element.classList.add("session");
  const agent = agentOf(row);
  const blocked = agent === "blocked";
  element.classList.toggle("blocked", blocked);
  const waitsFor = blocked && row.agentDetail ? line(row.agentDetail) : null;
  element.title = waitsFor ? `${line(row.name)} waits for: ${waitsFor}` : "";
  const own = row.id === known.self;
  const ageText = age(agent ? agentAge(row) : sinceOf(row));
  element.setAttribute(
    "aria-label",
    [
      row.name,
      row.label && line(row.label),
      WORDS[row.state] ?? row.state,
      agent && AGENTS[agent],
      waitsFor,
      row.waiting ? `${plural(row.waiting, "message")} waiting` : null,
      `since ${ageText}`,
    ].filter(Boolean).join(", "),
  );
  fill(
    element,
    h("span", { class: "mark", "data-state": row.state }),
    h(
      "span",
      { class: "who" },
      h("span", { class: "name" }, row.name),
      waitsFor ? h("span", { class: "waits-for", dir: "auto" }, waitsFor) : null,
      row.label && !waitsFor ? h("span", { class: "label", dir: "auto" }, line(row.label)) : null,
      own ? h("span", { class: "tag" }, "this page") : null,
    ),
    row.waiting ? h("span", { class: "backlog", title: `${plural(row.waiting, "message")} waiting` }, row.waiting > 9999 ? "9999+" : String(row.waiting)) : null,
    row.state === "busy" ? h("span", { class: "tag warn" }, "busy") : null,
    agent && !waitsFor ? h("span", { class: "tag agent", "data-agent": agent }, agent) : null,
    h("span", { class: "age" }, ageText),
  );
}

function refresh() {
  const rows = rowsOf();
  list.set(rows);
  const counts = { live: 0, busy: 0, away: 0 };
  const blocked = known.sessions.filter((session) => session.agent === "blocked").length;
  for (const session of known.sessions) counts[session.state] = (counts[session.state] ?? 0) + 1;
  setText(
    $("sessions-count"),
    known.sessions.length
      ? [...Object.entries(counts), ["blocked", blocked]].filter(([, count]) => count).map(([state, count]) => `${count} ${state}`).join(" · ")
      : "",
  );
  show($("session-filter"), known.sessions.length >= FILTER_FROM || filter !== "");
  const state = $("sessions-state");
  const empty = rows.length === 0;
  show(state, empty);
  show($("sessions"), !empty);
  if (!empty) return;
  let key = "wait";
  if (filter) key = "filter";
  else if (known.broker === "gone") key = "gone";
  else if (known.broker === "silent") key = "silent";
  else if (known.broker === "up") key = "nobody";
  if (state.dataset.key === key) return;
  state.dataset.key = key;
  state.replaceChildren(
    ...{
      wait: () => [h("div", { class: "bones", "aria-label": "Loading" }, ...Array.from({ length: 6 }, () => h("i")))],
      filter: () => stateOf("No matching sessions", "Change the filter, or clear it."),
      gone: () => stateOf("No broker, no sessions", "A session that connects starts a broker. The history is readable without one."),
      silent: () => stateOf("The broker does not answer", "The sessions are shown once it does."),
      nobody: () => stateOf("Nobody is on the bus yet", "Connect a session, in a terminal or in Claude Code:", h("pre", {}, "zmqbus connect NAME")),
    }[key](),
  );
}

export function choose(id) {
  chosen = id;
  list.draw();
}

export function setUp({ open }) {
  list = new List($("sessions"), {
    label: "Sessions",
    render,
    open: (row) => open(row.id),
    height: () => (narrow.matches ? 44 : 30),
  });
  list.skip = (row) => row.heading !== undefined;
  list.selected = (row) => row.id !== undefined && row.id === chosen;
  $("session-filter").addEventListener("input", (event) => {
    filter = event.target.value;
    refresh();
  });
  $("session-filter").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && filter) {
      event.target.value = filter = "";
      refresh();
      event.stopPropagation();
    } else if (event.key === "ArrowDown") {
      $("sessions").focus();
      event.preventDefault();
    }
  });
  on("sessions", refresh);
  narrow.addEventListener("change", refresh);
  setInterval(() => document.hidden || list.draw(true), 10_000); // ages
  refresh();
  return list;
}

/** Returns id → name of recent senders without a listed session: scripts, and sessions that have left. */
export function unlisted(limit) {
  const found = new Map();
  for (const item of all.items.slice(0, 300)) {
    if (item.gap || !item.name || known.byId.has(item.from)) continue;
    if (!found.has(item.from)) found.set(item.from, item.name);
    if (found.size >= limit) break;
  }
  return found;
}
