"""Requests to groups, and who works for them: the contract of section 9 of docs/protocol.md, in both worlds."""

from __future__ import annotations

from tests.contract.worlds import Member, World
from zmqbus.broker.sessions import RETURN_S
from zmqbus.testing import session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role


def worker(world: World, name: str, credit: int = 1, **persona: object) -> Member:
    found = world.session(name, role=Role.PROGRAM, groups=("g",), **persona)
    found.offer(credit)
    world.quiet()
    return found


def caller(world: World) -> Member:
    return world.session("caller", role=Role.PROGRAM)


def test_request_and_answer(world):
    one, asking = worker(world, "one"), caller(world)
    msg_id = asking.call("g", b"resize")
    one.work(msg_id)
    result = asking.hears_back(msg_id, b"done resize")
    assert (result.from_name, result.from_session, result.pointer) == ("one", session_id_of("one"), None)


def test_large_bodies(world):
    one, asking = worker(world, "one"), caller(world)
    large = b"x" * (verbs.SPILL_BYTES + 1)
    msg_id = asking.call("g", large)
    one.work(msg_id)
    asking.hears_back(msg_id, b"done " + large)


def test_requests_are_spread_over_all_workers(world):
    one, two, asking = worker(world, "one", 50), worker(world, "two", 50), caller(world)
    asked = [asking.call("g", str(number).encode()) for number in range(100)]
    world.until(lambda: len(one.works) == len(two.works) == 50)
    one.work(*one.works)
    two.work(*two.works)
    for number, msg_id in enumerate(asked):
        asking.hears_back(msg_id, b"done %d" % number)


def test_requests_over_the_credit_wait(world):
    one, asking = worker(world, "one"), caller(world)
    first, second = asking.call("g"), asking.call("g")
    one.work(first)
    one.work(second)
    asking.hears_back(second)


def test_guests_and_commands_may_send_requests(world):
    one, guest, helper = worker(world, "one", 2), world.guest("cron"), world.helper(caller(world))
    asked = [guest.call("g"), helper.call("g")]
    one.work(*asked)
    guest.hears_back(asked[0])
    helper.hears_back(asked[1])


def test_request_without_workers(world):
    asking = caller(world)
    assert asking.hears_why_not(asking.call("g", patient=False)) == "unknown_peer"
    msg_id = asking.call("g")
    one = worker(world, "one")
    one.work(msg_id)
    asking.hears_back(msg_id)


def test_withdrawn_requests(world):
    one, asking = worker(world, "one"), caller(world)
    first, second = asking.call("g"), asking.call("g")
    world.until(lambda: first in one.works)
    asking.withdraw(first)
    world.until(lambda: one.dropped == [first])
    one.work(second)
    asking.hears_back(second)
    assert list(asking.results) == [second]


def test_requests_of_an_ended_process_are_requeued(world):
    one, two, asking = worker(world, "one", owner=world.dead_owner), worker(world, "two"), caller(world)
    held, other = asking.call("g"), asking.call("g")
    world.until(lambda: one.works and two.works)
    assert held in one.works
    one.die()
    two.work(other)
    two.work(held)
    asking.hears_back(held)


def test_requests_of_a_leaving_worker_are_requeued(world):
    one, asking = worker(world, "one"), caller(world)
    msg_id = asking.call("g")
    world.until(lambda: one.works)
    one.bye()
    two = worker(world, "two")
    world.until(lambda: two.works)
    assert two.works[msg_id].tries == 0  # it was returned
    two.work(msg_id)
    asking.hears_back(msg_id)


def test_disconnected_worker_keeps_its_requests(world):
    one, two, asking = worker(world, "one"), worker(world, "two"), caller(world)
    msg_id = asking.call("g")
    world.until(lambda: one.works)
    one.cut()
    world.until(lambda: one.ready)
    world.quiet()
    one.work(msg_id)
    asking.hears_back(msg_id)
    assert (one.done, two.done) == ([msg_id], [])


def test_disconnected_caller_gets_its_answer(world):
    one, asking = worker(world, "one"), caller(world)
    msg_id = asking.call("g", b"resize")
    world.until(lambda: one.works)
    asking.cut()
    one.work(msg_id)
    asking.hears_back(msg_id, b"done resize")
    assert one.done == [msg_id]


def test_worker_keeps_its_requests_when_the_broker_dies(world):
    one, two, asking = worker(world, "one"), worker(world, "two"), caller(world)
    asked = [asking.call("g") for _ in range(4)]
    world.until(lambda: one.works and two.works)
    held = [*one.works, *two.works]
    world.kill_broker()
    world.quiet()
    assert [*one.works, *two.works] == held
    one.work(*one.works)
    two.work(*two.works)
    world.until(lambda: one.works and two.works)
    one.work(*one.works)
    two.work(*two.works)
    for msg_id in asked:
        asking.hears_back(msg_id)
    assert sorted([*one.done, *two.done]) == sorted(asked)


def test_answer_lost_with_the_broker_is_repeated(world):
    one, asking = worker(world, "one"), caller(world)
    msg_id = asking.call("g", b"resize")
    world.until(lambda: one.works)
    world.stall_broker()
    one.work(msg_id)
    world.kill_broker()
    asking.hears_back(msg_id, b"done resize")
    assert one.done == [msg_id]


def test_request_lost_with_the_broker_is_repeated(world):
    one, asking = worker(world, "one"), caller(world)
    world.stall_broker()
    msg_id = asking.call("g", b"resize")
    world.kill_broker()
    one.work(msg_id)
    asking.hears_back(msg_id, b"done resize")


def test_absent_worker_keeps_its_requests_until_its_process_ends(world):
    owner = world.new_owner()
    one, two, asking = worker(world, "one", owner=owner), worker(world, "two"), caller(world)
    msg_id = asking.call("g")
    world.until(lambda: one.works)
    one.die()  # its connection, that is
    late_s = world.now_s + RETURN_S + 1
    world.until(lambda: world.now_s > late_s)
    assert not two.works
    world.end_owner(owner)
    world.until(lambda: two.works)
    assert two.works[msg_id].tries == 1
    two.work(msg_id)
    asking.hears_back(msg_id)


def test_absent_worker_keeps_its_requests_across_the_death_of_the_broker(world):
    owner = world.new_owner()
    one, two, asking = worker(world, "one", owner=owner), worker(world, "two"), caller(world)
    msg_id = asking.call("g")
    world.until(lambda: one.works)
    one.stop()
    world.kill_broker()
    late_s = world.now_s + RETURN_S + 1
    world.until(lambda: world.now_s > late_s)
    assert not two.works
    one.go()
    one.work(msg_id)
    asking.hears_back(msg_id, b"done ")
    assert not two.done


def test_request_that_killed_three_workers_is_poisoned(world):
    asking = caller(world)
    msg_id = asking.call("g")
    for number in range(3):
        one = worker(world, f"worker{number}", owner=world.dead_owner)
        world.until(lambda: one.works)  # noqa: B023
        one.die()
    assert asking.hears_why_not(msg_id) == "poisoned"
