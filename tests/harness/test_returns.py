"""Sessions in which something ends: the monitor, the conversation, the connection, the client, the broker."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.harness.conftest import Claude, Connect, Fields, Script, StartClaude
from tests.real.conftest import HEADER, wait_until
from zmqbus.process import is_alive, process_of

pytestmark = pytest.mark.slow


def test_monitor_that_expires_while_messages_come(start_claude: StartClaude, script: Script) -> None:
    """The agent restarts it each time: no message is missing or repeated, and all are in order."""
    claude = start_claude()
    monitor, first = expiring(claude, "exec client.py --name auth")
    state = first
    texts = [f"number {number};" for number in range(80)]
    sender = threading.Thread(target=script, args=("auth", texts, 0.1))
    sender.start()
    try:
        for _ in range(3):
            assert claude.wait_ended(monitor)["why"] == "deadline"
            monitor, state = expiring(claude, "exec client.py", after=state)
            assert (state["session_id"], state["name"]) == (first["session_id"], "auth")
    finally:
        sender.join()
    claude.wait_ended(monitor)
    claude.monitor("exec client.py")
    claude.wait_connected(after=state)
    start_claude().send("auth", "the end", "--as", "script")
    wait_until(lambda: claude.lines()[-1].endswith(("the end", "zmqbus inbox")), "all is shown or counted")
    check_shown_once(claude, claude.unread(), [*texts, "the end"])


def expiring(claude: Claude, command: str, after: Fields | None = None) -> tuple[str, Fields]:
    """Starts a monitor that will expire after its listener has connected, with more time on a busy machine; returns it
    and the state of its listener."""
    timeout_ms = 2000
    while True:
        monitor = claude.monitor(command, timeout_ms=timeout_ms)
        wait_until(lambda: claude.connected(after) or claude.ended(monitor), "it connects or expires")  # noqa: B023
        if state := claude.connected(after):
            return monitor, state
        timeout_ms *= 2


def check_shown_once(claude: Claude, rest: list[str], texts: list[str]) -> None:
    """Checks that all were shown or in the inbox, in order; one shown again has to be marked `queued=`."""
    shown: dict[str, str] = {}
    for line in claude.lines():
        if match := HEADER.match(line):
            assert match["id"] not in shown or match["queued"], f"twice: {line!r}"
            shown.setdefault(match["id"], match["text"])
    assert list(shown.values()) + rest == texts


def test_child_of_a_killed_shell_gives_way(start_claude: StartClaude) -> None:
    """The monitor's shell is killed and its listener is left: the next listener gets the session at once."""
    claude = start_claude()
    first = claude.monitor("client.py --name auth; exit", timeout_ms=2000)
    before = claude.wait_connected()
    orphan = process_of(before["listener_pid"])
    assert claude.wait_ended(first)["pid"] != orphan.pid
    second = claude.monitor("exec client.py")
    after = claude.wait_connected(after=before)
    assert (after["session_id"], after["name"]) == (before["session_id"], "auth")
    assert claude.lines(second) == [] and not is_alive(orphan)
    start_claude().send("auth", "hello", "--as", "script")
    claude.wait_message("hello")


def test_clear_in_the_middle_of_a_session(connect: Connect) -> None:
    """Another conversation of the same session: its monitor runs on, and the agent's shells act as before."""
    auth, pay = connect("auth"), connect("pay")
    before = auth.state
    cleared = auth.clear()
    assert cleared["session_id"] != auth.started["session_id"]
    auth.send("pay", "hello from the next conversation")
    assert pay.wait_message("hello from the next")["name"] == "auth"
    pay.send("auth", "hello to you")
    auth.wait_message("hello to you")
    second = auth.monitor("exec client.py")
    assert auth.wait_ended(second)["status"] == 0 and "already running" in auth.lines(second)[0]
    assert auth.state == before


def test_rename_from_a_shell(connect: Connect) -> None:
    auth, pay = connect("auth"), connect("pay")
    done = auth.bash("zmqbus rename billing")
    assert (done.status, done.stderr) == (0, ""), done
    assert pay.states() == {"billing": "live", "pay": "live"}
    pay.send("billing", "hello")
    auth.wait_message("hello")
    auth.send("pay", "hello to you")
    assert pay.wait_message("hello to you")["name"] == "billing"


def test_disconnect_from_a_shell(start_claude: StartClaude, connect: Connect) -> None:
    auth = start_claude()
    monitor = auth.monitor("exec client.py --name auth")
    auth.wait_connected()
    assert auth.bash("zmqbus disconnect") == (0, "disconnected\n", "")
    assert auth.wait_ended(monitor)["status"] == 0
    assert auth.lines() == ["[inter-session] disconnected; exiting"]
    assert auth.bash("zmqbus disconnect") == (0, "not connected\n", "")
    assert connect("auth").lines() == [], "the name is free at once"


def test_death_of_the_client_ends_the_session(start_claude: StartClaude, connect: Connect) -> None:
    pay = connect("pay")
    auth = start_claude(env={"INTER_SESSION_OWNER_CHECK_INTERVAL_S": "0.2"})
    auth.skill()
    listener = process_of(auth.wait_connected()["listener_pid"])
    auth.kill()
    wait_until(lambda: not is_alive(listener), "the listener ends")
    assert auth.state == {}
    assert pay.bash("list.py --json").stdout.count('"name"') == 1
    again = start_claude()
    again.skill()
    assert again.wait_connected()["name"] == "app", "the name is free"


def test_death_of_the_client_is_noticed_without_a_pipe(start_claude: StartClaude, tmp_path: Path) -> None:
    """With redirected output no closed pipe shows the death: the listener has to check its owner."""
    auth = start_claude(env={"INTER_SESSION_OWNER_CHECK_INTERVAL_S": "0.2"})
    auth.monitor(f"exec client.py --name auth > '{tmp_path}/lines'")
    listener = process_of(auth.wait_connected()["listener_pid"])
    auth.kill()
    wait_until(lambda: not is_alive(listener), "the listener ends")
    lines = (tmp_path / "lines").read_text()
    assert lines == f"[inter-session] owning session (pid {auth.pid}) is gone; exiting\n"
    assert auth.state == {}


def test_death_of_the_broker(connect: Connect, free_port: int) -> None:
    auth, pay = connect("auth"), connect("pay")
    before = [claude.state["session_id"] for claude in (auth, pay)]
    os.kill(int((auth.data_dir / f"server.{free_port}.pid").read_text()), signal.SIGKILL)
    pay.send("auth", "after the crash")
    auth.wait_message("after the crash")
    auth.send("pay", "here too")
    pay.wait_message("here too")
    wait_until(lambda: auth.states() == {"auth": "live", "pay": "live"}, "both are back")
    assert [claude.state["session_id"] for claude in (auth, pay)] == before
    assert len(auth.lines()) == len(pay.lines()) == 1
