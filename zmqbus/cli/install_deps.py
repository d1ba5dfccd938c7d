"""install-deps: install the three packages that zmqbus needs into `<data dir>/venv`.

It prints its commands before it runs any, and runs them only after `--yes` or an answer. The venv is built beside its
place, tested by importing the packages, marked as complete, and only then renamed into its place, so that the scripts
in bin/ keep working however an installation is interrupted: `zmqbus.bootstrap` ignores a venv without the marker.
Extras of the old venv are installed into the new one too. A lock excludes a second installation; its holder removes
what interrupted ones left.

It uses only the standard library, because its users have nothing else yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from zmqbus import settings
from zmqbus.bootstrap import VENV_MARKER, site_packages
from zmqbus.cli.output import confirm, fail
from zmqbus.cli.parser import Parser
from zmqbus.doctor.installation import EXTRAS, REQUIREMENTS
from zmqbus.errors import ZmqbusError
from zmqbus.security.private_files import secure_dir
from zmqbus.text.display import INDENT, sanitise

#: Three wheels take seconds, three builds from source minutes.
COMMAND_TIMEOUT_S = 900.0
#: For importing three packages from a cold disk.
CHECK_TIMEOUT_S = 60.0
#: Last lines of a failed command that are shown: pip reports the cause at its end.
SHOWN_LINES = 12
#: Only the scripts in `bin/` of a venv, of a few KiB each, contain its path as text.
MAX_SCRIPT_BYTES = 1 << 20

#: Variables that would lead pip, uv or the venv's python to places outside the venv.
MISLEADING_VARIABLES = (
    "PYTHONHOME",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_PYTHON",
    "UV_PROJECT_ENVIRONMENT",
    "UV_SYSTEM_PYTHON",
    "UV_TARGET",
    "UV_PYTHON",
)

#: The name at the beginning of a requirement.
_NAME = re.compile("[a-z0-9]+")

_CHECK = (
    "import zmq, msgpack, psutil\n"
    "print('pyzmq', zmq.__version__ + ',', 'libzmq', zmq.zmq_version() + ',',"
    " 'msgpack', '.'.join(map(str, msgpack.version)) + ',', 'psutil', psutil.__version__)"
)


class InstallError(ZmqbusError):
    """The dependencies could not be installed; an earlier installation is unchanged."""

    code = "not_installed"

    def __init__(self, text: str, output: tuple[str, ...] = ()) -> None:
        """`output`: the last lines of the program that failed."""
        super().__init__(text)
        self.output = output


class _Plan(NamedTuple):
    """The commands to run. The venv is built at `target`, then moved to `venv`."""

    venv: str
    target: str
    commands: tuple[tuple[str, ...], ...]


def main(argv: list[str]) -> int:
    """`install_deps.py [--yes] [--upgrade] [--no-uv]`; returns the exit status, 0 or 1. Wrong usage exits with 2."""
    options = _parser().parse_args(argv)
    try:
        return _install(
            settings.load(), yes=options.yes, upgrade=options.upgrade, uv=options.uv, extras=tuple(options.extra)
        )
    except ZmqbusError as error:
        status = fail(error)
        for line in error.output if isinstance(error, InstallError) else ():
            print(f"{INDENT}{sanitise(line)}", file=sys.stderr)
        return status


def _parser() -> Parser:
    parser = Parser(
        "install-deps", "Installs what zmqbus needs (pyzmq, msgpack, psutil) into a virtual environment of its own."
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--upgrade", action="store_true", help="reinstall, with the newest matching versions")
    parser.add_argument(
        "--extra",
        action="append",
        default=[],
        choices=sorted(EXTRAS),
        help="also install what this command needs (repeatable); installed extras are kept",
    )
    parser.add_argument("--no-uv", dest="uv", action="store_false", help="use python's own venv and pip, not uv")
    return parser


def _install(loaded: settings.Settings, *, yes: bool, upgrade: bool, uv: bool, extras: tuple[str, ...]) -> int:
    venv = loaded.paths.venv
    kept = installed_extras(venv)
    if not upgrade and kept.issuperset(extras):
        versions = _installed(venv)
        if versions:
            print(f"already installed in {venv}: {versions}")
            return 0
    plan = make_plan(venv, shutil.which("uv") if uv else None, sorted(kept.union(extras)))
    print(f"This {'replaces' if os.path.lexists(venv) else 'creates'} {venv}:")
    for command in plan.commands:
        print("    " + shlex.join(command))
    print(f"    mv {shlex.quote(plan.target)} {shlex.quote(venv)}", flush=True)
    if not yes and not _agreed():
        return 1
    secure_dir(loaded.data_dir)
    with _lock(loaded.data_dir):
        versions = _build(plan, _clean_environment(os.environ))
    print(f"installed in {venv}: {versions}")
    return 0


def installed_extras(venv: str) -> set[str]:
    """The extras whose packages are in `venv`, for whichever python: a new venv must have them too."""
    directories = glob.glob(os.path.join(glob.escape(venv), "lib", "python*", "site-packages"))
    there = {
        name.lower()
        for directory in directories
        for name in (entry.partition("-")[0] for entry in os.listdir(directory) if entry.endswith(".dist-info"))
    }
    return {extra for extra, needs in EXTRAS.items() if all(_NAME.match(need)[0] in there for need in needs)}  # type: ignore[index]


def make_plan(venv: str, uv: str | None, extras: Iterable[str] = ()) -> _Plan:
    """The commands that create `venv`; `uv` is the path of uv, None where it is not installed."""
    target = f"{venv}.new-{os.getpid()}"
    python = os.path.join(target, "bin", "python")
    file = requirements_file()
    wanted = (*(("-r", file) if file else REQUIREMENTS), *(need for extra in extras for need in EXTRAS[extra]))
    if uv:
        make: tuple[str, ...] = (uv, "venv", "--python", sys.executable, target)
        fill: tuple[str, ...] = (uv, "pip", "install", "--python", python, *wanted)
    else:
        make = (sys.executable, "-m", "venv", target)
        fill = (python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *wanted)
    return _Plan(venv, target, (make, fill))


def requirements_file() -> str:
    """The path of requirements.txt in this checkout; "" for an installed package, which has none."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    root = os.path.dirname(package)
    path = os.path.join(root, "requirements.txt")
    # A file of that name in site-packages would belong to another package.
    return path if os.path.isfile(path) and os.path.isdir(os.path.join(root, "bin")) else ""


