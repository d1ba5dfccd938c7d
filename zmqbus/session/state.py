"""Lock and state file of a session: one listener for each owner, and the way in which its helpers find it.

Theory of operation
===================

Two files below `<data>/clients` belong to a session, named after the pid of its owner:

* `<pid>.lock`: held with flock, exclusively, by the listener for its life; the kernel lets go when the listener dies,
  however it dies. **The lock is the truth**: a session is live when its lock is held, whatever pids and files say. Its
  content is the session's identity (id, token, name, label), and outlives the listener: the next listener of the same
  owner takes the session up again, with its unread messages.
* `<pid>.session`: what helpers need to act as the session. Replaced as a whole, so nobody ever reads half of one, and
  removed when the listener ends. After a `kill -9` it stays: then it is stale, and whoever finds it removes it.

(`<pid>.shown` is the business of `zmqbus.session.shown`, `<pid>.options` that of `zmqbus.session.options`. Like the
lock file they stay while the owner lives.)

All but `.shown` hold the start time of the owner. A pid comes back one day; what was written for an earlier process
with this pid counts as not there.

Rules that keep the races out:

* A listener takes the lock exclusively (EX). Who only looks whether it is held takes it shared (SH), for microseconds.
  So a listener that is refused EX and then gets SH has met a looker, and tries again; refused SH too, it has met
  another listener, for certain.
* Lock files are unlinked only by a cleaner, which holds `reap.lock` (so there is one) and SH on the file (so there is
  no listener). A listener that gets EX compares the file that it locked with the one that has the name now: what was
  unlinked while it waited would be a lock that nobody else can see.
* State files are written only by the holder of EX, and removed by it or by a cleaner.

What others could read, what belongs to another user and what is a link is refused (`Unauthorized`), because a token is
in there. What is damaged is as good as absent: the next listener writes it anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from zmqbus.errors import LocalError, NotConnected, Unauthorized
from zmqbus.process import Process, ProcessTable, is_alive, this_machine
from zmqbus.security import secure_dir
from zmqbus.session.files import cannot, flock, is_at, load_json, open_file, parse, replace, unlink
from zmqbus.settings import MAX_PID, MAX_PORT, Paths
from zmqbus.tuples import NamedTuple

#: Lookers hold a lock for microseconds. One that holds it this long has been stopped in the middle.
ACQUIRE_PATIENCE_S = 5.0
#: Pause between two tries for a lock that a looker holds: long for a looker, short for the one who waits.
RETRY_S = 0.002
#: State and identity are some 1 KiB, two paths of 4 KiB at most. Larger ones are not ours.
MAX_STATE_BYTES = 64 * 1024

_LOCK, _STATE, _TMP = ".lock", ".session", ".tmp"
_DRAFT = _STATE + _TMP
#: `zmqbus.session.options` and `zmqbus.session.shown` write these.
_OPTIONS, _SHOWN = ".options", ".shown"
_OWNED = re.compile(r"([1-9][0-9]{0,9})(?:\.lock|(?:\.session|\.shown|\.options)(?:\.tmp)?)", re.ASCII)


class SessionState(NamedTuple):
    """What a helper has to know to act as a session: the content of its state file."""

    session_id: str
    name: str
    label: str | None
    listener_pid: int
    listener_started: str
    host: str
    port: int
    created_at: str  #: ISO 8601
    token: str  #: proves to the broker that its holder may act as the session
    owner_pid: int
    owner_started: str
    project: str
    cwd: str

    @property
    def owner(self) -> Process:
        """The process whose session it is."""
        return Process(self.owner_pid, self.owner_started)

    @property
    def identity(self) -> Identity:
        """What whoever acts as the session has to know of it."""
        return Identity(self.session_id, self.token, self.name, self.label, self.port)


class Identity(NamedTuple):
    """What makes the next listener of an owner the same session: the content of its lock file."""

    session_id: str
    token: str
    name: str | None
    label: str | None
    port: int | None = None  #: of the broker that it was on; None: written by a release that did not say so
    left: bool = False  #: disconnected by the user: nothing joins again on its behalf


class Joined(NamedTuple):
    """An owner that has, or had, a session."""

    owner: Process
    identity: Identity | None  #: None: its first listener is just beginning
    held: bool  #: a listener has the lock


class AlreadyListening(LocalError):
    """Another listener holds the lock of this owner. `state` is its state, None while it is still starting."""

    def __init__(self, state: SessionState | None) -> None:
        who = f" (listener_pid={state.listener_pid})" if state else ""
        super().__init__(
            f"another monitor for this session is already running{who}; leave it running, or end it with: "
            "zmqbus disconnect"
        )
        self.state = state


class ListenerLock:
    """The lock of one owner's session, held from `acquire` to `release`. As a context manager it leaves nothing stale.

    The descriptor is closed on exec, so that a broker that the listener starts does not inherit the lock.
    """

    def __init__(self, fd: int, data_dir: str, owner: Process) -> None:
        """For `acquire` only: `fd` is the locked lock file."""
        self._fd = fd
        self._owner = owner
        self._paths = Paths(data_dir)
        self._identity = _read_identity(fd, owner.started)

    @classmethod
    def acquire(cls, data_dir: str, owner: Process) -> ListenerLock:
        """Takes the lock of `owner`, and removes the state that a killed predecessor left.

        Raises AlreadyListening where another listener holds it, Unauthorized where files or directories are not
        private, NotConnected where they cannot be made or locked.
        """
        paths = Paths(data_dir)
        secure_dir(data_dir)
        secure_dir(paths.clients)
        path = _file(paths, owner.pid, _LOCK)
        deadline_s = time.monotonic() + ACQUIRE_PATIENCE_S
        while time.monotonic() < deadline_s:
            fd = open_file(path, os.O_RDWR | os.O_CREAT)
            try:
                if flock(fd, path, fcntl.LOCK_EX):
                    if is_at(fd, path):
                        lock = cls(fd, data_dir, owner)
                        lock.remove_state()
                        fd = -1  # the lock's from here on
                        return lock
                    continue  # a cleaner unlinked it meanwhile: there is another file, or none
                if not flock(fd, path, fcntl.LOCK_SH):
                    raise AlreadyListening(_running(data_dir, owner.pid))
            finally:
                if fd >= 0:
                    os.close(fd)
            time.sleep(RETRY_S)
        raise NotConnected(f"{path} stays locked by a process that only looks at it; find it (fuser {path}) and end it")

    @property
    def identity(self) -> Identity | None:
        """Who this session is: what was remembered by this listener, or by an earlier one of the very same owner."""
        return self._identity

    def remember(self, identity: Identity) -> None:
        """Keeps the identity for the next listener of this owner. Raises NotConnected where it cannot be written."""
        text = json.dumps({**identity._asdict(), "owner_started": self._owner.started}) + "\n"
        # In place, since the file that carries the lock must stay. It goes out in one write, and readers stop at the
        # first newline: whatever instant a kill hits, the old or the new identity is there, whole.
        data = text.encode()
        try:
            written = os.pwrite(self._held(), data, 0)
            os.ftruncate(self._fd, written)
        except OSError as error:
            raise cannot("write", _file(self._paths, self._owner.pid, _LOCK), error) from error
        if written != len(data):
            raise NotConnected(f"the disk of {self._paths.data_dir} is full; free some space and connect again")
        self._identity = identity

    def note_left(self) -> None:
        """Notes that the user has disconnected this session, until it is remembered anew. Raises as `remember`."""
        if self._identity is not None and not self._identity.left:
            self.remember(self._identity._replace(left=True))

    def write_state(self, state: SessionState) -> None:
        """Shows the session to its helpers. They see the old state or the new one, never a mixture.

        Raises NotConnected where it cannot be written; then what was there before stays.
        """
        self._held()
        path = _file(self._paths, self._owner.pid, _STATE)
        replace(path, json.dumps(state._asdict()).encode())

    def remove_state(self) -> None:
        """Hides the session from its helpers. Does nothing where it is hidden already."""
        self._held()
        for suffix in (_STATE, _DRAFT):
            unlink(_file(self._paths, self._owner.pid, suffix))

    def release(self) -> None:
        """Lets go of the lock; the state file stays as it is. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> ListenerLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            try:
                self.remove_state()
            finally:
                self.release()

    def __repr__(self) -> str:
        return f"<ListenerLock of owner {self._owner.pid}, {'held' if self._fd >= 0 else 'released'}>"

    def _held(self) -> int:
        if self._fd < 0:
            raise RuntimeError("this listener lock has been released")
        return self._fd


