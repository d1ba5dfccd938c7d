"""Dispatch: which worker gets which request, groups without workers, and the bounds of the queues."""

from __future__ import annotations

from typing import Any

import pytest

from tests.broker.groups.steps import ask, check_clean, connect, die, figures, lose, refusal, result, work, worker
from zmqbus import errors
from zmqbus.broker.groups import queues, requests, workers
from zmqbus.client.core import Assignment
from zmqbus.testing import SimClient, session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role


class TestDispatch:
    def test_the_least_loaded_worker_gets_the_request(self, net, caller):
        one, two = worker(net, "one", 10), worker(net, "two", 10)
        for _ in range(6):
            caller.call("g")
        net.settle()
        assert (len(one.works), len(two.works)) == (3, 3)
        work(net, one, 2)
        caller.call("g")
        ask(net, caller, "g")
        assert (len(one.works), len(two.works)) == (3, 3)

    def test_of_equally_loaded_workers_the_longest_idle_one_gets_it(self, net, caller):
        members = [worker(net, name) for name in ("one", "two", "three")]
        for turn in range(6):
            msg_id = ask(net, caller, "g")
            assert msg_id in members[turn % 3].works
            members[turn % 3].work()
            net.settle()

    def test_credit_bounds_the_assigned_requests(self, net, caller):
        one = worker(net, "one", 2)
        asked = [caller.call("g", str(number).encode()) for number in range(5)]
        net.settle()
        assert list(one.works) == asked[:2]
        assert (figures(net)["requests_in_hand"], figures(net)["requests_waiting"]) == (2, 3)
        work(net, one, 1)
        assert list(one.works) == asked[1:3]
        one.offer(4)
        net.settle()
        assert list(one.works) == asked[1:5]
        work(net, one)
        assert one.done == asked
        check_clean(net)

    def test_less_credit_takes_no_request_away(self, net, caller):
        one = worker(net, "one", 2)
        for _ in range(3):
            caller.call("g")
        net.settle()
        one.offer(1)
        work(net, one, 1)
        assert len(one.works) == 1
        work(net, one)
        assert len(one.works) == 1

    def test_zero_credit_drains_a_worker(self, net, caller):
        one, two = worker(net, "one", 2), worker(net, "two", 2)
        for _ in range(4):
            caller.call("g")
        net.settle()
        one.offer(0)
        work(net, one)
        ask(net, caller, "g")
        assert (len(one.works), len(two.works)) == (0, 2)
        work(net, two)
        assert (len(one.works), len(two.works)) == (0, 1)
        one.offer(1)
        two.offer(0)
        net.settle()
        ask(net, caller, "g")
        assert len(one.works) == 1

    def test_credit_is_capped_at_a_thousand(self, net, caller):
        one = worker(net, "one", 10**9)
        other = net.session("other", role=Role.PROGRAM)
        for _ in range(700):
            caller.call("g")
            other.call("g")
        net.settle()
        assert len(one.works) == workers.MAX_CREDIT
        worker(net, "two", -5)
        assert figures(net)["requests_waiting"] == 400

    def test_a_worker_of_several_groups_shares_its_credit(self, net, caller):
        one = worker(net, "one", 1, groups=("a", "b"))
        two = worker(net, "two", 1, groups=("b",))
        first, second, third = caller.call("a"), caller.call("b"), caller.call("a")
        net.settle()
        assert (list(one.works), list(two.works)) == ([first], [second])
        work(net, one)
        assert list(one.works) == [third]

    def test_a_caller_never_gets_its_own_request(self, net):
        one, two = worker(net, "one", 5), worker(net, "two", 1)
        asked = [one.call("g", str(number).encode()) for number in range(3)]
        net.settle()
        assert (list(one.works), list(two.works)) == ([], asked[:1])
        other = ask(net, two, "g")
        assert list(one.works) == [other]
        two.work()
        work(net, two)
        assert list(two.works) == asked[1:2]
        work(net, two)
        two.work()
        work(net, one)
        assert two.done == asked
        check_clean(net)

    def test_a_request_that_was_put_aside_keeps_its_turn(self, net, caller):
        one, two = worker(net, "one"), worker(net, "two")

        def ask(*members: SimClient) -> list[str]:
            asked = []
            for member in members:
                asked.append(member.call("g"))
                net.settle()
            return asked

        _, _, own, third = ask(caller, caller, one, caller)
        work(net, one)
        assert list(one.works) == [third]
        assert list(net.broker.requests._queues.groups["g"]._aside[session_id_of("one")]) == [own]
        ask(caller)
        work(net, two)
        assert list(two.works) == [own]

    def test_no_group_of_a_worker_starves(self, net, caller):
        one = worker(net, "one", 1, groups=("a", "b", "c"))
        for _ in range(3):
            for group in ("a", "b", "c"):
                caller.call(group)
        net.settle()
        served = []
        while one.works:
            served += [work.group for work in one.work()]
            net.settle()
        assert all(set(served[start : start + 3]) == {"a", "b", "c"} for start in (0, 3, 6)), served


