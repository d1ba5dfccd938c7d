"""Batches of directed messages keep all the guarantees of single messages."""

from __future__ import annotations

import pytest

from tests.contract.worlds import Member, World
from zmqbus.broker.mailbox import CREDIT_MESSAGES, MAX_MESSAGES
from zmqbus.client import core
from zmqbus.journal.record import Record
from zmqbus.testing import session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import MAX_ENVELOPE_MESSAGES, Format, Scope

#: Bodies that are easily mangled: escapes, separators, ids, empty texts.
TEXTS = (b"one", b"", b"line\nline\r\n", 'quoted "\\" ü 🚀 \u2028'.encode(), b"msg=abcdefgh12 re=abcdefgh", b"x" * 4096)


def bodies(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


def receipts(member: Member) -> list[tuple[str, int]]:
    """Returns id and state of each receipted message, in the order of the receipts."""
    found = [one for one in member.heard if isinstance(one, verbs.Receipt)]
    return [(msg_id, one.state) for one in found for msg_id in one.msg_ids]


def records_of_alice(world: World) -> list[Record]:
    """Returns the records of alice's messages in the journal."""
    return [record for record in world.journal() if record.from_name == "alice"]


def received_in_batches(member: Member) -> int:
    """Returns how many messages arrived in a DELIVER with others."""
    return sum(len(one.msg_ids) for one in member.heard if isinstance(one, verbs.Deliver) and len(one.msg_ids) > 1)


def safe_and_taken_once(world: World, alice: Member, bob: Member, sent: list[str]) -> None:
    """Waits until all messages are taken, in order and once, and reported as safe."""
    world.until(lambda: bob.drain() and len(bob.taken_of(sent)) == len(sent))
    assert bob.taken_of(sent) == sent
    for msg_id in sent:
        alice.hears_it_is_safe(msg_id)


# --- all is well


@pytest.mark.parametrize("fmt", Format)
def test_batch_arrives_in_order_and_unchanged(world: World, fmt: Format) -> None:
    alice, bob = world.session("alice", label="Älice"), world.session("bob")
    texts = TEXTS if fmt == Format.TEXT else (*TEXTS, b"\xff\0")
    sent = alice.send_all("bob", *texts, fmt=fmt)
    messages = bob.gets(*texts)
    assert [message.msg_id for message in messages] == sent
    for message in messages:
        assert (message.header.from_name, message.header.from_session, message.header.from_label) == (
            "alice",
            session_id_of("alice"),
            "Älice",
        )
        assert (message.header.scope, message.header.target, message.header.fmt, message.header.reply_to) == (
            Scope.SESSION,
            "",
            fmt,
            None,
        )
        assert (message.age_s, message.pointer) == (-1, None) and message.header.ts > 0
    assert received_in_batches(bob) == (len(texts) if fmt == Format.TEXT else 0)
    bob.take_all()
    for msg_id in sent:
        alice.hears(msg_id, "delivered")
    assert [msg_id for msg_id, _ in receipts(alice)] == sent


def test_each_message_has_its_own_record(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = [*alice.send_all("bob", *TEXTS), alice.send("bob", b"alone"), *alice.send_all("bob", b"a", b"b")]
    expected = (*TEXTS, b"alone", b"a", b"b")
    bob.takes(*expected)
    for record, msg_id, body in zip(records_of_alice(world), sent, expected, strict=True):
        assert (record.msg_id, record.body, record.fmt, record.kind) == (msg_id, body, "text", "message")
        assert (record.from_name, record.to, record.to_session_id) == ("alice", "bob", session_id_of("bob"))
        assert record.reply_to is None


def test_long_sequence_is_sent_as_several_batches(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    texts = bodies(2 * MAX_ENVELOPE_MESSAGES + 7)
    sent = alice.send_all("bob", *texts)
    bob.takes(*texts)
    for msg_id in sent:
        alice.hears(msg_id, "delivered")
    assert received_in_batches(bob) == len(texts)


def test_each_message_keeps_its_place_among_others(world: World) -> None:
    alice, bob, carol = world.session("alice"), world.session("bob"), world.session("carol")
    sends = [
        core.Outgoing(world.new_id(), Scope.SESSION, target, 0, reply_to, False, b"%d" % number)
        for number, (target, reply_to) in enumerate(
            [("bob", None)] * 3 + [("carol", None)] * 2 + [("bob", "question1234")] + [("bob", None)] * 2
        )
    ]
    alice.perform(alice.core.send_all(sends))
    bob.takes(b"0", b"1", b"2", b"5", b"6", b"7")
    carol.takes(b"3", b"4")
    assert [message.header.reply_to for message in bob.history] == [None] * 3 + ["question1234"] + [None] * 2
    for send in sends:
        alice._sent_s[send.msg_id] = world.now_s
        alice.hears_it_is_safe(send.msg_id)


# --- apart


def test_batch_to_an_absent_session_is_queued_in_order(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    sent = alice.send_all("bob", *bodies(5))
    for msg_id in sent:
        alice.hears(msg_id, "away")
    assert [msg_id for msg_id, _ in receipts(alice)] == sent
    world.kill_broker()
    bob = world.again(bob)
    assert all(message.age_s >= 0 for message in bob.takes(*bodies(5)))


def test_untaken_messages_are_busy_and_safe(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send_all("bob", *bodies(4))
    bob.gets(*bodies(4))
    bob.take()
    for msg_id in sent[1:]:
        alice.hears(msg_id, "busy")
    alice.die()
    bob.die()
    world.kill_broker()
    bob = world.again(bob)
    bob.takes(*bodies(3, 1))
    assert bob.taken_of(sent) == sent


def test_messages_over_the_credit_wait(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    count = CREDIT_MESSAGES + MAX_ENVELOPE_MESSAGES // 2
    sent = alice.send_all("bob", *bodies(count))
    for msg_id in sent[CREDIT_MESSAGES:]:
        alice.hears(msg_id, "busy")
    bob.gets(*bodies(CREDIT_MESSAGES))
    bob.take(10)
    world.until(lambda: len(bob.handed) == CREDIT_MESSAGES)
    more = alice.send_all("bob", *bodies(3, count))  # behind what waits
    safe_and_taken_once(world, alice, bob, sent + more)
    assert [message.body for message in bob.history] == bodies(count + 3)
    assert all(message.age_s >= 0 for message in bob.history[CREDIT_MESSAGES:count])


@pytest.mark.slow
def test_messages_over_the_mailbox_limit_are_refused(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    sent = alice.send_all("bob", *bodies(MAX_MESSAGES - 3))
    sent += alice.send_all("bob", *bodies(6, MAX_MESSAGES - 3))
    for msg_id in sent[:MAX_MESSAGES]:
        alice.hears(msg_id, "away")
    for msg_id in sent[MAX_MESSAGES:]:
        alice.hears(msg_id, "rate_limited")
    bob = world.again(bob)
    world.until(lambda: bob.drain() and len(bob.history) == MAX_MESSAGES)
    assert [message.msg_id for message in bob.history] == sent[:MAX_MESSAGES]


def test_batch_to_an_unknown_target_is_refused(world: World) -> None:
    alice = world.session("alice")
    for msg_id in (*alice.send_all("nobody", *bodies(3)), *alice.send_all("alice", *bodies(3))):
        alice.hears(msg_id, "unknown_peer")
    assert records_of_alice(world) == []


def test_helper_sends_as_its_session(world: World) -> None:
    """A helper cannot send to its own session, whose name it has."""
    alice, bob = world.session("alice"), world.session("bob")
    helper = world.helper(alice)
    sent = helper.send_all("bob", *bodies(3))
    sent += alice.send_all("bob", *bodies(2, 3)) if bob.gets(*bodies(3)) else []
    messages = bob.takes(*bodies(5))
    assert {(message.header.from_name, message.header.from_session) for message in messages} == {
        ("alice", session_id_of("alice"))
    }
    for msg_id in sent[:3]:
        helper.hears(msg_id, "delivered")
    for msg_id in sent[3:]:
        alice.hears(msg_id, "delivered")
    for msg_id in helper.send_all("alice", *bodies(3)):
        helper.hears(msg_id, "unknown_peer")
    assert alice.history == []


def test_awaited_answer_does_not_overtake_a_batch(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    helper = world.helper(alice)
    question = helper.ask("bob", b"question")
    bob.takes(b"question")
    sent = bob.send_all("alice", *bodies(3))
    answer = bob.send("alice", b"answer", reply_to=question)
    helper.takes(b"answer")
    alice.takes(*bodies(3))
    for msg_id in (*sent, answer):
        bob.hears(msg_id, "delivered")


# --- broadcasts


def test_broadcast_between_two_batches_keeps_its_place(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    before = alice.send_all("bob", b"0", b"1")
    cast = alice.to_all(b"2")
    after = alice.send_all("bob", b"3", b"4")
    bob.takes(b"0", b"1", b"2", b"3", b"4")
    alice.hears(cast, (1, 0))
    for msg_id in (*before, *after):
        alice.hears(msg_id, "delivered")


def test_batch_waits_for_an_earlier_broadcast(world: World) -> None:
    """The broadcast is lost: the batch is held until it is retransmitted."""
    alice, bob = world.session("alice"), world.session("bob")
    cast = alice.to_all(b"0")
    bob.lose_broadcast()
    sent = alice.send_all("bob", b"1", b"2", b"3")
    bob.takes(b"0", b"1", b"2", b"3")
    assert any(isinstance(one, verbs.Deliver) and len(one.msg_ids) > 1 and one.after for one in bob.heard)
    alice.hears(cast, (1, 0))
    for msg_id in sent:
        alice.hears(msg_id, "delivered")


# --- mishaps


def test_connection_breaks_while_a_batch_is_taken(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send_all("bob", *bodies(10))
    bob.gets(*bodies(10))
    bob.take(4)
    bob.cut()
    world.until(lambda: bob.ready)
    sent += alice.send_all("bob", *bodies(5, 10))
    safe_and_taken_once(world, alice, bob, sent)
    # What was not taken came again, and what was taken was known.
    assert len([message for message in bob.history if message.msg_id in sent[:4]]) == 4


def test_receiver_dies_while_it_takes_a_batch(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send_all("bob", *bodies(10))
    bob.gets(*bodies(10))
    bob.take(4)
    bob.die()
    sent += alice.send_all("bob", *bodies(3, 10))
    bob = world.again(bob)
    safe_and_taken_once(world, alice, bob, sent)
    assert all(message.age_s >= 0 for message in bob.history if message.msg_id in sent[:10])


def test_reconnected_sender_repeats_each_message_and_none_arrives_twice(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send_all("bob", *bodies(10))
    bob.gets(*bodies(10))
    bob.take(3)
    alice.cut()
    world.until(lambda: alice.ready)
    sent += alice.send_all("bob", *bodies(4, 10))
    safe_and_taken_once(world, alice, bob, sent)
    assert [message.body for message in bob.history] == bodies(14)
    assert [record.msg_id for record in records_of_alice(world)] == sent


@pytest.mark.parametrize("taken", [0, 7, 20])
@pytest.mark.parametrize("stalled", [False, True])
def test_broker_dies_with_a_batch(world: World, taken: int, stalled: bool) -> None:
    """The broker has delivered the batch without receipts, or has not received it."""
    alice, bob = world.session("alice"), world.session("bob")
    first = alice.send_all("bob", *bodies(20))
    bob.gets(*bodies(20))
    if stalled:
        world.stall_broker()
        first += alice.send_all("bob", *bodies(5, 20))
    bob.take(taken)
    world.kill_broker()
    sent = first + alice.send_all("bob", *bodies(5, len(first)))
    safe_and_taken_once(world, alice, bob, sent)
    assert len([message for message in bob.history if message.msg_id in sent[:taken]]) == taken
    for message in bob.history[20:]:
        if message.msg_id in sent[:20]:
            assert message.age_s >= 0  # explains a second copy to its receiver


def test_reading_command_takes_over_untaken_messages(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send_all("bob", *bodies(6))
    bob.gets(*bodies(6))
    bob.take(2)
    helper = world.helper(bob)
    helper.begin(verbs.Fetch("f", False))
    helper.gets(*bodies(4, 2))
    world.until(lambda: not bob.handed)
    helper.take(3)
    sent += alice.send_all("bob", *bodies(3, 6))  # while it reads
    helper.gets(*bodies(4, 5))
    helper.take(2)
    world.quiet()
    assert not helper.responses
    helper.bye()
    bob.takes(b"7", b"8")
    assert bob.taken_of(sent) == sent
    for msg_id in sent:
        alice.hears_it_is_safe(msg_id)


def test_reading_command_learns_the_end_of_the_mailbox(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    alice.send_all("bob", *bodies(3))
    bob.gets(*bodies(3))
    helper = world.helper(bob)
    helper.begin(verbs.Fetch("f", False))
    helper.gets(*bodies(3))
    alice.send_all("bob", *bodies(2, 3))
    helper.gets(*bodies(5))
    helper.take(4)
    world.quiet()
    assert not helper.responses
    helper.take()
    world.until(lambda: helper.responses)
    assert helper.responses["f"] == verbs.Fetched("f", 5, 0)


def test_peek_leaves_a_batch(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send_all("bob", *bodies(4))
    bob.gets(*bodies(4))
    helper = world.helper(bob)
    assert helper.request(verbs.Fetch("f", True)) == verbs.Fetched("f", 4, 0)
    assert [message.body for message in helper.history] == bodies(4)
    world.until(lambda: len(bob.history) == 8)
    safe_and_taken_once(world, alice, bob, sent)
