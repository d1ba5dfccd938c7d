"""Checks run in this process: faults that cannot be caused on a real machine, and the report.

tests/real/test_doctor.py causes every other fault and runs the printed fix.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

import zmqbus
from tests.records import ids, line
from zmqbus.client import oneshot
from zmqbus.doctor import broker, checks, environment, leftovers, permissions, report, storage
from zmqbus.doctor.installation import install_command
from zmqbus.doctor.report import Finding, fault, ok, warning
from zmqbus.errors import BrokerUnavailable
from zmqbus.journal import history
from zmqbus.journal.writer import Journal
from zmqbus.settings import Settings, load
from zmqbus.system import network, pidfile

GIB = 2**30
#: A pid without a process.
ENDED_PID = 2**31 - 2


@pytest.fixture
def settings(data_dir: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Settings:
    monkeypatch.setenv("INTER_SESSION_PORT", str(free_port))
    monkeypatch.setenv("INTER_SESSION_PPID_OVERRIDE", str(os.getpid()))
    return load()


def io_error(*_: object) -> Any:
    raise OSError(5, "Input/output error")


class Disk:
    """A disk of 1 GiB with the data directory and, in `other_bytes`, somebody else's files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.other_bytes = 0
        monkeypatch.setattr(shutil, "disk_usage", self.usage)

    def usage(self, path: str) -> Any:
        # Apparent sizes: a sparse file counts as full.
        own = sum(found.stat().st_size for found in Path(path).rglob("*"))
        return SimpleNamespace(free=GIB - self.other_bytes - own)


class TestEnvironment:
    @pytest.mark.parametrize(("free_bytes", "level"), [(400 * 2**20, "warning"), (30 * 2**20, "fault")])
    def test_full_disk_and_its_fix(
        self, settings: Settings, data_dir: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, level: str
    ) -> None:
        """The fix removes the search index, which can be rebuilt."""
        disk = Disk(monkeypatch)
        with open(data_dir / "search.sqlite", "wb") as file:
            file.truncate(700 * 2**20)
        disk.other_bytes = GIB - 700 * 2**20 - free_bytes
        (finding,) = environment.disk(settings)
        assert finding.level == level
        assert finding.mend is not None
        subprocess.run(finding.mend, shell=True, check=True)
        assert [row.level for row in environment.disk(settings)] == ["ok"]

    def test_disk_of_a_missing_directory(self, settings: Settings, data_dir: Path) -> None:
        data_dir.rmdir()
        assert [row.check for row in environment.disk(settings)] == ["disk"]
        data_dir.mkdir(mode=0o700)

    def test_libzmq_without_curve(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zmq, "has", lambda what: False)
        (finding,) = environment.packages(load())
        assert finding.level == "fault"
        assert "no CURVE" in finding.says
        assert finding.mend == install_command(load())

    def test_no_venv(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        assert [*environment.venv(settings)] == [ok("venv", "none; the packages are installed in this python")]
        monkeypatch.setattr(environment, "NEEDED", {"zmqbus_is_not_this": "pyzmq"})
        assert [*environment.venv(settings)] == [ok("venv", "none yet")]

    def test_venv_of_another_python(self, settings: Settings, data_dir: Path) -> None:
        (data_dir / "venv" / "bin").mkdir(parents=True)
        (data_dir / "venv" / "zmqbus-installed").write_text("")
        (data_dir / "venv" / "bin" / "python").write_text("#!/bin/sh\n")
        (data_dir / "venv" / "bin" / "python").chmod(0o700)
        (finding,) = environment.venv(settings)
        assert (finding.level, finding.says) == ("ok", f"{data_dir}/venv, of another python")

    def test_unlimited_open_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, resource.RLIM_INFINITY))
        assert [*environment.file_limit()] == [ok("files", "a broker may open any number")]

    def test_only_root_may_raise_the_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda what: (100, 100))
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        (finding,) = environment.file_limit()
        assert finding.mend == "sudo prlimit --pid $$ --nofile=4096:4096"


