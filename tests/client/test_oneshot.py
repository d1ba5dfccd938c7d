"""Blocking calls against a broker in a process of its own."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from zmqbus import errors
from zmqbus.client import oneshot
from zmqbus.client.core import Incoming, Persona
from zmqbus.client.oneshot import CommandBus
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.settings import Settings, load
from zmqbus.testing import session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role

#: Far over what any of this takes.
PATIENCE_S = 90.0

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(data_dir: Path, free_port: int) -> Settings:
    return load({"port": free_port})


def persona(name: str, role: Role = Role.PROGRAM) -> Persona:
    return Persona(role, session_id_of(name), f"{name}-token", name, None, "/p", "/p", 1, "1:1", ("deploys",))


def drive(*members: CommandBus) -> None:
    """Between calls nothing happens. This is a call, and what was said before it has arrived when it returns."""
    for member in members:
        member.sessions()


def next_message(receiver: CommandBus) -> Incoming:
    receiver._until(lambda: bool(receiver._incoming))
    return receiver._incoming.popleft()


def test_from_one_to_another_and_back(settings):
    with CommandBus(settings, persona("bob")) as bob, CommandBus(settings, persona("alice")) as alice:
        drive(bob)
        msg_id = alice.post("bob", b"question: ready?")
        drive(alice)
        question = next_message(bob)
        assert (question.from_name, question.body) == ("alice", b"question: ready?")
        bob.take(question)
        drive(bob)
        receipt = alice.outcome(msg_id)
        assert receipt == Receipt(msg_id, "delivered", "bob", session_id_of("bob"), False, 0)
        large = b"x" * (verbs.INLINE_BYTES + 1)
        answer = bob.post("alice", large, reply_to=msg_id)
        drive(bob)
        message = next_message(alice)
        assert (message.reply_to, message.body) == (msg_id, large)
        alice.take(message)
        drive(alice)
        assert bob.outcome(answer).state == "delivered"  # type: ignore[union-attr]
        assert [row.name for row in alice.sessions()] == ["alice", "bob"]


def test_what_waits_is_read_by_a_command(settings):
    with CommandBus(settings, persona("bob")) as bob:
        drive(bob)
    with CommandBus(settings, persona("alice")) as alice:
        for number in range(3):
            receipt = alice.send("bob", b"%d" % number)
            assert (receipt.state, receipt.busy) == ("queued", False)
        with pytest.raises(errors.UnknownPeer, match="bob"):
            alice.send("nobody", b"?")
        with CommandBus(settings, persona("bob", Role.HELPER)) as helper:
            *peeked, end = helper.unread(peek=True)
            assert [message.body for message in peeked if isinstance(message, Incoming)] == [b"0", b"1", b"2"]
            assert isinstance(end, verbs.Fetched) and (end.sent, end.left) == (3, 0)
            seen = []
            for message in helper.unread(peek=False):
                if isinstance(message, Incoming):
                    seen.append(message.body)
                    helper.take(message)
            assert seen == [b"0", b"1", b"2"]
            assert [type(one) for one in helper.unread(peek=False)] == [verbs.Fetched]


def test_broadcasts(settings):
    with CommandBus(settings, persona("bob")) as bob, CommandBus(settings, persona("alice")) as alice:
        drive(bob)
        msg_id = alice.post("deploys", b"freeze", scope=verbs.Scope.TOPIC)
        drive(alice)
        message = next_message(bob)
        bob.take(message)
        drive(bob)
        outcome = alice.outcome(msg_id)
        assert isinstance(outcome, BroadcastReceipt) and outcome.delivered + outcome.queued == 1
        assert message.body == b"freeze"
        assert alice.broadcast(b"?", topic="nobody-joined")[1:] == (0, 0, (), ())


def test_an_answer_comes_to_the_guest_that_waits_for_it(settings):
    with CommandBus(settings, persona("bob")) as bob, oneshot.guest(settings, "cron") as guest:
        drive(bob)
        msg_id = guest.post("bob", b"ready?", await_answer=True)
        drive(guest)
        question = next_message(bob)
        bob.take(question)
        drive(bob)
        guest.outcome(msg_id)
        with pytest.raises(errors.Timeout, match=msg_id):
            guest.answer_to(msg_id, 0.0)
        bob.post("cron", b"yes", reply_to=question.msg_id)
        drive(bob)
        answer = guest.answer_to(msg_id, PATIENCE_S)
        assert answer.body == b"yes"


def test_many_pipelined_come_in_order(settings):
    got: list[bytes] = []
    count = 3_000  # three windows

    def receive() -> None:
        with CommandBus(settings, persona("bob")) as bob:
            drive(bob)
            there.set()
            while len(got) < count:
                message = next_message(bob)
                got.append(message.body)
                bob.take(message)

    there = threading.Event()
    thread = threading.Thread(target=receive)
    thread.start()
    try:
        assert there.wait(PATIENCE_S)
        with CommandBus(settings, persona("alice")) as alice:
            sent = [alice.post("bob", b"%d" % number) for number in range(count)]
            for msg_id in sent:
                alice.outcome(msg_id)
    finally:
        thread.join(PATIENCE_S)
    assert got == [b"%d" % number for number in range(count)]


def test_a_taken_name_is_an_error_of_the_first_call(settings):
    with CommandBus(settings, persona("bob")) as bob:
        drive(bob)
        other = persona("bob")._replace(session_id=session_id_of("other"), token="other")
        with CommandBus(settings, other) as second, pytest.raises(errors.NameTaken):
            second.sessions()
        assert "bob" in [row.name for row in bob.sessions()]


def test_requests(settings):
    with oneshot.observer(settings) as observer:
        health = observer.request(verbs.Status)
        assert isinstance(health, verbs.Health)
        assert dict(health.figures)["sessions"] == 0
        assert observer.meet().session_id == ""
        assert observer.sessions(everyone=True) == []
        with pytest.raises(errors.ProtocolError):
            observer.request(lambda ref: verbs.Rename(ref, "x"))
        assert "ready" in repr(observer)
