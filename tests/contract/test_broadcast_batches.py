"""Batches of broadcasts keep all the guarantees of single broadcasts."""

from __future__ import annotations

import pytest

from tests.contract.test_batches import TEXTS, bodies, records_of_alice
from tests.contract.worlds import Member, World
from zmqbus.broker.admission import BROADCASTS_PER_MINUTE
from zmqbus.testing import session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope


def three_sessions(world: World) -> tuple[Member, Member, Member]:
    return world.session("alice"), world.session("bob"), world.session("carol")


def published_in_batches(member: Member) -> int:
    """Returns how many messages arrived in a BROADCAST with others."""
    casts = [one for one in member.overheard if isinstance(one, verbs.Broadcast)]
    return sum(len(one.msg_ids) for one in casts if len(one.msg_ids) > 1)


def retransmissions(member: Member) -> int:
    """Returns how many broadcasts were retransmitted by the DEALER."""
    return len([one for one in member.heard if isinstance(one, verbs.Deliver) and one.bcast])


def safe_and_taken_once(world: World, alice: Member, sent: list[str], *members: Member) -> None:
    """Waits until each member has taken all messages, in order and once, and they are reported as safe."""
    for member in members:
        world.until(lambda member=member: member.drain() and len(member.taken_of(sent)) == len(sent))  # type: ignore[misc]
        assert member.taken_of(sent) == sent
    for msg_id in sent:
        alice.hears_it_is_safe(msg_id)


def test_batch_reaches_everybody_in_order_and_unchanged(world: World) -> None:
    alice, bob, carol = world.session("alice", label="Älice"), world.session("bob"), world.session("carol")
    sent = alice.send_all("", *TEXTS, scope=Scope.ALL)
    for member in (bob, carol):
        messages = member.gets(*TEXTS)
        assert [message.msg_id for message in messages] == sent
        for message in messages:
            assert (message.header.from_name, message.header.from_session) == ("alice", session_id_of("alice"))
            assert (message.header.from_label, message.header.scope, message.header.target) == ("Älice", Scope.ALL, "")
            assert (message.age_s, message.pointer, message.header.reply_to) == (
                -1,
                None,
                None,
            ) and message.header.ts > 0
        assert published_in_batches(member) == len(TEXTS)
        member.take_all()
    for msg_id in sent:
        alice.hears(msg_id, (2, 0))
    assert alice.history == [] and [record.msg_id for record in records_of_alice(world)] == sent
    assert {(record.kind, record.to) for record in records_of_alice(world)} == {("broadcast", "all")}


