"""The thread, the lock, and what must not happen to either; over a transport that the test plays."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import pytest

from zmqbus.client import core
from zmqbus.client import io_thread as io_thread_module
from zmqbus.client.io_thread import GATHER, IoThread
from zmqbus.errors import BrokerUnavailable, ForkedBus, NotConnected, PortHeld, ZmqbusError
from zmqbus.wire import verbs

#: Far over what any of this takes.
PATIENCE_S = 90.0
WELCOMED = core.Welcomed(verbs.Welcome(1, "0", "epoch", "sid", "auth", "lease", 1, 1, 0, 0))
PONG = core.Renamed("pong")


class PlayedTransport:
    """A transport whose broker is the test: input of `put` comes once, edge-triggered as ZeroMQ's is."""

    def __init__(self) -> None:
        self.core = core.ClientCore(core.Persona(verbs.Role.PROGRAM, name="auth"), "0")
        self.patient = False
        self.in_: list[Any] = [[WELCOMED]]
        self.said: list[core.Effect] = []
        self.tick_s = 4.0
        self.closed = 0
        self.opening: Exception | None = None
        self._lock = threading.Lock()
        self._reader, self._writer = os.pipe()
        self._descriptors = (self._reader,)
        os.set_blocking(self._reader, False)

    def put(self, *effects: Any) -> None:
        with self._lock:  # or it is dealt with, and the transport closed, between the two
            self.in_.append(list(effects))
            os.write(self._writer, b"\0")

    def open(self) -> None:
        if self.opening is not None:
            raise self.opening

    def pump(self, timeout_s: float | None) -> list[core.Effect]:
        return self.turn(self.descriptors())

    def turn(self, ready: Collection[int]) -> list[core.Effect]:
        if self._reader not in ready:
            return []
        # Looking clears the edge, as it does in ZeroMQ: who looked has to go on until nothing is left.
        with self._lock:
            try:
                os.read(self._reader, 4096)
            except BlockingIOError:
                pass
            if not self.in_:
                return []
            found = self.in_.pop(0)
        if isinstance(found[0], Exception):
            raise found[0]
        return found

    def overlooked(self) -> tuple[int, ...]:
        return self.descriptors() if self.in_ else ()

    def perform(self, effects: list[core.Effect]) -> list[core.Effect]:
        self.said += effects
        return []

    def descriptors(self) -> tuple[int, ...]:
        return self._descriptors

    def wait_s(self) -> float:
        return self.tick_s

    def close(self) -> None:
        self.closed += 1
        os.close(self._reader)
        os.close(self._writer)


class Application:
    """Notes its calls, and their threads."""

    def __init__(self) -> None:
        self.io: IoThread
        self.dealt: list[core.Effect] = []
        self.acts: list[Callable[[], None]] = []
        self.ended_with: list[ZmqbusError] = []
        self.ended_in: list[threading.Thread] = []
        self.over = threading.Event()
        self.due: float | None = None
        self.rung = threading.Event()
        self.to_say: list[core.Effect] = []

    def on_effects(self, effects: Sequence[core.Effect]) -> None:
        for effect in effects:
            self.dealt.append(effect)
            if self.acts:
                self.io.call_later(self.acts.pop(0))

    def drain(self, client: core.ClientCore) -> list[core.Effect]:
        said, self.to_say = self.to_say, []
        return said

    def deadline_s(self) -> float | None:
        return self.due

    def on_deadline(self) -> None:
        self.due = None
        self.rung.set()

    def on_end(self, error: ZmqbusError) -> None:
        self.ended_with.append(error)
        self.ended_in.append(threading.current_thread())
        self.over.set()


