"""What is checked before a message is accepted, where it takes hostile or careless senders to see it."""

from __future__ import annotations

import pytest

from zmqbus import codec, errors, protocol
from zmqbus.broker import mailbox
from zmqbus.protocol import State
from zmqbus.testing import SimNet


@pytest.fixture
def net() -> SimNet:
    return SimNet()


def test_an_answer_that_somebody_awaits_cannot_be_awaited_by_another(net):
    """Message ids are seen by receivers; knowing one is no right to its answer, nor to keep it from who asked."""
    asker, thief, bob = net.guest("asker"), net.guest("thief"), net.session("bob")
    msg_id = asker.ask("bob", b"question: ready?")
    net.settle()
    thief.raw(codec.encode([protocol.Await(msg_id)]))
    net.settle()
    bob.take_all()
    answer = bob.send("asker", b"answer: yes", reply_to=msg_id)
    net.settle()
    assert (asker.bodies, thief.bodies) == ([b"answer: yes"], [])
    asker.take_all()
    net.settle()
    receipt = bob.answers[answer]
    assert isinstance(receipt, protocol.Receipt) and receipt.state == State.DELIVERED


@pytest.mark.parametrize("reply_to", ["", "short", "UPPERCASE0", "abcdefgh\n", "x" * 13, "é" * 8])
def test_what_a_message_answers_is_a_message_id(net, reply_to):
    """It stands in the header of the receiver's line."""
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"hello", reply_to=reply_to)
    net.settle()
    assert isinstance(alice.answers[msg_id], errors.ProtocolError)
    assert bob.bodies == []


def test_answers_to_a_helper_that_takes_none_count_against_a_limit(net, monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 5)
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    msg_id = helper.ask("bob", b"question: ready?")
    net.settle()
    bob.take_all()
    sent = []
    for _ in range(10):
        sent.append(bob.send("alice", b"answer", reply_to=msg_id))
        net.settle()
    net.advance(2)
    refused = [one for one in sent if isinstance(bob.answers[one], errors.RateLimited)]
    assert refused == sent[5:]
