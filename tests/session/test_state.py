"""Lock, state file and identity of a session; who may remove what."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.errors import NotConnected, Unauthorized
from zmqbus.process import Place, Process, ProcessEntry, process_of, this_machine
from zmqbus.security import private_files
from zmqbus.security.private_files import replace
from zmqbus.session import identity as identity_module
from zmqbus.session import lock as lock_module
from zmqbus.session import plugin_options
from zmqbus.session.identity import is_listening
from zmqbus.session.labels import load_label, remember_label
from zmqbus.session.leftovers import FOREIGN_KEEP_S, begin_cleaning, elsewhere, leftovers, reap
from zmqbus.session.lock import AlreadyListening, ListenerLock
from zmqbus.session.owner_files import OwnerFiles, files_of
from zmqbus.session.plugin_options import VARIABLES, hand_on
from zmqbus.session.shown_log import Shown
from zmqbus.session.state import (
    Identity,
    SessionState,
    load_state,
    states,
)

ME = process_of(os.getpid())
HERE = this_machine().place()
OWNER = Process(4711, "1000", *HERE)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def at(pid: int, started: str, place: Place = HERE) -> Process:
    return Process(pid, started, *place)


def state_of(owner: Process, **changes: object) -> SessionState:
    made = SessionState(
        session_id="4f0c6a9e-0000-4000-8000-000000000001",
        name="auth",
        label=None,
        listener_pid=ME.pid,
        listener_started=ME.started,
        host="127.0.0.1",
        port=9473,
        created_at="2026-01-02T03:04:05.678Z",
        token="secret",
        owner_pid=owner.pid,
        owner_started=owner.started,
        project="/home/u/src/auth",
        cwd="/home/u/src/auth",
        **owner.place._asdict(),
    )
    return made._replace(**changes)  # type: ignore[arg-type]


def path_of(data: str, name: str) -> Path:
    return Path(data, "clients", name)


def find_session(data: str, *owners: Process) -> tuple[SessionState | None, bool]:
    found = identity_module.find_session(files_of(data, owner) for owner in owners)
    return found.state, found.stale


def find_away(data: str, *owners: Process) -> tuple[Process, Identity] | None:
    joined = identity_module.find_joined(files_of(data, owner) for owner in owners)
    if joined is None or joined.identity is None or not joined.is_away:
        return None
    return joined.files.owner, joined.identity


def with_options(data: str, owner: Process, environ: dict[str, str]) -> object:
    return plugin_options.with_options(files_of(data, owner), environ)


def leave_stale(data: str, owner: Process, **changes: object) -> None:
    """What a listener leaves that was killed."""
    lock = ListenerLock.acquire(data, owner)
    lock.remember(Identity("id", "token", "auth", None))
    lock.write_state(state_of(owner, **changes))
    lock.release()


class Table:
    """A process table that knows these processes."""

    def __init__(self, *alive: Process) -> None:
        self.alive = {process.pid: process.started for process in alive}

    def place(self) -> Place:
        return HERE

    def exists(self, pid: int) -> bool:
        return pid in self.alive

    def look(self, pid: int) -> ProcessEntry | None:
        return ProcessEntry(1, self.alive[pid], False) if pid in self.alive else None

    def cmdline(self, pid: int) -> list[str]:
        return []

    def uid(self, pid: int) -> int | None:
        return os.geteuid()


# --- the lock ---------------------------------------------------------------------------------------------------


def test_one_listener_for_each_owner(data: str) -> None:
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


def test_everything_is_private(data: str) -> None:
    old = os.umask(0)
    try:
        with ListenerLock.acquire(data, OWNER) as lock:
            lock.write_state(state_of(OWNER))
            remember_label(data, "/p", "x")
            modes = {
                entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(os.path.join(data, "clients"))
            }
            assert set(modes) == {"4711.lock", "4711.session", "labels.json", "labels.lock"}
            assert set(modes.values()) == {0o600}
            assert stat.S_IMODE(os.stat(data).st_mode) == stat.S_IMODE(os.stat(data + "/clients").st_mode) == 0o700
    finally:
        os.umask(old)


def test_leaving_the_context_removes_the_state_and_keeps_the_identity(data: str) -> None:
    with ListenerLock.acquire(data, OWNER) as lock:
        lock.remember(Identity("id", "token", "auth", "the label"))
        lock.write_state(state_of(OWNER))
    assert not path_of(data, "4711.session").exists()
    with ListenerLock.acquire(data, OWNER) as lock:
        assert lock.identity == Identity("id", "token", "auth", "the label")


def test_a_released_lock_can_do_nothing(data: str) -> None:
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


def test_a_new_listener_removes_what_a_killed_one_left(data: str) -> None:
    leave_stale(data, OWNER)
    path_of(data, "4711.session.tmp").write_text("half")
    path_of(data, "4711.session.tmp").chmod(0o600)
    with ListenerLock.acquire(data, OWNER):
        assert not path_of(data, "4711.session").exists()
        assert not path_of(data, "4711.session.tmp").exists()


def test_a_starting_listener_is_not_taken_for_the_killed_one_before_it(data: str) -> None:
    leave_stale(data, OWNER, listener_started="long ago")
    fd = os.open(path_of(data, "4711.lock"), os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # a listener at the instant before it removes the file
        with pytest.raises(AlreadyListening) as caught:
            ListenerLock.acquire(data, OWNER)
        assert caught.value.state is None
    finally:
        os.close(fd)


def test_lookers_do_not_turn_a_listener_away(data: str) -> None:
    ListenerLock.acquire(data, OWNER).release()
    fd = os.open(path_of(data, "4711.lock"), os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    timer = threading.Timer(0.05, os.close, [fd])
    timer.start()
    try:
        ListenerLock.acquire(data, OWNER).release()
    finally:
        timer.join()


def test_a_looker_that_was_stopped_is_told_about(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "ACQUIRE_PATIENCE_S", 0.02)
    ListenerLock.acquire(data, OWNER).release()
    fd = os.open(path_of(data, "4711.lock"), os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        with pytest.raises(NotConnected, match="fuser"):
            ListenerLock.acquire(data, OWNER)
    finally:
        os.close(fd)


def test_a_lock_file_unlinked_in_between_does_not_count(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("name", ["4711.lock", "4711.session", "4711.session.tmp"])
def test_links_are_refused(data: str, tmp_path: Path, name: str) -> None:
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


def test_directory_open_to_others_is_refused(data: str) -> None:
    ListenerLock.acquire(data, OWNER).release()
    os.chmod(data + "/clients", 0o755)
    with pytest.raises(Unauthorized):
        ListenerLock.acquire(data, OWNER)


# --- the identity -----------------------------------------------------------------------------------------------


def test_identity_is_that_of_the_very_same_owner(data: str) -> None:
    leave_stale(data, OWNER)
    with ListenerLock.acquire(data, OWNER) as lock:
        assert lock.identity == Identity("id", "token", "auth", None)
    with ListenerLock.acquire(data, OWNER._replace(started="1001")) as lock:
        assert lock.identity is None
    assert os.listdir(data + "/clients") == ["4711.lock"], "a pid that was used again takes the name over"


def test_identity_changes_in_place(data: str) -> None:
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


def test_identity_survives_a_kill_between_write_and_truncation(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = ListenerLock.acquire(data, OWNER)
    lock.remember(Identity("id", "token", "a" * 40, "the old and long label"))
    monkeypatch.setattr(os, "ftruncate", lambda fd, length: None)
    lock.remember(Identity("id", "token", "b", None))
    lock.release()
    with ListenerLock.acquire(data, OWNER) as lock:
        assert lock.identity == Identity("id", "token", "b", None)


def whole_identity(data: str) -> bytes:
    with ListenerLock.acquire(data, OWNER) as lock:
        lock.remember(Identity("id", "token", "auth", "label"))
    return path_of(data, "4711.lock").read_bytes()


def test_torn_identity_counts_as_none(data: str) -> None:
    whole = whole_identity(data)
    for length in range(len(whole)):
        path_of(data, "4711.lock").write_bytes(whole[:length])
        with ListenerLock.acquire(data, OWNER) as lock:
            assert lock.identity is None


@pytest.mark.parametrize(
    "change", [{"session_id": ""}, {"session_id": 1}, {"token": ""}, {"token": None}, {"name": 1}, {"label": []}]
)
def test_wrong_identity_counts_as_none(data: str, change: dict[str, object]) -> None:
    record = json.loads(whole_identity(data)) | change
    path_of(data, "4711.lock").write_text(json.dumps(record) + "\n")
    with ListenerLock.acquire(data, OWNER) as lock:
        assert lock.identity is None


def test_full_disk_is_told_about(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_identity_keeps_the_port_of_its_broker(data: str) -> None:
    with ListenerLock.acquire(data, OWNER) as lock:
        lock.remember(Identity("id", "token", "auth", None, 12345))
    with ListenerLock.acquire(data, OWNER) as lock:
        assert lock.identity == Identity("id", "token", "auth", None, 12345)


def test_identity_of_a_release_that_did_not_keep_the_port(data: str) -> None:
    record = json.loads(whole_identity(data))
    del record["port"]
    path_of(data, "4711.lock").write_text(json.dumps(record) + "\n")
    with ListenerLock.acquire(data, OWNER) as lock:
        assert lock.identity == Identity("id", "token", "auth", "label", None)


@pytest.mark.parametrize("port", [0, -1, 65536, 2**70, True, "9473", 9473.0, [], {}])
def test_a_port_that_cannot_be_one_counts_as_none(data: str, port: object) -> None:
    """Who the session is does not depend on it."""
    record = json.loads(whole_identity(data)) | {"port": port}
    path_of(data, "4711.lock").write_text(json.dumps(record) + "\n")
    with ListenerLock.acquire(data, OWNER) as lock:
        assert lock.identity == Identity("id", "token", "auth", "label", None)


@pytest.mark.parametrize("port", [1, 65535])
def test_ports_at_the_ends_of_the_range(data: str, port: int) -> None:
    with ListenerLock.acquire(data, OWNER) as lock:
        lock.remember(Identity("id", "token", "auth", None, port))
    with ListenerLock.acquire(data, OWNER) as lock:
        assert lock.identity is not None and lock.identity.port == port


# --- the state file ---------------------------------------------------------------------------------------------


def test_state_round_trip(data: str) -> None:
    assert load_state(data, "4711") is None
    odd = state_of(OWNER, label='ü "x" \\ 😀', cwd=os.fsdecode(b"/tmp/not utf-8 \xff"))
    with ListenerLock.acquire(data, OWNER) as lock:
        lock.write_state(odd)
        assert load_state(data, "4711") == odd
    assert load_state(data, "4711") is None


def test_state_file_has_the_keys_of_the_contract(data: str) -> None:
    with ListenerLock.acquire(data, OWNER) as lock:
        lock.write_state(state_of(OWNER))
        record = json.loads(path_of(data, "4711.session").read_text())
    assert {"session_id", "name", "label", "listener_pid", "host", "port", "created_at"} <= set(record)


def put_state(data: str, content: bytes) -> None:
    ListenerLock.acquire(data, OWNER).release()
    path = path_of(data, "4711.session")
    path.touch(0o600)
    path.write_bytes(content)


GOOD = state_of(OWNER)._asdict()
#: Fit no field.
BAD_VALUES: tuple[object, ...] = ([], True, 1.5, {})


@pytest.mark.parametrize(
    "change",
    [
        *({field: value} for field in SessionState._fields for value in BAD_VALUES),
        *({field: None} for field in SessionState._fields if field != "label"),
        {"session_id": ""},
        {"token": ""},
        {"port": 0},
        {"port": 65536},
        {"port": "9473"},
        {"listener_pid": 0},
        {"listener_pid": -1},
        {"listener_pid": 2**31},
        {"owner_pid": 4712},
    ],
)
def test_damaged_field_makes_the_file_stale(data: str, change: dict[str, object]) -> None:
    put_state(data, json.dumps(GOOD | change).encode())
    assert load_state(data, "4711") is None
    assert find_session(data, OWNER) == (None, True)
    assert not path_of(data, "4711.session").exists()


@pytest.mark.parametrize("field", [field for field in SessionState._fields if field not in ("label", *Place._fields)])
def test_missing_field_makes_the_file_stale(data: str, field: str) -> None:
    put_state(data, json.dumps({key: value for key, value in GOOD.items() if key != field}).encode())
    assert load_state(data, "4711") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 60_000,
        b"\0" * 100,
        b" " * 70_000 + json.dumps(GOOD).encode(),
    ],
    ids=["empty", "torn", "null", "list", "string", "not utf-8", "deep", "zeros", "too long"],
)
def test_garbage_makes_the_file_stale(data: str, content: bytes) -> None:
    put_state(data, content)
    assert load_state(data, "4711") is None


def test_every_prefix_is_stale(data: str) -> None:
    whole = json.dumps(GOOD).encode()
    put_state(data, whole)
    assert load_state(data, "4711") == state_of(OWNER)
    for length in range(len(whole)):
        path_of(data, "4711.session").write_bytes(whole[:length])
        assert load_state(data, "4711") is None


def test_keys_of_a_newer_release_are_no_fault(data: str) -> None:
    put_state(data, json.dumps(GOOD | {"colour": "blue"}).encode())
    assert load_state(data, "4711") == state_of(OWNER)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@given(changes=st.dictionaries(st.sampled_from(SessionState._fields), json_values))
def test_any_json_is_a_sound_state_or_none(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    data = str(tmp_path_factory.mktemp("state") / "data")
    put_state(data, json.dumps(GOOD | changes).encode())
    found = load_state(data, "4711")
    if found is not None:
        assert found._asdict() == GOOD | changes
        assert found.token and found.owner_pid == OWNER.pid


def test_state_that_others_can_read_is_refused(data: str) -> None:
    put_state(data, json.dumps(GOOD).encode())
    path_of(data, "4711.session").chmod(0o644)
    with pytest.raises(Unauthorized):
        load_state(data, "4711")
    with pytest.raises(Unauthorized):
        find_session(data, OWNER)
    assert path_of(data, "4711.session").exists()


# --- finding it -------------------------------------------------------------------------------------------------


def test_nothing_there(data: str) -> None:
    assert find_session(data, OWNER, ME) == (None, False)
    assert not os.path.exists(data)
    with ListenerLock.acquire(data, OWNER):  # starting: no state yet
        assert find_session(data, OWNER) == (None, False)
    assert find_session(data, OWNER) == (None, False)


def test_live_session_is_found_through_its_owner(data: str) -> None:
    with ListenerLock.acquire(data, OWNER) as lock:
        lock.write_state(state_of(OWNER))
        assert find_session(data, OWNER) == (state_of(OWNER), False)
        assert find_session(data, OWNER._replace(started="1001")) == (None, False)
        assert path_of(data, "4711.session").exists()
    assert find_session(data, OWNER) == (None, False)


def test_stale_state_is_removed_and_told_once(data: str) -> None:
    leave_stale(data, OWNER)  # its listener_pid is alive: only the lock tells
    assert find_session(data, OWNER) == (None, True)
    assert not path_of(data, "4711.session").exists()
    assert find_session(data, OWNER) == (None, False)
    with ListenerLock.acquire(data, OWNER) as lock:
        assert lock.identity is not None  # who the session is was kept


def test_stale_state_without_a_lock_file(data: str) -> None:
    leave_stale(data, OWNER)
    path_of(data, "4711.lock").unlink()
    assert find_session(data, OWNER) == (None, True)
    assert not path_of(data, "4711.session").exists()


def test_nearest_ancestor_with_a_live_session(data: str) -> None:
    near, far, farther = at(20, "2"), at(10, "1"), at(5, "0")
    leave_stale(data, near)
    with ListenerLock.acquire(data, far) as lock, ListenerLock.acquire(data, farther) as other:
        lock.write_state(state_of(far))
        other.write_state(state_of(farther))
        assert find_session(data, OWNER, OWNER, near, far, farther) == (state_of(far), False)
        assert not path_of(data, "20.session").exists()
        assert find_session(data, OWNER, near) == (None, False)


def test_another_cleaner_at_work(data: str) -> None:
    leave_stale(data, OWNER)
    cleaning = begin_cleaning(data)
    assert cleaning is not None
    try:
        assert find_session(data, OWNER) == (None, True)
        assert reap(data, Table()) == []
        assert path_of(data, "4711.session").exists()
    finally:
        os.close(cleaning)
    assert reap(data, Table()) == ["4711.session", "4711.lock"]


def test_killed_listener(data: str) -> None:
    code = (
        "import json, sys\n"
        "from zmqbus.process import Process\n"
        "from zmqbus.session.lock import ListenerLock\n"
        "from zmqbus.session.state import SessionState\n"
        "lock = ListenerLock.acquire(sys.argv[1], Process(4711, '1000'))\n"
        "lock.write_state(SessionState(**json.loads(sys.argv[2])))\n"
        "print(flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, data, json.dumps(GOOD)]
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


def test_a_process_started_by_the_listener_does_not_inherit_the_lock(data: str) -> None:
    lock = ListenerLock.acquire(data, OWNER)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        lock.release()
        ListenerLock.acquire(data, OWNER).release()
    finally:
        child.communicate()


# --- finding one that is away -----------------------------------------------------------------------------------

AWAY = Identity("id", "token", "auth", "label", 12345)


def leave_away(data: str, owner: Process, identity: Identity = AWAY) -> None:
    """What a listener leaves that has ended, or a session that has joined without one."""
    with ListenerLock.acquire(data, owner) as lock:
        lock.remember(identity)


def test_nobody_is_away_where_nothing_is(data: str) -> None:
    assert find_away(data, OWNER, ME) is None
    assert not os.path.exists(data), "looking makes nothing"
    ListenerLock.acquire(data, OWNER).release()  # an empty lock file
    assert find_away(data, OWNER) is None


def test_an_identity_without_a_listener_is_away(data: str) -> None:
    leave_away(data, OWNER)
    assert find_away(data, OWNER) == (OWNER, AWAY)
    ListenerLock.acquire(data, OWNER).release()
    assert find_away(data, OWNER) == (OWNER, AWAY), "looking leaves the lock to the next listener"


def test_a_listener_that_was_killed_is_away(data: str) -> None:
    leave_stale(data, OWNER)
    assert find_away(data, OWNER) == (OWNER, Identity("id", "token", "auth", None))
    assert path_of(data, "4711.session").exists(), "it removes nothing"


def test_who_has_a_listener_is_not_away(data: str) -> None:
    with ListenerLock.acquire(data, OWNER) as lock:
        assert find_away(data, OWNER) is None  # has not said yet who it is
        lock.remember(AWAY)
        assert find_away(data, OWNER) is None  # is just beginning
        lock.write_state(state_of(OWNER))
        assert find_away(data, OWNER) is None
    assert find_away(data, OWNER) == (OWNER, AWAY)


def test_an_earlier_process_with_this_pid_is_not_this_one(data: str) -> None:
    leave_away(data, OWNER._replace(started="1"))
    assert find_away(data, OWNER) is None


def test_the_nearest_ancestor_that_has_a_session(data: str) -> None:
    near, far = at(20, "2"), at(10, "1")
    leave_away(data, far, AWAY._replace(name="far"))
    assert find_away(data, OWNER, OWNER, near, far) == (far, AWAY._replace(name="far"))
    leave_away(data, near._replace(started="1"), AWAY._replace(name="of an earlier process"))
    assert find_away(data, OWNER, near, far) == (far, AWAY._replace(name="far"))
    leave_away(data, near, AWAY._replace(name="near"))
    assert find_away(data, OWNER, near, far) == (near, AWAY._replace(name="near"))
    leave_away(data, OWNER)
    assert find_away(data, OWNER, near, far) == (OWNER, AWAY)
    assert find_away(data, OWNER) == (OWNER, AWAY)


def test_the_listener_of_the_nearest_one_stands_for_all_of_them(data: str) -> None:
    """Messages go to that one; mail of a session above it is not its business."""
    far = at(10, "1")
    leave_away(data, far)
    with ListenerLock.acquire(data, OWNER) as lock:
        lock.remember(AWAY)
        assert find_away(data, OWNER, far) is None


def test_a_session_without_a_name_has_no_mail(data: str) -> None:
    far = at(10, "1")
    leave_away(data, OWNER, AWAY._replace(name=None))
    assert find_away(data, OWNER) is None
    leave_away(data, far)
    assert find_away(data, OWNER, far) == (far, AWAY)


def test_a_torn_identity_is_nobody(data: str) -> None:
    leave_away(data, OWNER)
    whole = path_of(data, "4711.lock").read_bytes()
    for length in range(len(whole)):
        path_of(data, "4711.lock").write_bytes(whole[:length])
        assert find_away(data, OWNER) is None


@pytest.mark.parametrize("whose", [OWNER, at(10, "1")])
def test_a_lock_file_that_others_can_read_is_refused(data: str, whose: Process) -> None:
    leave_away(data, whose)
    path_of(data, f"{whose.pid}.lock").chmod(0o644)
    with pytest.raises(Unauthorized, match="chmod 600"):
        find_away(data, OWNER, at(10, "1"))


# --- cleaning up ------------------------------------------------------------------------------------------------


def test_reap_removes_what_dead_owners_left(data: str) -> None:
    dead, reused, alive, locked = at(11, "1"), at(12, "1"), at(13, "1"), at(14, "1")
    for owner in (dead, reused, alive):
        leave_stale(data, owner)
    path_of(data, "11.session.tmp").write_text("half")
    for name in ("11.shown", "11.shown.tmp", "13.shown", "14.shown"):
        path_of(data, name).touch(0o600)
    remember_label(data, "/p", "x")
    path_of(data, "notes.session").touch()
    path_of(data, "011.session").touch()
    with ListenerLock.acquire(data, locked) as lock:
        lock.write_state(state_of(locked))
        removed = reap(data, Table(alive, reused._replace(started="2")))
        dead_ones = ["11.lock", "11.session", "11.session.tmp", "11.shown", "11.shown.tmp", "12.lock", "12.session"]
        assert sorted(removed) == dead_ones
        assert find_session(data, locked) == (state_of(locked), False)
    left = set(os.listdir(data + "/clients"))
    assert {
        "13.lock",
        "13.session",
        "13.shown",
        "14.lock",
        "14.shown",
        "labels.json",
        "notes.session",
        "011.session",
    } <= left
    assert not {name for name in left if name.startswith(("11.", "12."))}
    assert load_label(data, "/p") == "x"


def test_reap_state_without_lock(data: str) -> None:
    leave_stale(data, OWNER)
    path_of(data, "4711.lock").unlink()
    assert reap(data, Table()) == ["4711.session"]
    assert not path_of(data, "4711.lock").exists()


def test_what_was_shown_outlives_the_listener_and_not_the_owner(data: str) -> None:
    leave_stale(data, OWNER)
    path_of(data, "4711.shown").touch(0o600)
    assert find_session(data, OWNER) == (None, True)  # removes the stale state
    assert reap(data, Table(OWNER)) == []
    ListenerLock.acquire(data, OWNER).release()
    assert path_of(data, "4711.shown").exists()
    path_of(data, "4711.lock").unlink()  # a cleaner that was killed in the middle
    assert reap(data, Table()) == ["4711.shown"]


def test_options_outlive_the_listener_and_not_the_owner(data: str) -> None:
    leave_stale(data, OWNER)
    hand_on(data, OWNER, {VARIABLES[0]: "12345"})
    path_of(data, "4711.options.tmp").touch(0o600)
    assert find_session(data, OWNER) == (None, True)  # removes the stale state
    assert reap(data, Table(OWNER)) == []
    assert with_options(data, OWNER, {}) == {VARIABLES[0]: "12345"}
    assert reap(data, Table()) == ["4711.options", "4711.options.tmp", "4711.lock"]
    assert os.listdir(data + "/clients") == ["reap.lock"]


@pytest.mark.parametrize("table", [Table(), Table(OWNER._replace(started="2"))], ids=["dead", "pid used again"])
def test_reap_removes_options_that_are_all_there_is(data: str, table: Table) -> None:
    """A session that never joined has nothing else."""
    hand_on(data, OWNER, {VARIABLES[0]: "12345"})
    assert reap(data, table) == ["4711.options"]
    assert os.listdir(data + "/clients") == ["reap.lock"]


def test_reap_keeps_options_that_are_all_there_is_while_their_owner_lives(data: str) -> None:
    hand_on(data, OWNER, {VARIABLES[0]: "12345"})
    assert reap(data, Table(OWNER)) == []
    assert with_options(data, OWNER, {}) == {VARIABLES[0]: "12345"}
    assert find_away(data, OWNER) is None
    assert find_session(data, OWNER) == (None, False)
    reap(data, Table())
    assert os.listdir(data + "/clients") == ["reap.lock"]


def test_reap_leaves_nothing_behind_where_it_removes_nothing(data: str) -> None:
    hand_on(data, OWNER, {VARIABLES[0]: "12345"})
    assert reap(data, Table(OWNER)) == []
    assert sorted(os.listdir(data + "/clients")) == ["4711.options", "reap.lock"]


def test_reap_keeps_damaged_options_while_any_process_has_the_pid(data: str) -> None:
    hand_on(data, OWNER, {})
    path_of(data, "4711.options").write_text("{")
    assert reap(data, Table(OWNER._replace(started="77"))) == []
    assert path_of(data, "4711.options").exists()
    reap(data, Table())
    assert os.listdir(data + "/clients") == ["reap.lock"]


def test_reap_passes_over_options_that_are_not_private(data: str) -> None:
    hand_on(data, OWNER, {})
    leave_stale(data, at(12, "1"))
    path_of(data, "4711.options").chmod(0o644)
    assert reap(data, Table()) == ["12.session", "12.lock"]
    assert path_of(data, "4711.options").exists()


def test_reap_keeps_an_empty_lock_while_any_process_has_the_pid(data: str) -> None:
    ListenerLock.acquire(data, at(12, "1")).release()
    path_of(data, "12.lock").unlink()
    path_of(data, "4711.lock").touch(0o600)
    assert reap(data, Table(OWNER._replace(started="77"))) == []
    assert reap(data, Table()) == ["4711.lock"]


def test_reap_passes_over_what_is_not_private(data: str) -> None:
    leave_stale(data, at(11, "1"))
    leave_stale(data, at(12, "1"))
    path_of(data, "11.lock").chmod(0o666)
    assert reap(data, Table()) == ["12.session", "12.lock"]


def test_reap_without_a_data_directory(data: str) -> None:
    assert reap(data) == []
    assert not os.path.exists(data)


def test_reap_with_real_processes(data: str) -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    owner = process_of(child.pid)
    leave_stale(data, owner)
    assert reap(data) == []
    child.kill()
    child.communicate()
    assert reap(data) == [f"{owner.pid}.session", f"{owner.pid}.lock"]


def run_together(*workers: Callable[[], None]) -> None:
    """Runs these at the same time, and raises what one of them raised. Locks are held by descriptors, so threads do."""
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
    """Listeners that come and go among lookers and cleaners; what each try for the lock came to.

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
                assert find_session(data, OWNER) == (state_of(OWNER), False)  # nobody removes what is live
                assert path_of(data, "4711.lock").exists()
                inside.pop()
                if number % 2:
                    lock.release()  # as if killed

    def listen_and_stop() -> None:
        try:
            listen()
        finally:
            done.set()

    def look() -> None:
        while not done.is_set():
            find_session(data, OWNER)

    def clean() -> None:
        while not done.is_set():
            reap(data, Table())

    run_together(listen_and_stop, *[listen] * (listeners - 1), look, clean, clean)
    return tries


