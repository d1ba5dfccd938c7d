"""Reply routing: who gets an awaited answer, which answers are held, and until when."""

from __future__ import annotations

import pytest

from zmqbus import errors
from zmqbus.broker import reply_routing
from zmqbus.broker.delivery import BUSY_AFTER_S
from zmqbus.broker.reply_routing import EXPECTED_S
from zmqbus.testing import SimClient, SimNet
from zmqbus.testing.simnet import Death
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import State


@pytest.fixture
def net() -> SimNet:
    return SimNet()


def state(sender: SimClient, msg_id: str) -> int:
    receipt = sender.answers[msg_id]
    assert isinstance(receipt, verbs.Receipt), receipt
    return receipt.state


def asked(net: SimNet, asker: SimClient, bob: SimClient) -> str:
    """Returns the id of a question that bob has taken."""
    msg_id = asker.ask("bob", b"question")
    net.settle()
    bob.take_all()
    net.settle()
    return msg_id


def awaited(net: SimNet) -> list[str]:
    """Returns the awaited message ids that the next broker would find."""
    return [one.msg_id for one in net.store._now.awaited.values()]


def test_answer_goes_to_the_command_and_not_to_its_session(net):
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    question = asked(net, helper, bob)
    assert repr(net.broker.reply_routing) == "<ReplyRouting: 1 answers awaited, 0 commands expected, 0 held>"
    answer = bob.send("alice", b"yes", reply_to=question)
    net.settle()
    assert (alice.bodies, helper.bodies) == ([], [b"yes"])
    helper.take_all()
    net.settle()
    assert state(bob, answer) == State.DELIVERED


@pytest.mark.parametrize("staged", [False, True])
def test_answers_are_held_for_an_expected_command(net, staged):
    """`staged`: its connection is lost between the answer's acceptance and the journal's."""
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    question = asked(net, helper, bob)
    if not staged:
        helper.disconnect()
        net.settle()
    sent = [bob.send("alice", b"yes", reply_to=question), bob.send("alice", b"no", reply_to=question)]
    if staged:
        helper.disconnect()
    net.settle()
    assert alice.bodies == [] and not any(msg_id in bob.answers for msg_id in sent)
    helper.connect()
    net.settle()
    assert helper.bodies == [b"yes", b"no"] and alice.bodies == []
    helper.take_all()
    net.settle()
    assert [state(bob, msg_id) for msg_id in sent] == [State.DELIVERED] * 2
    assert net.broker.reply_routing._held == 0 and not net.broker.reply_routing.expects


def test_held_answers_go_to_the_session_in_order(net):
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    question = asked(net, helper, bob)
    helper.disconnect()
    sent = [bob.send("alice", b"%d" % number, reply_to=question) for number in range(3)]
    net.settle()
    assert net.broker.reply_routing.expects and alice.bodies == []
    net.advance(EXPECTED_S + 1)
    assert alice.bodies == [b"0", b"1", b"2"]
    alice.take_all()
    net.settle()
    assert all(state(bob, msg_id) in (State.DELIVERED, State.BUSY) for msg_id in sent)
    assert not net.broker.reply_routing.expects and awaited(net) == []


def test_held_answers_are_bounded(net, monkeypatch):
    monkeypatch.setattr(reply_routing, "MAX_HELD", 2)
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    question = asked(net, helper, bob)
    helper.disconnect()
    for number in range(4):
        bob.send("alice", b"%d" % number, reply_to=question)
        net.settle()
    assert alice.bodies == [b"2", b"3"] and net.broker.reply_routing._held == 2
    helper.connect()
    net.settle()
    assert helper.bodies == [b"0", b"1"] and net.broker.reply_routing._held == 0


def test_command_that_leaves_is_not_expected(net):
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    question = asked(net, helper, bob)
    assert awaited(net) == [question]
    helper.bye()
    net.settle()
    assert not net.broker.reply_routing.expects and awaited(net) == []
    bob.send("alice", b"late", reply_to=question)
    net.settle()
    assert alice.bodies == [b"late"]


