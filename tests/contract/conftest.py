"""The two worlds as fixtures: a test that takes `world` runs in both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.real import RealWorld
from tests.contract.simulated import SimWorld
from tests.contract.worlds import World
from zmqbus.settings import load


def _world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "sim":
        yield SimWorld()
        return
    request.getfixturevalue("data_dir")
    port = request.getfixturevalue("free_port")
    world = RealWorld(load({"port": str(port)}), request.getfixturevalue("monkeypatch"))
    try:
        yield world
    finally:
        world.close()


@pytest.fixture(params=["sim", pytest.param("real", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Each of the two worlds. (The real one starts a broker for each test: a minute for all of them.)"""
    yield from _world(request)


@pytest.fixture
def sim() -> SimWorld:
    """The simulated world alone, for tests that let minutes or days pass."""
    return SimWorld()
