"""The bootstrap: which python, which packages, and how commands end."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zmqbus import bootstrap, settings

ROOT = Path(__file__).resolve().parent.parent
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
LISTENER_LINE = "[inter-session] dependencies missing — run /inter-session install-deps\n"

Main = Callable[[list[str]], Any]


class Done(NamedTuple):
    """The result of a command that ran in this process."""

    status: int
    out: str
    err: str


class Probe:
    """Runs a main() of a test as a command of the package, with a data directory and an import path of its own."""

    def __init__(self, data_dir: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.data_dir = data_dir
        self._patch = patch
        self._capsys = capsys
        patch.setattr(sys, "path", list(sys.path))

    def run(self, main: Main | BaseException = len, name: str = "probe", argv: Sequence[str] = ()) -> Done:
        """Runs a main() (or one that raises this) under the name of a command."""
        for module_name in ("probe", "connect", "main", "install_deps"):
            module = types.ModuleType(f"zmqbus.cli.{module_name}")
            module.main = raising(main) if isinstance(main, BaseException) else main  # type: ignore[attr-defined]
            self._patch.setitem(sys.modules, f"zmqbus.cli.{module_name}", module)
        return Done(bootstrap.run(name, list(argv)), *self._capsys.readouterr())

    def be_too_old(self) -> None:
        self._patch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
        self._patch.setattr(sys, "version", "3.9.18 (main)")


@pytest.fixture
def probe(data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Probe:
    return Probe(data_dir, monkeypatch, capsys)


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that this process was to become. The stand-in of execv() fails, as for another machine's file."""
    commands: list[list[str]] = []

    def execv(path: str, argv: list[str]) -> None:
        assert path == argv[0]
        commands.append(argv)
        raise OSError

    monkeypatch.setattr(os, "execv", execv)
    return commands


def raising(error: BaseException) -> Main:
    def main(argv: list[str]) -> int:
        raise error

    return main


def missing(name: str = "zmq") -> ImportError:
    return ModuleNotFoundError(f"No module named '{name}'", name=name)


def make_venv(data_dir: Path, version: str = VERSION, key: str = "version") -> Path:
    """A venv as far as the bootstrap looks at it; returns its site-packages."""
    venv = data_dir / "venv"
    packages = venv / "lib" / f"python{'.'.join(version.split('.')[:2])}" / "site-packages"
    packages.mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "pyvenv.cfg").write_text(f"home = /nowhere\ninclude-system-site-packages = false\n{key} = {version}\n")
    (venv / bootstrap.VENV_MARKER).write_text("")
    return packages


def make_python(data_dir: Path) -> str:
    path = data_dir / "venv" / "bin" / "python"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o700)
    return str(path)


