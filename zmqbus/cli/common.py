"""What the commands share: how they speak of errors, whom they act for, and how ages look.

Exit statuses: 0 done; 1 a failure, told as `error: <code>: <what and what to do>` on standard error with nothing on
standard output; 2 wrong usage (argparse); 4 no answer in time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, NoReturn

from zmqbus.client import core
from zmqbus.client.bus import Bus
from zmqbus.errors import NotConnected, Timeout, ZmqbusError
from zmqbus.protocol import Role
from zmqbus.session.owner import find_owners
from zmqbus.session.shown import Shown
from zmqbus.session.state import SessionState, find_session
from zmqbus.settings import Settings

FAILED = 1
USAGE = 2
NO_ANSWER = 4


class _Formatter(argparse.HelpFormatter):
    """Help as wide as the terminal says it is in COLUMNS. (Left to itself, argparse imports `shutil` to ask the
    terminal, for every option that is added: 2 ms of a command that lives for 50.)"""

    def __init__(self, prog: str, *arguments: Any, **more: Any) -> None:
        columns = os.environ.get("COLUMNS", "")
        super().__init__(prog, width=int(columns) - 2 if columns.isdecimal() else 98)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like all others, with the usage behind them."""

    def __init__(self, command: str, description: str, **more: Any) -> None:
        super().__init__(
            prog=f"zmqbus {command}", description=description, allow_abbrev=False, formatter_class=_Formatter, **more
        )

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: usage: {message}\n{self.format_usage()}")

    def add_port(self) -> None:
        self.add_argument("--port", metavar="P", help="port of the broker (default 9473, or INTER_SESSION_PORT)")


def fail(error: ZmqbusError) -> int:
    """Tells of an error on standard error; returns the exit status."""
    print(f"error: {error.code}: {error}", file=sys.stderr)
    return NO_ANSWER if isinstance(error, Timeout) else FAILED


def own_session(settings: Settings) -> tuple[SessionState | None, bool]:
    """The session that this process belongs to; and whether only the remains of one were found, and removed."""
    owner, *others = find_owners(settings.owner_pid_override, os.environ)
    return find_session(settings.data_dir, owner, others)


def act_as_session(settings: Settings) -> tuple[SessionState, Bus]:
    """A bus on which this command acts as its session. Raises `NotConnected` where there is none.

    The session's own port is used: its state file knows better than this shell's environment.
    """
    state, _ = own_session(settings)
    if state is None:
        raise NotConnected("not connected; run /inter-session connect first")
    persona = core.Persona(
        role=Role.HELPER,
        session_id=state.session_id,
        token=state.token,
        name=state.name,
        label=state.label,
        cwd=state.cwd,
        project=state.project,
        pid=os.getpid(),
        owner=f"{state.owner_pid}:{state.owner_started}",
    )
    shown = Shown(settings.data_dir, state.owner_pid, state.session_id)
    return state, Bus(settings._replace(port=state.port), persona, shown)


def print_json(value: Any) -> None:
    """One object, one line."""
    print(json.dumps(value, ensure_ascii=False))
