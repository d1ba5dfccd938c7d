"""Private files: what is refused, what is told, and that nobody sees half of one."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from zmqbus.errors import NotConnected, Unauthorized
from zmqbus.session import private_files


def test_a_missing_file_is_an_answer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        private_files.open_file(str(tmp_path / "none"), os.O_RDONLY)
    assert private_files.load_json(str(tmp_path / "none"), 100) is None
    assert not private_files.unlink(str(tmp_path / "none"))


def test_what_the_system_refuses_names_the_file_and_the_cure(tmp_path: Path) -> None:
    blocked = str(tmp_path / "file" / "below")
    (tmp_path / "file").touch()
    with pytest.raises(NotConnected, match=f"cannot open {blocked}: Not a directory; .* INTER_SESSION_DATA_DIR"):
        private_files.open_file(blocked, os.O_RDONLY)
    with pytest.raises(NotConnected, match="cannot remove"):
        private_files.unlink(blocked)


def test_links_and_files_open_to_others_are_refused(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("{}")
    link.symlink_to(target)
    with pytest.raises(Unauthorized):
        private_files.load_json(str(link), 100)
    target.chmod(0o640)
    with pytest.raises(Unauthorized):
        private_files.load_json(str(target), 100)


def test_json_that_is_damaged_or_too_long_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.touch(0o600)
    for content, limit_bytes, value in (
        (b'{"a": 1}', 8, {"a": 1}),
        (b'{"a": 1}', 7, None),
        (b'{"a": 1', 100, None),
        (b"[" * 100_000, 200_000, None),
        (b"\xff", 100, None),
    ):
        path.write_bytes(content)
        assert private_files.load_json(str(path), limit_bytes) == value


def test_replacing_keeps_the_old_file_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "x")
    private_files.replace(path, b"old")
    written: list[int] = []

    def full_after_the_first(fd: int, data: memoryview) -> int:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(1)
        return 1

    monkeypatch.setattr(os, "write", full_after_the_first)
    with pytest.raises(NotConnected, match=r"cannot write .*No space left"):
        private_files.replace(path, b"new")
    monkeypatch.undo()
    assert Path(path).read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]
    private_files.replace(path, b"new")
    assert Path(path).read_bytes() == b"new"


def test_whether_an_open_file_still_has_its_name(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    fd = private_files.open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        assert private_files.is_at(fd, path)
        private_files.replace(path, b"")
        assert not private_files.is_at(fd, path)
        assert private_files.unlink(path)
        assert not private_files.is_at(fd, path)
    finally:
        os.close(fd)


def test_a_lock_is_tried_for_without_waiting(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    first, second = (private_files.open_file(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    try:
        assert private_files.flock(first, path, fcntl.LOCK_SH)
        assert private_files.flock(second, path, fcntl.LOCK_SH)
        assert not private_files.flock(second, path, fcntl.LOCK_EX)
    finally:
        os.close(first)
        os.close(second)