def wanted_requirements() -> tuple[str, ...]:
    """The requirements, in the order of their source."""
    path = requirements_file()
    if not path:
        return REQUIREMENTS
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.partition("#")[0].strip() for line in file]
    except (OSError, ValueError) as error:
        raise InstallError(f"cannot read {path}: {error}; restore it and run this again") from error
    return tuple(line for line in lines if line)


def _marker_text() -> str:
    return "\n".join(wanted_requirements()) + "\n"


def _installed(venv: str) -> str:
    """The versions in `venv`, if it is complete and made for this python and these requirements; "" otherwise."""
    if not site_packages(venv):
        return ""
    try:
        with open(os.path.join(venv, VENV_MARKER), encoding="utf-8") as file:
            if file.read() != _marker_text():
                return ""
        return _check(venv, os.environ)
    except (OSError, ValueError, InstallError):  # missing, not readable or broken: to be replaced
        return ""


def _agreed() -> bool:
    return confirm(
        "Proceed?",
        refusal="not_installed: nothing was run, because there is no terminal to ask on",
        unchanged="nothing was run",
    )


@contextlib.contextmanager
def _lock(data_dir: str) -> Iterator[None]:
    path = os.path.join(data_dir, "venv.lock")
    # Never removed: a process that waits for it has the same file open.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InstallError("another installation is running; wait for it to end") from None
        yield
    finally:
        os.close(descriptor)


def _build(plan: _Plan, environ: Mapping[str, str]) -> str:
    """Builds the venv, tests it and moves it into its place; returns its versions. The caller holds the lock."""
    _clear_leftovers(plan.venv)
    if not shutil.which(plan.commands[0][0]):
        raise InstallError(f"{plan.commands[0][0]} was removed; run this again")
    if plan.commands[0][0] == sys.executable:
        _require_venv_module()
    try:
        for command in plan.commands:
            print(f"running {os.path.basename(command[0])} {' '.join(command[1:4])} …", flush=True)
            _run(command, os.path.dirname(plan.venv), environ)
        versions = _check(plan.target, environ)
        _relocate(plan.target, plan.venv)
        with open(os.path.join(plan.target, VENV_MARKER), "w", encoding="utf-8") as file:
            file.write(_marker_text())
        _swap_in(plan)
    except OSError as error:
        raise InstallError(
            f"{error.strerror or error}: {error.filename or plan.target}; free some space or fix the permissions, "
            "then run this again"
        ) from error
    finally:
        shutil.rmtree(plan.target, ignore_errors=True)
    return versions


