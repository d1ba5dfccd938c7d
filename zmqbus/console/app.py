"""The console's ASGI application: what the page can request, behind the guard.

Everything that reads files or uses the bus blocks, and runs in a thread. Errors are answered as `{"error": {"code": …,
"text": …}}`; the text says what happened, then what to do. So are bugs, without their traceback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import zmqbus
from zmqbus.client import launch
from zmqbus.console import guard
from zmqbus.console.auth import Links, Visitors
from zmqbus.console.log_tail import LogTail
from zmqbus.console.messages import MessageReader
from zmqbus.console.responses import Assets, EventStream, json_body, problem, route, text_field, whole_number
from zmqbus.console.search import Query, search
from zmqbus.console.sender import Sender, receipt_json
from zmqbus.console.sessions_poller import SessionsPoller
from zmqbus.console.sse import Hub, event
from zmqbus.console.threads import ThreadIndex
from zmqbus.console.views import parse_place
from zmqbus.errors import InvalidPayload, NotConnected, ZmqbusError
from zmqbus.session.state import SessionState
from zmqbus.settings import Settings
from zmqbus.wire import verbs

#: Messages in one page of the history: at most, and by default.
MAX_PAGE, PAGE = 500, 200
#: Messages in the first event: more than a large screen shows at once.
FIRST_PAGE = 100
#: Largest body of requests that carry no message.
MAX_SMALL_BYTES = 64 * 1024

#: Why a link was refused, for programs; the page has its own words for people.
_LINK_TEXTS = {
    "used": "this link has been used; each opens the console once",
    "expired": "this link has expired",
    "unknown": "this link is not from this console",
    "elsewhere": "this link only works in a browser of this user, on this machine",
}


class Console:
    """The parts of the console, and the ASGI application that serves them."""

    def __init__(
        self,
        settings: Settings,
        authority: str,
        links: Links,
        disconnect: Callable[[SessionState], str],
        *,
        sender: Sender | None = None,
    ) -> None:
        """`authority`: host name and port of the page, as in its links. `disconnect` ends a session's listener, acting
        as that session (`cli.console`), and returns a text for the user."""
        self.settings = settings
        self.links = links
        self.visitors = Visitors()
        self.hub = Hub(self._set_pages)
        self.log_tail = LogTail(settings.paths.log, self.hub.publish)
        self.sessions = SessionsPoller(settings, self.hub.publish)
        self.sender = sender if sender is not None else Sender(settings)
        self.messages = MessageReader(settings.paths.log)
        self.threads = ThreadIndex(settings.paths.log)
        self.assets = Assets()
        self._disconnect = disconnect
        routes = [
            route("GET", "/", self._page),
            route("GET", "/assets/{name}", self._asset),
            route("POST", guard.ENTER, self._enter),
            route("GET", "/api/events", self._events),
            route("GET", "/api/messages", self._history),
            route("GET", "/api/message/{msg_id}", self._message),
            route("GET", "/api/thread/{msg_id}", self._thread),
            route("POST", "/api/search", self._search),
            route("POST", "/api/send", self._send),
            route("POST", "/api/disconnect", self._end_session),
            route("POST", "/api/broker", self._start_broker),
        ]
        handlers: dict[Any, Any] = {
            404: lambda request, error: problem(404, "not_found", "there is no such address here"),
            405: lambda request, error: problem(405, "method", "this address does not take that method"),
        }
        self.app = guard.Guard(Starlette(routes=routes, exception_handlers=handlers), authority, self.visitors)

    def start(self) -> None:
        """Starts the background threads. Call it in the event loop."""
        self.hub.bind(asyncio.get_running_loop())
        self.log_tail.start()
        self.sessions.start()

    def close(self) -> None:
        """Leaves the bus and ends the threads. Blocks for some seconds at most; idempotent."""
        self.sender.close()
        self.log_tail.close()
        self.sessions.close()

    def _set_pages(self, count: int) -> None:
        for part in (self.log_tail, self.sessions, self.sender):
            part.set_pages(count)

    # --- the page, and signing in

    async def _page(self, request: Request) -> Response:
        return self.assets.page()

    async def _asset(self, request: Request) -> Response:
        return self.assets.file(request.path_params["name"], request.headers.get("if-none-match"))

    async def _enter(self, request: Request) -> Response:
        body = await json_body(request, MAX_SMALL_BYTES)
        found = self.links.redeem(
            self.visitors,
            text_field(body, "link"),
            text_field(body, "nonce"),
            text_field(body, "proof"),
            same_user=request.scope.get("same_user", False),
        )
        if found.verdict != "good":
            return problem(401, f"link_{found.verdict}", _LINK_TEXTS[found.verdict])
        self.sessions.poll_now()  # while the page loads
        return JSONResponse({"visitor": found.visitor, "proof": found.proof})

    # --- reading

    async def _events(self, request: Request) -> Response:
        stream = self.hub.open(request.scope["visitor"].id)

        async def first() -> bytes:
            return event("hello", await asyncio.to_thread(self._snapshot))

        return EventStream(self.hub, stream, first)

    def _snapshot(self) -> dict[str, Any]:
        snapshot: dict[str, Any] = {
            "version": zmqbus.__version__,
            "port": self.settings.port,
            "dataDir": self.settings.data_dir,
            "self": self.sender.session_id,
            "bus": self.sessions.view.as_json(),
            "items": [],
            "before": None,
            "trouble": None,
        }
        try:
            self.log_tail.follow()  # before the history is read, so that no message is missed in between
            return snapshot | self.messages.page(FIRST_PAGE)
        except ZmqbusError as error:
            return snapshot | {"trouble": f"the log cannot be read: {error}"}

    async def _history(self, request: Request) -> Response:
        query = request.query_params
        before = parse_place(query.get("before"))
        if "before" in query and before is None:
            raise InvalidPayload("'before' is not a place in the log; reload the page")
        limit = whole_number(query.get("limit"), PAGE, MAX_PAGE)
        return JSONResponse(await asyncio.to_thread(self.messages.page, limit, before, query.get("session")))

    async def _message(self, request: Request) -> Response:
        query = request.query_params
        start = whole_number(query.get("from"), 0, verbs.MAX_BODY_BYTES)
        msg_id = request.path_params["msg_id"]
        return JSONResponse(await asyncio.to_thread(self.messages.part, msg_id, query.get("at"), start))

    async def _thread(self, request: Request) -> Response:
        msg_id = request.path_params["msg_id"]
        if not verbs.is_msg_id(msg_id):
            raise InvalidPayload("invalid message id; reload the page")
        return JSONResponse({"items": await asyncio.to_thread(self.threads.thread, msg_id)})

    async def _search(self, request: Request) -> Response:
        body = await json_body(request, MAX_SMALL_BYTES)
        text, mode = text_field(body, "text"), body.get("mode")
        if mode not in ("words", "regex") or not text.strip():
            raise InvalidPayload("the search is empty; type some words")
        query = Query(text, mode, text_field(body, "before") or None)
        return JSONResponse(await asyncio.to_thread(search, self.settings.paths, query))

    # --- acting

    async def _send(self, request: Request) -> Response:
        body = await json_body(request, guard.MAX_POST_BYTES)
        scope, to, text = body.get("scope"), text_field(body, "to").strip(), text_field(body, "text")
        reply_to = text_field(body, "replyTo") or None
        if reply_to is not None and not verbs.is_msg_id(reply_to):
            raise InvalidPayload("the id of the answered message is invalid; reload the page")
        if not text:
            raise InvalidPayload("the message is empty; write something")
        if scope != "all" and not to:
            raise InvalidPayload("the message has no receiver; choose one")
        if scope == "session":
            receipt: Any = await asyncio.to_thread(self.sender.send, to, text, reply_to)
        elif scope in ("all", "topic", "project"):
            audience = {} if scope == "all" else {scope: to}
            receipt = await asyncio.to_thread(lambda: self.sender.broadcast(text, **audience))
        else:
            raise InvalidPayload("invalid receiver; send to a session, to all, to a topic or to a project")
        self.sessions.poll_now()
        return JSONResponse({**receipt_json(receipt), "self": self.sender.session_id})

    async def _end_session(self, request: Request) -> Response:
        body = await json_body(request, MAX_SMALL_BYTES)
        text = await asyncio.to_thread(self._end, text_field(body, "session"))
        self.sessions.poll_now()
        return JSONResponse({"text": text})

    def _end(self, session_id: str) -> str:
        state = self.sessions.listeners.find(session_id)
        if state is None:
            raise NotConnected(
                "this session has no listener, so it cannot be disconnected from here; end a program where it runs"
            )
        return self._disconnect(state)

    async def _start_broker(self, request: Request) -> Response:
        await json_body(request, MAX_SMALL_BYTES)
        warnings = await asyncio.to_thread(launch.launch, self.settings)
        self.sessions.poll_now()
        return JSONResponse({"text": warnings or "the broker runs"})
