"""Bytes that peers have sent and the broker has not looked at: counted where they lie, and a bound for them.

Theory of operation
===================

libzmq reads what a peer sends into memory of its own before anybody can judge it, and counts whole messages there, not
bytes. A message may have any number of frames of 16 MiB, of which nobody hears before the last; a frame that never ends
lies there as far as it has come; each byte of a subscription becomes a node of a tree, 48 bytes. So a few connections
can take all memory there is, those among them that have not even shown a key. Nor can libzmq be told to close one.

The kernel can. It counts the bytes of each connection (TCP_INFO), and a socket that is shut down here is, to libzmq,
one whose peer has gone: it drops what it has read of it, and what it has for it. So when the process has grown by more
than what the broker itself keeps (`SOFT_BYTES`), the connections are watched, each `WATCH_S`; and when it has grown by
`HARD_BYTES`, those are closed that have read nothing since then of what is sent to them, or else those that have sent
most, one at each look, until it is enough. Whoever is honest and closed by mistake comes back and says again what was
not answered: it costs a reconnect, and no message.

A connection to the PUB says a few hundred bytes in its life, so there the sum is the judgement: over
`MAX_SUBSCRIBING_BYTES` it is closed at once.

Freed memory is given back to the system afterwards (`malloc_trim`), which the C library would keep.

This needs Linux. Elsewhere the bounds of each message hold, and those of the sockets, and no other.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import ioctl
from struct import Struct, unpack
from termios import TIOCOUTQ

from zmqbus.tuples import NamedTuple

#: Memory over what the process had when it began, and what the broker itself keeps: from here on it is watched where it
#: comes from,
SOFT_BYTES = 32 * 1024 * 1024
#: and from here on connections are closed. Ten bodies of the largest size on their way are less.
HARD_BYTES = 96 * 1024 * 1024
#: What a connection may send to the PUB: 512 topics, groups and projects, all as long as they may be, are less.
MAX_SUBSCRIBING_BYTES = 128 * 1024
#: What lies with the kernel for a peer that has read nothing since the watch began: then the rest lies here.
UNREAD_BYTES = 32 * 1024
#: How often it is looked at the size of the process: it may grow by some hundred MB in a second.
LOOK_S = 0.1
#: And while it is watched.
WATCH_S = 0.01
#: What counts as growth from one look to the next,
STEP_BYTES = 1024 * 1024
#: and without it for so long, nobody is at fault any more.
SETTLED_S = 1.0

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: Where `struct tcp_info` has `tcpi_bytes_acked` and `tcpi_bytes_received`.
_COUNTS = Struct("@QQ")
_COUNTS_AT = 120


class Pressure:
    """Watches the size of this process, and closes the connections that make it grow."""

    def __init__(self, port: int, pub_port: int) -> None:
        """To be made when all that a broker has without a client is there."""
        self._ports = port, pub_port
        self._pub_port = pub_port
        self._due_s = 0.0
        self._watching = False
        self._before: dict[tuple[int, int], _Connection] = {}  # those that were there when the watch began
        self._seen_bytes = 0  # how far it had grown at the last look
        self._rose_s = 0.0  # and when it was seen to grow last
        self.closed = 0  #: connections, since the start
        try:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._statm = -1
        self._base_bytes = self._resident_bytes()

    def __repr__(self) -> str:
        return f"<Pressure: {self.closed} connections closed{', watching' if self._watching else ''}>"

    @property
    def wait_s(self) -> float | None:
        """How long the loop may sleep before the next look; None: for ever."""
        if self._statm < 0:
            return None
        return WATCH_S if self._watching else LOOK_S

    def _resident_bytes(self) -> int:
        return int(os.pread(self._statm, 200, 0).split()[1]) * _PAGE_BYTES if self._statm >= 0 else 0

    def look(self, now_s: float, kept_bytes: Callable[[], int]) -> list[str]:
        """Closes what has to be closed; a line for the log about each. `kept_bytes` tells what the broker itself keeps,
        and is asked only where it matters."""
        if now_s < self._due_s or self._statm < 0:
            return []
        grown = self._resident_bytes() - self._base_bytes
        if grown >= SOFT_BYTES:
            grown -= kept_bytes()
        if grown < SOFT_BYTES:
            self._due_s = now_s + LOOK_S
            self._watching = False
            return []
        if not self._watching:
            self._watching = True
            self._rose_s = now_s
            self._seen_bytes = grown
            self._before = {(one.fd, one.inode): one for one in _connections(self._ports)}
        elif grown > self._seen_bytes + STEP_BYTES:
            self._rose_s = now_s
            self._seen_bytes = grown
        if now_s - self._rose_s > SETTLED_S:
            _give_back()
            # What is left now is nobody's fault: Python and the C library have grown, or somebody's bytes lie here and
            # do not get more. As long as they are below the bound they may.
            self._seen_bytes = self._resident_bytes() - self._base_bytes - kept_bytes()
            self._rose_s = now_s
            self._due_s = now_s + SETTLED_S
            return self._judge(now_s, self._seen_bytes, settled=True)
        self._due_s = now_s + WATCH_S
        return self._judge(now_s, grown, settled=False)

    def _judge(self, now_s: float, grown: int, *, settled: bool) -> list[str]:
        heard: tuple[int, _Connection | None] = (0, None)
        unread: tuple[int, _Connection | None] = (UNREAD_BYTES, None)
        closed: list[str] = []
        for one in _connections(self._ports):
            if one.port == self._pub_port and one.received > MAX_SUBSCRIBING_BYTES:  # guards: memory pressure [off]
                closed.append(self._close(one.fd, f"has sent {one.received:,} bytes of subscriptions"))
                continue
            before = self._before.get((one.fd, one.inode))
            # Where nobody sends any more, it came before the watch.
            new = one.received - (before.received if before is not None and not settled else 0)
            if new > heard[0]:
                heard = new, one
            if before is not None and one.acked == before.acked and one.unsent > unread[0]:
                unread = one.unsent, one
        if grown >= HARD_BYTES and not closed:  # guards: memory pressure [off]
            if unread[1] is not None:
                why = f"reads nothing, and the broker has grown by {grown:,} bytes"
                closed.append(self._close(unread[1].fd, why))
            elif heard[1] is not None:
                why = f"has sent {heard[0]:,} bytes that are not looked at yet; the broker has grown by {grown:,}"
                closed.append(self._close(heard[1].fd, why))
        if closed:
            self._due_s = now_s + WATCH_S
        return closed

    def _close(self, fd: int, why: str) -> str:
        self.closed += 1
        with suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
        return f"a connection is closed: it {why}"

    def close(self) -> None:
        """Ends the watch."""
        if self._statm >= 0:
            os.close(self._statm)
            self._statm = -1


class _Connection(NamedTuple):
    """One of the broker's, as the kernel sees it."""

    fd: int
    inode: int
    port: int
    received: int  # bytes that have come from its peer
    acked: int  # bytes that the peer's kernel has taken
    unsent: int  # bytes that it has not


def _connections(ports: tuple[int, int]) -> Iterator[_Connection]:
    """All that there are to one of these ports."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        with suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(fd)) as found:
                if found.family != socket.AF_INET or found.type != socket.SOCK_STREAM:
                    continue
                port = found.getsockname()[1]
                if port not in ports or found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    continue
                info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                if len(info) >= _COUNTS_AT + _COUNTS.size:
                    acked, received = _COUNTS.unpack_from(info, _COUNTS_AT)
                    (unsent,) = unpack("i", ioctl(fd, TIOCOUTQ, bytes(4)))
                    yield _Connection(fd, os.fstat(fd).st_ino, port, received, acked, unsent)


def _give_back() -> None:
    """Gives freed memory back to the system, where the C library has a call for that."""
    import ctypes  # 10 ms; nobody needs it but a broker that has been attacked

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
