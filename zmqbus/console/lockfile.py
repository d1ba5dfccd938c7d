"""The lock file of a running console: its port, its host name, and the secret that its links are signed with.

The file lies in the data directory, readable by the user only (0600), and is locked while the console runs; the kernel
releases the lock however the console ends. A file without a lock is a leftover and is overwritten. A process that can
read the file can make links (`zmqbus console --link`) without contacting the console.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from dataclasses import dataclass
from types import TracebackType

from zmqbus.console.auth import SECRET_BYTES
from zmqbus.errors import LocalError
from zmqbus.security.private_files import open_file, parse_json, secure_dir, try_lock

#: One line of JSON with a port and a secret.
MAX_FILE_BYTES = 4096
_FILE = re.compile(r"console\.([1-9][0-9]{0,4})", re.ASCII)

_NAME = re.compile(r"z[0-9a-f]{16}\.localhost", re.ASCII)


def new_host_name() -> str:
    """Returns a host name for one run of a console; browsers resolve it to this machine without asking a name server.

    Browsers keep cached scripts, service workers and storage by host name and port. Under a fresh name, nothing is left
    of the program that had the port before, which may be another user's.
    """
    return f"z{secrets.token_hex(8)}.localhost"


class ConsoleAlreadyRuns(LocalError):
    """Another console of this data directory has the port."""

    code = "port_held"


class NoConsoleRuns(LocalError):
    """No console runs that a link could be made for."""

    code = "not_connected"


@dataclass(frozen=True, slots=True)
class RunningConsole:
    """A running console, as its lock file describes it."""

    port: int
    name: str
    secret: bytes


class ConsoleLock:
    """The lock of the console that runs on a port. A context manager."""

    def __init__(self, data_dir: str, port: int) -> None:
        """Takes the lock.

        Raises `ConsoleAlreadyRuns`, `Unauthorized` where others could read the file, `NotConnected` where it cannot be
        made.
        """
        secure_dir(data_dir)
        self.name = new_host_name()
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self._path = os.path.join(data_dir, f"console.{port}")
        self._fd = open_file(self._path, os.O_RDWR | os.O_CREAT)
        try:
            if not try_lock(self._fd, self._path, fcntl.LOCK_EX):
                raise ConsoleAlreadyRuns(
                    f"a console runs on port {port} already; get a link to it with: zmqbus console --link --port {port}"
                )
            data = json.dumps(
                {"port": port, "pid": os.getpid(), "name": self.name, "secret": self.secret.hex()}
            ).encode()
            os.pwrite(self._fd, data, 0)
            os.ftruncate(self._fd, len(data))
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> ConsoleLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Empty the file instead of removing it: another console may be about to lock this very file.
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def running_consoles(data_dir: str, port: int | None = None) -> list[RunningConsole]:
    """Returns the consoles of this data directory, or the one on `port`. Raises `Unauthorized`, `NotConnected`."""
    try:
        names = os.listdir(data_dir)
    except OSError:
        return []
    ports = sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))
    found = (_running_on(data_dir, one) for one in ports if port in (None, one))
    return [one for one in found if one is not None]


def _running_on(data_dir: str, port: int) -> RunningConsole | None:
    path = os.path.join(data_dir, f"console.{port}")
    try:
        fd = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if try_lock(fd, path, fcntl.LOCK_SH):
            return None  # a leftover: no process holds the lock
        record = parse_json(os.pread(fd, MAX_FILE_BYTES, 0))
    finally:
        os.close(fd)
    if not isinstance(record, dict) or not isinstance(record.get("secret"), str):
        return None
    name = record.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    try:
        return RunningConsole(port, name, bytes.fromhex(record["secret"]))
    except ValueError:
        return None
