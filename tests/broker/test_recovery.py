"""What holds when a broker dies: who was told something finds it true at the next one, who was not says it again."""

from __future__ import annotations

import json

import pytest

from zmqbus import errors
from zmqbus.broker import admission, delivery, events, mailbox, registry, retention, sessions
from zmqbus.client.core import Phase
from zmqbus.testing import SimClient, SimNet, session_id_of
from zmqbus.testing.simnet import Death
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Role, Scope, State

WEEK_S = retention.KEEP_S


def state(member: SimClient, msg_id: str) -> State:
    answer = member.answers[msg_id]
    assert isinstance(answer, verbs.Receipt), answer
    return State(answer.state)


def back(net: SimNet, member: SimClient) -> SimClient:
    """Another process of the session, connected."""
    newcomer = net._enter(member.persona._replace(pid=member.persona.pid + 100), True)
    return newcomer


def away(net: SimNet, *members: SimClient) -> None:
    for member in members:
        member.bye()
        net.settle()
        member.disconnect()


def ask(net: SimNet, asker: SimClient, bob: SimClient) -> str:
    """The id of a question that bob has seen, and whose answer is awaited."""
    question = asker.ask("bob", b"ready?")
    net.settle()
    bob.take_all()
    net.settle()
    return question


@pytest.fixture
def net() -> SimNet:
    return SimNet()


# --- what was told


@pytest.mark.parametrize("death", Death)
def test_queued_message_survives_any_death(net, death):
    alice, bob = net.session("alice"), net.session("bob")
    away(net, bob)
    told = alice.send("bob", b"told")
    net.settle()
    assert state(alice, told) == State.AWAY
    untold = alice.send("bob", b"untold")
    net.kill_broker(death)
    net.settle()
    assert state(alice, untold) == State.AWAY
    bob = back(net, bob)
    assert bob.bodies == [b"told", b"untold"]
    assert all(message.age_s >= 0 for message in bob.handed)


@pytest.mark.parametrize("death", Death)
@pytest.mark.parametrize("lost", [0, 1, 10])
def test_message_in_flight_is_shown_once(net, death, lost):
    alice, bob = net.session("alice"), net.session("bob")
    sent = [alice.send("bob", b"%d" % number) for number in range(5)]
    net.wake()
    for _ in range(2):
        bob.receive()
    bob.take_all()
    net.kill_broker(death, lost)
    net.settle()
    bob.take_all()
    net.settle()
    assert [message.body for message in bob.history] == [b"0", b"1", b"2", b"3", b"4"]
    assert {state(alice, msg_id) for msg_id in sent} == {State.DELIVERED}


def test_taken_message_without_a_receipt_is_not_shown_again(net):
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"once")
    net.step()
    bob.take_all()
    net.wake(Death.COMMITTED)  # the acknowledgement is in, the receipt not out
    net.kill_broker(Death.DECIDED)
    away(net, bob)
    net.settle()
    later = back(net, bob)
    net.settle()
    assert later.handed == []
    assert msg_id in alice.answers
    assert net.store.total() == 0


