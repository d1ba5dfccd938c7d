"""Reconciliation after a failover: repeated requests, quarantine, and orphan claims."""

from __future__ import annotations

import pytest

from tests.broker.groups.steps import (
    ask,
    assign,
    assigned_to,
    check_clean,
    connect,
    die,
    fail_over,
    figures,
    lose,
    refusal,
    result,
    work,
    worker,
)
from zmqbus import errors
from zmqbus.broker.groups import failover
from zmqbus.broker.groups.failover import OFFER_S
from zmqbus.broker.sessions import RETURN_S
from zmqbus.testing.simnet import Death
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role


class TestFailover:
    @pytest.mark.parametrize("death", Death)
    def test_a_request_reaches_the_next_broker(self, net, caller, crew, death):
        msg_id = caller.call("g", b"resize")
        net.kill_broker(death)
        net.settle()
        (one,) = [member for member in crew if member.works]
        work(net, one)
        assert net.body(result(caller, msg_id)) == b"done resize"
        check_clean(net)

    @pytest.mark.parametrize("death", Death)
    def test_an_answer_reaches_the_next_broker(self, net, caller, crew, death):
        msg_id = ask(net, caller, "g", b"resize")
        (one,) = [member for member in crew if member.works]
        one.work()
        net.kill_broker(death)
        net.settle()
        assert net.body(result(caller, msg_id)) == b"done resize"
        assert [*crew[0].done, *crew[1].done] == [msg_id]
        check_clean(net)

    @pytest.mark.parametrize("order", ["caller first", "workers first"])
    def test_workers_keep_their_requests(self, net, caller, crew, order):
        msg_id = caller.call("g")
        waits = [caller.call("g"), caller.call("g")]
        net.settle()
        net.kill_broker()
        members = [caller, *crew] if order == "caller first" else [*crew, caller]
        for member in members:
            member.stopped = True
        for member in members:
            connect(net, member)
        assert sum(len(member.works) for member in crew) == 2
        while any(member.works for member in crew):
            for member in crew:
                member.work()
            net.settle()
        assert sorted([*crew[0].done, *crew[1].done]) == sorted([msg_id, *waits])
        assert len(caller.results) == 3
        check_clean(net)


class TestQuarantine:
    @pytest.mark.parametrize("failovers", [1, 3])
    def test_a_request_is_quarantined_for_its_possible_worker(self, net, caller, crew, failovers):
        holder, other, msg_id = assigned_to(net, caller, crew)
        holder.stopped = True
        for _ in range(failovers):
            fail_over(net)
            net.advance(RETURN_S - 1)
            assert not other.works and figures(net)["requests_waiting"] == 1
        connect(net, holder)
        work(net, holder)
        assert result(caller, msg_id)
        assert not other.done
        check_clean(net)

    def test_no_quarantine_for_a_worker_that_has_left(self, net, caller, crew):
        holder, other, msg_id = assigned_to(net, caller, crew)
        other.bye()  # its process lives
        net.settle()
        net.kill_broker()
        net.clients.remove(other)
        net.living_owners.discard(holder.persona.owner)
        net.clients.remove(holder)
        net.settle()
        three = worker(net, "three")
        net.advance(0.5)
        assert list(three.works) == [msg_id]

    def test_disconnecting_the_expected_worker_ends_the_quarantine(self, net, caller, crew):
        holder, other, msg_id = assigned_to(net, caller, crew)
        holder.stopped = True
        helper = net.helper(holder)
        fail_over(net)
        assert not other.works
        helper.request(verbs.Disconnect("d"))
        net.settle()
        assert list(other.works) == [msg_id]

    def test_the_death_of_the_expected_worker_ends_the_quarantine(self, net, caller, crew):
        holder, other, msg_id = assigned_to(net, caller, crew)
        net.kill_broker()
        net.living_owners.discard(holder.persona.owner)
        net.clients.remove(holder)
        net.settle()
        net.advance(0.5)
        assert list(other.works) == [msg_id]

    def test_the_return_as_a_listener_ends_the_quarantine(self, net, caller, crew):
        holder, other, msg_id = assigned_to(net, caller, crew)
        net.clients.remove(holder)
        net.restart_broker()
        net.settle()
        assert not other.works
        net.session(holder.persona.name or "")  # a listener now
        net.settle()
        assert list(other.works) == [msg_id]

    def test_the_return_without_an_offer_ends_the_quarantine(self, net, crew):
        one, two = crew
        asking = net.session("asking", role=Role.PROGRAM, groups=("g",))
        msg_id = ask(net, asking, "g")
        holder, other = (one, two) if one.works else (two, one)
        net.kill_broker()
        net.living_owners.discard(holder.persona.owner)
        net.clients.remove(holder)
        net.settle()
        net.advance(OFFER_S - 0.5, step_s=0.1)
        assert not other.works
        net.advance(0.6, step_s=0.1)
        assert list(other.works) == [msg_id]

    def test_no_quarantine_without_former_workers(self, net, caller):
        one = worker(net, "one")
        one.bye()
        net.settle()
        msg_id = ask(net, caller, "g")
        net.kill_broker()
        caller.connect()
        two = worker(net, "two")
        assert list(two.works) == [msg_id]

    def test_the_quarantine_lasts_as_long_as_the_process_lives(self, net, caller, crew):
        holder, other, msg_id = assigned_to(net, caller, crew)
        holder.stopped = True
        fail_over(net)
        net.advance(100 * RETURN_S, step_s=10)
        assert not other.works
        assert any("1 requests to @g may be at work" in note for note in net.notes)
        late = ask(net, caller, "g")
        assert list(other.works) == [late]  # no earlier worker can have this one
        connect(net, holder)
        holder.work()
        work(net, other)
        assert result(caller, msg_id)
        assert result(caller, late)
        assert not holder.dropped and holder.done == [msg_id]
        check_clean(net)

    def test_an_impatient_request_waits_for_expected_workers(self, net, caller, crew):
        for member in crew:
            member.stopped = True
        fail_over(net)
        msg_id = ask(net, caller, "g", patient=False)
        assert not caller.results
        connect(net, crew[0])
        assert list(crew[0].works) == [msg_id]

    def test_an_impatient_request_is_refused_when_expected_workers_are_late(self, net, caller, crew):
        net.kill_broker()
        for member in crew:
            net.clients.remove(member)
        caller.connect()
        first = ask(net, caller, "g", patient=False)
        net.advance(RETURN_S + 0.5)
        second = ask(net, caller, "g", patient=False)
        assert isinstance(refusal(caller, first), errors.UnknownPeer)
        assert isinstance(refusal(caller, second), errors.UnknownPeer)


