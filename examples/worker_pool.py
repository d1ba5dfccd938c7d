#!/usr/bin/env python3
"""A pool of worker processes: they hash the files of a directory, each file once, whoever of them is free.

    python examples/worker_pool.py                      # two workers of its own, and the files of this checkout
    python examples/worker_pool.py --kill               # one of them is killed half-way, and nothing is missing
    python examples/worker_pool.py --workers 4 ~/src

Workers may as well be started on their own, in other terminals, before or while there is work; any number, and one that
ends hands its files back:

    python examples/worker_pool.py --worker
    python examples/worker_pool.py --workers 0 ~/src    # uses those

What the sum of a file is depends on the file alone, so that a file may safely be hashed twice: a worker may die between
its work and its answer, and then somebody else does it again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # for a checkout; harmless elsewhere

import zmqbus

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
GROUP = "hashers"
PATIENCE_S = 10.0


# --- a worker ---------------------------------------------------------------------------------------------------


def digest(message: zmqbus.Message) -> str:
    """The work: the sum of the file whose path is the request. What it raises is raised where it was asked for."""
    with open(message.body, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def work() -> int:
    """Serves until Ctrl-C or SIGTERM; what was begun by then is finished."""
    over = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: over.set())
    with zmqbus.connect(group=GROUP) as worker:
        print(f"{worker.name} is at work", flush=True)
        worker.serve(digest, stop=over)
    return 0


# --- who has the work -------------------------------------------------------------------------------------------


def files_below(directory: str) -> list[str]:
    """The paths of the files, those of hidden directories left out."""
    found = []
    for parent, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        paths = [os.path.join(parent, name) for name in sorted(names)]
        found += [path for path in paths if os.path.isfile(path) and os.access(path, os.R_OK)]
    return found


@contextlib.contextmanager
def pool(size: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many workers, which end with the block."""
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(size):
            workers.append(
                subprocess.Popen([sys.executable, os.path.realpath(__file__), "--worker"], stdout=subprocess.PIPE)
            )
        for worker in workers:  # work may be handed in before they are there, but then the first has all of it
            assert worker.stdout is not None
            print(worker.stdout.readline().decode(), end="", flush=True)
        yield workers
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            try:
                worker.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()


def hash_all(bus: zmqbus.Bus, paths: list[str], victim: subprocess.Popen[bytes] | None, progress: bool) -> Counter[str]:
    """Has all of them hashed, prints a sum of the sums, and returns how many each worker did. Kills the victim."""
    whole = hashlib.sha256()
    done: Counter[str] = Counter()
    for path, answer in zip(paths, bus.map(f"@{GROUP}", paths, timeout=600, progress=progress), strict=True):
        whole.update(f"{answer.body}  {path}\n".encode())
        done[answer.sender] += 1
        if victim is not None and done.total() > len(paths) // 2:
            victim.kill()
            print(f"killed worker {victim.pid}", flush=True)
            victim = None
    print(f"{done.total()} of {len(paths)} files hashed; all sums in one: {whole.hexdigest()[:16]}")
    return done


def main() -> int:
    """The pool, or a worker of it."""
    parser = argparse.ArgumentParser(description="Hash the files of a directory with a pool of worker processes.")
    parser.add_argument("directory", nargs="?", default=ROOT)
    parser.add_argument("--workers", type=int, default=2, help="how many to start (default: 2)")
    parser.add_argument("--kill", action="store_true", help="kill one of them half-way")
    parser.add_argument("--progress", action="store_true", help="show how far it is")
    parser.add_argument("--worker", action="store_true", help="be a worker, until Ctrl-C")
    options = parser.parse_args()
    if options.worker:
        return work()
    if options.kill and options.workers < 2:
        parser.error("--kill takes one worker of at least two")
    began_s = time.monotonic()
    try:
        paths = files_below(os.path.abspath(options.directory))
        with pool(options.workers) as workers, zmqbus.connect() as bus:
            done = hash_all(bus, paths, workers[0] if options.kill else None, options.progress)
    except zmqbus.ZmqbusError as error:
        print(f"error: {error.code}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for name, count in done.most_common():
        print(f"  {name:<20} {count} files")
    print(f"in {time.monotonic() - began_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
