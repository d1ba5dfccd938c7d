"""Repeated messages: each repeat is answered, and the message is accepted once."""

from __future__ import annotations

import pytest

from tests.contract.worlds import Member, World
from zmqbus.testing import session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope


def receipts(member: Member, msg_id: str) -> list[verbs.Envelope]:
    """All receipts for this message that have come, on any connection."""
    return [
        envelope
        for envelope in member.heard
        if (isinstance(envelope, verbs.Receipt) and msg_id in envelope.msg_ids)
        or (isinstance(envelope, verbs.Tally) and envelope.msg_id == msg_id)
        or (isinstance(envelope, verbs.Refused) and envelope.ref == msg_id)
    ]


@pytest.mark.parametrize("again", [False, True])
def test_repeat_over_the_same_connection(world: World, again: bool) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send("bob", b"1")
    said_again = verbs.Send.one(sent, Scope.SESSION, "bob", 0, None, again, b"1")
    alice.raw(said_again)  # without an outcome yet
    bob.takes(b"1")
    alice.hears(sent, "delivered")
    alice.raw(said_again)  # with a known outcome
    world.until(lambda: len(receipts(alice, sent)) >= 2)
    alice.send("bob", b"2")
    bob.takes(b"2")
    assert [message.body for message in bob.history] == [b"1", b"2"]


