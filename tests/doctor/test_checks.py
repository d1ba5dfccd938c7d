"""The checks in this process: what cannot be made on a real machine, and that no check can end the others.

What users see of all of it, with each fault made and mended, is in tests/real/test_doctor.py.
"""

from __future__ import annotations

import json
import os
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
from zmqbus.doctor import bus, checks, files, installed, report
from zmqbus.doctor.installation import install_command
from zmqbus.doctor.report import Finding, fault, ok, warning
from zmqbus.errors import BrokerUnavailable
from zmqbus.journal import history
from zmqbus.journal.writer import Journal
from zmqbus.settings import Settings, load
from zmqbus.system import network, pidfile

GIB = 2**30


@pytest.fixture
def settings(data_dir: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Settings:
    monkeypatch.setenv("INTER_SESSION_PORT", str(free_port))
    monkeypatch.setenv("INTER_SESSION_PPID_OVERRIDE", str(os.getpid()))
    return load()


class Disk:
    """A disk of 1 GiB on which nothing is but the data directory and as much of somebody else's as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.others = 0
        monkeypatch.setattr(shutil, "disk_usage", self.usage)

    def usage(self, path: str) -> Any:
        # As they count for `du --apparent-size`: a sparse file is as large as it seems.
        own = sum(found.stat().st_size for found in Path(path).rglob("*"))
        return SimpleNamespace(free=GIB - self.others - own)


@pytest.mark.parametrize(("room", "level"), [(400 * 2**20, "warning"), (30 * 2**20, "fault")])
def test_a_disk_that_fills_up(
    settings: Settings, data_dir: Path, monkeypatch: pytest.MonkeyPatch, room: int, level: str
) -> None:
    """What is offered frees what can be made anew: here, that is enough."""
    disk = Disk(monkeypatch)
    with open(data_dir / "search.sqlite", "wb") as file:
        file.truncate(700 * 2**20)
    disk.others = GIB - 700 * 2**20 - room
    (finding,) = installed.disk(settings)
    assert finding.level == level
    assert finding.mend is not None
    subprocess.run(finding.mend, shell=True, check=True)
    assert [row.level for row in installed.disk(settings)] == ["ok"]


def test_the_disk_of_a_directory_that_is_not_there(settings: Settings, data_dir: Path) -> None:
    data_dir.rmdir()
    assert [row.check for row in installed.disk(settings)] == ["disk"]
    data_dir.mkdir(mode=0o700)


def test_a_libzmq_that_cannot_encrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda what: False)
    (finding,) = installed.packages(load())
    assert finding.level == "fault"
    assert "no CURVE" in finding.says
    assert finding.mend == install_command(load())


def test_no_broker_where_none_is_started(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not "the first session starts one": every session would be refused."""
    monkeypatch.setattr(network, "why_closed", lambda *a, **more: "the last broker served another one")
    (finding,) = bus.broker(settings)
    assert finding.level == "fault"
    assert "none is started here" in finding.says and "the last broker served another one" in finding.says
    monkeypatch.setenv("INTER_SESSION_LOOPBACK_ONLY", "1")
    (finding,) = bus.broker(load())
    assert finding.level == "ok"


def test_no_venv(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not say that packages come with the python where they do not."""
    assert [*installed.venv(settings)] == [ok("venv", "none; the packages come with the python")]
    monkeypatch.setattr(installed, "NEEDED", {"zmqbus_is_not_this": "pyzmq"})
    assert [*installed.venv(settings)] == [ok("venv", "none yet")]


def test_a_venv(settings: Settings, data_dir: Path) -> None:
    (data_dir / "venv" / "bin").mkdir(parents=True)
    (data_dir / "venv" / "zmqbus-installed").write_text("")
    (data_dir / "venv" / "bin" / "python").write_text("#!/bin/sh\n")
    (data_dir / "venv" / "bin" / "python").chmod(0o700)
    (finding,) = installed.venv(settings)
    assert (finding.level, finding.says) == ("ok", f"{data_dir}/venv, of another python")


def test_any_number_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, resource.RLIM_INFINITY))
    assert [*installed.file_limit()] == [ok("files", "a broker may open any number")]


def test_a_limit_that_only_root_may_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda what: (100, 100))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (finding,) = installed.file_limit()
    assert finding.mend == "sudo prlimit --pid $$ --nofile=4096:4096"


def test_what_belongs_to_another_user_takes_sudo(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    (finding,) = files.directory(settings)
    assert finding.level == "fault"
    assert finding.mend == f"sudo chown {mine + 1} {settings.data_dir}"


def test_a_log_that_the_disk_does_not_give(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Journal(settings.paths.log)
    log.append([line(ids(1)[0])])
    log.close()

    def fails(*arguments: object) -> Iterator[object]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(history, "lines_back", fails)
    (finding,) = files.log(settings)
    assert finding.level == "fault"
    assert "see to its disk" in finding.says


def test_a_database_that_the_disk_does_not_give(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(settings.paths.database).write_bytes(b"x")

    def fails(path: str) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "_unsound", fails)
    (finding,) = files.database(settings, is_served=False)
    assert finding == fault("database", f"{settings.paths.database} cannot be read: Input/output error")


def test_an_empty_database_is_begun_by_the_broker(settings: Settings) -> None:
    Path(settings.paths.database).touch()
    assert [row.level for row in files.database(settings, is_served=False)] == ["ok"]


def test_a_database_that_is_too_large_to_copy_is_left_to_the_broker(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(settings.paths.database).write_bytes(b"no database")
    Path(f"{settings.paths.database}-wal").write_bytes(b"x")
    assert [row.level for row in files.database(settings, is_served=False)] == ["fault"]
    monkeypatch.setattr(files, "COPY_BYTES", 5)
    assert [row.level for row in files.database(settings, is_served=False)] == ["ok"]


def test_a_check_that_fails_ends_no_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(settings: Settings) -> Iterator[Finding]:
        raise OSError(5, "Input/output error")

    def fails(settings: Settings) -> Iterator[Finding]:
        raise BrokerUnavailable("something is in the way; remove it")

    monkeypatch.setattr(bus, "stale_files", refuses)
    monkeypatch.setattr(files, "log", fails)
    rows = {row.check: row for row in checks.examine()}
    assert rows["stale"] == fault("stale", "cannot be looked at: [Errno 5] Input/output error")
    assert rows["log"] == fault("log", "cannot be looked at: something is in the way; remove it")
    assert rows["listener"].level == "ok"


def test_options_that_others_could_have_written(settings: Settings, data_dir: Path) -> None:
    (data_dir / "clients").mkdir(mode=0o700)
    path = data_dir / "clients" / f"{os.getpid()}.options"
    path.write_text("{}")
    path.chmod(0o666)
    rows = [row for row in checks.examine() if row.level == "fault"]
    assert [row.mend for row in rows] == [f"chmod 600 {path}"]


def test_ports_beyond_the_last() -> None:
    assert bus._is_free(1) in (True, False)  # what may not be bound is not held


# --- how it is told


FINDINGS = [
    ok("one", "all\x1b[31m right"),
    warning("second", "hm", "rm 'a b'"),
    fault("three", "no"),
    fault("four", "no", "x"),
]


def test_for_people() -> None:
    assert report.for_people(FINDINGS).split("\n") == [
        "ok       one     all right",
        "warning  second  hm",
        "                 mend it: rm 'a b'",
        "fault    three   no",
        "fault    four    no",
        "                 mend it: x",
        "2 faults, 1 warning",
    ]
    assert report.for_people([ok("one", "fine")]) == "ok       one  fine\nall is well"


def test_for_programs() -> None:
    found = json.loads(report.for_programs(FINDINGS))
    assert (found["faults"], found["warnings"], len(found["checks"])) == (2, 1, 4)
    assert found["checks"][1] == {"check": "second", "level": "warning", "says": "hm", "mend": "rm 'a b'"}


def test_commands_are_quoted() -> None:
    assert report.command("rm", "-f", "a b", "c'd") == "rm -f 'a b' 'c'\"'\"'d'"


@pytest.mark.parametrize(("kept_bytes", "warned"), [(0, False), (bus.MUCH_KEPT_BYTES - 1, False), (3 * GIB, True)])
def test_old_log_that_is_kept_for_unread_mail_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, kept_bytes: int, warned: bool
) -> None:
    from zmqbus.client import probe

    class Answers:
        def __init__(self, _: Settings) -> None: ...

        def __enter__(self) -> Answers:
            return self

        def __exit__(self, *_: object) -> None: ...

        def figures(self) -> dict[str, Any]:
            release = zmqbus.__version__
            return {"release": release, "protocol": 1, "sessions": 1, "unread": 7, "log_kept_bytes": kept_bytes}

    served = pidfile.Served(settings.port, 4711, None, network.here())
    monkeypatch.setattr(bus, "find_broker", lambda _: served)
    monkeypatch.setattr(probe, "Probe", Answers)
    found = [finding for finding in bus.broker(settings) if finding.check == "mail"]
    assert bool(found) is warned
    if warned:
        assert "3,221 MB" in str(found[0]) and "7 messages" in str(found[0]) and "zmqbus list --all" in str(found[0])
