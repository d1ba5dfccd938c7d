"""Attacks by other web pages, other users and hostile programs, over the network against a running console."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from tests.console.conftest import JSON, PATIENCE_S, TEXT, ConsoleProcess, PageClient, token_of, wait_true
from tests.console.other_user import NOBODY, start_as_nobody
from tests.real.conftest import Bus, ListenerProcess, wait_until
from zmqbus.console.connections import MAX_UNPROVEN
from zmqbus.console.peers import Peers

pytestmark = pytest.mark.slow

MARKUP = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><iframe src=//evil.example>"
)


@pytest.fixture
def auth(bus: Bus) -> ListenerProcess:
    return bus.listener("auth")


@pytest.fixture
def page_client(console: ConsoleProcess) -> PageClient:
    return console.enter()


def test_unchanged_request_is_accepted(page_client: PageClient, auth: ListenerProcess) -> None:
    """Proves that the attacks below fail only because of what they change."""
    assert page_client("GET", "/api/messages")[0] == 200
    status, _, body = page_client("POST", "/api/send", {"scope": "session", "to": "auth", "text": "insider"})
    assert status == 200 and json.loads(body)["state"] in ("delivered", "queued")
    auth.wait_message("insider")


SEND = {"scope": "session", "to": "auth", "text": "owned"}
#: Status of the refusal, body and changed headers (None: left out) of requests that another page or program forges.
FORGED: list[tuple[int, Any, dict[str, str | None]]] = [
    (421, SEND, {"Host": "evil.example"}),  # a rebound name
    (421, SEND, {"Host": "evil.example", "Origin": "http://evil.example"}),
    (421, SEND, {"Host": "localhost"}),
    (403, SEND, {"Origin": "http://evil.example"}),  # another site
    (403, SEND, {"Origin": "http://127.0.0.1:1"}),  # another port
    (403, SEND, {"Origin": "null"}),  # a sandboxed frame, or a file
    (403, SEND, {"Origin": None}),
    (403, SEND, {"Sec-Fetch-Site": "cross-site"}),
    (403, SEND, {"Sec-Fetch-Site": "same-site"}),
    (415, json.dumps(SEND).encode(), {"Content-Type": TEXT}),  # a form with enctype text/plain
    (415, b"scope=session&to=auth&text=owned", {"Content-Type": "application/x-www-form-urlencoded"}),
    (401, SEND, {"X-Zmqbus-Proof": None}),
    (401, SEND, {"X-Zmqbus-Proof": "forged"}),
    (401, SEND, {"X-Zmqbus-Proof": None, "Cookie": "zmqbus=forged"}),
    (413, SEND, {"Content-Length": str(1 << 40)}),
]


def test_forged_send_is_refused(page_client: PageClient, bus: Bus, auth: ListenerProcess) -> None:
    for status, body, changes in FORGED:
        assert page_client("POST", "/api/send", body, **changes)[0] == status, changes
    bus.deliver("auth", "the next thing")
    auth.wait_message("the next thing")
    assert not any("owned" in line for line in auth.lines)


def test_forged_read_is_refused(page_client: PageClient, bus: Bus, auth: ListenerProcess) -> None:
    bus.deliver("auth", "a secret")
    for path in ("/api/messages", "/api/events", "/api/thread/abcdefgh", "/"):
        for changes in (
            {"Host": "evil.example"},
            {"X-Zmqbus-Proof": None},
            {"X-Zmqbus-Proof": "x.y.z"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            status, _, body = page_client("GET", path, **changes)
            assert status in (401, 403, 421) or path == "/"
            assert b"secret" not in body


def test_cors_preflight_is_refused(page_client: PageClient) -> None:
    status, headers, _ = page_client(
        "OPTIONS", "/api/send", Origin="http://evil.example", **{"Access-Control-Request-Method": "POST"}
    )
    assert status == 405 and not any(name.startswith("access-control") for name in headers)


def test_endless_chunked_body_is_cut_off(page_client: PageClient) -> None:
    """A chunked body has no length to check: it is counted on arrival, and the connection closed."""
    sent = 0
    with contextlib.closing(
        socket.create_connection(("127.0.0.1", page_client.console.port), PATIENCE_S)
    ) as connection:
        headers = page_client.headers("POST", "/api/send") | {"transfer-encoding": "chunked"}
        lines = ["POST /api/send HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        connection.sendall("\r\n".join(lines).encode())
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        with contextlib.suppress(OSError):
            while sent < 1 << 30:
                connection.sendall(chunk)
                sent += len(chunk)
    assert sent < 1 << 28, "the body was read far beyond the limit"
    assert page_client("GET", "/api/messages")[0] == 200


JUNK = (
    b"\0" * 1000,
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000,
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",  # as to a proxy
)


def test_junk_is_refused_and_the_server_goes_on(console: ConsoleProcess) -> None:
    for junk in JUNK:
        answer = b""
        with (
            socket.create_connection(("127.0.0.1", console.port), PATIENCE_S) as connection,
            contextlib.suppress(OSError),
        ):
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(65_536):
                answer += more
        assert not answer or re.match(rb"HTTP/1\.1 4\d\d ", answer), junk[:40]
        assert console.raw("GET", "/")[0] == 200, "the server still answers"


def test_listens_on_loopback_only(console: ConsoleProcess) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        own = probe.getsockname()[0]
    if own.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(OSError), contextlib.closing(socket.create_connection((own, console.port), 5)):
        pass


def test_oldest_streams_end_when_too_many_are_opened(page_client: PageClient) -> None:
    """The oldest stream ends, however many are opened."""
    streams = [page_client.stream() for _ in range(8)]
    for _, response in streams[:4]:
        assert b"event: superseded" in response.read()
    for connection, _ in streams:
        connection.close()


HALF = """
import socket, sys
port, count, ended = int(sys.argv[1]), int(sys.argv[2]), 0
open = []
for _ in range(count):
    try:
        open.append(socket.create_connection(("127.0.0.1", port), 60))
        open[-1].sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n")
    except OSError:
        ended += 1
