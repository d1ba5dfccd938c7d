"""Runs the console: listens on loopback, prints links in the terminal, and shuts down.

The port is bound on both loopback addresses, IPv4 and IPv6: host names in links resolve to either, and another user's
program could listen on the one left free.

Enter in the terminal prints another link; so does `zmqbus console --link` in any other terminal of the user, which
needs only this process's lock file (`lockfile`). Ctrl-C, SIGTERM and the end of the terminal first end the event
streams, since the server waits for its connections, and then everything else: when `run` returns, no thread is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn

from zmqbus.console.app import Console
from zmqbus.console.auth import LINK_S, Links, link, mint
from zmqbus.console.connections import Connection, ConnectionTable
from zmqbus.console.guard import ADDRESS
from zmqbus.console.lockfile import ConsoleLock
from zmqbus.console.peers import Peers
from zmqbus.errors import LocalError
from zmqbus.security.private_files import replace, unlink
from zmqbus.session.state import SessionState
from zmqbus.settings import Settings

#: IPv6's loopback address.
ADDRESS_6 = "::1"
#: Ports tried when the system chooses one that is free on one address and taken on the other.
PORT_TRIES = 20
#: How long a connection may be idle between two requests.
KEEP_ALIVE_S = 30
#: How long to wait for the exit status of the browser's launcher, and how often to check. A browser in the foreground
#: does not exit at all.
OPENING_S, OPENING_CHECK_S = 15.0, 0.1
#: How long open responses may take when the console ends.
GRACE_S = 2
#: Lower priority: the console must not slow the bus that it shows.
NICENESS = 5
#: Pause before checking again whether this process is in the terminal's foreground; only then input is for it.
BACKGROUND_S = 1.0

NO_BROWSER = "No browser could be started here; open the link in one."


class PortTaken(LocalError):
    """Another program listens on the console's port."""

    code = "port_held"


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the console's own have more to end than the server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing."""
        yield


def run(
    settings: Settings,
    port: int,
    disconnect: Callable[[SessionState], str],
    *,
    open_in: Callable[[str], subprocess.Popen[bytes]] | None = None,
) -> int:
    """Runs the console until Ctrl-C; returns the exit status.

    `port`: 0 for any free one. `disconnect` ends a session's listener (`app.Console`). `open_in` starts a process that
    opens a URL in a browser and whose exit status says whether it could. Raises `PortTaken`, and like `ConsoleLock`.
    """
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(one) for one in _listen(port)]
        port = listening[0].getsockname()[1]
        lock = stack.enter_context(ConsoleLock(settings.data_dir, port))
        peers = stack.enter_context(Peers())
        with contextlib.suppress(OSError):
            os.nice(NICENESS)
        asyncio.run(_serve(settings, listening, lock, peers, disconnect, open_in))
    return 0


def _listen(port: int) -> list[socket.socket]:
    """Returns listening sockets on both loopback addresses; on IPv4 alone when the machine has no IPv6."""
    for tries_left in reversed(range(1 if port else PORT_TRIES)):
        found = [_bind(socket.AF_INET, ADDRESS, port)]
        try:
            found.append(_bind(socket.AF_INET6, ADDRESS_6, found[0].getsockname()[1]))
        except OSError as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                return found
            found[0].close()
            if not tries_left:
                raise _taken(port, error) from None
            continue
        return found
    raise AssertionError("not reached")


def _bind(family: int, address: str, port: int) -> socket.socket:
    # With its protocol: asyncio disables Nagle's algorithm only on such sockets, and with the algorithm every response
    # of two writes would wait 40 ms for an acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Connections of a console that has just ended may linger; the port is free all the same.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address, port))
        listening.listen(64)
    except OSError as error:
        listening.close()
        if family == socket.AF_INET6:
            raise
        raise _taken(port, error) from None
    return listening


def _taken(port: int, error: OSError) -> PortTaken:
    return PortTaken(
        f"port {port} is not available ({error.strerror or error}); if a console runs there, get a link to it with: "
        f"zmqbus console --link --port {port} — or choose another port, or none"
    )


