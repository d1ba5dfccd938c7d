"""Finds out how this zmqbus is installed, and the command that installs missing packages where it finds them.

An error about a missing package names a command that works exactly as printed. It depends on where the dependencies
come from:

* `<data dir>/venv`, or not installed yet, with a bin/ (a plugin, a skill, a checkout): install-deps, which makes that
  venv. The same for a checkout that lacks the basic packages, and under a python that belongs to the system, which
  takes no packages (PEP 668).
* another environment: by its own tool. pipx knows its environments by name; those of `uv tool` and `uv venv` have no
  pip, and uv fills them from outside.
* a python without an environment: its pip.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from shlex import join, quote

from zmqbus.settings import Settings
from zmqbus.tuples import NamedTuple

#: The content of requirements.txt, for packages installed without that file; a test keeps the two equal.
REQUIREMENTS = ("pyzmq>=26,<28", "msgpack>=1.0.5,<2", "psutil>=5.9,<8")
#: Further packages that some commands need, as in pyproject.toml.
EXTRAS = {
    "watch": ("rich>=13,<16",),
    "console": ("starlette>=0.40,<2", "uvicorn>=0.30,<1"),
}


class Installation(NamedTuple):
    """What the command depends on. See `this_installation`."""

    python: str  #: the interpreter to run the command with
    script: str  #: bin/install_deps.py beside the package; "" if there is none
    by_script: bool  #: the dependencies come from the data directory's venv, or are missing
    prefix: str  #: of the environment that this process runs in; "" if in none
    managed: bool  #: the python belongs to the system's package manager
    has_pip: bool
    has_uv: bool


def install_command(settings: Settings, extra: str | None = None) -> str:
    """Returns the command that installs an extra's packages (None: the basic ones) for this installation."""
    return command_for(this_installation(settings), extra)


def command_for(found: Installation, extra: str | None = None) -> str:
    """Returns the command that installs an extra's packages (None: the basic ones) for a given installation."""
    if found.script and (extra is None or found.by_script or (found.managed and not found.prefix)):
        return join((found.python, found.script, "--yes", *(("--extra", extra) if extra else ())))
    needs = EXTRAS[extra] if extra else REQUIREMENTS
    if found.prefix and os.path.isfile(os.path.join(found.prefix, "pipx_metadata.json")):
        return join(("pipx", "inject", os.path.basename(found.prefix), *needs))
    managed = ("--break-system-packages",) if found.managed and not found.prefix else ()
    if found.has_pip:
        return join((found.python, "-m", "pip", "install", *(("--user", *managed) if managed else ()), *needs))
    if found.has_uv:
        return join(("uv", "pip", "install", "--python", found.python, *managed, *needs))
    return f"{quote(found.python)} -m ensurepip && {join((found.python, '-m', 'pip', 'install', *managed, *needs))}"


def this_installation(settings: Settings) -> Installation:
    """Returns the installation of this process."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    script = os.path.join(package, "bin", "install_deps.py")
    venv = settings.paths.venv
    in_venv = _is_within(sys.prefix, venv)
    prefix = sys.prefix if sys.prefix != sys.base_prefix and not in_venv else ""
    spec = find_spec("zmq")
    origin = spec.origin if spec is not None and spec.origin else ""
    return Installation(
        # install-deps replaces that venv, so it must not run from it.
        python=getattr(sys, "_base_executable", sys.executable) if in_venv else sys.executable,
        script=script if os.path.isfile(script) else "",
        by_script=not origin or _is_within(origin, venv),
        prefix=prefix,
        managed=os.path.isfile(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")),
        has_pip=find_spec("pip") is not None,
        has_uv=shutil.which("uv") is not None,
    )


def _is_within(path: str, directory: str) -> bool:
    # Not the realpath of the file itself: the python in a venv is a link out of it.
    directory = os.path.realpath(directory)
    return os.path.realpath(os.path.dirname(path)).startswith(directory + os.sep) or os.path.realpath(path) == directory
