"""A worker: takes the requests of its groups, and answers them with the results of a handler.

Theory of operation
===================

*Credit.* The broker hands a worker at most as many requests as its credit. Credit for the running handlers only would
leave the worker idle for a round trip after each request; a large credit would queue requests here behind a long one
while another worker is idle. So the credit follows the duration of the handlers: about `AHEAD_S` of work waits ahead.

*Errors.* An exception in a handler is its answer, and reaches the caller as `RemoteError`. So does `sys.exit`: it would
end a worker that others rely on, and then the next one that gets the request. The exception is Ctrl-C, which Python
raises in the main thread only: it ends `serve`. Handlers that run in threads finish; one in the main thread, and
coroutines, are interrupted; unanswered requests go back to the group.

*Handlers* that are coroutines run in an event loop of this call's own; others in this thread or, if several may run at
once, in a thread pool.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from zmqbus.client import arguments, payload
from zmqbus.client.consumer import Consumer
from zmqbus.client.message import Message, encode, encode_error
from zmqbus.client.producer import Producer
from zmqbus.errors import InvalidArgument, NotConnected, ZmqbusError
from zmqbus.journal.record import JournalError
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format, Header, Scope

Handler: TypeAlias = Callable[[Message], Any] | Callable[[Message], Awaitable[Any]]

#: Seconds of work that wait ahead of the handlers: some round trips, so that no worker waits for the broker; and short
#: enough for a request to wait here while another worker is idle.
AHEAD_S = 0.005
#: Requests that wait ahead at most: more gain nothing.
MAX_AHEAD = 64
#: Weight of the newest measurement in the average duration of a handler.
WEIGHT = 0.1
#: Change the credit when it is off by this factor.
STEP = 2
#: Seconds between two looks at `stop`.
LOOK_S = 0.2


class Worker:
    """One call of `Bus.serve`."""

    def __init__(
        self, consumer: Consumer, producer: Producer, handler: Handler, concurrency: int, log_path: str
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._handler = handler
        self._concurrency = concurrency
        self._log_path = log_path
        self._credit = 0
        self._average_s = AHEAD_S
        self._lock = threading.Lock()
        self._stopping = False  # take no more, and finish the requests that are here
        self._leaving: BaseException | None = None  # the exception that ends `serve`

    def __repr__(self) -> str:
        return f"<Worker {self._handler!r}: credit {self._credit}, {self._average_s * 1000:.2f} ms each>"

    def run(self, stop: threading.Event) -> None:
        """Serves until `stop` is set or the bus is closed; then finishes the requests that the broker had handed over
        by then. Ends at once with Ctrl-C, and gives unanswered requests back."""
        self._offer(self._concurrency)
        try:
            if _is_async(self._handler):
                self._run_to_end(self._run_async(stop))
            elif self._concurrency == 1:
                while (work := self._next(stop)) is not None:
                    self._serve(work)
            else:
                self._run_pool(stop)
        except KeyboardInterrupt as error:
            self._leaving = error
            if not _in_main_thread():
                raise
            self._give_back()
        finally:
            try:
                self._offer(0)
            except ZmqbusError:
                pass  # the connection has ended, and the broker knows

    def _run_pool(self, stop: threading.Event) -> None:
        slots = threading.Semaphore(self._concurrency)

        def serve(work: verbs.Work | Message) -> None:
            try:
                self._serve(work)
            finally:
                slots.release()

        with ThreadPoolExecutor(self._concurrency, "zmqbus handler") as pool:
            while True:
                slots.acquire()
                work = self._next(stop)
                if work is None:
                    break
                pool.submit(serve, work)

    async def _run_async(self, stop: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        slots = asyncio.Semaphore(self._concurrency)
        tasks: set[asyncio.Task[None]] = set()

        async def serve(work: verbs.Work | Message) -> None:
            try:
                message = self._message(work)
                if message is not None:
                    began_s = time.monotonic()
                    try:
                        value = await self._handler(message)
                    except BaseException as error:
                        if self._leaving is not None or _is_interrupt(error):
                            self._leaving = error
                            raise  # another worker gets the request
                        value = error
                    self._answer(work, value, time.monotonic() - began_s)
            finally:
                slots.release()

        try:
            while True:
                await slots.acquire()
                work = await loop.run_in_executor(None, self._next, stop)
                if work is None:
                    break
                task = loop.create_task(serve(work))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(_retrieve)
            await asyncio.gather(*tasks)
        except BaseException as error:  # interrupted: requests that are cancelled from here on are not answered
            self._leaving = error
            raise

    # --- one request

    def _next(self, stop: threading.Event) -> verbs.Work | Message | None:
        """Returns the next request; None at the end."""
        while self._leaving is None:
            try:
                if stop.is_set() and not self._stopping:
                    with self._lock:
                        self._stopping = True
                    self._consumer.stop_work()
                work = self._consumer.next_work(0.0 if self._stopping else LOOK_S, or_message=not self._stopping)
            except NotConnected:
                return None
            if work is not None or self._stopping:
                return work
        return None

    def _serve(self, work: verbs.Work | Message) -> None:
        message = self._message(work)
        if message is None:
            return
        began_s = time.monotonic()
        value: Any
        try:
            value = self._handler(message)
        except BaseException as error:
            if _is_interrupt(error):
                raise
            value = error
        self._answer(work, value, time.monotonic() - began_s)

    def _message(self, work: verbs.Work | Message) -> Message | None:
        """Returns the message for the handler; None if the request was withdrawn."""
        if isinstance(work, Message):
            return work
        if self._consumer.is_withdrawn(work.msg_id):
            self._consumer.answer(work.msg_id, Format.BYTES, b"")  # frees its place in the credit
            return None
        value = None
        body = work.body
        if work.pointer is not None:
            try:
                body = payload.load(work, self._log_path)
            except JournalError as error:
                value = payload.damage(work.msg_id, work.from_name, error)
        header = Header(
            work.from_session, work.from_name, work.from_label, Scope.GROUP, work.group, work.fmt, None, work.ts
        )
        return Message(header, work.msg_id, body, value=value)

    def _answer(self, work: verbs.Work | Message, value: Any, took_s: float) -> None:
        """Answers with the handler's result; a value that cannot be sent is answered as an error."""
        try:
            if isinstance(value, BaseException):
                fmt, body = encode_error(value, _trace(value))
            else:
                fmt, body = encode(value)
        except BaseException as error:  # raised by the value's or the exception's own code
            if _is_interrupt(error):
                raise
            fmt, body = encode_error(error, _trace(error))
        try:
            if isinstance(work, Message):
                work.ack()
                if value is not None:
                    self._producer.send(Scope.SESSION, work.sender_id, fmt, body, work.msg_id)
                return
            self._consumer.answer(work.msg_id, fmt, body)
        except NotConnected:
            return  # the bus was closed during the work: the broker gives the request to another worker
        self._measured(took_s)

    # --- credit

    def _measured(self, took_s: float) -> None:
        with self._lock:
            if self._stopping:
                return
            self._average_s += WEIGHT * (took_s - self._average_s)
            ahead = min(MAX_AHEAD, int(AHEAD_S * self._concurrency / max(self._average_s, 1e-6)))
            wanted = self._concurrency + ahead
            if self._credit / STEP < wanted < self._credit * STEP:
                return
            self._offer(wanted)

    def _offer(self, credit: int) -> None:
        self._credit = credit
        self._consumer.offer(credit)

    def _give_back(self) -> None:
        """Leaves unanswered requests to other workers."""
        try:
            self._consumer.give_back()
        except ZmqbusError:
            pass  # the end of the bus has the same effect

    def _run_to_end(self, serving: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine in an event loop of its own; in a thread, if the caller runs in a loop (as in a
        notebook)."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(serving)
        else:
            with ThreadPoolExecutor(1, "zmqbus serve") as thread:
                ended = thread.submit(asyncio.run, serving)
                try:
                    ended.result()
                except BaseException as error:
                    self._leaving = error  # otherwise the thread, which is joined here, would not end
                    raise


def _retrieve(task: asyncio.Task[None]) -> None:
    """Retrieves a task's exception, so that asyncio does not report it as never retrieved."""
    if not task.cancelled():
        task.exception()


def _is_async(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_interrupt(error: BaseException) -> bool:
    """Returns whether it is a Ctrl-C, not a `KeyboardInterrupt` that a handler raised."""
    return isinstance(error, KeyboardInterrupt) and _in_main_thread()


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException as fault:  # an exception's own code
        return f"<no traceback: {type(fault).__name__} while it was printed>"


def check_handler(handler: object, concurrency: int) -> None:
    """Raises `InvalidArgument` for a bad handler or concurrency."""
    if not callable(handler):
        raise InvalidArgument(f"a handler is a function that takes a Message, not {arguments.shown(handler)}")
    arguments.count(concurrency, "concurrency")
