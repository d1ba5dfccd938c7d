"""Which network this is, and whether a broker may be started in it. With real namespaces: tests/real/test_where.py."""

from __future__ import annotations

import errno
import socket
import sys

import pytest

from zmqbus.system import network
from zmqbus.system.network import Network, Port, refusal_reason

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ME = Network("4026531840", "boot")
OTHER = Network("4026539999", "boot")


def test_networks_differ_only_where_both_are_known() -> None:
    assert ME.differs(OTHER) and ME.differs(ME._replace(boot="another"))
    assert not ME.differs(ME)
    for unknown in (Network(), Network("", "boot")):
        assert not ME.differs(unknown) and not unknown.differs(ME) and not unknown.differs(unknown)


@pytest.mark.parametrize("one", [ME, Network(), Network("", "?")])
def test_text_round_trip(one: Network) -> None:
    assert Network.parse(one.text) == one


@LINUX
def test_this_network() -> None:
    assert network.here().namespace.isdigit() and network.here().boot
    assert network.here() == network.here()


# --- whether a broker may be started


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A network with nothing but a loopback, of which nothing else is known."""
    monkeypatch.setattr(network, "here", lambda: ME)
    monkeypatch.setattr(network, "has_only_loopback", lambda: True)
    monkeypatch.setattr(network, "_has_one_id", lambda: False)
    monkeypatch.setattr(network, "_is_cut_off", lambda me: False)
    return monkeypatch


def test_loopback_alone_closes_nothing(closed: pytest.MonkeyPatch) -> None:
    """A machine without a network card, a container without network: all sessions live in it."""
    assert refusal_reason({}, Network(), served_open=False) == ""
    assert refusal_reason({}, OTHER, served_open=False) == "", "the same container started again"


def test_signs_of_a_sandbox_close_the_network(closed: pytest.MonkeyPatch) -> None:
    assert "the last broker" in refusal_reason({}, OTHER, served_open=True)
    for variable in ("SANDBOX_RUNTIME", "CODEX_SANDBOX_NETWORK_DISABLED"):
        assert variable in refusal_reason({variable: "1"}, Network(), served_open=False)
        assert refusal_reason({variable: ""}, Network(), served_open=False) == ""
    closed.setattr(network, "_is_cut_off", lambda me: True)
    assert "the processes that have started this one" in refusal_reason({}, Network(), served_open=False)
    closed.setattr(network, "_has_one_id", lambda: True)
    assert "one user id" in refusal_reason({}, Network(), served_open=False)


def test_network_that_a_broker_has_served_before_is_open(closed: pytest.MonkeyPatch) -> None:
    closed.setattr(network, "_is_cut_off", lambda me: True)
    assert refusal_reason({"SANDBOX_RUNTIME": "1"}, ME, served_open=True) == ""


def test_network_with_a_way_out_is_open(closed: pytest.MonkeyPatch) -> None:
    closed.setattr(network, "has_only_loopback", lambda: False)
    closed.setattr(network, "_is_cut_off", lambda me: True)
    assert refusal_reason({"SANDBOX_RUNTIME": "1"}, OTHER, served_open=True) == ""


def test_system_without_network_namespaces_is_open(closed: pytest.MonkeyPatch) -> None:
    closed.setattr(network, "here", Network)
    assert refusal_reason({"SANDBOX_RUNTIME": "1"}, Network(), served_open=True) == ""


@LINUX
def test_processes_above_this_one_are_in_its_network() -> None:
    assert not network._is_cut_off(network.here())
    assert network._is_cut_off(Network("1", "boot"))


# --- the port


def test_open_and_closed_ports(new_port: object) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert network.try_port(port) is Port.OPEN
    assert network.try_port(port) is Port.REFUSED


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (errno.EPERM, Port.FORBIDDEN),
        (errno.EACCES, Port.FORBIDDEN),
        (errno.ENETUNREACH, Port.UNREACHABLE),
        (errno.EADDRNOTAVAIL, Port.UNREACHABLE),
        (errno.ECONNREFUSED, Port.REFUSED),
        (errno.ETIMEDOUT, Port.OPEN),
    ],
)
@pytest.mark.parametrize("call", ["connect", "socket"])
def test_errors_of_a_sandbox(monkeypatch: pytest.MonkeyPatch, error: int, found: Port, call: str) -> None:
    class Forbidding(socket.socket):
        def __init__(self, *args: int) -> None:
            if call == "socket":
                raise OSError(error, "no")
            super().__init__(*args)

        def connect(self, address: object) -> None:
            raise OSError(error, "no")

    monkeypatch.setattr(socket, "socket", Forbidding)
    assert network.try_port(9) is found
