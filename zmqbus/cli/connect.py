"""`client.py`, `zmqbus connect`: run the listener of a session.

Its lines are a contract. All of them go to standard output, errors too, because an agent sees nothing else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from zmqbus.cli.output import fail
from zmqbus.cli.parser import Parser
from zmqbus.errors import InvalidLabel, InvalidName, InvalidOption, NotConnected, ZmqbusError
from zmqbus.session.identity import Caller, identify
from zmqbus.session.labels import load_label, remember_label
from zmqbus.session.listener import Listener, Plan
from zmqbus.session.lock import AlreadyListening, ListenerLock
from zmqbus.session.notify import bus_line
from zmqbus.session.plugin_options import WAIT_S
from zmqbus.session.state import SessionState
from zmqbus.settings import NO_DIRECTORY, where_am_i
from zmqbus.system import cmdline
from zmqbus.text.display import sanitise
from zmqbus.wire import naming

#: How long another process of this session may hold the lock without a state file: a listener that is just starting, or
#: a process that joins only to leave (`--away`).
STARTING_S = 3.0
#: Pause between two tries.
RETRY_S = 0.02


def main(argv: list[str]) -> int:
    """Runs a listener until its session ends."""
    parser = Parser("connect", "Connect this session, and print what arrives for it, a line each.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the same as --name")
    parser.add_argument("--name", dest="flag_name", metavar="N", help="name of the session (default: from the cwd)")
    parser.add_argument(
        "--label", metavar="L", help='a text to show beside the name; remembered for the project ("": none)'
    )
    parser.add_argument("--topic", action="append", default=[], metavar="T", help="join a topic (repeatable)")
    parser.add_argument("--group", action="append", default=[], metavar="G", help="join a group (repeatable)")
    parser.add_port()
    parser.add_argument("--idle-shutdown-minutes", metavar="M", help="a broker started here stops when idle this long")
    parser.add_argument("--away", action="store_true", help="join and leave at once: messages wait, for zmqbus inbox")
    parser.add_argument(
        "--from-plugin",
        action="store_true",
        help="for the plugin's monitor: wait for the options that its hook stores; leave silently if another one runs",
    )
    parser.add_argument("--verbose", action="store_true", help="report on standard error what happens")
    options = parser.parse_args(argv)
    cmdline.hide((options.label,))
    if options.name is not None and options.flag_name not in (None, options.name):
        parser.error(f"two names given, '{options.name:.40}' and '{options.flag_name:.40}'; give one")
    flags = {
        "port": options.port,
        "idle_shutdown_minutes": options.idle_shutdown_minutes,
        "name": options.flag_name if options.flag_name is not None else options.name,
        "label": options.label,
    }
    started_s = time.monotonic()

    def trace(text: str) -> None:
        if options.verbose:
            print(f"{time.monotonic() - started_s:8.3f} {sanitise(text)}", file=sys.stderr, flush=True)

    try:
        caller = identify(flags, wait_s=WAIT_S if options.from_plugin else 0.0)
        plan = (tuple(options.topic), tuple(options.group))
        return _connect(caller, *plan, trace, away=options.away, from_plugin=options.from_plugin)
    except InvalidOption as error:
        return fail(error)
    except (InvalidName, InvalidLabel) as error:
        _say(str(error))
    except ZmqbusError as error:
        _say(f"cannot connect: {error}")
    return 1


def _connect(
    caller: Caller,
    topics: tuple[str, ...],
    groups: tuple[str, ...],
    trace: Callable[[str], None],
    *,
    away: bool,
    from_plugin: bool,
) -> int:
    settings = caller.settings
    for topic in topics:
        naming.check_topic(topic)
    for group in groups:
        naming.check_name(group, "group")
    if settings.name is not None:
        naming.check_name(settings.name)
    label = naming.check_label(settings.label) if settings.label is not None else None
    try:
        lock = _acquire(caller)
    except AlreadyListening as other:
        # The plugin has a monitor for each name that clients give its skill; it is no news that the other one runs.
        if not from_plugin:
            _say(_already_running(other.state))
        return 0
    with lock:
        cwd, project = where_am_i()
        identity = lock.identity
        if label is None:
            label = identity.label if identity else load_label(settings.data_dir, project) if project else None
        elif project:
            remember_label(settings.data_dir, project, label or None)
        name = settings.name or (identity.name if identity else None)
        if name is None:
            if not cwd:
                raise NotConnected(f"no name to use: {NO_DIRECTORY}, or name the session: --name N")
            name = naming.derive_name(cwd)
            _say(f"no --name given; auto-named '{name}' from cwd {cwd}")
        given = settings.name is not None
        plan = Plan(name, given, label or None, topics, groups, cwd, project, caller.owner, identity, away)
        return Listener(settings, lock, plan, trace).run()


def _acquire(caller: Caller) -> ListenerLock:
    """Takes the lock of this session. Waits a moment for a holder without a state file: to write it, or to end."""
    deadline_s = time.monotonic() + STARTING_S
    while True:
        try:
            return ListenerLock.acquire(caller.settings.data_dir, caller.owner)
        except AlreadyListening as other:
            if other.state is not None or time.monotonic() > deadline_s:
                raise
        time.sleep(RETRY_S)


def _already_running(other: SessionState | None) -> str:
    if other is None:
        return "another monitor for this session is already running — it is still connecting; exiting"
    return (
        f"another monitor for this session is already running — name='{other.name}', "
        f"listener_pid={other.listener_pid}, session_id={other.session_id}; exiting"
    )


def _say(text: str) -> None:
    print(bus_line(text), flush=True)
