"""Each way to install works: a copy of the plugin, a copy of its skill, and a link to the skill.

The paths contain characters that are special to shells: a blank, both kinds of quotes, a `$` and a backslash.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.plugin.conftest import TIMEOUT_S, WITHOUT, Environment, Run, copied

#: A hook that is slowed down ends without output; one of this many tries is fast enough.
HOOK_TRIES = 50

COMMANDS = ("client.py", "send.py", "list.py", "auto_start.py", "install_deps.py", "zmqbus")
MISSING = "[inter-session] dependencies missing — run /inter-session install-deps"


def copy_plugin(place: Path) -> Path:
    return copied(ROOT / "plugin", place / "plugin")


def copy_skill(place: Path) -> Path:
    return copied(ROOT / "plugin" / "skills" / "inter-session", place / "skills" / "inter-session")


def link_skill(place: Path) -> Path:
    link = place / "skills" / "inter-session"
    link.parent.mkdir()
    link.symlink_to(ROOT / "plugin" / "skills" / "inter-session")
    return link


@pytest.fixture(params=[copy_plugin, copy_skill, link_skill])
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The directory of an installation."""
    place = tmp_path / 'it\'s a "home" with $HOME and \\ in it'
    place.mkdir()
    root: Path = request.param(place)
    return root


PROBE = """
import runpy, sys
sys.argv = [sys.argv[1], "--version"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(sys.modules["zmqbus"].__file__)
"""


def event(kind: str, **fields: object) -> str:
    return json.dumps({"session_id": "abc", "cwd": "/", "hook_event_name": kind, **fields})


GARBAGE = {
    "empty": "",
    "a newline": "\n",
    "torn": '{"hook_event_name": "SessionSt',
    "words": "SessionStart",
    "null": "null",
    "a list": "[]",
    "a number": "7",
    "no event": "{}",
    "an event that is none": '{"hook_event_name": ["SessionStart"]}',
    "a cwd that is none": '{"hook_event_name": "Stop", "cwd": "\\u0000"}',
    "a cwd that is gone": '{"hook_event_name": "Stop", "cwd": "/nowhere/at/all"}',
    "deep": "[" * 100_000,
    "zeros": "\0" * 1000,
}


def without_streams(closing: str, without: bool, env: dict[str, str]) -> None:
    """Runs the hook with streams that a shell has closed or redirected; it must not fail."""
    words = [sys.executable, *(WITHOUT if without else ["-B"]), str(ROOT / "plugin" / "bin" / "hook.py")]
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(words)} {closing}"],
        input=event("SessionStart").encode(),
        env=env,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done
    assert b"Traceback" not in done.stderr


