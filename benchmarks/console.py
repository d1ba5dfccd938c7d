#!/usr/bin/env python3
"""How long the console takes, and how much it costs the broker.

    python benchmarks/console.py [--rounds N] [--messages N]

* Page: from the start of the navigation (with the link, so with the redirect) until the first messages and the sessions
  are painted, with 10,000 messages of history; and from the start of the command until it prints its link.
* Event: from the line that a listener has printed until the message is painted on the page. (Negative: it was on the
  page first, for the log is written before the message goes out.)
* Broker: messages a second that one program sends to another, with and without the console, in turns. With: a page is
  open, once a client that reads the stream and does nothing, once Chromium, which paints it. Without: the console is
  stopped. The ratio of neighbours counts, for the machine is never the same for long. Its processor time for each
  message is measured, too, which does not depend on what else runs.

Needs chromium, and the extras "console" and "dev".
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(0, ROOT)

import zmqbus  # noqa: E402
from benchmarks.commands import Listener  # noqa: E402
from benchmarks.stage import free_port  # noqa: E402
from zmqbus.console.auth import NONCE_BYTES, Visitor, encode, page_key, sign, split  # noqa: E402
from zmqbus.console.guard import ENTER, PROOF_HEADER  # noqa: E402
from zmqbus.journal.record import Records, Route  # noqa: E402
from zmqbus.journal.record import encode as encode_lines  # noqa: E402

HISTORY = 10_000
PATIENCE_S = 60.0
LISTENERS = 8
#: Pause between two lines of a listener, s: its budget is full again by then.
PACE_S = 2.1
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

#: Runs in the page before its own scripts, and notes when the awaited element was painted.
WATCH = """
window.painted = {};
const look = () => {
  const feed = document.querySelector("#feed .message"), person = document.querySelector("#sessions .session");
  if (((feed && person) || document.querySelector("body > pre")) && !window.painted.page)
    requestAnimationFrame(() => setTimeout(() => window.painted.page ??= performance.now()));
  for (const text of document.querySelectorAll("#feed .message .text")) {
    const found = /event-[0-9]+/.exec(text.textContent);
    if (found && !(found[0] in window.painted)) {
      window.painted[found[0]] = 0;
      requestAnimationFrame(() => setTimeout(() => window.painted[found[0]] = Date.now()));
    }
  }
};
new MutationObserver(look).observe(document, { childList: true, subtree: true });
"""


class Console:
    """A running console."""

    def __init__(self, environ: dict[str, str]) -> None:
        started_s = time.perf_counter()
        self.environ = environ
        self.process = subprocess.Popen(
            [sys.executable, f"{ROOT}/bin/zmqbus", "console"], stdout=subprocess.PIPE, env=environ, encoding="utf-8"
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("http://"):
                break
        self.started_s = time.perf_counter() - started_s
        self.authority = urlsplit(line).netloc
        self.port = urlsplit(line).port or 0

    def link(self) -> str:
        command = [sys.executable, f"{ROOT}/bin/zmqbus", "console", "--link"]
        return subprocess.run(
            command, env=self.environ, capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def reader(console: Console) -> Iterator[None]:
    """A client that reads the stream of events and discards it."""
    connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=PATIENCE_S)
    head, secret = split(console.link().partition("#link=")[2]) or ("", b"")
    nonce = encode(os.urandom(NONCE_BYTES))
    body = json.dumps({"link": head, "nonce": nonce, "proof": sign(secret, "enter", nonce)})
    own = {"Host": console.authority, "Origin": f"http://{console.authority}", "Content-Type": "application/json"}
    connection.request("POST", ENTER, body, own)
    entered = json.loads(connection.getresponse().read())
    visitor = Visitor(entered["visitor"], page_key(secret, nonce, entered["visitor"]), 0.0)
    proof = f"{visitor.id}.{nonce}.{visitor.request_proof(nonce, 'GET', '/api/events')}"
    connection.request("GET", "/api/events", headers={"Host": console.authority, PROOF_HEADER: proof})
    response = connection.getresponse()

    def read() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
            while response.readline():
                pass

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        assert connection.sock is not None or response.fp is not None
        with contextlib.suppress(OSError, AttributeError):
            raw: Any = response.fp
            raw.raw._sock.shutdown(2)
        thread.join()
        connection.close()


def write_history(path: str, count: int) -> None:
    now_s = time.time()
    names = [f"session-{n}" for n in range(20)]
    with open(path, "wb") as log:
        os.fchmod(log.fileno(), 0o600)
        log.write(b'{"kind":"segment","segment":1,"format":1,"created":"2026-01-02T03:04:05Z"}\n')
        for n in range(count):
            sender, receiver = names[n % 20], names[(n * 7 + 1) % 20]
            text = f"status: step {n} is done, the next one begins " + "and goes on " * (n % 20)
            ts = now_s - count + n
            route = Route("message", sender, sender, None, receiver, receiver)
            (line,) = encode_lines(Records(ts, route, None, "text", [f"id{n:010}"], [text.encode()]))
            log.write(line + b"\n")


SENDER = """
import sys, time, zmqbus
count = int(sys.argv[1])
with zmqbus.connect("sender") as bus:
    for line in sys.stdin:
        begin_s = time.perf_counter()
        futures = [bus.send("sink", "x" * 100, wait=False) for _ in range(count)]
        for future in futures:
            future.result()
        print(time.perf_counter() - begin_s, flush=True)
