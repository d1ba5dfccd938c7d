#!/usr/bin/env python3
"""Hashes the files of a directory with a pool of worker processes; each file goes to a free worker.

    python examples/worker_pool.py                      # starts two workers; the files of this checkout
    python examples/worker_pool.py --kill               # kills one worker half-way; no file is missing
    python examples/worker_pool.py --workers 4 ~/src

Workers can also be started separately in other terminals, before or during the work and in any number; a worker that
ends returns its files to the queue:

    python examples/worker_pool.py --worker
    python examples/worker_pool.py --workers 0 ~/src    # uses those workers

Hashing a file twice is harmless. That matters when a worker dies between its work and its answer: then another worker
repeats the work.
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
    """Returns the hash of the file whose path is the request. An exception here is raised at the requester."""
    with open(message.body, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def work() -> int:
    """Serves until Ctrl-C or SIGTERM; finishes the request in progress."""
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    with zmqbus.connect(group=GROUP) as worker:
        print(f"{worker.name} is ready", flush=True)
        worker.serve(digest, stop=stop)
    return 0


# --- the requester ----------------------------------------------------------------------------------------------


def files_below(directory: str) -> list[str]:
    """Returns the paths of all readable files outside hidden directories."""
    found = []
    for parent, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        paths = [os.path.join(parent, name) for name in sorted(names)]
        found += [path for path in paths if os.path.isfile(path) and os.access(path, os.R_OK)]
    return found


@contextlib.contextmanager
def pool(size: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Starts `size` workers, which end with the block."""
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(size):
            workers.append(
                subprocess.Popen([sys.executable, os.path.realpath(__file__), "--worker"], stdout=subprocess.PIPE)
            )
        for worker in workers:  # requests may be sent earlier, but then the first worker gets all of them
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
    """Has all files hashed and prints a hash of the hashes; returns the number of files of each worker.

    Kills `victim` half-way, if given.
    """
    whole = hashlib.sha256()
    done: Counter[str] = Counter()
    for path, answer in zip(paths, bus.map(f"@{GROUP}", paths, timeout=600, progress=progress), strict=True):
        whole.update(f"{answer.body}  {path}\n".encode())
        done[answer.sender] += 1
        if victim is not None and done.total() > len(paths) // 2:
            victim.kill()
            print(f"killed worker {victim.pid}", flush=True)
            victim = None
    print(f"{done.total()} of {len(paths)} files hashed; hash of all hashes: {whole.hexdigest()[:16]}")
    return done


def main() -> int:
    """Runs the pool, or a worker of it; returns the exit status."""
    parser = argparse.ArgumentParser(description="Hash the files of a directory with a pool of worker processes.")
    parser.add_argument("directory", nargs="?", default=ROOT)
    parser.add_argument("--workers", type=int, default=2, help="how many to start (default: 2)")
    parser.add_argument("--kill", action="store_true", help="kill one of them half-way")
    parser.add_argument("--progress", action="store_true", help="show the progress")
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
