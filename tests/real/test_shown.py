"""Messages are shown once, although broker and listener are killed together."""

from __future__ import annotations

import signal

import pytest

from tests.real.conftest import Bus, ListenerProcess, wait_until
from zmqbus.client import core
from zmqbus.client.oneshot import OneShotClient
from zmqbus.client.receipts import Receipt
from zmqbus.process import is_alive, process_of
from zmqbus.session.owner_files import files_of
from zmqbus.session.shown_log import Shown
from zmqbus.settings import load
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role

pytestmark = pytest.mark.slow


def repeat(bus: Bus, to: str, text: str, msg_id: str) -> Receipt:
    """Sends a message under this id, as a sender without a receipt does."""
    persona = core.Persona(role=Role.GUEST, name="script", token=verbs.new_token())
    with OneShotClient(load(environ=bus.env()), persona) as link:
        link._new_id = lambda: msg_id  # type: ignore[assignment]
        receipt = link.outcome(link.post(to, text.encode()))
    assert isinstance(receipt, Receipt) and receipt.msg_id == msg_id
    return receipt


def kill_both(bus: Bus, listener: ListenerProcess) -> None:
    pid = bus.broker_pid()
    assert pid is not None
    broker = process_of(pid)
    bus.signal_broker(signal.SIGKILL)
    assert listener.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not is_alive(broker), "the broker is gone")


def check_shows_only_the_end(bus: Bus, listener: ListenerProcess) -> None:
    bus.deliver("auth", "the end")
    listener.wait_for("the end")
    assert len(listener.lines) == 1, listener.lines


def test_listener_does_not_repeat_its_lines(bus: Bus) -> None:
    auth = bus.listener("auth")
    msg_id = bus.deliver("auth", "only once")
    auth.wait_for("only once")
    kill_both(bus, auth)
    again = bus.listener(owner=auth)
    receipt = repeat(bus, "auth", "only once", msg_id)
    assert receipt.state == "delivered", "it is acknowledged all the same"
    check_shows_only_the_end(bus, again)


def test_listener_does_not_repeat_unacknowledged_lines(bus: Bus) -> None:
    """The acknowledgement goes to a stopped broker, and is lost with it."""
    auth = bus.listener("auth")
    auth.send_signal(signal.SIGSTOP)
    with OneShotClient(
        load(environ=bus.env()), core.Persona(Role.GUEST, name="script", token=verbs.new_token())
    ) as link:
        receipt = link.outcome(link.post("auth", b"only once"))
    assert isinstance(receipt, Receipt) and receipt.busy, "it is on its way to the listener"
    bus.signal_broker(signal.SIGSTOP)
    auth.send_signal(signal.SIGCONT)
    auth.wait_for("only once")
    kill_both(bus, auth)
    check_shows_only_the_end(bus, bus.listener(owner=auth))


def test_inbox_does_not_repeat_its_lines(bus: Bus) -> None:
    auth = bus.listener("auth")
    assert auth.stop() == 0
    receipts = bus.burst("auth", [f"number {number};" for number in range(30)])
    again = bus.listener(owner=auth)
    again.wait_for("30 more messages waiting")
    assert bus.zmqbus("inbox", owner=again).stdout.count("number ") == 30
    kill_both(bus, again)
    last = bus.listener(owner=auth)
    for number in (0, 29):
        assert repeat(bus, "auth", f"number {number};", receipts[number].msg_id).state == "delivered"
    check_shows_only_the_end(bus, last)


def test_awaited_answer_is_not_repeated(bus: Bus) -> None:
    """The waiting command printed the answer; a listener does not show it."""
    auth, pay = bus.listener("auth"), bus.listener("pay")
    asking = bus.popen("send.py", "--to", "pay", "--text", "question: ready?", "--wait", "90", owner=auth)
    question = pay.wait_message("question: ready?")["id"]
    assert question is not None
    answer = bus.deliver("auth", "answer: yes", "--reply-to", question, owner=pay)
    assert asking.communicate(timeout=90)[0] == b"answer: yes\n"
    kill_both(bus, auth)
    again = bus.listener(owner=auth)
    assert repeat(bus, "auth", "answer: yes", answer).state == "delivered"
    check_shows_only_the_end(bus, again)


def test_inbox_does_not_repeat_lines_of_the_listener(bus: Bus) -> None:
    auth = bus.listener("auth")
    state = auth.state
    msg_id = bus.deliver("auth", "only once")
    auth.wait_for("only once")
    kill_both(bus, auth)
    assert bus.listener(owner=auth).stop() == 0  # the new broker knows the session as away
    assert repeat(bus, "auth", "only once", msg_id).state == "queued"
    other = bus.deliver("auth", "not shown yet")
    helper = core.Persona(Role.HELPER, state["session_id"], state["token"], "auth", cwd=state["cwd"])
    shown = Shown(files_of(str(bus.data_dir), process_of(auth.owner.pid)), state["session_id"])
    with OneShotClient(load(environ=bus.env()), helper, shown) as link:
        printed = []
        for item in link.unread(peek=False):
            if isinstance(item, core.Incoming):
                printed.append(item.msg_id)
                link.take(item)
    assert printed == [other]
    assert isinstance(item, verbs.Fetched) and item.left == 0
    bus.listener(owner=auth)
    (row,) = bus.list()
    assert row["waiting"] == 0, "both are acknowledged"


def test_shown_file_that_is_a_link_is_refused(bus: Bus) -> None:
    auth = bus.listener("auth")
    assert auth.stop() == 0
    path = bus.data_dir / "clients" / f"{auth.owner.pid}.shown"
    path.unlink()
    path.symlink_to(bus.data_dir / "messages.log")
    refused = bus.listener(owner=auth, connected=False)
    assert refused.wait_exit() == 1
    (line,) = refused.lines
    assert line.startswith(f"[inter-session] cannot connect: {path} is a symbolic link") and "remove it" in line
    path.unlink()
    bus.listener(owner=auth)
