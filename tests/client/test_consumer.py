"""The consumer: taking, acknowledging and repeats, with a played I/O thread and with a real broker."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus import errors
from zmqbus.client import core
from zmqbus.client.bus import Bus
from zmqbus.client.consumer import Consumer
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope

#: Far over what any of this takes.
PATIENCE_S = 90.0
ROOT = Path(__file__).resolve().parents[2]

Connect = Callable[..., Bus]


class PlayedCore:
    """Notes what was taken and answered."""

    def __init__(self) -> None:
        self.persona = core.Persona(verbs.Role.PROGRAM, name="bob")
        self.tickets: list[core.Ticket] = []
        self.acks = 0
        self.answers: list[str] = []

    @property
    def taken_ids(self) -> list[str]:
        return [msg_id for ticket in self.tickets for msg_id in ticket.msg_ids]

    @property
    def last_leases(self) -> dict[str, str]:
        """Of each message that was taken, the lease of its last ticket: only the current lease's settles anything."""
        return {msg_id: ticket.lease for ticket in self.tickets for msg_id in ticket.msg_ids}

    def taken(self, ticket: core.Ticket) -> None:
        self.tickets.append(ticket)

    def acknowledge(self) -> list[core.Effect]:
        self.acks += 1
        return []

    def answer(self, msg_id: str, fmt: int, body: bytes) -> list[core.Effect]:
        self.answers.append(msg_id)
        return []


class PlayedTransport:
    def __init__(self) -> None:
        self.core = PlayedCore()


class PlayedIoThread:
    """Drains the consumer at each `execute`; `call_later` runs at once."""

    def __init__(self, consumer: Consumer, client: PlayedCore) -> None:
        self.consumer = consumer
        self.client: Any = client
        self.error: errors.ZmqbusError | None = None
        self.woken_by: list[float] = []

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def execute(self, speak: Callable[[Any], Any] | None = None) -> None:
        self.check()
        if speak is not None:
            speak(self.client)
        self.consumer.drain(self.client)

    def wake_by(self, due_s: float) -> None:
        self.woken_by.append(due_s)

    def call_later(self, act: Callable[[], None]) -> None:
        act()

    def close(self) -> None:
        self.error = errors.NotConnected("closed")
        self.consumer.on_end(self.error)


class Played:
    def __init__(self, *, manual: bool) -> None:
        transport: Any = PlayedTransport()
        self.core: PlayedCore = transport.core
        self.consumer = Consumer(transport, "log", manual=manual)
        self.consumer._io.close()  # it was never opened
        self.io = PlayedIoThread(self.consumer, self.core)
        self.consumer._io = cast("Any", self.io)

    def hand(self, *msg_ids: str, lease: str = "one") -> None:
        for msg_id in msg_ids:
            ticket = core.Ticket(lease, 1, (msg_id,), None)
            header = verbs.Header("sid", "auth", None, Scope.SESSION, "", 0, None, 0.0)
            batch = verbs.Deliver(header, 1, 0, 0, -1, None, 0, (msg_id,), (b"",))
            self.consumer.on_effects([core.Hand(ticket, batch)])

    def take(self) -> str | None:
        message = self.consumer.next_message(0.0)
        return None if message is None else message.msg_id

    def work(self, *msg_ids: str) -> None:
        for msg_id in msg_ids:
            self.consumer.on_effects(
                [core.StartWork(verbs.Work(msg_id, "sid", "auth", None, "g", 0, 0.0, 0, None, b""))]
            )


@pytest.fixture
def auto() -> Played:
    return Played(manual=False)


@pytest.fixture
def manual() -> Played:
    return Played(manual=True)


# --- taking


def test_a_taken_message_is_acknowledged(auto):
    auto.hand("a")
    assert auto.core.tickets == []
    assert auto.take() == "a"
    assert auto.core.taken_ids == ["a"]
    assert auto.take() is None


def test_a_burst_is_acknowledged_together_at_its_last_message(auto):
    auto.hand("a", "b", "c")
    assert [auto.take(), auto.take()] == ["a", "b"]
    assert auto.core.acks == 0 and len(auto.io.woken_by) == 1
    assert auto.consumer.deadline_s() == auto.io.woken_by[0]
    assert auto.take() == "c"
    assert auto.core.acks == 1 and auto.consumer.deadline_s() is None


