"""A bus of its own for each test that asks for `connect`: as many in-process programs on it as the test opens."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zmqbus.client import launch
from zmqbus.client.bus import Bus
from zmqbus.client.bus import connect as open_bus
from zmqbus.client.oneshot import observer
from zmqbus.settings import load
from zmqbus.wire import verbs


@pytest.fixture
def port(data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The port that the environment names, to this process and to those that it starts."""
    monkeypatch.setenv("INTER_SESSION_PORT", str(free_port))
    return free_port


@pytest.fixture
def connect(port: int) -> Iterator[Callable[..., Bus]]:
    """`zmqbus.connect`; what it has opened is closed when the test ends, and no thread of it may be left."""
    opened: list[Bus] = []

    def connect(*args: Any, **options: Any) -> Bus:
        opened.append(open_bus(*args, **options))
        return opened[-1]

    yield connect
    for bus in opened:
        bus.close()
    left = [thread for thread in threading.enumerate() if thread.name.startswith("zmqbus")]
    assert not left, left


@pytest.fixture
def figures(port: int) -> Callable[[], dict[str, Any]]:
    """What `zmqbus broker --status` tells."""

    def ask() -> dict[str, Any]:
        with observer(load({})) as bus:
            health = bus.request(verbs.Status)
        assert isinstance(health, verbs.Health)
        return dict(health.figures)

    return ask


@pytest.fixture
def broker_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes `launch` start a shell script; `$report` is the descriptor to report on."""

    def say(script: str) -> None:
        path = tmp_path / "python"
        find = 'for a; do case "$a" in --report=*) report="${a#--report=}";; esac; done\n'
        path.write_text(f"#!/bin/sh\n{find}{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return say


class Starts:
    """The starts of brokers in this process, which the test can hold up."""

    def __init__(self, go: Path) -> None:
        self._go = go

    def hold(self) -> None:
        """From now on no broker comes up."""
        self._go.unlink()

    def let(self) -> None:
        """Those that were started come up, and so do later ones."""
        self._go.touch()


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starts]:
    """The starts of brokers, to be held up."""
    starts = Starts(tmp_path / "go")
    path = tmp_path / "slow-python"
    path.write_text(f'#!/bin/sh\nwhile [ ! -e {starts._go} ]; do sleep 0.02; done\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    starts.let()
    monkeypatch.setattr(sys, "executable", str(path))
    # One is started, and nobody gives it up.
    monkeypatch.setattr(launch, "TURN_S", 3600.0)
    monkeypatch.setattr(launch, "LAUNCH_S", 3600.0)
    yield starts
    starts.let()
