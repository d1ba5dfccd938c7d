"""`zmqbus watch`: show sessions and messages in the terminal, as they come and go.

The messages are read from messages.log, which costs the broker nothing; once a second the broker is asked for the
sessions. None is started for that. At a terminal, and where `rich` is installed, this is a screen (`cli.tui`);
otherwise it prints a line for each event.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from zmqbus.agents.claude_sessions import fill
from zmqbus.cli import jsonform
from zmqbus.cli.format import line_of, pause, width_of_terminal
from zmqbus.cli.output import fail
from zmqbus.cli.parser import Parser
from zmqbus.client.locate import broker_pid
from zmqbus.client.oneshot import observer
from zmqbus.errors import BrokerError, ZmqbusError
from zmqbus.journal.filter import Entry
from zmqbus.journal.history import History
from zmqbus.journal.record import JournalError, iso_time
from zmqbus.journal.tail import Follower
from zmqbus.session.identity import identify
from zmqbus.settings import Settings
from zmqbus.text.display import sanitise
from zmqbus.wire.metrics_catalogue import rates
from zmqbus.wire.verbs import Session
from zmqbus.wire.wakeup import is_ignored

#: How often the broker is asked for the sessions.
LOOK_S = 1.0
#: How long its answer may take: a broker that hangs must not hold up messages for long.
PATIENCE_S = 0.5
#: Earlier messages shown at the beginning.
BEFORE = 20


class Look(NamedTuple):
    """The sessions and the broker, as last seen."""

    sessions: list[Session]
    figures: dict[str, Any]  # of the broker; {} where none answers
    rates: dict[str, float]
    fault: str | None  # why none answers


def main(argv: list[str]) -> int:
    """Shows what happens, until Ctrl-C."""
    parser = Parser("watch", "Show sessions and messages, as they come and go, until Ctrl-C.")
    parser.add_argument("--plain", action="store_true", help="print a line for each event, even at a terminal")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each event")
    parser.add_port()
    options = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if not is_ignored(number):
            signal.signal(number, _end)  # so that the terminal is restored
    try:
        settings = identify({"port": options.port}).settings
        watcher = Watcher(settings)
        if not options.plain and not options.json and sys.stdout.isatty():
            try:
                from zmqbus.cli.tui import show
            except ImportError as error:
                if (error.name or "").partition(".")[0] != "rich":
                    raise
                from zmqbus.doctor.installation import install_command

                print(f"(for a screen with the sessions on it: {install_command(settings, 'watch')})", file=sys.stderr)
            else:
                return show(watcher)
        return _lines(watcher, _ShowJson(watcher) if options.json else _Show(watcher))
    except ZmqbusError as error:
        return fail(error)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


class Watcher:
    """The messages and sessions to show. Not thread-safe."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock = clock
        self.history = History(settings.paths.log)
        start = self.history.end()
        #: Earlier messages, oldest first.
        self.before = self.history.page(start, limit=BEFORE).entries[::-1]
        self._follower = Follower(settings.paths.log, start)
        self._look_due_s = 0.0
        self._looked_s = 0.0
        self.look = Look([], {}, {}, None)

    def __repr__(self) -> str:
        return f"<Watcher of port {self.settings.port}: {len(self.look.sessions)} sessions>"

    def close(self) -> None:
        """Closes the log. Idempotent."""
        self._follower.close()

    def poll(self) -> list[Entry]:
        """The messages that have arrived since the last call."""
        return self._follower.poll()

    @property
    def damaged(self) -> int:
        """How many damaged lines of the log were ignored."""
        return self._follower.damaged

    @property
    def wait_s(self) -> float:
        """How long to wait before the next `poll`."""
        return self._follower.wait_s

    def refresh(self) -> bool:
        """Asks the broker if it is time to; returns whether it did."""
        now_s = self._clock()
        if now_s < self._look_due_s:
            return False
        before, self.look = self.look, self._ask()
        if before.figures and self.look.figures:
            self.look = self.look._replace(rates=rates(before.figures, self.look.figures, now_s - self._looked_s))
        self._looked_s = now_s
        self._look_due_s = self._clock() + LOOK_S
        return True

    def _ask(self) -> Look:
        port = self.settings.port
        if broker_pid(self.settings) is None:
            return Look([], {}, {}, f"no broker runs on port {port}; the next session starts one")
        try:
            with observer(self.settings, starts=False, patience_s=PATIENCE_S) as bus:
                sessions, figures = bus.sessions(everyone=True), bus.figures()
            return Look(fill(sessions, self.settings.data_dir), figures, {}, None)
        except BrokerError as error:
            return Look(self.look.sessions, {}, {}, str(error))


