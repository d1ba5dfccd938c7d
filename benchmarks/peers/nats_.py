"""NATS, through its own client: core, which passes on and forgets, and JetStream, which keeps and acknowledges.

Neither is encrypted here. JetStream's messages are published many at a time, as far as its client has them under way,
and each is acknowledged twice: to the sender, when it is in the stream, and by the receiver, when it has been read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import nats
from nats.js.api import AckPolicy, ConsumerConfig, StorageType, StreamConfig

from benchmarks import work
from benchmarks.stage import PATIENCE_S

_T = TypeVar("_T")

#: No limit on what waits in the client: it is counted at the end, and must all be there.
UNBOUNDED = {"pending_msgs_limit": 0, "pending_bytes_limit": 0}
#: Messages that a receiver holds without having acknowledged them.
HELD = 4_000


class _End:
    def __init__(self, port: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._client: Any = self._run(nats.connect(f"nats://127.0.0.1:{port}", allow_reconnect=False))
        self._take: Callable[[Any], Awaitable[None]] = self._ignore

    def _run(self, task: Coroutine[Any, Any, _T]) -> _T:
        return self._loop.run_until_complete(asyncio.wait_for(task, PATIENCE_S))

    async def _ignore(self, message: Any) -> None:
        raise RuntimeError("nobody was waiting for a message")

    async def _arrived(self, message: Any) -> None:
        await self._take(message)

    async def _collect(self, take: Callable[[Any], Awaitable[bool]]) -> None:
        """Gives each message that comes to `take`, until that says that it was the last."""
        over = self._loop.create_future()

        async def one(message: Any) -> None:
            try:
                if not await take(message) and not over.done():
                    over.set_result(None)
            except Exception as error:
                if not over.done():
                    over.set_exception(error)

        self._take = one
        await over
        self._take = self._ignore

    def close(self) -> None:
        """Closes all connections."""
        self._run(self._client.close())


class Receiver(_End):
    """Core: gets."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._run(self._client.subscribe("receiver", cb=self._arrived, **UNBOUNDED))
        self._run(self._client.flush())

    def receive(self, count: int, size_bytes: int) -> float:
        """Reads `count` messages and reports to the sender; returns when the last one came."""
        check = work.Check(count, size_bytes)

        async def take(message: Any) -> bool:
            return check.take(message.data.decode())

        self._run(self._collect(take))
        ended_s = time.monotonic()
        self._run(self._tell(count))
        return ended_s

    async def _tell(self, count: int) -> None:
        await self._client.publish("sender", str(count).encode())
        await self._client.flush()

    def receive_stamped(self, count: int) -> list[float]:
        """Reads `count` stamped messages; returns the latency of each, in seconds."""
        ages: list[float] = []

        async def take(message: Any) -> bool:
            ages.append(work.age_s(message.data.decode()))
            return len(ages) < count

        self._run(self._collect(take))
        return ages

    def echo(self, count: int) -> None:
        """Answers `count` requests."""
        left = count

        async def take(message: Any) -> bool:
            nonlocal left
            left -= 1
            await message.respond(message.data)
            return left > 0

        self._run(self._collect(take))
        self._run(self._client.flush())


class Sender(_End):
    """Core: sends."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._run(self._client.subscribe("sender", cb=self._arrived))
        self._run(self._client.flush())

    def send(self, count: int, size_bytes: int) -> tuple[float, float]:
        """Sends `count` messages; returns when it began, and when it knew that all had come."""
        return self._run(self._send(work.bodies(count, size_bytes), count))

    async def _send(self, texts: list[str], count: int) -> tuple[float, float]:
        different = len(texts)
        told: list[int] = []

        async def take(message: Any) -> bool:
            told.append(int(message.data))
            return False

        waiting = asyncio.ensure_future(self._collect(take))
        await asyncio.sleep(0)
        publish = self._client.publish
        began_s = time.monotonic()
        for number in range(count):
            await publish("receiver", texts[number % different].encode())
        await waiting
        ended_s = time.monotonic()
        if told != [count]:
            raise ValueError(f"the receiver has got {told} of {count}")
        return began_s, ended_s

    def send_stamped(self, count: int, pause_s: float) -> None:
        """Sends `count` stamped messages, with pauses."""
        self._run(self._send_stamped(count, pause_s))

    async def _send_stamped(self, count: int, pause_s: float) -> None:
        for when_s in work.spaced(count, pause_s):
            await asyncio.sleep(when_s - time.monotonic())
            await self._client.publish("receiver", work.stamp().encode())
        await self._client.flush()

    def ask(self, count: int, pause_s: float) -> list[float]:
        """Sends `count` requests with pauses; returns how long each answer took, in seconds."""
        return self._run(self._ask(count, pause_s))

    async def _ask(self, count: int, pause_s: float) -> list[float]:
        taken: list[float] = []
        for when_s in work.spaced(count, pause_s):
            await asyncio.sleep(when_s - time.monotonic())
            began_s = time.monotonic()
            await self._client.request("receiver", work.stamp().encode(), timeout=PATIENCE_S)
            taken.append(time.monotonic() - began_s)
        return taken


class StreamReceiver(_End):
    """JetStream: gets, and acknowledges each message."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._run(self._subscribe())

    async def _subscribe(self) -> None:
        self._streams = self._client.jetstream()
        await self._streams.add_stream(StreamConfig(name="bench", subjects=["stream.*"], storage=StorageType.FILE))
        await self._streams.subscribe(
            "stream.receiver",
            cb=self._arrived,
            manual_ack=True,
            config=ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=HELD, ack_wait=PATIENCE_S),
            **UNBOUNDED,
        )

    def receive(self, count: int, size_bytes: int) -> float:
        """Reads `count` messages; returns when the last one was acknowledged."""
        check = work.Check(count, size_bytes)

        async def take(message: Any) -> bool:
            more = check.take(message.data.decode())
            await message.ack()
            return more

        self._run(self._collect(take))
        self._run(self._client.flush())
        ended_s = time.monotonic()
        self._run(self._streams.purge_stream("bench"))
        return ended_s

    def receive_stamped(self, count: int) -> list[float]:
        """Reads `count` stamped messages; returns the latency of each, in seconds."""
        ages: list[float] = []

        async def take(message: Any) -> bool:
            ages.append(work.age_s(message.data.decode()))
            await message.ack()
            return len(ages) < count

        self._run(self._collect(take))
        self._run(self._client.flush())
        return ages


