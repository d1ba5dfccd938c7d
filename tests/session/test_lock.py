"""The lock of a session: one listener for each owner, and the identity that outlives it."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.session.session_files import (
    AWAY,
    CONTAINER,
    HERE,
    ME,
    OWNER,
    Table,
    at,
    find_session,
    leave_away,
    leave_stale,
    path_of,
    state_of,
)
from zmqbus.errors import NotConnected, Unauthorized
from zmqbus.process import Process
from zmqbus.security import private_files
from zmqbus.session import lock as lock_module
from zmqbus.session.labels import remember_label
from zmqbus.session.leftovers import reap
from zmqbus.session.lock import AlreadyListening, ListenerLock
from zmqbus.session.owner_files import OwnerFiles, files_of
from zmqbus.session.state import (
    Identity,
    load_state,
    states,
)

#: No valid port; an early release stored none.
WRONG_PORTS: tuple[object, ...] = (None, 0, -1, 65536, 2**70, True, "9473", 9473.0, [], {})


def run_together(*workers: Callable[[], None]) -> None:
    """Runs the workers at the same time, in threads (descriptors hold locks); raises an exception of theirs."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(workers))

    def guarded(worker: Callable[[], None]) -> None:
        start.wait()
        try:
            worker()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=[worker]) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def race(data: str, listeners: int) -> list[bool]:
    """Runs listeners that come and go among checks and cleaners; returns whether each try got the lock.

    The owner counts as dead, so that cleaners unlink all they may, at any time.
    """
    inside: list[int] = []
    tries: list[bool] = []
    done = threading.Event()

    def listen() -> None:
        for number in range(60):
            try:
                lock = ListenerLock.acquire(data, OWNER)
            except AlreadyListening:
                tries.append(False)
                continue
            with lock:
                tries.append(True)
                inside.append(number)
                lock.write_state(state_of(OWNER))
                assert len(inside) == 1
                assert find_session(data, OWNER) == (state_of(OWNER), False)  # a live state is never removed
                assert path_of(data, "4711.lock").exists()
                inside.pop()
                if number % 2:
                    lock.release()  # as if killed

    def listen_and_stop() -> None:
        try:
            listen()
        finally:
            done.set()

    def check() -> None:
        while not done.is_set():
            find_session(data, OWNER)

    def clean() -> None:
        while not done.is_set():
            reap(data, Table())

    run_together(listen_and_stop, *[listen] * (listeners - 1), check, clean, clean)
    return tries


def whole_identity(data: str) -> bytes:
    with ListenerLock.acquire(data, OWNER) as lock:
        lock.remember(Identity("id", "token", "auth", "label"))
    return path_of(data, "4711.lock").read_bytes()


