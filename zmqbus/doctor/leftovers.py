"""Finds files that dead processes have left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

from zmqbus.doctor.broker import serves
from zmqbus.doctor.report import Finding, command, ok, warning
from zmqbus.session.leftovers import elsewhere, leftovers
from zmqbus.session.owner_files import STATE
from zmqbus.settings import Settings
from zmqbus.system import pidfile


def stale_files(settings: Settings) -> Iterator[Finding]:
    """Warns of pid files of dead brokers and of state files of dead listeners.

    The other files of a session outlive its listener, and the next session removes them when their owner has ended:
    that is how every session ends, and no fault.
    """
    names = _of_brokers(settings) + _of_listeners(settings)
    if names:
        what = "a file" if len(names) == 1 else f"{len(names)} files"
        first = ", ".join(map(os.path.basename, names[:3])) + (", …" if len(names) > 3 else "")
        yield warning("stale", f"{what} of processes that have ended: {first}", command("rm", "-f", *names))
        return
    others = elsewhere(settings.data_dir)
    yield ok("stale", f"none; {len(others)} of other PID namespaces or machines were not checked" if others else "none")


def _of_brokers(settings: Settings) -> list[str]:
    names: list[str] = []
    for port, served in pidfile.read_all(settings.paths):
        if not serves(settings, served):
            names += filter(os.path.lexists, (settings.paths.pid_file(port), settings.paths.process_file(port)))
    return names


def _of_listeners(settings: Settings) -> list[str]:
    """Returns the files of each session whose listener was killed: its state file is still there."""
    names = leftovers(settings.data_dir)
    killed = {name.removesuffix(STATE) for name in names if name.endswith(STATE)}
    return [os.path.join(settings.paths.clients, name) for name in names if name.partition(".")[0] in killed]