def test_repeated_message_has_an_age(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("bob", b"x")
    net.wake()
    net.kill_broker()
    net.settle()
    assert [message.age_s for message in bob.handed] == [0]
    bob.take_all()
    net.settle()
    alice.send("", b"to all", scope=Scope.ALL)
    net.wake()
    net.kill_broker()
    alice.stopped = True
    net.settle()  # bob is back, and could take it from the PUB
    alice.stopped = False
    net.settle()
    assert [(message.body, message.age_s) for message in bob.handed][-1:] == [(b"to all", 0)]


def test_storing_a_message_stores_older_ones(net, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 3)
    alice, bob = net.session("alice"), net.session("bob")
    bob.stopped = True
    sent = [alice.send("bob", b"%d" % number) for number in range(6)]
    net.settle()
    # The last three are told: there is no room for them on the way. The first three are not.
    assert [msg_id in alice.answers for msg_id in sent] == [False] * 3 + [True] * 3
    net.kill_broker()
    bob.stopped = False
    for _ in range(10):
        net.settle()
        bob.take_all()
    assert [message.body for message in bob.history if message.body] == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_next_broker_knows_sessions(net):
    alice = net.session("alice")
    bob = net.session("bob", label="Bob", topics=("deploys",), project="/q")
    away(net, bob)
    net.advance(60)
    net.kill_broker()
    net.settle()
    observer = net.observer()
    observer.request(verbs.List("l", True, ""))
    net.settle()
    rows = {row[0]: verbs.Session(*row) for row in observer.responses["l"].rows}
    assert rows["bob"].state == "away" and rows["bob"].away_s == 60
    assert (rows["bob"].label, rows["bob"].project) == ("Bob", "/q")
    for scope, target in ((Scope.TOPIC, "deploys"), (Scope.PROJECT, "/q"), (Scope.ALL, "")):
        alice.send(target, scope.name.encode(), scope=scope)
    net.settle()
    assert back(net, bob).bodies == [b"TOPIC", b"PROJECT", b"ALL"]


def test_next_broker_knows_the_new_name(net):
    bob = net.session("bob")
    bob.request(verbs.Rename("r", "robert"))
    net.settle()
    away(net, bob)
    net.kill_broker()
    alice = net.session("alice")
    msg_id = alice.send("robert", b"x")
    net.settle()
    assert state(alice, msg_id) == State.AWAY


def test_next_broker_hides_a_disconnected_session(net):
    alice, bob = net.session("alice"), net.session("bob")
    net.helper(bob).request(verbs.Disconnect("d"))
    net.settle()
    net.kill_broker()
    net.settle()
    msg_id = alice.send("bob", b"?")
    net.settle()
    assert isinstance(alice.answers[msg_id], errors.UnknownPeer)


def test_next_broker_checks_tokens(net):
    bob = net.session("bob")
    net.kill_broker()
    net.settle()
    eve = net._enter(bob.persona._replace(token="guessed", pid=1), True)
    assert isinstance(eve.closed[0], errors.Unauthorized)
    assert "bob-token" not in repr(net.store._committed.sessions)


# --- what was not


def test_repeated_broadcast_reaches_each_receiver_once(net):
    alice, bob, carol = (net.session(name) for name in ("alice", "bob", "carol"))
    away(net, carol)
    msg_id = alice.send("", b"to all", scope=Scope.ALL)
    net.step()
    bob.take_all()
    net.kill_broker()  # carol's is stored, bob has shown his, and alice has not heard of either
    net.settle()
    bob.take_all()
    net.settle()
    assert alice.answers[msg_id] == verbs.Tally(msg_id, 1, 1, ())
    assert [message.body for message in bob.history] == [b"to all"]
    assert back(net, carol).bodies == [b"to all"]


@pytest.mark.parametrize("since", ["the message", "the death"])
def test_repeated_broadcast_excludes_later_sessions(net, since):
    """They may have had younger ones of its sender."""
    alice, bob = net.session("alice"), net.session("bob")
    old = alice.send("", b"1", scope=Scope.ALL)
    net.step()  # alice has not heard, for bob has not taken it
    if since == "the message":
        carol = net.session("carol", connect=False)
        carol.connect()
        net.step()
        net.step()
        alice.send("", b"2", scope=Scope.ALL)
        net.step()
        carol.take_all()
        net.kill_broker()
    else:
        alice.stopped = True
        net.kill_broker()
        carol = net.session("carol")
        alice.stopped = False
    net.settle()
    bob.take_all()
    carol.take_all()
    net.settle()
    assert alice.answers[old] == verbs.Tally(old, 1, 0, ())
    assert [message.body for message in carol.history][:1] == ([b"2"] if since == "the message" else [])
    assert b"1" not in [message.body for message in carol.history]


def test_missed_broadcast_does_not_follow_younger_ones(net, monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 1)
    alice, bob, carol = (net.session(name) for name in ("alice", "bob", "carol"))
    away(net, bob)
    alice.send("bob", b"fills it")
    net.settle()
    first = alice.send("", b"1", scope=Scope.ALL)
    net.settle()  # carol has not taken it, so alice has not heard
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 10)
    alice.send("bob", b"2")
    net.settle()
    net.kill_broker()
    net.settle()
    carol.take_all()
    net.settle()
    assert alice.answers[first] == verbs.Tally(first, 1, 0, ("bob",))
    assert back(net, bob).bodies == [b"fills it", b"2"]


