// Formats texts for display. Messages may contain characters that are invisible, reverse the order of others, or control
// terminals. None is harmful in a text node, but a reader has to see them.

// Joiners and variation selectors between visible characters are ordinary writing (emoji, Persian, Indic).
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\ue000-\uf8ff\u{e0000}-\u{e0fff}\u{f0000}-\u{10ffff}]|(?<![^\u0000-\u009f])[\u200c\u200d]|[\u200c\u200d](?![^\u0000-\u009f])|(?<![^\u0000-\u0020])[\ufe00-\ufe0f]/gu;

function named(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
}

/** Returns a text with its hidden characters made visible. Line ends stay. */
export function visible(text) {
  return text.replace(/\r\n/g, "\n").replace(HIDDEN, named);
}

/** Returns a text in one line, with visible line ends. */
export function line(text) {
  return visible(text.replace(/\r\n|[\n\r\u0085\u2028\u2029]/g, "\u21b5").replace(/\t/g, " "));
}

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  if (count < 1_000_000) return `${(count / 1000).toFixed(count < 10_000 ? 1 : 0)} kB`;
  return `${(count / 1_000_000).toFixed(1)} MB`;
}

/** Formats a duration in one unit. */
export function age(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m`;
  if (s < 86400) return `${Math.floor(s / 3600)}h`;
  return `${Math.floor(s / 86400)}d`;
}

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });

/** Formats a Unix time: the time of day for today, the date otherwise. */
export function clock(ts) {
  const then = new Date(ts * 1000);
  return then.toDateString() === new Date().toDateString() ? TIME.format(then) : DAY.format(then);
}
export const fullTime = (ts) => FULL.format(new Date(ts * 1000));

/** Returns a project's name, the last part of its path. */
export function projectName(path) {
  return line(path?.replace(/\/+$/, "").split("/").pop() ?? "") || "no project";
}

/** Cuts a text into pieces no longer than `size`, never within a character. */
export function pieces(text, size) {
  const found = [];
  let at = 0;
  while (at < text.length) {
    let end = Math.min(text.length, at + size);
    const code = text.charCodeAt(end - 1);
    if (end < text.length && code >= 0xd800 && code <= 0xdbff) end += 1;
    found.push(text.slice(at, end));
    at = end;
  }
  return found;
}

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString()} ${count === 1 ? one : many}`;