print("ready", flush=True)
sys.stdin.read()
"""
MANY = 1_500


@pytest.mark.parametrize("whose", ["another user's", "unknown"])
def test_unfinished_requests_do_not_block_the_user(
    console: ConsoleProcess, page_client: PageClient, whose: str
) -> None:
    """Another user's connections are closed on arrival; of unknown or own ones, the oldest are closed."""
    stream, response = page_client.stream()
    if whose == "another user's":
        with Peers() as peers:
            if not peers.works():
                pytest.skip("the kernel does not tell the users of connections")
        flood = start_as_nobody(HALF, str(console.port), str(MANY))
    else:
        command = [sys.executable, "-I", "-c", HALF, str(console.port), str(MANY)]
        flood = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert flood.stdout is not None and flood.stdin is not None
    try:
        assert flood.stdout.readline() == b"ready\n"
        most = 4 if whose == "another user's" else MAX_UNPROVEN + 4  # the listening sockets and the user's own
        process = psutil.Process(console.process.pid)
        wait_until(lambda: len(process.net_connections("tcp")) <= most, "they were closed", PATIENCE_S)
        assert page_client("GET", "/api/messages")[0] == 200, "on a new connection"
        assert console.raw("GET", "/")[0] == 200
        console.enter()
    finally:
        flood.stdin.close()
        flood.wait(PATIENCE_S)
        flood.stdout.close()
    assert console.process.poll() is None
    if whose == "another user's":
        assert f"uid {NOBODY}" in console.stop()[1]
        assert b"event: closing" in response.read(), "the stream stayed open"
    stream.close()


@pytest.fixture
def evil(console: ConsoleProcess) -> Iterator[Callable[[str], str]]:
    """`evil(markup)` serves a hostile page on another port of this machine and returns its URL."""
    pages: dict[str, bytes] = {}
    cookies: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cookies.append(self.headers.get("Cookie", ""))
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(pages.get(self.path, b""))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def add(markup: str, host: str = "127.0.0.1") -> str:
        path = f"/{len(pages)}"
        pages[path] = f"<!doctype html><title>evil</title>{markup}".encode()
        return f"http://{host}:{server.server_address[1]}{path}"

    add.cookies = cookies  # type: ignore[attr-defined]
    yield add
    server.shutdown()
    server.server_close()
    thread.join()


