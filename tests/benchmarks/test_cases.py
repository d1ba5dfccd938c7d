"""The cases: what they make of what was measured."""

from __future__ import annotations

import re

import pytest

from benchmarks import __main__ as program
from benchmarks.audiences import AUDIENCES, PROCESSES, shares
from benchmarks.cases import directed, latency
from benchmarks.figures import OURS
from benchmarks.run import Run
from benchmarks.systems import FLOOR, SYSTEMS, Pass


class Fake:
    """A duo, or an audience, whose messages take no time of anybody's."""

    def __init__(self, taken_s: float) -> None:
        self.taken_s = taken_s

    def exchange(self, count: int, size_bytes: int) -> Pass:
        return Pass(self.taken_s * 2, self.taken_s, {"sender": count * 1e-6, "middle": 0.0, "receiver": 0.0}, 5_000_000)

    def settle(self) -> None:
        pass

    def one_way(self, count: int, pause_s: float) -> Pass:
        return Pass([self.taken_s] * count, 0.0, {"sender": 0.0})

    round_trips = one_way


@pytest.fixture
def run(monkeypatch):
    import contextlib

    @contextlib.contextmanager
    def duos(case, names=None):
        yield {OURS: Fake(0.5), FLOOR: Fake(1.0)}

    run = Run(quick=True, rounds=2, quiet=True)
    monkeypatch.setattr(run, "duos", duos)
    monkeypatch.setattr("benchmarks.systems.Duo.settle", Fake.settle)
    return run


def test_a_rate_counts_until_both_ends_are_done(run):
    directed.measure_size(run, 100)
    (figure,) = run.results.figures
    count = directed.SIZES[100][True]
    assert figure.median(OURS) == count / 1.0
    assert figure.ratio(FLOOR) == 2.0
    assert figure.cpu_us[OURS]["sender"] == 1.0
    assert run.results.curves[0].points[OURS] == [(100, 5.0)]


def test_latencies_are_told_by_their_percentiles(run):
    latency.measure(run)
    keys = [figure.key for figure in run.results.figures]
    assert keys == [f"{kind}-{share}" for kind in ("one-way", "request") for share in ("p50", "p99", "p99.9")]
    assert run.results.figures[0].median(OURS) == pytest.approx(500_000)
    assert run.results.figures[0].ratio(FLOOR) == 0.5


def test_the_rarest_are_counted_over_all_rounds():
    rounds = [[1e-6] * 100, [2e-6] * 100]
    assert latency.told_us(rounds, 0.5) == pytest.approx([1.0, 2.0])
    assert latency.told_us(rounds, 0.999) == pytest.approx([2.0])
    assert latency.told_us([], 0.5) == []


def test_sizes_have_names():
    assert [directed.named(size) for size in directed.SIZES] == ["100 B", "4 KiB", "64 KiB", "1 MiB", "9 MiB"]


def test_cases_have_names_of_their_own_that_can_be_typed():
    names = [case.name for case in program.CASES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in names)


def test_everybody_says_what_it_needs_and_what_it_promises():
    assert SYSTEMS[OURS].missing() == SYSTEMS[FLOOR].missing() == ""
    assert all(system.promises for system in SYSTEMS.values())
    assert {hall.system for hall in AUDIENCES.values()} <= set(SYSTEMS)


@pytest.mark.parametrize("sessions", [1, 3, 10, 1_000])
def test_each_session_is_in_one_process(sessions):
    parts = shares(sessions)
    assert len(parts) == min(PROCESSES, sessions)
    everybody = [number for part in parts for number in range(part["first"], part["first"] + part["count"])]
    assert everybody == list(range(sessions))


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--rounds", "x"]])
def test_wrong_usage_is_told(monkeypatch, capsys, arguments):
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
