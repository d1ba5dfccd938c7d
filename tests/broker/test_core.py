"""The broker's decisions, seen by clients on a simulated network: nothing here has a socket, a file or a clock."""

from __future__ import annotations

import json
from types import GenericAlias
from typing import Any

import msgpack
import pytest

from zmqbus import errors
from zmqbus.broker import directory, events
from zmqbus.broker.sessions import STATE_OF_ROLE, ConnectionState
from zmqbus.client import core as client
from zmqbus.testing import SimClient, SimNet, session_id_of
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Role, Scope, State


@pytest.fixture
def net() -> SimNet:
    return SimNet()


def refusal(member: SimClient, msg_id: str) -> errors.ZmqbusError:
    answer = member.answers[msg_id]
    assert isinstance(answer, errors.ZmqbusError), answer
    return answer


def receipt(member: SimClient, msg_id: str) -> verbs.Receipt:
    answer = member.answers[msg_id]
    assert isinstance(answer, verbs.Receipt), answer
    return answer


def tally(member: SimClient, msg_id: str) -> tuple[int, int]:
    answer = member.answers[msg_id]
    assert isinstance(answer, verbs.Tally), answer
    return answer.delivered, answer.queued


# --- one to one


def test_delivered_means_taken_by_the_application(net):
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"hello")
    net.settle()
    assert bob.bodies == [b"hello"]
    assert msg_id not in alice.answers
    bob.take_all()
    net.settle()
    assert receipt(alice, msg_id)[:3] == (State.DELIVERED, session_id_of("bob"), "bob")


def test_message_delivered_at_once_has_no_age(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("bob", b"hello")
    net.settle()
    assert bob.handed[0].age_s == -1


def test_absent_receiver_gets_the_message_with_its_age(net):
    alice, bob = net.session("alice"), net.session("bob")
    bob.bye()
    net.settle()
    net.advance(200)
    msg_id = alice.send("bob", b"hello")
    net.settle()
    answer = receipt(alice, msg_id)
    assert answer.state == State.AWAY
    assert 199 <= answer.away_s <= 201
    net.advance(60)
    again = net.session("bob")
    assert again.bodies == [b"hello"]
    assert 59 <= again.handed[0].age_s <= 61


def test_receiver_is_busy_after_a_second(net):
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"hello")
    net.settle()
    net.advance(0.9, step_s=0.1)
    assert msg_id not in alice.answers
    net.advance(0.3, step_s=0.1)
    assert receipt(alice, msg_id).state == State.BUSY
    bob.take_all()
    net.settle()  # no second answer: SimClient would object
    assert net.broker.registry.sessions[session_id_of("bob")].mailbox.total == 0


def test_message_is_queued_when_its_receiver_leaves(net):
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"hello")
    net.settle()
    bob.disconnect()
    net.settle()
    assert receipt(alice, msg_id).state == State.AWAY
    again = net.session("bob")
    assert again.bodies == [b"hello"]


def test_order_from_one_sender_to_one_receiver(net):
    alice, bob = net.session("alice"), net.session("bob")
    sent = []
    for number in range(50):
        body = f"{number}".encode()
        sent.append(body)
        if number % 7 == 3:
            alice.send("", body, scope=Scope.ALL)
        else:
            alice.send("bob", body)
        if number % 5 == 0:
            net.step()
    while len(bob.history) < 50:
        net.settle()
        bob.take(3)
        net.settle()
    assert [message.body for message in bob.history] == sent


def test_stopped_receiver_holds_its_credit_at_most(net):
    alice, bob = net.session("alice"), net.session("bob")
    for _ in range(3):
        for number in range(900):
            alice.send("bob", f"{number}".encode())
        net.settle()
        net.advance(2)
    mailbox = net.broker.registry.sessions[session_id_of("bob")].mailbox
    assert len(mailbox.window) == 1000 == len(bob.handed)
    assert mailbox.total == 2700
    assert len(alice.answers) == 2700
    while bob.handed:
        bob.take_all()
        net.settle()
    assert [message.body for message in bob.history] == 3 * [f"{n}".encode() for n in range(900)]
    assert mailbox.total == 0
    assert net.store.total() == 0


