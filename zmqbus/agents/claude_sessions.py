"""What sessions of Claude Code do, from its own list of sessions, where hooks have told nothing.

`claude agents --json` works offline and costs some hundred milliseconds, so it runs only while somebody looks, and for
sessions of unknown state. All processes of the user share one answer: a file in the data directory holds the last one,
which serves for `FRESH_S`, and the process that holds the file's lock is the only one that asks. The file's time is set
before the question, so that a command that fails is not repeated at once either.

The list is a supplement: whatever fails leaves the states unknown. A session that is idle with a monitor running is
listed as busy, so hooks know better, and what they tell is never replaced.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from zmqbus.errors import ZmqbusError
from zmqbus.security.private_files import open_private, try_lock
from zmqbus.session.state import states
from zmqbus.wire.header import detail_of
from zmqbus.wire.verbs import Session

#: The program, looked for on the PATH.
PROGRAM = "claude"
#: How long one answer serves, in seconds.
FRESH_S = 2.0
#: How long the program may take, in seconds.
PATIENCE_S = 1.0
#: The shared answer, in the data directory.
FILE = "claude-sessions.json"
#: Bytes of an answer; hundreds of sessions are less.
MAX_BYTES = 1 << 20
#: What the list says → what the agent does.
STATES = {"busy": "working", "waiting": "blocked", "idle": "idle"}


def fill(rows: Sequence[Session], data_dir: str) -> list[Session]:
    """Returns these sessions, with the state of those of unknown state that Claude Code lists. Raises nothing.

    Waits up to `PATIENCE_S`. The list does not say for how long: such a row's `agent_s` is 0.
    """
    unknown = {row.session_id for row in rows if row.agent == "unknown" and row.state != "away"}
    if not unknown or shutil.which(PROGRAM) is None:
        return list(rows)
    try:
        owners = {state.session_id: state.owner_pid for state in states(data_dir) if state.session_id in unknown}
        listed = parse(_answer(data_dir)) if owners else {}
    except (OSError, ZmqbusError):
        return list(rows)
    return [_filled(row, listed, owners) if row.session_id in unknown else row for row in rows]


def _filled(row: Session, listed: Mapping[int, tuple[str, str]], owners: Mapping[str, int]) -> Session:
    agent, detail = listed.get(owners.get(row.session_id, 0), ("unknown", ""))
    return row._replace(agent=agent, agent_detail=detail)


def parse(data: bytes) -> dict[int, tuple[str, str]]:
    """Returns state and detail of each listed session, by the pid of its process; ignores what has another form."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    listed = {}
    for one in found if isinstance(found, list) else ():
        pid, state = (one.get("pid"), one.get("status")) if isinstance(one, dict) else (None, None)
        if type(pid) is int and isinstance(state, str) and state in STATES:
            listed[pid] = STATES[state], _detail(one) if state == "waiting" else ""
    return listed


def _detail(one: Mapping[str, Any]) -> str:
    text = one.get("waitingFor")
    return detail_of(text) if isinstance(text, str) else ""


def _answer(data_dir: str) -> bytes:
    """Returns the last answer, or a new one if that is old and no other process is asking."""
    path = os.path.join(data_dir, FILE)
    fd = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        # Another process may have asked between the look and the lock.
        if not _is_fresh(fd) and try_lock(fd, path, fcntl.LOCK_EX) and not _is_fresh(fd):
            # Should this process end now, nobody else asks for a moment. Until then the last answer serves.
            os.utime(fd)
            if not os.fstat(fd).st_size:
                _write(fd, b"[]")
            _write(fd, _ask())
        return os.pread(fd, MAX_BYTES, 0)
    finally:
        os.close(fd)  # releases the lock


def _is_fresh(fd: int) -> bool:
    found = os.fstat(fd)
    return found.st_size > 0 and 0 <= time.time() - found.st_mtime < FRESH_S


def _write(fd: int, data: bytes) -> None:
    """Replaces the content. A reader that meets half of it takes it for no answer."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)


def _ask() -> bytes:
    """Runs the program; returns what it prints, `[]` where it fails or takes too long."""
    try:
        done = subprocess.run(
            [PROGRAM, "agents", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return b"[]"
    return done.stdout if done.returncode == 0 and 0 < len(done.stdout) <= MAX_BYTES else b"[]"