def test_the_deadline_acknowledges_the_taken_part_of_a_burst(auto):
    auto.hand("a", "b")
    auto.take()
    auto.consumer.on_deadline()
    assert auto.core.taken_ids == ["a"]
    auto.io.error = errors.NotConnected("over")
    auto.consumer.on_deadline()  # then it comes again


def test_an_untaken_message_is_taken_back(auto):
    auto.hand("a", "b")
    auto.take()
    auto.consumer.on_effects([core.TakeBack()])
    assert auto.take() is None


def test_repeat_of_a_taken_message_is_not_handed_out(auto):
    auto.hand("a", "b")
    assert auto.take() == "a"
    auto.consumer.on_effects([core.TakeBack()])
    auto.hand("a", "b", lease="two")
    assert auto.take() == "b"
    assert auto.take() is None
    assert auto.core.last_leases == {"a": "two", "b": "two"}


def test_manual_acknowledgement_waits_for_the_program(manual):
    manual.hand("a")
    message = manual.consumer.next_message(0.0)
    assert message is not None and manual.core.tickets == []
    message.ack()
    assert manual.core.taken_ids == ["a"]
    message.ack()
    assert len(manual.core.tickets) == 1


def test_repeat_of_a_message_in_work_gets_the_newer_ticket(manual):
    manual.hand("a", "b")
    message = manual.consumer.next_message(0.0)
    manual.consumer.on_effects([core.TakeBack()])
    manual.hand("a", "b", lease="two")
    assert [manual.take(), manual.take()] == ["b", None]
    message.ack()
    assert manual.core.tickets == [core.Ticket("two", 1, ("a",), None)]


def test_a_new_name_is_noted(auto):
    auto.consumer.on_effects([core.Renamed("robert")])
    assert auto.consumer.name == "robert"


# --- waiting


@pytest.mark.parametrize("kind", ["message", "work"])
def test_a_waiting_thread_gets_the_arrival(auto, kind):
    """Though others wait for something else: each of many, the last one too."""
    got: list[Any] = []
    over = threading.Event()

    def messages() -> None:
        while not over.is_set():
            message = auto.consumer.next_message(PATIENCE_S)
            got.append(message.msg_id)

    def works() -> None:
        while not over.is_set():
            work = auto.consumer.next_work(PATIENCE_S)
            got.append(work.msg_id)

    threads = [threading.Thread(target=target, daemon=True) for target in [messages, works] * 3]
    for thread in threads:
        thread.start()
    for number in range(50):
        (auto.hand if kind == "message" else auto.work)(f"m{number}")
        end_s = time.monotonic() + PATIENCE_S
        while len(got) <= number:
            assert time.monotonic() < end_s
            time.sleep(0.0005)
    over.set()
    auto.hand("x1", "x2", "x3")
    auto.work("y1", "y2", "y3")
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert len(got) == 56