class TestRun:
    def test_arguments_and_status(self, probe: Probe) -> None:
        assert probe.run(len, argv=["--to", "x"]).status == 2

    @pytest.mark.parametrize(
        ("code", "status", "err"), [(None, 0, ""), (2, 2, ""), ("no such thing", 1, "no such thing\n")]
    )
    def test_sys_exit_sets_the_status(self, probe: Probe, code: object, status: int, err: str) -> None:
        assert probe.run(SystemExit(code)) == (status, "", err)

    def test_ctrl_c_ends_quietly(self, probe: Probe) -> None:
        assert probe.run(KeyboardInterrupt()) == (130, "", "")

    @pytest.mark.parametrize(
        "fault",
        [
            ValueError("a fault"),
            BrokenPipeError("of some other pipe"),
            missing("zmqbuss"),
            missing("zmq.typo"),
            ImportError("cannot import name", name="zmqbus.errors"),
        ],
    )
    def test_bugs_are_shown(self, probe: Probe, fault: Exception) -> None:
        with pytest.raises(type(fault)) as caught:
            probe.run(fault)
        assert caught.value is fault

    @pytest.mark.parametrize("fault", [ValueError("a fault"), missing("zmqbuss")])
    def test_listener_reports_bugs_on_stdout(
        self, probe: Probe, fault: Exception, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """An agent only sees the standard output of a monitor."""
        with pytest.raises(type(fault)):
            probe.run(fault, "connect")
        assert capsys.readouterr().out.startswith("[inter-session] cannot connect: a fault of zmqbus itself (")

    def test_console_uses_no_venv(self, probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
        packages = make_venv(probe.data_dir)
        probe.run()
        sys.path.remove(str(packages))
        monkeypatch.setattr(sys, "argv", ["zmqbus", "list", "--json"])
        monkeypatch.setattr(os, "_exit", lambda status: None)
        assert bootstrap.console() == 2
        assert str(packages) not in sys.path

    def test_garbage_collection_is_off_only_during_the_import(self, probe: Probe) -> None:
        seen: list[bool] = []

        def main(argv: list[str]) -> None:
            seen.append(gc.isenabled())

        probe.run(main)
        gc.disable()
        try:
            probe.run(main)  # it stays off if it was off before
        finally:
            gc.enable()
        assert seen == [True, False]


class TestExit:
    @pytest.fixture
    def exits(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
        """The statuses with which os._exit was called."""
        found: list[int] = []
        monkeypatch.setattr(os, "_exit", found.append)
        trace = sys.gettrace()
        sys.settrace(None)  # that of a coverage run
        yield found
        sys.settrace(trace)

    def main(self, monkeypatch: pytest.MonkeyPatch, name: str, *argv: str) -> None:
        monkeypatch.setattr(sys, "argv", ["script", *argv])
        monkeypatch.setattr(bootstrap, "run", lambda *given: 7 if given == (name, list(argv)) else 0)
        with pytest.raises(SystemExit) as ended:
            bootstrap.main(name)
        assert ended.value.code == 7

    @pytest.mark.parametrize(
        ("command", "at_once"),
        [
            ("send --to x", True),
            ("list", True),
            ("hook", True),
            ("approve", True),
            ("main send --to x", True),
            ("main connect", False),  # a listener has threads and children
            ("main console", False),
            ("main log --follow", False),
            ("main", False),
            ("connect", False),
            ("install_deps", False),
        ],
    )
    def test_finished_command_exits_at_once(
        self, command: str, at_once: bool, exits: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.main(monkeypatch, *command.split())
        assert exits == ([7] if at_once else [])

    def test_normal_exit_under_a_debugger(self, exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "gettrace", lambda: print)
        self.main(monkeypatch, "send")
        assert not exits


class TestMissingDependencies:
    @pytest.mark.parametrize("name", ["zmq", "msgpack", "psutil"])
    @pytest.mark.parametrize("argv", [[], ["--name", "x"]])
    def test_listener_reports_on_stdout_and_exits_with_0(self, probe: Probe, name: str, argv: list[str]) -> None:
        assert probe.run(missing(name), "connect", argv) == (0, LISTENER_LINE, "")

    @pytest.mark.parametrize(
        ("name", "argv", "remedy"),
        [
            ("probe", [], "/inter-session install-deps"),  # a script of the skill
            ("main", ["send", "connect"], "zmqbus install-deps"),
            ("main", [], "zmqbus install-deps"),
        ],
    )
    def test_other_commands_fail(self, probe: Probe, name: str, argv: list[str], remedy: str) -> None:
        status, out, err = probe.run(missing(), name, argv)
        assert (status, out) == (1, "")
        assert err.startswith(f"error: not_installed: dependencies missing — run {remedy} (")

    def test_listener_at_a_shell_names_the_command_of_the_shell(
        self, probe: Probe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        line = LISTENER_LINE.replace("/inter-session", "zmqbus")
        assert probe.run(missing(), "main", ["connect"]) == (0, line, "")
        monkeypatch.setenv("CLAUDE_PID", "4711")
        assert probe.run(missing(), "main", ["connect"]) == (0, LISTENER_LINE, "")

    def test_broken_dependency_has_the_same_remedy(self, probe: Probe) -> None:
        broken = ImportError("libc.so.6: version GLIBC_9 not found", name="zmq.backend.cython._zmq")
        status, _, err = probe.run(broken)
        assert status == 1 and "install-deps" in err and "GLIBC_9" in err


class TestOldPython:
    def test_error_names_the_versions(self, probe: Probe) -> None:
        probe.be_too_old()
        status, out, err = probe.run(AssertionError("must not run"))
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"error: zmqbus needs python 3.10 or newer, and {sys.executable} is 3.9.18; ")

    def test_listener_reports_on_stdout(self, probe: Probe) -> None:
        probe.be_too_old()
        status, out, err = probe.run(name="connect")
        assert (status, err) == (1, "")
        assert out.startswith("[inter-session] cannot connect: zmqbus needs python 3.10 or newer")

    @pytest.mark.parametrize(
        ("event", "reports"),
        [
            ('{"hook_event_name": "SessionStart"}', True),
            ('{"hook_event_name": "Stop"}', False),
            ("[]", False),
            ("no json", False),
        ],
    )
    def test_hook_reports_at_the_start_of_a_session(
        self, probe: Probe, event: str, reports: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        probe.be_too_old()
        monkeypatch.setattr(sys, "stdin", io.StringIO(event))
        status, out, err = probe.run(name="hook")
        assert (status, err, bool(out)) == (0, "", reports)
        if reports:
            output = json.loads(out)["hookSpecificOutput"]
            assert output["hookEventName"] == "SessionStart" and "needs python 3.10" in output["additionalContext"]

    def test_user_is_asked_where_no_approval_can_be_given(self, probe: Probe) -> None:
        probe.be_too_old()
        assert probe.run(name="approve") == (0, "", "")

    def test_venv_of_a_newer_python_is_used(
        self, probe: Probe, became: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_venv(probe.data_dir)
        python = make_python(probe.data_dir)
        probe.be_too_old()
        monkeypatch.setattr(sys, "argv", ["/x/send.py", "--to", "y"])
        probe.run(name="send", argv=["--to", "y"])
        assert became == [[python, "/x/send.py", "--to", "y"]]


class TestImportPath:
    def test_the_standard_library_comes_first_then_this_package(self, probe: Probe) -> None:
        library = os.path.dirname(os.__file__)
        dynamic = os.path.join(library, "lib-dynload")
        sys.path[:] = ["/path/of/others", str(ROOT), library, dynamic, "/site-packages"]
        probe.run()
        assert sys.path == [library, dynamic, str(ROOT), "/path/of/others", "/site-packages"]

    @pytest.mark.parametrize("given", ["{0}:", ":{0}", "{0}::/y", ".:{0}", "sub:{0}"])
    def test_relative_entries_of_pythonpath_are_dropped(self, given: str, data_dir: Path, tmp_path: Path) -> None:
        """An empty one is the current directory: anybody's repository."""
        repository, packages = tmp_path / "repository", tmp_path / "packages"
        for directory in (repository, repository / "sub", packages):
            directory.mkdir()
        for directory in (repository, repository / "sub"):
            (directory / "msgpack.py").write_text("raise SystemExit('the repository is imported')\n")
        done = subprocess.run(
            [sys.executable, str(ROOT / "bin" / "list.py"), "--self"],
            env={**os.environ, "PYTHONPATH": given.format(packages)},
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "not connected\n", "")


# The data directory

PATHS = st.lists(st.sampled_from(["~", "/", ".", "a", " ", "\t", "root", "ä"]), max_size=8).map("".join)


@given(given_dir=st.none() | PATHS, home=st.none() | PATHS.map("/h".__add__) | PATHS)
@example(given_dir=None, home="")
@example(given_dir=None, home=None)
@example(given_dir=" ", home="/home/x")
@example(given_dir="~root/x", home="/home/x")
@example(given_dir="~no-such-account/x", home="/home/x")
@example(given_dir="~", home="relative")
def test_data_directory_is_that_of_the_settings(given_dir: str | None, home: str | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ((bootstrap.DATA_DIR_VARIABLE, given_dir), ("HOME", home)):
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)
        # Two leading slashes are one, though abspath() leaves them.
        expected = settings.load(warn=lambda text: None).data_dir.replace("//", "/")
        assert bootstrap.find_data_dir().replace("//", "/") == expected


def test_settings_are_not_loaded_in_usual_cases(data_dir: Path) -> None:
    """They would be for nothing when another python takes over."""
    code = (
        "import sys; from zmqbus import bootstrap; print(bootstrap.find_data_dir(), 'zmqbus.settings' in sys.modules)"
    )
    for env, found in (
        ({}, data_dir),
        ({"INTER_SESSION_DATA_DIR": ""}, data_dir.parent / "home/.claude/data/inter-session"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **env},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"{found} False\n"


class TestVenv:
    @pytest.mark.parametrize(
        ("key", "version"), [("version", VERSION + ".99"), ("version_info", VERSION + ".1.final.0")]
    )
    def test_venv_of_the_same_python_comes_first(
        self, probe: Probe, key: str, version: str, became: list[list[str]]
    ) -> None:
        packages = make_venv(probe.data_dir, version, key)
        (packages / "zmqbus_probe_package.py").write_text("FROM = 'the venv'\n")

        def main(argv: list[str]) -> int:
            import zmqbus_probe_package  # type: ignore[import-not-found]

            assert zmqbus_probe_package.FROM == "the venv"
            return 0

        try:
            for _ in range(2):
                assert probe.run(main) == (0, "", "")
            before = sys.path[: sys.path.index(str(packages))]
            assert os.path.dirname(os.__file__) in before and not any("site-packages" in entry for entry in before)
            assert sys.path.count(str(packages)) == 1 and not became
        finally:
            sys.modules.pop("zmqbus_probe_package", None)

    @pytest.mark.parametrize("version", [VERSION, "3.99"])
    @pytest.mark.parametrize("reason", ["incomplete", "switched off", "moved away"])
    def test_venv_is_ignored(
        self, probe: Probe, reason: str, version: str, became: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        packages = make_venv(probe.data_dir, version)
        make_python(probe.data_dir)
        if reason == "incomplete":
            (probe.data_dir / "venv" / bootstrap.VENV_MARKER).unlink()
        elif reason == "switched off":
            monkeypatch.setenv("INTER_SESSION_NO_REEXEC", "1")
        else:
            (probe.data_dir / "venv").rename(probe.data_dir / "other")
        assert probe.run() == (0, "", "")
        assert str(packages) not in sys.path and not became

    def test_install_deps_uses_no_venv(self, probe: Probe) -> None:
        packages = make_venv(probe.data_dir)
        for name, argv in (("install_deps", []), ("main", ["install-deps", "--yes"])):
            probe.run(name=name, argv=argv)
            assert str(packages) not in sys.path

    def test_venv_of_another_python_is_entered_once(
        self, probe: Probe, became: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_venv(probe.data_dir, "3.99.1")
        expected = [make_python(probe.data_dir), os.path.abspath("bin/send.py"), "--all"]
        monkeypatch.setattr(sys, "argv", ["bin/send.py", "--all"])
        probe.run(argv=["--all"])
        assert became == [expected]
        assert bootstrap.REEXEC_VARIABLE not in os.environ
        monkeypatch.setenv(bootstrap.REEXEC_VARIABLE, str(os.getpid()))  # as after an execv() that worked
        probe.run(argv=["--all"])
        assert became == [expected]
        assert bootstrap.REEXEC_VARIABLE not in os.environ  # children decide for themselves
        monkeypatch.setenv(bootstrap.REEXEC_VARIABLE, str(os.getppid()))  # inherited from such a parent
        probe.run(argv=["--all"])
        assert became == [expected] * 2

    @pytest.mark.parametrize("damage", ["dangling", "not executable", "absent"])
    def test_venv_without_its_python_is_ignored(self, probe: Probe, damage: str, became: list[list[str]]) -> None:
        make_venv(probe.data_dir, "3.99.1")
        python = probe.data_dir / "venv" / "bin" / "python"
        if damage == "dangling":
            python.symlink_to("/nowhere/python3.99")
        elif damage == "not executable":
            python.write_text("")
        assert probe.run().status == 0
        assert not became

    @pytest.mark.parametrize("text", ["", "version\n", "version = 3\n", "\ufffe", "home = x\nversion = 3.99.0\n"])
    def test_damaged_pyvenv_cfg_counts_as_another_python(
        self, probe: Probe, text: str, became: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_venv(probe.data_dir)
        make_python(probe.data_dir)
        config = probe.data_dir / "venv" / "pyvenv.cfg"
        config.write_bytes(text.encode("utf-16" if "\ufffe" in text else "utf-8"))
        probe.run()
        assert len(became) == 1


class TestUntrustedVenv:
    def check_refused(self, probe: Probe, packages: Path, advice: str) -> None:
        done = probe.run()
        assert str(packages) not in sys.path
        assert advice in done.err

    @pytest.mark.parametrize("mode", [0o755, 0o750, 0o770, 0o707, 0o777])
    def test_open_to_others(self, probe: Probe, mode: int) -> None:
        packages = make_venv(probe.data_dir)
        probe.data_dir.chmod(mode)
        self.check_refused(probe, packages, f"chmod 700 '{probe.data_dir}'")

    @pytest.mark.parametrize("given", ["data", "./data", "../repository/data"])
    @pytest.mark.parametrize("mode", [0o755, 0o700])
    def test_relative_data_directory(
        self, probe: Probe, given: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A complete venv from anybody's repository, owned by the user who cloned that."""
        data = tmp_path / "repository" / "data"
        data.mkdir(parents=True)
        packages = make_venv(data)
        data.chmod(mode)
        monkeypatch.chdir(tmp_path / "repository")
        monkeypatch.setenv("INTER_SESSION_DATA_DIR", given)
        self.check_refused(probe, packages, "is relative")

    def test_another_user(self, probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
        packages = make_venv(probe.data_dir)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        self.check_refused(probe, packages, "belongs to another user")

    @pytest.mark.parametrize("link", [False, True])
    def test_below_a_writable_directory(
        self, probe: Probe, link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Anyone who can write to a parent can exchange the data directory or the venv."""
        open_to_others = tmp_path / "everybody"
        data = (tmp_path if link else open_to_others) / "own"
        data.mkdir(parents=True, mode=0o700)
        packages = make_venv(data)
        if link:
            open_to_others.mkdir()
            (data / "venv").rename(open_to_others / "venv")
            (data / "venv").symlink_to(open_to_others / "venv")
        open_to_others.chmod(0o777)
        monkeypatch.setenv("INTER_SESSION_DATA_DIR", str(data))
        self.check_refused(probe, packages, f"chmod go-w '{open_to_others}'")
        open_to_others.chmod(0o1777)  # like /tmp, where others cannot exchange it
        assert probe.run() == (0, "", "")
        assert str(packages) in sys.path


# In processes of their own: behaviour at the exit of an interpreter

RUNNER = """
import sys, types
module = types.ModuleType("zmqbus.cli.probe")
def main(argv):
{body}
module.main = main
sys.modules["zmqbus.cli.probe"] = module
from zmqbus import bootstrap
sys.exit(bootstrap.run("probe", []))
"""


def start(body: str, **more: Any) -> subprocess.Popen[str]:
    code = RUNNER.format(body="\n".join("    " + line for line in body.splitlines()))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env.update({"PYTHONPATH": str(ROOT), **more.pop("env", {})})
    return subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, encoding="utf-8", **more)


def shell(command: str, code: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of shell, in which `"$0" -c "$1"` is python with this code."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["sh", "-c", command, sys.executable, code], env=env, capture_output=True, text=True, timeout=90
    )


@pytest.mark.parametrize(
    "body",
    [
        "print('x' * 10)",  # kept back until the end
        "for _ in range(100_000): print('x' * 100)",
        "import os\nwhile True: os.write(1, b'x' * 100_000)",
    ],
)
def test_closed_pipe_ends_the_command_quietly(body: str, data_dir: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with start(body, stdout=writer) as process:
        os.close(writer)
        _, err = process.communicate(timeout=90)
    assert err == ""
    assert process.returncode == 141


def test_output_that_cannot_be_written_is_an_error(data_dir: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full, start("print('x')", stdout=full) as process:
        _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert err == (
        "error: output: cannot write the output: No space left on device; free some space, or see where the output is "
        "redirected to\n"
    )


@pytest.mark.parametrize(("redirection", "status"), [(">/dev/full", 1), ("| true", 141)])
def test_completed_work_is_reported_when_printing_fails(redirection: str, status: int, data_dir: Path) -> None:
    body = "import select\nfrom zmqbus.cli.output import tell\n"
    if status == 141:
        body += "reader = select.poll()\nreader.register(1, 0)\nreader.poll(60_000)\n"  # until it has gone
    body += "tell('sent msg=abc')"
    code = RUNNER.format(body="\n".join("    " + line for line in body.splitlines()))
    done = shell(f'("$0" -c "$1"; echo $? >&2) {redirection}', code)
    reason = "No space left on device" if status == 1 else "Broken pipe"
    assert done.stderr == (
        "error: output: this was carried out and need not be repeated, but could not be printed "
        f"({reason}): sent msg=abc\n{status}\n"
    )


@pytest.mark.parametrize("closing", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_streams_closed_from_the_start(closing: str, data_dir: Path) -> None:
    code = RUNNER.format(body="    print('x')\n    return 3")
    done = shell(f'"$0" -c "$1" {closing}', code)
    assert done.returncode == 3
    assert ("cannot write the output: Bad file descriptor" in done.stderr) == (closing == "1>&-")
    assert done.stderr.count("\n") <= 1


def test_output_is_utf_8_in_every_locale(data_dir: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    body = "print(*map(chr, (0x21B5, 0x2014, 0xDC80)))"  # in ASCII, since python reads its arguments in the locale too
    with start(body, env=locale, stdout=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=90)
    assert (out, err) == ("↵ — \\udc80\n", "")


def test_bootstrap_imports_no_other_modules(data_dir: Path) -> None:
    """The venv may cost 15 ms at most. It costs next to nothing while this holds, whatever the machine."""
    make_venv(data_dir)
    with start(
        "import zmqbus.settings\nprint(*sorted(name for name in sys.modules if not name.startswith('_')))",
        stdout=subprocess.PIPE,
    ) as process:
        out, _ = process.communicate(timeout=90)
    loaded = set(out.split())
    assert "zmqbus.settings" in loaded
    assert not loaded & {"subprocess", "pathlib", "shutil", "asyncio", "tempfile", "zmq", "psutil", "dataclasses"}
