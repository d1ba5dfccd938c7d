"""Measures zmqbus beside others, and says how it does.

    python -m benchmarks [--quick] [--only CASE,…] [--systems NAME,…] [--rounds N] [--out FILE]

`make bench` and `make bench QUICK=1` run this; docs/performance.md shows what came of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from benchmarks import report
from benchmarks.cases import backlog, broadcast, directed, latency, pool, processes, sessions
from benchmarks.run import Case, Run, perform
from benchmarks.stage import ROOT, end_on_sigterm, raise_file_limit

ROUNDS = (7, 3)
RESULTS = os.path.join(ROOT, "benchmarks", "results.json")

CASES = (
    *(
        Case(
            f"directed-{directed.named(size).replace(' ', '').lower()}",
            f"directed {directed.named(size)}",
            lambda run, size=size: directed.measure_size(run, size),  # type: ignore[misc]
        )
        for size in directed.SIZES
    ),
    Case("latency", "latency", latency.measure),
    *(
        Case(
            f"broadcast-{number}",
            f"broadcasts to {number:,}",
            lambda run, number=number: broadcast.measure_audience(run, number),  # type: ignore[misc]
        )
        for number in broadcast.SESSIONS
    ),
    Case("commands", "whole processes", processes.measure),
    Case("pool", "no-ops by two workers", pool.measure),
    Case("sessions", "1,000 sessions", sessions.measure),
    Case("backlog", "a backlog of 100,000", backlog.measure),
    Case("growth", "growth with the number of sessions", sessions.growth),
)


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="zmqbus beside others, in the same run.")
    parser.add_argument("--quick", action="store_true", help="less of everything: under two minutes")
    parser.add_argument("--rounds", type=int, help=f"of each case (default: {ROUNDS[0]}, with --quick {ROUNDS[1]})")
    parser.add_argument("--only", metavar="CASE,…", help="some of: " + ", ".join(case.name for case in CASES))
    parser.add_argument("--systems", metavar="NAME,…", help="zmqbus, and some of the others")
    parser.add_argument("--out", metavar="FILE", help="where to write the results as JSON")
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
        perform(run, [case for case in CASES if case.name in wanted])
    except KeyboardInterrupt:
        run.say("interrupted: nothing is written")
        return 130
    print(report.terminal(run.results))
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(run.results.as_json(), file, indent=1, ensure_ascii=False)
            file.write("\n")
    return 1 if run.results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
