"""Each system does the measured work, all of it; those that are not installed are skipped."""

from __future__ import annotations

import pytest

from benchmarks.audiences import AUDIENCES
from benchmarks.cases import backlog, sessions
from benchmarks.run import Run
from benchmarks.systems import OURS, SYSTEMS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SYSTEMS)
def test_sender_and_receiver(name):
    system = SYSTEMS[name]
    if system.missing():
        pytest.skip(system.missing())
    with system.open() as duo:
        for count, size_bytes in ((200, 100), (3, 1024 * 1024)):
            found = duo.exchange(count, size_bytes)
            assert found.value > 0 and found.confirmed_s > 0
            assert set(found.cpu_s) == {"sender", "middle", "receiver"} and found.middle_bytes > 0
            duo.settle()
        assert len(duo.one_way(20, 0.001).value) == 20
        if system.asks:
            taken_s = duo.round_trips(20, 0.001).value
            assert len(taken_s) == 20 and min(taken_s) > 0
        assert duo.exchange(50, 100).value > 0  # nothing is left over from the passes before


@pytest.mark.parametrize("name", AUDIENCES)
def test_audience(name):
    hall = AUDIENCES[name]
    if SYSTEMS[hall.system].missing():
        pytest.skip(SYSTEMS[hall.system].missing())
    with hall.open(5) as audience:
        assert audience.connect() > 0
        for count in (70, 10):  # zmqbus allows one sender 60 a minute
            found = audience.announce(count, 100)
            assert found.value > 0 and "sender" in found.cpu_s and "receivers" in found.cpu_s


def test_sessions_case_with_ten_sessions(monkeypatch):
    monkeypatch.setattr(sessions, "SESSIONS", 10)
    monkeypatch.setattr(sessions, "IDLE_S", (0.2, 0.2))
    monkeypatch.setattr(sessions, "measure_halls", lambda *arguments: None)
    monkeypatch.setattr(sessions, "GROWTH", ((0, 3), (0, 3)))
    monkeypatch.setattr(sessions, "GROWTH_MESSAGES", 100)
    run = Run(quick=True, rounds=1, only=[OURS], quiet=True)
    sessions.measure(run)
    sessions.growth(run)
    assert [figure.key for figure in run.results.figures] == ["sessions-connect", "sessions-memory", "sessions-idle"]
    assert all(figure.median(OURS) is not None for figure in run.results.figures)
    assert [[x for x, _ in curve.points[OURS]] for curve in run.results.curves] == [[0, 3]] * 2


def test_backlog_case_with_few_messages(monkeypatch):
    monkeypatch.setattr(backlog, "EACH", 20)
    monkeypatch.setattr(backlog, "MESSAGES", 20 * backlog.SESSIONS)
    run = Run(quick=True, rounds=1, only=[OURS], quiet=True)
    backlog.measure(run)
    assert all((figure.median(OURS) or 0) > 0 for figure in run.results.figures)
    assert [len(curve.points[OURS]) for curve in run.results.curves] == [backlog.SLICES + 1, backlog.SLICES]
