"""Requests to groups, and who works for them: each rule of section 9 of docs/protocol.md."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zmqbus import errors
from zmqbus.broker.core import SILENCE_S
from zmqbus.broker.groups import callers, failover, ledger, queues, requests, workers
from zmqbus.broker.groups.failover import OFFER_S, RETURN_S
from zmqbus.client.core import Assignment, Persona
from zmqbus.testing import SimClient, SimNet, session_id_of
from zmqbus.testing.simnet import Death
from zmqbus.wire import codec, naming, verbs
from zmqbus.wire.verbs import Format, Role


@pytest.fixture
def net() -> SimNet:
    return SimNet()


@pytest.fixture
def caller(net) -> SimClient:
    return net.session("caller", role=Role.PROGRAM)


def worker(net: SimNet, name: str, credit: int = 1, *, groups: tuple[str, ...] = ("g",), **more: object) -> SimClient:
    """A worker in a process of its own, which lives."""
    net.living_owners.add(f"{name}:1")
    more.setdefault("owner", f"{name}:1")
    found = net.session(name, role=Role.PROGRAM, groups=groups, **more)  # type: ignore[arg-type]
    found.offer(credit)
    net.settle()
    return found


def in_hand(net: SimNet, caller: SimClient, *names: str, body: bytes = b"") -> tuple[Any, ...]:
    """Workers of these names, the first of whom has a request in hand; and behind them the request's id."""
    members = [worker(net, name) for name in names]
    msg_id = caller.call("g", body)
    net.settle()
    assert [*members[0].works] == [msg_id]
    return (*members, msg_id)


def die(net: SimNet, member: SimClient) -> None:
    """Its process ends."""
    net.living_owners.discard(member.persona.owner)
    member.disconnect()
    member.drop_subscriber()
    net.clients.remove(member)


def lose(net: SimNet, member: SimClient) -> None:
    """Its connection ends, and the process lives."""
    member.disconnect()
    net.settle()


def figures(net: SimNet) -> dict[str, int]:
    return dict(net.broker.requests.figures())


def refusal(member: SimClient, msg_id: str) -> errors.ZmqbusError:
    outcome = member.results[msg_id]
    assert isinstance(outcome, errors.ZmqbusError), outcome
    return outcome


def result(member: SimClient, msg_id: str) -> verbs.Result:
    outcome = member.results[msg_id]
    assert isinstance(outcome, verbs.Result), outcome
    return outcome


def check_clean(net: SimNet) -> None:
    """No request is left in any table of the broker."""
    broker = net.broker.requests
    assert broker.idle and not broker._staged and net.broker.oldest_segment() is None
    assert not any(caller.requests for caller in [*broker._callers._connected.values(), *broker._callers._lost])
    members = broker._workers._by_session.values()
    assert not any(one.assigned or one.claims or one.sent_bytes for one in members)
    assert not broker._queues.quarantined and broker._queues.size_bytes == 0
    for group in broker._queues.groups.values():
        assert (group.waiting, group.size_bytes, group.impatient, group.reserved, group.reserved_bytes) == (0,) * 5
        assert not group._queue and not group._aside


# --- there and back


def test_a_request_and_its_answer(net, caller):
    one, msg_id = in_hand(net, caller, "one", body=b"resize")
    (work,) = one.works.values()
    assert (work.msg_id, work.from_session, work.from_name, work.group) == (
        msg_id,
        session_id_of("caller"),
        "caller",
        "g",
    )
    assert (work.fmt, work.tries, work.pointer, work.body) == (Format.TEXT, 0, None, b"resize")
    assert work.ts == net.clock.wall_s
    one.answer(msg_id, b"done")
    net.settle()
    answer = result(caller, msg_id)
    assert (answer.from_session, answer.from_name, answer.body, answer.pointer) == (
        session_id_of("one"),
        "one",
        b"done",
        None,
    )
    check_clean(net)


def test_both_are_records_of_the_journal(net, caller):
    one, msg_id = in_hand(net, caller, "one", body=b"resize")
    one.answer(msg_id, b"done")
    net.settle()
    asked, answered = map(json.loads, net.journal)
    assert (asked["msg_id"], asked["kind"], asked["from_name"], asked["to"]) == (msg_id, "request", "caller", "@g")
    assert (asked["to_session_id"], asked["text"]) == (None, "resize")
    assert (answered["kind"], answered["from_name"], answered["to"]) == ("answer", "one", "caller")
    assert (answered["to_session_id"], answered["reply_to"]) == (session_id_of("caller"), msg_id)
    assert answered["msg_id"] == result(caller, msg_id).answer_id != msg_id
    assert answered["text"] == "done"


def test_nothing_of_it_is_in_the_store(net, caller):
    before = net.store.commits
    one = worker(net, "one")
    commits = net.store.commits
    assert commits > before
    caller.call("g")
    net.settle()
    one.work()
    net.settle()
    assert (net.store.commits, net.store.total()) == (commits, 0)


def test_large_bodies_travel_as_pointers(net, caller):
    one = worker(net, "one")
    large = b"x" * (verbs.SPILL_BYTES + 1)
    msg_id = caller.call("g", large)
    net.settle()
    (work,) = one.works.values()
    assert (work.body, net.body(work)) == (b"", large)
    assert net.broker.oldest_segment() == 1
    one.answer(msg_id, large * 2)
    net.settle()
    answer = result(caller, msg_id)
    assert (answer.body, net.body(answer)) == (b"", large * 2)
    check_clean(net)


@pytest.mark.parametrize("role", [Role.LISTENER, Role.PROGRAM, Role.HELPER, Role.GUEST])
def test_who_may_ask(net, role):
    one = worker(net, "one")
    if role in (Role.LISTENER, Role.PROGRAM):
        asking = net.session("asking", role=role)
    else:
        asking = net.guest("asking") if role is Role.GUEST else net.helper(net.session("asking"))
    msg_id = asking.call("g")
    net.settle()
    assert one.works[msg_id].from_name == "asking"
    one.work()
    net.settle()
    assert result(asking, msg_id)


def test_an_observer_may_not(net):
    looker = net.observer()
    msg_id = looker.call("g")
    net.settle()
    assert isinstance(refusal(looker, msg_id), errors.ProtocolError)


