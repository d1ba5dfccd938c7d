"""map, progress and scatter's watch, with requests that the test answers itself."""

from __future__ import annotations

import gc
import itertools
import sys
import types
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TimeoutErrors
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

import zmqbus
from zmqbus.client import fanout
from zmqbus.client.fanout import as_completed, map_over, progress_for, wait, watch
from zmqbus.errors import InvalidPayload, RemoteError, Timeout

if TYPE_CHECKING:
    from typing_extensions import assert_type

    def what_type_checkers_see(bus: zmqbus.Bus) -> None:
        """Never run: mypy holds each line against what the API says."""
        replies = bus.scatter(["auth", "pay"], "x")
        assert_type(bus.request("auth", "x"), zmqbus.Reply)
        assert_type(replies, list[zmqbus.Reply])
        assert_type(zmqbus.as_completed(replies, timeout=1), Iterator[zmqbus.Reply])
        for reply in zmqbus.as_completed({bus.request("@g", n): n for n in range(3)}):
            assert_type(reply, zmqbus.Reply)
            assert_type(reply.target, str)
            assert_type(reply.result(), zmqbus.Message)
        done, not_done = zmqbus.wait(replies, timeout=1)
        assert_type(done, set[zmqbus.Reply])
        assert_type(not_done, set[zmqbus.Reply])
        assert_type(zmqbus.wait(replies, return_when="FIRST_COMPLETED").done, set[zmqbus.Reply])
        # Any future will do, and stays what it is.
        assert_type(zmqbus.wait([bus.send("auth", "x", wait=False)]).not_done, set[Future[zmqbus.Receipt]])
        zmqbus.wait(replies, return_when="WHENEVER")  # type: ignore[arg-type]
        zmqbus.as_completed(["no future"])  # type: ignore[type-var]


FAILED = RemoteError("ValueError", "no", "Traceback …")


class Asker:
    """Takes requests; `answer` ends the oldest, or each is answered as it comes."""

    def __init__(self, *, at_once: bool = False, fails_on: Any = None) -> None:
        self.at_once = at_once
        self.fails_on = fails_on
        self.asked: list[Any] = []
        self.batches: list[int] = []
        self.deadlines: list[float | None] = []
        self.open: list[Future[Any]] = []
        self.all: list[Future[Any]] = []

    def __call__(self, items: list[Any], left_s: float | None) -> Any:
        if self.fails_on in items:
            raise InvalidPayload(f"{self.fails_on} cannot be sent")
        self.asked += items
        self.batches.append(len(items))
        self.deadlines.append(left_s)
        futures: list[Future[Any]] = [Future() for _ in items]
        self.all += futures
        if self.at_once:
            for item, future in zip(items, futures, strict=True):
                future.set_result(item * 10)
        else:
            self.open += futures
        return futures

    def answer(self, value: Any = "done") -> None:
        future = self.open.pop(0)
        if isinstance(value, Exception):
            future.set_exception(value)
        else:
            future.set_result(value)

    @property
    def withdrawn(self) -> int:
        return sum(future.cancelled() for future in self.all)


class Bar:
    def __init__(self) -> None:
        self.told: list[int] = []
        self.closed = 0

    def update(self, n: int) -> None:
        self.told.append(n)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> Bar:
    bar = Bar()
    monkeypatch.setattr(fanout, "progress_for", lambda wanted, total, what: bar)
    return bar


def results(mapped: map_over) -> list[Any]:
    return list(mapped)


# --- map


def test_the_answers_come_in_the_order_of_the_items():
    ask = Asker()
    mapped = map_over(ask, "abc", None)
    assert ask.asked == ["a", "b", "c"]
    for future, value in zip(reversed(ask.open), (3, 2, 1), strict=True):
        future.set_result(value)
    assert results(mapped) == [1, 2, 3]
    with pytest.raises(StopIteration):
        next(mapped)


