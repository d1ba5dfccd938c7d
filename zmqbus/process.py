"""The processes of this machine: what a pid stands for, and whether that very process still runs.

Theory of operation
===================

A pid names a process only for a while and only in one place. For a while: pids are used again, and the start time tells
the second process from the first. In one place: each PID namespace (a container, a sandbox) counts its own pids, and so
does each machine that shares a home directory. So a `Process` is a pid, a start time and a *place*: the PID namespace,
the boot id of its kernel, and the machine. They are written down together (`Process.text`) wherever a process is.

Whether a process still runs has three answers (`life_of`), and each caller decides what "unknown" means for it:

* *In our own place* the process table answers. Where it shows no such process (`/proc` is not mounted, is that of
  another namespace, or hides what is not ours) the kernel is asked with signal 0: only ESRCH means "ended".
* *In another PID namespace of this kernel* nobody can tell from here: "unknown". The inode of a namespace may be used
  again, but only after the last process in it has ended, so the table gives the right answer then, too.
* *Under another boot id* it has ended if the machine is the same: that has been restarted since. A container has the
  boot id of its host's kernel. A virtual machine, or another machine that shares the directory, has a boot id and a
  machine id of its own, and may be alive: "unknown". So is everything where there is no machine id to compare.
* *In no place* (written by an earlier release, or where the kernel does not tell): alive if the table shows exactly
  this process, otherwise "unknown".

The machine is `/etc/machine-id`, hashed, which its documentation asks of everyone who stores it. Machines that were
cloned together with that file cannot be told apart. Systems without namespaces (macOS) have no place at all: the three
fields are "" on both sides, and the table answers.

A zombie counts as ended: it does nothing any more, and it stays for as long as its parent does not look.

Commands ask such questions in the forty milliseconds that they live, and the broker asks about the owners of its
sessions: on Linux /proc is read directly, one small read for each question, and psutil is not imported. On other
systems psutil answers. Both stand behind `ProcessTable`, and tests have tables of their own.
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

#: So much of a command line is read: what decides stands at its beginning, and shells carry whole scripts in `-c`.
CMDLINE_BYTES = 16 * 1024
#: /proc/<pid>/stat is some 350 bytes.
STAT_BYTES = 4096

#: A boot id is a UUID, a machine id has 32 digits.
ID_BYTES = 64
#: So many hexadecimal digits of a digest tell machines (and places) apart.
DIGEST_DIGITS = 12
#: The inode of the first PID namespace of every Linux kernel (PROC_PID_INIT_INO): that of the machine itself.
FIRST_NAMESPACE = str(0xEFFFFFFC)
#: The largest pid of any system here.
MAX_PID = 2**31 - 1

#: Longest chain of parents that is followed. Real ones have a dozen links; a broken table must not keep us for ever.
MAX_ANCESTORS = 128

#: States of a process that has ended: zombie, and the two names of "dead".
_ENDED = frozenset("ZXx")
#: A boot id that could not be read. It differs from every other one, so nothing is judged by it.
_UNREADABLE = "?"
#: Compiled when it is first needed, as in all modules that every command loads: that takes a third of a millisecond.
_TEXT = r"([1-9][0-9]{0,9}):([^:\s]*)(?::([^:\s]*):([^:\s]*):([^:\s]*))?"


class Life(Enum):
    """Whether a process runs, as far as it can be told from here."""

    ALIVE = "alive"
    ENDED = "ended"
    UNKNOWN = "unknown"


class Place(NamedTuple):
    """Where a pid counts. All fields are "" on systems without namespaces, and where nobody wrote it down."""

    namespace: str = ""  #: inode of the PID namespace
    boot: str = ""  #: the kernel's boot id
    machine: str = ""  #: digest of the machine id

    @property
    def tag(self) -> str:
        """A short name for it, for file names."""
        return sha256("/".join(self).encode()).hexdigest()[:DIGEST_DIGITS]


NOWHERE = Place()


class Process(NamedTuple):
    """One process, told apart from an earlier or later one with the same pid, and from one in another place."""

    pid: int
    started: str  #: start time, opaque, only to be compared; "" where there was no such process
    namespace: str = ""
    boot: str = ""
    machine: str = ""

    @property
    def place(self) -> Place:
        """Where its pid counts."""
        return Place(self.namespace, self.boot, self.machine)

    @property
    def text(self) -> str:
        """How it is written down."""
        return ":".join((str(self.pid), *self[1:]))

    @classmethod
    def parse(cls, text: object) -> Process | None:
        """The process that a text stands for; None where it is none. An earlier release wrote no place."""
        match = re.fullmatch(_TEXT, text, re.ASCII) if isinstance(text, str) else None
        if match is None or int(match[1]) > MAX_PID:
            return None
        return cls(int(match[1]), match[2], *(part or "" for part in match.groups()[2:]))

    def is_same(self, other: Process) -> bool:
        """Whether both are one process; where one of them has no place, as far as the rest tells."""
        if self[:2] != other[:2]:
            return False
        return self.place == other.place or NOWHERE in (self.place, other.place)


class ProcessEntry(NamedTuple):
    """What a process table says about one process."""

    parent: int  #: pid; 0 = none that can be seen
    started: str
    ended: bool  #: a zombie, whose parent has not looked yet
    leader: int = 0  #: pid of its kernel session's leader, which may have ended; 0 = not known


class ProcessTable(Protocol):
    """The processes of this machine, as far as they have to be known here. Tests have one of their own."""

    def place(self) -> Place:
        """Where its pids count."""

    def look(self, pid: int) -> ProcessEntry | None:
        """Parent, start time and state of a process; None: no such process, or it is not shown."""

    def exists(self, pid: int) -> bool:
        """Whether any process has this pid, shown or not."""

    def cmdline(self, pid: int) -> list[str]:
        """Its command line; empty where there is none, or it cannot be read."""

    def uid(self, pid: int) -> int | None:
        """The user it runs as; None: no such process."""


class ProcTable:
    """The table of Linux, read from /proc. Shows nothing where /proc is not mounted or is another namespace's."""

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
    """The table of other systems. Imports psutil when it is used: Linux does without."""

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
    """The process table of the system that this runs on."""
    return ProcTable() if sys.platform == "linux" else PsutilTable()


def process_of(pid: int, table: ProcessTable | None = None) -> Process:
    """The process that has this pid now; `started` is "" where there is none, or it is not shown."""
    table = table or this_machine()
    entry = table.look(pid)
    return Process(pid, entry.started if entry else "", *table.place())


def ancestors(pid: int | None = None, table: ProcessTable | None = None) -> list[Process]:
    """The processes above `pid` (default: above this one), nearest first; as far as they can be seen."""
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
    """Whether this very process still runs. Another with its pid does not count, nor does a zombie."""
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
    """Whether this very process certainly runs."""
    return life_of(process, table) is Life.ALIVE


def has_ended(process: Process, table: ProcessTable | None = None) -> bool:
    """Whether this very process has certainly ended. What cannot be judged from here has not."""
    return life_of(process, table) is Life.ENDED


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's
        return True
    return True


# What follows does not change while a process lives. It is kept by pid, so that a child in another namespace, which has
# a copy of it, does not use it.


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
    """Whether /proc is of the namespace that this process is in: only then it calls it by this pid."""
    try:
        return os.readlink("/proc/self") == str(pid)
    except OSError:
        return False


def _read(path: str, limit_bytes: int) -> bytes:
    """The beginning of a small file; b"" where it is not there, is not ours to read, or its process has gone."""
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
