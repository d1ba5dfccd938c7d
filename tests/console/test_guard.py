"""What gets past the guard, and what does not; decided without a network."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.console.conftest import PORT, Asked
from zmqbus.console import guard
from zmqbus.console.guard import KEY_HEADER, Guard, Refusal, cookie_name, cookie_of, judge
from zmqbus.console.tickets import Visitor, Visitors

HOST = f"127.0.0.1:{PORT}"
NAVIGATION = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.fixture
def visitors() -> Visitors:
    return Visitors()


@pytest.fixture
def visitor(visitors: Visitors) -> Visitor:
    return visitors.admit()


def page(visitor: Visitor | None, **headers: str) -> dict[str, str]:
    """The headers that the console's own page sends."""
    own = {"host": HOST, "sec-fetch-site": "same-origin"}
    if visitor is not None:
        own |= {"cookie": f"{cookie_name(PORT)}={visitor.cookie}", KEY_HEADER: visitor.key}
    return own | {name.replace("_", "-"): value for name, value in headers.items()}


def post(visitor: Visitor | None, **headers: str) -> dict[str, str]:
    own = page(visitor, origin=f"http://{HOST}", content_type="application/json", content_length="2")
    return own | {name.replace("_", "-"): value for name, value in headers.items()}


def test_the_page_itself_gets_in(visitors: Visitors, visitor: Visitor) -> None:
    assert judge("GET", "/api/messages", page(visitor), PORT, visitors) is visitor
    assert judge("POST", "/api/send", post(visitor), PORT, visitors) is visitor
    local = post(visitor, host=f"localhost:{PORT}", origin=f"http://localhost:{PORT}")
    assert judge("POST", "/api/send", local, PORT, visitors) is visitor
    charset = post(visitor, content_type="application/json; charset=utf-8")
    assert judge("POST", "/api/send", charset, PORT, visitors) is visitor


def test_the_start_page_is_there_for_everybody_who_is_here(visitors: Visitors) -> None:
    for site in ("none", "same-origin", "cross-site", "same-site"):
        assert judge("GET", "/", page(None, sec_fetch_site=site, **NAVIGATION), PORT, visitors) is None
    assert judge("GET", "/", {"host": HOST}, PORT, visitors) is None, "a browser that does not say where it comes from"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        f"evil.example:{PORT}",
        f"127.0.0.1.evil.example:{PORT}",
        f"127.0.0.1:{PORT + 1}",
        "127.0.0.1",
        "localhost",
        f"localhost.:{PORT}",
        f"LOCALHOST:{PORT}",
        f"[::1]:{PORT}",
        f"0.0.0.0:{PORT}",
        f"127.0.0.2:{PORT}",
        f"{HOST}, {HOST}",
        f"{HOST}@evil.example",
        f" {HOST}",
    ],
)
def test_a_rebound_name_is_another_one(visitors: Visitors, visitor: Visitor, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/api/events"), ("POST", "/api/send"), ("GET", "/assets/main.js")):
        headers = {**post(visitor), "host": host, "origin": f"http://{host}"}
        assert judge(method, path, headers, PORT, visitors) is guard.NOT_HERE


def test_on_port_80_browsers_leave_it_out(visitors: Visitors) -> None:
    for host in ("127.0.0.1", "localhost", "127.0.0.1:80"):
        assert judge("GET", "/", {"host": host}, 80, visitors) is None


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get"])
def test_other_methods(visitors: Visitors, visitor: Visitor, method: str) -> None:
    assert judge(method, "/api/send", post(visitor), PORT, visitors) is guard.METHOD


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "Same-Origin", "same-origin, none"])
def test_other_pages_get_nothing(visitors: Visitors, visitor: Visitor, site: str) -> None:
    """`same-site` is another port of this machine."""
    for method, path in (
        ("GET", "/api/events"),
        ("GET", "/api/messages"),
        ("POST", "/api/hello"),
        ("POST", "/api/send"),
        ("GET", "/assets/main.js"),
        ("GET", "/"),
    ):
        headers = {**(post if method == "POST" else page)(visitor), "sec-fetch-site": site}
        assert judge(method, path, headers, PORT, visitors) is guard.CROSS_SITE
    # Nor by a link to what has data, nor in a frame.
    for path, dest in (("/api/messages", "document"), ("/", "iframe"), ("/", "object"), ("/", "empty")):
        headers = page(visitor, sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest=dest)
        assert judge("GET", path, headers, PORT, visitors) is guard.CROSS_SITE


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        f"https://{HOST}",
        f"http://{HOST}/",
        f"http://127.0.0.1:{PORT + 1}",
        f"http://localhost:{PORT}",
    ],
)
def test_other_origins(visitors: Visitors, visitor: Visitor, origin: str) -> None:
    assert judge("POST", "/api/send", post(visitor, origin=origin), PORT, visitors) is guard.CROSS_SITE
    assert judge("GET", "/api/events", page(visitor, origin=origin), PORT, visitors) is guard.CROSS_SITE


