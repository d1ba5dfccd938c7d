"""`zmqbus doctor`: each fault is caused, found, and gone once the printed command has run."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.real.conftest import ROOT, Bus, has_ended, wait_until
from tests.records import RECORD, encode_record, ids, line
from tests.test_install_deps import UV
from zmqbus.journal.search_index import Index
from zmqbus.journal.writer import Journal
from zmqbus.security.keys import client_keys
from zmqbus.wire.verbs import VERSION

pytestmark = pytest.mark.slow

IS_ROOT = os.geteuid() == 0
TIMEOUT_S = 90.0

Finding = dict[str, Any]


class Doctor:
    """Runs `zmqbus doctor` in a shell, alone or after a command that it has printed."""

    def __init__(self, bus: Bus, shims: Path) -> None:
        self.bus = bus
        self.env = bus.env(bus.stranger)
        self.before = ""  # run by the shell first, so that a limit or a variable applies
        shim = shims / "zmqbus"
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "bin" / "zmqbus"}" "$@"\n')
        shim.chmod(0o755)
        self.env["PATH"] = f"{shims}{os.pathsep}{self.env['PATH']}"

    def run(self, fix: str = ":") -> list[Finding]:
        """Returns the findings after `fix` was run in the same shell."""
        script = f"{self.before or ':'}\n{fix} >&2 || exit 77\nzmqbus doctor --json"
        done = subprocess.run(
            ["sh", "-c", script], env=self.env, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=self.bus.cwd
        )
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr
        report = json.loads(done.stdout)
        found: list[Finding] = report["checks"]
        assert report["faults"] == sum(row["level"] == "fault" for row in found)
        assert report["warnings"] == sum(row["level"] == "warning" for row in found)
        assert done.returncode == (1 if report["faults"] else 0)
        return found

    def find(self, check: str, level: str) -> Finding:
        """Returns the only finding of this check, and checks its level."""
        rows = [row for row in self.run() if row["check"] == check and row["level"] != "ok"]
        assert [row["level"] for row in rows] == [level], rows
        return rows[0]

    def cures(self, check: str, level: str, says: str) -> Finding:
        """Checks that the fault is found, and that the printed command fixes it."""
        row = self.find(check, level)
        assert says in row["says"], row
        assert row["mend"], row
        after = [other for other in self.run(row["mend"]) if other["check"] == check]
        assert after and {other["level"] for other in after} == {"ok"}, after
        return row


@pytest.fixture
def doctor(bus: Bus, tmp_path: Path) -> Doctor:
    return Doctor(bus, tmp_path)


@pytest.fixture
def keys(data_dir: Path) -> Path:
    client_keys(str(data_dir))
    return data_dir / "keys"


@pytest.fixture
def log(data_dir: Path) -> Iterator[Journal]:
    """A log of three segments."""
    log = Journal(str(data_dir / "messages.log"), segment_bytes=1)
    for msg_id in ids(3):
        log.append([line(msg_id)])
    yield log
    log.close()


def stamp(directory: Path) -> dict[str, object]:
    """The metadata of every file in a directory, which would change with the file."""
    return {
        str(path): (found.st_mode, found.st_mtime_ns, found.st_size, found.st_ino)
        for path in [directory, *sorted(directory.rglob("*"))]
        for found in [path.lstat()]
    }


def levels(rows: list[Finding]) -> set[str]:
    return {row["level"] for row in rows}


# --- in order ---


def test_fresh_installation_has_no_fault(doctor: Doctor, data_dir: Path) -> None:
    data_dir.rmdir()
    assert levels(doctor.run()) == {"ok"}
    assert not data_dir.exists()
    data_dir.mkdir(mode=0o700)


def test_session_without_a_listener(doctor: Doctor, bus: Bus) -> None:
    """It belongs to one: what was sent to it waits."""
    owner = bus.owner()
    assert bus.zmqbus("connect", "--away", "--name", "auth", owner=owner).returncode == 0
    doctor.env = bus.env(owner) | {"PATH": doctor.env["PATH"]}
    (says,) = [row["says"] for row in doctor.run() if row["check"] == "listener"]
    assert says == "none for 'auth'; read its mail with: zmqbus inbox; start one with: zmqbus connect"
    assert bus.zmqbus("disconnect", owner=owner).returncode == 0
    (says,) = [row["says"] for row in doctor.run() if row["check"] == "listener"]
    assert "belongs to no session" in says


def test_running_bus_has_no_fault(doctor: Doctor, bus: Bus, data_dir: Path) -> None:
    auth = bus.listener("auth")
    bus.deliver("auth", "hello")
    rows = doctor.run()
    assert levels(rows) == {"ok"}, rows
    says = {row["check"]: row["says"] for row in rows}
    assert f"port {bus.port}, pid {bus.broker_pid()}, 1 sessions" in says["broker"]
    assert says["log"] == "1 files, 1 messages read"
    assert "belongs to no session" in says["listener"]
    doctor.env = {**doctor.env, "INTER_SESSION_PPID_OVERRIDE": str(auth.owner.pid)}
    assert any(row["says"].startswith("'auth', pid ") for row in doctor.run())
    people = bus.zmqbus("doctor")
    assert people.returncode == 0
    assert people.stdout.endswith("all is well\n")


def test_doctor_changes_nothing(doctor: Doctor, data_dir: Path, log: Journal, keys: Path) -> None:
    """Not even where there are many faults."""
    (data_dir / "server.1234.pid").write_text("1")
    (data_dir / "clients").mkdir(mode=0o700)
    (data_dir / "clients" / "2147483647.options").write_text("{}")
    for path in data_dir.rglob("*"):
        if path.is_file():
            path.chmod(0o600)
    before = stamp(data_dir)
    assert "warning" in levels(doctor.run())
    os.chmod(data_dir / "messages.log", 0o644)
    broken = stamp(data_dir)
    assert "fault" in levels(doctor.run())
    assert stamp(data_dir) == broken
    os.chmod(data_dir / "messages.log", 0o600)
    assert stamp(data_dir) == before
    assert doctor.bus.broker_pid() is None


def test_output_for_people(doctor: Doctor, bus: Bus, data_dir: Path) -> None:
    data_dir.chmod(0o755)
    done = bus.zmqbus("doctor")
    assert done.returncode == 1
    assert f"fix: chmod 700 {data_dir}\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 fault, 0 warnings"
    data_dir.chmod(0o700)


# --- the directory, and who may look into it ---


def test_directory_that_others_can_read(doctor: Doctor, data_dir: Path) -> None:
    data_dir.chmod(0o750)
    doctor.cures("directory", "fault", "is open to other users (mode 0750)")


def test_directory_that_is_a_link(doctor: Doctor, data_dir: Path) -> None:
    target = data_dir.with_name("elsewhere")
    data_dir.rename(target)
    data_dir.symlink_to(target)
    doctor.cures("directory", "fault", "is a symbolic link")
    data_dir.mkdir(mode=0o700)


def test_file_in_the_place_of_a_directory(doctor: Doctor, data_dir: Path) -> None:
    data_dir.rmdir()
    data_dir.write_text("")
    doctor.cures("directory", "fault", "is not a directory")
    data_dir.mkdir(mode=0o700)


@pytest.mark.skipif(not IS_ROOT, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", "messages.log"])
def test_directory_of_another_user(doctor: Doctor, data_dir: Path, log: Journal, name: str) -> None:
    os.chown(data_dir / name, 12345, -1)
    doctor.cures("permissions" if name else "directory", "fault", "belongs to another user (uid 12345)")


@pytest.mark.parametrize(
    "name",
    ["messages.log", "messages.log.1", "keys/client.key_secret", "clients/labels.json", "keys", "spool", "spool/ab12"],
)
def test_files_that_others_can_read(doctor: Doctor, data_dir: Path, log: Journal, keys: Path, name: str) -> None:
    path = data_dir / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if name == "spool":
        path.mkdir()
    elif not path.exists():
        path.write_text("{}")
    path.chmod(0o755 if path.is_dir() else 0o644)
    doctor.cures("permissions", "fault", f"{path} is open to other users")


def test_file_that_is_a_link(doctor: Doctor, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("")
    (data_dir / "broker.log").symlink_to(tmp_path / "target")
    doctor.cures("permissions", "fault", "is a symbolic link")
    assert (tmp_path / "target").exists()


def test_directory_in_the_place_of_a_file(doctor: Doctor, data_dir: Path) -> None:
    (data_dir / "search.sqlite").mkdir()
    doctor.cures("permissions", "fault", "is not a file")


# --- keys ---


def test_damaged_keys(doctor: Doctor, data_dir: Path, keys: Path) -> None:
    (keys / "broker.key").write_text("rubbish")
    doctor.cures("keys", "fault", "broker.key holds no public key")


def test_missing_keys_under_a_running_broker(doctor: Doctor, bus: Bus, data_dir: Path) -> None:
    bus.zmqbus("broker")
    broker = psutil.Process(bus.broker_pid())
    (data_dir / "keys" / "client.key_secret").unlink()
    row = doctor.find("keys", "fault")
    assert row["mend"].startswith(f"kill {broker.pid}; rm -r ")
    doctor.run(row["mend"])
    wait_until(lambda: has_ended(broker), "it ends")
    assert levels(doctor.run()) == {"ok"}


def test_half_made_keys(doctor: Doctor, data_dir: Path) -> None:
    (data_dir / "keys.new-abc").mkdir(mode=0o700)
    doctor.cures("keys", "warning", "was left by a process that was killed")


# --- broker ---


def test_broker_that_hangs(doctor: Doctor, bus: Bus) -> None:
    bus.listener("auth")
    pid = bus.signal_broker(signal.SIGSTOP)
    row = doctor.find("broker", "fault")
    assert "it is hung or stopped" in row["says"]
    assert row["mend"] == f"kill -9 {pid}"
    doctor.run(row["mend"])
    # The listener starts another one.
    wait_until(lambda: bus.broker_pid() != pid, "there is another one")  # until then, a missing broker is no fault
    wait_until(
        lambda: not [row for row in doctor.run() if row["check"] == "broker" and row["level"] != "ok"], "it is well"
    )


def foreground(bus: Bus, patch: str) -> subprocess.Popen[bytes]:
    """A broker in the foreground, with other settings."""
    code = (
        f"import sys, zmqbus, zmqbus.wire.verbs; {patch}; from zmqbus.cli import broker; broker.main(['--foreground'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**bus.env(bus.stranger), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        cwd=bus.cwd,
    )
    wait_until(lambda: bus.broker_pid() == process.pid, "it serves")
    return process


def test_broker_of_another_protocol(doctor: Doctor, bus: Bus) -> None:
    process = foreground(bus, "zmqbus.wire.verbs.VERSION = 99")
    try:
        row = doctor.find("broker", "fault")
        assert f"speaks protocol {VERSION}, the broker (release 0.1.0) speaks 99" in row["says"]
        assert row["mend"] == f"kill {process.pid}"
        doctor.run(row["mend"])
        process.wait(TIMEOUT_S)
        assert levels(doctor.run()) == {"ok"}
    finally:
        process.kill()
        process.wait(TIMEOUT_S)


def test_broker_of_another_release(doctor: Doctor, bus: Bus) -> None:
    process = foreground(bus, "zmqbus.__version__ = '0.0.1'")
    try:
        row = doctor.find("broker", "warning")
        assert "release 0.0.1" in row["says"]
        assert row["mend"] == "zmqbus broker --stop"
        doctor.cures("broker", "warning", "this is release")
    finally:
        process.kill()
        process.wait(TIMEOUT_S)


def test_port_held_by_another_program(doctor: Doctor, bus: Bus) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", bus.port))
        held.listen()
        row = doctor.cures("broker", "fault", f"port {bus.port} is held by another program")
        assert f"(pid {os.getpid()})" in row["says"]
        assert row["mend"].startswith("export INTER_SESSION_PORT=")


def test_broker_on_another_port(doctor: Doctor, bus: Bus, new_port: Callable[[], int]) -> None:
    bus.zmqbus("broker")
    other = new_port()
    doctor.before = f"export INTER_SESSION_PORT={other}"
    row = doctor.cures("broker", "fault", f"serves port {bus.port}, and {other} is set here")
    assert row["mend"] == f"export INTER_SESSION_PORT={bus.port}"


def test_port_set_by_the_plugin_option(doctor: Doctor, bus: Bus, new_port: Callable[[], int]) -> None:
    """It wins over INTER_SESSION_PORT, so setting that would not help."""
    bus.zmqbus("broker")
    other = new_port()
    doctor.before = f"export CLAUDE_PLUGIN_OPTION_PORT={other}"
    row = doctor.cures("broker", "fault", f"serves port {bus.port}, and {other} is set here")
    assert row["mend"] == f"export CLAUDE_PLUGIN_OPTION_PORT={bus.port}"
    assert f"(the plugin's option `port` says {other}; in Claude Code, /plugin changes it)" in row["says"]


# --- leftovers ---


def private(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)


@pytest.mark.parametrize("content", ["2147483647", "rubbish", ""])
def test_pid_file_of_a_killed_broker(doctor: Doctor, data_dir: Path, content: str) -> None:
    private(data_dir / "server.1234.pid", content)
    doctor.cures("stale", "warning", "a file of processes that have ended: server.1234.pid")


def test_state_file_of_a_killed_listener(doctor: Doctor, bus: Bus, data_dir: Path) -> None:
    """The fix removes the state file alone: the identity stays for the next listener of the living owner."""
    auth = bus.listener("auth")
    auth.stop(signal.SIGKILL)
    doctor.cures("stale", "warning", f"a file of processes that have ended: {auth.owner.pid}.session")
    assert (data_dir / "clients" / f"{auth.owner.pid}.lock").exists()


def test_files_of_a_killed_session(doctor: Doctor, bus: Bus, data_dir: Path) -> None:
    auth = bus.listener("auth")
    auth.stop(signal.SIGKILL)
    auth.owner.kill()
    row = doctor.cures("stale", "warning", "of processes that have ended")
    assert f"{auth.owner.pid}.lock" in row["mend"]
    assert not list((data_dir / "clients").glob(f"{auth.owner.pid}.*"))


def test_files_of_an_ordinarily_ended_session_are_not_stale(doctor: Doctor, bus: Bus, data_dir: Path) -> None:
    """The next session removes them."""
    auth = bus.listener("auth")
    auth.stop()
    auth.owner.kill()
    assert list((data_dir / "clients").glob(f"{auth.owner.pid}.*"))
    assert levels([row for row in doctor.run() if row["check"] == "stale"]) == {"ok"}
    bus.listener("pay")
    wait_until(lambda: not list((data_dir / "clients").glob(f"{auth.owner.pid}.*")), "the next session removes them")


# --- database, log, index ---


@pytest.fixture
def database(bus: Bus, data_dir: Path) -> Path:
    """The mailboxes that a broker has left."""
    bus.zmqbus("broker")
    bus.zmqbus("broker", "--stop")
    return data_dir / "mailboxes.sqlite3"


def test_damaged_database(doctor: Doctor, database: Path) -> None:
    size = database.stat().st_size
    with open(database, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    doctor.cures("database", "fault", "is damaged")


def test_file_that_is_not_a_database(doctor: Doctor, database: Path) -> None:
    database.write_bytes(b"no database at all" * 1000)
    doctor.cures("database", "fault", "is damaged (file is not a database)")


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("PRAGMA application_id = 1", "belongs to another program"),
        ("PRAGMA user_version = 77", "newer release (format 77)"),
    ],
)
def test_database_of_another_program(doctor: Doctor, database: Path, statement: str, says: str) -> None:
    connection = sqlite3.connect(database)
    connection.execute(statement)
    connection.close()
    doctor.cures("database", "fault", says)


def test_database_of_a_killed_broker(doctor: Doctor, bus: Bus, data_dir: Path) -> None:
    """Its write-ahead log belongs to it, and is no fault."""
    auth = bus.listener("auth")
    auth.stop()
    bus.send("--to", "auth", "--text", "hello", "--as", "script")
    broker = psutil.Process(bus.signal_broker(signal.SIGKILL))
    wait_until(lambda: has_ended(broker), "it ends")
    assert (data_dir / "mailboxes.sqlite3-wal").stat().st_size
    before = stamp(data_dir)
    assert [row["level"] for row in doctor.run() if row["check"] == "database"] == ["ok"]
    assert stamp(data_dir) == before


def test_repairs_by_the_broker_are_reported_once(doctor: Doctor, bus: Bus, database: Path) -> None:
    database.write_bytes(b"no database at all" * 1000)
    bus.zmqbus("broker")
    doctor.cures("broker", "warning", "it has found: ")


@pytest.mark.parametrize("name", ["messages.log", "messages.log.2"])
def test_log_segment_without_its_header(doctor: Doctor, data_dir: Path, log: Journal, name: str) -> None:
    path = data_dir / name
    if name != "messages.log":
        # Its serial could be told from its neighbours'; two of them leave no doubt that there is no room.
        (data_dir / "messages.log.3").write_bytes(b"rubbish\n")
        (data_dir / "messages.log.3").chmod(0o600)
        path = data_dir / "messages.log.3"
    else:
        path.write_bytes(b"?" + path.read_bytes()[1:])
    doctor.cures("log", "fault", f"{path} does not start as a log file")


def test_damaged_lines(doctor: Doctor, data_dir: Path, log: Journal) -> None:
    with open(data_dir / "messages.log", "ab") as file:
        file.write(b"rubbish\n")
    row = doctor.find("log", "warning")
    assert row["says"].startswith("1 of the newest 4 lines are damaged")
    assert row["mend"] is None  # they do no harm


def test_damaged_index(doctor: Doctor, data_dir: Path, log: Journal) -> None:
    path = data_dir / "search.sqlite"
    with Index.open(str(path)) as index:
        index.fill(str(data_dir / "messages.log"))
    assert levels(doctor.run()) == {"ok"}
    path.write_bytes(b"rubbish" * 1000)
    doctor.cures("index", "warning", "cannot be used; searches scan the log")


# --- what it runs on ---


def test_incomplete_venv(doctor: Doctor, data_dir: Path) -> None:
    (data_dir / "venv").mkdir()
    doctor.cures("venv", "warning", "is incomplete")


def test_venv_without_its_python(doctor: Doctor, data_dir: Path) -> None:
    (data_dir / "venv" / "bin").mkdir(parents=True)
    (data_dir / "venv" / "zmqbus-installed").write_text("")
    (data_dir / "venv" / "bin" / "python").symlink_to("/nonexistent/python")
    doctor.cures("venv", "fault", "was removed or replaced")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CLAUDE_PLUGIN_OPTION_PORT", "99999"),
        ("INTER_SESSION_IDLE_MINUTES", "soon"),
        ("INTER_SESSION_OWNER_CHECK_INTERVAL_S", "-1"),
        ("INTER_SESSION_DURABILITY", "eternal"),
    ],
)
def test_invalid_settings(doctor: Doctor, variable: str, value: str) -> None:
    doctor.before = f"export {variable}={value}"
    row = doctor.cures("settings", "warning", f"ignoring {variable}='{value}'")
    assert row["mend"] == f"unset {variable}"


@pytest.mark.skipif(not IS_ROOT, reason="only root can raise a hard limit again")
@pytest.mark.parametrize(("limit", "level"), [(500, "warning"), (50, "fault")])
def test_low_open_file_limit(doctor: Doctor, limit: int, level: str) -> None:
    doctor.before = f"ulimit -n {limit}"
    may_raise = subprocess.run(["sh", "-c", f"{doctor.before}; ulimit -n 4096"], capture_output=True).returncode == 0
    if may_raise:  # in a container, root may not
        doctor.cures("files", level, f"a broker may open {limit} files")
    row = doctor.find("files", level)
    assert f"a broker may open {limit} files" in row["says"]
    assert row["mend"] == "ulimit -n 4096"


def test_clock_set_back(doctor: Doctor, log: Journal) -> None:
    log.append([encode_record(RECORD._replace(ts=4_000_000_000.0))])
    row = doctor.find("clock", "warning")
    assert "was set back or is wrong" in row["says"]
    assert row["mend"] == "sudo timedatectl set-ntp true"  # not run here


# --- this session's listener ---


@pytest.fixture
def listening(doctor: Doctor, bus: Bus) -> Any:
    auth = bus.listener("auth")
    doctor.env = {**doctor.env, "INTER_SESSION_PPID_OVERRIDE": str(auth.owner.pid)}
    return auth


def test_stopped_listener(doctor: Doctor, bus: Bus, listening: Any) -> None:
    listening.send_signal(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(listening.state["listener_pid"]).status() == psutil.STATUS_STOPPED, "it stops")
    row = doctor.find("listener", "fault")
    assert "the listener of 'auth' is stopped" in row["says"]
    assert row["mend"].startswith("kill -CONT ")
    wait_until(lambda: levels(doctor.run(row["mend"])) == {"ok"}, "it goes on")


def test_listener_on_another_port(doctor: Doctor, bus: Bus, listening: Any, new_port: Callable[[], int]) -> None:
    doctor.before = f"export INTER_SESSION_PORT={new_port()}"
    row = doctor.cures("listener", "warning", f"'auth' is on port {bus.port}")
    assert row["mend"] == f"export INTER_SESSION_PORT={bus.port}"


def test_listener_without_its_state_file(doctor: Doctor, listening: Any) -> None:
    listening.state_path.unlink()
    row = doctor.find("listener", "warning")
    assert "its state file was removed" in row["says"]


# --- packages ---


def test_packages_that_cannot_be_imported(doctor: Doctor, tmp_path: Path) -> None:
    """The doctor runs without them. A stand-in for uv installs the packages of the tests."""
    import zmq

    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("zmq", "msgpack", "psutil"):
        (broken / f"{name}.py").write_text("raise ImportError('is not installed')\n")
    there = Path(zmq.__file__).parent.parent
    doctor.before = (
        f"export PYTHONPATH={broken} UV_CALLS={tmp_path / 'calls'}\n"
        f"export UV_THEN='ln -s {there}/*zmq* {there}/msgpack* {there}/psutil* "
        f"{doctor.bus.data_dir}/*/lib/python*/site-packages/'"
    )
    uv = tmp_path / "uv"
    uv.write_text(UV)
    uv.chmod(0o755)
    row = doctor.cures("packages", "fault", "pyzmq (ImportError: is not installed)")
    assert row["mend"].endswith("bin/install_deps.py --yes")
