"""A worker: takes the requests of its groups, and answers them with what a handler returns.

Theory of operation
===================

*Credit.* The broker hands a worker as many requests at a time as it has offered to hold. One for each handler that may
run at once would leave the worker idle for a round trip after each; many would wait here behind a long one, while
another worker has nothing to do. So the offer follows what the handlers take: about `AHEAD_S` of work is held ahead.

*Errors.* What a handler raises is its answer, and reaches the caller as `RemoteError`. `sys.exit` does, too: it would
end a worker that others rely on, and then the next one that gets the request. The one exception is Ctrl-C, which Python
raises in the main thread and nowhere else: it ends `serve`. Handlers that have begun in threads are waited for; one in
the main thread, and coroutines, are interrupted; what is not answered goes back to the group.

*Handlers* that are coroutines run in an event loop of this call's own; others in this thread or, where several may run
at once, in a pool of threads.
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

#: So much work is held ahead of the handlers, s: some round trips, so that no worker waits for the broker; and so
#: little that nobody notices how long a request waits here while another worker is free.
AHEAD_S = 0.005
#: Requests that are held ahead at most: more bring nothing.
MAX_AHEAD = 64
#: The newest measurement's part in the average duration of a handler.
WEIGHT = 0.1
#: The offer is changed when it is off by this factor.
STEP = 2
#: Between two looks at whether it is to stop.
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
        self._stopping = False  # no more is taken, and what is here is finished
        self._leaving: BaseException | None = None  # what a handler wants to end the process with

    def __repr__(self) -> str:
        return f"<Worker {self._handler!r}: credit {self._credit}, {self._average_s * 1000:.2f} ms each>"

    def run(self, stop: threading.Event) -> None:
        """Serves until `stop` is set or the bus is closed; then finishes what was begun, and whatever the broker has
        handed over before it heard of the end. Ends at once with Ctrl-C, and gives back what is not answered."""
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
                pass  # the broker knows

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
        except BaseException as error:  # interrupted: what is cancelled from here on is not answered
            self._leaving = error
            raise

    # --- one request

    def _next(self, stop: threading.Event) -> verbs.Work | Message | None:
        """The next request; None when it is over."""
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
        """What the handler gets; None where nobody waits for the answer any more."""
        if isinstance(work, Message):
            return work
        if self._consumer.is_withdrawn(work.msg_id):
            self._consumer.answer(work.msg_id, Format.BYTES, b"")  # which frees its place
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
        """Says what came of it; what cannot be sent is an error of the handler's."""
        try:
            if isinstance(value, BaseException):
                fmt, body = encode_error(value, _trace(value))
            else:
                fmt, body = encode(value)
        except BaseException as error:  # a value may have code of its own, and so may an exception
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
            return  # the bus was closed under the handler: the broker gives the request to another worker
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
        """What is not answered, begun or not, is for another worker."""
        try:
            self._consumer.give_back()
        except ZmqbusError:
            pass  # the bus has ended, which has the same effect

    def _run_to_end(self, serving: Coroutine[Any, Any, None]) -> None:
        """Runs it in an event loop of its own; in a thread, where the caller is in one already (as in a notebook)."""
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
                    self._leaving = error  # else the thread, which is waited for, would not end
                    raise


def _retrieve(task: asyncio.Task[None]) -> None:
    """What ends the process goes its way; asyncio need not complain that nobody has asked the task for it."""
    if not task.cancelled():
        task.exception()


def _is_async(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_interrupt(error: BaseException) -> bool:
    """Whether it is Ctrl-C, and not what a handler has made up."""
    return isinstance(error, KeyboardInterrupt) and _in_main_thread()


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException as fault:  # an exception's own code
        return f"<no traceback: {type(fault).__name__} while it was printed>"


def check_handler(handler: object, concurrency: int) -> None:
    """Raises `InvalidArgument` for what cannot serve."""
    if not callable(handler):
        raise InvalidArgument(f"a handler is a function that takes a Message, not {arguments.shown(handler)}")
    arguments.count(concurrency, "concurrency")