@pytest.fixture
def transport() -> PlayedTransport:
    return PlayedTransport()


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def io(transport: PlayedTransport, application: Application) -> Iterator[IoThread]:
    io = application.io = IoThread(cast("Any", transport), application)
    yield io
    io.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("zmqbus")]
    assert transport.closed <= 1


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What was reported as raised in a thread."""
    found: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: found.append(args.exc_value))
    return found


def transmit(text: str) -> core.Transmit:
    return core.Transmit(verbs.Status(text))


# --- life


def test_it_opens_and_closes(io, transport, application):
    assert io.open() == WELCOMED
    assert transport.patient
    assert [thread.name for thread in threading.enumerate() if "zmqbus" in thread.name] == ["zmqbus auth"]
    io.close()
    io.close()
    assert transport.closed == 1
    assert [type(error) for error in application.ended_with] == [NotConnected]
    with pytest.raises(NotConnected, match="open another"):
        io.execute()
    assert repr(io).endswith(", closed>")


def test_what_keeps_it_from_opening_is_raised_and_nothing_is_left(io, transport, application):
    transport.opening = BrokerUnavailable("no room")
    with pytest.raises(BrokerUnavailable):
        io.open()
    assert transport.closed == 1
    assert application.ended_with == []


def test_a_refusal_at_the_door_is_raised(io, transport):
    transport.in_ = [[core.Closed(PortHeld(1))]]
    with pytest.raises(PortHeld):
        io.open()
    assert transport.closed == 1


def test_gathered_messages_are_sent_before_the_end(io, transport, application):
    io.open()
    application.to_say = [transmit("last words")]
    io.close()
    assert transmit("last words") in transport.said


def test_an_unexpected_end_is_reported_once_and_raised_by_later_calls(io, transport, application):
    io.open()
    transport.put(core.Closed(core.Displaced("process 7 has taken this session over")))
    assert application.over.wait(PATIENCE_S)
    with pytest.raises(core.Displaced, match="process 7"):
        io.execute()
    io.close()  # joins the thread
    assert transport.closed == 1
    assert [type(error) for error in application.ended_with] == [core.Displaced]


def test_a_session_that_a_command_has_disconnected(io, transport, application):
    io.open()
    transport.put(core.Closed(None))
    assert application.over.wait(PATIENCE_S)
    with pytest.raises(NotConnected, match="disconnected by a command"):
        io.check()


def test_the_io_thread_reports_an_end_that_another_thread_found(io, transport, application):
    io.open()
    transport.in_.append([core.Closed(None)])  # no edge: the next who looks finds it
    with suppress(ZmqbusError):  # the thread may be the first
        io.execute()
    assert application.over.wait(PATIENCE_S)
    assert application.ended_in[0] is not threading.current_thread()


@pytest.mark.parametrize("where", ["transport", "on_effects", "on_deadline"])
def test_a_fault_of_its_own_is_an_end_like_any_other(io, transport, application, monkeypatch, where):
    """A bug in this package must not leave threads waiting for ever."""

    def fail(*_: object) -> Any:
        raise ZeroDivisionError("mistake")

    io.open()
    if where == "transport":
        transport.put(ZeroDivisionError("mistake"))
    elif where == "on_effects":
        monkeypatch.setattr(application, "on_effects", fail)
        transport.put(PONG)
    else:
        monkeypatch.setattr(application, "on_deadline", fail)
        application.due = 0.0
        io.wake_by(0.0)
    assert application.over.wait(PATIENCE_S)
    with pytest.raises(ZmqbusError, match=r"ZeroDivisionError: mistake.*connect again"):
        io.check()
    assert isinstance(application.ended_with[0].__cause__, ZeroDivisionError)


def test_a_fault_found_by_a_caller_is_an_end_too(io, transport, application):
    io.open()
    transport.in_.append([ZeroDivisionError("mistake")])
    with suppress(ZmqbusError):  # the thread may be the first to look
        io.execute()
    assert application.over.wait(PATIENCE_S)


# --- speaking


def test_execute_sends_at_once_with_all_that_the_application_can_send(io, transport, application):
    io.open()
    application.to_say = [transmit("b")]
    io.execute(lambda _: [transmit("a")])
    assert transport.said == [transmit("a"), transmit("b")]


def test_errors_of_execute_go_to_the_caller(io, application):
    io.open()

    def fail(_: core.ClientCore) -> list[core.Effect]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        io.execute(fail)
    io.execute()
    assert not application.over.is_set()


def test_a_sending_thread_handles_the_input_that_has_come(io, transport, application):
    io.open()
    transport.in_ += [[PONG]] * 3
    io.execute()
    assert application.dealt == [PONG] * 3


def test_more_than_one_turn_is_left_to_the_thread(io, transport, application):
    io.open()
    transport.in_ += [[PONG]] * 1000  # no edge
    io.execute()
    wait_until(lambda: len(application.dealt) == 1000)


def test_what_comes_wakes_the_thread(io, transport, application):
    def seen(count: int) -> bool:
        return len(application.dealt) == count

    io.open()
    for number in range(100):
        transport.put(PONG)
        wait_until(partial(seen, number + 1))


def test_something_that_comes_during_the_last_look_of_a_tick_is_seen(io, transport, application):
    """What goes out by the clock may swallow the edge; who sent it has to look once more."""
    turn = transport.turn

    def tick(ready: Collection[int]) -> list[core.Effect]:
        if transport.tick_s <= 0:
            transport.tick_s = 4.0
            transport.in_.append([PONG])  # swallowed: no edge
            return []
        return turn(ready)

    transport.turn = tick
    io.open()
    transport.tick_s = 0.0
    io.wake_by(0.0)
    wait_until(lambda: application.dealt == [PONG])


def test_many_threads_at_once(io, transport, application):
    io.open()

    def send(number: int) -> None:
        for index in range(200):
            io.execute(lambda _, text=f"{number}.{index}": [transmit(text)])
            transport.put(PONG)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    wait_until(lambda: len(application.dealt) == 1600)
    said = [cast("Any", effect).envelope.ref for effect in transport.said]
    assert len(set(said)) == 1600
    for number in range(8):
        mine = [ref for ref in said if ref.startswith(f"{number}.")]
        assert mine == [f"{number}.{index}" for index in range(200)]


def test_the_deadline_is_called(io, application):
    io.open()
    application.due = time.monotonic()
    io.wake_by(application.due)
    assert application.rung.wait(PATIENCE_S)


def test_a_deadline_set_by_execute_wakes_the_thread(io, application):
    io.open()

    def set_alarm(_: core.ClientCore) -> list[core.Effect]:
        application.due = time.monotonic()
        return []

    io.execute(set_alarm)
    assert application.rung.wait(PATIENCE_S)


# --- streams


class Stream:
    """A io whose thread stands still in a callback, and an application that puts things down, in any thread."""

    def __init__(self, io: IoThread, transport: PlayedTransport, application: Application) -> None:
        self.io, self.transport, self.application = io, transport, application
        self.speakers: list[threading.Thread] = []
        self.gate = threading.Event()
        held = threading.Event()
        speak = application.drain

        def speaking(client: core.ClientCore) -> list[core.Effect]:
            said = speak(client)
            if said:
                self.speakers.append(threading.current_thread())
            return said

        def hold() -> None:
            held.set()
            self.gate.wait(PATIENCE_S)

        application.drain = speaking  # type: ignore[method-assign]
        io.open()
        application.acts.append(hold)
        transport.put(PONG)
        assert held.wait(PATIENCE_S)

    def unconfirmed(self) -> None:
        """Something is on its way."""
        self.transport.core._unconfirmed["message0000"] = core.Outgoing("message0000", 0, "bob", 0, None, False, b"")

    def put(self, text: str, gathered: int = 1) -> None:
        """Puts something down, so much by now."""
        self.application.to_say.append(transmit(text))
        self.io.send_soon(gathered)

    @property
    def said(self) -> list[str]:
        return [effect.envelope.ref for effect in self.transport.said]  # type: ignore[union-attr]


@pytest.fixture
def stream(io: IoThread, transport: PlayedTransport, application: Application) -> Iterator[Stream]:
    stream = Stream(io, transport, application)
    yield stream
    stream.gate.set()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long this takes, it is one stream."""
    monkeypatch.setattr(io_thread_module, "STREAM_S", 1e12)