@pytest.mark.parametrize("target, scope", [("b", Scope.SESSION), ("workers", Scope.GROUP)])
def test_repeat_keeps_its_first_receiver(net, target, scope):
    bob = net.session("bob", groups=("workers",))
    alice = net.session("alice")
    msg_id = alice.send(target, b"x", scope=scope)
    net.step()
    bob.take_all()
    net.kill_broker(Death.DECIDED)
    bill = net.session("bill", groups=("workers",), connect=False)
    bill.connect()
    net.settle()
    assert bill.history == []
    assert [message.body for message in bob.history] == [b"x"]
    assert state(alice, msg_id) == State.DELIVERED


def test_refusal_is_final_across_brokers(net):
    alice, bob = net.session("alice"), net.session("bob")
    refused = alice.send("carol", b"to whom?")
    sent = alice.send("bob", b"x")
    net.wake()
    net.kill_broker()
    net.session("carol")
    net.settle()
    bob.take_all()
    net.settle()
    assert isinstance(alice.answers[refused], errors.UnknownPeer)
    assert state(alice, sent) == State.DELIVERED
    assert all(member.handed == [] for member in net.clients)


def test_next_broker_refuses_an_id_of_another_session(net):
    alice, bob, eve = net.session("alice"), net.session("bob"), net.session("eve")
    away(net, bob)
    alice.send("bob", b"mine", msg_id="samesame0000")
    net.settle()
    net.kill_broker()
    net.settle()
    eve.send("bob", b"not mine", msg_id="samesame0000")
    net.settle()
    assert isinstance(eve.answers["samesame0000"], errors.ProtocolError)
    assert back(net, bob).bodies == [b"mine"]


def test_ids_of_an_earlier_broker_are_bounded(net, monkeypatch):
    monkeypatch.setattr(retention, "REMEMBERED_OUTCOMES", 3)
    alice, bob = net.session("alice"), net.session("bob")
    away(net, bob)
    for number in range(10):
        alice.send("bob", b"%d" % number)
    net.settle()
    net.kill_broker()
    net.settle()
    assert len(net.broker.delivery.dedup._earlier) == 3


# --- a disk that takes nothing


def test_failed_commit_refuses_one_message_alone(net):
    alice, bob, carol = (net.session(name) for name in ("alice", "bob", "carol"))
    away(net, bob)
    kept = alice.send("bob", b"kept")
    net.settle()
    net.store.fails = "no space left on device; make room"
    lost = alice.send("bob", b"refused")
    live = alice.send("carol", b"needs no room")
    net.settle()
    carol.take_all()
    net.settle()
    refused = alice.answers[lost]
    assert isinstance(refused, errors.BrokerUnavailable) and "make room" in str(refused)
    assert (state(alice, kept), state(alice, live)) == (State.AWAY, State.DELIVERED)
    net.store.fails = None
    again = alice.send("bob", b"again")
    net.settle()
    assert state(alice, again) == State.AWAY
    assert back(net, bob).bodies == [b"kept", b"again"]


def test_queued_is_reported_after_the_commit(net):
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"under way")
    net.settle()
    net.store.fails = "full"
    away(net, bob)
    net.advance(3)
    assert msg_id not in alice.answers
    net.store.fails = None
    net.advance(1)
    assert state(alice, msg_id) in (State.AWAY, State.BUSY)
    net.kill_broker()
    net.settle()
    assert back(net, bob).bodies == [b"under way"]


def test_message_taken_while_the_disk_is_full_is_delivered(net):
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"slow")
    net.settle()
    net.store.fails = "full"
    net.advance(2)
    bob.take_all()
    net.settle()
    assert state(alice, msg_id) == State.DELIVERED
    net.store.fails = None
    net.advance(1)
    assert net.store.total() == 0