def test_a_request_and_a_message_within_one_wake(net, caller):
    """Both write to the journal, and each has to find its own place there."""
    one, bob = worker(net, "one"), net.session("bob")
    large = b"y" * (verbs.SPILL_BYTES + 1)
    caller.send("bob", b"x" + large)
    msg_id = caller.call("g", large)
    caller.send("bob", b"z" + large)
    net.settle()
    assert [net.body(message) for message in bob.handed] == [b"x" + large, b"z" + large]
    assert net.body(one.works[msg_id]) == large


# --- who gets it


def test_the_least_loaded_gets_it(net, caller):
    one, two = worker(net, "one", 10), worker(net, "two", 10)
    for _ in range(6):
        caller.call("g")
    net.settle()
    assert (len(one.works), len(two.works)) == (3, 3)
    one.work(2)
    net.settle()
    caller.call("g")
    caller.call("g")
    net.settle()
    assert (len(one.works), len(two.works)) == (3, 3)


def test_of_several_the_one_that_has_been_idle_for_longest(net, caller):
    members = [worker(net, name) for name in ("one", "two", "three")]
    for turn in range(6):
        msg_id = caller.call("g")
        net.settle()
        assert msg_id in members[turn % 3].works
        members[turn % 3].work()
        net.settle()


def test_no_more_than_the_credit_the_rest_waits_in_order(net, caller):
    one = worker(net, "one", 2)
    asked = [caller.call("g", str(number).encode()) for number in range(5)]
    net.settle()
    assert list(one.works) == asked[:2]
    assert (figures(net)["requests_in_hand"], figures(net)["requests_waiting"]) == (2, 3)
    one.work(1)
    net.settle()
    assert list(one.works) == asked[1:3]
    one.offer(4)
    net.settle()
    assert list(one.works) == asked[1:5]
    one.work()
    net.settle()
    assert one.done == asked
    check_clean(net)


def test_less_credit_takes_nothing_away(net, caller):
    one = worker(net, "one", 2)
    for _ in range(3):
        caller.call("g")
    net.settle()
    one.offer(1)
    one.work(1)
    net.settle()
    assert len(one.works) == 1
    one.work()
    net.settle()
    assert len(one.works) == 1


def test_a_credit_of_none_drains(net, caller):
    one, two = worker(net, "one", 2), worker(net, "two", 2)
    for _ in range(4):
        caller.call("g")
    net.settle()
    one.offer(0)
    one.work()
    net.settle()
    caller.call("g")
    net.settle()
    assert (len(one.works), len(two.works)) == (0, 2)
    two.work()
    net.settle()
    assert (len(one.works), len(two.works)) == (0, 1)
    one.offer(1)
    two.offer(0)
    net.settle()
    caller.call("g")
    net.settle()
    assert len(one.works) == 1


def test_a_giant_credit_is_a_thousand(net, caller):
    one = worker(net, "one", 10**9)
    other = net.session("other", role=Role.PROGRAM)
    for _ in range(700):
        caller.call("g")
        other.call("g")
    net.settle()
    assert len(one.works) == workers.MAX_CREDIT
    worker(net, "two", -5)
    assert figures(net)["requests_waiting"] == 400


def test_a_worker_of_several_groups(net, caller):
    one = worker(net, "one", 1, groups=("a", "b"))
    two = worker(net, "two", 1, groups=("b",))
    first, second, third = caller.call("a"), caller.call("b"), caller.call("a")
    net.settle()
    assert (list(one.works), list(two.works)) == ([first], [second])
    one.work()
    net.settle()
    assert list(one.works) == [third]


def test_a_caller_never_gets_its_own(net):
    one, two = worker(net, "one", 5), worker(net, "two", 1)
    asked = [one.call("g", str(number).encode()) for number in range(3)]
    net.settle()
    assert (list(one.works), list(two.works)) == ([], asked[:1])
    other = two.call("g")
    net.settle()
    assert list(one.works) == [other]
    two.work()
    two.work()
    net.settle()
    assert list(two.works) == asked[1:2]
    two.work()
    net.settle()
    two.work()
    one.work()
    net.settle()
    assert two.done == asked
    check_clean(net)


def test_what_is_put_aside_for_its_caller_keeps_its_turn(net, caller):
    one, two = worker(net, "one"), worker(net, "two")

    def ask(*members: SimClient) -> list[str]:
        asked = []
        for member in members:
            asked.append(member.call("g"))
            net.settle()
        return asked

    _, _, own, third = ask(caller, caller, one, caller)
    one.work()
    net.settle()
    assert list(one.works) == [third]
    assert list(net.broker.requests._queues.groups["g"]._aside[session_id_of("one")]) == [own]
    ask(caller)
    two.work()
    net.settle()
    assert list(two.works) == [own]


def test_no_group_of_a_worker_starves(net, caller):
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


def test_without_a_worker_a_patient_request_waits(net, caller):
    msg_id = caller.call("g")
    net.settle()
    net.advance(60, step_s=3)
    assert not caller.results
    one = worker(net, "one")
    assert list(one.works) == [msg_id]


def test_its_caller_is_told_so_and_when_there_is_one(net, caller):
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

    msg_id = caller.call("g")
    net.settle()
    assert told() == [(msg_id, False)]
    lose(net, caller)
    caller.connect()  # it does not know any more what it was told
    net.settle()
    assert told() == [(msg_id, False)]
    one = worker(net, "one")
    assert told() == [(msg_id, True)]
    die(net, one)
    net.settle()
    assert told() == [(msg_id, False)]
    net.restart_broker()
    net.settle()
    assert told() == [(msg_id, False)]
    two = worker(net, "two")
    two.work()
    net.settle()
    assert told() == [(msg_id, True)] and net.body(result(caller, msg_id)) == b"done "
    caller.call("g")
    net.settle()
    assert told() == []


def test_and_an_impatient_one_is_refused(net, caller):
    msg_id = caller.call("g", patient=False)
    net.settle()
    assert isinstance(refusal(caller, msg_id), errors.UnknownPeer)
    assert not net.broker.requests._queues.groups
    assert not net.journal


def test_a_worker_that_is_the_caller_is_none(net):
    one = worker(net, "one")
    msg_id = one.call("g", patient=False)
    net.settle()
    assert isinstance(refusal(one, msg_id), errors.UnknownPeer)


def test_an_impatient_one_that_waits_is_refused_when_the_last_worker_leaves(net, caller):
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
    two.work()
    net.settle()
    assert {one.from_name for one in (result(caller, held), result(caller, also_held))} == {"one", "two"}
    assert patient not in caller.results


