"""The speaking half against a real broker: receipts and answers in order, and what is left when nobody waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import pytest

from zmqbus import errors, protocol
from zmqbus.client import speaker as speaker_module
from zmqbus.client.bus import Bus
from zmqbus.client.receipts import Receipt
from zmqbus.client.speaker import Speaker

#: Far over what any of this takes.
PATIENCE_S = 90.0

Connect = Callable[..., Bus]
Figures = Callable[[], dict[str, Any]]


def until(condition: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end_s
        time.sleep(0.002)
    return value


def settled(speaker: Speaker) -> bool:
    """Nothing is kept of what is over: here, in the core, or for the broker to be told."""
    client = speaker._driver._link.core
    return not (
        speaker._sent
        or speaker._asked
        or speaker._called
        or speaker._waiting
        or speaker._requests
        or speaker._waiting_bytes
        or speaker._awaited
        or speaker._abandoned
        or speaker._unawaited
        or client._awaited
        or client.unconfirmed
        or client.asked
    )


@pytest.fixture
def pair(connect: Connect) -> tuple[Speaker, Bus]:
    """A program that speaks, and one that is there and does not answer by itself."""
    bob = connect("bob")
    return connect("alice")._speaker, bob


# --- sending


def test_receipts(pair):
    speaker, bob = pair
    msg_id, future = speaker.send(protocol.Scope.SESSION, "bob", protocol.Format.TEXT, b"hi")
    assert bob.next_message(PATIENCE_S).msg_id == msg_id
    assert future.result(PATIENCE_S) == Receipt(msg_id, "delivered", "bob", bob.session_id, False, 0)
    until(lambda: settled(speaker))


@pytest.mark.slow
def test_many_go_out_in_order_though_the_window_is_smaller(pair):
    speaker, bob = pair
    count = 3_000
    sent = [speaker.send(protocol.Scope.SESSION, "bob", protocol.Format.TEXT, b"%d" % n)[1] for n in range(count)]
    got = [bob.next_message(PATIENCE_S).text for _ in range(count)]
    assert got == [str(number) for number in range(count)]
    assert all(one.result(PATIENCE_S).state in ("delivered", "queued") for one in sent)
    until(lambda: settled(speaker))


def test_an_unknown_target_is_the_futures_error(pair):
    speaker, _ = pair
    future = speaker.send(protocol.Scope.SESSION, "nobody", protocol.Format.TEXT, b"")[1]
    reply = speaker.ask(protocol.Scope.SESSION, "nobody", protocol.Format.TEXT, b"", None)
    for one in (future, reply):
        with pytest.raises(errors.UnknownPeer, match="nobody"):
            one.result(PATIENCE_S)
    until(lambda: settled(speaker))


def test_a_receipt_that_was_given_up_costs_nothing(pair):
    speaker, bob = pair
    future = speaker.send(protocol.Scope.SESSION, "bob", protocol.Format.TEXT, b"hi")[1]
    future.cancel()
    assert bob.next_message(PATIENCE_S).text == "hi"
    until(lambda: settled(speaker))


def test_too_many_are_an_error_that_says_what_to_do(pair, monkeypatch):
    speaker, bob = pair
    monkeypatch.setattr(speaker_module, "MAX_OUTSTANDING", 10)
    sent = [speaker.ask(protocol.Scope.SESSION, "bob", protocol.Format.TEXT, b"", None) for _ in range(10)]
    for say in (speaker.ask, speaker.send):
        with pytest.raises(errors.Overloaded, match="take some receipts or answers first"):
            say(protocol.Scope.SESSION, "bob", protocol.Format.TEXT, b"", None)
    with pytest.raises(errors.Overloaded):
        speaker.ask_all(protocol.Scope.SESSION, "bob", [(protocol.Format.TEXT, b"")] * 2, None)
    assert len(speaker._asked) == 10
    sent[0].cancel()
    speaker.ask(protocol.Scope.SESSION, "bob", protocol.Format.TEXT, b"", None).cancel()
    for reply in sent:
        reply.cancel()
    for _ in range(11):
        assert bob.next_message(PATIENCE_S) is not None
    until(lambda: settled(speaker))


def test_too_many_bytes_are_one_too(pair, monkeypatch):
    speaker, _ = pair
    monkeypatch.setattr(speaker_module, "MAX_WAITING_BYTES", 1000)
    with pytest.raises(errors.Overloaded, match="bytes waiting"):
        speaker.send(protocol.Scope.SESSION, "bob", protocol.Format.TEXT, b"x" * 1001)
    # What has gone out does not count.
    replies = [speaker.ask(protocol.Scope.GROUP, "none", protocol.Format.TEXT, b"x" * 900, None) for _ in range(5)]
    for reply in replies:
        reply.cancel()
    until(lambda: settled(speaker))


# --- asking


def test_an_answer_and_what_is_told_of_it(pair):
    speaker, bob = pair
    reply = speaker.ask(protocol.Scope.SESSION, "bob", protocol.Format.TEXT, b"ready?", PATIENCE_S)
    question = bob.next_message(PATIENCE_S)
    assert (reply.target, reply.msg_id) == ("bob", question.msg_id)
    bob.reply(question, {"yes": 1})
    answer = reply.result(PATIENCE_S)
    assert (answer.body, answer.reply_to, answer.sender) == ({"yes": 1}, question.msg_id, "bob")
    until(lambda: settled(speaker))


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_an_answer_that_nobody_waits_for_comes_to_the_mailbox(connect, how):
    bob, alice = connect("bob"), connect("alice")
    reply = alice.request("bob", "ready?", timeout=0.0 if how == "deadline" else None)
    if how == "cancel":
        reply.cancel()
        assert reply.cancelled()
    else:
        with pytest.raises(errors.Timeout, match=f"no answer from 'bob' to {reply.msg_id} in time; .* longer timeout"):
            reply.result(PATIENCE_S)
    question = bob.next_message(PATIENCE_S)
    alice.sessions()  # the broker knows by then: an answer that crosses that would be taken by whoever asked
    bob.send(question.sender_id, "yes", reply_to=question.msg_id, wait=False)
    late = alice.next_message(PATIENCE_S)
    assert (late.text, late.reply_to) == ("yes", reply.msg_id)
    until(lambda: settled(alice._speaker))


def test_a_late_answer_to_a_guest_is_nobodys(connect):
    bob, guest = connect("bob"), connect()
    reply = guest.request("bob", "ready?")
    question = bob.next_message(PATIENCE_S)
    reply.cancel()
    until(lambda: settled(guest._speaker))
    try:
        bob.reply(question, "yes")
    except errors.UnknownPeer:
        pass  # it has no mailbox
    assert guest.request("bob", "still there?").cancel()


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_the_broker_is_told_of_a_request_to_a_group_that_nobody_waits_for(connect, figures: Figures, how):
    bus = connect("alice")
    replies = [bus.request("@nobody", number, timeout=None if how == "cancel" else 0.2) for number in range(5)]
    if how == "cancel":
        until(lambda: figures()["requests_waiting"] == 5)
        assert all(reply.cancel() for reply in replies)
    assert wait(replies, PATIENCE_S).not_done == set()
    until(lambda: figures()["requests_waiting"] == 0)
    until(lambda: settled(bus._speaker))


def test_messages_do_not_stand_behind_requests_that_nobody_takes(connect):
    bus, bob = connect("alice"), connect("bob")
    replies = [bus.request("@nobody", number) for number in range(1_100)]  # more than may be unanswered
    assert len(bus._speaker._requests) == 100
    sent = bus.send("bob", "hi", wait=False)
    assert bob.next_message(PATIENCE_S).text == "hi"
    assert sent.result(PATIENCE_S).state == "delivered"
    assert len(bus.sessions()) >= 2
    for reply in replies:
        reply.cancel()
    until(lambda: settled(bus._speaker))


@pytest.mark.slow
def test_a_hundred_thousand_requests_are_the_bound_and_all_end(connect, figures: Figures):
    bus = connect("alice")
    replies = bus._speaker.ask_all(protocol.Scope.GROUP, "nobody", [(protocol.Format.TEXT, b"x")] * 100_000, None)
    with pytest.raises(errors.Overloaded, match=r"100,000 messages and requests are open .* use map"):
        bus.request("@nobody", "one more")
    assert len(bus._speaker._requests) == 99_000
    for reply in replies[::2]:
        reply.cancel()
    bus.request("@nobody", "there is room again").cancel()
    until(lambda: figures()["requests_waiting"] == 1_000)
    bus.close()
    done, open_ = wait(replies, PATIENCE_S)
    assert not open_ and sum(reply.cancelled() for reply in done) == 50_000
    assert all(isinstance(reply.exception(), errors.NotConnected) for reply in replies[1::2])


@pytest.mark.slow
def test_more_answers_than_the_broker_lets_a_connection_await(pair):
    speaker, bob = pair
    replies = [speaker.ask(protocol.Scope.SESSION, "bob", protocol.Format.TEXT, b"%d" % n, None) for n in range(2_000)]
    for _ in range(2_000):
        question = bob.next_message(PATIENCE_S)
        bob._speaker.send(protocol.Scope.SESSION, question.sender_id, 0, question.body_bytes, question.msg_id)
    assert [reply.result(PATIENCE_S).text for reply in replies] == [str(number) for number in range(2_000)]
    until(lambda: settled(speaker))


def test_deadlines_of_what_was_answered_are_swept_out(pair, monkeypatch):
    speaker, bob = pair
    monkeypatch.setattr(speaker_module, "MAX_STALE_DEADLINES", 5)
    for _ in range(30):
        reply = speaker.ask(protocol.Scope.SESSION, "bob", protocol.Format.TEXT, b"", 1000.0)
        bob.reply(bob.next_message(PATIENCE_S), "")
        reply.result(PATIENCE_S)
    assert len(speaker._deadlines) <= 7


# --- ends


def test_closing_ends_everything_that_is_open(connect):
    connect("bob")
    bus = connect("alice")
    told: list[Future[Any]] = []
    futures: list[Future[Any]] = [
        bus.request("bob", "?"),
        bus.request("@nobody", "?"),
        bus.request("bob", "?", timeout=1000),
    ]
    for future in futures:
        future.add_done_callback(told.append)
    bus.close()
    for future in futures:
        with pytest.raises(errors.NotConnected, match="closed"):
            future.result(PATIENCE_S)
    assert sorted(map(id, told)) == sorted(map(id, futures))
    with pytest.raises(errors.NotConnected):
        bus.request("bob", "?")
    assert settled_here(bus._speaker)


def settled_here(speaker: Speaker) -> bool:
    return not (speaker._sent or speaker._asked or speaker._called or speaker._waiting or speaker._requests)


def test_cancelling_after_the_end_is_no_error(connect):
    bus = connect("alice")
    reply = bus.request("@nobody", "?")
    bus.close()
    assert not reply.cancel()


def test_repr_counts(pair):
    speaker, _ = pair
    assert repr(speaker) == "<Speaker: 0 sent, 0 asked, 0 waiting>"