def test_full_mailbox_refuses(net):
    alice, bob = net.session("alice"), net.session("bob")
    bob.bye()
    net.settle()
    for _ in range(10):
        for _ in range(1000):
            last = alice.send("bob", b"x")
        net.settle()
    assert receipt(alice, last).state == State.AWAY
    over = alice.send("bob", b"x")
    net.settle()
    assert isinstance(refusal(alice, over), errors.RateLimited)
    assert "the mailbox of 'bob' is full" in str(refusal(alice, over))


def test_large_bodies_travel_as_a_pointer(net):
    alice, bob = net.session("alice"), net.session("bob")
    body = b"x" * (verbs.SPILL_BYTES + 1)
    alice.send("bob", body)
    alice.send("bob", body[:-1])
    net.settle()
    first, second = bob.handed
    assert first.pointer == (1, 0, len(net.journal[0]), 0) and first.body == b""
    assert second.pointer is None and second.body == body[:-1]


def test_journal_has_every_message(net):
    alice, _ = net.session("alice", label="Alice's"), net.session("bob")
    first = alice.send("bob", "grüße\n".encode())
    second = alice.send("", b"to all", scope=Scope.ALL)
    net.settle()
    one, two = (json.loads(line) for line in net.journal)
    assert (one["msg_id"], one["kind"], one["from_name"], one["from_label"]) == (first, "message", "alice", "Alice's")
    assert (one["to"], one["to_session_id"], one["text"]) == ("bob", session_id_of("bob"), "grüße\n")
    assert (two["msg_id"], two["kind"], two["to"], two["to_session_id"]) == (second, "broadcast", "all", None)


def test_journal_failure_refuses_without_a_trace(net):
    alice, bob = net.session("alice"), net.session("bob")
    net.journal_fails = "no space left on device; free some and send again"
    lost = [alice.send("bob", b"1"), alice.send("", b"2", scope=Scope.ALL)]
    net.settle()
    assert all(isinstance(refusal(alice, msg_id), errors.BrokerUnavailable) for msg_id in lost)
    net.journal_fails = None
    alice.send("bob", b"3")
    net.settle()
    assert bob.bodies == [b"3"]


# --- sending again


def test_repeat_is_delivered_once(net):
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"once")
    net.settle()
    alice.disconnect()
    alice.connect()  # sends again what was not confirmed
    net.settle()
    assert bob.bodies == [b"once"]
    bob.take_all()
    net.settle()
    assert receipt(alice, msg_id).state == State.DELIVERED
    # Settled by now; a repetition gets the same answer.
    alice.raw(codec.encode([verbs.Send.one(msg_id, Scope.SESSION, "bob", 0, None, False, b"once")]))
    net.settle()
    assert bob.bodies == []
    assert len(net.journal) == 1


def test_id_of_another_sender_is_refused(net):
    alice, bob, eve = net.session("alice"), net.session("bob"), net.session("eve")
    msg_id = alice.send("bob", b"mine")
    net.settle()
    eve.send("bob", b"forged", msg_id=msg_id)
    net.settle()
    assert "another session" in str(refusal(eve, msg_id))
    bob.take_all()
    net.settle()
    assert receipt(alice, msg_id).state == State.DELIVERED
    assert [message.body for message in bob.history] == [b"mine"]


