"""The systems under comparison, each as a sender, a receiver, and a server between them.

`SYSTEMS` has them by name. Systems that are not installed (`missing`) or fail (`crew.PeerFailed`) are left out, and
reported by name.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks import procfs
from benchmarks.crew import Actor, Done, PeerFailed, actors
from benchmarks.stage import PATIENCE_S, end, flush, free_port, program, stage, start, start_broker


class Pass(NamedTuple):
    """So many messages went from the sender to the receiver."""

    value: Any  #: what the receiver or the sender has measured
    confirmed_s: float  #: from the first send until the sender knew that all had come, or were safe
    cpu_s: dict[str, float]  #: processor time of "sender", "middle" and "receiver"
    middle_bytes: int = 0  #: resident memory of "middle" afterwards


class Duo:
    """A sender and a receiver, connected through a server process."""

    def __init__(self, sender: Actor, receiver: Actor, middle_pid: int, directory: str) -> None:
        """`directory`: where it keeps what it keeps."""
        self.sender = sender
        self.receiver = receiver
        self.middle_pid = middle_pid
        self._directory = directory

    def settle(self) -> None:
        """Has what it wrote on the disk, so that the next one does not wait for that."""
        flush(self._directory)

    def exchange(self, count: int, size_bytes: int) -> Pass:
        """Pipelined: `value` is seconds from the first send until the receiver has read all of them."""
        got, sent, middle_s = self._both(
            ("receive", {"count": count, "size_bytes": size_bytes}),
            ("send", {"count": count, "size_bytes": size_bytes}),
            forwarded=count + 1,
            size_bytes=size_bytes,
        )
        began_s, confirmed_s = sent.value
        memory_bytes = procfs.rss_bytes(self.middle_pid)
        return Pass(got.value - began_s, confirmed_s - began_s, self._cpu(got, sent, middle_s), memory_bytes)

    def one_way(self, count: int, pause_s: float) -> Pass:
        """At a gentle pace: `value` is how long each was under way, in seconds."""
        got, sent, middle_s = self._both(
            ("receive_stamped", {"count": count}), ("send_stamped", {"count": count, "pause_s": pause_s}), count
        )
        return Pass(got.value, 0.0, self._cpu(got, sent, middle_s))

    def round_trips(self, count: int, pause_s: float) -> Pass:
        """At a gentle pace: `value` is how long each question took until its answer was there, in seconds."""
        got, sent, middle_s = self._both(
            ("echo", {"count": count}), ("ask", {"count": count, "pause_s": pause_s}), 2 * count
        )
        return Pass(sent.value, 0.0, self._cpu(got, sent, middle_s))

    def _both(
        self,
        receiving: tuple[str, dict[str, Any]],
        sending: tuple[str, dict[str, Any]],
        forwarded: int,
        size_bytes: int = 0,
    ) -> tuple[Done, Done, float]:
        with self._middle(forwarded, size_bytes) as middle_s:
            self.receiver.begin(receiving[0], **receiving[1])
            self.sender.begin(sending[0], **sending[1])
            sent = self.sender.finish()
            got = self.receiver.finish()
        return got, sent, middle_s()

    @contextlib.contextmanager
    def _middle(self, count: int, size_bytes: int) -> Iterator[Callable[[], float]]:
        before_s = procfs.cpu_s(self.middle_pid)
        yield lambda: procfs.cpu_s(self.middle_pid) - before_s

    @staticmethod
    def _cpu(got: Done, sent: Done, middle_s: float) -> dict[str, float]:
        return {"sender": sent.cpu_s, "middle": middle_s, "receiver": got.cpu_s}


class _WithForwarder(Duo):
    """What is between them has to be told how much there is to do."""

    def __init__(self, sender: Actor, receiver: Actor, forwarder: Actor, directory: str) -> None:
        super().__init__(sender, receiver, forwarder.pid, directory)
        self._forwarder = forwarder

    @contextlib.contextmanager
    def _middle(self, count: int, size_bytes: int) -> Iterator[Callable[[], float]]:
        self._forwarder.begin("forward", count=count, size_bytes=size_bytes)
        done: list[Done] = []
        yield lambda: done[0].cpu_s
        done.append(self._forwarder.finish())


class System(NamedTuple):
    """A system under comparison."""

    name: str
    promises: str  #: what it does for a message, in a few words
    modules: tuple[str, ...]  #: python modules that it needs
    programs: tuple[str, ...]  #: programs that it needs
    open: Callable[[], contextlib.AbstractContextManager[Duo]]
    asks: bool = True  #: whether it has requests and answers

    def missing(self) -> str:
        """What it lacks here; "" if nothing."""
        modules = [name for name in self.modules if importlib.util.find_spec(name) is None]
        programs = [name for name in self.programs if program(name) is None]
        return f"{', '.join(programs + modules)} not installed" if modules or programs else ""


@contextlib.contextmanager
def _ours() -> Iterator[Duo]:
    module = "benchmarks.peers.zmqbus_"
    with stage() as environ:
        broker = start_broker(environ)
        with actors((module, "Receiver", {}), (module, "Sender", {}), environ=environ) as (receiver, sender):
            yield Duo(sender, receiver, broker, environ["HOME"])


@contextlib.contextmanager
def _forwarder() -> Iterator[Duo]:
    from benchmarks.peers.forwarder import curve_keys

    module = "benchmarks.peers.forwarder"
    where = {"port": free_port(), "keys": curve_keys()}
    parts = [(module, role, where) for role in ("Forwarder", "Receiver", "Sender")]
    with stage() as environ, actors(*parts, environ=environ) as (forwarder, receiver, sender):
        yield _WithForwarder(sender, receiver, forwarder, environ["HOME"])


@contextlib.contextmanager
def nats_server() -> Iterator[tuple[int, int, dict[str, str]]]:
    """A NATS server on a stage of its own: its port, its pid, and the environment."""
    with stage() as environ:
        port = free_port()
        config = os.path.join(environ["HOME"], "nats.conf")
        with open(config, "w", encoding="ascii") as file:
            # Limits that a benchmark would reach, and that users may raise: beyond them, messages are lost silently.
            file.write(
                f"host: 127.0.0.1\nport: {port}\nmax_payload: 16777216\nmax_pending: 1073741824\n"
                f'write_deadline: "60s"\njetstream {{ store_dir: "{environ["HOME"]}/jetstream" }}\n'
            )
        with _server(["nats-server", "-c", config], port, environ) as pid:
            yield port, pid, environ


@contextlib.contextmanager
def _nats(receiver_role: str, sender_role: str) -> Iterator[Duo]:
    module = "benchmarks.peers.nats_"
    with nats_server() as (port, pid, environ):
        parts = [(module, role, {"port": port}) for role in (receiver_role, sender_role)]
        with actors(*parts, environ=environ) as (receiver, sender):
            yield Duo(sender, receiver, pid, environ["HOME"])


@contextlib.contextmanager
def _redis() -> Iterator[Duo]:
    module = "benchmarks.peers.redis_"
    with stage() as environ:
        port = free_port()
        # What it has accepted survives the death of the process, as with zmqbus: in the log, synced every second.
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", environ["HOME"]]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
        with _server(command, port, environ) as pid:
            parts = [(module, role, {"port": port}) for role in ("Receiver", "Sender")]
            with actors(*parts, environ=environ) as (receiver, sender):
                yield Duo(sender, receiver, pid, environ["HOME"])


@contextlib.contextmanager
def _server(command: list[str], port: int, environ: dict[str, str]) -> Iterator[int]:
    """A server that is not ours, from when it listens: its pid."""
    where = program(command[0])
    if where is None:
        raise PeerFailed(f"{command[0]} is not installed")
    process = start([where, *command[1:]], environ, errors=os.path.join(environ["HOME"], "server.err"))
    try:
        _await_port(process, command[0], port)
        yield process.pid
    finally:
        end(process)


def _await_port(process: subprocess.Popen[bytes], what: str, port: int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                return
        except OSError:
            time.sleep(0.01)  # between two looks
    raise PeerFailed(f"{what} does not listen")


OURS = "zmqbus"
FLOOR = "forwarder"

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(OURS, "encrypted, journalled, acknowledged by the receiver", (), (), _ours),
        System(FLOOR, "bare ZeroMQ: encrypted; nothing kept, nothing acknowledged", (), (), _forwarder),
        System(
            "nats",
            "NATS core: not encrypted; nothing kept, nothing acknowledged",
            ("nats",),
            ("nats-server",),
            lambda: _nats("Receiver", "Sender"),
        ),
        System(
            "jetstream",
            "NATS JetStream: not encrypted; kept in files, acknowledged to the sender and by the receiver",
            ("nats",),
            ("nats-server",),
            lambda: _nats("StreamReceiver", "StreamSender"),
            asks=False,
        ),
        System(
            "redis",
            "Redis streams: not encrypted; kept in its log, acknowledged to the sender and by the receiver",
            ("redis",),
            ("redis-server",),
            _redis,
        ),
    )
}
