"""A bus of its own for each test that asks for `connect`: as many in-process programs on it as the test opens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zmqbus import protocol
from zmqbus.client.bus import Bus
from zmqbus.client.bus import connect as open_bus
from zmqbus.client.command import observer
from zmqbus.settings import load


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
            health = bus.request(protocol.Status)
        assert isinstance(health, protocol.Health)
        return dict(health.figures)

    return ask
