"""Latency at a gentle rate: one message at a time, with pauses, so that nothing waits for anything but the machine.

One way is from just before the send until the receiving program has the text in its hands, by the clock that all
processes of a machine share. A request is from just before the question until its answer is there.
"""

from __future__ import annotations

from benchmarks.cases.directed import cpu_us
from benchmarks.figures import Figure, Goal
from benchmarks.run import Run
from benchmarks.systems import FLOOR
from benchmarks.work import percentile

#: Between two messages: no more than a few per cent of anybody's time.
PAUSE_S = 0.002
#: Messages of a round, and of a quick one: 1 in 1,000 of all rounds together can be told.
MESSAGES = (500, 250)
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
KINDS = {"one-way": "one way, 100 B", "request": "request and answer, 100 B"}
GOALS: dict[str, tuple[Goal, ...]] = {
    "one-way-p50": (Goal(1.5, False, FLOOR), Goal(1.15, False, FLOOR, beyond=True)),
}


def measure(run: Run) -> None:
    """Both kinds, in the same rounds."""
    count = MESSAGES[run.quick]
    for kind, title in KINDS.items():
        with run.duos(kind) as duos:
            rounds = run.interleave(
                kind,
                duos,
                lambda duo: duo.one_way(count, PAUSE_S) if kind == "one-way" else duo.round_trips(count, PAUSE_S),  # noqa: B023
            )
        for name, share in SHARES.items():
            key = f"{kind}-{name}"
            run.add(
                Figure(
                    "latency",
                    key,
                    f"{title}, {name}",
                    "µs",
                    False,
                    {who: [percentile(one.value, share) * 1e6 for one in passes] for who, passes in rounds.items()},
                    GOALS.get(key, ()),
                    cpu_us(rounds, count) if name == "p50" else {},
                    guarded=name == "p50",
                )
            )
