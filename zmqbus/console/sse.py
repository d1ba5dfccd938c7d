"""What happens, told to every page that is open.

Each page has a stream of server-sent events. Producers are threads (the log's follower, the broker's observer); they
hand an event to `publish`, which puts it into the queue of each stream, in the thread of the event loop. A queue is
bounded: of a page that does not read (a laptop that sleeps, a debugger), the queue is dropped as a whole and replaced
by one event, `lost`, upon which the page fetches the present state. So no page costs memory, and none delays another.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

#: Events that wait for one page. The lines of a second of very busy bus are a tenth of it.
MAX_QUEUE_BYTES = 1024 * 1024
#: Open streams of one browser. It has six connections to a server, and the others are for everything else.
MAX_STREAMS_EACH = 4
#: Of all browsers.
MAX_STREAMS = 16
#: A comment goes out so often where nothing happens: a page that has gone is found out by it.
BEAT_S = 15.0


def event(kind: str, data: Any) -> bytes:
    """An event as it goes over the wire. JSON has no line ends of its own, so `data` is one line."""
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode(
        "utf-8", "replace"
    )


class Stream:
    """One page's queue."""

    def __init__(self, owner: str) -> None:
        self.owner = owner  # whose stream it is: the id of the visitor
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._more = asyncio.Event()
        self._ended = False

    def put(self, data: bytes) -> None:
        """Queues an event; or drops all of them, when there are too many."""
        if self._ended:
            return
        if self._bytes + len(data) > MAX_QUEUE_BYTES:
            self._queue.clear()
            data = event("lost", {})
            self._bytes = 0
        self._queue.append(data)
        self._bytes += len(data)
        self._more.set()

    def end(self, last: bytes | None = None) -> None:
        """Ends the stream, after what it holds."""
        if last is not None:
            self.put(last)
        self._ended = True
        self._more.set()

    @property
    def waiting_bytes(self) -> int:
        """What the page has not been sent yet."""
        return self._bytes

    async def events(self) -> AsyncIterator[bytes]:
        """What goes out, until the stream ends."""
        while True:
            while self._queue:
                # All that wait, in one piece: one write instead of many.
                data = b"".join(self._queue)
                self._queue.clear()
                self._bytes = 0
                yield data
            if self._ended:
                return
            self._more.clear()
            try:
                await asyncio.wait_for(self._more.wait(), BEAT_S)
            except (TimeoutError, asyncio.TimeoutError):
                yield b": beat\n\n"


class Hub:
    """All open streams. But for `publish`, to be used in the event loop's thread."""

    def __init__(self, on_change: Callable[[int], None]) -> None:
        """`on_change` is called with the number of open streams, whenever it changes."""
        self._streams: list[Stream] = []
        self._on_change = on_change
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False

    def __len__(self) -> int:
        return len(self._streams)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Says which loop the streams live in."""
        self._loop = loop

    def open(self, owner: str) -> Stream:
        """A new stream. Where its browser has too many, or all have, the oldest ends with the event `superseded`."""
        own = [stream for stream in self._streams if stream.owner == owner]
        for crowd, limit in ((own, MAX_STREAMS_EACH), (self._streams, MAX_STREAMS)):
            if len(crowd) >= limit:
                self.close(crowd[0], event("superseded", {}))
        stream = Stream(owner)
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
        """Ends all streams, and those that come yet."""
        self._ended = True
        for stream in list(self._streams):
            self.close(stream, event("bye", {}))

    def publish(self, kind: str, data: Any) -> None:
        """Tells every page. For any thread."""
        encoded = event(kind, data)
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(self._put, encoded)
        except RuntimeError:
            return  # the loop has just ended, and the pages with it

    def _put(self, data: bytes) -> None:
        for stream in self._streams:
            stream.put(data)
