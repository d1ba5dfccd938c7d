"""Sessions on file for the tests: an owner, its state, and what a listener leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

from zmqbus.process import Place, Process, ProcessEntry, process_of, this_machine
from zmqbus.session import identity as identity_module
from zmqbus.session import plugin_options
from zmqbus.session.lock import ListenerLock
from zmqbus.session.owner_files import files_of
from zmqbus.session.state import (
    Identity,
    SessionState,
)

ME = process_of(os.getpid())

HERE = this_machine().place()

OWNER = Process(4711, "1000", *HERE)


def at(pid: int, started: str, place: Place = HERE) -> Process:
    return Process(pid, started, *place)


def state_of(owner: Process, **changes: object) -> SessionState:
    made = SessionState(
        session_id="4f0c6a9e-0000-4000-8000-000000000001",
        name="auth",
        label=None,
        listener_pid=ME.pid,
        listener_started=ME.started,
        host="127.0.0.1",
        port=9473,
        created_at="2026-01-02T03:04:05.678Z",
        token="secret",
        owner_pid=owner.pid,
        owner_started=owner.started,
        project="/home/u/src/auth",
        cwd="/home/u/src/auth",
        **owner.place._asdict(),
    )
    return made._replace(**changes)  # type: ignore[arg-type]


def path_of(data: str, name: str) -> Path:
    return Path(data, "clients", name)


def find_session(data: str, *owners: Process) -> tuple[SessionState | None, bool]:
    found = identity_module.find_session(files_of(data, owner) for owner in owners)
    return found.state, found.stale


def find_away(data: str, *owners: Process) -> tuple[Process, Identity] | None:
    joined = identity_module.find_joined(files_of(data, owner) for owner in owners)
    if joined is None or joined.identity is None or not joined.is_away:
        return None
    return joined.files.owner, joined.identity


def with_options(data: str, owner: Process, environ: dict[str, str]) -> object:
    return plugin_options.with_options(files_of(data, owner), environ)


def leave_stale(data: str, owner: Process, **changes: object) -> None:
    """What a listener leaves that was killed."""
    lock = ListenerLock.acquire(data, owner)
    lock.remember(Identity("id", "token", "auth", None))
    lock.write_state(state_of(owner, **changes))
    lock.release()


AWAY = Identity("id", "token", "auth", "label", 12345)


def leave_away(data: str, owner: Process, identity: Identity = AWAY) -> None:
    """What a listener leaves that has ended, or a session that has joined without one."""
    with ListenerLock.acquire(data, owner) as lock:
        lock.remember(identity)


class Table:
    """A process table that knows these processes."""

    def __init__(self, *alive: Process) -> None:
        self.alive = {process.pid: process.started for process in alive}

    def place(self) -> Place:
        return HERE

    def exists(self, pid: int) -> bool:
        return pid in self.alive

    def look(self, pid: int) -> ProcessEntry | None:
        return ProcessEntry(1, self.alive[pid], False) if pid in self.alive else None

    def cmdline(self, pid: int) -> list[str]:
        return []

    def uid(self, pid: int) -> int | None:
        return os.geteuid()


CONTAINER = HERE._replace(namespace="4026539999")

MACHINE = Place("4026531836", "another boot", "another machine")

EARLIER = Place()

ELSEWHERE = (CONTAINER, MACHINE, EARLIER)