def test_answer_no_longer_awaited_goes_to_the_session(net):
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    question = asked(net, helper, bob)
    helper._do(helper.core.unawait([question, "another00001"]))
    net.settle()
    bob.send("alice", b"answer", reply_to=question)
    net.settle()
    assert (alice.bodies, helper.bodies, awaited(net)) == ([b"answer"], [], [])


@pytest.mark.parametrize("death", Death)
def test_next_broker_holds_answers_for_the_command(net, death):
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    question = asked(net, helper, bob)
    helper.stopped = True  # it is slow to find the new broker
    net.kill_broker(death)
    answer = bob.send("alice", b"yes", reply_to=question)
    net.settle()
    assert answer not in bob.answers and alice.handed == []
    helper.stopped = False
    net.settle()
    assert helper.bodies == [b"yes"]
    helper.take_all()
    net.settle()
    assert state(bob, answer) == State.DELIVERED
    assert alice.history == []


@pytest.mark.parametrize("repeated", [False, True])
def test_reconnected_guest_gets_its_held_answer_once(net, repeated):
    bob, guest = net.session("bob"), net.guest("cron")
    question = asked(net, guest, bob)
    guest.disconnect()
    answer = bob.send("cron", b"yes", reply_to=question)
    net.settle()
    if repeated:
        bob.disconnect()
        bob.connect()
        net.settle()
    guest.connect()
    net.settle()
    assert guest.bodies == [b"yes"]
    guest.take_all()
    net.settle()
    assert state(bob, answer) == State.DELIVERED


def test_held_answer_cannot_be_claimed_by_another_session(net):
    alice, bob, eve = net.session("alice"), net.session("bob"), net.session("eve")
    helper = net.helper(alice)
    question = asked(net, helper, bob)
    helper.disconnect()
    thief = net.helper(eve)
    thief.raw(codec.encode([verbs.Await(question)]))
    net.settle()
    bob.send("alice", b"secret", reply_to=question)
    net.settle()
    assert thief.bodies == []
    helper.connect()
    net.settle()
    assert helper.bodies == [b"secret"]


@pytest.mark.parametrize("present", [True, False])
def test_answer_reported_as_queued_survives_broker_and_command(net, present):
    """The answer moves to the session's mailbox, at once if the session is connected, and is stored there."""
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    question = asked(net, helper, bob)
    answer = bob.send("alice", b"yes", reply_to=question)
    net.settle()
    if present:
        helper.bye()
        net.settle()
        assert alice.bodies == [b"yes"]
    else:
        net.advance(BUSY_AFTER_S + 0.5)
        alice.bye()
        net.settle()
        alice.disconnect()
    assert state(bob, answer) == State.BUSY
    net.kill_broker()
    net.clients.remove(helper)
    net.clients.remove(alice)
    net.settle()
    process = alice.persona._replace(pid=alice.persona.pid + 100)
    assert net._enter(process, True).bodies == [b"yes"]


@pytest.mark.parametrize("wanted", ["", "short", "UPPERCASE0"])
def test_await_needs_a_message_id(net, wanted):
    guest = net.guest("script")
    guest.raw(codec.encode([verbs.Await(wanted)]))
    net.settle()
    assert net.broker.reply_routing._waits == {}


def test_awaited_answers_of_a_connection_are_bounded(net, monkeypatch):
    monkeypatch.setattr(reply_routing, "MAX_WAITS", 3)
    guest = net.guest("script")
    guest.raw(codec.encode([verbs.Await(f"message{number:04d}") for number in range(5)]))
    net.settle()
    assert list(net.broker.reply_routing._waits) == ["message0000", "message0001", "message0002"]


def test_answer_for_a_guest_that_left_is_refused(net):
    bob, guest = net.session("bob"), net.guest("script")
    question = asked(net, guest, bob)
    guest.disconnect()
    answer = bob.send("script", b"yes", reply_to=question)
    net.settle()
    assert answer not in bob.answers
    net.advance(EXPECTED_S + 1)
    refused = bob.answers[answer]
    assert isinstance(refused, errors.UnknownPeer) and "has stopped waiting" in str(refused)
    assert not net.broker.delivery.unsettled