def test_topics_and_projects(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob", topics=("deploys",))
    carol = world.session("carol", project="/p/q")
    sent = alice.send_all("deploys", b"1", b"2", scope=Scope.TOPIC)
    assert [(one.header.scope, one.header.target) for one in bob.takes(b"1", b"2")] == [(Scope.TOPIC, "deploys")] * 2
    sent += alice.send_all("/p/q", b"3", b"4", scope=Scope.PROJECT)
    assert [(one.header.scope, one.header.target) for one in carol.takes(b"3", b"4")] == [(Scope.PROJECT, "/p/q")] * 2
    for msg_id in sent:
        alice.hears(msg_id, (1, 0))
    for msg_id in alice.send_all("nobody-there", b"5", b"6", scope=Scope.TOPIC):
        alice.hears(msg_id, (0, 0))


def test_batch_waits_in_order_for_an_absent_session(world: World) -> None:
    alice, bob, carol = three_sessions(world)
    carol.bye()
    sent = alice.send_all("", *bodies(5), scope=Scope.ALL)
    bob.takes(*bodies(5))
    for msg_id in sent:
        alice.hears(msg_id, (1, 1))
    messages = world.again(carol).takes(*bodies(5))
    assert all(message.age_s >= 0 for message in messages)


def test_untaken_broadcasts_are_busy_and_safe(world: World) -> None:
    alice, bob, carol = three_sessions(world)
    sent = alice.send_all("", *bodies(5), scope=Scope.ALL)
    bob.takes(*bodies(5))
    carol.gets(*bodies(5))
    for msg_id in sent:
        alice.hears(msg_id, (1, 1))
    carol.die()
    assert [message.body for message in world.again(carol).takes(*bodies(5))] == bodies(5)


def test_broadcasts_keep_their_place_among_directed_messages(world: World) -> None:
    alice, bob, carol = three_sessions(world)
    sent = alice.send_all("", *bodies(3), scope=Scope.ALL)
    sent += alice.send_all("bob", *bodies(3, 3))
    last = alice.send_all("", *bodies(3, 6), scope=Scope.ALL)
    bob.takes(*bodies(9))
    carol.takes(*bodies(3), *bodies(3, 6))
    for msg_id in (*sent, *last):
        alice.hears_it_is_safe(msg_id)


def test_helper_broadcasts_as_its_session_which_gets_none(world: World) -> None:
    alice, bob, _ = three_sessions(world)
    helper = world.helper(alice)
    sent = helper.send_all("", *bodies(3), scope=Scope.ALL)
    assert {message.header.from_name for message in bob.takes(*bodies(3))} == {"alice"}
    for msg_id in sent:
        helper.hears_it_is_safe(msg_id)
    behind = bob.send("alice", b"behind")
    alice.takes(b"behind")
    bob.hears(behind, "delivered")
    assert len(alice.history) == 1


def test_messages_over_the_rate_are_refused(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send_all("", *bodies(BROADCASTS_PER_MINUTE + 5), scope=Scope.ALL)
    for msg_id in sent[BROADCASTS_PER_MINUTE:]:
        assert "retry in" in str(alice.hears(msg_id, "rate_limited"))
    bob.takes(*bodies(BROADCASTS_PER_MINUTE))
    for msg_id in sent[:BROADCASTS_PER_MINUTE]:
        alice.hears_it_is_safe(msg_id)


# --- mishaps


def test_lost_batch_comes_before_later_messages(world: World) -> None:
    alice, bob, carol = three_sessions(world)
    sent = alice.send_all("", *bodies(4), scope=Scope.ALL)
    bob.lose_broadcast()
    sent += alice.send_all("", *bodies(3, 4), scope=Scope.ALL)
    bob.takes(*bodies(7))
    carol.takes(*bodies(7))
    for msg_id in sent:
        alice.hears(msg_id, (2, 0))
    assert retransmissions(bob) >= 4 and not retransmissions(carol)


def test_beat_reveals_that_the_last_batch_was_lost(world: World) -> None:
    alice, bob, carol = three_sessions(world)
    sent = alice.send_all("", *bodies(4), scope=Scope.ALL)
    bob.lose_broadcast()
    carol.takes(*bodies(4))
    bob.takes(*bodies(4))
    for msg_id in sent:
        alice.hears(msg_id, (2, 0))
    assert any(isinstance(envelope, verbs.Beat) for envelope in bob.heard)


def test_directed_message_waits_for_a_lost_batch(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    alice.send_all("", *bodies(3), scope=Scope.ALL)
    bob.lose_broadcast()
    alice.send("bob", b"3")
    bob.takes(*bodies(4))


@pytest.mark.parametrize("deaf", [False, True])
def test_connection_breaks_while_a_batch_is_taken(world: World, deaf: bool) -> None:
    alice, bob, carol = three_sessions(world)
    sent = alice.send_all("", *bodies(6), scope=Scope.ALL)
    if deaf:
        bob.lose_broadcast()
    else:
        bob.gets(*bodies(6))
        bob.take(2)
    bob.cut()
    world.until(lambda: bob.ready)
    sent += alice.send_all("", *bodies(3, 6), scope=Scope.ALL)
    safe_and_taken_once(world, alice, sent, bob, carol)


def test_reconnected_sender_repeats_each_message_and_none_arrives_twice(world: World) -> None:
    alice, bob, carol = three_sessions(world)
    sent = alice.send_all("", *bodies(6), scope=Scope.ALL)
    bob.gets(*bodies(6))
    bob.take(3)
    alice.cut()
    world.until(lambda: alice.ready)
    sent += alice.send_all("", *bodies(4, 6), scope=Scope.ALL)
    safe_and_taken_once(world, alice, sent, bob, carol)
    assert [message.body for message in bob.history] == bodies(10)
    assert [record.msg_id for record in records_of_alice(world)] == sent


@pytest.mark.parametrize("taken", [0, 3, 8])
@pytest.mark.parametrize("stalled", [False, True])
def test_broker_dies_with_a_batch(world: World, taken: int, stalled: bool) -> None:
    alice, bob, carol = three_sessions(world)
    sent = alice.send_all("", *bodies(8), scope=Scope.ALL)
    bob.gets(*bodies(8))
    carol.gets(*bodies(8))
    if stalled:
        world.stall_broker()
        sent += alice.send_all("", *bodies(4, 8), scope=Scope.ALL)
    bob.take(taken)
    world.kill_broker()
    sent += alice.send_all("", *bodies(4, len(sent)), scope=Scope.ALL)
    safe_and_taken_once(world, alice, sent, bob, carol)
    assert len([message for message in bob.history if message.msg_id in sent[:taken]]) == taken


def test_reading_command_takes_over_untaken_broadcasts(world: World) -> None:
    alice, bob, carol = three_sessions(world)
    sent = alice.send_all("", *bodies(5), scope=Scope.ALL)
    bob.gets(*bodies(5))
    bob.take(2)
    helper = world.helper(bob)
    helper.begin(verbs.Fetch("f", False))
    helper.gets(*bodies(3, 2))
    world.until(lambda: not bob.handed)
    helper.take_all()
    world.until(lambda: helper.responses)
    carol.takes(*bodies(5))
    for msg_id in sent:
        alice.hears_it_is_safe(msg_id)
    assert bob.taken_of(sent) == sent
