"""HTTP responses of the console: its files, event streams, errors; and how requests are read."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from zmqbus.console import guard
from zmqbus.console.guard import Receive, Scope, Send
from zmqbus.console.sse import Hub, Stream
from zmqbus.errors import InvalidPayload, TextTooLong, ZmqbusError
from zmqbus.journal.record import JournalError

ASSETS_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Assets:
    """The page's files, read into memory and served by their exact names, so no path leads out of the directory."""

    def __init__(self, directory: str = ASSETS_DIR) -> None:
        self._files: dict[str, tuple[bytes, str, str]] = {}
        for name in sorted(os.listdir(directory)):
            content_type = _TYPES.get(os.path.splitext(name)[1])
            if content_type is not None:
                with open(os.path.join(directory, name), "rb") as file:
                    content = file.read()
                self._files[name] = content, content_type, f'"{hashlib.sha256(content).hexdigest()[:20]}"'

    def __len__(self) -> int:
        """Size of all files together, in bytes."""
        return sum(len(content) for content, _, _ in self._files.values())

    def page(self) -> Response:
        """Returns the start page: the same for everybody, without any data of the bus."""
        content, content_type, _ = self._files["index.html"]
        return Response(content, 200, {"content-type": content_type})

    def file(self, name: str, known_tag: str | None) -> Response:
        """Returns a file, or 304 when `known_tag`, the browser's ETag, is still right."""
        if name not in self._files or name.endswith(".html"):
            return problem(404, "not_found", "there is no such file")
        content, content_type, tag = self._files[name]
        headers = {"etag": tag, "cache-control": "no-cache"}
        if known_tag == tag:
            return Response(None, 304, headers)
        return Response(content, 200, {**headers, "content-type": content_type})


class EventStream(Response):
    """A stream of server-sent events, which ends with the page's connection or with the stream."""

    def __init__(self, hub: Hub, stream: Stream, first: Callable[[], Awaitable[bytes]]) -> None:
        """`first` returns the first event; it is called once the headers have been sent."""
        super().__init__()
        self._hub = hub
        self._stream = stream
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends events until the page disconnects or the stream ends."""
        tasks = [asyncio.create_task(self._send_events(send)), asyncio.create_task(_disconnected(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._hub.close(self._stream)
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                # An OSError is a broken connection: the page has gone.
                if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
                    guard.warn(outcome)

    async def _send_events(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": await self._first(), "more_body": True})
        async for data in self._stream.events():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def route(method: str, path: str, handle: Callable[[Request], Awaitable[Response]]) -> Route:
    """Returns a route whose exceptions become error responses."""

    async def guarded(request: Request) -> Response:
        try:
            return await handle(request)
        except ZmqbusError as error:
            return _refusal(error)
        except ClientDisconnect:
            return Response(None, 400)
        except Exception as error:  # a bug: its text belongs into the terminal, not on the page
            guard.warn(error)
            return problem(guard.INTERNAL.status, guard.INTERNAL.code, guard.INTERNAL.text)

    return Route(path, guarded, methods=[method])


def _refusal(error: ZmqbusError) -> Response:
    status = 413 if isinstance(error, TextTooLong) else 404 if isinstance(error, JournalError) else 400
    response = problem(status, error.code, str(error))
    if status == 413:
        response.headers["connection"] = "close"  # drop the rest of the body
    return response


def problem(status: int, code: str, text: str) -> Response:
    """Returns an error response; `text` says what happened, then what to do."""
    return JSONResponse({"error": {"code": code, "text": text}}, status)


async def json_body(request: Request, limit_bytes: int) -> dict[str, Any]:
    """Reads the JSON object in a request's body. Raises `TextTooLong` as soon as it exceeds the limit."""
    parts: list[bytes] = []
    size_bytes = 0
    async for part in request.stream():
        size_bytes += len(part)
        if size_bytes > limit_bytes:
            raise TextTooLong(f"the request is larger than {limit_bytes:,} bytes; send less")
        parts.append(part)
    try:
        value = json.loads(b"".join(parts))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidPayload("the request is not a JSON object; reload the page")
    return value


def text_field(body: dict[str, Any], name: str) -> str:
    """Returns a text in a request's body, "" when it is absent. Raises `InvalidPayload` for any other type."""
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidPayload(f"'{name}' is not a text; reload the page")
    return value


def whole_number(text: str | None, default: int, most: int) -> int:
    """Returns a number of a query, at most `most`; `default` when it is absent or invalid."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 12):
        return default
    return min(int(text), most)
