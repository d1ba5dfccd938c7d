"""A thousand sessions: how long until all are connected, what they cost while nothing happens, and broadcasts to them.

They connect all at once, in four processes. The others have fewer things to say to a session: a bare SUB has one
connection where a session of ours has two, and neither of them has a name, a mailbox or a lease.
"""

from __future__ import annotations

import contextlib
import time

from benchmarks import procfs
from benchmarks.audiences import Audience, shares
from benchmarks.cases.broadcast import measure_halls
from benchmarks.crew import actors
from benchmarks.figures import OURS, Curve, Figure, Goal
from benchmarks.run import Run
from benchmarks.stage import stage, start_broker
from benchmarks.systems import Duo
from benchmarks.work import middle

SESSIONS = 1_000
#: Seconds of idleness that are measured: pings come every 4 s, so several rounds of them, and one in a quick run.
IDLE_S = (20.0, 5.0)
#: Each round makes and ends four processes with thousands of threads; so there are few.
ROUNDS = (3, 1)
GOALS = {
    "connect": (Goal(10.0, False),),
    "memory": (Goal(80.0, False),),
    "idle": (Goal(1.0, False),),
}
#: Numbers of sessions for the curve.
GROWTH = ((0, 10, 30, 100, 300, 1_000), (0, 100, 400))
GROWTH_MESSAGES = 5_000
SIZE_BYTES = 100


def measure(run: Run) -> None:
    """The storm, the memory, the idleness; then, in the last round, broadcasts."""
    connect_s: dict[str, list[float]] = {}
    memory_mb: dict[str, list[float]] = {}
    idle_percent: dict[str, list[float]] = {}
    for number in range(ROUNDS[run.quick]):
        with run.audiences("sessions", SESSIONS) as halls:
            for name, hall in halls.items():
                connect_s.setdefault(name, []).append(hall.connect())
                memory_mb.setdefault(name, []).append(procfs.rss_bytes(hall.middle_pid) / 1e6)
            for name, spent in _idle(halls, IDLE_S[run.quick]).items():
                idle_percent.setdefault(name, []).append(spent)
            if number == ROUNDS[run.quick] - 1:
                measure_halls(run, halls, SESSIONS)
    title = f"{SESSIONS:,} sessions"
    run.add(Figure("sessions", "sessions-connect", f"{title}: all connected", "s", False, connect_s, GOALS["connect"]))
    run.add(
        Figure("sessions", "sessions-memory", f"{title}: memory of the broker", "MB", False, memory_mb, GOALS["memory"])
    )
    run.add(
        Figure(
            "sessions",
            "sessions-idle",
            f"{title}, idle: processor of the broker",
            "%",
            False,
            idle_percent,
            GOALS["idle"],
        )
    )


def _idle(halls: dict[str, Audience], seconds: float) -> dict[str, float]:
    before_s = {name: procfs.cpu_s(hall.middle_pid) for name, hall in halls.items()}
    began_s = time.monotonic()
    time.sleep(seconds)  # the idle time that is measured
    taken_s = time.monotonic() - began_s
    return {name: (procfs.cpu_s(hall.middle_pid) - before_s[name]) / taken_s * 100 for name, hall in halls.items()}


def growth(run: Run) -> None:
    """The broker's memory, and its time for a message between two programs, by how many others are connected."""
    memory: list[tuple[float, float]] = []
    spent: list[tuple[float, float]] = []
    ours, seats = "benchmarks.peers.zmqbus_", "benchmarks.peers.zmqbus_seats"
    with contextlib.ExitStack() as stack:
        environ = stack.enter_context(stage())
        broker = start_broker(environ)
        receiver, sender = stack.enter_context(actors((ours, "Receiver", {}), (ours, "Sender", {}), environ=environ))
        duo = Duo(sender, receiver, broker, environ["HOME"])
        duo.exchange(GROWTH_MESSAGES, SIZE_BYTES)
        connected = 0
        for number in GROWTH[run.quick]:
            if number > connected:
                new = [
                    (seats, "Seats", {"first": connected + share["first"], "count": share["count"]})
                    for share in shares(number - connected)
                ]
                for actor in stack.enter_context(actors(*new, environ=environ)):
                    actor.do("connect")
                connected = number
            memory.append((number, procfs.rss_bytes(broker) / 1e6))
            passes = [duo.exchange(GROWTH_MESSAGES, SIZE_BYTES) for _ in range(3)]
            spent.append((number, middle([one.cpu_s["middle"] for one in passes]) / GROWTH_MESSAGES * 1e6))
    run.add(Curve("growth", "growth-sessions-memory", "memory of the broker", "sessions", "MB", {OURS: memory}))
    run.add(
        Curve("growth", "growth-sessions-cpu", "processor of the broker, a message", "sessions", "µs", {OURS: spent})
    )
