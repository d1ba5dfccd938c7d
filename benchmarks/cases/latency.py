"""Latency at a gentle rate: one message at a time, with pauses, so that nothing waits for anything but the machine.

One way is from just before the send until the receiving program has the text in its hands, by the clock that all
processes of a machine share. A request is from just before the question until its answer is there. The rarest are
counted over all rounds together.
"""

from __future__ import annotations

from benchmarks.cases.directed import cpu_us
from benchmarks.figures import Figure, Goal
from benchmarks.run import Run
from benchmarks.systems import FLOOR, SYSTEMS, Pass
from benchmarks.work import percentile

#: Between two messages: no more than a few per cent of anybody's time.
PAUSE_S = 0.002
#: Messages of a round, and of a quick one.
MESSAGES = (500, 150)
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
GOALS: dict[str, tuple[Goal, ...]] = {
    "one-way-p50": (Goal(1.5, False, FLOOR), Goal(1.15, False, FLOOR, beyond=True)),
}


def told_us(rounds: list[list[float]], of_all: float) -> list[float]:
    """Returns this percentile of each round, or of all together if a round has too few messages for it."""
    if rounds and len(rounds[0]) * (1 - of_all) < 1:
        rounds = [[one for some in rounds for one in some]]
    return [percentile(some, of_all) * 1e6 for some in rounds if some]


def measure(run: Run) -> None:
    """One way, then there and back."""
    measure_one_way(run)
    measure_requests(run)


def measure_one_way(run: Run) -> None:
    """From one program to the other."""
    count = MESSAGES[run.quick]
    with run.duos("one-way") as duos:
        rounds = run.interleave("one-way", duos, lambda duo: duo.one_way(count, PAUSE_S))
    _add(run, "one-way", "one way", rounds, count)


def measure_requests(run: Run) -> None:
    """There and back, where there are requests."""
    count = MESSAGES[run.quick]
    with run.duos("request", [system.name for system in SYSTEMS.values() if system.asks]) as duos:
        rounds = run.interleave("request", duos, lambda duo: duo.round_trips(count, PAUSE_S))
    _add(run, "request", "request and answer", rounds, count)


def _add(run: Run, kind: str, title: str, rounds: dict[str, list[Pass]], count: int) -> None:
    for share, of_all in SHARES.items():
        key = f"{kind}-{share}"
        run.add(
            Figure(
                "latency",
                key,
                f"{title}, 100 B, {share}",
                "µs",
                False,
                {who: told_us([one.value for one in passes], of_all) for who, passes in rounds.items()},
                GOALS.get(key, ()),
                cpu_us(rounds, count) if share == "p50" else {},
            )
        )
