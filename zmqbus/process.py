"""The processes of this machine: which process a pid means, and whether that process still runs.

Theory of operation
===================

A pid identifies a process only for a time and in one place. Pids are used again, and the start time distinguishes the
second process from the first. Each PID namespace (a container, a sandbox) numbers its own pids, and so does each
machine that shares a home directory. So a `Process` is a pid, a start time and a *place*: the PID namespace, the boot
id of its kernel, and the machine. They are stored together (`Process.text`).

`life_of` has three answers to whether a process still runs, and each caller decides what "unknown" means for it:

* *In our own place*, the process table answers. If it shows no such process (`/proc` is not mounted, belongs to another
  namespace, or hides other users' processes), signal 0 asks the kernel: only ESRCH means "ended".
* *In another PID namespace of this kernel*: "unknown". The inode of a namespace may be used again, but only after the
  last process in it has ended, so the table gives the right answer then, too.
* *Under another boot id*: ended if the machine is the same, since it has been restarted. A container has the boot id of
  its host's kernel. A virtual machine, or another machine that shares the directory, has a boot id and a machine id of
  its own, and its process may be alive: "unknown". Without a machine id to compare, also "unknown".
* *In no place* (stored by an earlier release, or where the kernel does not tell): alive if the table shows exactly this
  process, otherwise "unknown".

The machine is `/etc/machine-id`, hashed, as its documentation demands of stored ids. Machines that were cloned with
that file cannot be distinguished. Systems without namespaces (macOS) have no place at all: the three fields are "" on
both sides, and the table answers.

A zombie counts as ended: it does nothing any more, and stays until its parent collects it.

Commands live for forty milliseconds, and the broker asks about the owners of all its sessions. So on Linux /proc is
read directly, one small read for each question, without psutil. On other systems psutil answers. Both implement
`ProcessTable`, and tests have tables of their own.
"""

from __future__ import annotations

import os
import re
import sys
from enum import Enum
from functools import lru_cache
from typing import Protocol

from zmqbus.security.digest import sha256
from zmqbus.tuples import NamedTuple

#: So much of a command line is read: the beginning decides, and shells carry whole scripts in `-c`.
CMDLINE_BYTES = 16 * 1024
#: /proc/<pid>/stat is some 350 bytes.
STAT_BYTES = 4096

#: A boot id is a UUID, a machine id has 32 digits.
ID_BYTES = 64
#: So many hexadecimal digits of a digest identify a machine (or a place).
DIGEST_DIGITS = 12
#: The inode of the first PID namespace of every Linux kernel (PROC_PID_INIT_INO): that of the machine itself.
FIRST_NAMESPACE = str(0xEFFFFFFC)
#: The largest pid of any system here.
MAX_PID = 2**31 - 1

#: Longest chain of parents that is followed. Real ones have a dozen; a broken table must not cause an endless loop.
MAX_ANCESTORS = 128

#: States of a process that has ended: zombie, and the two names of "dead".
_ENDED = frozenset("ZXx")
#: Stands for an unreadable boot id, from which nothing can be concluded.
_UNREADABLE = "?"
#: Compiled at first use, as in all modules that every command loads: that takes a third of a millisecond.
_TEXT = r"([1-9][0-9]{0,9}):([^:\s]*)(?::([^:\s]*):([^:\s]*):([^:\s]*))?"


class Life(Enum):
    """Whether a process runs, as far as this process can tell."""

    ALIVE = "alive"
    ENDED = "ended"
    UNKNOWN = "unknown"


class Place(NamedTuple):
    """Where a pid is valid. All fields are "" on systems without namespaces, and where they were not stored."""

    namespace: str = ""  #: inode of the PID namespace
    boot: str = ""  #: the kernel's boot id
    machine: str = ""  #: digest of the machine id

    @property
    def tag(self) -> str:
        """A short name for file names."""
        return sha256("/".join(self).encode()).hexdigest()[:DIGEST_DIGITS]


NOWHERE = Place()


class Process(NamedTuple):
    """Identifies one process among all with the same pid, earlier, later or in another place."""

    pid: int
    started: str  #: start time, opaque, only to be compared; "" where there was no such process
    namespace: str = ""
    boot: str = ""
    machine: str = ""

    @property
    def place(self) -> Place:
        """Where its pid is valid."""
        return Place(self.namespace, self.boot, self.machine)

    @property
    def text(self) -> str:
        """The form in which it is stored."""
        return ":".join((str(self.pid), *self[1:]))

    @classmethod
    def parse(cls, text: object) -> Process | None:
        """The process from its stored form; None if it is invalid. An earlier release stored no place."""
        match = re.fullmatch(_TEXT, text, re.ASCII) if isinstance(text, str) else None
        if match is None or int(match[1]) > MAX_PID:
            return None
        return cls(int(match[1]), match[2], *(part or "" for part in match.groups()[2:]))

    def is_same(self, other: Process) -> bool:
        """Whether both are the same process; if one of them has no place, the other fields decide."""
        if self[:2] != other[:2]:
            return False
        return self.place == other.place or NOWHERE in (self.place, other.place)


class ProcessEntry(NamedTuple):
    """One process in a process table."""

    parent: int  #: pid; 0 = none visible
    started: str
    ended: bool  #: a zombie
    leader: int = 0  #: pid of its kernel session's leader, which may have ended; 0 = not known


