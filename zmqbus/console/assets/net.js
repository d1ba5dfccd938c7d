// Network access: signing in, requests, and the event stream.
//
// Each request carries a proof that only this page can make, each response one that only the console can (proof.js).
// Responses without a proof are not from the console and are never shown. A POST is sent only while the event stream is
// open: then the console has the port, and not a program that took it when the console ended.

import { enter, Visitor } from "./proof.js";

/** Key of the tab's credentials in its session storage, for reloads. Other tabs get them from each other. */
const STORED = "zmqbus-visitor";
const PROOF = "x-zmqbus-proof";
/** How long a new tab waits for the credentials of another tab. */
const NEIGHBOUR_MS = 400;

export class Problem extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

/** Refusals that lead to the login page: only a new link or another browser helps. */
const LOGIN_CODES = new Set(["not_in", "no_crypto", "link_used", "link_expired", "link_unknown", "link_elsewhere"]);
const UNREACHABLE = () => new Problem("unreachable", "the console cannot be reached; it may have ended");

let credentials = null; // of this tab, for other tabs
let streaming = false; // whether the event stream to the console is open

const neighbours = new BroadcastChannel("zmqbus");
neighbours.addEventListener("message", ({ data }) => {
  if (data === "who is in?" && credentials) neighbours.postMessage(credentials);
});

function keep(found) {
  credentials = found;
  try {
    sessionStorage.setItem(STORED, JSON.stringify(found));
  } catch {
    // Storage is disabled: a reload needs a new link.
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
    const onAnswer = ({ data }) => data?.id && done(data);
    const done = (found) => {
      clearTimeout(timer);
      neighbours.removeEventListener("message", onAnswer);
      resolve(found);
    };
    neighbours.addEventListener("message", onAnswer);
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
/** Token of the link that opened this page, until the console has answered. It is removed from the address, and so from
 *  the browser's history, before anything else. */
let token = null;
if (location.hash.startsWith(LINK)) {
  token = location.hash.slice(LINK.length);
  history.replaceState(null, "", "/");
}

/** Signs this page in: with the link that opened it, the tab's stored credentials, or those of another tab. */
async function signIn() {
  if (!globalThis.crypto?.subtle) throw new Problem("no_crypto", "this browser offers no Web Crypto to the page; use another one");
  let refusal = new Problem("not_in", "the page needs a link");
  if (token !== null) {
    try {
      const found = await enter(token, postLink);
      if (!found) throw UNREACHABLE();
      token = null;
      return await keep(found);
    } catch (error) {
      // A link opened again in the tab that has used it: the stored credentials still work.
      if (!error.code?.startsWith("link_")) throw error;
      token = null;
      refusal = error;
    }
  }
  const found = stored() ?? (await fromNeighbour());
  if (found) return keep(found);
  throw refusal;
}

// Start now, while the other modules load; the first request waits for the result.
let visitor = signIn();
visitor.catch(() => {});
// Another link pasted into this tab: browsers do not reload the page for a changed hash.
addEventListener("hashchange", () => location.hash.startsWith(LINK) && location.reload());

/** Sends a request; returns its response once its proof has been checked. */
async function ask(path, options, signal) {
  const url = new URL(path, location.origin);
  let who;
  try {
    who = await visitor;
  } catch (error) {
    if (!(error instanceof Problem) || !LOGIN_CODES.has(error.code)) {
      visitor = signIn(); // for the next request
      visitor.catch(() => {});
    }
    throw error;
  }
  const [proof, check] = await who.request(options.method, url.pathname + url.search);
  const response = await fetch(url, { ...options, headers: { ...options.headers, [PROOF]: proof }, signal, cache: "no-store", redirect: "error" });
  if (await check(response.headers.get(PROOF))) return response;
  // The console does not know this visitor or host name: another console has the port, or a program claims so.
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
  if (!response.ok) throw new Problem(answer.error?.code ?? "failed", answer.error?.text ?? "the request failed; try again");
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
  if (!streaming) throw UNREACHABLE();
  try {
    const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    return await json(await ask(path, options, signal));
  } catch (error) {
    throw reworded(error);
  }
}

/** Reads an event stream to its end. */
async function read(onEvent, signal) {
  const response = await ask("/api/events", { method: "GET", headers: { accept: "text/event-stream" } }, signal);
  if (!response.ok) await json(response);
  streaming = true;
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

/** The event stream, reopened whenever it ends. `onState` gets "live", "lost" (with the seconds to the next try),
 *  "login" (a new link is needed; with the code of the refusal) and "superseded" (too many tabs are open). */
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
    streaming = false;
    try {
      await read((kind, data) => {
        if (abort.signal.aborted) return;
        if (kind === "closing") streaming = false;
        if (kind === "hello") {
          this.tries = 0;
          this.onState("live");
        }
        if (kind === "superseded") this.stopped = true;
        this.onEvent(kind, data);
      }, abort.signal);
    } catch (error) {
      if (abort.signal.aborted) return;
      if (error instanceof Problem && LOGIN_CODES.has(error.code)) {
        streaming = false;
        this.onState("login", error.code);
        return;
      }
    }
    if (abort.signal.aborted) return;
    streaming = false;
    if (this.stopped) {
      this.onState("superseded");
      return;
    }
    const pause = PAUSES_S[Math.min(this.tries++, PAUSES_S.length - 1)];
    this.onState("lost", pause);
    this.timer = setTimeout(() => this.open(), pause * 1000);
  }
}
