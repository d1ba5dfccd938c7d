"""What zmqbus runs on: python, packages, the virtual environment, settings, limits, the disk, the clock."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec

import zmqbus
from zmqbus.bootstrap import VENV_MARKER, site_packages
from zmqbus.doctor.installation import install_command
from zmqbus.doctor.report import Finding, command, fault, ok, warning
from zmqbus.errors import ZmqbusError
from zmqbus.journal.history import History
from zmqbus.settings import Settings

#: Each session takes two connections, each command one for a moment.
FILES_A_SESSION = 2
#: With fewer files than that (some 500 sessions), a broker refuses connections sooner than it needs to,
FEW_FILES = 1024
#: and with fewer than that it does not serve a dozen sessions.
TOO_FEW_FILES = 64
#: A rotation of the log needs a segment (50 MiB), and the database its write-ahead log,
TOO_LITTLE_BYTES = 64 * 1024 * 1024
#: and under this it is time to do something about it.
LITTLE_BYTES = 512 * 1024 * 1024
#: The newest message is this much younger than now: then the clock has been set back.
CLOCK_S = 60.0

#: Module → distribution.
NEEDED = {"zmq": "pyzmq", "msgpack": "msgpack", "psutil": "psutil"}


def package_dir() -> str:
    """Where this zmqbus is."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def python() -> Iterator[Finding]:
    """The interpreter and this release."""
    yield ok("python", f"{platform.python_version()} ({sys.executable})")
    yield ok("zmqbus", f"{zmqbus.__version__} ({package_dir()})")


def packages(settings: Settings) -> Iterator[Finding]:
    """Whether what is needed can be imported."""
    from importlib import import_module

    found = []
    missing = []
    for module, name in NEEDED.items():
        try:
            found.append(f"{name} {getattr(import_module(module), '__version__', '')}".strip() or name)
        except Exception as error:  # a package that is there and broken may raise anything
            missing.append(f"{name} ({sanitised(error)})")
    if missing:
        yield fault("packages", f"cannot be imported: {', '.join(missing)}", install_command(settings))
    else:
        import zmq

        if not zmq.has("curve"):
            yield fault("packages", "this pyzmq has no CURVE, so nothing can be encrypted", install_command(settings))
        else:
            import msgpack

            found[1] = f"msgpack {'.'.join(map(str, msgpack.version))}"
            yield ok("packages", f"{', '.join(found)}, libzmq {zmq.zmq_version()}")


def sanitised(error: BaseException) -> str:
    """An error in a few words."""
    return f"{type(error).__name__}: {error}"[:200]


def venv(settings: Settings) -> Iterator[Finding]:
    """The virtual environment that install-deps makes."""
    path = settings.paths.venv
    if not os.path.lexists(path):
        missing = any(find_spec(module) is None for module in NEEDED)
        yield ok("venv", "none yet" if missing else "none; the packages come with the python")
        return
    if not os.path.exists(os.path.join(path, VENV_MARKER)):
        yield warning("venv", f"{path} is not complete, and is not used", command("rm", "-r", path))
    elif not os.access(os.path.join(path, "bin", "python"), os.X_OK):
        yield fault("venv", f"{path} has no python any more: that was removed or replaced", command("rm", "-r", path))
    elif not site_packages(path):
        yield ok("venv", f"{path}, of another python")
    else:
        yield ok("venv", path)


def settings_given(warnings: list[str]) -> Iterator[Finding]:
    """Settings that were passed over, since they do not parse; `warnings` is what `settings.load` said."""
    for text in warnings:
        match = re.match(r"passed over ([A-Z_]+)=", text)
        yield warning("settings", text, command("unset", match[1]) if match else None)
    if not warnings:
        yield ok("settings", "all that are given parse")


def file_limit() -> Iterator[Finding]:
    """How many files the broker may open: it raises its own limit up to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= FEW_FILES:
        yield ok("files", f"a broker may open {'any number' if hard == resource.RLIM_INFINITY else format(hard, ',')}")
        return
    says = f"a broker may open {hard} files, which is enough for some {max(0, hard - 30) // FILES_A_SESSION} sessions"
    limit = 4 * FEW_FILES
    mend = f"ulimit -n {limit}" if os.geteuid() == 0 else f"sudo prlimit --pid $$ --nofile={limit}:{limit}"
    yield fault("files", says, mend) if hard < TOO_FEW_FILES else warning("files", says, mend)


def disk(settings: Settings) -> Iterator[Finding]:
    """Room for the log and the mailboxes."""
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
    mend = command("rm", "-f", *index, *old)  # what can be made anew, or is of the past
    if free_bytes < TOO_LITTLE_BYTES:
        yield fault("disk", f"only {free_bytes // 2**20} MiB free for {settings.data_dir}: mail will be refused", mend)
    else:
        yield warning("disk", says, mend)


def clock(settings: Settings) -> Iterator[Finding]:
    """Whether the clock was set back: what is written now would stand behind what is younger."""
    try:
        newest = History(settings.paths.log).page(limit=1).entries
    except ZmqbusError:
        return  # told about by the look at the log
    ahead_s = newest[0].ts - time.time() if newest else 0.0
    if ahead_s > CLOCK_S:
        yield warning(
            "clock",
            f"the newest message is {ahead_s:,.0f} s younger than now: the clock was set back, or is wrong; it is "
            f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}",
            "sudo timedatectl set-ntp true",
        )
    else:
        yield ok("clock", time.strftime("%Y-%m-%d %H:%M:%S %Z"))
