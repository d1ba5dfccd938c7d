"""Checks every request before the application sees it.

The page can send messages and end sessions, so nothing else may make the user's browser issue requests: other web pages
(cross-site requests, forms, frames), host names that resolve to this address (DNS rebinding), and servers on other
ports of this machine. `judge` makes the whole decision, and is pure:

1. `Host` equals one of this console's names. A rebound name differs.
2. The method is GET, HEAD or POST.
3. `Sec-Fetch-Site`, which no page can forge, says that the page itself sent the request, or the user did (a bookmark, a
   link from the terminal). Other sites can only navigate to the start page, which is the same for everybody.
4. `Origin`, if present, is the console's; a POST has one.
5. Requests for data or actions carry a proof that only a visitor can make (`auth`), and so do their responses.
6. The body of a POST has the type JSON, which no form can send, and is not too large.

Every response, refusals included, carries headers that isolate the page: a policy that runs the console's own files
only, no framing, no content sniffing, no referrer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from zmqbus.console.auth import Visitor, Visitors
from zmqbus.text.display import sanitise

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Enough for a text of 10 MiB in JSON, where a character may take two bytes, and a control character six.
MAX_POST_BYTES = 24 * 1024 * 1024
#: Accepted in `Host` besides the console's own name: for browsers that cannot resolve that, and for forwarded ports.
ADDRESS = "127.0.0.1"
#: In a request: `id.nonce.mac` of the visitor; in its response: the console's MAC.
PROOF_HEADER = "x-zmqbus-proof"
#: Path where a link is redeemed; the only one under /api/ without a proof.
ENTER = "/api/enter"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Disables in the browser everything that could turn a text into markup.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused request: the HTTP status, a code for programs, a sentence for people, the proof of the response."""

    status: int
    code: str
    text: str
    proof: str | None = None


WRONG_HOST = Refusal(421, "wrong_host", "this console has another host name; use the link that it printed")
METHOD = Refusal(405, "method", "the method is not supported; use GET or POST")
CROSS_SITE = Refusal(403, "cross_site", "the request came from another page; only the console's own page may send it")
NOT_JSON = Refusal(415, "not_json", "the body is not application/json; send JSON")
TOO_LARGE = Refusal(413, "too_large", f"the request is larger than {MAX_POST_BYTES // 1024 // 1024} MiB; send less")
NOT_SIGNED_IN = Refusal(
    401, "not_in", "the page needs a new link: press Enter where zmqbus console runs, or run: zmqbus console --link"
)
INTERNAL = Refusal(500, "internal", "the request failed in the console; see the terminal in which it runs")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request to be handled: its visitor (None when it needs none), and the proof for its response."""

    visitor: Visitor | None = None
    proof: str | None = None


def judge(
    method: str, path: str, target: str, headers: Mapping[str, str], names: Collection[str], visitors: Visitors
) -> Refusal | Admitted:
    """Decides whether a request is handled or refused.

    `target`: the path as sent, with the query. `headers`: by lower-case name; a repeated one with both values joined,
    which then match nothing. `names`: what `Host` may be.
    """
    host = headers.get("host", "")
    # guards: console access: no subdomains [host not in names => not host.endswith(tuple(names))]
    if host not in names:
        return WRONG_HOST
    if method not in ("GET", "HEAD", "POST"):
        return METHOD
    if _is_cross_site(method, path, host, headers):
        return CROSS_SITE
    admitted = Admitted()
    if path.startswith("/api/") and path != ENTER:
        found = visitors.find(headers.get(PROOF_HEADER, ""), method, target)
        if found is None:
            return NOT_SIGNED_IN
        admitted = Admitted(*found)
    refusal = _check_body(headers) if method == "POST" else None
    return admitted if refusal is None else replace(refusal, proof=admitted.proof)


def _is_cross_site(method: str, path: str, host: str, headers: Mapping[str, str]) -> bool:
    """Whether another site sent a request that only the console's own page may send (rules 3 and 4)."""
    opens_page = (
        method == "GET"
        and path == "/"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not opens_page:
        return True
    origin = headers.get("origin")
    return method == "POST" if origin is None else origin != f"http://{host}"


def _check_body(headers: Mapping[str, str]) -> Refusal | None:
    """Refuses a body of another type than JSON, or of an invalid or too large length (rule 6)."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return NOT_JSON
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or len(length) > 12 or int(length) > MAX_POST_BYTES:
        return TOO_LARGE
    return None


def names_of(authority: str) -> frozenset[str]:
    """Returns what `Host` may be for a console at `name:port`: that, and the address; browsers omit port 80."""
    name, _, port = authority.rpartition(":")
    bare = (name, ADDRESS) if port == "80" else ()
    return frozenset((authority, f"{ADDRESS}:{port}", *bare))


class Guard:
    """ASGI middleware that lets only permitted requests through to the application."""

    def __init__(self, app: App, authority: str, visitors: Visitors) -> None:
        self._app = app
        self._names = names_of(authority)
        self._visitors = visitors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the application with `scope["visitor"]`, or refuses the request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        verdict = judge(scope["method"], scope["path"], _target(scope), _headers(scope), self._names, self._visitors)
        response = _GuardedResponse(send, verdict.proof)
        if verdict.proof is not None and "prove" in scope:
            scope["prove"]()
        if isinstance(verdict, Refusal):
            await refuse(response.send, verdict)
            return
        scope["visitor"] = verdict.visitor
        try:
            await self._app(scope, receive, response.send)
        except OSError:
            return  # the connection is broken: the page has gone
        except Exception as error:
            warn(error)
            if not response.has_started:
                await refuse(response.send, INTERNAL)


class _GuardedResponse:
    """Adds the security headers, and the proof if there is one, to a response."""

    def __init__(self, send: Send, proof: str | None) -> None:
        self._send = send
        self._proof = proof
        self.has_started = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            own = {name.lower() for name, _ in message.get("headers", ())}
            message["headers"] = [
                *message.get("headers", ()),
                *((name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own),
                *([] if b"cache-control" in own else [(b"cache-control", b"no-store")]),
                # guards: console access
                *([] if self._proof is None else [(PROOF_HEADER.encode(), self._proof.encode())]),
            ]
        await self._send(message)


def _headers(scope: Scope) -> dict[str, str]:
    """Returns the headers by lower-case name; a repeated one with its values joined."""
    headers: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").lower()
        text = value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers


def _target(scope: Scope) -> str:
    """Returns the path as sent, with the query."""
    target = bytes(scope.get("raw_path") or b"").decode("latin-1")
    query = bytes(scope.get("query_string") or b"").decode("latin-1")
    return f"{target}?{query}" if query else target


def warn(error: Exception) -> None:
    """Prints a one-line warning of a bug in the terminal."""
    print(
        f"warning: a request failed in the console: {type(error).__name__}: {sanitise(str(error))}",
        file=sys.stderr,
        flush=True,
    )


async def refuse(send: Send, refusal: Refusal) -> None:
    """Sends a refusal and closes the connection, so that the rest of the request is dropped."""
    body = json.dumps({"error": {"code": refusal.code, "text": refusal.text}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