def test_the_first_of_a_stream_goes_out_at_once(stream, slow):
    stream.put("a")
    assert stream.said == ["a"] and stream.speakers == [threading.current_thread()]


def test_a_stream_is_sent_together_by_the_thread(stream, slow):
    stream.unconfirmed()
    for text in "abc":
        stream.put(text)
    assert stream.said == []
    stream.gate.set()
    wait_until(lambda: len(stream.said) == 3)
    (producer,) = stream.speakers
    assert stream.said == ["a", "b", "c"] and producer is stream.io._thread


def test_a_sleeping_thread_is_woken_for_a_stream(stream, slow):
    stream.transport.tick_s = 3600.0  # no timer wakes it
    stream.gate.set()
    stream.unconfirmed()
    for number in range(50):
        stream.put(str(number))
        wait_until(partial(lambda count: len(stream.said) == count, number + 1))
    assert set(stream.speakers) == {stream.io._thread}


def test_putting_a_message_down_in_a_stream_takes_no_lock(stream, slow):
    stream.unconfirmed()
    with stream.io._lock:
        stream.put("a")
        stream.put("b")
    stream.gate.set()
    wait_until(lambda: stream.said == ["a", "b"])


def test_after_a_while_it_is_no_stream_any_more(stream, monkeypatch):
    stream.unconfirmed()
    stream.io.execute()
    monkeypatch.setattr(io_thread_module, "STREAM_S", -1.0)  # so long has passed since
    stream.put("a")
    assert stream.said == ["a"] and stream.speakers == [threading.current_thread()]


