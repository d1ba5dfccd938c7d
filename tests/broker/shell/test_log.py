"""broker.log: permissions, format of a line, rotation, and a full disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from zmqbus.broker.shell import log as logs
from zmqbus.broker.shell.log import Log
from zmqbus.errors import Unauthorized


@pytest.fixture
def path(data_dir: Path) -> Path:
    return data_dir / "broker.log"


def test_a_line_has_time_pid_and_level(path):
    log = Log(str(path))
    log.info("hello 100 %s")
    log.warning("careful")
    log.error("two\nlines")
    log.close()
    first, second, third = path.read_text().splitlines()
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}} {os.getpid()} INFO hello 100 %s", first)
    assert second.endswith(f"{os.getpid()} WARNING careful")
    assert third.endswith("ERROR two↵lines"), "text from a peer cannot begin a line"


def test_the_next_broker_appends_to_a_private_file(path):
    for number in range(2):
        log = Log(str(path))
        log.info(f"number {number}")
        log.close()
    assert [line[-8:] for line in path.read_text().splitlines()] == ["number 0", "number 1"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_others_can_read_is_refused(path):
    path.write_text("")
    path.chmod(0o644)
    with pytest.raises(Unauthorized, match="chmod"):
        Log(str(path))


def test_rotation_bounds_the_size(path, monkeypatch):
    monkeypatch.setattr(logs, "LOG_BYTES", 200)
    log = Log(str(path))
    for number in range(20):
        log.info(f"line {number:02}")
    log.close()
    files = [path, path.with_suffix(".log.1"), path.with_suffix(".log.2")]
    assert sorted(path.parent.glob("broker.log*")) == sorted(files)
    lines = [line for file in reversed(files) for line in file.read_text().splitlines()]
    kept = [line[-7:] for line in lines]
    assert kept == [f"line {number:02}" for number in range(20 - len(kept), 20)]
    assert all(0 < file.stat().st_size <= 200 and file.stat().st_mode & 0o777 == 0o600 for file in files)


def test_echo_repeats_lines_on_standard_error(path, capsys):
    Log(str(path)).info("not shown")
    Log(str(path), echo=True).info("hello")
    assert capsys.readouterr().err.endswith("INFO hello\n")
    assert path.read_text().count("\n") == 2


def test_lone_surrogates_are_escaped(path):
    Log(str(path)).info("a \udce4 b")
    assert path.read_text().endswith("INFO a \\udce4 b\n")


def test_a_full_disk_loses_only_lines(path, monkeypatch, capsys):
    def full(path: str, flags: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(logs, "open_private", full)
        log = Log(str(path))
        log.info("a lost line")
        assert "no broker.log" in capsys.readouterr().err
    log.info("there is room again")
    assert path.read_text().endswith("INFO there is room again\n")
    assert path.read_text().count("\n") == 1