"""
SINK = """
import zmqbus
with zmqbus.connect("sink") as bus:
    print("here", flush=True)
    for message in bus.messages():
        pass
"""


class Load:
    """A program that sends to another as fast as it can."""

    def __init__(self, environ: dict[str, str], count: int, port: int) -> None:
        self.count = count
        self._sink = subprocess.Popen([sys.executable, "-c", SINK], env=environ, stdout=subprocess.PIPE)
        assert self._sink.stdout is not None
        self._sink.stdout.readline()
        self._sender = subprocess.Popen(
            [sys.executable, "-c", SENDER, str(count)],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        with open(f"{environ['INTER_SESSION_DATA_DIR']}/server.{port}.pid") as file:
            self._broker = psutil.Process(int(file.read()))

    def run(self) -> tuple[float, float]:
        """Returns messages a second, and the broker's processor time for one, in µs."""
        assert self._sender.stdin is not None and self._sender.stdout is not None
        before = self._broker.cpu_times()
        self._sender.stdin.write("go\n")
        self._sender.stdin.flush()
        took_s = float(self._sender.stdout.readline())
        after = self._broker.cpu_times()
        used_s = after.user + after.system - before.user - before.system
        return self.count / took_s, used_s / self.count * 1e6

    def close(self) -> None:
        for process in (self._sender, self._sink):
            process.terminate()
            process.wait(PATIENCE_S)


def measure_page(browser: Any, console: Console, rounds: int) -> None:
    times: list[float] = []
    yardstick: list[float] = []
    for _ in range(rounds):
        for url, ready, into in (
            (console.link(), "#sessions .session", times),
            (f"http://{console.authority}/assets/theme.js", "body > pre", yardstick),
        ):
            context = browser.new_context(viewport={"width": 1600, "height": 1000})
            page = context.new_page()
            page.add_init_script(WATCH)
            page.goto(url)
            page.wait_for_selector(ready)
            into.append(_painted(page, "page"))
            context.close()
    show("page usable, ms", times, "≤ 300")
    show("  yardstick: a page of ten lines and no script, ms", yardstick, "")


def _painted(page: Any, what: str) -> float:
    end_s = time.monotonic() + PATIENCE_S
    while not (at_ms := page.evaluate(f"window.painted['{what}'] ?? 0")):
        assert time.monotonic() < end_s, what
    return float(at_ms)


def measure_events(page: Any, listeners: list[Listener], rounds: int) -> None:
    """Measures events; the listeners take turns, since otherwise their pacing would be measured."""
    printed: dict[str, float] = {}
    with zmqbus.connect("speaker") as bus:
        for n in range(rounds):
            listener = listeners[n % len(listeners)]
            bus.send(f"watched-{n % len(listeners)}", f"event-{n}", wait=False)
            line_s = listener.line_s()
            printed[f"event-{n}"] = (time.time() - (time.perf_counter() - line_s)) * 1000
            time.sleep((PACE_S + n % 7 * 0.037) / len(listeners))
    _painted(page, f"event-{rounds - 1}")
    painted = page.evaluate("window.painted")
    show("event on the page after its line, ms", [painted[text] - at_ms for text, at_ms in printed.items()], "≤ 100")


