"""Checks what zmqbus runs on: python, packages, the virtual environment, settings, limits, the disk, the clock."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import zmqbus
from zmqbus.bootstrap import VENV_MARKER, site_packages
from zmqbus.doctor.installation import install_command
from zmqbus.doctor.report import Finding, command, fault, ok, warning
from zmqbus.errors import ZmqbusError
from zmqbus.journal.history import History
from zmqbus.settings import Settings

#: Open files of the broker for each session, for its two connections; each command takes one more for a moment.
FILES_A_SESSION = 2
#: Warn under this many open files, enough for some 500 sessions.
FEW_FILES = 1024
#: A fault: under this many open files the broker cannot serve a dozen sessions.
TOO_FEW_FILES = 64
#: A fault: a rotation of the log needs a segment (50 MiB), and the database room for its write-ahead log.
TOO_LITTLE_BYTES = 64 * 1024 * 1024
#: Warn under this much free disk space.
LITTLE_BYTES = 512 * 1024 * 1024
#: The clock was set back when the newest message is this much later than now.
CLOCK_S = 60.0

#: Module → distribution.
NEEDED = {"zmq": "pyzmq", "msgpack": "msgpack", "psutil": "psutil"}


def package_dir() -> str:
    """Returns the directory of the running zmqbus package."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def python() -> Iterator[Finding]:
    """Reports the interpreter and this release."""
    yield ok("python", f"{platform.python_version()} ({sys.executable})")
    yield ok("zmqbus", f"{zmqbus.__version__} ({package_dir()})")


def packages(settings: Settings) -> Iterator[Finding]:
    """Checks that the required packages can be imported, and that pyzmq can encrypt."""
    found: list[str] = []
    missing: list[str] = []
    for module, name in NEEDED.items():
        try:
            found.append(f"{name} {_version(import_module(module))}")
        except Exception as error:  # a broken package may raise anything
            missing.append(f"{name} ({type(error).__name__}: {error}"[:200] + ")")
    if missing:
        yield fault("packages", f"cannot be imported: {', '.join(missing)}", install_command(settings))
        return
    import zmq

    if not zmq.has("curve"):
        yield fault("packages", "this pyzmq has no CURVE, so it cannot encrypt", install_command(settings))
    else:
        yield ok("packages", f"{', '.join(found)}, libzmq {zmq.zmq_version()}")


def _version(module: ModuleType) -> str:
    """Returns a package's version; msgpack has it as a tuple."""
    return str(getattr(module, "__version__", "")) or ".".join(map(str, getattr(module, "version", ())))


def venv(settings: Settings) -> Iterator[Finding]:
    """Checks the virtual environment that install-deps makes."""
    path = settings.paths.venv
    if not os.path.lexists(path):
        missing = any(find_spec(module) is None for module in NEEDED)
        yield ok("venv", "none yet" if missing else "none; the packages are installed in this python")
        return
    if not os.path.exists(os.path.join(path, VENV_MARKER)):
        yield warning("venv", f"{path} is incomplete, and is not used", command("rm", "-r", path))
    elif not os.access(os.path.join(path, "bin", "python"), os.X_OK):
        yield fault("venv", f"the python of {path} was removed or replaced", command("rm", "-r", path))
    elif not site_packages(path):
        yield ok("venv", f"{path}, of another python")
    else:
        yield ok("venv", path)


def settings_given(warnings: list[str]) -> Iterator[Finding]:
    """Reports invalid settings, which are ignored; `warnings` are those of `settings.load`."""
    for text in warnings:
        match = re.search(r"\b([A-Z][A-Z_]+)=", text)
        yield warning("settings", text, command("unset", match[1]) if match else None)
    if not warnings:
        yield ok("settings", "all valid")


def file_limit() -> Iterator[Finding]:
    """Checks how many files the broker may open; it raises its own limit up to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= FEW_FILES:
        yield ok("files", f"a broker may open {'any number' if hard == resource.RLIM_INFINITY else format(hard, ',')}")
        return
    says = f"a broker may open {hard} files, enough for some {max(0, hard - 30) // FILES_A_SESSION} sessions"
    limit = 4 * FEW_FILES
    mend = f"ulimit -n {limit}" if os.geteuid() == 0 else f"sudo prlimit --pid $$ --nofile={limit}:{limit}"
    yield fault("files", says, mend) if hard < TOO_FEW_FILES else warning("files", says, mend)


def disk(settings: Settings) -> Iterator[Finding]:
    """Checks the free space for the log and the mailboxes."""
    path = settings.data_dir
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    free_bytes = shutil.disk_usage(path).free
    says = f"{free_bytes / 2**30:.1f} GiB free for {settings.data_dir}"
    if free_bytes >= LITTLE_BYTES:
        yield ok("disk", says)
        return
    paths = settings.paths
    old = [f"{paths.broker_log}.{number}" for number in (1, 2)]
    index = [paths.search_index + suffix for suffix in ("", "-wal", "-shm")]
    mend = command("rm", "-f", *index, *old)  # the index is rebuilt; the old logs are not needed
    if free_bytes < TOO_LITTLE_BYTES:
        yield fault("disk", f"only {free_bytes // 2**20} MiB free for {settings.data_dir}: mail will be refused", mend)
    else:
        yield warning("disk", says, mend)


def clock(settings: Settings) -> Iterator[Finding]:
    """Checks that the clock was not set back, which would give new messages earlier times than old ones."""
    try:
        newest = History(settings.paths.log).page(limit=1).entries
    except ZmqbusError:
        return  # the log check reports it
    ahead_s = newest[0].ts - time.time() if newest else 0.0
    if ahead_s > CLOCK_S:
        yield warning(
            "clock",
            f"the newest message is {ahead_s:,.0f} s ahead of the clock, which was set back or is wrong: it says "
            f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}",
            "sudo timedatectl set-ntp true",
        )
    else:
        yield ok("clock", time.strftime("%Y-%m-%d %H:%M:%S %Z"))
