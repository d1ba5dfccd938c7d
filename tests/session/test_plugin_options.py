"""The plugin's options, from its hook to the monitor and the commands of the same session."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from zmqbus.errors import Unauthorized
from zmqbus.process import Process, this_machine
from zmqbus.session import plugin_options
from zmqbus.session.owner_files import OwnerFiles, files_of, record_of
from zmqbus.session.plugin_options import MAX_BYTES, VARIABLES, await_options, hand_on
from zmqbus.settings import DEFAULT_IDLE_SHUTDOWN_MIN, DEFAULT_PORT, load

OWNER = Process(4711, "1000", *this_machine().place())
PORT, MINUTES, _ = VARIABLES
SET = {PORT: "12345", MINUTES: "2.5"}
#: Only a hang exceeds it.
DEADLINE_S = 90.0


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def with_options(data: str, owner: Process, environ: Mapping[str, str]) -> Mapping[str, str]:
    return plugin_options.with_options(files_of(data, owner), environ)


def path_of(data: str, owner: Process = OWNER) -> Path:
    return Path(data, "clients", f"{owner.pid}.options")


def put(data: str, content: bytes) -> Path:
    """Replaces the content of the options file."""
    hand_on(data, OWNER, {})
    path = path_of(data)
    path.write_bytes(content)
    return path


class TestHandOn:
    """Which options reach the other processes of the session."""

    def test_round_trip(self, data: str) -> None:
        hand_on(data, OWNER, SET)
        assert with_options(data, OWNER, {}) == SET
        assert with_options(data, OWNER, {"HOME": "/home/u"}) == {"HOME": "/home/u", **SET}

    def test_settings_use_the_options(self, data: str) -> None:
        hand_on(data, OWNER, SET)
        settings = load(environ=with_options(data, OWNER, {"INTER_SESSION_DATA_DIR": data}))
        assert (settings.port, settings.idle_shutdown_s, settings.data_dir) == (12345, 150.0, data)

    def test_only_the_options_of_the_bus_are_handed_on(self, data: str) -> None:
        others = {"CLAUDE_PLUGIN_OPTION_COLOUR": "blue", "INTER_SESSION_PORT": "9999", "TOKEN": "secret"}
        hand_on(data, OWNER, {**SET, **others})
        assert with_options(data, OWNER, {}) == SET
        assert b"secret" not in path_of(data).read_bytes()

    def test_unset_options_are_not_handed_on(self, data: str) -> None:
        hand_on(data, OWNER, {PORT: "", "HOME": "/home/u"})
        assert json.loads(path_of(data).read_bytes()) == {**record_of(OWNER), "options": {}}
        assert with_options(data, OWNER, {}) == {}

    def test_blank_value_counts_as_unset(self, data: str) -> None:
        hand_on(data, OWNER, {PORT: " ", MINUTES: "\t"})
        warnings: list[str] = []
        settings = load(environ=with_options(data, OWNER, {"HOME": "/home/u"}), warn=warnings.append)
        assert (settings.port, settings.idle_shutdown_s) == (DEFAULT_PORT, DEFAULT_IDLE_SHUTDOWN_MIN * 60)
        assert warnings == []

    def test_options_that_are_unset_again_disappear(self, data: str) -> None:
        hand_on(data, OWNER, SET)
        hand_on(data, OWNER, {PORT: "12346"})
        assert with_options(data, OWNER, {}) == {PORT: "12346"}
        hand_on(data, OWNER, {})
        assert with_options(data, OWNER, {}) == {}

    def test_own_environment_wins(self, data: str) -> None:
        hand_on(data, OWNER, SET)
        assert with_options(data, OWNER, {PORT: "9999"}) == {PORT: "9999", MINUTES: "2.5"}

    @pytest.mark.parametrize("blank", ["", " ", "\n\t"])
    def test_blank_variable_in_the_own_environment_does_not_win(self, data: str, blank: str) -> None:
        hand_on(data, OWNER, SET)
        assert with_options(data, OWNER, {PORT: blank}) == SET

    def test_each_owner_has_its_own_options(self, data: str) -> None:
        other = Process(4712, "1000")
        hand_on(data, OWNER, {PORT: "1"})
        hand_on(data, other, {PORT: "2"})
        assert with_options(data, OWNER, {}) == {PORT: "1"}
        assert with_options(data, other, {}) == {PORT: "2"}
        assert with_options(data, Process(4713, "1000"), {}) == {}

    def test_options_of_an_earlier_process_with_this_pid_are_ignored(self, data: str) -> None:
        hand_on(data, OWNER, SET)
        later = OWNER._replace(started="2000")
        assert with_options(data, later, {"HOME": "/home/u"}) == {"HOME": "/home/u"}
        hand_on(data, later, {PORT: "1"})
        assert with_options(data, later, {}) == {PORT: "1"}
        assert with_options(data, OWNER, {}) == {}


class TestFile:
    """The file is private, replaced as a whole, and harmless when damaged."""

    def test_file_and_directories_are_private_whatever_the_umask(self, data: str) -> None:
        old = os.umask(0)
        try:
            hand_on(data, OWNER, SET)
        finally:
            os.umask(old)
        assert os.listdir(path_of(data).parent) == ["4711.options"]
        modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (data, path_of(data).parent, path_of(data))]
        assert modes == [0o700, 0o700, 0o600]

    def test_unchanged_options_are_not_rewritten(self, data: str) -> None:
        """SessionStart comes after each `/clear` and `/compact`, too."""
        hand_on(data, OWNER, SET)
        before = path_of(data).stat()
        hand_on(data, OWNER, dict(reversed(SET.items())))
        after = path_of(data).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        hand_on(data, OWNER, {PORT: "1"})
        assert path_of(data).stat().st_ino != before.st_ino, "replaced as a whole"

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b'"x"',
            b"\xff\xfe",
            b"[" * 4000,
            b"{}",
            b'{"owner_started": "1000"}',
            b'{"owner_started": "1000", "options": null}',
            b'{"owner_started": "1000", "options": ["12345"]}',
            b'{"owner_started": 1000, "options": {}}',
            b" " * MAX_BYTES + json.dumps({"owner_started": "1000", "options": SET}).encode(),
        ],
        ids=range(13),
    )
    def test_damaged_file_counts_as_none_and_is_rewritten(self, data: str, content: bytes) -> None:
        put(data, content)
        own = {"HOME": "/home/u"}
        assert with_options(data, OWNER, own) == own
        hand_on(data, OWNER, SET)
        assert with_options(data, OWNER, {}) == SET

    def test_every_prefix_counts_as_none(self, data: str) -> None:
        hand_on(data, OWNER, SET)
        whole = path_of(data).read_bytes()
        for length in range(len(whole)):
            path_of(data).write_bytes(whole[:length])
            assert with_options(data, OWNER, {}) == {}

    @pytest.mark.parametrize("value", [12345, None, True, [], {}])
    def test_value_of_another_type_is_ignored(self, data: str, value: object) -> None:
        put(data, json.dumps({"owner_started": "1000", "options": {PORT: value, MINUTES: "5", "HOME": "/"}}).encode())
        assert with_options(data, OWNER, {}) == {MINUTES: "5"}

    def test_draft_of_a_killed_hook_is_overwritten(self, data: str) -> None:
        hand_on(data, OWNER, {})
        draft = path_of(data).with_suffix(".options.tmp")
        draft.touch(0o600)
        draft.write_text("half of something that was longer than what comes now" * 10)
        hand_on(data, OWNER, SET)
        assert with_options(data, OWNER, {}) == SET
        assert not draft.exists()

    @pytest.mark.parametrize("mode", [0o644, 0o620, 0o666])
    def test_file_that_others_can_access_is_refused(self, data: str, mode: int) -> None:
        hand_on(data, OWNER, SET)
        path_of(data).chmod(mode)
        with pytest.raises(Unauthorized, match="chmod 600"):
            await_options(data, OWNER, DEADLINE_S)
        with pytest.raises(Unauthorized, match="chmod 600"):
            hand_on(data, OWNER, {PORT: "1"})
        assert json.loads(path_of(data).read_bytes())["options"] == SET

    def test_link_is_refused(self, data: str, tmp_path: Path) -> None:
        hand_on(data, OWNER, SET)
        elsewhere = tmp_path / "elsewhere"
        path_of(data).rename(elsewhere)
        path_of(data).symlink_to(elsewhere)
        with pytest.raises(Unauthorized, match="symbolic link"):
            with_options(data, OWNER, {})
        with pytest.raises(Unauthorized, match="symbolic link"):
            hand_on(data, OWNER, {PORT: "1"})

    @pytest.mark.parametrize("directory", ["", "clients"])
    def test_directories_that_others_can_enter_are_refused(self, data: str, directory: str) -> None:
        hand_on(data, OWNER, {})
        Path(data, directory).chmod(0o755)
        with pytest.raises(Unauthorized, match="chmod 700"):
            hand_on(data, OWNER, SET)


class TestWaiting:
    """A monitor waits for the hook of its session's start."""

    def test_waits_for_the_hook(self, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
        looked = threading.Event()
        read = plugin_options._read

        def reading(files: OwnerFiles) -> dict[str, str] | None:
            found = read(files)
            looked.set()
            return found

        def hook() -> None:
            assert looked.wait(DEADLINE_S)
            hand_on(data, OWNER, SET)

        monkeypatch.setattr(plugin_options, "_read", reading)
        thread = threading.Thread(target=hook)
        thread.start()
        try:
            await_options(data, OWNER, DEADLINE_S)
            assert with_options(data, OWNER, {}) == SET
        finally:
            looked.set()
            thread.join()

    def test_no_options_end_the_wait(self, data: str) -> None:
        hand_on(data, OWNER, {})
        start_s = time.monotonic()
        await_options(data, OWNER, 10 * DEADLINE_S)
        assert with_options(data, OWNER, {}) == {}
        assert time.monotonic() - start_s < DEADLINE_S

    def test_options_of_an_earlier_process_do_not_end_the_wait(
        self, data: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hand_on(data, OWNER, SET)
        later = OWNER._replace(started="2000")
        # The hook comes at the moment in which the monitor looks for the second time.
        monkeypatch.setattr(time, "sleep", lambda seconds: hand_on(data, later, {PORT: "1"}))
        await_options(data, later, DEADLINE_S)
        assert with_options(data, later, {}) == {PORT: "1"}

    def test_wait_ends_where_hooks_are_switched_off(self, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A monitor starts without the hook where hooks are switched off."""
        own = {"HOME": "/home/u"}
        now_s = [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
        monkeypatch.setattr(time, "sleep", lambda seconds: now_s.__setitem__(0, now_s[0] + seconds))
        await_options(data, OWNER, 2.0)
        assert with_options(data, OWNER, own) == own
        assert now_s[0] == pytest.approx(102.0, abs=0.05)
        assert not os.path.exists(data), "a check creates nothing"
