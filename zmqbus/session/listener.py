"""The listener: the long-lived process of a session, whose lines are the agent's notifications.

The loop has three sources: the transport (messages), the clock (pacing, checks of the owner) and the outside world
(signals, a reader that is gone). One rule orders them: a message is acknowledged after its line has been flushed, never
before; a message that could not be written is left for the next listener of this owner. Between flush and
acknowledgement its id goes on file, so that the next listener knows it if the acknowledgement is lost.

A harness ends monitors at any time, and may leave their children running. So the listener itself watches for three
ends: its owner dies, its standard output has lost its reader, the session is taken over or disconnected.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import closing

import zmqbus
from zmqbus import errors
from zmqbus.client import core
from zmqbus.client.transport import Transport
from zmqbus.journal.reader import Reader
from zmqbus.journal.record import iso_time
from zmqbus.process import Process, has_ended, process_of
from zmqbus.session import agent_state
from zmqbus.session.identity import persona_of
from zmqbus.session.leftovers import reap
from zmqbus.session.lock import ListenerLock
from zmqbus.session.notify import Pacer, bus_line, notice_text
from zmqbus.session.render import note_of
from zmqbus.session.shown_log import Shown
from zmqbus.session.state import Identity, SessionState
from zmqbus.session.wake import take_shown
from zmqbus.settings import Settings
from zmqbus.system import streams
from zmqbus.text import wording
from zmqbus.tuples import NamedTuple
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import Role
from zmqbus.wire.wakeup import Wakeup

#: How many other names are tried when the wanted one is taken.
NAME_RETRIES = 3
#: Pause between two checks of a reader that does not read: the transport's poller waits for input only.
STALLED_S = 0.2
#: Pause between two tries to write the state file to a full disk.
WRITE_AGAIN_S = 1.0
#: How long the last line may wait for a reader that does not read.
LAST_LINE_S = 1.0


class Plan(NamedTuple):
    """The session that a listener is to run, as the command determined it."""

    name: str
    name_given: bool  #: by the user: then only close variants of it are tried
    label: str | None
    topics: tuple[str, ...]
    groups: tuple[str, ...]
    cwd: str
    project: str
    owner: Process
    identity: Identity | None  #: of an earlier listener of this owner
    away: bool = False  #: join, and leave at once


class _Ended(Exception):
    """Ends the listener with this status, after a last line."""

    def __init__(self, status: int, line: str | None = None) -> None:
        super().__init__(line or "")
        self.status = status
        self.line = line


class Listener:
    """Runs one session until it ends."""

    def __init__(self, settings: Settings, lock: ListenerLock, plan: Plan, trace: Callable[[str], None]) -> None:
        self._settings = settings
        self._port = settings.port  # of the broker to which the session is connected
        self._lock = lock
        self._plan = plan
        self._trace = trace
        self._stdout = sys.stdout.fileno()
        self._pacer = Pacer(settings.paths.log)
        self._unwritten = b""  # rest of a flush that the reader has no room for
        self._unshown: tuple[core.Ticket, ...] = ()  # tickets of that flush
        self._stalled = False
        self._next_check_s = 0.0  # at the owner
        self._tries = 0  # of other names, since the session was last connected
        self._wanted = plan.name
        self._chosen = plan.name_given  # the user chose the name, so only close variants of it are tried
        self._is_stored = False  # the state file was written once
        self._is_behind = False  # it could not be updated since
        self._next_try_s = 0.0
        self._created_at = iso_time(time.time())
        identity = plan.identity or Identity(verbs.new_session_id(), verbs.new_token(), None, None)
        named = identity._replace(name=plan.name, label=plan.label)
        persona = persona_of(Role.LISTENER, named, plan.owner, plan.cwd, plan.project)
        self._persona = persona._replace(topics=plan.topics, groups=plan.groups)
        self._bell = agent_state.Bell(lock.files)
        self._agent: agent_state.AgentState | None = None  # what the broker was told last
        self._refs = 0
        self._shown = Shown(lock.files, identity.session_id, keeper=True, trace=self._trace)

    def __repr__(self) -> str:
        return f"<Listener {self._persona.name!r}: {self._pacer!r}>"

    def run(self) -> int:
        """Serves until the session ends; returns the exit status. Raises `OutputFailed` where output fails."""
        if not streams.is_open(self._stdout):
            raise streams.OutputFailed(OSError(errno.EBADF, "it is closed"))
        self._shown.open()
        take_shown(self._lock.files, self._shown)  # guards: waiter
        link = Transport(self._settings, self._client(), warn=lambda text: self._pacer.announce(bus_line(text)))
        with Wakeup() as wakeup, self._bell:
            try:
                link.open()
                link.watch(wakeup.fd)
                if self._bell.fd >= 0:
                    link.watch(self._bell.fd)
                link.watch(self._stdout, hang_up=True)
                while True:
                    self._turn(link, wakeup)
            except _Ended as end:
                status, line = end.status, end.line
            except streams.OutputFailed as failed:
                # A message that was written only in part stays unread too.
                failed.hint = "messages that could not be shown stay unread; check where the output is redirected to"
                raise
            except errors.PortHeld as error:
                status, line = 1, str(error)
            except errors.ZmqbusError as error:
                status, line = 1, f"cannot connect: {error}"
            finally:
                link.perform(link.core.bye())
                link.close()
                self._shown.close()
        if line is not None:
            self._say_last(bus_line(line))
        return status

    # --- the loop

    def _turn(self, link: Transport, wakeup: Wakeup) -> None:
        now_s = time.monotonic()
        if wakeup.caught is not None:
            self._trace(f"got {wakeup.caught.name}")
            raise _Ended(0)
        self._check_owner(now_s)
        if self._is_behind and now_s >= self._next_try_s:
            self._store(self._persona.name or "")
        for effect in link.pump(self._sleep_s(now_s)):
            self._handle(link, effect)
        if self._bell.answered():
            self._tell_state(link)
        self._check_reader()
        self._flush(link)

    def _sleep_s(self, now_s: float) -> float:
        until_owner_s = self._next_check_s - now_s
        if self._is_behind:
            until_owner_s = min(until_owner_s, self._next_try_s - now_s)
        if self._stalled:
            return max(0.0, min(until_owner_s, STALLED_S))
        due_s = self._pacer.next_deadline(now_s)
        return max(0.0, min(until_owner_s, due_s - now_s if due_s is not None else until_owner_s))

    def _check_owner(self, now_s: float) -> None:
        if now_s < self._next_check_s:
            return
        self._next_check_s = now_s + self._settings.owner_check_interval_s
        self._lock.touch()
        if has_ended(self._plan.owner):
            raise _Ended(0, f"owning session (pid {self._plan.owner.pid}) is gone; exiting")

    def _check_reader(self) -> None:
        """Ends the listener where its pipe has lost its reader: the monitor was ended, and this process was left over.

        Nobody would see its lines; if it exits now, the next monitor of this owner can start at once.
        """
        poller = select.poll()
        poller.register(self._stdout, 0)
        if any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poller.poll(0)):
            self._trace("standard output has no reader any more")
            raise _Ended(0)

    # --- effects of the client

    def _handle(self, link: Transport, effect: core.Effect) -> None:
        match effect:
            case core.Hand():
                # Closed at once: an open segment takes space on the disk after its deletion.
                with closing(Reader(self._settings.paths.log)) as log:
                    for message in effect.messages():
                        self._pacer.add(time.monotonic(), note_of(message, log))
            case core.TakeBack():
                self._pacer.forget()
            case core.Welcomed(welcome):
                self._welcomed(link, welcome)
            case core.Noticed(notice):
                self._pacer.announce(bus_line(notice_text(notice)))
            case core.Renamed(name):
                self._trace(f"renamed to {name}")
                self._wanted, self._chosen = name, True
                self._store(name)
            case core.Closed(reason):
                self._closed(link, reason)

    def _welcomed(self, link: Transport, welcome: verbs.Welcome) -> None:
        self._trace(f"connected as {welcome.name}, {welcome.waiting} waiting")
        self._port = link.port
        self._tries = 0  # the next broker may refuse the name again
        if self._plan.away:
            self._persona = self._persona._replace(name=welcome.name)
            self._remember()
            raise _Ended(0, f"joined as '{welcome.name}' without a listener; messages wait for: zmqbus inbox")
        self._store(welcome.name)
        self._agent = None
        self._tell_state(link)  # a new broker knows nothing of it
        if not link.patient:
            # From here on wait for a broker that goes away, however long it takes.
            link.patient = True
            reap(self._settings.data_dir)

    def _tell_state(self, link: Transport) -> None:
        """Tells the broker what the agent does, as its hooks have stored it."""
        state = agent_state.read(self._lock.files)
        if state is None or state == self._agent:
            return
        self._agent = state
        self._refs += 1
        told = verbs.SetState(f"agent{self._refs}", state.state, state.since_ts, state.detail)
        for effect in link.perform(link.core.request(told)):
            self._handle(link, effect)

    def _closed(self, link: Transport, reason: errors.ZmqbusError | None) -> None:
        if reason is None:
            self._lock.note_left()
            raise _Ended(0, "disconnected; exiting")
        if isinstance(reason, errors.NameTaken):
            link.perform(self._try_next_name(link))
        elif isinstance(reason, core.Displaced):
            raise _Ended(0, f"{reason}; exiting")
        else:
            raise reason

    def _try_next_name(self, link: Transport) -> list[core.Effect]:
        taken = link.core.persona.name or ""
        self._tries += 1
        if self._tries <= NAME_RETRIES:
            name = naming.next_name(self._wanted, self._tries + 1)
        elif not self._chosen and self._tries == NAME_RETRIES + 1:
            # The user did not choose the name and need not choose another: use one that no other owner can have.
            name = naming.next_name(self._wanted, self._plan.owner.pid)
        else:
            raise _Ended(
                1,
                f"name '{self._wanted}' taken after {NAME_RETRIES} retries; run "
                f"{wording.command('connect <other-name>')}",
            )
        self._pacer.announce(bus_line(f"name '{taken}' taken; using '{name}'"))
        self._persona = self._persona._replace(name=name)
        return link.restart(self._client())

    def _client(self) -> core.ClientCore:
        return core.ClientCore(self._persona, zmqbus.__version__, self._shown)

    def _remember(self) -> None:
        """Stores the identity for the next listener of this owner."""
        persona = self._persona
        assert persona.session_id and persona.token
        self._lock.remember(Identity(persona.session_id, persona.token, persona.name, persona.label, self._port))

    def _store(self, name: str) -> None:
        """Stores the session under this name, for its helpers and for the next listener of this owner.

        Raises `NotConnected` where that fails the first time: then nobody could act as the session. Later a full disk
        ends nothing: it is reported, and the write is retried.
        """
        self._persona = self._persona._replace(name=name)
        try:
            self._write_state()
        except errors.NotConnected as error:
            if not self._is_stored:
                raise
            if not self._is_behind:
                self._is_behind = True
                self._pacer.announce(bus_line(f"{error}; this session continues as '{name}', and retries"))
            self._next_try_s = time.monotonic() + WRITE_AGAIN_S
        else:
            if self._is_behind:
                self._pacer.announce(bus_line(f"the state of '{name}' is stored now"))
            self._is_stored, self._is_behind = True, False

    def _write_state(self) -> None:
        persona = self._persona
        assert persona.session_id and persona.token and persona.name
        self._remember()
        self._lock.write_state(
            SessionState(
                session_id=persona.session_id,
                name=persona.name,
                label=persona.label,
                listener_pid=os.getpid(),
                listener_started=process_of(os.getpid()).started,
                host="127.0.0.1",
                port=self._port,
                created_at=self._created_at,
                token=persona.token,
                owner_pid=self._plan.owner.pid,
                owner_started=self._plan.owner.started,
                project=persona.project,
                cwd=persona.cwd,
                **self._plan.owner.place._asdict(),
            )
        )

    # --- lines

    def _flush(self, link: Transport) -> None:
        """Writes the lines that are due, and acknowledges the messages whose lines were written."""
        while True:
            self._stalled = not self._push()
            # guards: listener: acknowledge only what was written [and not self._unwritten =>]
            if self._unshown and not self._unwritten:
                for ticket in self._unshown:
                    link.core.taken(ticket)
                self._unshown = ()
                for effect in link.perform(link.core.acknowledge()):
                    self._handle(link, effect)
            if self._stalled:
                return
            self._drop_shown_elsewhere(link)  # guards: listener
            flush = self._pacer.next_flush(time.monotonic())
            if flush is None:
                return
            self._unwritten = _as_bytes(flush.lines)
            self._unshown = tuple(tag for tag in flush.tags if isinstance(tag, core.Ticket))

    def _drop_shown_elsewhere(self, link: Transport) -> None:
        """Drops held messages that a command of this session has printed meanwhile."""
        if self._pacer.waiting() and self._shown.news():
            for tag in self._pacer.forget(lambda tag: isinstance(tag, core.Ticket) and tag.msg_ids[0] in self._shown):
                assert isinstance(tag, core.Ticket)
                link.core.taken(tag)

    def _push(self, timeout_s: float = 0.0) -> bool:
        """Writes as much as the reader has room for; returns whether there is room for more.

        Raises `_Ended` if nobody reads. Never blocks for longer than `timeout_s`: even while its reader does not read,
        a listener has to handle signals and check its owner. A descriptor that poll reports writable takes PIPE_BUF
        bytes at once; no more is written before the next poll.
        """
        poller = select.poll()
        poller.register(self._stdout, select.POLLOUT)
        try:
            while poller.poll(timeout_s * 1000):
                if not self._unwritten:
                    return True
                written = os.write(self._stdout, self._unwritten[: select.PIPE_BUF])
                if written == len(self._unwritten) and self._unshown:
                    # Nothing may come between these two calls: a kill between them shows a message twice.
                    self._shown.add_all(  # guards: listener
                        [msg_id for ticket in self._unshown for msg_id in ticket.msg_ids]
                    )
                self._unwritten = self._unwritten[written:]
        except BlockingIOError:  # the descriptor was already non-blocking, and another writer was faster
            return False
        except OSError as error:
            self._trace(f"standard output cannot be written to: {error.strerror}")
            if isinstance(error, BrokenPipeError):
                raise _Ended(0) from None  # the monitor was ended
            raise streams.OutputFailed(error) from None
        return False

    def _say_last(self, line: str) -> None:
        """Writes the line that says why it ends, after the rest of an unfinished flush, so that both stay whole."""
        self._unwritten += _as_bytes((line,))
        try:
            self._push(LAST_LINE_S)
        except (_Ended, streams.OutputFailed):
            pass  # nobody reads it; the listener ends anyway


def _as_bytes(lines: tuple[str, ...]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
