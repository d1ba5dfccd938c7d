"""The processes of this machine: what a pid stands for, and whether that very process still runs.

Theory of operation
===================

A pid alone names nobody for long: pids are used again, and the start time tells the second process from the first. So
a process is a pair of both, and `is_alive` asks for the pair. A zombie counts as ended: it does nothing any more, and
it stays for as long as its parent does not look.

Commands ask such questions in the forty milliseconds that they live, and the broker asks about the owners of its
sessions: on Linux /proc is read directly, one small read for each question, and psutil is not imported. On other
systems psutil answers. Both stand behind `ProcessTable`, and tests have tables of their own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Protocol

from zmqbus.tuples import NamedTuple

#: So much of a command line is read: what decides stands at its beginning, and shells carry whole scripts in `-c`.
CMDLINE_BYTES = 16 * 1024
#: /proc/<pid>/stat is some 350 bytes.
STAT_BYTES = 4096

#: States of a process that has ended: zombie, and the two names of "dead".
_ENDED = frozenset("ZXx")


class Process(NamedTuple):
    """One process, told apart from an earlier or later one with the same pid."""

    pid: int
    started: str  #: start time, opaque, only to be compared; "" where there was no such process


class ProcessEntry(NamedTuple):
    """What a process table says about one process."""

    parent: int  #: pid; 0 = none that can be seen
    started: str
    ended: bool  #: a zombie, whose parent has not looked yet


class ProcessTable(Protocol):
    """The processes of this machine, as far as they have to be known here. Tests have one of their own."""

    def look(self, pid: int) -> ProcessEntry | None:
        """Parent, start time and state of a process; None: no such process."""

    def cmdline(self, pid: int) -> list[str]:
        """Its command line; empty where there is none, or it cannot be read."""

    def uid(self, pid: int) -> int | None:
        """The user it runs as; None: no such process."""


def import_path() -> str:
    """PYTHONPATH for a child that is to run this very package, with what this process has found of the others: be it a
    virtual environment put on the path by the bootstrap. What is relative, or "", meant a directory that the child does
    not run in."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return os.pathsep.join([package, *_absolute(sys.path)])


def _absolute(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if path:
            try:
                yield os.path.abspath(path)
            except OSError:  # relative to a current directory that has been removed: nothing is there
                continue


class ProcTable:
    """The table of Linux, read from /proc."""

    def look(self, pid: int) -> ProcessEntry | None:
        """See `ProcessTable`."""
        line = _read(f"/proc/{pid}/stat", STAT_BYTES)
        # The second field is the name in parentheses, and the name may hold blanks and parentheses of its own.
        fields = line[line.rfind(b")") + 1 :].split()
        if len(fields) < 20:
            return None
        return ProcessEntry(int(fields[1]), fields[19].decode(), fields[0].decode() in _ENDED)

    def cmdline(self, pid: int) -> list[str]:
        """See `ProcessTable`."""
        line = _read(f"/proc/{pid}/cmdline", CMDLINE_BYTES).rstrip(b"\0")
        return [os.fsdecode(word) for word in line.split(b"\0")] if line else []

    def uid(self, pid: int) -> int | None:
        """See `ProcessTable`."""
        try:
            return os.stat(f"/proc/{pid}").st_uid
        except OSError:
            return None


class PsutilTable:
    """The table of other systems. Imports psutil when it is used: Linux does without."""

    def look(self, pid: int) -> ProcessEntry | None:
        """See `ProcessTable`."""
        import psutil

        try:
            process = psutil.Process(pid)
            with process.oneshot():
                ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
                return ProcessEntry(process.ppid(), f"{process.create_time():.3f}", ended)
        except (psutil.Error, OSError, ValueError):
            return None

    def cmdline(self, pid: int) -> list[str]:
        """See `ProcessTable`."""
        import psutil

        try:
            return list(psutil.Process(pid).cmdline())
        except (psutil.Error, OSError, ValueError):
            return []

    def uid(self, pid: int) -> int | None:
        """See `ProcessTable`."""
        import psutil

        try:
            return int(psutil.Process(pid).uids().effective)
        except (psutil.Error, OSError, ValueError):
            return None


def this_machine() -> ProcessTable:
    """The process table of the system that this runs on."""
    return ProcTable() if sys.platform == "linux" else PsutilTable()


def process_of(pid: int, table: ProcessTable | None = None) -> Process:
    """The process that has this pid now; `started` is "" where there is none."""
    entry = (table or this_machine()).look(pid)
    return Process(pid, entry.started if entry else "")


def is_alive(process: Process, table: ProcessTable | None = None) -> bool:
    """Does this very process still run? Another with its pid does not count, nor does a zombie."""
    entry = (table or this_machine()).look(process.pid)
    return entry is not None and entry.started == process.started and not entry.ended


def _read(path: str, limit_bytes: int) -> bytes:
    """The beginning of a file below /proc; b"" where it is not there, is not ours to read, or its process has gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, limit_bytes)
    except OSError:  # ESRCH: it ended between the open and the read
        return b""
    finally:
        os.close(fd)