def test_or_when_only_its_caller_is_left(net):
    one, two = worker(net, "one"), worker(net, "two")
    first, second = one.call("g", patient=False), one.call("g", patient=False)
    net.settle()
    two.offer(0)
    net.settle()
    net.advance(2.5)
    assert isinstance(refusal(one, second), errors.UnknownPeer)
    assert list(two.works) == [first]


def test_a_worker_that_is_expected_back_counts(net, caller):
    one = worker(net, "one")
    lose(net, one)
    msg_id = caller.call("g", patient=False)
    net.settle()
    assert not caller.results
    one.connect()
    net.settle()
    assert list(one.works) == [msg_id]


# --- withdrawn


def test_a_request_that_waits_is_dropped_when_it_is_withdrawn(net, caller):
    first, second = caller.call("g"), caller.call("g")
    net.settle()
    caller.withdraw(first)
    net.settle()
    assert figures(net)["requests_waiting"] == 1
    one = worker(net, "one", 5)
    assert list(one.works) == [second]
    one.work()
    net.settle()
    check_clean(net)


def test_one_that_is_in_hand_is_withdrawn_there_and_its_place_is_free(net, caller):
    one = worker(net, "one", 1)
    first, second = caller.call("g"), caller.call("g")
    net.settle()
    caller.withdraw(first)
    net.settle()
    assert one.dropped == [first]
    assert list(one.works) == [second]
    one.work()
    net.settle()
    assert list(caller.results) == [second]
    check_clean(net)


def test_one_that_is_withdrawn_before_it_is_written(net, caller):
    one = worker(net, "one", 1)
    caller.withdraw(caller.call("g"))
    net.settle()
    assert not one.works
    check_clean(net)


def test_an_answer_that_crosses_the_withdrawal_is_dropped(net, caller):
    one, msg_id = in_hand(net, caller, "one")
    caller.withdraw(msg_id)
    one.work()
    net.settle()
    msg_id = caller.call("g")
    net.settle()
    one.work()
    caller.withdraw(msg_id)
    net.settle()
    assert not caller.results and not one.works
    check_clean(net)


def test_what_is_not_the_callers_cannot_be_withdrawn(net, caller):
    one, other = worker(net, "one", 1), net.session("other")
    msg_id = caller.call("g")
    net.settle()
    other.raw(codec.encode([verbs.Withdraw((msg_id, "nothing00000", ""))]))
    net.settle()
    assert list(one.works) == [msg_id]


# --- a caller goes, or comes back


def test_a_caller_that_leaves_withdraws_its_requests(net, caller):
    one = worker(net, "one", 1)
    first, _ = caller.call("g"), caller.call("g")
    net.settle()
    caller.bye()
    net.settle()
    assert one.dropped == [first]
    check_clean(net)


def test_a_caller_that_is_cut_off_is_expected_back(net, caller):
    one = worker(net, "one", 1)
    first, second = caller.call("g"), caller.call("g")
    net.settle()
    lose(net, caller)
    one.work()
    net.settle()
    net.advance(RETURN_S - 1)
    assert list(one.works) == [second]
    caller.connect()
    net.settle()
    assert result(caller, first).from_name == "one"
    assert net.body(result(caller, first)) == b"done "
    one.work()
    net.settle()
    assert result(caller, second)
    assert one.done == [first, second]
    check_clean(net)


def test_what_no_worker_has_is_withdrawn_if_a_caller_does_not_come_back_in_time(net, caller):
    one = worker(net, "one", 1)
    first, second = caller.call("g"), caller.call("g")
    net.settle()
    lose(net, caller)
    assert not net.broker.idle
    net.advance(RETURN_S + 0.5)
    assert not one.dropped and figures(net)["requests_waiting"] == 0
    one.work()
    net.settle()
    check_clean(net)
    caller.connect()  # it was busy
    net.settle()
    assert result(caller, first)
    assert list(one.works) == [second]
    one.work()
    net.settle()
    assert one.done == [first, second]
    assert result(caller, second)


@pytest.mark.parametrize("after_s", [0.0, RETURN_S + 0.5])
def test_and_the_rest_when_its_process_has_ended(net, after_s):
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


def test_a_caller_that_comes_back_very_late_withdraws_what_it_does_not_say_again(net, caller):
    one = worker(net, "one", 2)
    first, second = caller.call("g"), caller.call("g")
    net.settle()
    lose(net, caller)
    net.advance(10 * RETURN_S)
    caller.withdraw(first)
    caller.connect()
    net.settle()
    net.advance(RETURN_S + 0.5)
    assert one.dropped == [first]
    one.work()
    net.settle()
    assert result(caller, second)
    assert one.done == [first, second]
    check_clean(net)


def test_what_is_kept_for_a_worker_is_not_given_to_another_when_that_one_dies(net, caller):
    one, two, msg_id = in_hand(net, caller, "one", "two")
    lose(net, caller)
    net.advance(RETURN_S + 0.5)
    die(net, one)
    net.settle()
    assert not two.works
    check_clean(net)
    caller.connect()
    net.settle()
    assert list(two.works) == [msg_id]


def test_what_a_caller_does_not_say_again_is_withdrawn(net, caller):
    one = worker(net, "one", 2)
    first, second = caller.call("g"), caller.call("g")
    net.settle()
    lose(net, caller)
    caller.withdraw(first)
    caller.connect()
    net.settle()
    assert not one.dropped
    net.advance(RETURN_S + 0.5)
    assert one.dropped == [first]
    one.work()
    net.settle()
    assert result(caller, second)
    check_clean(net)


@pytest.mark.parametrize("role", [Role.HELPER, Role.GUEST])
def test_commands_and_guests_come_back_too(net, role):
    one = worker(net, "one")
    asking = net.guest("asking") if role is Role.GUEST else net.helper(net.session("asking"))
    msg_id = asking.call("g")
    net.settle()
    asking.vanish()
    asking.connect()
    net.settle()
    one.work()
    net.settle()
    assert result(asking, msg_id)
    assert one.done == [msg_id]


def test_an_answer_is_told_again_to_a_caller_that_has_not_heard_it(net, caller):
    one, msg_id = in_hand(net, caller, "one", body=b"resize")
    caller.vanish()
    one.work()
    net.settle()
    caller.connect()
    net.settle()
    assert net.body(result(caller, msg_id)) == b"done resize"
    assert one.done == [msg_id]


def test_only_so_many_answers_are_remembered(net, caller, monkeypatch):
    monkeypatch.setattr(ledger, "REMEMBERED_RESULTS", 3)
    one = worker(net, "one", 10)
    for _ in range(5):
        caller.call("g")
    net.settle()
    one.work()
    net.settle()
    assert len(net.broker.requests._ledger._past) == 3


