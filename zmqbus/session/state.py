"""State file and identity of a session: how its helpers, and the next listener of its owner, become the session again.

Theory of operation
===================

Two files below `<data>/clients` make a session, named after the pid of its owner (`zmqbus.session.owner_files` has the
rule for names, and for a process of another PID namespace with the same pid):

* `<pid>.lock` (`zmqbus.session.lock`): held with flock, exclusively, by the listener for its life; the kernel releases
  it when the listener dies, however it dies. **The lock is the truth**: a session is live when its lock is held,
  whatever pids and files say. It contains the session's identity (id, token, name, label), which outlives the listener:
  the next listener of the same owner resumes the session, with its unread messages.
* `<pid>.session`: what helpers need to act as the session. It is replaced as a whole, so nobody ever reads half of one,
  and removed when the listener ends. After a `kill -9` it stays and is stale; the next process that finds it removes it
  (`zmqbus.session.leftovers`).

(`<pid>.shown` belongs to `zmqbus.session.shown_log`, `<pid>.options` to `zmqbus.session.plugin_options`, `<pid>.seen`
to `zmqbus.session.last_seen`, and `<pid>.wake` to `zmqbus.session.wake`. Like the lock file they stay while the owner
lives.)

All but `.shown` hold the start time and the place of the owner. Pids are used again; a record that was written for an
earlier process with this pid counts as absent. A record of a process in another place, which may live, is left alone:
nobody takes it over or removes it from here.

A file that others could read, that belongs to another user or that is a link is refused (`Unauthorized`), because it
contains a token. A damaged file counts as absent: the next listener rewrites it.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any

from zmqbus.errors import NotConnected, Unauthorized
from zmqbus.process import Process
from zmqbus.security.private_files import load_json, parse_json
from zmqbus.session.owner_files import (
    FILE_NAME,
    MAX_RECORD_BYTES,
    STATE,
    OwnerFiles,
    first_line,
    is_own,
    path_of,
    pid_of,
)
from zmqbus.settings import MAX_PID, MAX_PORT, Paths
from zmqbus.tuples import NamedTuple


class SessionState(NamedTuple):
    """All that a helper needs to act as a session: the content of its state file."""

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
        """The part of it by which a process acts as the session."""
        return Identity(self.session_id, self.token, self.name, self.label, self.port)


class Identity(NamedTuple):
    """What makes the next listener of an owner the same session: the content of its lock file."""

    session_id: str
    token: str
    name: str | None
    label: str | None
    port: int | None = None  #: of the broker that it was on; None: an earlier release did not store it
    left: bool = False  #: disconnected by the user: nothing joins again on its behalf


def load_state(data_dir: str, stem: str) -> SessionState | None:
    """Loads the state file whose name begins with `stem`, of a live session or not; None where it is absent or damaged.

    Raises `Unauthorized` where others could have written or read it.
    """
    record = load_json(path_of(data_dir, stem, STATE), MAX_RECORD_BYTES)
    if not isinstance(record, dict):
        return None
    # Unknown keys come from a newer release and are no fault; an earlier release stored no place.
    defaults = SessionState._field_defaults
    values: dict[str, Any] = {field: record.get(field, defaults.get(field)) for field in SessionState._fields}
    if not all(_fits(field, value) for field, value in values.items()):
        return None
    state = SessionState(**values)
    valid = state.session_id and state.token and 0 < state.listener_pid <= MAX_PID and 0 < state.port <= MAX_PORT
    return state if valid and state.owner_pid == pid_of(stem) else None


def _fits(field: str, value: object) -> bool:
    """Whether a field of a state may have this value."""
    if field in ("listener_pid", "port", "owner_pid"):
        return type(value) is int  # a bool is an int too
    return isinstance(value, str) or (field == "label" and value is None)


def read_identity(fd: int, files: OwnerFiles) -> Identity | None:
    """Reads the identity in an open lock file; None where there is none, or it is of another owner."""
    record = parse_json(first_line(fd))
    if not is_own(record, files):
        return None
    session_id, token, name, label, port, left = (record.get(field) for field in Identity._fields)
    if not (isinstance(session_id, str) and session_id and isinstance(token, str) and token):
        return None
    if not (isinstance(name, str | None) and isinstance(label, str | None)):
        return None
    valid_port = port if type(port) is int and 0 < port <= MAX_PORT else None
    return Identity(session_id, token, name, label, valid_port, left is True)


def states(data_dir: str) -> list[SessionState]:
    """Loads all readable state files, of live sessions or not, of any place."""
    found: list[SessionState] = []
    for stem, suffixes in stems(data_dir).items():
        if STATE in suffixes:
            with suppress(Unauthorized, NotConnected):  # reported by `zmqbus doctor`
                state = load_state(data_dir, stem)
                if state is not None:
                    found.append(state)
    return found


def stems(data_dir: str) -> dict[str, list[str]]:
    """Lists all files that belong to owners, in order: stem → suffixes."""
    try:
        names = sorted(os.listdir(Paths(data_dir).clients))
    except OSError:  # never made, or not readable
        return {}
    found: dict[str, list[str]] = {}
    for name in names:
        if match := re.fullmatch(FILE_NAME, name, re.ASCII):
            found.setdefault(match[1], []).append(name[match.end(1) :])
    return found
