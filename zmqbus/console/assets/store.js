// The page's data, and the events that announce its changes.

import { get, post } from "./net.js";

const bus = new EventTarget();
export const on = (kind, act) => bus.addEventListener(kind, (event) => act(event.detail));
export const emit = (kind, detail) => bus.dispatchEvent(new CustomEvent(kind, { detail }));

/** Lines kept in one list: more than anybody scrolls through. Older messages are found by searching. */
const MAX_ITEMS = 100_000;
const PAGE = 200;

export const known = {
  sessions: [],
  byId: new Map(),
  broker: "unknown",
  brokerText: "",
  reportedMs: 0, // when the console last reported on the broker (performance.now)
  link: "connecting", // state of the event stream to the console
  self: null, // the console's own session id
  version: "",
  port: 0,
  dataDir: "",
  skewS: 0, // the console's clock minus this browser's
};

export const nowS = () => Date.now() / 1000 + known.skewS;

/** Returns a listed session by its id, since names change; null when it is not listed. */
export const sessionOf = (id) => known.byId.get(id) ?? null;

const order = (at) => {
  const [segment, offset] = (at ?? "0.0").split(".");
  return [Number(segment), Number(offset)];
};
const later = (a, b) => a[0] > b[0] || (a[0] === b[0] && a[1] > b[1]);

/** A list of messages, newest first, fetched page by page and extended at its top.
 *
 *  Where the console left messages out (more arrived than anybody could read), the list has a line with `gap`: the place
 *  in the log before which the omitted messages are. */
export class Source {
  constructor(kind, title, fetchPage, live = () => false) {
    this.kind = kind;
    this.title = title;
    this.fetchPage = fetchPage;
    this.live = live; // whether a new message belongs to this list
    this.items = [];
    this.before = null;
    this.loading = false;
    this.started = false;
    this.problem = null;
    this.tookMs = null;
    this.gaps = 0; // lines that stand for gaps
  }

  get count() {
    return this.items.length - this.gaps;
  }

  get ended() {
    return this.started && this.before === null;
  }

  /** Fetches further pages until there are new lines to show. */
  async more() {
    if (this.loading || this.ended || this.items.length >= MAX_ITEMS) return;
    this.loading = true;
    this.problem = null;
    emit("source", { source: this, added: 0 });
    const wanted = this.items.length + 20;
    try {
      do {
        const page = await this.fetchPage(this.before);
        this.started = true;
        this.before = page.before;
        this.tookMs = (this.tookMs ?? 0) + (page.tookMs ?? 0);
        this.items.push(...page.items);
        emit("source", { source: this, added: 0 });
      } while (this.before !== null && this.items.length < wanted && !this.closed);
    } catch (error) {
      this.problem = error.message;
    }
    this.loading = false;
    emit("source", { source: this, added: 0 });
  }

  /** Adds new messages, given oldest first, on top; `gap`: older new ones were left out. */
  add(messages, gap) {
    const newest = this.items.find((item) => item.at);
    const top = newest ? order(newest.at) : [0, -1];
    const fresh = messages.filter((message) => later(order(message.at), top));
    if (!fresh.length) return [];
    gap = gap && this.items.length > 0;
    if (gap) {
      this.items.unshift({ gap: fresh[0].at, until: newest.at });
      this.gaps += 1;
    }
    // All at once: adding one by one would move all others each time.
    this.items = [...fresh.slice().reverse(), ...this.items];
    if (this.items.length > MAX_ITEMS) {
      this.items.length = MAX_ITEMS;
      this.before = this.items.findLast((item) => item.at).at;
      this.gaps = this.items.reduce((count, item) => count + (item.gap ? 1 : 0), 0);
    }
    emit("source", { source: this, added: fresh.length + (gap ? 1 : 0), fresh, gap });
    return fresh;
  }

  /** Fetches the messages of a gap, or a page of them. */
  async fill(row) {
    if (row.loading) return;
    row.loading = true;
    emit("source", { source: this, added: 0 });
    try {
      const page = await this.fetchPage(row.gap);
      const floor = order(row.until);
      const found = page.items.filter((item) => later(order(item.at), floor));
      const at = this.items.indexOf(row);
      const done = found.length < page.items.length || page.before === null;
      const rest = done ? [] : [{ gap: page.before, until: row.until }];
      if (done) this.gaps -= 1;
      this.items = [...this.items.slice(0, at), ...found, ...rest, ...this.items.slice(at + 1)];
    } catch (error) {
      row.loading = false;
      row.problem = error.message;
    }
    emit("source", { source: this, added: 0 });
  }
}

export const all = new Source("all", "Messages", (before) => get("/api/messages", { before, limit: PAGE }), () => true);

export function ofSession(id, name) {
  return new Source(
    "session",
    `Messages of ${name}`,
    (before) => get("/api/messages", { before, limit: PAGE, session: id }),
    (message) => message.from === id || message.toId === id,
  );
}

export function ofSearch(text, mode) {
  return new Source("search", text, (before) => post("/api/search", { text, mode, before }));
}

export const shown = { source: all };

/** Shows another list of messages. */
export function showSource(source) {
  shown.source.closed = shown.source !== all && shown.source !== source;
  shown.source = source;
  emit("shown", source);
  if (!source.started) source.more();
}

function setBus(view) {
  known.sessions = view.sessions;
  known.byId = new Map(view.sessions.map((session) => [session.id, session]));
  known.broker = view.broker;
  known.brokerText = view.text;
  known.reportedMs = performance.now();
  known.skewS = view.now - Date.now() / 1000;
  emit("sessions");
}

/** Applies an event of the console. */
export function applyEvent(kind, data) {
  if (kind === "hello") {
    known.version = data.version;
    known.port = data.port;
    known.dataDir = data.dataDir;
    known.self = data.self;
    const newest = all.items.find((item) => item.at);
    const items = data.items.slice().reverse();
    if (newest) {
      // Reconnected: add the messages since then on top, with a gap when the first page does not hold all of them.
      const joined = items.some((item) => !later(order(item.at), order(newest.at)));
      all.add(items, !joined && data.before !== null);
    } else {
      all.items = data.items;
      all.before = data.before;
      all.started = true;
      all.problem = data.trouble;
    }
    setBus(data.bus);
    emit("source", { source: all, added: 0 });
  } else if (kind === "messages") {
    const fresh = all.add(data.items, data.gap);
    if (shown.source !== all) {
      const own = fresh.filter(shown.source.live);
      if (own.length) shown.source.add(own, false);
    }
  } else if (kind === "sessions") {
    setBus(data);
  } else if (kind === "heartbeat") {
    known.reportedMs = performance.now();
    emit("heartbeat");
  } else if (kind === "trouble") {
    emit("trouble", data.text);
  }
}
