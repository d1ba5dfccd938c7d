"""The simulated network does what the sockets do, and the same calls give the same run."""

from __future__ import annotations

import random

import pytest

from zmqbus.broker import events
from zmqbus.client.core import Phase
from zmqbus.testing import ManualClock, SimClient, SimNet
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope, State


@pytest.fixture
def net() -> SimNet:
    return SimNet()


def test_the_example_of_the_package(net):
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"hello")
    net.settle()
    assert bob.bodies == [b"hello"]
    bob.take_all()
    net.settle()
    answer = alice.answers[msg_id]
    assert isinstance(answer, verbs.Receipt) and answer.state == State.DELIVERED


def test_nothing_happens_by_itself(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("bob", b"x")
    assert alice.up and not bob.down
    assert net.wake() and not alice.up and bob.down
    assert bob.handed == []
    assert bob.receive() and bob.bodies == [b"x"]
    assert not bob.receive()
    net.settle()
    assert not net.step()


def test_everything_is_encoded(net):
    alice, _ = net.session("alice"), net.session("bob")
    alice.send("bob", bytes(verbs.INLINE_BYTES + 1))
    (message,) = alice.up
    assert [type(frame) for frame in message] == [bytes, bytes]
    alice.raw([b"junk"])
    net.settle()
    assert net.mangled == 1


def test_neighbours_share_a_message(net):
    alice, bob = net.session("alice"), net.session("bob")
    for _ in range(3):
        alice.send("bob", b"x")
    net.wake()
    assert len(bob.down) == 1


def test_every_connection_has_a_new_route_and_the_old_one_leads_nowhere(net):
    alice = net.session("alice")
    before = alice.route
    alice.disconnect()
    assert alice.core.phase is Phase.OFFLINE
    alice.connect()
    assert alice.route != before
    net.settle()
    assert set(net.broker.registry.connections) == {alice.route}


def test_a_broken_connection_takes_along_what_is_under_way(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("bob", b"x")
    alice.send("", b"y", scope=Scope.ALL)
    net.wake()
    bob.disconnect()
    assert not bob.down and not bob.published and not bob.filters
    net.settle()
    assert bob.history == []
    bob.connect()
    net.settle()
    assert bob.bodies == [b"x", b"y"]


def test_filters_are_prefixes(net):
    bob = net.session("bob", topics=("deploys",))
    bob.filters.append(b"#dep")
    net._do([events.Publish(channel, verbs.Renamed("x")) for channel in (b"#department\0", b"#other\0")])
    net._finish()
    assert [frames[0] for frames in bob.published] == [b"#department\0"]
    net.settle()
    assert bob.renames == []  # the client compares the whole


def test_marks_come_and_go_with_the_subscription(net):
    bob = net.session("bob")
    connection = net.broker.registry.connections[bob.route]
    assert connection.attached
    bob.drop_subscriber()
    net.wake()
    assert bob.route not in net.broker.registry.connections
    net.settle()
    assert net.broker.registry.connections[bob.route].attached  # it was told, and came back


def test_no_order_between_the_two_sockets(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("", b"1", scope=Scope.ALL)
    alice.send("bob", b"2")
    net.wake()
    assert len(bob.published) == len(bob.down) == 1
    held = bob.published.popleft()
    assert bob.receive() and bob.handed == []
    bob.published.append(held)
    assert bob.receive() and bob.bodies == [b"1", b"2"]


def test_a_lost_route_is_told_to_the_broker(net):
    alice, bob = net.session("alice"), net.session("bob")
    net.lose(bob)
    alice.send("bob", b"x")
    net.settle()
    assert bob.route not in net.broker.registry.connections


def test_the_clock_moves_only_when_told(net):
    net.session("alice")
    before = net.clock.now
    net.settle()
    assert net.clock.now == before
    net.advance(3)
    assert (net.clock.mono_s, net.clock.wall_s) == (before.mono_s + 3, before.wall_s + 3)


def test_clients_tick_as_time_passes(net):
    net.session("alice")
    net.advance(60)
    assert len(net.broker.registry.connections) == 1  # it pinged


def test_the_journal_comes_before_everything_that_follows_from_it(net):
    alice, bob = net.session("alice"), net.session("bob")
    net.journal_fails = "full"
    alice.send("bob", b"x")
    net.settle()
    assert net.journal == [] and bob.history == []


def test_a_restarted_broker_knows_nobody_and_everybody_comes_back(net):
    alice, bob = net.session("alice"), net.session("bob")
    epoch = net.broker.epoch
    net.restart_broker()
    assert net.broker.epoch != epoch
    net.settle()
    assert {session.name for session in net.broker.registry.live()} == {"alice", "bob"}
    assert alice.core.phase is bob.core.phase is Phase.READY


def test_a_bus_that_does_not_come_to_rest_is_an_error(net):
    alice = net.session("alice")
    alice.receive = lambda: True
    with pytest.raises(AssertionError, match="does not come to rest"):
        net.settle(limit=50)


def test_a_second_answer_is_an_error(net):
    alice = net.session("alice")
    alice.answers["aaaaaaaaaaaa"] = verbs.Tally("aaaaaaaaaaaa", 0, 0)
    with pytest.raises(AssertionError, match="answered twice"):
        alice.send("", b"x", scope=Scope.ALL, msg_id="aaaaaaaaaaaa")
        net.settle()


def run(seed: int) -> list[object]:
    """A run of a few hundred steps, and all that could be seen of it."""
    chance = random.Random(seed)
    net = SimNet()
    members: list[SimClient] = [net.session(name, topics=("t",)) for name in ("a", "b", "c")]
    for _ in range(150):
        member = chance.choice(members)
        match chance.randrange(7):
            case 0:
                member.send(chance.choice("abc"), b"direct")
            case 1:
                member.send("t", b"topic", scope=Scope.TOPIC)
            case 2:
                member.take(chance.randrange(4))
            case 3:
                net.step()
            case 4:
                net.advance(chance.random())
            case 5:
                member.disconnect()
                member.connect()
            case 6:
                member.receive()
    net.settle()
    return [net.journal, net.notes, [(member.history, member.answers, repr(member)) for member in members]]


@pytest.mark.parametrize("seed", range(5))
def test_the_same_calls_give_the_same_run(seed):
    assert repr(run(seed)) == repr(run(seed))


def test_clock():
    clock = ManualClock(1.0, 2.0)
    clock.advance(0.5)
    clock.set_wall(-3600)
    assert clock.now == (1.5, 2.5 - 3600, 2.5)
    assert repr(clock) == "<ManualClock 1.500>"


def test_repr(net):
    assert repr(net) == "<SimNet <BrokerCore <Registry: 0 connections, 0 of 0 live>, 0 unsettled, broadcast 0>>"
    assert repr(net.session("alice")).startswith("<SimClient <ClientCore alice ready")
