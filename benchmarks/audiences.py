"""Systems with many sessions: one announces, many listen, several in a process.

`AUDIENCES` has them by name. Each session has a connection of its own (and a context of its own where ZeroMQ is used),
as it would have in a process of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks import procfs
from benchmarks.crew import Actor, actors
from benchmarks.stage import free_port, stage, start_broker
from benchmarks.systems import Pass, nats_server

#: How many processes the sessions are spread over: more than cores, fewer than sessions.
PROCESSES = 4


class Audience:
    """An announcer and its listeners."""

    def __init__(self, announcer: Actor, listeners: list[Actor], middle_pid: int, sessions: int) -> None:
        self.announcer = announcer
        self.listeners = listeners
        self.middle_pid = middle_pid
        self.sessions = sessions

    def connect(self) -> float:
        """Connects all at once; returns how long until the last one was connected, in seconds."""
        before_s = time.monotonic()
        for listener in self.listeners:
            listener.begin("connect")
        ended_s: float = max(listener.finish().value for listener in self.listeners)
        return ended_s - before_s

    def announce(self, count: int, size_bytes: int) -> Pass:
        """Broadcasts, pipelined; `value`: seconds from the first send until all have read the last one."""
        self.announcer.do("prepare", count=count)
        # Of the process, not of the command: encryption and writes may come after that.
        parts = {"sender": self.announcer.pid, "middle": self.middle_pid}
        before_s = {part: procfs.cpu_s(pid) for part, pid in parts.items()}
        for listener in self.listeners:
            listener.begin("listen", count=count, size_bytes=size_bytes)
        sent = self.announcer.do("publish", count=count, size_bytes=size_bytes)
        got = [listener.finish() for listener in self.listeners]
        cpu_s = {part: procfs.cpu_s(pid) - before_s[part] for part, pid in parts.items()}
        if self.middle_pid == self.announcer.pid:
            del cpu_s["middle"]
        else:
            cpu_s["sender"] = sent.cpu_s  # includes threads that have ended
        cpu_s["receivers"] = sum(one.cpu_s for one in got)
        began_s, confirmed_s = sent.value
        return Pass(max(one.value for one in got) - began_s, confirmed_s - began_s, cpu_s)


class _OfPublisher(Audience):
    def connect(self) -> float:
        before_s = time.monotonic()
        for listener in self.listeners:
            listener.begin("connect")
        ended_s: float = self.announcer.do("await_subscribers", count=self.sessions).value
        for listener in self.listeners:
            listener.finish()
        return ended_s - before_s


def shares(sessions: int) -> list[dict[str, int]]:
    """Distributes the sessions over the processes."""
    processes = min(PROCESSES, sessions)
    cuts = [sessions * number // processes for number in range(processes + 1)]
    return [{"first": first, "count": after - first} for first, after in itertools.pairwise(cuts)]


@contextlib.contextmanager
def _ours(sessions: int) -> Iterator[Audience]:
    module = "benchmarks.peers.zmqbus_seats"
    with stage() as environ:
        broker = start_broker(environ)
        parts = [(module, "Seats", share) for share in shares(sessions)]
        with actors((module, "Announcer", {}), *parts, environ=environ) as (announcer, *listeners):
            yield Audience(announcer, listeners, broker, sessions)


@contextlib.contextmanager
def _publisher(sessions: int) -> Iterator[Audience]:
    from benchmarks.peers.forwarder import curve_keys

    module = "benchmarks.peers.publisher"
    where: dict[str, Any] = {"port": free_port(), "keys": curve_keys()}
    parts = [(module, "Seats", where | share) for share in shares(sessions)]
    with stage() as environ, actors((module, "Announcer", where), *parts, environ=environ) as (announcer, *listeners):
        yield _OfPublisher(announcer, listeners, announcer.pid, sessions)


@contextlib.contextmanager
def _nats(sessions: int) -> Iterator[Audience]:
    module = "benchmarks.peers.nats_"
    with nats_server() as (port, pid, environ):
        parts = [(module, "Seats", {"port": port} | share) for share in shares(sessions)]
        with actors((module, "Announcer", {"port": port}), *parts, environ=environ) as (announcer, *listeners):
            yield Audience(announcer, listeners, pid, sessions)


class Hall(NamedTuple):
    """A system under comparison."""

    name: str
    system: str  #: name in `systems.SYSTEMS`
    open: Callable[[int], contextlib.AbstractContextManager[Audience]]


#: The name of the bare PUB in the tables.
PUB = "pub"

AUDIENCES = {
    hall.name: hall
    for hall in (Hall("zmqbus", "zmqbus", _ours), Hall(PUB, "forwarder", _publisher), Hall("nats", "nats", _nats))
}