class Seen(NamedTuple):
    """What one look has found of a session."""

    name: str
    state: str  # "live", "busy", "away"
    agent: str = "unknown"  # what its agent does
    agent_detail: str = ""  # what a blocked agent waits for


class Change(NamedTuple):
    """A change of a session."""

    session_id: str
    name: str
    state: str  # now: "live", "busy", "away"; "renamed", "left"
    former_name: str | None = None  # where it was renamed


class AgentChange(NamedTuple):
    """A change of what a session's agent does."""

    session_id: str
    name: str
    agent: str  # now: a word of `AGENT_STATES`
    agent_detail: str  # what a blocked agent waits for


def states(sessions: Sequence[Session]) -> dict[str, Seen]:
    """What is shown of each session, by its id."""
    return {row.session_id: Seen(row.name, row.state, row.agent, row.agent_detail) for row in sessions}


def changes(before: dict[str, Seen], after: dict[str, Seen]) -> list[Change | AgentChange]:
    """The changes between two looks."""
    found: list[Change | AgentChange] = []
    for session_id, seen in after.items():
        old = before.get(session_id)
        if old is not None and old.name != seen.name:
            found.append(Change(session_id, seen.name, "renamed", old.name))
        elif old is None or old.state != seen.state:
            found.append(Change(session_id, seen.name, seen.state))
        if (seen.agent, seen.agent_detail) != ((old.agent, old.agent_detail) if old else ("unknown", "")):
            found.append(AgentChange(session_id, seen.name, seen.agent, seen.agent_detail))
    found += [Change(gone, before[gone].name, "left") for gone in before if gone not in after]
    return found


def in_words(change: Change | AgentChange) -> str:
    """A change as a line for people."""
    name = sanitise(change.name, 60)
    if isinstance(change, AgentChange):
        if change.agent == "unknown":
            return f"{name}'s agent no longer tells what it does"
        detail = f": {sanitise(change.agent_detail, 200)}" if change.agent_detail else ""
        return f"{name}'s agent is {change.agent}{detail}"
    if change.state == "renamed":
        return f"{sanitise(change.former_name or '', 60)} is now {name}"
    return f"{name} has left" if change.state == "left" else f"{name} is {change.state}"


def text_of(watcher: Watcher, entry: Entry) -> str:
    """The whole text of an entry, or its beginning where the rest is damaged."""
    try:
        return watcher.history.text(entry)
    except JournalError:
        return entry.head


def _lines(watcher: Watcher, show: _Show) -> int:
    """Prints a line for each message, and for each session that comes, goes or changes."""
    known: dict[str, Seen] = {}
    fault: str | None = None
    entries = watcher.before
    try:
        while True:
            for entry in entries:
                show.message(entry)
            if watcher.refresh():
                if watcher.look.fault != fault:
                    fault = watcher.look.fault
                    show.broker(fault)
                if watcher.look.fault is None:
                    after = states(watcher.look.sessions)
                    for change in changes(known, after):
                        show.change(change)
                    known = after
            sys.stdout.flush()
            entries = watcher.poll()
            if not entries and watcher.wait_s and pause(watcher.wait_s):
                return 0
    finally:
        watcher.close()


class _Show:
    """Prints events for people."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._width = width_of_terminal()

    def message(self, entry: Entry) -> None:
        print(line_of(entry, lambda entry: text_of(self._watcher, entry), self._width)[0])

    def broker(self, fault: str | None) -> None:
        print(f"{time.strftime('%H:%M:%S')} * {fault or 'a broker answers'}")

    def change(self, change: Change | AgentChange) -> None:
        print(f"{time.strftime('%H:%M:%S')} * {in_words(change)}")


class _ShowJson(_Show):
    """Prints events for programs: a JSON object a line."""

    def message(self, entry: Entry) -> None:
        try:
            self._print("message", jsonform.entry(entry, self._watcher.history.record))
        except JournalError:
            return  # damaged, or just deleted

    def broker(self, fault: str | None) -> None:
        self._print("broker", {"ts": iso_time(time.time()), "answers": fault is None, "fault": fault})

    def change(self, change: Change | AgentChange) -> None:
        event = "agent" if isinstance(change, AgentChange) else "session"
        self._print(event, {"ts": iso_time(time.time()), **change._asdict()})

    def _print(self, event: str, fields: dict[str, Any]) -> None:
        jsonform.print_json({"event": event, **fields})
