"""Running the console: a port on loopback, links in the terminal, and a quiet end.

The terminal is for the links. Enter prints another one; so does `zmqbus console --link` in any other terminal of the
user, which needs nothing of this process but its file (`lease`). Ctrl-C and SIGTERM end the streams of the pages first,
for the server waits for its connections, and then everything else: when `serve` returns, no thread is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import uvicorn

from zmqbus.console.app import Console
from zmqbus.console.lease import Lease
from zmqbus.console.tickets import LINK_S, Links, mint
from zmqbus.errors import LocalError
from zmqbus.session.files import replace, unlink
from zmqbus.session.state import SessionState
from zmqbus.settings import Settings

HOST = "127.0.0.1"
#: Connections at a time: some pages with six each, and room.
MAX_CONNECTIONS = 100
#: How long a connection may be idle between two requests.
KEEP_ALIVE_S = 30
#: How long open answers may take when the console ends.
GRACE_S = 2
#: The console is the last to get the processor where it is scarce: it must not slow the bus that it shows.
NICENESS = 5
#: Where this process is not in the foreground, what is typed is not for it; looked at again after this.
BACKGROUND_S = 1.0


class PortTaken(LocalError):
    """Something else listens on the port of the page."""

    code = "port_held"


class _Server(uvicorn.Server):
    """The signals are ours: they have more to end than the server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing."""
        yield


def link(port: int, secret: bytes) -> str:
    """A link that is good for one use."""
    return f"http://{HOST}:{port}/?token={mint(secret, time.time())}"


def run(
    settings: Settings,
    port: int,
    disconnect: Callable[[SessionState], str],
    *,
    open_in: Callable[[str], bool] | None = None,
) -> int:
    """Runs the console until Ctrl-C. `port` 0: any. `open_in` opens a URL in a browser, and says whether it could.

    Raises `PortTaken`, and what `Lease` raises.
    """
    with _listen(port) as listening:
        port = listening.getsockname()[1]
        with Lease(settings.data_dir, port) as lease:
            with contextlib.suppress(OSError):
                os.nice(NICENESS)
            asyncio.run(_serve(settings, listening, lease, disconnect, open_in))
    return 0


def _listen(port: int) -> socket.socket:
    # By its protocol, too: asyncio switches Nagle's algorithm off only where it sees that, and with it every answer of
    # two writes would wait 40 ms for an acknowledgement.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A console that has just ended leaves connections that linger; the port is free all the same.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(64)
    except (OSError, OverflowError) as error:
        listening.close()
        raise PortTaken(
            f"port {port} cannot be had ({getattr(error, 'strerror', None) or error}); if a console runs there, get a "
            f"link to it with: zmqbus console --link --port {port} — or choose another port, or none"
        ) from None
    return listening


async def _serve(
    settings: Settings,
    listening: socket.socket,
    lease: Lease,
    disconnect: Callable[[SessionState], str],
    open_in: Callable[[str], bool] | None,
) -> None:
    port = listening.getsockname()[1]
    console = Console(settings, port, Links(lease.secret), disconnect)
    config = uvicorn.Config(
        console.app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody stands before us, and whoever says so lies
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        limit_concurrency=MAX_CONNECTIONS,
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

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop)
    console.start()
    try:
        _say(f"zmqbus console: port {port}, for the broker on port {settings.port}")
        _say(link(port, lease.secret))
        with _links_on_enter(loop, lambda: _say(link(port, lease.secret))) as typing:
            _say(
                f"The link is good for one use, within {LINK_S // 60} minutes. "
                + ("Enter prints another; Ctrl-C ends the console." if typing else "Another: zmqbus console --link")
            )
            opening = asyncio.create_task(_open(settings, port, lease, open_in)) if open_in is not None else None
            await server.serve(sockets=[listening])
            if opening is not None:
                await opening
    finally:
        await asyncio.to_thread(console.close)
        if open_in is not None:
            unlink(_opener(settings, port))
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)


async def _open(settings: Settings, port: int, lease: Lease, open_in: Callable[[str], bool]) -> None:
    """Opens the page in a browser. Not by its link, which every user of the machine could read in the list of
    processes, but by a file that leads there and that only this user can read."""
    path = _opener(settings, port)
    refresh = f"0; url={link(port, lease.secret)}"
    page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="{refresh}">'
    await asyncio.to_thread(replace, path, page.encode())
    if not await asyncio.to_thread(open_in, f"file://{path}"):
        _say("No browser could be started here; open the link in one.")


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
