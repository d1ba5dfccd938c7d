"""Futures that make their condition only for a waiter, as the standard library's waits and callbacks use them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ALL_COMPLETED, FIRST_EXCEPTION, CancelledError, Future, as_completed, wait
from typing import Any

import pytest

from zmqbus import errors
from zmqbus.client import light_future
from zmqbus.client.light_future import LightFuture

#: Far over what any of this takes.
PATIENCE_S = 30.0


def until(condition: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end_s
        time.sleep(0.002)
    return value


class Played:
    """The connection that ends the futures."""

    is_current_thread = False
    flushed = 0

    def flush(self) -> None:
        self.flushed += 1


@pytest.fixture
def outcome() -> LightFuture[Any]:
    return LightFuture(Played())


def test_a_future_ends_once(outcome):
    outcome.finish("first")
    outcome.finish("second")
    outcome.finish(errors.NotConnected("third"))
    assert not outcome.cancel()
    assert outcome.result() == "first" and outcome.exception() is None


def test_an_error_is_raised(outcome):
    outcome.finish(errors.UnknownPeer("no such session"))
    with pytest.raises(errors.UnknownPeer):
        outcome.result()
    assert isinstance(outcome.exception(), errors.UnknownPeer)


def test_the_standard_library_counts_a_cancelled_future_as_done(outcome):
    assert outcome.cancel() and outcome.cancel()
    outcome.finish("too late")
    assert wait([outcome], PATIENCE_S, ALL_COMPLETED).done == {outcome}
    assert list(as_completed([outcome], PATIENCE_S)) == [outcome]
    with pytest.raises(CancelledError):
        outcome.result()


def test_a_cancellation_wakes_a_waiter(outcome):
    waiting = threading.Thread(target=wait, args=([outcome],), daemon=True)
    waiting.start()
    until(lambda: outcome._waiters)
    outcome.cancel()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()


def test_concurrent_ends_and_cancellations_are_one_end():
    for _ in range(300):
        outcome: LightFuture[Any] = LightFuture(Played())
        told: list[Future[Any]] = []
        outcome.add_done_callback(told.append)
        barrier = threading.Barrier(3)
        failures: list[BaseException] = []

        def act(how: Callable[[], object], barrier: Any = barrier, failures: Any = failures) -> None:
            barrier.wait()
            try:
                how()
            except BaseException as error:
                failures.append(error)

        ways = (outcome.cancel, outcome.cancel, lambda outcome=outcome: outcome.finish("x"))
        threads = [threading.Thread(target=act, args=(way,)) for way in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (failures, told) == ([], [outcome])
        assert wait([outcome], PATIENCE_S).done


def test_waiting_in_the_io_thread_is_an_error(outcome):
    outcome._source.is_current_thread = True
    for ask in (outcome.result, outcome.exception):
        with pytest.raises(errors.LocalError, match="would never end"):
            ask()
    outcome.finish("there")
    assert outcome.result() == "there"


def test_attributes_are_those_of_a_future(outcome):
    """`LightFuture.__init__` does the work of `Future.__init__`: another python may give that more to do."""
    made_late = {"_condition", "_waiters", "_done_callbacks"}
    for name, value in vars(Future()).items():
        assert name in made_late or getattr(outcome, name) == value, name
    assert outcome._watched is None
    assert (outcome._waiters, outcome._done_callbacks) == ([], [])
    for name in made_late:
        assert getattr(outcome, name) is getattr(outcome, name)
    with pytest.raises(AttributeError, match="no attribute 'condition'"):
        outcome.condition  # noqa: B018


def test_without_a_waiter_there_is_no_condition(outcome):
    outcome.finish("x")
    assert outcome.result() == "x"
    assert outcome._watched is None


def test_a_waiter_has_the_messages_flushed(outcome):
    with pytest.raises(TimeoutError):
        outcome.result(0)
    with pytest.raises(TimeoutError):
        outcome.exception(0)
    assert outcome._source.flushed == 2
    outcome.finish("x")
    assert outcome.result() == "x" and outcome._source.flushed == 2


@pytest.mark.parametrize("how", ["result", "exception", "wait", "as_completed", "callback"])
def test_a_wait_that_races_the_end(how):
    """The waiter gets the outcome, whichever is first."""
    for number in range(200):
        outcome: LightFuture[int] = LightFuture(Played())
        barrier = threading.Barrier(2)
        heard: list[Any] = []

        def listen(outcome: Any = outcome, barrier: Any = barrier, heard: Any = heard) -> None:
            barrier.wait()
            match how:
                case "result":
                    heard.append(outcome.result(PATIENCE_S))
                case "exception":
                    assert outcome.exception(PATIENCE_S) is None
                    heard.append(outcome.result())
                case "wait":
                    heard += [one.result() for one in wait([outcome], PATIENCE_S).done]
                case "as_completed":
                    heard += [one.result() for one in as_completed([outcome], PATIENCE_S)]
                case _:
                    outcome.add_done_callback(lambda one: heard.append(one.result()))

        listening = threading.Thread(target=listen)
        listening.start()
        barrier.wait()
        outcome.finish(number)
        listening.join(PATIENCE_S)
        assert heard == [number]


def test_concurrent_waiters_share_one_condition():
    """Otherwise some of them would wait for a condition that is never notified."""
    for _ in range(300):
        outcome: LightFuture[int] = LightFuture(Played())
        barrier = threading.Barrier(4)
        seen: list[Any] = []

        def look(outcome: Any = outcome, barrier: Any = barrier, seen: Any = seen) -> None:
            barrier.wait()
            seen.append((outcome._condition, outcome._waiters, outcome._done_callbacks))

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({tuple(map(id, one)) for one in seen}) == 1


def test_waiting_for_the_first_error(outcome):
    others: list[LightFuture[Any]] = [LightFuture(Played()) for _ in range(3)]
    result: list[Any] = []
    waiting = threading.Thread(
        target=lambda: result.append(wait([outcome, *others], PATIENCE_S, FIRST_EXCEPTION)), daemon=True
    )
    waiting.start()
    until(lambda: outcome._waiters)
    outcome.finish("fine")
    others[0].finish(errors.UnknownPeer("no such session"))
    waiting.join(PATIENCE_S)
    assert result[0].done == {outcome, others[0]}


def test_future_that_ends_while_it_is_watched_is_yielded_once(monkeypatch):
    """`as_completed` puts its waiters on all futures: one that it found finished must not be reported again."""
    future: LightFuture[str] = LightFuture(Played())
    seen_by_end = threading.Event()
    watching = threading.Event()

    class Making:
        """Lets the waiter come between the end's look for a condition and its state."""

        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __enter__(self) -> None:
            if threading.current_thread() is ending:
                seen_by_end.set()
                watching.wait(90)
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()

    monkeypatch.setattr(light_future, "_MAKING", Making())
    ending = threading.Thread(target=future.finish, args=("outcome",))
    ending.start()
    assert seen_by_end.wait(90)
    found = as_completed([future], timeout=90)
    assert future._condition is not None  # it is watched from here on
    watching.set()
    assert [one.result() for one in found] == ["outcome"]
    ending.join()


def test_many_futures_that_end_while_they_are_watched():
    for _ in range(100):
        futures: list[LightFuture[str]] = [LightFuture(Played()) for _ in range(50)]
        ending = threading.Thread(target=lambda futures=futures: [one.finish("x") for one in futures])
        ending.start()
        assert len([*as_completed(futures, timeout=90)]) == 50
        ending.join()
