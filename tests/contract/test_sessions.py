"""Sessions: tokens, leases, names, and the verbs that each role may send."""

from __future__ import annotations

import pytest

from tests.contract.simulated import SimMember, SimWorld
from tests.contract.worlds import Member, World
from zmqbus.broker.connections import MAX_PROBE_PAUSE_S, SILENCE_S
from zmqbus.broker.fetch import RECALL_S
from zmqbus.client.core import PING_S, Displaced
from zmqbus.errors import NameTaken, ZmqbusError
from zmqbus.testing import session_id_of
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import Role


def rows(member: Member, *, everyone: bool = True) -> dict[str, verbs.Session]:
    page = member.request(verbs.List("rows", everyone, ""))
    return {row[0]: verbs.Session._make(row) for row in page.rows}


def refusal(member: Member) -> str:
    """The code with which its HELLO was refused."""
    (error,) = member.closed
    assert isinstance(error, ZmqbusError)
    return getattr(error, "wire_code", error.code)


def test_second_process_displaces_the_first_and_gets_its_untaken_mail(world: World) -> None:
    alice, old = world.session("alice"), world.session("bob")
    alice.send("bob", b"1")
    sent = alice.send("bob", b"2")
    old.gets(b"1", b"2")
    old.take()
    new = world.again(old)
    world.until(lambda: old.closed)
    assert isinstance(old.closed[0], Displaced)
    (message,) = new.takes(b"2")
    assert message.age_s >= 0
    alice.hears_it_is_safe(sent)
    # Later messages of the first have no effect.
    old.take_all()
    later = alice.send("bob", b"3")
    new.takes(b"3")
    alice.hears(later, "delivered")
    assert [message.body for message in old.history] == [b"1", b"2"]
    assert not new.closed


def test_stopped_process_is_displaced_when_it_continues(world: World) -> None:
    alice, old = world.session("alice"), world.session("bob")
    old.stop()
    new = world.again(old)
    alice.send("bob", b"1")
    new.takes(b"1")
    old.go()
    world.until(lambda: old.closed)
    assert isinstance(old.closed[0], Displaced) and old.history == []
    assert not new.closed