def test_the_end_wakes_all_waiting_threads(auto):
    found: list[BaseException] = []

    def waits(call: Callable[..., Any]) -> None:
        try:
            call(None)
        except errors.ZmqbusError as error:
            found.append(error)

    calls = (auto.consumer.next_message, auto.consumer.next_work)
    threads = [threading.Thread(target=waits, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    auto.consumer.close()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [type(error) for error in found] == [errors.NotConnected] * 2


def test_watchers_are_called_for_arrivals_and_for_the_end(auto):
    told: list[int] = []
    auto.consumer.watch(lambda: told.append(1))
    auto.hand("a")
    auto.work("b")
    auto.consumer.close()
    assert len(told) == 3


# --- a message that is alone, and somebody who waits for it


def test_a_single_message_is_acknowledged_before_the_waiting_thread_wakes_up(auto):
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(auto.consumer.next_message(PATIENCE_S)), daemon=True)
    thread.start()
    end_s = time.monotonic() + PATIENCE_S
    while not auto.consumer._waiting:
        assert time.monotonic() < end_s
        time.sleep(0.0005)
    with auto.consumer._arrived:  # so that it cannot wake up
        auto.hand("a")
        auto.consumer.drain(auto.core)  # as the io does, when something was dealt with
        assert auto.core.taken_ids == ["a"] and got == []
        assert auto.consumer.unread == 0
    thread.join(PATIENCE_S)
    assert got[0].msg_id == "a" and auto.consumer._waiting == 0
    auto.consumer.drain(auto.core)
    assert len(auto.core.tickets) == 1 and auto.take() is None


def waits(played: Any, waiting: int = 1) -> None:
    """So many threads wait for a message; they will wake up some time."""
    played.consumer._waiting = waiting


@pytest.mark.parametrize("interrupted", [True, False])
def test_an_interrupted_wait_leaves_the_message_for_the_next_call(auto, monkeypatch, interrupted):
    """Or one whose time is over at that instant takes it."""

    def wait(_: float | None = None) -> bool:
        assert auto.consumer._waiting == 1
        auto.hand("a")
        if interrupted:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(auto.consumer._arrived, "wait", wait)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            auto.consumer.next_message(PATIENCE_S)
    else:
        assert auto.consumer.next_message(PATIENCE_S).msg_id == "a"
    assert auto.consumer._waiting == 0
    auto.hand("b")
    assert [auto.take(), auto.take(), auto.take()] == (["a", "b", None] if interrupted else ["b", None, None])


def test_a_message_taken_for_a_waiting_thread_is_returned_first(auto):
    waits(auto, 3)
    auto.hand("a", "b", "c")
    assert [msg_id for one in auto.consumer._given for msg_id in one.msg_ids] == ["a"] and auto.consumer.unread == 2
    waits(auto, 0)
    assert [auto.take() for _ in range(4)] == ["a", "b", "c", None]
    assert auto.core.taken_ids == ["a", "b", "c"]


def test_thread_that_takes_work_or_messages_gets_messages(auto):
    waits(auto)
    auto.hand("a")
    assert auto.consumer.next_work(0.0) is None
    assert auto.consumer.next_work(0.0, or_message=True).msg_id == "a"


@pytest.mark.parametrize("before", ["nobody waits", "another is there", "the program acknowledges"])
def test_message_that_is_not_next_is_taken_for_no_thread(auto, manual, before):
    played = manual if before == "the program acknowledges" else auto
    if before == "another is there":
        played.hand("first")
    if before != "nobody waits":
        waits(played)
    played.hand("a")
    played.consumer.drain(played.core)
    assert not played.consumer._given and played.core.tickets == []
    assert played.consumer.unread == (2 if before == "another is there" else 1)


def test_a_message_taken_for_a_thread_and_taken_back_comes_once(auto):
    waits(auto)
    auto.hand("a")
    waits(auto, 0)
    auto.consumer.on_effects([core.TakeBack()])
    auto.hand("a", lease="two")
    assert auto.consumer.unread == 0
    assert [auto.take(), auto.take()] == ["a", None]
    auto.consumer.drain(auto.core)
    assert auto.core.last_leases == {"a": "two"}


def test_a_message_taken_for_a_thread_is_returned_after_the_end(auto):
    waits(auto)
    auto.hand("a")
    auto.consumer.on_end(errors.NotConnected("over"))
    assert auto.take() == "a"
    with pytest.raises(errors.NotConnected):
        auto.take()


# --- work


def test_work_comes_before_messages(auto):
    auto.hand("a")
    auto.work("b")
    assert auto.consumer.next_work(0.0, or_message=True).msg_id == "b"
    assert auto.consumer.next_work(0.0, or_message=True).msg_id == "a"
    assert auto.consumer.next_work(0.0, or_message=True) is None


def test_answers_go_together_where_more_waits(auto):
    auto.work("a", "b")
    auto.consumer.next_work(0.0)
    auto.consumer.answer("a", 0, b"")
    assert auto.core.answers == []
    auto.consumer.next_work(0.0)
    auto.consumer.answer("b", 0, b"")
    assert auto.core.answers == ["a", "b"]


def test_a_withdrawal_is_reported_once(auto):
    auto.work("a", "b")
    auto.consumer.on_effects([core.Withdrawn(("a",))])
    assert auto.consumer.is_withdrawn("a") and not auto.consumer.is_withdrawn("b")
    auto.consumer.on_effects([core.Withdrawn(("b",))])  # while it is worked on, when nobody asks any more
    auto.consumer.answer("b", 0, b"")
    assert not auto.consumer._withdrawn


def test_repr_counts(auto):
    auto.hand("a")
    assert repr(auto.consumer) == "<Consumer 'bob': 1 messages, 0 requests>"


# --- with a broker


def texts(bus: Bus, count: int) -> Iterator[str]:
    for _ in range(count):
        message = bus.next_message(PATIENCE_S)
        assert message is not None
        yield message.text


def delivered(future: Any, timeout_s: float = 0.0) -> bool:
    """Whether the sender has heard that it was taken. (Or will not, since this machine was busy for a second.)"""
    if not timeout_s and not future.done():
        return False
    receipt = future.result(timeout_s)
    return receipt.state == "delivered" or (receipt.busy and timeout_s > 0)


def test_delivered_is_reported_when_the_message_is_taken(connect: Connect):
    bob, alice = connect("bob"), connect("alice")
    future = alice.send("bob", "hi", wait=False)
    while not bob._consumer._inbox:  # type: ignore[union-attr]
        time.sleep(0.001)
    assert not delivered(future)
    assert bob.next_message(PATIENCE_S).text == "hi"  # type: ignore[union-attr]
    assert delivered(future, PATIENCE_S)


def test_delivered_is_reported_when_the_program_acknowledges(connect: Connect):
    bob, alice = connect("bob", ack="manual"), connect("alice")
    future = alice.send("bob", "hi", wait=False)
    message = bob.next_message(PATIENCE_S)
    assert message is not None and not delivered(future)
    message.ack()
    assert delivered(future, PATIENCE_S)


@pytest.mark.parametrize("ack", ["auto", "manual"])
def test_the_mailbox_outlives_the_program_and_serves_the_next_one(connect: Connect, ack):
    alice, bob = connect("alice"), connect("bob", ack=ack)
    for number in range(4):
        alice.send("bob", str(number), wait=False)
    first = bob.next_message(PATIENCE_S)
    second = bob.next_message(PATIENCE_S)
    assert first is not None and second is not None
    first.ack()
    bob.close()
    alice.send("bob", "meanwhile", wait=False)
    again = connect("bob")
    assert again.session_id == bob.session_id
    owed = ["1", "2", "3"] if ack == "manual" else ["2", "3"]
    assert list(texts(again, len(owed) + 1)) == [*owed, "meanwhile"]
    assert again.next_message(0.0) is None


def test_acknowledgements_count_from_the_oldest_on(connect: Connect):
    """ACK is cumulative: a message acknowledged out of order is reported with its predecessors."""
    alice, bob = connect("alice"), connect("bob", ack="manual")
    sent = [alice.send("bob", str(number), wait=False) for number in range(2)]
    first = bob.next_message(PATIENCE_S)
    second = bob.next_message(PATIENCE_S)
    assert first is not None and second is not None
    second.ack()
    alice.sessions()
    bob.sessions()
    assert not any(delivered(future) for future in sent)
    first.ack()
    assert all(delivered(future, PATIENCE_S) for future in sent)


def test_a_message_acknowledged_behind_an_unacknowledged_one_comes_again_after_a_crash_only(
    connect: Connect,
):
    """Each acknowledgement is for its own message; but that it was given dies with the process."""
    alice = connect("alice")
    script = """
        import os, signal, time, zmqbus
        bus = zmqbus.connect("bob", ack="manual")
        print("here", flush=True)
        took = [bus.next_message(60) for _ in range(4)]
        took[0].ack()
        took[2].ack()
        while alice := [row for row in bus.sessions() if row.name == "bob" and row.waiting > 3]:
            time.sleep(0.15)  # until the broker has heard of the first; which may be asked ten times a second
        os.kill(os.getpid(), signal.SIGKILL)
        """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"here\n"
        sent = [alice.send("bob", str(number), wait=False) for number in range(4)]
        process.wait(PATIENCE_S)
    assert delivered(sent[0], PATIENCE_S)
    assert all(future.result(PATIENCE_S).state == "queued" for future in sent[1:])
    bob = connect("bob", ack="manual")
    took = [bob.next_message(PATIENCE_S) for _ in range(3)]
    assert [message.text for message in took if message is not None] == ["1", "2", "3"]
    took[1].ack()  # type: ignore[union-attr]
    bob.close()
    again = connect("bob")  # the same process: it knows
    assert list(texts(again, 2)) == ["1", "3"]
    assert again.next_message(0.0) is None


def test_renamed_program_keeps_its_mailbox(connect: Connect):
    alice, bob = connect("alice"), connect("bob")
    bob.rename("robert")
    while bob.name != "robert":
        time.sleep(0.001)
    bob.close()
    assert alice.send("robert", "hi").state == "queued"
    assert connect("bob").next_message(0.0) is None
    assert list(texts(connect("robert"), 1)) == ["hi"]


def test_acknowledging_after_the_end_is_an_error(connect: Connect):
    alice, bob = connect("alice"), connect("bob", ack="manual")
    alice.send("bob", "hi", wait=False)
    message = bob.next_message(PATIENCE_S)
    assert message is not None
    bob.close()
    with pytest.raises(errors.NotConnected):
        message.ack()
    assert list(texts(connect("bob"), 1)) == ["hi"]


@pytest.mark.slow
def test_many_threads_take_each_message_once(connect: Connect):
    alice, bob = connect("alice"), connect("bob")
    got: list[str] = []

    def take() -> None:
        while (message := bob.next_message(PATIENCE_S)) is not None and message.text != "end":
            got.append(message.text)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    sent = [alice.send("bob", str(number), wait=False) for number in range(3_000)]
    for future in sent:
        future.result(PATIENCE_S)
    for _ in threads:
        alice.send("bob", "end")
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(got, key=int) == [str(number) for number in range(3_000)]


# --- batches


class CoreTransport:
    def __init__(self, client: core.ClientCore) -> None:
        self.core = client


class Mailbox:
    """A consumer with a real core, and a mailbox that sends as the broker does. What the program takes is noted."""

    def __init__(self, *, manual: bool = False) -> None:
        persona = core.Persona(verbs.Role.PROGRAM, "id", "token", "bob")
        self.core = core.ClientCore(persona, "1.2.3")
        self.consumer = Consumer(cast("Any", CoreTransport(self.core)), "log", manual=manual)
        self.consumer._io.close()  # it was never opened
        self.io = PlayedIoThread(self.consumer, cast("Any", self))
        self.consumer._io = cast("Any", self.io)
        self.lock = threading.Lock()  # the io's
        self.leases = 0
        self.last = 0  # of the messages in the mailbox
        self.sent = 0
        self.acknowledged = 0
        self.got: list[int] = []
        self.welcome()

    # the I/O thread passes the core to `drain`

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def acknowledge(self) -> list[core.Effect]:
        self.carry_out(self.core.acknowledge())
        return []

    def carry_out(self, effects: list[core.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, core.Transmit) and isinstance(effect.envelope, verbs.Ack):
                assert self.acknowledged < effect.envelope.seq <= self.sent
                self.acknowledged = effect.envelope.seq
        self.consumer.on_effects(effects)

    def hear(self, *envelopes: verbs.Envelope) -> None:
        self.carry_out(self.core.handle(0.0, core.Received(list(envelopes))))

    def welcome(self, *sizes: int) -> None:
        """Another connection: the mailbox is the mailbox's again. With WELCOME come the next messages."""
        self.leases += 1
        self.carry_out([*self.core.handle(0.0, core.Down()), *self.core.handle(0.0, core.Up())])
        self.sent = self.acknowledged
        self.hear(
            verbs.Welcome(1, "9.9", "epoch", "id", "bob", f"lease{self.leases}", 4, 5555, 0, 0),
            *self.next_ones(*sizes),
        )

    def recall(self) -> None:
        """A command reads, and takes nothing."""
        self.hear(verbs.Recall(1, ()))
        self.sent = self.acknowledged

    def send(self, *sizes: int) -> None:
        """The next messages, in batches of these sizes."""
        self.hear(*self.next_ones(*sizes))

    def next_ones(self, *sizes: int) -> list[verbs.Envelope]:
        envelopes: list[verbs.Envelope] = []
        for size in sizes:
            numbers = range(self.sent + 1, self.sent + 1 + size)
            ids = tuple(f"message{number:05d}" for number in numbers)
            bodies = tuple(b"%d" % number for number in numbers)
            header = verbs.Header("sid", "auth", None, 0, "", 0, None, 1.0)
            envelopes.append(verbs.Deliver(header, numbers[0], 0, 0, -1, None, 0, ids, bodies))
            self.sent += size
        self.last = max(self.last, self.sent)
        return envelopes

    def take(self, count: int = 1) -> list[int]:
        taken: list[int] = []
        while len(taken) < count and (message := self.consumer.next_message(0.0)) is not None:
            taken.append(int(message.text))
        self.got += taken
        return taken


@pytest.fixture
def run() -> Mailbox:
    return Mailbox()


def hold_back(run: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The I/O thread is slow: no acknowledgement goes out."""
    monkeypatch.setattr(run.io, "execute", lambda speak=None: None)


def test_a_batch_is_taken_message_by_message(run):
    run.send(3, 1, 2)
    assert repr(run.consumer) == "<Consumer 'bob': 6 messages, 0 requests>"
    message = run.consumer.next_message(0.0)
    assert (message.msg_id, message.text, message.sender, message.sender_id) == ("message00001", "1", "auth", "sid")
    assert (message.to, message.reply_to, message.age_s, message.sent_ts, message.fmt) == (None, None, None, 1.0, 0)
    message.ack()  # it does nothing here
    assert repr(run.consumer) == "<Consumer 'bob': 5 messages, 0 requests>"
    assert run.take(9) == [2, 3, 4, 5, 6]
    assert run.acknowledged == 6
    assert run.take() == []


def test_a_batch_is_acknowledged_as_it_is_taken(run):
    run.send(4)
    run.take(2)
    assert run.acknowledged == 0 and len(run.io.woken_by) == 1
    run.consumer.on_deadline()
    assert run.acknowledged == 2
    run.take()
    run.consumer.on_deadline()
    assert run.acknowledged == 3
    run.consumer.on_deadline()  # there is nothing to say
    assert run.acknowledged == 3
    run.take()
    assert run.acknowledged == 4


@pytest.mark.parametrize("sizes", [(4,), (1, 1, 1, 1), (2, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("how", ["welcome", "recall"])
def test_taken_messages_of_a_repeated_batch_are_not_handed_out(run, monkeypatch, sizes, told, how):
    """However it comes again: in other pieces, under another lease, before the core has heard of it, or after."""
    run.send(4)
    with monkeypatch.context() as patch:
        if not told:
            hold_back(run, patch)
        run.take(2)
        if told:
            run.consumer.on_deadline()
        acknowledged, run.acknowledged = run.acknowledged, 0  # the acknowledgement is lost with the connection
        assert acknowledged == (2 if told else 0)
        getattr(run, how)()
        run.send(*sizes)
        assert run.acknowledged == (2 if told else 0)  # what the core knows, it acknowledges by itself
    run.consumer.on_deadline()
    assert run.acknowledged == 2
    assert run.take(9) == [3, 4]
    assert run.acknowledged == 4 and not run.consumer._unsure and not run.consumer._taken


def test_welcome_and_repeats_in_one_zeromq_message(run, monkeypatch):
    """WELCOME, and what comes again, and more: dealt with before anything can be said."""
    run.send(3)
    with monkeypatch.context() as patch:
        hold_back(run, patch)
        run.take(2)
    run.welcome(5, 1)
    assert run.take(9) == [3, 4, 5, 6]
    assert run.acknowledged == 6


def test_taken_back_twice_before_an_acknowledgement(run, monkeypatch):
    run.send(6)
    with monkeypatch.context() as patch:
        hold_back(run, patch)
        run.take(2)
        run.welcome()
        run.send(3, 3)
        assert run.take(2) == [3, 4]
        run.welcome()
        run.send(6)
        assert run.take() == [5]
    assert run.acknowledged == 0
    run.consumer.on_deadline()
    assert run.acknowledged == 5
    assert run.take(9) == [6]
    assert run.acknowledged == 6


def test_manual_acknowledgement_within_a_batch():
    run = Mailbox(manual=True)
    run.send(3)
    first, second = run.consumer.next_message(0.0), run.consumer.next_message(0.0)
    assert first is not None and second is not None
    run.consumer.on_deadline()
    assert run.acknowledged == 0
    second.ack()
    assert run.acknowledged == 0  # the first is owed
    run.welcome()
    run.send(3)
    third = run.consumer.next_message(0.0)
    assert third is not None and (third.text, run.consumer.next_message(0.0)) == ("3", None)
    first.ack()
    assert run.acknowledged == 2
    third.ack()
    assert run.acknowledged == 3


RUN_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.lists(st.integers(1, 4), min_size=1, max_size=3)),
        st.tuples(st.sampled_from(("take", "quietly")), st.integers(1, 5)),
        st.tuples(st.sampled_from(("welcome", "recall", "say", "lose", "give", "give")), st.just(0)),
    ),
    max_size=40,
)


@given(RUN_STEPS)
def test_each_message_is_handed_out_once_and_acknowledged(steps):
    run = Mailbox()
    for step, what in steps:
        if step == "send":
            run.send(*what)
        elif step == "take":
            run.take(what)
        elif step == "quietly":
            with pytest.MonkeyPatch.context() as patch:
                hold_back(run, patch)
                run.take(what)
        elif step == "lose":  # the acknowledgements since the last one that arrived, with the connection
            run.acknowledged = min(run.acknowledged, what)
            run.welcome()
        elif step == "say":
            run.consumer.on_deadline()
        elif step == "give":  # somebody waits; who wakes up some time
            waits(run)
            run.send(1)
            waits(run, 0)
        else:
            getattr(run, step)()
        assert run.got == list(range(1, len(run.got) + 1))
        assert run.acknowledged <= len(run.got) + len(run.consumer._given)
    run.welcome()
    while run.sent < run.last:
        run.send(min(3, run.last - run.sent))
    run.take(1000)
    run.consumer.on_deadline()
    assert run.got == list(range(1, run.last + 1)) and run.acknowledged == run.last
    assert not (run.consumer._taken or run.consumer._batches or run.consumer._unsure or run.core._reorder.handed)


def test_a_batch_of_several_is_taken_for_no_thread(run):
    waits(run)
    run.send(3)
    assert not run.consumer._given and run.consumer.unread == 3
    run.consumer.on_deadline()
    assert run.acknowledged == 0


def test_unread_counts_messages(run):
    run.send(4, 1, 2)
    assert run.consumer.unread == 7
    run.take(2)
    assert run.consumer.unread == 5
    run.take(3)
    assert run.consumer.unread == 2
    run.recall()
    assert run.consumer.unread == 0


def test_a_batch_of_broadcasts_is_taken_message_by_message(run):
    ids = ("message00001", "message00002", "message00003")
    header = verbs.Header("sid", "auth", "Äuth", Scope.TOPIC, "deploys", 0, None, 1.0)
    cast = verbs.Broadcast(header, "epoch", 1, 0, (), None, ids, (b"1", b"2", b"3"))
    run.carry_out(run.core.handle(0.0, core.Published(b"#deploys\0", [cast])))
    assert run.consumer.unread == 3
    message = run.consumer.next_message(0.0)
    assert (message.msg_id, message.text, message.sender, message.sender_label) == ("message00001", "1", "auth", "Äuth")
    assert (message.to, message.reply_to, message.age_s, message.sent_ts) == ("#deploys", None, None, 1.0)
    told: list[verbs.Ack] = []
    run.carry_out = lambda effects: told.extend(one.envelope for one in effects)
    run.consumer.on_deadline()
    assert told == [verbs.Ack(0, (1,))]
    assert run.take(9) == [2, 3]
    assert told[1:] == [verbs.Ack(0, (2, 3))]


def test_two_threads_take_from_one_batch(run):
    """Each message goes to one of them, in order; all messages that both have taken are acknowledged."""
    count = 3000
    run.io.execute = lambda speak=None: None
    got: list[list[int]] = [[], []]
    start = threading.Barrier(3)

    def take(mine: list[int]) -> None:
        start.wait(PATIENCE_S)
        while (message := run.consumer.next_message(PATIENCE_S)) is not None and message.text != "end":
            mine.append(int(message.text))
            if not len(mine) % 50:
                with run.lock:
                    run.consumer.drain(cast("Any", run))

    threads = [threading.Thread(target=take, args=(mine,), daemon=True) for mine in got]
    for thread in threads:
        thread.start()
    start.wait(PATIENCE_S)
    for _ in range(count // 250):
        with run.lock:
            run.send(100, 1, 149)
        if run.last == 1500:
            with run.lock:
                run.welcome()
                while run.sent < 1500:
                    run.send(min(120, 1500 - run.sent))
    header = verbs.Header("sid", "auth", None, 0, "", 0, None, 1.0)
    end = verbs.Deliver(header, count + 1, 0, 0, -1, None, 6, ("endendend1", "endendend2"), (b"end", b"end"))
    with run.lock:
        run.sent += 2
        run.hear(end)
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert sorted(got[0] + got[1]) == list(range(1, count + 1))
    assert all(mine == sorted(mine) for mine in got)
    with run.lock:
        run.consumer.drain(cast("Any", run))
    assert run.acknowledged == count + 2