class TestExclusion:
    """At most one listener holds the lock."""

    def test_one_listener_for_each_owner(self, data: str) -> None:
        with ListenerLock.acquire(data, OWNER) as lock:
            with pytest.raises(AlreadyListening) as caught:
                ListenerLock.acquire(data, OWNER)
            assert caught.value.state is None  # still starting
            lock.write_state(state_of(OWNER, label="the one"))
            with pytest.raises(AlreadyListening, match=f"listener_pid={ME.pid}") as caught:
                ListenerLock.acquire(data, OWNER)
            assert caught.value.state == state_of(OWNER, label="the one")
            ListenerLock.acquire(data, OWNER._replace(pid=4712)).release()
        ListenerLock.acquire(data, OWNER).release()

    def test_released_lock_refuses_every_call(self, data: str) -> None:
        with ListenerLock.acquire(data, OWNER) as lock:
            assert "held" in repr(lock)
            lock.release()
            lock.release()
            assert "released" in repr(lock)
            for act in (
                lock.remove_state,
                lambda: lock.write_state(state_of(OWNER)),
                lambda: lock.remember(Identity("a", "b", None, None)),
            ):
                with pytest.raises(RuntimeError, match="released"):
                    act()

    def test_starting_listener_is_not_taken_for_its_killed_predecessor(self, data: str) -> None:
        leave_stale(data, OWNER, listener_started="long ago")
        fd = os.open(path_of(data, "4711.lock"), os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # a listener at the instant before it removes the file
            with pytest.raises(AlreadyListening) as caught:
                ListenerLock.acquire(data, OWNER)
            assert caught.value.state is None
        finally:
            os.close(fd)

    def test_a_check_does_not_turn_a_listener_away(self, data: str) -> None:
        ListenerLock.acquire(data, OWNER).release()
        fd = os.open(path_of(data, "4711.lock"), os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_SH)
        timer = threading.Timer(0.05, os.close, [fd])
        timer.start()
        try:
            ListenerLock.acquire(data, OWNER).release()
        finally:
            timer.join()

    def test_a_check_that_never_ends_is_an_error_with_the_way_to_end_it(
        self, data: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lock_module, "ACQUIRE_PATIENCE_S", 0.02)
        ListenerLock.acquire(data, OWNER).release()
        fd = os.open(path_of(data, "4711.lock"), os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            with pytest.raises(NotConnected, match="fuser"):
                ListenerLock.acquire(data, OWNER)
        finally:
            os.close(fd)

    def test_lock_file_unlinked_meanwhile_is_not_used(self, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
        taken: list[int] = []
        real = private_files.try_lock

        def flock_after_unlink(fd: int, path: str, kind: int) -> bool:
            taken.append(os.fstat(fd).st_ino)
            if len(taken) == 1:
                os.unlink(path)
                path_of(data, "keep-the-inode").touch()
            return real(fd, path, kind)

        monkeypatch.setattr(lock_module, "try_lock", flock_after_unlink)
        with ListenerLock.acquire(data, OWNER):
            assert len(taken) == 2
            assert path_of(data, "4711.lock").stat().st_ino == taken[1]
            with pytest.raises(AlreadyListening):
                ListenerLock.acquire(data, OWNER)

    def test_child_process_does_not_inherit_the_lock(self, data: str) -> None:
        lock = ListenerLock.acquire(data, OWNER)
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
        try:
            lock.release()
            ListenerLock.acquire(data, OWNER).release()
        finally:
            child.communicate()

    def test_lock_of_a_killed_listener_is_free(self, data: str) -> None:
        code = (
            "import json, sys\n"
            "from zmqbus.process import Process\n"
            "from zmqbus.session.lock import ListenerLock\n"
            "from zmqbus.session.state import SessionState\n"
            "lock = ListenerLock.acquire(sys.argv[1], Process(4711, '1000'))\n"
            "lock.write_state(SessionState(**json.loads(sys.argv[2])))\n"
            "print(flush=True); sys.stdin.read()\n"
        )
        command = [sys.executable, "-c", code, data, json.dumps(state_of(OWNER)._asdict())]
        listener = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        try:
            assert listener.stdout is not None and listener.stdout.readline() == b"\n"
            assert find_session(data, OWNER) == (state_of(OWNER), False)
            with pytest.raises(AlreadyListening):
                ListenerLock.acquire(data, OWNER)
        finally:
            listener.kill()
            listener.communicate()
        assert path_of(data, "4711.session").exists()
        assert find_session(data, OWNER) == (None, True)
        ListenerLock.acquire(data, OWNER).release()

    def test_one_of_many_simultaneous_listeners_gets_the_lock(self, data: str) -> None:
        locks: list[ListenerLock] = []

        def listen() -> None:
            try:
                locks.append(ListenerLock.acquire(data, OWNER))
            except AlreadyListening:
                return

        run_together(*[listen] * 16)
        assert len(locks) == 1
        locks[0].release()


class TestRaces:
    """Listeners come and go among checks and cleaners."""

    def test_never_two_listeners(self, data: str) -> None:
        assert True in race(data, 3)

    def test_a_single_listener_is_never_turned_away(self, data: str) -> None:
        assert race(data, 1) == [True] * 60


class TestPrivacy:
    """Files that others could read or replace are refused."""

    def test_files_and_directories_are_private_whatever_the_umask(self, data: str) -> None:
        old = os.umask(0)
        try:
            with ListenerLock.acquire(data, OWNER) as lock:
                lock.write_state(state_of(OWNER))
                remember_label(data, "/p", "x")
                modes = {
                    entry.name: stat.S_IMODE(entry.stat().st_mode)
                    for entry in os.scandir(os.path.join(data, "clients"))
                }
                assert set(modes) == {"4711.lock", "4711.session", "labels.json", "labels.lock"}
                assert set(modes.values()) == {0o600}
                assert stat.S_IMODE(os.stat(data).st_mode) == stat.S_IMODE(os.stat(data + "/clients").st_mode) == 0o700
        finally:
            os.umask(old)

    @pytest.mark.parametrize("name", ["4711.lock", "4711.session", "4711.session.tmp"])
    def test_links_are_refused(self, data: str, tmp_path: Path, name: str) -> None:
        target = tmp_path / "elsewhere"
        target.touch(0o600)
        ListenerLock.acquire(data, OWNER).release()
        path_of(data, "4711.lock").unlink()
        if name != "4711.lock":
            lock = ListenerLock.acquire(data, OWNER)
        path_of(data, name).symlink_to(target)
        with pytest.raises(Unauthorized):
            if name == "4711.lock":
                ListenerLock.acquire(data, OWNER)
            elif name == "4711.session":
                find_session(data, OWNER)
            else:
                lock.write_state(state_of(OWNER))
        assert target.read_bytes() == b""
        if name != "4711.lock":
            lock.release()

    def test_directory_open_to_others_is_refused(self, data: str) -> None:
        ListenerLock.acquire(data, OWNER).release()
        os.chmod(data + "/clients", 0o755)
        with pytest.raises(Unauthorized):
            ListenerLock.acquire(data, OWNER)


class TestIdentity:
    """The content of the lock file."""

    def test_exit_removes_the_state_and_keeps_the_identity(self, data: str) -> None:
        with ListenerLock.acquire(data, OWNER) as lock:
            lock.remember(Identity("id", "token", "auth", "the label"))
            lock.write_state(state_of(OWNER))
        assert not path_of(data, "4711.session").exists()
        with ListenerLock.acquire(data, OWNER) as lock:
            assert lock.identity == Identity("id", "token", "auth", "the label")

    def test_new_listener_removes_the_state_of_a_killed_one(self, data: str) -> None:
        leave_stale(data, OWNER)
        path_of(data, "4711.session.tmp").write_text("half")
        path_of(data, "4711.session.tmp").chmod(0o600)
        with ListenerLock.acquire(data, OWNER):
            assert not path_of(data, "4711.session").exists()
            assert not path_of(data, "4711.session.tmp").exists()

    def test_identity_of_another_process_with_the_same_pid_is_ignored(self, data: str) -> None:
        leave_stale(data, OWNER)
        with ListenerLock.acquire(data, OWNER) as lock:
            assert lock.identity == Identity("id", "token", "auth", None)
        with ListenerLock.acquire(data, OWNER._replace(started="1001")) as lock:
            assert lock.identity is None
        assert os.listdir(data + "/clients") == ["4711.lock"], "a pid that was used again takes the name over"

    def test_identity_changes_in_place(self, data: str) -> None:
        with ListenerLock.acquire(data, OWNER) as lock:
            assert lock.identity is None
            lock.remember(Identity("id", "token", "a" * 40, "ü" * 60))
            inode = path_of(data, "4711.lock").stat().st_ino
            lock.remember(Identity("id", "token", "b", None))
            assert lock.identity == Identity("id", "token", "b", None)
            assert path_of(data, "4711.lock").stat().st_ino == inode
        with ListenerLock.acquire(data, OWNER) as lock:
            assert lock.identity == Identity("id", "token", "b", None)
        assert json.loads(path_of(data, "4711.lock").read_text()) == {
            "session_id": "id",
            "token": "token",
            "name": "b",
            "label": None,
            "left": False,
            "port": None,
            "owner_started": "1000",
            **HERE._asdict(),
        }

    def test_identity_survives_a_kill_between_write_and_truncation(
        self, data: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock = ListenerLock.acquire(data, OWNER)
        lock.remember(Identity("id", "token", "a" * 40, "the old and long label"))
        monkeypatch.setattr(os, "ftruncate", lambda fd, length: None)
        lock.remember(Identity("id", "token", "b", None))
        lock.release()
        with ListenerLock.acquire(data, OWNER) as lock:
            assert lock.identity == Identity("id", "token", "b", None)

    def test_torn_identity_counts_as_none(self, data: str) -> None:
        whole = whole_identity(data)
        for length in range(len(whole)):
            path_of(data, "4711.lock").write_bytes(whole[:length])
            with ListenerLock.acquire(data, OWNER) as lock:
                assert lock.identity is None

    @pytest.mark.parametrize(
        "change", [{"session_id": ""}, {"session_id": 1}, {"token": ""}, {"token": None}, {"name": 1}, {"label": []}]
    )
    def test_invalid_identity_counts_as_none(self, data: str, change: dict[str, object]) -> None:
        record = json.loads(whole_identity(data)) | change
        path_of(data, "4711.lock").write_text(json.dumps(record) + "\n")
        with ListenerLock.acquire(data, OWNER) as lock:
            assert lock.identity is None

    @pytest.mark.parametrize(
        ("stored", "found"),
        [
            (1, 1),
            (12345, 12345),
            (65535, 65535),
            *[(wrong, None) for wrong in WRONG_PORTS],
        ],
    )
    def test_invalid_port_counts_as_unknown(self, data: str, stored: object, found: int | None) -> None:
        """The rest of the identity does not depend on it."""
        record = json.loads(whole_identity(data)) | {"port": stored}
        path_of(data, "4711.lock").write_text(json.dumps(record) + "\n")
        with ListenerLock.acquire(data, OWNER) as lock:
            assert lock.identity == Identity("id", "token", "auth", "label", found)

    def test_full_disk_is_an_error_and_the_old_state_stays(self, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with ListenerLock.acquire(data, OWNER) as lock:
            lock.write_state(state_of(OWNER))

            def full(fd: int, data: object, *rest: object) -> int:
                raise OSError(28, "No space left on device")

            with monkeypatch.context() as patch:
                patch.setattr(os, "write", full)
                patch.setattr(os, "pwrite", full)
                with pytest.raises(NotConnected, match=r"No space left.*free some space"):
                    lock.write_state(state_of(OWNER, name="other"))
                with pytest.raises(NotConnected, match="No space left"):
                    lock.remember(Identity("id", "token", None, None))
            assert load_state(data, "4711") == state_of(OWNER)
            assert not path_of(data, "4711.session.tmp").exists()

    def test_touch_sets_the_time_at_most_once_an_hour(self, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with ListenerLock.acquire(data, OWNER) as lock:
            os.utime(path_of(data, "4711.lock"), (1, 1))
            lock.touch()
            assert path_of(data, "4711.lock").stat().st_mtime == 1
            monkeypatch.setattr(lock_module, "TOUCH_S", 0.0)
            lock.touch()
            assert path_of(data, "4711.lock").stat().st_mtime > 1


class TestPlaces:
    """Processes of several PID namespaces have the same pid."""

    def test_lock_file_names_its_owner_at_once(self, data: str) -> None:
        with ListenerLock.acquire(data, at(4711, "1", CONTAINER)):
            assert json.loads(path_of(data, "4711.lock").read_text()) == {"owner_started": "1", **CONTAINER._asdict()}
            ListenerLock.acquire(data, OWNER).release()

    def test_name_taken_elsewhere_while_it_was_chosen(self, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
        other = at(4711, "1", CONTAINER)
        chosen: list[str] = []

        def late(data_dir: str, owner: Process) -> OwnerFiles:
            files = files_of(data_dir, owner)
            if owner == OWNER and not chosen:
                leave_away(data, other)
            chosen.append(files.stem)
            return files

        monkeypatch.setattr(lock_module, "files_of", late)
        with ListenerLock.acquire(data, OWNER) as lock:
            assert lock.identity is None
        assert chosen[0] == "4711" and chosen[-1] == f"4711-{HERE.tag}"
        monkeypatch.undo()
        assert json.loads(path_of(data, "4711.lock").read_text())["session_id"] == AWAY.session_id

    def test_live_listener_elsewhere_with_the_same_pid(self, data: str) -> None:
        other = at(4711, "1000", CONTAINER)
        with ListenerLock.acquire(data, other) as theirs:
            theirs.write_state(state_of(other))
            assert find_session(data, OWNER) == (None, False)
            with ListenerLock.acquire(data, OWNER) as ours:
                ours.write_state(state_of(OWNER))
                assert find_session(data, OWNER) == (state_of(OWNER), False)
                assert sorted(state.namespace for state in states(data)) == sorted(
                    (HERE.namespace, CONTAINER.namespace)
                )
            assert load_state(data, "4711") == state_of(other)
