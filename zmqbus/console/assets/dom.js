// Creates elements. No text can become markup: children are nodes, or are turned into text nodes.

export const $ = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

function put(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.setAttribute("class", value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  fill(element, ...children);
  return element;
}

export const h = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);

/** Appends children; skips null and false, flattens lists. */
export function fill(element, ...children) {
  for (const child of children.flat(2)) if (child !== null && child !== undefined && child !== false) element.append(child);
}

/** Shows or hides an element. */
export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

/** Sets an element's text unless it is unchanged, which screen readers would announce again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const narrow = matchMedia("(max-width: 760px)");
export const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Returns the placeholder for missing content: title, text, more elements. */
export function stateOf(title, text, ...more) {
  return [h("p", { class: "state-title" }, title), text && h("p", { class: "sub" }, text), ...more];
}

let toastCount = 0;

/** Shows a short notice that disappears by itself. */
export function toast(text, kind = "done") {
  const box = h("div", { class: `toast ${kind}` }, text);
  $("toasts").append(box);
  const own = ++toastCount;
  setTimeout(() => box.remove(), kind === "wrong" ? 9000 : 5000);
  while ($("toasts").children.length > 3) $("toasts").firstChild.remove();
  return own;
}