def test_a_post_says_where_it_comes_from(visitors: Visitors, visitor: Visitor) -> None:
    headers = post(visitor)
    del headers["origin"]
    assert judge("POST", "/api/send", headers, PORT, visitors) is guard.CROSS_SITE


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json", "application/jsonx"],
)
def test_no_form_can_post(visitors: Visitors, visitor: Visitor, kind: str) -> None:
    assert judge("POST", "/api/send", post(visitor, content_type=kind), PORT, visitors) is guard.NOT_JSON


@pytest.mark.parametrize("length", [str(guard.MAX_POST_BYTES + 1), "9" * 400, "-1", "x", "", "1e3", "²"])
def test_what_is_too_large_is_refused_before_it_is_read(visitors: Visitors, visitor: Visitor, length: str) -> None:
    assert judge("POST", "/api/send", post(visitor, content_length=length), PORT, visitors) is guard.TOO_LARGE
    assert (
        judge("POST", "/api/send", post(visitor, content_length=str(guard.MAX_POST_BYTES)), PORT, visitors) is visitor
    )


def test_data_wants_the_cookie_and_the_key(visitors: Visitors, visitor: Visitor) -> None:
    other = visitors.admit()
    forged = [
        {"cookie": ""},
        {"cookie": f"{cookie_name(PORT)}=forged"},
        {"cookie": f"{cookie_name(PORT + 1)}={visitor.cookie}"},
        {"cookie": f"{cookie_name(PORT)}={visitor.cookie}; {cookie_name(PORT)}=forged"},
        {KEY_HEADER: ""},
        {KEY_HEADER: "forged"},
        {KEY_HEADER: other.key},
        {KEY_HEADER: visitor.cookie},
    ]
    for path in ("/api/events", "/api/messages", "/api/message/abcdefgh", "/api/anything"):
        for change in forged:
            assert judge("GET", path, page(visitor) | change, PORT, visitors) is guard.NOT_IN
    # The cookie alone, as another port of this machine may have got to see it.
    stolen = page(visitor)
    del stolen[KEY_HEADER]
    assert judge("GET", "/api/messages", stolen, PORT, visitors) is guard.NOT_IN
    assert judge("POST", "/api/hello", post(None), PORT, visitors) is guard.NOT_IN
    assert judge("GET", "/", page(visitor) | forged[1], PORT, visitors) is None, "the page says what to do"


def test_cookies_of_others_do_not_matter() -> None:
    name = cookie_name(PORT)
    assert cookie_of(f"a=b; {name}=x; c", PORT) == "x"
    assert cookie_of(f"{name} = x ", PORT) == "x"
    assert cookie_of(f"{name}=x; {name}=y", PORT) is None
    assert cookie_of(name, PORT) is None
    assert cookie_of("", PORT) is None


async def _teapot(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"tea"})


def test_every_answer_carries_the_policy(visitors: Visitors) -> None:
    ask = Asked(Guard(_teapot, PORT, visitors))
    for answer in (ask("GET", "/"), ask("GET", "/api/x"), ask("GET", "/", headers={"host": "evil.example"})):
        policy = answer.headers["content-security-policy"].split("; ")
        for part in (
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
            "form-action 'none'",
            "base-uri 'none'",
        ):
            assert part in policy
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers
    assert ask("GET", "/").status == 418


def test_refusals_say_why(visitors: Visitors) -> None:
    ask = Asked(Guard(_teapot, PORT, visitors))
    answer = ask("GET", "/api/messages")
    assert (answer.status, answer.json["error"]["code"]) == (401, "not_in")
    assert "zmqbus console --link" in answer.json["error"]["text"]
    assert isinstance(judge("GET", "/", {}, PORT, visitors), Refusal), "no Host at all"


def test_no_websockets(visitors: Visitors) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    asyncio.run(Guard(_teapot, PORT, visitors)({"type": "websocket", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
