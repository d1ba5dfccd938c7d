"""Many requests: `map` with a bounded number under way, waits for futures, and progress."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent import futures as standard
from itertools import islice
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar

from zmqbus.client import arguments
from zmqbus.client.message import Message
from zmqbus.client.producer import Reply
from zmqbus.errors import InvalidArgument, Timeout, ZmqbusError
from zmqbus.text.display import sanitise

__all__ = ["DoneAndNotDone", "Progress", "as_completed", "map_over", "tell_item", "wait", "watch"]

_F = TypeVar("_F", bound="standard.Future[Any]")

#: Requests of one `map` under way: enough that no worker waits, few enough that a dead worker has little to hand back,
#: and that little has to be withdrawn when the iteration stops early.
WINDOW = 512
#: Send new requests when this part of the window is free, together,
REFILL = 1 / 8
#: unless the items take longer than this, s.
GATHER_S = 0.001
#: Seconds between two lines of progress without a bar.
LINE_S = 2.0


def as_completed(futures: Iterable[_F], timeout: float | None = None) -> Iterator[_F]:
    """Yields the futures as they end, each once. The standard library's function, which takes any futures, typed so
    that a type checker knows the class: of `scatter`, `Reply`s with their `target`.

    `timeout`: s from the first iteration; then `TimeoutError` is raised, and the others stay open.
    """
    timeout = arguments.patience_or_none(timeout)
    return standard.as_completed(arguments.futures(futures), timeout)  # type: ignore[return-value]


class DoneAndNotDone(tuple[set[_F], set[_F]]):
    """The result of `wait`: two sets, `done` and `not_done`."""

    __slots__ = ()

    @property
    def done(self) -> set[_F]:
        """Futures that have ended, with a result, an error or cancelled."""
        return self[0]

    @property
    def not_done(self) -> set[_F]:
        """Futures that are open."""
        return self[1]


def wait(
    futures: Iterable[_F],
    timeout: float | None = None,
    return_when: Literal["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"] = "ALL_COMPLETED",
) -> DoneAndNotDone[_F]:
    """Waits for all futures, the first, or the first that fails; `timeout` s at most. Does not raise their errors. The
    standard library's function, typed as `as_completed` is."""
    timeout = arguments.patience_or_none(timeout)
    if return_when not in ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"):
        raise InvalidArgument(
            f"return_when is ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION, not {arguments.shown(return_when)}"
        )
    done, not_done = standard.wait(arguments.futures(futures), timeout, return_when)
    return DoneAndNotDone((done, not_done))  # type: ignore[arg-type]


class Progress(Protocol):
    """A display of progress: a bar, or lines."""

    def update(self, n: int) -> object:
        """Counts `n` more as done."""

    def close(self) -> None:
        """Ends the display."""


class _Lines:
    """Progress as lines on standard error, one every two seconds: for pipes, logs, and without tqdm."""

    def __init__(self, total: int | None, what: str) -> None:
        self._total = total
        self._what = what
        self._done = 0
        self._began_s = self._told_s = time.monotonic()

    def update(self, n: int) -> None:
        self._done += n
        if time.monotonic() - self._told_s >= LINE_S:
            self._tell()

    def close(self) -> None:
        self._tell()

    def _tell(self) -> None:
        self._told_s = time.monotonic()
        of = f" of {self._total}" if self._total is not None else ""
        print(
            f"{sanitise(self._what)}: {self._done}{of} in {self._told_s - self._began_s:.1f} s",
            file=sys.stderr,
            flush=True,
        )


class _None:
    """No display."""

    def update(self, n: int) -> None:
        pass

    def close(self) -> None:
        pass


def progress_for(wanted: bool, total: int | None, what: str) -> Progress:
    """Returns a bar on a terminal if tqdm is installed (the extra `progress`), lines otherwise; nothing if not
    wanted."""
    if not wanted:
        return _None()
    if sys.stderr is not None and sys.stderr.isatty():
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            bar: Progress = tqdm(total=total, desc=what)
            return bar
    return _Lines(total, what)