class TestBroker:
    def test_broker_that_may_not_start_here(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        """Does not promise that the first session starts one: every session would be refused."""
        monkeypatch.setattr(network, "refusal_reason", lambda *a, **more: "the last broker served another one")
        (finding,) = broker.broker(settings)
        assert finding.level == "fault"
        assert "none is started here" in finding.says and "the last broker served another one" in finding.says
        monkeypatch.setenv("INTER_SESSION_LOOPBACK_ONLY", "1")
        (finding,) = broker.broker(load())
        assert finding.level == "ok"

    @pytest.mark.parametrize(
        ("kept_bytes", "warned"), [(0, False), (broker.MUCH_KEPT_BYTES - 1, False), (3 * GIB, True)]
    )
    def test_log_kept_for_unread_mail(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, kept_bytes: int, warned: bool
    ) -> None:
        class FakeObserver:
            def __init__(self, _: Settings, **__: Any) -> None: ...

            def __enter__(self) -> FakeObserver:
                return self

            def __exit__(self, *_: object) -> None: ...

            def figures(self) -> dict[str, Any]:
                release = zmqbus.__version__
                return {"release": release, "protocol": 1, "sessions": 1, "unread": 7, "log_kept_bytes": kept_bytes}

        served = pidfile.Served(settings.port, 4711, None, network.here())
        monkeypatch.setattr(broker, "find_broker", lambda _: served)
        monkeypatch.setattr(oneshot, "observer", FakeObserver)
        found = [finding for finding in broker.broker(settings) if finding.check == "mail"]
        assert bool(found) is warned
        if warned:
            assert "3,221 MB" in found[0].says and "7 unread messages" in found[0].says
            assert found[0].mend == "zmqbus list --all"


class TestStorage:
    def test_unreadable_log(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        log = Journal(settings.paths.log)
        log.append([line(ids(1)[0])])
        log.close()
        monkeypatch.setattr(history, "lines_backward", io_error)
        (finding,) = storage.log(settings)
        assert finding.level == "fault"
        assert "Input/output error" in finding.says

    def test_unreadable_database(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        Path(settings.paths.database).write_bytes(b"x")
        monkeypatch.setattr(storage, "damage", io_error)
        (finding,) = storage.database(settings, is_served=False)
        assert finding == fault("database", f"{settings.paths.database} cannot be read: Input/output error")

    def test_empty_database_is_left_to_the_broker(self, settings: Settings) -> None:
        Path(settings.paths.database).touch()
        assert [row.level for row in storage.database(settings, is_served=False)] == ["ok"]

    def test_large_database_with_a_write_ahead_log_is_left_to_the_broker(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path(settings.paths.database).write_bytes(b"no database")
        Path(f"{settings.paths.database}-wal").write_bytes(b"x")
        assert [row.level for row in storage.database(settings, is_served=False)] == ["fault"]
        monkeypatch.setattr(storage, "COPY_BYTES", 5)
        assert [row.level for row in storage.database(settings, is_served=False)] == ["ok"]


class TestLeftovers:
    @pytest.mark.parametrize(
        ("names", "level"),
        [
            (("lock", "options", "shown"), "ok"),  # an ordinary end; the next session removes them
            (("lock", "options", "session"), "warning"),  # the listener was killed
        ],
    )
    def test_files_of_an_ended_session(
        self, settings: Settings, data_dir: Path, names: tuple[str, ...], level: str
    ) -> None:
        (data_dir / "clients").mkdir(mode=0o700)
        paths = [data_dir / "clients" / f"{ENDED_PID}.{name}" for name in names]
        for path in paths:
            path.write_text("{}")
            path.chmod(0o600)
        (finding,) = leftovers.stale_files(settings)
        assert finding.level == level
        assert finding.mend == (report.command("rm", "-f", *sorted(map(str, paths))) if level == "warning" else None)


def test_failing_check_does_not_end_the_others(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(settings: Settings) -> Iterator[Finding]:
        raise BrokerUnavailable("something is in the way; remove it")

    monkeypatch.setattr(leftovers, "stale_files", io_error)
    monkeypatch.setattr(storage, "log", fails)
    rows = {row.check: row for row in checks.examine()}
    assert rows["stale"] == fault("stale", "cannot be checked: [Errno 5] Input/output error")
    assert rows["log"] == fault("log", "cannot be checked: something is in the way; remove it")
    assert rows["listener"].level == "ok"


def test_directory_of_another_user_needs_sudo(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    (finding,) = permissions.directory(settings)
    assert finding.level == "fault"
    assert finding.mend == f"sudo chown {mine + 1} {settings.data_dir}"


def test_options_file_open_to_others(settings: Settings, data_dir: Path) -> None:
    (data_dir / "clients").mkdir(mode=0o700)
    path = data_dir / "clients" / f"{os.getpid()}.options"
    path.write_text("{}")
    path.chmod(0o666)
    rows = [row for row in checks.examine() if row.level == "fault"]
    assert [row.mend for row in rows] == [f"chmod 600 {path}"]


FINDINGS = [
    ok("one", "all\x1b[31m right"),
    warning("second", "hm", "rm 'a b'"),
    fault("three", "no"),
    fault("four", "no", "x"),
]


class TestReport:
    def test_for_people(self) -> None:
        assert report.for_people(FINDINGS).split("\n") == [
            "ok       one     all right",
            "warning  second  hm",
            "                 fix: rm 'a b'",
            "fault    three   no",
            "fault    four    no",
            "                 fix: x",
            "2 faults, 1 warning",
        ]
        assert report.for_people([ok("one", "fine")]) == "ok       one  fine\nall is well"

    def test_for_programs(self) -> None:
        found = json.loads(report.for_programs(FINDINGS))
        assert (found["faults"], found["warnings"], len(found["checks"])) == (2, 1, 4)
        assert found["checks"][1] == {"check": "second", "level": "warning", "says": "hm", "mend": "rm 'a b'"}

    def test_commands_are_quoted(self) -> None:
        assert report.command("rm", "-f", "a b", "c'd") == "rm -f 'a b' 'c'\"'\"'d'"
