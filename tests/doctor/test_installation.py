"""`install_command`: a command that works, for each way to install zmqbus."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from zmqbus.cli import install_deps
from zmqbus.doctor import installation
from zmqbus.doctor.installation import EXTRAS, Installation, command_for, install_command, this_installation
from zmqbus.settings import load

PLAIN = Installation(
    python="/usr/bin/python3",
    script="",
    by_script=False,
    prefix="",
    managed=False,
    has_pip=True,
    has_uv=False,
)
RICH = "'rich>=13,<16'"


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, f"/usr/bin/python3 -m pip install {RICH}"),
        # Debian, Homebrew: pip refuses without the option.
        ({"managed": True}, f"/usr/bin/python3 -m pip install --user --break-system-packages {RICH}"),
        # A plugin, a skill, a checkout: install-deps, whatever the python is.
        (
            {"script": "/x y/bin/install_deps.py", "by_script": True},
            "/usr/bin/python3 '/x y/bin/install_deps.py' --yes --extra watch",
        ),
        (
            {"script": "/x/bin/install_deps.py", "managed": True},
            "/usr/bin/python3 /x/bin/install_deps.py --yes --extra watch",
        ),
        # A checkout with its own environment.
        ({"script": "/x/bin/install_deps.py", "prefix": "/x/.venv"}, f"/usr/bin/python3 -m pip install {RICH}"),
        # In an environment, the system python's mark does not matter.
        ({"managed": True, "prefix": "/v"}, f"/usr/bin/python3 -m pip install {RICH}"),
        # uv tool, uv venv: an environment without pip.
        ({"prefix": "/v", "has_pip": False, "has_uv": True}, f"uv pip install --python /usr/bin/python3 {RICH}"),
        (
            {"prefix": "/v", "has_pip": False},
            f"/usr/bin/python3 -m ensurepip && /usr/bin/python3 -m pip install {RICH}",
        ),
        (
            {"managed": True, "has_pip": False, "has_uv": True},
            f"uv pip install --python /usr/bin/python3 --break-system-packages {RICH}",
        ),
    ],
)
def test_install_command(changes: dict[str, object], command: str) -> None:
    assert command_for(PLAIN._replace(**changes), "watch") == command  # type: ignore[arg-type]


def test_pipx_environment_is_named(tmp_path: Path) -> None:
    prefix = tmp_path / "venvs" / "zmqbus"
    prefix.mkdir(parents=True)
    (prefix / "pipx_metadata.json").write_text("{}")
    assert command_for(PLAIN._replace(prefix=str(prefix), has_pip=False), "watch") == f"pipx inject zmqbus {RICH}"


def test_without_an_extra_the_basic_packages_are_installed() -> None:
    assert shlex.split(command_for(PLAIN))[4:] == list(installation.REQUIREMENTS)
    script = PLAIN._replace(script="/x/bin/install_deps.py", by_script=True)
    assert command_for(script).endswith("/x/bin/install_deps.py --yes")


def test_requirements_match_pyproject_and_requirements_file() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for extra, needs in EXTRAS.items():
        found = re.search(rf"^{extra} = \[(.*)\]$", text, re.MULTILINE)
        assert found is not None and tuple(re.findall(r'"([^"]+)"', found[1])) == needs
    assert install_deps.wanted_requirements() == installation.REQUIREMENTS


def test_checkout_with_its_own_environment(data_dir: Path) -> None:
    found = this_installation(load())
    assert found.script == str(ROOT / "bin" / "install_deps.py") and found.python == sys.executable
    assert not found.by_script, "its packages come from the environment that runs the tests"


def test_checkout_without_packages_uses_install_deps(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spec:
        origin = str(data_dir / "venv" / "lib" / "python3" / "site-packages" / "zmq" / "__init__.py")

    monkeypatch.setattr(installation, "find_spec", lambda name: Spec)
    assert install_command(load(), "watch").endswith("bin/install_deps.py --yes --extra watch")
    monkeypatch.setattr(installation, "find_spec", lambda name: None)
    assert install_command(load()).endswith("bin/install_deps.py --yes")


def test_install_deps_does_not_run_from_the_venv_it_replaces(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data_dir / "venv").mkdir()
    monkeypatch.setattr(sys, "prefix", str(data_dir / "venv"))
    monkeypatch.setattr(sys, "_base_executable", "/usr/bin/python3.12", raising=False)
    found = this_installation(load())
    assert (found.python, found.prefix) == ("/usr/bin/python3.12", "")
