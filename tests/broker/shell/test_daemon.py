"""The election and the elected process, with the lock and the files but without a detached process.

What takes real processes (thirty at once, detachment, idleness) is in tests/real/test_broker_life.py.
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
    """A pid file for `port`, of this process unless `content` says something else."""
    path = Path(settings.paths.pid_file(port))
    path.write_text(str(os.getpid()) if content is None else content)
    return path


def test_the_first_one_wins_and_holds_the_lock_until_it_is_closed(settings):
    lock = daemon.elect(settings)
    serve(settings, settings.port)
    with pytest.raises(daemon.Elsewhere):
        daemon.elect(settings)
    os.close(lock)
    os.close(daemon.elect(settings))


def test_the_lock_is_not_inherited(settings):
    lock = daemon.elect(settings)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False):
        os.close(lock)
        os.close(daemon.elect(settings))


def test_a_broker_on_another_port_is_named_with_what_to_do(settings, new_port):
    lock = daemon.elect(settings)
    other = new_port()
    serve(settings, other)
    with pytest.raises(BrokerUnavailable, match=f"--stop --port {other}") as caught:
        daemon.elect(settings)
    assert not isinstance(caught.value, daemon.Elsewhere)
    os.close(lock)


def test_a_lock_without_a_pid_file_is_watched_until_there_is_one(settings):
    """Its holder is about to serve: the candidate leaves as soon as it knows where."""
    lock = daemon.elect(settings)
    errors: list[ZmqbusError] = []

    def stand() -> None:
        try:
            os.close(daemon.elect(settings))
        except ZmqbusError as error:
            errors.append(error)

    candidate = threading.Thread(target=stand)
    candidate.start()
    serve(settings, settings.port)
    candidate.join()
    assert isinstance(errors[0], daemon.Elsewhere)
    os.close(lock)


def test_a_holder_that_ends_makes_room_for_the_candidate(settings):
    lock = daemon.elect(settings)
    won: list[int] = []
    candidate = threading.Thread(target=lambda: won.append(daemon.elect(settings)))
    candidate.start()
    os.close(lock)
    candidate.join()
    os.close(won[0])


def test_a_lock_whose_holder_never_serves_is_given_up_on(settings, monkeypatch):
    monkeypatch.setattr(daemon, "ELECTION_S", 0.05)
    lock = daemon.elect(settings)
    with pytest.raises(daemon.Elsewhere):
        daemon.elect(settings)
    os.close(lock)


def test_somebody_who_only_looks_keeps_nobody_from_being_elected(settings):
    """Clients look at the lock with a shared one, for microseconds."""
    looker = os.open(settings.data_dir, os.O_RDONLY)
    fcntl.flock(looker, fcntl.LOCK_SH)
    threading.Timer(0.05, os.close, (looker,)).start()
    os.close(daemon.elect(settings))


@pytest.mark.parametrize("content", ["", "junk", "9" * 30, "0", "-1", "é"])
def test_a_damaged_pid_file_does_not_count(settings, content):
    serve(settings, settings.port, content)
    assert daemon._served(settings) == []


def test_a_data_directory_that_others_can_read_is_refused(settings):
    os.chmod(settings.data_dir, 0o755)
    with pytest.raises(Unauthorized, match="chmod 700"):
        daemon.elect(settings)


# --- the pid file


def test_the_pid_file_is_private_and_whole(settings):
    holder = daemon.Lockholder(settings, -1)
    os.umask(umask := os.umask(0))
    holder._port = settings.port
    pidfile.write(settings.paths, settings.port)
    os.umask(umask)
    path = Path(settings.paths.pid_file(settings.port))
    assert path.read_text() == str(os.getpid())
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.glob("*.pid*")] == [path.name]
    assert [p.stat().st_mode & 0o777 for p in path.parent.iterdir() if p.is_file()] == [0o600] * 3
    holder._remove_pid()
    assert not path.exists()


def test_a_pid_file_of_another_is_left_alone(settings):
    path = serve(settings, settings.port, "1")
    holder = daemon.Lockholder(settings, -1)
    holder._port = settings.port
    holder._remove_pid()
    assert path.read_text() == "1"


@pytest.mark.parametrize("served", [True, False])
def test_a_pid_file_that_is_gone_is_no_error(settings, served):
    holder = daemon.Lockholder(settings, -1)
    holder._port = settings.port if served else 0
    holder._remove_pid()


# --- what the starter hears


def test_the_report_is_a_line_and_the_end(settings):
    reader, writer = os.pipe()
    daemon._report(writer, "ready")
    assert os.read(reader, 100) == b"ready\n"
    assert os.read(reader, 100) == b""
    os.close(reader)


def test_a_starter_that_has_gone_is_no_error(settings):
    reader, writer = os.pipe()
    os.close(reader)
    daemon._report(writer, "ready")
    daemon._report(None, "ready")


def test_words_that_it_does_not_know_are_named(capsys):
    assert daemon.main(["--port=4000", "--colour=red"]) == 2
    said = capsys.readouterr()
    assert "--report=" in said.err and not said.out


# --- a network that is closed


@pytest.fixture
def closed(monkeypatch):
    monkeypatch.setattr(network, "why_closed", lambda environ, served, served_open: f"{served.text} {served_open}")


def test_a_broker_does_not_keep_the_lock_of_a_network_that_nobody_else_can_reach(settings, closed):
    pidfile.write(settings.paths, settings.port)
    pidfile.remove(settings.paths, settings.port)
    last = f"{network.here().text} {not network.has_only_loopback()}"
    with pytest.raises(BrokerUnavailable, match="INTER_SESSION_LOOPBACK_ONLY=1") as caught:
        daemon._serve(settings, foreground=True)
    assert last in str(caught.value)
    os.close(daemon.elect(settings))


def test_the_setting_starts_it_all_the_same(settings, closed):
    daemon.check_network(settings._replace(loopback_only=True))


def test_a_broker_of_another_pid_namespace_serves_its_port(settings):
    lock = daemon.elect(settings)
    serve(settings, settings.port, "4194000")
    elsewhere = Process(4194000, "1", *this_machine().place()._replace(namespace="4026539999"))
    Path(settings.paths.process_file(settings.port)).write_text(f"{elsewhere.text} 1:2")
    with pytest.raises(daemon.Elsewhere):
        daemon.elect(settings)
    os.close(lock)
