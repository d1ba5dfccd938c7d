"""A bad wire: delays, slows down, cuts and resets the TCP connections of a client to the broker.

    python -m tests.soak.wire SEED connect --name r4        # bin/client.py otherwise
    Wire(seed).install()                                    # in a process of one's own

Each connection is relayed by a thread in the client's process: the transport connects to a port of this thread instead
of the broker's. Everything else (keys, handshakes, the start of a broker) is unchanged. Faults are drawn from the seed;
SIGUSR1 resets all connections at once.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

from zmqbus.client import transport

#: Mean time between two faults, s.
MEAN_S = 6.0
#: How much is read from one connection before it has been forwarded, bytes.
BUFFER_BYTES = 256 * 1024
#: The thread's ports: below the kernel's ephemeral range, above those that the tests prefer.
PORTS = range(28_000, 30_000)
#: How many ports are kept: the broker's two, and those of its predecessor.
KEPT_PORTS = 4

#: Each kind of fault and its weight.
TROUBLES = {"cut": 4, "reset": 4, "delay": 5, "trickle": 4, "deaf": 3, "silence": 1}


class _Pipe:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, drain: socket.socket) -> None:
        self.source, self.drain = source, drain
        self.waiting = bytearray()
        self.held_until_s = 0.0
        self.thin_until_s = 0.0


class _Pair:
    """A connection of the client, and the one to the broker behind it."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.pipes = (_Pipe(near, far), _Pipe(far, near))
        self.reset_at_s = float("inf")

    def close(self, *, reset: bool) -> None:
        for end in (self.near, self.far):
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()