def test_next_process_does_not_show_taken_messages_again(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = alice.send("bob", b"1")
    bob.gets(b"1")
    world.stall_broker()
    bob.take_all()
    bob.die()
    world.kill_broker()
    bob = world.again(bob)
    alice.send("bob", b"2")
    bob.takes(b"2")
    alice.hears_it_is_safe(sent)
    assert [message.body for message in bob.history] == [b"2"]


def test_names_are_unique_among_connected_sessions(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    other = world.session("other", name="bob")
    assert refusal(other) == "name_taken" and not other.ready
    refused = alice.request(verbs.Rename("r", "bob"))
    assert isinstance(refused, ZmqbusError) and refused.code == "invalid_name"
    bob.bye()
    other = world.session("other", name="bob")
    assert other.ready
    alice.send("bob", b"for the one who is here")
    other.takes(b"for the one who is here")
    alice.send(session_id_of("bob"), b"for the one who is away")
    assert refusal(world.again(bob)) == "name_taken"
    again = world.again(bob, name="bob2")
    again.takes(b"for the one who is away")


def test_absent_session_keeps_its_name(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.die()
    receipt = alice.hears(alice.send("bob", b"x"), "away")
    assert isinstance(receipt, verbs.Receipt) and receipt.session_id == session_id_of("bob")


def test_prefixes_of_names_and_ids_resolve(world: World) -> None:
    alice, bob, _ = world.session("alice"), world.session("builder"), world.session("backend")
    alice.send("bui", b"1")
    alice.send(session_id_of("builder")[:14], b"2")
    bob.takes(b"1", b"2")
    assert "backend" in str(alice.hears(alice.send("b", b"x"), "ambiguous"))


def test_acting_for_a_session_needs_its_token(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    assert refusal(world.session("thief", session_id=session_id_of("bob"), token="guessed")) == "unauthorized"
    bob.bye()
    assert refusal(world.session("bob", token="guessed")) == "unauthorized"
    world.kill_broker()
    assert refusal(world.session("bob", token="guessed")) == "unauthorized"
    bob = world.again(bob)
    alice.send("bob", b"x")
    bob.takes(b"x")


def test_client_with_a_stale_lease_reconnects(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    lease = bob.lease
    bob.raw(verbs.Ping("no lease at all", "bob"))
    world.until(lambda: bob.ready and bob.lease != lease)
    assert any(isinstance(envelope, verbs.Expired) for envelope in bob.heard)
    alice.send("bob", b"x")
    bob.takes(b"x")
    # The right lease with the right name gets no answer; a wrong name gets the right one.
    before = len(bob.heard)
    bob.raw(verbs.Ping(bob.lease, "bob"))
    world.quiet()
    assert {type(envelope) for envelope in bob.heard[before:]} <= {verbs.Health}
    bob.raw(verbs.Ping(bob.lease, "wrong"))
    world.until(lambda: any(isinstance(envelope, verbs.Renamed) for envelope in bob.heard[before:]))


@pytest.mark.parametrize("by_helper", [False, True])
def test_rename(world: World, by_helper: bool) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    who = world.helper(bob) if by_helper else bob
    done = who.request(verbs.Rename("r", "robert"))
    assert done == verbs.Done("r", "bob")
    world.until(lambda: bob.renames == ["robert"])
    alice.hears(alice.send("bob", b"x"), "unknown_peer")
    alice.send("robert", b"directed")
    bob.takes(b"directed")
    alice.to_all(b"broadcast")
    bob.takes(b"broadcast")
    assert set(rows(alice)) >= {"alice", "robert"}
    world.kill_broker()
    alice.send("robert", b"still")
    bob.takes(b"still")
    # Its channel has followed: messages on it arrive under the new name.
    world.attach(bob)
    who = world.helper(bob) if by_helper else bob
    assert who.request(verbs.Rename("r2", "rob")) == verbs.Done("r2", "robert")
    world.until(lambda: bob.renames == ["robert", "rob"])


def test_disconnected_session_is_unknown_until_it_returns(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    kept = alice.send("bob", b"kept")
    bob.gets(b"kept")
    helper = world.helper(bob)
    assert helper.request(verbs.Disconnect("d")) == verbs.Done("d", "disconnected")
    world.until(lambda: bob.closed == [None])
    alice.hears(kept, "away")
    alice.hears(alice.send("bob", b"x"), "unknown_peer")
    alice.hears(alice.to_all(b"x"), (0, 0))
    assert set(rows(alice)) == {"alice"}
    assert helper.request(verbs.Disconnect("d2")) == verbs.Done("d2", "not connected")
    world.kill_broker()
    alice.hears(alice.send("bob", b"x"), "unknown_peer")
    world.again(bob).takes(b"kept")


def test_list_shows_sessions(world: World) -> None:
    alice, bob = world.session("alice", label="The first"), world.session("bob", project="/q", cwd="/q/r")
    carol = world.session("carol")
    carol.bye()
    bob.stop()
    alice.send("bob", b"x")
    world.quiet()
    seen = rows(world.observer())
    assert (seen["alice"].state, seen["alice"].label, seen["alice"].waiting) == ("live", "The first", 0)
    assert (seen["bob"].project, seen["bob"].cwd, seen["bob"].waiting) == ("/q", "/q/r", 1)
    assert seen["bob"].pid == bob.core.persona.pid
    assert seen["carol"].state == "away" and seen["carol"].away_s >= 0
    assert set(rows(alice, everyone=False)) == {"alice", "bob"}


def test_role_limits_the_allowed_verbs(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    observer, guest = world.observer(), world.guest("script")
    observer.hears(observer.send("bob", b"x"), "protocol")
    for member, request in (
        (alice, verbs.Fetch("r", False)),
        (guest, verbs.Fetch("r", False)),
        (guest, verbs.Rename("r", "other")),
        (observer, verbs.Disconnect("r")),
    ):
        error = member.request(request)
        assert isinstance(error, ZmqbusError) and error.code == "protocol"
    guest.send("bob", b"x")
    (message,) = bob.takes(b"x")
    assert message.header.from_name == "script" and naming.is_session_id(message.header.from_session)
    assert not any(isinstance(envelope, verbs.Refused) for envelope in bob.heard)


def test_undecodable_message_disconnects_only_its_sender(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    alice.raw(verbs.Expired())  # a verb of the broker
    world.until(lambda: any(isinstance(e, verbs.Refused) and e.ref == "" for e in alice.heard))
    sent = alice.send("bob", b"x")
    bob.takes(b"x")
    alice.hears(sent, "delivered")


def test_guest_needs_a_free_name_and_has_no_mailbox(world: World) -> None:
    alice = world.session("alice")
    assert refusal(world.guest("alice")) == "name_taken"
    world.guest("script")
    alice.hears(alice.send("script", b"x"), "unknown_peer")
    assert set(rows(alice)) == {"alice"}


@pytest.mark.parametrize("lives", [False, True])
def test_mail_of_a_dead_session_goes_to_the_next_of_its_name(world: World, lives: bool) -> None:
    alice = world.session("alice")
    bob = world.session("bob", owner=world.living_owner if lives else world.dead_owner)
    bob.die()
    alice.hears(alice.send("bob", b"1"), "away")
    elsewhere = world.session("bob2", name="bob", project="/elsewhere")
    assert elsewhere.core.welcome is not None and elsewhere.core.welcome.waiting == 0
    elsewhere.bye()
    heir = world.session("bob3", name="bob")
    if lives:
        alice.send("bob", b"2")
        heir.takes(b"2")
    else:
        heir.takes(b"1")
        world.kill_broker()
        world.until(lambda: heir.ready)
        alice.send("bob", b"2")
        heir.takes(b"2")


def test_program_has_a_mailbox_like_a_listener(world: World) -> None:
    alice, program = world.session("alice"), world.session("worker", role=Role.PROGRAM)
    sent, cast = alice.send("worker", b"1"), alice.to_all(b"2")
    program.takes(b"1", b"2")
    alice.hears(sent, "delivered")
    alice.hears(cast, (1, 0))


# --- in the simulated world alone: timers longer than a test may last


def test_silent_session_is_busy_and_keeps_its_name(sim: SimWorld) -> None:
    alice, bob = sim.session("alice"), sim.session("bob")
    sim.pass_time(2 * SILENCE_S)
    assert {name: row.state for name, row in rows(alice, everyone=False).items()} == {"alice": "live", "bob": "live"}
    bob.stop()
    sim.pass_time(100 * SILENCE_S)
    assert {name: row.state for name, row in rows(alice, everyone=False).items()} == {"alice": "live", "bob": "busy"}
    other = sim.session("other", name="bob")
    assert isinstance(other.closed[0], NameTaken)
    alice.hears(alice.send("bob", b"x"), "busy")
    bob.go()
    bob.takes(b"x")
    sim.pass_time(5)
    assert {name: row.state for name, row in rows(alice, everyone=False).items()} == {"alice": "live", "bob": "live"}


def test_ended_process_is_away_though_its_sockets_are_held(sim: SimWorld) -> None:
    alice, bob = sim.session("alice"), sim.session("bob", owner=(owner := sim.new_owner()))
    bob.stop()
    sim.end_owner(owner)
    sim.pass_time(15)
    assert set(rows(alice, everyone=False)) == {"alice"}


def test_probe_finds_a_silently_lost_connection(sim: SimWorld) -> None:
    """A command has no presence subscription whose loss would show."""
    alice = sim.session("alice")
    helper = sim.helper(alice)
    assert isinstance(helper, SimMember)
    sim.net.lose(helper.client)
    helper.stop()
    before = len(sim.net.broker.registry.connections)
    sim.pass_time(SILENCE_S + 2)
    assert len(sim.net.broker.registry.connections) == before - 1


def test_silent_session_is_probed_with_growing_pauses(sim: SimWorld) -> None:
    """Messages to a stopped process stay in its buffers."""
    sim.session("alice")
    bob = sim.session("bob")
    assert isinstance(bob, SimMember)
    bob.stop()
    sim.pass_time(24 * 3600)
    assert len(bob.client.down) < 24 * 3600 / MAX_PROBE_PAUSE_S + 10
    bob.go()
    sim.quiet()
    assert bob.ready and not bob.losses


def test_stopped_command_does_not_keep_the_inbox(sim: SimWorld) -> None:
    alice, bob = sim.session("alice"), sim.session("bob")
    helper = sim.helper(bob)
    bob.stop()
    alice.hears(alice.send("bob", b"x"), "busy")
    helper.begin(verbs.Fetch("f", False))
    helper.stop()
    sim.pass_time(RECALL_S + 1)
    bob.go()
    sim.pass_time(1)
    assert bob.bodies == []  # the command has it, and does not acknowledge it
    sim.pass_time(SILENCE_S + 1)
    bob.takes(b"x")


def test_missed_rename_comes_with_the_next_ping(sim: SimWorld) -> None:
    alice, bob = sim.session("alice"), sim.session("bob")
    helper = sim.helper(bob)
    helper.begin(verbs.Rename("r", "robert"))
    bob.lose_broadcast()
    sim.quiet()
    assert bob.renames == []
    sim.pass_time(PING_S + 0.5)
    assert bob.renames == ["robert"]
    alice.to_all(b"x")
    bob.takes(b"x")
