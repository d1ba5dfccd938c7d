"""`list.py`, `zmqbus list`, `zmqbus status`: list the sessions on the bus, or describe this one."""

from __future__ import annotations

import os
import time

from zmqbus.agents.claude_sessions import fill
from zmqbus.cli.agent_words import agent_of
from zmqbus.cli.forget import matching
from zmqbus.cli.output import fail
from zmqbus.cli.parser import Parser, seconds
from zmqbus.client.locate import broker_pid
from zmqbus.client.oneshot import observer
from zmqbus.errors import InvalidOption, ZmqbusError
from zmqbus.session.identity import Caller, identify
from zmqbus.settings import NO_DIRECTORY, where_am_i
from zmqbus.text.display import columns, pad, sanitise
from zmqbus.text.units import format_age
from zmqbus.wire.verbs import Session

HEADINGS = ("NAME", "LABEL", "PROJECT", "CWD", "STATE", "AGENT", "SINCE", "ID")
#: The longest `status --wait`, and the pause between two of its looks at a file, s.
MAX_WAIT_S = 60.0
LOOK_S = 0.05
#: With --all: messages that wait for the session.
UNREAD = "UNREAD"


def main(argv: list[str], *, own: bool = False) -> int:
    """Prints a table of sessions; with `--self` (or `own`), this session only."""
    options = _parser(own).parse_args(argv)
    try:
        caller = identify({"port": options.port})
        if options.own and options.session is None:
            _wait_for_listener(caller, options.wait)
            return _own(caller, as_json=options.json)
        settings, state = caller.settings, caller.session().state
        if state is not None and options.port is None:
            settings = settings._replace(port=state.port)
        with observer(settings) as bus:
            sessions = bus.sessions(everyone=options.all or options.own)
        if options.own:
            (shown,) = fill([_one_of(matching(sessions, options.session))], settings.data_dir)
            return _describe(shown, as_json=options.json)
        if options.project:
            project = state.project if state is not None else where_am_i().project
            if not project:
                raise InvalidOption(f"--project: {NO_DIRECTORY}")
            sessions = [session for session in sessions if session.project == project]
        sessions.sort(key=lambda session: (session.state == "away", session.name, session.since))
        sessions = fill(sessions, settings.data_dir)
        if options.json:
            from zmqbus.cli import jsonform

            jsonform.print_json([jsonform.session(row) for row in sessions])
        elif sessions:
            _print_table(sessions, unread=options.all)
        else:
            print("no sessions connected" if not options.all else "no known sessions")
    except ZmqbusError as error:
        return fail(error)
    return 0


def _parser(own: bool) -> Parser:
    if own:
        parser = Parser("status", "Show this session, its listener and its broker; or the session that is named.")
        parser.add_argument("session", nargs="?", metavar="NAME", help="another session: name or session id")
        wait_s = seconds(0.0, MAX_WAIT_S)
        parser.add_argument("--wait", metavar="S", type=wait_s, help="wait up to S seconds until it is connected")
    else:
        parser = Parser("list", "Show who is on the bus.")
        parser.add_argument("--all", action="store_true", help="also those away, and how much waits for them")
        parser.add_argument("--project", action="store_true", help="only the sessions of this project")
        parser.add_argument("--self", dest="own", action="store_true", help="this session only")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_port()
    parser.set_defaults(own=own, all=False, project=False, session=None, wait=0.0)
    return parser


def _wait_for_listener(caller: Caller, timeout_s: float) -> None:
    """Waits until the listener of this session has connected, which a monitor may just be starting."""
    deadline_s = time.monotonic() + timeout_s
    # The time first: a look removes what a killed listener left, which the caller is to report.
    while time.monotonic() < deadline_s and caller.session().state is None:
        time.sleep(LOOK_S)


def _own(caller: Caller, *, as_json: bool) -> int:
    if as_json:
        from zmqbus.cli.jsonform import print_json

    state, _, stale = caller.session()
    if state is None:
        if as_json:
            print_json({"connected": False, "stale_state_removed": stale})
        else:
            print("not connected (stale state cleaned up)" if stale else "not connected")
        return 0
    pid = broker_pid(caller.settings._replace(port=state.port))
    fields: dict[str, object] = {
        "name": state.name,
        "session_id": state.session_id,
        "listener_pid": state.listener_pid,
        "host": state.host,
        "port": state.port,
        "broker": f"running (pid {pid})" if pid else "not running",
    }
    if as_json:
        fields["broker"] = {"running": pid is not None, "pid": pid}
        print_json({"connected": True, **fields, "label": state.label, "since": state.created_at})
    else:
        for field, value in fields.items():
            print(f"{field}={sanitise(str(value))}")
    return 0


def _one_of(sessions: list[Session]) -> Session:
    """The connected one of several sessions of one name, or the last that was connected."""
    return max(sessions, key=lambda session: (session.state != "away", -session.away_s))


def _describe(session: Session, *, as_json: bool) -> int:
    if as_json:
        from zmqbus.cli import jsonform

        jsonform.print_json(jsonform.session(session))
        return 0
    fields = {
        "name": session.name,
        "label": session.label or "-",
        "session_id": session.session_id,
        "project": session.project or "-",
        "state": session.state + (f" {format_age(session.away_s)}" if session.state == "away" else ""),
        "agent": agent_of(session),
        "unread": session.waiting,
    }
    for field, value in fields.items():
        print(f"{field}={sanitise(str(value))}")
    return 0


def _print_table(sessions: list[Session], *, unread: bool) -> None:
    rows: list[tuple[str, ...]] = [HEADINGS, *map(_row, sessions)]
    if unread:
        counts = (UNREAD, *(str(session.waiting) if session.waiting else "-" for session in sessions))
        rows = [(*row, count) for row, count in zip(rows, counts, strict=True)]
    widths = [max(columns(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(pad(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(session: Session) -> tuple[str, ...]:
    # The time at which it got into its present state: connected, or away.
    since_ts = session.since if session.state != "away" else time.time() - session.away_s
    return (
        sanitise(session.name),
        sanitise(session.label or "-"),
        sanitise(os.path.basename(session.project) or session.project or "-"),
        sanitise(_short(session.cwd) or "-"),
        sanitise(session.state),
        sanitise(agent_of(session)),
        _clock(since_ts),
        sanitise(session.session_id, 8),
    )


def _short(path: str) -> str:
    """A path with the home directory as ~."""
    home = os.path.expanduser("~")
    return f"~{path[len(home) :]}" if path == home or path.startswith(f"{home}{os.sep}") else path


def _clock(since_ts: float) -> str:
    """Local time of day, with the date unless it is today."""
    then = time.localtime(since_ts)
    same_day = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M" if same_day else "%Y-%m-%d %H:%M", then)