def test_message_taken_in_the_wake_of_the_commit_stays_delivered(net):
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"slow")
    net.settle()
    net.store.fails = "full"
    net.advance(2)
    bob.take_all()
    net.store.fails = None
    net.settle()
    assert state(alice, msg_id) == State.DELIVERED
    alice.raw(codec.encode([verbs.Send.one(msg_id, Scope.SESSION, "bob", 0, None, True, b"slow")]))
    net.wake()
    (receipt,) = codec.Decoder(from_broker=True).decode(alice.down[-1])
    assert isinstance(receipt, verbs.Receipt) and receipt.state == State.DELIVERED


def test_broadcast_with_a_full_disk_reaches_connected_sessions(net):
    alice, bob, carol = (net.session(name) for name in ("alice", "bob", "carol"))
    away(net, bob)
    net.store.fails = "full"
    msg_id = alice.send("", b"to all", scope=Scope.ALL)
    net.settle()
    carol.take_all()
    net.settle()
    assert alice.answers[msg_id] == verbs.Tally(msg_id, 1, 0, (), ("bob",))
    away(net, carol)
    msg_id = alice.send("", b"to nobody", scope=Scope.ALL)
    net.settle()
    assert isinstance(alice.answers[msg_id], errors.BrokerUnavailable)
    net.store.fails = None
    net.advance(1)
    assert back(net, bob).bodies == []
    assert not net.broker.delivery.unsettled


def test_mail_flows_again_when_the_disk_has_room(net, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 2)
    alice, bob = net.session("alice"), net.session("bob")
    for number in range(6):
        alice.send("bob", b"%d" % number)
    net.settle()
    net.store.fails = "full"
    monkeypatch.setattr(net.store, "after", lambda *_: [])  # what a store that cannot flush may show
    bob.take_all()
    net.settle()
    assert bob.handed == []
    monkeypatch.undo()
    net.store.fails = None
    net.advance(0.5)
    for _ in range(5):
        bob.take_all()
        net.settle()
    assert [message.body for message in bob.history] == [b"%d" % number for number in range(6)]


# --- an owner that is gone for good


def test_mail_of_a_dead_agent_goes_to_the_next_of_its_name_and_project(net):
    alice, old = net.session("alice"), net.session("bob", owner="7:7")
    away(net, old)
    alice.send("bob", b"for bob")
    net.settle()
    persona = old.persona._replace(session_id=session_id_of("another"), token="another-token", owner="8:8", pid=77)
    newcomer = net._enter(persona, True)
    assert newcomer.bodies == [b"for bob"]
    newcomer.take_all()
    net.settle()
    assert session_id_of("bob") not in net.broker.registry.sessions
    net.kill_broker()
    net.settle()
    assert newcomer.core.phase is Phase.READY
    alice.send("bob", b"and on")
    net.settle()
    assert newcomer.bodies == [b"and on"]


@pytest.mark.parametrize(
    "change", [{"owner": "1:1"}, {"project": "/other"}, {"name": "bobby"}], ids=["owner lives", "project", "name"]
)
def test_mail_is_not_inherited_by_another_session(net, change):
    alice, old = net.session("alice"), net.session("bob", owner=change.pop("owner", "7:7"))
    away(net, old)
    alice.send("bob", b"for bob")
    net.settle()
    persona = old.persona._replace(
        session_id=session_id_of("another"), token="another-token", owner="8:8", pid=77, **change
    )
    newcomer = net._enter(persona, True)
    assert newcomer.bodies == []
    assert back(net, old).closed or net.clients[-1].bodies == [b"for bob"]


# --- a damaged store


def test_group_message_of_a_forgotten_member_goes_to_nobody_else(net):
    """It came while the store could not be written, so the next broker does not know it; and it may have got it."""
    alice, bob = net.session("alice"), net.session("bob", groups=("workers",))
    bob.take_all()
    alice.send("bob", b"so that bob has more to do")
    net.settle()
    net.store.fails = "no space left on device"
    carol = net.session("carol", groups=("workers",))
    msg_id = alice.send("workers", b"once", scope=Scope.GROUP)
    net.settle()
    assert carol.bodies == [b"once"]
    net.kill_broker()
    carol.disconnect()
    net.store.fails = None
    net.settle()
    answer = alice.answers[msg_id]
    assert isinstance(answer, errors.UnknownPeer) and "may have got it" in str(answer)
    assert b"once" not in [message.body for message in bob.history]


