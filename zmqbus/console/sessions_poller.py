"""Asks the broker for its sessions about once a second while a page is open.

The console asks as an observer, which is not a session and keeps no broker alive. Other transports start a broker when
there is none; the console must not, or nobody could see that no broker runs. So the broker's lock is checked before
each request (`locate.broker_pid`), and the observer's transport does not start a broker that ends in between either.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from zmqbus.agents.claude_sessions import fill
from zmqbus.client import locate
from zmqbus.client.oneshot import OneShotClient, observer
from zmqbus.console.background import BackgroundTask
from zmqbus.console.views import of_session
from zmqbus.errors import ZmqbusError
from zmqbus.session.state import SessionState, states
from zmqbus.settings import Settings
from zmqbus.wire.verbs import Session

#: Between two requests. For 200 sessions one takes the broker a millisecond.
POLL_S = 1.0
#: Two ages of one state, each in whole seconds, disagree by less about when it began.
SAME_S = 2.0
#: Sessions sent to a page: as many as a broker serves.
MAX_SESSIONS = 1_000

BrokerState: TypeAlias = Literal["unknown", "up", "gone", "silent"]


@dataclass(frozen=True, slots=True)
class BusView:
    """The broker and its sessions, as of the last poll."""

    broker: BrokerState = "unknown"
    pid: int | None = None
    text: str = ""  # what is wrong, then what to do
    sessions: tuple[dict[str, Any], ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Returns the view as the page gets it, with the console's clock (`now`, Unix time in s)."""
        return {
            "broker": self.broker,
            "pid": self.pid,
            "text": self.text,
            "sessions": list(self.sessions),
            "now": time.time(),
        }


class Listeners:
    """Sessions that have a listener on this data directory: those whose state files this user can read."""

    def __init__(self, data_dir: str) -> None:
        self._data_dir = data_dir
        self._directory = os.path.join(data_dir, "clients")
        self._changed_ns = -1
        self._ids: frozenset[str] = frozenset()

    def ids(self) -> frozenset[str]:
        """Returns their session ids; reads the state files only when their directory has changed."""
        try:
            changed_ns = os.stat(self._directory).st_mtime_ns
        except OSError:
            return frozenset()
        if changed_ns != self._changed_ns:
            self._ids = frozenset(state.session_id for state in states(self._data_dir))
            self._changed_ns = changed_ns
        return self._ids

    def find(self, session_id: str) -> SessionState | None:
        """Returns the state of a session; None when it has no state file here, as programs have none."""
        return next((state for state in states(self._data_dir) if state.session_id == session_id), None)


class SessionsPoller(BackgroundTask):
    """Polls the broker in a thread of its own and publishes each change."""

    def __init__(self, settings: Settings, publish: Callable[[str, Any], None]) -> None:
        """`publish(event, data)` sends an event to all pages."""
        super().__init__("console sessions poller")
        self._settings = settings
        self._publish = publish
        self._bus: OneShotClient | None = None
        self._bus_pid: int | None = None  # of the broker that `_bus` is connected to
        self._agents: dict[str, tuple[str, str, float]] = {}  # by session id: state, detail, since (Unix time in s)
        self.listeners = Listeners(settings.data_dir)
        # Guarded by the condition's lock.
        self._poll_requested = False
        self._view = BusView()

    @property
    def view(self) -> BusView:
        """The broker and its sessions, as of the last poll."""
        with self._changed:
            return self._view

    @property
    def is_connected(self) -> bool:
        """Whether a connection to the broker is open."""
        return self._bus is not None

    def set_pages(self, count: int) -> None:
        """Sets how many pages are open; a new page causes a poll at once."""
        with self._changed:
            self._poll_requested = self._poll_requested or count > self._pages
            super().set_pages(count)

    def poll_now(self) -> None:
        """Polls at once: an action has changed the sessions, or a page is about to load."""
        with self._changed:
            self._poll_requested = True
            self._changed.notify_all()

    def _has_work(self) -> bool:
        return self._pages > 0 or self._poll_requested

    def _must_hurry(self) -> bool:
        return self._poll_requested

    def _work(self) -> float:
        with self._changed:
            self._poll_requested = False
        view = self._poll()
        with self._changed:
            changed, self._view = view != self._view, view
        if changed:
            self._publish("sessions", view.as_json())
        else:
            self._publish("heartbeat", {"broker": view.broker})
        return POLL_S

    def _poll(self) -> BusView:
        pid = locate.broker_pid(self._settings)
        if pid is None or pid != self._bus_pid:
            self._release()
        if pid is None:
            return self._no_broker()
        try:
            if self._bus is None:
                self._bus = observer(self._settings, starts=False).__enter__()
                self._bus_pid = pid
            told = self._bus.sessions(everyone=True)[:MAX_SESSIONS]
        except ZmqbusError as error:
            self._release()
            if locate.broker_pid(self._settings) is None:  # it has ended during the request
                return self._no_broker()
            return BusView("silent", pid, str(error), self.view.sessions)
        rows = fill(told, self._settings.data_dir)
        listed = {row.session_id for row, before in zip(rows, told, strict=True) if row.agent != before.agent}
        listeners = self.listeners.ids()
        rows.sort(key=lambda row: (row.project, row.name, row.session_id))
        since = self.agents_since(rows, listed)
        return BusView("up", pid, "", tuple(of_session(row, listeners, since.get(row.session_id)) for row in rows))

    def agents_since(self, rows: list[Session], listed: Collection[str] = ()) -> dict[str, float]:
        """Returns since when the agents do what they do, by session id, in Unix time (s). `listed`: sessions whose
        agent does not tell since when; it is since when it was seen.

        The time stays the same while the state does: a new one each second would be a change to publish.
        """
        now_ts = time.time()
        agents = {}
        for row in rows:
            if row.agent == "unknown":
                continue
            since_ts = now_ts - row.agent_s
            before = self._agents.get(row.session_id)
            is_same = before is not None and before[:2] == (row.agent, row.agent_detail)
            if before is not None and is_same and (row.session_id in listed or abs(before[2] - since_ts) < SAME_S):
                since_ts = before[2]
            agents[row.session_id] = row.agent, row.agent_detail, since_ts
        self._agents = agents
        return {session_id: since_ts for session_id, (_, _, since_ts) in agents.items()}

    def _no_broker(self) -> BusView:
        return BusView("gone", None, f"No broker runs on port {self._settings.port}.")

    def _release(self) -> None:
        bus, self._bus, self._bus_pid = self._bus, None, None
        if bus is not None:
            with suppress(ZmqbusError):  # the broker has ended
                bus.__exit__(None, None, None)