def test_never_two_listeners_while_lookers_and_cleaners_are_at_work(data: str) -> None:
    assert True in race(data, 3)


def test_lookers_and_cleaners_never_turn_a_listener_away(data: str) -> None:
    assert race(data, 1) == [True] * 60


def test_of_many_listeners_at_once_one_stays(data: str) -> None:
    locks: list[ListenerLock] = []

    def listen() -> None:
        try:
            locks.append(ListenerLock.acquire(data, OWNER))
        except AlreadyListening:
            return

    run_together(*[listen] * 16)
    assert len(locks) == 1
    locks[0].release()


# --- weight -----------------------------------------------------------------------------------------------------


def test_module_is_cheap_to_import() -> None:
    code = "import sys, zmqbus.session.identity; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=True, cwd=ROOT
    )
    heavy = {
        "psutil",
        "pathlib",
        "dataclasses",
        "uuid",
        "subprocess",
        "shutil",
        "logging",
        "socket",
        "asyncio",
        "hashlib",
    }
    assert not heavy & set(done.stdout.split())


# --- looking without touching ---


def test_leftovers_are_what_reap_would_remove_and_the_state_of_dead_listeners(data: str) -> None:
    dead, reused, alive, locked = at(11, "1"), at(12, "1"), at(13, "1"), at(14, "1")
    for owner in (dead, reused, alive):
        leave_stale(data, owner)
    for name in ("11.session.tmp", "11.shown", "13.shown", "14.shown", "notes.session"):
        path_of(data, name).touch(0o600)
    table = Table(alive, reused._replace(started="2"))
    with ListenerLock.acquire(data, locked) as lock:
        lock.write_state(state_of(locked))
        before = sorted(os.listdir(data + "/clients"))
        found = leftovers(data, table)
        assert sorted(os.listdir(data + "/clients")) == before
        assert is_listening(data, locked)
        assert not is_listening(data, alive)
        assert sorted(reap(data, table)) == [name for name in found if name != "13.session"]
        assert "13.session" in found
        assert leftovers(data, table) == ["13.session"]


