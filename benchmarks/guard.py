"""The guard against slowdowns: compares the ratios of a short run with those in `guard.json`.

    python -m benchmarks.guard [--keep]

It compares ratios to the bare forwarder (the bare PUB, the bare imports) in the same rounds, since times depend on the
machine. The bounds are wide, since a shared machine may be slow for one of the two: a figure that is less than half as
good as the kept one is measured again with more rounds, and fails if it still is. `--keep` stores the ratios found as
those to expect from now on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.audiences import PUB
from benchmarks.cases import broadcast, directed, latency, processes
from benchmarks.figures import OURS, Figure
from benchmarks.run import Run
from benchmarks.stage import ROOT, end_on_sigterm, raise_file_limit
from benchmarks.systems import FLOOR

KEPT = os.path.join(ROOT, "benchmarks", "guard.json")
#: A figure so many times worse than the kept one is too slow.
BOUND = 2.0
ROUNDS = 3
MORE_ROUNDS = 15
#: Seconds after which a figure gets no more rounds. All figures together take less than a minute, unless several are
#: out of bounds.
BUDGET_S = 5.0
MORE_BUDGET_S = 20.0


class Watched(NamedTuple):
    """A ratio that is kept."""

    key: str  #: of the figure
    against: str
    measure: Callable[[Run], None]


WATCHED = (
    Watched("directed-100b", FLOOR, lambda run: directed.measure_size(run, 100)),
    Watched("directed-1mib", FLOOR, lambda run: directed.measure_size(run, directed.MIB)),
    Watched("one-way-p50", FLOOR, latency.measure_one_way),
    Watched("broadcast-100", PUB, lambda run: broadcast.measure_audience(run, 100)),
    Watched("process-send", processes.IMPORTS, processes.measure),
)


class Verdict(NamedTuple):
    """The result for one watched ratio."""

    key: str
    against: str
    kept: float | None  #: None: nothing was kept
    found: float
    worse: float  #: the factor; below 1: better

    @property
    def failed(self) -> bool:
        """Whether it is too slow."""
        return self.kept is not None and self.worse > BOUND

    def __str__(self) -> str:
        if self.kept is None:
            return f"{self.key}: {self.found:.3g} × {self.against}; nothing was kept"
        word = "TOO SLOW" if self.failed else "ok"
        return f"{self.key}: {self.found:.3g} × {self.against}, kept was {self.kept:.3g}: {word}"


def judge(figure: Figure, against: str, kept: float | None) -> Verdict:
    """Compares a figure with the kept ratio. Raises `ValueError` if it has no ratio."""
    found = figure.ratio(against)
    if found is None:
        raise ValueError(f"{figure.key}: {OURS} or {against} was not measured")
    if kept is None:
        return Verdict(figure.key, against, None, found, 1.0)
    return Verdict(figure.key, against, kept, found, kept / found if figure.more_is_better else found / kept)


def measured(watched: Watched, rounds: int) -> Figure:
    """Measures one figure in a short run, with only the system to compare with."""
    budget_s = BUDGET_S if rounds <= ROUNDS else MORE_BUDGET_S
    run = Run(quick=True, rounds=rounds, only=(OURS, FLOOR, PUB), quiet=True, budget_s=budget_s)
    with contextlib.closing(run):
        watched.measure(run)
    return next(figure for figure in run.results.figures if figure.key == watched.key)


def load(path: str = KEPT) -> dict[str, float]:
    """Reads the kept ratios, by figure."""
    with open(path, encoding="utf-8") as file:
        return {key: float(ratio) for key, ratio in json.load(file).items()}


def guard(kept: dict[str, float], measure: Callable[[Watched, int], Figure] = measured) -> list[Verdict]:
    """Measures all watched figures, those out of bounds twice."""
    verdicts = []
    for watched in WATCHED:
        verdict = judge(measure(watched, ROUNDS), watched.against, kept.get(watched.key))
        if verdict.failed:
            print(f"{verdict}; once more, with more rounds", flush=True)
            verdict = judge(measure(watched, MORE_ROUNDS), watched.against, kept.get(watched.key))
        print(verdict, flush=True)
        verdicts.append(verdict)
    return verdicts


def main() -> int:
    """Measures, and exits with status 1 if anything has become slow."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description="Has anything become slow?")
    parser.add_argument("--keep", action="store_true", help=f"store the ratios in {os.path.relpath(KEPT, ROOT)}")
    options = parser.parse_args()
    end_on_sigterm()
    raise_file_limit()
    try:
        verdicts = guard({} if options.keep else load())
    except KeyboardInterrupt:
        return 130
    if options.keep:
        with open(KEPT, "w", encoding="utf-8") as file:
            json.dump({verdict.key: round(verdict.found, 3) for verdict in verdicts}, file, indent=1)
            file.write("\n")
        return 0
    slow = [verdict.key for verdict in verdicts if verdict.failed]
    if slow:
        print(
            f"{', '.join(slow)}: more than {BOUND:g} times worse than the ratio in benchmarks/guard.json. If that "
            "is intended, store it: python -m benchmarks.guard --keep"
        )
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
