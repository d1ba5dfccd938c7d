"""The work, and the check that it was done."""

from __future__ import annotations

import time

import pytest

from benchmarks import work


@pytest.mark.parametrize("size_bytes", [100, 4096, 1024 * 1024])
def test_bodies_have_the_size_that_is_asked_for_and_differ(size_bytes):
    texts = work.bodies(20, size_bytes)
    assert all(len(text.encode()) == size_bytes for text in texts)
    assert len(set(texts)) == 20


def test_large_bodies_are_used_again():
    texts = work.bodies(100, 8 * 1024 * 1024)
    assert len(texts) == 4
    check = work.Check(100, 8 * 1024 * 1024)
    assert [check.take(texts[number % 4]) for number in range(100)] == [True] * 99 + [False]


def test_what_is_lost_repeated_or_cut_is_noticed():
    texts = work.bodies(5, 100)
    for wrong in ([0, 2], [0, 0], [1]):
        check = work.Check(5, 100)
        with pytest.raises(ValueError, match="expected number"):
            for number in wrong:
                check.take(texts[number])
    with pytest.raises(ValueError, match="expected number"):
        work.Check(5, 100).take(texts[0][:-1])


def test_those_who_hear_many_take_them_in_any_order_and_each_once():
    texts = work.bodies(3, 100)
    tick = work.Tick(3, 100)
    assert [tick.take(texts[number]) for number in (2, 0, 1)] == [True, True, False]
    with pytest.raises(ValueError, match="not expected"):
        tick.take(texts[0])
    with pytest.raises(ValueError, match="not expected"):
        work.Tick(3, 100).take(texts[0] + "x")


def test_a_stamp_knows_its_age():
    stamp = work.stamp()
    time.sleep(0.01)
    assert len(stamp) == 100
    assert work.age_s(stamp) >= 0.01


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100), (0.0, 1)])
def test_percentiles(share, value):
    assert work.percentile(list(range(100, 0, -1)), share) == value


def test_the_percentile_of_one():
    assert work.percentile([7.0], 0.99) == 7.0


def test_a_pace_has_its_pauses():
    before_s = time.monotonic()
    times = work.spaced(3, 0.5)
    assert times[1] - times[0] == pytest.approx(0.5) and times[2] - times[0] == pytest.approx(1.0)
    assert times[0] >= before_s + 0.5
    work.sleep_until(time.monotonic() - 1)  # too late: goes on