def test_leftovers_of_an_owner_without_a_lock_file(data: str) -> None:
    leave_stale(data, OWNER)
    path_of(data, "4711.lock").unlink()
    assert leftovers(data, Table()) == ["4711.session"]
    assert not path_of(data, "4711.lock").exists()


def test_leftovers_that_are_not_private_are_left_out(data: str) -> None:
    leave_stale(data, OWNER)
    path_of(data, "4711.lock").chmod(0o644)
    assert leftovers(data, Table()) == []


def test_no_clients_no_leftovers(tmp_path: Path) -> None:
    assert leftovers(str(tmp_path)) == []
    assert not is_listening(str(tmp_path), ME)


# --- one directory, several places ---

#: Places of others: a container on this kernel, another machine, and a process of an earlier release.
CONTAINER = HERE._replace(namespace="4026539999")
MACHINE = Place("4026531836", "another boot", "another machine")
EARLIER = Place()
ELSEWHERE = (CONTAINER, MACHINE, EARLIER)


@pytest.mark.parametrize("place", ELSEWHERE)
def test_files_of_another_place_are_left_alone(data: str, place: Place) -> None:
    """A container that shares the directory has no process 4711, and must not take the host's for dead."""
    leave_stale(data, at(4711, "1", place))
    hand_on(data, at(4711, "1", place), {})
    path_of(data, "4711.shown").touch(0o600)
    before = sorted(os.listdir(data + "/clients"))
    assert reap(data, Table()) == []
    assert leftovers(data, Table()) == []
    assert [name for name in sorted(os.listdir(data + "/clients")) if name != "reap.lock"] == before
    assert elsewhere(data) == ["4711"]


