"""Starting a broker, with a stand-in for the interpreter that reports as a broker would."""

from __future__ import annotations

import fcntl
import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from zmqbus.client import launch
from zmqbus.errors import BrokerError, BrokerUnavailable, PortHeld, Unauthorized
from zmqbus.settings import Settings, load
from zmqbus.system import network
from zmqbus.system.network import Port

#: Far over what any of this takes.
PATIENCE_S = 90.0


@pytest.fixture
def settings(data_dir: Path, free_port: int) -> Settings:
    return load({"port": str(free_port)})


def report(line: str) -> str:
    # Through /dev/fd, since a shell's redirection takes descriptors of one digit only.
    return f"echo '{line}' > /dev/fd/$report"


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.mark.parametrize("word", ["ready", "exists"])
def test_there_is_a_broker_now(settings, broker_says, word):
    broker_says(report(word))
    before = descriptors()
    assert launch.launch(settings) == ""
    assert descriptors() == before


def test_damage_found_by_the_broker_is_reported(settings, broker_says):
    broker_says(report("ready mailboxes.sqlite3 was damaged; a copy is kept"))
    assert launch.launch(settings) == "mailboxes.sqlite3 was damaged; a copy is kept"


def test_clients_that_find_no_broker_at_once_launch_one(settings, broker_says, tmp_path):
    Path(settings.paths.keys).mkdir(parents=True, mode=0o700)
    log = tmp_path / "launches"
    pid_file = settings.paths.pid_file(settings.port)
    broker_says(f"echo x >> {log}; sleep 0.1; echo 1 > {pid_file}; {report('ready')}")
    elected = os.open(settings.data_dir, os.O_RDONLY)
    fcntl.flock(elected, fcntl.LOCK_EX)  # as the broker's election does
    before = descriptors()
    clients = [threading.Thread(target=launch.launch, args=(settings,)) for _ in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    os.close(elected)
    assert log.read_text() == "x\n"
    assert descriptors() == before - 1


def test_a_launch_that_does_not_end_keeps_nobody_else_from_it(settings, broker_says, monkeypatch):
    monkeypatch.setattr(launch, "TURN_S", 0.1)
    Path(settings.paths.keys).mkdir(parents=True, mode=0o700)
    other = os.open(settings.paths.keys, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    broker_says(report("ready after all"))
    assert launch.launch(settings) == "after all"
    os.close(other)


def test_the_port_is_held(settings, broker_says):
    broker_says(report("held"))
    with pytest.raises(PortHeld, match=f"port {settings.port} is held by another program"):
        launch.launch(settings)


def test_an_error_of_the_broker_is_the_starters_own(settings, broker_says):
    broker_says(report("error unauthorized the keys are open to others; run: chmod"))
    with pytest.raises(Unauthorized, match=r"^the keys are open to others; run: chmod$"):
        launch.launch(settings)


def test_an_error_that_this_release_does_not_know(settings, broker_says):
    broker_says(report("error brand_new something"))
    with pytest.raises(BrokerError, match=r"^something$"):
        launch.launch(settings)


def test_dead_broker_is_reported_with_its_last_output(settings, broker_says):
    broker_says("echo Traceback >&2; echo \"ModuleNotFoundError: No module named 'zmq'\" >&2; exit 1")
    before = descriptors()
    with pytest.raises(BrokerUnavailable, match=r"No module named 'zmq'\); see .*broker\.log"):
        launch.launch(settings)
    assert descriptors() == before


def test_one_that_says_nothing_is_given_up_on_and_killed(settings, broker_says, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "LAUNCH_S", 0.3)
    broker_says(f"echo $$ > {tmp_path}/pid; exec sleep 60")
    with pytest.raises(BrokerUnavailable, match="did not come up"):
        launch.launch(settings)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_an_interpreter_that_is_not_there(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    before = descriptors()
    with pytest.raises(BrokerUnavailable, match=r"cannot start a broker with .*missing"):
        launch.launch(settings)
    assert descriptors() == before


def test_the_broker_gets_the_data_directory_and_the_packages_of_its_starter(settings, broker_says, tmp_path):
    broker_says(f'echo "$INTER_SESSION_DATA_DIR:$INTER_SESSION_IMPORT_PATH" > {tmp_path}/env; {report("ready")}')
    launch.launch(settings)
    data_dir, _, path = (tmp_path / "env").read_text().strip().partition(":")
    assert data_dir == settings.data_dir
    assert path.split(":") == [entry for entry in sys.path if os.path.isabs(entry)]


# --- step by step


def steps(starting: launch.Launch) -> str:
    end_s = time.monotonic() + PATIENCE_S
    while (told := starting.step()) is None:
        assert time.monotonic() < end_s
        starting.wait()
    return told


def test_a_step_does_not_wait_for_the_broker(settings, broker_says, tmp_path):
    broker_says(f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; {report('ready')}")
    before = descriptors()
    starting = launch.Launch(settings)
    assert repr(starting) == f"<Launch for port {settings.port}: waits for its turn>"
    assert [starting.step() for _ in range(3)] == [None] * 3
    assert re.fullmatch(rf"<Launch for port {settings.port}: pid \d+>", repr(starting))
    (tmp_path / "go").touch()
    assert steps(starting) == ""
    starting.close()
    assert descriptors() == before


def test_nor_for_its_turn(settings, broker_says, tmp_path):
    Path(settings.paths.keys).mkdir(parents=True, mode=0o700)
    broker_says(f"echo x >> {tmp_path}/launches; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; {report('ready')}")
    first, second = launch.Launch(settings), launch.Launch(settings)
    assert first.step() is second.step() is None
    (tmp_path / "go").touch()
    assert steps(first) == ""
    assert second.step() is None  # it is not its turn before the first is closed
    first.close()
    assert steps(second) == ""
    second.close()
    assert (tmp_path / "launches").read_text() == "x\nx\n"


def test_one_that_is_given_up_leaves_nothing(settings, broker_says, tmp_path):
    Path(settings.paths.keys).mkdir(parents=True, mode=0o700)
    broker_says("exec sleep 600")
    before = descriptors()
    starting = launch.Launch(settings)
    assert starting.step() is None
    assert starting._process is not None
    pid = starting._process.pid
    starting.close()
    starting.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert descriptors() == before
    broker_says(report("ready"))
    assert launch.launch(settings) == ""  # and it is anybody's turn


def test_a_child_that_was_forked_meanwhile_keeps_nobody_from_his_turn(settings, broker_says):
    Path(settings.paths.keys).mkdir(parents=True, mode=0o700)
    broker_says(report("ready"))
    starting = launch.Launch(settings)
    starting.step()
    inherited = os.dup(starting._turn)  # as a child has it
    starting.close()
    other = launch.Launch(settings)
    assert steps(other) == "" and not other._waited
    other.close()
    os.close(inherited)


# --- the line


def test_a_line_may_come_in_pieces(settings, broker_says, tmp_path):
    piece = "printf '{}' > /dev/fd/$report"
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    broker_says(f"{piece.format('re')}; {wait}; {piece.format('ady pie')}; {piece.format('ces')}; {report('')}")
    starting = launch.Launch(settings)
    while starting._said != b"re":
        assert starting.step() is None
    (tmp_path / "go").touch()
    assert steps(starting) == "pieces"
    starting.close()


@pytest.mark.parametrize("said", ["", "printf rea > /dev/fd/$report"])
def test_a_line_that_does_not_end_is_none(settings, broker_says, said):
    broker_says(said)
    with pytest.raises(BrokerUnavailable, match="did not come up"):
        launch.launch(settings)


def test_a_program_with_a_thousand_open_files_can_read_it_too():
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD, 1024)  # select() ends at 1,023
    assert not launch._is_readable(high, 0.0)
    os.write(writer, b"ready\n")
    assert launch._is_readable(high, 20.0)
    for descriptor in (reader, writer, high):
        os.close(descriptor)


# --- a shell that cannot reach the broker


@pytest.mark.parametrize("sandbox", [Port.FORBIDDEN, Port.UNREACHABLE])
def test_nothing_is_launched_where_the_loopback_cannot_be_used(settings, broker_says, monkeypatch, tmp_path, sandbox):
    monkeypatch.setattr(network, "try_port", lambda port: sandbox)
    broker_says(f"touch {tmp_path}/launched; {report('ready')}")
    with pytest.raises(BrokerUnavailable, match="sandbox") as caught:
        launch.launch(settings)
    assert not (tmp_path / "launched").exists()
    assert "kill" not in str(caught.value)
