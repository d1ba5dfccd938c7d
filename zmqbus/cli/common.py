"""What the commands share: how they speak of errors, whom they act for, and how ages look.

Exit statuses: 0 done; 1 a failure, told as `error: <code>: <what and what to do>` on standard error with nothing on
standard output; 2 wrong usage (`parser`, and `errors.InvalidOption`); 4 no answer in time. An output that cannot be
written is the business of `bootstrap`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from zmqbus.client import core, launch
from zmqbus.client.oneshot import CommandBus, observer
from zmqbus.errors import BrokerUnavailable, InvalidOption, NotConnected, Timeout, ZmqbusError
from zmqbus.process import Process
from zmqbus.session.owner import find_owner, find_owners
from zmqbus.session.plugin_options import with_options
from zmqbus.session.shown_log import Shown
from zmqbus.session.state import Identity, SessionState, find_away, find_session, note_left
from zmqbus.settings import Settings, load, where_am_i
from zmqbus.system.streams import OutputFailed, write_raw
from zmqbus.text import wording
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role

FAILED = 1
USAGE = 2
NO_ANSWER = 4


def fail(error: ZmqbusError) -> int:
    """Tells of an error on standard error; returns the exit status."""
    print(f"error: {error.code}: {error}", file=sys.stderr)
    if isinstance(error, InvalidOption):
        return USAGE
    return NO_ANSWER if isinstance(error, Timeout) else FAILED


def tell(lines: str, done: str | None = None, *, raw: bool = False) -> None:
    """Prints what a command has done, at once; `raw`: not made safe to show. Where that cannot be written, the error
    says what was done (`done`, or the lines themselves), so that nobody does it again."""
    try:
        write_raw(f"{lines}\n") if raw else print(lines)
        sys.stdout.flush()
    except OutputFailed as failed:
        failed.done = done if done is not None else lines.replace("\n", "; ")
        raise


def settings_of_session(flags: Mapping[str, object] | None = None) -> Settings:
    """The settings of this process, with what the plugin's hook has handed on to its session (`session.options`)."""
    return settings_and_owner(flags)[0]


def settings_and_owner(flags: Mapping[str, object] | None = None, *, wait_s: float = 0.0) -> tuple[Settings, Process]:
    """The settings of this process, as `settings_of_session`, and the owner of its session. The owner is found before
    anything is waited for: the process that has started this one may end meanwhile."""
    # The options name neither the data directory nor the owner, which say where they are.
    found = load(flags, warn=_ignore)
    owner = find_owner(found.owner_pid_override, os.environ)
    return load(flags, with_options(found.data_dir, owner, os.environ, wait_s)), owner


def _ignore(warning: str) -> None:
    """What is passed over is told when the settings are loaded for good."""


def own_session(settings: Settings) -> tuple[SessionState | None, bool]:
    """The session that this process belongs to; and whether only the remains of one were found, and removed."""
    owner, *others = find_owners(settings.owner_pid_override, os.environ)
    return find_session(settings.data_dir, owner, others)


def act_as_session(settings: Settings) -> tuple[SessionState, CommandBus]:
    """A bus on which this command acts as its session. Raises `NotConnected` where there is none.

    The session's own port is used: its state file knows better than this shell's environment.
    """
    state, _ = own_session(settings)
    if state is None:
        raise NotConnected(f"not connected; run {wording.command('connect')} first")
    return state, act_as(settings, state.owner, state.identity, state.cwd, state.project)


def act_as(
    settings: Settings, owner: Process, identity: Identity, cwd: str, project: str, *, starts: bool = True
) -> CommandBus:
    """A bus on which this command acts as the session of `owner`, whether a listener of it runs or not. `starts`: see
    `CommandBus`."""
    persona = core.Persona(
        role=Role.HELPER,
        session_id=identity.session_id,
        token=identity.token,
        name=identity.name,
        label=identity.label,
        cwd=cwd,
        project=project,
        pid=os.getpid(),
        owner=owner.text,
    )
    shown = Shown(settings.data_dir, owner, identity.session_id)
    return CommandBus(settings._replace(port=identity.port or settings.port), persona, shown, starts=starts)


def read_as_session(settings: Settings) -> CommandBus:
    """A bus on which this command reads what waits for its session, or leaves it; that one may be away.

    Raises `NotConnected` where this owner never had one.
    """
    owner, *others = find_owners(settings.owner_pid_override, os.environ)
    away = find_away(settings.data_dir, owner, others)
    if away is None:
        return act_as_session(settings)[1]
    return act_as(settings, *away, *where_am_i())


def note_disconnected(settings: Settings) -> None:
    """Notes that this process's session, which has no listener, was disconnected: no hook joins on its behalf."""
    owner, *others = find_owners(settings.owner_pid_override, os.environ)
    away = find_away(settings.data_dir, owner, others)
    if away is not None:
        note_left(settings.data_dir, away[0])


def broker_figures(settings: Settings) -> dict[str, Any] | None:
    """What the broker on the settings' port tells of itself, its pid and port first; None: there is none, and none is
    started for this. Raises the `BrokerError` that stands in the way."""
    found = launch.find_broker(settings)
    if found is None:
        return None
    try:
        with observer(settings, starts=False) as bus:
            health = bus.request(verbs.Status)
    except BrokerUnavailable:
        if launch.broker_pid(settings) is None:
            return None  # it has ended meanwhile
        raise
    assert isinstance(health, verbs.Health)
    return {"pid": found.pid, "port": found.port, **dict(health.figures)}
