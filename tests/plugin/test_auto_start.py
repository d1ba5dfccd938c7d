"""auto_start.py switches the plugin's monitor, in an installed plugin and nowhere else.

Each test has its own copy of the plugin, with files in place of links, as an installation has them.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.plugin.conftest import TIMEOUT_S, Run, copied
from zmqbus.cli import auto_start
from zmqbus.cli.auto_start import ALWAYS, ON_SKILL, find_plugin

#: Each test copies a plugin and runs the command in it; together they take half a minute.
pytestmark = pytest.mark.slow


ON = "auto-start is on: the monitor starts with every session\n"
OFF = "auto-start is off: the monitor starts when a session uses the skill inter-session\n"
APPLY = "run /reload-plugins to apply it; an update of the plugin sets it back to off\n"
NOTHING_TO_SWITCH = "auto-start: nothing to switch: "


def apply_with(script: str) -> str:
    """How to apply the change: `zmqbus` addresses a person at a shell, the script an agent."""
    return APPLY if script.endswith(".py") else APPLY.replace("/reload-plugins", "/reload-plugins in Claude Code")


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    return copied(ROOT / "plugin", tmp_path / "plugin")


@pytest.fixture
def monitors(plugin: Path) -> Path:
    return plugin / "monitors" / "monitors.json"


def answer(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a successful command."""
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def when(monitors: Path) -> str:
    value: str = json.loads(monitors.read_bytes())[0]["when"]
    return value


