"""Server-sent events: publishes what happens to every open page.

Each page has one stream. Publishers are threads (the log tail, the sessions poller); `Hub.publish` hands their events
to the event loop, which appends them to the queue of each stream. Queues are bounded: when a page does not read (a
sleeping laptop, a debugger), its queue is replaced by a single `overflow` event, and the page then fetches the present
state. So no page costs memory, and none delays another.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

#: Queued bytes for one page. One second of a very busy bus is a tenth of it.
MAX_QUEUE_BYTES = 1024 * 1024
#: Open streams of one browser, which has six connections to a server and needs the others for requests.
MAX_STREAMS_EACH = 4
#: Open streams of all browsers.
MAX_STREAMS = 16
#: Between two comments on an idle stream; they find out pages that have gone.
HEARTBEAT_S = 15.0


def event(kind: str, data: Any) -> bytes:
    """Encodes an event. JSON escapes line ends, so `data` is one line."""
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode(
        "utf-8", "replace"
    )


class Stream:
    """The event queue of one page."""

    def __init__(self, visitor_id: str) -> None:
        """`visitor_id`: of the browser that opened the stream."""
        self.visitor_id = visitor_id
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._more = asyncio.Event()
        self._ended = False

    def put(self, data: bytes) -> None:
        """Queues an event; replaces the queue by `overflow` when it would grow too large."""
        if self._ended:
            return
        if self._bytes + len(data) > MAX_QUEUE_BYTES:
            self._queue.clear()
            data = event("overflow", {})
            self._bytes = 0
        self._queue.append(data)
        self._bytes += len(data)
        self._more.set()

    def end(self, last: bytes | None = None) -> None:
        """Ends the stream once its queue has been sent; `last` is queued before."""
        if last is not None:
            self.put(last)
        self._ended = True
        self._more.set()

    @property
    def waiting_bytes(self) -> int:
        """Bytes queued and not yet sent."""
        return self._bytes

    async def events(self) -> AsyncIterator[bytes]:
        """Yields the bytes to send until the stream ends."""
        while True:
            while self._queue:
                # Join all queued events: one write instead of many.
                data = b"".join(self._queue)
                self._queue.clear()
                self._bytes = 0
                yield data
            if self._ended:
                return
            self._more.clear()
            try:
                await asyncio.wait_for(self._more.wait(), HEARTBEAT_S)
            except (TimeoutError, asyncio.TimeoutError):
                yield b": heartbeat\n\n"


class Hub:
    """All open streams. `publish` is thread-safe; call everything else in the event loop's thread."""

    def __init__(self, on_change: Callable[[int], None]) -> None:
        """`on_change` is called with the number of open streams whenever it changes."""
        self._streams: list[Stream] = []
        self._on_change = on_change
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False

    def __len__(self) -> int:
        return len(self._streams)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Sets the event loop that the streams belong to."""
        self._loop = loop

    def open(self, visitor_id: str) -> Stream:
        """Opens a stream. Over a limit, of this browser or of all, the oldest stream ends with `superseded`."""
        own = [stream for stream in self._streams if stream.visitor_id == visitor_id]
        for streams, limit in ((own, MAX_STREAMS_EACH), (self._streams, MAX_STREAMS)):
            if len(streams) >= limit:
                self.close(streams[0], event("superseded", {}))
        stream = Stream(visitor_id)
        if self._ended:
            stream.end()
            return stream
        self._streams.append(stream)
        self._on_change(len(self._streams))
        return stream

    def close(self, stream: Stream, last: bytes | None = None) -> None:
        """Ends a stream. Idempotent."""
        stream.end(last)
        if stream in self._streams:
            self._streams.remove(stream)
            self._on_change(len(self._streams))

    def close_all(self) -> None:
        """Ends all streams with `closing`, and every stream opened later."""
        self._ended = True
        for stream in list(self._streams):
            self.close(stream, event("closing", {}))

    def publish(self, kind: str, data: Any) -> None:
        """Queues an event for every page. Thread-safe."""
        encoded = event(kind, data)
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(self._put, encoded)
        except RuntimeError:
            return  # the loop has just closed, and the pages with it

    def _put(self, data: bytes) -> None:
        for stream in self._streams:
            stream.put(data)
