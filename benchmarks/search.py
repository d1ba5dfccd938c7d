#!/usr/bin/env python3
"""Looking for something in a long history: with the index, without it, and with a regular expression.

    python benchmarks/search.py [--size MB] [--keep DIRECTORY]

Makes a log of that size (default: 1,074 MB) out of invented words, of which few are frequent and many are rare, as in
prose; messages of 100 B to 64 KiB, each size class as often as the next. Every ten thousandth holds two words that no
other does. With `--keep` the log is left there, and taken up the next time.

The figures are those of this process: a command takes 60 ms more, which is python's start.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import re
import tempfile
import time
from collections.abc import Callable

from zmqbus.journal.filter import Wanted
from zmqbus.journal.history import History
from zmqbus.journal.record import Records, Route, encode
from zmqbus.journal.search_index import Index
from zmqbus.journal.search_query import Search
from zmqbus.journal.writer import Journal

SMALLEST_BYTES, LARGEST_BYTES = 100, 64 * 1024
RARE = "zebrafisch needle"


def make(path: str, size_bytes: int) -> int:
    """Writes the log; returns the number of messages."""
    chance = random.Random(5)
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
    endings = ["", "s", "ed", "ing", "_x", "-y"]
    words = ["".join(chance.choice(syllables) for _ in range(chance.randint(1, 4))) for _ in range(40_000)]
    words = [word + chance.choice(endings) for word in words]
    weights = list(itertools.accumulate(1 / (rank + 2) for rank in range(len(words))))
    prose = " ".join(chance.choices(words, cum_weights=weights, k=400_000))
    journal = Journal(path, keep=1000)
    count = written = pending = 0
    lines: list[bytes] = []
    ts = time.time() - 3 * 86_400
    while written < size_bytes:
        length = int(math.exp(chance.uniform(math.log(SMALLEST_BYTES), math.log(LARGEST_BYTES))))
        start = chance.randrange(len(prose) - length)
        text = prose[start : start + length] + (f" {RARE}" if count % 10_000 == 5_000 else "")
        ts += 0.5
        sender, receiver = f"agent-{count % 40}", f"agent-{count * 7 % 40}"
        route = Route("message", f"{sender}-id", sender, None, receiver, "id")
        lines += encode(Records(ts, route, None, "text", [f"m{count:09}"], [text.encode()]))
        written += len(lines[-1])
        pending += len(lines[-1])
        count += 1
        if pending > 1_000_000:
            journal.append(lines)
            lines, pending = [], 0
    journal.append(lines)
    journal.close()
    return count


def timed(what: str, function: Callable[[], object]) -> None:
    """Runs it, and prints how long that took and what came of it."""
    begun_s, used_s = time.perf_counter(), time.process_time()
    found = function()
    took_s, used_s = time.perf_counter() - begun_s, time.process_time() - used_s
    print(f"{what:58} {took_s * 1000:10,.1f} ms  ({used_s * 1000:,.1f} ms of processor)  {found}")


def main() -> int:
    """Makes, searches, indexes, and searches again."""
    parser = argparse.ArgumentParser(description="Figures of searching a long history.")
    parser.add_argument("--size", type=float, default=1074, metavar="MB")
    parser.add_argument("--keep", metavar="DIRECTORY")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zmqbus-search-") as temporary:
        directory = options.keep or temporary
        os.makedirs(directory, mode=0o700, exist_ok=True)
        path, index_path = os.path.join(directory, "messages.log"), os.path.join(directory, "search.sqlite")
        if not os.path.exists(path):
            print(f"{make(path, int(options.size * 1e6)):,} messages made")

        def page(words: str) -> str:
            return f"{len(Search(path, index_path, words).page(limit=50).entries)} of the newest"

        def grep(expression: str) -> str:
            wanted = Wanted(pattern=re.compile(expression))
            return f"{sum(1 for _ in History(path).entries(wanted=wanted))} in all"

        def fill() -> str:
            with Index.open(index_path) as index:
                return f"{index.fill(path):,} lines"

        if not os.path.exists(index_path):
            timed(f"search without an index: {RARE}", lambda: page(RARE))
        timed("filling the index", fill)
        print(f"{os.path.getsize(index_path) / 1e6:,.0f} MB of index")
        for words in (RARE, "ba", "ba da -du", '"ba da"', "ba*", "absent"):
            timed(f"search: {words}", lambda words=words: page(words))  # type: ignore[misc]
        timed("search, all: ba da", lambda: f"{sum(1 for _ in Search(path, index_path, 'ba da').entries()):,} in all")
        for expression in ("zebrafisch", "zebra[f]isch", "(?i)ZEBRAFISCH"):
            timed(f"grep: {expression}", lambda expression=expression: grep(expression))  # type: ignore[misc]
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