@pytest.mark.parametrize(("gathered", "at_once"), [(GATHER - 1, False), (GATHER, True)])
def test_so_much_is_gathered_and_no_more(stream, slow, gathered, at_once):
    stream.unconfirmed()
    stream.put("a", gathered)
    assert stream.said == (["a"] if at_once else [])


def test_who_waits_for_it_says_it(stream, slow):
    stream.unconfirmed()
    stream.put("a")
    stream.io.flush()
    assert stream.said == ["a"] and stream.speakers == [threading.current_thread()]
    stream.application.to_say.append(transmit("b"))  # of which the io does not know: there is nothing to flush
    stream.io.flush()
    assert stream.said == ["a"]


def test_to_hurry_after_the_end_is_no_error(stream, slow):
    stream.unconfirmed()
    stream.put("a")
    stream.transport.in_.append([core.Closed(None)])
    with suppress(ZmqbusError):
        stream.io.execute()
    stream.io._gathering = True
    stream.io.flush()
    with pytest.raises(NotConnected):
        stream.put("b", GATHER)


def test_a_stream_is_sent_though_another_call_fails(stream, slow):
    def fail(_: core.ClientCore) -> list[core.Effect]:
        raise ValueError("no")

    stream.unconfirmed()
    stream.put("a")
    with pytest.raises(ValueError, match="no"):
        stream.io.execute(fail)
    assert stream.said == [] and stream.io._gathering
    stream.gate.set()
    wait_until(lambda: stream.said == ["a"])


def test_a_stream_is_sent_before_the_end(stream, slow):
    stream.unconfirmed()
    stream.put("a")
    stream.gate.set()
    stream.io.close()
    assert stream.said[0] == "a"


# --- callbacks


def test_callbacks_run_in_the_io_thread_only(io, transport, application):
    """It may hold a lock that the callback wants."""
    users_lock = threading.Lock()
    ran: list[threading.Thread] = []
    done = threading.Event()

    def act() -> None:
        with users_lock:
            ran.append(threading.current_thread())
        done.set()

    io.open()
    application.acts.append(act)
    with users_lock:
        transport.in_.append([PONG])
        io.execute()
        assert application.dealt == [PONG]
    assert done.wait(PATIENCE_S)
    assert ran[0] is not threading.current_thread()


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_failing_callback_does_not_end_the_thread(io, transport, application, hooked, error):
    def act() -> None:
        raise error("mine")

    done = threading.Event()
    io.open()
    application.acts += [act, done.set]
    transport.put(PONG, PONG)
    assert done.wait(PATIENCE_S)
    assert [type(one) for one in hooked] == [error]
    io.execute()


def test_a_callback_may_speak_and_close(io, transport, application):
    io.open()

    def act() -> None:
        io.execute(lambda _: [transmit("from a callback")])
        assert io.is_current_thread
        io.close()

    application.acts.append(act)
    transport.put(PONG)
    assert application.over.wait(PATIENCE_S)
    assert transmit("from a callback") in transport.said
    assert not io.is_current_thread


def test_pending_callbacks_run_at_the_end(io, transport, application):
    ran: list[int] = []
    io.open()

    def end() -> None:
        io.close()
        io.call_later(lambda: ran.append(1))

    application.acts.append(end)
    transport.put(PONG)
    assert application.over.wait(PATIENCE_S)
    io.close()
    assert ran == [1]


# --- forks


def test_in_a_child_it_is_an_error_that_says_so_whatever_the_locks_hold(io, transport):
    io.open()
    reader, writer = os.pipe()
    with io._lock:  # as if another thread had it when the process was forked
        pid = os.fork()
        if pid == 0:
            try:
                try:
                    io.execute()
                except ForkedBus as error:
                    io.close()  # does nothing, and does not hang
                    os.write(writer, str(error).encode())
            finally:
                os._exit(0)
    os.close(writer)
    try:
        assert select.select([reader], [], [], PATIENCE_S)[0]
        text = os.read(reader, 1000).decode()
    finally:
        os.close(reader)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert f"opened by process {os.getpid()}" in text and "connect again in the child" in text
    io.execute()


def test_repr_shows_the_transport(io):
    assert repr(io).startswith("<IoThread of <")


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.001)
