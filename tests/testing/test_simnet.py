"""The simulated network behaves like the sockets, and the same calls give the same run."""

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


def test_example_in_the_package_docstring(net):
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"hello")
    net.settle()
    assert bob.bodies == [b"hello"]
    bob.take_all()
    net.settle()
    answer = alice.answers[msg_id]
    assert isinstance(answer, verbs.Receipt) and answer.state == State.DELIVERED


class TestTime:
    def test_messages_move_only_when_the_test_steps(self, net):
        alice, bob = net.session("alice"), net.session("bob")
        alice.send("bob", b"x")
        assert alice.up and not bob.down
        assert net.wake() and not alice.up and bob.down
        assert bob.handed == []
        assert bob.receive() and bob.bodies == [b"x"]
        net.settle()
        assert not net.step()

    def test_clock_moves_only_when_the_test_advances_it(self, net):
        net.session("alice")
        before = net.clock.now
        net.settle()
        assert net.clock.now == before
        net.advance(60)
        assert (net.clock.mono_s, net.clock.wall_s) == (before.mono_s + 60, before.wall_s + 60)
        assert len(net.broker.registry.connections) == 1, "the client pinged"

    def test_wall_clock_can_be_set_back(self):
        clock = ManualClock(1.0, 2.0)
        clock.advance(0.5)
        clock.set_wall(-3600)
        assert clock.now == (1.5, 2.5 - 3600, 2.5)

    def test_bus_that_never_settles_is_an_error(self, net):
        alice = net.session("alice")
        alice.receive = lambda: True
        with pytest.raises(AssertionError, match="does not come to rest"):
            net.settle(limit=50)


class TestConnections:
    def test_envelopes_are_encoded_and_decoded(self, net):
        alice, _ = net.session("alice"), net.session("bob")
        alice.send("bob", bytes(verbs.INLINE_BYTES + 1))
        (message,) = alice.up
        assert [type(frame) for frame in message] == [bytes, bytes]
        alice.raw([b"junk"])
        net.settle()
        assert net.mangled == 1

    def test_new_connection_has_a_new_route(self, net):
        alice = net.session("alice")
        before = alice.route
        alice.disconnect()
        assert alice.core.phase is Phase.OFFLINE
        alice.connect()
        assert alice.route != before
        net.settle()
        assert set(net.broker.registry.connections) == {alice.route}

    def test_broken_connection_loses_messages_in_transit(self, net):
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

    def test_broker_learns_that_a_route_is_unreachable(self, net):
        alice, bob = net.session("alice"), net.session("bob")
        net.lose(bob)
        alice.send("bob", b"x")
        net.settle()
        assert bob.route not in net.broker.registry.connections


class TestSubscriptions:
    def test_filters_are_prefixes(self, net):
        bob = net.session("bob", topics=("deploys",))
        bob.filters.append(b"#dep")
        net._do([events.Publish(channel, verbs.Renamed("x")) for channel in (b"#department\0", b"#other\0")])
        net._finish()
        assert [frames[0] for frames in bob.published] == [b"#department\0"]
        net.settle()
        assert bob.renames == []  # the client compares the whole channel

    def test_presence_follows_the_subscription(self, net):
        bob = net.session("bob")
        bob.drop_subscriber()
        net.wake()
        assert bob.route not in net.broker.registry.connections
        net.settle()
        assert net.broker.registry.connections[bob.route].subscribed, "bob has reconnected"

    def test_no_order_between_the_two_sockets(self, net):
        alice, bob = net.session("alice"), net.session("bob")
        alice.send("", b"1", scope=Scope.ALL)
        alice.send("bob", b"2")
        net.wake()
        assert len(bob.published) == len(bob.down) == 1
        held = bob.published.popleft()
        assert bob.receive() and bob.handed == []
        bob.published.append(held)
        assert bob.receive() and bob.bodies == [b"1", b"2"]


class TestFaults:
    def test_nothing_is_delivered_without_the_journal(self, net):
        alice, bob = net.session("alice"), net.session("bob")
        net.journal_fails = "full"
        alice.send("bob", b"x")
        net.settle()
        assert net.journal == [] and bob.history == []

    def test_clients_reconnect_to_a_restarted_broker(self, net):
        alice, bob = net.session("alice"), net.session("bob")
        epoch = net.broker.epoch
        net.restart_broker()
        assert net.broker.epoch != epoch
        net.settle()
        assert {session.name for session in net.broker.registry.live()} == {"alice", "bob"}
        assert alice.core.phase is bob.core.phase is Phase.READY

    def test_second_answer_to_a_message_is_an_error(self, net):
        alice = net.session("alice")
        alice.answers["aaaaaaaaaaaa"] = verbs.Tally("aaaaaaaaaaaa", 0, 0)
        with pytest.raises(AssertionError, match="answered twice"):
            alice.send("", b"x", scope=Scope.ALL, msg_id="aaaaaaaaaaaa")
            net.settle()


def run(seed: int) -> list[object]:
    """Returns everything visible of a random run of 150 steps."""
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
    return [net.journal, net.notes, [(member.history, member.answers) for member in members]]


@pytest.mark.parametrize("seed", range(3))
def test_same_calls_give_the_same_run(seed):
    assert repr(run(seed)) == repr(run(seed))
