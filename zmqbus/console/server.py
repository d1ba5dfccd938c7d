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
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn

from zmqbus.console.app import Console
from zmqbus.console.auth import Links
from zmqbus.console.connections import Connection, ConnectionTable
from zmqbus.console.guard import ADDRESS
from zmqbus.console.link_issuer import LinkIssuer, Opener, print_line
from zmqbus.console.lockfile import ConsoleLock
from zmqbus.console.peers import Peers
from zmqbus.errors import LocalError
from zmqbus.session.state import SessionState
from zmqbus.settings import Settings

#: IPv6's loopback address.
ADDRESS_6 = "::1"
#: Ports tried when the system chooses one that is free on one address and taken on the other.
PORT_TRIES = 20
#: How long a connection may be idle between two requests.
KEEP_ALIVE_S = 30
#: How long open responses may take when the console ends.
GRACE_S = 2
#: Lower priority: the console must not slow the bus that it shows.
NICENESS = 5


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
    open_in: Opener | None = None,
) -> int:
    """Runs the console until Ctrl-C; returns the exit status.

    `port`: 0 for any free one. `disconnect` ends a session's listener (`app.Console`). `open_in`: also
    opens the page in a browser. Raises `PortTaken`, and like `ConsoleLock`.
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
    open_in: Opener | None,
) -> None:
    port = listening[0].getsockname()[1]
    authority = f"{lock.name}:{port}"
    console = Console(settings, authority, Links(lock.secret), disconnect)
    issuer = LinkIssuer(settings.data_dir, authority, lock.secret, peers)
    server = _new_server(console, peers)
    loop = asyncio.get_running_loop()
    opening: asyncio.Task[None] | None = None
    with _stop_on_signals(loop, server, console):
        console.start()
        try:
            print_line(f"zmqbus console: port {port}, for the broker on port {settings.port}")
            with issuer.in_terminal(loop):
                if open_in is not None:
                    opening = asyncio.create_task(issuer.in_browser(open_in))
                await server.serve(sockets=listening)
        finally:
            if opening is not None:
                opening.cancel()
            await asyncio.to_thread(console.close)
            issuer.close()


def _new_server(console: Console, peers: Peers) -> _Server:
    # uvicorn would log every malformed request; `guard.warn` prints the warnings that concern the user.
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())
    logging.getLogger("uvicorn").propagate = False
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
    return _Server(config)


@contextlib.contextmanager
def _stop_on_signals(loop: asyncio.AbstractEventLoop, server: _Server, console: Console) -> Iterator[None]:
    """Within the block, lets SIGINT, SIGTERM and SIGHUP stop the server; a second signal stops it without waiting."""
    stop_signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
        stop_signals.append(signal.SIGHUP)  # the terminal was closed

    def stop() -> None:
        if server.should_exit:
            server.force_exit = True
        server.should_exit = True
        console.hub.close_all()

    for signum in stop_signals:
        loop.add_signal_handler(signum, stop)
    try:
        yield
    finally:
        for signum in stop_signals:
            loop.remove_signal_handler(signum)