class TestInstallation:
    """Every way to install is complete."""

    def test_everything_is_installed(self, installed: Path) -> None:
        for name in (*COMMANDS, "approve.py", "hook.py"):
            assert os.access(installed / "bin" / name, os.X_OK), name
        assert (installed / "requirements.txt").read_bytes() == (ROOT / "requirements.txt").read_bytes()
        modules = {path.relative_to(ROOT) for path in (ROOT / "zmqbus").rglob("*.py")}
        assert [module for module in modules if not (installed / module).is_file()] == []
        skill = installed if installed.name == "inter-session" else installed / "skills" / "inter-session"
        assert (skill / "SKILL.md").is_file()

    def test_copies_contain_no_links(self, tmp_path: Path) -> None:
        """A copy depends on nothing outside of it."""
        for copy in (copy_plugin, copy_skill):
            root = copy(tmp_path)
            assert [path for path in root.rglob("*") if path.is_symlink()] == []

    @pytest.mark.parametrize("script", COMMANDS)
    def test_every_command_prints_its_usage(self, installed: Path, run: Run, script: str) -> None:
        done = run(installed / "bin" / script, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: zmqbus")

    @pytest.mark.parametrize("script", COMMANDS)
    def test_every_script_starts_by_its_first_line(
        self, installed: Path, script: str, data_dir: Path, bin_env: Environment
    ) -> None:
        """The first line runs the first `python3` in PATH."""
        env = bin_env({"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"})
        line = f"{shlex.quote(str(installed / 'bin' / script))} --help"
        done = subprocess.run(
            ["sh", "-c", line],
            env=env,
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: zmqbus")

    def test_commands_use_the_package_of_the_installation(self, installed: Path, run: Run, tmp_path: Path) -> None:
        """Another installation may be importable, too."""
        probe = tmp_path / "probe.py"
        probe.write_text(PROBE)
        done = run(probe, str(installed / "bin" / "zmqbus"))
        version, found = done.stdout.splitlines()
        assert version.startswith("zmqbus ")
        assert Path(found) == (installed / "zmqbus" / "__init__.py").resolve()


class TestWithoutDependencies:
    def test_listener_says_what_is_missing(self, installed: Path, run: Run, data_dir: Path) -> None:
        for script, *words in (("client.py",), ("client.py", "--from-plugin", "--name", "auth"), ("zmqbus", "connect")):
            done = run(installed / "bin" / script, *words, without=True)
            # A command at a shell names a command for the shell.
            said = MISSING.replace("/inter-session", "zmqbus") if script == "zmqbus" else MISSING
            assert (done.returncode, done.stdout, done.stderr) == (0, f"{said}\n", "")

    @pytest.mark.parametrize("script", ["send.py", "list.py"])
    def test_other_commands_fail_with_the_reason(self, installed: Path, run: Run, script: str, data_dir: Path) -> None:
        done = run(installed / "bin" / script, without=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: not_installed: dependencies missing")

    def test_install_deps_works(self, installed: Path, run: Run, data_dir: Path) -> None:
        """It shows its commands, and runs none without consent."""
        done = run(installed / "bin" / "install_deps.py", without=True)
        assert done.returncode == 1 and "--yes" in done.stderr
        assert str(data_dir / "venv") in done.stdout
        # Both lists are the same, so either path will do.
        assert shlex.quote(str(installed / "requirements.txt")) in done.stdout or str(ROOT) in done.stdout

    def test_auto_start_works(self, installed: Path, run: Run, data_dir: Path) -> None:
        done = run(installed / "bin" / "auto_start.py", "--status", without=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(
            "auto-start is off" if installed.name == "plugin" else "auto-start: nothing to switch"
        )

    def test_hook_says_what_is_missing(self, installed: Path, run: Run, data_dir: Path) -> None:
        said = ""
        for _ in range(HOOK_TRIES):
            done = run(installed / "bin" / "hook.py", without=True, input=event("SessionStart", source="startup"))
            assert (done.returncode, done.stderr) == (0, "")
            if said := done.stdout:
                break
        output = json.loads(said)["hookSpecificOutput"]
        assert output == {"hookEventName": "SessionStart", "additionalContext": MISSING}

    @pytest.mark.parametrize("kind", ["UserPromptSubmit", "Stop", "SessionEnd", "NoSuchEvent"])
    def test_hook_says_it_only_at_the_start(self, installed: Path, run: Run, kind: str, data_dir: Path) -> None:
        done = run(installed / "bin" / "hook.py", without=True, input=event(kind))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestHook:
    """The hook exits with 0 whatever happens."""

    @pytest.mark.parametrize("without", [True, False], ids=["without", "with"])
    @pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE)
    def test_any_input(self, run: Run, text: str, without: bool, data_dir: Path) -> None:
        done = run(ROOT / "plugin" / "bin" / "hook.py", without=without, input=text)
        assert (done.returncode, done.stdout) == (0, ""), done
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 1

    @pytest.mark.parametrize("without", [True, False], ids=["without", "with"])
    def test_input_that_is_not_text(self, without: bool, data_dir: Path, bin_env: Environment) -> None:
        command = [sys.executable, *(WITHOUT if without else ["-B"]), ROOT / "plugin" / "bin" / "hook.py"]
        done = subprocess.run(
            command, input=bytes(range(256)), env=bin_env(None), capture_output=True, timeout=TIMEOUT_S
        )
        assert (done.returncode, done.stdout) == (0, b""), done
        assert b"Traceback" not in done.stderr

    @pytest.mark.parametrize("without", [True, False], ids=["without", "with"])
    @pytest.mark.parametrize("closing", ["0<&-", "2>&-", "0<&- 1>&-", "0<&- 1>&- 2>&-"])
    def test_closed_streams(self, closing: str, without: bool, data_dir: Path, bin_env: Environment) -> None:
        without_streams(closing, without, bin_env(None))

    @pytest.mark.parametrize(
        ("closing", "without"),
        [
            ("1>&-", True),
            ("1>&-", False),
            ("1>/dev/full", True),
            ("1>/dev/full", False),
        ],
    )
    def test_output_that_goes_nowhere(self, closing: str, without: bool, data_dir: Path, bin_env: Environment) -> None:
        if "/dev/full" in closing and not os.path.exists("/dev/full"):
            pytest.skip("this system has no /dev/full")
        without_streams(closing, without, bin_env(None))

    @pytest.mark.parametrize("without", [True, False], ids=["without", "with"])
    def test_lost_reader(self, without: bool, data_dir: Path, bin_env: Environment) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = subprocess.run(
                [sys.executable, *(WITHOUT if without else ["-B"]), ROOT / "plugin" / "bin" / "hook.py"],
                input=event("SessionStart").encode(),
                env=bin_env(None),
                stdout=writer,
                stderr=subprocess.PIPE,
                timeout=TIMEOUT_S,
            )
        finally:
            os.close(writer)
        assert done.returncode == 0, done
