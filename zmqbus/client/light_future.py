"""A future that costs little unless somebody waits for it, for the outcome of one message among many.

Theory of operation
===================

`concurrent.futures.Future` makes a condition when it is made, and takes it when it ends: 4 µs of the 8 µs that a
message costs here from its sender to its receipt. But of a thousand messages under way, somebody waits for one. So a
`LightFuture` makes its condition, and its lists of waiters and callbacks, when something asks for one of them, as all
of `concurrent.futures` does that waits or looks.

The end writes the result, then the state. Where there is a condition, it holds that meanwhile, as `Future` does, and
notifies the waiters. Where there is none, it holds the lock under which conditions are made: one that is made later
finds the state. So each waiter either finds the state or is notified, and never both: `as_completed` would yield the
future twice.

`finish` and `cancel` compete for an attribute that only one of them can delete. (A lock or a list would be one more
object for the garbage collector to visit, for each of a hundred thousand futures.)

This relies on private attributes of `Future`: `_state`, `_result`, `_exception`, `_condition`, `_waiters`,
`_done_callbacks` and `_invoke_callbacks`, which are the same from Python 3.10 to 3.14. A test compares them with a
plain `Future`'s, and runs the standard library's waits on them.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from zmqbus.errors import LocalError, ZmqbusError

_T = TypeVar("_T")
_MAKING = threading.Lock()  # held for a moment by the first thread that waits for a future, and by an unwatched end


class Source(Protocol):
    """The connection that ends a future."""

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is the thread that ends the future."""

    def flush(self) -> None:
        """Sends what was put down, since a caller waits."""


class _Watched:
    """The parts of a future that only waiters and callbacks need."""

    __slots__ = ("callbacks", "condition", "waiters")

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.waiters: list[Any] = []
        self.callbacks: list[Any] = []


class LightFuture(Future[_T]):
    """The future of an outcome, ended once by `finish` or `cancel`."""

    # The attributes that `Future.__init__` sets.
    _state = PENDING
    _result: _T | None = None
    _exception: BaseException | None = None
    _watched: _Watched | None = None
    bus: object = None  #: kept from being collected until the end

    def __init__(self, source: Source) -> None:
        self._source = source
        self._open = None  # deleted by the end

    def _watch(self) -> _Watched:
        watched = self._watched
        if watched is None:
            with _MAKING:
                watched = self._watched = self._watched or _Watched()
        return watched

    if not TYPE_CHECKING:  # a type checker knows these from `Future`

        @property
        def _condition(self):
            return self._watch().condition

        @property
        def _waiters(self):
            return self._watch().waiters

        @property
        def _done_callbacks(self):
            return self._watch().callbacks

    def finish(self, outcome: _T | ZmqbusError) -> None:
        """Ends the future with a result or an error; does nothing if it has ended."""
        try:
            del self._open
        except AttributeError:
            return
        if isinstance(outcome, ZmqbusError):
            self._exception = outcome
        else:
            self._result = outcome
        watched = self._watched
        if watched is None:
            with _MAKING:
                watched = self._watched
                if watched is None:
                    self._state = FINISHED
        if watched is not None:
            with watched.condition:
                self._state = FINISHED
                for waiter in watched.waiters:
                    if self._exception is not None:
                        waiter.add_exception(self)
                    else:
                        waiter.add_result(self)
                watched.condition.notify_all()
            self._invoke_callbacks()  # type: ignore[attr-defined]  # not in the stub of `Future`

    def cancel(self) -> bool:
        """Ends the future as cancelled, and returns True, unless it has ended. The message itself stays sent."""
        try:
            del self._open
        except AttributeError:
            return self.cancelled()
        super().cancel()
        # An executor's worker would call this; before it, `wait` and `as_completed` do not count the future as done.
        self.set_running_or_notify_cancel()
        return True

    def result(self, timeout: float | None = None) -> _T:
        """Returns the outcome, or raises it if it is an error. Waits up to `timeout` seconds (None: without limit), and
        then raises `TimeoutError`."""
        if self._state != FINISHED:
            self._wait()
        elif self._exception is None:
            return self._result  # type: ignore[return-value]
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Returns the error that is the outcome, or None. Waits as `result` does."""
        if self._state != FINISHED:
            self._wait()
        return super().exception(timeout)

    def _wait(self) -> None:
        if self._source.is_current_thread and not self.done():
            raise LocalError(
                "a callback runs in the thread of its bus, where waiting for that bus would never end; use request() "
                "and send(wait=False) there, with callbacks of their own, or hand the work to another thread"
            )
        self._source.flush()
