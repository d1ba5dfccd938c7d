"""Ephemeral sessions, which nobody named, and sessions that leave for good."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.simulated import SimMember, SimWorld
from tests.contract.worlds import Member, World
from zmqbus.broker.connections import SILENCE_S
from zmqbus.broker.core import QUIET_TICK_S
from zmqbus.broker.retention import EPHEMERAL_LOOK_S
from zmqbus.errors import ZmqbusError
from zmqbus.testing import session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role, Scope


def names(member: Member) -> set[str]:
    """The names in the list of all sessions."""
    page = member.request(verbs.List("names", True, ""))
    return {row[0] for row in page.rows} - {"prober"}


def worker(world: World, name: str = "w-1", **persona: Any) -> Member:
    """An ephemeral session: a program without a chosen name."""
    return world.session(name, **{"role": Role.PROGRAM, "named": False, "groups": ("g",), **persona})


def forget(member: Member) -> verbs.Forget:
    persona = member.core.persona
    return verbs.Forget("f", persona.session_id or "", persona.token or "")


def not_taken(sender: Member, msg_id: str) -> bool:
    """Waits for the outcome of a message that was not taken: refused, or reported as queued before."""
    sender.world.until(lambda: msg_id in sender.answers)
    return sender.fate(msg_id) in ("unknown_peer", "busy", "away")


def test_killed_worker_is_forgotten(world: World) -> None:
    alice, killed, named = world.session("alice"), worker(world, owner=world.dead_owner), world.session("bob")
    sent = alice.send("w-1", b"x")
    killed.gets(b"x")
    killed.die()
    named.die()
    world.until(lambda: names(alice) == {"alice", "bob"})
    assert not_taken(alice, sent)
    alice.hears(alice.send("w-1", b"x"), "unknown_peer")
    alice.hears(alice.to_all(b"x"), (0, 1))  # for bob, who has a name
    world.kill_broker()
    assert names(alice) == {"alice", "bob"}


def test_lost_connection_of_a_living_process_costs_nothing(world: World) -> None:
    alice, cut = world.session("alice"), worker(world, topics=("t",))
    cut.die()  # without BYE; its owner lives
    alice.hears(alice.send("w-1", b"1"), "away")
    alice.hears(alice.send("t", b"2", scope=Scope.TOPIC), (0, 1))
    world.kill_broker()
    alice.hears(alice.send("w-1", b"3"), "away")
    back = world.again(cut)
    back.takes(b"1", b"2", b"3")
    back.cut()
    world.until(lambda: back.ready)
    alice.send("w-1", b"4")
    back.takes(b"4")


def test_worker_that_says_bye_is_unknown_at_once(world: World) -> None:
    alice, bob, leaving = world.session("alice"), world.session("bob"), worker(world)
    sent = alice.send("w-1", b"1")
    cast = alice.to_all(b"2")
    leaving.gets(b"1", b"2")
    bob.takes(b"2")
    leaving.bye()
    assert not_taken(alice, sent)
    world.until(lambda: cast in alice.answers)
    assert alice.fate(cast) in ((1, 0), (1, 1))  # refused, unless a second had passed
    assert names(alice) == {"alice", "bob"}
    alice.hears(alice.send("w-1", b"3"), "unknown_peer")
    alice.hears(alice.send(session_id_of("w-1"), b"3"), "unknown_peer")
    # If it came back, it would be a new session.
    again = world.again(leaving)
    assert again.core.welcome is not None and again.core.welcome.waiting == 0
    later = alice.send("w-1", b"4")
    again.takes(b"4")
    alice.hears(later, "delivered")


def test_worker_that_ended_without_a_broker_is_not_restored(world: World) -> None:
    alice, killed = world.session("alice"), worker(world, owner=world.dead_owner)
    sent = alice.send("w-1", b"1")
    killed.gets(b"1")
    world.stall_broker()
    killed.die()
    world.kill_broker()
    assert names(alice) == {"alice"}
    assert not_taken(alice, sent)
    world.kill_broker()
    assert names(alice) == {"alice"}


def test_disconnected_worker_is_forgotten(world: World) -> None:
    alice, bob = world.session("alice"), worker(world, "w-2")
    sent = alice.send("w-2", b"1")
    bob.gets(b"1")
    assert world.helper(bob).request(verbs.Disconnect("d")) == verbs.Done("d", "disconnected")
    world.until(lambda: bob.closed == [None])
    assert not_taken(alice, sent)
    assert names(alice) == {"alice"}
    again = world.again(bob)
    assert again.core.welcome is not None and again.core.welcome.waiting == 0


@pytest.mark.parametrize("by_helper", [False, True])
def test_named_session_leaves_for_good(world: World, by_helper: bool) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    first = alice.send("bob", b"1")
    bob.takes(b"1")
    alice.hears(first, "delivered")
    sent = alice.send("bob", b"2")
    bob.gets(b"2")
    who = world.helper(bob) if by_helper else bob
    assert who.request(forget(bob)) == verbs.Done("f", "1")
    world.until(lambda: bob.closed == [None])
    bob.take_all()  # its later messages have no effect
    assert not_taken(alice, sent)
    assert names(alice) == {"alice"}
    alice.hears(alice.send("bob", b"3"), "unknown_peer")
    other = world.session("other", name="bob")  # the name is free, without mail
    assert other.core.welcome is not None and other.core.welcome.waiting == 0
    other.bye()
    alice.hears(alice.send("bob", b"4"), "away")  # it has a name
    world.kill_broker()
    world.again(other).takes(b"4")


def test_command_can_forget_an_absent_session(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    for number in range(3):
        alice.hears(alice.send("bob", str(number).encode()), "away")
    helper = world.helper(bob)
    assert helper.request(forget(bob)) == verbs.Done("f", "3")
    assert names(alice) == {"alice"}
    helper.bye()
    world.kill_broker()
    assert names(alice) == {"alice"}
    assert world.again(bob).history == []


def test_forgetting_needs_the_token(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    for who in (alice, bob):
        refused = who.request(forget(bob)._replace(token="guessed"))
        assert isinstance(refused, ZmqbusError) and refused.code == "unauthorized"
    assert names(alice) == {"alice", "bob"}
    assert bob.request(forget(bob)._replace(session_id="nobody")) == verbs.Done("f", "0")
    assert not bob.closed and names(alice) == {"alice", "bob"}


def test_command_before_its_program_keeps_the_session_ephemeral(world: World) -> None:
    alice = world.session("alice")
    bob = worker(world)
    bob.die()
    world.kill_broker()
    helper = world.helper(bob)
    alice.hears(alice.send("w-1", b"x"), "away")
    assert helper.request(forget(bob)) == verbs.Done("f", "1")
    assert names(alice) == {"alice"}


# --- in the simulated world alone: its clock, its processes and its store


@pytest.fixture
def crew(sim: SimWorld) -> tuple[Member, Member]:
    """Alice, and a worker whose process can be ended."""
    sim.net.living_owners.add("7:7")
    return sim.session("alice"), worker(sim, owner="7:7")


def kept(sim: SimWorld) -> tuple[int, set[str]]:
    """What the store holds: messages, and sessions."""
    return sim.net.store.total(), {row.name for row in sim.net.store.recover(0).sessions}


def test_ended_process_is_forgotten_with_its_mail(sim: SimWorld, crew) -> None:
    alice, bob = crew
    bob.die()
    alice.hears(alice.send("w-1", b"x"), "away")
    sim.pass_time(3600)
    assert names(alice) == {"alice", "w-1"}
    assert kept(sim) == (1, {"alice", "w-1"})
    sim.net.living_owners.discard("7:7")
    sim.pass_time(EPHEMERAL_LOOK_S + QUIET_TICK_S)
    assert names(alice) == {"alice"}
    sim.pass_time(EPHEMERAL_LOOK_S + QUIET_TICK_S)
    assert kept(sim) == (0, {"alice"})
    assert any("'w-1'" in note and "dropped its 1 unread messages" in note for note in sim.net.notes)
    assert not sim.net.broker.retention.needs_tick


def test_dead_process_with_an_open_connection_is_off_the_list_within_15_s(sim, crew) -> None:
    alice, bob = crew
    sim.net.living_owners.discard("7:7")
    bob.client.vanish()
    bob.stop()
    sim.pass_time(15)
    assert SILENCE_S + QUIET_TICK_S < 15
    assert names(alice) == {"alice"}


def test_process_stopped_for_an_hour_loses_nothing(sim: SimWorld, crew) -> None:
    alice, bob = crew
    bob.stop()
    cast = alice.to_all(b"1")
    sim.pass_time(3600)
    assert alice.fate(cast) == (0, 1)
    bob.go()
    bob.takes(b"1")
    sim.pass_time(EPHEMERAL_LOOK_S + QUIET_TICK_S)
    assert not sim.net.broker.retention.needs_tick


@pytest.mark.parametrize("directed", [False, True])
def test_message_that_crosses_a_bye_is_not_reported_as_queued(sim: SimWorld, crew, directed) -> None:
    alice, bob = crew
    sent = alice.send("w-1", b"1") if directed else alice.to_all(b"1")
    assert isinstance(bob, SimMember)
    bob.client.bye()
    sim.quiet()
    assert alice.fate(sent) == ("unknown_peer" if directed else (0, 0))
    sim.pass_time(EPHEMERAL_LOOK_S + QUIET_TICK_S)
    assert kept(sim) == (0, {"alice"})


def test_message_in_flight_to_a_killed_worker_is_not_reported_as_queued(sim: SimWorld, crew) -> None:
    alice, bob = crew
    sent, cast = alice.send("w-1", b"1"), alice.to_all(b"2")
    bob.gets(b"1", b"2")
    sim.net.living_owners.discard("7:7")
    bob.die()
    sim.quiet()
    assert (alice.fate(sent), alice.fate(cast)) == ("unknown_peer", (0, 0))


def test_session_that_left_does_not_reconnect_by_itself(sim: SimWorld, crew) -> None:
    alice, bob = sim.session("carol"), sim.session("dave")
    alice.send("dave", b"1")
    bob.gets(b"1")
    assert bob.request(forget(bob)) == verbs.Done("f", "1")
    bob.take_all()
    sim.pass_time(3600)
    assert names(alice) == {"alice", "carol", "w-1"}


def test_bye_counts_though_the_lost_connection_is_seen_first(sim: SimWorld, crew) -> None:
    alice, bob = sim.session("carol"), sim.session("dave")
    assert isinstance(bob, SimMember)
    bob.begin(forget(bob))
    bob.client.drop_subscriber()  # which the broker sees before the messages on the DEALER
    sim.quiet()
    assert bob.responses["f"] == verbs.Done("f", "0") and bob.closed == [None]
    assert names(alice) == {"alice", "carol", "w-1"}


def test_next_broker_forgets_processes_that_ended_before_it(sim: SimWorld, crew) -> None:
    alice, bob = crew
    bob.die()
    alice.hears(alice.send("w-1", b"x"), "away")
    sim.net.living_owners.discard("7:7")
    sim.kill_broker()
    assert kept(sim) == (0, {"alice"})
    assert any("dropped its 1 unread messages" in note for note in sim.net.notes)


def test_session_is_kept_while_a_command_acts_for_it(sim: SimWorld, crew) -> None:
    alice, bob = crew
    helper = sim.helper(bob)
    bob.bye()
    sim.pass_time(60)
    assert session_id_of("w-1") in sim.net.broker.registry.sessions
    helper.hears(helper.send("alice", b"x"), "busy")
    helper.bye()
    sim.pass_time(EPHEMERAL_LOOK_S + QUIET_TICK_S)
    assert session_id_of("w-1") not in sim.net.broker.registry.sessions
    assert names(alice) == {"alice"}


def test_session_is_forgotten_though_the_store_cannot_be_written(sim: SimWorld, crew) -> None:
    alice, bob = crew
    sim.net.store.fails = "disk full"
    sent = alice.send("w-1", b"1")
    bob.gets(b"1")
    bob.bye()
    assert not_taken(alice, sent)
    sim.pass_time(EPHEMERAL_LOOK_S + QUIET_TICK_S)
    sim.net.store.fails = None
    sim.pass_time(1)
    assert kept(sim) == (0, {"alice"})


def test_mail_of_an_ephemeral_session_is_not_inherited(sim: SimWorld, crew) -> None:
    alice, bob = crew
    bob.die()
    alice.hears(alice.send("w-1", b"x"), "away")
    sim.net.living_owners.discard("7:7")
    other = sim.session("other", name="w-1")
    assert other.core.welcome is not None and other.core.welcome.waiting == 0
