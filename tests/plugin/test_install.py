"""Each way to install is whole: a copy of the plugin, a copy of its skill, and a link to the skill.

The directories have what paths may have and shells do not like: a blank, both kinds of quotes, a `$` and a backslash.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 90.0
#: A hook that is slowed down gives way and says nothing. Of so many one is fast enough.
HOOK_TRIES = 50

#: No site-packages, and so no dependencies.
WITHOUT = ("-S", "-I", "-B")
COMMANDS = ("client.py", "send.py", "list.py", "auto_start.py", "install_deps.py", "zmqbus")
MISSING = "[inter-session] dependencies missing — run /inter-session install-deps"

Environment = Callable[["dict[str, str] | None"], "dict[str, str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def copied(source: Path, place: Path) -> Path:
    """A copy in which files stand in the place of links. What python compiles meanwhile is no part of it."""
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
    return place


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


@pytest.fixture
def run(bin_env: Environment) -> Run:
    """`run(script, *args)` runs a script to its end; `without=True`: with no package but the standard library."""

    def call(script: Path, *args: str, without: bool = False, input: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *(WITHOUT if without else ["-B"]), str(script), *args],
            env=bin_env(None),
            input=input,
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
        )

    return call


def test_everything_is_there(installed: Path) -> None:
    for name in (*COMMANDS, "hook.py"):
        assert os.access(installed / "bin" / name, os.X_OK), name
    assert (installed / "requirements.txt").read_bytes() == (ROOT / "requirements.txt").read_bytes()
    modules = {path.relative_to(ROOT) for path in (ROOT / "zmqbus").rglob("*.py")}
    assert [module for module in modules if not (installed / module).is_file()] == []
    skill = installed if installed.name == "inter-session" else installed / "skills" / "inter-session"
    assert (skill / "SKILL.md").is_file()


def test_a_copy_has_no_links(tmp_path: Path) -> None:
    """What this file takes for a copy is one: it stands on nothing outside of it."""
    for copy in (copy_plugin, copy_skill):
        root = copy(tmp_path)
        assert [path for path in root.rglob("*") if path.is_symlink()] == []


@pytest.mark.parametrize("script", COMMANDS)
def test_every_command_answers(installed: Path, run: Run, script: str) -> None:
    done = run(installed / "bin" / script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: zmqbus")


@pytest.mark.parametrize("script", COMMANDS)
def test_every_script_can_be_started_by_itself(
    installed: Path, script: str, data_dir: Path, bin_env: Environment
) -> None:
    """By its first line, and with whatever `python3` comes first."""
    env = bin_env({"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"})
    line = f"{shlex.quote(str(installed / 'bin' / script))} --help"
    done = subprocess.run(
        ["sh", "-c", line], env=env, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: zmqbus")


PROBE = """
import runpy, sys
sys.argv = [sys.argv[1], "--version"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(sys.modules["zmqbus"].__file__)
"""


def test_the_commands_are_those_of_the_installation(installed: Path, run: Run, tmp_path: Path) -> None:
    """Not those of another one that happens to be importable."""
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE)
    done = run(probe, str(installed / "bin" / "zmqbus"))
    version, found = done.stdout.splitlines()
    assert version.startswith("zmqbus ")
    assert Path(found) == (installed / "zmqbus" / "__init__.py").resolve()


# --- without the dependencies -----------------------------------------------------------------------------------


def test_the_listener_says_what_is_missing(installed: Path, run: Run, data_dir: Path) -> None:
    for script, *words in (("client.py",), ("client.py", "--from-plugin", "--name", "auth"), ("zmqbus", "connect")):
        done = run(installed / "bin" / script, *words, without=True)
        # What is typed at a shell is told what can be typed there.
        said = MISSING.replace("/inter-session", "zmqbus") if script == "zmqbus" else MISSING
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{said}\n", "")


@pytest.mark.parametrize("script", ["send.py", "list.py"])
def test_other_commands_fail_and_say_so(installed: Path, run: Run, script: str, data_dir: Path) -> None:
    done = run(installed / "bin" / script, without=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: not_installed: dependencies missing")


def test_what_mends_it_works_without_them(installed: Path, run: Run, data_dir: Path) -> None:
    """It shows what it would run, and runs nothing without a word from the user."""
    done = run(installed / "bin" / "install_deps.py", without=True)
    assert done.returncode == 1 and "--yes" in done.stderr
    assert str(data_dir / "venv") in done.stdout
    # The lists of both are the same, so it does not matter whether it names the copy or what that is linked to.
    assert shlex.quote(str(installed / "requirements.txt")) in done.stdout or str(ROOT) in done.stdout


def test_the_switch_of_auto_start_works_without_them(installed: Path, run: Run, data_dir: Path) -> None:
    done = run(installed / "bin" / "auto_start.py", "--status", without=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "auto-start is off" if installed.name == "plugin" else "auto-start: nothing to switch"
    )


# --- the hook ---------------------------------------------------------------------------------------------------


def event(kind: str, **fields: object) -> str:
    return json.dumps({"session_id": "abc", "cwd": "/", "hook_event_name": kind, **fields})


def test_the_hook_says_what_is_missing(installed: Path, run: Run, data_dir: Path) -> None:
    said = ""
    for _ in range(HOOK_TRIES):
        done = run(installed / "bin" / "hook.py", without=True, input=event("SessionStart", source="startup"))
        assert (done.returncode, done.stderr) == (0, "")
        if said := done.stdout:
            break
    output = json.loads(said)["hookSpecificOutput"]
    assert output == {"hookEventName": "SessionStart", "additionalContext": MISSING}


@pytest.mark.parametrize("kind", ["UserPromptSubmit", "Stop", "SessionEnd", "NoSuchEvent"])
def test_the_hook_says_it_once(installed: Path, run: Run, kind: str, data_dir: Path) -> None:
    done = run(installed / "bin" / "hook.py", without=True, input=event(kind))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


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


@pytest.mark.parametrize("without", [True, False], ids=["without", "with"])
@pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE)
def test_the_hook_never_fails(run: Run, text: str, without: bool, data_dir: Path) -> None:
    done = run(ROOT / "plugin" / "bin" / "hook.py", without=without, input=text)
    assert (done.returncode, done.stdout) == (0, ""), done
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


@pytest.mark.parametrize("without", [True, False], ids=["without", "with"])
def test_the_hook_never_fails_on_bytes(without: bool, data_dir: Path, bin_env: Environment) -> None:
    command = [sys.executable, *(WITHOUT if without else ["-B"]), ROOT / "plugin" / "bin" / "hook.py"]
    done = subprocess.run(command, input=bytes(range(256)), env=bin_env(None), capture_output=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (0, b""), done
    assert b"Traceback" not in done.stderr


def without_streams(closing: str, without: bool, env: dict[str, str]) -> None:
    """Runs the hook under a shell that closes streams or leads them elsewhere; it must not fail."""
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


@pytest.mark.parametrize("without", [True, False], ids=["without", "with"])
@pytest.mark.parametrize("closing", ["0<&-", "2>&-", "0<&- 1>&-", "0<&- 1>&- 2>&-"])
def test_the_hook_never_fails_without_its_streams(
    closing: str, without: bool, data_dir: Path, bin_env: Environment
) -> None:
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
def test_the_hook_never_fails_where_its_words_go_nowhere(
    closing: str, without: bool, data_dir: Path, bin_env: Environment
) -> None:
    if "/dev/full" in closing and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    without_streams(closing, without, bin_env(None))


@pytest.mark.parametrize("without", [True, False], ids=["without", "with"])
def test_the_hook_never_fails_when_its_reader_has_gone(without: bool, data_dir: Path, bin_env: Environment) -> None:
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
