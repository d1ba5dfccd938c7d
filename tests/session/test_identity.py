"""Who a process is on the bus: its settings, and its session, live or away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.session.session_files import (
    AWAY,
    CONTAINER,
    EARLIER,
    HERE,
    MACHINE,
    ME,
    OWNER,
    Table,
    at,
    find_away,
    find_session,
    leave_away,
    leave_stale,
    path_of,
    state_of,
    with_options,
)
from zmqbus.errors import InvalidOption, NotConnected, Unauthorized
from zmqbus.process import Place, Process
from zmqbus.security.private_files import replace
from zmqbus.session.identity import identify, is_listening
from zmqbus.session.leftovers import reap
from zmqbus.session.lock import AlreadyListening, ListenerLock
from zmqbus.session.owner_files import files_of
from zmqbus.session.plugin_options import VARIABLES, hand_on
from zmqbus.session.shown_log import Shown
from zmqbus.session.state import (
    Identity,
    states,
)


class TestFindSession:
    def test_nothing_is_found_or_made_where_nothing_is(self, data: str) -> None:
        assert find_session(data, OWNER, ME) == (None, False)
        assert not os.path.exists(data)
        with ListenerLock.acquire(data, OWNER):  # starting: no state yet
            assert find_session(data, OWNER) == (None, False)
        assert find_session(data, OWNER) == (None, False)

    def test_live_session_is_found_through_its_owner(self, data: str) -> None:
        with ListenerLock.acquire(data, OWNER) as lock:
            lock.write_state(state_of(OWNER))
            assert find_session(data, OWNER) == (state_of(OWNER), False)
            assert find_session(data, OWNER._replace(started="1001")) == (None, False)
            assert path_of(data, "4711.session").exists()
        assert find_session(data, OWNER) == (None, False)

    def test_stale_state_is_removed_and_reported_once(self, data: str) -> None:
        leave_stale(data, OWNER)  # its listener_pid is alive: only the lock tells
        assert find_session(data, OWNER) == (None, True)
        assert not path_of(data, "4711.session").exists()
        assert find_session(data, OWNER) == (None, False)
        with ListenerLock.acquire(data, OWNER) as lock:
            assert lock.identity is not None  # who the session is was kept

    def test_stale_state_without_a_lock_file(self, data: str) -> None:
        leave_stale(data, OWNER)
        path_of(data, "4711.lock").unlink()
        assert find_session(data, OWNER) == (None, True)
        assert not path_of(data, "4711.session").exists()

    def test_nearest_owner_with_a_live_session_wins(self, data: str) -> None:
        near, far, farther = at(20, "2"), at(10, "1"), at(5, "0")
        leave_stale(data, near)
        with ListenerLock.acquire(data, far) as lock, ListenerLock.acquire(data, farther) as other:
            lock.write_state(state_of(far))
            other.write_state(state_of(farther))
            assert find_session(data, OWNER, OWNER, near, far, farther) == (state_of(far), False)
            assert not path_of(data, "20.session").exists()
            assert find_session(data, OWNER, near) == (None, False)


class TestAway:
    """A session without a listener."""

    def test_nothing_is_away_where_nothing_is(self, data: str) -> None:
        assert find_away(data, OWNER, ME) is None
        assert not os.path.exists(data), "looking makes nothing"
        ListenerLock.acquire(data, OWNER).release()  # an empty lock file
        assert find_away(data, OWNER) is None

    def test_identity_without_a_listener_is_away(self, data: str) -> None:
        leave_away(data, OWNER)
        assert find_away(data, OWNER) == (OWNER, AWAY)
        ListenerLock.acquire(data, OWNER).release()
        assert find_away(data, OWNER) == (OWNER, AWAY), "looking leaves the lock to the next listener"

    def test_session_of_a_killed_listener_is_away(self, data: str) -> None:
        leave_stale(data, OWNER)
        assert find_away(data, OWNER) == (OWNER, Identity("id", "token", "auth", None))
        assert path_of(data, "4711.session").exists(), "it removes nothing"

    def test_session_with_a_listener_is_not_away(self, data: str) -> None:
        with ListenerLock.acquire(data, OWNER) as lock:
            assert find_away(data, OWNER) is None  # has not said yet who it is
            lock.remember(AWAY)
            assert find_away(data, OWNER) is None  # is just beginning
            lock.write_state(state_of(OWNER))
            assert find_away(data, OWNER) is None
        assert find_away(data, OWNER) == (OWNER, AWAY)

    def test_session_of_an_earlier_process_with_this_pid_is_ignored(self, data: str) -> None:
        leave_away(data, OWNER._replace(started="1"))
        assert find_away(data, OWNER) is None

    def test_nearest_owner_with_a_session_wins(self, data: str) -> None:
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

    def test_listener_of_the_nearest_owner_hides_the_others(self, data: str) -> None:
        """Messages go to that one; mail of a session above it is not its business."""
        far = at(10, "1")
        leave_away(data, far)
        with ListenerLock.acquire(data, OWNER) as lock:
            lock.remember(AWAY)
            assert find_away(data, OWNER, far) is None

    def test_session_without_a_name_is_ignored(self, data: str) -> None:
        far = at(10, "1")
        leave_away(data, OWNER, AWAY._replace(name=None))
        assert find_away(data, OWNER) is None
        leave_away(data, far)
        assert find_away(data, OWNER, far) == (far, AWAY)

    @pytest.mark.parametrize("whose", [OWNER, at(10, "1")])
    def test_lock_file_that_others_can_read_is_refused(self, data: str, whose: Process) -> None:
        leave_away(data, whose)
        path_of(data, f"{whose.pid}.lock").chmod(0o644)
        with pytest.raises(Unauthorized, match="chmod 600"):
            find_away(data, OWNER, at(10, "1"))


class TestPlaces:
    """One data directory, several PID namespaces and machines."""

    @pytest.mark.parametrize("place", [CONTAINER, MACHINE])
    @pytest.mark.parametrize("started", ["1000", "1"])
    def test_process_elsewhere_with_the_same_pid_keeps_its_files(self, data: str, place: Place, started: str) -> None:
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

    def test_files_of_an_earlier_boot_are_removed(self, data: str) -> None:
        """With the same pid and the same start time: every boot counts both from the beginning."""
        leave_stale(data, at(4711, "1000", HERE._replace(boot="an earlier boot")))
        assert find_away(data, OWNER) is None
        assert sorted(reap(data, Table(OWNER))) == ["4711.lock", "4711.session"]

    def test_session_of_an_earlier_release_without_a_place_is_its_own(self, data: str) -> None:
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


class TestIdentify:
    @pytest.fixture
    def environ(self, data: str) -> dict[str, str]:
        return {"HOME": "/home/u", "INTER_SESSION_DATA_DIR": data, "INTER_SESSION_PPID_OVERRIDE": str(ME.pid)}

    def test_each_setting_is_loaded_once(self, environ: dict[str, str]) -> None:
        warnings: list[str] = []
        faulty = {"INTER_SESSION_PORT": "x", "INTER_SESSION_LOOPBACK_ONLY": "x"}
        caller = identify({"name": "web"}, {**environ, **faulty}, warn=warnings.append)
        assert (caller.settings.name, caller.settings.port, caller.owner) == ("web", 9473, ME)
        assert [re.findall("INTER_[A-Z_]+", text) for text in warnings] == [[name] for name in faulty]

    def test_options_that_the_hook_has_stored_count(self, environ: dict[str, str]) -> None:
        identify(None, {**environ, VARIABLES[0]: "12345"}, hands_on=True)
        assert identify(None, environ).settings.port == 12345
        assert identify({"port": "9999"}, environ).settings.port == 9999

    def test_a_wrong_flag_is_an_error(self, environ: dict[str, str]) -> None:
        with pytest.raises(InvalidOption, match="--port"):
            identify({"port": "x"}, environ)

    def test_a_session_that_is_away_is_noted_as_disconnected(self, data: str, environ: dict[str, str]) -> None:
        caller = identify(None, environ)
        caller.note_disconnected()  # of no session
        leave_away(data, ME)
        caller.note_disconnected()
        joined = caller.joined()
        assert joined is not None and joined.identity == AWAY._replace(left=True) and joined.is_away

    def test_without_a_listener_nothing_acts_as_the_session(self, data: str, environ: dict[str, str]) -> None:
        leave_away(data, ME)
        with pytest.raises(NotConnected, match="not connected; run "):
            identify(None, environ).act()


@pytest.mark.parametrize("module", ["identity", "shown_log"])
def test_hot_modules_are_cheap_to_import(module: str) -> None:
    code = f"import sys, zmqbus.session.{module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=True, cwd=ROOT
    )
    heavy = {"psutil", "pathlib", "dataclasses", "uuid", "subprocess", "shutil", "logging", "socket", "asyncio"}
    assert not (heavy | {"hashlib", "zmq"}) & set(done.stdout.split())
