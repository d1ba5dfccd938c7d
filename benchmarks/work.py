"""The work that all systems are given, and the check that it was done: the same for each of them.

Bodies are text, since that is what sessions say to each other: ASCII in lines of 80, with a number in front by which
the receiver knows that it got what it should. Receivers read them: they have each body as text in their hands.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

#: Digits in front of a body.
NUMBER_CHARS = 8
#: Different bodies in memory, at most: the larger ones repeat.
MAX_BODIES_BYTES = 32 * 1024 * 1024
_LINE = "the quick brown fox jumps over the lazy dog, and says 'done: 1234 tests passed'\n"


def bodies(count: int, size_bytes: int) -> list[str]:
    """Returns `count` numbered bodies of that size, or fewer, to be reused, if they would fill the memory."""
    rest = size_bytes - NUMBER_CHARS
    padding = (_LINE * (rest // len(_LINE) + 1))[:rest]
    different = max(1, min(count, MAX_BODIES_BYTES // size_bytes))
    return [f"{number:0{NUMBER_CHARS}d}{padding}" for number in range(different)]


class Check:
    """Checks that all bodies come, in order and whole."""

    def __init__(self, count: int, size_bytes: int) -> None:
        self._different = max(1, min(count, MAX_BODIES_BYTES // size_bytes))
        self._size_bytes = size_bytes
        self._left = count
        self._next = 0

    def take(self, body: str) -> bool:
        """Checks the next body; returns False if it was the last."""
        if len(body) != self._size_bytes or int(body[:NUMBER_CHARS]) != self._next:
            raise ValueError(f"expected number {self._next} of {self._size_bytes} bytes, got {body[:40]!r}")
        self._next = (self._next + 1) % self._different
        self._left -= 1
        return self._left > 0


class Tick:
    """Checks that a receiver of broadcasts gets each body once, in any order and whole."""

    def __init__(self, count: int, size_bytes: int) -> None:
        self._missing = set(range(count))
        self._size_bytes = size_bytes

    def take(self, body: str) -> bool:
        """Checks the next body; returns False if it was the last."""
        number = int(body[:NUMBER_CHARS])
        if len(body) != self._size_bytes or number not in self._missing:
            raise ValueError(f"not expected (again): {body[:40]!r}")
        self._missing.discard(number)
        return bool(self._missing)


def stamp(size_bytes: int = 100) -> str:
    """Returns a body with the current time, by a clock that all processes of the machine share."""
    return f"{time.monotonic_ns():020d}".ljust(size_bytes, ".")


def age_s(body: str) -> float:
    """Returns the age of a stamped body, in seconds."""
    return (time.monotonic_ns() - int(body[:20])) / 1e9


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the value that this share of all (0 to 1) does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def spaced(count: int, pause_s: float) -> list[float]:
    """Returns `count` times of the monotonic clock, `pause_s` apart, from now on."""
    begin_s = time.monotonic() + pause_s
    return [begin_s + number * pause_s for number in range(count)]


def sleep_until(when_s: float) -> None:
    """The pace of a gentle sender."""
    left_s = when_s - time.monotonic()
    if left_s > 0:
        time.sleep(left_s)


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)
