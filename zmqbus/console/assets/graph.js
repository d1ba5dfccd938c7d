// The graph of recent messages: sessions on an oval, grouped by project, and a curve for each pair that exchanged
// messages lately. The lists contain the same data, so for a screen reader the graph is one image with one sentence.

import { $, s, still } from "./dom.js";
import { unlisted } from "./sessions.js";
import { all, emit, known, nowS, on } from "./store.js";
import { line, plural, projectName } from "./text.js";

/** Messages that make curves: the latest ones, up to this age. */
const RECENT = 300;
const RECENT_S = 600;
/** Curves, moving dots, senders without a listed session: as many as can be distinguished. */
const MAX_EDGES = 80;
const MAX_DOTS = 40;
const MAX_UNLISTED = 8;
/** When more messages than this arrive at once, none is animated. */
const MAX_FRESH = 25;
const DOT_MS = 750;
const MARGIN = { x: 112, y: 30 };
const LABEL = { width: 6.6, height: 15, chars: 16 };

let svg, edgeLayer, nodeLayer, dotLayer;
let nodes = new Map(); // session id → {x, y, angle, session?, name}
let edges = new Map(); // "from to" → path
let selected = null;
let width = 0;
let height = 0;
let dots = 0;
let shape = ""; // key of the drawn graph, which is not drawn again while unchanged

const short = (text) => (text.length > LABEL.chars ? `${text.slice(0, LABEL.chars - 1)}…` : text);

function people() {
  const found = known.sessions
    .slice()
    .sort((a, b) => a.project.localeCompare(b.project) || a.name.localeCompare(b.name))
    .map((session) => ({ id: session.id, name: session.name, group: session.project, state: session.state }));
  for (const [id, name] of unlisted(MAX_UNLISTED)) found.push({ id, name: line(name), group: "\uffff", state: "guest" });
  return found;
}

/** Returns a function from a part (0 to 1) of an oval's circumference to its angle: equal parts have equal arcs. */
function evenly(rx, ry) {
  const steps = 360;
  const ways = [0];
  for (let step = 1; step <= steps; step++) {
    const angle = ((step - 0.5) / steps) * 2 * Math.PI - Math.PI / 2;
    ways.push(ways[step - 1] + Math.hypot(rx * Math.sin(angle), ry * Math.cos(angle)));
  }
  return (part) => {
    const way = part * ways[steps];
    let step = 0;
    while (step < steps && ways[step + 1] < way) step++;
    return (step / steps) * 2 * Math.PI - Math.PI / 2;
  };
}

function place(found) {
  nodes = new Map();
  let slots = 0;
  let group = null;
  for (const one of found) {
    if (group !== null && group !== one.group) slots += 0.7; // a gap between projects
    group = one.group;
    one.slot = slots++;
  }
  slots += new Set(found.map((one) => one.group)).size > 1 ? 0.7 : 0;
  const rx = Math.max(40, width / 2 - Math.min(MARGIN.x, width * 0.24));
  const ry = Math.max(30, height / 2 - MARGIN.y);
  const angleAt = evenly(rx, ry);
  for (const one of found) {
    const angle = angleAt(one.slot / Math.max(1, slots));
    nodes.set(one.id, { ...one, angle, x: width / 2 + rx * Math.cos(angle), y: height / 2 + ry * Math.sin(angle) });
  }
}

/** Returns the ids whose labels fit without overlap; the selected and active sessions come first. */
function labelled(active) {
  const taken = [];
  const shown = new Set();
  const wanted = [...nodes.values()].sort(
    (a, b) => (b.id === selected) - (a.id === selected) || active.has(b.id) - active.has(a.id) || (a.state === "away") - (b.state === "away"),
  );
  for (const node of wanted) {
    const length = short(node.name).length * LABEL.width + 10;
    const side = Math.cos(node.angle);
    const anchor = side > 0.25 ? "start" : side < -0.25 ? "end" : "middle";
    const x = node.x + (anchor === "start" ? 9 : anchor === "end" ? -9 - length : -length / 2);
    const y = node.y + (anchor === "middle" ? (Math.sin(node.angle) > 0 ? 9 : -9 - LABEL.height) : -LABEL.height / 2);
    const box = { x, y, r: x + length, b: y + LABEL.height };
    if (box.x < 0 || box.r > width + 12) continue;
    if (taken.some((other) => box.x < other.r && other.x < box.r && box.y < other.b && other.y < box.b)) continue;
    taken.push(box);
    node.anchor = anchor;
    shown.add(node.id);
  }
  return shown;
}

function curve(a, b) {
  // Bend towards the middle, and a little to the left: so the two directions are two curves.
  const mx = (a.x + b.x) / 2;
  const my = (a.y + b.y) / 2;
  const dx = b.x - a.x;
  const dy = b.y - a.y;
  const cx = mx + (width / 2 - mx) * 0.55 - dy * 0.08;
  const cy = my + (height / 2 - my) * 0.55 + dx * 0.08;
  return `M${a.x.toFixed(1)} ${a.y.toFixed(1)}Q${cx.toFixed(1)} ${cy.toFixed(1)} ${b.x.toFixed(1)} ${b.y.toFixed(1)}`;
}

function pairs() {
  const found = new Map();
  const since = nowS() - RECENT_S;
  for (const item of all.items.slice(0, RECENT)) {
    if (item.gap || !item.toId || item.ts < since) continue;
    const key = `${item.from} ${item.toId}`;
    const known = found.get(key);
    if (known) known.count += 1;
    else if (found.size < MAX_EDGES) found.set(key, { from: item.from, to: item.toId, count: 1, ts: item.ts });
  }
  return found;
}

