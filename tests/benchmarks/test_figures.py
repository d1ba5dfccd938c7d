"""Medians, ratios and goals."""

from __future__ import annotations

import json
from dataclasses import asdict

from benchmarks.figures import Curve, Figure, Goal, Results


def figure(ours=(10.0,), theirs=(5.0,), *goals: Goal, key: str = "k", case: str = "c") -> Figure:
    return Figure(case, key, "a title", "/s", True, {"zmqbus": list(ours), "other": list(theirs)}, goals)


def test_the_ratio_is_the_median_of_the_ratios_of_each_round():
    # The second round was slow for both, the third for one of them.
    one = figure((100.0, 10.0, 100.0), (50.0, 5.0, 10.0))
    assert one.ratio("other") == 2.0
    assert one.median("zmqbus") == 100.0


def test_a_ratio_needs_both():
    one = figure((), (5.0,))
    assert one.ratio("other") is None and one.ratio("nobody") is None and one.ratio("zmqbus") is None
    assert one.median("zmqbus") is None


def test_rounds_of_nothing_have_no_ratio():
    assert figure((1.0,), (0.0,)).ratio("other") is None


def test_goals_are_held_against_the_value_or_the_ratio():
    one = figure((10.0,), (5.0,))
    assert Goal(10.0, True).met(one) is True
    assert Goal(10.1, True).met(one) is False
    assert Goal(9.0, False).met(one) is False
    assert Goal(2.0, True, "other").met(one) is True
    assert Goal(1.9, False, "other").met(one) is False
    assert Goal(1.0, True, "nobody").met(one) is None


def test_goals_in_words():
    assert Goal(100_000, True).said("/s") == "≥ 100,000 /s"
    assert Goal(1.5, False, "forwarder").said("µs") == "≤ 1.5 × forwarder"


def test_results_survive_json():
    results = Results({"cores": "2"}, True, 3)
    results.figures.append(figure((1.0,), (2.0,), Goal(1.0, True, "other", beyond=True)))
    results.curves.append(Curve("c", "growth", "memory", "sessions", "MB", {"zmqbus": [(1, 2.5), (10, 3.0)]}))
    results.left_out["nats"] = "not installed"
    found = json.loads(json.dumps(results.as_json()))
    assert found["figures"][0]["medians"] == {"zmqbus": 1.0, "other": 2.0}
    assert found["figures"][0]["ratios"] == {"other": 0.5}
    assert asdict(Results.from_json(found)) == asdict(results)


def test_figures_of_one_case_stand_together():
    results = Results({}, True, 3)
    results.figures += [figure(key="1", case="a"), figure(key="2", case="b"), figure(key="3", case="a")]
    assert [one.key for one in results.by_case()] == ["1", "3", "2"]