def test_a_window_of_them_is_under_way_and_it_is_filled_in_parts():
    ask = Asker(at_once=True)
    mapped = map_over(ask, itertools.count(), None, window=16)
    assert ask.asked == list(range(16))
    for _ in range(1000):
        next(mapped)
        assert len(ask.asked) - ask.asked.index(0) <= 1000 + 16 + 16
    assert max(ask.batches) <= 16 and len(ask.batches) < 600  # by twos
    mapped.close()


def test_no_items_no_answers():
    assert results(map_over(Asker(), [], None)) == []


def test_non_iterable_is_an_error_without_side_effects():
    with pytest.raises(TypeError):
        map_over(Asker(), cast("Any", 7), None)
    gc.collect()  # and what was half made says nothing when it goes


def test_the_first_that_fails_raises_in_its_turn_and_the_rest_is_withdrawn(bar):
    ask = Asker()
    mapped = map_over(ask, range(5), None)
    ask.open[1].set_exception(FAILED)
    ask.open[0].set_result("first")
    assert cast("Any", next(mapped)) == "first"
    with pytest.raises(RemoteError):
        next(mapped)
    assert ask.withdrawn == 3
    assert bar.told == [1] and bar.closed == 1
    assert results(mapped) == []


def test_an_item_that_cannot_be_sent_raises_in_its_turn():
    ask = Asker(at_once=True, fails_on=3)
    mapped = map_over(ask, range(9), None)
    assert [cast("Any", next(mapped)) for _ in range(3)] == [0, 10, 20]
    with pytest.raises(InvalidPayload, match="3 cannot"):
        next(mapped)
    assert ask.asked == [0, 1, 2]


def test_items_that_raise_raise_in_their_turn():
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("no more")

    mapped = map_over(Asker(at_once=True), items(), None)
    assert [cast("Any", next(mapped)) for _ in range(2)] == [10, 20]
    with pytest.raises(KeyError):
        next(mapped)
    assert results(mapped) == []


