"""The owner of a process: the process whose life bounds its session.

Theory of operation
===================

A listener and the helpers of one session are started by different shells, at different times, and have one thing in
common: the Claude Code process above them. Its pid and start time identify everything that belongs to the session. The
harness's session id would not do: it changes on `/clear`, the process does not. The pid alone would not do either: pids
are used again, and the start time distinguishes the second process from the first.

`find_owners` answers in this order:

1. The override, for tests and odd shells. It is used whether that process lives or not.
2. The nearest process above this one that certainly is Claude Code, if it is *nearer* than `CLAUDE_PID`, or
   `CLAUDE_PID` is not above this process at all. Everything that a session starts inherits the variable, even another
   session: one in a tmux whose server was started by the first session must not act as the first.
3. `CLAUDE_PID`, if it is a living process of the same user.
4. The nearest process above this one that may be Claude Code.
5. The parent, and after it the processes above. Without Claude Code a session belongs to a shell, and helpers that
   `make` or `uv run` starts from that shell have to find it: hence a list, and not one owner only.
6. For an orphan, the leader of its kernel session (the shell of its terminal), if that is another living process;
   otherwise the orphan itself.

**An init owns nothing.** Processes whose parent has ended are handed to pid 1, or to a subreaper such as
`systemd --user`. All orphans of a machine would share that owner, and it never ends. So an init ends the list of the
processes above (`_is_init`), unless it certainly is an agent. Pid 1 of a container is often not an init but the program
that the container is for, or its shell: there it stays in the list. In the first PID namespace of a kernel pid 1 is an
init, whatever its name.

A process that starts another one which is to outlive it finds the owner first and passes it on (`handed_on`), because
the chain is broken afterwards.

"Certainly" is a `cmdline[0]` called `claude`, an installed version of it, or node or bun running its package. "May be"
is node or bun running a path that mentions claude in another way: a development build, but also any tool in
`~/src/claude-tools`. So the weak match yields to everything better, and the processes above it stay in the list. The
process name (`comm`) is ignored: current releases set it to their version. A shell whose `-c` string mentions claude is
a shell, and a script below `~/.claude` (a hook, a plugin) is a script.

A helper needs these answers within the forty milliseconds that it lives: `zmqbus.process` gives them, on Linux with two
small reads for each process above this one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from zmqbus.process import FIRST_NAMESPACE, Process, ProcessTable, ancestors, is_alive, process_of, this_machine

_INTERPRETERS = frozenset(("node", "nodejs", "bun"))
#: Options of node and bun whose value is a separate word, not the script.
_OPTIONS_WITH_VALUE = frozenset(
    ("-r", "--require", "--import", "--loader", "--experimental-loader", "--preload", "-C", "--conditions", "--cwd")
)
#: Options that contain the program itself: there is no script.
_INLINE_PROGRAM = frozenset(("-e", "--eval", "-p", "--print", "-pe"))
#: Programs that adopt orphans: as pid 1 of a machine or a container, or as a subreaper below it.
_INITS = frozenset(
    (
        *("init", "systemd", "launchd", "openrc-init", "runit", "runit-init", "runsvdir", "s6-svscan", "my_init"),
        *("tini", "tini-static", "dumb-init", "docker-init", "podman-init", "catatonit", "pause", "bwrap"),
        *("conmon", "containerd-shim", "containerd-shim-runc-v2"),
    )
)
#: The variable that names an owner (`settings`).
OVERRIDE = "INTER_SESSION_PPID_OVERRIDE"
#: Compiled only where CLAUDE_PID is set: that takes a fifth of a millisecond.
_PID = r"[1-9][0-9]{0,9}"


def find_owners(
    override: int | None, environ: Mapping[str, str], table: ProcessTable | None = None, pid: int | None = None
) -> list[Process]:
    """The owner of process `pid` (default: this one), then other processes whose session it may use.

    A listener takes the first. A helper acts as the first one that has a session; an owner that is certain is the only
    one, so that an agent without a listener never acts as the agent that started it. Never empty.
    """
    table = table or this_machine()
    if override is not None:
        return [process_of(override, table)]
    me = os.getpid() if pid is None else pid
    chain: list[Process] = []
    named = _named(environ, table)
    weak: int | None = None
    for number, process in enumerate(ancestors(me, table)):
        if process == named:
            return [process]
        cmdline = table.cmdline(process.pid)
        certain = looks_like_claude(cmdline)
        if certain:
            return [process]
        if _is_init(process, cmdline):  # guards: session files [off]
            break  # everything above it is an init too
        if certain is False and weak is None:
            weak = number
        chain.append(process)
    if named is not None:
        return [named]
    if weak is not None:
        return chain[weak:]
    return chain or [_owner_of_orphan(me, table)]


def handed_on(owner: Process, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child that outlives this process and has the same owner."""
    return {**environ, OVERRIDE: str(owner.pid)}


def looks_like_claude(cmdline: list[str]) -> bool | None:
    """Whether this is the command line of Claude Code. True: certainly; False: maybe; None: no."""
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
    """The file that an interpreter runs; None: no file."""
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


def _is_init(process: Process, cmdline: list[str]) -> bool:
    """Whether this process adopts orphans, so that being its child means nothing."""
    if process.pid == 1 and process.namespace in ("", FIRST_NAMESPACE):
        return True
    return bool(cmdline) and cmdline[0].rsplit("/", 1)[-1].removesuffix(":") in _INITS


def _owner_of_orphan(me: int, table: ProcessTable) -> Process:
    """The leader of its kernel session, which nohup and `&` do not change; otherwise the process itself."""
    entry = table.look(me)
    leader = process_of(entry.leader, table) if entry is not None and entry.leader not in (0, me) else None
    if leader is not None and is_alive(leader, table) and table.uid(leader.pid) == os.geteuid():
        cmdline = table.cmdline(leader.pid)
        if looks_like_claude(cmdline) or not _is_init(leader, cmdline):
            return leader
    return process_of(me, table)


def _named(environ: Mapping[str, str], table: ProcessTable) -> Process | None:
    """The process that `CLAUDE_PID` names, if it lives and runs as this user."""
    text = environ.get("CLAUDE_PID", "")
    if not text or not re.fullmatch(_PID, text, re.ASCII):
        return None
    pid = int(text)
    entry = table.look(pid)
    if entry is None or entry.ended or table.uid(pid) != os.geteuid():
        return None
    return Process(pid, entry.started, *table.place())
