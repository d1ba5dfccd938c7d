"""Mail follows the name: agents that end without leaving, run after run, as real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real.conftest import Bus, ListenerProcess, Owner, wait_until

pytestmark = pytest.mark.slow

Night = Callable[[Bus, Owner], None]


def by_signal(signum: signal.Signals) -> Night:
    """A run whose listener ends by this signal, and its agent with it."""

    def night(bus: Bus, owner: Owner) -> None:
        bus.listener("nightly", owner=owner).stop(signum)
        owner.kill()

    return night


def without_listener(bus: Bus, owner: Owner) -> None:
    """A run that only a hook has joined for."""
    done = bus.run("client.py", "--away", "--name", "nightly", owner=owner)
    assert "joined as 'nightly'" in done.stdout
    owner.kill()


def agent_first(bus: Bus, owner: Owner) -> None:
    """A run whose listener outlives its agent, notices, and ends."""
    listener = bus.listener("nightly", owner=owner, env={"INTER_SESSION_OWNER_CHECK_INTERVAL_S": "0.1"})
    owner.kill()
    assert listener.wait_exit() == 0


TERMINATED, KILLED = by_signal(signal.SIGTERM), by_signal(signal.SIGKILL)
NIGHTS = {
    "terminated": [TERMINATED] * 3,
    "killed": [KILLED] * 2,
    "joined by a hook": [without_listener] * 3,
    "agent ends first": [agent_first] * 3,
    "each in another way": [TERMINATED, agent_first, without_listener, KILLED],
}


def away(bus: Bus) -> list[str]:
    return [row["name"] for row in bus.list("--all") if row["state"] == "away"]


@pytest.mark.parametrize(
    ("nights", "restart"), [(nights, name.startswith("each")) for name, nights in NIGHTS.items()], ids=NIGHTS
)
def test_several_nights_are_one_session_with_all_the_mail_once(bus: Bus, nights: list[Night], restart: bool) -> None:
    """`restart`: the broker is killed after each night as well."""
    web = bus.listener("web")
    for night in nights:
        night(bus, bus.owner())
        wait_until(lambda: "nightly" in away(bus), "it is away")
        if restart:
            bus.signal_broker(signal.SIGKILL)
    wait_until(lambda: away(bus) == ["nightly"], "there is one of them")
    sent = bus.send("--all", "--text", "to all", owner=web)
    assert sent.stdout.split()[-1] == "queued=1", sent
    bus.deliver("nightly", "to nightly", owner=web)
    assert away(bus) == ["nightly"]
    nightly = bus.listener("nightly", owner=(owner := bus.owner()))
    nightly.wait_message("to nightly")
    shown = [line.rpartition("] ")[2] for line in nightly.lines]
    assert shown == ["to all", "to nightly"]
    wait_until(lambda: not [row for row in bus.list() if row["waiting"]], "all is acknowledged")
    nightly.stop()
    owner.kill()
    last = bus.listener("nightly")
    bus.deliver("nightly", "the last one", owner=web)
    last.wait_message("the last one")
    assert len(last.lines) == 1


def test_runs_with_hooks_only_take_over_waiting_mail(bus: Bus) -> None:
    web = bus.listener("web")
    for number in range(3):
        without_listener(bus, bus.owner())
        bus.deliver("nightly", f"in night {number}", owner=web)
    owner = bus.owner()
    bus.run("client.py", "--away", "--name", "nightly", owner=owner)
    shown = bus.zmqbus("inbox", "--json", owner=owner).stdout.splitlines()
    assert [json.loads(line)["text"] for line in shown] == [f"in night {number}" for number in range(3)]
    assert bus.zmqbus("inbox", owner=owner).stdout == "no unread messages\n"


def test_sessions_named_after_their_directory_follow_each_other(bus: Bus) -> None:
    web = bus.listener("web")
    name = bus.cwd.name
    for _ in range(2):
        owner = bus.owner()
        bus.listener(owner=owner).stop(signal.SIGKILL)
        owner.kill()
        wait_until(lambda: bus.states().get(name) == "away", "it is seen to be away")
    bus.deliver(name, "hello", owner=web)
    assert away(bus) == [name]
    assert bus.listener().wait_message("hello")


PROGRAM = """
import sys, zmqbus
with zmqbus.connect("x") as bus:
    for message in bus.messages(timeout=0.5):
        print(message.text, flush=True)
"""


def test_programs_follow_each_other_in_one_directory(bus: Bus, tmp_path: Path) -> None:
    def run(where: Path) -> str:
        where.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=where, env=bus.env(), capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    web = bus.listener("web")
    here, there = tmp_path / "here", tmp_path / "there"
    run(here)
    run(here)
    bus.deliver("x", "one", owner=web)
    bus.send("--all", "--text", "two", owner=web)
    assert run(there) == "", "of another project"
    assert run(here) == "one\ntwo\n"
    assert run(here) == ""


def test_mail_of_a_dead_session_goes_to_the_connected_successor(bus: Bus) -> None:
    web, owner = bus.listener("web"), bus.owner()
    bus.listener("nightly", owner=owner).stop()
    bus.deliver("nightly", "for the older one", owner=web)
    younger = bus.listener("nightly")
    bus.deliver("nightly", "for the younger one", owner=web)
    younger.wait_message("for the younger one")
    assert len(younger.lines) == 1, "the older one may come back"
    owner.kill()
    assert younger.wait_message("for the older one")["queued"] is not None
    assert away(bus) == []


# --- leaving


def test_session_without_a_listener_can_be_disconnected(bus: Bus) -> None:
    owner = bus.owner()
    bus.run("client.py", "--away", "--name", "x", owner=owner)
    assert away(bus) == ["x"]
    assert bus.zmqbus("disconnect", owner=owner).stdout == "disconnected\n"
    assert away(bus) == []
    assert bus.zmqbus("disconnect", owner=owner).stdout == "not connected\n"
    bus.run("client.py", "--away", "--name", "x", owner=owner)
    assert away(bus) == ["x"]


def test_session_that_lost_its_listener_can_be_disconnected(bus: Bus) -> None:
    auth: ListenerProcess = bus.listener("auth")
    auth.stop(signal.SIGKILL)
    wait_until(lambda: away(bus) == ["auth"], "it is seen to be away")
    assert bus.zmqbus("disconnect", owner=auth).stdout == "disconnected\n"
    assert away(bus) == []


def test_forget(bus: Bus) -> None:
    nightly, auth = bus.listener("nightly"), bus.listener("auth")
    connected = bus.zmqbus("forget", "auth", "--yes")
    assert connected.returncode == 1 and connected.stderr.startswith("error: unauthorized: 'auth' is connected")
    nightly.stop(signal.SIGKILL)
    wait_until(lambda: bus.states().get("nightly") == "away", "it is away")
    bus.deliver("nightly", "one", owner=auth)
    unasked = bus.zmqbus("forget", "nightly")
    assert (unasked.returncode, unasked.stdout) == (1, "")
    assert "1 unread message would be removed with it" in unasked.stderr and "--yes" in unasked.stderr
    assert bus.states().get("nightly") == "away"
    done = bus.zmqbus("forget", "nightly", "--yes")
    assert (done.returncode, done.stdout, done.stderr) == (0, "forgot 'nightly' and 1 unread message\n", "")
    assert [one["name"] for one in bus.list("--all")] == ["auth"]
    again = bus.zmqbus("forget", "nightly", "--yes")
    assert again.returncode == 1 and again.stderr.startswith("error: unknown_peer: ")
