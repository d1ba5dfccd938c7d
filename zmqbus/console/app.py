"""What the page can ask for: the application behind the guard.

Everything that touches the disk or the bus blocks, and runs in a thread. What goes wrong comes out as
`{"error": {"code": …, "text": …}}`, with a text that says what to do; a fault of ours too, without its traceback.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import zmqbus
from zmqbus.client import launch
from zmqbus.console import guard
from zmqbus.console.auth import Links, Visitors
from zmqbus.console.guard import Receive, Scope, Send
from zmqbus.console.log_tail import Flow
from zmqbus.console.search import Query, search
from zmqbus.console.sender import Voice, receipt_json
from zmqbus.console.sessions_poller import Roster
from zmqbus.console.sse import Hub, Stream, event
from zmqbus.console.threads import Threads
from zmqbus.console.views import of_entry, of_record, place_of, place_text
from zmqbus.errors import InvalidPayload, NotConnected, TextTooLong, ZmqbusError
from zmqbus.journal import reader
from zmqbus.journal.history import History, Wanted
from zmqbus.journal.record import JournalError
from zmqbus.session.state import SessionState
from zmqbus.settings import Settings
from zmqbus.wire import verbs

#: Messages in one page of the history, at most; and where the page does not say.
MAX_PAGE, PAGE = 500, 200
#: The first look at the history, which is sent before anything else: what a large screen shows at once, and some.
FIRST_PAGE = 100
#: So much of the log is read for one page of what one session has said and heard.
PAGE_BYTES = 16 * 1024 * 1024
#: Characters of a text that go out at once. The page puts them below each other as one scrolls.
SLICE_CHARS = 64 * 1024
#: Texts that are kept because the page is in the middle of them.
MAX_TEXTS = 2
#: Requests that are not a message.
MAX_SMALL_BYTES = 64 * 1024

ASSETS_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

#: What a program is told of a link that opens nothing; the page has words of its own for people.
_LINK_TEXTS = {
    "used": "this link has been used; each opens the console once",
    "expired": "this link is too old",
    "unknown": "this link is not from this console",
    "elsewhere": "this link is only for a browser of this user, on this machine",
}


class Assets:
    """The files of the page, in memory. What is not one of them by name is not there, whatever its path looks like."""

    def __init__(self, directory: str = ASSETS_DIR) -> None:
        self._files: dict[str, tuple[bytes, str, str]] = {}
        for name in sorted(os.listdir(directory)):
            kind = _TYPES.get(os.path.splitext(name)[1])
            if kind is not None:
                with open(os.path.join(directory, name), "rb") as file:
                    content = file.read()
                self._files[name] = content, kind, f'"{hashlib.sha256(content).hexdigest()[:20]}"'

    def __len__(self) -> int:
        return sum(len(content) for content, _, _ in self._files.values())

    def page(self) -> Response:
        """The page: the same for everybody, with nothing of the bus in it."""
        content, kind, _ = self._files["index.html"]
        return Response(content, 200, {"content-type": kind})

    def file(self, name: str, known: str | None) -> Response:
        """A file; or word that it has not changed since `known`, the tag that the browser has of it."""
        if name not in self._files or name.endswith(".html"):
            return problem(404, "not_found", "there is no such file")
        content, kind, tag = self._files[name]
        headers = {"etag": tag, "cache-control": "no-cache"}
        if known == tag:
            return Response(None, 304, headers)
        return Response(content, 200, {**headers, "content-type": kind})


class EventStream(Response):
    """A stream of server-sent events, until the page goes or the stream ends."""

    def __init__(self, hub: Hub, stream: Stream, first: Callable[[], Awaitable[bytes]]) -> None:
        super().__init__()
        self._hub = hub
        self._stream = stream
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends. Whichever comes first ends it: the page, the hub."""

        async def sending() -> None:
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
                }
            )
            await send({"type": "http.response.body", "body": await self._first(), "more_body": True})
            async for data in self._stream.events():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        async def leaving() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.create_task(sending()), asyncio.create_task(leaving())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._hub.close(self._stream)
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                # A connection that breaks while it is written to is how pages go.
                if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
                    guard.complain(outcome)


