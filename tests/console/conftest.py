"""The console for tests: its application asked directly, a process of it, and a browser.

`asked` sends requests to the application without a network, as a browser or as somebody hostile would.
`console` is a running `zmqbus console`; `page` a page of it in Chromium. Where the browser is missing, or what drives
it, the tests with a page are skipped and say so.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.real.conftest import Bus, wait_until
from tests.real.conftest import bus as bus  # a fixture
from zmqbus.console.auth import NONCE_BYTES, Visitor, encode, page_key, sign, split
from zmqbus.console.guard import ENTER, PROOF_HEADER
from zmqbus.journal.record import Record, encode_record
from zmqbus.settings import load

#: Two cores may be shared with the whole suite.
PATIENCE_S = 90.0
PORT = 18_231
NAME = "z0123456789abcdef.localhost"
AUTHORITY = f"{NAME}:{PORT}"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


# --- the log --------------------------------------------------------------------------------------------------------


def put(data_dir: Path, *records: Record, name: str = "messages.log", segment: int = 1) -> None:
    """Writes a segment of a log, or adds to it. A new one is there with all that is in it."""
    path = data_dir / name
    lines = b"".join(encode_record(record) + b"\n" for record in records)
    if path.exists():
        with path.open("ab") as log:
            log.write(lines)
        return
    new = data_dir / f"{name}.new"
    new.touch(0o600)
    head = f'{{"kind":"segment","segment":{segment},"format":1,"created":"2026-01-02T03:04:05Z"}}\n'
    new.write_bytes(head.encode() + lines)
    new.rename(path)


# --- the application, without a network -----------------------------------------------------------------------------


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def new_nonce() -> str:
    """One as the page makes it."""
    return encode(os.urandom(NONCE_BYTES))


def proof_of(visitor: Visitor, method: str, target: str) -> str:
    """What a page of this visitor's puts into the header of a request."""
    nonce = new_nonce()
    return f"{visitor.id}.{nonce}.{visitor.request_proof(nonce, method, target)}"


def entering(token: str) -> tuple[dict[str, str], Callable[[dict[str, str]], Visitor]]:
    """What a page sends to use a link up, and what it makes of the answer; fails where that is not the console's."""
    parts = split(token)
    assert parts is not None, token
    head, secret = parts
    nonce = new_nonce()

    def welcome(answer: dict[str, str]) -> Visitor:
        assert answer["proof"] == sign(secret, "welcome", nonce, answer["visitor"])
        return Visitor(answer["visitor"], page_key(secret, nonce, answer["visitor"]), 0.0)

    return {"link": head, "nonce": nonce, "proof": sign(secret, "enter", nonce)}, welcome


@dataclass(slots=True)
class Asked:
    """Asks an ASGI application. Headers are those of the console's page, unless others are given; None: left out."""

    app: Callable[..., Any]
    authority: str = AUTHORITY
    visitor: Visitor | None = None
    scope: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, str | None] = field(default_factory=dict)

    def __call__(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str | None] | None = None
    ) -> Answer:
        sent: dict[str, str | None] = {"host": self.authority, "sec-fetch-site": "same-origin"}
        data = b""
        if method == "POST":
            data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
            sent |= {"origin": f"http://{self.authority}", "content-type": JSON, "content-length": str(len(data))}
        if self.visitor is not None:
            sent[PROOF_HEADER] = proof_of(self.visitor, method, path)
        sent |= self.defaults | dict(headers or {})
        return asyncio.run(self._ask(method, path, data, sent))

    async def _ask(self, method: str, path: str, data: bytes, headers: dict[str, str | None]) -> Answer:
        parts = urlsplit(path)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": parts.path,
            "raw_path": parts.path.encode(),
            "root_path": "",
            "query_string": parts.query.encode(),
            "headers": [(n.encode(), v.encode("latin-1")) for n, v in headers.items() if v is not None],
            "server": ("127.0.0.1", PORT),
            "client": ("127.0.0.1", 50_000),
            **self.scope,
        }
        pieces = [data[at : at + 65_536] for at in range(0, len(data), 65_536)] or [b""]
        found: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if pieces:
                return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            found.append(message)

        await self.app(scope, receive, send)
        start = found[0]
        got = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(start["status"], got, b"".join(one.get("body", b"") for one in found[1:]))


def log_in(ask: Asked, token: str) -> Asked:
    """The same, let in with a link."""
    body, welcome = entering(token)
    answer = ask("POST", ENTER, body)
    assert answer.status == 200, answer
    ask.visitor = welcome(answer.json)
    return ask


# --- a process of it ------------------------------------------------------------------------------------------------


