"""The record of a session's waiter: one process, what it has shown, and when."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zmqbus.errors import NotConnected
from zmqbus.process import process_of
from zmqbus.session.leftovers import reap
from zmqbus.session.owner_files import OwnerFiles, files_of
from zmqbus.session.shown_log import Shown
from zmqbus.session.wake import WAKE_PAUSE_S, WakeFile, has_waiter, take_shown

SESSION = "5f9852c2-233f-4125-bf81-28e46cb375e6"
#: Takes over as the waiter, reports that, and waits.
WAITER = """
import sys, time
from zmqbus.process import process_of
from zmqbus.session.owner_files import files_of
from zmqbus.session.wake import WakeFile
with WakeFile(files_of(sys.argv[1], process_of(int(sys.argv[2])))) as wake:
    wake.take_over()
print("waits", flush=True)
time.sleep(600)
"""


@pytest.fixture
def files(tmp_path: Path) -> OwnerFiles:
    tmp_path.chmod(0o700)
    (tmp_path / "clients").mkdir(mode=0o700)
    return files_of(str(tmp_path), process_of(os.getpid()))


@pytest.fixture
def shown(files: OwnerFiles) -> Shown:
    log = Shown(files, SESSION, keeper=True)
    log.open()
    return log


@pytest.fixture
def waiters(python: str, files: OwnerFiles) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that compete to be the session's waiter, all started at once."""
    command = [python, "-c", WAITER, files.data_dir, str(files.owner.pid)]
    found = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    yield found
    for process in found:
        process.kill()
        process.communicate()


@pytest.fixture
def python() -> str:
    import sys

    return sys.executable


def test_exactly_one_of_several_waiters_stays(waiters: list[subprocess.Popen[bytes]], files: OwnerFiles) -> None:
    for process in waiters:
        assert process.stdout is not None
        process.stdout.readline()
    deadline_s = time.monotonic() + 90
    while (left := [each for each in waiters if each.poll() is None])[1:] and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert len(left) == 1
    assert {each.wait() for each in waiters if each not in left} == {-signal.SIGTERM}
    assert has_waiter(files)
    left[0].kill()
    left[0].wait()
    assert not has_waiter(files)


def test_process_that_has_got_the_pid_of_a_waiter_is_left_alone(files: OwnerFiles) -> None:
    other = subprocess.Popen(["sleep", "600"])
    try:
        with WakeFile(files) as wake:
            wake._write(waiter=process_of(other.pid)._replace(started="1").text)
            wake.take_over()
            assert wake.is_mine() and other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_shown_messages_are_confirmed_once(files: OwnerFiles, shown: Shown) -> None:
    with WakeFile(files) as wake:
        wake.note_woken(("message00001", "message00002"))
    assert take_shown(files, shown, time.time() + 1) == ("message00001", "message00002")
    assert "message00001" in shown and "message00002" in shown
    assert take_shown(files, shown) == ()


def test_hook_that_began_before_the_wake_confirms_nothing(files: OwnerFiles, shown: Shown) -> None:
    with WakeFile(files) as wake:
        wake.note_woken(("message00001",))
    assert take_shown(files, shown, time.time()) == () and "message00001" not in shown
    with WakeFile(files) as wake:
        assert wake.shown == ("message00001",)


def test_prompt_does_not_rely_on_a_waiter_that_pauses_or_has_shown(files: OwnerFiles, shown: Shown) -> None:
    with WakeFile(files) as wake:
        wake.take_over()
        assert has_waiter(files)
        wake.note_woken(("message00001",))
        assert not has_waiter(files)
        wake.take_shown(shown)
        assert not has_waiter(files), "it pauses"
        wake._write(woke=time.time() - WAKE_PAUSE_S - 1)
        assert has_waiter(files)


def test_record_of_an_earlier_owner_is_nobodys(files: OwnerFiles) -> None:
    with WakeFile(files) as wake:
        wake.take_over()
        wake.note_woken(("message00001",))
    earlier = files._replace(owner=files.owner._replace(started="1"))
    with WakeFile(earlier) as wake:
        assert (wake.shown, wake.woke_s, wake.is_mine()) == ((), 0.0, False)
    assert not has_waiter(earlier)


def test_lock_is_not_waited_for_without_end(files: OwnerFiles) -> None:
    with WakeFile(files), pytest.raises(NotConnected, match="stays locked"):
        WakeFile(files, patience_s=0.01)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"owner_started": 1, "shown": 7, "woke": "x"}'])
def test_damaged_record_counts_as_absent(files: OwnerFiles, content: bytes) -> None:
    Path(files.path(".wake")).write_bytes(content)
    os.chmod(files.path(".wake"), 0o600)
    assert not has_waiter(files)
    with WakeFile(files) as wake:
        assert (wake.shown, wake.woke_s) == ((), 0.0)


def test_file_goes_with_its_owner(files: OwnerFiles) -> None:
    owner = subprocess.Popen(["sleep", "600"])
    others = files_of(files.data_dir, process_of(owner.pid))
    with WakeFile(others) as wake:
        wake.take_over()
    owner.kill()
    owner.wait()
    Path(others.path(".lock")).touch(0o600)
    reap(files.data_dir)
    assert not os.path.exists(others.path(".wake"))
