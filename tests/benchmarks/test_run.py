"""Rounds in turns; who is missing or fails is named and left out."""

from __future__ import annotations

import contextlib

import pytest

from benchmarks import run as run_module
from benchmarks.crew import PeerFailed
from benchmarks.figures import Curve
from benchmarks.run import Case, Run, machine, perform
from benchmarks.systems import System


@pytest.fixture
def run():
    return Run(quick=True, rounds=3, quiet=True)


def test_everybody_has_each_round_in_turns_and_the_first_does_not_count(run):
    calls: list[str] = []

    def act(name: str) -> int:
        calls.append(name)
        return len(calls)

    found = run.interleave("case", {"zmqbus": "z", "other": "o"}, act)
    assert calls == ["o", "z", "z", "o", "o", "z", "z", "o"]
    assert found == {"zmqbus": [3, 6, 7], "other": [4, 5, 8]}


def test_who_fails_is_left_out_from_then_on(run):
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


def test_if_it_is_ours_that_is_an_error(run):
    def act(name: str) -> int:
        raise PeerFailed("no broker")

    with pytest.raises(PeerFailed):
        run.interleave("case", {"zmqbus": "z"}, act)


def test_what_is_done_between_rounds_is_done_for_each(run):
    settled: list[str] = []
    run.interleave("case", {"zmqbus": "z", "other": "o"}, lambda name: 1, settle=settled.append)
    assert settled.count("z") == settled.count("o") == 4


def test_a_case_that_takes_long_has_fewer_rounds():
    run = Run(quick=True, rounds=3, quiet=True, budget_s=0.0)
    assert len(run.interleave("case", {"zmqbus": "z"}, lambda name: 1)["zmqbus"]) == 2
    assert len(run.interleave("case", {"zmqbus": "z"}, lambda name: 1, rounds=5)["zmqbus"]) == 5


def test_who_is_not_installed_is_named(run, monkeypatch):
    @contextlib.contextmanager
    def opened():
        yield "a duo"

    @contextlib.contextmanager
    def broken():
        raise PeerFailed("does not listen")
        yield

    systems = {
        "zmqbus": System("zmqbus", "", (), (), opened),
        "absent": System("absent", "", ("no_such_module",), ("no-such-program",), opened),
        "broken": System("broken", "", (), (), broken),
    }
    monkeypatch.setattr(run_module, "SYSTEMS", systems)
    with run.duos("case") as duos:
        assert duos == {"zmqbus": "a duo"}
    assert run.results.left_out == {
        "absent": "no-such-program, no_such_module not installed",
        "broken (case)": "does not listen",
    }


@pytest.mark.parametrize(("quick", "opened"), [(True, 1), (False, 2)])
def test_a_quick_run_keeps_its_processes_for_the_next_case(monkeypatch, quick, opened):
    life: list[str] = []

    @contextlib.contextmanager
    def system():
        life.append("opened")
        yield "a duo"
        life.append("closed")

    monkeypatch.setattr(run_module, "SYSTEMS", {"zmqbus": System("zmqbus", "", (), (), system)})
    run = Run(quick=quick, rounds=1, quiet=True)
    for _ in range(2):
        with run.duos("case"):
            pass
    assert life.count("opened") == opened
    run.close()
    assert life.count("closed") == opened


def test_a_case_that_fails_costs_the_others_nothing(run):
    def fail(run: Run) -> None:
        raise RuntimeError("it broke")

    measured: list[Run] = []
    perform(run, [Case("one", "One", fail), Case("two", "Two", measured.append)])
    assert run.results.failed == {"one": "RuntimeError: it broke"}
    assert measured == [run]


def test_only_some_are_wanted():
    run = Run(quick=True, rounds=1, only=["zmqbus", "forwarder"], quiet=True)
    assert run.wants("forwarder") and not run.wants("nats")


def test_a_curve_grows(run):
    for x in (1.0, 2.0):
        run.point(Curve("c", "growth", "memory", "size", "MB", {}), "zmqbus", x, 10 * x)
    assert [curve.points for curve in run.results.curves] == [{"zmqbus": [(1.0, 10.0), (2.0, 20.0)]}]


def test_the_machine_is_told_without_its_name():
    import platform

    found = machine()
    assert {"cores", "python", "libzmq", "pyzmq"} <= set(found)
    assert platform.node() not in found.values()
