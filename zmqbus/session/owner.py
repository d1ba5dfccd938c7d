"""Whose process am I: the process whose life bounds a session.

Theory of operation
===================

A listener and the helpers of one session are started by different shells, at different times, and have one thing in
common: the Claude Code process above them. Its pid and its start time are the key of everything that belongs to the
session. The session id that the harness gives away would not do: it changes on `/clear`, the process does not. The
pid alone would not do either: pids are used again, and the start time tells the second process from the first.

`find_owners` answers in this order:

1. The override, for tests and odd shells. It is believed, dead or alive.
2. The nearest process above us that certainly is Claude Code, where it is *nearer* than `CLAUDE_PID`, or `CLAUDE_PID`
   is not above us at all. The variable is inherited by whatever is started from a session, and that may be another
   session: one that runs in a tmux whose server was started by the first must not act as the first.
3. `CLAUDE_PID`, where it is a living process of the same user.
4. The nearest process above us that may be Claude Code.
5. The parent, and after it the processes above. Without Claude Code a session belongs to a shell, and helpers run by
   `make` or `uv run` from that shell are to find it: that is why there is a list, and not one owner only.

"Certainly" is a `cmdline[0]` called `claude`, an installed version of it, or node or bun running its package. "May be"
is node or bun running a path that mentions claude in another way: a development build, but also any tool in
`~/src/claude-tools`. So the weak match yields to all that is better, and the processes above it stay in the list. The
process name (`comm`) is not looked at: current releases set it to their version. A shell whose `-c` string mentions
claude is a shell, and a script below `~/.claude` (a hook, a plugin) is a script.

A helper asks these questions in the forty milliseconds that it lives: on Linux /proc is read directly, two small reads
for each process above us, and psutil is not imported.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import NamedTuple, Protocol

#: Longest chain of parents that is followed. Real ones have a dozen links; a broken table must not keep us for ever.
MAX_ANCESTORS = 128
#: So much of a command line is read: what decides stands at its beginning, and shells carry whole scripts in `-c`.
CMDLINE_BYTES = 16 * 1024
#: /proc/<pid>/stat is some 350 bytes.
STAT_BYTES = 4096

_INTERPRETERS = frozenset(("node", "nodejs", "bun"))
#: Options of node and bun whose value is a word of its own, and must not be taken for the script.
_OPTIONS_WITH_VALUE = frozenset(
    ("-r", "--require", "--import", "--loader", "--experimental-loader", "--preload", "-C", "--conditions", "--cwd")
)
#: Options that carry the program itself: there is no script to look at.
_INLINE_PROGRAM = frozenset(("-e", "--eval", "-p", "--print", "-pe"))
_PID = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
#: States of a process that has ended: zombie, and the two names of "dead".
_ENDED = frozenset("ZXx")


class Process(NamedTuple):
    """One process, told apart from an earlier or later one with the same pid."""

    pid: int
    started: str  #: start time, opaque, only to be compared; "" where there was no such process


class Entry(NamedTuple):
    """What a process table says about one process."""

    parent: int  #: pid; 0 = none that can be seen
    started: str
    ended: bool  #: a zombie, whose parent has not looked yet


class ProcessTable(Protocol):
    """The processes of this machine, as far as this module has to know them. Tests have one of their own."""

    def look(self, pid: int) -> Entry | None:
        """Parent, start time and state of a process; None: no such process."""

    def cmdline(self, pid: int) -> list[str]:
        """Its command line; empty where there is none, or it cannot be read."""

    def uid(self, pid: int) -> int | None:
        """The user it runs as; None: no such process."""


class ProcTable:
    """The table of Linux, read from /proc."""

    def look(self, pid: int) -> Entry | None:
        """See `ProcessTable`."""
        line = _read(f"/proc/{pid}/stat", STAT_BYTES)
        # The second field is the name in parentheses, and the name may hold blanks and parentheses of its own.
        fields = line[line.rfind(b")") + 1 :].split()
        if len(fields) < 20:
            return None
        return Entry(int(fields[1]), fields[19].decode(), fields[0].decode() in _ENDED)

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

    def look(self, pid: int) -> Entry | None:
        """See `ProcessTable`."""
        import psutil

        try:
            process = psutil.Process(pid)
            with process.oneshot():
                ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
                return Entry(process.ppid(), f"{process.create_time():.3f}", ended)
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


def ancestors(pid: int | None = None, table: ProcessTable | None = None) -> list[Process]:
    """The processes above `pid` (default: above this one), nearest first; as far as they can be seen."""
    table = table or this_machine()
    chain: list[Process] = []
    entry = table.look(os.getpid() if pid is None else pid)
    seen: set[int] = set()
    while entry is not None and entry.parent > 0 and entry.parent not in seen and len(chain) < MAX_ANCESTORS:
        parent = entry.parent
        seen.add(parent)
        entry = table.look(parent)
        if entry is not None:
            chain.append(Process(parent, entry.started))
    return chain


def find_owners(
    override: int | None, environ: Mapping[str, str], table: ProcessTable | None = None, pid: int | None = None
) -> list[Process]:
    """The owner of the session that process `pid` (default: this one) belongs to, then whose session it may use too.

    A listener takes the first. A helper acts as the first of them that has a session; where an owner is certain it is
    the only one, so that an agent without a listener never speaks as the one that started it. Never empty.
    """
    table = table or this_machine()
    if override is not None:
        return [process_of(override, table)]
    me = os.getpid() if pid is None else pid
    chain = ancestors(me, table)
    told = _told(environ, table)
    weak: int | None = None
    for number, process in enumerate(chain):
        if process == told:
            return [process]
        certain = looks_like_claude(table.cmdline(process.pid))
        if certain:
            return [process]
        if certain is False and weak is None:
            weak = number
    if told is not None:
        return [told]
    if weak is not None:
        return chain[weak:]
    return chain or [process_of(me, table)]  # no parent to be seen: the first process of a container


def find_owner(override: int | None, environ: Mapping[str, str], table: ProcessTable | None = None) -> Process:
    """The process whose life bounds the session that this process belongs to. See `find_owners`."""
    return find_owners(override, environ, table)[0]


def looks_like_claude(cmdline: list[str]) -> bool | None:
    """Is this the command line of Claude Code? True: certainly; False: it may be; None: no."""
    if not cmdline:
        return None
    program = cmdline[0].split("/")
    if program[-1] == "claude" or program[-3:-1] == ["claude", "versions"]:
        return True
    if program[-1] not in _INTERPRETERS:
        return None
    script = _script(cmdline)
    if script is None:
        return None
    parts = script.split("/")
    if parts[-1] == "claude" or "@anthropic-ai/claude-code/" in script:
        return True
    if ".claude" in parts or not any("claude" in part.lower() for part in parts):
        return None
    return False


def _script(cmdline: list[str]) -> str | None:
    """What an interpreter was told to run; None: no file."""
    skip = False
    for word in cmdline[1:]:
        if skip:
            skip = False
        elif word in _INLINE_PROGRAM:
            return None
        elif word in _OPTIONS_WITH_VALUE:
            skip = True
        elif word != "run" and not word.startswith("-"):  # `bun run FILE`
            return word
    return None


def _told(environ: Mapping[str, str], table: ProcessTable) -> Process | None:
    """The process that `CLAUDE_PID` names, where it is alive and ours."""
    text = environ.get("CLAUDE_PID", "")
    if not _PID.fullmatch(text):
        return None
    pid = int(text)
    entry = table.look(pid)
    if entry is None or entry.ended or table.uid(pid) != os.geteuid():
        return None
    return Process(pid, entry.started)


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