class StreamSender(_End):
    """JetStream: sends, and waits for the acknowledgements."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._streams = self._client.jetstream()

    def send(self, count: int, size_bytes: int) -> tuple[float, float]:
        """Sends `count` messages; returns when it began, and when all were in the stream."""
        return self._run(self._send(work.bodies(count, size_bytes), count))

    async def _send(self, texts: list[str], count: int) -> tuple[float, float]:
        different = len(texts)
        publish = self._streams.publish_async
        began_s = time.monotonic()
        futures = [await publish("stream.receiver", texts[number % different].encode()) for number in range(count)]
        for future in futures:
            await future
        return began_s, time.monotonic()

    def send_stamped(self, count: int, pause_s: float) -> None:
        """Sends `count` stamped messages with pauses, then waits for the acknowledgements."""
        self._run(self._send_stamped(count, pause_s))

    async def _send_stamped(self, count: int, pause_s: float) -> None:
        futures = []
        for when_s in work.spaced(count, pause_s):
            await asyncio.sleep(when_s - time.monotonic())
            futures.append(await self._streams.publish_async("stream.receiver", work.stamp().encode()))
        for future in futures:
            await future


class Announcer(_End):
    """Core: publishes to all."""

    def prepare(self, count: int) -> None:
        """Needs no preparation."""

    def publish(self, count: int, size_bytes: int) -> tuple[float, float]:
        """Publishes `count` messages; returns when it began, and when it had handed over the last one."""
        return self._run(self._publish(work.bodies(count, size_bytes)))

    async def _publish(self, texts: list[str]) -> tuple[float, float]:
        began_s = time.monotonic()
        for text in texts:
            await self._client.publish("all", text.encode())
        await self._client.flush()
        return began_s, time.monotonic()


class Seats:
    """Core: some subscribers, each with a connection of its own."""

    def __init__(self, port: int, first: int, count: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._port = port
        self._count = count
        self._clients: list[Any] = []
        self._checks: list[work.Tick] = []
        self._left = 0
        self._over: asyncio.Future[None] | None = None

    def connect(self) -> float:
        """Connects all; when the last one had subscribed."""
        self._loop.run_until_complete(self._connect())
        return time.monotonic()

    async def _connect(self) -> None:
        url = f"nats://127.0.0.1:{self._port}"
        some = (nats.connect(url, allow_reconnect=False, connect_timeout=int(PATIENCE_S)) for _ in range(self._count))
        self._clients = await asyncio.gather(*some)
        for index, client in enumerate(self._clients):
            await client.subscribe("all", cb=self._taker(index), **UNBOUNDED)
            await client.flush(timeout=int(PATIENCE_S))

    def _taker(self, index: int) -> Callable[[Any], Awaitable[None]]:
        async def take(message: Any) -> None:
            assert self._over is not None
            if not self._checks[index].take(message.data.decode()):
                self._left -= 1
                if not self._left:
                    self._over.set_result(None)

        return take

    def listen(self, count: int, size_bytes: int) -> float:
        """Lets each read `count` messages; returns when the last one was read."""
        self._checks = [work.Tick(count, size_bytes) for _ in self._clients]
        self._left = len(self._checks)
        self._over = self._loop.create_future()
        self._loop.run_until_complete(asyncio.wait_for(self._over, PATIENCE_S))
        return time.monotonic()

    def close(self) -> None:
        """Closes all connections."""
        for client in self._clients:
            self._loop.run_until_complete(client.close())
