"""Children import the modules of their parent, in the same order, despite stray modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, RunBin
from zmqbus.bootstrap import VENV_MARKER
from zmqbus.system import children

#: Names of standard modules, and of one dependency, that the stray packages take.
STRAY = ("typing", "enum", "selectors", "dataclasses", "zmq", "msgpack", "runpy")


@pytest.fixture
def strays(tmp_path: Path) -> Path:
    """A directory of packages that must not be imported."""
    directory = tmp_path / "packages"
    directory.mkdir()
    for name in STRAY:
        (directory / f"{name}.py").write_text(f"raise SystemExit('a stray {name} is imported')\n")
    return directory


def path_of_child() -> list[str]:
    code = children.command("zmqbus.system.children")
    program = f"{code[2].partition('import runpy')[0]}import json; print(json.dumps(sys.path))"
    done = subprocess.run([code[0], "-c", program], env=children.environ(), cwd="/", capture_output=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def test_child_has_the_import_path_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "relative", str(ROOT), "/a", *sys.path[1:], "/z"])
    assert path_of_child() == sys.path[2:]


def test_package_outside_of_the_path_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if os.path.abspath(entry) != str(ROOT)])
    assert path_of_child()[0] == str(ROOT)


def test_child_runs_a_module_with_its_arguments() -> None:
    done = subprocess.run(
        children.command("tests.system.test_children", "one", "two"),
        env=children.environ({"ANOTHER": "yes"}),
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.stdout == "['one', 'two'] yes None\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("where", ["PYTHONPATH", "site-packages"])
def test_broker_starts_beside_stray_modules(
    where: str, strays: Path, run_bin: RunBin, free_port: int, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the script, and from an installed package, which lies among them."""
    environ = {"INTER_SESSION_PORT": str(free_port)}
    if where == "PYTHONPATH":
        import zmq

        venv = data_dir / "venv"
        packages = venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        packages.parent.mkdir(parents=True)
        packages.symlink_to(Path(zmq.__file__).parent.parent)
        (venv / "pyvenv.cfg").write_text(f"version = {sys.version.split()[0]}\n")
        (venv / VENV_MARKER).write_text("")
        environ |= {"PYTHONPATH": str(strays), "INTER_SESSION_NO_REEXEC": ""}
        done = run_bin("send.py", "--to", "nobody", "--as", "x", "--text", "hi", env=environ)
        assert done.returncode == 1 and done.stderr.startswith("error: unknown_peer:"), done
        return
    for name in ("zmq", "msgpack"):  # here are the real ones
        (strays / f"{name}.py").unlink()
    (strays / "zmqbus").symlink_to(ROOT / "zmqbus")
    program = (
        f"import sys; sys.path.append({str(strays)!r}); sys.path[:] = [e for e in sys.path if e != {str(ROOT)!r}]\n"
        "sys.argv[1:] = ['send', '--to', 'nobody', '--as', 'x', '--text', 'hi']\n"
        "from zmqbus import bootstrap; sys.exit(bootstrap.console())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environ}, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith("error: unknown_peer:"), done


if __name__ == "__main__":
    print(sys.argv[1:], os.environ.get("ANOTHER"), os.environ.get(children.PATH_VARIABLE))
