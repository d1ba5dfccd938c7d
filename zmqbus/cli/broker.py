"""`zmqbus broker`: start the broker, inspect it, stop it, or run one in the foreground."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from zmqbus.cli.jsonform import print_json
from zmqbus.cli.output import FAILED, fail, tell
from zmqbus.cli.parser import Parser
from zmqbus.client import launch, locate
from zmqbus.client.oneshot import observer
from zmqbus.errors import BrokerUnavailable, ZmqbusError
from zmqbus.process import Life, life_of
from zmqbus.session.identity import identify
from zmqbus.settings import Settings
from zmqbus.system import pidfile
from zmqbus.text.display import sanitise
from zmqbus.wire import verbs

#: How long a broker may take to end after it has agreed to: it writes out its data, to a disk that others use as well.
#: The command waits no longer than it takes.
STOP_S = 20.0


def main(argv: list[str]) -> int:
    """Starts a broker if there is none; or `--status`, `--stop`, `--foreground`."""
    parser = Parser("broker", "Start the broker if there is none, inspect it, or stop it.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--foreground", action="store_true", help="run it here, until Ctrl-C")
    what.add_argument("--status", action="store_true", help="print its metrics; exit 1 if none runs")
    what.add_argument("--stop", action="store_true", help="stop it; mailboxes stay")
    parser.add_argument("--json", action="store_true", help="with --status: print JSON")
    parser.add_argument("--idle-shutdown-minutes", metavar="M", help="end when idle so long; 0: never")
    parser.add_port()
    options = parser.parse_args(argv)
    if options.json and not options.status:
        parser.error("--json goes with --status")
    if options.idle_shutdown_minutes is not None and (options.status or options.stop):
        parser.error("--idle-shutdown-minutes does not go with --status or --stop")
    try:
        flags = {"port": options.port, "idle_shutdown_minutes": options.idle_shutdown_minutes}
        settings = identify(flags).settings
        if options.foreground:
            return _run_here(settings)
        if options.status:
            return _status(settings, as_json=options.json)
        if options.stop:
            return _stop(settings)
        notices = launch.launch(settings)
        if notices:
            print(f"warning: {sanitise(notices)}", file=sys.stderr)
        served = locate.find_broker(settings)
        port, pid = (served.port, served.pid) if served is not None else (settings.port, None)
        tell(f"broker serves port {port} (pid {pid})")
    except ZmqbusError as error:
        return fail(error)
    return 0


def broker_figures(settings: Settings) -> dict[str, Any] | None:
    """Asks the broker on the settings' port for its figures, its pid and port first; None: no broker runs.

    Starts none. Raises the `BrokerError` that prevents an answer.
    """
    found = locate.find_broker(settings)
    if found is None:
        return None
    try:
        with observer(settings, starts=False) as bus:
            health = bus.request(verbs.Status)
    except BrokerUnavailable:
        if locate.broker_pid(settings) is None:
            return None  # it has ended meanwhile
        raise
    assert isinstance(health, verbs.Health)
    return {"pid": found.pid, "port": found.port, **dict(health.figures)}


def _run_here(settings: Settings) -> int:
    from zmqbus.broker.shell import daemon  # no other command needs the broker's own imports

    os.umask(0o077)
    daemon.run_here(settings)
    return 0


def _status(settings: Settings, *, as_json: bool) -> int:
    figures = broker_figures(settings)
    if figures is None:
        print_json(None) if as_json else print(f"no broker runs on port {settings.port}")
        return FAILED
    if as_json:
        print_json(figures)
    else:
        for name, value in figures.items():
            print(f"{sanitise(name)}={sanitise(str(value))}")
    return 0


def _stop(settings: Settings) -> int:
    """Asks the broker to stop, and waits until it has ended. Sends no signal: a pid file may be wrong."""
    served = locate.find_broker(settings)
    if served is None:
        print(f"no broker runs on port {settings.port}")
        return 0
    try:
        with observer(settings, starts=False) as bus:
            bus.request(verbs.Stop)
    except BrokerUnavailable:
        if locate.find_broker(settings) == served:
            raise
        # It was ending already.
    deadline_s = time.monotonic() + STOP_S
    while _is_ending(settings, served):
        if time.monotonic() > deadline_s:
            raise BrokerUnavailable(
                f"the broker (pid {served.pid}) has not ended within {STOP_S:g} s; see {settings.paths.broker_log}"
            )
        time.sleep(0.01)  # not a child of this process: only its lock and its pid show that it has ended
    tell(f"broker (pid {served.pid}) stopped")
    return 0


def _is_ending(settings: Settings, served: pidfile.Served) -> bool:
    """Whether this broker still runs.

    A broker of another PID namespace counts as running while the lock is held, unless another broker holds it, which
    clients may have started meanwhile.
    """
    if served.process is not None and (life := life_of(served.process)) is not Life.UNKNOWN:
        return life is Life.ALIVE  # a zombie has ended: in many containers nobody waits for orphans
    return locate.is_elected(settings) and locate.find_broker(settings) in (None, served)