def test_requests_of_callers_that_are_gone_are_bounded(net, monkeypatch):
    monkeypatch.setattr(callers, "MAX_ORPHANS", 5)
    for number in range(4):
        guest = net.guest(f"guest{number}")
        for _ in range(2):
            guest.call("g")
        net.settle()
        lose_unseen(net, guest)
    assert figures(net)["requests_waiting"] == 4
    net.advance(RETURN_S + 0.5)
    check_clean(net)


def lose_unseen(net: SimNet, guest: SimClient) -> None:
    """A guest has no SUB whose end would show; what is sent to it does not arrive."""
    from zmqbus.broker import events

    route = guest.route
    guest.disconnect()
    net._decide(events.Unreachable(route))
    net.settle()


def test_a_request_that_is_known_is_not_handed_out_twice(net, caller):
    one, two, msg_id = in_hand(net, caller, "one", "two")
    for again in (True, False):
        caller.raw(codec.encode([verbs.Request(msg_id, "g", 0, True, again, b"")] * 2))
        net.settle()
    assert len(one.works) + len(two.works) == 1


def test_nor_within_one_wake(net, caller):
    one, two = worker(net, "one"), worker(net, "two")
    caller.raw(codec.encode([verbs.Request("aaaa00000000", "g", 0, True, False, b"")] * 2))
    net.settle()
    assert len(one.works) + len(two.works) == 1


def test_the_id_of_another_session_is_refused(net, caller):
    one, other = worker(net, "one"), net.session("other")
    msg_id = caller.call("g")
    net.settle()
    other.call("g", msg_id=msg_id)
    net.settle()
    assert isinstance(refusal(other, msg_id), errors.ProtocolError)
    one.work()
    net.settle()
    assert result(caller, msg_id)
    third = net.session("third")
    third.call("g", msg_id=msg_id)
    net.settle()
    assert isinstance(refusal(third, msg_id), errors.ProtocolError)


# --- a worker goes, or comes back


def test_what_a_dead_worker_had_goes_to_others_first(net, caller):
    one = worker(net, "one", 2)
    asked = [caller.call("g") for _ in range(4)]
    net.settle()
    die(net, one)
    net.settle()
    two = worker(net, "two", 3)
    assert list(two.works) == asked[:3]
    assert [work.tries for work in two.works.values()] == [1, 1, 0]
    assert figures(net)["requests_redispatched"] == 2
    assert net.body(two.works[asked[0]]) == b""


def test_what_a_worker_had_that_leaves_goes_to_others(net, caller):
    one, two, msg_id = in_hand(net, caller, "one", "two", body=b"resize")
    one.bye()
    net.settle()
    assert two.works[msg_id].tries == 0  # it was given back
    assert net.body(two.works[msg_id]) == b"resize"


def test_a_worker_that_is_disconnected_is_not_expected_back(net, caller):
    one, two, msg_id = in_hand(net, caller, "one", "two")
    net.helper(one).request(verbs.Disconnect("d"))
    net.settle()
    assert list(two.works) == [msg_id]


def test_a_worker_that_lives_is_expected_back(net, caller):
    one, two, msg_id = in_hand(net, caller, "one", "two")
    one.disconnect()
    net.settle()
    net.advance(RETURN_S - 1)
    assert not two.works
    one.connect()
    net.settle()
    one.work()
    net.settle()
    assert result(caller, msg_id).from_name == "one"
    assert one.done == [msg_id]
    check_clean(net)


def test_for_as_long_as_its_process_lives(net, caller):
    one, two, msg_id = in_hand(net, caller, "one", "two")
    one.disconnect()
    net.settle()
    net.advance(100 * RETURN_S, step_s=10)
    assert not two.works
    one.connect()
    net.settle()
    assert not one.dropped
    one.work()
    net.settle()
    assert result(caller, msg_id).from_name == "one"
    assert not two.done
    check_clean(net)


def test_one_that_has_nothing_in_hand_is_forgotten_sooner(net, caller):
    one = worker(net, "one")
    one.disconnect()
    net.settle()
    assert figures(net)["workers"] == 1
    net.advance(RETURN_S + 0.5)
    assert figures(net)["workers"] == 0
    one.connect()
    msg_id = caller.call("g")
    net.settle()
    assert list(one.works) == [msg_id]


def test_a_worker_that_is_cut_off_may_be_disconnected_by_a_command(net, caller):
    one, two, msg_id = in_hand(net, caller, "one", "two")
    helper = net.helper(one)
    one.disconnect()
    net.settle()
    helper.request(verbs.Disconnect("d"))
    net.settle()
    assert list(two.works) == [msg_id] and two.works[msg_id].tries == 0


def test_its_death_may_show_late(net, caller):
    one, two, msg_id = in_hand(net, caller, "one", "two")
    one.disconnect()
    net.settle()
    net.living_owners.discard("one:1")
    net.advance(0.1)
    assert list(two.works) == [msg_id]


def test_a_worker_that_comes_back_before_another_has_it_keeps_it(net, caller):
    one, msg_id = in_hand(net, caller, "one")
    one.disconnect()
    net.advance(RETURN_S + 0.5)
    assert figures(net)["requests_in_hand"] == 1
    one.connect()
    net.settle()
    assert not one.dropped and figures(net)["requests_in_hand"] == 1
    one.work()
    net.settle()
    assert result(caller, msg_id)
    check_clean(net)


def test_work_that_was_lost_on_the_way_is_given_out_again(net, caller):
    one = worker(net, "one")
    one.stopped = True
    msg_id = caller.call("g")
    net.settle()
    one.stopped = False
    one.vanish()
    one.connect()
    net.settle()
    assert one.works[msg_id].tries == 0
    assert figures(net)["requests_redispatched"] == 1


def test_an_answer_that_was_lost_on_the_way_is_given_again(net, caller):
    one, msg_id = in_hand(net, caller, "one", body=b"resize")
    one.vanish()
    one.work()
    one.connect()
    net.settle()
    assert result(caller, msg_id).body == b"done resize"
    assert one.done == [msg_id]
    check_clean(net)