class TestGroupsWithoutWorkers:
    def test_a_patient_request_waits_for_a_worker(self, net, caller):
        msg_id = ask(net, caller, "g")
        net.advance(60, step_s=3)
        assert not caller.results
        one = worker(net, "one")
        assert list(one.works) == [msg_id]

    def test_patient_caller_learns_whether_the_group_has_a_worker(self, net, caller):
        heard: list[Any] = []
        handle = caller.core.handle

        def listen(now_s: float, event: Any) -> list[Any]:
            effects = handle(now_s, event)
            heard.extend(effects)
            return effects

        caller.core.handle = listen

        def told() -> list[tuple[str, bool]]:
            found = [(one.msg_id, one.has_worker) for one in heard if isinstance(one, Assignment)]
            heard.clear()
            return found

        msg_id = ask(net, caller, "g")
        assert told() == [(msg_id, False)]
        lose(net, caller)
        connect(net, caller)  # it does not know any more what it was told
        assert told() == [(msg_id, False)]
        one = worker(net, "one")
        assert told() == [(msg_id, True)]
        die(net, one)
        assert told() == [(msg_id, False)]
        net.restart_broker()
        net.settle()
        assert told() == [(msg_id, False)]
        two = worker(net, "two")
        work(net, two)
        assert told() == [(msg_id, True)] and net.body(result(caller, msg_id)) == b"done "
        ask(net, caller, "g")
        assert told() == []

    def test_an_impatient_request_without_a_worker_is_refused(self, net, caller):
        msg_id = ask(net, caller, "g", patient=False)
        assert isinstance(refusal(caller, msg_id), errors.UnknownPeer)
        assert not net.broker.requests._queues.groups
        assert not net.journal

    def test_the_caller_itself_does_not_count_as_a_worker(self, net):
        one = worker(net, "one")
        msg_id = ask(net, one, "g", patient=False)
        assert isinstance(refusal(one, msg_id), errors.UnknownPeer)

    def test_waiting_impatient_requests_are_refused_with_the_last_worker(self, net, caller):
        one, two = worker(net, "one"), worker(net, "two")
        held, also_held = caller.call("g", patient=False), caller.call("g", patient=False)
        patient, waits = caller.call("g"), caller.call("g", patient=False)
        net.settle()
        one.offer(0)
        net.settle()
        assert not caller.results
        two.offer(0)
        net.settle()
        assert isinstance(refusal(caller, waits), errors.UnknownPeer)
        one.work()
        work(net, two)
        assert {one.from_name for one in (result(caller, held), result(caller, also_held))} == {"one", "two"}
        assert patient not in caller.results

    def test_waiting_impatient_requests_are_refused_when_only_their_caller_is_left(self, net):
        one, two = worker(net, "one"), worker(net, "two")
        first, second = one.call("g", patient=False), one.call("g", patient=False)
        net.settle()
        two.offer(0)
        net.settle()
        net.advance(2.5)
        assert isinstance(refusal(one, second), errors.UnknownPeer)
        assert list(two.works) == [first]

    def test_a_worker_that_is_expected_back_counts(self, net, caller):
        one = worker(net, "one")
        lose(net, one)
        msg_id = ask(net, caller, "g", patient=False)
        assert not caller.results
        connect(net, one)
        assert list(one.works) == [msg_id]


class TestBounds:
    def test_the_queue_of_a_group_is_bounded(self, net, caller, monkeypatch):
        monkeypatch.setattr(queues, "MAX_WAITING", 3)
        asked = [caller.call("g") for _ in range(4)]
        net.settle()
        assert isinstance(refusal(caller, asked[3]), errors.RateLimited)
        assert list(caller.results) == asked[3:]
        ask(net, caller, "other")
        assert len(caller.results) == 1
        caller.withdraw(asked[0])
        asked.append(caller.call("g"))
        net.settle()
        assert len(caller.results) == 1

    @pytest.mark.parametrize("limit", ["MAX_WAITING_BYTES", "MAX_POOL_BYTES"])
    def test_the_bytes_of_queues_are_bounded(self, net, caller, monkeypatch, limit):
        monkeypatch.setattr(queues, limit, 100)
        first, second = caller.call("g", bytes(60)), caller.call("g", bytes(60))
        third = ask(net, caller, "other", bytes(60))
        refused = [second, third] if limit == "MAX_POOL_BYTES" else [second]
        assert list(caller.results) == refused
        assert isinstance(refusal(caller, second), errors.RateLimited)
        # A body that is in the journal only takes no room.
        large = ask(net, caller, "g", b"x" * (verbs.SPILL_BYTES + 1))
        assert large not in caller.results
        worker(net, "one", 5, groups=("g", "other"))
        fourth = ask(net, caller, "g", bytes(60))
        assert fourth not in caller.results
        assert net.broker.requests._queues.size_bytes == 0
        assert first not in caller.results

    def test_bytes_in_flight_to_a_worker_are_bounded(self, net, caller, monkeypatch):
        monkeypatch.setattr(queues, "MAX_SENT_BYTES", 100)
        monkeypatch.setattr(requests, "PASSED_BYTES", 50)  # for small requests, this and the credit are the bound
        one = worker(net, "one", 5)
        bodies = [letter * 60 for letter in (b"a", b"b", b"c")]
        asked = [caller.call("g", body) for body in bodies]
        net.settle()
        works = [one.works[msg_id] for msg_id in asked]
        assert [work.pointer is None for work in works] == [True, False, False]
        assert [net.body(work) for work in works] == bodies
        work(net, one, 1)
        late = ask(net, caller, "g", bodies[0])
        assert one.works[late].body == bodies[0]
        work(net, one)
        check_clean(net)
