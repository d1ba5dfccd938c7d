"""The listener: the long-lived process of a session, whose lines are the agent's notifications.

The loop has three sources: the link (messages), the clock (pacing, looks at the owner) and the outside world (signals,
a reader that has gone). One rule orders them: a message is acknowledged after its line has been flushed, never before,
and what could not be written is left for the next listener of this owner. Between the two its id goes on file, so that
the next listener knows it, should the acknowledgement be lost.

A harness ends monitors as it likes, and may leave their children behind. So the listener looks for three ends of its
own accord: its owner dies, its standard output has no reader any more, the session is taken over or disconnected.
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
from zmqbus.client.transport import Link
from zmqbus.journal.reader import Reader
from zmqbus.journal.record import iso_time
from zmqbus.process import Process, has_ended, process_of
from zmqbus.session.leftovers import reap
from zmqbus.session.lock import ListenerLock
from zmqbus.session.notify import Pacer, bus_line
from zmqbus.session.render import note_of
from zmqbus.session.shown_log import Shown
from zmqbus.session.state import Identity, SessionState
from zmqbus.settings import Settings
from zmqbus.system import streams
from zmqbus.text import wording
from zmqbus.tuples import NamedTuple
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import Role
from zmqbus.wire.wakeup import Wakeup

#: How often another name is tried when the wanted one is taken.
NAME_RETRIES = 3
#: A reader that does not read is looked at again after so long: the link's poller waits for input only.
STALLED_S = 0.2
#: Between two tries to write down what a full disk has not taken.
WRITE_AGAIN_S = 1.0
#: How long the last line may wait for such a reader.
LAST_LINE_S = 1.0


class Plan(NamedTuple):
    """What a listener is to be, as the command worked it out."""

    name: str
    name_given: bool  #: asked for by the user: then only close variants of it are tried
    label: str | None
    topics: tuple[str, ...]
    groups: tuple[str, ...]
    cwd: str
    project: str
    owner: Process
    identity: Identity | None  #: of an earlier listener of this owner
    away: bool = False  #: to join, and leave at once


class _Ended(Exception):
    """The listener's work is over."""

    def __init__(self, status: int, line: str | None = None) -> None:
        super().__init__(line or "")
        self.status = status
        self.line = line


