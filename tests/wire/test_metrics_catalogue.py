"""What figures there are, how fast they rise, and that a collector of metrics understands them."""

from __future__ import annotations

import re

import pytest

from zmqbus.wire.metrics_catalogue import FIGURES, PROCESS, about, counters, prometheus, rates

FOUND = {
    "release": "0.1.0",
    "protocol": 1,
    "epoch": 'ep"och\\',
    "uptime_s": 12,
    "sessions": 3,
    "accepted": 100,
    "refused_rate_limited": 2,
    "refused_unknown_peer": 1,
    "memory_bytes": 30_000_000,
    "cpu_s": 1.5,
    "notices": "something\nwas wrong",
    "of_another_release": 7,
}

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABELS = r'\{(?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*",?)*\}'
SAMPLE = re.compile(rf"({NAME})({LABELS})? (-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)(?: [0-9]+)?")


def read(text: str) -> dict[str, tuple[str, dict[str, float]]]:
    """A strict reader of the text format 0.0.4: name → type, and labels → value. Asserts what a collector would."""
    assert text.endswith("\n")
    found: dict[str, tuple[str, dict[str, float]]] = {}
    helped: str | None = None
    typed: str | None = None
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            match = re.fullmatch(rf"# HELP ({NAME}) ((?:[^\\\n]|\\[\\n])+)", line)
            assert match and match[1] not in found, line
            helped = match[1]
        elif line.startswith("# TYPE "):
            match = re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge)", line)
            assert match and match[1] == helped and match[1] not in found, line
            assert (match[2] == "counter") == match[1].endswith("_total"), line
            typed = match[1]
            found[typed] = match[2], {}
        else:
            match = SAMPLE.fullmatch(line)
            assert match and match[1] == typed == helped, line
            samples = found[match[1]][1]
            assert (match[2] or "") not in samples, line
            samples[match[2] or ""] = float(match[3])
    return found


def test_output_is_valid_for_a_collector() -> None:
    found = read(prometheus(FOUND))
    assert found["zmqbus_up"] == ("gauge", {"": 1})
    assert found["zmqbus_accepted_total"] == ("counter", {"": 100})
    assert found["zmqbus_uptime_seconds"] == ("gauge", {"": 12})
    assert found["zmqbus_cpu_seconds_total"] == ("counter", {"": 1.5})
    assert found["zmqbus_memory_bytes"] == ("gauge", {"": 30_000_000})
    assert found["zmqbus_refused_total"] == (
        "counter",
        {'{code="rate_limited"}': 2, '{code="unknown_peer"}': 1},
    )
    assert found["zmqbus_broker_info"] == (
        "gauge",
        {'{release="0.1.0",protocol="1",epoch="ep\\"och\\\\"}': 1},
    )
    assert not any("notices" in name or "another" in name for name in found)


def test_output_is_parsed_by_the_prometheus_library() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    families = {family.name: family for family in parser.text_string_to_metric_families(prometheus(FOUND))}
    assert families["zmqbus_accepted"].type == "counter"
    assert families["zmqbus_accepted"].samples[0].value == 100
    info = families["zmqbus_broker_info"].samples[0]
    assert info.labels == {"release": "0.1.0", "protocol": "1", "epoch": 'ep"och\\'}


def test_missing_broker_is_a_metric() -> None:
    assert read(prometheus(None)) == {"zmqbus_up": ("gauge", {"": 0})}


def test_rates() -> None:
    later = {**FOUND, "accepted": 150, "sessions": 9, "refused_rate_limited": 4}
    found = rates(FOUND, later, 2.0)
    assert found["accepted"] == 25
    assert found["refused_rate_limited"] == 1
    assert "sessions" not in found


def test_new_broker_has_no_rates() -> None:
    assert rates(FOUND, {**FOUND, "epoch": "another"}, 2.0) == {}
    assert rates(FOUND, FOUND, 0.0) == {}


def test_counters() -> None:
    assert counters(FOUND) == {"accepted": 100, "refused_rate_limited": 2, "refused_unknown_peer": 1, "cpu_s": 1.5}


def test_each_metric_has_a_help_text() -> None:
    for name, figure in {**FIGURES, **PROCESS}.items():
        assert re.fullmatch("[a-z_]+", name)
        assert figure.says and not figure.says.endswith(".")
        assert about(name) == figure
    assert about("of_another_release") is None
    assert about("refused_x") == ("counter", "refusals with the code x")