class ConsoleProcess:
    """A running `zmqbus console`."""

    def __init__(self, bus: Bus, process: subprocess.Popen[bytes]) -> None:
        self.bus = bus
        self.process = process
        self._lines: queue.Queue[str] = queue.Queue()
        self.printed: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.link = self.next_link()
        self.authority = urlsplit(self.link).netloc
        self.port = urlsplit(self.link).port or 0

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line.decode().rstrip("\n"))
            self._lines.put(self.printed[-1])

    def next_link(self) -> str:
        """The next link that it prints."""
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE_S)
            except queue.Empty:
                pytest.fail(f"no link; printed {self.printed}, exit {self.process.poll()}")
            if line.startswith("http://"):
                return line

    def new_link(self, *flags: str) -> str:
        """A link that any terminal can ask for."""
        done = self.bus.zmqbus("console", "--link", "--port", str(self.port), *flags)
        assert done.returncode == 0, done
        return done.stdout.strip()

    def stop(self, signum: int = signal.SIGINT) -> tuple[int, str]:
        """Ends it; its exit status and standard error."""
        self.process.send_signal(signum)
        status = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.process.stderr is not None
        return status, self.process.stderr.read().decode()

    def enter(self, link: str | None = None) -> Insider:
        """Uses a link up, as a page does."""
        body, welcome = entering(token_of(link or self.new_link()))
        status, _, answer = Insider(self, None)("POST", ENTER, body)
        assert status == 200, answer
        return Insider(self, welcome(json.loads(answer)))

    def raw(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request, with these headers and no others but Host and Content-Length where they are not given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {"Host": self.authority, **(headers or {})}.items():
                connection.putheader(name, value)
            if body is not None and "Content-Length" not in (headers or {}):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, {n.lower(): v for n, v in response.getheaders()}, response.read()
        finally:
            connection.close()


def token_of(link: str) -> str:
    """The token of a link."""
    return link.partition("#link=")[2]


class Insider:
    """A visitor, or somebody who would like to be one: leaves out or changes what it likes of what a page sends."""

    def __init__(self, console: ConsoleProcess, visitor: Visitor | None) -> None:
        self.console = console
        self.visitor = visitor
        self.host = console.authority

    def headers(self, method: str, path: str) -> dict[str, str]:
        """What a page sends."""
        found = {"Host": self.host}
        if self.visitor is not None:
            found["X-Zmqbus-Proof"] = proof_of(self.visitor, method, path)
        if method == "POST":
            found |= {"Origin": f"http://{self.host}", "Content-Type": JSON}
        return found

    def __call__(
        self, method: str, path: str, body: Any = None, **changes: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        data = None
        if method == "POST":
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers: dict[str, str | None] = {**self.headers(method, path)}
        headers |= {name.replace("_", "-"): value for name, value in changes.items()}
        return self.console.raw(method, path, data, {n: value for n, value in headers.items() if value is not None})

    def stream(self) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The stream of events, at its first."""
        connection = http.client.HTTPConnection("127.0.0.1", self.console.port, timeout=PATIENCE_S)
        connection.request("GET", "/api/events", headers=self.headers("GET", "/api/events"))
        response = connection.getresponse()
        assert response.status == 200 and response.readline() == b"event: hello\n"
        return connection, response


@pytest.fixture
def start_console(bus: Bus) -> Iterator[Callable[..., ConsoleProcess]]:
    """`start_console(*flags)` starts one; each is ended with Ctrl-C, and has to end well."""
    started: list[ConsoleProcess] = []

    def start(*flags: str, **options: Any) -> ConsoleProcess:
        process = bus.popen("zmqbus", "console", *flags, **options)
        started.append(ConsoleProcess(bus, process))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            status, errors = one.stop()
            assert (status, errors) == (0, "")


@pytest.fixture
def console(start_console: Callable[..., ConsoleProcess]) -> ConsoleProcess:
    return start_console()


@pytest.fixture
def settings(data_dir: Path, free_port: int) -> Any:
    return load({"port": free_port})


# --- a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, headless; one for all tests of a file."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no chromium here; install it with: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("no playwright here; install it with: pip install playwright")
    # Its home is not the user's: it writes its profile and caches there.
    with sync_playwright() as driver:
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = driver.chromium.launch(executable_path=path, args=args, timeout=PATIENCE_S * 1000)
        yield chromium
        chromium.close()


class Seen:
    """What the browser complains about: errors of scripts, and what the policy of the page forbids."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.expected: tuple[str, ...] = ()

    def watch(self, page: Any) -> None:
        page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))
        page.on("console", self._said)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def check(self) -> None:
        left = [fault for fault in self.faults if not any(part in fault for part in self.expected)]
        assert not left, left


@pytest.fixture
def seen() -> Seen:
    """Tests that break something say in `expected` what the browser may say about it."""
    return Seen()


@pytest.fixture
def open_page(browser: Any, console: ConsoleProcess, seen: Seen) -> Iterator[Callable[..., Any]]:
    """`open_page(width=…, height=…, dark=…)`: a page of the console in a browser of its own, let in by a link."""
    contexts = []

    def open_one(
        width: int = 1600, height: int = 1000, dark: bool = False, url: str | None = None, **options: Any
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **options
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE_S * 1000)
        page = context.new_page()
        seen.watch(page)
        # One that leads on at once is left before all of it is there.
        page.goto(url or console.new_link(), wait_until="load" if url is None else "commit")
        if url is None:
            page.wait_for_selector("html[data-ready]")
        return page

    yield open_one
    for context in contexts:
        context.close()
    seen.check()


def wait_count(locator: Any, count: int) -> None:
    """Waits until so many elements fit: the page draws when it comes to it, and not as part of what was done to it."""
    wait_until(lambda: locator.count() == count, f"{count} of {locator}", PATIENCE_S)


def wait_true(page: Any, expression: str) -> None:
    """Waits until this is so on the page. (Not with the page's own `wait_for_function`: its policy forbids that.)"""
    wait_until(lambda: page.evaluate(expression), expression, PATIENCE_S)


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    return open_page()
