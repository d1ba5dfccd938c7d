"""`zmqbus stats`: metrics of a real broker, for people, programs and collectors."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import pytest

from tests.real.conftest import DEADLINE_S, Bus, wait_until
from tests.wire.test_metrics_catalogue import read

pytestmark = pytest.mark.slow


def test_no_broker(bus: Bus) -> None:
    done = bus.zmqbus("stats")
    assert (done.returncode, done.stdout) == (1, f"no broker runs on port {bus.port}\n")
    done = bus.zmqbus("stats", "--json")
    assert (done.returncode, done.stdout) == (1, "null\n")
    done = bus.zmqbus("stats", "--prometheus")
    assert (done.returncode, read(done.stdout)) == (0, {"zmqbus_up": ("gauge", {"": 0})})
    assert bus.broker_pid() is None, "asking starts none"


def test_figures(bus: Bus) -> None:
    auth = bus.listener("auth")
    bus.deliver("auth", "hello")
    auth.wait_message("hello")
    refused = bus.send("--to", "nobody", "--text", "hello", "--as", "script")
    assert refused.returncode == 1

    def look() -> Any:
        return json.loads(bus.zmqbus("stats", "--json").stdout)

    # The acknowledgement reaches the broker after the line.
    found = wait_until(lambda: (now := look()) and now["delivered"] and now, "it is delivered")
    assert (found["pid"], found["port"]) == (bus.broker_pid(), bus.port)
    assert (found["sessions"], found["accepted"], found["delivered"], found["accepted_bytes"]) == (1, 1, 1, 5)
    assert found["refused_unknown_peer"] == 1
    assert found["memory_bytes"] > 1_000_000
    assert found["open_files"] > 3
    metrics = read(bus.zmqbus("stats", "--prometheus").stdout)
    assert metrics["zmqbus_up"] == ("gauge", {"": 1})
    assert metrics["zmqbus_delivered_total"] == ("counter", {"": 1})
    assert metrics["zmqbus_refused_total"] == ("counter", {'{code="unknown_peer"}': 1})
    lines = bus.zmqbus("stats").stdout.splitlines()
    assert lines[0] == f"broker on port {bus.port}, pid {bus.broker_pid()}; rates since its start"
    rows = {line.split()[0]: line.split()[1] for line in lines[1:]}
    assert rows["accepted"] == "1"
    assert set(found) - {"pid", "port"} == set(rows)


def test_watching_across_a_broker_restart(bus: Bus) -> None:
    process = bus.popen("zmqbus", "stats", "--watch", "0.2", "--json", owner=bus.stranger)
    stream = process.stdout
    assert stream is not None

    def look() -> Any:
        return json.loads(stream.readline())

    assert look() is None
    assert bus.zmqbus("broker").returncode == 0
    first = wait_until(look, "a broker")
    second = wait_until(lambda: (found := look()) and found["rates"] and found, "two looks, one after the other")
    assert first["epoch"] == second["epoch"]
    assert second["rates"]["accepted"] == 0
    assert bus.zmqbus("broker", "--stop").returncode == 0
    wait_until(lambda: look() is None, "it has gone")
    assert bus.zmqbus("broker").returncode == 0
    assert wait_until(look, "another broker")["epoch"] != first["epoch"]
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 130


def test_watching_for_people(bus: Bus) -> None:
    process = bus.popen("zmqbus", "stats", "--watch", "0.2", owner=bus.stranger)
    stream = process.stdout
    assert stream is not None
    assert stream.readline() == f"no broker runs on port {bus.port}\n".encode()
    bus.zmqbus("broker")
    wait_until(lambda: re.fullmatch(rb"broker on port \d+, pid \d+\n", stream.readline()), "rates of two looks")
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 130


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--watch", "x"), "error: usage: argument --watch: 'x' is not a number of seconds from 0.1 to 86,400"),
        (("--watch", "0"), "'0' is not a number"),
        (("--watch", "nan"), "'nan' is not a number"),
        (("--watch", "1", "--prometheus"), "does not go with --watch"),
        (("--json", "--prometheus"), "not allowed with"),
    ],
)
def test_usage(bus: Bus, args: tuple[str, ...], message: str) -> None:
    done = bus.zmqbus("stats", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
