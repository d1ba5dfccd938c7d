"""Lock and state file of a session: one listener for each owner, and the way in which its helpers find it.

Theory of operation
===================

Two files below `<data>/clients` belong to a session, named after the pid of its owner (`zmqbus.session.owned` has the
rule, and the names where a process of another PID namespace has the same pid):

* `<pid>.lock`: held with flock, exclusively, by the listener for its life; the kernel lets go when the listener dies,
  however it dies. **The lock is the truth**: a session is live when its lock is held, whatever pids and files say. Its
  content is the session's identity (id, token, name, label), and outlives the listener: the next listener of the same
  owner takes the session up again, with its unread messages.
* `<pid>.session`: what helpers need to act as the session. Replaced as a whole, so nobody ever reads half of one, and
  removed when the listener ends. After a `kill -9` it stays: then it is stale, and whoever finds it removes it.

(`<pid>.shown` is the business of `zmqbus.session.shown_log`, `<pid>.options` that of `zmqbus.session.plugin_options`.
Like the lock file they stay while the owner lives.)

All but `.shown` hold the start time and the place of the owner. A pid comes back one day; what was written for an
earlier process with this pid counts as not there. What was written for a process of another place, which may live, is
left alone: nobody takes it over or removes it from here. Such files would pile up where each run has a container of its
own, so those that no listener holds go when nothing has touched them for `FOREIGN_KEEP_S`.

Rules that keep the races out:

* A listener takes the lock exclusively (EX). Who only looks whether it is held takes it shared (SH), for microseconds.
  So a listener that is refused EX and then gets SH has met a looker, and tries again; refused SH too, it has met
  another listener, for certain.
* Lock files are unlinked only by a cleaner, which holds `reap.lock` (so there is one) and SH on the file (so there is
  no listener). A listener that gets EX compares the file that it locked with the one that has the name now: what was
  unlinked while it waited would be a lock that nobody else can see.
* Whoever gets EX writes down at once whose the file is, before anything slow: a listener of another place that finds
  the lock held knows then that it has to use another name.
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
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any

from zmqbus.errors import LocalError, NotConnected, Unauthorized
from zmqbus.process import Life, Process, ProcessTable, life_of, this_machine
from zmqbus.security.private_files import (
    file_error,
    is_at,
    load_json,
    open_file,
    parse_json,
    replace,
    secure_dir,
    try_lock,
    unlink,
)
from zmqbus.session.owned import (
    LOCK,
    MAX_RECORD_BYTES,
    OPTIONS,
    OWNED,
    SHOWN,
    STATE,
    TMP,
    head_line,
    is_anothers,
    lock_record,
    owner_in,
    path_of,
    pid_of,
    record_of,
    stem_of,
)
from zmqbus.settings import MAX_PID, MAX_PORT, Paths
from zmqbus.tuples import NamedTuple

#: Lookers hold a lock for microseconds. One that holds it this long has been stopped in the middle.
ACQUIRE_PATIENCE_S = 5.0
#: Pause between two tries for a lock that a looker holds: long for a looker, short for the one who waits.
RETRY_S = 0.002
#: How long files stay that belong to an owner of another place, once nothing touches them any more. Mail waits for 7
#: days, so there has long been nothing left to come back for.
FOREIGN_KEEP_S = 30 * 24 * 3600.0
#: How often a listener says that its files are in use, by dating its lock file.
TOUCH_S = 3600.0

_DRAFT = STATE + TMP


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
    namespace: str = ""  #: with `boot` and `machine`: where both pids count (`process.Place`)
    boot: str = ""
    machine: str = ""

    @property
    def owner(self) -> Process:
        """The process whose session it is."""
        return Process(self.owner_pid, self.owner_started, self.namespace, self.boot, self.machine)

    @property
    def listener(self) -> Process:
        """The process that listens."""
        return Process(self.listener_pid, self.listener_started, self.namespace, self.boot, self.machine)

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

    def __init__(self, fd: int, data_dir: str, stem: str, owner: Process) -> None:
        """For `acquire` only: `fd` is the locked lock file."""
        self._fd = fd
        self._owner = owner
        self._data_dir = data_dir
        self._stem = stem
        self._touched_s = time.monotonic()
        self._identity = _read_identity(fd, stem, owner)
        found = owner_in(parse_json(head_line(fd)), stem)
        if found is None or not found.is_same(owner):
            with suppress(OSError):  # a full disk: `remember` will say so
                self._write(record_of(owner))

    @classmethod
    def acquire(cls, data_dir: str, owner: Process) -> ListenerLock:
        """Takes the lock of `owner`, and removes the state that a killed predecessor left.

        Raises AlreadyListening where another listener holds it, Unauthorized where files or directories are not
        private, NotConnected where they cannot be made or locked.
        """
        paths = Paths(data_dir)
        secure_dir(data_dir)
        secure_dir(paths.clients)
        deadline_s = time.monotonic() + ACQUIRE_PATIENCE_S
        while time.monotonic() < deadline_s:
            stem = stem_of(data_dir, owner)
            path = path_of(data_dir, stem, LOCK)
            fd = open_file(path, os.O_RDWR | os.O_CREAT)
            try:
                if try_lock(fd, path, fcntl.LOCK_EX):
                    # Somebody elsewhere who has the same pid may have been here since the name was chosen.
                    if is_at(fd, path) and not is_anothers(owner_in(parse_json(head_line(fd)), stem), owner):
                        lock = cls(fd, data_dir, stem, owner)
                        lock.remove_state()
                        fd = -1  # the lock's from here on
                        return lock
                    continue  # or a cleaner has unlinked it: there is another file, or none
                if not try_lock(fd, path, fcntl.LOCK_SH):
                    if is_anothers(owner_in(parse_json(head_line(fd)), stem), owner):
                        continue
                    raise AlreadyListening(_running(data_dir, stem))
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
        try:
            whole = self._write({**identity._asdict(), **record_of(self._owner)})
        except OSError as error:
            raise file_error("write", path_of(self._data_dir, self._stem, LOCK), error) from error
        if not whole:
            raise NotConnected(f"the disk of {self._data_dir} is full; free some space and connect again")
        self._identity = identity

    def note_left(self) -> None:
        """Notes that the user has disconnected this session, until it is remembered anew. Raises as `remember`."""
        if self._identity is not None and not self._identity.left:
            self.remember(self._identity._replace(left=True))

    def _write(self, record: dict[str, Any]) -> bool:
        """Replaces the content of the lock file. False: the disk has taken a part of it."""
        # In place, since the file that carries the lock must stay. It goes out in one write, and readers stop at the
        # first newline: whatever instant a kill hits, the old or the new record is there, whole.
        data = (json.dumps(record) + "\n").encode()
        written = os.pwrite(self._held(), data, 0)
        os.ftruncate(self._fd, written)
        return written == len(data)

    def touch(self) -> None:
        """Says, once in `TOUCH_S`, that the files are in use; for those who cannot see whether the owner lives."""
        now_s = time.monotonic()
        if now_s - self._touched_s >= TOUCH_S:
            self._touched_s = now_s
            with suppress(OSError):
                os.utime(self._held())

    def write_state(self, state: SessionState) -> None:
        """Shows the session to its helpers. They see the old state or the new one, never a mixture.

        Raises NotConnected where it cannot be written; then what was there before stays.
        """
        self._held()
        path = path_of(self._data_dir, self._stem, STATE)
        replace(path, json.dumps(state._asdict()).encode())

    def remove_state(self) -> None:
        """Hides the session from its helpers. Does nothing where it is hidden already."""
        self._held()
        for suffix in (STATE, _DRAFT):
            unlink(path_of(self._data_dir, self._stem, suffix))

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


def load_state(data_dir: str, stem: str) -> SessionState | None:
    """The state file of an owner, live or not; None where there is none, or what is there is damaged. `stem` is what
    the names of its files begin with (`owned.stem_of`).

    Raises Unauthorized where others could have written or read it.
    """
    record = load_json(path_of(data_dir, stem, STATE), MAX_RECORD_BYTES)
    if not isinstance(record, dict):
        return None
    # Keys that this release does not know are a newer one's, and no fault; an earlier one wrote no place.
    defaults = SessionState._field_defaults
    values: dict[str, Any] = {field: record.get(field, defaults.get(field)) for field in SessionState._fields}
    for field, value in values.items():
        if field in ("listener_pid", "port", "owner_pid"):
            if type(value) is not int:  # a bool is an int too
                return None
        elif not (isinstance(value, str) or (field == "label" and value is None)):
            return None
    state = SessionState(**values)
    sound = state.session_id and state.token and 0 < state.listener_pid <= MAX_PID and 0 < state.port <= MAX_PORT
    return state if sound and state.owner_pid == pid_of(stem) else None


def states(data_dir: str) -> list[SessionState]:
    """All state files that can be read, live or not, of whatever place."""
    found: list[SessionState] = []
    for stem, suffixes in _stems(data_dir).items():
        if STATE in suffixes:
            with suppress(Unauthorized, NotConnected):  # `zmqbus doctor` tells about it
                state = load_state(data_dir, stem)
                if state is not None:
                    found.append(state)
    return found


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
    for process in (owner, *ancestors):
        stem = stem_of(data_dir, process)
        path = path_of(data_dir, stem, LOCK)
        try:
            fd = open_file(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            identity = _read_identity(fd, stem, process)
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
    stems = _stems(data_dir)
    removed: list[str] = []
    cleaning = _begin_cleaning(Paths(data_dir).clients) if stems else None
    if cleaning is None:
        return removed
    try:
        for stem in stems:
            try:
                removed += _clean(data_dir, stem, table or this_machine())
            except (Unauthorized, NotConnected):
                continue  # told about by `zmqbus doctor`, and no reason to leave the others
    finally:
        os.close(cleaning)
    return removed


def leftovers(data_dir: str, table: ProcessTable | None = None) -> list[str]:
    """The names of the files that `reap` would remove, and of state files that a dead listener left. Removes nothing.

    What is not private is left out.
    """
    table = table or this_machine()
    found: list[str] = []
    for stem, suffixes in _stems(data_dir).items():
        try:
            if _is_held(path_of(data_dir, stem, LOCK)):
                continue
            life = _life(data_dir, stem, table)
        except (Unauthorized, NotConnected):
            continue
        if life is not Life.ENDED:
            suffixes = [suffix for suffix in suffixes if suffix.startswith(STATE) and life is Life.ALIVE]
        found += [stem + suffix for suffix in suffixes]
    return sorted(found)


def elsewhere(data_dir: str) -> list[str]:
    """Stems of the files whose owners cannot be judged from here: they are of a container, or of another machine."""
    found: list[str] = []
    for stem in _stems(data_dir):
        with suppress(Unauthorized, NotConnected):
            if _life(data_dir, stem, this_machine()) is Life.UNKNOWN:
                found.append(stem)
    return found


def is_listening(data_dir: str, owner: Process) -> bool:
    """Whether a listener of this owner lives. Raises `Unauthorized` where others could have made its lock."""
    return _is_held(path_of(data_dir, stem_of(data_dir, owner), LOCK))


# --- sessions, live and stale -----------------------------------------------------------------------------------


def _session_of(data_dir: str, owner: Process) -> tuple[SessionState | None, bool]:
    stem = stem_of(data_dir, owner)
    path = path_of(data_dir, stem, STATE)
    state = load_state(data_dir, stem)
    if state is None and not os.path.lexists(path):
        return None, False
    if _is_held(path_of(data_dir, stem, LOCK)):
        # A listener that outlives its owner for some seconds may hold the lock of a pid that is already used again.
        return (state if state is not None and state.owner.is_same(owner) else None), False
    if state is not None and is_anothers(state.owner, owner):
        return None, False
    cleaning = _begin_cleaning(Paths(data_dir).clients)
    if cleaning is None:
        return None, True  # whoever cleans at this moment will find it too
    try:
        return None, bool(_clean(data_dir, stem))
    finally:
        os.close(cleaning)


def _running(data_dir: str, stem: str) -> SessionState | None:
    """The state of the listener that holds the lock; not that of one before it, which it has not yet removed."""
    state = load_state(data_dir, stem)
    if state is None or life_of(state.listener) is Life.ENDED:
        return None
    return state


def _is_held(path: str) -> bool:
    """Does a listener hold this lock?"""
    try:
        fd = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(fd, path, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _begin_cleaning(clients: str) -> int | None:
    """Makes this process the only cleaner, until it closes what this returns; None: another one is."""
    path = os.path.join(clients, "reap.lock")
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    if try_lock(fd, path, fcntl.LOCK_EX):
        return fd
    os.close(fd)
    return None


def _clean(data_dir: str, stem: str, table: ProcessTable | None = None) -> list[str]:
    """Removes what no listener holds: the state, and with a `table` all files, if the owner has ended; else nothing.

    Returns the names of what it removed. The caller is the only cleaner.
    """
    path = path_of(data_dir, stem, LOCK)
    had_lock = os.path.lexists(path)
    fd = open_file(path, os.O_RDWR | os.O_CREAT)  # without the file there would be nothing to keep a listener away
    made_here = False
    try:
        if not try_lock(fd, path, fcntl.LOCK_SH):
            return []
        made_here = not had_lock
        if table is not None and _life(data_dir, stem, table) is not Life.ENDED:
            return []
        # The lock goes last: as long as it is there, it tells whose the others are.
        suffixes = [STATE, _DRAFT]
        if table is not None:
            suffixes += [SHOWN, SHOWN + TMP, OPTIONS, OPTIONS + TMP, LOCK]
        removed = [suffix for suffix in suffixes if unlink(path_of(data_dir, stem, suffix))]
        return [f"{stem}{suffix}" for suffix in removed if suffix != LOCK or had_lock]
    finally:
        if made_here and is_at(fd, path):
            unlink(path)
        os.close(fd)


def _life(data_dir: str, stem: str, table: ProcessTable) -> Life:
    """Whether the owner of these files lives, as far as it can be told; one that cannot be judged has ended when
    nothing has touched them for `FOREIGN_KEEP_S`."""
    owners = _owners(data_dir, stem)
    lives = {life_of(owner, table) for owner in owners}
    if not owners and stem in (str(pid_of(stem)), f"{pid_of(stem)}-{table.place().tag}"):
        # A listener that has just made its lock file has written nothing yet: any process with this pid may own it.
        entry = table.look(pid_of(stem))
        unseen = entry is None and table.exists(pid_of(stem))
        return Life.ALIVE if unseen or (entry is not None and not entry.ended) else Life.ENDED
    if Life.ALIVE in lives:
        return Life.ALIVE
    if lives == {Life.ENDED}:
        return Life.ENDED
    return Life.ENDED if _untouched_s(data_dir, stem) > FOREIGN_KEEP_S else Life.UNKNOWN


def _owners(data_dir: str, stem: str) -> set[Process]:
    """Those that the files of this stem were written for: mostly one."""
    options = load_json(path_of(data_dir, stem, OPTIONS), MAX_RECORD_BYTES)
    state = load_state(data_dir, stem)
    found = (owner_in(lock_record(data_dir, stem), stem), owner_in(options, stem), state.owner if state else None)
    return {owner for owner in found if owner is not None}


def _untouched_s(data_dir: str, stem: str) -> float:
    """For how long nothing has written to the files of this stem."""
    newest_s = 0.0
    for suffix in (LOCK, STATE, OPTIONS, SHOWN):
        with suppress(FileNotFoundError):
            newest_s = max(newest_s, os.stat(path_of(data_dir, stem, suffix), follow_symlinks=False).st_mtime)
    return time.time() - newest_s


# --- files ------------------------------------------------------------------------------------------------------


def _stems(data_dir: str) -> dict[str, list[str]]:
    """Stem → suffixes of all files that belong to owners, in order."""
    try:
        names = sorted(os.listdir(Paths(data_dir).clients))
    except OSError:  # nothing was ever made here, or it is not ours to look into
        return {}
    found: dict[str, list[str]] = {}
    for name in names:
        if match := re.fullmatch(OWNED, name, re.ASCII):
            found.setdefault(match[1], []).append(name[match.end(1) :])
    return found


def _read_identity(fd: int, stem: str, owner: Process) -> Identity | None:
    """The identity in an open lock file; None where there is none, or it is another process's."""
    record = parse_json(head_line(fd))
    found = owner_in(record, stem)
    if found is None or not found.is_same(owner):
        return None
    session_id, token, name, label, port, left = (record.get(field) for field in Identity._fields)
    if not (isinstance(session_id, str) and session_id and isinstance(token, str) and token):
        return None
    if not (isinstance(name, str | None) and isinstance(label, str | None)):
        return None
    on_port = port if type(port) is int and 0 < port <= MAX_PORT else None
    return Identity(session_id, token, name, label, on_port, left is True)
