"""`serve`: handlers of every kind, their errors and ends, and the credit offered to the broker."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import pytest

from zmqbus import errors
from zmqbus.client import worker as worker_module
from zmqbus.client.bus import Bus
from zmqbus.client.message import Message
from zmqbus.client.worker import Worker, check_handler

#: Each is short, and has a broker of its own; together they take half a minute.
pytestmark = pytest.mark.slow

#: Far over what any of this takes.
PATIENCE_S = 90.0

Connect = Callable[..., Bus]
Figures = Callable[[], dict[str, Any]]


class ServingThread:
    """One that serves in a thread; `ended` holds what `serve` raised, or None."""

    def __init__(self, bus: Bus, handler: Any, **options: Any) -> None:
        self.bus = bus
        self.stop = threading.Event()
        self.ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(handler, options))
        self._thread.start()

    def _run(self, handler: Any, options: dict[str, Any]) -> None:
        try:
            self.bus.serve(handler, stop=self.stop, **options)
        except BaseException as error:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    def join(self) -> None:
        self.stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


StartWorker = Callable[..., ServingThread]


@pytest.fixture
def serve(connect: Connect) -> Iterator[StartWorker]:
    """`serve(handler, concurrency=…, group="g")` starts a worker."""
    started: list[ServingThread] = []

    def start(handler: Any, *, group: str = "g", bus: Bus | None = None, **options: Any) -> ServingThread:
        started.append(ServingThread(bus or connect(group=group), handler, **options))
        return started[-1]

    yield start
    for worker in started:
        worker.join()


def double(message: Message) -> Any:
    return message.body * 2


async def double_soon(message: Message) -> Any:
    await asyncio.sleep(0)
    return message.body * 2


class Doubler:
    async def __call__(self, message: Message) -> Any:
        return message.body * 2


WAYS: list[tuple[Any, int]] = [
    (double, 1),
    (double, 4),
    (double_soon, 1),
    (double_soon, 4),
    (Doubler(), 2),
    (functools.partial(double_soon), 2),
]
IDS = ["here", "threads", "coroutine", "coroutines", "object", "partial"]


@pytest.mark.parametrize(("handler", "concurrency"), WAYS, ids=IDS)
def test_requests_are_answered(connect, serve, handler, concurrency):
    serve(handler, concurrency=concurrency)
    bus = connect()
    assert [answer.body for answer in bus.map("@g", range(100), timeout=PATIENCE_S)] == list(range(0, 200, 2))


@pytest.mark.parametrize(("handler", "concurrency"), WAYS[:4], ids=IDS[:4])
def test_messages_are_answered_too(connect, serve, handler, concurrency):
    serve(handler, bus=connect("bob"), concurrency=concurrency)
    assert connect().ask("bob", "ab", timeout=PATIENCE_S).body == "abab"


def test_a_message_is_only_replied_to_with_something(connect, serve):
    handled = threading.Event()
    serve(lambda message: handled.set(), bus=connect("bob"))
    alice = connect("alice")
    alice.send("bob", "fyi", wait=False)
    assert handled.wait(PATIENCE_S)
    with pytest.raises(errors.Timeout):
        alice.ask("bob", "no answer", timeout=0.1)
    assert alice.next_message(0.0) is None


def test_the_handler_gets_the_request(connect, serve):
    got: list[Message] = []
    serve(got.append, group="g")
    bus = connect("alice")
    reply = bus.request("@g", {"a": 1}, timeout=PATIENCE_S)
    assert reply.result().body is None
    [message] = got
    assert (message.body, message.sender, message.sender_id, message.to) == ({"a": 1}, "alice", bus.session_id, "@g")
    assert message.msg_id == reply.msg_id


@pytest.mark.parametrize("size", [10, 100_000, 9 * 1024 * 1024])
def test_large_requests_and_answers(connect, serve, size):
    import numpy

    serve(lambda message: message.body + 1)
    answer = connect().ask("@g", numpy.zeros(size, "u1"), timeout=PATIENCE_S)
    assert answer.body.nbytes == size and answer.body.all()


# --- what goes wrong


def fails(message: Message) -> None:
    raise KeyError(message.body)


async def fails_soon(message: Message) -> None:
    raise KeyError(message.body)


async def is_cancelled(message: Message) -> None:
    raise asyncio.CancelledError(message.body)


@pytest.mark.parametrize(
    ("handler", "concurrency", "kind", "text"),
    [
        (fails, 1, "KeyError", "'x'"),
        (fails, 3, "KeyError", "'x'"),
        (fails_soon, 1, "KeyError", "'x'"),
        (is_cancelled, 1, "CancelledError", "x"),
        (lambda message: object(), 1, "InvalidPayload", "a value of type object cannot be sent"),
        (lambda message: ValueError("returned"), 1, "ValueError", "returned"),
        (lambda message: "x" * (17 * 1024 * 1024), 1, "TextTooLong", ""),
    ],
    ids=["here", "threads", "coroutine", "cancelled", "unserialisable", "returned", "too long"],
)
@pytest.mark.parametrize("to", ["group", "session"])
def test_what_a_handler_raises_reaches_the_caller_with_its_traceback(
    connect, serve, handler, concurrency, kind, text, to
):
    worker = serve(handler, bus=connect("bob", group="g"), concurrency=concurrency)
    bus = connect()
    target = "@g" if to == "group" else "bob"
    with pytest.raises(errors.RemoteError) as caught:
        bus.ask(target, "x", timeout=PATIENCE_S)
    assert caught.value.kind == kind and text in caught.value.text
    assert caught.value.kind in caught.value.traceback
    assert not worker.ended.done()  # it goes on


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit("an exception with code of its own")


class Evil(dict[str, int]):
    def __iter__(self) -> Any:
        raise GeneratorExit

    items = keys = __iter__


def returns(value: Any) -> Any:
    return lambda message: value


@pytest.mark.parametrize("concurrency", [1, 3], ids=["here", "threads"])
@pytest.mark.parametrize("soon", [False, True], ids=["function", "coroutine"])
@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("odd"), Mute(), StopIteration()]
)
def test_no_exception_of_a_handler_ends_its_worker(connect, serve, concurrency, soon, error):
    """Whatever it is: another worker would end of the same request."""

    def leave(message: Message) -> str:
        if message.body == "leave":
            raise error
        return "still here"

    async def leave_soon(message: Message) -> str:
        return leave(message)

    leaving = serve(leave_soon if soon else leave, concurrency=concurrency)
    bus = connect()
    with pytest.raises(errors.RemoteError) as caught:
        bus.ask("@g", "leave", timeout=PATIENCE_S)
    # A coroutine cannot raise StopIteration: Python makes another error of it.
    assert caught.value.kind in (type(error).__name__, "RuntimeError")
    assert type(error).__name__ in caught.value.traceback
    assert bus.ask("@g", "go on", timeout=PATIENCE_S).body == "still here"
    assert not leaving.ended.done()


@pytest.mark.parametrize("value", [object(), Evil(a=1), [SystemExit(1)], {1: lambda: 0}, SystemExit(4)])
def test_no_value_of_a_handler_ends_its_worker(connect, serve, value):
    leaving = serve(returns(value))
    with pytest.raises(errors.RemoteError):
        connect().ask("@g", "x", timeout=PATIENCE_S)
    assert not leaving.ended.done()


def test_a_bus_that_is_closed_under_a_handler_ends_serve_and_the_request_goes_to_another(connect, serve):
    entered, go_on = threading.Event(), threading.Event()

    def hang(message: Message) -> Any:
        entered.set()
        assert go_on.wait(PATIENCE_S)
        return "too late"

    hanging = serve(hang)
    reply = connect().request("@g", 21, timeout=PATIENCE_S)
    assert entered.wait(PATIENCE_S)
    serve(double)
    hanging.bus.close()
    assert reply.result().body == 42
    go_on.set()
    assert hanging.ended.result(PATIENCE_S) is None


def test_a_bus_that_is_closed_under_a_handler_of_a_message_ends_serve(connect, serve):
    bob = connect("bob")

    def close(message: Message) -> str:
        bob.close()
        return "who hears it?"

    worker = serve(close, bus=bob)
    connect().request("bob", "?")
    assert worker.ended.result(PATIENCE_S) is None


@pytest.mark.parametrize(("handler", "concurrency"), WAYS[:4], ids=IDS[:4])
def test_stop_ends_it_when_what_was_begun_is_done(connect, serve, handler, concurrency):
    entered, go_on = threading.Event(), threading.Event()

    def begin(message: Message) -> Any:
        entered.set()
        assert go_on.wait(PATIENCE_S)
        return message.body * 2

    async def begin_soon(message: Message) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, begin, message)

    worker = serve(begin_soon if asyncio.iscoroutinefunction(handler) else begin, concurrency=concurrency)
    reply = connect().request("@g", 21, timeout=PATIENCE_S)
    assert entered.wait(PATIENCE_S)
    worker.stop.set()
    go_on.set()
    assert worker.ended.result(PATIENCE_S) is None
    assert reply.result().body == 42


def test_it_takes_no_more_when_it_has_stopped(connect, serve, figures: Figures):
    worker = serve(double)
    bus = connect()
    assert bus.ask("@g", 1, timeout=PATIENCE_S).body == 2
    worker.join()
    reply = bus.request("@g", 2)
    bus.sessions()
    assert figures()["requests_waiting"] == 1 and not reply.done()
    again = ServingThread(worker.bus, double)
    assert reply.result(PATIENCE_S).body == 4
    again.join()


@pytest.mark.parametrize("concurrency", [1, 3], ids=["here", "threads"])
@pytest.mark.parametrize("soon", [False, True], ids=["function", "coroutine"])
def test_what_was_handed_over_before_it_stopped_is_answered(connect, serve, figures: Figures, concurrency, soon):
    """Nobody else gets it while this program is connected."""
    entered, go_on = threading.Event(), threading.Event()

    def handler(message: Message) -> Any:
        if message.body == "wait":
            entered.set()
            assert go_on.wait(PATIENCE_S)
        return message.body

    async def handler_soon(message: Message) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, handler, message)

    worker = serve(handler_soon if soon else handler, concurrency=concurrency)
    bus = connect()
    list(bus.map("@g", range(200), timeout=PATIENCE_S))  # it takes some ahead from then on
    waiting = [bus.request("@g", "wait", timeout=PATIENCE_S) for _ in range(concurrency)]
    assert entered.wait(PATIENCE_S)
    others = [bus.request("@g", number) for number in range(100)]
    bus.sessions()
    held = max(0, figures()["requests_in_hand"] - concurrency)
    worker.stop.set()
    go_on.set()
    assert worker.ended.result(PATIENCE_S) is None
    assert [reply.result().body for reply in waiting] == ["wait"] * concurrency

    def accounted_for() -> bool:
        now = figures()
        return now["requests_in_hand"] == 0 and now["requests_waiting"] + sum(one.done() for one in others) == 100

    end_s = time.monotonic() + PATIENCE_S
    while not accounted_for():
        assert time.monotonic() < end_s
    assert sum(one.done() for one in others) >= held


def test_a_hanging_handler_ends_the_request_by_its_deadline_and_the_others_go_on(connect, serve):
    go_on = threading.Event()

    def handler(message: Message) -> Any:
        if message.body == "hang":
            assert go_on.wait(PATIENCE_S)
        return message.body

    serve(handler, concurrency=2)
    bus = connect()
    hanging = bus.request("@g", "hang", timeout=0.5)
    assert bus.ask("@g", "go", timeout=PATIENCE_S).body == "go"
    with pytest.raises(errors.Timeout, match="@g"):
        hanging.result()
    go_on.set()
    assert bus.ask("@g", "again", timeout=PATIENCE_S).body == "again"


def test_what_was_withdrawn_before_its_turn_is_not_begun(connect, serve, figures: Figures):
    entered, go_on = threading.Event(), threading.Event()
    seen: list[Any] = []

    def handler(message: Message) -> None:
        seen.append(message.body)
        entered.set()
        assert go_on.wait(PATIENCE_S)

    serve(handler)
    bus = connect()
    first = bus.request("@g", "first")
    assert entered.wait(PATIENCE_S)
    others = [bus.request("@g", number) for number in range(10)]
    for reply in others:
        reply.cancel()
    bus.sessions()
    end_s = time.monotonic() + PATIENCE_S
    while figures()["requests_waiting"]:
        assert time.monotonic() < end_s
    go_on.set()
    first.result(PATIENCE_S)
    assert bus.ask("@g", "last", timeout=PATIENCE_S).body is None
    assert seen == ["first", "last"]


def test_handlers_run_at_the_same_time(connect, serve):
    together = threading.Barrier(4)

    def handler(message: Message) -> int:
        together.wait(PATIENCE_S)
        return threading.get_ident()

    serve(handler, concurrency=4)
    replies = [connect().request("@g", None, timeout=PATIENCE_S) for _ in range(4)]
    assert len({reply.result().body for reply in replies}) == 4


def test_coroutines_run_at_the_same_time(connect, serve):
    waiting: list[asyncio.Event] = []

    async def handler(message: Message) -> int:
        event = asyncio.Event()
        waiting.append(event)
        if len(waiting) == 4:
            for one in waiting:
                one.set()
        await event.wait()
        return len(waiting)

    serve(handler, concurrency=4)
    bus = connect()
    replies = [bus.request("@g", None, timeout=PATIENCE_S) for _ in range(4)]
    assert [reply.result().body for reply in replies] == [4] * 4


def test_a_handler_may_ask_others_over_its_own_bus(connect, serve):
    outer = connect(group="outer")
    serve(double, group="inner")
    serve(lambda message: outer.ask("@inner", message.body, timeout=PATIENCE_S).body + 1, bus=outer)
    assert connect().ask("@outer", 10, timeout=PATIENCE_S).body == 21


def test_coroutine_handlers_are_served_from_within_an_event_loop_too(connect):
    """As in a notebook, where a cell runs in one."""
    worker, bus = connect(group="g"), connect()
    stop = threading.Event()

    async def cell() -> None:
        worker.serve(double_soon, stop=stop)

    reply = bus.request("@g", 21, timeout=PATIENCE_S)
    reply.add_done_callback(lambda _: stop.set())
    asyncio.run(cell())
    assert reply.result().body == 42


def test_workers_share_what_there_is(connect, serve):
    together = threading.Barrier(3)

    def handler(message: Message) -> int:
        together.wait(PATIENCE_S)  # nobody goes on before all three have something to do
        return threading.get_ident()

    for _ in range(3):
        serve(handler)
    answers = [answer.body for answer in connect().map("@g", range(3), timeout=PATIENCE_S)]
    assert len(set(answers)) == 3


def test_a_manual_message_is_acknowledged_when_its_handler_is_done(connect, serve):
    entered, go_on = threading.Event(), threading.Event()

    def handler(message: Message) -> None:
        entered.set()
        assert go_on.wait(PATIENCE_S)

    bob = connect("bob", ack="manual")
    serve(handler, bus=bob)
    future = connect().send("bob", "hi", wait=False)
    assert entered.wait(PATIENCE_S)
    assert bob._consumer._tickets and not (future.done() and future.result().state == "delivered")
    go_on.set()
    assert wait([future], PATIENCE_S).done
    end_s = time.monotonic() + PATIENCE_S
    while bob._consumer._tickets:
        assert time.monotonic() < end_s


# --- credit


class PlayedReceiver:
    def __init__(self) -> None:
        self.offers: list[int] = []

    def offer(self, credit: int) -> None:
        self.offers.append(credit)


@pytest.mark.parametrize(("took_s", "offer"), [(1.0, 2), (0.001, 12), (0.000001, 2 + worker_module.MAX_AHEAD)])
def test_the_offer_follows_what_handlers_take(took_s, offer):
    consumer: Any = PlayedReceiver()
    serving = Worker(consumer, consumer, double, 2, "log")
    serving._offer(2)
    for _ in range(200):
        serving._measured(took_s)
    assert offer / worker_module.STEP < consumer.offers[-1] < offer * worker_module.STEP
    assert len(consumer.offers) < 10  # it is not changed with every breath
    assert "credit" in repr(serving)


@pytest.mark.parametrize("handler", [None, "double", 7])
def test_invalid_handlers(handler):
    with pytest.raises(TypeError, match="takes a Message"):
        check_handler(handler, 1)


def test_concurrency_is_at_least_one(connect):
    with pytest.raises(ValueError, match="at least 1"):
        connect(group="g").serve(double, concurrency=0)


def test_a_guest_cannot_serve(connect):
    with pytest.raises(errors.NotConnected, match="session of its own"):
        connect().serve(double)
