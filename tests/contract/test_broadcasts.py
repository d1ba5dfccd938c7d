"""Broadcasts: to every session of the audience, once each, in order, whatever the PUB loses."""

from __future__ import annotations

import pytest

from tests.contract.simulated import SimWorld
from tests.contract.worlds import Member, World
from zmqbus.broker.admission import BROADCASTS_PER_MINUTE, MINUTE_S
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope


def crew(world: World, **persona: object) -> tuple[Member, Member, Member]:
    return world.session("alice", **persona), world.session("bob", **persona), world.session("carol", **persona)


def resent(member: Member) -> list[int]:
    """Numbers of the broadcasts that were retransmitted over the DEALER."""
    return [envelope.bcast for envelope in member.heard if isinstance(envelope, verbs.Deliver) and envelope.bcast]


def test_every_session_connected_or_away_gets_it_once(world: World) -> None:
    alice, bob, carol = crew(world)
    carol.bye()
    guest = world.guest("script")
    first = alice.to_all(b"1")
    bob.takes(b"1")
    assert alice.hears(first, (1, 1))
    second = guest.send("", b"2", scope=Scope.ALL)
    bob.takes(b"2")
    alice.takes(b"2")
    guest.hears(second, (2, 1))
    carol = world.again(carol)
    messages = carol.takes(b"1", b"2")
    assert all(message.age_s >= 0 for message in messages)
    assert [message.header.from_name for message in messages] == ["alice", "script"]
    # A later message on the same channel shows that nothing else came.
    alice.to_all(b"3")
    bob.takes(b"3")
    carol.takes(b"3")
    assert [message.body for message in bob.history] == [b"1", b"2", b"3"]
    assert [message.body for message in alice.history] == [b"2"]


