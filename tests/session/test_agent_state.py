"""The state of an agent on its way from a hook to the session's long-lived process."""

from __future__ import annotations

import os
import select
import stat
from pathlib import Path

import pytest

from zmqbus.process import Process
from zmqbus.session.agent_state import Bell, read, report, ring
from zmqbus.session.last_seen import note_seen
from zmqbus.session.leftovers import reap
from zmqbus.session.owner_files import AGENT, FIFO, OwnerFiles, files_of

OWNER = Process(2147483646, "1", "boot", "namespace")


@pytest.fixture
def files(tmp_path: Path) -> OwnerFiles:
    tmp_path.chmod(0o700)
    (tmp_path / "clients").mkdir(mode=0o700)
    return files_of(str(tmp_path), OWNER)


class TestFile:
    def test_what_is_reported_is_read(self, files: OwnerFiles) -> None:
        assert read(files) is None
        report(files, "blocked", "permission:  Bash\nrm")
        state = read(files)
        assert state is not None
        assert (state.state, state.detail) == ("blocked", "permission: Bash rm")
        assert stat.S_IMODE(os.stat(files.path(AGENT)).st_mode) == 0o600

    def test_repeated_state_keeps_its_time(self, files: OwnerFiles) -> None:
        report(files, "idle")
        first = read(files)
        report(files, "idle")
        assert read(files) == first

    def test_long_detail_is_cut(self, files: OwnerFiles) -> None:
        report(files, "blocked", "é" * 5_000)
        state = read(files)
        assert state is not None and state.detail == "é" * 200

    @pytest.mark.parametrize("content", ["", "idle", "idle soon\n", "asleep 1.0 \n", "\0" * 100])
    def test_damaged_file_is_no_state(self, files: OwnerFiles, content: str) -> None:
        Path(files.path(AGENT)).write_text(content)
        assert read(files) is None

    def test_link_is_not_followed(self, files: OwnerFiles, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_text("idle 1.0 \n")
        os.symlink(tmp_path / "elsewhere", files.path(AGENT))
        assert read(files) is None

    def test_goes_with_its_owner(self, files: OwnerFiles) -> None:
        note_seen(files, "Stop")  # names the owner, as the listener's lock does
        report(files, "idle")
        os.mkfifo(files.path(FIFO))
        reap(files.data_dir)
        assert not os.path.exists(files.path(AGENT)) and not os.path.exists(files.path(FIFO))


class TestBell:
    def test_rings_in_the_process_that_holds_it(self, files: OwnerFiles) -> None:
        with Bell(files) as bell:
            assert not bell.answered()
            assert report(files, "working") is True
            assert select.select([bell.fd], [], [], 90)[0]
            assert bell.answered()
            assert not bell.answered()
            assert not select.select([bell.fd], [], [], 0)[0], "it would wake the process for ever"

    def test_nobody_is_there(self, files: OwnerFiles) -> None:
        assert report(files, "working") is False
        with Bell(files):
            pass
        assert ring(files) is False
        assert not os.path.exists(files.path(FIFO))

    def test_full_pipe_is_no_failure(self, files: OwnerFiles) -> None:
        with Bell(files) as bell:
            for _ in range(70_000):
                assert ring(files)
            assert bell.answered()

    def test_newer_process_keeps_its_own(self, files: OwnerFiles) -> None:
        with Bell(files):
            with Bell(files) as newer:
                assert ring(files) and newer.answered()
            assert not os.path.exists(files.path(FIFO))
        with Bell(files) as last:
            assert ring(files) and last.answered()

    def test_something_else_in_its_place(self, files: OwnerFiles) -> None:
        os.mkdir(files.path(FIFO))
        with Bell(files) as bell:
            assert bell.fd == -1 and not bell.answered()
        assert ring(files) is False