class OtherUser:
    """Another user's server on 127.0.0.1; records what it receives and answers as `responses` says."""

    def __init__(self, port: int = 0) -> None:
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        #: Path ("*" for any other) → (type, body, more headers) of the response.
        self.responses: dict[str, tuple[str, bytes, dict[str, str]]] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                outer.heard.append((self.path, {n.lower(): v for n, v in self.headers.items()}, self.rfile.read(size)))
                kind, body, more = (
                    outer.responses.get(self.path.partition("?")[0]) or outer.responses.get("*") or ("", b"", {})
                )
                self.send_response(200)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def other_user() -> Iterator[OtherUser]:
    one = OtherUser()
    yield one
    one.close()


POLL = b"""<!doctype html><title>polls</title><script>
setInterval(() => fetch("/poll", {credentials: "include"}), 20);
</script>"""


WORKER = b"""
self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => event.respondWith(new Response("<title>owned</title>",
  { headers: { "content-type": "text/html" } })));
"""
INSTALL = b"""<!doctype html><title>waits</title><script>
navigator.serviceWorker.register("/worker.js").then(() => navigator.serviceWorker.ready)
  .then(() => fetch("/assets/main.js")).then(() => { document.title = "installed"; });
</script>"""


class TestInABrowser:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_pages_of_other_origins_can_neither_read_nor_send(
        self,
        open_page: Any,
        evil: Any,
        console: ConsoleProcess,
        bus: Bus,
        auth: ListenerProcess,
        browser_errors: Any,
        host: str,
    ) -> None:
        """Another port of 127.0.0.1 is the same site to the browser, so it sends cookies; localhost is another."""
        browser_errors.expected = ("",)  # the browser reports all of it
        page = open_page()
        bus.deliver("auth", "a secret")
        target = f"http://127.0.0.1:{console.port}"
        other = page.context.new_page()
        other.goto(
            evil(
                f"""
            <form id=f method=post enctype=text/plain action="{target}/api/send" target=g>
            <input name='{{"scope":"session","to":"auth","text":"owned' value='"}}'></form><iframe name=g></iframe>
            <iframe id=frame src="{target}/"></iframe>
            <script src="{target}/api/messages"></script><script src="{target}/assets/main.js" type=module></script>
            <img src="{target}/api/messages"><link rel=stylesheet href="{target}/assets/console.css">
            <script>
            const tries = [];
            const go = (path, options) =>
              tries.push(fetch("{target}" + path, options).then(r => r.text(), e => "refused"));
            const text = JSON.stringify({{scope: "session", to: "auth", text: "owned"}});
            for (const mode of ["cors", "no-cors"]) for (const credentials of ["include", "omit"]) {{
              go("/api/messages", {{mode, credentials}});
              go("/api/events", {{mode, credentials}});
              go("/", {{mode, credentials}});
              go("/api/send", {{mode, credentials, method: "POST", body: text}});
              go("/api/enter", {{mode, credentials, method: "POST", body: "{{}}"}});
              if (mode == "cors") go("/api/send", {{mode, credentials, method: "POST", body: text,
                headers: {{"content-type": "application/json", "x-zmqbus-key": "x"}}}});
            }}
            tries.push(new Promise(r => {{ const s = new EventSource("{target}/api/events", {{withCredentials: true}});
              s.onmessage = s.onopen = () => r("opened"); s.onerror = () => {{ s.close(); r("refused"); }}; }}));
            tries.push(new Promise(r => {{ const s = new WebSocket("{target.replace("http", "ws")}/api/events");
              s.onopen = () => r("opened"); s.onerror = () => r("refused"); }}));
            document.getElementById("f").submit();
            Promise.all(tries).then(all => {{ window.all = all; document.title = "done"; }});
            </script>""",
                host,
            )
        )
        other.wait_for_function("document.title == 'done'")
        for answer in other.evaluate("window.all"):
            assert answer in ("refused", ""), "opaque responses are empty, all others are refused"
        frame = next(one for one in other.frames if one != other.main_frame and one.name != "g")
        assert "secret" not in frame.content() and "zmqbus" not in frame.title()
        bus.deliver("auth", "the next thing")
        auth.wait_message("the next thing")
        assert not any("owned" in line for line in auth.lines)
        assert set(evil.cookies) == {""}, "browsers send cookies to every port, but there are none"
        page.wait_for_selector("#feed :text('the next thing')")

    def test_server_that_gets_all_browser_headers_cannot_use_the_console(
        self,
        open_page: Any,
        console: ConsoleProcess,
        bus: Bus,
        auth: ListenerProcess,
        other_user: OtherUser,
        browser_errors: Any,
    ) -> None:
        """The server replays every header that the browser sends by itself from a client of its own."""
        browser_errors.expected = ("net::ERR", "Failed to fetch")  # its polls, when the server ends
        other_user.responses["/"] = "text/html", POLL, {}
        secret = bus.deliver("auth", "a secret")
        tab = open_page(url=f"http://127.0.0.1:{other_user.port}/")
        link = console.new_link()
        page = tab.context.new_page()
        browser_errors.watch(page)
        page.goto(link)
        page.wait_for_selector("html[data-ready]")
        # Also by the address, which is the host name of the other server.
        second = tab.context.new_page()
        browser_errors.watch(second)
        second.goto(console.new_link("--numeric"))
        second.wait_for_selector("html[data-ready]")
        count = len(other_user.heard)
        wait_until(lambda: len(other_user.heard) > count + 5, "polls after the console was opened", PATIENCE_S)
        heard = {name: value for _, headers, _ in other_user.heard for name, value in headers.items() if name != "host"}
        token = token_of(link)
        assert not any(part in value for value in heard.values() for part in (token, console.authority, "zmqbus"))
        # Replay what it received, with forged headers.
        for host in (console.authority, f"127.0.0.1:{console.port}"):
            own = {**{n: v for n, v in heard.items() if n in ("cookie", "user-agent", "authorization")}, "Host": host}
            own |= {"Origin": f"http://{host}", "Content-Type": JSON, "Sec-Fetch-Site": "same-origin"}
            for path in ("/api/hello", "/api/enter"):
                status, headers, body = console.raw("POST", path, b"{}", own)
                assert status in (401, 404) and "set-cookie" not in headers and b"key" not in body
            for path in ("/api/messages", "/api/events", f"/api/message/{secret}"):
                status, _, body = console.raw("GET", path, None, own)
                assert status == 401 and b"secret" not in body
            send = json.dumps({"scope": "session", "to": "auth", "text": "owned"}).encode()
            assert console.raw("POST", "/api/send", send, own)[0] == 401
        bus.deliver("auth", "the next thing")
        auth.wait_message("the next thing")
        assert not any("owned" in line for line in auth.lines)
        assert tab.context.cookies() == []

    def test_impostor_on_the_port_gets_no_data_and_is_not_believed(
        self, open_page: Any, console: ConsoleProcess, bus: Bus, auth: ListenerProcess, browser_errors: Any
    ) -> None:
        browser_errors.expected = ("",)
        page = open_page()
        page.wait_for_selector("#sessions .session:has-text('auth')")
        stored = json.loads(page.evaluate("sessionStorage.getItem('zmqbus-visitor')"))
        page.keyboard.press("c")
        page.locator("#compose-to").fill("auth")
        page.locator("#compose-text").fill("for auth alone")
        console.process.kill()
        console.process.wait(PATIENCE_S)
        page.wait_for_selector("#banner:has-text('out of reach')")
        forged: dict[str, Any] = {
            "items": [],
            "before": None,
            "roster": {"sessions": [], "broker": "up", "text": "forged", "now": 0},
        }
        hello = f"event: hello\ndata: {json.dumps({**forged, 'version': 'forged', 'trouble': 'forged'})}\n\n".encode()
        impostor = OtherUser(console.port)
        try:
            impostor.responses["/api/events"] = "text/event-stream", hello, {"X-Zmqbus-Proof": "A" * 43}
            impostor.responses["*"] = "application/json", b'{"state":"delivered","to":"auth","items":[]}', {}
            wait_until(lambda: len(impostor.heard) > 2, "the page retries", PATIENCE_S)
            page.locator("#compose-send").click()
            page.locator("#compose-wrong:has-text('cannot be reached')").wait_for()
            wait_until(lambda: len(impostor.heard) > 4, "and again", PATIENCE_S)
            page.wait_for_selector("#banner:has-text('out of reach')")
            page.wait_for_selector("#sessions .session:has-text('auth')")
            assert "forged" not in page.content()
            heard = json.dumps([(path, headers, body.decode()) for path, headers, body in impostor.heard])
            assert stored["key"] not in heard and "for auth alone" not in heard
            assert {path for path, _, _ in impostor.heard} == {"/api/events"}
        finally:
            impostor.close()

    def test_service_worker_of_the_ports_former_owner_does_not_get_the_link(
        self, open_page: Any, start_console: Any, browser_errors: Any
    ) -> None:
        """A service worker or cached script of the port's former owner would run as part of the console's page."""
        before = OtherUser()
        before.responses["/"] = "text/html", INSTALL, {}
        before.responses["/worker.js"] = "text/javascript", WORKER, {}
        before.responses["/assets/main.js"] = (
            "text/javascript",
            b"document.title='owned'",
            {"Cache-Control": "max-age=9999"},
        )
        try:
            page = open_page(url=f"http://127.0.0.1:{before.port}/")
            wait_true(page, "document.title == 'installed'")
        finally:
            before.close()
        page.reload()
        assert page.title() == "owned", "the service worker is active"
        console = start_console("--port", str(before.port))
        page.goto(console.link)
        page.wait_for_selector("html[data-ready]")
        assert page.title() == "zmqbus"

    def test_hostile_names_labels_and_texts_stay_text(
        self, open_page: Any, bus: Bus, browser_errors: Any, console: ConsoleProcess
    ) -> None:
        auth = bus.listener("auth", label=MARKUP[:60])
        page = open_page()
        page.evaluate("document.title = 'as it was'")
        msg_id = bus.deliver("auth", MARKUP + "\u202eright to left\u2066\x1b[31m\u200b")
        row = page.locator("#feed .message:has-text('onerror')")
        row.first.wait_for()
        assert "⟨U+202E⟩" in row.first.inner_text(), "bidirectional controls are made visible"
        row.first.click()
        page.locator(f".facts code:text('{msg_id}')").wait_for()
        page.locator(".body:not(.loading):has-text('onerror')").wait_for()  # a redrawn body is empty for a moment
        body = page.locator(".body").inner_text()
        assert MARKUP in body and "⟨U+2066⟩" in body and "␛[31m" in body and "⟨U+200B⟩" in body
        page.locator("#sessions .session:has-text('auth')").click()
        page.locator(".detail-head .label").wait_for()
        assert page.locator(".detail-head .label").inner_text() == MARKUP[:60]
        assert page.locator("script:not([src]), iframe, img, .body b").count() == 0
        assert page.title() == "as it was"
        assert auth.status is None
        browser_errors.check()

    def test_10_mib_of_markup_do_not_block_the_page(self, open_page: Any, bus: Bus) -> None:
        auth = bus.listener("auth")
        text = MARKUP * (10 * 1024 * 1024 // len(MARKUP.encode()))
        page = open_page()
        bus.deliver("auth", text)
        auth.wait_message("<script>")
        page.locator("#feed .message:has-text('onerror')").first.click()
        page.wait_for_selector(".body:not(.loading)")
        page.wait_for_selector(".more:has-text('% shown')")
        # The page still responds and scrolls.
        before = page.locator(".piece").count()
        page.locator(".body").evaluate("element => element.scrollTop = element.scrollHeight")
        page.locator(".piece").nth(before).wait_for(state="attached")
        assert page.evaluate("document.querySelectorAll('*').length") < 3000
        page.keyboard.press("Escape")
        page.wait_for_selector("#detail .state")
        assert page.title() == "zmqbus"
