"""Fan-out: no-op requests to two workers, beside what else does such things (`benchmarks.fanout`)."""

from __future__ import annotations

from benchmarks import fanout
from benchmarks.figures import OURS, Figure
from benchmarks.run import Run

ROUNDS = (5, 2)
SCATTERS = (50, 10)
#: Of the requests that `benchmarks.fanout` makes in a round.
SHARE = (1.0, 0.3)


def measure(run: Run) -> None:
    """Pipelined, one at a time, and a question to a hundred."""
    names = [name for name in fanout.SYSTEMS if run.wants(name)]
    names = fanout.available(names, lambda text: run.leave_out(*text.split(" is left out: ")))
    rates, trips = fanout.measure(names, ROUNDS[run.quick], SHARE[run.quick])
    run.add(Figure("pool", "pool-rate", f"no-ops by {fanout.WORKERS} workers, pipelined", "/s", True, rates))
    trips_us = {name: [trip * 1e6 for trip in some] for name, some in trips.items()}
    run.add(Figure("pool", "pool-trip", f"a no-op by one of {fanout.WORKERS} workers", "µs", False, trips_us))
    times_ms = [time_s * 1000 for time_s in fanout.measure_scatter(SCATTERS[run.quick])]
    title = f"a question to {fanout.SESSIONS} sessions, and all answers"
    run.add(Figure("pool", "pool-scatter", title, "ms", False, {OURS: times_ms}))
