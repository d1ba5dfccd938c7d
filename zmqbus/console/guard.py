"""What stands before the page: each request is looked at here before anything else sees it.

The page can send, and end sessions. Whoever can make the user's browser ask for something must not get there: other web
pages (cross-site requests, forms, frames), names that were bent to this address (DNS rebinding), and what listens on
other ports of this machine. `judge` is the whole of the decision, and pure:

1. `Host` is one of this console's names, literally. A rebound name is another one.
2. GET, HEAD and POST; nothing else.
3. `Sec-Fetch-Site`, which no page can forge, says that the page itself asks, or the user does (a bookmark, a link from
   the terminal). From elsewhere only the start page can be navigated to, which is the same for everybody.
4. `Origin`, where there is one, is ours; a POST has one.
5. What has data, or does something, carries a proof that only a visitor can make (`tickets`). The answer carries one.
6. The body of a POST is JSON by its type, which no form can send, and not too large.

Every answer, the refusals too, goes out with headers that keep it to itself: a policy under which nothing runs that is
not a file of ours, no framing, no guessing of types, no referrer.
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

#: A text of 10 MiB in JSON: a character may take two bytes there, and control characters six. More than this no text
#: of a message needs.
MAX_POST_BYTES = 24 * 1024 * 1024
#: Every console answers to it, besides its own name: for browsers that cannot find that, and for forwarded ports.
ADDRESS = "127.0.0.1"
#: Of a request: `id.nonce.mac`; of its answer: the console's own.
PROOF_HEADER = "x-zmqbus-proof"
#: Where a link is used: who asks here has no key yet.
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
        # No text can become markup: what would make it so is switched off in the browser.
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
    """Why a request goes no further: the HTTP status, a word for programs, a sentence for people."""

    status: int
    code: str
    text: str
    proof: str | None = None


NOT_HERE = Refusal(421, "wrong_host", "this console is not called by this name; use the link that it printed")
METHOD = Refusal(405, "method", "only GET and POST are spoken here")
CROSS_SITE = Refusal(403, "cross_site", "another page has asked for this, and only the console's own page may")
NOT_JSON = Refusal(415, "not_json", "the body has to be application/json")
TOO_LARGE = Refusal(413, "too_large", f"a request takes {MAX_POST_BYTES // 1024 // 1024} MiB at most; send less")
NOT_IN = Refusal(
    401, "not_in", "the page needs a new link: press Enter where zmqbus console runs, or run: zmqbus console --link"
)
FAULT = Refusal(500, "internal", "the console has failed at this; the terminal in which it runs tells more")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that goes on: whose it is (None: nobody's in particular), and the proof that its answer carries."""

    visitor: Visitor | None = None
    proof: str | None = None


def judge(
    method: str, path: str, target: str, headers: Mapping[str, str], names: Collection[str], visitors: Visitors
) -> Refusal | Admitted:
    """What to do with a request: a refusal, or let it in.

    `target`: the path as it was sent, with the query. `headers` by their lower-case names; of one that came twice, both
    values, which then fit nothing. `names`: what may stand in `Host`.
    """
    host = headers.get("host", "")
    # guards: console access: no subdomains [host not in names => not host.endswith(tuple(names))]
    if host not in names:
        return NOT_HERE
    if method not in ("GET", "HEAD", "POST"):
        return METHOD
    site = headers.get("sec-fetch-site", "none")
    arrives = (
        method == "GET"
        and path == "/"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )
    if site not in ("same-origin", "none") and not arrives:
        return CROSS_SITE
    origin = headers.get("origin")
    if origin is None:
        if method == "POST":
            return CROSS_SITE
    elif origin != f"http://{host}":
        return CROSS_SITE
    admitted = Admitted()
    if path.startswith("/api/") and path != ENTER:
        found = visitors.find(headers.get(PROOF_HEADER, ""), method, target)
        if found is None:
            return NOT_IN
        admitted = Admitted(*found)
    if method == "POST":
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return replace(NOT_JSON, proof=admitted.proof)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > 12 or int(length) > MAX_POST_BYTES:
            return replace(TOO_LARGE, proof=admitted.proof)
    return admitted


def names_of(authority: str) -> frozenset[str]:
    """What may stand in `Host` of a console whose links lead to this `name:port`: that, and the address.

    Browsers leave port 80 out.
    """
    name, _, port = authority.rpartition(":")
    bare = (name, ADDRESS) if port == "80" else ()
    return frozenset((authority, f"{ADDRESS}:{port}", *bare))


class Guard:
    """Stands before an ASGI application."""

    def __init__(self, app: App, authority: str, visitors: Visitors) -> None:
        self._app = app
        self._names = names_of(authority)
        self._visitors = visitors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through to the application, as `scope["visitor"]`, or refuses it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        headers: dict[str, str] = {}
        for raw, value in scope["headers"]:
            name = raw.decode("latin-1").lower()
            text = value.decode("latin-1")
            headers[name] = f"{headers[name]}, {text}" if name in headers else text

        target = bytes(scope.get("raw_path") or b"").decode("latin-1")
        if scope.get("query_string"):
            target += "?" + bytes(scope["query_string"]).decode("latin-1")
        verdict = judge(scope["method"], scope["path"], target, headers, self._names, self._visitors)
        begun = False

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = {name.lower() for name, _ in message.get("headers", ())}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own),
                    *([] if b"cache-control" in own else [(b"cache-control", b"no-store")]),
                    # guards: console access
                    *([] if verdict.proof is None else [(PROOF_HEADER.encode(), verdict.proof.encode())]),
                ]
            await send(message)

        if verdict.proof is not None and "prove" in scope:
            scope["prove"]()
        if isinstance(verdict, Refusal):
            await refuse(send_guarded, verdict)
            return
        scope["visitor"] = verdict.visitor
        try:
            await self._app(scope, receive, send_guarded)
        except OSError:
            return  # the connection has broken: that is how pages go
        except Exception as error:
            complain(error)
            if not begun:
                await refuse(send_guarded, FAULT)


def complain(error: Exception) -> None:
    """Tells the terminal of a fault of ours, in a line."""
    print(
        f"warning: the console failed at a request: {type(error).__name__}: {sanitise(str(error))}",
        file=sys.stderr,
        flush=True,
    )


async def refuse(send: Send, refusal: Refusal) -> None:
    """Answers with a refusal. The connection ends with it: whatever else comes over it was not asked for."""
    body = json.dumps({"error": {"code": refusal.code, "text": refusal.text}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
