"""Files of sessions that have ended: which are removed, and when."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.session.session_files import (
    AWAY,
    CONTAINER,
    ELSEWHERE,
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
from zmqbus.process import Place, ProcessEntry, process_of
from zmqbus.session.identity import is_listening
from zmqbus.session.labels import load_label, remember_label
from zmqbus.session.leftovers import FOREIGN_KEEP_S, begin_cleaning, elsewhere, leftovers, reap
from zmqbus.session.lock import ListenerLock
from zmqbus.session.plugin_options import VARIABLES, hand_on


class TestReap:
    def test_files_of_dead_owners_are_removed(self, data: str) -> None:
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

    def test_state_without_a_lock_is_removed(self, data: str) -> None:
        leave_stale(data, OWNER)
        path_of(data, "4711.lock").unlink()
        assert reap(data, Table()) == ["4711.session"]
        assert not path_of(data, "4711.lock").exists()

    def test_shown_ids_outlive_the_listener_and_not_the_owner(self, data: str) -> None:
        leave_stale(data, OWNER)
        path_of(data, "4711.shown").touch(0o600)
        assert find_session(data, OWNER) == (None, True)  # removes the stale state
        assert reap(data, Table(OWNER)) == []
        ListenerLock.acquire(data, OWNER).release()
        assert path_of(data, "4711.shown").exists()
        path_of(data, "4711.lock").unlink()  # a cleaner that was killed in the middle
        assert reap(data, Table()) == ["4711.shown"]

    def test_empty_lock_is_kept_while_any_process_has_the_pid(self, data: str) -> None:
        ListenerLock.acquire(data, at(12, "1")).release()
        path_of(data, "12.lock").unlink()
        path_of(data, "4711.lock").touch(0o600)
        assert reap(data, Table(OWNER._replace(started="77"))) == []
        assert reap(data, Table()) == ["4711.lock"]

    def test_files_that_are_not_private_are_left(self, data: str) -> None:
        leave_stale(data, at(11, "1"))
        leave_stale(data, at(12, "1"))
        path_of(data, "11.lock").chmod(0o666)
        assert reap(data, Table()) == ["12.session", "12.lock"]

    def test_no_data_directory(self, data: str) -> None:
        assert reap(data) == []
        assert not os.path.exists(data)

    def test_real_process(self, data: str) -> None:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        owner = process_of(child.pid)
        leave_stale(data, owner)
        assert reap(data) == []
        child.kill()
        child.communicate()
        assert reap(data) == [f"{owner.pid}.session", f"{owner.pid}.lock"]

    def test_another_cleaner_at_work(self, data: str) -> None:
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

    def test_hidden_owner_is_not_taken_for_dead(self, data: str) -> None:
        """/proc is not mounted, or hides processes of others: the kernel still knows that there is such a process."""

        class Hiding(Table):
            def look(self, pid: int) -> ProcessEntry | None:
                return None

        leave_away(data, OWNER)
        path_of(data, "12.lock").touch(0o600)
        assert reap(data, Hiding(OWNER, at(12, "1"))) == []
        assert sorted(reap(data, Hiding())) == ["12.lock", "4711.lock"]


class TestReapOptions:
    """The plugin's options may be all that there is of a session."""

    def test_options_outlive_the_listener_and_not_the_owner(self, data: str) -> None:
        leave_stale(data, OWNER)
        hand_on(data, OWNER, {VARIABLES[0]: "12345"})
        path_of(data, "4711.options.tmp").touch(0o600)
        assert find_session(data, OWNER) == (None, True)  # removes the stale state
        assert reap(data, Table(OWNER)) == []
        assert with_options(data, OWNER, {}) == {VARIABLES[0]: "12345"}
        assert reap(data, Table()) == ["4711.options", "4711.options.tmp", "4711.lock"]
        assert os.listdir(data + "/clients") == ["reap.lock"]

    @pytest.mark.parametrize("table", [Table(), Table(OWNER._replace(started="2"))], ids=["dead", "pid used again"])
    def test_options_alone_are_removed(self, data: str, table: Table) -> None:
        """A session that never joined has nothing else."""
        hand_on(data, OWNER, {VARIABLES[0]: "12345"})
        assert reap(data, table) == ["4711.options"]
        assert os.listdir(data + "/clients") == ["reap.lock"]

    def test_options_alone_are_kept_while_their_owner_lives(self, data: str) -> None:
        hand_on(data, OWNER, {VARIABLES[0]: "12345"})
        assert reap(data, Table(OWNER)) == []
        assert sorted(os.listdir(data + "/clients")) == ["4711.options", "reap.lock"], "no lock was left behind"
        assert with_options(data, OWNER, {}) == {VARIABLES[0]: "12345"}
        assert find_away(data, OWNER) is None
        assert find_session(data, OWNER) == (None, False)
        reap(data, Table())
        assert os.listdir(data + "/clients") == ["reap.lock"]

    def test_damaged_options_are_kept_while_any_process_has_the_pid(self, data: str) -> None:
        hand_on(data, OWNER, {})
        path_of(data, "4711.options").write_text("{")
        assert reap(data, Table(OWNER._replace(started="77"))) == []
        assert path_of(data, "4711.options").exists()
        reap(data, Table())
        assert os.listdir(data + "/clients") == ["reap.lock"]

    def test_options_that_are_not_private_are_left(self, data: str) -> None:
        hand_on(data, OWNER, {})
        leave_stale(data, at(12, "1"))
        path_of(data, "4711.options").chmod(0o644)
        assert reap(data, Table()) == ["12.session", "12.lock"]
        assert path_of(data, "4711.options").exists()


class TestLeftovers:
    """`leftovers` names the files that `reap` would remove."""

    def test_names_removable_files_and_the_state_of_dead_listeners(self, data: str) -> None:
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

    def test_owner_without_a_lock_file(self, data: str) -> None:
        leave_stale(data, OWNER)
        path_of(data, "4711.lock").unlink()
        assert leftovers(data, Table()) == ["4711.session"]
        assert not path_of(data, "4711.lock").exists()

    def test_files_that_are_not_private_are_omitted(self, data: str) -> None:
        leave_stale(data, OWNER)
        path_of(data, "4711.lock").chmod(0o644)
        assert leftovers(data, Table()) == []

    def test_no_sessions_at_all(self, tmp_path: Path) -> None:
        assert leftovers(str(tmp_path)) == []
        assert not is_listening(str(tmp_path), ME)


class TestPlaces:
    """Owners of other PID namespaces and machines cannot be judged from here."""

    @pytest.mark.parametrize("place", ELSEWHERE)
    def test_files_of_another_place_are_left_alone(self, data: str, place: Place) -> None:
        """A container that shares the directory has no process 4711, and must not take the host's for dead."""
        leave_stale(data, at(4711, "1", place))
        hand_on(data, at(4711, "1", place), {})
        path_of(data, "4711.shown").touch(0o600)
        before = sorted(os.listdir(data + "/clients"))
        assert reap(data, Table()) == []
        assert leftovers(data, Table()) == []
        assert [name for name in sorted(os.listdir(data + "/clients")) if name != "reap.lock"] == before
        assert elsewhere(data) == ["4711"]

    def test_foreign_files_are_removed_after_a_month_untouched(self, data: str) -> None:
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
