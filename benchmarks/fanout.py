#!/usr/bin/env python3
"""Fan-out: no-op requests to two workers, and questions to a hundred sessions, beside other systems.

    python benchmarks/fanout.py [--rounds N] [--only zmqbus,Pool,…]

Peers that are not installed are named and left out; for all of them: `pip install ipyparallel distributed` into a
virtual environment that has zmqbus and its dependencies as well.

Each round measures every system once, one after the other, so that a noisy machine is noisy for all of them; the
medians over the rounds and their ratios count, not single times. Two figures for each:

*pipelined*: no-op requests, as many in flight as the system's own `map` has, with the answers taken in order.
*a round trip*: one request at a time, each after the answer to the one before; the median of those of a round.

Workers are two processes of one thread each, on loopback, and stay for all rounds. What is started is ended.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # for `python benchmarks/fanout.py`

from benchmarks.stage import ROOT, stage

WORKERS = 2
GROUP = "noop"
SESSIONS = 100
SESSION_PROCESSES = 4
PATIENCE_S = 30.0
#: Requests of a round: enough for a second of the fast ones, and few enough that the slow ones end.
PIPELINED = {"zmqbus": 20_000, "Pool": 20_000, "ProcessPoolExecutor": 10_000, "ipyparallel": 500, "dask": 500}
ROUND_TRIPS = {"zmqbus": 1_000, "Pool": 1_000, "ProcessPoolExecutor": 1_000, "ipyparallel": 100, "dask": 50}
SCATTERS = 10

#: A worker of ours: says when it is there, and serves until SIGTERM.
WORKER = f"""
import signal, sys, threading
sys.path.insert(0, {ROOT!r})
import zmqbus
over = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: over.set())
with zmqbus.connect(group={GROUP!r}) as worker:
    print("ready", flush=True)
    worker.serve(lambda message: message.body, stop=over)
"""

#: Some of the hundred sessions; each has two connections and a thread that serves, as a program of its own would.
SITTERS = f"""
import signal, sys, threading
sys.path.insert(0, {ROOT!r})
import zmqbus
over = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: over.set())
buses = [zmqbus.connect(f"sitter-{{number}}") for number in range(int(sys.argv[1]), int(sys.argv[2]))]
threads = [threading.Thread(target=bus.serve, args=(lambda m: m.text,), kwargs={{"stop": over}}) for bus in buses]
for thread in threads:
    thread.start()
print("ready", flush=True)
for thread in threads:
    thread.join()
for bus in buses:
    bus.close()
