"""The guard fails when a ratio has become twice as bad, and measures again before it does."""

from __future__ import annotations

import pytest

from benchmarks import guard
from benchmarks.figures import Figure


def figure(key: str, against: str, ratio: float, more_is_better: bool = True) -> Figure:
    return Figure("c", key, "t", "/s", more_is_better, {"zmqbus": [ratio * 10], against: [10.0]})


@pytest.mark.parametrize(
    ("ratio", "more_is_better", "failed"),
    [(0.51, True, False), (0.49, True, True), (3.0, True, False), (1.99, False, False), (2.01, False, True)],
)
def test_ratio_twice_as_bad_fails(ratio, more_is_better, failed):
    verdict = guard.judge(figure("k", "floor", ratio, more_is_better), "floor", 1.0)
    assert verdict.failed is failed
    assert ("TOO SLOW" in str(verdict)) is failed


def test_figure_without_a_kept_ratio_cannot_fail():
    verdict = guard.judge(figure("k", "floor", 0.001), "floor", None)
    assert not verdict.failed and "nothing was kept" in str(verdict)


def test_missing_measurement_is_an_error():
    with pytest.raises(ValueError, match="was not measured"):
        guard.judge(figure("k", "floor", 1.0), "another", 1.0)


def test_bad_figure_is_measured_again_with_more_rounds(capsys):
    kept = {watched.key: 1.0 for watched in guard.WATCHED}
    asked: list[tuple[str, int]] = []
    bad = guard.WATCHED[0].key

    def measure(watched: guard.Watched, rounds: int) -> Figure:
        asked.append((watched.key, rounds))
        return figure(watched.key, watched.against, 0.1 if watched.key == bad and rounds == guard.ROUNDS else 1.0)

    verdicts = guard.guard(kept, measure)
    assert not any(verdict.failed for verdict in verdicts)
    assert [one for one in asked if one[1] == guard.MORE_ROUNDS] == [(bad, guard.MORE_ROUNDS)]
    assert "once more" in capsys.readouterr().out


def test_figure_that_stays_bad_fails(capsys):
    def measure(watched: guard.Watched, rounds: int) -> Figure:
        return figure(watched.key, watched.against, 0.1)

    verdicts = guard.guard({guard.WATCHED[0].key: 1.0}, measure)
    assert [verdict.key for verdict in verdicts if verdict.failed] == [guard.WATCHED[0].key]


def test_every_watched_ratio_is_kept():
    assert set(guard.load()) == {watched.key for watched in guard.WATCHED}
    assert all(ratio > 0 for ratio in guard.load().values())


@pytest.mark.slow
def test_a_real_one_measures_what_it_watches():
    watched = guard.WATCHED[0]
    found = guard.measured(watched, 1)
    assert found.key == watched.key
    assert guard.judge(found, watched.against, None).found > 0


@pytest.mark.parametrize(("ratio", "status"), [(1.0, 0), (0.1, 1)])
def test_the_program_fails_when_something_is_slow(monkeypatch, capsys, tmp_path, ratio, status):
    kept = tmp_path / "kept.json"
    monkeypatch.setattr(guard, "KEPT", str(kept))
    monkeypatch.setattr(guard, "load", lambda: dict.fromkeys((watched.key for watched in guard.WATCHED), 1.0))
    monkeypatch.setattr(guard, "WATCHED", guard.WATCHED[:1])
    monkeypatch.setattr(
        guard, "guard", lambda kept: [guard.judge(figure("k", "floor", ratio), "floor", kept.get("directed-100b"))]
    )
    monkeypatch.setattr("sys.argv", ["guard"])
    assert guard.main() == status
    assert ("k: more than 2 times worse" in capsys.readouterr().out) is bool(status)
    assert not kept.exists()
    monkeypatch.setattr("sys.argv", ["guard", "--keep"])
    assert guard.main() == 0
    assert kept.read_text() == f'{{\n "k": {ratio}\n}}\n'