def watch(replies: list[Reply], what: str) -> None:
    """Displays the progress of these requests as they end."""
    progress = progress_for(True, len(replies), what)
    left = len(replies)
    lock = threading.Lock()  # futures end in the thread that ends or cancels them

    def ended(_: object) -> None:
        nonlocal left
        with lock:
            left -= 1
            progress.update(1)
            if not left:
                progress.close()

    for reply in replies:
        reply.add_done_callback(ended)


def tell_item(error: BaseException, index: int, item: Any) -> None:
    """Adds the item, and its number, to an error of `map`: as attributes, and as a note in the traceback."""
    if isinstance(error, ZmqbusError):
        error.index, error.item = index, item
    if hasattr(error, "add_note"):  # from python 3.11 on
        error.add_note(f"of item {index} of map: {arguments.shown(item)}")


class map_over(Iterator[Message]):
    """Yields the answers to `items`, in their order, each requested with `ask`; withdraws open requests when it is
    closed, left by an exception, or collected."""

    def __init__(
        self,
        ask: Callable[[list[Any], float | None], list[Reply]],
        items: Iterable[Any],
        timeout_s: float | None,
        *,
        window: int = WINDOW,
        progress: bool = False,
        what: str = "map",
    ) -> None:
        self._open: deque[Reply] = deque()
        self._asked: deque[Any] = deque()  # the items of those, and of one behind them that could not be sent
        self._index = 0  # of the first of them
        self._progress: Progress = _None()
        self._ask = ask
        self._items = iter(items)
        self._failure: Exception | None = None  # why no more items are sent; raised when its turn comes
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._window = window
        self._slow = False  # the items come slowly
        self._progress = progress_for(progress, len(items) if isinstance(items, Sized) else None, what)
        self._fill()

    def __next__(self) -> Message:
        try:
            # The source of the items may wait for an answer.
            if not (self._slow and self._open and self._open[0].done()):
                self._fill()
            if not self._open:
                raise self._failure or StopIteration
            message = self._open[0].result()
            self._open.popleft()
            self._asked.popleft()
            self._index += 1
            self._progress.update(1)
        except StopIteration:
            self.close()
            raise
        except BaseException as error:
            if self._asked and isinstance(error, Exception):
                tell_item(error, self._index, self._asked[0])
            self.close()
            raise
        return message

    def __enter__(self) -> map_over:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Withdraws the open requests. Idempotent."""
        self._items = iter(())
        self._failure = None
        self._asked.clear()
        while self._open:
            self._open.popleft().cancel()
        self._progress.close()
        self._progress = _None()

    def _fill(self) -> None:
        """Sends more requests, together, when a good part of the window is free: that costs less than one by one."""
        free = self._window - len(self._open)
        if free < self._window * REFILL:
            return
        while free > 0 and self._failure is None:
            left_s = None if self._deadline_s is None else self._deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0 and self._open:
                return  # the open requests report the deadline
            items: list[Any] = []
            patience_s = time.monotonic() + GATHER_S
            try:
                for item in islice(self._items, free):
                    items.append(item)
                    self._slow = time.monotonic() > patience_s
                    if self._slow:
                        break
            except Exception as error:
                self._failure = error  # the items before it are sent
            if not items:
                return
            if left_s is not None and left_s <= 0:
                self._failure = Timeout(
                    "the deadline has passed before all items were handed out; give map a longer timeout"
                )
                return
            try:
                self._open += self._ask(items, left_s)
                self._asked += items
            except Exception:  # of one of them: those before it are sent, those behind it never
                self._ask_each(items, left_s)
            free -= len(items)
            if self._slow and self._open and self._open[0].done():
                return

    def _ask_each(self, items: list[Any], left_s: float | None) -> None:
        try:
            for item in items:
                self._asked.append(item)
                self._open += self._ask([item], left_s)
        except Exception as error:
            self._failure = error
