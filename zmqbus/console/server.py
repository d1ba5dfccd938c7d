"""Running the console: a port on loopback, links in the terminal, and a quiet end.

The port is held on both loopback addresses, IPv4 and IPv6: the names in links lead to either, and on one that was left
free another user's program could listen.

The terminal is for the links. Enter prints another one; so does `zmqbus console --link` in any other terminal of the
user, which needs nothing of this process but its file (`lease`). Ctrl-C, SIGTERM and the end of the terminal end the
streams of the pages first, for the server waits for its connections, and then everything else: when `serve` returns, no
thread is left.
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
from zmqbus.console.connections import Connection, Crowd
from zmqbus.console.guard import ADDRESS
from zmqbus.console.lockfile import Lease
from zmqbus.console.peers import Peers
from zmqbus.errors import LocalError
from zmqbus.security.private_files import replace, unlink
from zmqbus.session.state import SessionState
from zmqbus.settings import Settings

#: IPv6's loopback address.
ADDRESS_6 = "::1"
#: How often another port is tried, where one is free on one address and taken on the other.
PORT_TRIES = 20
#: How long a connection may be idle between two requests.
KEEP_ALIVE_S = 30
#: How long it is watched whether a browser starts. One that runs in the foreground does not come back at all.
OPENING_S, OPENING_LOOK_S = 15.0, 0.1
#: How long open answers may take when the console ends.
GRACE_S = 2
#: The console is the last to get the processor where it is scarce: it must not slow the bus that it shows.
NICENESS = 5
#: Where this process is not in the foreground, what is typed is not for it; looked at again after this.
BACKGROUND_S = 1.0


NO_BROWSER = "No browser could be started here; open the link in one."


class PortTaken(LocalError):
    """Something else listens on the port of the page."""

    code = "port_held"


class _Server(uvicorn.Server):
    """The signals are ours: they have more to end than the server."""

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
    """Runs the console until Ctrl-C. `port` 0: any. `open_in` starts a process that opens a URL in a browser, and whose
    exit status says whether it could.

    Raises `PortTaken`, and what `Lease` raises.
    """
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(one) for one in _listen(port)]
        port = listening[0].getsockname()[1]
        lease = stack.enter_context(Lease(settings.data_dir, port))
        peers = stack.enter_context(Peers())
        with contextlib.suppress(OSError):
            os.nice(NICENESS)
        asyncio.run(_serve(settings, listening, lease, peers, disconnect, open_in))
    return 0


def _listen(port: int) -> list[socket.socket]:
    """The sockets on both loopback addresses; only one, where the machine has no IPv6."""
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
    # By its protocol, too: asyncio switches Nagle's algorithm off only where it sees that, and with it every answer of
    # two writes would wait 40 ms for an acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A console that has just ended leaves connections that linger; the port is free all the same.
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
        f"port {port} cannot be had ({error.strerror or error}); if a console runs there, get a link to it with: "
        f"zmqbus console --link --port {port} — or choose another port, or none"
    )


async def _serve(
    settings: Settings,
    listening: list[socket.socket],
    lease: Lease,
    peers: Peers,
    disconnect: Callable[[SessionState], str],
    open_in: Callable[[str], subprocess.Popen[bytes]] | None,
) -> None:
    port = listening[0].getsockname()[1]
    authority = f"{lease.name}:{port}"
    console = Console(settings, authority, Links(lease.secret), disconnect)
    config = uvicorn.Config(
        console.app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody stands before us, and whoever says so lies
        lifespan="off",
        ws="none",
        http=partial(Connection, Crowd(peers)),  # type: ignore[arg-type]  # all that it is, is called
        loop="asyncio",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    # It would tell of every request that is none. What concerns the user of the terminal, `guard.complain` says.
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())
    logging.getLogger("uvicorn").propagate = False
    server = _Server(config)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if server.should_exit:
            server.force_exit = True  # asked twice
        server.should_exit = True
        console.hub.close_all()

    def say_link() -> None:
        _say(link(authority, mint(lease.secret, time.time())))

    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        ends.append(signal.SIGHUP)  # its terminal was closed
    for signum in ends:
        loop.add_signal_handler(signum, stop)
    console.start()
    opening: asyncio.Task[None] | None = None
    try:
        _say(f"zmqbus console: port {port}, for the broker on port {settings.port}")
        say_link()
        with _links_on_enter(loop, say_link) as typing:
            _say(
                f"The link is good for one use, within {LINK_S // 60} minutes. "
                + ("Enter prints another; Ctrl-C ends the console." if typing else "Another: zmqbus console --link")
            )
            if open_in is not None:
                opening = asyncio.create_task(_open(settings, authority, lease, peers, open_in))
            await server.serve(sockets=listening)
    finally:
        if opening is not None:
            opening.cancel()
        await asyncio.to_thread(console.close)
        unlink(_opener(settings, port))
        for signum in ends:
            loop.remove_signal_handler(signum)


async def _open(
    settings: Settings,
    authority: str,
    lease: Lease,
    peers: Peers,
    open_in: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    """Opens the page in a browser, which gets the address as an argument, and arguments can be read by every user of
    the machine, in the list of processes.

    So it is a link that is good for connections of this user only, where the kernel says whose they are. Elsewhere it
    is the address of a file that leads there and that only this user can read. A browser that may not read hidden
    directories (a snap) cannot read that file; but where there are such browsers, the kernel tells.
    """
    if peers.can_tell():
        url, advice = link(authority, mint(lease.secret, time.time(), same_user=True)), ""
    else:
        path = _opener(settings, int(authority.rpartition(":")[2]))
        refresh = f"0; url={link(authority, mint(lease.secret, time.time()))}"
        page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="{refresh}">'
        replace(path, page.encode())
        url, advice = f"file://{path}", " If the browser cannot read the file, open the link in it."
    try:
        opener = open_in(url)
    except OSError:
        _say(NO_BROWSER)
        return
    # Not waited for: a browser may run until it is closed, and it is not ours to end.
    end_s = time.monotonic() + OPENING_S
    while opener.poll() is None and time.monotonic() < end_s:
        await asyncio.sleep(OPENING_LOOK_S)
    if opener.returncode:
        _say(NO_BROWSER)
    elif advice:
        _say(advice.strip())


def _opener(settings: Settings, port: int) -> str:
    return os.path.join(settings.data_dir, f"console.{port}.html")


@contextlib.contextmanager
def _links_on_enter(loop: asyncio.AbstractEventLoop, say: Callable[[], None]) -> Iterator[bool]:
    """Says a link for each line that is typed; gives whether anything can be typed at all."""
    try:
        terminal = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
    except (OSError, ValueError):  # closed
        terminal = -1
    if terminal < 0:
        yield False
        return

    def typed() -> None:
        if not _in_foreground(terminal):
            loop.remove_reader(terminal)
            loop.call_later(BACKGROUND_S, loop.add_reader, terminal, typed)
            return
        try:
            data = os.read(terminal, 4096)
        except OSError:
            data = b""
        if not data:
            loop.remove_reader(terminal)  # the terminal has gone
            return
        say()

    loop.add_reader(terminal, typed)
    try:
        yield True
    finally:
        loop.remove_reader(terminal)


def _in_foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        return  # nobody reads it any more; the page is still there
