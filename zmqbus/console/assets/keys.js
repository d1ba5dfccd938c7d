// Keyboard shortcuts, the sheet that lists them, and the theme.

import { $, h, setText } from "./dom.js";
import { known } from "./store.js";

/** [keys, description, action]; the sheet lists them in this order. */
let table = [];

const THEMES = ["auto", "light", "dark"];
const THEME_NAMES = { auto: "the system's", light: "light", dark: "dark" };

function applyTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").setAttribute("aria-label", `Theme: ${THEME_NAMES[theme]}. Change it`);
  $("theme").title = `Theme: ${THEME_NAMES[theme]} (t)`;
}

export function nextTheme() {
  const now = document.documentElement.dataset.theme ?? "auto";
  const theme = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  try {
    if (theme === "auto") localStorage.removeItem("zmqbus-theme");
    else localStorage.setItem("zmqbus-theme", theme);
  } catch {
    // Storage is disabled: the theme lasts until the page is closed.
  }
  applyTheme(theme);
}

export function help() {
  setText($("help-foot"), `zmqbus ${known.version} · broker port ${known.port} · ${known.dataDir}`);
  $("help").showModal();
}

const SHOWN = { ArrowDown: "↓", ArrowUp: "↑", Escape: "Esc" };

/** Whether keys are text input there. A closed dialog keeps the focus until the page is drawn again. */
const typing = (element) =>
  element?.closest("input:not([type=radio]), textarea, select, [contenteditable]") && !element.closest("dialog:not([open])");

export function setUp(rows) {
  table = rows;
  $("help-keys").replaceChildren(
    ...table.flatMap(([keys, does]) => [h("dt", {}, ...keys.map((key) => h("kbd", {}, SHOWN[key] ?? key))), h("dd", {}, does)]),
  );
  applyTheme(document.documentElement.dataset.theme ?? "auto");
  $("theme").addEventListener("click", nextTheme);
  $("help-open").addEventListener("click", help);
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  // Close dialogs at once: browsers do it some time after the key, and until then the dialog gets the keys.
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      event.preventDefault();
      dialog.close();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (document.querySelector("dialog[open], #login:not([hidden])")) return;
    if (typing(event.target) && event.key !== "Escape") return;
    const row = table.find(([keys, , act]) => act && keys.includes(event.key));
    if (!row) return;
    if (row[2](event) !== false) event.preventDefault();
  });
}
