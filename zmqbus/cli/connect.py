"""`client.py`, `zmqbus connect`: the listener of a session. Its lines are a contract; they go to standard
output, since that is what the agent sees, the errors too."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from zmqbus import naming
from zmqbus.cli.common import Parser
from zmqbus.errors import InvalidLabel, InvalidName, ZmqbusError
from zmqbus.session.labels import load_label, remember_label
from zmqbus.session.listener import Listener, Plan
from zmqbus.session.notify import bus_line
from zmqbus.session.owner import find_owner
from zmqbus.session.state import AlreadyListening, ListenerLock, load_state
from zmqbus.settings import Settings, find_project, load

#: How long a listener that has just begun may take to be on the bus, before it is named without its details.
STARTING_S = 3.0


def main(argv: list[str]) -> int:
    """Runs a listener until its session ends."""
    parser = Parser("connect", "Connect this session, and print what arrives for it, a line each.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the same as --name")
    parser.add_argument("--name", dest="flag_name", metavar="N", help="name of the session (default: after the cwd)")
    parser.add_argument(
        "--label", metavar="L", help='what to show beside the name; remembered for the project ("": none)'
    )
    parser.add_argument("--topic", action="append", default=[], metavar="T", help="join a topic (repeatable)")
    parser.add_argument("--group", action="append", default=[], metavar="G", help="join a group (repeatable)")
    parser.add_port()
    parser.add_argument("--idle-shutdown-minutes", metavar="M", help="a broker started here ends when idle so long")
    parser.add_argument("--verbose", action="store_true", help="tell on standard error what happens")
    options = parser.parse_args(argv)
    settings = load(
        {
            "port": options.port,
            "idle_shutdown_minutes": options.idle_shutdown_minutes,
            "name": options.flag_name if options.flag_name is not None else options.name,
            "label": options.label,
        }
    )
    started_s = time.monotonic()

    def trace(text: str) -> None:
        if options.verbose:
            print(f"{time.monotonic() - started_s:8.3f} {text}", file=sys.stderr, flush=True)

    try:
        return _listen(settings, tuple(options.topic), tuple(options.group), trace)
    except AlreadyListening as other:
        return _leave_to(other, settings)
    except (InvalidName, InvalidLabel) as error:
        _say(str(error))
    except ZmqbusError as error:
        _say(f"cannot connect: {error}")
    return 1


def _listen(settings: Settings, topics: tuple[str, ...], groups: tuple[str, ...], trace: Callable[[str], None]) -> int:
    for topic in topics:
        naming.check_name(topic, "topic")
    for group in groups:
        naming.check_name(group, "group")
    if settings.name is not None:
        naming.check_name(settings.name)
    label = naming.check_label(settings.label) if settings.label is not None else None
    owner = find_owner(settings.owner_pid_override, os.environ)
    cwd = os.getcwd()
    project = find_project(cwd)
    with ListenerLock.acquire(settings.data_dir, owner) as lock:
        identity = lock.identity
        if label is not None:
            remember_label(settings.data_dir, project, label or None)
        else:
            label = identity.label if identity else load_label(settings.data_dir, project)
        name = settings.name or (identity.name if identity else None)
        if name is None:
            name = naming.derive_name(cwd)
            _say(f"no --name given; auto-named '{name}' from cwd {cwd}")
        plan = Plan(name, settings.name is not None, label or None, topics, groups, cwd, project, owner, identity)
        return Listener(settings, lock, plan, trace).run()


def _leave_to(other: AlreadyListening, settings: Settings) -> int:
    """Another listener has this owner's lock; one that has just begun gets a moment to say who it is."""
    state = other.state
    owner = find_owner(settings.owner_pid_override, os.environ)
    deadline_s = time.monotonic() + STARTING_S
    while state is None and time.monotonic() < deadline_s:
        time.sleep(0.02)
        state = load_state(settings.data_dir, owner.pid)
    if state is None:
        _say("another monitor for this session is already running — it is still connecting; exiting")
    else:
        _say(
            f"another monitor for this session is already running — name='{state.name}', "
            f"listener_pid={state.listener_pid}, session_id={state.session_id}; exiting"
        )
    return 0


def _say(text: str) -> None:
    print(bus_line(text), flush=True)