async def _serve(
    settings: Settings,
    listening: list[socket.socket],
    lock: ConsoleLock,
    peers: Peers,
    disconnect: Callable[[SessionState], str],
    open_in: Callable[[str], subprocess.Popen[bytes]] | None,
) -> None:
    port = listening[0].getsockname()[1]
    authority = f"{lock.name}:{port}"
    console = Console(settings, authority, Links(lock.secret), disconnect)
    config = uvicorn.Config(
        console.app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # there is no proxy: such headers are forged
        lifespan="off",
        ws="none",
        http=partial(Connection, ConnectionTable(peers)),  # type: ignore[arg-type]  # uvicorn only calls it
        loop="asyncio",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    # uvicorn would log every malformed request; `guard.warn` prints the warnings that concern the user.
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())
    logging.getLogger("uvicorn").propagate = False
    server = _Server(config)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if server.should_exit:
            server.force_exit = True  # the second signal does not wait
        server.should_exit = True
        console.hub.close_all()

    def print_link() -> None:
        _print(link(authority, mint(lock.secret, time.time())))

    stop_signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
        stop_signals.append(signal.SIGHUP)  # the terminal was closed
    for signum in stop_signals:
        loop.add_signal_handler(signum, stop)
    console.start()
    opening: asyncio.Task[None] | None = None
    try:
        _print(f"zmqbus console: port {port}, for the broker on port {settings.port}")
        print_link()
        with _links_on_enter(loop, print_link) as has_terminal:
            more = (
                "Enter prints another; Ctrl-C ends the console." if has_terminal else "Another: zmqbus console --link"
            )
            _print(f"The link is good for one use, within {LINK_S // 60} minutes. {more}")
            if open_in is not None:
                opening = asyncio.create_task(open_page(settings, authority, lock, peers, open_in))
            await server.serve(sockets=listening)
    finally:
        if opening is not None:
            opening.cancel()
        await asyncio.to_thread(console.close)
        unlink(_opener(settings, port))
        for signum in stop_signals:
            loop.remove_signal_handler(signum)


async def open_page(
    settings: Settings,
    authority: str,
    lock: ConsoleLock,
    peers: Peers,
    open_in: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    """Opens the page in a browser. The browser gets the URL as an argument, which every user of the machine can read in
    the list of processes.

    So the URL is a link that only works for this user's connections, if the kernel says whose they are (`peers`).
    Otherwise it names a file that only this user can read and that redirects to the link. A sandboxed browser (snap)
    cannot read that file, but systems with such browsers have `peers`.
    """
    if peers.works():
        url, advice = link(authority, mint(lock.secret, time.time(), same_user=True)), ""
    else:
        path = _opener(settings, int(authority.rpartition(":")[2]))
        refresh = f"0; url={link(authority, mint(lock.secret, time.time()))}"
        page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="{refresh}">'
        replace(path, page.encode())
        url, advice = f"file://{path}", "If the browser cannot read the file, open the link in it."
    try:
        opener = open_in(url)
    except OSError:
        _print(NO_BROWSER)
        return
    # Do not wait for its end: a browser may run until the user closes it.
    end_s = time.monotonic() + OPENING_S
    while opener.poll() is None and time.monotonic() < end_s:
        await asyncio.sleep(OPENING_CHECK_S)
    if opener.returncode:
        _print(NO_BROWSER)
    elif advice:
        _print(advice)


def _opener(settings: Settings, port: int) -> str:
    """Returns the path of the file that redirects to a link."""
    return os.path.join(settings.data_dir, f"console.{port}.html")


@contextlib.contextmanager
def _links_on_enter(loop: asyncio.AbstractEventLoop, print_link: Callable[[], None]) -> Iterator[bool]:
    """Prints a link for each line typed in the terminal; yields whether there is a terminal."""
    try:
        terminal = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
    except (OSError, ValueError):  # closed
        terminal = -1
    if terminal < 0:
        yield False
        return

    def read_line() -> None:
        if not _in_foreground(terminal):
            loop.remove_reader(terminal)
            loop.call_later(BACKGROUND_S, loop.add_reader, terminal, read_line)
            return
        try:
            data = os.read(terminal, 4096)
        except OSError:
            data = b""
        if not data:
            loop.remove_reader(terminal)  # the terminal was closed
            return
        print_link()

    loop.add_reader(terminal, read_line)
    try:
        yield True
    finally:
        loop.remove_reader(terminal)


def _in_foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        return  # standard output was closed; the page still works
