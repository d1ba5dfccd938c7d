"""What the agent of a session does, from the agent's hooks to the session's long-lived process.

A hook lives for some 30 ms, which is less than a connection to the broker takes. So it writes the state to
`clients/<owner>.agent` and wakes the listener through a FIFO, `clients/<owner>.fifo`. The listener, which sleeps until
then, tells the broker over the connection that it has, and again after each HELLO.

The file is one line: the state, since when (seconds since 1970), and of a blocked agent what it waits for. It is
replaced as a whole. It holds no identity, only its name: what an earlier process of the same pid has left counts until
a hook of this one runs.

This module imports nothing that costs a hook time.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress

from zmqbus.session.owner_files import AGENT, FIFO, TMP, OwnerFiles
from zmqbus.tuples import NamedTuple
from zmqbus.wire.header import AGENT_STATES, detail_of

#: A state, a time and 200 characters of UTF-8 are less.
MAX_BYTES = 1024


class AgentState(NamedTuple):
    """What an agent does."""

    state: str  #: one of `AGENT_STATES`
    since_ts: float  #: wall clock, s since 1970
    detail: str  #: of a blocked agent: what it waits for


def report(files: OwnerFiles, state: str, detail: str = "") -> bool:
    """Stores what the agent does, and wakes the session's process; returns whether there is one.

    A state that is stored already keeps its time. Raises `OSError` where the file cannot be written.
    """
    detail = detail_of(detail)
    before = read(files)
    if before is None or (before.state, before.detail) != (state, detail):
        temporary = files.path(AGENT + TMP)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, f"{state} {time.time():.3f} {detail}\n".encode("utf-8", "replace"))
        finally:
            os.close(fd)
        os.replace(temporary, files.path(AGENT))
    return ring(files)


def report_quietly(files: OwnerFiles, state: str, detail: str = "") -> None:
    """As `report`, from a hook: a state that cannot be written disturbs nobody."""
    with suppress(OSError):
        report(files, state, detail)


def ring(files: OwnerFiles) -> bool:
    """Wakes the session's process through its FIFO; returns whether one holds it open."""
    try:
        fd = os.open(files.path(FIFO), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, b"\n")
    except BlockingIOError:
        pass  # it is full: the process has enough to wake up for
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def read(files: OwnerFiles) -> AgentState | None:
    """Returns the stored state; None if there is none, or it is damaged."""
    try:
        fd = os.open(files.path(AGENT), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        text = os.read(fd, MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)
    state, _, rest = text.partition(" ")
    since, _, detail = rest.partition(" ")
    try:
        since_ts = float(since)
    except ValueError:
        return None
    return AgentState(state, since_ts, detail_of(detail)) if state in AGENT_STATES else None


class Bell:
    """The reading end of the FIFO, held by the session's long-lived process. A context manager.

    Where the file system has no FIFOs, `fd` is -1 and nothing rings; the process then sees a state when it wakes up for
    another reason.
    """

    def __init__(self, files: OwnerFiles) -> None:
        self._path = files.path(FIFO)
        self._writer = self.fd = -1

    def __enter__(self) -> Bell:
        try:
            # That of an earlier process may be no FIFO, or open in another process.
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            os.mkfifo(self._path, 0o600)
            self.fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            if not stat.S_ISFIFO(os.fstat(self.fd).st_mode):
                raise OSError("no FIFO")
            # A writer of its own: without any, the end would be readable for ever.
            self._writer = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            self._close()
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            with suppress(OSError):
                if os.path.samestat(os.stat(self._path), os.fstat(self.fd)):  # a newer process may have its own there
                    os.unlink(self._path)
        self._close()

    def _close(self) -> None:
        for fd in (self.fd, self._writer):
            if fd >= 0:
                os.close(fd)
        self.fd = self._writer = -1

    def answered(self) -> bool:
        """Returns whether it has rung since the last time."""
        rung = False
        if self.fd >= 0:
            with suppress(BlockingIOError):
                while os.read(self.fd, 4096):
                    rung = True
        return rung
