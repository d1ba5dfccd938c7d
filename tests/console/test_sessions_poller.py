"""Polling the broker's sessions: only while a page is open, without starting a broker."""

from __future__ import annotations

import json
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import PATIENCE_S
from tests.real.conftest import Bus, wait_until
from zmqbus.client import locate
from zmqbus.console.sessions_poller import POLL_S, BusView, Listeners, SessionsPoller
from zmqbus.process import process_of
from zmqbus.session.agent_state import report
from zmqbus.session.owner_files import files_of
from zmqbus.settings import Settings
from zmqbus.wire.verbs import Session


@pytest.fixture
def events() -> queue.Queue[tuple[str, Any]]:
    return queue.Queue()


@pytest.fixture
def poller(settings: Settings, events: queue.Queue[tuple[str, Any]]) -> Iterator[SessionsPoller]:
    poller = SessionsPoller(settings, lambda kind, data: events.put((kind, data)))
    poller.start()
    yield poller
    poller.close()
    assert not poller.is_running


def until(events: queue.Queue[tuple[str, Any]], fits: Callable[[Any], bool]) -> Any:
    while True:
        kind, data = events.get(timeout=PATIENCE_S)
        if kind == "sessions" and fits(data):
            return data


def state(session_id: str, owner_pid: int) -> str:
    fields = {
        "session_id": session_id, "name": "auth", "label": None, "listener_pid": os.getpid(), "listener_started": "1",
        "host": "127.0.0.1", "port": 9473, "created_at": "x", "token": "t", "owner_pid": owner_pid,
        "owner_started": "1", "project": "/", "cwd": "/",
    }  # fmt: skip
    return json.dumps(fields)


def test_reports_a_missing_broker_and_starts_none(
    poller: SessionsPoller, settings: Settings, events: queue.Queue[tuple[str, Any]]
) -> None:
    poller.set_pages(1)
    view = until(events, lambda data: data["broker"] == "gone")
    assert str(settings.port) in view["text"] and view["sessions"] == []
    assert events.get(timeout=PATIENCE_S)[0] == "heartbeat", "without a change, only a heartbeat"
    assert locate.broker_pid(settings) is None


def test_does_not_poll_without_a_page(poller: SessionsPoller, events: queue.Queue[tuple[str, Any]]) -> None:
    with pytest.raises(queue.Empty):
        events.get(timeout=0.2)
    assert poller.view == BusView()


def test_listeners_with_readable_state_files(data_dir: Path) -> None:
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
def test_follows_sessions_and_a_new_broker(
    bus: Bus, events: queue.Queue[tuple[str, Any]], poller: SessionsPoller
) -> None:
    # The poller's settings and the harness share directory and port.
    auth = bus.listener("auth", label="The label")
    poller.set_pages(1)
    view = until(events, lambda data: [one["name"] for one in data["sessions"]] == ["auth"])
    (row,) = view["sessions"]
    assert (view["broker"], row["state"], row["label"], row["listener"]) == ("up", "live", "The label", True)
    assert row["id"] == auth.session_id
    first = bus.signal_broker(signal.SIGKILL)
    view = until(events, lambda data: data["broker"] == "up" and data["pid"] != first and data["sessions"])
    assert view["sessions"][0]["id"] == auth.session_id
    auth.stop()
    # A poll may fall between the listener's goodbye to the broker and the removal of its state file.
    until(
        events,
        lambda data: (
            data["broker"] == "up"
            and [(one["state"], one["listener"]) for one in data["sessions"]] == [("away", False)]
        ),
    )


@pytest.mark.slow
def test_hanging_broker_is_silent(bus: Bus, events: queue.Queue[tuple[str, Any]], poller: SessionsPoller) -> None:
    bus.listener("auth")
    poller.set_pages(1)
    until(events, lambda data: data["broker"] == "up")
    bus.signal_broker(signal.SIGSTOP)
    view = until(events, lambda data: data["broker"] == "silent")
    assert [one["name"] for one in view["sessions"]] == ["auth"], "the last sessions stay"
    bus.signal_broker(signal.SIGCONT)
    until(events, lambda data: data["broker"] == "up")
    # The last page closes the connection.
    poller.set_pages(0)
    wait_until(lambda: not poller.is_connected, "the connection is closed", PATIENCE_S)


@pytest.mark.slow
def test_broker_that_ends_during_a_poll_is_not_restarted(
    bus: Bus, settings: Settings, events: queue.Queue[tuple[str, Any]], poller: SessionsPoller
) -> None:
    """Such a broker is reported as gone, not as silent."""
    assert bus.zmqbus("broker").returncode == 0
    poller.set_pages(1)
    until(events, lambda data: data["broker"] == "up")
    pid = bus.signal_broker(signal.SIGSTOP)
    with pytest.raises(queue.Empty):
        while True:
            events.get(timeout=2 * POLL_S)  # until a poll waits for the stopped broker
    bus.signal_broker(signal.SIGKILL)
    assert until(events, lambda data: (data["broker"], data["pid"]) != ("up", pid))["broker"] == "gone"
    events.get(timeout=PATIENCE_S)
    assert locate.broker_pid(settings) is None


@pytest.mark.slow
def test_agents_state_and_since_when(
    bus: Bus, events: queue.Queue[tuple[str, Any]], poller: SessionsPoller, data_dir: Path
) -> None:
    auth = bus.listener("auth")
    poller.set_pages(1)
    view = until(events, lambda data: data["sessions"])
    row = view["sessions"][0]
    assert (row["agent"], row["agentSince"], row["agentDetail"]) == ("unknown", None, "")
    assert report(files_of(str(data_dir), process_of(auth.owner.pid)), "blocked", "permission: Bash")
    view = until(events, lambda data: data["sessions"][0]["agent"] == "blocked")
    row = view["sessions"][0]
    assert row["agentDetail"] == "permission: Bash"
    assert abs(row["agentSince"] - time.time()) < PATIENCE_S


def test_age_of_an_agents_state_is_no_change(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ts = 1000.0
    monkeypatch.setattr(time, "time", lambda: now_ts)
    poller = SessionsPoller(settings, lambda kind, data: None)
    row = Session("auth", None, "", "", "live", 0.0, "one", 1, 0, 0, "working", 5, "")
    assert poller.agents_since([row, row._replace(session_id="two", agent="unknown")]) == {"one": 995.0}
    now_ts = 1001.9
    assert poller.agents_since([row._replace(agent_s=6)]) == {"one": 995.0}
    assert poller.agents_since([row._replace(agent="idle", agent_s=0)]) == {"one": 1001.9}
    assert poller.agents_since([]) == {}
    now_ts = 1100.0
    assert poller.agents_since([row._replace(agent="idle", agent_s=0)]) == {"one": 1100.0}