@pytest.mark.parametrize("died", [False, True])
def test_another_process_of_the_session_has_not_what_the_first_one_had(net, caller, died):
    one, msg_id = in_hand(net, caller, "one")
    one.stopped = True
    if died:
        net.living_owners.discard("one:1")
    net.living_owners.add("new:1")
    new = net.session("one", role=Role.PROGRAM, groups=("g",), owner="new:1", pid=4711)
    new.offer(1)
    net.settle()
    assert new.works[msg_id].tries == died
    new.work()
    net.settle()
    assert result(caller, msg_id)
    check_clean(net)


def test_a_worker_that_stands_still_is_busy(net, caller):
    one, two, msg_id = in_hand(net, caller, "one", "two")
    one.stopped = True
    net.advance(100 * SILENCE_S, step_s=10)
    assert not two.works and figures(net)["requests_redispatched"] == 0
    one.stopped = False
    net.settle()
    net.advance(5)
    assert not one.dropped
    one.work()
    net.settle()
    assert result(caller, msg_id).from_name == "one"
    check_clean(net)


def test_and_gets_nothing_more_until_it_goes_on(net, caller):
    one = worker(net, "one", 3)
    one.stopped = True
    first = caller.call("g")
    net.settle()
    net.advance(SILENCE_S + 2)
    second = caller.call("g")
    net.settle()
    assert figures(net)["requests_waiting"] == 1
    two = worker(net, "two", 1)
    assert list(two.works) == [second]
    third = caller.call("g")
    net.settle()
    one.stopped = False
    net.settle()
    net.advance(5)
    assert list(one.works) == [first, third]


def test_one_whose_process_has_ended_while_another_holds_its_sockets(net, caller):
    """A child that was forked keeps the connections up, and says nothing."""
    one, two, msg_id = in_hand(net, caller, "one", "two")
    one.stopped = True
    net.living_owners.discard("one:1")
    net.advance(SILENCE_S - 1)
    assert not two.works
    net.advance(2)
    assert two.works[msg_id].tries == 1


def test_a_stopped_one_that_is_killed(net, caller):
    """Its connection ends with it, which the broker sees though it has said nothing for long."""
    one, two, msg_id = in_hand(net, caller, "one", "two")
    one.stopped = True
    net.advance(3 * SILENCE_S)
    assert not two.works
    die(net, one)
    net.settle()
    assert list(two.works) == [msg_id]


def test_the_first_answer_counts(net, caller):
    """A worker that was given up has the answer, and the one that has the request now does not yet."""
    one, two, msg_id = in_hand(net, caller, "one", "two")
    one.vanish()
    one.work()
    net.living_owners.discard("one:1")  # so it seems
    net.advance(SILENCE_S + RETURN_S + 3)
    assert list(two.works) == [msg_id]
    one.connect()
    net.settle()
    assert result(caller, msg_id).from_name == "one"
    assert two.dropped == [msg_id]
    two.answer(msg_id)
    net.settle()
    check_clean(net)


def test_three_workers_that_go_with_a_request_have_gone_of_it(net, caller):
    msg_id = caller.call("g")
    for number in range(3):
        one = worker(net, f"worker{number}")
        assert one.works[msg_id].tries == number
        die(net, one)
        net.settle()
    error = refusal(caller, msg_id)
    assert isinstance(error, errors.Poisoned) and "3 workers" in str(error) and msg_id in str(error)
    assert not worker(net, "last").works
    check_clean(net)


def test_a_poisoned_request_stays_so_when_it_is_said_again(net, caller):
    msg_id = caller.call("g")
    net.settle()
    caller.vanish()
    for number in range(3):
        die(net, worker(net, f"worker{number}"))
        net.settle()
    caller.connect()
    net.settle()
    assert isinstance(refusal(caller, msg_id), errors.Poisoned)


def test_what_a_worker_has_while_it_works_for_another_group_is_not_lost(net, caller):
    one, msg_id = in_hand(net, caller, "one")
    one.core.persona = one.core.persona._replace(groups=("other",))
    one.disconnect()
    one.connect()
    net.settle()
    assert "g" not in net.broker.requests._queues.groups
    die(net, one)
    net.settle()
    two = worker(net, "two")
    assert list(two.works) == [msg_id]


# --- the broker dies


@pytest.fixture
def crew(net, caller) -> list[SimClient]:
    return [worker(net, "one"), worker(net, "two")]


@pytest.mark.parametrize("death", Death)
def test_a_request_goes_to_the_next_broker(net, caller, crew, death):
    msg_id = caller.call("g", b"resize")
    net.kill_broker(death)
    net.settle()
    (one,) = [member for member in crew if member.works]
    one.work()
    net.settle()
    assert net.body(result(caller, msg_id)) == b"done resize"
    check_clean(net)


@pytest.mark.parametrize("death", Death)
def test_an_answer_goes_to_the_next_broker(net, caller, crew, death):
    msg_id = caller.call("g", b"resize")
    net.settle()
    (one,) = [member for member in crew if member.works]
    one.work()
    net.kill_broker(death)
    net.settle()
    assert net.body(result(caller, msg_id)) == b"done resize"
    assert [*crew[0].done, *crew[1].done] == [msg_id]
    check_clean(net)


@pytest.mark.parametrize("order", ["caller first", "workers first"])
def test_a_worker_keeps_what_it_has_in_hand(net, caller, crew, order):
    msg_id = caller.call("g")
    waits = [caller.call("g"), caller.call("g")]
    net.settle()
    net.kill_broker()
    members = [caller, *crew] if order == "caller first" else [*crew, caller]
    for member in members:
        member.stopped = True
    for member in members:
        member.stopped = False
        net.settle()
    assert sum(len(member.works) for member in crew) == 2
    while any(member.works for member in crew):
        for member in crew:
            member.work()
        net.settle()
    assert sorted([*crew[0].done, *crew[1].done]) == sorted([msg_id, *waits])
    assert len(caller.results) == 3
    check_clean(net)


def test_what_somebody_may_have_waits_for_him(net, caller, crew):
    one, two = crew
    msg_id = caller.call("g")
    net.settle()
    holder, other = (one, two) if one.works else (two, one)
    holder.stopped = True
    net.kill_broker()
    net.settle()
    net.advance(RETURN_S - 1)
    assert not other.works and figures(net)["requests_waiting"] == 1
    holder.stopped = False
    net.settle()
    holder.work()
    net.settle()
    assert result(caller, msg_id)
    assert not other.done
    check_clean(net)


