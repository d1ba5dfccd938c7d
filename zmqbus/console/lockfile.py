"""The file of a running console: that there is one on a port, its name, and the secret that its links are signed with.

It lies in the data directory, where only the user can read (0600), and is locked for as long as the console runs; the
kernel lets go however it ends. So a file that nobody holds is a leftover, and is written over. Whoever can read it can
make a link (`zmqbus console --link`) without asking the console anything.
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


def new_name() -> str:
    """A host name for one run of a console, which leads to this machine (browsers see to that, without asking anybody).

    What a browser keeps for an address (scripts in its cache, service workers, storage) is kept by name and port. Under
    a name that was never used, nothing is left of whoever had the port before; it might be another user's program.
    """
    return f"z{secrets.token_hex(8)}.localhost"


class ConsoleRuns(LocalError):
    """Another console of this data directory has the port."""

    code = "port_held"


class NoConsole(LocalError):
    """No console runs that a link could be made for."""

    code = "not_connected"


@dataclass(frozen=True, slots=True)
class Running:
    """A console that runs."""

    port: int
    name: str
    secret: bytes


class Lease:
    """Held by the console that runs on a port. A context manager."""

    def __init__(self, data_dir: str, port: int) -> None:
        """Raises `ConsoleRuns`; `Unauthorized` where others could read the file, `NotConnected` where it cannot be."""
        secure_dir(data_dir)
        self.name = new_name()
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self._path = os.path.join(data_dir, f"console.{port}")
        self._fd = open_file(self._path, os.O_RDWR | os.O_CREAT)
        try:
            if not try_lock(self._fd, self._path, fcntl.LOCK_EX):
                raise ConsoleRuns(
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

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Emptied, not removed: another console may be waiting to lock this very file.
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def running(data_dir: str, port: int | None = None) -> list[Running]:
    """The consoles that run on this data directory, or the one on this port. Raises as `Lease`."""
    try:
        names = os.listdir(data_dir)
    except OSError:
        return []
    ports = sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))
    found = (_look(data_dir, one) for one in ports if port in (None, one))
    return [one for one in found if one is not None]


def _look(data_dir: str, port: int) -> Running | None:
    path = os.path.join(data_dir, f"console.{port}")
    try:
        fd = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if try_lock(fd, path, fcntl.LOCK_SH):
            return None  # nobody holds it: a leftover
        record = parse_json(os.pread(fd, MAX_FILE_BYTES, 0))
    finally:
        os.close(fd)
    if not isinstance(record, dict) or not isinstance(record.get("secret"), str):
        return None
    name = record.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    try:
        return Running(port, name, bytes.fromhex(record["secret"]))
    except ValueError:
        return None
