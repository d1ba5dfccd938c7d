"""A future that costs a message little: what becomes of something that was said.

Theory of operation
===================

`concurrent.futures.Future` makes a condition when it is made, and takes it when it ends: 4 µs, of the 8 that a message
has here from its sender to its receipt. But of a thousand messages under way, somebody waits for one. A `LightFuture`
makes its condition, and the lists of those who are to hear of it, when somebody asks for one of them, which everything
in `concurrent.futures` does that waits or looks.

Whoever ends it first writes the result, then the state, and only then looks for a condition; whoever waits has made the
condition before it looks at the state. So one of them sees the other: either the state is there, or the condition is,
and is notified. (Each of these is one assignment, which CPython does whole.)

Who may end it is settled by an attribute that only one can take away: `end` or `cancel`, whoever comes first. (A lock
or a list would be one more object for the garbage collector to look at, for each of a hundred thousand.)
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from zmqbus.errors import LocalError, ZmqbusError

_T = TypeVar("_T")
_MAKING = threading.Lock()  # held for a moment, by whoever is the first to look at one of them


class Waited(Protocol):
    """Whose word it is that is waited for."""

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is the thread that would end it."""

    def flush(self) -> None:
        """Somebody waits: what has been put down is to be said now."""


class _Watched:
    """What whoever waits for a future, or looks at it, makes use of."""

    __slots__ = ("callbacks", "condition", "waiters")

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.waiters: list[Any] = []
        self.callbacks: list[Any] = []


class LightFuture(Future[_T]):
    """What becomes of something that was said. Ended once, by `end` or by `cancel`, whoever comes first."""

    # What `Future.__init__` sets; a test compares them.
    _state = PENDING
    _result: _T | None = None
    _exception: BaseException | None = None
    _watched: _Watched | None = None
    bus: object = None  #: what has to live until it ends

    def __init__(self, by: Waited) -> None:
        self._by = by
        self._open = None  # taken away by whoever ends it

    def _watch(self) -> _Watched:
        watched = self._watched
        if watched is None:
            with _MAKING:
                watched = self._watched = self._watched or _Watched()
        return watched

    if not TYPE_CHECKING:  # to whom these are what they are in every future

        @property
        def _condition(self):
            return self._watch().condition

        @property
        def _waiters(self):
            return self._watch().waiters

        @property
        def _done_callbacks(self):
            return self._watch().callbacks

    def end(self, outcome: _T | ZmqbusError) -> None:
        """Gives it its result or its error, unless it has ended."""
        try:
            del self._open
        except AttributeError:
            return
        if isinstance(outcome, ZmqbusError):
            self._exception = outcome
        else:
            self._result = outcome
        self._state = FINISHED
        watched = self._watched
        if watched is not None:
            with watched.condition:
                for waiter in watched.waiters:
                    if self._exception is not None:
                        waiter.add_exception(self)
                    else:
                        waiter.add_result(self)
                watched.condition.notify_all()
            self._invoke_callbacks()  # type: ignore[attr-defined]  # of Future, and not in its stub

    def cancel(self) -> bool:
        """Gives it up, if it has not ended. What was sent is sent."""
        try:
            del self._open
        except AttributeError:
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
        if self._by.is_current_thread and not self.done():
            raise LocalError(
                "a callback runs in the thread of its bus, where waiting for that bus would never end; use request() "
                "and send(wait=False) there, with callbacks of their own, or hand the work to another thread"
            )
        self._by.flush()