def test_for_as_long_as_his_process_lives(net, caller, crew):
    one, two = crew
    msg_id = caller.call("g")
    net.settle()
    holder, other = (one, two) if one.works else (two, one)
    holder.stopped = True
    net.kill_broker()
    net.settle()
    net.advance(100 * RETURN_S, step_s=10)
    assert not other.works
    assert any("1 requests to @g may be at work" in note for note in net.notes)
    late = caller.call("g")
    net.settle()
    assert list(other.works) == [late]  # nobody else can have this one
    holder.stopped = False
    net.settle()
    holder.work()
    other.work()
    net.settle()
    assert result(caller, msg_id)
    assert result(caller, late)
    assert not holder.dropped and holder.done == [msg_id]
    check_clean(net)


def test_over_any_number_of_brokers(net, caller, crew):
    one, two = crew
    msg_id = caller.call("g")
    net.settle()
    holder, other = (one, two) if one.works else (two, one)
    holder.stopped = True
    for _ in range(3):
        net.kill_broker()
        net.settle()
        net.advance(2 * RETURN_S)
        assert not other.works
    holder.stopped = False
    net.settle()
    holder.work()
    net.settle()
    assert result(caller, msg_id)
    assert not other.done
    check_clean(net)


def test_but_not_for_one_that_was_seen_to_leave(net, caller, crew):
    one, two = crew
    msg_id = caller.call("g")
    net.settle()
    holder, other = (one, two) if one.works else (two, one)
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


def test_nor_for_one_that_a_command_has_disconnected(net, caller, crew):
    one, two = crew
    msg_id = caller.call("g")
    net.settle()
    holder, other = (one, two) if one.works else (two, one)
    holder.stopped = True
    helper = net.helper(holder)
    net.kill_broker()
    net.settle()
    assert not other.works
    helper.request(verbs.Disconnect("d"))
    net.settle()
    assert list(other.works) == [msg_id]


def test_nor_for_the_dead(net, caller, crew):
    one, two = crew
    msg_id = caller.call("g")
    net.settle()
    holder, other = (one, two) if one.works else (two, one)
    net.kill_broker()
    net.living_owners.discard(holder.persona.owner)
    net.clients.remove(holder)
    net.settle()
    net.advance(0.5)
    assert list(other.works) == [msg_id]


def test_nor_for_one_that_does_not_work_any_more(net, caller, crew):
    one, two = crew
    msg_id = caller.call("g")
    net.settle()
    holder, other = (one, two) if one.works else (two, one)
    net.clients.remove(holder)
    net.restart_broker()
    net.settle()
    assert not other.works
    net.session(holder.persona.name or "")  # a listener now
    net.settle()
    assert list(other.works) == [msg_id]


def test_nor_for_a_program_that_comes_and_does_not_offer(net, crew):
    one, two = crew
    asking = net.session("asking", role=Role.PROGRAM, groups=("g",))
    msg_id = asking.call("g")
    net.settle()
    holder, other = (one, two) if one.works else (two, one)
    net.kill_broker()
    net.living_owners.discard(holder.persona.owner)
    net.clients.remove(holder)
    net.settle()
    net.advance(OFFER_S - 0.5, step_s=0.1)
    assert not other.works
    net.advance(0.6, step_s=0.1)
    assert list(other.works) == [msg_id]


def test_nobody_is_waited_for_where_nobody_was_connected(net, caller):
    one = worker(net, "one")
    one.bye()
    net.settle()
    msg_id = caller.call("g")
    net.settle()
    net.kill_broker()
    caller.connect()
    two = worker(net, "two")
    assert list(two.works) == [msg_id]


def test_an_impatient_request_waits_for_the_workers_to_come_back(net, caller, crew):
    for member in crew:
        member.stopped = True
    net.kill_broker()
    net.settle()
    msg_id = caller.call("g", patient=False)
    net.settle()
    assert not caller.results
    crew[0].stopped = False
    net.settle()
    assert list(crew[0].works) == [msg_id]


def test_and_is_refused_if_none_does(net, caller, crew):
    net.kill_broker()
    for member in crew:
        net.clients.remove(member)
    caller.connect()
    first = caller.call("g", patient=False)
    net.settle()
    net.advance(RETURN_S + 0.5)
    second = caller.call("g", patient=False)
    net.settle()
    assert isinstance(refusal(caller, first), errors.UnknownPeer)
    assert isinstance(refusal(caller, second), errors.UnknownPeer)


def test_what_a_worker_has_counts_before_anybody_has_asked(net, caller):
    one = worker(net, "one", 2)
    first = [caller.call("g"), caller.call("g")]
    net.settle()
    caller.stopped = True
    net.kill_broker()
    other = net.session("other")
    late = other.call("g")
    net.settle()
    assert list(one.works) == first
    one.work(1)
    net.settle()
    assert list(one.works) == [first[1], late]
    caller.stopped = False
    net.settle()
    assert list(caller.results) == first[:1]  # it was answered before it was asked for, and is answered again
    one.work()
    net.settle()
    assert sorted(one.done) == sorted([*first, late])
    check_clean(net)


def test_what_nobody_says_again_stays_with_its_worker(net, caller):
    """The caller may be busy, too, and it would be done a second time."""
    one, two, msg_id = in_hand(net, caller, "one", "two")
    caller.stopped = True
    net.kill_broker()
    net.settle()
    net.advance(10 * RETURN_S)
    assert not one.dropped
    one.work()
    net.settle()
    net.advance(10 * RETURN_S)
    caller.stopped = False
    net.settle()
    assert result(caller, msg_id)
    assert one.done == [msg_id] and not two.done
    check_clean(net)


def test_a_worker_that_this_broker_knows_claims_nothing(net, caller):
    one, msg_id = in_hand(net, caller, "one")
    lose(net, one)
    caller.withdraw(msg_id)
    net.settle()
    one.connect()
    net.settle()
    assert one.dropped == [msg_id]
    check_clean(net)


def test_claims_are_bounded(net, caller, monkeypatch):
    monkeypatch.setattr(failover, "MAX_CLAIMS", 2)
    one = worker(net, "one", 4)
    asked = [caller.call("g") for _ in range(4)]
    net.settle()
    caller.stopped = True
    net.kill_broker()
    net.settle()
    one.work(3)
    net.settle()
    one.disconnect()
    one.connect()
    net.settle()
    assert list(one.works) == asked[3:] and len(net.broker.requests._reconciliation._claims) == 2


def test_claims_go_with_their_worker(net, caller):
    one, msg_id = in_hand(net, caller, "one")
    caller.stopped = True
    net.kill_broker()
    net.settle()
    assert net.broker.requests._reconciliation._claims
    die(net, one)
    net.settle()
    assert not net.broker.requests._reconciliation._claims
    caller.stopped = False
    two = worker(net, "two")
    assert list(two.works) == [msg_id]