def load_state(data_dir: str, owner_pid: int) -> SessionState | None:
    """The state file of an owner, live or not; None where there is none, or what is there is damaged.

    Raises Unauthorized where others could have written or read it.
    """
    record = load_json(_file(Paths(data_dir), owner_pid, _STATE), MAX_STATE_BYTES)
    if not isinstance(record, dict):
        return None
    # Keys that this release does not know are a newer one's, and no fault.
    values: dict[str, Any] = {field: record.get(field) for field in SessionState._fields}
    for field, value in values.items():
        if field in ("listener_pid", "port", "owner_pid"):
            if type(value) is not int:  # a bool is an int too
                return None
        elif not (isinstance(value, str) or (field == "label" and value is None)):
            return None
    state = SessionState(**values)
    sound = state.session_id and state.token and 0 < state.listener_pid <= MAX_PID and 0 < state.port <= MAX_PORT
    return state if sound and state.owner_pid == owner_pid else None


def find_session(data_dir: str, owner: Process, ancestors: Iterable[Process] = ()) -> tuple[SessionState | None, bool]:
    """The live session of `owner`, else of the first of `ancestors` that has one; and was only something stale found?

    Give `*find_owners(...)`: that list ends where another agent's processes begin. What a dead listener left is removed
    on the way; the second value says so where no live session was found. Raises Unauthorized as `load_state` does.
    """
    stale = False
    asked: set[Process] = set()
    for process in (owner, *ancestors):
        if process in asked:
            continue
        asked.add(process)
        state, was_stale = _session_of(data_dir, process)
        if state is not None:
            return state, False
        stale = stale or was_stale
    return None, stale


