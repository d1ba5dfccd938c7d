"""Who is on the bus, asked only while somebody looks, and never at the price of starting a broker."""

from __future__ import annotations

import json
import os
import queue
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import PATIENCE_S
from tests.real.conftest import Bus, wait_until
from zmqbus.client import launch
from zmqbus.console.sessions_poller import Listeners, Roster, View
from zmqbus.settings import Settings


@pytest.fixture
def told() -> queue.Queue[tuple[str, Any]]:
    return queue.Queue()


@pytest.fixture
def roster(settings: Settings, told: queue.Queue[tuple[str, Any]]) -> Iterator[Roster]:
    roster = Roster(settings, lambda kind, data: told.put((kind, data)))
    roster.start()
    yield roster
    roster.close()
    assert not roster._thread.is_alive()


def until(told: queue.Queue[tuple[str, Any]], fits: Callable[[Any], bool]) -> Any:
    while True:
        kind, data = told.get(timeout=PATIENCE_S)
        if kind == "roster" and fits(data):
            return data


def state(session_id: str, owner_pid: int) -> str:
    fields = {
        "session_id": session_id, "name": "auth", "label": None, "listener_pid": os.getpid(), "listener_started": "1",
        "host": "127.0.0.1", "port": 9473, "created_at": "x", "token": "t", "owner_pid": owner_pid,
        "owner_started": "1", "project": "/", "cwd": "/",
    }  # fmt: skip
    return json.dumps(fields)


def test_without_a_broker_it_says_so_and_starts_none(
    roster: Roster, settings: Settings, told: queue.Queue[tuple[str, Any]]
) -> None:
    roster.watched_by(1)
    view = until(told, lambda data: data["broker"] == "gone")
    assert str(settings.port) in view["text"] and view["sessions"] == []
    assert told.get(timeout=PATIENCE_S)[0] == "beat", "then it only says that it still looks"
    assert launch.broker_pid(settings) is None


def test_nobody_looks_nothing_is_asked(roster: Roster, told: queue.Queue[tuple[str, Any]]) -> None:
    with pytest.raises(queue.Empty):
        told.get(timeout=0.2)
    assert roster.view == View()


def test_the_listeners_whose_files_can_be_read(data_dir: Path) -> None:
    listeners = Listeners(str(data_dir))
    assert listeners.ids() == frozenset()
    clients = data_dir / "clients"
    clients.mkdir(0o700)
    for name, content, mode in (
        ("11.session", state("one", 11), 0o600),
        ("12.session", state("two", 12), 0o644),  # others can read it
        ("13.session", "{", 0o600),
        ("14.lock", state("four", 14), 0o600),
        ("x.session", state("five", 15), 0o600),
    ):
        (clients / name).write_text(content)
        (clients / name).chmod(mode)
    os.utime(clients, ns=(1, 1))
    assert listeners.ids() == {"one"}
    found = listeners.find("one")
    assert found is not None and found.owner_pid == 11
    assert listeners.find("two") is None and listeners.find("") is None
    (clients / "11.session").unlink()
    assert listeners.ids() == frozenset(), "the directory has changed"


@pytest.mark.slow
def test_sessions_come_and_go_and_a_broker_dies(bus: Bus, told: queue.Queue[tuple[str, Any]], roster: Roster) -> None:
    # `settings` of the roster and the harness share directory and port.
    auth = bus.listener("auth", label="The label")
    roster.watched_by(1)
    view = until(told, lambda data: [one["name"] for one in data["sessions"]] == ["auth"])
    (row,) = view["sessions"]
    assert (view["broker"], row["state"], row["label"], row["listener"]) == ("up", "live", "The label", True)
    assert row["id"] == auth.session_id
    first = bus.signal_broker(signal.SIGKILL)
    view = until(told, lambda data: data["broker"] == "up" and data["pid"] != first and data["sessions"])
    assert view["sessions"][0]["id"] == auth.session_id
    auth.stop()
    # One look may fall between its word to the broker and the end of its file.
    until(
        told,
        lambda data: (
            data["broker"] == "up"
            and [(one["state"], one["listener"]) for one in data["sessions"]] == [("away", False)]
        ),
    )


@pytest.mark.slow
def test_a_broker_that_hangs_is_told_as_silent(bus: Bus, told: queue.Queue[tuple[str, Any]], roster: Roster) -> None:
    bus.listener("auth")
    roster.watched_by(1)
    until(told, lambda data: data["broker"] == "up")
    bus.signal_broker(signal.SIGSTOP)
    view = until(told, lambda data: data["broker"] == "silent")
    assert [one["name"] for one in view["sessions"]] == ["auth"], "what was known stays"
    bus.signal_broker(signal.SIGCONT)
    until(told, lambda data: data["broker"] == "up")
    # With the last page, its connection goes, too.
    roster.watched_by(0)
    wait_until(lambda: roster._bus is None, "it hangs up", PATIENCE_S)


@pytest.mark.slow
def test_a_broker_that_ends_while_it_is_asked_is_not_brought_back(
    bus: Bus, told: queue.Queue[tuple[str, Any]], roster: Roster
) -> None:
    """Nor told as one that does not answer."""
    assert bus.zmqbus("broker").returncode == 0
    roster.watched_by(1)
    until(told, lambda data: data["broker"] == "up")
    pid = bus.signal_broker(signal.SIGSTOP)
    asking = roster._bus
    assert asking is not None
    before = asking._refs
    wait_until(lambda: asking._refs > before, "it asks one that cannot answer", PATIENCE_S)
    bus.signal_broker(signal.SIGKILL)
    assert until(told, lambda data: (data["broker"], data["pid"]) != ("up", pid))["broker"] == "gone"
    told.get(timeout=PATIENCE_S)
    assert launch.broker_pid(roster._settings) is None