class ProcessTable(Protocol):
    """Access to the processes of this machine. Tests have tables of their own."""

    def place(self) -> Place:
        """Where its pids are valid."""

    def look(self, pid: int) -> ProcessEntry | None:
        """Parent, start time and state of a process; None if there is none, or it is hidden."""

    def exists(self, pid: int) -> bool:
        """Whether any process has this pid, hidden or not."""

    def cmdline(self, pid: int) -> list[str]:
        """Its command line; empty if there is none, or it is unreadable."""

    def uid(self, pid: int) -> int | None:
        """The user that it runs as; None if there is no such process."""


class ProcTable:
    """The table of Linux, read from /proc. Empty if /proc is not mounted or belongs to another namespace."""

    def place(self) -> Place:
        """See `ProcessTable`."""
        return _place(os.getpid())

    def exists(self, pid: int) -> bool:
        """See `ProcessTable`."""
        return _exists(pid)

    def look(self, pid: int) -> ProcessEntry | None:
        """See `ProcessTable`."""
        if not _is_our_proc(os.getpid()):
            return None
        line = _read(f"/proc/{pid}/stat", STAT_BYTES)
        # The second field is the name in parentheses, and the name may hold blanks and parentheses of its own.
        fields = line[line.rfind(b")") + 1 :].split()
        if len(fields) < 20:
            return None
        return ProcessEntry(int(fields[1]), fields[19].decode(), fields[0].decode() in _ENDED, int(fields[3]))

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
    """The table of other systems. Imports psutil at its first use, so that Linux never does."""

    def place(self) -> Place:
        """See `ProcessTable`."""
        return ProcTable().place() if sys.platform == "linux" else NOWHERE

    def exists(self, pid: int) -> bool:
        """See `ProcessTable`."""
        return _exists(pid)

    def look(self, pid: int) -> ProcessEntry | None:
        """See `ProcessTable`."""
        import psutil

        try:
            process = psutil.Process(pid)
            with process.oneshot():
                ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
                return ProcessEntry(process.ppid(), f"{process.create_time():.3f}", ended, _leader(pid))
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


def _leader(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:  # it is another user's
        return 0


def this_machine() -> ProcessTable:
    """The process table of this system."""
    return ProcTable() if sys.platform == "linux" else PsutilTable()


def process_of(pid: int, table: ProcessTable | None = None) -> Process:
    """The process that has this pid now; `started` is "" if there is none, or it is hidden."""
    table = table or this_machine()
    entry = table.look(pid)
    return Process(pid, entry.started if entry else "", *table.place())


def ancestors(pid: int | None = None, table: ProcessTable | None = None) -> list[Process]:
    """The visible ancestors of `pid` (default: of this process), nearest first."""
    table = table or this_machine()
    place = table.place()
    chain: list[Process] = []
    entry = table.look(os.getpid() if pid is None else pid)
    seen: set[int] = set()
    while entry is not None and entry.parent > 0 and entry.parent not in seen and len(chain) < MAX_ANCESTORS:
        parent = entry.parent
        seen.add(parent)
        entry = table.look(parent)
        if entry is not None:
            chain.append(Process(parent, entry.started, *place))
    return chain


def life_of(process: Process, table: ProcessTable | None = None) -> Life:
    """Whether this process still runs. Another process with its pid does not count, nor does a zombie."""
    table = table or this_machine()
    here = table.place()
    if process.place == here and (here.namespace or not here.boot):
        entry = table.look(process.pid)
        if entry is not None:
            return Life.ALIVE if entry.started == process.started and not entry.ended else Life.ENDED
        # guards: process liveness: it may be hidden [Life.UNKNOWN if table.exists(process.pid) else =>]
        return Life.UNKNOWN if table.exists(process.pid) else Life.ENDED
    if process.place == NOWHERE:
        entry = table.look(process.pid)
        shown = entry is not None and entry.started == process.started and not entry.ended
        return Life.ALIVE if shown else Life.UNKNOWN
    # guards: process liveness [and process.boot != here.boot =>]
    if process.machine and process.machine == here.machine and process.boot != here.boot:
        return Life.UNKNOWN if _UNREADABLE in (process.boot, here.boot) else Life.ENDED
    return Life.UNKNOWN


def is_alive(process: Process, table: ProcessTable | None = None) -> bool:
    """Whether this process certainly runs."""
    return life_of(process, table) is Life.ALIVE


def has_ended(process: Process, table: ProcessTable | None = None) -> bool:
    """Whether this process has certainly ended; False if that is unknown."""
    return life_of(process, table) is Life.ENDED


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's
        return True
    return True


# The values below do not change while a process lives. They are cached by pid, so that a child in another namespace
# does not use its copy of the cache.


@lru_cache(maxsize=2)
def _place(pid: int) -> Place:
    try:
        namespace = os.readlink("/proc/self/ns/pid").partition("[")[2].rstrip("]")
    except OSError:
        namespace = ""
    boot = _read("/proc/sys/kernel/random/boot_id", ID_BYTES).strip().decode("ascii", "replace")
    return Place(namespace, boot.replace("-", "").replace(":", "") or _UNREADABLE, _machine())


def _machine() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        machine_id = _read(path, ID_BYTES).strip()
        if len(machine_id) == 32 and machine_id.isalnum():  # not "uninitialized", as images of systems have it
            return sha256(b"zmqbus" + machine_id).hexdigest()[:DIGEST_DIGITS]
    return ""


@lru_cache(maxsize=2)
def _is_our_proc(pid: int) -> bool:
    """Whether /proc belongs to the namespace of this process, and so shows it under this pid."""
    try:
        return os.readlink("/proc/self") == str(pid)
    except OSError:
        return False


def _read(path: str, limit_bytes: int) -> bytes:
    """The beginning of a small file; b"" if it is missing or unreadable, or its process has gone."""
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