def _require_venv_module() -> None:
    from importlib.util import find_spec

    # Debian packages the venv module without ensurepip, which it needs; python3-venv contains both.
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        raise InstallError(
            f"{sys.executable} has no venv module; install it (Debian and Ubuntu: sudo apt install python3-venv) "
            "or install uv (https://docs.astral.sh/uv/), then run this again"
        )


def _run(command: tuple[str, ...], directory: str, environ: Mapping[str, str]) -> None:
    """Runs a command without input. The end of its output is shown only when it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            # Not the user's directory, where uv would read the settings of a project.
            cwd=directory,
            env=dict(environ),
            timeout=COMMAND_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise InstallError(
            f"`{shlex.join(command)}` did not end within {COMMAND_TIMEOUT_S:.0f} s and was stopped; "
            "check that the package index can be reached, then run this again"
        ) from None
    if done.returncode != 0:
        # pip and uv have separate configurations: one may have the index or the certificate that the other lacks.
        hint = ", or with --no-uv." if os.path.basename(command[0]) == "uv" else "."
        raise InstallError(
            f"`{shlex.join(command)}` failed with exit status {done.returncode}, and nothing was changed. Check that "
            "the package index can be reached (network, proxy, pip's or uv's configuration) and that the disk is not "
            f"full, then run this again{hint} Its last output:",
            tuple(done.stdout.rstrip().splitlines()[-SHOWN_LINES:]),
        )


def _check(venv: str, environ: Mapping[str, str]) -> str:
    """Imports the packages with the venv's python; returns their versions, or raises InstallError."""
    python = os.path.join(venv, "bin", "python")
    try:
        done = subprocess.run(
            (python, "-I", "-c", _CHECK),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=dict(environ),
            timeout=CHECK_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{python} does not run: {error}; run install-deps again") from error
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise InstallError(
            f"the packages were installed but cannot be imported: {last[0]}; "
            "install a python that has wheels for them, or a C compiler, then run this again"
        )
    return done.stdout.strip()


def _clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    env = {name: value for name, value in environ.items() if name not in MISLEADING_VARIABLES}
    env["PIP_USER"] = "0"  # wins over a `user = true` in pip's configuration, which fails in a venv
    return env


def _relocate(target: str, venv: str) -> None:
    """Replaces the path at which the venv was built, in its scripts, by its final path."""
    old, new = os.fsencode(target), os.fsencode(venv)
    directory = os.path.join(target, "bin")
    for path in [
        *(os.path.join(directory, name) for name in os.listdir(directory)),
        os.path.join(target, "pyvenv.cfg"),
    ]:
        if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) > MAX_SCRIPT_BYTES:
            continue
        with open(path, "r+b") as file:
            content = file.read()
            if old not in content or b"\0" in content:  # nothing to do, or a program
                continue
            file.seek(0)
            file.write(content.replace(old, new))
            file.truncate()


def _swap_in(plan: _Plan) -> None:
    """Moves the new venv into its place, or restores the old one."""
    old = f"{plan.venv}.old-{os.getpid()}"
    had_one = os.path.lexists(plan.venv)
    if had_one:
        os.rename(plan.venv, old)
    try:
        os.rename(plan.target, plan.venv)
    except OSError:
        if had_one:
            os.rename(old, plan.venv)
        raise
    if had_one:
        _remove(old)


def _clear_leftovers(venv: str) -> None:
    """Removes the remains of interrupted installations. A venv that was moved away is restored first."""
    directory, name = os.path.split(venv)
    for entry in sorted(os.listdir(directory)):
        path = os.path.join(directory, entry)
        if entry.startswith(name + ".old-") and not os.path.lexists(venv):
            os.rename(path, venv)
        elif entry.startswith((name + ".old-", name + ".new-")):
            _remove(path)


def _remove(path: str) -> None:
    if os.path.islink(path) or not os.path.isdir(path):
        os.unlink(path)
    else:
        shutil.rmtree(path, ignore_errors=True)
