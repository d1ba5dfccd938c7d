"""Single mishaps, each of which has once lost, doubled or reordered a message, or left somebody waiting for ever."""

from __future__ import annotations

import pytest

from zmqbus import errors
from zmqbus.broker import directory, events, fetch, mailbox, retention
from zmqbus.client import core as client
from zmqbus.testing import SimClient, SimNet, session_id_of
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Role, Scope, State


@pytest.fixture
def net() -> SimNet:
    return SimNet()


def unread(net: SimNet, member: SimClient) -> int:
    return net.broker.registry.sessions[member.persona.session_id or ""].mailbox.total


# --- greeting


def test_message_sent_before_welcome_is_delivered(net):
    bob = net.session("bob")
    alice = net.session("alice", connect=False)
    alice.connect()
    alice.send("bob", b"early")
    alice.request(verbs.Status("s"))
    net.settle()
    assert bob.bodies == [b"early"]
    assert "s" in alice.responses


def test_sender_reconnected_within_a_wake_is_answered_over_the_new_connection(net):
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"x")
    said = [(alice.route, alice.up.popleft())]
    net.lose(alice)
    alice._do(alice.core.handle(net.clock.mono_s, client.Down()))
    alice.connect()  # HELLO, and the message again
    said += [(alice.route, frames) for frames in alice.up]
    alice.up.clear()
    for route, frames in said:
        net._do(net.broker.handle(net.clock.now, events.Received(route, net._decoder.decode(frames))))
    net._finish()
    net.settle()
    bob.take_all()
    net.settle()
    assert len(net.journal) == 1
    answer = alice.answers[msg_id]
    assert isinstance(answer, verbs.Receipt) and answer.state == State.DELIVERED


def test_id_used_by_another_session_in_the_same_wake_is_refused(net):
    alice, bob, eve = net.session("alice"), net.session("bob"), net.session("eve")
    alice.send("bob", b"mine", msg_id="samesame0000")
    eve.send("bob", b"forged", msg_id="samesame0000")
    net.settle()
    assert isinstance(eve.answers["samesame0000"], errors.ProtocolError)
    assert bob.bodies == [b"mine"]


# --- broadcasts that get lost


