"""IntervalSet as intervals: like a set of them, of which the lowest are forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.client import interval_set
from zmqbus.client.interval_set import IntervalSet

SPANS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), max_size=40)


@given(SPANS, st.integers(1, 80))
def test_like_a_set(intervals: list[tuple[int, int]], remembered: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interval_set, "REMEMBERED", remembered)
        ours, model = IntervalSet(), set[int]()
        for start, count in intervals:
            if count == 1:
                ours.add(start)
            else:
                ours.add_all(start, start + count)
            model = set(sorted(model | set(range(start, start + count)))[-remembered:])
            assert [number for number in range(75) if number in ours] == sorted(model)
            assert len(ours) == len(model)
            for first in range(0, 75, 7):
                for end in (first, first + 1, first + 5, 80):
                    assert ours.has_any(first, end) == any(number in model for number in range(first, end))
            assert all(end < start for end, start in zip(ours._ends, ours._starts[1:], strict=False))
        ours.clear()
        assert len(ours) == 0 and 5 not in ours and not ours.has_any(0, 100)


def test_a_row_is_one_span() -> None:
    ours = IntervalSet()
    for number in range(1, 101):
        ours.add(number)
    ours.add_all(101, 201)
    assert repr(ours) == "<IntervalSet: 200 in 1 intervals>"
    ours.add_all(300, 301)
    assert repr(ours) == "<IntervalSet: 201 in 2 intervals>"
    ours.add_all(150, 300)
    assert repr(ours) == "<IntervalSet: 300 in 1 intervals>"


def test_more_than_are_remembered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interval_set, "REMEMBERED", 3)
    ours = IntervalSet()
    ours.add_all(1, 3)
    ours.add_all(10, 20)
    assert [number for number in range(30) if number in ours] == [17, 18, 19]