function draw() {
  if (!svg || $("graph").hidden || !width) return;
  const found = people();
  const talk = pairs();
  const next = JSON.stringify([width, height, selected, found.map((one) => [one.id, one.name, one.state]), [...talk.keys()]]);
  if (next !== shape) {
    shape = next;
    place(found);
    const active = new Set([...talk.values()].flatMap((pair) => [pair.from, pair.to]));
    const names = labelled(active);
    nodeLayer.replaceChildren(
      ...[...nodes.values()].map((node) => {
        const group = s(
          "g",
          { class: `node ${node.id === selected ? "selected" : ""}`, "data-id": node.id, "data-state": node.state },
          s("title", {}, `${node.name}${node.state === "guest" ? ", a script" : `, ${node.state}, ${projectName(node.group)}`}`),
          s("circle", { class: "reach", cx: node.x, cy: node.y, r: 11 }),
          s("circle", { class: "dot", cx: node.x, cy: node.y, r: nodes.size > 80 ? 3.5 : 5 }),
        );
        if (names.has(node.id)) {
          const dx = node.anchor === "start" ? 10 : node.anchor === "end" ? -10 : 0;
          const dy = node.anchor === "middle" ? (Math.sin(node.angle) > 0 ? 19 : -10) : 4;
          group.append(s("text", { x: node.x + dx, y: node.y + dy, "text-anchor": node.anchor }, short(node.name)));
        }
        return group;
      }),
    );
    edges = new Map();
    const paths = [];
    for (const [key, pair] of talk) {
      const a = nodes.get(pair.from);
      const b = nodes.get(pair.to);
      if (!a || !b) continue;
      const touched = selected && (pair.from === selected || pair.to === selected);
      const path = s("path", { class: `edge ${touched ? "touched" : selected ? "dim" : ""}`, d: curve(a, b) });
      edges.set(key, path);
      paths.push(path);
    }
    edgeLayer.replaceChildren(...paths);
    const recent = talk.size ? `${plural(talk.size, "pair")} exchanged messages` : "no messages";
    svg.setAttribute("aria-label", `${plural(found.length, "session")}; ${recent} in the last ten minutes. The lists have the details.`);
  }
  const now = nowS();
  for (const [key, path] of edges) {
    const pair = talk.get(key);
    if (!pair) continue;
    const fresh = Math.max(0.16, 0.85 - (now - pair.ts) / 120);
    path.style.opacity = fresh.toFixed(2);
    path.style.strokeWidth = `${Math.min(2.4, 1 + Math.log2(pair.count) / 4)}px`;
  }
}

function pulse(item) {
  const from = nodes.get(item.from);
  if (!from) return;
  if (still.matches || document.hidden || dots >= MAX_DOTS) return;
  if (!item.toId) {
    const ring = s("circle", { class: "ring", cx: from.x, cy: from.y, r: 6 });
    dotLayer.append(ring);
    setTimeout(() => ring.remove(), 1100);
    return;
  }
  const path = edges.get(`${item.from} ${item.toId}`);
  if (!path) return;
  const length = path.getTotalLength();
  const dot = s("circle", { class: "moving", r: 3.2 });
  dotLayer.append(dot);
  dots += 1;
  const begin = performance.now();
  const frame = (now) => {
    const part = Math.min(1, (now - begin) / DOT_MS);
    const eased = part < 0.5 ? 2 * part * part : 1 - (2 - 2 * part) ** 2 / 2;
    const point = path.getPointAtLength(length * eased);
    dot.setAttribute("cx", point.x);
    dot.setAttribute("cy", point.y);
    if (part < 1 && path.isConnected) {
      requestAnimationFrame(frame);
    } else {
      dot.remove();
      dots -= 1;
    }
  };
  requestAnimationFrame(frame);
}

let drawing = 0;
function soon() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    draw();
  });
}

export function choose(id) {
  selected = id;
  soon();
}

export function toggle() {
  const hidden = !$("graph").hidden;
  $("graph").hidden = hidden;
  $("graph-toggle").setAttribute("aria-expanded", String(!hidden));
  shape = "";
  soon();
}

export function setUp({ open }) {
  edgeLayer = s("g", { class: "edges" });
  nodeLayer = s("g", { class: "nodes" });
  dotLayer = s("g", { class: "dots" });
  svg = s("svg", { role: "img", "aria-label": "Graph of recent messages" }, edgeLayer, dotLayer, nodeLayer);
  $("graph").append(svg);
  svg.addEventListener("click", (event) => {
    const node = event.target.closest(".node");
    if (node && node.dataset.state !== "guest") open(node.dataset.id);
  });
  $("graph-toggle").addEventListener("click", toggle);
  new ResizeObserver(([entry]) => {
    width = entry.contentRect.width;
    height = entry.contentRect.height;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    soon();
  }).observe($("graph"));
  on("sessions", soon);
  on("source", (change) => {
    if (change.source !== all) return;
    soon();
    // No animation in a flood: nobody could follow it, and drawing would take processor time from the sessions.
    if (change.fresh && !change.gap && change.fresh.length <= MAX_FRESH) {
      // After the curves have been drawn.
      requestAnimationFrame(() => requestAnimationFrame(() => change.fresh.forEach(pulse)));
    }
  });
  setInterval(() => document.hidden || soon(), 5000);
  emit("graph");
}
