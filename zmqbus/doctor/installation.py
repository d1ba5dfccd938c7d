"""How this zmqbus is installed, and the command that installs more into the place where it looks.

Whoever misses a package is told a command that works as it is printed. Which one that is depends on where the
dependencies come from:

* `<data dir>/venv`, or nowhere yet, and there is a bin/ (a plugin, a skill, a checkout): install-deps, which makes that
  venv. It also is what mends a checkout that lacks what everything needs, and the way for one under a python that
  belongs to the system, which takes no packages (PEP 668).
* an environment that is not the data directory's: by its own means. pipx knows its environments by name; those of `uv
  tool` and `uv venv` have no pip, and uv fills them from outside.
* a python that nobody manages: its pip.
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

#: What requirements.txt says, for a package that was installed without that file; a test keeps the two equal.
REQUIREMENTS = ("pyzmq>=26,<28", "msgpack>=1.0.5,<2", "psutil>=5.9,<8")
#: As in pyproject.toml: what some commands need beyond that.
EXTRAS = {
    "watch": ("rich>=13,<16",),
    "console": ("starlette>=0.40,<2", "uvicorn>=0.30,<1"),
}


class Installation(NamedTuple):
    """What decides about the command. `looked_at` finds it out."""

    python: str  #: the interpreter to run it with
    script: str  #: bin/install_deps.py beside the package; "" where there is none
    by_script: bool  #: the dependencies come from the data directory's venv, or are not there
    prefix: str  #: of the environment that this process runs in; "" if it runs in none
    managed: bool  #: the python belongs to the system's packages
    has_pip: bool
    has_uv: bool


def install_command(settings: Settings, extra: str | None = None) -> str:
    """The command that installs what an extra needs (None: what everything needs) where this process finds it."""
    return command_for(looked_at(settings), extra)


def command_for(found: Installation, extra: str | None = None) -> str:
    """See `install_command`."""
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


def looked_at(settings: Settings) -> Installation:
    """The installation of this process."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    script = os.path.join(package, "bin", "install_deps.py")
    venv = settings.paths.venv
    in_venv = _is_within(sys.prefix, venv)
    prefix = sys.prefix if sys.prefix != sys.base_prefix and not in_venv else ""
    spec = find_spec("zmq")
    origin = spec.origin if spec is not None and spec.origin else ""
    return Installation(
        # install-deps replaces that venv, and should not stand on it.
        python=getattr(sys, "_base_executable", sys.executable) if in_venv else sys.executable,
        script=script if os.path.isfile(script) else "",
        by_script=not origin or _is_within(origin, venv),
        prefix=prefix,
        managed=os.path.isfile(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")),
        has_pip=find_spec("pip") is not None,
        has_uv=shutil.which("uv") is not None,
    )


def _is_within(path: str, directory: str) -> bool:
    # Not realpath of the whole: the python in a venv is a link that leads out of it.
    directory = os.path.realpath(directory)
    return os.path.realpath(os.path.dirname(path)).startswith(directory + os.sep) or os.path.realpath(path) == directory