class Console:
    """The console: its parts, and the ASGI application that shows them."""

    def __init__(
        self,
        settings: Settings,
        authority: str,
        links: Links,
        disconnect: Callable[[SessionState], str],
        *,
        voice: Voice | None = None,
    ) -> None:
        """`authority`: name and port of the page, as links have it. `disconnect` ends a session's listener, as that
        session (`cli.console`)."""
        self.settings = settings
        self.links = links
        self.visitors = Visitors()
        self.hub = Hub(self._watched_by)
        self.flow = Flow(settings.paths.log, self.hub.publish)
        self.roster = Roster(settings, self.hub.publish)
        self.voice = voice if voice is not None else Voice(settings)
        self.threads = Threads(settings.paths.log)
        self.assets = Assets()
        self._disconnect = disconnect
        self._texts: OrderedDict[tuple[str, str | None], tuple[dict[str, Any], str]] = OrderedDict()
        routes = [
            _route("GET", "/", self._page),
            _route("GET", "/assets/{name}", self._asset),
            _route("POST", guard.ENTER, self._enter),
            _route("GET", "/api/events", self._events),
            _route("GET", "/api/messages", self._messages),
            _route("GET", "/api/message/{msg_id}", self._message),
            _route("GET", "/api/thread/{msg_id}", self._thread),
            _route("POST", "/api/search", self._search),
            _route("POST", "/api/send", self._send),
            _route("POST", "/api/disconnect", self._end_session),
            _route("POST", "/api/broker", self._start_broker),
        ]
        handlers: dict[Any, Any] = {
            404: lambda request, error: problem(404, "not_found", "there is nothing here"),
            405: lambda request, error: problem(405, "method", "this is not asked for like that"),
        }
        self.app = guard.Guard(Starlette(routes=routes, exception_handlers=handlers), authority, self.visitors)

    def start(self) -> None:
        """Begins to look. To be called in the event loop."""
        self.hub.bind(asyncio.get_running_loop())
        self.flow.start()
        self.roster.start()

    def close(self) -> None:
        """Leaves the bus, and ends the threads. Blocks for up to some seconds; idempotent."""
        self.voice.close()
        self.flow.close()
        self.roster.close()

    def _watched_by(self, pages: int) -> None:
        for part in (self.flow, self.roster, self.voice):
            part.watched_by(pages)

    # --- in

    async def _page(self, request: Request) -> Response:
        return self.assets.page()

    async def _asset(self, request: Request) -> Response:
        return self.assets.file(request.path_params["name"], request.headers.get("if-none-match"))

    async def _enter(self, request: Request) -> Response:
        asked = await self._json(request, MAX_SMALL_BYTES)
        entry = self.links.redeem(
            self.visitors,
            _text_of(asked, "link"),
            _text_of(asked, "nonce"),
            _text_of(asked, "proof"),
            same_user=request.scope.get("same_user", False),
        )
        if entry.verdict != "good":
            return problem(401, f"link_{entry.verdict}", _LINK_TEXTS[entry.verdict])
        self.roster.ask_now()  # while the page loads
        return JSONResponse({"visitor": entry.visitor, "proof": entry.proof})

    # --- looking

    async def _events(self, request: Request) -> Response:
        stream = self.hub.open(request.scope["visitor"].id)

        async def first() -> bytes:
            return event("hello", await asyncio.to_thread(self._snapshot))

        return EventStream(self.hub, stream, first)

    def _snapshot(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "version": zmqbus.__version__,
            "port": self.settings.port,
            "dataDir": self.settings.data_dir,
            "self": self.voice.session_id,
            "roster": self.roster.view.as_json(),
            "items": [],
            "before": None,
            "trouble": None,
        }
        try:
            self.flow.attend()  # before the history is looked at: so nothing falls between them
            page = History(self.settings.paths.log).page(limit=FIRST_PAGE)
        except ZmqbusError as error:
            return {**shown, "trouble": f"the log cannot be read: {error}"}
        return {**shown, "items": [of_entry(entry) for entry in page.entries], "before": place_text(page.before)}

    async def _messages(self, request: Request) -> Response:
        query = request.query_params
        before = place_of(query.get("before"))
        if "before" in query and before is None:
            raise InvalidPayload("'before' is no place in the log; reload the page")
        limit = _whole(query.get("limit"), PAGE, MAX_PAGE)
        return JSONResponse(await asyncio.to_thread(self._history, before, limit, query.get("session")))

    def _history(self, before: Any, limit: int, session: str | None) -> dict[str, Any]:
        history = History(self.settings.paths.log)
        if session is None:
            page = history.page(before, limit=limit)
        else:
            # Said or heard: `Wanted` asks for both at once, so what either of them takes is asked for here.
            page = history.page(before, limit=limit, wanted=_Concerns(session), limit_bytes=PAGE_BYTES)
        return {"items": [of_entry(entry) for entry in page.entries], "before": place_text(page.before)}

    async def _message(self, request: Request) -> Response:
        msg_id = request.path_params["msg_id"]
        query = request.query_params
        start = _whole(query.get("from"), 0, verbs.MAX_BODY_BYTES)
        shown, text = await asyncio.to_thread(self._text, msg_id, query.get("at"))
        part = text[start : start + SLICE_CHARS]
        return JSONResponse(
            {"message": shown, "from": start, "chars": len(text), "part": part, "more": start + len(part) < len(text)}
        )

    def _text(self, msg_id: str, at: str | None) -> tuple[dict[str, Any], str]:
        """A message whole. Raises `JournalError` where it is not in the log."""
        known = self._texts.get((msg_id, at))
        if known is not None:
            return known
        if not verbs.is_msg_id(msg_id):
            raise InvalidPayload("this is not the id of a message")
        record = None
        place = place_of(at)
        if place is not None:
            history = History(self.settings.paths.log)
            for entry in history.at([place]):
                if entry.msg_id == msg_id:
                    record = history.record(entry)
        if record is None:
            record = reader.find(self.settings.paths.log, msg_id)
        if record is None:
            raise JournalError("this message is not in the log any more; its oldest files are deleted in time")
        shown, text = of_record(record)
        shown["at"] = at
        if len(text) > SLICE_CHARS:
            self._texts[msg_id, at] = shown, text
            while len(self._texts) > MAX_TEXTS:
                self._texts.popitem(last=False)
        return shown, text

    async def _thread(self, request: Request) -> Response:
        msg_id = request.path_params["msg_id"]
        if not verbs.is_msg_id(msg_id):
            raise InvalidPayload("this is not the id of a message")
        return JSONResponse({"items": await asyncio.to_thread(self.threads.thread, msg_id)})

    async def _search(self, request: Request) -> Response:
        asked = await self._json(request, MAX_SMALL_BYTES)
        text, mode = _text_of(asked, "text"), asked.get("mode")
        if mode not in ("words", "regex") or not text.strip():
            raise InvalidPayload("there is nothing to search for; type some words")
        query = Query(text, mode, _text_of(asked, "before") or None)
        return JSONResponse(await asyncio.to_thread(search, self.settings.paths, query))

    # --- doing

    async def _send(self, request: Request) -> Response:
        asked = await self._json(request, guard.MAX_POST_BYTES)
        scope, to, text = asked.get("scope"), _text_of(asked, "to").strip(), _text_of(asked, "text")
        reply_to = _text_of(asked, "replyTo") or None
        if reply_to is not None and not verbs.is_msg_id(reply_to):
            raise InvalidPayload("the message that this one answers is none")
        if not text:
            raise InvalidPayload("the message is empty; write something")
        if scope != "all" and not to:
            raise InvalidPayload("the message has no receiver; say whom it is for")
        if scope == "session":
            receipt: Any = await asyncio.to_thread(self.voice.send, to, text, reply_to)
        elif scope in ("all", "topic", "project"):
            aim = {} if scope == "all" else {scope: to}
            receipt = await asyncio.to_thread(lambda: self.voice.broadcast(text, **aim))
        else:
            raise InvalidPayload("a message goes to a session, to all, to a topic or to a project")
        self.roster.ask_now()
        return JSONResponse({**receipt_json(receipt), "self": self.voice.session_id})

    async def _end_session(self, request: Request) -> Response:
        asked = await self._json(request, MAX_SMALL_BYTES)
        text = await asyncio.to_thread(self._end, _text_of(asked, "session"))
        self.roster.ask_now()
        return JSONResponse({"text": text})

    def _end(self, session_id: str) -> str:
        state = self.roster.listeners.find(session_id)
        if state is None:
            raise NotConnected(
                "only a session with a listener can be disconnected from here, and this one has none (any more); a "
                "program ends where it runs"
            )
        return self._disconnect(state)

    async def _start_broker(self, request: Request) -> Response:
        await self._json(request, MAX_SMALL_BYTES)
        warnings = await asyncio.to_thread(launch.launch, self.settings)
        self.roster.ask_now()
        return JSONResponse({"text": warnings or "the broker runs"})

    # --- inside

    async def _json(self, request: Request, limit_bytes: int) -> dict[str, Any]:
        """The object in the body of a request, of which no more than the limit is read."""
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limit_bytes:
                raise TextTooLong(f"a request of over {limit_bytes:,} bytes is not taken; send less")
            parts.append(part)
        try:
            value = json.loads(b"".join(parts))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise InvalidPayload("the request is no JSON object; reload the page")
        return value