def write(monitors: Path, value: object) -> bytes:
    text = json.dumps(value).encode()
    monitors.write_bytes(text)
    return text


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def refusal(done: subprocess.CompletedProcess[str], monitors: Path) -> str:
    """The error line of a failed command, which names the file."""
    assert (done.returncode, done.stdout) == (1, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: auto_start: ") and str(monitors) in line
    return line


DAMAGED = {
    "empty": b"",
    "torn": b'[{"name": "inter-session", "wh',
    "not utf-8": b"\xff\xfe[]",
    "two values": b"[] []",
    "too long": b" " * auto_start.MAX_BYTES + b'[{"name": "inter-session"}]',
}


def call_main(plugin: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Runs the command in this process, as the script of this plugin."""
    monkeypatch.setattr(sys, "argv", [str(plugin / "bin" / "auto_start.py"), *words])
    return auto_start.main(list(words))


class TestSwitch:
    """The monitor is switched on and off, and the rest of monitors.json stays."""

    def test_status_on_and_off(self, run: Run, plugin: Path, monitors: Path) -> None:
        script = plugin / "bin" / "auto_start.py"
        fresh = monitors.read_bytes()
        assert answer(run(script, "--status")) == OFF
        assert monitors.read_bytes() == fresh
        assert answer(run(script, "--on")) == ON + APPLY
        assert when(monitors) == ALWAYS
        assert answer(run(script, "--status")) == ON
        assert answer(run(script, "--off")) == OFF + APPLY
        assert when(monitors) == ON_SKILL
        assert json.loads(monitors.read_bytes()) == json.loads(fresh)
        assert names(monitors.parent) == ["monitors.json"]

    def test_status_is_the_default(self, run: Run, plugin: Path, monitors: Path) -> None:
        fresh = monitors.read_bytes()
        assert answer(run(plugin / "bin" / "auto_start.py")) == OFF
        assert monitors.read_bytes() == fresh

    @pytest.mark.parametrize(("switch", "said"), [("--off", OFF), ("--on", ON)])
    def test_unchanged_value_is_not_rewritten(
        self, run: Run, plugin: Path, monitors: Path, switch: str, said: str
    ) -> None:
        script = plugin / "bin" / "auto_start.py"
        run(script, switch)
        before = monitors.stat()
        assert answer(run(script, switch)) == said, "nothing has to be reloaded"
        after = monitors.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    @pytest.mark.parametrize("words", [["--on", "--off"], ["--on", "--status"], ["--of"], ["on"], ["--off", "now"]])
    def test_wrong_usage(self, run: Run, plugin: Path, monitors: Path, words: list[str]) -> None:
        fresh = monitors.read_bytes()
        done = run(plugin / "bin" / "auto_start.py", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: usage: ") and "\nusage: zmqbus auto-start" in done.stderr
        assert monitors.read_bytes() == fresh

    def test_everything_else_is_unchanged(self, run: Run, plugin: Path, monitors: Path) -> None:
        ours: dict[str, object] = {
            "zebra": [1, {"b": None, "a": 0.5}],
            "when": ON_SKILL,
            "name": "inter-session",
            "command": 'exec python3 "${CLAUDE_PLUGIN_ROOT}/bin/client.py" --name "Grüße ↵"',
            "description": "mine",
            "apple": True,
        }
        others = [{"name": "before", "when": ON_SKILL}, "a word", None, {"when": "always"}]
        after = [{"name": "inter-session", "when": ON_SKILL, "note": "the second of that name"}, {"name": "after"}]
        write(monitors, [*others, ours, *after])
        assert answer(run(plugin / "bin" / "auto_start.py", "--on")) == ON + APPLY
        text = monitors.read_text("utf-8")
        assert json.loads(text) == [*others, {**ours, "when": ALWAYS}, *after]
        assert list(json.loads(text)[4]) == list(ours), "also the order of the fields"
        assert "Grüße ↵" in text, "people can still read it"
        assert text.endswith("]\n")

    @pytest.mark.parametrize("mode", [0o644, 0o600, 0o755])
    def test_mode_is_kept(self, run: Run, plugin: Path, monitors: Path, mode: int) -> None:
        monitors.chmod(mode)
        answer(run(plugin / "bin" / "auto_start.py", "--on"))
        assert stat.S_IMODE(monitors.stat().st_mode) == mode

    def test_mode_is_kept_whatever_the_umask(self, run: Run, plugin: Path, monitors: Path) -> None:
        monitors.chmod(0o664)
        answer(run(plugin / "bin" / "auto_start.py", "--on", umask=0o077))
        assert stat.S_IMODE(monitors.stat().st_mode) == 0o664

    def test_file_is_replaced_as_a_whole(self, run: Run, plugin: Path, monitors: Path) -> None:
        """A reader that has it open keeps reading the old one."""
        fresh = monitors.read_bytes()
        with monitors.open("rb") as reader:
            answer(run(plugin / "bin" / "auto_start.py", "--on"))
            assert reader.read() == fresh
            assert os.fstat(reader.fileno()).st_ino != monitors.stat().st_ino

    def test_link_stays_a_link(self, run: Run, plugin: Path, monitors: Path, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere" / "monitors.json"
        elsewhere.parent.mkdir()
        monitors.rename(elsewhere)
        monitors.symlink_to(elsewhere)
        assert answer(run(plugin / "bin" / "auto_start.py", "--on")) == ON + APPLY
        assert monitors.is_symlink() and when(elsewhere) == ALWAYS
        assert names(elsewhere.parent) == names(monitors.parent) == ["monitors.json"]

    def test_value_of_an_earlier_release_is_off(self, run: Run, plugin: Path, monitors: Path) -> None:
        write(monitors, [{"name": "inter-session", "when": "on-skill-invoke:inter-session"}])
        assert answer(run(plugin / "bin" / "auto_start.py")) == OFF
        assert answer(run(plugin / "bin" / "auto_start.py", "--off")) == OFF + APPLY
        assert when(monitors) == ON_SKILL

    def test_unknown_value(self, run: Run, plugin: Path, monitors: Path) -> None:
        script = plugin / "bin" / "auto_start.py"
        before = write(monitors, [{"name": "inter-session", "when": "on-full-moon"}])
        assert answer(run(script, "--status")) == (
            "auto-start is set to 'on-full-moon', which this release does not know\n"
        )
        assert monitors.read_bytes() == before
        assert answer(run(script, "--off")) == OFF + APPLY
        assert when(monitors) == ON_SKILL

    @pytest.mark.parametrize("value", [None, 3, ["always"], {"always": True}])
    def test_value_of_another_type(self, run: Run, plugin: Path, monitors: Path, value: object) -> None:
        write(monitors, [{"name": "inter-session", "when": value}])
        assert answer(run(plugin / "bin" / "auto_start.py")).startswith("auto-start is set to ")
        assert answer(run(plugin / "bin" / "auto_start.py", "--on")) == ON + APPLY
        assert when(monitors) == ALWAYS


class TestFaults:
    """A file that cannot be read or written is an error, and nothing changes."""

    @pytest.mark.parametrize("switch", ["--status", "--on"])
    @pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
    def test_damaged_file(self, run: Run, plugin: Path, monitors: Path, content: bytes, switch: str) -> None:
        monitors.write_bytes(content)
        line = refusal(run(plugin / "bin" / "auto_start.py", switch), monitors)
        assert "is not JSON" in line and "reinstall the plugin" in line
        assert monitors.read_bytes() == content

    def test_file_nested_too_deep(self, run: Run, plugin: Path, monitors: Path) -> None:
        monitors.write_bytes(b"[" * 100_000)
        refusal(run(plugin / "bin" / "auto_start.py"), monitors)

    def test_lone_surrogate(self, run: Run, plugin: Path, monitors: Path) -> None:
        """JSON may contain a lone surrogate, which UTF-8 cannot encode."""
        monitors.write_text('[{"name": "inter-session", "description": "\\ud800", "when": "always"}]')
        done = run(plugin / "bin" / "auto_start.py", "--off")
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr
        assert names(monitors.parent) == ["monitors.json"]

    @pytest.mark.parametrize("switch", ["--status", "--off"])
    def test_missing_file(self, run: Run, plugin: Path, monitors: Path, switch: str) -> None:
        monitors.unlink()
        line = refusal(run(plugin / "bin" / "auto_start.py", switch), monitors)
        assert "No such file" in line and "reinstall the plugin" in line
        assert names(monitors.parent) == []

    @pytest.mark.parametrize(
        "value",
        [
            [],
            [{"name": "other", "when": "always"}],
            [{"when": "always"}],
            [["inter-session"]],
            {"name": "inter-session", "when": "always"},
            {"inter-session": {"when": "always"}},
            "inter-session",
            None,
            7,
        ],
        ids=range(9),
    )
    def test_no_monitor_of_that_name(self, run: Run, plugin: Path, monitors: Path, value: object) -> None:
        content = write(monitors, value)
        for switch in ("--status", "--on"):
            line = refusal(run(plugin / "bin" / "auto_start.py", switch), monitors)
            assert "has no monitor named 'inter-session'" in line
        assert monitors.read_bytes() == content

    @pytest.mark.parametrize("refused", ["open", "fsync", "replace"])
    def test_failed_write_changes_nothing(
        self,
        plugin: Path,
        monitors: Path,
        refused: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Calls are made to fail, because permissions do not stop root."""
        fresh = monitors.read_bytes()

        def refuse(*args: object, **more: object) -> int:
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(os, refused, refuse)
            status = call_main(plugin, patch, "--on")
        out, err = capsys.readouterr()
        assert (status, out) == (1, "")
        assert err == (
            f"error: auto_start: cannot write {monitors}: Permission denied; make it and its directory writable and "
            "free some space; nothing was changed\n"
        )
        assert monitors.read_bytes() == fresh
        assert names(monitors.parent) == ["monitors.json"], "no draft is left"

    def test_full_disk_changes_nothing(self, plugin: Path, monitors: Path) -> None:
        fresh = monitors.read_bytes()
        # Files may not grow over 0 bytes; python ignores the signal that comes with the refusal.
        code = 'ulimit -f 0; exec "$0" -B "$1" --on'
        script = plugin / "bin" / "auto_start.py"
        done = subprocess.run(
            ["sh", "-c", code, sys.executable, script], capture_output=True, encoding="utf-8", timeout=TIMEOUT_S
        )
        assert "nothing was changed" in refusal(done, monitors)
        assert monitors.read_bytes() == fresh
        assert names(monitors.parent) == ["monitors.json"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="no directory is unwritable for root")
    def test_read_only_directory(self, run: Run, plugin: Path, monitors: Path) -> None:
        monitors.parent.chmod(0o500)
        try:
            assert "Permission denied" in refusal(run(plugin / "bin" / "auto_start.py", "--on"), monitors)
            assert when(monitors) == ON_SKILL
        finally:
            monitors.parent.chmod(0o700)


class TestPlugin:
    """Which plugin a script belongs to."""

    @pytest.mark.parametrize("place", ["bin", "skills/inter-session/bin"])
    @pytest.mark.parametrize("command", [["auto_start.py"], ["zmqbus", "auto-start"]])
    def test_each_command_of_the_plugin(
        self, run: Run, plugin: Path, monitors: Path, place: str, command: list[str]
    ) -> None:
        script, *words = command
        assert answer(run(plugin / place / script, *words, "--on")) == ON + apply_with(script)
        assert when(monitors) == ALWAYS
        assert answer(run(plugin / place / script, *words)) == ON

    def test_relative_path(self, run: Run, plugin: Path, monitors: Path) -> None:
        bin_dir = plugin / "bin"
        assert answer(run(Path("auto_start.py"), "--on", cwd=bin_dir)) == ON + APPLY
        assert answer(run(Path("../bin/auto_start.py"), "--off", cwd=bin_dir)) == OFF + APPLY
        assert (
            answer(run(Path("plugin/skills/inter-session/bin/auto_start.py"), "--on", cwd=plugin.parent)) == ON + APPLY
        )
        assert when(monitors) == ALWAYS

    def test_works_without_the_dependencies(self, run: Run, plugin: Path, monitors: Path) -> None:
        for script, *words in (("auto_start.py",), ("zmqbus", "auto-start")):
            assert answer(run(plugin / "bin" / script, *words, "--on", without=True)) == ON + apply_with(script)
            assert answer(run(plugin / "bin" / script, *words, "--off", without=True)) == OFF + apply_with(script)

    def test_linked_plugin_is_switched(self, run: Run, plugin: Path, monitors: Path, tmp_path: Path) -> None:
        """A link to a whole plugin is a plugin in use."""
        link = tmp_path / "skills" / "linked"
        link.parent.mkdir()
        link.symlink_to(plugin)
        assert answer(run(link / "bin" / "auto_start.py", "--on")) == ON + APPLY
        assert when(monitors) == ALWAYS

    def test_plugin_whose_parts_are_links(self, run: Run, tmp_path: Path) -> None:
        """A plugin used from a checkout: its bin/ is a link that leads out of it."""
        checkout = tmp_path / "checkout"
        ignored = shutil.ignore_patterns("__pycache__")
        for part in ("bin", "zmqbus", "plugin"):
            shutil.copytree(ROOT / part, checkout / part, symlinks=True, ignore=ignored)
        monitors = checkout / "plugin" / "monitors" / "monitors.json"
        for place in ("bin", "skills/inter-session/bin"):
            script = checkout / "plugin" / place / "auto_start.py"
            assert answer(run(script, "--on")) == ON + APPLY
            assert answer(run(script, "--off")) == OFF + APPLY
        assert answer(run(checkout / "bin" / "auto_start.py", "--on")).startswith(NOTHING_TO_SWITCH)
        assert when(monitors) == ON_SKILL

    @pytest.mark.parametrize("switch", [[], ["--status"], ["--on"], ["--off"]])
    def test_stand_alone_skill_has_nothing_to_switch(self, run: Run, tmp_path: Path, switch: list[str]) -> None:
        skill = copied(ROOT / "plugin" / "skills" / "inter-session", tmp_path / "skills" / "inter-session")
        before = {path: path.read_bytes() for path in skill.rglob("*") if path.is_file()}
        for script, *words in (("auto_start.py",), ("zmqbus", "auto-start")):
            said = answer(run(skill / "bin" / script, *words, *switch))
            assert said.startswith(NOTHING_TO_SWITCH) and said.endswith(
                f"{'/inter-session' if script == 'auto_start.py' else 'zmqbus'} connect starts one\n"
            )
        assert {path: path.read_bytes() for path in skill.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("switch", ["--status", "--on"])
    def test_skill_linked_into_a_plugin_leaves_the_plugin_alone(
        self, run: Run, plugin: Path, monitors: Path, tmp_path: Path, switch: str
    ) -> None:
        """That plugin need not be in use, and this skill is not its own."""
        fresh = monitors.read_bytes()
        skill = tmp_path / "skills" / "inter-session"
        skill.parent.mkdir()
        skill.symlink_to(plugin / "skills" / "inter-session")
        assert answer(run(skill / "bin" / "auto_start.py", switch)).startswith(NOTHING_TO_SWITCH)
        assert answer(run(skill / "bin" / "zmqbus", "auto-start", switch)).startswith(NOTHING_TO_SWITCH)
        assert monitors.read_bytes() == fresh

    @pytest.mark.parametrize("switch", ["--status", "--on"])
    def test_checkout_has_nothing_to_switch(self, run: Run, switch: str) -> None:
        fresh = (ROOT / "plugin" / "monitors" / "monitors.json").read_bytes()
        assert answer(run(ROOT / "bin" / "auto_start.py", switch)).startswith(NOTHING_TO_SWITCH)
        assert (ROOT / "plugin" / "monitors" / "monitors.json").read_bytes() == fresh

    @pytest.mark.parametrize(
        "manifest", [None, b"", b"{", b"\xff\xfe", b"null", b"[]", b'"inter-session"', b"{}", b'{"name": "other"}']
    )
    def test_plugin_of_another_name_is_ignored(
        self, run: Run, plugin: Path, monitors: Path, manifest: bytes | None
    ) -> None:
        fresh = monitors.read_bytes()
        path = plugin / ".claude-plugin" / "plugin.json"
        if manifest is None:
            path.unlink()
        else:
            path.write_bytes(manifest)
        assert find_plugin(str(plugin / "bin" / "auto_start.py")) is None
        assert answer(run(plugin / "bin" / "auto_start.py", "--on")).startswith(NOTHING_TO_SWITCH)
        assert monitors.read_bytes() == fresh

    def test_root_of_the_plugin(self, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert find_plugin(str(plugin / "bin" / "zmqbus")) == str(plugin)
        assert find_plugin(str(plugin / "skills" / "inter-session" / "bin" / "zmqbus")) == str(plugin)
        assert find_plugin(str(plugin / "zmqbus" / "cli" / "auto_start.py")) is None
        assert find_plugin("/zmqbus") is None
        monkeypatch.chdir(plugin / "bin")
        assert find_plugin("zmqbus") == str(plugin)
        assert find_plugin("") is None  # a python without a script
