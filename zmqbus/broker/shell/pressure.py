"""Memory pressure: closes connections that fill libzmq's buffers beyond the broker's control.

Theory of operation
===================

libzmq reads the bytes of a peer into its own memory before the broker sees them, and bounds the number of messages
there but not their bytes. A message may have any number of frames of 16 MiB, which arrive at the broker only with the
last one; an endless frame stays in memory as far as it has come; each byte of a subscription becomes a tree node of 48
bytes. So a few connections can take all memory, even without a valid key. libzmq has no call to close one.

The kernel has. It counts the bytes of each connection (TCP_INFO), and libzmq treats a socket that is shut down here as
one whose peer has gone: it drops all buffers of the connection. So when the process has grown by `SOFT_BYTES` more than
the broker itself keeps, the connections are watched every `WATCH_S`. When it has grown by `HARD_BYTES`, one connection
is closed at each look until memory suffices: first those that have read nothing since the watch began, then those that
have sent most. An honest client that is closed by mistake reconnects and repeats its unanswered messages: that costs a
reconnect, and no message.

A client sends a few hundred bytes to the PUB in its life, so there the sum decides: over `MAX_SUBSCRIBING_BYTES` the
connection is closed at once. A thread looks at those: libzmq reads all subscriptions that it has within one call of the
broker's loop, which does not return while a peer sends them faster than they enter the tree.

Afterwards freed memory is returned to the system (`malloc_trim`), which the C library would keep.

This needs Linux. Elsewhere only the bounds of messages and sockets hold.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fcntl import ioctl
from struct import Struct, unpack
from termios import TIOCOUTQ

from zmqbus.tuples import NamedTuple

#: Growth of the process since its start, without the memory that the broker itself keeps: from here on connections are
#: watched,
SOFT_BYTES = 32 * 1024 * 1024
#: and from here on closed. Ten of the largest bodies in flight are less.
HARD_BYTES = 96 * 1024 * 1024
#: Bytes that a connection may send to the PUB: 512 topics, groups and projects of the greatest length are less.
MAX_SUBSCRIBING_BYTES = 128 * 1024
#: Unread bytes in the kernel from which on a peer that has read nothing since the watch began is closed.
UNREAD_BYTES = 32 * 1024
#: Pause between two looks at the size of the process, which may grow by some hundred MB in a second,
LOOK_S = 0.1
#: and while connections are watched.
WATCH_S = 0.01
#: Least difference between two looks that counts as growth,
STEP_BYTES = 1024 * 1024
#: and time without growth after which no connection is at fault any more.
SETTLED_S = 1.0

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: Layout and offset of `tcpi_bytes_acked` and `tcpi_bytes_received` in `struct tcp_info`.
_COUNTS = Struct("@QQ")
_COUNTS_AT = 120


class MemoryPressure:
    """Watches the size of this process, and closes the connections that make it grow."""

    def __init__(self, port: int, pub_port: int) -> None:
        """Create it when the broker has all that it has without clients."""
        self._ports = port, pub_port
        self._pub_port = pub_port
        self._due_s = 0.0
        self._watching = False
        self._before: dict[tuple[int, int], _Connection] = {}  # connections when the watch began
        self._seen_bytes = 0  # growth at the last look
        self._rose_s = 0.0  # when it was last seen to grow
        self.closed = 0  #: connections, since the start
        try:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._statm = -1
        self._base_bytes = self._resident_bytes()
        self._lines: deque[str] = deque()  # for the log, from the thread
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread that watches the subscribers."""
        if self._statm >= 0:
            self._thread = threading.Thread(target=self._watch_subscribers, name="subscribers", daemon=True)
            self._thread.start()

    def _watch_subscribers(self) -> None:
        """Looks at the subscribers while the process grows; one that is merely large costs nothing."""
        seen_bytes = self._base_bytes
        while not self._ended.wait(LOOK_S):
            now_bytes = self._resident_bytes()
            if now_bytes - self._base_bytes >= SOFT_BYTES and now_bytes - seen_bytes >= STEP_BYTES:
                self._lines.extend(self._close_floods(_connections((self._pub_port,))))
            seen_bytes = now_bytes

    def __repr__(self) -> str:
        return f"<MemoryPressure: {self.closed} connections closed{', watching' if self._watching else ''}>"

    @property
    def wait_s(self) -> float | None:
        """How long the loop may sleep before the next look; None: any time."""
        if self._statm < 0:
            return None
        return WATCH_S if self._watching else LOOK_S

    def _resident_bytes(self) -> int:
        return int(os.pread(self._statm, 200, 0).split()[1]) * _PAGE_BYTES if self._statm >= 0 else 0

    def look(self, now_s: float, kept_bytes: Callable[[], int]) -> list[str]:
        """Closes connections as far as necessary, and returns a line for the log about each.

        `kept_bytes` returns the memory that the broker itself keeps; it is called only when needed.
        """
        if self._lines:
            return [self._lines.popleft() for _ in range(len(self._lines))]
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
            _trim_memory()
            # The rest is no fault: Python and the C library have grown, or buffered bytes stay and do not get more.
            self._seen_bytes = self._resident_bytes() - self._base_bytes - kept_bytes()
            self._rose_s = now_s
            self._due_s = now_s + SETTLED_S
            return self._judge(now_s, self._seen_bytes, settled=True)
        self._due_s = now_s + WATCH_S
        return self._judge(now_s, grown, settled=False)

    def _judge(self, now_s: float, grown: int, *, settled: bool) -> list[str]:
        heard: tuple[int, _Connection | None] = (0, None)
        unread: tuple[int, _Connection | None] = (UNREAD_BYTES, None)
        connections = list(_connections(self._ports))
        closed = self._close_floods(connections)
        for one in connections:
            before = self._before.get((one.fd, one.inode))
            # If no connection sends any more, the bytes came before the watch.
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
                why = f"has sent {heard[0]:,} bytes that are not processed yet; the broker has grown by {grown:,}"
                closed.append(self._close(heard[1].fd, why))
        if closed:
            self._due_s = now_s + WATCH_S
        return closed

    def _close_floods(self, connections: Iterable[_Connection]) -> list[str]:
        """Closes the subscribers that have sent more than any client sends."""
        return [
            self._close(one.fd, f"has sent {one.received:,} bytes of subscriptions")
            for one in connections
            if one.port == self._pub_port and one.received > MAX_SUBSCRIBING_BYTES  # guards: memory pressure
        ]

    def _close(self, fd: int, why: str) -> str:
        self.closed += 1
        with suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
        return f"closed a connection: it {why}"

    def close(self) -> None:
        """Ends the watch."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._statm >= 0:
            os.close(self._statm)
            self._statm = -1


class _Connection(NamedTuple):
    """A connection of the broker, as the kernel sees it."""

    fd: int
    inode: int
    port: int
    received: int  # bytes from the peer
    acked: int  # bytes that the peer's kernel has acknowledged
    unsent: int  # bytes that it has not acknowledged


def _connections(ports: tuple[int, ...]) -> Iterator[_Connection]:
    """All connections to one of these ports."""
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


def _trim_memory() -> None:
    """Returns freed memory to the system, if the C library has a call for that."""
    import ctypes  # 10 ms; only a broker under attack needs it

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
