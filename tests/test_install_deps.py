"""zmqbus/cli/install_deps.py: its plan, the commands that it runs, and interruptions.

A stand-in for uv makes the venv here, so no test needs a package index; python's own venv and pip are run for real only
where they fail.
"""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zmqbus import bootstrap
from zmqbus.cli import install_deps
from zmqbus.doctor.installation import REQUIREMENTS

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / "bin"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"

#: Makes a venv with the python of the tests, and records its arguments.
UV = f"""#!/bin/sh
echo "$@" >> "$UV_CALLS"
if [ "$1" = venv ]; then
    mkdir -p "$4/bin" "$4/lib/python{VERSION}/site-packages"
    echo "version_info = {VERSION}.0" > "$4/pyvenv.cfg"
    printf '#!/bin/sh\\nexec {sys.executable} "$@"\\n' > "$4/bin/python"
    printf '#!%s/bin/python\\n' "$4" > "$4/bin/tool"
    chmod +x "$4/bin/python" "$4/bin/tool"
    exit 0
fi
eval "$UV_THEN"
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def venv(data_dir: Path) -> Path:
    return data_dir / "venv"


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return tmp_path / "uv-calls"


@pytest.fixture
def install(run_bin: Run, tmp_path: Path, calls: Path) -> Run:
    """`install(*args, then=shell code)` runs bin/install_deps.py; the stand-in runs `then` in place of installing."""
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(UV)
    uv.chmod(0o700)

    def run(*args: str, then: str = "exit 0", path: str = str(uv.parent)) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{path}:/usr/bin:/bin", "UV_CALLS": str(calls), "UV_THEN": then}
        done: subprocess.CompletedProcess[str] = run_bin("install_deps.py", *args, env=env)
        return done

    return run


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def existing(venv: Path) -> Path:
    """An older, complete venv with other requirements; returns a file in it."""
    venv.mkdir()
    (venv / bootstrap.VENV_MARKER).write_text("pyzmq==1\n")
    (venv / "old").write_text("")
    return venv / "old"


def test_the_requirements_are_those_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert install_deps.wanted_requirements() == REQUIREMENTS == tuple(lines)
    assert install_deps.requirements_file() == str(ROOT / "requirements.txt")
    monkeypatch.setattr(install_deps, "__file__", "/nowhere/site-packages/zmqbus/cli/install_deps.py")
    assert install_deps.requirements_file() == ""
    assert install_deps.make_plan("/data/venv", None).commands[1][-3:] == REQUIREMENTS


@pytest.mark.parametrize("uv", ["/opt/uv", None])
def test_plan(uv: str | None) -> None:
    venv, target, (make, fill) = install_deps.make_plan("/data/venv", uv)
    assert (venv, target) == ("/data/venv", f"/data/venv.new-{os.getpid()}")
    assert make[0] == (uv or sys.executable)
    assert make[-1] == target
    assert f"{target}/bin/python" in fill
    assert fill[-2:] == ("-r", str(ROOT / "requirements.txt"))


def test_plan_with_extras() -> None:
    fill = install_deps.make_plan("/data/venv", None, ["console", "watch"]).commands[1]
    assert fill[-3:] == ("starlette>=0.40,<2", "uvicorn>=0.30,<1", "rich>=13,<16")


def have(venv: Path, *distributions: str, python: str = VERSION) -> None:
    for name in distributions:
        (venv / "lib" / f"python{python}" / "site-packages" / f"{name}.dist-info").mkdir(parents=True)


def test_installed_extras_are_kept(install: Run, venv: Path, calls: Path) -> None:
    """Also where the venv was made by another python, and is replaced."""
    assert install("--yes").returncode == 0
    have(venv, "rich-14.0.0", python="3.1")
    have(venv, "starlette-0.41.0", "click-8.1")  # without uvicorn it is no console
    calls.unlink()
    assert install("--upgrade", "--yes").returncode == 0
    last = calls.read_text().splitlines()[-1]
    assert "rich>=13,<16" in last and "starlette" not in last


def test_an_extra_is_added(install: Run, venv: Path, calls: Path) -> None:
    assert install("--yes").returncode == 0
    have(venv, "rich-14.0.0")
    assert "already installed" in install("--yes", "--extra", "watch").stdout
    assert install("--yes", "--extra", "console").returncode == 0
    last = calls.read_text().splitlines()[-1]
    assert all(need in last for need in ("rich>=13,<16", "starlette>=0.40,<2", "uvicorn>=0.30,<1"))
    assert "nonsense" in install("--extra", "nonsense").stderr


def test_nothing_runs_without_consent(install: Run, calls: Path, data_dir: Path) -> None:
    done = install()
    assert done.returncode == 1
    assert "uv venv --python" in done.stdout
    assert "--yes" in done.stderr
    assert not calls.exists()
    assert names(data_dir) == []


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("yes\n", 0), ("n\n", 1), ("\n", 1), ("\x04", 1)])
def test_it_asks_on_a_terminal(answer: str, status: int, install: Run, venv: Path, tmp_path: Path, calls: Path) -> None:
    terminal, stdin = pty.openpty()
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "UV_CALLS": str(calls), "UV_THEN": "exit 0"}
    try:
        with subprocess.Popen(
            [sys.executable, BIN / "install_deps.py"], stdin=stdin, stdout=subprocess.PIPE, env=env, text=True
        ) as process:
            os.write(terminal, answer.encode())
            out, _ = process.communicate(timeout=90)
    finally:
        os.close(terminal)
        os.close(stdin)
    assert process.returncode == status
    assert "Proceed? [y/N]" in out
    assert venv.exists() == calls.exists() == (status == 0)


def test_an_installation(install: Run, calls: Path, venv: Path, data_dir: Path) -> None:
    done = install("--yes")
    assert (done.returncode, done.stderr) == (0, "")
    # It ran exactly the commands of its plan.
    said = [line.strip().partition("/uv ")[2] for line in done.stdout.splitlines() if line.startswith("    /")]
    assert said == calls.read_text().splitlines()
    assert len(said) == 2
    assert done.stdout.splitlines()[-1].startswith(f"installed in {venv}: pyzmq ")
    assert (venv / bootstrap.VENV_MARKER).is_file()
    assert names(data_dir) == ["venv", "venv.lock"]
    assert data_dir.stat().st_mode & 0o777 == 0o700
    assert (data_dir / "venv.lock").stat().st_mode & 0o777 == 0o600
    # Scripts of the venv hold the path at which it was built.
    assert (venv / "bin" / "tool").read_text() == f"#!{venv}/bin/python\n"
    assert os.access(venv / "bin" / "tool", os.X_OK)


def test_complete_venv_is_not_changed(install: Run, calls: Path, venv: Path) -> None:
    install("--yes")
    calls.unlink()
    (venv / "kept").write_text("")
    done = install()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"already installed in {venv}: pyzmq ")
    assert not calls.exists()
    assert install("--yes", "--upgrade").returncode == 0
    assert calls.exists()
    assert not (venv / "kept").exists()


@pytest.mark.parametrize("fault", ["marker", "requirements", "python version", "broken"])
def test_incomplete_venv_is_replaced(fault: str, install: Run, calls: Path, venv: Path) -> None:
    install("--yes")
    calls.unlink()
    if fault == "marker":
        (venv / bootstrap.VENV_MARKER).unlink()
    elif fault == "requirements":
        (venv / bootstrap.VENV_MARKER).write_text("pyzmq>=26,<28\n")
    elif fault == "python version":
        (venv / "lib" / f"python{VERSION}").rename(venv / "lib" / "python3.99")
    else:
        (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert install("--yes").returncode == 0
    assert calls.exists()


def test_failure_is_shown_and_changes_nothing(install: Run, venv: Path, data_dir: Path) -> None:
    old = existing(venv)
    done = install("--yes", then="seq 100; echo 'no route to the index' >&2; exit 2")
    assert done.returncode == 1
    assert done.stderr.startswith("error: not_installed: `")
    assert "failed with exit status 2" in done.stderr
    assert "    no route to the index\n" in done.stderr
    assert "\n    100\n" in done.stderr
    assert "\n    50\n" not in done.stderr
    assert "--no-uv" in done.stderr
    assert old.exists()
    assert names(data_dir) == ["venv", "venv.lock"]


def test_venv_whose_packages_do_not_import_is_not_used(install: Run, venv: Path, data_dir: Path) -> None:
    old = existing(venv)
    done = install("--yes", then='printf "#!/bin/sh\\necho ImportError: broken >&2; exit 1\\n" > "$4"')
    assert done.returncode == 1
    assert "cannot be imported: ImportError: broken" in done.stderr
    assert old.exists()
    assert names(data_dir) == ["venv", "venv.lock"]


def test_interrupted_install_leaves_the_old_venv(install: Run, venv: Path, data_dir: Path) -> None:
    old = existing(venv)
    assert install("--yes", then="kill -9 $PPID").returncode == -signal.SIGKILL
    assert old.exists()
    [half] = [name for name in names(data_dir) if name.startswith("venv.new-")]
    assert not (data_dir / half / bootstrap.VENV_MARKER).exists()
    assert install("--yes").returncode == 0
    assert names(data_dir) == ["venv", "venv.lock"]
    assert not old.exists()


def test_ctrl_c_cleans_up(install: Run, data_dir: Path, tmp_path: Path, calls: Path) -> None:
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "UV_CALLS": str(calls)}
    with subprocess.Popen(
        [sys.executable, BIN / "install_deps.py", "--yes"],
        env={**env, "UV_THEN": "kill -INT 0; exit 1"},  # as a terminal does: to the whole group
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (130, "")
    assert names(data_dir) == ["venv.lock"]


def test_old_venv_is_restored(install: Run, venv: Path, data_dir: Path) -> None:
    existing(venv)
    venv.rename(data_dir / "venv.old-123")
    assert install("--yes", then="exit 1").returncode == 1
    assert (venv / "old").exists()
    assert names(data_dir) == ["venv", "venv.lock"]


def test_one_install_at_a_time(install: Run, calls: Path, data_dir: Path) -> None:
    with open(data_dir / "venv.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = install("--yes")
    assert done.returncode == 1
    assert "another installation is running" in done.stderr
    assert not calls.exists()


def test_data_directory_open_to_others_is_refused(install: Run, calls: Path, data_dir: Path) -> None:
    data_dir.chmod(0o755)
    done = install("--yes")
    assert done.returncode == 1
    assert done.stderr.startswith("error: unauthorized: ")
    assert f"chmod 700 {data_dir}" in done.stderr.replace("'", "")
    assert not calls.exists()


def test_missing_data_directory_is_made(install: Run, data_dir: Path) -> None:
    data_dir.rmdir()
    assert install("--yes").returncode == 0
    assert data_dir.stat().st_mode & 0o777 == 0o700


def test_python_without_the_venv_module(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    def find_spec(name: str) -> object:
        return None if name == "ensurepip" else object()

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert install_deps.main(["--yes", "--no-uv"]) == 1
    error = capsys.readouterr().err
    assert "apt install python3-venv" in error
    assert "uv" in error
    assert names(data_dir) == ["venv.lock"]


def test_wrong_usage(install: Run, calls: Path) -> None:
    assert install("--yess").returncode == 2
    assert not calls.exists()


def test_misleading_variables_are_removed() -> None:
    env = install_deps._clean_environment({"PYTHONPATH": "/x", "PIP_TARGET": "/y", "PIP_INDEX_URL": "u", "PATH": "p"})
    assert env == {"PIP_INDEX_URL": "u", "PATH": "p", "PIP_USER": "0"}


@pytest.mark.slow
def test_pip_without_an_index(install: Run, venv: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real venv module and the real pip, which cannot reach anything."""
    old = existing(venv)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(data_dir))
    done = install("--yes", "--no-uv")
    assert done.returncode == 1
    assert "No matching distribution found for pyzmq" in done.stderr
    assert "--no-uv" not in done.stderr
    assert old.exists()
    assert names(data_dir) == ["venv", "venv.lock"]
