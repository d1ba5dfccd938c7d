"""States of agents, the long polls for them, and the notices of the two system topics."""

from __future__ import annotations

import pytest

from zmqbus import errors
from zmqbus.broker import agent_states
from zmqbus.testing import SimClient, SimNet
from zmqbus.wire import naming, verbs


@pytest.fixture
def net() -> SimNet:
    return SimNet()


@pytest.fixture
def watcher(net: SimNet) -> SimClient:
    """A session that has joined both system topics."""
    watcher = net.session("watcher", topics=verbs.SYSTEM_TOPICS)
    net.advance(2)
    watcher.notices.clear()
    return watcher


def tell(net: SimNet, who: SimClient, state: str, detail: str = "", since: float = 0.0) -> object:
    ref = f"s{net.clock.now.mono_s}{state}"
    who.request(verbs.SetState(ref, state, since, detail))
    net.settle()
    return who.responses[ref]


def told(watcher: SimClient) -> list[tuple[str, str, str, str]]:
    """The notices so far; clears them."""
    found = [(notice.topic, notice.name, notice.change, notice.detail) for notice in watcher.notices]
    watcher.notices.clear()
    return found


def row_of(net: SimNet, name: str) -> verbs.Session:
    looker = net.observer()
    looker.request(verbs.List("l", True, ""))
    net.settle()
    page = looker.responses["l"]
    assert isinstance(page, verbs.Sessions)
    (row,) = [row for row in map(verbs.Session._make, page.rows) if row.name == name]
    return row


class TestState:
    def test_unknown_until_it_is_told(self, net):
        net.session("alice")
        row = row_of(net, "alice")
        assert (row.agent, row.agent_s, row.agent_detail) == ("unknown", 0, "")

    def test_listed_with_its_age_and_what_it_waits_for(self, net):
        alice = net.session("alice")
        tell(net, alice, "blocked", "permission Bash", since=net.clock.now.wall_s - 30)
        net.advance(60)
        row = row_of(net, "alice")
        assert (row.agent, row.agent_s, row.agent_detail) == ("blocked", 90, "permission Bash")

    def test_helpers_tell_it_for_a_session_that_is_away(self, net):
        alice = net.session("alice")
        helper = net.helper(alice)
        alice.disconnect()
        net.advance(1)
        tell(net, helper, "working")
        row = row_of(net, "alice")
        assert (row.state, row.agent) == ("away", "working")

    def test_repeated_state_keeps_its_age(self, net):
        alice = net.session("alice")
        tell(net, alice, "idle")
        net.advance(40)
        tell(net, alice, "idle")
        assert row_of(net, "alice").agent_s == 40

    def test_time_in_the_future_counts_as_now(self, net):
        alice = net.session("alice")
        tell(net, alice, "idle", since=net.clock.now.wall_s + 1e6)
        assert row_of(net, "alice").agent_s == 0

    def test_word_that_is_no_state_is_refused(self, net):
        answer = tell(net, net.session("alice"), "asleep")
        assert isinstance(answer, errors.InvalidPayload)

    def test_detail_cannot_drive_a_terminal(self, net):
        alice = net.session("alice")
        tell(net, alice, "blocked", "\x1b[2Jx\ny")
        assert "\x1b" not in row_of(net, "alice").agent_detail

    def test_gone_when_its_owner_has_ended(self, net):
        alice = net.session("alice")
        tell(net, alice, "idle")
        alice.disconnect()
        net.living_owners.clear()
        net.advance(2)
        assert row_of(net, "alice").agent == "gone"


class TestUntil:
    def wait(self, net: SimNet, states: tuple[str, ...], target: str = "alice") -> SimClient:
        waiter = net.observer()
        waiter.request(verbs.Until("u", target, states))
        net.settle()
        return waiter

    def test_answered_at_once_if_it_is_so(self, net):
        tell(net, net.session("alice"), "idle")
        assert self.wait(net, ("working", "idle")).responses["u"] == verbs.Done("u", "idle")

    def test_answered_when_it_becomes_so(self, net):
        alice = net.session("alice")
        waiter = self.wait(net, ("blocked",))
        tell(net, alice, "working")
        assert waiter.responses == {}
        tell(net, alice, "blocked", "a question")
        assert waiter.responses["u"] == verbs.Done("u", "blocked")

    def test_asked_again_of_a_new_broker(self, net):
        alice = net.session("alice")
        waiter = self.wait(net, ("idle",))
        net.kill_broker()
        net.restart_broker()
        net.advance(2)
        tell(net, alice, "idle")
        assert waiter.responses["u"] == verbs.Done("u", "idle")

    @pytest.mark.parametrize("told_before", [True, False])
    def test_gone_within_two_seconds_of_the_owners_end(self, net, told_before):
        alice = net.session("alice")
        if told_before:
            tell(net, alice, "idle")
        waiter = self.wait(net, ("gone",))
        alice.disconnect()
        net.advance(3)
        assert waiter.responses == {}
        net.living_owners.clear()
        net.advance(2)
        assert waiter.responses["u"] == verbs.Done("u", "gone")

    def test_gone_when_it_leaves(self, net):
        alice = net.session("alice")
        waiter = self.wait(net, ("gone",))
        net.helper(alice).request(verbs.Disconnect("d"))
        net.settle()
        assert waiter.responses["u"] == verbs.Done("u", "gone")

    def test_unknown_session_and_unknown_state_are_refused(self, net):
        net.session("alice")
        assert isinstance(self.wait(net, ("idle",), "nobody").responses["u"], errors.UnknownPeer)
        assert isinstance(self.wait(net, ("asleep",)).responses["u"], errors.InvalidPayload)
        assert isinstance(self.wait(net, ()).responses["u"], errors.InvalidPayload)

    def test_a_connection_has_a_bounded_number(self, net):
        net.session("alice")
        waiter = net.observer()
        for number in range(agent_states.MAX_UNTILS + 1):
            waiter.request(verbs.Until(f"u{number}", "alice", ("idle",)))
        net.settle()
        assert [*waiter.responses] == [f"u{agent_states.MAX_UNTILS}"]
        assert isinstance(waiter.responses[f"u{agent_states.MAX_UNTILS}"], errors.RateLimited)

    def test_ends_with_its_connection(self, net):
        net.session("alice")
        waiter = self.wait(net, ("idle",))
        waiter.bye()
        net.settle()
        assert net.broker.agent_states._waits == []


