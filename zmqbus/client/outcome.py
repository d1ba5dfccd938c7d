"""A future that costs a message little: what becomes of something that was said.

Theory of operation
===================

`concurrent.futures.Future` makes a condition when it is made, and takes it when it ends: 4 µs, of the 8 that a message
has here from its sender to its receipt. But of a thousand messages under way, somebody waits for one. So an `Outcome`
makes its condition when somebody asks for it, which everything in `concurrent.futures` does that waits or looks.

Whoever ends it first writes the result, then the state, and only then looks for a condition; whoever waits has made the
condition before it looks at the state. So one of them sees the other: either the state is there, or the condition is,
and is notified. (Each of these is one operation on the object's dictionary, which CPython does whole.)

Who may end it is settled by a lock that is taken for good: `end` or `cancel`, whoever comes first.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING
from typing import Any, Protocol, TypeVar

from zmqbus.errors import LocalError, ZmqbusError

_T = TypeVar("_T")


class Waited(Protocol):
    """Whose word it is that is waited for."""

    @property
    def waits_for_itself(self) -> bool:
        """Whether the caller is the thread that would end it."""

    def hurry(self) -> None:
        """Somebody waits: what has been put down is to be said now."""


class Outcome(Future[_T]):
    """What becomes of something that was said. Ended once, by `end` or by `cancel`, whoever comes first."""

    # What `Future.__init__` sets, but for the condition; a test compares them.
    _condition: threading.Condition

    def __init__(self, by: Waited) -> None:
        self._state = PENDING
        self._result: _T | None = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self._by = by
        self._ending = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if name != "_condition":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.__dict__.setdefault("_condition", threading.Condition())  # one of them, whoever asks at once

    def end(self, outcome: _T | ZmqbusError) -> None:
        """Gives it its result or its error, unless it has ended."""
        if not self._ending.acquire(blocking=False):
            return
        if isinstance(outcome, ZmqbusError):
            self._exception = outcome
        else:
            self._result = outcome
        self._state = FINISHED
        if "_condition" in self.__dict__:  # somebody has looked
            with self._condition:
                for waiter in self._waiters:
                    if self._exception is not None:
                        waiter.add_exception(self)
                    else:
                        waiter.add_result(self)
                self._condition.notify_all()
            self._invoke_callbacks()

    def cancel(self) -> bool:
        """Gives it up, if it has not ended. What was sent is sent."""
        if not self._ending.acquire(blocking=False):
            return self.cancelled()
        super().cancel()
        # `wait` and `as_completed` do not count a cancelled future before this: an executor's worker would say it.
        self.set_running_or_notify_cancel()
        return True

    def result(self, timeout: float | None = None) -> _T:
        """What became of it. Waits up to `timeout` seconds (None: as long as it takes)."""
        if self._state != FINISHED:
            self._wait()
        elif self._exception is None:
            return self._result  # type: ignore[return-value]
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error that it ended with, or None. Waits as `result` does."""
        if self._state != FINISHED:
            self._wait()
        return super().exception(timeout)

    def _wait(self) -> None:
        if self._by.waits_for_itself and not self.done():
            raise LocalError(
                "a callback runs in the thread of its bus, where waiting for that bus would never end; use request() "
                "and send(wait=False) there, with callbacks of their own, or hand the work to another thread"
            )
        self._by.hurry()
