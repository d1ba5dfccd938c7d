"""Limits the connections of the page's server: who may keep one, and for how long.

Every user of the machine can connect to the port and so use up connections. Therefore:

1. A connection of another user, as the kernel says (`peers`), is closed on arrival, so half requests cost nothing.
2. A connection without a request that carries a visitor's proof is *unproven*. It is closed after `UNPROVEN_S`, plenty
   to load the page, whatever it does in that time: nothing, half a request, one byte a second, not reading. At most
   `MAX_UNPROVEN` of these exist; one more closes the oldest.
3. The first request with a proof makes the connection the user's: it stays. Unproven connections never take its place.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import OrderedDict
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from zmqbus.console.peers import Peers

#: Lifetime of an unproven connection. A page loads in a tenth of a second.
UNPROVEN_S = 10.0
#: A browser opens six for a page; several browsers need fewer than these.
MAX_UNPROVEN = 64
#: Connections of visitors: some pages with six each, and room.
MAX_PROVEN = 100
#: Other users named in warnings in the terminal, each once.
MAX_WARNINGS = 5


class ConnectionTable:
    """All connections of a server."""

    def __init__(self, peers: Peers, *, unproven_s: float = UNPROVEN_S, max_unproven: int = MAX_UNPROVEN) -> None:
        self._peers = peers
        self._unproven_s = unproven_s
        self._max_unproven = max_unproven
        self._unproven: OrderedDict[Connection, asyncio.TimerHandle] = OrderedDict()
        self._proven: OrderedDict[Connection, None] = OrderedDict()
        self._warned_of: set[int] = set()

    def __len__(self) -> int:
        return len(self._unproven) + len(self._proven)

    def add(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Adds a new connection; may close it, and an older one to make room."""
        sock: socket.socket = connection.transport.get_extra_info("socket")
        try:
            uid = self._peers.uid(sock.family, sock.getpeername(), sock.getsockname())
        except OSError:  # closed already
            uid = None
        if self._peers.is_other_user(uid):
            self._warn_of(uid)
            connection.transport.abort()  # guards: console access
            return
        connection.same_user = self._peers.is_own_user(uid)
        self._unproven[connection] = loop.call_later(self._unproven_s, connection.transport.abort)
        if len(self._unproven) > self._max_unproven:
            # guards: console access: unfinished requests cannot take all connections
            self._end(next(iter(self._unproven)))

    def prove(self, connection: Connection) -> None:
        """Keeps a connection: a request on it carried a visitor's proof."""
        timer = self._unproven.pop(connection, None)
        if timer is None:
            return
        timer.cancel()
        self._proven[connection] = None
        if len(self._proven) > MAX_PROVEN:
            self._end(next(iter(self._proven)))

    def remove(self, connection: Connection) -> None:
        """Removes a closed connection. Idempotent."""
        timer = self._unproven.pop(connection, None)
        if timer is not None:
            timer.cancel()
        self._proven.pop(connection, None)

    def _end(self, connection: Connection) -> None:
        self.remove(connection)  # now: the loop calls `connection_lost` later, and more may arrive until then
        connection.transport.abort()

    def _warn_of(self, uid: int | None) -> None:
        if uid is None or uid in self._warned_of or len(self._warned_of) >= MAX_WARNINGS:
            return
        self._warned_of.add(uid)
        print(
            f"warning: refused a connection of another user of this machine (uid {uid}) to the console",
            file=sys.stderr,
            flush=True,
        )


class Connection(H11Protocol):
    """A connection served by uvicorn. Adds `same_user` and `prove` to the ASGI scope of each request."""

    def __init__(self, table: ConnectionTable, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._table = table
        self.same_user = False
        inner: Any = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await inner({**scope, "same_user": self.same_user, "prove": self._prove}, receive, send)

        self.app = app

    def _prove(self) -> None:
        self._table.prove(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._table.add(self, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._table.remove(self)
        super().connection_lost(exc)