def test_nothing_overtakes_a_held_broadcast(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("", b"1", scope=Scope.ALL)
    net.wake()
    bob.published.clear()
    alice.send("", b"2", scope=Scope.ALL)
    alice.send("", b"3", scope=Scope.ALL)
    net.settle()
    assert bob.bodies == [b"1", b"2", b"3"]


def test_two_gaps_are_filled_in_order(net):
    alice, bob = net.session("alice"), net.session("bob")
    for body in (b"1", b"2"):
        alice.send("", body, scope=Scope.ALL)
        net.wake()
        bob.published.clear()
        net.settle()
    alice.send("", b"3", scope=Scope.ALL)
    net.settle()
    assert bob.bodies == [b"1", b"2", b"3"]


def test_directed_message_behind_a_gap_does_not_stall(net):
    """It waits for a broadcast which itself waits for the one that was lost."""
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("", b"1", scope=Scope.ALL)
    net.wake()
    bob.published.clear()
    alice.send("", b"2", scope=Scope.ALL)
    alice.send("bob", b"3")
    net.wake()
    late = list(bob.published)
    bob.published.clear()
    bob.receive()  # the directed one comes first
    bob.published.extend(late)
    net.settle()
    assert bob.bodies == [b"1", b"2", b"3"]


def test_broadcast_published_to_nobody_is_no_gap(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("bob", b"0")
    alice.send("", b"1", scope=Scope.ALL)  # takes the DEALER: something is under way there
    net.settle()
    bob.take_all()
    net.settle()
    alice.send("", b"2", scope=Scope.ALL)
    net.wake()
    assert bob.receive()
    assert bob.bodies == [b"2"] and not bob.up  # no REFILL


def test_beat_older_than_a_gap_does_not_close_it(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("", b"1", scope=Scope.ALL)
    net.settle()  # handed out, and not taken
    net.clock.advance(0.3)
    net._decide(events.Tick())
    beat = list(bob.down)
    bob.down.clear()
    alice.send("", b"2", scope=Scope.ALL)
    net.wake()
    bob.published.clear()
    alice.send("", b"3", scope=Scope.ALL)
    net.wake()
    bob.receive()  # asks for 2
    bob.down.extendleft(beat)
    net.settle()
    assert bob.bodies == [b"1", b"2", b"3"]


def test_broadcast_sent_by_the_dealer_is_not_taken_from_the_pub(net):
    alice, bob, carol = (net.session(name) for name in ("alice", "bob", "carol"))
    alice.send("bob", b"1")
    net.settle()
    alice.send("", b"2", scope=Scope.ALL)  # carol is free, and so it is published; bob sees it on the PUB, too
    net.settle()
    assert (bob.bodies, carol.bodies) == ([b"1", b"2"], [b"2"])


def test_broadcast_lost_on_one_channel_precedes_the_next_on_another(net):
    alice, bob = net.session("alice"), net.session("bob", topics=("deploys",))
    alice.send("", b"1", scope=Scope.ALL)
    net.wake()
    bob.published.clear()
    alice.send("deploys", b"2", scope=Scope.TOPIC)
    net.settle()
    net.advance(1)
    assert bob.bodies == [b"1", b"2"]


# --- acknowledgements


def test_repeated_message_is_acknowledged_without_the_application(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("bob", b"x")
    net.settle()
    bob.take_all()
    bob.disconnect()  # with the acknowledgement still under way
    bob.connect()
    net.settle()
    assert bob.handed == [] and unread(net, bob) == 0


def test_acknowledged_numbers_not_in_flight_are_ignored(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("", b"x", scope=Scope.ALL)
    net.settle()
    bob.raw(codec.encode([verbs.Ack(0, tuple(range(1_000, 5_000)))]))
    net.settle()
    assert not net.broker.registry.sessions[session_id_of("bob")].mailbox._taken_bcasts


# --- credit


def test_message_over_the_credit_is_answered(net, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 2)
    alice, bob = net.session("alice"), net.session("bob")
    sent = [alice.send("bob", b"x") for _ in range(3)]
    net.settle()
    answer = alice.answers[sent[2]]
    assert isinstance(answer, verbs.Receipt) and answer.state == State.BUSY
    assert len(bob.handed) == 2


@pytest.mark.parametrize("asker", ["helper", "guest"])
def test_answers_over_the_credit_of_a_command_arrive_once_or_are_refused(net, monkeypatch, asker):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 2)
    bob = net.session("bob")
    waiter = net.helper(net.session("alice")) if asker == "helper" else net.guest("cron")
    question = waiter.ask("bob", b"?")
    net.settle()
    sent = [bob.send(waiter.persona.name, b"%d" % number, reply_to=question) for number in range(3)]
    net.settle()
    assert waiter.bodies == [b"0", b"1"]
    while waiter.handed:
        waiter.take_all()
        net.settle()
    if asker == "helper":
        assert [message.body for message in waiter.history] == [b"0", b"1", b"2"]
    else:
        assert [message.body for message in waiter.history] == [b"0", b"1"]
        assert isinstance(bob.answers[sent[2]], errors.RateLimited)
    assert set(bob.answers) == set(sent)


# --- reading elsewhere


def test_message_that_arrives_during_a_recall_is_shown_once(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("bob", b"1")
    net.settle()
    helper = net.helper(bob)
    helper.request(verbs.Fetch("f", False))
    net.wake()
    alice.send("bob", b"2")
    alice.send("", b"3", scope=Scope.ALL)
    net.settle()
    assert (bob.bodies, helper.bodies) == ([], [b"1", b"2", b"3"])


@pytest.mark.parametrize("ending", ["bye", "disconnect"])
def test_command_that_leaves_before_fetched_leaves_the_listener_everything(net, ending):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("bob", b"1")
    net.settle()
    helper = net.helper(bob)
    helper.request(verbs.Fetch("f", False))
    net.wake()
    getattr(helper, ending)()
    net.settle()
    net.advance(13)
    alice.send("bob", b"2")
    net.settle()
    assert bob.bodies == [b"1", b"2"]
    bob.take_all()
    net.settle()
    assert unread(net, bob) == 0


def test_returning_listener_does_not_take_the_mailbox_from_a_reader(net):
    alice, bob = net.session("alice"), net.session("bob")
    bob.bye()
    alice.send("bob", b"1")
    net.settle()
    helper = net.helper(bob)
    helper.request(verbs.Fetch("f", False))
    net.settle()
    again = net.session("bob")
    assert (helper.bodies, again.bodies) == ([b"1"], [])
    helper.take_all()
    net.settle()
    assert helper.responses["f"] == verbs.Fetched("f", 1, 0)
    alice.send("bob", b"2")
    net.settle()
    assert again.bodies == [b"2"]


def test_listener_that_dies_during_a_recall_does_not_delay_the_reader(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("bob", b"1")
    net.settle()
    helper = net.helper(bob)
    helper.request(verbs.Fetch("f", False))
    net.wake()
    bob.disconnect()
    net.settle()
    assert helper.bodies == [b"1"]


def test_command_may_await_an_answer_and_read_the_inbox(net):
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    question = helper.ask("bob", b"?")
    net.settle()
    helper.request(verbs.Fetch("f", False))
    net.settle()
    bob.send("alice", b"answer", reply_to=question)
    net.settle()
    assert (helper.bodies, alice.bodies) == ([b"answer"], [])


def test_broadcast_in_flight_during_a_recall_is_shown_once(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("", b"1", scope=Scope.ALL)
    net.wake()
    late = list(bob.published)
    bob.published.clear()
    helper = net.helper(bob)
    helper.request(verbs.Fetch("f", False))
    net.settle()
    bob.published.extend(late)
    net.settle()
    assert (bob.bodies, helper.bodies) == ([], [b"1"])


# --- the end of a session


def test_session_renamed_and_disconnected_at_once_stays_away(net):
    bob = net.session("bob")
    helper = net.helper(bob)
    helper.request(verbs.Rename("r", "lead"))
    helper.request(verbs.Disconnect("d"))
    net.settle()
    net.advance(10)
    assert bob.closed == [None]
    assert not list(net.broker.registry.live())


def test_mail_of_a_forgotten_session_is_dropped(net):
    alice, bob = net.session("alice"), net.session("bob")
    bob.bye()
    net.settle()
    alice.send("bob", b"1")
    net.settle()
    alice.bye()
    net.settle()
    net.clock.advance(retention.KEEP_S + 1)
    net._decide(events.Tick())
    assert net.store.total() == 0
    assert not net.broker.registry.sessions
    assert net.broker.idle


def test_guest_token_cannot_make_messages_of_others_unreadable(net):
    net.session("bob")
    guest = net._enter(client.Persona(role=Role.GUEST, name="cron", token="t" * 65), True)
    assert isinstance(guest.closed[0], errors.InvalidPayload)


def test_only_the_consumer_of_a_mailbox_can_acknowledge(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("bob", b"x")
    net.settle()
    bob.stopped = True
    helper = net.helper(bob)
    helper.request(verbs.Fetch("f", False))
    net.advance(fetch.RECALL_S + 1)
    assert helper.bodies == [b"x"]
    bob.raw(codec.encode([verbs.Ack(1, ())]))
    net.settle()
    assert unread(net, bob) == 1


def test_broadcast_does_not_overtake_by_a_lingering_sub(net):
    """The DEALER's connection is gone, and the broker knows; the SUB still receives broadcasts."""
    alice, bob, carol = (net.session(name) for name in ("alice", "bob", "carol"))
    net.lose(bob)
    alice.send("bob", b"1")
    net.wake()
    alice.send("", b"2", scope=Scope.ALL)
    net.settle()
    assert carol.bodies == [b"2"] and bob.bodies == []
    bob.connect()
    net.settle()
    assert bob.bodies == [b"1", b"2"]
    filters = list(bob.filters)
    lease = bob.core.welcome.lease
    net.lose(bob)
    bob.drop_subscriber()
    net.wake()
    assert not net.broker.registry.lingering
    bob.filters = filters  # the SUB reconnects by itself, under the lease that has ended
    net.changed_filters([], filters)
    net.wake()
    assert lease in net.broker.registry.lingering


# --- bounds


def test_mailbox_limit_holds_within_one_wake(net, monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 10)
    alice, bob = net.session("alice"), net.session("bob")
    bob.bye()
    net.settle()
    for _ in range(20):
        alice.send("bob", b"x")
    net.settle()
    assert unread(net, bob) == 10


def test_many_lists_at_once_make_no_giant_frame(net):
    for number in range(verbs.LIST_PAGE):
        net.session(f"s{number}", project="/" + "p" * 500)
    observer = net.observer()
    observer.raw(codec.encode([verbs.List(str(number), False, "") for number in range(200)]))
    net.wake()
    assert max(len(frame) for frames in observer.down for frame in frames) <= verbs.MAX_FRAME_BYTES


def test_rate_of_lists_is_limited(net):
    observer = net.observer()
    for number in range(directory.LISTS_AT_ONCE + 20 * 5):  # twice as often as it may
        observer.request(verbs.List(str(number), False, ""))
        net.settle()
        if number >= directory.LISTS_AT_ONCE:
            net.clock.advance(0.5 / directory.LISTS_A_SECOND)
    refused = [ref for ref, answer in observer.responses.items() if isinstance(answer, errors.RateLimited)]
    assert 45 <= len(refused) <= 55


def test_full_mailbox_does_not_keep_a_broadcast_from_others(net, monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 1)
    alice, bob, carol = (net.session(name) for name in ("alice", "bob", "carol"))
    bob.bye()
    alice.send("bob", b"fills it")
    net.settle()
    msg_id = alice.send("", b"to all", scope=Scope.ALL)
    net.settle()
    assert carol.bodies == [b"to all"]
    carol.take_all()
    net.settle()
    assert alice.answers[msg_id] == verbs.Tally(msg_id, 1, 0, ("bob",))


def test_guest_token_stays_secret(net):
    guest, bob = net.guest("cron"), net.session("bob")
    guest.send("bob", b"x")
    net.settle()
    assert guest.persona.token not in bob.handed[0].header.from_session


def test_session_without_room_does_not_take_the_broadcast_from_the_pub(net, monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 2)
    alice, bob, carol = (net.session(name) for name in ("alice", "bob", "carol"))
    for body in (b"1", b"2"):
        alice.send("bob", body)
    net.settle()
    alice.send("", b"to all", scope=Scope.ALL)
    net.settle()
    assert (bob.bodies, carol.bodies) == ([b"1", b"2"], [b"to all"])


# --- a store that cannot be written


def test_rename_waits_for_the_store(net):
    """ "renamed", and after the next broker's start the session would go by its old name, or another one by the new."""
    bob, eve = net.session("bob"), net.session("eve")
    net.settle()
    net.store.fails = "no space left on device"
    bob.request(verbs.Rename("r1", "robert"))
    net.settle()
    refused = bob.responses["r1"]
    assert isinstance(refused, errors.BrokerUnavailable) and "not renamed: no space left on device" in str(refused)
    assert bob.core.persona.name == "bob"
    eve.send("bob", b"still you")
    net.store.fails = None
    bob.request(verbs.Rename("r2", "robert"))
    net.settle()
    done = bob.responses["r2"]
    assert isinstance(done, verbs.Done) and done.text == "bob" and bob.core.persona.name == "robert"
    net.kill_broker()
    net.restart_broker()
    net.settle()
    assert net.broker.registry.sessions[bob.persona.session_id].name == "robert"


def test_broadcast_names_receivers_for_whom_the_store_failed(net):
    alice, bob = net.session("alice"), net.session("bob")
    away = net.session("carol")
    net.settle()
    away.bye()
    net.settle()
    net.store.fails = "no space left on device"
    msg_id = alice.send("", b"to all", scope=Scope.ALL)
    net.settle()
    bob.take_all()
    net.settle()
    answer = alice.answers[msg_id]
    assert isinstance(answer, verbs.Tally), answer
    assert (answer.delivered, answer.queued, answer.full, answer.unsaved) == (1, 0, (), ("carol",))
