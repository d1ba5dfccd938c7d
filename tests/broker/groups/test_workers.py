"""Workers: OFFER, lost, silent and dead workers, and requests that kill them."""

from __future__ import annotations

import pytest

from tests.broker.groups.steps import (
    ask,
    assign,
    check_clean,
    connect,
    die,
    figures,
    heard,
    lose,
    refusal,
    result,
    work,
    worker,
)
from zmqbus import errors
from zmqbus.broker.connections import SILENCE_S
from zmqbus.broker.groups import workers
from zmqbus.broker.sessions import RETURN_S
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role


class TestOffer:
    def test_only_a_program_with_groups_may_offer(self, net):
        many = tuple(f"g{number}" for number in range(workers.MAX_GROUPS + 1))
        for member in (
            net.session("listener", groups=("g",)),
            net.session("loner", role=Role.PROGRAM),
            net.session("everywhere", role=Role.PROGRAM, groups=many),
        ):
            (refused,) = heard(net, member, verbs.Offer(1, (), ()))
            assert isinstance(refused, verbs.Refused) and refused.code == "protocol"
        assert not figures(net)["workers"] and not net.broker.requests._queues.groups

    def test_an_offer_that_names_too_many_requests_is_refused(self, net):
        member = net.session("greedy", role=Role.PROGRAM, groups=("g",))
        many = tuple(f"id{number:06d}" for number in range(workers.MAX_NAMED + 1))
        for offer in (verbs.Offer(1, many, ()), verbs.Offer(1, (), many)):
            (refused,) = heard(net, member, offer)
            assert isinstance(refused, verbs.Refused) and refused.code == "protocol"
        assert not figures(net)["workers"]

    def test_an_offer_cannot_claim_requests_of_others(self, net, caller):
        waits = ask(net, caller, "other")
        one = worker(net, "one")
        held = ask(net, caller, "g")
        thief = net.session("thief", role=Role.PROGRAM, groups=("g",))
        answers = heard(net, thief, verbs.Offer(1, (held, waits, "nobodys00000", "?"), (held, waits, "nobodys00000")))
        withdrawn = {msg_id for one in answers if isinstance(one, verbs.Withdrawn) for msg_id in one.msg_ids}
        assert withdrawn >= {held, waits, "?"}
        assert list(one.works) == [held] and not thief.works


class TestLostWorkers:
    def test_requests_of_a_dead_worker_are_requeued_at_the_front(self, net, caller):
        one = worker(net, "one", 2)
        asked = [caller.call("g") for _ in range(4)]
        net.settle()
        die(net, one)
        two = worker(net, "two", 3)
        assert list(two.works) == asked[:3]
        assert [work.tries for work in two.works.values()] == [1, 1, 0]
        assert figures(net)["requests_redispatched"] == 2
        assert net.body(two.works[asked[0]]) == b""

    @pytest.mark.parametrize("way", ["bye", "disconnect", "disconnect while lost"])
    def test_requests_of_a_leaving_worker_are_requeued(self, net, caller, way):
        one, two, msg_id = assign(net, caller, "one", "two", body=b"resize")
        helper = net.helper(one)
        if "lost" in way:
            lose(net, one)
        if way == "bye":
            one.bye()
        else:
            helper.request(verbs.Disconnect("d"))
        net.settle()
        assert list(two.works) == [msg_id]
        assert two.works[msg_id].tries == 0  # it was given back
        assert net.body(two.works[msg_id]) == b"resize"

    @pytest.mark.parametrize("away_s", [RETURN_S - 1, 100 * RETURN_S])
    def test_a_lost_worker_keeps_its_request_while_its_process_lives(self, net, caller, away_s):
        one, two, msg_id = assign(net, caller, "one", "two")
        lose(net, one)
        net.advance(away_s, step_s=2)
        assert not two.works and figures(net)["requests_in_hand"] == 1
        connect(net, one)
        assert not one.dropped
        work(net, one)
        assert result(caller, msg_id).from_name == "one"
        assert one.done == [msg_id] and not two.done
        check_clean(net)

    def test_a_lost_worker_without_requests_is_forgotten(self, net, caller):
        one = worker(net, "one")
        lose(net, one)
        assert figures(net)["workers"] == 1
        net.advance(RETURN_S + 0.5)
        assert figures(net)["workers"] == 0
        one.connect()
        msg_id = ask(net, caller, "g")
        assert list(one.works) == [msg_id]

    def test_the_death_of_a_lost_worker_is_noticed(self, net, caller):
        one, two, msg_id = assign(net, caller, "one", "two")
        lose(net, one)
        net.living_owners.discard("one:1")
        net.advance(0.1)
        assert list(two.works) == [msg_id]

    def test_lost_work_is_dispatched_again(self, net, caller):
        one = worker(net, "one")
        one.stopped = True
        msg_id = ask(net, caller, "g")
        one.stopped = False
        one.vanish()
        connect(net, one)
        assert one.works[msg_id].tries == 0
        assert figures(net)["requests_redispatched"] == 1

    def test_a_lost_answer_is_repeated_by_its_worker(self, net, caller):
        one, msg_id = assign(net, caller, "one", body=b"resize")
        one.vanish()
        one.work()
        connect(net, one)
        assert result(caller, msg_id).body == b"done resize"
        assert one.done == [msg_id]
        check_clean(net)

    @pytest.mark.parametrize("died", [False, True])
    def test_another_process_of_the_session_gets_the_request_again(self, net, caller, died):
        one, msg_id = assign(net, caller, "one")
        one.stopped = True
        if died:
            net.living_owners.discard("one:1")
        net.living_owners.add("new:1")
        new = net.session("one", role=Role.PROGRAM, groups=("g",), owner="new:1", pid=4711)
        new.offer(1)
        net.settle()
        assert new.works[msg_id].tries == died
        work(net, new)
        assert result(caller, msg_id)
        check_clean(net)

    def test_the_first_answer_counts(self, net, caller):
        """A worker that was given up has the answer, and the one that has the request now does not yet."""
        one, two, msg_id = assign(net, caller, "one", "two")
        one.vanish()
        one.work()
        net.living_owners.discard("one:1")  # so it seems
        net.advance(SILENCE_S + RETURN_S + 3)
        assert list(two.works) == [msg_id]
        connect(net, one)
        assert result(caller, msg_id).from_name == "one"
        assert two.dropped == [msg_id]
        two.answer(msg_id)
        net.settle()
        check_clean(net)

    def test_a_request_survives_its_worker_changing_groups(self, net, caller):
        one, msg_id = assign(net, caller, "one")
        one.core.persona = one.core.persona._replace(groups=("other",))
        one.disconnect()
        connect(net, one)
        assert "g" not in net.broker.requests._queues.groups
        die(net, one)
        two = worker(net, "two")
        assert list(two.works) == [msg_id]


