"""`zmqbus console`: serve a page that shows the bus, for a browser on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from zmqbus.cli.output import fail
from zmqbus.cli.parser import Parser
from zmqbus.errors import LocalError, ZmqbusError
from zmqbus.session.identity import bus_of, identify
from zmqbus.session.owner_files import files_of
from zmqbus.session.state import SessionState
from zmqbus.settings import MAX_PORT, Settings
from zmqbus.wire import verbs

#: Program that opens the address on its standard input. It runs in its own process, because a browser may run until it
#: is closed, and may print anything.
OPEN = "import sys, webbrowser; sys.exit(not webbrowser.open(sys.stdin.read()))"


class _Missing(LocalError):
    code = "missing"


def main(argv: list[str]) -> int:
    """Runs the console until Ctrl-C; with `--link`, prints a link to the one that runs."""
    parser = Parser("console", "Show the bus on a page, and send from it; on this machine only.")
    parser.add_argument("--port", metavar="P", help="port of the page (default: a free one)")
    parser.add_argument("--open", action="store_true", help="also open the page in a browser")
    parser.add_argument("--link", action="store_true", help="print another link to the running console")
    parser.add_argument(
        "--numeric", action="store_true", help="with --link: for a browser that cannot resolve *.localhost"
    )
    parser.add_argument("--broker-port", metavar="P", help="port of the broker (default 9473, or INTER_SESSION_PORT)")
    options = parser.parse_args(argv)
    port = _port(options.port, parser)
    if options.numeric and not options.link:
        parser.error("--numeric goes with --link")
    if options.broker_port is not None:
        _port(options.broker_port, parser, "--broker-port")
    try:
        caller = identify({"port": options.broker_port})
        settings = caller.settings
        if options.link:
            return _link(settings, port or None, numeric=options.numeric)
        state = caller.session().state
        if state is not None and options.broker_port is None:
            settings = settings._replace(port=state.port)
        return _run(settings, port, open_too=options.open)
    except ZmqbusError as error:
        return fail(error)


def _port(text: str | None, parser: Parser, flag: str = "--port") -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= MAX_PORT):
        parser.error(f"{flag} takes a whole number from 1 to {MAX_PORT}, not '{text:.40}'")
    return int(text)


def _run(settings: Settings, port: int, *, open_too: bool) -> int:
    try:
        from zmqbus.console import server
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "anyio", "h11", "click"):
            raise
        from zmqbus.doctor.installation import install_command

        raise _Missing(
            f"the console needs packages that are not installed; run: {install_command(settings, 'console')}"
        ) from None

    def disconnect(state: SessionState) -> str:
        files = files_of(settings.data_dir, state.owner)
        with bus_of(settings, files, state.identity, state.cwd, state.project) as bus:
            done = bus.request(verbs.Disconnect)
        assert isinstance(done, verbs.Done)
        return done.text

    # The console belongs to no project: killed consoles of this data directory leave at most one name, which the next
    # console takes over. And it keeps running when the directory that it was started in is removed.
    os.environ["INTER_SESSION_DATA_DIR"] = settings.data_dir
    os.chdir("/")
    return server.run(settings, port, disconnect, open_in=_open if open_too else None)


def _open(url: str) -> subprocess.Popen[bytes]:
    """Starts a process that opens an address in the user's browser."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", OPEN],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C ends the console, not the browser
    )
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(url.encode())
    return process


def _link(settings: Settings, port: int | None, *, numeric: bool) -> int:
    from zmqbus.console.auth import link, mint
    from zmqbus.console.lockfile import NoConsoleRuns, running_consoles

    found = running_consoles(settings.data_dir, port)
    if not found:
        where = f" on port {port}" if port else ""
        return fail(NoConsoleRuns(f"no console runs{where}; start one with: zmqbus console"))
    for one in found:
        name = "127.0.0.1" if numeric else one.name
        print(link(f"{name}:{one.port}", mint(one.secret, time.time())))
    return 0
