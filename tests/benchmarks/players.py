"""What the processes of `test_crew` do."""

from __future__ import annotations

import os
import sys
import time


class Player:
    def __init__(self, start: int) -> None:
        self.total = start

    def add(self, number: int) -> int:
        self.total += number
        return self.total

    def work(self, seconds: float) -> None:
        until_s = time.process_time() + seconds
        while time.process_time() < until_s:
            pass

    def fail(self) -> None:
        raise ValueError("three of four have come")

    def die(self) -> None:
        print("the wire is cut", file=sys.stderr, flush=True)
        os._exit(3)

    def close(self) -> None:
        print("closed in good order", file=sys.stderr, flush=True)


class Waiting(Player):
    """Has something to do in between."""

    def wait(self, descriptor: int) -> None:
        self.total += 100
        os.stat(descriptor)


class Broken:
    def __init__(self) -> None:
        raise OSError("no such server")
