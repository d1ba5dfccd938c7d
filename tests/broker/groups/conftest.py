"""Fixtures of the tests of requests: a simulated bus, a caller, and two workers."""

from __future__ import annotations

import pytest

from tests.broker.groups.steps import worker
from zmqbus.testing import SimClient, SimNet
from zmqbus.wire.verbs import Role


@pytest.fixture
def net() -> SimNet:
    return SimNet()


@pytest.fixture
def caller(net: SimNet) -> SimClient:
    return net.session("caller", role=Role.PROGRAM)


@pytest.fixture
def crew(net: SimNet, caller: SimClient) -> list[SimClient]:
    return [worker(net, "one"), worker(net, "two")]
