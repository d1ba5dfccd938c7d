"""The producer against a real broker: receipts and answers in order, and nothing left behind afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, cast

import pytest

from zmqbus import errors
from zmqbus.client import core
from zmqbus.client import producer as producer_module
from zmqbus.client.bus import Bus
from zmqbus.client.producer import Producer, Reply
from zmqbus.client.receipts import Receipt
from zmqbus.wire import verbs

#: Far over what any of this takes.
PATIENCE_S = 90.0

Connect = Callable[..., Bus]
Figures = Callable[[], dict[str, Any]]


def until(condition: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end_s
        time.sleep(0.002)
    return value


def settled(producer: Producer) -> bool:
    """Nothing is left of ended messages and requests: here, in the core, or to be sent."""
    client = producer._io._transport.core
    return not (
        producer._sent
        or producer._asked
        or producer._called
        or producer._waiting
        or producer._requests
        or producer._waiting_bytes
        or producer._awaited
        or producer._abandoned
        or producer._unawaited
        or client._awaited
        or client.unconfirmed
        or client.asked
    )


@pytest.fixture
def pair(connect: Connect) -> tuple[Producer, Bus]:
    """A program that speaks, and one that is there and does not answer by itself."""
    bob = connect("bob")
    return connect("alice")._producer, bob


# --- sending


def test_receipts(pair):
    producer, bob = pair
    msg_id, future = producer.send(verbs.Scope.SESSION, "bob", verbs.Format.TEXT, b"hi")
    assert bob.next_message(PATIENCE_S).msg_id == msg_id
    assert future.result(PATIENCE_S) == Receipt(msg_id, "delivered", "bob", bob.session_id, False, 0)
    until(lambda: settled(producer))


@pytest.mark.slow
def test_many_go_out_in_order_though_the_window_is_smaller(pair):
    producer, bob = pair
    count = 3_000
    sent = [producer.send(verbs.Scope.SESSION, "bob", verbs.Format.TEXT, b"%d" % n)[1] for n in range(count)]
    got = [bob.next_message(PATIENCE_S).text for _ in range(count)]
    assert got == [str(number) for number in range(count)]
    assert all(one.result(PATIENCE_S).state in ("delivered", "queued") for one in sent)
    until(lambda: settled(producer))


def test_an_unknown_target_is_the_futures_error(pair):
    producer, _ = pair
    future = producer.send(verbs.Scope.SESSION, "nobody", verbs.Format.TEXT, b"")[1]
    reply = producer.ask(verbs.Scope.SESSION, "nobody", verbs.Format.TEXT, b"", None)
    for one in (future, reply):
        with pytest.raises(errors.UnknownPeer, match="nobody"):
            one.result(PATIENCE_S)
    until(lambda: settled(producer))


def test_a_cancelled_receipt_leaves_nothing_behind(pair):
    producer, bob = pair
    future = producer.send(verbs.Scope.SESSION, "bob", verbs.Format.TEXT, b"hi")[1]
    future.cancel()
    assert bob.next_message(PATIENCE_S).text == "hi"
    until(lambda: settled(producer))


def test_too_many_open_messages_are_refused(pair, monkeypatch):
    producer, bob = pair
    monkeypatch.setattr(producer_module, "MAX_OUTSTANDING", 10)
    sent = [producer.ask(verbs.Scope.SESSION, "bob", verbs.Format.TEXT, b"", None) for _ in range(10)]
    for say in (producer.ask, producer.send):
        with pytest.raises(errors.Overloaded, match="take some receipts or answers first"):
            say(verbs.Scope.SESSION, "bob", verbs.Format.TEXT, b"", None)
    with pytest.raises(errors.Overloaded):
        producer.ask_all(verbs.Scope.SESSION, "bob", [(verbs.Format.TEXT, b"")] * 2, None)
    assert len(producer._asked) == 10
    sent[0].cancel()
    producer.ask(verbs.Scope.SESSION, "bob", verbs.Format.TEXT, b"", None).cancel()
    for reply in sent:
        reply.cancel()
    for _ in range(11):
        assert bob.next_message(PATIENCE_S) is not None
    until(lambda: settled(producer))


def test_too_many_waiting_bytes_are_refused(pair, monkeypatch):
    producer, _ = pair
    monkeypatch.setattr(producer_module, "MAX_WAITING_BYTES", 1000)
    with pytest.raises(errors.Overloaded, match="bytes waiting"):
        producer.send(verbs.Scope.SESSION, "bob", verbs.Format.TEXT, b"x" * 1001)
    # What has gone out does not count.
    replies = [producer.ask(verbs.Scope.GROUP, "none", verbs.Format.TEXT, b"x" * 900, None) for _ in range(5)]
    for reply in replies:
        reply.cancel()
    until(lambda: settled(producer))


# --- asking


def test_the_fields_of_an_answer(pair):
    producer, bob = pair
    reply = producer.ask(verbs.Scope.SESSION, "bob", verbs.Format.TEXT, b"ready?", PATIENCE_S)
    question = bob.next_message(PATIENCE_S)
    assert (reply.target, reply.msg_id) == ("bob", question.msg_id)
    bob.reply(question, {"yes": 1})
    answer = reply.result(PATIENCE_S)
    assert (answer.body, answer.reply_to, answer.sender) == ({"yes": 1}, question.msg_id, "bob")
    until(lambda: settled(producer))


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_an_abandoned_answer_comes_to_the_mailbox(connect, how):
    bob, alice = connect("bob"), connect("alice")
    reply = alice.request("bob", "ready?", timeout=0.0 if how == "deadline" else None)
    if how == "cancel":
        reply.cancel()
        assert reply.cancelled()
    else:
        with pytest.raises(errors.Timeout, match=f"no answer from 'bob' to {reply.msg_id} in time; .* longer timeout"):
            reply.result(PATIENCE_S)
    question = bob.next_message(PATIENCE_S)
    alice.sessions()  # the broker knows by then: an answer that crosses that would be taken by the request
    bob.send(question.sender_id, "yes", reply_to=question.msg_id, wait=False)
    late = alice.next_message(PATIENCE_S)
    assert (late.text, late.reply_to) == ("yes", reply.msg_id)
    until(lambda: settled(alice._producer))


def test_a_late_answer_to_a_guest_is_dropped(connect):
    bob, guest = connect("bob"), connect()
    reply = guest.request("bob", "ready?")
    question = bob.next_message(PATIENCE_S)
    reply.cancel()
    until(lambda: settled(guest._producer))
    try:
        bob.reply(question, "yes")
    except errors.UnknownPeer:
        pass  # it has no mailbox
    assert guest.request("bob", "still there?").cancel()


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_an_abandoned_request_to_a_group_is_withdrawn(connect, figures: Figures, how):
    bus = connect("alice")
    replies = [bus.request("@nobody", number, timeout=None if how == "cancel" else 0.2) for number in range(5)]
    if how == "cancel":
        until(lambda: figures()["requests_waiting"] == 5)
        assert all(reply.cancel() for reply in replies)
    assert wait(replies, PATIENCE_S).not_done == set()
    until(lambda: figures()["requests_waiting"] == 0)
    until(lambda: settled(bus._producer))


def test_messages_do_not_wait_behind_requests_without_a_worker(connect):
    bus, bob = connect("alice"), connect("bob")
    replies = [bus.request("@nobody", number) for number in range(1_100)]  # more than may be unanswered
    assert len(bus._producer._requests) == 100
    sent = bus.send("bob", "hi", wait=False)
    assert bob.next_message(PATIENCE_S).text == "hi"
    assert sent.result(PATIENCE_S).state == "delivered"
    assert len(bus.sessions()) >= 2
    for reply in replies:
        reply.cancel()
    until(lambda: settled(bus._producer))


@pytest.mark.slow
def test_a_hundred_thousand_requests_are_the_bound_and_all_end(connect, figures: Figures):
    bus = connect("alice")
    replies = bus._producer.ask_all(verbs.Scope.GROUP, "nobody", [(verbs.Format.TEXT, b"x")] * 100_000, None)
    with pytest.raises(errors.Overloaded, match=r"100,000 messages and requests are open .* use map"):
        bus.request("@nobody", "one more")
    assert len(bus._producer._requests) == 99_000
    for reply in replies[::2]:
        reply.cancel()
    bus.request("@nobody", "there is room again").cancel()
    until(lambda: figures()["requests_waiting"] == 1_000)
    bus.close()
    done, open_ = wait(replies, PATIENCE_S)
    assert not open_ and sum(reply.cancelled() for reply in done) == 50_000
    assert all(isinstance(reply.exception(), errors.NotConnected) for reply in replies[1::2])


@pytest.mark.slow
def test_more_answers_than_the_broker_lets_a_connection_await(pair):
    producer, bob = pair
    replies = [producer.ask(verbs.Scope.SESSION, "bob", verbs.Format.TEXT, b"%d" % n, None) for n in range(2_000)]
    for _ in range(2_000):
        question = bob.next_message(PATIENCE_S)
        bob._producer.send(verbs.Scope.SESSION, question.sender_id, 0, question.body_bytes, question.msg_id)
    assert [reply.result(PATIENCE_S).text for reply in replies] == [str(number) for number in range(2_000)]
    until(lambda: settled(producer))


def test_deadlines_of_answered_requests_are_removed(pair, monkeypatch):
    producer, bob = pair
    monkeypatch.setattr(producer_module, "MAX_STALE_DEADLINES", 5)
    for _ in range(30):
        reply = producer.ask(verbs.Scope.SESSION, "bob", verbs.Format.TEXT, b"", 1000.0)
        bob.reply(bob.next_message(PATIENCE_S), "")
        reply.result(PATIENCE_S)
    assert len(producer._deadlines) <= 7


# --- ends


def test_closing_ends_everything_that_is_open(connect):
    connect("bob")
    bus = connect("alice")
    told: list[Future[Any]] = []
    futures: list[Future[Any]] = [
        bus.request("bob", "?"),
        bus.request("@nobody", "?"),
        bus.request("bob", "?", timeout=1000),
    ]
    for future in futures:
        future.add_done_callback(told.append)
    bus.close()
    for future in futures:
        with pytest.raises(errors.NotConnected, match="closed"):
            future.result(PATIENCE_S)
    assert sorted(map(id, told)) == sorted(map(id, futures))
    with pytest.raises(errors.NotConnected):
        bus.request("bob", "?")
    assert settled_here(bus._producer)


def settled_here(producer: Producer) -> bool:
    return not (producer._sent or producer._asked or producer._called or producer._waiting or producer._requests)


def test_cancelling_after_the_end_is_no_error(connect):
    bus = connect("alice")
    reply = bus.request("@nobody", "?")
    bus.close()
    assert not reply.cancel()


def test_repr_counts(pair):
    producer, _ = pair
    assert repr(producer) == "<Producer: 0 sent, 0 asked, 0 waiting>"


# --- messages put down, and the order in which they go out


class PlayedIoThread:
    """Carries effects out only in `go`; notes the transmitted envelopes."""

    is_current_thread = False

    def __init__(self, producer: Producer, client: core.ClientCore) -> None:
        self.producer = producer
        self.client = client
        self.transmitted: list[verbs.Envelope] = []
        self.busy = True

    def check(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def execute(self, speak: Callable[[core.ClientCore], list[core.Effect]] | None = None) -> None:
        effects = speak(self.client) if speak is not None else []
        if not self.busy:
            effects += self.producer.drain(self.client)
        self.transmitted += [one.envelope for one in effects if isinstance(one, core.Transmit)]

    def send_soon(self, gathered: int) -> None:
        self.execute()

    def call_later(self, act: Callable[[], None]) -> None:
        act()


class Played:
    """A producer whose connection the test plays."""

    def __init__(self) -> None:
        persona = core.Persona(verbs.Role.HELPER, "id", "token", "alice")
        self.core = core.ClientCore(persona, "1.2.3")
        self.core.handle(0.0, core.Up())
        self.core.handle(
            0.0, core.Received([verbs.Welcome(1, "1.2.3", "epoch", "id", "alice", "lease", 4, 5555, 0, 0)])
        )
        self.producer = Producer(cast("Any", self), "log")
        self.producer._io.close()  # it was never opened
        self.io = PlayedIoThread(self.producer, self.core)
        self.producer._io = cast("Any", self.io)

    def send(self, text: str = "", *, to: str = "bob") -> Future[Any]:
        return self.producer.send(verbs.Scope.SESSION, to, verbs.Format.TEXT, text.encode())[1]

    def ask(self, text: str = "", *, group: bool = False) -> Reply:
        scope = verbs.Scope.GROUP if group else verbs.Scope.SESSION
        return self.producer.ask(scope, "bob", verbs.Format.TEXT, text.encode(), None)

    def go(self) -> list[str]:
        """Says what there is to say; returns the bodies that went out."""
        self.io.busy = False
        del self.io.transmitted[:]
        self.io.execute()
        self.io.busy = True
        bodies: list[bytes] = []
        for envelope in self.io.transmitted:
            if isinstance(envelope, verbs.Send):
                bodies += envelope.bodies
            elif isinstance(envelope, verbs.Request):
                bodies.append(envelope.body)
        return [body.decode() for body in bodies]

    def hear(self, *envelopes: verbs.Envelope) -> None:
        self.producer.on_effects(self.core.handle(0.0, core.Received(list(envelopes))))

    def confirm_all(self) -> None:
        self.hear(verbs.Receipt(0, "id", "bob", 0, tuple(self.core._unconfirmed)))


@pytest.fixture
def played() -> Played:
    return Played()


def test_messages_put_down_are_counted_once(played, monkeypatch):
    monkeypatch.setattr(producer_module, "MAX_OUTSTANDING", 10)
    sent = [played.send() for _ in range(6)]
    asked = [played.ask(group=number == 3) for number in range(4)]
    for say in (played.send, played.ask):
        with pytest.raises(errors.Overloaded, match=r"^10 messages and requests are open"):
            say()
    assert len(played.producer._sent) == 6  # nothing is left of what was refused
    assert len(played.go()) == 10
    for say in (played.send, played.ask):
        with pytest.raises(errors.Overloaded, match=r"^10 messages and requests are open"):
            say()
    played.confirm_all()
    assert all(one.done() for one in sent)
    more = [played.send() for _ in range(5)]
    asked.append(played.ask())
    with pytest.raises(errors.Overloaded):
        played.send()
    assert asked[0].cancel()
    played.go()
    more.append(played.send())
    assert not any(one.done() for one in more)


def test_found_room_is_used_up_before_the_next_search(played, monkeypatch):
    """Several at once that there is no room for: none of them is put down, and room for one may be there."""
    monkeypatch.setattr(producer_module, "MAX_OUTSTANDING", 4)
    played.send()
    assert played.producer._room == 3
    played.send()
    with pytest.raises(errors.Overloaded):
        played.producer.ask_all(verbs.Scope.SESSION, "bob", [(verbs.Format.TEXT, b"")] * 3, None)
    assert len(played.producer._put) == 2
    played.ask()
    played.send()
    with pytest.raises(errors.Overloaded):
        played.send()
    played.go()
    played.confirm_all()
    assert [played.send() for _ in range(3)]
    with pytest.raises(errors.Overloaded):
        played.ask()


def test_only_waiting_bytes_are_bounded(played, monkeypatch):
    monkeypatch.setattr(producer_module, "MAX_WAITING_BYTES", 1000)
    monkeypatch.setattr(core, "WINDOW_MESSAGES", 2)
    for _ in range(3):
        played.send("x" * 300)
    for say in (played.send, played.ask):
        with pytest.raises(errors.Overloaded, match=r"\(900 bytes waiting to go out\)"):
            say("x" * 101)
    played.send("x" * 60)
    played.ask("x" * 40)
    with pytest.raises(errors.Overloaded, match=r"1,000 bytes waiting"):
        played.send("x")
    played.send("")
    assert len(played.go()) == 2
    assert played.producer._waiting_bytes == 400
    played.send("x" * 600)
    with pytest.raises(errors.Overloaded):
        played.send("x")
    for _ in range(3):
        played.confirm_all()
        played.go()
    assert played.producer._waiting_bytes == 0


def test_messages_and_requests_go_out_in_order(played):
    for number in range(3):
        played.send(f"a{number}")
    played.ask("b")
    played.send("c0")
    played.send("c1", to="carol")
    played.ask("d", group=True)
    played.send("c2", to="carol")
    assert played.go() == ["d", "a0", "a1", "a2", "b", "c0", "c1", "c2"]  # those to groups have a queue of their own
    said = played.io.transmitted
    place = {type(one): number for number, one in enumerate(said)}
    assert place[verbs.Await] < place[verbs.Send]  # the answer must not come before it is awaited
    assert [len(one.msg_ids) for one in said if isinstance(one, verbs.Send)] == [5, 2]


def test_the_window_cuts_the_order_nowhere(played, monkeypatch):
    monkeypatch.setattr(core, "WINDOW_MESSAGES", 3)
    monkeypatch.setattr(producer_module, "MAX_AWAITED", 2)
    names = [f"{'ask' if number % 2 else 'send'}{number}" for number in range(14)]
    for name in names:
        (played.ask if name.startswith("ask") else played.send)(name)
    went: list[str] = []
    while part := played.go():
        assert len(part) <= 3
        went += part
        played.confirm_all()
    # The third that awaits an answer has to wait for one, and all behind it keep their places.
    assert went == names[:5]
    for msg_id in list(played.producer._asked)[:7]:
        ticket = core.Ticket("lease", 1, (f"answer{msg_id[:6]}",), msg_id)
        header = verbs.Header("s", "bob", None, 0, "", 0, msg_id, 0.0)
        batch = verbs.Deliver(header, 1, 0, 0, -1, None, 0, ticket.msg_ids, (b"",))
        played.producer.on_effects([core.Hand(ticket, batch)])
        while part := played.go():
            went += part
            played.confirm_all()
    assert went == names
    assert not (played.producer._waiting or played.producer._unsent or played.producer._dropped)


def test_a_request_cancelled_before_it_went_out_is_never_sent(played, monkeypatch):
    monkeypatch.setattr(core, "WINDOW_MESSAGES", 1)
    played.send("first")
    early = played.ask("early")
    assert early.cancel()  # while it lies where it was put down
    late = played.ask("late")
    played.ask("kept")
    played.send("last")
    went = played.go()
    assert late.cancel()  # while it stands among others
    for _ in range(4):
        played.confirm_all()
        went += played.go()
        assert not any(isinstance(one, verbs.Unawait) for one in played.io.transmitted)
    assert went == ["first", "kept", "last"]
    assert (played.producer._waiting_bytes, played.producer._awaited) == (0, 1)
    assert not (played.producer._waiting or played.producer._unsent or played.producer._dropped)


def test_a_group_request_cancelled_before_it_went_out_is_never_sent(played, monkeypatch):
    monkeypatch.setattr(core, "WINDOW_MESSAGES", 1)
    out, dropped = played.ask("out", group=True), played.ask("dropped", group=True)
    played.ask("kept", group=True)
    assert played.go() == ["out"]
    assert dropped.cancel()
    assert played.go() == [] == played.io.transmitted
    assert out.cancel()
    assert played.go() == ["kept"]
    withdrawn = [one for one in played.io.transmitted if isinstance(one, verbs.Withdraw)]
    assert withdrawn == [verbs.Withdraw((out.msg_id,))]
    assert played.producer._waiting_bytes == 0


def test_a_cancelled_request_at_the_head_of_a_full_window_holds_up_nothing(played, monkeypatch):
    monkeypatch.setattr(core, "WINDOW_MESSAGES", 1)
    monkeypatch.setattr(producer_module, "MAX_AWAITED", 1)
    first, second = played.ask("first"), played.ask("second")
    played.send("third")
    assert played.go() == ["first"]
    played.confirm_all()
    assert played.go() == []  # no more answers may be awaited
    second.cancel()
    assert played.go() == ["third"]
    assert first.cancel()
    played.go()
    assert played.producer._awaited == 0


def test_the_end_fails_messages_put_down(played):
    futures = [played.send("put"), played.ask("put")]
    played.go()
    futures += [played.send("later"), played.ask("later"), played.ask("later", group=True)]
    played.producer.on_end(errors.NotConnected("over"))
    for future in futures:
        with pytest.raises(errors.NotConnected, match="over"):
            future.result(0)
    for say in (played.send, played.ask):
        with pytest.raises(errors.NotConnected, match="over"):
            say("x")
    assert settled_here(played.producer)
