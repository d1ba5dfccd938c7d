"""The floor for broadcasts: a bare XPUB with CURVE in one process, SUBs in others.

One process less than a broker has, and nothing that is lost is noticed, but here: the receivers count.
"""

from __future__ import annotations

import select
import time

import zmq

from benchmarks import work
from benchmarks.peers.forwarder import as_client, as_server
from benchmarks.stage import PATIENCE_S

TOPIC = b"*"


class Announcer:
    """The XPUB."""

    def __init__(self, port: int, keys: dict[str, str]) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        context.set(zmq.MAX_SOCKETS, 4096)
        self._socket = context.socket(zmq.XPUB)
        self._socket.sndhwm = 0
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # every subscriber is seen, not only the first
        self._socket.backlog = 1024
        as_server(self._socket, keys)
        self._socket.bind(f"tcp://127.0.0.1:{port}")

    def await_subscribers(self, count: int) -> float:
        """Waits until so many are there; when that was."""
        for _ in range(count):
            if not self._socket.poll(int(PATIENCE_S * 1000)):
                raise TimeoutError("not all subscribers have come")
            self._socket.recv()
        return time.monotonic()

    def prepare(self, count: int) -> None:
        """Needs no preparation."""

    def publish(self, count: int, size_bytes: int) -> tuple[float, float]:
        """Publishes `count` messages; returns when it began, and when it had handed over the last one."""
        texts = work.bodies(count, size_bytes)
        began_s = time.monotonic()
        for text in texts:
            self._socket.send(TOPIC + text.encode())
        return began_s, time.monotonic()

    def close(self) -> None:
        """Closes all connections."""
        self._socket.close(0)


class Seats:
    """Some SUBs, each in a context of its own, as it would be in a process of its own."""

    def __init__(self, port: int, keys: dict[str, str], first: int, count: int) -> None:
        self._port = port
        self._poller = select.epoll()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._by_descriptor: dict[int, int] = {}
        for index in range(count):
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            socket = context.socket(zmq.SUB)
            socket.rcvhwm = 0
            as_client(socket, keys)
            socket.subscribe(TOPIC)
            self._sockets.append(socket)
            self._by_descriptor[socket.fileno()] = index
            self._poller.register(socket.fileno(), select.EPOLLIN)

    def connect(self) -> float:
        """Begins to connect all; the publisher sees when they have."""
        for socket in self._sockets:
            socket.connect(f"tcp://127.0.0.1:{self._port}")
        return time.monotonic()

    def listen(self, count: int, size_bytes: int) -> float:
        """Lets each read `count` messages; returns when the last one was read."""
        checks = [work.Tick(count, size_bytes) for _ in self._sockets]
        left = len(checks)
        busy = set(range(left))  # a descriptor tells of changes: once, all have to be looked at
        deadline_s = time.monotonic() + PATIENCE_S
        while left:
            for index in busy:
                socket, check = self._sockets[index], checks[index]
                try:
                    while True:
                        if not check.take(socket.recv(zmq.NOBLOCK)[len(TOPIC) :].decode()):
                            left -= 1
                except zmq.Again:
                    pass
            if left:
                if time.monotonic() > deadline_s:
                    raise TimeoutError("not everything has come to all subscribers")
                found = self._poller.poll(1.0)
                busy = {self._by_descriptor[descriptor] for descriptor, _ in found}
        return time.monotonic()

    def close(self) -> None:
        """Closes all connections."""
        for socket in self._sockets:
            socket.close(0)
