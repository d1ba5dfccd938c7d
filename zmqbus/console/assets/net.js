// Talking to the console: requests, and the stream of events. Both carry the key of this page (see zmqbus/console/tickets.py).

const STORED = "zmqbus-key";
let key = null;
let claiming = null;

export class Problem extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

function stored() {
  try {
    return localStorage.getItem(STORED);
  } catch {
    return null;
  }
}

async function claim() {
  const response = await fetch("/api/hello", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: "{}",
  });
  const answer = await response.json();
  if (!response.ok) throw new Problem(answer.error?.code ?? "not_in", answer.error?.text ?? "");
  key = answer.key;
  try {
    localStorage.setItem(STORED, key);
  } catch {
    // Then this tab alone has it.
  }
}

/** Gets the key where there is none; `fresh`: the stored one did not fit. */
async function letIn(fresh) {
  if (!fresh) key ??= stored();
  if (key && !fresh) return;
  claiming ??= claim().finally(() => (claiming = null));
  await claiming;
}

// At once, while the other modules are still being read; whoever asks first waits for it, and hears how it went.
letIn(false).catch(() => {});

async function ask(path, options, signal) {
  await letIn(false);
  const go = () =>
    fetch(path, { ...options, headers: { ...options.headers, "x-zmqbus-key": key }, signal, cache: "no-store" });
  let response = await go();
  if (response.status === 401) {
    // A key of an earlier console on this port; the cookie may be fresh.
    await letIn(true);
    response = await go();
  }
  return response;
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
  return new Problem("unreachable", "the console cannot be reached; it may have ended");
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
 *  "shut" (a new link is needed) and "elsewhere" (too many tabs; this one has been let go). */
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
    try {
      await read((kind, data) => {
        if (abort.signal.aborted) return;
        if (kind === "hello") {
          this.tries = 0;
          this.onState("live");
        }
        if (kind === "superseded") this.stopped = true;
        this.onEvent(kind, data);
      }, abort.signal);
    } catch (error) {
      if (abort.signal.aborted) return;
      if (error instanceof Problem && error.code === "not_in") {
        this.onState("shut");
        return;
      }
    }
    if (abort.signal.aborted) return;
    if (this.stopped) {
      this.onState("elsewhere");
      return;
    }
    const pause = PAUSES_S[Math.min(this.tries++, PAUSES_S.length - 1)];
    this.onState("lost", pause);
    this.timer = setTimeout(() => this.open(), pause * 1000);
  }
}