class TestNotices:
    def test_sessions_come_and_go(self, net, watcher):
        alice = net.session("alice")
        net.settle()
        assert told(watcher) == [("sys.sessions", "alice", "came", "")]
        alice.disconnect()
        net.advance(3)
        assert told(watcher) == [("sys.sessions", "alice", "went", "")]

    def test_reconnecting_is_no_news(self, net, watcher):
        alice = net.session("alice")
        net.advance(5)
        told(watcher)
        alice.disconnect()
        alice.connect()
        net.advance(5)
        assert told(watcher) == []

    def test_new_name(self, net, watcher):
        alice = net.session("alice")
        net.advance(2)
        told(watcher)
        net.helper(alice).request(verbs.Rename("r", "anna"))
        net.advance(1)
        assert told(watcher) == [("sys.sessions", "anna", "renamed", "alice")]

    def test_states(self, net, watcher):
        alice = net.session("alice")
        net.advance(2)
        told(watcher)
        tell(net, alice, "blocked", "permission Bash")
        assert told(watcher) == [("sys.state", "alice", "blocked", "permission Bash")]

    def test_at_most_one_a_second_the_last_one_wins(self, net, watcher):
        alice = net.session("alice")
        net.advance(2)
        told(watcher)
        for state in ("working", "idle", "working", "idle", "blocked"):
            tell(net, alice, state)
        assert told(watcher) == [("sys.state", "alice", "working", "")]
        net.advance(2)
        assert told(watcher) == [("sys.state", "alice", "blocked", "")]

    def test_back_to_the_same_state_is_no_news(self, net, watcher):
        alice = net.session("alice")
        net.advance(2)
        tell(net, alice, "idle")
        net.advance(2)
        told(watcher)
        tell(net, alice, "working")
        told(watcher)
        tell(net, alice, "idle")
        tell(net, alice, "working")
        net.advance(2)
        assert told(watcher) == []

    def test_new_broker_tells_nobody_anything(self, net, watcher):
        net.session("alice")
        net.advance(2)
        told(watcher)
        net.kill_broker()
        net.restart_broker()
        net.advance(10)
        assert told(watcher) == []

    def test_session_that_does_not_return_to_a_new_broker_went(self, net, watcher):
        alice = net.session("alice")
        net.advance(2)
        told(watcher)
        net.kill_broker()
        net.clients.remove(alice)  # it has died with the broker
        watcher.connect()
        net.advance(8)
        assert told(watcher) == [("sys.sessions", "alice", "went", "")]

    def test_others_are_not_told(self, net):
        bob = net.session("bob")
        tell(net, net.session("alice"), "idle")
        net.advance(2)
        assert bob.notices == []

    def test_nothing_is_kept_of_those_that_are_gone(self, net, watcher):
        alice = net.session("alice")
        tell(net, alice, "idle")
        net.helper(alice).request(verbs.Disconnect("d"))
        net.advance(4)
        assert alice.persona.session_id not in net.broker.agent_states._told
        assert not net.broker.agent_states.needs_tick


@pytest.mark.parametrize("topic", verbs.SYSTEM_TOPICS)
def test_only_the_bus_writes_to_its_topics(net, topic):
    with pytest.raises(errors.InvalidName, match="only the bus itself writes"):
        naming.check_name(topic, "topic")
    assert naming.check_topic(topic) == topic
    alice = net.session("alice")
    msg_id = alice.send(topic, b"x", scope=verbs.Scope.TOPIC)
    net.settle()
    assert isinstance(alice.answers[msg_id], errors.InvalidName)
