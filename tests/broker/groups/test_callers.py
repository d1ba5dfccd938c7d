"""Callers: withdrawal, lost and late callers, and repeated requests."""

from __future__ import annotations

import pytest

from tests.broker.groups.steps import (
    ask,
    assign,
    check_clean,
    connect,
    die,
    figures,
    lose,
    lose_guest,
    refusal,
    result,
    work,
    worker,
)
from zmqbus import errors
from zmqbus.broker.groups import callers, ledger
from zmqbus.broker.sessions import RETURN_S
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Role


class TestWithdrawal:
    def test_a_waiting_request_can_be_withdrawn(self, net, caller):
        first, second = caller.call("g"), caller.call("g")
        net.settle()
        caller.withdraw(first)
        net.settle()
        assert figures(net)["requests_waiting"] == 1
        one = worker(net, "one", 5)
        assert list(one.works) == [second]
        work(net, one)
        check_clean(net)

    def test_withdrawing_an_assigned_request_frees_its_worker(self, net, caller):
        one = worker(net, "one", 1)
        first, second = caller.call("g"), caller.call("g")
        net.settle()
        caller.withdraw(first)
        net.settle()
        assert one.dropped == [first]
        assert list(one.works) == [second]
        work(net, one)
        assert list(caller.results) == [second]
        check_clean(net)

    def test_a_request_can_be_withdrawn_before_it_is_journaled(self, net, caller):
        one = worker(net, "one", 1)
        caller.withdraw(caller.call("g"))
        net.settle()
        assert not one.works
        check_clean(net)

    def test_an_answer_that_crosses_the_withdrawal_is_dropped(self, net, caller):
        one, msg_id = assign(net, caller, "one")
        caller.withdraw(msg_id)
        work(net, one)
        msg_id = ask(net, caller, "g")
        one.work()
        caller.withdraw(msg_id)
        net.settle()
        assert not caller.results and not one.works
        check_clean(net)

    def test_requests_of_other_callers_cannot_be_withdrawn(self, net, caller):
        one, other = worker(net, "one", 1), net.session("other")
        msg_id = ask(net, caller, "g")
        other.raw(codec.encode([verbs.Withdraw((msg_id, "nothing00000", ""))]))
        net.settle()
        assert list(one.works) == [msg_id]


