"""The statistics that decide the guard: medians, ratios, goals, percentiles, and the check that all work was done."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict

import pytest

from benchmarks import commands, document, procfs, work
from benchmarks.cases import directed, latency
from benchmarks.figures import OURS, Curve, Figure, Goal, Results
from benchmarks.run import Run
from benchmarks.systems import FLOOR, Pass


def figure(ours=(10.0,), theirs=(5.0,), *goals: Goal) -> Figure:
    return Figure("c", "k", "a title", "/s", True, {"zmqbus": list(ours), "other": list(theirs)}, goals)


class TestRatios:
    def test_ratio_is_the_median_of_the_ratios_of_each_round(self):
        # The second round was slow for both systems, the third for one of them.
        one = figure((100.0, 10.0, 100.0), (50.0, 5.0, 10.0))
        assert one.ratio("other") == 2.0
        assert one.median("zmqbus") == 100.0

    @pytest.mark.parametrize(("ours", "theirs"), [((), (5.0,)), ((1.0,), (0.0,))])
    def test_ratio_needs_a_measurement_of_both(self, ours, theirs):
        assert figure(ours, theirs).ratio("other") is None
        assert figure(ours, theirs).ratio("nobody") is None

    def test_goal_compares_the_value_or_the_ratio(self):
        one = figure((10.0,), (5.0,))
        assert [Goal(10.0, True).met(one), Goal(10.1, True).met(one), Goal(9.0, False).met(one)] == [True, False, False]
        assert [Goal(2.0, True, "other").met(one), Goal(1.9, False, "other").met(one)] == [True, False]
        assert Goal(1.0, True, "nobody").met(one) is None

    def test_commands_are_compared_within_each_round(self):
        found = commands.Found(times_s={commands.YARDSTICK_NAME: [1.0, 10.0, 1.0], "send": [2.0, 20.0, 3.0]})
        assert found.ratio("send") == 2.0


class TestRates:
    @pytest.fixture
    def run(self, monkeypatch):
        class FixedDuo:
            """A pair whose messages take a fixed time."""

            def __init__(self, taken_s: float) -> None:
                self.taken_s = taken_s

            def exchange(self, count: int, size_bytes: int) -> Pass:
                cpu_s = {"sender": count * 1e-6, "middle": 0.0, "receiver": 0.0}
                return Pass(self.taken_s * 2, self.taken_s, cpu_s, 5_000_000)

            def one_way(self, count: int, pause_s: float) -> Pass:
                return Pass([self.taken_s] * count, 0.0, {"sender": 0.0})

            round_trips = one_way

        @contextlib.contextmanager
        def duos(case, names=None):
            yield {OURS: FixedDuo(0.5), FLOOR: FixedDuo(1.0)}

        run = Run(quick=True, rounds=2, quiet=True)
        monkeypatch.setattr(run, "duos", duos)
        monkeypatch.setattr("benchmarks.systems.Duo.settle", lambda duo: None)
        return run

    def test_rate_counts_until_both_ends_are_done(self, run):
        directed.measure_size(run, 100)
        (found,) = run.results.figures
        assert found.median(OURS) == directed.SIZES[100][True] / 1.0
        assert found.ratio(FLOOR) == 2.0
        assert found.cpu_us[OURS]["sender"] == 1.0

    def test_latencies_are_reported_by_percentile(self, run):
        latency.measure(run)
        keys = [found.key for found in run.results.figures]
        assert keys == [f"{kind}-{share}" for kind in ("one-way", "request") for share in ("p50", "p99", "p99.9")]
        assert run.results.figures[0].median(OURS) == pytest.approx(500_000)
        assert run.results.figures[0].ratio(FLOOR) == 0.5

    def test_rare_percentiles_are_counted_over_all_rounds(self):
        rounds = [[1e-6] * 100, [2e-6] * 100]
        assert latency.told_us(rounds, 0.5) == pytest.approx([1.0, 2.0])
        assert latency.told_us(rounds, 0.999) == pytest.approx([2.0])

    @pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100), (0.0, 1)])
    def test_percentile(self, share, value):
        assert work.percentile(list(range(100, 0, -1)), share) == value

    def test_processor_time_grows_with_work(self):
        before_s = procfs.cpu_s(os.getpid())
        until_s = time.process_time() + 0.1
        while time.process_time() < until_s:
            pass
        assert procfs.cpu_s(os.getpid()) - before_s >= 0.09


class TestWorkCheck:
    @pytest.mark.parametrize("size_bytes", [100, 4096, 1024 * 1024])
    def test_bodies_differ_and_have_the_requested_size(self, size_bytes):
        texts = work.bodies(20, size_bytes)
        assert all(len(text.encode()) == size_bytes for text in texts)
        assert len(set(texts)) == 20

    @pytest.mark.parametrize("received", [[0, 2], [0, 0], [1]])
    def test_lost_and_repeated_messages_are_errors(self, received):
        check, texts = work.Check(5, 100), work.bodies(5, 100)
        with pytest.raises(ValueError, match="expected number"):
            for number in received:
                check.take(texts[number])

    def test_truncated_message_is_an_error(self):
        with pytest.raises(ValueError, match="expected number"):
            work.Check(5, 100).take(work.bodies(5, 100)[0][:-1])

    def test_broadcast_receiver_takes_each_once_in_any_order(self):
        texts = work.bodies(3, 100)
        tick = work.Tick(3, 100)
        assert [tick.take(texts[number]) for number in (2, 0, 1)] == [True, True, False]
        with pytest.raises(ValueError, match="not expected"):
            tick.take(texts[0])


class TestResults:
    def test_results_survive_json(self):
        results = Results({"cores": "2"}, True, 3)
        results.figures.append(figure((1.0,), (2.0,), Goal(1.0, True, "other", beyond=True)))
        results.curves.append(Curve("c", "growth", "memory", "sessions", "MB", {"zmqbus": [(1, 2.5), (10, 3.0)]}))
        results.left_out["nats"] = "not installed"
        found = json.loads(json.dumps(results.as_json()))
        assert found["figures"][0]["ratios"] == {"other": 0.5}
        assert asdict(Results.from_json(found)) == asdict(results)

    def test_performance_page_shows_the_stored_results(self):
        """If this fails: python -m benchmarks.document"""
        with open(document.PAGE, encoding="utf-8") as file:
            page = file.read()
        assert document.with_figures(page, document.load()) == page
