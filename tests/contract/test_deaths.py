"""What is promised when the broker dies: what was said to be safe is, and those who are left find each other again."""

from __future__ import annotations

from tests.contract.worlds import World
from zmqbus.broker.mailbox import CREDIT_BYTES
from zmqbus.testing import session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope


def test_mail_for_those_who_are_away_outlives_it_in_its_order(world: World) -> None:
    alice, bob, carol = world.session("alice"), world.session("bob", topics=("t",)), world.session("carol")
    bob.bye()
    for number in range(6):
        body = str(number).encode()
        match number % 3:
            case 0:
                alice.hears(alice.send("bob", body), "away")
            case 1:
                alice.hears(alice.send("t", body, scope=Scope.TOPIC), (0, 1))
            case 2:
                carol.hears(carol.send("bob", body), "away")
    for _ in range(2):
        world.kill_broker()
        world.until(lambda: alice.ready and carol.ready)
    alice.hears(alice.send("bob", b"6"), "away")
    bob = world.again(bob)
    messages = bob.takes(b"0", b"1", b"2", b"3", b"4", b"5", b"6")
    assert all(message.age_s >= 0 for message in messages)
    assert (messages[1].scope, messages[1].target) == (Scope.TOPIC, "t")
    assert (messages[2].from_name, messages[2].from_session) == ("carol", session_id_of("carol"))


def test_what_was_under_way_comes_once_more_in_its_order(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = []
    for number in range(12):
        body = str(number).encode()
        sent.append(alice.to_all(body) if number % 4 == 1 else alice.send("bob", body))
    world.until(lambda: len(bob.handed) == 12)
    bob.take(5)
    world.kill_broker()
    world.until(lambda: bob.drain() and all(alice.fate(one) for one in sent))
    world.until(lambda: bob.drain() and len(bob.taken_of(sent)) == 12)
    assert bob.taken_of(sent) == sent
    assert len([message for message in bob.history if message.msg_id in sent[:5]]) == 5


def test_what_is_stored_has_all_before_it_stored_with_it(world: World) -> None:
    """Else those that nobody was told of, and that are said again, would come behind the one that was kept."""
    alice, bob = world.session("alice"), world.session("bob")
    body, count = b"x" * verbs.SPILL_BYTES, CREDIT_BYTES // verbs.SPILL_BYTES + 2
    sent = [alice.send("bob", body) for _ in range(count)]
    alice.hears(sent[-1], "busy")  # behind the credit
    world.until(lambda: bob.handed)
    world.kill_broker()
    world.until(lambda: bob.ready)
    world.until(lambda: bob.drain() and len(bob.taken_of(sent)) == count)
    assert bob.taken_of(sent) == sent


def test_order_holds_across_it(world: World) -> None:
    """Old ones that wait, one that the dead broker never heard, and young ones, to one who comes and goes."""
    alice, bob = world.session("alice"), world.session("bob")
    bob.die()
    alice.hears(alice.send("bob", b"1"), "away")
    world.stall_broker()
    alice.send("bob", b"2")
    world.kill_broker()
    alice.send("bob", b"3")
    bob = world.again(bob)
    alice.send("bob", b"4")
    world.until(lambda: len(bob.handed) == 4)
    bob.takes(b"1", b"2", b"3", b"4")


def test_messages_that_a_sender_was_told_wait_are_not_lost_with_the_receiver_at_hand(world: World) -> None:
    """`busy` is a promise, too: what is under way is in the store by then, and so is all before it."""
    alice, bob = world.session("alice"), world.session("bob")
    sent = [alice.send("bob", b"1"), alice.to_all(b"2"), alice.send("bob", b"3")]
    bob.gets(b"1", b"2", b"3")
    alice.hears(sent[0], "busy")
    alice.hears(sent[1], (0, 1))
    alice.hears(sent[2], "busy")
    alice.die()
    world.kill_broker()
    world.until(lambda: len(bob.history) == 6)
    bob.takes(b"1", b"2", b"3")


def test_sessions_their_names_topics_and_groups_are_known_to_the_next(world: World) -> None:
    alice = world.session("alice")
    bob = world.session("bob", topics=("t",), groups=("g",), label="Second", project="/q")
    bob.bye()
    world.kill_broker()
    alice.hears(alice.send("t", b"1", scope=Scope.TOPIC), (0, 1))
    alice.hears(alice.send("/q", b"2", scope=Scope.PROJECT), (0, 1))
    alice.hears(alice.send("g", b"x", scope=Scope.GROUP), "unknown_peer")  # of a group, only those connected
    page = world.observer().request(verbs.List("l", True, ""))
    (row,) = [session for row in page.rows if (session := verbs.Session._make(row)).name == "bob"]
    assert (row.state, row.label, row.project, row.waiting) == ("away", "Second", "/q", 2)
    world.again(bob).takes(b"1", b"2")


def test_a_receiver_that_comes_back_before_its_sender_gets_it_all_the_same(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    world.stall_broker()
    sent, cast = alice.send("bob", b"1"), alice.to_all(b"2")
    alice.stop()
    world.kill_broker()
    world.until(lambda: bob.ready)
    world.quiet()
    assert bob.history == []
    alice.go()
    world.until(lambda: bob.drain() and alice.fate(sent) and alice.fate(cast))
    world.until(lambda: bob.drain() and len(bob.history) == 2)
    assert [message.body for message in bob.history] == [b"1", b"2"]


def test_one_who_stood_still_meanwhile_finds_the_next_broker(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.stop()
    world.kill_broker()
    sent, cast = alice.send("bob", b"1"), alice.to_all(b"2")
    alice.hears(sent, "away")
    alice.hears(cast, (0, 1))
    bob.go()
    bob.takes(b"1", b"2")


def test_broadcast_numbers_begin_anew_and_nobody_confuses_them(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    for number in range(5):
        alice.to_all(str(number).encode())
    world.until(lambda: len(bob.handed) == 5)
    bob.take_all()
    world.quiet()
    world.kill_broker()
    world.until(lambda: alice.ready and bob.ready)
    world.attach(bob)
    alice.to_all(b"lost")
    bob.lose_broadcast()
    alice.to_all(b"after")
    bob.takes(b"lost", b"after")


def test_requests_that_were_not_answered_are_asked_again(world: World) -> None:
    alice = world.session("alice")
    observer = world.observer()
    world.stall_broker()
    observer.begin(verbs.List("l", True, ""))
    alice.begin(verbs.Rename("r", "anna"))
    world.kill_broker()
    world.until(lambda: observer.responses and alice.responses)
    assert alice.responses["r"] == verbs.Done("r", "alice")
    world.until(lambda: alice.renames == ["anna"])