class TestOrphanClaims:
    def test_orphan_claims_count_as_load(self, net, caller):
        one = worker(net, "one", 2)
        first = [caller.call("g"), caller.call("g")]
        net.settle()
        caller.stopped = True
        net.kill_broker()
        other = net.session("other")
        late = ask(net, other, "g")
        assert list(one.works) == first
        work(net, one, 1)
        assert list(one.works) == [first[1], late]
        connect(net, caller)
        assert list(caller.results) == first[:1]  # it was answered before it was asked for, and is answered again
        work(net, one)
        assert sorted(one.done) == sorted([*first, late])
        check_clean(net)

    def test_an_orphan_claim_stays_with_its_worker(self, net, caller):
        """The caller may be busy, too, and it would be done a second time."""
        one, two, msg_id = assign(net, caller, "one", "two")
        caller.stopped = True
        fail_over(net)
        net.advance(10 * RETURN_S)
        assert not one.dropped
        work(net, one)
        net.advance(10 * RETURN_S)
        connect(net, caller)
        assert result(caller, msg_id)
        assert one.done == [msg_id] and not two.done
        check_clean(net)

    def test_a_worker_of_this_broker_cannot_claim(self, net, caller):
        one, msg_id = assign(net, caller, "one")
        lose(net, one)
        caller.withdraw(msg_id)
        net.settle()
        connect(net, one)
        assert one.dropped == [msg_id]
        check_clean(net)

    def test_answered_claims_are_bounded(self, net, caller, monkeypatch):
        monkeypatch.setattr(failover, "MAX_CLAIMS", 2)
        one = worker(net, "one", 4)
        asked = [caller.call("g") for _ in range(4)]
        net.settle()
        caller.stopped = True
        fail_over(net)
        work(net, one, 3)
        one.disconnect()
        connect(net, one)
        assert list(one.works) == asked[3:] and len(net.broker.requests._reconciliation._claims) == 2

    def test_claims_end_with_their_worker(self, net, caller):
        one, msg_id = assign(net, caller, "one")
        caller.stopped = True
        fail_over(net)
        assert net.broker.requests._reconciliation._claims
        die(net, one)
        assert not net.broker.requests._reconciliation._claims
        caller.stopped = False
        two = worker(net, "two")
        assert list(two.works) == [msg_id]

    def test_a_repeated_claim_counts_once(self, net, caller):
        one = worker(net, "one", 2)
        ask(net, caller, "g")
        caller.stopped = True
        fail_over(net)
        one.disconnect()
        connect(net, one)
        connect(net, caller)
        work(net, one)
        assert len(caller.results) == 1
        check_clean(net)
