"""Actors for `test_crew`."""

from __future__ import annotations

import os
import sys


class Player:
    def double(self, number: int) -> int:
        return 2 * number

    def fail(self) -> None:
        raise ValueError("three of four have come")

    def die(self) -> None:
        print("the wire is cut", file=sys.stderr, flush=True)
        os._exit(3)

    def close(self) -> None:
        pass