def test_a_repeated_claim_is_one(net, caller):
    one = worker(net, "one", 2)
    caller.call("g")
    net.settle()
    caller.stopped = True
    net.kill_broker()
    net.settle()
    one.disconnect()
    one.connect()
    net.settle()
    caller.stopped = False
    net.settle()
    one.work()
    net.settle()
    assert len(caller.results) == 1
    check_clean(net)


# --- bounds, and those who break the rules


def test_the_queue_of_a_group_is_bounded(net, caller, monkeypatch):
    monkeypatch.setattr(queues, "MAX_WAITING", 3)
    asked = [caller.call("g") for _ in range(4)]
    net.settle()
    assert isinstance(refusal(caller, asked[3]), errors.RateLimited)
    assert list(caller.results) == asked[3:]
    caller.call("other")
    net.settle()
    assert len(caller.results) == 1
    caller.withdraw(asked[0])
    asked.append(caller.call("g"))
    net.settle()
    assert len(caller.results) == 1


@pytest.mark.parametrize("limit", ["MAX_WAITING_BYTES", "MAX_POOL_BYTES"])
def test_and_its_bytes(net, caller, monkeypatch, limit):
    monkeypatch.setattr(queues, limit, 100)
    first, second = caller.call("g", bytes(60)), caller.call("g", bytes(60))
    third = caller.call("other", bytes(60))
    net.settle()
    refused = [second, third] if limit == "MAX_POOL_BYTES" else [second]
    assert list(caller.results) == refused
    assert isinstance(refusal(caller, second), errors.RateLimited)
    # A body that is in the journal only takes no room.
    large = caller.call("g", b"x" * (verbs.SPILL_BYTES + 1))
    net.settle()
    assert large not in caller.results
    worker(net, "one", 5, groups=("g", "other"))
    fourth = caller.call("g", bytes(60))
    net.settle()
    assert fourth not in caller.results
    assert net.broker.requests._queues.size_bytes == 0
    assert first not in caller.results


def test_what_is_under_way_to_a_worker_is_bounded(net, caller, monkeypatch):
    monkeypatch.setattr(queues, "MAX_SENT_BYTES", 100)
    monkeypatch.setattr(requests, "PASSED_BYTES", 50)  # what is passed on unwritten is bounded by that and the credit
    one = worker(net, "one", 5)
    bodies = [letter * 60 for letter in (b"a", b"b", b"c")]
    asked = [caller.call("g", body) for body in bodies]
    net.settle()
    works = [one.works[msg_id] for msg_id in asked]
    assert [work.pointer is None for work in works] == [True, False, False]
    assert [net.body(work) for work in works] == bodies
    one.work(1)
    net.settle()
    late = caller.call("g", bodies[0])
    net.settle()
    assert one.works[late].body == bodies[0]
    one.work()
    net.settle()
    check_clean(net)


def test_unanswered_requests_of_a_connection_are_bounded(net, caller, monkeypatch):
    monkeypatch.setattr(callers, "MAX_UNANSWERED", 3)
    asked = [caller.call("g") for _ in range(4)]
    net.settle()
    assert isinstance(refusal(caller, asked[3]), errors.ProtocolError)
    other = net.session("other")
    other.call("g")
    net.settle()
    assert not other.results
    caller.withdraw(asked[0])
    late = caller.call("g")
    net.settle()
    assert late not in caller.results


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (verbs.Request("short", "g", 0, True, False, b""), errors.ProtocolError),
        (verbs.Request("goodid000000", "No Name", 0, True, False, b""), errors.InvalidName),
        (verbs.Request("goodid000000", "", 0, True, False, b""), errors.InvalidName),
        (verbs.Request("goodid000000", "g", 9, True, False, b""), errors.ProtocolError),
        (verbs.Request("goodid000000", "g", 0, True, False, b"\xff"), errors.InvalidPayload),
        (
            verbs.Request("goodid000000", "g", 2, True, False, bytes(verbs.MAX_BODY_BYTES + 1)),
            errors.TextTooLong,
        ),
    ],
    ids=["id", "group", "no group", "format", "text", "size"],
)
def test_a_request_that_is_not_well_made(net, caller, request_, error):
    caller._do(caller.core.ask(request_))
    net.settle()
    assert isinstance(refusal(caller, request_.msg_id), error)
    assert not net.journal and not net.broker.requests._queues.groups
    check_clean(net)


def heard(net: SimNet, member: SimClient, *envelopes: verbs.Envelope) -> list[verbs.Envelope]:
    """What a member hears when it says what no core would say."""
    found: list[verbs.Envelope] = []
    handle = member.core.handle

    def listening(now_s: float, event: object) -> object:
        found.extend(getattr(event, "envelopes", ()))
        return handle(now_s, event)  # type: ignore[arg-type]

    member.core.handle = listening  # type: ignore[assignment, method-assign]
    member.raw(codec.encode(envelopes))
    net.settle()
    member.core.handle = handle  # type: ignore[method-assign]
    return found


def test_only_a_program_with_groups_may_offer(net):
    many = tuple(f"g{number}" for number in range(workers.MAX_GROUPS + 1))
    for member in (
        net.session("listener", groups=("g",)),
        net.session("loner", role=Role.PROGRAM),
        net.session("everywhere", role=Role.PROGRAM, groups=many),
    ):
        (refused,) = heard(net, member, verbs.Offer(1, (), ()))
        assert isinstance(refused, verbs.Refused) and refused.code == "protocol"
    assert not figures(net)["workers"] and not net.broker.requests._queues.groups


def test_an_offer_that_names_too_much(net):
    member = net.session("greedy", role=Role.PROGRAM, groups=("g",))
    many = tuple(f"id{number:06d}" for number in range(workers.MAX_NAMED + 1))
    for offer in (verbs.Offer(1, many, ()), verbs.Offer(1, (), many)):
        (refused,) = heard(net, member, offer)
        assert isinstance(refused, verbs.Refused) and refused.code == "protocol"
    assert not figures(net)["workers"]


def test_an_offer_that_names_what_is_none_of_its_own(net, caller):
    waits = caller.call("other")
    net.settle()
    one = worker(net, "one")
    held = caller.call("g")
    net.settle()
    thief = net.session("thief", role=Role.PROGRAM, groups=("g",))
    answers = heard(net, thief, verbs.Offer(1, (held, waits, "nobodys00000", "?"), (held, waits, "nobodys00000")))
    withdrawn = {msg_id for one in answers if isinstance(one, verbs.Withdrawn) for msg_id in one.msg_ids}
    assert withdrawn >= {held, waits, "?"}
    assert list(one.works) == [held] and not thief.works


