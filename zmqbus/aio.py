"""The bus for asyncio: the methods of `zmqbus.connect` as coroutines.

    async with zmqbus.aio.connect("orchestrator") as bus:
        answer = await bus.ask("auth", "question: ready?", timeout=30)

It is the same bus (`zmqbus.client.bus`), with the same guarantees and errors; calls that block there are awaited here,
and cancelling the task withdraws the request. It works in any running loop, Jupyter's too, and belongs to that loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeVar
from weakref import WeakMethod

from zmqbus.client import arguments
from zmqbus.client import bus as blocking
from zmqbus.client.fanout import WINDOW, Progress, progress_for, tell_item
from zmqbus.client.message import Message, check_message
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.client.worker import Handler
from zmqbus.errors import Timeout
from zmqbus.wire.verbs import Notice, Session

_T = TypeVar("_T")


class connect:
    """Opens a bus; `async with connect(…) as bus`, or `bus = await connect(…)`. The arguments are those of
    `zmqbus.connect`, and so are the errors."""

    def __init__(
        self,
        name: str | None = None,
        *,
        label: str | None = None,
        topics: Iterable[str] = (),
        group: str | Iterable[str] = (),
        ack: Literal["auto", "manual"] = "auto",
        port: int | None = None,
    ) -> None:
        self._open = partial(blocking.connect, name, label=label, topics=topics, group=group, ack=ack, port=port)
        self._bus: Bus | None = None

    def __await__(self) -> Generator[Any, None, Bus]:
        return self._connect().__await__()

    async def __aenter__(self) -> Bus:
        self._bus = await self._connect()
        return self._bus

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bus is not None:
            await self._bus.close()

    async def _connect(self) -> Bus:
        # It may have to start a broker, which takes a tenth of a second, and up to five seconds to give up.
        opening = _begin(self._open)
        try:
            return Bus(await asyncio.wrap_future(opening))
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)  # it cannot be stopped, and the caller will not get it
            raise


class Bus:
    """A program's place on the bus; see `zmqbus.client.bus.Bus`, which has the same methods."""

    def __init__(self, bus: blocking.Bus) -> None:
        """For `connect` only."""
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        wake = WeakMethod(self._wake)  # so that the bus's thread does not keep this object from being collected

        def arrived() -> None:
            if (act := wake()) is not None:
                act()

        bus.watch(arrived)

    def __repr__(self) -> str:
        return f"<aio {self._bus!r}>"

    async def __aenter__(self) -> Bus:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, *, forget: bool = False) -> int:
        """Leaves the bus; with `forget` for good. Returns how many messages were given up. Idempotent."""
        return await _in_thread(partial(self._bus.close, forget=forget))

    @property
    def name(self) -> str:
        """The program's name on the bus."""
        return self._bus.name

    @property
    def session_id(self) -> str | None:
        """Its session id; None: a guest has none."""
        return self._bus.session_id

    # --- sending

    async def send(
        self, target: str, body: Any, *, reply_to: str | None = None, timeout: float = blocking.CONFIRM_S
    ) -> Receipt:
        """Sends to one session, and waits for the receipt; several tasks may do so at once."""
        timeout = arguments.seconds(timeout)
        future = self._bus.send(target, body, reply_to=reply_to, wait=False)
        return await _confirmed(future, timeout)

    def send_soon(self, target: str, body: Any, *, reply_to: str | None = None) -> asyncio.Future[Receipt]:
        """Sends at once; returns the future of the receipt: pipelined, in order (`send(…, wait=False)` there)."""
        return asyncio.wrap_future(self._bus.send(target, body, reply_to=reply_to, wait=False))

    async def broadcast(
        self, body: Any, *, topic: str | None = None, project: bool | str = False, timeout: float = blocking.CONFIRM_S
    ) -> BroadcastReceipt:
        """Sends to every session, those of a topic, or those of a project."""
        return await _in_thread(partial(self._bus.broadcast, body, topic=topic, project=project, timeout=timeout))

    async def reply(self, message: Message, body: Any, *, timeout: float = blocking.CONFIRM_S) -> Receipt:
        """Answers a message."""
        check_message(message)
        timeout = arguments.seconds(timeout)
        return await _confirmed(self._bus.send(message.sender_id, body, reply_to=message.msg_id, wait=False), timeout)

    # --- asking

    def request(
        self, target: str, body: Any, *, timeout: float | None = None, wait: bool = True
    ) -> asyncio.Future[Message]:
        """Sends a request at once; returns the future of the answer. Cancelling it withdraws the request."""
        return asyncio.wrap_future(self._bus.request(target, body, timeout=timeout, wait=wait))

    async def ask(self, target: str, body: Any, *, timeout: float | None = 120.0) -> Message:
        """Sends a request, and waits for the answer."""
        return await self.request(target, body, timeout=timeout)

    def scatter(
        self, targets: Iterable[str], body: Any, *, timeout: float | None = None, progress: bool = False
    ) -> list[asyncio.Future[Message]]:
        """Sends a request to each of several targets; `asyncio.as_completed` and `asyncio.gather` take the futures."""
        return [
            asyncio.wrap_future(reply) for reply in self._bus.scatter(targets, body, timeout=timeout, progress=progress)
        ]

    async def map(
        self,
        target: str,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        timeout: float | None = None,
        progress: bool = False,
    ) -> AsyncIterator[Message]:
        """Sends `target` a request for each item; yields the answers in the order of the items, as `Bus.map` there
        does."""
        timeout = arguments.seconds_or_none(timeout)
        deadline_s = None if timeout is None else time.monotonic() + timeout
        arguments.items(items, AsyncIterable)
        arguments.flag(progress, "progress")
        bar: Progress = progress_for(progress, None, f"map over {target}")
        under_way: deque[asyncio.Future[Message]] = deque()
        asked: deque[Any] = deque()  # the items of those, and behind them one that could not be sent
        index = 0  # of the first of them
        source = aiter(items if isinstance(items, AsyncIterable) else _from_iterable(items))
        coming: asyncio.Future[Any] | None = None  # the next item; None: none is awaited
        failure: BaseException | None = None  # why no more items are sent; raised when its turn comes
        exhausted = False
        try:
            while True:
                if coming is None and not exhausted and len(under_way) < WINDOW:
                    coming = asyncio.ensure_future(_next(source))
                heads: list[asyncio.Future[Any]] = [coming] if coming is not None else []
                heads += [under_way[0]] if under_way else []
                if not heads:
                    break
                left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
                patience_s = None if under_way else left_s  # an open request reports the deadline
                done, _ = await asyncio.wait(heads, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                left_s = None if deadline_s is None else deadline_s - time.monotonic()
                if coming is not None and coming in done:
                    try:
                        item = coming.result()
                        if item is _END:
                            exhausted = True
                        elif left_s is None or left_s > 0:
                            asked.append(item)
                            under_way.append(self.request(target, item, timeout=left_s))
                    except Exception as error:
                        failure, exhausted = error, True
                    coming = None
                elif under_way and under_way[0].done():
                    message = under_way.popleft().result()
                    asked.popleft()
                    index += 1
                    bar.update(1)
                    yield message
                if left_s is not None and left_s <= 0 and not under_way and not exhausted:
                    raise Timeout("the deadline has passed before all items were handed out; give map a longer timeout")
            if failure is not None:
                raise failure
        except Exception as error:
            if asked:
                tell_item(error, index, asked[0])
            raise
        finally:
            for future in (coming, *under_way):
                if future is not None:
                    _forget(future)
            bar.close()

    # --- receiving

    async def messages(self, timeout: float | None = None) -> AsyncIterator[Message]:
        """Yields messages as they come; ends when none has come for `timeout` seconds (None: never)."""
        timeout = arguments.patience_or_none(timeout)
        while True:
            self._arrived.clear()
            while (message := self._bus.next_message(0.0)) is not None:
                yield message
                self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), timeout)
            except asyncio.TimeoutError:
                return

    async def notices(self, timeout: float | None = None) -> AsyncIterator[Notice]:
        """Yields what happens to sessions, as `Bus.notices` there does; ends when nothing has for `timeout` seconds."""
        timeout = arguments.patience_or_none(timeout)
        while True:
            self._arrived.clear()
            while (notice := self._bus.next_notice(0.0)) is not None:
                yield notice
                self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), timeout)
            except asyncio.TimeoutError:
                return

    async def serve(self, handler: Handler, *, concurrency: int = 1) -> None:
        """Answers requests until the task is cancelled or the bus is closed. Coroutine handlers run in a loop of their
        own, in another thread: objects that they share with this one must be thread-safe."""
        stop = threading.Event()
        serving = _in_thread(partial(self._bus.serve, handler, concurrency=concurrency, stop=stop))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            stop.set()
            await serving
            raise

    # --- looking, renaming

    async def sessions(self, *, away: bool = False, timeout: float = blocking.CONFIRM_S) -> list[Session]:
        """Returns the sessions on the bus."""
        return await _in_thread(partial(self._bus.sessions, away=away, timeout=timeout))

    async def set_state(self, state: str, detail: str = "", *, timeout: float = blocking.CONFIRM_S) -> None:
        """Tells what this program does: a state of an agent, and what it waits for if it is blocked."""
        await _in_thread(partial(self._bus.set_state, state, detail, timeout=timeout))

    async def rename(self, name: str, *, timeout: float = blocking.CONFIRM_S) -> None:
        """Changes the session's name."""
        await _in_thread(partial(self._bus.rename, name, timeout=timeout))

    # --- inside

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:
            pass  # the loop is closed


def _in_thread(call: Callable[[], _T]) -> asyncio.Future[_T]:
    return asyncio.wrap_future(_begin(call))


def _begin(call: Callable[[], _T]) -> Future[_T]:
    """Runs a blocking call in a thread of its own: the loop's executor may be full of calls that wait for this one."""
    future: Future[_T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="zmqbus aio", daemon=True).start()
    return future


def _close_unwanted(opening: Future[blocking.Bus]) -> None:
    if opening.exception() is None:
        opening.result().close()


def _forget(future: asyncio.Future[Any]) -> None:
    """Cancels a future, and retrieves its exception, which asyncio would report otherwise."""
    future.cancel()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())


async def _confirmed(future: Future[Receipt], timeout_s: float) -> Receipt:
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout_s)
    except asyncio.TimeoutError as error:
        if isinstance(error, Timeout):
            raise
        raise blocking.not_confirmed(timeout_s) from error


_END = object()


async def _next(source: AsyncIterator[Any]) -> Any:
    """Returns the next item, or `_END`: a task cannot end with `StopAsyncIteration`."""
    try:
        return await anext(source)
    except StopAsyncIteration:
        return _END


async def _from_iterable(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item
