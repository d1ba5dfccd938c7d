"""Blocking calls against a broker in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import zmqbus
from tests.conftest import ROOT, RunBin
from zmqbus import errors
from zmqbus.client import locate, oneshot
from zmqbus.client.core import Incoming, Persona
from zmqbus.client.locate import broker_pid
from zmqbus.client.oneshot import OneShotClient
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.security.keys import client_keys
from zmqbus.settings import Settings, load
from zmqbus.system.network import Network
from zmqbus.system.pidfile import Served
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


def drive(*members: OneShotClient) -> None:
    """Between calls nothing happens. This is a call, and what was said before it has arrived when it returns."""
    for member in members:
        member.sessions()


def next_message(consumer: OneShotClient) -> Incoming:
    consumer._until(lambda: bool(consumer._incoming))
    return consumer._incoming.popleft()


def test_from_one_to_another_and_back(settings):
    with OneShotClient(settings, persona("bob")) as bob, OneShotClient(settings, persona("alice")) as alice:
        drive(bob)
        msg_id = alice.post("bob", b"question: ready?")
        drive(alice)
        question = next_message(bob)
        assert (question.header.from_name, question.body) == ("alice", b"question: ready?")
        bob.take(question)
        drive(bob)
        receipt = alice.outcome(msg_id)
        assert receipt == Receipt(msg_id, "delivered", "bob", session_id_of("bob"), False, 0)
        large = b"x" * (verbs.INLINE_BYTES + 1)
        answer = bob.post("alice", large, reply_to=msg_id)
        drive(bob)
        message = next_message(alice)
        assert (message.header.reply_to, message.body) == (msg_id, large)
        alice.take(message)
        drive(alice)
        assert bob.outcome(answer).state == "delivered"  # type: ignore[union-attr]
        assert [row.name for row in alice.sessions()] == ["alice", "bob"]


def test_what_waits_is_read_by_a_command(settings):
    with OneShotClient(settings, persona("bob")) as bob:
        drive(bob)
    with OneShotClient(settings, persona("alice")) as alice:
        for number in range(3):
            receipt = alice.send("bob", b"%d" % number)
            assert (receipt.state, receipt.busy) == ("queued", False)
        with pytest.raises(errors.UnknownPeer, match="bob"):
            alice.send("nobody", b"?")
        with OneShotClient(settings, persona("bob", Role.HELPER)) as helper:
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
    with OneShotClient(settings, persona("bob")) as bob, OneShotClient(settings, persona("alice")) as alice:
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
    with OneShotClient(settings, persona("bob")) as bob, oneshot.guest(settings, "cron") as guest:
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
        with OneShotClient(settings, persona("bob")) as bob:
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
        with OneShotClient(settings, persona("alice")) as alice:
            sent = [alice.post("bob", b"%d" % number) for number in range(count)]
            for msg_id in sent:
                alice.outcome(msg_id)
    finally:
        thread.join(PATIENCE_S)
    assert got == [b"%d" % number for number in range(count)]


def test_a_taken_name_is_an_error_of_the_first_call(settings):
    with OneShotClient(settings, persona("bob")) as bob:
        drive(bob)
        other = persona("bob")._replace(session_id=session_id_of("other"), token="other")
        with OneShotClient(settings, other) as second, pytest.raises(errors.NameTaken):
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


class TestImpatientObserver:
    """An observer that starts no broker, and waits for an answer no longer than it was told to."""

    @pytest.fixture
    def settings(self, data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Settings:
        monkeypatch.setenv("INTER_SESSION_PORT", str(free_port))
        client_keys(str(data_dir))
        return load()

    @staticmethod
    def figures(settings: Settings, patience_s: float) -> dict[str, Any]:
        with oneshot.observer(settings, starts=False, patience_s=patience_s) as bus:
            return bus.figures()

    def test_figures(self, settings: Settings, run_bin: RunBin) -> None:
        run_bin("zmqbus", "broker")
        figures = self.figures(settings, PATIENCE_S)
        assert (figures["sessions"], figures["connections"]) == (0, 1)

    def test_a_list_in_pages(self, settings: Settings) -> None:
        """This broker's pages have two rows."""
        code = (
            "import zmqbus.wire.verbs; zmqbus.wire.verbs.LIST_PAGE = 2; from zmqbus.cli import broker; "
            "broker.main(['--foreground'])"
        )
        broker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            end_s = time.monotonic() + PATIENCE_S
            while broker_pid(settings) != broker.pid:
                assert time.monotonic() < end_s
                time.sleep(0.01)
            with (
                zmqbus.connect("one"),
                zmqbus.connect("two"),
                zmqbus.connect("three"),
                oneshot.observer(settings, starts=False, patience_s=PATIENCE_S) as bus,
            ):
                assert sorted(session.name for session in bus.sessions()) == ["one", "three", "two"]
                assert bus.figures()["sessions"] == 3
            with oneshot.observer(settings, starts=False, patience_s=PATIENCE_S) as bus:
                assert bus.sessions() == []
                assert len(bus.sessions(everyone=True)) == 3
        finally:
            broker.terminate()
            broker.wait(PATIENCE_S)

    def test_no_broker(self, settings: Settings) -> None:
        with pytest.raises(errors.BrokerUnavailable, match="no broker runs on port"):
            self.figures(settings, 0.2)
        assert broker_pid(settings) is None

    def test_another_program_holds_the_port(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        served = Served(settings.port, os.getpid(), None, Network())
        monkeypatch.setattr(locate, "find_broker", lambda _: served)
        with socket.socket() as held:
            held.bind(("127.0.0.1", settings.port))
            held.listen()
            with pytest.raises(errors.BrokerUnavailable, match=r"does not answer within 0\.2 s"):
                self.figures(settings, 0.2)

    def test_a_stopped_broker(self, settings: Settings, run_bin: RunBin) -> None:
        run_bin("zmqbus", "broker")
        pid = broker_pid(settings)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(errors.BrokerUnavailable, match="does not answer"):
                self.figures(settings, 0.2)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def test_damaged_keys(self, settings: Settings) -> None:
        (Path(settings.paths.keys) / "client.key_secret").write_text("rubbish")
        with pytest.raises(errors.ZmqbusError, match="holds no public key"):
            self.figures(settings, 0.2)