class TestSilentWorkers:
    def test_a_stopped_worker_keeps_its_request(self, net, caller):
        one, two, msg_id = assign(net, caller, "one", "two")
        one.stopped = True
        net.advance(100 * SILENCE_S, step_s=10)
        assert not two.works and figures(net)["requests_redispatched"] == 0
        connect(net, one)
        net.advance(5)
        assert not one.dropped
        work(net, one)
        assert result(caller, msg_id).from_name == "one"
        check_clean(net)

    def test_a_silent_worker_gets_no_more_requests(self, net, caller):
        one = worker(net, "one", 3)
        one.stopped = True
        first = ask(net, caller, "g")
        net.advance(SILENCE_S + 2)
        second = ask(net, caller, "g")
        assert figures(net)["requests_waiting"] == 1
        two = worker(net, "two", 1)
        assert list(two.works) == [second]
        third = ask(net, caller, "g")
        connect(net, one)
        net.advance(5)
        assert list(one.works) == [first, third]

    def test_a_dead_worker_whose_child_holds_its_sockets_is_noticed(self, net, caller):
        """A child that was forked keeps the connections up, and says nothing."""
        one, two, msg_id = assign(net, caller, "one", "two")
        one.stopped = True
        net.living_owners.discard("one:1")
        net.advance(SILENCE_S - 1)
        assert not two.works
        net.advance(2)
        assert two.works[msg_id].tries == 1

    def test_killing_a_stopped_worker_requeues_its_request(self, net, caller):
        """Its connection ends with it, which the broker sees though it has said nothing for long."""
        one, two, msg_id = assign(net, caller, "one", "two")
        one.stopped = True
        net.advance(3 * SILENCE_S)
        assert not two.works
        die(net, one)
        assert list(two.works) == [msg_id]


class TestPoisonedRequests:
    def test_a_request_with_three_dead_workers_is_poisoned(self, net, caller):
        msg_id = caller.call("g")
        for number in range(3):
            one = worker(net, f"worker{number}")
            assert one.works[msg_id].tries == number
            die(net, one)
        error = refusal(caller, msg_id)
        assert isinstance(error, errors.Poisoned) and "3 workers" in str(error) and msg_id in str(error)
        assert not worker(net, "last").works
        check_clean(net)

    def test_a_repeated_poisoned_request_is_refused(self, net, caller):
        msg_id = ask(net, caller, "g")
        caller.vanish()
        for number in range(3):
            die(net, worker(net, f"worker{number}"))
        connect(net, caller)
        assert isinstance(refusal(caller, msg_id), errors.Poisoned)