def _route(method: str, path: str, handle: Callable[[Request], Awaitable[Response]]) -> Route:
    """A route whose failures are answers."""

    async def guarded(request: Request) -> Response:
        try:
            return await handle(request)
        except ZmqbusError as error:
            status = 413 if isinstance(error, TextTooLong) else 404 if isinstance(error, JournalError) else 400
            answer = problem(status, error.code, str(error))
            if status == 413:
                answer.headers["connection"] = "close"  # whatever is still to come of the body
            return answer
        except ClientDisconnect:
            return Response(None, 400)
        except Exception as error:  # a fault of ours: told where it can be mended
            guard.complain(error)
            return problem(guard.FAULT.status, guard.FAULT.code, guard.FAULT.text)

    return Route(path, guarded, methods=[method])


class _Concerns(Wanted):
    """What a session has said, or what was for it alone."""

    def __new__(cls, session_id: str) -> _Concerns:
        return super().__new__(cls, sender=session_id)

    def fits(self, entry: Any) -> bool:
        """See `Wanted.fits`."""
        return self.sender in (entry.from_session, entry.to_session_id)


def problem(status: int, code: str, text: str) -> Response:
    """An answer that says what went wrong."""
    return JSONResponse({"error": {"code": code, "text": text}}, status)


def _whole(text: str | None, default: int, most: int) -> int:
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 12):
        return default
    return min(int(text), most)


def _text_of(asked: dict[str, Any], field: str) -> str:
    value = asked.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidPayload(f"'{field}' has to be a text")
    return value
