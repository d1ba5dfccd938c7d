// Talking to the console: getting in, requests, and the stream of events.
//
// Each request carries a proof that only this page can make, each answer one that only the console can (proof.js). What
// has no proof was not said by the console, and is shown nowhere. A body leaves the page only while the stream stands:
// then it is the console that has the port, and not somebody who has taken it when the console ended.

import { enter, Visitor } from "./proof.js";

/** Where a reload finds what lets this tab in. Other tabs have it from each other. */
const STORED = "zmqbus-visitor";
const PROOF = "x-zmqbus-proof";
/** How long a new tab waits for another one of this console to let it in. */
const NEIGHBOUR_MS = 400;

export class Problem extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

/** What only a new link, or another browser, helps against. */
const SHUT = new Set(["not_in", "no_crypto", "link_used", "link_expired", "link_unknown", "link_elsewhere"]);
const UNREACHABLE = () => new Problem("unreachable", "the console cannot be reached; it may have ended");

let credentials = null; // of this tab, for the others
let standing = false; // whether the stream is open, to the console itself

const neighbours = new BroadcastChannel("zmqbus");
neighbours.addEventListener("message", ({ data }) => {
  if (data === "who is in?" && credentials) neighbours.postMessage(credentials);
});

function keep(found) {
  credentials = found;
  try {
    sessionStorage.setItem(STORED, JSON.stringify(found));
  } catch {
    // Then a reload needs a new link.
  }
  return Visitor.of(found);
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORED));
  } catch {
    return null;
  }
}

function fromNeighbour() {
  return new Promise((resolve) => {
    const timer = setTimeout(() => done(null), NEIGHBOUR_MS);
    const hear = ({ data }) => data?.id && done(data);
    const done = (found) => {
      clearTimeout(timer);
      neighbours.removeEventListener("message", hear);
      resolve(found);
    };
    neighbours.addEventListener("message", hear);
    neighbours.postMessage("who is in?");
  });
}

async function postLink(body) {
  const response = await fetch("/api/enter", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    cache: "no-store",
  });
  return json(response);
}

const LINK = "#link=";
/** The token of the link that led here, until the console has said what it is good for. It goes out of the address, and
 *  so out of the history, before anything else. */
let token = null;
if (location.hash.startsWith(LINK)) {
  token = location.hash.slice(LINK.length);
  history.replaceState(null, "", "/");
}

/** Lets this page in: by the link that led here, by what this tab has kept, or by another tab. */
async function letIn() {
  if (!globalThis.crypto?.subtle) throw new Problem("no_crypto", "this browser cannot compute what lets the page in");
  let refusal = new Problem("not_in", "the page needs a link");
  if (token !== null) {
    try {
      const found = await enter(token, postLink);
      if (!found) throw UNREACHABLE();
      token = null;
      return await keep(found);
    } catch (error) {
      // The same link again, in the tab that has used it: that is let in by what it has kept.
      if (!error.code?.startsWith("link_")) throw error;
      token = null;
      refusal = error;
    }
  }
  const found = stored() ?? (await fromNeighbour());
  if (found) return keep(found);
  throw refusal;
}

// At once, while the other modules are still being read; whoever asks first waits for it, and hears how it went.
let visitor = letIn();
visitor.catch(() => {});
// Another link, pasted into the same tab: browsers do not load the page anew for it.
addEventListener("hashchange", () => location.hash.startsWith(LINK) && location.reload());

/** One request: its answer, if that is the console's. */
async function ask(path, options, signal) {
  const url = new URL(path, location.origin);
  let who;
  try {
    who = await visitor;
  } catch (error) {
    if (!(error instanceof Problem) || !SHUT.has(error.code)) {
      visitor = letIn(); // for the next request
      visitor.catch(() => {});
    }
    throw error;
  }
  const [proof, check] = await who.request(options.method, url.pathname + url.search);
  const response = await fetch(url, { ...options, headers: { ...options.headers, [PROOF]: proof }, signal, cache: "no-store", redirect: "error" });
  if (await check(response.headers.get(PROOF))) return response;
  // Not known here (any more), or not under this name: another console has the port, or says so.
  if (response.status === 401 || response.status === 421) throw new Problem("not_in", "the page needs a new link");
  throw UNREACHABLE();
}

async function json(response) {
  let answer;
  try {
    answer = await response.json();
  } catch {
    throw new Problem("unreadable", "the console's answer cannot be read; reload the page");
  }
  if (!response.ok) throw new Problem(answer.error?.code ?? "failed", answer.error?.text ?? "it has failed");
  return answer;
}

function reworded(error) {
  if (error instanceof Problem || error.name === "AbortError") return error;
  return UNREACHABLE();
}

export async function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined));
  try {
    return await json(await ask(query.size ? `${path}?${query}` : path, { method: "GET" }, signal));
  } catch (error) {
    throw reworded(error);
  }
}

export async function post(path, body, signal = undefined) {
  if (!standing) throw UNREACHABLE();
  try {
    const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    return await json(await ask(path, options, signal));
  } catch (error) {
    throw reworded(error);
  }
}

/** Reads one stream of events to its end. */
async function read(onEvent, signal) {
  const response = await ask("/api/events", { method: "GET", headers: { accept: "text/event-stream" } }, signal);
  if (!response.ok) await json(response);
  standing = true;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    waiting += value;
    let end;
    let from = 0;
    while ((end = waiting.indexOf("\n\n", from)) >= 0) {
      const block = waiting.slice(from, end);
      from = end + 2;
      if (block.startsWith("event: ")) {
        const cut = block.indexOf("\ndata: ");
        onEvent(block.slice(7, cut), JSON.parse(block.slice(cut + 7)));
      }
    }
    waiting = waiting.slice(from);
  }
}

const PAUSES_S = [0.3, 1, 2, 4, 8];

/** The stream, opened again whenever it ends. `onState` hears "live", "lost" (with the seconds to the next try),
 *  "shut" (a new link is needed; with the reason) and "elsewhere" (too many tabs; this one has been let go). */
export class Stream {
  constructor(onEvent, onState) {
    this.onEvent = onEvent;
    this.onState = onState;
    this.tries = 0;
    this.timer = 0;
    this.stopped = false;
    this.open();
  }

  async open() {
    clearTimeout(this.timer);
    this.abort?.abort();
    const abort = (this.abort = new AbortController());
    this.stopped = false;
    standing = false;
    try {
      await read((kind, data) => {
        if (abort.signal.aborted) return;
        if (kind === "bye") standing = false;
        if (kind === "hello") {
          this.tries = 0;
          this.onState("live");
        }
        if (kind === "superseded") this.stopped = true;
        this.onEvent(kind, data);
      }, abort.signal);
    } catch (error) {
      if (abort.signal.aborted) return;
      if (error instanceof Problem && SHUT.has(error.code)) {
        standing = false;
        this.onState("shut", error.code);
        return;
      }
    }
    if (abort.signal.aborted) return;
    standing = false;
    if (this.stopped) {
      this.onState("elsewhere");
      return;
    }
    const pause = PAUSES_S[Math.min(this.tries++, PAUSES_S.length - 1)];
    this.onState("lost", pause);
    this.timer = setTimeout(() => this.open(), pause * 1000);
  }
}
