"""Measures zmqbus and other systems in the same rounds.

    python -m benchmarks [--quick] [--only CASE,…] [--systems NAME,…] [--rounds N] [--out FILE]

`make bench` and `make bench QUICK=1` run this; docs/performance.md shows the results.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

from benchmarks import document, report
from benchmarks.cases import backlog, broadcast, directed, latency, pool, processes, sessions
from benchmarks.run import Case, Run, perform
from benchmarks.stage import end_on_sigterm, raise_file_limit

ROUNDS = (7, 3)

CASES = (
    *(
        Case(
            f"directed-{directed.named(size).replace(' ', '').lower()}",
            f"directed {directed.named(size)}",
            lambda run, size=size: directed.measure_size(run, size),  # type: ignore[misc]
            pairs=True,
        )
        for size in directed.SIZES
    ),
    Case("latency", "latency", latency.measure, pairs=True),
    *(
        Case(
            f"broadcast-{number}",
            f"broadcasts to {number:,}",
            lambda run, number=number: broadcast.measure_audience(run, number),  # type: ignore[misc]
        )
        for number in broadcast.SESSIONS
        if number != sessions.SESSIONS  # connected once, for all measurements
    ),
    Case("commands", "whole processes", processes.measure),
    Case("pool", "no-ops by two workers", pool.measure),
    Case("sessions", "1,000 sessions, and broadcasts to them", sessions.measure),
    Case("backlog", "a backlog of 100,000", backlog.measure),
    Case("growth", "growth with the number of sessions", sessions.growth),
)


def main() -> int:
    """Measures, and prints the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="zmqbus beside others, in the same run.")
    parser.add_argument("--quick", action="store_true", help="less of everything: under two minutes")
    parser.add_argument("--rounds", type=int, help=f"of each case (default: {ROUNDS[0]}, with --quick {ROUNDS[1]})")
    parser.add_argument("--only", metavar="CASE,…", help="some of: " + ", ".join(case.name for case in CASES))
    parser.add_argument("--systems", metavar="NAME,…", help="zmqbus, and some of the others")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="where to write the results as JSON (default, if all is measured: into the repository, with the page)",
    )
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [case.name for case in CASES]
    unknown = set(wanted) - {case.name for case in CASES}
    if unknown:
        parser.error(f"there is no case {', '.join(sorted(unknown))}; see --help")
    run = Run(
        quick=options.quick,
        rounds=options.rounds or ROUNDS[options.quick],
        only={"zmqbus", *options.systems.split(",")} if options.systems else None,
    )
    end_on_sigterm()
    raise_file_limit()
    try:
        with contextlib.closing(run):
            perform(run, [case for case in CASES if case.name in wanted])
    except KeyboardInterrupt:
        run.say("interrupted: nothing is written")
        return 130
    print(report.terminal(run.results))
    if options.out:
        document.save(run.results, options.out)
    elif not options.only and not options.systems:
        document.save(run.results)
        print(document.write(run.results) or "written: benchmarks/results.json, docs/performance.md and its picture")
    return 1 if run.results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