class TestLostCallers:
    def test_bye_withdraws_the_requests_of_a_caller(self, net, caller):
        one = worker(net, "one", 1)
        first, _ = caller.call("g"), caller.call("g")
        net.settle()
        caller.bye()
        net.settle()
        assert one.dropped == [first]
        check_clean(net)

    def test_a_lost_caller_gets_its_answers_when_it_reconnects(self, net, caller):
        one = worker(net, "one", 1)
        first, second = caller.call("g"), caller.call("g")
        net.settle()
        lose(net, caller)
        work(net, one)
        net.advance(RETURN_S - 1)
        assert list(one.works) == [second]
        connect(net, caller)
        assert result(caller, first).from_name == "one"
        assert net.body(result(caller, first)) == b"done "
        work(net, one)
        assert result(caller, second)
        assert one.done == [first, second]
        check_clean(net)

    def test_unassigned_requests_of_a_late_caller_are_withdrawn(self, net, caller):
        one = worker(net, "one", 1)
        first, second = caller.call("g"), caller.call("g")
        net.settle()
        lose(net, caller)
        assert not net.broker.idle
        net.advance(RETURN_S + 0.5)
        assert not one.dropped and figures(net)["requests_waiting"] == 0
        work(net, one)
        check_clean(net)
        connect(net, caller)  # its process lives
        assert result(caller, first)
        assert list(one.works) == [second]
        work(net, one)
        assert one.done == [first, second]
        assert result(caller, second)

    @pytest.mark.parametrize("after_s", [0.0, RETURN_S + 0.5])
    def test_assigned_requests_are_withdrawn_when_the_callers_process_has_ended(self, net, after_s):
        caller = net.session("asking", role=Role.PROGRAM, owner="asking:1")
        net.living_owners.add("asking:1")
        one = worker(net, "one", 1)
        first, _ = caller.call("g"), caller.call("g")
        net.settle()
        lose(net, caller)
        net.advance(after_s)
        net.living_owners.discard("asking:1")
        net.advance(RETURN_S + 0.5)
        assert one.dropped == [first]
        check_clean(net)

    def test_requests_of_a_late_caller_are_not_requeued(self, net, caller):
        one, two, msg_id = assign(net, caller, "one", "two")
        lose(net, caller)
        net.advance(RETURN_S + 0.5)
        die(net, one)
        assert not two.works
        check_clean(net)
        connect(net, caller)
        assert list(two.works) == [msg_id]

    @pytest.mark.parametrize("away_s", [0.0, 10 * RETURN_S])
    def test_requests_that_a_caller_does_not_repeat_are_withdrawn(self, net, caller, away_s):
        one = worker(net, "one", 2)
        first, second = caller.call("g"), caller.call("g")
        net.settle()
        lose(net, caller)
        net.advance(away_s)
        caller.withdraw(first)
        connect(net, caller)
        assert not one.dropped
        net.advance(RETURN_S + 0.5)
        assert one.dropped == [first]
        work(net, one)
        assert result(caller, second)
        assert one.done == [first, second]
        check_clean(net)

    @pytest.mark.parametrize("role", [Role.HELPER, Role.GUEST])
    def test_helpers_and_guests_may_reconnect(self, net, role):
        one = worker(net, "one")
        asking = net.guest("asking") if role is Role.GUEST else net.helper(net.session("asking"))
        msg_id = ask(net, asking, "g")
        asking.vanish()
        connect(net, asking)
        work(net, one)
        assert result(asking, msg_id)
        assert one.done == [msg_id]

    def test_requests_of_lost_callers_are_bounded(self, net, monkeypatch):
        monkeypatch.setattr(callers, "MAX_ORPHANS", 5)
        for number in range(4):
            guest = net.guest(f"guest{number}")
            for _ in range(2):
                guest.call("g")
            net.settle()
            lose_guest(net, guest)
        assert figures(net)["requests_waiting"] == 4
        net.advance(RETURN_S + 0.5)
        check_clean(net)

    def test_the_broker_is_not_idle_while_a_caller_is_expected_back(self, net, caller):
        ask(net, caller, "g")
        lose(net, caller)
        assert not net.broker.registry.connections
        assert not net.broker.idle and net.broker.next_tick_s() == 0.1
        net.advance(RETURN_S + 0.5)
        assert net.broker.idle and net.broker.next_tick_s() is None


class TestRepeats:
    def test_a_lost_answer_is_sent_again(self, net, caller):
        one, msg_id = assign(net, caller, "one", body=b"resize")
        caller.vanish()
        work(net, one)
        connect(net, caller)
        assert net.body(result(caller, msg_id)) == b"done resize"
        assert one.done == [msg_id]

    def test_remembered_outcomes_are_bounded(self, net, caller, monkeypatch):
        monkeypatch.setattr(ledger, "REMEMBERED_RESULTS", 3)
        one = worker(net, "one", 10)
        for _ in range(5):
            caller.call("g")
        net.settle()
        work(net, one)
        assert len(net.broker.requests._ledger._past) == 3

    def test_a_repeated_request_is_dispatched_once(self, net, caller):
        one, two, msg_id = assign(net, caller, "one", "two")
        for again in (True, False):
            caller.raw(codec.encode([verbs.Request(msg_id, "g", 0, True, again, b"")] * 2))
            net.settle()
        assert len(one.works) + len(two.works) == 1

    def test_a_repeat_within_one_wake_is_dispatched_once(self, net, caller):
        one, two = worker(net, "one"), worker(net, "two")
        caller.raw(codec.encode([verbs.Request("aaaa00000000", "g", 0, True, False, b"")] * 2))
        net.settle()
        assert len(one.works) + len(two.works) == 1

    def test_the_request_id_of_another_session_is_refused(self, net, caller):
        one, other = worker(net, "one"), net.session("other")
        msg_id = ask(net, caller, "g")
        ask(net, other, "g", msg_id=msg_id)
        assert isinstance(refusal(other, msg_id), errors.ProtocolError)
        work(net, one)
        assert result(caller, msg_id)
        third = net.session("third")
        ask(net, third, "g", msg_id=msg_id)
        assert isinstance(refusal(third, msg_id), errors.ProtocolError)
