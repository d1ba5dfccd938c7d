"""What other pages of the browser, other users and hostile programs try; over the network, against a real console."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.console.conftest import JSON, PATIENCE_S, TEXT, ConsoleProcess
from tests.real.conftest import Bus, ListenerProcess

pytestmark = pytest.mark.slow

MARKUP = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><iframe src=//evil.example>"
)


@pytest.fixture
def auth(bus: Bus) -> ListenerProcess:
    return bus.listener("auth")


class Insider:
    """Has a cookie and a key, and can leave out or change what it likes."""

    def __init__(self, console: ConsoleProcess) -> None:
        self.console = console
        self.host = f"127.0.0.1:{console.port}"
        _, headers, _ = console.raw("GET", console.new_link().partition(str(console.port))[2])
        self.cookie = headers["set-cookie"].partition(";")[0]
        found = re.search(rb'"key":"([^"]+)"', self("POST", "/api/hello", {})[2])
        assert found is not None
        self.key = found[1].decode()

    def __call__(self, method: str, path: str, body: Any = None, **changes: str | None) -> tuple[int, Any, bytes]:
        headers: dict[str, str | None] = {
            "Host": self.host,
            "Cookie": self.cookie,
            "X-Zmqbus-Key": getattr(self, "key", ""),
        }
        data = None
        if method == "POST":
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers |= {"Origin": f"http://{self.host}", "Content-Type": JSON}
        headers |= {name.replace("_", "-"): value for name, value in changes.items()}
        return self.console.raw(
            method, path, data, {name: value for name, value in headers.items() if value is not None}
        )


@pytest.fixture
def insider(console: ConsoleProcess) -> Insider:
    return Insider(console)


def test_the_insider_gets_in(insider: Insider, auth: ListenerProcess) -> None:
    """What the attacks below leave out is what makes the difference."""
    assert insider("GET", "/api/messages")[0] == 200
    status, _, body = insider("POST", "/api/send", {"scope": "session", "to": "auth", "text": "insider"})
    assert status == 200 and json.loads(body)["state"] in ("delivered", "queued")
    auth.wait_message("insider")


SEND = {"scope": "session", "to": "auth", "text": "owned"}


@pytest.mark.parametrize(
    ("status", "body", "changes"),
    [
        (421, SEND, {"Host": "evil.example"}),  # a rebound name
        (421, SEND, {"Host": "evil.example", "Origin": "http://evil.example"}),
        (403, SEND, {"Origin": "http://evil.example"}),  # a page of somebody else
        (403, SEND, {"Origin": "http://127.0.0.1:1"}),  # of another port
        (403, SEND, {"Origin": "null"}),  # of a frame in a sandbox, or a file
        (403, SEND, {"Origin": None}),
        (403, SEND, {"Sec-Fetch-Site": "cross-site"}),
        (403, SEND, {"Sec-Fetch-Site": "same-site"}),
        (
            415,
            b'{"scope":"session","to":"auth","text":"owned"}',
            {"Content-Type": TEXT},
        ),  # a form with enctype text/plain
        (415, b"scope=session&to=auth&text=owned", {"Content-Type": "application/x-www-form-urlencoded"}),
        (401, SEND, {"Cookie": None}),
        (401, SEND, {"Cookie": "zmqbus=forged"}),
        (401, SEND, {"X-Zmqbus-Key": None}),  # who has the cookie alone, from another port
        (401, SEND, {"X-Zmqbus-Key": "forged"}),
        (413, SEND, {"Content-Length": str(1 << 40)}),
    ],
)
def test_nothing_is_sent_for_others(
    insider: Insider, bus: Bus, auth: ListenerProcess, status: int, body: Any, changes: dict[str, str | None]
) -> None:
    assert insider("POST", "/api/send", body, **changes)[0] == status
    auth_lines = list(auth.lines)
    bus.deliver("auth", "the next thing")
    auth.wait_message("the next thing")
    assert not any("owned" in line for line in [*auth_lines, *auth.lines])


def test_nothing_is_read_by_others(insider: Insider, bus: Bus, auth: ListenerProcess) -> None:
    bus.deliver("auth", "a secret")
    for path in ("/api/messages", "/api/events", "/api/thread/abcdefgh", "/"):
        for changes in (
            {"Host": "evil.example"},
            {"Cookie": None},
            {"Cookie": "x=y"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            status, _, body = insider("GET", path, **changes)
            assert status in (401, 403, 421) and b"secret" not in body


def test_preflights_are_not_answered(insider: Insider) -> None:
    status, headers, _ = insider(
        "OPTIONS", "/api/send", Origin="http://evil.example", **{"Access-Control-Request-Method": "POST"}
    )
    assert status == 405 and not any(name.startswith("access-control") for name in headers)


def test_a_length_that_lies_and_a_body_without_one(insider: Insider) -> None:
    """A body in chunks has no length to be refused by: it is counted as it comes, and the connection cut."""
    sent = 0
    with contextlib.closing(socket.create_connection(("127.0.0.1", insider.console.port), PATIENCE_S)) as connection:
        head = (
            f"POST /api/send HTTP/1.1\r\nHost: {insider.host}\r\nOrigin: http://{insider.host}\r\n"
            f"Cookie: {insider.cookie}\r\nX-Zmqbus-Key: {insider.key}\r\nContent-Type: {JSON}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode())
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        with contextlib.suppress(OSError):
            while sent < 1 << 30:
                connection.sendall(chunk)
                sent += len(chunk)
    assert sent < 1 << 28, "it took what it should have refused"
    assert insider("GET", "/api/messages")[0] == 200


@pytest.mark.parametrize(
    "junk",
    [
        b"\0" * 1000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000,
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ],
    ids=["zeros", "headers", "path", "tls", "hosts", "proxy"],
)
def test_junk(console: ConsoleProcess, junk: bytes) -> None:
    answer = b""
    with socket.create_connection(("127.0.0.1", console.port), PATIENCE_S) as connection, contextlib.suppress(OSError):
        connection.sendall(junk)
        connection.shutdown(socket.SHUT_WR)
        while more := connection.recv(65_536):
            answer += more
    assert not answer or re.match(rb"HTTP/1\.1 4\d\d ", answer)
    assert console.raw("GET", "/")[0] == 401, "it goes on"


def test_it_is_on_loopback_only(console: ConsoleProcess) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        own = probe.getsockname()[0]
    if own.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(OSError), contextlib.closing(socket.create_connection((own, console.port), 5)):
        pass


def test_streams_are_bounded(insider: Insider) -> None:
    """The oldest has to go, however many are opened."""
    streams = []
    for _ in range(8):
        connection = http.client.HTTPConnection("127.0.0.1", insider.console.port, timeout=PATIENCE_S)
        connection.request("GET", "/api/events", headers={"Cookie": insider.cookie, "X-Zmqbus-Key": insider.key})
        response = connection.getresponse()
        assert response.status == 200 and response.readline() == b"event: hello\n"
        streams.append((connection, response))
    for _, response in streams[:4]:
        assert b"event: superseded" in response.read()
    for connection, _ in streams:
        connection.close()


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def evil(console: ConsoleProcess) -> Iterator[Callable[[str], str]]:
    """Pages of somebody else, on another port of this machine: `evil(markup)` gives the address of one."""
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


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_other_pages_in_the_same_browser(
    open_page: Any, evil: Any, console: ConsoleProcess, bus: Bus, auth: ListenerProcess, seen: Any, host: str
) -> None:
    """127.0.0.1 with another port is the same site to the browser, so cookies go along; localhost is another one."""
    seen.expected = ("",)  # browsers complain about all of it
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
              go("/api/hello", {{mode, credentials, method: "POST", body: "{{}}"}});
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
        assert answer in ("refused", ""), "an opaque answer is empty, and all others are refused"
    frame = next(one for one in other.frames if one != other.main_frame and one.name != "g")
    assert "secret" not in frame.content() and "zmqbus" not in frame.title()
    bus.deliver("auth", "the next thing")
    auth.wait_message("the next thing")
    assert not any("owned" in line for line in auth.lines)
    if host == "127.0.0.1":
        # The cookie did go to the other port: it must not be enough.
        (stolen,) = {cookie for cookie in evil.cookies if f"zmqbus-{console.port}" in cookie}
        own = {"Cookie": stolen, "Origin": target, "Content-Type": JSON}
        assert console.raw("GET", "/api/messages", headers=own)[0] == 401
    page.wait_for_selector("#feed :text('the next thing')")


def test_hostile_names_labels_and_texts_are_only_text(
    open_page: Any, bus: Bus, seen: Any, console: ConsoleProcess
) -> None:
    auth = bus.listener("auth", label=MARKUP[:60])
    page = open_page()
    page.evaluate("document.title = 'as it was'")
    msg_id = bus.deliver("auth", MARKUP + "\u202eright to left\u2066\x1b[31m\u200b")
    row = page.locator("#feed .message:has-text('onerror')")
    row.first.wait_for()
    assert "⟨U+202E⟩" in row.first.inner_text(), "what turns the order of others around is shown"
    row.first.click()
    page.locator(f".facts code:text('{msg_id}')").wait_for()
    page.wait_for_selector(".body:not(.loading)")
    body = page.locator(".body").inner_text()
    assert MARKUP in body and "⟨U+2066⟩" in body and "␛[31m" in body and "⟨U+200B⟩" in body
    page.locator("#sessions .session:has-text('auth')").click()
    page.locator(".detail-head .label").wait_for()
    assert page.locator(".detail-head .label").inner_text() == MARKUP[:60]
    assert page.locator("script:not([src]), iframe, img, .body b").count() == 0
    assert page.title() == "as it was"
    assert auth.status is None
    seen.check()


def test_ten_mebibytes_of_markup_do_not_hang_the_page(open_page: Any, bus: Bus) -> None:
    auth = bus.listener("auth")
    text = MARKUP * (10 * 1024 * 1024 // len(MARKUP.encode()))
    page = open_page()
    bus.deliver("auth", text)
    auth.wait_message("<script>")
    page.locator("#feed .message:has-text('onerror')").first.click()
    page.wait_for_selector(".body:not(.loading)")
    page.wait_for_selector(".more:has-text('% shown')")
    # It answers while it shows that, and one can scroll on.
    before = page.locator(".piece").count()
    page.locator(".body").evaluate("element => element.scrollTop = element.scrollHeight")
    page.locator(".piece").nth(before).wait_for(state="attached")
    assert page.evaluate("document.querySelectorAll('*').length") < 3000
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail .state")
    assert page.title() == "zmqbus"
