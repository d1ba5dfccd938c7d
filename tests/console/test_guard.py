"""Which requests the guard allows, without a network."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.console.conftest import AUTHORITY, NAME, PORT, AppClient, page_headers, proof_of
from zmqbus.console import guard
from zmqbus.console.auth import Visitor, Visitors
from zmqbus.console.guard import PROOF_HEADER, Admitted, Guard, Refusal, names_of

NAMES = names_of(AUTHORITY)
NAVIGATION = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.fixture
def visitors() -> Visitors:
    return Visitors()


@pytest.fixture
def visitor(visitors: Visitors) -> Visitor:
    return visitors.add("v" * 22, b"k" * 32)


def page(visitor: Visitor | None, method: str, path: str, **headers: str) -> dict[str, str]:
    """Returns the headers of a request from the console's own page."""
    length = {"content-length": "2"} if method == "POST" else {}
    changes = {name.replace("_", "-"): value for name, value in headers.items()}
    return page_headers(AUTHORITY, visitor, method, path) | length | changes


def judge(visitors: Visitors, method: str, path: str, headers: dict[str, str]) -> Refusal | Admitted:
    return guard.judge(method, path.partition("?")[0], path, headers, NAMES, visitors)


def code(verdict: Refusal | Admitted) -> str | None:
    return verdict.code if isinstance(verdict, Refusal) else None


def test_requests_of_the_page_are_allowed(visitors: Visitors, visitor: Visitor) -> None:
    for method, path, changes in (
        ("GET", "/api/messages?limit=1&before=2.3", {}),
        ("POST", "/api/send", {}),
        ("POST", "/api/send", {"content_type": "application/json; charset=utf-8"}),
        ("POST", "/api/send", {"host": f"127.0.0.1:{PORT}", "origin": f"http://127.0.0.1:{PORT}"}),
    ):
        headers = page(visitor, method, path, **changes)
        nonce = headers[PROOF_HEADER].split(".")[1]
        assert judge(visitors, method, path, headers) == Admitted(visitor, visitor.answer_proof(nonce, method, path))


def test_every_site_can_navigate_to_the_start_page(visitors: Visitors) -> None:
    for site in ("none", "same-origin", "cross-site", "same-site"):
        headers = page(None, "GET", "/", sec_fetch_site=site, **NAVIGATION)
        assert judge(visitors, "GET", "/", headers) == Admitted()
    assert judge(visitors, "GET", "/", {"host": AUTHORITY}) == Admitted(), "a browser without Sec-Fetch-Site"


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
        f"localhost:{PORT}",
        f"z0123456789abcdee.localhost:{PORT}",
        f"{NAME}.:{PORT}",
        f"{NAME.upper()}:{PORT}",
        f"x.{NAME}:{PORT}",
        NAME,
        f"[::1]:{PORT}",
        f"0.0.0.0:{PORT}",
        f"127.0.0.2:{PORT}",
        f"{AUTHORITY}, {AUTHORITY}",
        f"{AUTHORITY}@evil.example",
        f" {AUTHORITY}",
    ],
)
def test_other_host_names_are_refused(visitors: Visitors, visitor: Visitor, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/api/events"), ("POST", "/api/send"), ("GET", "/assets/main.js")):
        headers = page(visitor, method, path, host=host, origin=f"http://{host}")
        assert judge(visitors, method, path, headers) is guard.WRONG_HOST


def test_host_names_on_port_80(visitors: Visitors) -> None:
    assert names_of(f"{NAME}:80") == {f"{NAME}:80", NAME, "127.0.0.1:80", "127.0.0.1"}
    assert names_of(f"{NAME}:8080") == {f"{NAME}:8080", "127.0.0.1:8080"}


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get"])
def test_other_methods_are_refused(visitors: Visitors, visitor: Visitor, method: str) -> None:
    assert judge(visitors, method, "/api/send", page(visitor, method, "/api/send")) is guard.METHOD


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "Same-Origin", "same-origin, none"])
def test_other_sites_are_refused(visitors: Visitors, visitor: Visitor, site: str) -> None:
    """`same-site` is another port of this machine."""
    for method, path in (
        ("GET", "/api/events"),
        ("GET", "/api/messages"),
        ("POST", guard.ENTER),
        ("POST", "/api/send"),
        ("GET", "/assets/main.js"),
        ("GET", "/"),
    ):
        headers = page(visitor, method, path, sec_fetch_site=site)
        assert judge(visitors, method, path, headers) is guard.CROSS_SITE
    # Neither by a link to data, nor in a frame.
    for path, dest in (("/api/messages", "document"), ("/", "iframe"), ("/", "object"), ("/", "empty")):
        changes = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": dest}
        assert judge(visitors, "GET", path, page(visitor, "GET", path, **changes)) is guard.CROSS_SITE


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        f"https://{AUTHORITY}",
        f"http://{AUTHORITY}/",
        f"http://127.0.0.1:{PORT + 1}",
        f"http://127.0.0.1:{PORT}",
        f"http://localhost:{PORT}",
    ],
)
def test_other_origins_are_refused(visitors: Visitors, visitor: Visitor, origin: str) -> None:
    for method, path in (("POST", "/api/send"), ("POST", guard.ENTER), ("GET", "/api/events")):
        headers = page(visitor, method, path, origin=origin)
        assert judge(visitors, method, path, headers) is guard.CROSS_SITE


