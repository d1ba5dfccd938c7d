"""Looks up the user whose process holds the other end of a TCP connection over loopback.

Linux tells it (`sock_diag`, an exact query by both addresses, a few microseconds whatever else is connected). Other
systems do not, nor does Linux for a peer in another network namespace or behind a proxy; the user is then unknown
(None), never guessed.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from types import TracebackType
from typing import Any

#: <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h>.
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
ANY_STATE = 0xFFFF_FFFF
NO_COOKIE = 0xFFFF_FFFF
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_QUERY = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_PORTS = struct.Struct("!HH16s16s")  # source port, its peer's, source address, its peer's
_REST = struct.Struct("=III")  # interface, cookie
_FOUND = struct.Struct("=4x48x12xII")  # …, uid, inode
#: The kernel answers within the call; this is a limit for one that does not.
TIMEOUT_S = 0.2
ROOT = 0


class Peers:
    """Looks up the users of peers. A context manager; not thread-safe."""

    def __init__(self, own_uid: int | None = None) -> None:
        """`own_uid`: the user to compare with; this process's by default."""
        self._own = os.getuid() if own_uid is None else own_uid
        self._overflow = overflow_uid()
        self._sequence = 0
        self._kernel: socket.socket | None = None
        if sys.platform == "linux":
            try:
                self._kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG)
                self._kernel.settimeout(TIMEOUT_S)
            except OSError:
                self._kernel = None

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def uid(self, family: int, peer: tuple[Any, ...], own: tuple[Any, ...]) -> int | None:
        """Returns the user of the process that connected from `peer` to `own`; None when unknown."""
        if self._kernel is None or family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            addresses = socket.inet_pton(family, peer[0]), socket.inet_pton(family, own[0])
            found = self._ask(
                _QUERY.pack(family, socket.IPPROTO_TCP, 0, ANY_STATE)
                + _PORTS.pack(peer[1], own[1], *addresses)
                + _REST.pack(0, NO_COOKIE, NO_COOKIE)
            )
        except (OSError, ValueError, struct.error):
            return None
        if found is None:
            return None
        uid, inode = found
        # Without an inode no process holds the socket any more, and the kernel names root. The overflow uid stands for
        # every user that has no uid in this namespace.
        if not inode or (uid == self._overflow and uid != self._own):
            return None
        return uid

    def _ask(self, query: bytes) -> tuple[int, int] | None:
        """Sends a query to the kernel; returns uid and inode of the socket, None when there is no such socket."""
        assert self._kernel is not None
        self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
        head = _HEADER.pack(_HEADER.size + len(query), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, self._sequence, 0)
        self._kernel.send(head + query)
        while True:
            answer = self._kernel.recv(4096)
            _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if sequence == self._sequence:  # otherwise the late answer to an earlier query
                break
        if kind != SOCK_DIAG_BY_FAMILY:
            return None
        uid, inode = _FOUND.unpack_from(answer, _HEADER.size)
        return int(uid), int(inode)

    def is_other_user(self, uid: int | None) -> bool:
        """Whether this is certainly another user. Root is not: it can do everything anyway, and relays run as root."""
        return uid is not None and uid not in (self._own, ROOT)

    def is_own_user(self, uid: int | None) -> bool:
        """Whether this is certainly the user of this process."""
        return uid == self._own

    def works(self) -> bool:
        """Whether lookups work on this machine; tries one."""
        if self._kernel is None:
            return False
        try:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                own = listening.getsockname()
                with socket.create_connection(own, TIMEOUT_S) as there:
                    return self.is_own_user(self.uid(socket.AF_INET, there.getsockname(), own))
        except OSError:
            return False


def overflow_uid() -> int:
    """Returns the uid that stands for users without a uid in this namespace."""
    try:
        with open("/proc/sys/kernel/overflowuid", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 65_534