class Listener:
    """Runs one session until it ends."""

    def __init__(self, settings: Settings, lock: ListenerLock, plan: Plan, trace: Callable[[str], None]) -> None:
        self._settings = settings
        self._port = settings.port  # of the broker that has welcomed the session
        self._lock = lock
        self._plan = plan
        self._trace = trace
        self._stdout = sys.stdout.fileno()
        self._pacer = Pacer(settings.paths.log)
        self._unwritten = b""  # rest of a flush that the reader has no room for
        self._unshown: tuple[core.Ticket, ...] = ()  # tags of that flush
        self._stalled = False
        self._next_look_s = 0.0  # at the owner
        self._tries = 0  # of other names, since the session was last on the bus
        self._wanted = plan.name
        self._chosen = plan.name_given  # somebody chose the name, so only close variants of it are tried
        self._written_down = False  # who this session is, for its helpers
        self._is_behind = False  # what has changed since could not be
        self._next_try_s = 0.0
        self._created_at = iso_time(time.time())
        identity = plan.identity
        self._persona = core.Persona(
            role=Role.LISTENER,
            session_id=identity.session_id if identity else verbs.new_session_id(),
            token=identity.token if identity else verbs.new_token(),
            name=plan.name,
            label=plan.label,
            cwd=plan.cwd,
            project=plan.project,
            pid=os.getpid(),
            owner=plan.owner.text,
            topics=plan.topics,
            groups=plan.groups,
        )
        assert self._persona.session_id
        self._shown = Shown(lock.files, self._persona.session_id, keeper=True, trace=self._trace)

    def __repr__(self) -> str:
        return f"<Listener {self._persona.name!r}: {self._pacer!r}>"

    def run(self) -> int:
        """Serves until the end; returns the exit status. Raises `OutputFailed` where its lines cannot be written."""
        if not streams.is_open(self._stdout):
            raise streams.OutputFailed(OSError(errno.EBADF, "it is closed"))
        self._shown.open()
        link = Link(self._settings, self._client(), warn=lambda text: self._pacer.announce(bus_line(text)))
        with Wakeup() as wakeup:
            try:
                link.open()
                link.watch(wakeup.fd)
                link.watch(self._stdout, hang_up=True)
                while True:
                    self._turn(link, wakeup)
            except _Ended as end:
                status, line = end.status, end.line
            except streams.OutputFailed as failed:
                # Unread is what was not written, and what was written in part.
                failed.hint = "what could not be shown stays unread; see where the output is redirected to"
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

    def _turn(self, link: Link, wakeup: Wakeup) -> None:
        now_s = time.monotonic()
        if wakeup.caught is not None:
            self._trace(f"got {wakeup.caught.name}")
            raise _Ended(0)
        self._look_at_owner(now_s)
        if self._is_behind and now_s >= self._next_try_s:
            self._show(self._persona.name or "")
        for effect in link.pump(self._sleep_s(now_s)):
            self._deal(link, effect)
        self._look_at_reader()
        self._flush(link)

    def _sleep_s(self, now_s: float) -> float:
        until_owner_s = self._next_look_s - now_s
        if self._is_behind:
            until_owner_s = min(until_owner_s, self._next_try_s - now_s)
        if self._stalled:
            return max(0.0, min(until_owner_s, STALLED_S))
        due_s = self._pacer.next_deadline(now_s)
        return max(0.0, min(until_owner_s, due_s - now_s if due_s is not None else until_owner_s))

    def _look_at_owner(self, now_s: float) -> None:
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + self._settings.owner_check_interval_s
        self._lock.touch()
        if has_ended(self._plan.owner):
            raise _Ended(0, f"owning session (pid {self._plan.owner.pid}) is gone; exiting")

    def _look_at_reader(self) -> None:
        """A pipe whose reader has gone: the monitor was ended, and this process was left over. Nobody would see what is
        written; leaving now lets the next monitor of this owner begin at once."""
        poller = select.poll()
        poller.register(self._stdout, 0)
        if any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poller.poll(0)):
            self._trace("standard output has no reader any more")
            raise _Ended(0)

    # --- what the bus says

    def _deal(self, link: Link, effect: core.Effect) -> None:
        match effect:
            case core.Hand():
                # Closed at once: a segment that is kept open takes room on the disk after its deletion.
                with closing(Reader(self._settings.paths.log)) as log:
                    for message in effect.messages():
                        self._pacer.add(time.monotonic(), note_of(message, log))
            case core.TakeBack():
                self._pacer.forget()
            case core.Welcomed(welcome):
                self._welcomed(link, welcome)
            case core.Renamed(name):
                self._trace(f"renamed to {name}")
                self._wanted, self._chosen = name, True
                self._show(name)
            case core.Closed(reason):
                self._closed(link, reason)

    def _welcomed(self, link: Link, welcome: verbs.Welcome) -> None:
        self._trace(f"connected as {welcome.name}, {welcome.waiting} waiting")
        self._port = link.port
        self._tries = 0  # it may have to look for a name again, at the next broker
        if self._plan.away:
            self._persona = self._persona._replace(name=welcome.name)
            self._remember()
            raise _Ended(0, f"joined as '{welcome.name}' without a listener; what arrives waits: zmqbus inbox")
        self._show(welcome.name)
        if not link.patient:
            # From here on a broker that goes away is waited for, however long it takes.
            link.patient = True
            reap(self._settings.data_dir)

    def _closed(self, link: Link, reason: errors.ZmqbusError | None) -> None:
        if reason is None:
            self._lock.note_left()
            raise _Ended(0, "disconnected; exiting")
        if isinstance(reason, errors.NameTaken):
            link.perform(self._try_next_name(link))
        elif isinstance(reason, core.Displaced):
            raise _Ended(0, f"{reason}; exiting")
        else:
            raise reason

    def _try_next_name(self, link: Link) -> list[core.Effect]:
        taken = link.core.persona.name or ""
        self._tries += 1
        if self._tries <= NAME_RETRIES:
            name = naming.next_name(self._wanted, self._tries + 1)
        elif not self._chosen and self._tries == NAME_RETRIES + 1:
            # Nobody chose this name, so nobody has to choose another: one that no other owner can have.
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
        """Tells the next listener of this owner who this session is."""
        persona = self._persona
        assert persona.session_id and persona.token
        self._lock.remember(Identity(persona.session_id, persona.token, persona.name, persona.label, self._port))

    def _show(self, name: str) -> None:
        """Tells the helpers, and the next listener of this owner, who this session is.

        Raises `NotConnected` where that cannot be written, and never could: then nobody could act for the session. Once
        it could, a disk that is full by now ends nothing: it is said, and tried again.
        """
        self._persona = self._persona._replace(name=name)
        try:
            self._write_down()
        except errors.NotConnected as error:
            if not self._written_down:
                raise
            if not self._is_behind:
                self._is_behind = True
                self._pacer.announce(bus_line(f"{error}; this session goes on as '{name}', and tries again"))
            self._next_try_s = time.monotonic() + WRITE_AGAIN_S
        else:
            if self._is_behind:
                self._pacer.announce(bus_line(f"the state of '{name}' is written down now"))
            self._written_down, self._is_behind = True, False

    def _write_down(self) -> None:
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

    def _flush(self, link: Link) -> None:
        """Writes what may be written now, and acknowledges what has been."""
        while True:
            self._stalled = not self._push()
            # guards: listener: acknowledge only what was written [and not self._unwritten =>]
            if self._unshown and not self._unwritten:
                for ticket in self._unshown:
                    link.core.taken(ticket)
                self._unshown = ()
                for effect in link.perform(link.core.acknowledge()):
                    self._deal(link, effect)
            if self._stalled:
                return
            self._look_elsewhere(link)  # guards: listener
            flush = self._pacer.next_flush(time.monotonic())
            if flush is None:
                return
            self._unwritten = _as_bytes(flush.lines)
            self._unshown = tuple(tag for tag in flush.tags if isinstance(tag, core.Ticket))

    def _look_elsewhere(self, link: Link) -> None:
        """A command may have printed what is to be shown here: it does not wait for a listener that stands still."""
        if self._pacer.waiting() and self._shown.news():
            for tag in self._pacer.forget(lambda tag: isinstance(tag, core.Ticket) and tag.msg_ids[0] in self._shown):
                assert isinstance(tag, core.Ticket)
                link.core.taken(tag)

    def _push(self, timeout_s: float = 0.0) -> bool:
        """Writes what the reader has room for; returns whether it has room for more. Raises `_Ended` if nobody reads.

        Never blocks for longer than `timeout_s`: a listener whose reader stands still has to hear signals, and to look
        at its owner. What poll calls writable takes PIPE_BUF bytes at once; no more is written before the next look.
        """
        poller = select.poll()
        poller.register(self._stdout, select.POLLOUT)
        try:
            while poller.poll(timeout_s * 1000):
                if not self._unwritten:
                    return True
                written = os.write(self._stdout, self._unwritten[: select.PIPE_BUF])
                if written == len(self._unwritten) and self._unshown:
                    # Nothing stands between these two calls: a kill that falls there shows a message twice.
                    self._shown.add_all(  # guards: listener
                        [msg_id for ticket in self._unshown for msg_id in ticket.msg_ids]
                    )
                self._unwritten = self._unwritten[written:]
        except BlockingIOError:  # the descriptor was handed to us in that mode, and another writer was faster
            return False
        except OSError as error:
            self._trace(f"standard output cannot be written to: {error.strerror}")
            if isinstance(error, BrokenPipeError):
                raise _Ended(0) from None  # the monitor was ended
            raise streams.OutputFailed(error) from None
        return False

    def _say_last(self, line: str) -> None:
        """The line that tells why it ends; after the rest of what was begun, so that both stay whole."""
        self._unwritten += _as_bytes((line,))
        try:
            self._push(LAST_LINE_S)
        except (_Ended, streams.OutputFailed):
            pass  # nobody reads it, and it ends as it was going to


def _as_bytes(lines: tuple[str, ...]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
