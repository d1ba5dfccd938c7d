"""The death of the broker: reported messages are safe, and the surviving processes find the next broker."""

from __future__ import annotations

from tests.contract.worlds import World
from zmqbus.broker.mailbox import CREDIT_BYTES
from zmqbus.testing import session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope


def test_queued_mail_outlives_the_broker_in_order(world: World) -> None:
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
    assert (messages[1].header.scope, messages[1].header.target) == (Scope.TOPIC, "t")
    assert (messages[2].header.from_name, messages[2].header.from_session) == ("carol", session_id_of("carol"))


def test_messages_in_flight_are_retransmitted_in_order(world: World) -> None:
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


def test_stored_message_has_all_earlier_ones_stored_with_it(world: World) -> None:
    """Otherwise earlier messages without a receipt, which are repeated, would come after the stored one."""
    alice, bob = world.session("alice"), world.session("bob")
    body, count = b"x" * verbs.SPILL_BYTES, CREDIT_BYTES // verbs.SPILL_BYTES + 2
    sent = [alice.send("bob", body) for _ in range(count)]
    alice.hears(sent[-1], "busy")  # behind the credit
    world.until(lambda: bob.handed)
    world.kill_broker()
    world.until(lambda: bob.ready)
    world.until(lambda: bob.drain() and len(bob.taken_of(sent)) == count)
    assert bob.taken_of(sent) == sent


def test_order_holds_across_the_death(world: World) -> None:
    """Queued messages, one that the dead broker never heard, and new ones, to a session that comes and goes."""
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


def test_busy_message_is_not_lost_with_sender_and_broker(world: World) -> None:
    """`busy` is a promise too: by then the message and all before it are in the store."""
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


def test_next_broker_knows_sessions_names_topics_and_groups(world: World) -> None:
    alice = world.session("alice")
    bob = world.session("bob", topics=("t",), groups=("g",), label="Second", project="/q")
    bob.bye()
    world.kill_broker()
    alice.hears(alice.send("t", b"1", scope=Scope.TOPIC), (0, 1))
    alice.hears(alice.send("/q", b"2", scope=Scope.PROJECT), (0, 1))
    alice.hears(alice.send("g", b"x", scope=Scope.GROUP), "unknown_peer")  # a group has only connected members
    page = world.observer().request(verbs.List("l", True, ""))
    (row,) = [session for row in page.rows if (session := verbs.Session._make(row)).name == "bob"]
    assert (row.state, row.label, row.project, row.waiting) == ("away", "Second", "/q", 2)
    world.again(bob).takes(b"1", b"2")


def test_receiver_may_reconnect_before_its_sender(world: World) -> None:
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


def test_stopped_session_finds_the_next_broker(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.stop()
    world.kill_broker()
    sent, cast = alice.send("bob", b"1"), alice.to_all(b"2")
    alice.hears(sent, "away")
    alice.hears(cast, (0, 1))
    bob.go()
    bob.takes(b"1", b"2")


def test_broadcast_numbers_of_two_brokers_are_not_confused(world: World) -> None:
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


def test_unanswered_requests_to_the_broker_are_repeated(world: World) -> None:
    alice = world.session("alice")
    observer = world.observer()
    world.stall_broker()
    observer.begin(verbs.List("l", True, ""))
    alice.begin(verbs.Rename("r", "anna"))
    world.kill_broker()
    world.until(lambda: observer.responses and alice.responses)
    assert alice.responses["r"] == verbs.Done("r", "alice")
    world.until(lambda: alice.renames == ["anna"])
