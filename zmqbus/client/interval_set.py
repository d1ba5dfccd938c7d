"""Numbers that come in a row, nearly all of them: as spans, of which there are few.

A broadcast's number is seen once, and asked for many times: is it here, is any of these here? A set of ten thousand
numbers takes 0.1 µs for each to be put in and to be taken out; a span takes one look for a hundred.
"""

from __future__ import annotations

from bisect import bisect_right

#: Numbers that are remembered. The broker has at most 1,000 under way to one receiver.
REMEMBERED = 10_000


class Numbers:
    """The highest `REMEMBERED` numbers of those that were added, none of them below 1. Not thread-safe."""

    __slots__ = ("_count", "_ends", "_starts")

    def __init__(self) -> None:
        # Spans of numbers, in order, with a gap between each two: from `_starts[i]` up to, and without, `_ends[i]`.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._count = 0

    def __repr__(self) -> str:
        return f"<Numbers: {self._count} in {len(self._starts)} spans>"

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Numbers) and (self._starts, self._ends) == (other._starts, other._ends)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._starts, number)
        return place > 0 and number < self._ends[place - 1]

    def clear(self) -> None:
        """Forgets all."""
        self._starts, self._ends, self._count = [], [], 0

    def has_any(self, start: int, end: int) -> bool:
        """Whether any number from `start` on and below `end` is here."""
        place = bisect_right(self._starts, end - 1)
        return start < end and place > 0 and self._ends[place - 1] > start

    def add(self, number: int) -> None:
        """Adds a number; one that is here already is no error."""
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
        """Among those that are here: what it touches becomes one span with it."""
        starts, ends = self._starts, self._ends
        first = bisect_right(ends, start - 1)  # the first span that ends at `start` or later
        last = bisect_right(starts, end)  # behind the last one that begins at `end` or before
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