class Wire:
    """The relaying thread, which lives as long as the process."""

    def __init__(self, seed: int, *, mean_s: float = MEAN_S, note: Callable[[str], None] | None = None) -> None:
        """`note` is called with each fault, in the thread."""
        self._random = random.Random(seed)
        self._mean_s = mean_s
        self._note = note or (lambda text: None)
        self._lock = threading.Lock()
        self._listeners: dict[int, socket.socket] = {}  # port of the broker → where the client connects
        self._pairs: list[_Pair] = []
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)

    def install(self) -> Wire:
        """Relays all later connections of this process. Must be called before any other thread is started."""
        # Blocked in all threads: the relaying thread asks for the signal, and no system call is interrupted.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        transport.endpoint = self.endpoint
        self._thread.start()
        return self

    def endpoint(self, port: int) -> str:
        """Returns the endpoint to connect to instead of the broker's port."""
        with self._lock:
            if port not in self._listeners:
                self._listeners[port] = self._listen(port)
                for old in list(self._listeners)[1:-KEPT_PORTS]:  # the first is the well-known one
                    self._listeners.pop(old).close()
            return f"tcp://127.0.0.1:{self._listeners[port].getsockname()[1]}"

    def _listen(self, avoided: int) -> socket.socket:
        for port in random.sample(PORTS, len(PORTS)):
            if port in (avoided, *self._listeners):
                continue  # a restarted broker has to find its port free
            listener = socket.socket()
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                listener.close()
                continue
            listener.listen(16)
            listener.setblocking(False)
            return listener
        raise RuntimeError("no free port for the wire")

    # --- the thread

    def _run(self) -> None:
        next_trouble_s = time.monotonic() + self._random.expovariate(1 / self._mean_s)
        while True:
            self._forward()
            now_s = time.monotonic()
            if signal.sigtimedwait({signal.SIGUSR1}, 0) is not None:
                self._note("reset upon request")
                self._end(list(self._pairs), reset=True)
            if now_s >= next_trouble_s and self._pairs:
                self._trouble(now_s)
                next_trouble_s = now_s + self._random.expovariate(1 / self._mean_s)
            self._end([pair for pair in self._pairs if now_s >= pair.reset_at_s], reset=True)

    def _trouble(self, now_s: float) -> None:
        (kind,) = self._random.choices(list(TROUBLES), list(TROUBLES.values()))
        pairs = list(self._pairs) if self._random.random() < 0.5 else [self._random.choice(self._pairs)]
        long_s = self._random.uniform(0.05, 2.0)
        self._note(f"{kind} {len(pairs)} of {len(self._pairs)} for {long_s:.2f} s")
        for pair in pairs:
            to_broker, to_client = pair.pipes
            if kind == "delay":
                to_broker.held_until_s = to_client.held_until_s = now_s + long_s
            elif kind == "trickle":
                to_broker.thin_until_s = to_client.thin_until_s = now_s + long_s
            elif kind == "deaf":  # data sent in this time is lost with the connection
                self._random.choice(pair.pipes).held_until_s = float("inf")
                pair.reset_at_s = now_s + long_s
            elif kind == "silence":  # neither side notices the end for longer than its own timeout
                to_broker.held_until_s = to_client.held_until_s = float("inf")
                pair.reset_at_s = now_s + 12 + long_s
        if kind in ("cut", "reset"):
            self._end(pairs, reset=kind == "reset")

    def _end(self, pairs: list[_Pair], *, reset: bool) -> None:
        for pair in pairs:
            pair.close(reset=reset)
            self._pairs.remove(pair)

    def _forward(self) -> None:
        """Waits for data, 20 ms at most, and forwards it."""
        now_s = time.monotonic()
        with self._lock:
            listeners = list(self._listeners.values())
        readers: list[socket.socket] = [listener for listener in listeners if listener.fileno() >= 0]
        writers: list[socket.socket] = []
        thin = False
        for pair in self._pairs:
            for pipe in pair.pipes:
                if len(pipe.waiting) < BUFFER_BYTES:
                    readers.append(pipe.source)
                if pipe.waiting and now_s >= pipe.held_until_s:
                    thin = thin or now_s < pipe.thin_until_s
                    if now_s >= pipe.thin_until_s:
                        writers.append(pipe.drain)
        try:
            readable, _, _ = select.select(readers, writers, [], 0.001 if thin else 0.02)
        except (OSError, ValueError):  # another thread has just closed a listener
            return
        for listener in listeners:
            if listener in readable:
                self._accept(listener)
        for pair in list(self._pairs):
            try:
                for pipe in pair.pipes:
                    self._pass_on(pipe, readable, now_s)
            except OSError:  # one side has gone: so does the other
                self._end([pair], reset=False)

    def _pass_on(self, pipe: _Pipe, readable: list[socket.socket], now_s: float) -> None:
        if pipe.source in readable:
            part = pipe.source.recv(65_536)
            if not part:
                raise ConnectionResetError
            pipe.waiting += part
        if pipe.waiting and now_s >= pipe.held_until_s:
            piece = pipe.waiting[: self._random.randint(1, 64)] if now_s < pipe.thin_until_s else pipe.waiting
            try:
                sent = pipe.drain.send(piece)
            except BlockingIOError:
                return
            del pipe.waiting[:sent]

    def _accept(self, listener: socket.socket) -> None:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        port = next((port for port, its in self._listeners.items() if its is listener), None)
        try:
            far = socket.create_connection(("127.0.0.1", port or 0), timeout=0.5)
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.append(_Pair(near, far))


def notes_to(path: str) -> Callable[[str], None]:
    """Returns a function that appends faults to a file, in the format of `history.read_notes`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return lambda text: void(os.write(descriptor, f"wire {time.monotonic():.6f} {text}\n".encode()))


def void(_: object) -> None:
    """Discards a value."""


def main() -> int:
    """Runs `SEED COMMAND ARGUMENTS`, a command of bin/, over a bad wire; faults go to the file named in SOAK_WIRE."""
    seed, command, *arguments = sys.argv[1:]
    path = os.environ.pop("SOAK_WIRE", "")
    Wire(int(seed), note=notes_to(path) if path else None).install()
    from zmqbus.bootstrap import run

    return run(command, arguments)


if __name__ == "__main__":
    sys.exit(main())
