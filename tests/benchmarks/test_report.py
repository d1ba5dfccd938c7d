"""The tables say what was measured, and what was not."""

from __future__ import annotations

import pytest

from benchmarks import report
from benchmarks.figures import Curve, Figure, Goal, Results


@pytest.fixture
def results() -> Results:
    found = Results({"cores": "2"}, False, 7)
    goals = (Goal(1_000, True), Goal(1.2, True, "forwarder"), Goal(2.0, True, "gone"), Goal(9e9, True, beyond=True))
    values = {"zmqbus": [1_500.0, 1_700.0], "forwarder": [3_000.0, 3_400.0]}
    cpu = {"zmqbus": {"sender": 1.25, "middle": 300.0, "receiver": 2.0}}
    found.figures.append(Figure("directed", "d", "directed 100 B", "/s", True, values, goals, cpu))
    found.figures.append(Figure("sessions", "s", "memory", "MB", False, {"zmqbus": [70.0], "pub": [0.0]}))
    found.curves.append(Curve("g", "growth", "memory", "sessions", "MB", {"zmqbus": [(0, 30.0), (1000, 90.0)]}))
    found.left_out["nats"] = "nats-server not installed"
    found.failed["pool"] = "it broke"
    return found


def test_the_terminal_is_told_everything(results):
    told = report.terminal(results)
    for words in (
        "1,600 /s (1,500 … 1,700)",
        "beside: forwarder 3,200 (0.50 ×)",
        "≥ 1,000 /s: reached; ≥ 1.2 × forwarder: missed; ≥ 2 × gone: not measured; beyond: ≥ 9,000,000,000 /s: missed",
        "zmqbus: sender 1.2, middle 300.0, receiver 2.0",
        "beside: pub 0.0\n",
        "0: 30.0, 1,000: 90.0 MB",
        "left out: nats: nats-server not installed",
        "failed: pool: it broke",
    ):
        assert words in told


def test_the_page_is_told_everything(results):
    page = report.markdown(results)
    for line in (
        "| directed 100 B | ≥ 1.2 × forwarder | 0.50 × | missed |",
        "| directed 100 B | ≥ 2 × gone | – | not measured |",
        "| directed 100 B, /s | 1,600 | 3,200 (0.50 ×) |",
        "| memory, MB | 70.0 | 0.0 |",
        "| directed 100 B | 1.2 + 300 + 2.0 |",
        "| sessions | 0 | 1,000 |",
        "| zmqbus, MB | 30.0 | 90.0 |",
        "- nats: nats-server not installed",
        "- pool: it broke",
    ):
        assert line in page.splitlines(), line


def test_each_row_of_a_table_has_as_many_cells_as_its_head(results):
    cells = 0
    for line in report.markdown(results).splitlines():
        if not line.startswith("|"):
            cells = 0
        elif not cells:
            cells = line.count("|")
        assert not cells or line.count("|") == cells


@pytest.mark.parametrize(
    ("number", "unit", "told"),
    [(None, "/s", "–"), (12_345.6, "/s", "12,346"), (12.34, "/s", "12.3"), (1.234, "s", "1.23"), (0.456, "%", "0.46")],
)
def test_as_many_digits_as_mean_something(number, unit, told):
    assert report.value(number, unit) == told


def test_ratios():
    assert [report.ratio(number) for number in (None, 0.123, 9.99, 1234.0)] == ["", "0.12 ×", "9.99 ×", "1,234 ×"]
