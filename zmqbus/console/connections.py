"""The connections of the page's server: who may keep one, and for how long.

Anybody on the machine can connect to the port, and most of what they can do there costs a connection. So:

1. A connection of another user, as the kernel says (`peers`), is closed as it comes. Its half requests cost nothing.
2. A connection on which nothing was asked with a visitor's proof yet is *unproven*. It lives for `UNPROVEN_S`, which is
   plenty to load the page, whatever it does in that time: nothing, half a request, one byte a second, not reading. Of
   these there are `MAX_UNPROVEN`; where one more comes, the oldest goes.
3. With the first request that carries a proof it is the user's, and stays. What strangers do takes none of these.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import OrderedDict
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from zmqbus.console.peers import Peers

#: As long as a connection may live on which no visitor has proven anything. A page is loaded in a tenth of a second.
UNPROVEN_S = 10.0
#: A browser has six for a page; more than these are no browser's.
MAX_UNPROVEN = 64
#: Connections of visitors: some pages with six each, and room.
MAX_PROVEN = 100
#: Other users that the terminal is told of; each once.
MAX_TOLD = 5


class Crowd:
    """All connections of a server."""

    def __init__(self, peers: Peers, *, unproven_s: float = UNPROVEN_S, max_unproven: int = MAX_UNPROVEN) -> None:
        self._peers = peers
        self._unproven_s = unproven_s
        self._max_unproven = max_unproven
        self._unproven: OrderedDict[Connection, asyncio.TimerHandle] = OrderedDict()
        self._proven: OrderedDict[Connection, None] = OrderedDict()
        self._told: set[int] = set()

    def __len__(self) -> int:
        return len(self._unproven) + len(self._proven)

    def enter(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """A connection has come. It may be closed by this, and an older one, too."""
        sock: socket.socket = connection.transport.get_extra_info("socket")
        try:
            uid = self._peers.uid(sock.family, sock.getpeername(), sock.getsockname())
        except OSError:  # it has gone again
            uid = None
        if self._peers.foreign(uid):
            self._tell(uid)
            connection.transport.abort()  # guards: console access
            return
        connection.same_user = self._peers.same(uid)
        self._unproven[connection] = loop.call_later(self._unproven_s, connection.transport.abort)
        if len(self._unproven) > self._max_unproven:
            # guards: console access: unfinished requests cannot take all connections
            self._end(next(iter(self._unproven)))

    def prove(self, connection: Connection) -> None:
        """A visitor has asked something over this connection: it is the user's, and stays."""
        timer = self._unproven.pop(connection, None)
        if timer is None:
            return
        timer.cancel()
        self._proven[connection] = None
        if len(self._proven) > MAX_PROVEN:
            self._end(next(iter(self._proven)))

    def leave(self, connection: Connection) -> None:
        """A connection has ended."""
        timer = self._unproven.pop(connection, None)
        if timer is not None:
            timer.cancel()
        self._proven.pop(connection, None)

    def _end(self, connection: Connection) -> None:
        self.leave(connection)  # at once: the loop calls `connection_lost` later, and more may come until then
        connection.transport.abort()

    def _tell(self, uid: int | None) -> None:
        if uid is None or uid in self._told or len(self._told) >= MAX_TOLD:
            return
        self._told.add(uid)
        print(
            f"warning: another user of this machine (uid {uid}) tried to reach the console, and was refused",
            file=sys.stderr,
            flush=True,
        )


class Connection(H11Protocol):
    """One connection, as uvicorn serves it. The application finds `same_user` and `prove` in the scope of a request."""

    def __init__(self, crowd: Crowd, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._crowd = crowd
        self.same_user = False
        inner: Any = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await inner({**scope, "same_user": self.same_user, "prove": self._prove}, receive, send)

        self.app = app

    def _prove(self) -> None:
        self._crowd.prove(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._crowd.enter(self, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._crowd.leave(self)
        super().connection_lost(exc)