def measure_cost(
    console: Console,
    load: Load,
    rounds: int,
    what: str,
    watching: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    ratios, cpu_ratios = [], []
    on_rates, off_rates, own = [], [], []
    process = psutil.Process(console.process.pid)
    for turn in range(rounds):
        found: dict[bool, tuple[float, float]] = {}
        for on in (True, False) if turn % 2 else (False, True):
            if on:
                console.process.send_signal(signal.SIGCONT)
                with watching():
                    before, begin_s = sum(process.cpu_times()[:2]), time.monotonic()
                    found[on] = load.run()
                    own.append((sum(process.cpu_times()[:2]) - before) / (time.monotonic() - begin_s) * 100)
            else:
                console.process.send_signal(signal.SIGSTOP)
                found[on] = load.run()
                console.process.send_signal(signal.SIGCONT)
        ratios.append((1 - found[True][0] / found[False][0]) * 100)
        cpu_ratios.append((found[True][1] / found[False][1] - 1) * 100)
        on_rates.append(found[True][0])
        off_rates.append(found[False][0])
    print(f"{what}: {statistics.median(off_rates):,.0f}/s without, {statistics.median(on_rates):,.0f}/s with")
    show("  throughput lost, % (of each pair)", ratios, "< 2")
    show("  broker's processor time for a message, % more", cpu_ratios, "")
    print(f"  the console itself took {statistics.mean(own):.1f} % of one core meanwhile")


def show(what: str, values: list[float], wanted: str) -> None:
    ordered = sorted(values)
    tail = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    quarter, middle, three = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else [ordered[0]] * 3
    print(
        f"{what}: median {middle:.1f} (quartiles {quarter:.1f} … {three:.1f}, 95 % {tail:.1f}, worst {ordered[-1]:.1f})"
        + (f"; wanted {wanted}" if wanted else ""),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--messages", type=int, default=20_000, help="of one round of the broker's throughput")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if chromium is None:
        raise SystemExit("no chromium here")
    with tempfile.TemporaryDirectory(prefix="zb-") as data, contextlib.ExitStack() as stack:
        port = free_port()
        own = {"INTER_SESSION_DATA_DIR": data, "INTER_SESSION_PORT": str(port), "PYTHONPATH": ROOT}
        environ = {**os.environ, **own}
        os.environ.update(own)
        write_history(f"{data}/messages.log", HISTORY)
        stop = [sys.executable, f"{ROOT}/bin/zmqbus", "broker", "--stop"]
        stack.callback(subprocess.run, stop, env=environ, stdout=subprocess.DEVNULL)
        starts = []
        for _ in range(5):
            one = Console(environ)
            starts.append(one.started_s * 1000)
            one.close()
        show("command to link, ms", starts, "")
        listeners = [Listener(environ, f"watched-{n}") for n in range(LISTENERS)]
        for listener in listeners:
            stack.callback(listener.close)
            listener.connected_s()
        console = Console(environ)
        stack.callback(console.close)
        driver = stack.enter_context(sync_playwright())
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=chromium, args=args)
        stack.callback(browser.close)
        measure_page(browser, console, options.rounds)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.add_init_script(WATCH)
        page.goto(console.link())
        page.wait_for_selector("#sessions .session")
        measure_events(page, listeners, 80)
        page.goto("about:blank")
        load = Load(environ, options.messages, port)
        stack.callback(load.close)
        load.run()  # the first round warms up

        @contextlib.contextmanager
        def painted() -> Iterator[None]:
            page.goto(console.link())  # a new one, for the readers have taken all places
            page.wait_for_selector("#sessions .session")
            page.wait_for_timeout(1500)  # its start is not part of the measurement
            yield
            page.goto("about:blank")

        measure_cost(console, load, options.rounds, "a page that reads", lambda: reader(console))
        measure_cost(console, load, options.rounds, "a page in Chromium, on the same cores", painted)


if __name__ == "__main__":
    main()
