"""Finding the broker by its files, and the reasons for which it cannot be reached."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zmqbus.broker.shell import daemon
from zmqbus.client import locate
from zmqbus.errors import BrokerUnavailable
from zmqbus.process import Process
from zmqbus.settings import Settings, load
from zmqbus.system import network
from zmqbus.system.network import Network, Port


@pytest.fixture
def settings(data_dir: Path, free_port: int) -> Settings:
    return load({"port": str(free_port)})


def test_no_pid_file_means_no_broker(settings):
    assert locate.broker_pid(settings) is None


@pytest.mark.parametrize("content", ["", "junk", "é"])
def test_damaged_pid_file_means_no_broker(settings, content):
    Path(settings.paths.pid_file(settings.port)).write_text(content)
    assert locate.broker_pid(settings) is None


def test_living_process_is_a_broker_only_if_it_holds_the_lock(settings):
    """Pids are reused."""
    Path(settings.paths.pid_file(settings.port)).write_text(str(os.getpid()))
    assert locate.broker_pid(settings) is None
    lock = daemon.elect(settings)
    assert locate.broker_pid(settings) == os.getpid()
    os.close(lock)
    assert locate.broker_pid(settings) is None


def serve_elsewhere(settings: Settings, place: Network) -> None:
    Path(settings.paths.pid_file(settings.port)).write_text("4711")
    text = f"{Process(4711, '1', '4026539999', 'boot', 'machine').text} {place.text}"
    Path(settings.paths.process_file(settings.port)).write_text(text)


@pytest.mark.parametrize(
    ("boot", "where"), [("this", "in another network than this shell"), ("other", "on another machine")]
)
@pytest.mark.parametrize("found", Port)
def test_broker_in_another_network(settings, monkeypatch, boot, where, found):
    monkeypatch.setattr(network, "here", lambda: Network("1", "this"))
    monkeypatch.setattr(network, "try_port", lambda port: found)
    serve_elsewhere(settings, Network("2", boot))
    if found is Port.OPEN:  # somebody forwards it
        locate.check_reach(settings, locate.find_broker(settings))
        return
    with pytest.raises(BrokerUnavailable, match=where) as caught:
        locate.check_reach(settings, locate.find_broker(settings))
    assert "pid 4711 there" in str(caught.value) and "INTER_SESSION_DATA_DIR" in str(caught.value)


@pytest.mark.parametrize("served", [Network("1", "this"), Network()])
def test_broker_in_this_network_is_not_tried(settings, monkeypatch, served):
    monkeypatch.setattr(network, "here", lambda: Network("1", "this"))
    monkeypatch.setattr(network, "try_port", lambda port: pytest.fail("each command would pay for it"))
    locate.check_reach(settings, locate.find_broker(settings))
    serve_elsewhere(settings, served)
    locate.check_reach(settings, locate.find_broker(settings))