def test_audience_is_decided_when_it_is_accepted(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    early = alice.to_all(b"early")
    bob.takes(b"early")
    alice.hears(early, (1, 0))
    dave = world.session("dave")
    alice.to_all(b"late")
    dave.takes(b"late")
    assert [message.body for message in dave.history] == [b"late"]


def test_broadcast_without_other_sessions(world: World) -> None:
    alice = world.session("alice")
    alice.hears(alice.to_all(b"x"), (0, 0))
    alice.hears(alice.send("deploys", b"x", scope=Scope.TOPIC), (0, 0))


def test_topic_and_project_have_their_own_receivers(world: World) -> None:
    alice = world.session("alice")
    bob = world.session("bob", topics=("deploy",), project="/p")
    carol = world.session("carol", topics=("deploys",), project="/p/q")
    sent = alice.send("deploys", b"topic", scope=Scope.TOPIC)
    (message,) = carol.takes(b"topic")
    assert (message.header.scope, message.header.target) == (Scope.TOPIC, "deploys")
    alice.hears(sent, (1, 0))
    sent = alice.send("/p", b"project", scope=Scope.PROJECT)
    (message,) = bob.takes(b"project")
    assert (message.header.scope, message.header.target) == (Scope.PROJECT, "/p")
    alice.hears(sent, (1, 0))
    alice.to_all(b"all")
    bob.takes(b"all")
    carol.takes(b"all")
    assert [message.body for message in bob.history] == [b"project", b"all"]
    assert [message.body for message in carol.history] == [b"topic", b"all"]


def test_large_broadcast_is_a_pointer_for_each_receiver(world: World) -> None:
    alice, bob, carol = crew(world)
    body = b"0123456789" * (verbs.MAX_BROADCAST_BYTES // 10)
    sent = alice.to_all(body)
    for member in (bob, carol):
        world.until(lambda member=member: member.handed)  # type: ignore[misc]
        (message,) = member.take_all()
        assert message.pointer is not None and message.body == b""
        assert world.whole(message) == body
    alice.hears(sent, (2, 0))


# --- losses


def test_lost_broadcast_comes_before_later_ones(world: World) -> None:
    alice, bob, carol = crew(world)
    sent = [alice.to_all(b"1")]
    bob.lose_broadcast()
    sent += [alice.to_all(b"2"), alice.send("bob", b"3"), alice.to_all(b"4")]
    bob.takes(b"1", b"2", b"3", b"4")
    carol.takes(b"1", b"2", b"4")
    for msg_id in sent:
        alice.hears(msg_id, "delivered" if msg_id == sent[2] else (2, 0))
    assert resent(bob) and not resent(carol)


def test_beat_reveals_that_the_last_broadcast_was_lost(world: World) -> None:
    alice, bob, carol = crew(world)
    sent = alice.to_all(b"1")
    bob.lose_broadcast()
    carol.takes(b"1")
    bob.takes(b"1")
    alice.hears(sent, (2, 0))
    assert any(isinstance(envelope, verbs.Beat) for envelope in bob.heard)


def test_directed_message_waits_for_a_lost_broadcast(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    first = alice.to_all(b"1")
    bob.lose_broadcast()
    second = alice.send("bob", b"2")
    bob.takes(b"1", b"2")
    alice.hears(first, (1, 0))
    alice.hears(second, "delivered")


def test_several_lost_broadcasts_come_in_order(world: World) -> None:
    alice, bob, carol = crew(world)
    for number in range(6):
        alice.to_all(str(number).encode())
        if number in (1, 2, 4):
            bob.lose_broadcast()
        world.quiet()
    expected = [str(number).encode() for number in range(6)]
    bob.takes(*expected)
    carol.takes(*expected)


def test_lost_broadcast_is_owed_to_the_next_process(world: World) -> None:
    alice, bob, _ = crew(world)
    alice.to_all(b"1")
    bob.lose_broadcast()
    bob.die()
    bob = world.again(bob)
    assert bob.takes(b"1")[0].age_s >= 0


def test_broken_sub_loses_nothing(world: World) -> None:
    alice, bob, carol = crew(world)
    lease = bob.lease
    alice.to_all(b"1")
    bob.lose_broadcast()
    bob.cut_subscriber()
    alice.to_all(b"2")
    alice.to_all(b"3")
    bob.takes(b"1", b"2", b"3")
    carol.takes(b"1", b"2", b"3")
    world.quiet()
    # The client was told and has reconnected, unless the new presence subscription came before the old one went, which
    # XPUB does not report. Then it was a gap like any other.
    told = any(isinstance(envelope, verbs.Expired) for envelope in bob.heard)
    assert told == (bob.lease != lease)
    assert told or not isinstance(world, SimWorld)
    world.attach(bob)
    before = len(bob.overheard)
    last = alice.to_all(b"4")
    bob.takes(b"4")
    carol.takes(b"4")
    alice.hears(last, (2, 0))
    assert len(bob.overheard) == before + 1  # by the new SUB


@pytest.mark.parametrize("deaf", [False, True])
def test_broken_connection_loses_no_broadcast(world: World, deaf: bool) -> None:
    alice, bob, carol = crew(world)
    alice.to_all(b"1")
    if deaf:
        bob.lose_broadcast()
    else:
        bob.gets(b"1")
    bob.cut()
    alice.to_all(b"2")
    carol.takes(b"1", b"2")
    world.until(lambda: bob.ready and len(bob.handed) == 2)
    bob.takes(b"1", b"2")


def test_lost_broadcast_is_retransmitted_to_its_receiver_alone(world: World) -> None:
    alice, bob, carol = crew(world)
    alice.to_all(b"1")
    bob.lose_broadcast()
    carol.takes(b"1")
    alice.to_all(b"2")
    bob.takes(b"1", b"2")
    carol.takes(b"2")
    world.quiet()
    assert len(resent(bob)) == 1 and not resent(carol)


# --- rates


def test_rate_limit_counts_a_session_and_its_commands(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    helper = world.helper(alice)
    for number in range(BROADCASTS_PER_MINUTE):
        speaker = helper if number % 2 else alice
        last = speaker.to_all(str(number).encode())
    world.quiet()  # once: sixty of these may take the minute that this is about
    bob.drain()
    assert "retry in" in str(alice.hears(alice.to_all(b"x"), "rate_limited"))
    helper.hears(helper.to_all(b"x"), "rate_limited")
    world.until(lambda: bob.drain() and speaker.fate(last))
    # The limit is the session's, not the bus's, and not for directed messages.
    bob.to_all(b"another's")
    alice.takes(b"another's")
    alice.send("bob", b"directed")
    world.until(lambda: bob.drain() and len(bob.history) == BROADCASTS_PER_MINUTE + 1)
    assert bob.history[-1].body == b"directed"


def test_rate_limit_counts_guests_by_name(world: World) -> None:
    guest = world.guest("script")
    for _ in range(BROADCASTS_PER_MINUTE):
        last = guest.to_all()
    guest.hears(last, (0, 0))
    guest.bye()
    guest = world.guest("script")
    guest.hears(guest.to_all(), "rate_limited")


def test_rate_limit_ends_after_a_minute(sim: SimWorld) -> None:
    """Simulated only: it takes a minute."""
    alice, _ = sim.session("alice"), sim.session("bob")
    for _ in range(BROADCASTS_PER_MINUTE):
        alice.to_all()
    sim.quiet()
    alice.hears(alice.to_all(), "rate_limited")
    sim.pass_time(MINUTE_S + 0.1)
    alice.hears(alice.to_all(), (0, 1))