def test_answers_to_what_it_does_not_have(net, caller):
    one, two, msg_id = in_hand(net, caller, "one", "two")
    holder, other = (one, two) if one.works else (two, one)
    (refused,) = heard(net, other, verbs.Answer(msg_id, 0, b"forged"))
    assert isinstance(refused, verbs.Refused) and (refused.ref, refused.code) == (msg_id, "protocol")
    assert heard(net, other, verbs.Answer("nothing00000", 0, b"")) == []
    (refused,) = heard(net, net.session("third"), verbs.Answer(msg_id, 0, b"forged"))
    assert isinstance(refused, verbs.Refused)
    holder.work()
    net.settle()
    assert result(caller, msg_id).body == b"done "


def test_an_answer_comes_once(net, caller):
    one, msg_id = in_hand(net, caller, "one")
    assert heard(net, one, *[verbs.Answer(msg_id, 0, b"first"), verbs.Answer(msg_id, 0, b"second")]) == []
    assert result(caller, msg_id).body == b"first"
    assert len(net.journal) == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (verbs.Answer("goodid000000", 9, b""), errors.ProtocolError),
        (verbs.Answer("goodid000000", 0, b"\xff"), errors.InvalidPayload),
        (verbs.Answer("goodid000000", 2, bytes(verbs.MAX_BODY_BYTES + 1)), errors.TextTooLong),
    ],
    ids=["format", "text", "size"],
)
def test_an_answer_that_is_not_well_made(net, caller, answer, error):
    one = worker(net, "one")
    caller.call("g", msg_id="goodid000000")
    net.settle()
    (refused,) = heard(net, one, answer)
    assert isinstance(refused, verbs.Refused) and refused.code == error.code
    assert isinstance(refusal(caller, "goodid000000"), error)
    assert "'one'" in str(refusal(caller, "goodid000000"))
    check_clean(net)


# --- the disk, and the rest


def test_a_request_that_cannot_be_written_is_refused(net, caller):
    one = worker(net, "one")
    net.journal_fails = "no space left on device"
    msg_id = caller.call("g")
    gone = caller.call("g")
    caller.withdraw(gone)
    net.settle()
    assert isinstance(refusal(caller, msg_id), errors.BrokerUnavailable)
    assert not one.works and gone not in caller.results
    check_clean(net)


def test_an_answer_that_is_home_already_stays_there(net, caller):
    one = worker(net, "one")
    msg_id = caller.call("g")
    net.settle()
    net.journal_fails = "no space left on device"
    one.work()
    net.settle()
    assert result(caller, msg_id)
    assert not net.broker.requests._ledger._past  # it cannot be given again
    check_clean(net)


def test_a_small_request_is_on_its_way_before_it_is_written(net, caller):
    one = worker(net, "one")
    small, large = caller.call("g", b"x"), caller.call("g", bytes(requests.PASSED_BYTES + 1))
    net.wake(Death.PASSED)
    assert not net.journal and not net.broker.may_speak_first
    net.settle()
    assert list(one.works) == [small]
    one.work()
    net.settle()
    assert list(one.works) == [large] and len(net.journal) == 3


def test_one_that_a_worker_has_and_that_cannot_be_written_is_withdrawn(net, caller):
    one = worker(net, "one")
    net.journal_fails = "no space left on device"
    msg_id = caller.call("g")
    net.settle()
    assert isinstance(refusal(caller, msg_id), errors.BrokerUnavailable)
    assert not one.works
    check_clean(net)


@pytest.mark.parametrize("size_bytes", [requests.PASSED_BYTES + 1, verbs.SPILL_BYTES + 1])
def test_but_a_large_one_that_cannot_be_written_is_refused(net, caller, size_bytes):
    one = worker(net, "one")
    msg_id, second = caller.call("g"), caller.call("g")
    net.settle()
    net.journal_fails = "no space left on device"
    one.answer(msg_id, bytes(size_bytes))
    net.settle()
    assert isinstance(refusal(caller, msg_id), errors.BrokerUnavailable)
    net.journal_fails = None
    assert list(one.works) == [second]
    one.work()
    net.settle()
    assert result(caller, second)
    check_clean(net)


def test_figures(net, caller):
    worker(net, "one", 1)
    for _ in range(3):
        caller.call("g")
    net.settle()
    caller.request(verbs.Status("s"))
    net.settle()
    health = caller.responses["s"]
    assert isinstance(health, verbs.Health)
    shown = dict(health.figures)
    assert (shown["workers"], shown["requests_waiting"], shown["requests_in_hand"]) == (1, 2, 1)
    assert shown["requests_redispatched"] == 0


def test_the_broker_is_not_idle_while_a_caller_is_expected_back(net, caller):
    caller.call("g")
    net.settle()
    caller.disconnect()
    net.settle()
    assert not net.broker.registry.connections
    assert not net.broker.idle and net.broker.next_tick_s() == 0.1
    net.advance(RETURN_S + 0.5)
    assert net.broker.idle and net.broker.next_tick_s() is None


def test_a_persona_without_a_session_asks_as_a_guest(net):
    one = worker(net, "one")
    guest = SimClient(net, Persona(Role.GUEST, name="cron", token="secret"))
    net.clients.append(guest)
    guest.call("g")  # before it is connected: said with HELLO, in one message
    guest.connect()
    net.settle()
    (work,) = one.works.values()
    assert work.from_name == "cron" and naming.is_session_id(work.from_session)


def test_an_answer_is_for_the_mailbox_when_it_is_awaited_no_longer(net):
    bob, alice = net.session("bob"), net.session("alice")
    helper = net.helper(alice)
    msg_id = helper.ask("bob", b"question")
    net.settle()
    (question,) = bob.take_all()
    helper._do(helper.core.unawait([msg_id]))
    bob.send("alice", b"answer", reply_to=question.msg_id)
    net.settle()
    assert alice.bodies == [b"answer"] and not helper.bodies
    assert not net.broker.awaits._waits and not net.store._now.awaited
    for _ in range(1_000):
        helper._do(helper.core.await_answer(helper._new_id()))
        helper._do(helper.core.unawait(list(helper.core._awaited)))
    net.settle()
    assert not net.broker.awaits._waits and not helper.responses
