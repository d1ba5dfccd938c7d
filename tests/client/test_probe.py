"""A look at the broker that starts none."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import zmqbus
from tests.conftest import ROOT, RunBin
from zmqbus.client.launch import broker_pid
from zmqbus.client.probe import Probe
from zmqbus.errors import BrokerUnavailable, ZmqbusError
from zmqbus.security.keys import client_keys
from zmqbus.settings import Settings, load

PATIENCE_S = 90.0


def probe(settings: Settings, patience_s: float) -> dict[str, Any]:
    with Probe(settings, patience_s) as found:
        assert repr(found).startswith(f"<Probe of port {settings.port}: ")
        return found.figures()


@pytest.fixture
def settings(data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("INTER_SESSION_PORT", str(free_port))
    client_keys(str(data_dir))
    return load()


def test_it_tells_what_the_broker_tells(settings: Settings, run_bin: RunBin) -> None:
    run_bin("zmqbus", "broker")
    figures = probe(settings, 90.0)
    assert figures["sessions"] == 0
    assert figures["connections"] == 1


def test_it_tells_who_is_there(settings: Settings) -> None:
    """Also where a list comes in pages: this broker's have two rows."""
    code = (
        "import zmqbus.wire.verbs; zmqbus.wire.verbs.LIST_PAGE = 2; from zmqbus.cli import broker; "
        "broker.main(['--foreground'])"
    )
    broker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while broker_pid(settings) != broker.pid:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        with (
            zmqbus.connect("one"),
            zmqbus.connect("two"),
            zmqbus.connect("three"),
            Probe(settings, PATIENCE_S) as found,
        ):
            assert sorted(session.name for session in found.sessions()) == ["one", "three", "two"]
            assert found.figures()["sessions"] == 3
        with Probe(settings, PATIENCE_S) as found:
            assert found.sessions() == []
            assert len(found.sessions(everyone=True)) == 3
    finally:
        broker.terminate()
        broker.wait(PATIENCE_S)


def test_no_broker(settings: Settings) -> None:
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        probe(settings, 0.2)
    assert broker_pid(settings) is None


def test_something_that_is_no_broker(settings: Settings) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", settings.port))
        held.listen()
        with pytest.raises(BrokerUnavailable, match=r"does not answer within 0\.2 s"):
            probe(settings, 0.2)


def test_a_broker_that_is_stopped(settings: Settings, run_bin: RunBin) -> None:
    run_bin("zmqbus", "broker")
    pid = broker_pid(settings)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            probe(settings, 0.2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_keys_that_are_damaged(settings: Settings) -> None:
    (Path(settings.paths.keys) / "client.key_secret").write_text("rubbish")
    with pytest.raises(ZmqbusError, match="holds no public key"):
        probe(settings, 0.2)
