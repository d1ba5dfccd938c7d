"""Directed messages: safe before they are reported, in order, once, within bounds."""

from __future__ import annotations

import pytest

from tests.contract.simulated import SimWorld
from tests.contract.worlds import World
from zmqbus.broker.mailbox import CREDIT_BYTES, CREDIT_MESSAGES, MAX_MESSAGES
from zmqbus.broker.storage.api import Entry
from zmqbus.testing import session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format, Header, Scope


def numbers(first: int, last: int) -> list[bytes]:
    return [str(number).encode() for number in range(first, last)]


def test_delivered_means_taken(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send("bob", b"hello")
    (message,) = bob.gets(b"hello")
    world.quiet()
    assert alice.fate(sent) in (None, "busy")
    assert (message.msg_id, message.header.from_name, message.header.from_session) == (
        sent,
        "alice",
        session_id_of("alice"),
    )
    assert (message.header.scope, message.header.target, message.header.reply_to, message.age_s) == (
        Scope.SESSION,
        "",
        None,
        -1,
    )
    bob.take_all()
    receipt = alice.hears(sent, "delivered")
    assert isinstance(receipt, verbs.Receipt)
    assert (receipt.name, receipt.session_id) == ("bob", session_id_of("bob"))


def test_message_to_an_absent_session_waits_for_it(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    sent = [alice.send("bob", body) for body in (b"1", b"2")]
    for msg_id in sent:
        receipt = alice.hears(msg_id, "away")
        assert isinstance(receipt, verbs.Receipt) and receipt.name == "bob" and receipt.away_s >= 0
    bob = world.again(bob)
    assert bob.core.welcome is not None and bob.core.welcome.waiting == 2
    assert [message.age_s >= 0 for message in bob.takes(b"1", b"2")] == [True, True]
    later = alice.send("bob", b"3")
    assert bob.takes(b"3")[0].age_s == -1
    alice.hears(later, "delivered")


def test_every_field_of_a_message_arrives(world: World) -> None:
    alice, bob = world.session("alice", label="The first"), world.session("bob")
    question = alice.send("bob", b"\xff\0", fmt=Format.BYTES)
    (message,) = bob.gets(b"\xff\0")
    assert (message.header.from_label, message.header.fmt) == ("The first", Format.BYTES)
    bob.take_all()
    bob.send(session_id_of("alice"), b"\x93\1\2\3", fmt=Format.MSGPACK, reply_to=question)
    (answer,) = alice.gets(b"\x93\1\2\3")
    assert (answer.header.reply_to, answer.header.fmt, answer.header.from_label) == (question, Format.MSGPACK, None)


@pytest.mark.parametrize(
    "size", [0, 1, verbs.INLINE_BYTES, verbs.INLINE_BYTES + 1, verbs.SPILL_BYTES, verbs.SPILL_BYTES + 1]
)
def test_bodies_of_any_size_arrive_whole(world: World, size: int) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    body = (b"0123456789" * (size // 10 + 1))[:size]
    sent = alice.send("bob", body)
    world.until(lambda: bob.handed)
    (message,) = bob.handed
    assert (message.pointer is not None) == (size > verbs.SPILL_BYTES)
    assert message.pointer is None or message.body == b""
    assert world.whole(message) == body
    bob.take_all()
    alice.hears(sent, "delivered")


def test_large_body_waits_for_an_absent_session(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.die()
    bodies = [b"a" * (verbs.SPILL_BYTES + 1), b"b" * verbs.SPILL_BYTES, b"c"]
    for body in bodies:
        alice.hears(alice.send("bob", body), "away")
    world.kill_broker()
    bob = world.again(bob)
    world.until(lambda: len(bob.handed) == 3)
    assert [world.whole(message) for message in bob.take_all()] == bodies


def test_refusals_have_a_code_and_a_text(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    many = verbs.MAX_BROADCAST_BYTES + 1
    assert "nobody" in str(alice.hears(alice.send("nobody", b"x"), "unknown_peer"))
    alice.hears(alice.send("alice", b"x"), "unknown_peer")
    alice.hears(alice.send("bob", b"\xff"), "invalid_payload")
    alice.hears(alice.send("", bytes(many), scope=Scope.ALL), "text_too_long")
    alice.hears(alice.send("bob", b"x", reply_to="no id"), "protocol")
    alice.hears(alice.send("idle", b"x", scope=Scope.GROUP), "unknown_peer")
    alice.send("bob", b"y")
    bob.takes(b"y")


def test_order_of_one_sender_holds_over_both_sockets(world: World) -> None:
    alice, bob, carol = world.session("alice"), world.session("bob"), world.session("carol")
    sent, total = [], 40
    for number in range(total):
        body = str(number).encode()
        # Batches of both kinds, of one to three.
        sent.append(alice.to_all(body) if number % 4 in (1, 2) else alice.send("bob", body))
        if number % 7 == 0:
            world.quiet()
            bob.take(3)
        if number % 11 == 0:
            carol.take_all()
    carols = [body for number, body in enumerate(numbers(0, total)) if number % 4 in (1, 2)]
    world.until(lambda: bob.drain(2) and carol.drain(1) and all(alice.fate(one) for one in sent))
    world.until(lambda: bob.drain(2) and carol.drain(1) and len(bob.history) == total)
    assert [message.body for message in bob.history] == numbers(0, total)
    assert [message.body for message in carol.history] == carols


def test_order_holds_over_losses_on_both_sides(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = []
    for number in range(30):
        body = str(number).encode()
        sent.append(alice.to_all(body) if number % 3 == 0 else alice.send("bob", body))
        if number % 10 == 4:
            bob.cut()
        if number % 10 == 8:
            alice.cut()
        if number == 15:
            world.until(lambda: bob.handed)
            bob.take(2)
    world.until(lambda: bob.drain() and all(alice.fate(one) for one in sent))
    world.until(lambda: bob.drain() and len(bob.taken_of(sent)) == 30)
    assert bob.taken_of(sent) == sent


def test_order_of_two_senders_is_independent(world: World) -> None:
    alice, carol, bob = world.session("alice"), world.session("carol"), world.session("bob")
    for number in range(20):
        alice.send("bob", f"a{number}".encode())
        carol.send("bob", f"c{number}".encode())
    world.until(lambda: len(bob.handed) == 40)
    bodies = [message.body.decode() for message in bob.take_all()]
    for sender in "ac":
        assert [body for body in bodies if body[0] == sender] == [f"{sender}{number}" for number in range(20)]


def test_message_not_taken_within_a_second_is_busy(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send("bob", b"x")
    bob.gets(b"x")
    receipt = alice.hears(sent, "busy")
    assert isinstance(receipt, verbs.Receipt) and receipt.name == "bob"
    assert [message.msg_id for message in bob.take_all()] == [sent]
    world.quiet()
    assert alice.fate(sent) == "busy"  # the first receipt is final


def test_stopped_session_delays_nobody(world: World) -> None:
    alice, bob, carol = (world.session(name) for name in ("alice", "bob", "carol"))
    bob.stop()
    first, second = alice.send("bob", b"1"), alice.to_all(b"2")
    third = alice.send("carol", b"3")
    carol.takes(b"2", b"3")
    alice.hears(third, "delivered")
    alice.hears(first, "busy")
    alice.hears(second, (1, 1))
    bob.go()
    bob.takes(b"1", b"2")


@pytest.mark.parametrize("ending", ["bye", "die", "cut"])
def test_message_not_taken_waits_for_the_next_connection(world: World, ending: str) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    taken, sent = alice.send("bob", b"1"), alice.send("bob", b"2")
    bob.gets(b"1", b"2")
    bob.take()
    alice.hears(taken, "delivered")
    getattr(bob, ending)()
    if ending == "cut":
        world.until(lambda: len(bob.history) == 3)
    else:
        alice.hears(sent, "away")
        bob = world.again(bob)
    (message,) = bob.gets(b"2")
    assert ending == "cut" or message.age_s >= 0
    bob.take_all()
    alice.hears_it_is_safe(sent)


def test_group_message_goes_to_the_least_loaded_member(world: World) -> None:
    alice = world.session("alice", groups=("workers",))
    bob, carol = (world.session(name, groups=("workers",)) for name in ("bob", "carol"))
    world.session("dave", groups=("others",))
    first = alice.send("workers", b"1", scope=Scope.GROUP)
    world.until(lambda: bob.handed or carol.handed)
    loaded, free = (bob, carol) if bob.handed else (carol, bob)
    assert loaded.handed[0].header.scope == Scope.GROUP and loaded.handed[0].header.target == "workers"
    second = alice.send("workers", b"2", scope=Scope.GROUP)
    free.takes(b"2")
    receipt = alice.hears(second, "delivered")
    assert isinstance(receipt, verbs.Receipt) and receipt.name == free.core.persona.name
    world.quiet()  # the broker knows that it was taken, though the sender may have heard busy
    third = alice.send("workers", b"3", scope=Scope.GROUP)
    free.takes(b"3")
    loaded.takes(b"1")
    alice.hears(third, "delivered")
    alice.hears(first, "delivered")
    assert not alice.history  # a session does not get its own messages


# --- credit and limits


def test_messages_in_flight_are_bounded_and_the_rest_comes_in_order(world: World) -> None:
    alice, carol, bob = world.session("alice"), world.session("carol"), world.session("bob")
    half = CREDIT_MESSAGES // 2 + 50
    for number in range(half):
        alice.send("bob", f"a{number}".encode())
        last = carol.send("bob", f"c{number}".encode())
    # A message behind the credit is stored, and its sender hears so at once.
    carol.hears(last, "busy")
    world.until(lambda: len(bob.handed) == CREDIT_MESSAGES)
    world.quiet()
    assert len(bob.handed) == CREDIT_MESSAGES
    bob.take(50)
    world.until(lambda: len(bob.handed) == CREDIT_MESSAGES)
    world.quiet()
    assert len(bob.handed) == CREDIT_MESSAGES
    bob.take_all()
    world.until(lambda: len(bob.history) == 2 * half)
    bodies = [message.body.decode() for message in bob.history]
    for sender in "ac":
        assert [body for body in bodies if body[0] == sender] == [f"{sender}{number}" for number in range(half)]
    assert all(message.age_s >= 0 for message in bob.history[CREDIT_MESSAGES:])


def test_bytes_in_flight_are_bounded(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    size = verbs.SPILL_BYTES
    credit = Entry(Header("", "", None, 0, "", 0, None, 0.0), "", 0.0, size, (), bytes(size)).credit_bytes
    fit = CREDIT_BYTES // credit
    assert fit * (size + 200) <= CREDIT_BYTES < (fit + 1) * (size + 200)
    sent = [alice.send("bob", bytes([65 + number % 26]) * size) for number in range(fit + 3)]
    alice.hears(sent[-1], "busy")
    world.until(lambda: len(bob.handed) == fit)
    world.quiet()
    assert len(bob.handed) == fit
    bob.take_all()
    world.until(lambda: len(bob.handed) == 3)
    assert [message.msg_id for message in bob.history] == sent


def test_full_mailbox_is_refused_to_the_sender_and_nothing_is_dropped(world: World) -> None:
    alice, bob, carol = (world.session(name) for name in ("alice", "bob", "carol"))
    bob.bye()
    page = 500
    for first in range(0, MAX_MESSAGES, page):
        sent = [alice.send("bob", body) for body in numbers(first, first + page)]
        alice.hears(sent[-1], "away")
    refused = alice.send("bob", b"too many")
    assert "bob" in str(alice.hears(refused, "rate_limited"))
    cast = alice.to_all(b"for those who have room")
    carol.takes(b"for those who have room")
    tally = alice.hears(cast, (1, 0, "bob"))
    assert isinstance(tally, verbs.Tally)
    bob = world.again(bob)
    taken = 0
    while taken < MAX_MESSAGES:
        world.until(lambda: bob.handed)
        taken += len(bob.take_all())
    world.quiet()  # the broker knows: otherwise its window may be full when the next one comes over another socket
    later = alice.send("bob", b"and there is room again")
    bob.takes(b"and there is room again")
    alice.hears(later, "delivered")
    assert [message.body for message in bob.history] == [*numbers(0, MAX_MESSAGES), b"and there is room again"]


def test_message_unread_for_a_week_is_dropped(sim: SimWorld) -> None:
    """Simulated only: it takes a week."""
    alice, bob = sim.session("alice"), sim.session("bob")
    bob.bye()
    alice.hears(alice.send("bob", b"old"), "away")
    sim.net.clock.advance(6 * 86_400)
    alice.hears(alice.send("bob", b"young"), "away")
    sim.net.clock.advance(1.1 * 86_400)
    sim.pass_time(601)
    (message,) = sim.again(bob).takes(b"young")
    assert message.age_s >= 86_400
