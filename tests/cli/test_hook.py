"""The budget of a hook: it counts what the process could use, and not what the clock says."""

from __future__ import annotations

import os
import signal
import time

import pytest

from zmqbus.cli import hook


class _Over(Exception):
    """The process would have ended here."""


class Clock:
    """A clock, and a timer whose ticks come as late as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(signal, "setitimer", lambda *_: None)
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(os, "_exit", self._exit)
        self.budget = hook._Budget()
        self.budget.allow(hook.BUDGET_TICKS)

    def _exit(self, status: int) -> None:
        assert status == 0
        raise _Over

    def ticks(self, count: int, each_s: float = hook.TICK_S) -> None:
        for _ in range(count):
            self.now_s += each_s
            self.budget._tick(signal.SIGALRM, None)

    def ticks_to_the_end(self) -> int:
        """How many more ticks in time it has."""
        for count in range(10_000):
            try:
                self.ticks(1)
            except _Over:
                return count + 1
        raise AssertionError("it never ends")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_alone_on_the_machine_it_is_what_it_says(clock: Clock) -> None:
    assert clock.ticks_to_the_end() == hook.BUDGET_TICKS
    assert clock.now_s == pytest.approx(1000.15)


def test_a_process_that_waits_for_a_processor_uses_nothing_up(clock: Clock) -> None:
    clock.ticks(hook.BUDGET_TICKS - 1, each_s=0.1)
    assert clock.now_s == pytest.approx(1001.4)


def test_and_has_as_much_more_for_the_broker_as_it_was_slowed_down(clock: Clock) -> None:
    clock.ticks(5, each_s=0.05)  # five times slower than alone
    assert hook.BUDGET_TICKS - 5 < clock.ticks_to_the_end() < 5 * hook.BUDGET_TICKS


def test_one_long_stall_is_not_the_end(clock: Clock) -> None:
    clock.ticks(1, each_s=2.0)
    assert clock.ticks_to_the_end() > hook.BUDGET_TICKS


def test_however_busy_it_is_there_is_an_end(clock: Clock) -> None:
    with pytest.raises(_Over):
        clock.ticks(1, each_s=hook.LIMIT_S + 0.1)


def test_another_allowance_begins_anew(clock: Clock) -> None:
    clock.ticks(hook.BUDGET_TICKS - 1)
    clock.budget.allow(hook.AFTERWARDS_TICKS)
    assert clock.ticks_to_the_end() == hook.AFTERWARDS_TICKS
    assert repr(clock.budget) == "<_Budget: 5 of 5 ticks>"