@pytest.fixture
def unstored(net) -> tuple[SimClient, SimClient]:
    """Alice, who knows neither what became of "first" nor of "second", and Bob, who came while the store failed and has
    shown "first". The next broker knows only Alice, who is to reconnect before Bob."""
    alice = net.session("alice")
    net.settle()
    net.store.fails = "no space left on device"
    bob = net.session("bob")
    net.settle()
    alice.send("bob", b"first", msg_id="first0000000")
    net.settle()
    assert bob.bodies == [b"first"]
    bob.take_all()
    alice.send("bob", b"second", msg_id="second000000")
    net.kill_broker(Death.DECIDED)
    net.store.fails = None
    for process in (alice, bob):
        process.disconnect()
    alice.connect()
    net.settle()
    assert not alice.answers
    return alice, bob


def test_a_repeat_waits_for_the_receiver_that_the_next_broker_does_not_know_yet(net, unstored):
    alice, bob = unstored
    alice.send("bob", b"third", msg_id="third0000000")
    alice.send_all("bob", [b"fourth", b"fifth"])
    net.settle()
    assert not alice.answers
    bob.connect()
    net.settle()
    bob.take_all()
    net.settle()
    assert [message.body for message in bob.history] == [b"first", b"second", b"third", b"fourth", b"fifth"]
    assert len(alice.answers) == 5 and {state(alice, one) for one in alice.answers} == {State.DELIVERED}


def test_a_repeat_that_was_never_journaled_waits_for_its_receiver_too(net):
    alice = net.session("alice")
    net.settle()
    net.store.fails = "no space left on device"
    bob = net.session("bob")
    net.settle()
    alice.send("bob", b"once")
    net.kill_broker(Death.DECIDED)
    net.store.fails = None
    bob.disconnect()
    net.settle()
    assert not alice.answers
    bob.connect()
    net.settle()
    assert bob.bodies == [b"once"]


def test_a_repeat_does_not_go_to_another_session_of_the_name_meanwhile(net, unstored):
    alice, bob = unstored
    other = net._enter(bob.persona._replace(session_id=session_id_of("another")), True)
    alice.send_all("bob", [b"third", b"fourth"])
    net.settle()
    assert other.history == [] and not alice.answers
    away(net, other)
    bob.connect()
    net.settle()
    assert bob.bodies == [b"second", b"third", b"fourth"]
    assert state(alice, "first0000000") == State.DELIVERED


def test_a_repeat_does_not_wait_for_a_receiver_that_stays_away(net, unstored):
    alice, _ = unstored
    net.advance(sessions.RETURN_S + 2)
    first, second = alice.answers["first0000000"], alice.answers["second000000"]
    assert isinstance(first, errors.UnknownPeer) and "may have got it" in str(first)
    assert isinstance(second, errors.UnknownPeer) and "no session answers" in str(second)
    assert not net.broker.admission._held


def test_held_repeats_are_bounded_and_follow_their_sender_to_its_next_connection(net, unstored, monkeypatch):
    alice, bob = unstored
    alice.disconnect()
    alice.connect()
    net.settle()
    monkeypatch.setattr(admission, "MAX_HELD", 2)
    alice.send("bob", b"one too many", msg_id="third0000000")
    net.settle()
    assert isinstance(alice.answers["third0000000"], errors.RateLimited)
    bob.connect()
    net.settle()
    bob.take_all()
    net.settle()
    assert state(alice, "second000000") == State.DELIVERED


def test_mail_of_an_unknown_session_waits(net):
    alice, bob = net.session("alice"), net.session("bob")
    away(net, bob)
    alice.send("bob", b"saved")
    net.settle()
    del net.store._committed.sessions[session_id_of("bob")]
    net.kill_broker()
    net.settle()
    assert list(net.broker.registry.unclaimed) == [session_id_of("bob")]
    assert back(net, bob).bodies == [b"saved"]


def test_mail_of_an_unknown_session_expires(net):
    alice, bob = net.session("alice"), net.session("bob")
    away(net, bob)
    alice.send("bob", b"saved")
    net.settle()
    del net.store._committed.sessions[session_id_of("bob")]
    net.kill_broker()
    net.settle()
    net.clock.advance(WEEK_S + 1)
    net._decide(events.Tick())
    assert net.store.total() == 0
    assert not net.broker.registry.unclaimed
    assert any(f"{session_id_of('bob')}, which has not come back, has not read" in note for note in net.notes)


