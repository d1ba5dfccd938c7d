"""Directed messages, pipelined: one sender process, one receiver process, as fast as they go.

The rate is that of the whole: from the first send until the receiver has read the last message, and the sender knows of
every single one whatever the system promises: that the receiver has it, or that it is safe. For those that acknowledge
nothing, the receiver tells the number at the end.
"""

from __future__ import annotations

from benchmarks.figures import Curve, Figure, Goal
from benchmarks.run import Run
from benchmarks.systems import FLOOR, Duo, Pass
from benchmarks.work import middle

KIB = 1024
MIB = 1024 * KIB
#: Rate of the earlier bus over WebSockets, unacknowledged, on this kind of machine.
EARLIER_PER_S = 8_200

#: size → (messages of a round, of a quick round): half a second's work for the faster ones.
SIZES = {
    100: (40_000, 10_000),
    4 * KIB: (20_000, 5_000),
    64 * KIB: (3_000, 500),
    MIB: (300, 60),
    9 * MIB: (16, 3),
}
GOALS: dict[int, tuple[Goal, ...]] = {
    100: (
        Goal(100_000, True),
        Goal(1.2, True, FLOOR),
        Goal(10 * EARLIER_PER_S, True),
        Goal(200_000, True, beyond=True),
    ),
    MIB: (Goal(1.0, True, FLOOR), Goal(2.0, True, FLOOR, beyond=True)),
}


def named(size_bytes: int) -> str:
    """The size, for people."""
    if size_bytes >= MIB:
        return f"{size_bytes // MIB} MiB"
    return f"{size_bytes // KIB} KiB" if size_bytes >= KIB else f"{size_bytes} B"


def measure_size(run: Run, size_bytes: int) -> None:
    """One size, of all systems."""
    key = f"directed-{named(size_bytes).replace(' ', '').lower()}"
    count = SIZES[size_bytes][run.quick]
    with run.duos(key) as duos:
        rounds: dict[str, list[Pass]] = run.interleave(
            key, duos, lambda duo: duo.exchange(count, size_bytes), settle=Duo.settle
        )
    run.add(
        Figure(
            "directed",
            key,
            f"directed {named(size_bytes)}, pipelined",
            "/s",
            True,
            {name: [count / max(one.value, one.confirmed_s) for one in passes] for name, passes in rounds.items()},
            GOALS.get(size_bytes, ()),
            cpu_us(rounds, count),
        )
    )
    for name, passes in rounds.items():
        most_bytes = max((one.middle_bytes for one in passes), default=0)
        run.point(
            Curve(
                "directed", "growth-size-memory", "memory of what is in the middle", "size of a message, B", "MB", {}
            ),
            name,
            size_bytes,
            most_bytes / 1e6,
        )


def cpu_us(rounds: dict[str, list[Pass]], count: int) -> dict[str, dict[str, float]]:
    """Processor time of each process for one message, in µs: the median of the rounds."""
    return {
        name: {who: round(middle([one.cpu_s[who] for one in passes]) / count * 1e6, 2) for who in passes[0].cpu_s}
        for name, passes in rounds.items()
        if passes
    }
