// Applies the stored theme before anything is drawn, so that the page does not flash in the other one.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("zmqbus-theme");
  } catch {
    // Storage is disabled: use the system's theme.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
