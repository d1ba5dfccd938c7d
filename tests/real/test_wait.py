"""States of agents between real processes: hooks' reports, `list`, `status NAME`, `wait`, and the system topics."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.real.conftest import DEADLINE_S, Bus, ListenerProcess, wait_until
from zmqbus.process import process_of
from zmqbus.session.agent_state import report
from zmqbus.session.owner_files import files_of

pytestmark = pytest.mark.slow


def say(bus: Bus, listener: ListenerProcess, state: str, detail: str = "") -> None:
    """Reports as a hook of this session does."""
    files = files_of(str(bus.data_dir), process_of(listener.owner.pid))
    assert report(files, state, detail), "the listener holds no FIFO"


def agent_of(bus: Bus, name: str) -> tuple[str, str]:
    (row,) = [row for row in bus.list("--all") if row["name"] == name]
    return row["agent"], row["agent_detail"]


class TestShown:
    def test_list_and_status_show_what_an_agent_waits_for(self, bus: Bus) -> None:
        auth = bus.listener("auth")
        assert agent_of(bus, "auth") == ("unknown", "")
        say(bus, auth, "blocked", "permission: Bash")
        wait_until(lambda: agent_of(bus, "auth") == ("blocked", "permission: Bash"), "the state")
        row = bus.run("list.py").stdout.splitlines()[1]
        assert re.search(r"  live +blocked( \d+s)?: permission: Bash  ", row)
        status = bus.zmqbus("status", "auth").stdout
        assert re.search(r"^agent=blocked( \d+s)?: permission: Bash$", status, re.MULTILINE)
        assert json.loads(bus.zmqbus("status", "auth", "--json").stdout)["agent"] == "blocked"

    def test_status_of_nobody(self, bus: Bus) -> None:
        done = bus.zmqbus("status", "nobody")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: unknown_peer: no session answers to 'nobody'")

    def test_a_new_broker_knows_it_too(self, bus: Bus) -> None:
        auth = bus.listener("auth")
        say(bus, auth, "working")
        wait_until(lambda: agent_of(bus, "auth")[0] == "working", "the state")
        bus.signal_broker(signal.SIGKILL)
        wait_until(lambda: agent_of(bus, "auth")[0] == "working", "the state")

    def test_topic(self, bus: Bus) -> None:
        auth, watcher = bus.listener("auth"), bus.listener("watcher", topics=["sys.state", "sys.sessions"])
        say(bus, auth, "blocked", "permission: Bash")
        watcher.wait_for(re.escape("[inter-session] sys.state: auth blocked (permission: Bash)"))
        assert auth.stop() == 0
        watcher.wait_for(re.escape("[inter-session] sys.sessions: auth went"))


class TestWait:
    def test_ends_when_it_is_so(self, bus: Bus) -> None:
        auth = bus.listener("auth")
        waiting = bus.popen("zmqbus", "wait", "auth", "--until", "idle")
        say(bus, auth, "working")
        wait_until(lambda: agent_of(bus, "auth")[0] == "working", "the state")
        assert waiting.poll() is None
        bus.signal_broker(signal.SIGKILL)  # the next one is asked again
        wait_until(lambda: agent_of(bus, "auth")[0] == "working", "the state")
        say(bus, auth, "idle")
        out, _ = waiting.communicate(timeout=DEADLINE_S)
        assert (waiting.returncode, out) == (0, b"auth is idle\n")

    def test_owner_is_killed(self, bus: Bus) -> None:
        auth = bus.listener("auth")
        say(bus, auth, "working")
        waiting = bus.popen("zmqbus", "wait", "auth", "--until", "gone", "--json")
        auth.owner.kill()
        out, _ = waiting.communicate(timeout=DEADLINE_S)
        assert (waiting.returncode, json.loads(out)) == (0, {"session": "auth", "state": "gone"})

    def test_in_vain(self, bus: Bus) -> None:
        bus.listener("auth")
        done = bus.zmqbus("wait", "auth", "--until", "idle", "--timeout", "0.2")
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr == "error: timeout: 'auth' is not idle after 0.2 s\n"

    def test_answered(self, bus: Bus) -> None:
        auth, pay = bus.listener("auth"), bus.listener("pay")
        msg_id = bus.deliver("auth", "question: ready?", owner=pay)
        early = bus.zmqbus("wait", "auth", "--until", "answered", "--timeout", "0", owner=pay)
        assert early.returncode == 4
        waiting = bus.popen("zmqbus", "wait", "auth", "--until", "answered", owner=pay.owner)
        bus.deliver("pay", "answer: yes", "--reply-to", msg_id, owner=auth)
        out, _ = waiting.communicate(timeout=DEADLINE_S)
        later = bus.zmqbus("wait", "auth", "--until", "answered", "--msg", msg_id, owner=pay)
        assert waiting.returncode == 0
        assert out in (b"answer: yes\n", later.stdout.encode())
        assert later.returncode == 0 and later.stdout.startswith(f"answered msg={msg_id} by=")

    @pytest.mark.parametrize(
        ("args", "error"),
        [
            (["auth"], "--until"),
            (["auth", "--until", "asleep"], "--until"),
            (["auth", "--until", "idle", "--timeout", "soon"], "--timeout"),
            (["auth", "--until", "idle", "--msg", "abc"], "--msg is for --until answered"),
        ],
    )
    def test_usage(self, bus: Bus, args: list[str], error: str) -> None:
        done = bus.zmqbus("wait", *args)
        assert done.returncode == 2 and error in done.stderr and done.stdout == ""

    @pytest.mark.parametrize("until", ["idle", "answered"])
    def test_nobody(self, bus: Bus, until: str) -> None:
        pay = bus.listener("pay")
        done = bus.zmqbus("wait", "nobody", "--until", until, owner=pay)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: unknown_peer: ")


def test_files_go_with_the_listener(bus: Bus) -> None:
    auth = bus.listener("auth")
    files = files_of(str(bus.data_dir), process_of(auth.owner.pid))
    assert Path(files.path(".fifo")).is_fifo()
    assert auth.stop() == 0
    assert not Path(files.path(".fifo")).exists()


def test_status_waits_for_a_monitor_that_is_just_starting(bus: Bus) -> None:
    owner = bus.owner()
    waiting = bus.popen("zmqbus", "status", "--wait", "60", owner=owner)
    bus.listener("auth", owner=owner)
    out, _ = waiting.communicate(timeout=DEADLINE_S)
    assert waiting.returncode == 0 and out.startswith(b"name=auth\n")
    done = bus.zmqbus("status", "--wait", "0.1")
    assert (done.returncode, done.stdout) == (0, "not connected\n")
