"""Broadcasts of 100 bytes to 1, 10, 100 and 1,000 sessions: deliveries a second, read and counted by all of them."""

from __future__ import annotations

from benchmarks.audiences import PUB, Audience
from benchmarks.cases.directed import cpu_us
from benchmarks.figures import Figure, Goal
from benchmarks.run import Run
from benchmarks.systems import Pass

SIZE_BYTES = 100
#: sessions → (broadcasts of a round, of a quick one). All of them may be under way at once: what goes over a receiver's
#: credit of 1,000 is stored for it, which is another measurement.
SESSIONS = {1: (960, 960), 10: (960, 900), 100: (960, 480), 1_000: (120, 40)}
GOALS: dict[int, tuple[Goal, ...]] = {100: (Goal(0.8, True, PUB), Goal(1.0, True, PUB, beyond=True))}


def measure_audience(run: Run, sessions: int) -> None:
    """An audience of this size."""
    with run.audiences(f"broadcast-{sessions}", sessions) as halls:
        for audience in halls.values():
            audience.connect()
        measure_halls(run, halls, sessions)


def measure_halls(run: Run, halls: dict[str, Audience], sessions: int) -> None:
    """The same, where they are connected already."""
    key = f"broadcast-{sessions}"
    count = SESSIONS[sessions][run.quick]
    rounds: dict[str, list[Pass]] = run.interleave(key, halls, lambda hall: hall.announce(count, SIZE_BYTES))
    run.add(
        Figure(
            "broadcast",
            key,
            f"broadcast of 100 B to {sessions:,}, deliveries",
            "/s",
            True,
            {
                name: [count * sessions / max(one.value, one.confirmed_s) for one in passes]
                for name, passes in rounds.items()
            },
            GOALS.get(sessions, ()),
            cpu_us(rounds, count * sessions),
        )
    )
