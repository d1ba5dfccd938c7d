"""The files that identify a broker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zmqbus.process import Process, process_of, this_machine
from zmqbus.settings import Paths
from zmqbus.system import network, pidfile
from zmqbus.system.network import Network

PORT = 9473
ME = process_of(os.getpid())
#: A process of a container on this kernel.
ELSEWHERE = Process(4711, "1", *this_machine().place()._replace(namespace="4026539999"))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(str(tmp_path))


def put(paths: Paths, port: int, pid: str, process: str | None) -> None:
    Path(paths.pid_file(port)).write_text(pid)
    if process is not None:
        Path(paths.process_file(port)).write_text(process)


def test_round_trip(paths: Paths) -> None:
    assert pidfile.read(paths, PORT) is None
    pidfile.write(paths, PORT)
    assert Path(paths.pid_file(PORT)).read_text() == str(os.getpid()), "the contract: the pid as text"
    served = pidfile.read(paths, PORT)
    assert served == pidfile.Served(PORT, os.getpid(), ME, network.here())
    assert served.may_live
    assert list(pidfile.read_all(paths)) == [(PORT, served)]
    pidfile.remove(paths, PORT)
    pidfile.remove(paths, PORT)
    assert os.listdir(paths.data_dir) == ["network"]
    assert pidfile.last_network(paths) == (network.here(), not network.has_only_loopback())


def test_new_broker_removes_files_of_killed_ones(paths: Paths) -> None:
    put(paths, 9999, "4711", ELSEWHERE.text + " 1:2")
    pidfile.write(paths, PORT)
    assert [port for port, _ in pidfile.read_all(paths)] == [PORT]
    assert not os.path.exists(paths.process_file(9999))


def test_broker_of_another_pid_namespace_may_live(paths: Paths) -> None:
    put(paths, PORT, "4711", ELSEWHERE.text + " 1:2")
    served = pidfile.read(paths, PORT)
    assert served == pidfile.Served(PORT, 4711, ELSEWHERE, Network("1", "2"))
    assert served.may_live


def test_reused_pid_is_not_the_broker(paths: Paths) -> None:
    put(paths, PORT, str(os.getpid()), ME._replace(started="0").text + " 1:2")
    served = pidfile.read(paths, PORT)
    assert served is not None and not served.may_live


@pytest.mark.parametrize("text", [None, "", "junk", "4711:1", "é 1:2"])
def test_pid_without_its_process(paths: Paths, text: str | None) -> None:
    """Of an earlier release, or of another broker than the one of the pid file: the pid alone is left."""
    put(paths, PORT, str(os.getpid()), text)
    served = pidfile.read(paths, PORT)
    assert served == pidfile.Served(PORT, os.getpid(), None, Network())
    assert served.may_live


@pytest.mark.parametrize("pid", ["", "junk", "0", "-1", "é"])
def test_damaged_pid_file(paths: Paths, pid: str) -> None:
    put(paths, PORT, pid, ME.text)
    assert pidfile.read(paths, PORT) is None
    assert list(pidfile.read_all(paths)) == [(PORT, None)]


def test_impossible_pid(paths: Paths) -> None:
    put(paths, PORT, "9" * 30, None)
    served = pidfile.read(paths, PORT)
    assert served is not None and not served.may_live
