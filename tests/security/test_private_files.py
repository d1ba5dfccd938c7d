"""Private files and directories: which are refused and with what remedy; replacing, locking and reading them."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import socket as plain_socket
import stat
import subprocess
from pathlib import Path

import pytest

from zmqbus.errors import BrokerUnavailable, NotConnected, Unauthorized
from zmqbus.security import private_files
from zmqbus.security.private_files import check_private_file, open_private, secure_dir


def mode(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def make_file(path, permissions: int = 0o600, content: bytes = b"x") -> str:
    path.write_bytes(content)
    path.chmod(permissions)
    return str(path)


def run_remedy(error: pytest.ExceptionInfo[Unauthorized]) -> None:
    """Runs the command that the message names, with a shell, as the user would."""
    subprocess.run(str(error.value).split("run: ", 1)[1], shell=True, check=True)


class TestDirectories:
    def test_made_private_with_its_parents(self, tmp_path, umask):
        path = str(tmp_path / "a" / "b" / "c")
        secure_dir(path)
        assert [mode(str(tmp_path / part)) for part in ("a", "a/b", "a/b/c")] == [0o700] * 3

    def test_private_directory_of_the_user_is_not_changed(self, data):
        os.mkdir(data, 0o700)
        before = os.lstat(data)
        secure_dir(data)
        secure_dir(data + "/")
        assert os.lstat(data) == before

    @pytest.mark.parametrize("permissions", [0o750, 0o705, 0o701, 0o777, 0o710])
    def test_open_to_others_is_refused_with_its_remedy(self, tmp_path, permissions):
        path = str(tmp_path / "it's a; $(dir)")
        os.mkdir(path)
        os.chmod(path, permissions)
        with pytest.raises(Unauthorized, match=f"{permissions:04o}") as error:
            secure_dir(path)
        assert f"chmod 700 {shlex.quote(path)}" in str(error.value)
        assert mode(path) == permissions
        run_remedy(error)
        secure_dir(path)

    @pytest.mark.parametrize("slash", ["", "/", "//"])
    def test_link_is_refused(self, tmp_path, data, slash):
        (tmp_path / "real").mkdir(mode=0o700)
        os.symlink(tmp_path / "real", data)
        with pytest.raises(Unauthorized, match=r"symbolic link.*remove it, or set INTER_SESSION_DATA_DIR"):
            secure_dir(data + slash)

    def test_dangling_link_is_refused_and_not_followed(self, tmp_path, data):
        os.symlink(tmp_path / "nowhere", data)
        with pytest.raises(Unauthorized, match="symbolic link"):
            secure_dir(data)
        assert not (tmp_path / "nowhere").exists()

    def test_link_above_is_followed(self, tmp_path):
        (tmp_path / "real").mkdir(mode=0o700)
        os.symlink(tmp_path / "real", tmp_path / "link")
        secure_dir(str(tmp_path / "link" / "data"))
        assert mode(str(tmp_path / "real" / "data")) == 0o700

    def test_file_is_refused(self, tmp_path):
        path = make_file(tmp_path / "file")
        with pytest.raises(Unauthorized, match="not a directory"):
            secure_dir(path)
        with pytest.raises(Unauthorized, match="cannot be made"):
            secure_dir(path + "/below")

    def test_of_another_user_is_refused(self, data, monkeypatch):
        os.mkdir(data, 0o700)
        monkeypatch.setattr(os, "geteuid", lambda: os.lstat(data).st_uid + 1)
        with pytest.raises(Unauthorized, match="belongs to another user"):
            secure_dir(data)

    def test_full_disk_is_reported_as_such(self, data, monkeypatch):
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "mkdir", full)
        with pytest.raises(BrokerUnavailable, match="No space left"):
            secure_dir(data)


class TestFiles:
    def test_private_file_is_opened(self, tmp_path):
        path = make_file(tmp_path / "file")
        check_private_file(path)
        fd = open_private(path, os.O_RDONLY)
        assert os.read(fd, 9) == b"x"
        assert not os.get_inheritable(fd)
        os.close(fd)

    def test_made_private(self, tmp_path, umask):
        path = str(tmp_path / "new")
        os.close(open_private(path, os.O_RDWR | os.O_CREAT))
        assert mode(path) == 0o600
        check_private_file(path)

    def test_missing_file_raises_file_not_found(self, tmp_path):
        path = str(tmp_path / "none")
        with pytest.raises(FileNotFoundError):
            check_private_file(path)
        with pytest.raises(FileNotFoundError):
            open_private(path, os.O_RDONLY)

    @pytest.mark.parametrize("permissions", [0o640, 0o604, 0o602, 0o666, 0o610])
    def test_open_to_others_is_refused_with_its_remedy(self, tmp_path, permissions):
        path = make_file(tmp_path / "a file", permissions)
        with pytest.raises(Unauthorized):
            check_private_file(path)
        with pytest.raises(Unauthorized) as error:
            open_private(path, os.O_RDONLY)
        assert f"chmod 600 {shlex.quote(path)}" in str(error.value)
        run_remedy(error)
        check_private_file(path)

    def test_refused_file_is_not_truncated(self, tmp_path):
        path = make_file(tmp_path / "file", 0o644, b"precious")
        with pytest.raises(Unauthorized):
            open_private(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        assert (tmp_path / "file").read_bytes() == b"precious"

    def test_accepted_file_is_truncated(self, tmp_path):
        path = make_file(tmp_path / "file")
        os.close(open_private(path, os.O_WRONLY | os.O_TRUNC))
        assert (tmp_path / "file").read_bytes() == b""

    def test_link_is_refused(self, tmp_path):
        make_file(tmp_path / "real")
        link = str(tmp_path / "link")
        os.symlink(tmp_path / "real", link)
        for call in (check_private_file, lambda path: open_private(path, os.O_RDONLY)):
            with pytest.raises(Unauthorized, match=r"symbolic link.*remove it$"):
                call(link)

    def test_dangling_link_is_not_created_through(self, tmp_path):
        link = str(tmp_path / "link")
        os.symlink(tmp_path / "target", link)
        with pytest.raises(Unauthorized, match="symbolic link"):
            open_private(link, os.O_RDWR | os.O_CREAT)
        assert not (tmp_path / "target").exists()

    @pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT])
    @pytest.mark.parametrize("kind", ["directory", "fifo", "socket"])
    def test_other_kinds_of_files_are_refused_without_blocking(self, tmp_path, kind, flags):
        path = str(tmp_path / "thing")
        if kind == "directory":
            os.mkdir(path, 0o700)
        elif kind == "fifo":
            os.mkfifo(path, 0o600)
        else:
            with plain_socket.socket(plain_socket.AF_UNIX) as server:
                server.bind(path)
            os.chmod(path, 0o600)
        with pytest.raises(Unauthorized, match="not a file"):
            open_private(path, flags)

    def test_of_another_user_is_refused(self, tmp_path, monkeypatch):
        path = make_file(tmp_path / "file")
        monkeypatch.setattr(os, "geteuid", lambda: os.lstat(path).st_uid + 1)
        with pytest.raises(Unauthorized, match=r"another user .*sudo chown"):
            open_private(path, os.O_RDONLY)

    def test_refusals_leave_no_descriptor_open(self, tmp_path):
        path = make_file(tmp_path / "file", 0o644)
        expected = os.open(os.devnull, os.O_RDONLY)
        os.close(expected)
        for _ in range(3):
            with pytest.raises(Unauthorized):
                open_private(path, os.O_RDONLY)
        found = os.open(os.devnull, os.O_RDONLY)
        os.close(found)
        assert found == expected


def test_missing_file_is_not_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        private_files.open_file(str(tmp_path / "none"), os.O_RDONLY)
    assert private_files.load_json(str(tmp_path / "none"), 100) is None
    assert not private_files.unlink(str(tmp_path / "none"))


def test_errors_of_the_system_name_the_file_and_a_remedy(tmp_path: Path) -> None:
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


def test_damaged_or_too_long_json_is_none(tmp_path: Path) -> None:
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


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_open_file_that_was_replaced_or_removed(tmp_path: Path) -> None:
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


def test_lock_is_tried_without_waiting(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    first, second = (private_files.open_file(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    try:
        assert private_files.try_lock(first, path, fcntl.LOCK_SH)
        assert private_files.try_lock(second, path, fcntl.LOCK_SH)
        assert not private_files.try_lock(second, path, fcntl.LOCK_EX)
    finally:
        os.close(first)
        os.close(second)
