"""The lock of a session: one listener for each owner.

Rules that exclude the races:

* A listener takes the lock exclusively (EX). A process that only checks whether it is held takes it shared (SH), for
  microseconds. So a listener that is refused EX and then gets SH has met such a check, and tries again; refused SH too,
  it has met another listener for certain.
* Only a cleaner (`zmqbus.session.leftovers`) unlinks lock files, while it holds `reap.lock` (so there is one cleaner)
  and SH on the file (so there is no listener). A listener that gets EX compares the file that it locked with the one
  that has the name now: a file that was unlinked while it waited would be a lock that nobody else can see.
* A listener that gets EX immediately writes its owner into the file, before anything slow: a listener of another place
  that finds the lock held then knows that it has to use another name.
* State files are written only by the holder of EX, and removed by it or by a cleaner.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from zmqbus.errors import LocalError, NotConnected
from zmqbus.process import Life, Process, life_of
from zmqbus.security.private_files import (
    file_error,
    is_at,
    open_file,
    parse_json,
    replace,
    secure_dir,
    try_lock,
    unlink,
)
from zmqbus.session.owner_files import (
    LOCK,
    STATE,
    TMP,
    OwnerFiles,
    files_of,
    first_line,
    is_anothers,
    owner_in,
    record_of,
)
from zmqbus.session.state import Identity, SessionState, load_state, read_identity
from zmqbus.settings import Paths

#: A check holds a lock for microseconds. A process that holds it this long was stopped in the middle.
ACQUIRE_PATIENCE_S = 5.0
#: Pause between two tries for a lock that a check holds: long for the check, short for the waiting listener.
RETRY_S = 0.002
#: How often a listener sets the time of its lock file, to show that its files are in use.
TOUCH_S = 3600.0


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

    def __init__(self, fd: int, files: OwnerFiles) -> None:
        """For `acquire` only: `fd` is the locked lock file."""
        self._fd = fd
        self._files = files
        self._touched_s = time.monotonic()
        self._identity = read_identity(fd, files)
        found = owner_in(parse_json(first_line(fd)), files.stem)
        if found is None or not found.is_same(files.owner):
            with suppress(OSError):  # a full disk: `remember` reports it
                self._write(record_of(files.owner))

    @classmethod
    def acquire(cls, data_dir: str, owner: Process) -> ListenerLock:
        """Takes the lock of `owner`, and removes the state that a killed predecessor left.

        Raises `AlreadyListening` where another listener holds it, `Unauthorized` where files or directories are not
        private, `NotConnected` where they cannot be made or locked.
        """
        secure_dir(data_dir)
        secure_dir(Paths(data_dir).clients)
        deadline_s = time.monotonic() + ACQUIRE_PATIENCE_S
        while time.monotonic() < deadline_s:
            files = files_of(data_dir, owner)
            path = files.path(LOCK)
            fd = open_file(path, os.O_RDWR | os.O_CREAT)
            try:
                if try_lock(fd, path, fcntl.LOCK_EX):
                    # A process elsewhere with the same pid may have taken the name since it was chosen.
                    if is_at(fd, path) and not _is_anothers(fd, files):
                        lock = cls(fd, files)
                        lock.remove_state()
                        fd = -1  # now owned by the lock
                        return lock
                    continue  # or a cleaner has unlinked it: there is another file, or none
                if not try_lock(fd, path, fcntl.LOCK_SH):
                    if _is_anothers(fd, files):
                        continue
                    raise AlreadyListening(_running(files))
            finally:
                if fd >= 0:
                    os.close(fd)
            time.sleep(RETRY_S)
        raise NotConnected(f"{path} stays locked by a process that does not listen; find it (fuser {path}) and end it")

    @property
    def identity(self) -> Identity | None:
        """The session's identity, as stored by this listener or by an earlier one of the very same owner."""
        return self._identity

    @property
    def files(self) -> OwnerFiles:
        """The files of the owner."""
        return self._files

    def remember(self, identity: Identity) -> None:
        """Stores the identity for the next listener of this owner. Raises `NotConnected` where it cannot be written."""
        try:
            whole = self._write({**identity._asdict(), **record_of(self._files.owner)})
        except OSError as error:
            raise file_error("write", self._files.path(LOCK), error) from error
        if not whole:
            raise NotConnected(f"the disk of {self._files.data_dir} is full; free some space and connect again")
        self._identity = identity

    def note_left(self) -> None:
        """Stores that the user has disconnected this session, until it connects again. Raises as `remember`."""
        if self._identity is not None and not self._identity.left:
            self.remember(self._identity._replace(left=True))

    def _write(self, record: dict[str, Any]) -> bool:
        """Replaces the content of the lock file. False: the disk has taken only a part of it."""
        # Written over in place, because the lock is on this file. The old record is cut off afterwards and ends at the
        # first newline: whenever a kill hits, the old or the new record is there, whole.
        data = (json.dumps(record) + "\n").encode()
        written = os.pwrite(self._held(), data, 0)
        os.ftruncate(self._fd, written)
        return written == len(data)

    def touch(self) -> None:
        """Shows, once in `TOUCH_S`, that the files are in use, to processes that cannot see whether the owner lives."""
        now_s = time.monotonic()
        if now_s - self._touched_s >= TOUCH_S:
            self._touched_s = now_s
            with suppress(OSError):
                os.utime(self._held())

    def write_state(self, state: SessionState) -> None:
        """Writes the state file. Helpers see the old state or the new one, never a mixture.

        Raises `NotConnected` where it cannot be written; then the old one stays.
        """
        self._held()
        replace(self._files.path(STATE), json.dumps(state._asdict()).encode())

    def remove_state(self) -> None:
        """Removes the state file, so that helpers no longer find the session. Idempotent."""
        self._held()
        for suffix in (STATE, STATE + TMP):
            unlink(self._files.path(suffix))

    def release(self) -> None:
        """Releases the lock; the state file stays as it is. Idempotent."""
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
        return f"<ListenerLock of owner {self._files.owner.pid}, {'held' if self._fd >= 0 else 'released'}>"

    def _held(self) -> int:
        if self._fd < 0:
            raise RuntimeError("this listener lock has been released")
        return self._fd


def _is_anothers(fd: int, files: OwnerFiles) -> bool:
    """Whether this lock file belongs to another process that may live."""
    return is_anothers(owner_in(parse_json(first_line(fd)), files.stem), files.owner)


def _running(files: OwnerFiles) -> SessionState | None:
    """The state of the listener that holds the lock, but not of its predecessor, which it has not yet removed."""
    state = load_state(files.data_dir, files.stem)
    if state is None or life_of(state.listener) is Life.ENDED:
        return None
    return state