def test_lost_acknowledgement_does_not_show_a_message_twice(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("bob", b"one")
    net.settle()
    bob.take_all()
    bob.disconnect()  # with the acknowledgement still under way
    bob.connect()
    net.settle()
    assert bob.handed == []
    bob.take_all()
    net.settle()
    assert net.broker.registry.sessions[session_id_of("bob")].mailbox.total == 0


# --- one to many


def test_broadcast_reaches_everyone_but_its_sender(net):
    alice, bob, carol = (net.session(name) for name in ("alice", "bob", "carol"))
    msg_id = alice.send("", b"freeze", scope=Scope.ALL)
    net.settle()
    assert (alice.bodies, bob.bodies, carol.bodies) == ([], [b"freeze"], [b"freeze"])
    bob.take_all()
    net.settle()
    assert msg_id not in alice.answers
    net.advance(1.2, step_s=0.1)
    assert tally(alice, msg_id) == (1, 1)


def test_broadcast_reaches_absent_sessions_on_return(net):
    alice, bob, carol = (net.session(name) for name in ("alice", "bob", "carol"))
    carol.bye()
    net.settle()
    msg_id = alice.send("", b"freeze", scope=Scope.ALL)
    net.settle()
    bob.take_all()
    net.settle()
    assert tally(alice, msg_id) == (1, 1)
    assert net.session("carol").bodies == [b"freeze"]


def test_topics_and_projects(net):
    alice = net.session("alice", project="/a")
    follower = net.session("follower", topics=("deploys",), project="/b")
    other = net.session("other", topics=("deploys-eu",), project="/a")
    alice.send("deploys", b"topic", scope=Scope.TOPIC)
    alice.send("/a", b"project", scope=Scope.PROJECT)
    net.settle()
    assert follower.bodies == [b"topic"]
    assert other.bodies == [b"project"]


def test_broadcast_to_nobody_is_valid(net):
    alice = net.session("alice")
    msg_id = alice.send("nothing", b"?", scope=Scope.TOPIC)
    net.settle()
    assert tally(alice, msg_id) == (0, 0)


def test_sixty_broadcasts_a_minute_over_all_helpers(net):
    alice, _ = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    for number in range(60):
        (alice if number % 2 else helper).send("", b"x", scope=Scope.ALL)
    over = helper.send("", b"x", scope=Scope.ALL)
    net.settle()
    assert isinstance(refusal(helper, over), errors.RateLimited)
    assert "retry in 60 s" in str(refusal(helper, over))
    net.advance(61, step_s=2)
    again = helper.send("", b"x", scope=Scope.ALL)
    net.settle()
    net.advance(1.5)
    assert tally(helper, again) == (0, 1)


def test_slow_receiver_does_not_slow_others(net):
    alice, slow, quick = (net.session(name) for name in ("alice", "slow", "quick"))
    for number in range(50):
        alice.send("", f"{number}".encode(), scope=Scope.ALL)
        net.settle()
        quick.take_all()
        net.settle()
    assert len(quick.history) == 50
    assert len(slow.handed) == 50


def test_lost_broadcast_is_retransmitted(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("", b"lost", scope=Scope.ALL)
    net.wake()
    assert bob.published
    bob.published.clear()  # a PUB at its mark drops without a word
    net.settle()
    assert bob.bodies == []
    net.advance(0.5, step_s=0.1)
    assert bob.bodies == [b"lost"]


def test_directed_message_waits_for_an_earlier_broadcast(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("", b"first", scope=Scope.ALL)
    alice.send("bob", b"second")
    net.wake()
    late = list(bob.published)
    bob.published.clear()
    net.settle()
    assert bob.bodies == []
    bob.published.extend(late)
    net.settle()
    assert bob.bodies == [b"first", b"second"]


def test_gap_between_broadcasts_is_filled_in_order(net):
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("", b"first", scope=Scope.ALL)
    net.wake()
    bob.published.clear()
    alice.send("", b"second", scope=Scope.ALL)
    net.settle()
    assert bob.bodies == [b"first", b"second"]


# --- names and targets


def test_targets_are_resolved_in_order(net):
    alice = net.session("alice")
    net.session("auth")
    net.session("auth-api")
    net.session("billing")
    for target, expected in (
        ("auth", "auth"),  # exact, though a prefix of another
        (session_id_of("auth"), "auth"),
        ("bill", "billing"),
        (session_id_of("billing")[:13], "billing"),
    ):
        msg_id = alice.send(target, b"?")
        net.settle()
        net.advance(1.5)
        assert receipt(alice, msg_id).name == expected, target


def test_several_matches_are_listed(net):
    alice = net.session("alice")
    net.session("auth-api")
    net.session("auth-web")
    msg_id = alice.send("auth", b"?")
    net.settle()
    assert isinstance(refusal(alice, msg_id), errors.Ambiguous)
    assert "auth-api" in str(refusal(alice, msg_id)) and "auth-web" in str(refusal(alice, msg_id))


def test_an_unknown_target_names_the_nearest(net):
    alice = net.session("alice")
    net.session("billing")
    msg_id = alice.send("biling", b"?")
    net.settle()
    assert isinstance(refusal(alice, msg_id), errors.UnknownPeer)
    assert "billing" in str(refusal(alice, msg_id))


def test_session_cannot_send_to_itself(net):
    alice = net.session("alice")
    msg_id = alice.send("alice", b"?")
    net.settle()
    assert isinstance(refusal(alice, msg_id), errors.UnknownPeer)
    assert "itself" in str(refusal(alice, msg_id))


def test_taken_name_is_refused_without_harm_to_its_holder(net):
    alice = net.session("alice")
    other = net.session("alice", session_id=session_id_of("another"), token="another-token")
    assert isinstance(other.closed[0], errors.NameTaken)
    msg_id = alice.send("alice", b"?")
    net.settle()
    assert "itself" in str(refusal(alice, msg_id))
    assert session_id_of("another") not in net.broker.registry.sessions


def test_name_is_free_when_its_holder_leaves(net):
    net.session("alice").bye()
    net.settle()
    other = net.session("alice", session_id=session_id_of("another"), token="another-token")
    assert other.closed == []


def test_rename_moves_the_session(net):
    alice, bob = net.session("alice", session_id=session_id_of("another")), net.session("bob")
    net.helper(alice).request(verbs.Rename("r", "lead"))
    net.settle()
    assert alice.renames == ["lead"]
    bob.send("lead", b"hi")
    bob.send("alice", b"?", msg_id="gone00000000")
    net.settle()
    assert alice.bodies == [b"hi"]
    assert isinstance(refusal(bob, "gone00000000"), errors.UnknownPeer)


def test_lost_rename_comes_with_the_next_ping(net):
    alice = net.session("alice")
    net.helper(alice).request(verbs.Rename("r", "lead"))
    net.wake()
    alice.published.clear()
    net.settle()
    assert alice.renames == []
    net.advance(5)
    assert alice.renames == ["lead"]


# --- coming and going


def test_claiming_a_session_needs_its_token(net):
    net.session("alice")
    thief = net.session("thief", session_id=session_id_of("alice"), token="guessed")
    assert isinstance(thief.closed[0], errors.Unauthorized)
    helper = net._enter(thief.persona._replace(role=Role.HELPER, name="alice"), True)
    assert isinstance(helper.closed[0], errors.Unauthorized)


def test_stale_lease_is_refused(net):
    bob = net.session("bob")
    ping = verbs.Ping("a lease of long ago", "bob")
    assert net.broker.handle(net.clock.now, events.Received(bob.route, [ping])) == [
        events.Reply(bob.route, verbs.Expired())
    ]


def test_newer_process_displaces_the_older(net):
    old = net.session("alice")
    new = net.session("alice", pid=4242)
    assert "4242" in str(old.closed[0])
    net.session("bob").send("alice", b"hi")
    net.settle()
    assert new.bodies == [b"hi"] and old.bodies == []


def test_silent_connection_is_closed_within_fifteen_seconds(net):
    alice, bob = net.session("alice"), net.session("bob")
    net.lose(bob)  # it will not tick any more, and nothing reaches it
    net.advance(14)
    assert [session.name for session in net.broker.registry.live()] == ["alice"]
    assert alice.closed == []


def test_dead_subscriber_is_noticed_at_once(net):
    _, bob = net.session("alice"), net.session("bob")
    net.lose(bob)
    bob.drop_subscriber()
    net.wake()
    assert [session.name for session in net.broker.registry.live()] == ["alice"]


def test_closed_listener_reconnects_by_itself(net):
    alice, bob = net.session("alice"), net.session("bob")
    bob.drop_subscriber()  # while the DEALER lives: the broker says EXPIRED, and the client sends HELLO again
    net.settle()
    alice.send("", b"again", scope=Scope.ALL)
    net.settle()
    assert bob.bodies == [b"again"]


def test_disconnect_ends_the_listener_and_hides_the_session(net):
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(bob)
    helper.request(verbs.Disconnect("d"))
    net.settle()
    assert bob.closed == [None]
    assert helper.responses["d"] == verbs.Done("d", "disconnected")
    msg_id = alice.send("bob", b"?")
    net.settle()
    assert isinstance(refusal(alice, msg_id), errors.UnknownPeer)
    assert net.session("bob").closed == []


def test_clients_come_back_to_a_new_broker(net):
    bob, alice = net.session("bob"), net.session("alice")
    msg_id = alice.send("bob", b"unconfirmed")
    net.restart_broker()
    net.settle()
    assert bob.bodies == [b"unconfirmed"]
    bob.take_all()
    net.settle()
    assert receipt(alice, msg_id).state == State.DELIVERED


def test_other_protocol_version_is_refused_with_both_versions(net):
    stranger = net.session("alice", connect=False)
    stranger.route = net.new_route(stranger)
    hello = verbs.Hello(99, "9.9", 0, "s", "t", "n", None, "", "", 1, "", (), (), None)
    stranger.raw(codec.encode([hello]))
    net.settle()
    assert "speaks protocol 99" in str(stranger.closed[0]) and "broker --stop" in str(stranger.closed[0])


# --- answers


def test_answer_goes_to_the_waiting_command(net):
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    question = helper.ask("bob", b"ready?")
    net.settle()
    answer = bob.send("alice", b"answer: yes", reply_to=question)
    net.settle()
    assert helper.bodies == [b"answer: yes"] and alice.bodies == []
    assert answer not in bob.answers
    helper.take_all()
    net.settle()
    assert receipt(bob, answer).state == State.DELIVERED


def test_answer_without_a_waiting_command_goes_to_the_listener(net):
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    question = helper.ask("bob", b"ready?")
    net.settle()
    bob.send("alice", b"answer: yes", reply_to=question)
    net.settle()
    helper.bye()  # before it took the answer
    net.settle()
    assert alice.bodies == [b"answer: yes"]


def test_guest_gets_its_answer_or_the_answer_is_refused(net):
    guest, bob = net.guest("cron"), net.session("bob")
    question = guest.ask("bob", b"ready?")
    net.settle()
    first = bob.send("cron", b"yes", reply_to=question)
    net.settle()
    assert guest.bodies == [b"yes"]
    guest.bye()
    net.settle()
    assert isinstance(refusal(bob, first), errors.UnknownPeer)
    second = bob.send("cron", b"still there?", reply_to=question)
    net.settle()
    assert isinstance(refusal(bob, second), errors.UnknownPeer)


def test_guest_may_not_use_the_name_of_a_connected_session(net):
    net.session("alice")
    assert isinstance(net.guest("alice").closed[0], errors.NameTaken)


# --- reading elsewhere


def test_dead_reader_leaves_the_rest_to_the_listener(net):
    alice, bob = net.session("alice"), net.session("bob")
    for number in range(3):
        alice.send("bob", f"{number}".encode())
    net.settle()
    helper = net.helper(bob)
    helper.request(verbs.Fetch("f", False))
    net.settle()
    helper.take(1)
    net.settle()
    helper.disconnect()
    net.advance(13)
    assert bob.bodies == [b"1", b"2"]


# --- bad input costs its sender


@pytest.mark.parametrize(
    "envelope",
    [
        verbs.Send.one("short", 0, "bob", 0, None, False, b""),
        verbs.Send.one("UPPERCASE000", 0, "bob", 0, None, False, b""),
        verbs.Send.one("goodgood0000", 77, "bob", 0, None, False, b""),
        verbs.Send.one("goodgood0001", 0, "bob", 9, None, False, b""),
        verbs.Send.one("goodgood0002", 0, "bob", 0, None, False, b"\xff\xfe"),
        verbs.Send.one("goodgood0003", 0, "", 0, None, False, b""),
        verbs.Send.one("goodgood0004", int(Scope.TOPIC), "No Such Topic\0", 0, None, False, b""),
        verbs.Send.one("goodgood0005", 0, "bob", 0, None, False, b"x" * (10 * 1024 * 1024 + 1)),
        verbs.Send.one("goodgood0006", int(Scope.ALL), "", 0, None, False, b"x" * (256 * 1024 + 1)),
        verbs.Rename("r", "Not A Name"),
        verbs.Fetch("f", False),
        verbs.Await("?"),
    ],
    ids=lambda envelope: f"{type(envelope).__name__}-{envelope[0]}",
)
def test_hostile_envelopes_are_refused_without_harm_to_others(net, monkeypatch, envelope):
    mallory, alice, bob = net.session("mallory"), net.session("alice"), net.session("bob")
    seen: list[verbs.Envelope] = []

    def overhear(now_s: float, event: client.Event) -> list[client.Effect]:
        assert isinstance(event, client.Received)
        seen.extend(event.envelopes)
        return []

    monkeypatch.setattr(mallory.core, "handle", overhear)
    mallory.raw(codec.encode([envelope]))
    net.settle()
    assert [type(answer) for answer in seen] == [verbs.Refused]
    assert net.mangled == 0
    msg_id = alice.send("bob", b"still here?")
    net.settle()
    bob.take_all()
    net.settle()
    assert receipt(alice, msg_id).state == State.DELIVERED


def sample_of(verb: verbs.Verb) -> verbs.Envelope:
    """Builds an envelope with the plainest value of each field, from the types of the fields."""
    plain: dict[Any, Any] = {int: 0, float: 0.0, bool: False, str: "goodgood0000", bytes: b""}
    plain |= {GenericAlias(tuple, (kind, ...)): (value,) for kind, value in plain.items()}
    envelope: verbs.Envelope = verb.cls(*[plain.get(kind) for kind in verb.cls.__annotations__.values()])
    return envelope


@pytest.mark.parametrize("verb", [verb for verb in verbs.TABLE if not verb.from_broker], ids=lambda verb: verb.name)
@pytest.mark.parametrize("state", [state for state in ConnectionState if state is not ConnectionState.CLOSED])
def test_verb_that_the_table_does_not_allow_is_refused(net, state, verb):
    session = net.session("alice")
    routes = {
        ConnectionState.MEMBER: session.route,
        ConnectionState.HELPER: net.helper(session).route,
        ConnectionState.GUEST: net.guest("cron").route,
        ConnectionState.OBSERVER: net.observer().route,
        ConnectionState.UNREGISTERED: b"never seen",
    }
    effects = net.broker.handle(net.clock.now, events.Received(routes[state], [sample_of(verb)]))
    replies = [effect.envelope for effect in effects if isinstance(effect, events.Reply)]
    if state is ConnectionState.UNREGISTERED:
        assert (verbs.Expired() in replies) is not verb.unregistered
    elif not any(role in verb.roles for role in Role if STATE_OF_ROLE[role] is state):
        (reply,) = replies
        assert isinstance(reply, verbs.Refused)
        assert "is not for a" in reply.text
    else:
        assert not any(isinstance(reply, verbs.Refused) and "is not for a" in reply.text for reply in replies)


def test_long_list_comes_in_pages(net):
    for number in range(205):
        net.session(f"s{number}")
    observer = net.observer()
    observer.request(verbs.List("one", False, ""))
    net.settle()
    page = observer.responses["one"]
    assert isinstance(page, verbs.Sessions)
    assert len(page.rows) == 200 and page.more
    observer.request(verbs.List("two", False, verbs.Session._make(page.rows[-1]).session_id))
    net.settle()
    rest = observer.responses["two"]
    assert isinstance(rest, verbs.Sessions)
    assert len(rest.rows) == 5 and not rest.more


def test_list_states(net):
    alice, bob, _ = net.session("alice"), net.session("bob"), net.session("carol")
    net.clients[2].bye()
    alice.send("bob", b"1")
    alice.send("carol", b"2")
    net.settle()
    net.advance(6)
    observer = net.observer()
    observer.request(verbs.List("all", True, ""))
    net.settle()
    page = observer.responses["all"]
    assert isinstance(page, verbs.Sessions)
    rows = {row.name: row for row in map(verbs.Session._make, page.rows)}
    assert {name: (row.state, row.waiting) for name, row in rows.items()} == {
        "alice": ("live", 0),
        "bob": ("busy", 1),
        "carol": ("away", 1),
    }
    assert bob.handed


def test_broker_is_idle_without_connections_and_pending_mail(net):
    alice, bob = net.session("alice"), net.session("bob")
    assert not net.broker.idle
    bob.bye()
    alice.send("bob", b"keep")
    net.settle()
    net.store.fails = "no space left on device"
    alice.bye()
    net.settle()
    assert not net.broker.idle  # that alice is away is not on record yet
    net.store.fails = None
    net.advance(1)
    assert net.broker.idle
    assert net.store.total() == 1


def test_stop_halts(net):
    observer = net.observer()
    observer.request(verbs.Stop("s"))
    net.settle()
    assert net.halted
    assert observer.responses["s"] == verbs.Done("s", "stopping")


def test_repr_shows_the_state(net):
    net.session("alice")
    assert repr(net.broker) == ("<BrokerCore <Registry: 1 connections, 1 of 1 live>, 0 unsettled, broadcast 0>")


def test_hello_of_another_version_is_refused_whatever_its_fields(net):
    stranger = net.session("alice", connect=False)
    stranger.route = net.new_route(stranger)
    stranger.raw([msgpack.packb([[1, 4, "9.9", "what", "else", ["it"], 1.5], [77, "a verb of tomorrow"]])])
    net.settle()
    assert isinstance(stranger.closed[0], errors.BrokerUnavailable)
    assert "release 9.9" in str(stranger.closed[0])


@pytest.mark.parametrize(
    "session_id", ["bob", "b" * 36, "bob-" + "0" * 32, "6F6E6500-0000-0000-0000-000000000000", "x"]
)
def test_session_id_is_never_a_valid_name(net, session_id):
    """A target is looked for among the ids first: an id that is somebody's name would get that one's mail."""
    alice, bob = net.session("alice"), net.session("bob")
    thief = net.session("thief", session_id=session_id)
    assert isinstance(thief.closed[0], errors.ProtocolError | errors.InvalidPayload)
    alice.send("bob", b"for bob")
    net.settle()
    assert (bob.bodies, thief.bodies) == ([b"for bob"], [])


def test_name_of_the_form_of_an_id_is_refused(net):
    bob = net.session("bob")
    thief = net.session(bob.persona.session_id, session_id=session_id_of("thief"))
    assert isinstance(thief.closed[0], errors.InvalidName)
    net.helper(net.session("other")).request(verbs.Rename("r", bob.persona.session_id))
    net.settle()
    assert bob.persona.session_id not in {session.name for session in net.broker.registry.sessions.values()}


def test_overlong_target_is_refused_alone(net):
    """Its sender gets an error, and the messages behind it are delivered, also after the broker's death."""
    alice, bob = net.session("alice"), net.session("bob")
    for number, target in enumerate(("x" * 4_097, "x" * 9_000, "x" * 100_000, "p\udcffy")):
        bad = alice.send(target, b"?")
        alice.send("bob", b"%d" % number)
        net.settle()
        assert isinstance(alice.answers[bad], errors.InvalidName), alice.answers
        assert bob.bodies == [b"%d" % number]
        bob.take_all()
        net.settle()
    assert alice.core.unconfirmed == 0


def test_overlong_target_found_by_the_broker_is_named_and_refused_alone(net):
    """Of a client that does not check."""
    alice, bob = net.session("alice"), net.session("bob")
    heard = []
    sends = [
        verbs.Send.one(f"message{n:05d}", 0, "bob" if n % 2 else "x" * 9_000, 0, None, False, b"") for n in range(6)
    ]
    listen = alice.core.handle

    def handle(now_s, event):
        if isinstance(event, client.Received):
            heard.extend(event.envelopes)
        return listen(now_s, event)

    alice.core.handle = handle
    alice.raw(codec.encode(sends))
    net.settle()
    refused = [one.ref for one in heard if isinstance(one, verbs.Refused)]
    assert refused == [send.msg_ids[0] for send in sends[::2]]
    assert bob.bodies == [b"", b"", b""]


def test_lists_and_metrics_count_against_a_byte_limit(net, monkeypatch):
    monkeypatch.setattr(directory, "ANSWERS_AT_ONCE_BYTES", 5 * directory.HEALTH_BYTES)
    monkeypatch.setattr(directory, "ANSWERS_A_SECOND_BYTES", directory.HEALTH_BYTES)
    watcher = net.observer()
    for number in range(8):
        watcher.request(verbs.Status(f"s{number}"))
    net.settle()
    answers = [watcher.responses[f"s{number}"] for number in range(8)]
    assert [isinstance(one, errors.RateLimited) for one in answers] == [False] * 5 + [True] * 3
    net.advance(1.1)
    watcher.request(verbs.Status("later"))
    net.settle()
    assert isinstance(watcher.responses["later"], verbs.Health)


def test_page_of_a_list_is_limited_by_size(net):
    for number in range(30):
        net.session(f"s{number:02}", project=f"/{number:02}" + "p" * 4_000)
    watcher = net.observer()
    found, after = [], ""
    while True:
        watcher.request(verbs.List(f"l{after}"[:60], True, after))
        net.settle()
        page = watcher.responses[f"l{after}"[:60]]
        assert sum(len(row[2]) + len(row[3]) for row in page.rows) < directory.PAGE_BYTES + 2 * 4_096
        found += page.rows
        if not page.more:
            break
        after = page.rows[-1][6]
    assert [row[0] for row in found] == [f"s{number:02}" for number in range(30)]
