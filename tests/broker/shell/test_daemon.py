"""Election, pid file and report of a broker, within this process.

`tests/real/test_broker_life.py` has the tests with real processes (thirty at once, detachment, idleness).
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zmqbus.broker.shell import daemon
from zmqbus.errors import BrokerUnavailable, Unauthorized, ZmqbusError
from zmqbus.process import Process, this_machine
from zmqbus.settings import Settings, load
from zmqbus.system import network, pidfile


@pytest.fixture
def settings(data_dir: Path, free_port: int) -> Settings:
    return load({"port": str(free_port)})


def serve(settings: Settings, port: int, content: str | None = None) -> Path:
    """Writes a pid file for `port`, of this process unless `content` is given."""
    path = Path(settings.paths.pid_file(port))
    path.write_text(str(os.getpid()) if content is None else content)
    return path


def test_the_first_candidate_holds_the_lock_until_it_closes_it(settings):
    lock = daemon.elect(settings)
    serve(settings, settings.port)
    with pytest.raises(daemon.BrokerExists):
        daemon.elect(settings)
    os.close(lock)
    os.close(daemon.elect(settings))


def test_the_lock_is_not_inherited(settings):
    lock = daemon.elect(settings)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False):
        os.close(lock)
        os.close(daemon.elect(settings))


def test_a_broker_on_another_port_is_named_with_the_remedy(settings, new_port):
    lock = daemon.elect(settings)
    other = new_port()
    serve(settings, other)
    with pytest.raises(BrokerUnavailable, match=f"--stop --port {other}") as caught:
        daemon.elect(settings)
    assert not isinstance(caught.value, daemon.BrokerExists)
    os.close(lock)


def test_a_candidate_waits_for_the_pid_file_of_the_holder(settings):
    lock = daemon.elect(settings)
    errors: list[ZmqbusError] = []

    def elect() -> None:
        try:
            os.close(daemon.elect(settings))
        except ZmqbusError as error:
            errors.append(error)

    candidate = threading.Thread(target=elect)
    candidate.start()
    serve(settings, settings.port)
    candidate.join()
    assert isinstance(errors[0], daemon.BrokerExists)
    os.close(lock)


def test_a_waiting_candidate_succeeds_the_holder(settings):
    lock = daemon.elect(settings)
    won: list[int] = []
    candidate = threading.Thread(target=lambda: won.append(daemon.elect(settings)))
    candidate.start()
    os.close(lock)
    candidate.join()
    os.close(won[0])


def test_a_candidate_stops_waiting_for_a_holder_without_pid_file(settings, monkeypatch):
    monkeypatch.setattr(daemon, "ELECTION_S", 0.05)
    lock = daemon.elect(settings)
    with pytest.raises(daemon.BrokerExists):
        daemon.elect(settings)
    os.close(lock)


def test_a_shared_lock_only_delays_the_election(settings):
    """Clients take a shared lock for microseconds, to see whether there is a broker."""
    looker = os.open(settings.data_dir, os.O_RDONLY)
    fcntl.flock(looker, fcntl.LOCK_SH)
    threading.Timer(0.05, os.close, (looker,)).start()
    os.close(daemon.elect(settings))


@pytest.mark.parametrize("content", ["", "junk", "9" * 30, "0", "-1", "é"])
def test_a_damaged_pid_file_is_ignored(settings, content):
    serve(settings, settings.port, content)
    assert daemon._served(settings) == []


def test_a_data_directory_that_others_can_read_is_refused(settings):
    os.chmod(settings.data_dir, 0o755)
    with pytest.raises(Unauthorized, match="chmod 700"):
        daemon.elect(settings)


# --- the pid file


def test_the_pid_file_is_private_and_written_atomically(settings):
    broker = daemon.ElectedBroker(settings, -1)
    os.umask(umask := os.umask(0))
    broker._port = settings.port
    pidfile.write(settings.paths, settings.port)
    os.umask(umask)
    path = Path(settings.paths.pid_file(settings.port))
    assert path.read_text() == str(os.getpid())
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.glob("*.pid*")] == [path.name]
    assert [p.stat().st_mode & 0o777 for p in path.parent.iterdir() if p.is_file()] == [0o600] * 3
    broker._remove_pid()
    assert not path.exists()


def test_the_pid_file_of_another_process_stays(settings):
    path = serve(settings, settings.port, "1")
    broker = daemon.ElectedBroker(settings, -1)
    broker._port = settings.port
    broker._remove_pid()
    assert path.read_text() == "1"


@pytest.mark.parametrize("served", [True, False])
def test_a_missing_pid_file_is_no_error(settings, served):
    broker = daemon.ElectedBroker(settings, -1)
    broker._port = settings.port if served else 0
    broker._remove_pid()


# --- the report


def test_the_report_is_one_line(settings):
    reader, writer = os.pipe()
    daemon._report(writer, "ready")
    assert os.read(reader, 100) == b"ready\n"
    assert os.read(reader, 100) == b""
    os.close(reader)


def test_a_closed_report_pipe_is_no_error(settings):
    reader, writer = os.pipe()
    os.close(reader)
    daemon._report(writer, "ready")
    daemon._report(None, "ready")


def test_unknown_options_are_refused(capsys):
    assert daemon.main(["--port=4000", "--colour=red"]) == 2
    output = capsys.readouterr()
    assert "--report=" in output.err and not output.out


# --- sandboxes


@pytest.fixture
def closed(monkeypatch):
    monkeypatch.setattr(network, "refusal_reason", lambda environ, served, served_open: f"{served.text} {served_open}")


def test_a_broker_in_an_unreachable_network_releases_the_lock(settings, closed):
    pidfile.write(settings.paths, settings.port)
    pidfile.remove(settings.paths, settings.port)
    last = f"{network.here().text} {not network.has_only_loopback()}"
    with pytest.raises(BrokerUnavailable, match="INTER_SESSION_LOOPBACK_ONLY=1") as caught:
        daemon._serve(settings, foreground=True)
    assert last in str(caught.value)
    os.close(daemon.elect(settings))


def test_the_setting_allows_an_unreachable_network(settings, closed):
    daemon.check_network(settings._replace(loopback_only=True))


def test_a_broker_of_another_pid_namespace_counts_as_alive(settings):
    lock = daemon.elect(settings)
    serve(settings, settings.port, "4194000")
    elsewhere = Process(4194000, "1", *this_machine().place()._replace(namespace="4026539999"))
    Path(settings.paths.process_file(settings.port)).write_text(f"{elsewhere.text} 1:2")
    with pytest.raises(daemon.BrokerExists):
        daemon.elect(settings)
    os.close(lock)
