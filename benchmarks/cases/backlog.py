"""A backlog of 100,000 unread messages: how fast it is accepted and drained, what it costs, and how soon a broker that
was killed has a successor.

Twenty sessions are away, and 5,000 messages of 100 bytes wait for each (a mailbox has room for 10,000). The others have
one stream that nobody reads meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil

from benchmarks import procfs
from benchmarks.crew import actors
from benchmarks.figures import OURS, Curve, Figure, Goal
from benchmarks.run import Run
from benchmarks.stage import PATIENCE_S, stage, start_broker

SESSIONS = 20
EACH = 5_000
SIZE_BYTES = 100
MESSAGES = SESSIONS * EACH
#: In how many parts it is filled, for the curves.
SLICES = 5
ROUNDS = (3, 1)
#: Those that keep messages too.
OTHERS = ("jetstream", "redis")


def measure(run: Run) -> None:
    """Fills, kills, restarts, drains."""
    found: dict[str, dict[str, list[float]]] = {
        key: {} for key in ("accept", "drain", "restart", "memory-before", "memory-after")
    }
    memory: list[tuple[float, float]] = []
    spent: list[tuple[float, float]] = []
    for number in range(ROUNDS[run.quick]):
        memory, spent = _ours(found)
        with run.duos("backlog", OTHERS) as duos:
            for name, duo in duos.items():
                began_s, ended_s = duo.sender.do("send", count=MESSAGES, size_bytes=SIZE_BYTES).value
                found["accept"].setdefault(name, []).append(MESSAGES / (ended_s - began_s))
                began_s = time.monotonic()
                ended_s = duo.receiver.do("receive", count=MESSAGES, size_bytes=SIZE_BYTES).value
                found["drain"].setdefault(name, []).append(MESSAGES / (ended_s - began_s))
        run.say(f"  round {number + 1}")
    title = f"backlog of {MESSAGES:,}"
    for key, words, unit, more, goals in (
        ("accept", "accepted, pipelined", "/s", True, ()),
        ("drain", "drained and acknowledged", "/s", True, ()),
        ("restart", "broker killed, and up again", "s", False, (Goal(2.0, False),)),
        ("memory-before", "memory of the broker that took it", "MB", False, ()),
        ("memory-after", "memory of the next broker", "MB", False, ()),
    ):
        run.add(Figure("backlog", f"backlog-{key}", f"{title}: {words}", unit, more, found[key], goals))
    run.add(Curve("backlog", "growth-messages-memory", "memory of the broker", "unread messages", "MB", {OURS: memory}))
    run.add(
        Curve("backlog", "growth-messages-time", "time to accept a message", "unread messages", "µs", {OURS: spent})
    )


def _ours(found: dict[str, dict[str, list[float]]]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """One round; memory, and time for a message, by what was there."""
    memory: list[tuple[float, float]] = []
    spent: list[tuple[float, float]] = []
    names = [f"seat-{number}" for number in range(SESSIONS)]
    with contextlib.ExitStack() as stack:
        environ = stack.enter_context(stage())
        broker = start_broker(environ)
        parts = [("benchmarks.peers.zmqbus_seats", "Seats", {"first": 0, "count": SESSIONS})]
        (seats,) = stack.enter_context(actors(*parts, environ=environ))
        seats.do("connect")
        seats.do("leave")
        with actors(("benchmarks.peers.zmqbus_", "Sender", {}), environ=environ) as (sender,):
            memory.append((0, procfs.rss_bytes(broker) / 1e6))
            taken_s = 0.0
            for first in range(0, SESSIONS, SESSIONS // SLICES):
                some = names[first : first + SESSIONS // SLICES]
                slice_s = sender.do("fill", names=some, count=EACH, size_bytes=SIZE_BYTES).value
                taken_s += slice_s
                there = (first + len(some)) * EACH
                spent.append((there, slice_s / (len(some) * EACH) * 1e6))
                memory.append((there, procfs.rss_bytes(broker) / 1e6))
        _note(found, "accept", MESSAGES / taken_s)
        _note(found, "memory-before", memory[-1][1])
        _kill(broker)
        began_s = time.monotonic()
        broker = start_broker(environ)
        _note(found, "restart", time.monotonic() - began_s)
        _note(found, "memory-after", procfs.rss_bytes(broker) / 1e6)
        began_s, ended_s = seats.do("drain", count=EACH, size_bytes=SIZE_BYTES).value
        _note(found, "drain", MESSAGES / (ended_s - began_s))
    return memory, spent


def _note(found: dict[str, dict[str, list[float]]], key: str, value: float) -> None:
    found[key].setdefault(OURS, []).append(value)


def _kill(pid: int) -> None:
    """This benchmark's own broker, which is nobody's child: gone when this returns."""
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + PATIENCE_S
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline_s:
            raise TimeoutError("the broker does not die")
        time.sleep(0.001)  # between two looks
