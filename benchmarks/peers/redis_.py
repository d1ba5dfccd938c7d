"""Redis streams, through its own client: XADD in pipelines, XREADGROUP and XACK in batches. Not encrypted here."""

from __future__ import annotations

import time
from typing import Any

import redis

from benchmarks import work
from benchmarks.stage import PATIENCE_S

#: Messages that go in one pipeline, and that are read at a time; and what limits that for large ones.
BATCH = 500
BATCH_BYTES = 1024 * 1024
#: A read that waits: well under the patience of the benchmark.
BLOCK_MS = 5_000


class _End:
    def __init__(self, port: int) -> None:
        self._redis: Any = redis.Redis(host="127.0.0.1", port=port)
        self._redis.ping()

    def _read_one(self, stream: str, after: str) -> tuple[str, bytes]:
        """The next entry after this one: its id, and its body."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            found = self._redis.xread({stream: after}, count=1, block=BLOCK_MS)
            if found:
                entry, fields = _streams(found)[0]
                return entry.decode(), fields[b"b"]
        raise TimeoutError(f"nothing comes on {stream}")

    def close(self) -> None:
        """Closes all connections."""
        self._redis.close()


def _streams(found: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of one stream in what XREAD has answered, in either version of the protocol."""
    (entries,) = found.values() if isinstance(found, dict) else (entries for _, entries in found)
    while len(entries) == 1 and isinstance(entries[0], list):  # with version 3 they stand in a list of their own
        (entries,) = entries
    return [(entry, fields) for entry, fields in entries]


class Receiver(_End):
    """The one consumer of a group."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._redis.xgroup_create("receiver", "group", mkstream=True)

    def _batch(self, size_bytes: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        count = max(1, min(BATCH, BATCH_BYTES // size_bytes))
        found = self._redis.xreadgroup("group", "me", {"receiver": ">"}, count=count, block=BLOCK_MS)
        return _streams(found) if found else []

    def receive(self, count: int, size_bytes: int) -> float:
        """Reads `count` messages; returns when the last one was acknowledged."""
        check = work.Check(count, size_bytes)
        deadline_s = time.monotonic() + PATIENCE_S
        more = True
        while more:
            entries = self._batch(size_bytes)
            for _, fields in entries:
                more = check.take(fields[b"b"].decode())
            if entries:
                self._redis.xack("receiver", "group", *(entry for entry, _ in entries))
            elif time.monotonic() > deadline_s:
                raise TimeoutError("not all messages have come")
        ended_s = time.monotonic()
        self._redis.xtrim("receiver", maxlen=0)
        return ended_s

    def receive_stamped(self, count: int) -> list[float]:
        """Reads `count` stamped messages; returns the latency of each, in seconds."""
        ages: list[float] = []
        deadline_s = time.monotonic() + PATIENCE_S
        while len(ages) < count:
            entries = self._batch(1)
            ages += [work.age_s(fields[b"b"].decode()) for _, fields in entries]
            if entries:
                self._redis.xack("receiver", "group", *(entry for entry, _ in entries))
            elif time.monotonic() > deadline_s:
                raise TimeoutError("not all messages have come")
        self._redis.xtrim("receiver", maxlen=0)
        return ages

    def echo(self, count: int) -> None:
        """Answers `count` requests."""
        after = "0"
        for _ in range(count):
            after, body = self._read_one("questions", after)
            self._redis.xadd("answers", {"b": body})
        self._redis.xtrim("questions", maxlen=0)


class Sender(_End):
    """Adds to the stream."""

    def send(self, count: int, size_bytes: int) -> tuple[float, float]:
        """Sends `count` messages; returns when it began, and when all were in the stream."""
        texts = work.bodies(count, size_bytes)
        different = len(texts)
        batch = max(1, min(BATCH, BATCH_BYTES // size_bytes))
        began_s = time.monotonic()
        for first in range(0, count, batch):
            pipeline = self._redis.pipeline(transaction=False)
            for number in range(first, min(count, first + batch)):
                pipeline.xadd("receiver", {"b": texts[number % different].encode()})
            pipeline.execute()
        return began_s, time.monotonic()

    def send_stamped(self, count: int, pause_s: float) -> None:
        """Sends `count` stamped messages, with pauses."""
        for when_s in work.spaced(count, pause_s):
            work.sleep_until(when_s)
            self._redis.xadd("receiver", {"b": work.stamp().encode()})

    def ask(self, count: int, pause_s: float) -> list[float]:
        """Sends `count` requests with pauses; returns how long each answer took, in seconds."""
        taken: list[float] = []
        newest = self._redis.xrevrange("answers", count=1)
        after = newest[0][0].decode() if newest else "0"
        for when_s in work.spaced(count, pause_s):
            work.sleep_until(when_s)
            began_s = time.monotonic()
            self._redis.xadd("questions", {"b": work.stamp().encode()})
            after, _ = self._read_one("answers", after)
            taken.append(time.monotonic() - began_s)
        return taken
