"""zmqbus/bootstrap.py: which python, which packages, and how commands end."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zmqbus import bootstrap, settings

ROOT = Path(__file__).resolve().parent.parent
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
LISTENER_LINE = "[inter-session] dependencies missing — run /inter-session install-deps\n"

Command = Callable[[list[str]], Any]
Install = Callable[[Command], None]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Install:
    """`command(main)` makes `zmqbus.cli.probe` (and connect, and main) a module with that main()."""

    def install(main: Command) -> None:
        for name in ("probe", "connect", "main", "install_deps"):
            module = types.ModuleType(f"zmqbus.cli.{name}")
            module.main = main  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, f"zmqbus.cli.{name}", module)

    return install


@pytest.fixture(autouse=True)
def _restored_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def raising(error: BaseException) -> Command:
    def main(argv: list[str]) -> int:
        raise error

    return main


def make_venv(data_dir: Path, version: str = VERSION, key: str = "version", marker: bool = True) -> Path:
    """A venv as far as the bootstrap looks at it; returns its site-packages."""
    venv = data_dir / "venv"
    packages = venv / "lib" / f"python{'.'.join(version.split('.')[:2])}" / "site-packages"
    packages.mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "pyvenv.cfg").write_text(f"home = /nowhere\ninclude-system-site-packages = false\n{key} = {version}\n")
    if marker:
        (venv / bootstrap.VENV_MARKER).write_text("")
    return packages


def make_python(data_dir: Path, text: str) -> Path:
    path = data_dir / "venv" / "bin" / "python"
    path.write_text(text)
    path.chmod(0o700)
    return path


def no_exec(*args: object) -> None:
    pytest.fail(f"became {args}")


# Running a command


def test_arguments_and_status(data_dir: Path, command: Install) -> None:
    seen: list[list[str]] = []

    def main(argv: list[str]) -> int:
        seen.append(argv)
        return 4

    command(main)
    assert bootstrap.run("probe", ["--to", "x"]) == 4
    assert seen == [["--to", "x"]]


@pytest.mark.parametrize(
    ("code", "status", "said"), [(None, 0, ""), (2, 2, ""), ("no such thing", 1, "no such thing\n")]
)
def test_sys_exit_sets_the_status(
    code: object, status: int, said: str, data_dir: Path, command: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(SystemExit(code)))
    assert bootstrap.run("probe", []) == status
    assert capsys.readouterr().err == said


def test_ctrl_c_ends_quietly(data_dir: Path, command: Install, capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(KeyboardInterrupt()))
    assert bootstrap.run("probe", []) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("a fault"),
        BrokenPipeError("of some other pipe"),
        ModuleNotFoundError("No module named 'zmqbuss'", name="zmqbuss"),
        ModuleNotFoundError("No module named 'zmq.typo'", name="zmq.typo"),
        ImportError("cannot import name", name="zmqbus.errors"),
    ],
)
def test_bugs_are_shown(fault: Exception, data_dir: Path, command: Install) -> None:
    command(raising(fault))
    with pytest.raises(type(fault)) as caught:
        bootstrap.run("probe", [])
    assert caught.value is fault


def test_console_runs_the_main_command_without_a_venv(
    data_dir: Path, command: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = make_venv(data_dir)
    monkeypatch.setattr(sys, "argv", ["zmqbus", "list", "--json"])
    command(len)
    monkeypatch.setattr(os, "_exit", lambda status: None)
    assert bootstrap.console() == 2
    assert str(packages) not in sys.path


@pytest.mark.parametrize(
    ("command_name", "argv", "at_once"),
    [
        ("send", ["--to", "x"], True),
        ("list", [], True),
        ("hook", [], True),
        ("main", ["send", "--to", "x"], True),
        ("main", ["connect"], False),  # a listener has threads, and children
        ("main", ["console"], False),
        ("main", ["log", "--follow"], False),
        ("main", [], False),
        ("connect", [], False),
        ("install_deps", [], False),
    ],
)
def test_finished_command_exits_at_once(
    command_name: str, argv: list[str], at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr(sys, "argv", ["script", *argv])
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(bootstrap, "run", lambda name, given: 7 if (name, given) == (command_name, argv) else 0)
    trace = sys.gettrace()
    sys.settrace(None)  # a coverage run has one, and is left to its end
    try:
        with pytest.raises(SystemExit) as ended:
            bootstrap.main(command_name)
    finally:
        sys.settrace(trace)
    assert ended.value.code == 7  # the status with which os._exit was called
    assert left == ([7] if at_once else [])


def test_normal_exit_under_a_debugger(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(sys, "argv", ["send.py"])
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(bootstrap, "run", lambda name, given: 0)
    monkeypatch.setattr(sys, "gettrace", lambda: print)
    with pytest.raises(SystemExit):
        bootstrap.main("send")
    assert not left


def test_garbage_collection_is_off_only_during_the_import(data_dir: Path, command: Install) -> None:
    import gc

    seen: list[bool] = []
    command(lambda argv: seen.append(gc.isenabled()))
    assert gc.isenabled()
    assert bootstrap.run("probe", []) == 0
    gc.disable()
    try:
        assert bootstrap.run("probe", []) == 0  # it stays off if it was off before
    finally:
        gc.enable()
    assert seen == [True, False]


# Missing dependencies


@pytest.mark.parametrize("missing", ["zmq", "msgpack", "psutil"])
@pytest.mark.parametrize(("name", "argv"), [("connect", []), ("connect", ["--name", "x"])])
def test_listener_reports_on_stdout_and_exits_with_0(
    missing: str, name: str, argv: list[str], data_dir: Path, command: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(ModuleNotFoundError(f"No module named '{missing}'", name=missing)))
    assert bootstrap.run(name, argv) == 0
    assert capsys.readouterr() == (LISTENER_LINE, "")


@pytest.mark.parametrize(
    ("name", "argv", "cure"),
    [
        ("probe", [], "/inter-session install-deps"),  # a script of the skill
        ("main", ["send", "connect"], "zmqbus install-deps"),
        ("main", [], "zmqbus install-deps"),
    ],
)
def test_other_commands_fail(
    name: str, argv: list[str], cure: str, data_dir: Path, command: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(ModuleNotFoundError("No module named 'zmq'", name="zmq")))
    assert bootstrap.run(name, argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: not_installed: dependencies missing — run {cure} (")


def test_listener_at_a_shell_names_the_command_of_the_shell(
    data_dir: Path, command: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(raising(ModuleNotFoundError("No module named 'zmq'", name="zmq")))
    assert bootstrap.run("main", ["connect"]) == 0
    assert capsys.readouterr() == ("[inter-session] dependencies missing — run zmqbus install-deps\n", "")
    monkeypatch.setenv("CLAUDE_PID", "4711")
    assert bootstrap.run("main", ["connect"]) == 0
    assert capsys.readouterr() == (LISTENER_LINE, "")


def test_broken_dependency_has_the_same_remedy(
    data_dir: Path, command: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(ImportError("libc.so.6: version GLIBC_9 not found", name="zmq.backend.cython._zmq")))
    assert bootstrap.run("probe", []) == 1
    err = capsys.readouterr().err
    assert "install-deps" in err
    assert "GLIBC_9" in err


# An interpreter that is too old


def test_error_names_the_versions(
    command: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(AssertionError("must not run")))
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    monkeypatch.setattr(sys, "version", "3.9.18 (main)")
    assert bootstrap.run("probe", []) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: zmqbus needs python 3.10 or newer, and {sys.executable} is 3.9.18; ")
    assert err.count("\n") == 1


def test_listener_reports_on_stdout(
    command: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    assert bootstrap.run("connect", []) == 1
    out, err = capsys.readouterr()
    assert out.startswith("[inter-session] cannot connect: zmqbus needs python 3.10 or newer") and err == ""


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ('{"hook_event_name": "SessionStart"}', True),
        ('{"hook_event_name": "Stop"}', False),
        ("[]", False),
        ("no json", False),
    ],
)
def test_hook_reports_at_the_start_of_a_session(
    event: str, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    monkeypatch.setattr(sys, "stdin", io.StringIO(event))
    assert bootstrap.run("hook", []) == 0
    out, err = capsys.readouterr()
    assert err == ""
    if not said:
        assert out == ""
        return
    told = json.loads(out)["hookSpecificOutput"]
    assert told["hookEventName"] == "SessionStart" and "needs python 3.10" in told["additionalContext"]


def test_venv_of_a_newer_python_is_used(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_venv(data_dir)
    python = make_python(data_dir, "")
    became: list[tuple[str, list[str]]] = []

    def execv(path: str, argv: list[str]) -> None:
        became.append((path, argv))
        raise SystemExit

    monkeypatch.setenv(bootstrap.REEXEC_VARIABLE, "")  # restored after the test
    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    monkeypatch.setattr(sys, "argv", ["/x/send.py", "--to", "y"])
    with pytest.raises(SystemExit):
        bootstrap.run("send", ["--to", "y"])
    assert became == [(str(python), [str(python), "/x/send.py", "--to", "y"])]


# The order of imports


def test_the_standard_library_comes_first_then_this_package(
    data_dir: Path, command: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = os.path.dirname(os.__file__)
    dynamic = os.path.join(library, "lib-dynload")
    monkeypatch.setattr(sys, "path", ["/path/of/others", str(ROOT), library, dynamic, "/site-packages"])
    command(len)
    bootstrap.run("probe", [])
    assert sys.path == [library, dynamic, str(ROOT), "/path/of/others", "/site-packages"]


@pytest.mark.parametrize("given", ["{0}:", ":{0}", "{0}::/y", ".:{0}", "sub:{0}"])
def test_relative_entries_of_pythonpath_are_dropped(given: str, data_dir: Path, tmp_path: Path) -> None:
    """An empty one is the current directory: whatever repository that is."""
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


def test_listener_reports_bugs_on_stdout(data_dir: Path, command: Install, capsys: pytest.CaptureFixture[str]) -> None:
    """A monitor that ends without a line on stdout has not told anybody anything."""
    for fault in (ValueError("a fault"), ModuleNotFoundError("No module named 'zmqbuss'", name="zmqbuss")):
        command(raising(fault))
        with pytest.raises(type(fault)):
            bootstrap.run("connect", [])
        line = "[inter-session] cannot connect: a fault of zmqbus itself ("
        assert capsys.readouterr().out.startswith(line)


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


# The venv


@pytest.mark.parametrize(("key", "version"), [("version", VERSION + ".99"), ("version_info", VERSION + ".1.final.0")])
def test_venv_of_the_same_python_comes_first(
    key: str, version: str, data_dir: Path, command: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = make_venv(data_dir, version, key)
    (packages / "zmqbus_probe_package.py").write_text("FROM = 'the venv'\n")
    monkeypatch.setattr(os, "execv", no_exec)

    def main(argv: list[str]) -> int:
        import zmqbus_probe_package  # type: ignore[import-not-found]

        assert zmqbus_probe_package.FROM == "the venv"
        return 0

    command(main)
    try:
        assert bootstrap.run("probe", []) == 0
        before = sys.path[: sys.path.index(str(packages))]
        assert os.path.dirname(os.__file__) in before and not any("site-packages" in entry for entry in before)
        assert bootstrap.run("probe", []) == 0
        assert sys.path.count(str(packages)) == 1
    finally:
        sys.modules.pop("zmqbus_probe_package", None)


def refuse_marker(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "venv" / bootstrap.VENV_MARKER).unlink()


def switch_off(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTER_SESSION_NO_REEXEC", "1")


def move_away(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "venv").rename(data / "other")


@pytest.mark.parametrize("version", [VERSION, "3.99"])
@pytest.mark.parametrize("reason", [refuse_marker, switch_off, move_away])
def test_venv_is_ignored(
    reason: Callable[[Path, pytest.MonkeyPatch], None],
    version: str,
    data_dir: Path,
    command: Install,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packages = make_venv(data_dir, version)
    make_python(data_dir, "#!/bin/sh\n")
    reason(data_dir, monkeypatch)
    monkeypatch.setattr(os, "execv", no_exec)
    command(len)
    assert bootstrap.run("probe", []) == 0
    assert str(packages) not in sys.path
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o770, 0o707, 0o777])
def test_venv_open_to_others_is_refused(
    mode: int, data_dir: Path, command: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = make_venv(data_dir)
    data_dir.chmod(mode)
    command(len)
    assert bootstrap.run("probe", []) == 0
    assert str(packages) not in sys.path
    assert f"chmod 700 '{data_dir}'" in capsys.readouterr().err


def planted(at: Path) -> Path:
    """A complete venv from anybody's repository, owned by the user who cloned that."""
    at.mkdir(parents=True)
    packages = make_venv(at)
    (packages / "zmq.py").write_text("raise SystemExit('the planted code has run')\n")
    for path in (at, *at.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return packages


@pytest.mark.parametrize("given", ["data", "./data", "../repository/data"])
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_venv_of_a_relative_data_directory_is_refused(
    given: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = planted(tmp_path / "repository" / "data")
    (tmp_path / "repository" / "data").chmod(mode)
    monkeypatch.chdir(tmp_path / "repository")
    monkeypatch.setenv("INTER_SESSION_DATA_DIR", given)
    bootstrap._use_venv([])
    assert str(packages) not in sys.path
    assert "is relative" in capsys.readouterr().err


def test_venv_of_another_user_is_refused(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = make_venv(data_dir)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    bootstrap._use_venv([])
    assert str(packages) not in sys.path
    assert "belongs to another user" in capsys.readouterr().err


@pytest.mark.parametrize("link", [False, True])
def test_venv_below_a_writable_directory_is_refused(
    link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anyone who can write to a parent can exchange the data directory or the venv."""
    open_to_others = tmp_path / "everybody"
    data = (tmp_path if link else open_to_others) / "data"
    data.mkdir(parents=True, mode=0o700)
    packages = make_venv(data)
    if link:
        open_to_others.mkdir()
        (data / "venv").rename(open_to_others / "venv")
        (data / "venv").symlink_to(open_to_others / "venv")
    open_to_others.chmod(0o777)
    monkeypatch.setenv("INTER_SESSION_DATA_DIR", str(data))
    bootstrap._use_venv([])
    assert str(packages) not in sys.path
    assert f"chmod go-w '{open_to_others}'" in capsys.readouterr().err
    open_to_others.chmod(0o1777)  # as /tmp: there everybody may make something of their own, and no more
    bootstrap._use_venv([])
    assert str(packages) in sys.path
    assert capsys.readouterr().err == ""


def test_install_deps_uses_no_venv(data_dir: Path, command: Install) -> None:
    packages = make_venv(data_dir)
    command(lambda argv: 0)
    for name, argv in (("install_deps", []), ("main", ["install-deps", "--yes"])):
        assert bootstrap.run(name, argv) == 0
        assert str(packages) not in sys.path


def test_venv_of_another_python_is_entered_once(
    data_dir: Path, command: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_venv(data_dir, "3.99.1")
    python = make_python(data_dir, "#!/bin/sh\n")
    monkeypatch.setattr(sys, "argv", ["bin/send.py", "--all"])
    became: list[tuple[str, list[str]]] = []

    def execv(path: str, argv: list[str]) -> None:
        became.append((path, argv))
        raise OSError  # as for a file that this machine cannot run; execv() does not return otherwise

    monkeypatch.setattr(os, "execv", execv)
    command(lambda argv: 0)
    assert bootstrap.run("probe", ["--all"]) == 0
    assert became == [(str(python), [str(python), os.path.abspath("bin/send.py"), "--all"])]
    assert bootstrap.REEXEC_VARIABLE not in os.environ

    monkeypatch.setenv(bootstrap.REEXEC_VARIABLE, str(os.getpid()))  # as after an execv() that worked
    assert bootstrap.run("probe", ["--all"]) == 0
    assert len(became) == 1
    assert bootstrap.REEXEC_VARIABLE not in os.environ  # children decide for themselves

    monkeypatch.setenv(
        bootstrap.REEXEC_VARIABLE, str(os.getppid())
    )  # inherited from a parent that has become the venv's python
    assert bootstrap.run("probe", ["--all"]) == 0
    assert len(became) == 2


@pytest.mark.parametrize("damage", ["dangling", "not executable", "absent"])
def test_venv_without_its_python_is_ignored(
    damage: str, data_dir: Path, command: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_venv(data_dir, "3.99.1")
    python = data_dir / "venv" / "bin" / "python"
    if damage == "dangling":
        python.symlink_to("/nowhere/python3.99")
    elif damage == "not executable":
        python.write_text("")
    monkeypatch.setattr(os, "execv", no_exec)
    command(lambda argv: 0)
    assert bootstrap.run("probe", []) == 0


@pytest.mark.parametrize("text", ["", "version\n", "version = 3\n", "\ufffe", "home = x\nversion = 3.99.0\n"])
def test_damaged_pyvenv_cfg_counts_as_another_python(text: str, data_dir: Path) -> None:
    make_venv(data_dir)
    (data_dir / "venv" / "pyvenv.cfg").write_bytes(text.encode("utf-16" if "\ufffe" in text else "utf-8"))
    assert not bootstrap._is_same_python(str(data_dir / "venv"))


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
    shell = f'("$0" -c "$1"; echo $? >&2) {redirection}'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    reason = "No space left on device" if status == 1 else "Broken pipe"
    assert done.stderr == (
        "error: output: this was carried out and need not be repeated, but could not be printed "
        f"({reason}): sent msg=abc\n{status}\n"
    )


@pytest.mark.parametrize("closing", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_streams_closed_from_the_start(closing: str, data_dir: Path) -> None:
    code = RUNNER.format(body="    print('x')\n    return 3")
    done = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {closing}', sys.executable, code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
    )
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
