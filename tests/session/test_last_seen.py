"""When the hooks of a session last ran."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from pathlib import Path

import pytest

from zmqbus.errors import Unauthorized
from zmqbus.process import Process
from zmqbus.session.last_seen import last_seen, note_seen
from zmqbus.session.leftovers import reap
from zmqbus.session.owner_files import files_of

OWNER = Process(2147483646, "12345", "boot", "namespace")


@pytest.fixture
def data(tmp_path: Path) -> str:
    tmp_path.chmod(0o700)
    (tmp_path / "clients").mkdir(mode=0o700)
    return str(tmp_path)


@pytest.fixture
def path(data: str) -> Path:
    return Path(data, "clients", f"{OWNER.pid}.seen")


def test_each_event_keeps_its_last_time(data: str, path: Path) -> None:
    assert last_seen(data, OWNER) == {}
    note_seen(files_of(data, OWNER), "SessionStart")
    first = last_seen(data, OWNER)
    note_seen(files_of(data, OWNER), "Stop")
    both = last_seen(data, OWNER)
    assert first.keys() == {"SessionStart"} and both.keys() == {"SessionStart", "Stop"}
    assert both["SessionStart"] == first["SessionStart"] <= both["Stop"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_earlier_process_with_this_pid_is_another_session(data: str) -> None:
    note_seen(files_of(data, OWNER), "Stop")
    later = OWNER._replace(started="99999")
    assert last_seen(data, later) == {}
    note_seen(files_of(data, later), "SessionStart")
    assert last_seen(data, later).keys() == {"SessionStart"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"owner_started": "12345", "seen": 7}', b"\xff" * 9000])
def test_damaged_file_is_replaced(data: str, path: Path, content: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(content)
    assert last_seen(data, OWNER) == {}
    note_seen(files_of(data, OWNER), "Stop")
    assert last_seen(data, OWNER).keys() == {"Stop"}


def test_values_that_are_no_times_are_left_out(data: str, path: Path) -> None:
    note_seen(files_of(data, OWNER), "Stop")
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({**record, "seen": {"Stop": "now", "SessionStart": 7}}))
    assert last_seen(data, OWNER) == {"SessionStart": 7.0}


def test_nothing_is_written_without_a_data_directory(tmp_path: Path) -> None:
    note_seen(files_of(str(tmp_path / "none"), OWNER), "Stop")
    assert os.listdir(tmp_path) == []


def test_file_of_others_is_not_touched(data: str, path: Path) -> None:
    path.touch()
    path.chmod(0o644)
    note_seen(files_of(data, OWNER), "Stop")
    assert path.read_bytes() == b""
    with pytest.raises(Unauthorized):
        last_seen(data, OWNER)


def test_no_hook_waits_for_another(data: str, path: Path) -> None:
    note_seen(files_of(data, OWNER), "SessionStart")
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        note_seen(files_of(data, OWNER), "Stop")
    assert last_seen(data, OWNER).keys() == {"SessionStart"}


def test_file_is_removed_after_its_owner(data: str, path: Path) -> None:
    note_seen(files_of(data, OWNER._replace(started="1")), "Stop")
    assert path.exists()
    reap(data)
    assert not path.exists()