"""


def noop(value: Any) -> Any:
    """The work of a request: none."""
    return value


class System:
    """A system under comparison: two ways to have `noop` done by two workers."""

    def __init__(self, pipelined: Callable[[range], list[Any]], one: Callable[[int], Any]) -> None:
        self.pipelined = pipelined
        self.one = one


# --- the systems ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_stage() -> Iterator[None]:
    """Gives this process, and those it starts, private settings."""
    with stage() as environ:
        before, here = dict(os.environ), os.getcwd()
        os.environ.clear()
        # The workers of the others look for `noop` where it is imported from.
        os.environ.update(environ | {"IPYTHONDIR": os.path.join(environ["HOME"], "ipython"), "PYTHONPATH": ROOT})
        os.chdir(environ["HOME"])  # dask and ipyparallel leave files where they run
        try:
            yield
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def children(program: str, arguments: list[list[str]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Starts processes of this program, waits until each is ready, and terminates them at the end."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for each in arguments:
            started.append(subprocess.Popen([sys.executable, "-c", program, *each], stdout=subprocess.PIPE))
        for process in started:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise SystemExit("a process of the benchmark has not started")
        yield started
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


@contextlib.contextmanager
def ours() -> Iterator[System]:
    import zmqbus

    with children(WORKER, [[]] * WORKERS), zmqbus.connect() as bus:
        yield System(
            lambda items: [answer.body for answer in bus.map(f"@{GROUP}", items)],
            lambda item: bus.ask(f"@{GROUP}", item).body,
        )


@contextlib.contextmanager
def pool() -> Iterator[System]:
    with get_context("spawn").Pool(WORKERS) as workers:
        yield System(lambda items: list(workers.imap(noop, items)), lambda item: workers.apply(noop, (item,)))


@contextlib.contextmanager
def executor() -> Iterator[System]:
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as workers:
        yield System(
            lambda items: list(workers.map(noop, items)),
            lambda item: workers.submit(noop, item).result(),
        )


@contextlib.contextmanager
def ipyparallel() -> Iterator[System]:
    import ipyparallel as ipp

    cluster = ipp.Cluster(n=WORKERS, log_level=logging.ERROR, controller_ip="127.0.0.1", engine_timeout=60)
    with cluster as client:
        client.wait_for_engines(WORKERS, timeout=60)
        view = client.load_balanced_view()
        # Requests of one task each, as those of the others are; one after the other, in order.
        yield System(
            lambda items: list(view.map_async(noop, items, chunksize=1, ordered=True)),
            lambda item: view.apply_sync(noop, item),
        )


@contextlib.contextmanager
def dask() -> Iterator[System]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            processes=True,
            n_workers=WORKERS,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        # pure=False: a task is run, however often it has been run before.
        yield System(
            lambda items: client.gather(client.map(noop, list(items), pure=False)),
            lambda item: client.submit(noop, item, pure=False).result(),
        )


SYSTEMS: dict[str, tuple[str, Callable[[], contextlib.AbstractContextManager[System]]]] = {
    "zmqbus": ("zmq", ours),
    "Pool": ("multiprocessing", pool),
    "ProcessPoolExecutor": ("concurrent.futures", executor),
    "ipyparallel": ("ipyparallel", ipyparallel),
    "dask": ("distributed", dask),
}


# --- measuring --------------------------------------------------------------------------------------------------


def per_second(system: System, count: int) -> float:
    """Returns no-ops a second, pipelined."""
    items = range(count)
    began_s = time.perf_counter()
    answers = system.pipelined(items)
    taken_s = time.perf_counter() - began_s
    if answers != list(items):
        raise SystemExit("the answers are not those to the questions")
    return count / taken_s


def round_trip_s(system: System, count: int) -> float:
    """Returns the median of `count` round trips, in seconds."""
    times = []
    for item in range(count):
        began_s = time.perf_counter()
        system.one(item)
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


def scatter_s(bus: Any, names: list[str], text: str) -> float:
    """Asks all of these sessions; returns how long until all have answered, in seconds."""
    began_s = time.perf_counter()
    answers = [reply.result(PATIENCE_S) for reply in bus.scatter(names, text)]
    taken_s = time.perf_counter() - began_s
    if [answer.sender for answer in answers] != names:
        raise SystemExit("not everybody has answered")
    return taken_s


def span(values: list[float], scale: float) -> str:
    return f"({min(values) * scale:,.0f} … {max(values) * scale:,.0f})"


def show(rates: dict[str, list[float]], trips: dict[str, list[float]]) -> None:
    """Prints the table; ratios are medians of the ratios of each round."""
    print(
        f"{'':<22}{'pipelined, 1/s':>15} {'':<22}{'zmqbus is':>10}   {'a round trip, µs':>16} {'':<18}{'zmqbus is':>10}"
    )
    ours_rate, ours_trip = rates.get("zmqbus"), trips.get("zmqbus")
    for name, rate in rates.items():
        trip = trips[name]
        times = ["", ""]
        if ours_rate and ours_trip and name != "zmqbus":
            times[0] = f"{statistics.median(a / b for a, b in zip(ours_rate, rate, strict=True)):.2f} ×"
            times[1] = f"{statistics.median(b / a for a, b in zip(ours_trip, trip, strict=True)):.2f} ×"
        print(
            f"  {name:<20}{statistics.median(rate):>15,.0f} {span(rate, 1):<22}{times[0]:>10}   "
            f"{statistics.median(trip) * 1e6:>16,.0f} {span(trip, 1e6):<18}{times[1]:>10}"
        )


def available(wanted: list[str], say: Callable[[str], None]) -> list[str]:
    """Returns the installed systems; calls `say` with a line for each of the others."""
    there = []
    for name in wanted:
        if importlib.util.find_spec(SYSTEMS[name][0]) is None:
            say(f"{name} is left out: {SYSTEMS[name][0]} is not installed")
        else:
            there.append(name)
    return there


def measure(names: list[str], rounds: int, share: float = 1.0) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """No-ops a second, and seconds for a round trip, of each of these in each round; `share` of the requests."""
    warnings.filterwarnings("ignore")  # of the peers, about each other
    rates: dict[str, list[float]] = {name: [] for name in names}
    trips: dict[str, list[float]] = {name: [] for name in names}
    with on_stage(), contextlib.ExitStack() as stack:
        systems = {name: stack.enter_context(SYSTEMS[name][1]()) for name in names}
        for number in range(rounds + 1):
            for name, system in systems.items():
                rate = per_second(system, int(PIPELINED[name] * share))
                trip = round_trip_s(system, int(ROUND_TRIPS[name] * share))
                if number:  # the first round warms up
                    rates[name].append(rate)
                    trips[name].append(trip)
    return rates, trips


def measure_scatter(times: int) -> list[float]:
    """A hundred sessions, asked at once, so many times: seconds until all have answered."""
    import zmqbus

    each = SESSIONS // SESSION_PROCESSES
    shares = [[str(number * each), str((number + 1) * each)] for number in range(SESSION_PROCESSES)]
    names = [f"sitter-{number}" for number in range(SESSIONS)]
    with on_stage(), children(SITTERS, shares), zmqbus.connect() as bus:
        scatter_s(bus, names, "hello")
        return [scatter_s(bus, names, "hello") for _ in range(times)]


def main() -> int:
    """Measures, and prints the results."""
    parser = argparse.ArgumentParser(description="Fan-out of no-ops, side by side.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help=f"some of these, separated by commas: {','.join(SYSTEMS)}")
    options = parser.parse_args()
    names = available(options.only.split(",") if options.only else list(SYSTEMS), print)
    rates, trips = measure(names, options.rounds)
    print(f"no-op requests to {WORKERS} workers, median of {options.rounds} rounds (min … max)")
    show(rates, trips)
    if "zmqbus" in names:
        times = measure_scatter(options.rounds * SCATTERS)
        print(f"scatter to {SESSIONS} sessions in {SESSION_PROCESSES} processes, and gather, median of {len(times)}")
        print(f"  {statistics.median(times) * 1000:.1f} ms {span(times, 1000)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