@pytest.mark.parametrize("place", [CONTAINER, MACHINE])
@pytest.mark.parametrize("started", ["1000", "1"])
def test_same_pid_elsewhere_keeps_its_session_and_its_mail(data: str, place: Place, started: str) -> None:
    """Not even the same start time makes it the same process."""
    other = at(4711, started, place)
    leave_away(data, other, AWAY._replace(session_id="other", token="of another"))
    hand_on(data, other, {VARIABLES[0]: "12345"})
    Shown(files_of(data, other), "other", keeper=True).open()
    before = {name: path_of(data, name).read_bytes() for name in os.listdir(data + "/clients")}
    assert find_away(data, OWNER) is None
    assert with_options(data, OWNER, {}) == {}
    with ListenerLock.acquire(data, OWNER) as lock:
        assert lock.identity is None
        lock.remember(AWAY)
        lock.write_state(state_of(OWNER))
        hand_on(data, OWNER, {VARIABLES[0]: "9999"})
        Shown(files_of(data, OWNER), AWAY.session_id, keeper=True).open()
        assert find_session(data, OWNER) == (state_of(OWNER), False)
        with pytest.raises(AlreadyListening, match=f"listener_pid={ME.pid}"):
            ListenerLock.acquire(data, OWNER)
        assert is_listening(data, OWNER)
        assert states(data) == [state_of(OWNER)]
    assert find_away(data, OWNER) == (OWNER, AWAY)
    assert with_options(data, OWNER, {}) == {VARIABLES[0]: "9999"}
    assert {name: path_of(data, name).read_bytes() for name in before} == before
    # Its own owner ends: only its own files go.
    own = f"4711-{HERE.tag}"
    assert sorted(reap(data, Table())) == [f"{own}.lock", f"{own}.options", f"{own}.shown"]
    assert {name: path_of(data, name).read_bytes() for name in before} == before


