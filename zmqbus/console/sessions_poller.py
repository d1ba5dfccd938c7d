"""Who is on the bus, asked of the broker about once a second as long as a page is open.

The console looks as an observer, which is no session and keeps no broker alive. Other links start a broker where they
find none; a person who looks must not, or the state that they look for would never be seen. So before each question the
broker's lock is looked at (`launch.broker_pid`), and the link is one that starts none, should it end at that moment.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from zmqbus.client import launch
from zmqbus.client.oneshot import CommandBus, observer
from zmqbus.console.views import of_session
from zmqbus.errors import ZmqbusError
from zmqbus.session.state import SessionState, states
from zmqbus.settings import Settings

#: Between two questions. For 200 sessions one takes the broker a millisecond.
ASK_S = 1.0
#: Sessions that the page is given: as many as a broker serves.
MAX_SESSIONS = 1_000

BrokerState: TypeAlias = Literal["unknown", "up", "gone", "silent"]


@dataclass(frozen=True, slots=True)
class View:
    """What is known of the bus."""

    broker: BrokerState = "unknown"
    pid: int | None = None
    text: str = ""  # what is wrong, and what to do
    sessions: tuple[dict[str, Any], ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """As the page gets it."""
        return {
            "broker": self.broker,
            "pid": self.pid,
            "text": self.text,
            "sessions": list(self.sessions),
            "now": time.time(),
        }


class Listeners:
    """The sessions of this data directory's listeners: those whose state files this user can read."""

    def __init__(self, data_dir: str) -> None:
        self._data_dir = data_dir
        self._directory = os.path.join(data_dir, "clients")
        self._changed_ns = -1
        self._ids: frozenset[str] = frozenset()

    def ids(self) -> frozenset[str]:
        """Their session ids. State files are replaced, so the directory shows whether one is new."""
        try:
            changed_ns = os.stat(self._directory).st_mtime_ns
        except OSError:
            return frozenset()
        if changed_ns != self._changed_ns:
            self._ids = frozenset(state.session_id for state in states(self._data_dir))
            self._changed_ns = changed_ns
        return self._ids

    def find(self, session_id: str) -> SessionState | None:
        """The state of a session; None where it has no file here, which is so for programs."""
        return next((state for state in states(self._data_dir) if state.session_id == session_id), None)


class Roster:
    """Asks, in a thread of its own, and publishes what has changed."""

    def __init__(self, settings: Settings, publish: Callable[[str, Any], None]) -> None:
        self._settings = settings
        self._publish = publish
        self._bus: CommandBus | None = None
        self._bus_pid: int | None = None  # of the broker that it is connected to
        self.listeners = Listeners(settings.data_dir)
        self._changed = threading.Condition()
        # These belong to the condition's lock.
        self._pages = 0
        self._asked = False  # somebody wants to know at once
        self._ended = False
        self._view = View()
        self._thread = threading.Thread(target=self._run, name="console roster")

    @property
    def view(self) -> View:
        """What was known at the last look."""
        with self._changed:
            return self._view

    def start(self) -> None:
        """Begins; nothing is asked before a page is open."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, and the connection. Idempotent."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def watched_by(self, pages: int) -> None:
        """So many pages are open; with none, nothing is asked."""
        with self._changed:
            self._asked = self._asked or pages > self._pages
            self._pages = pages
            self._changed.notify_all()

    def ask_now(self) -> None:
        """Something was done that changes the answer, or a page is about to want one."""
        with self._changed:
            self._asked = True
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._ended or self._pages > 0 or self._asked)
                    if self._ended:
                        return
                    self._asked = False
                view = self._look()
                with self._changed:
                    changed, self._view = view != self._view, view
                if changed:
                    self._publish("roster", view.as_json())
                else:
                    self._publish("beat", {"broker": view.broker})
                with self._changed:
                    self._changed.wait_for(lambda: self._ended or self._asked, ASK_S)
                    if not self._pages and not self._ended:
                        self._hang_up()  # nobody looks: no connection either
        finally:
            self._hang_up()

    def _look(self) -> View:
        pid = launch.broker_pid(self._settings)
        if pid is None or pid != self._bus_pid:
            self._hang_up()
        if pid is None:
            return View("gone", None, f"No broker runs on port {self._settings.port}.")
        try:
            if self._bus is None:
                bus = observer(self._settings, starts=False)
                self._bus = bus.__enter__()
                self._bus_pid = pid
            rows = self._bus.sessions(everyone=True)[:MAX_SESSIONS]
        except ZmqbusError as error:
            self._hang_up()
            if launch.broker_pid(self._settings) is None:  # it has ended while it was asked
                return View("gone", None, f"No broker runs on port {self._settings.port}.")
            return View("silent", pid, str(error), self.view.sessions)
        listeners = self.listeners.ids()
        rows.sort(key=lambda row: (row.project, row.name, row.session_id))
        return View("up", pid, "", tuple(of_session(row, listeners) for row in rows))

    def _hang_up(self) -> None:
        bus, self._bus, self._bus_pid = self._bus, None, None
        if bus is not None:
            try:
                bus.__exit__(None, None, None)
            except ZmqbusError:
                pass  # it has gone; so are we
