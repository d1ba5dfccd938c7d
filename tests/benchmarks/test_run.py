"""Rounds: systems take turns, the first round does not count, and a system that is missing or fails is left out."""

from __future__ import annotations

import contextlib

import pytest

from benchmarks import run as run_module
from benchmarks.crew import PeerFailed
from benchmarks.run import Case, Run, perform
from benchmarks.systems import System


@pytest.fixture
def run():
    return Run(quick=True, rounds=3, quiet=True)


def test_systems_take_turns_and_the_first_round_does_not_count(run):
    calls: list[str] = []

    def act(name: str) -> int:
        calls.append(name)
        return len(calls)

    found = run.interleave("case", {"zmqbus": "z", "other": "o"}, act)
    assert calls == ["o", "z", "z", "o", "o", "z", "z", "o"]
    assert found == {"zmqbus": [3, 6, 7], "other": [4, 5, 8]}


def test_system_that_fails_is_left_out_from_then_on(run):
    calls: list[str] = []

    def act(name: str) -> int:
        calls.append(name)
        if name == "o" and calls.count("o") == 3:
            raise PeerFailed("the server has gone")
        return 1

    found = run.interleave("case", {"zmqbus": "z", "other": "o"}, act)
    assert found == {"zmqbus": [1, 1, 1]}
    assert calls.count("o") == 3
    assert run.results.left_out == {"other (case)": "the server has gone"}


def test_failure_of_zmqbus_itself_is_an_error(run):
    def act(name: str) -> int:
        raise PeerFailed("no broker")

    with pytest.raises(PeerFailed):
        run.interleave("case", {"zmqbus": "z"}, act)


def test_system_that_is_not_installed_is_named(run, monkeypatch):
    @contextlib.contextmanager
    def opened():
        yield "a duo"

    systems = {
        "zmqbus": System("zmqbus", "", (), (), opened),
        "absent": System("absent", "", ("no_such_module",), ("no-such-program",), opened),
    }
    monkeypatch.setattr(run_module, "SYSTEMS", systems)
    with run.duos("case") as duos:
        assert duos == {"zmqbus": "a duo"}
    assert run.results.left_out == {"absent": "no-such-program, no_such_module not installed"}


def test_failing_case_does_not_stop_the_others(run):
    def fail(run: Run) -> None:
        raise RuntimeError("it broke")

    measured: list[Run] = []
    perform(run, [Case("one", "One", fail), Case("two", "Two", measured.append)])
    assert run.results.failed == {"one": "RuntimeError: it broke"}
    assert measured == [run]