def test_repeated_broadcast_over_the_same_connection(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.to_all(b"1")
    bob.takes(b"1")
    alice.hears(sent, (1, 0))
    alice.repeat(sent, "", b"1", scope=Scope.ALL)
    alice.hears(sent, (1, 0))
    alice.to_all(b"2")
    bob.takes(b"2")
    assert [message.body for message in bob.history] == [b"1", b"2"]


def test_repeat_over_a_new_connection_before_its_outcome(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent, cast = alice.send("bob", b"1"), alice.to_all(b"2")
    bob.gets(b"1", b"2")
    alice.cut()
    world.until(lambda: alice.ready)
    bob.take_all()
    alice.hears(sent, "delivered")
    alice.hears(cast, (1, 0))
    assert [message.body for message in bob.history] == [b"1", b"2"]


def test_repeat_over_a_new_connection_after_its_outcome(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send("bob", b"1")
    bob.takes(b"1")
    alice.hears(sent, "delivered")
    alice.die()
    alice = world.again(alice)
    alice.repeat(sent, "bob", b"1")
    alice.hears(sent, "delivered")
    alice.send("bob", b"2")
    bob.takes(b"2")
    assert [message.body for message in bob.history] == [b"1", b"2"]


def test_guest_may_repeat_over_a_new_connection(world: World) -> None:
    bob, guest = world.session("bob"), world.guest("script")
    sent = guest.send("bob", b"1")
    bob.gets(b"1")
    guest.cut()
    world.until(lambda: guest.ready)
    bob.take_all()
    guest.hears(sent, "delivered")


def test_id_of_another_sender_is_refused(world: World) -> None:
    alice, bob, carol = world.session("alice"), world.session("bob"), world.session("carol")
    sent = alice.send("bob", b"alice's")
    bob.gets(b"alice's")
    carol.hears(carol.send("bob", b"carol's", msg_id=sent), "protocol")
    bob.take_all()
    alice.hears(sent, "delivered")
    carol.hears(carol.send("bob", b"carol's", msg_id=sent), "protocol")
    carol.hears(carol.send("bob", b"x", msg_id="NO ID AT ALL"), "protocol")
    assert [message.body for message in bob.history] == [b"alice's"]


def test_refusal_is_final(world: World) -> None:
    alice = world.session("alice")
    sent = alice.send("bob", b"1")
    said = str(alice.hears(sent, "unknown_peer"))
    bob = world.session("bob")
    alice.repeat(sent, "bob", b"1")
    assert str(alice.hears(sent, "unknown_peer")) == said
    world.kill_broker()
    alice.repeat(sent, "bob", b"1")
    assert str(alice.hears(sent, "unknown_peer")) == said
    alice.send("bob", b"2")
    bob.takes(b"2")
    assert [message.body for message in bob.history] == [b"2"]


# --- to the next broker


def test_unheard_message_is_repeated_to_the_next_broker(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    world.stall_broker()
    sent = [alice.send("bob", b"1"), alice.send("bob", b"2")]
    cast = alice.to_all(b"3")
    world.kill_broker()
    world.until(lambda: len(bob.handed) == 3)
    bob.takes(b"1", b"2", b"3")
    # Sender or receiver may be back first.
    for msg_id in (*sent, cast):
        alice.hears_it_is_safe(msg_id)
    world.quiet()
    assert [message.body for message in bob.history] == [b"1", b"2", b"3"]


def test_accepted_message_without_a_receipt_arrives_once(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send("bob", b"1")
    bob.gets(b"1")
    world.kill_broker()
    world.until(lambda: bob.history[1:])
    (message,) = bob.gets(b"1")
    assert message.msg_id == sent and message.age_s >= 0  # so that a user who has seen it before knows why
    bob.take_all()
    alice.hears_it_is_safe(sent)
    world.quiet()
    assert bob.handed == [] and len(bob.history) == 2


def test_receiver_that_reconnects_first_recognises_the_repeat(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    alice.to_all(b"1")
    alice.send("bob", b"2")
    bob.gets(b"1", b"2")
    alice.stop()
    world.kill_broker()
    world.until(lambda: bob.ready)
    world.attach(bob)
    alice.go()
    assert [message.age_s >= 0 for message in bob.takes(b"1", b"2")] == [True, True]


def test_unacknowledged_message_is_not_shown_again(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent, cast = alice.send("bob", b"1"), alice.to_all(b"2")
    bob.gets(b"1", b"2")
    world.stall_broker()
    assert len(bob.take_all()) == 2
    world.kill_broker()
    world.until(lambda: alice.fate(sent) and alice.fate(cast))
    alice.send("bob", b"3")
    bob.takes(b"3")
    assert [message.body for message in bob.history] == [b"1", b"2", b"3"]


def test_queued_message_stays_queued_at_the_next_broker(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    sent = alice.send("bob", b"1")
    alice.hears(sent, "away")
    world.kill_broker()
    alice.repeat(sent, "bob", b"1")
    receipt = alice.hears(sent, "away")
    assert isinstance(receipt, verbs.Receipt) and receipt.name == "bob"
    bob = world.again(bob)
    alice.send("bob", b"2")
    bob.takes(b"1", b"2")


def test_partly_taken_broadcast_arrives_at_the_others(world: World) -> None:
    alice, bob, carol, dave = (world.session(name) for name in ("alice", "bob", "carol", "dave"))
    dave.bye()
    cast = alice.to_all(b"1")
    bob.takes(b"1")
    carol.gets(b"1")
    world.kill_broker()
    world.until(lambda: carol.history[1:])
    carol.takes(b"1")
    tally = alice.hears_it_is_safe(cast)
    assert isinstance(tally, verbs.Tally) and tally.delivered + tally.queued == 3
    world.again(dave).takes(b"1")
    assert len(bob.history) == 1


def test_repeated_group_message_goes_to_the_same_member(world: World) -> None:
    alice = world.session("alice")
    workers = [world.session(name, groups=("workers",)) for name in ("bob", "carol")]
    sent = alice.send("workers", b"1", scope=Scope.GROUP)
    world.until(lambda: workers[0].handed or workers[1].handed)
    first, other = workers if workers[0].handed else workers[::-1]
    world.stall_broker()
    first.take_all()
    world.kill_broker()
    receipt = alice.hears_it_is_safe(sent)
    assert isinstance(receipt, verbs.Receipt) and receipt.name == first.core.persona.name
    world.quiet()
    assert other.history == []


def test_repeat_keeps_the_receiver_of_the_first_time(world: World) -> None:
    """If the name has changed hands since, the message stays with its first receiver."""
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send("bob", b"1")
    bob.gets(b"1")
    bob.request(verbs.Rename("r", "robert"))
    heir = world.session("heir", name="bob")
    world.kill_broker()
    world.until(lambda: alice.fate(sent) or len(bob.history) > 1)
    bob.takes(b"1")
    receipt = alice.hears_it_is_safe(sent)
    assert isinstance(receipt, verbs.Receipt) and receipt.session_id == session_id_of("bob")
    world.quiet()
    assert heir.history == []


def test_repeat_is_not_limited_again(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    for _ in range(59):
        last = alice.to_all(b"many")
    world.until(lambda: bob.drain() and alice.fate(last))
    cast = alice.to_all(b"the last")
    bob.gets(b"the last")
    world.kill_broker()
    world.until(lambda: bob.drain() and alice.fate(cast))
    tally = alice.hears_it_is_safe(cast)
    assert isinstance(tally, verbs.Tally) and tally.delivered + tally.queued == 1