# --- time


def test_message_is_dropped_and_logged_after_seven_days(net):
    alice, bob = net.session("alice"), net.session("bob")
    away(net, bob)
    first = alice.send("bob", b"monday")
    net.settle()
    net.clock.advance(WEEK_S / 2)
    alice.send("bob", b"thursday")
    net.settle()
    net.clock.advance(WEEK_S / 2 + 1)
    net._decide(events.Tick())
    assert net.store.total() == 1
    assert any("loses 1 messages" in note and first in note and "alice" in note for note in net.notes)
    assert back(net, bob).bodies == [b"thursday"]


def test_expiry_spans_brokers(net):
    alice, bob = net.session("alice"), net.session("bob")
    away(net, bob)
    for body in (b"1", b"2"):
        alice.send("bob", body)
        net.settle()
        net.clock.advance(WEEK_S / 2 + 1)
        net.kill_broker()
        net.settle()
    net._decide(events.Tick())
    assert back(net, bob).bodies == [b"2"]


def test_clock_set_back_changes_neither_order_nor_expiry(net):
    alice, bob = net.session("alice"), net.session("bob")
    away(net, bob)
    alice.send("bob", b"1")
    net.settle()
    net.clock.set_wall(-3600)
    alice.send("bob", b"2")
    net.settle()
    net.clock.advance(WEEK_S - 1800)
    net._decide(events.Tick())
    assert net.store.total() == 2  # the second is not taken for an hour older than it is
    net.kill_broker()
    net.settle()
    member = back(net, bob)
    assert member.bodies == [b"1", b"2"]
    assert all(message.age_s >= 0 for message in member.handed)


def test_message_in_flight_does_not_expire(net):
    alice, bob = net.session("alice"), net.session("bob")
    bob.stopped = True
    alice.send("bob", b"x")
    net.settle()
    net.advance(delivery.BUSY_AFTER_S + 1)
    assert net.store.total() == 1
    net.clock.advance(WEEK_S + 1)
    net.broker.retention.tick(net.clock.now)
    assert net.store.total() == 1 and not any("loses" in note for note in net.notes)


def test_session_absent_for_long_keeps_its_mail_and_gets_no_more(net):
    alice, bob = net.session("alice"), net.session("bob")
    away(net, bob)
    net.clock.advance(WEEK_S - 60)
    alice.connect()
    alice.send("bob", b"just in time")
    net.settle()
    net.clock.advance(retention.EXPIRY_LOOK_S)
    net._decide(events.Tick())
    alice.connect()
    msg_id = alice.send("bob", b"too late")
    net.settle()
    assert isinstance(alice.answers[msg_id], errors.UnknownPeer)
    assert back(net, bob).bodies == [b"just in time"]


def test_number_of_sessions_is_bounded(net, monkeypatch):
    monkeypatch.setattr(registry, "MAX_SESSIONS", 3)
    members = [net.session(name) for name in ("one", "two", "three")]
    assert isinstance(net.session("four").closed[0], errors.RateLimited)
    away(net, members[1])
    net.advance(5)
    away(net, members[0])
    net.session("five")
    assert {session.name for session in net.broker.registry.sessions.values()} == {"one", "three", "five"}
    assert len(net.store.recover(1).sessions) == 3


# --- the journal and the store together


def test_journal_is_written_first(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("bob", b"x")
    net.wake(Death.DECIDED)
    assert net.journal == [] and not bob.down
    net.wake(Death.JOURNALED)
    assert json.loads(net.journal[0])["text"] == "x" and not bob.down
    net.settle()
    assert bob.bodies == [b"x"]


def test_program_is_as_safe_as_a_listener(net):
    alice, worker = net.session("alice"), net.session("worker", role=Role.PROGRAM)
    alice.send("worker", b"x")
    net.step()
    worker.take_all()
    net.kill_broker()
    net.settle()
    assert [message.body for message in worker.history] == [b"x"]
