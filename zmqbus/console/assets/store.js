// What the page knows, and who wants to hear when it changes.

import { get, post } from "./net.js";

const bus = new EventTarget();
export const on = (kind, act) => bus.addEventListener(kind, (event) => act(event.detail));
export const emit = (kind, detail) => bus.dispatchEvent(new CustomEvent(kind, { detail }));

/** Lines that are kept of one list. More than anybody scrolls through; what is older is found by searching. */
const MAX_ITEMS = 100_000;
const PAGE = 200;

export const known = {
  sessions: [],
  byId: new Map(),
  broker: "unknown",
  brokerText: "",
  heardMs: 0, // when the broker was last heard of
  link: "connecting", // of the page to the console
  self: null, // the console's own session id
  version: "",
  port: 0,
  dataDir: "",
  skewS: 0, // the console's clock against this one's
};

export const nowS = () => Date.now() / 1000 + known.skewS;

/** A session as it can be called: by its id where it is known, for names change. */
export const sessionOf = (id) => known.byId.get(id) ?? null;

const order = (at) => {
  const [segment, offset] = (at ?? "0.0").split(".");
  return [Number(segment), Number(offset)];
};
const later = (a, b) => a[0] > b[0] || (a[0] === b[0] && a[1] > b[1]);

/** A list of messages, the newest first, that is fetched page by page and grows at its top.
 *
 *  Where the console has left messages out (more came than anybody could read), there is a line with `gap`: the place
 *  before which what was left out is found. */
export class Source {
  constructor(kind, title, fetchPage, live = () => false) {
    this.kind = kind;
    this.title = title;
    this.fetchPage = fetchPage;
    this.live = live; // whether a message that has just come belongs here
    this.items = [];
    this.before = null;
    this.loading = false;
    this.started = false;
    this.problem = null;
    this.tookMs = null;
    this.gaps = 0; // how many of the lines are none
  }

  get count() {
    return this.items.length - this.gaps;
  }

  get ended() {
    return this.started && this.before === null;
  }

  /** Fetches the next page, until there is something to show. */
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

  /** Puts messages on top, the oldest first; `gap`: something before them was left out. */
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
    // One by one would move all others each time.
    this.items = [...fresh.slice().reverse(), ...this.items];
    if (this.items.length > MAX_ITEMS) {
      this.items.length = MAX_ITEMS;
      this.before = this.items.findLast((item) => item.at).at;
      this.gaps = this.items.reduce((count, item) => count + (item.gap ? 1 : 0), 0);
    }
    emit("source", { source: this, added: fresh.length + (gap ? 1 : 0), fresh, gap });
    return fresh;
  }

  /** Fetches what was left out at a gap, or a page of it. */
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

function roster(view) {
  known.sessions = view.sessions;
  known.byId = new Map(view.sessions.map((session) => [session.id, session]));
  known.broker = view.broker;
  known.brokerText = view.text;
  known.heardMs = performance.now();
  known.skewS = view.now - Date.now() / 1000;
  emit("roster");
}

/** What the console tells. */
export function hear(kind, data) {
  if (kind === "hello") {
    known.version = data.version;
    known.port = data.port;
    known.dataDir = data.dataDir;
    known.self = data.self;
    const newest = all.items.find((item) => item.at);
    const items = data.items.slice().reverse();
    if (newest) {
      // Back after a while: what has come meanwhile goes on top, and if that is more than was sent, there is a gap.
      const joined = items.some((item) => !later(order(item.at), order(newest.at)));
      all.add(items, !joined && data.before !== null);
    } else {
      all.items = data.items;
      all.before = data.before;
      all.started = true;
      all.problem = data.trouble;
    }
    roster(data.roster);
    emit("source", { source: all, added: 0 });
  } else if (kind === "messages") {
    const fresh = all.add(data.items, data.gap);
    if (shown.source !== all) {
      const own = fresh.filter(shown.source.live);
      if (own.length) shown.source.add(own, false);
    }
  } else if (kind === "roster") {
    roster(data);
  } else if (kind === "beat") {
    known.heardMs = performance.now();
    emit("beat");
  } else if (kind === "trouble") {
    emit("trouble", data.text);
  }
}
