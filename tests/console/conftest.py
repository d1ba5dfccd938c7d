"""Fixtures for the console: its application called directly, a running process, and pages in a browser.

`AppClient` sends requests to the application without a network. The fixture `console` is a running `zmqbus console`;
`page` is a page of it in Chromium. Tests with a page are skipped when Chromium or playwright is missing.
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
from tests.records import encode_record
from zmqbus.console.auth import NONCE_BYTES, Visitor, encode, page_key, sign, split
from zmqbus.console.guard import ENTER, PROOF_HEADER
from zmqbus.journal.record import Record
from zmqbus.settings import load

#: Generous: the whole suite may share two cores.
PATIENCE_S = 90.0
PORT = 18_231
NAME = "z0123456789abcdef.localhost"
AUTHORITY = f"{NAME}:{PORT}"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


# --- the log --------------------------------------------------------------------------------------------------------


def put(data_dir: Path, *records: Record, name: str = "messages.log", segment: int = 1) -> None:
    """Appends records to a segment of a log; a new segment appears with all of them at once."""
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
    """Makes a nonce as the page does."""
    return encode(os.urandom(NONCE_BYTES))


def proof_of(visitor: Visitor, method: str, target: str) -> str:
    """Makes the proof header of a visitor's request."""
    nonce = new_nonce()
    return f"{visitor.id}.{nonce}.{visitor.request_proof(nonce, method, target)}"


def page_headers(authority: str, visitor: Visitor | None, method: str, target: str) -> dict[str, str]:
    """Returns the headers that the console's page sends, without the length of the body."""
    headers = {"host": authority, "sec-fetch-site": "same-origin"}
    if method == "POST":
        headers |= {"origin": f"http://{authority}", "content-type": JSON}
    if visitor is not None:
        headers[PROOF_HEADER] = proof_of(visitor, method, target)
    return headers


def entering(token: str) -> tuple[dict[str, str], Callable[[dict[str, str]], Visitor]]:
    """Returns the request that signs in with a link, and a function that checks the answer and makes the visitor."""
    parts = split(token)
    assert parts is not None, token
    head, secret = parts
    nonce = new_nonce()

    def welcome(answer: dict[str, str]) -> Visitor:
        assert answer["proof"] == sign(secret, "welcome", nonce, answer["visitor"])
        return Visitor(answer["visitor"], page_key(secret, nonce, answer["visitor"]), 0.0)

    return {"link": head, "nonce": nonce, "proof": sign(secret, "enter", nonce)}, welcome


@dataclass(slots=True)
class AppClient:
    """Sends requests to an ASGI application with the headers of the console's page; a None header is left out."""

    app: Callable[..., Any]
    authority: str = AUTHORITY
    visitor: Visitor | None = None
    scope: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str | None] | None = None
    ) -> Answer:
        sent: dict[str, str | None] = {**page_headers(self.authority, self.visitor, method, path)}
        data = b""
        if method == "POST":
            data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
            sent["content-length"] = str(len(data))
        sent |= dict(headers or {})
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


def sign_in(ask: AppClient, token: str) -> AppClient:
    """Signs a client in with a link."""
    body, welcome = entering(token)
    answer = ask("POST", ENTER, body)
    assert answer.status == 200, answer
    ask.visitor = welcome(answer.json)
    return ask


# --- a running console ------------------------------------------------------------------------------------------------


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
        """Waits for the next printed link."""
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE_S)
            except queue.Empty:
                pytest.fail(f"no link; printed {self.printed}, exit {self.process.poll()}")
            if line.startswith("http://"):
                return line

    def new_link(self, *flags: str) -> str:
        """Gets a link as another terminal does."""
        done = self.bus.zmqbus("console", "--link", "--port", str(self.port), *flags)
        assert done.returncode == 0, done
        return done.stdout.strip()

    def stop(self, signum: int = signal.SIGINT) -> tuple[int, str]:
        """Ends the console; returns its exit status and standard error."""
        self.process.send_signal(signum)
        status = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.process.stderr is not None
        return status, self.process.stderr.read().decode()

    def enter(self, link: str | None = None) -> PageClient:
        """Signs in with a link, as a page does."""
        body, welcome = entering(token_of(link or self.new_link()))
        status, _, answer = PageClient(self, None)("POST", ENTER, body)
        assert status == 200, answer
        return PageClient(self, welcome(json.loads(answer)))

    def raw(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Sends one request with these headers; only Host and Content-Length are added when missing."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            sent = (
                {"host": self.authority} if body is None else {"host": self.authority, "content-length": str(len(body))}
            )
            for name, value in (sent | {name.lower(): value for name, value in (headers or {}).items()}).items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, {n.lower(): v for n, v in response.getheaders()}, response.read()
        finally:
            connection.close()


def token_of(link: str) -> str:
    """Returns the token of a link."""
    return link.partition("#link=")[2]


class PageClient:
    """Sends requests like a page, with changed or missing headers on demand; `visitor` None: not signed in."""

    def __init__(self, console: ConsoleProcess, visitor: Visitor | None) -> None:
        self.console = console
        self.visitor = visitor

    def headers(self, method: str, path: str) -> dict[str, str]:
        """Returns the headers that a page sends."""
        return page_headers(self.console.authority, self.visitor, method, path)

    def __call__(
        self, method: str, path: str, body: Any = None, **changes: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        data = None
        if method == "POST":
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers: dict[str, str | None] = {**self.headers(method, path)}
        headers |= {name.lower(): value for name, value in changes.items()}
        return self.console.raw(method, path, data, {n: value for n, value in headers.items() if value is not None})

    def stream(self) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Opens the event stream and reads its first line."""
        connection = http.client.HTTPConnection("127.0.0.1", self.console.port, timeout=PATIENCE_S)
        connection.request("GET", "/api/events", headers=self.headers("GET", "/api/events"))
        response = connection.getresponse()
        assert response.status == 200 and response.readline() == b"event: hello\n"
        return connection, response


@pytest.fixture
def start_console(bus: Bus) -> Iterator[Callable[..., ConsoleProcess]]:
    """`start_console(*flags)` starts a console; each is ended with Ctrl-C and must exit cleanly."""
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
    """Headless Chromium, one for all tests of a file."""
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


class BrowserErrors:
    """Collects errors of scripts and violations of the page's content security policy."""

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
def browser_errors() -> BrowserErrors:
    """Fails the test on browser errors other than those that it lists in `expected`."""
    return BrowserErrors()


@pytest.fixture
def open_page(browser: Any, console: ConsoleProcess, browser_errors: BrowserErrors) -> Iterator[Callable[..., Any]]:
    """`open_page(width=…, height=…, dark=…)` opens the console in a new browser profile, signed in by a link."""
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
        browser_errors.watch(page)
        # A page that redirects at once is left before it has loaded.
        page.goto(url or console.new_link(), wait_until="load" if url is None else "commit")
        if url is None:
            page.wait_for_selector("html[data-ready]")
        return page

    yield open_one
    for context in contexts:
        context.close()
    browser_errors.check()


def wait_count(locator: Any, count: int) -> None:
    """Waits until so many elements match; the page draws some time after an action."""
    wait_until(lambda: locator.count() == count, f"{count} of {locator}", PATIENCE_S)


def wait_true(page: Any, expression: str) -> None:
    """Waits until an expression is true on the page; its policy forbids playwright's `wait_for_function`."""
    wait_until(lambda: page.evaluate(expression), expression, PATIENCE_S)


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    return open_page()
