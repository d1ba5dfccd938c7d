"""The time budget of a hook."""

from __future__ import annotations

import os
import signal
import time

import pytest

from zmqbus.cli import hook


class _Over(Exception):
    """Stands for the end of the process."""


class Clock:
    """A clock, and a timer whose ticks may come late."""

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
        """How many punctual ticks it takes until the end."""
        for count in range(10_000):
            try:
                self.ticks(1)
            except _Over:
                return count + 1
        raise AssertionError("no end")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class TestBudget:
    """It counts the time that the process could use, not the clock."""

    def test_on_an_idle_machine_it_is_0_15_s(self, clock: Clock) -> None:
        assert clock.ticks_to_the_end() == hook.BUDGET_TICKS
        assert clock.now_s == pytest.approx(1000.15)

    def test_waiting_for_a_processor_costs_nothing(self, clock: Clock) -> None:
        clock.ticks(hook.BUDGET_TICKS - 1, each_s=0.1)
        assert clock.now_s == pytest.approx(1001.4)

    def test_slowed_down_process_gets_more_time_for_the_broker(self, clock: Clock) -> None:
        clock.ticks(5, each_s=0.05)  # five times slower than on an idle machine
        assert hook.BUDGET_TICKS - 5 < clock.ticks_to_the_end() < 5 * hook.BUDGET_TICKS

    def test_one_long_stall_does_not_end_it(self, clock: Clock) -> None:
        clock.ticks(1, each_s=2.0)
        assert clock.ticks_to_the_end() > hook.BUDGET_TICKS

    def test_real_time_is_bounded(self, clock: Clock) -> None:
        with pytest.raises(_Over):
            clock.ticks(1, each_s=hook.LIMIT_S + 0.1)

    def test_next_allowance_starts_from_zero(self, clock: Clock) -> None:
        clock.ticks(hook.BUDGET_TICKS - 1)
        clock.budget.allow(hook.AFTERWARDS_TICKS)
        assert clock.ticks_to_the_end() == hook.AFTERWARDS_TICKS