def test_items_may_be_made_from_answers(monkeypatch):
    """Items that are slow to come do not hold back the answers that are there."""
    monkeypatch.setattr(fanout, "GATHER_S", -1.0)  # every item is slow
    got: list[Any] = [0]

    def items() -> Iterator[Any]:
        while len(got) < 20:
            yield got[-1] + 1

    for answer in map_over(Asker(at_once=True), items(), None):
        got.append(cast("Any", answer) // 10)
    assert got == list(range(20))


@pytest.mark.parametrize("leave", ["close", "with", "break", "forget", "interrupt"])
def test_leaving_withdraws_open_requests(leave, bar):
    ask = Asker()
    mapped = map_over(ask, itertools.count(), None, window=8)
    ask.answer()
    if leave == "close":
        next(mapped)
        mapped.close()
        mapped.close()
    elif leave == "with":
        with pytest.raises(KeyError), mapped:
            next(mapped)
            raise KeyError
    elif leave == "break":
        for _ in mapped:
            break
        del _
    elif leave == "forget":
        next(mapped)
    else:
        next(mapped)
        ask.open[0].set_exception(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            next(mapped)
    del mapped
    gc.collect()
    assert ask.withdrawn == len(ask.all) - (2 if leave == "interrupt" else 1)
    assert bar.closed == 1


def test_interrupt_while_items_are_made_withdraws_open_requests(monkeypatch):
    monkeypatch.setattr("zmqbus.client.fanout.time", SimpleNamespace(monotonic=lambda: 100.0))  # the items come fast

    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyboardInterrupt

    ask = Asker()
    with pytest.raises(KeyboardInterrupt):
        map_over(ask, items(), None)
    assert ask.asked == []  # they are gathered before they are asked for
    assert ask.withdrawn == 0


def test_the_deadline_is_that_of_all_of_them(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("zmqbus.client.fanout.time", SimpleNamespace(monotonic=lambda: now[0]))
    ask = Asker()
    mapped = map_over(ask, range(100), 5.0, window=2)
    assert ask.deadlines == [5.0]
    now[0] += 2
    ask.answer()
    next(mapped)
    ask.answer()
    next(mapped)
    assert ask.deadlines == [5.0, 3.0]
    now[0] += 4
    ask.answer()
    next(mapped)
    with pytest.raises(Timeout, match="longer timeout"):
        next(mapped)
    assert len(ask.asked) == 3


# --- progress


def test_lines_on_a_pipe(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("zmqbus.client.fanout.time", SimpleNamespace(monotonic=lambda: now[0]))
    progress = progress_for(True, 3, "map over @hash")
    progress.update(1)
    assert capsys.readouterr().err == ""
    now[0] += fanout.LINE_S
    progress.update(1)
    now[0] += 0.5
    progress.update(1)
    progress.close()
    assert capsys.readouterr().err == "map over @hash: 2 of 3 in 2.0 s\nmap over @hash: 3 of 3 in 2.5 s\n"


def test_lines_without_a_total(capsys):
    progress = progress_for(True, None, "map")
    progress.update(2)
    progress.close()
    assert capsys.readouterr().err.startswith("map: 2 in ")


def test_none_unless_it_is_wanted(capsys):
    progress = progress_for(False, 3, "map")
    progress.update(1)
    progress.close()
    assert capsys.readouterr() == ("", "")


class Terminal:
    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def test_a_bar_on_a_terminal_where_there_is_one(monkeypatch):
    made: list[dict[str, Any]] = []
    module = types.ModuleType("tqdm")

    def tqdm(**options: Any) -> Bar:
        made.append(options)
        return Bar()

    module.__dict__["tqdm"] = tqdm
    monkeypatch.setitem(sys.modules, "tqdm", module)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(progress_for(True, 5, "map"), Bar)
    assert made == [{"total": 5, "desc": "map"}]
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert isinstance(progress_for(True, 5, "map"), fanout._Lines)


def test_without_standard_error_there_are_lines_for_nobody(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    progress_for(True, 5, "map").update(1)


def test_map_tells_how_many_there_are_if_that_is_known(monkeypatch):
    told: list[tuple[bool, int | None, str]] = []

    def make(*args: Any) -> Bar:
        told.append(args)
        return Bar()

    monkeypatch.setattr(fanout, "progress_for", make)
    results(map_over(Asker(at_once=True), [1, 2], None, progress=True, what="a"))
    results(map_over(Asker(at_once=True), iter([1, 2]), None, what="b"))
    assert told == [(True, 2, "a"), (False, None, "b")]


def test_scatter_is_watched_to_its_end(bar):
    replies: list[Future[Any]] = [Future() for _ in range(3)]
    replies[0].set_result("there already")
    watch(cast("Any", replies), "scatter")
    assert bar.told == [1]
    replies[1].cancel()
    assert bar.closed == 0
    replies[2].set_exception(FAILED)
    assert bar.told == [1, 1, 1] and bar.closed == 1


# --- as_completed and wait: the standard library's


def test_futures_come_as_they_end():
    futures: list[Future[int]] = [Future() for _ in range(3)]
    futures[1].set_result(1)
    coming = as_completed(futures)
    assert next(coming) is futures[1]
    futures[2].set_exception(FAILED)
    assert next(coming) is futures[2]
    futures[0].cancel()
    futures[0].set_running_or_notify_cancel()
    assert list(coming) == [futures[0]]


def test_those_that_do_not_end_are_a_timeout():
    with pytest.raises(TimeoutErrors):
        list(as_completed([Future()], timeout=0.01))


def test_waiting_tells_those_that_ended_from_those_that_did_not():
    one: Future[int] = Future()
    two: Future[int] = Future()
    one.set_result(1)
    waited = wait([one, two], timeout=0)
    done, not_done = waited
    assert (done, not_done) == (waited.done, waited.not_done) == ({one}, {two})
    assert wait([one, two], return_when="FIRST_COMPLETED").done == {one}
    two.set_exception(FAILED)
    assert wait([one, two]) == ({one, two}, set())