def test_live_listener_elsewhere_with_the_same_pid(data: str) -> None:
    other = at(4711, "1000", CONTAINER)
    with ListenerLock.acquire(data, other) as theirs:
        theirs.write_state(state_of(other))
        assert find_session(data, OWNER) == (None, False)
        with ListenerLock.acquire(data, OWNER) as ours:
            ours.write_state(state_of(OWNER))
            assert find_session(data, OWNER) == (state_of(OWNER), False)
            assert sorted(state.namespace for state in states(data)) == sorted((HERE.namespace, CONTAINER.namespace))
        assert load_state(data, "4711") == state_of(other)


def test_lock_says_whose_it_is_before_its_listener_is_connected(data: str) -> None:
    with ListenerLock.acquire(data, at(4711, "1", CONTAINER)):
        assert json.loads(path_of(data, "4711.lock").read_text()) == {"owner_started": "1", **CONTAINER._asdict()}
        ListenerLock.acquire(data, OWNER).release()


def test_lock_that_another_place_took_while_the_name_was_chosen(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_files_of_an_earlier_boot_of_this_machine_go(data: str) -> None:
    """With the same pid and the same start time: every boot counts both from the beginning."""
    leave_stale(data, at(4711, "1000", HERE._replace(boot="an earlier boot")))
    assert find_away(data, OWNER) is None
    assert sorted(reap(data, Table(OWNER))) == ["4711.lock", "4711.session"]


def test_earlier_release_wrote_no_place_and_is_still_its_own_session(data: str) -> None:
    leave_away(data, at(4711, "1000", EARLIER))
    record = json.loads(path_of(data, "4711.lock").read_text())
    for field in Place._fields:
        del record[field]
    path_of(data, "4711.lock").write_text(json.dumps(record) + "\n")
    assert find_away(data, OWNER) == (OWNER, AWAY)
    with ListenerLock.acquire(data, OWNER) as lock:
        assert lock.identity == AWAY
        old = {key: value for key, value in state_of(OWNER)._asdict().items() if key not in Place._fields}
        replace(str(path_of(data, "4711.session")), json.dumps(old).encode())
        found = find_session(data, OWNER)[0]
        assert found is not None and found.owner == at(4711, "1000", EARLIER)


def test_files_from_elsewhere_go_when_nothing_has_touched_them_for_long(data: str) -> None:
    owner = at(4711, "1", CONTAINER)
    long_ago = time.time() - FOREIGN_KEEP_S - 60
    with ListenerLock.acquire(data, owner) as lock:
        lock.remember(AWAY)
        hand_on(data, owner, {})
        for name in ("4711.lock", "4711.options"):
            os.utime(path_of(data, name), (long_ago, long_ago))
        assert reap(data, Table()) == [], "a listener holds it"
    path_of(data, "4711.shown").touch(0o600)
    assert reap(data, Table()) == [], "the session has shown something"
    os.utime(path_of(data, "4711.shown"), (long_ago, long_ago))
    assert sorted(reap(data, Table())) == ["4711.lock", "4711.options", "4711.shown"]


def test_listener_dates_its_lock_now_and_then(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ListenerLock.acquire(data, OWNER) as lock:
        os.utime(path_of(data, "4711.lock"), (1, 1))
        lock.touch()
        assert path_of(data, "4711.lock").stat().st_mtime == 1
        monkeypatch.setattr(lock_module, "TOUCH_S", 0.0)
        lock.touch()
        assert path_of(data, "4711.lock").stat().st_mtime > 1


def test_hidden_owner_is_not_taken_for_dead(data: str) -> None:
    """/proc is not mounted, or hides what is not ours: the kernel still says that there is such a process."""

    class Hiding(Table):
        def look(self, pid: int) -> ProcessEntry | None:
            return None

    leave_away(data, OWNER)
    path_of(data, "12.lock").touch(0o600)
    assert reap(data, Hiding(OWNER, at(12, "1"))) == []
    assert sorted(reap(data, Hiding())) == ["12.lock", "4711.lock"]