def test_post_without_an_origin_is_refused(visitors: Visitors, visitor: Visitor) -> None:
    headers = page(visitor, "POST", "/api/send")
    del headers["origin"]
    assert judge(visitors, "POST", "/api/send", headers) is guard.CROSS_SITE


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json", "application/jsonx"],
)
@pytest.mark.parametrize("path", ["/api/send", guard.ENTER])
def test_post_without_json_type_is_refused(visitors: Visitors, visitor: Visitor, kind: str, path: str) -> None:
    assert code(judge(visitors, "POST", path, page(visitor, "POST", path, content_type=kind))) == "not_json"


@pytest.mark.parametrize("length", [str(guard.MAX_POST_BYTES + 1), "9" * 400, "-1", "x", "", "1e3", "²"])
def test_content_length_over_the_limit_is_refused(visitors: Visitors, visitor: Visitor, length: str) -> None:
    path = "/api/send"
    verdict = judge(visitors, "POST", path, page(visitor, "POST", path, content_length=length))
    assert code(verdict) == "too_large"
    assert verdict.proof is not None, "the page has to trust the refusal"
    most = page(visitor, "POST", path, content_length=str(guard.MAX_POST_BYTES))
    assert code(judge(visitors, "POST", path, most)) is None


def test_data_needs_a_proof(visitors: Visitors, visitor: Visitor) -> None:
    other = Visitor(visitor.id, b"o" * 32, 0.0)
    for path in ("/api/events", "/api/messages", "/api/message/abcdefgh", "/api/anything", "/api/enter/", "/api/"):
        for proof in ("", "forged", proof_of(other, "GET", path), proof_of(visitor, "GET", "/api/else"), visitor.id):
            headers = page(None, "GET", path) | {PROOF_HEADER: proof, "cookie": f"zmqbus-{PORT}={visitor.id}"}
            headers["authorization"] = f"Bearer {proof_of(visitor, 'GET', path)}"
            assert judge(visitors, "GET", path, headers) is guard.NOT_SIGNED_IN
        twice = proof_of(visitor, "GET", path)
        assert (
            judge(visitors, "GET", path, page(None, "GET", path) | {PROOF_HEADER: f"{twice}, {twice}"})
            is guard.NOT_SIGNED_IN
        )
    # Redeeming a link needs none.
    assert judge(visitors, "POST", guard.ENTER, page(None, "POST", guard.ENTER)) == Admitted()


async def _teapot(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"tea"})


def test_every_response_has_security_headers(visitors: Visitors) -> None:
    ask = AppClient(Guard(_teapot, AUTHORITY, visitors))
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


def test_refusal_says_what_to_do(visitors: Visitors) -> None:
    ask = AppClient(Guard(_teapot, AUTHORITY, visitors))
    answer = ask("GET", "/api/messages")
    assert (answer.status, answer.json["error"]["code"]) == (401, "not_in")
    assert "zmqbus console --link" in answer.json["error"]["text"]
    assert judge(visitors, "GET", "/", {}) is guard.WRONG_HOST, "no Host at all"


def test_responses_to_a_visitor_carry_a_proof(visitors: Visitors, visitor: Visitor) -> None:
    proven: list[str] = []
    ask = AppClient(Guard(_teapot, AUTHORITY, visitors), visitor=visitor, scope={"prove": lambda: proven.append("x")})
    proof = proof_of(visitor, "GET", "/api/x?y=%20z")
    answer = ask("GET", "/api/x?y=%20z", headers={PROOF_HEADER: proof})
    assert answer.headers[PROOF_HEADER] == visitor.answer_proof(proof.split(".")[1], "GET", "/api/x?y=%20z")
    assert proven == ["x"], "the connection is marked as the user's"
    for path, headers in (("/", {}), ("/api/x", {PROOF_HEADER: proof}), ("/api/x", {"host": "evil.example"})):
        assert PROOF_HEADER not in ask("GET", path, headers=headers).headers
    assert proven == ["x"]


def test_websocket_is_refused(visitors: Visitors) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    asyncio.run(Guard(_teapot, AUTHORITY, visitors)({"type": "websocket", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