def find_away(data_dir: str, owner: Process, ancestors: Iterable[Process] = ()) -> tuple[Process, Identity] | None:
    """The session of `owner`, else of the first of `ancestors` that has one, if it has no listener; and whose it is.

    None: there was none yet, or its listener is there or just beginning. Raises as `load_state` does.
    """
    joined = find_joined(data_dir, owner, ancestors)
    if joined is None or joined.identity is None or joined.held:
        return None
    return joined.owner, joined.identity


def find_joined(data_dir: str, owner: Process, ancestors: Iterable[Process] = ()) -> Joined | None:
    """`owner`, else the first of `ancestors`, that has or had a session, or is about to get one; None: none of them.

    Raises as `load_state` does.
    """
    paths = Paths(data_dir)
    for process in (owner, *ancestors):
        path = _file(paths, process.pid, _LOCK)
        try:
            fd = open_file(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            identity = _read_identity(fd, process.started)
        finally:
            os.close(fd)
        if identity is not None and identity.name is None:
            identity = None
        held = _is_held(path)
        if identity is not None or held:
            return Joined(process, identity, held)
    return None


def note_left(data_dir: str, owner: Process) -> None:
    """Notes that the user has disconnected the session of `owner`, which has no listener. Does nothing where there is
    no session, or a listener after all. Raises as `ListenerLock.acquire`."""
    if find_away(data_dir, owner) is None:
        return
    try:
        with ListenerLock.acquire(data_dir, owner) as lock:
            lock.note_left()
    except AlreadyListening:
        return


def reap(data_dir: str, table: ProcessTable | None = None) -> list[str]:
    """Removes the files of owners that have died, and returns their names. What a listener still holds stays.

    Does nothing while another process is at it. What is not private is left for `zmqbus doctor` to tell about.
    """
    clients = Paths(data_dir).clients
    try:
        names = os.listdir(clients)
    except OSError:  # nothing was ever made here, or it is not ours to look into
        return []
    pids = sorted({int(match[1]) for name in names if (match := _OWNED.fullmatch(name))})
    removed: list[str] = []
    cleaning = _begin_cleaning(clients) if pids else None
    if cleaning is None:
        return removed
    try:
        for pid in pids:
            try:
                removed += _clean(data_dir, pid, table or this_machine())
            except (Unauthorized, NotConnected):
                continue  # told about by `zmqbus doctor`, and no reason to leave the others
    finally:
        os.close(cleaning)
    return removed


def leftovers(data_dir: str, table: ProcessTable | None = None) -> list[str]:
    """The names of the files that `reap` would remove, and of state files that a dead listener left. Removes nothing.

    What is not private is left out.
    """
    paths = Paths(data_dir)
    try:
        names = sorted(os.listdir(paths.clients))
    except OSError:
        return []
    found: list[str] = []
    dead: dict[int, bool] = {}
    for name in names:
        match = _OWNED.fullmatch(name)
        if match is None:
            continue
        pid = int(match[1])
        try:
            if pid not in dead:
                dead[pid] = _is_abandoned(data_dir, pid, table or this_machine())
            stale = name.startswith(f"{pid}{_STATE}") and not _is_held(_file(paths, pid, _LOCK))
        except (Unauthorized, NotConnected):
            continue
        if dead[pid] or stale:
            found.append(name)
    return found


def _is_abandoned(data_dir: str, pid: int, table: ProcessTable) -> bool:
    """Whether the owner has died, and no listener is there any more."""
    path = _file(Paths(data_dir), pid, _LOCK)
    if _is_held(path):
        return False
    try:
        fd = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        fd = os.open(os.devnull, os.O_RDONLY)
    try:
        return not _owner_lives(data_dir, pid, fd, table)
    finally:
        os.close(fd)


def is_listening(data_dir: str, owner_pid: int) -> bool:
    """Whether a listener of this owner lives. Raises `Unauthorized` where others could have made its lock."""
    return _is_held(_file(Paths(data_dir), owner_pid, _LOCK))


# --- sessions, live and stale -----------------------------------------------------------------------------------


def _session_of(data_dir: str, owner: Process) -> tuple[SessionState | None, bool]:
    paths = Paths(data_dir)
    path = _file(paths, owner.pid, _STATE)
    state = load_state(data_dir, owner.pid)
    if state is None and not os.path.lexists(path):
        return None, False
    if _is_held(_file(paths, owner.pid, _LOCK)):
        # A listener that outlives its owner for some seconds may hold the lock of a pid that is already used again.
        return (state if state is not None and state.owner_started == owner.started else None), False
    cleaning = _begin_cleaning(paths.clients)
    if cleaning is None:
        return None, True  # whoever cleans at this moment will find it too
    try:
        return None, bool(_clean(data_dir, owner.pid))
    finally:
        os.close(cleaning)


def _running(data_dir: str, owner_pid: int) -> SessionState | None:
    """The state of the listener that holds the lock; not that of one before it, which it has not yet removed."""
    state = load_state(data_dir, owner_pid)
    if state is None or not is_alive(Process(state.listener_pid, state.listener_started)):
        return None
    return state


def _is_held(path: str) -> bool:
    """Does a listener hold this lock?"""
    try:
        fd = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not flock(fd, path, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _begin_cleaning(clients: str) -> int | None:
    """Makes this process the only cleaner, until it closes what this returns; None: another one is."""
    path = os.path.join(clients, "reap.lock")
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    if flock(fd, path, fcntl.LOCK_EX):
        return fd
    os.close(fd)
    return None


def _clean(data_dir: str, pid: int, table: ProcessTable | None = None) -> list[str]:
    """Removes what no listener holds: the state, and with a `table` all files, if the owner is dead; else nothing.

    Returns the names of what it removed. The caller is the only cleaner.
    """
    paths = Paths(data_dir)
    path = _file(paths, pid, _LOCK)
    had_lock = os.path.lexists(path)
    fd = open_file(path, os.O_RDWR | os.O_CREAT)  # without the file there would be nothing to keep a listener away
    made_here = False
    try:
        if not flock(fd, path, fcntl.LOCK_SH):
            return []
        made_here = not had_lock
        if table is not None and _owner_lives(data_dir, pid, fd, table):
            return []
        # The lock goes last: as long as it is there, it tells whose the others are.
        suffixes = [_STATE, _DRAFT]
        if table is not None:
            suffixes += [_SHOWN, _SHOWN + _TMP, _OPTIONS, _OPTIONS + _TMP, _LOCK]
        removed = [suffix for suffix in suffixes if unlink(_file(paths, pid, suffix))]
        return [f"{pid}{suffix}" for suffix in removed if suffix != _LOCK or had_lock]
    finally:
        if made_here and is_at(fd, path):
            unlink(path)
        os.close(fd)


def _owner_lives(data_dir: str, pid: int, lock_fd: int, table: ProcessTable) -> bool:
    started: set[str] = set()
    options = load_json(_file(Paths(data_dir), pid, _OPTIONS), MAX_STATE_BYTES)
    for record in (parse(_head_line(lock_fd)), options):
        if isinstance(record, Mapping) and isinstance(record.get("owner_started"), str):
            started.add(record["owner_started"])
    state = load_state(data_dir, pid)
    if state is not None:
        started.add(state.owner_started)
    if started:
        return any(is_alive(Process(pid, start), table) for start in started)
    # A listener that has just made its lock file has written nothing yet: any process with this pid may be its owner.
    entry = table.look(pid)
    return entry is not None and not entry.ended


# --- files ------------------------------------------------------------------------------------------------------


def _file(paths: Paths, owner_pid: int, suffix: str) -> str:
    return os.path.join(paths.clients, f"{owner_pid}{suffix}")


def _head_line(fd: int) -> bytes:
    """The first line of a lock file; b"" where it has not been ended."""
    line, newline, _ = os.pread(fd, MAX_STATE_BYTES, 0).partition(b"\n")
    return line if newline else b""


def _read_identity(fd: int, owner_started: str) -> Identity | None:
    """The identity in a lock file whose lock is held; None where there is none, or it is an earlier process's."""
    record = parse(_head_line(fd))
    if not isinstance(record, dict) or record.get("owner_started") != owner_started:
        return None
    session_id, token, name, label, port, left = (record.get(field) for field in Identity._fields)
    if not (isinstance(session_id, str) and session_id and isinstance(token, str) and token):
        return None
    if not (isinstance(name, str | None) and isinstance(label, str | None)):
        return None
    found = port if type(port) is int and 0 < port <= MAX_PORT else None
    return Identity(session_id, token, name, label, found, left is True)
