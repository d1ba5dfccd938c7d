"""A run: which systems there are, how often they are measured, and what has come of it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import NamedTuple, TypeVar

from benchmarks.audiences import AUDIENCES, Audience
from benchmarks.crew import PeerFailed
from benchmarks.figures import OURS, Curve, Figure, Results
from benchmarks.stage import program
from benchmarks.systems import SYSTEMS, Duo

#: A case goes on for no more rounds when it has taken so long (in a quick run), as long as it has had so many: on a
#: machine that has much else to do, fewer rounds are better than none of the other cases.
BUDGET_S = (60.0, 5.0)
LEAST_ROUNDS = (3, 2)
#: Versions of these are told with the results.
PACKAGES = ("pyzmq", "msgpack", "nats-py", "redis", "hiredis", "ipyparallel", "distributed")
#: So do these programs, asked with `--version`.
PROGRAMS = ("nats-server", "redis-server")

_T = TypeVar("_T")
_R = TypeVar("_R")


class Run:
    """What a case gets to work with."""

    def __init__(
        self,
        *,
        quick: bool,
        rounds: int,
        only: Iterable[str] | None = None,
        quiet: bool = False,
        budget_s: float | None = None,
    ) -> None:
        """`only`: systems to measure; None: all that are there. `budget_s`: how long a case goes on for more rounds;
        None: as `BUDGET_S` says."""
        self.quick = quick
        self.rounds = rounds
        self.results = Results(machine(), quick, rounds)
        self._quiet = quiet
        self._budget_s = BUDGET_S[quick] if budget_s is None else budget_s
        self._only = None if only is None else frozenset(only)
        self._open: dict[str, Duo] = {}
        self._closing = contextlib.ExitStack()

    def say(self, text: str) -> None:
        """Prints the progress."""
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def wants(self, name: str) -> bool:
        """Whether this system is to be measured."""
        return self._only is None or name in self._only

    def leave_out(self, what: str, why: str) -> None:
        """A system, or one in one case, is not measured."""
        if what not in self.results.left_out:
            self.results.left_out[what] = why
            self.say(f"{what} is left out: {why}")

    def add(self, found: Figure | Curve) -> None:
        """What was found."""
        if isinstance(found, Figure):
            self.results.figures.append(found)
        else:
            self.results.curves.append(found)

    def point(self, curve: Curve, system: str, x: float, y: float) -> None:
        """A point of a curve, which is begun with the first one."""
        known = next((one for one in self.results.curves if one.key == curve.key), None)
        if known is None:
            self.results.curves.append(known := curve)
        known.points.setdefault(system, []).append((x, y))

    @contextlib.contextmanager
    def duos(self, case: str, names: Iterable[str] | None = None) -> Iterator[dict[str, Duo]]:
        """A sender and a receiver of each system that is there; ours has to be, if it is asked for.

        A quick run keeps them for the next case (until `close`), another one gives each case its own.
        """
        found: dict[str, Duo] = {}
        try:
            for name in SYSTEMS if names is None else names:
                if not self.wants(name):
                    continue
                missing = SYSTEMS[name].missing()
                if missing:
                    self.leave_out(name, missing)
                    continue
                try:
                    if name not in self._open:
                        self._open[name] = self._closing.enter_context(SYSTEMS[name].open())
                    found[name] = self._open[name]
                except PeerFailed as error:
                    if name == OURS:
                        raise
                    self.leave_out(f"{name} ({case})", str(error))
            yield found
        except BaseException:
            self.close()
            raise
        if not self.quick:
            self.close()

    def close(self) -> None:
        """Ends what was kept for the next case."""
        self._open.clear()
        self._closing.close()

    @contextlib.contextmanager
    def audiences(self, case: str, sessions: int) -> Iterator[dict[str, Audience]]:
        """An announcer and so many listeners of each system that is there, not connected yet; ours has to be."""
        with contextlib.ExitStack() as stack:
            found: dict[str, Audience] = {}
            for hall in AUDIENCES.values():
                if not (self.wants(hall.name) or self.wants(hall.system)):
                    continue
                missing = SYSTEMS[hall.system].missing()
                if missing:
                    self.leave_out(hall.system, missing)
                    continue
                try:
                    found[hall.name] = stack.enter_context(hall.open(sessions))
                except PeerFailed as error:
                    if hall.name == OURS:
                        raise
                    self.leave_out(f"{hall.name} ({case})", str(error))
            yield found

    def interleave(
        self,
        case: str,
        systems: dict[str, _T],
        act: Callable[[_T], _R],
        rounds: int | None = None,
        settle: Callable[[_T], None] | None = None,
    ) -> dict[str, list[_R]]:
        """Does the same with each system, again and again, in turns; one round first that does not count. `settle` is
        called after each, and not measured. `rounds`: exactly so many; otherwise as many as the run has, or fewer if
        that takes too long.

        Every other round goes backwards, so that nobody always comes after the same one. A system that fails is left
        out from then on; if it is ours, that is an error.
        """
        found: dict[str, list[_R]] = {name: [] for name in systems}
        began_s = time.monotonic()
        for number in range((self.rounds if rounds is None else rounds) + 1):
            late = time.monotonic() - began_s > self._budget_s
            if rounds is None and late and number > LEAST_ROUNDS[self.quick]:
                break
            names = list(found) if number % 2 else list(reversed(list(found)))
            for name in names:
                try:
                    result = act(systems[name])
                    if settle is not None:
                        settle(systems[name])
                except PeerFailed as error:
                    if name == OURS:
                        raise
                    self.leave_out(f"{name} ({case})", str(error))
                    del found[name]
                    self._open.pop(name, None)  # the next case gets a new one
                    continue
                if number:
                    found[name].append(result)
        return found


class Case(NamedTuple):
    """Something that is measured."""

    name: str  #: on the command line
    title: str
    measure: Callable[[Run], None]
    pairs: bool = False  #: whether it wants a sender and a receiver, which may serve several cases


def perform(run: Run, cases: Iterable[Case]) -> None:
    """Measures these. One that fails is named, and costs the others nothing."""
    for case in cases:
        began_s = time.monotonic()
        run.say(f"{case.title} …")
        try:
            if not case.pairs:
                run.close()
            case.measure(run)
        except Exception as error:
            run.results.failed[case.name] = f"{type(error).__name__}: {error}"
            run.say(f"{case.name} has failed: {error}")
        run.say(f"  {time.monotonic() - began_s:.1f} s")
    run.close()


def machine() -> dict[str, str]:
    """What it ran on, as far as that explains the figures."""
    import zmq

    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "python": platform.python_version(),
        "libzmq": zmq.zmq_version(),
    }
    with contextlib.suppress(OSError, AttributeError):  # not everywhere
        found["load"] = f"{os.getloadavg()[0]:.1f}"
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    for name in PROGRAMS:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            told = subprocess.run(
                [program(name) or name, "--version"], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            version = re.search(r"\d+(\.\d+)+", told)
            if version:
                found[name] = version.group()
    return found
