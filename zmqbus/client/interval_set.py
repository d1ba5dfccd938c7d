"""A set of numbers, nearly all of them consecutive, kept as intervals.

The number of a broadcast is added once and looked up many times. In a `set` of ten thousand numbers each costs 0.1 µs
to add and to remove; an interval takes one step for a hundred of them.
"""

from __future__ import annotations

from bisect import bisect_right

#: Numbers that are kept. The broker has at most 1,000 broadcasts under way to one receiver.
REMEMBERED = 10_000


class IntervalSet:
    """The highest `REMEMBERED` of the numbers that were added, which are 1 or more. Not thread-safe."""

    __slots__ = ("_count", "_ends", "_starts")

    def __init__(self) -> None:
        # Intervals in order, with a gap between each two: from `_starts[i]` up to, and without, `_ends[i]`.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._count = 0

    def __repr__(self) -> str:
        return f"<IntervalSet: {self._count} in {len(self._starts)} intervals>"

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and (self._starts, self._ends) == (other._starts, other._ends)

    __hash__ = None  # type: ignore[assignment]  # it is mutable

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._starts, number)
        return place > 0 and number < self._ends[place - 1]

    def clear(self) -> None:
        """Removes all numbers."""
        self._starts, self._ends, self._count = [], [], 0

    def has_any(self, start: int, end: int) -> bool:
        """Returns whether the set has any number from `start` on and below `end`."""
        place = bisect_right(self._starts, end - 1)
        return start < end and place > 0 and self._ends[place - 1] > start

    def add(self, number: int) -> None:
        """Adds a number."""
        self.add_all(number, number + 1)

    def add_all(self, start: int, end: int) -> None:
        """Adds the numbers from `start` on and below `end`."""
        starts, ends = self._starts, self._ends
        if ends and start == ends[-1]:
            ends[-1] = end
            self._count += end - start
        elif not ends or start > ends[-1]:
            starts.append(start)
            ends.append(end)
            self._count += end - start
        else:
            self._put_among(start, end)
        while self._count > REMEMBERED:  # guards: reordering [off]
            self._forget_lowest(self._count - REMEMBERED)

    def _put_among(self, start: int, end: int) -> None:
        """Inserts an interval, and merges those that it touches."""
        starts, ends = self._starts, self._ends
        first = bisect_right(ends, start - 1)  # the first interval that ends at `start` or later
        last = bisect_right(starts, end)  # the one after the last that begins at `end` or before
        if first < last:
            self._count -= sum(ends[place] - starts[place] for place in range(first, last))
            start, end = min(start, starts[first]), max(end, ends[last - 1])
        starts[first:last], ends[first:last] = [start], [end]
        self._count += end - start

    def _forget_lowest(self, count: int) -> None:
        count = min(count, self._ends[0] - self._starts[0])
        self._starts[0] += count
        self._count -= count
        if self._starts[0] == self._ends[0]:
            del self._starts[0], self._ends[0]
