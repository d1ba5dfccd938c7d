"""The scripts in bin/ find their package however they are called, and report missing dependencies."""

from __future__ import annotations

import ast
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / "bin"

#: Script -> command module.
SCRIPTS = {
    "client.py": "connect",
    "send.py": "send",
    "list.py": "list",
    "approve.py": "approve",
    "auto_start.py": "auto_start",
    "hook.py": "hook",
    "install_deps.py": "install_deps",
    "zmqbus": "main",
}
MAX_LINES = 20

FAKE_COMMAND = (
    "import os.path as path\ndef main(argv):\n"
    "    print(__name__, argv, path.dirname(path.dirname(path.dirname(path.abspath(__file__)))))\n    return 5\n"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose commands only say how they were called."""
    root = tmp_path / "checkout"
    shutil.copytree(BIN, root / "bin", ignore=shutil.ignore_patterns("__pycache__"))
    for room in ("cli", "system", "text"):
        (root / "zmqbus" / room).mkdir(parents=True)
    for name in ("__init__.py", "bootstrap.py", "settings.py", "system/streams.py", "text/wording.py"):
        shutil.copy(ROOT / "zmqbus" / name, root / "zmqbus" / name)
    for module in SCRIPTS.values():
        (root / "zmqbus" / "cli" / f"{module}.py").write_text(FAKE_COMMAND)
    return root


def call(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.stderr == ""
    assert done.returncode == 5
    return done.stdout.strip()


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_small_programs_for_python_3(script: str) -> None:
    path = BIN / script
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env python3"
    assert len(lines) <= MAX_LINES


@pytest.mark.parametrize("path", [*(BIN / name for name in SCRIPTS), *(ROOT / "zmqbus").glob("[_b]*.py")])
def test_early_modules_are_valid_for_an_old_python(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 6))
    # Not syntax, yet refused by python 3.6 when it compiles the file.
    assert not [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8", "3.9"])
def test_old_python_is_reported(version: str, data_dir: Path) -> None:
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"no python {version} here")
    done = subprocess.run([python, "-B", BIN / "client.py"], capture_output=True, encoding="utf-8", timeout=90)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: zmqbus needs python 3.10 or newer, this is {version}.")
    assert done.stdout == ""


@pytest.mark.parametrize(("script", "module"), SCRIPTS.items())
def test_each_script_runs_its_command(script: str, module: str, checkout: Path, data_dir: Path) -> None:
    said = call(sys.executable, checkout / "bin" / script, "-x", "y z")
    assert said == f"zmqbus.cli.{module} ['-x', 'y z'] {checkout}"


def test_links_to_scripts_and_directories_are_followed(checkout: Path, tmp_path: Path, data_dir: Path) -> None:
    """A skill links to bin/, a user to zmqbus from a directory on the PATH."""
    (tmp_path / "skill").mkdir()
    (tmp_path / "skill" / "bin").symlink_to(checkout / "bin")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "zmqbus").symlink_to(tmp_path / "skill" / "bin" / "zmqbus")
    expected = f"zmqbus.cli.main [] {checkout}"
    assert call(sys.executable, tmp_path / "skill" / "bin" / "zmqbus") == expected
    assert call(sys.executable, "skill/bin/zmqbus", cwd=tmp_path) == expected
    assert (
        call("zmqbus", env={"PATH": f"{tmp_path / 'path'}:{Path(sys.executable).parent}:{os.environ['PATH']}"})
        == expected
    )


def test_copy_with_its_package_works(checkout: Path, tmp_path: Path, data_dir: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(checkout, copy)
    assert call(sys.executable, copy / "bin" / "list.py") == f"zmqbus.cli.list [] {copy}"


def test_neighbouring_files_are_not_imported(checkout: Path, data_dir: Path) -> None:
    """bin/ is not on the path: scripts there have names of standard modules."""
    (checkout / "bin" / "colorsys.py").write_text("raise SystemExit('the wrong module')\n")
    (checkout / "zmqbus" / "cli" / "send.py").write_text("import colorsys\n" + FAKE_COMMAND)
    assert call(sys.executable, checkout / "bin" / "send.py").startswith("zmqbus.cli.send")


def test_python_of_the_venv_is_started(checkout: Path, data_dir: Path) -> None:
    venv = data_dir / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("version = 3.99.0\n")
    (venv / "zmqbus-installed").write_text("")
    python = venv / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@"\nexit 5\n')
    python.chmod(0o700)
    script = checkout / "bin" / "send.py"
    assert call(sys.executable, script, "--text", "a  b") == f"{script} --text a  b"

    # A venv whose python is this one is entered once, and then ignored.
    python.unlink()
    python.symlink_to(sys.executable)
    assert call(sys.executable, script).startswith("zmqbus.cli.send")


@pytest.mark.parametrize("script", ["client.py", "send.py", "list.py"])
def test_without_dependencies(script: str, data_dir: Path) -> None:
    # -S leaves out site-packages, so there are none.
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-B", BIN / script], capture_output=True, encoding="utf-8", timeout=90
    )
    line = "dependencies missing — run /inter-session install-deps"
    if script == "client.py":
        assert (done.stdout, done.stderr, done.returncode) == (f"[inter-session] {line}\n", "", 0)
    else:
        assert done.stdout == ""
        assert done.stderr.startswith(f"error: not_installed: {line}")
        assert done.returncode == 1


@pytest.mark.parametrize("how", [["-m", "zmqbus"], [str(ROOT / "zmqbus" / "__main__.py")]])
def test_python_m(how: list[str], data_dir: Path, tmp_path: Path) -> None:
    """As a module, and as the file that `bootstrap` names when it changes over to the venv's python."""
    env = {"PYTHONPATH": str(ROOT)} if how[0] == "-m" else {}
    done = subprocess.run(
        [sys.executable, *how, "--version"],
        env={**os.environ, **env},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("zmqbus ")


def test_python_m_without_the_dependencies(data_dir: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "zmqbus", "list"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: not_installed: dependencies missing — run zmqbus install-deps (")
