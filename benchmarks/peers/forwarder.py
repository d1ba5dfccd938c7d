"""The floor: bare pyzmq with CURVE, and a ROUTER in a process of its own that passes on what it gets.

It acknowledges nothing, keeps nothing and knows nobody; the receiver tells the sender at the end how many have come,
so that both ends of the measurement are where they are for everybody else.
"""

from __future__ import annotations

import time
from typing import Any

import zmq

from benchmarks import work
from benchmarks.stage import PATIENCE_S

#: From here on a copy costs more than the bookkeeping of not making one.
COPY_BYTES = 32 * 1024
DRAIN = 1_000


def curve_keys() -> dict[str, str]:
    """Keys for a server and for its clients."""
    pairs = {"server": zmq.curve_keypair(), "client": zmq.curve_keypair()}
    return {
        f"{who}_{which}": key.decode() for who, pair in pairs.items() for which, key in zip(KINDS, pair, strict=True)
    }


KINDS = ("public", "secret")


def as_server(socket: zmq.Socket[bytes], keys: dict[str, str]) -> None:
    """CURVE, the server's side."""
    socket.curve_server = True
    socket.curve_secretkey = keys["server_secret"].encode()


def as_client(socket: zmq.Socket[bytes], keys: dict[str, str]) -> None:
    """CURVE, the client's side."""
    socket.curve_serverkey = keys["server_public"].encode()
    socket.curve_publickey = keys["client_public"].encode()
    socket.curve_secretkey = keys["client_secret"].encode()


class Forwarder:
    """The server: turns `[to, body]` from one client into `[from, body]` for the other."""

    def __init__(self, port: int, keys: dict[str, str]) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = context.socket(zmq.ROUTER)
        self._router.sndhwm = self._router.rcvhwm = 0
        self._router.router_mandatory = True
        as_server(self._router, keys)
        self._router.bind(f"tcp://127.0.0.1:{port}")

    def forward(self, count: int, size_bytes: int) -> None:
        """Passes on so many messages, and waits in between as a broker does."""
        router, copy = self._router, size_bytes < COPY_BYTES
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        left = count
        while left:
            if not poller.poll(int(PATIENCE_S * 1000)):
                raise TimeoutError(f"{left} of {count} messages have not come")
            for _ in range(min(left, DRAIN)):
                try:
                    frames: list[Any] = router.recv_multipart(zmq.NOBLOCK, copy=copy)
                except zmq.Again:
                    break
                frames[0], frames[1] = frames[1], frames[0]
                router.send_multipart(frames, copy=copy)
                left -= 1

    def close(self) -> None:
        """Closes all connections."""
        self._router.close(0)


class _End:
    def __init__(self, port: int, keys: dict[str, str], name: str) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer = context.socket(zmq.DEALER)
        self._dealer.sndhwm = self._dealer.rcvhwm = 0
        self._dealer.routing_id = name.encode()
        self._dealer.rcvtimeo = int(PATIENCE_S * 1000)
        as_client(self._dealer, keys)
        monitor = self._dealer.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED)
        self._dealer.connect(f"tcp://127.0.0.1:{port}")
        if not monitor.poll(int(PATIENCE_S * 1000)):
            raise TimeoutError("the forwarder does not answer")
        self._dealer.disable_monitor()

    def close(self) -> None:
        """Closes all connections."""
        self._dealer.close(0)


class Receiver(_End):
    """Gets."""

    def __init__(self, port: int, keys: dict[str, str]) -> None:
        super().__init__(port, keys, "receiver")

    def receive(self, count: int, size_bytes: int) -> float:
        """Reads `count` messages and reports to the sender; returns when the last one came."""
        check = work.Check(count, size_bytes)
        receive = self._dealer.recv_multipart
        while check.take(receive()[1].decode()):
            pass
        ended_s = time.monotonic()
        self._dealer.send_multipart([b"sender", str(count).encode()])
        return ended_s

    def receive_stamped(self, count: int) -> list[float]:
        """Reads `count` stamped messages; returns the latency of each, in seconds."""
        return [work.age_s(self._dealer.recv_multipart()[1].decode()) for _ in range(count)]

    def echo(self, count: int) -> None:
        """Answers `count` requests."""
        for _ in range(count):
            self._dealer.send_multipart(self._dealer.recv_multipart())


class Sender(_End):
    """Sends."""

    def __init__(self, port: int, keys: dict[str, str]) -> None:
        super().__init__(port, keys, "sender")

    def send(self, count: int, size_bytes: int) -> tuple[float, float]:
        """Sends `count` messages; returns when it began, and when it knew that all had come."""
        texts = work.bodies(count, size_bytes)
        different = len(texts)
        send = self._dealer.send_multipart
        began_s = time.monotonic()
        for number in range(count):
            send([b"receiver", texts[number % different].encode()])
        told = int(self._dealer.recv_multipart()[1])
        ended_s = time.monotonic()
        if told != count:
            raise ValueError(f"the receiver has got {told} of {count}")
        return began_s, ended_s

    def send_stamped(self, count: int, pause_s: float) -> None:
        """Sends `count` stamped messages, with pauses."""
        for when_s in work.spaced(count, pause_s):
            work.sleep_until(when_s)
            self._dealer.send_multipart([b"receiver", work.stamp().encode()])

    def ask(self, count: int, pause_s: float) -> list[float]:
        """Sends `count` requests with pauses; returns how long each answer took, in seconds."""
        taken: list[float] = []
        for when_s in work.spaced(count, pause_s):
            work.sleep_until(when_s)
            began_s = time.monotonic()
            self._dealer.send_multipart([b"receiver", work.stamp().encode()])
            self._dealer.recv_multipart()
            taken.append(time.monotonic() - began_s)
        return taken
