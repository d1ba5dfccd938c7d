"""The files that identify a broker: `server.<port>.pid`, `server.<port>.process` and `network`.

`server.<port>.pid` holds the pid as text and nothing else, for everyone. A pid counts in one PID namespace only, and a
port in one network, so `server.<port>.process` holds the rest: the process as `Process.text` and the network as
`Network.text`, with a blank between them. `network` stays when the broker ends: the network, and `open` or `closed`,
whether it has more than a loopback.

Only the holder of the data directory's lock (`broker.shell.daemon`) writes them, so at most one pid file is true. A new
broker removes those of earlier ones, which were killed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress

from zmqbus.process import Process, has_ended, process_of
from zmqbus.security.private_files import open_private, read_small
from zmqbus.settings import Paths
from zmqbus.system import network
from zmqbus.system.network import Network
from zmqbus.tuples import NamedTuple

#: At most so much of each of these files is read; they have some 150 bytes.
MAX_BYTES = 1024

_NAME = r"server\.([1-9][0-9]{0,4})\.pid"
_OPEN, _CLOSED = "open", "closed"


class Served(NamedTuple):
    """The broker on one port, as its files describe it."""

    port: int
    pid: int
    process: Process | None  #: None: an earlier release, or the file is gone
    network: Network

    @property
    def may_live(self) -> bool:
        """Whether that process may be alive: always true for one of another PID namespace."""
        if self.process is not None:
            return not has_ended(self.process)
        try:
            os.kill(self.pid, 0)
        except (OSError, OverflowError):
            return False
        return True


def read(paths: Paths, port: int) -> Served | None:
    """The broker on this port; None if there is no pid file, or it is damaged."""
    try:
        pid = int(_read(paths.pid_file(port)))
    except (OSError, ValueError):
        return None
    if pid <= 0:  # these name groups of processes
        return None
    try:
        text, _, served = _read(paths.process_file(port)).decode("ascii", "replace").partition(" ")
    except OSError:
        text = served = ""
    process = Process.parse(text)
    if process is None or process.pid != pid:
        return Served(port, pid, None, Network())
    return Served(port, pid, process, Network.parse(served))


def read_all(paths: Paths) -> Iterator[tuple[int, Served | None]]:
    """All ports with a pid file, and their brokers; None if the file is damaged."""
    try:
        names = sorted(os.listdir(paths.data_dir))
    except OSError:
        return
    for name in names:
        if match := re.fullmatch(_NAME, name, re.ASCII):
            yield int(match[1]), read(paths, int(match[1]))


def write(paths: Paths, port: int) -> None:
    """Writes the files of this process as the broker on a port. The pid file comes last, so it implies the others."""
    for other, _ in read_all(paths):
        if other != port:
            remove(paths, other)
    here = network.here()
    _write(paths.network, f"{here.text} {_CLOSED if network.has_only_loopback() else _OPEN}")
    _write(paths.process_file(port), f"{process_of(os.getpid()).text} {here.text}")
    _write(paths.pid_file(port), str(os.getpid()))


def remove(paths: Paths, port: int) -> None:
    """Removes the files of a port. `network` stays."""
    for path in (paths.pid_file(port), paths.process_file(port)):
        with suppress(OSError):  # never written, or gone already
            os.unlink(path)


def last_network(paths: Paths) -> tuple[Network, bool]:
    """The network that the last broker of the data directory served, and whether it had more than a loopback."""
    try:
        text, _, kind = _read(paths.network).decode("ascii", "replace").partition(" ")
    except OSError:
        return Network(), False
    return Network.parse(text), kind == _OPEN


def _read(path: str) -> bytes:
    # As bytes: reading text, even ASCII, imports a codec that nothing else here needs (0.3 ms).
    return read_small(path, MAX_BYTES).strip()


def _write(path: str, text: str) -> None:
    new = f"{path}.new"
    descriptor = open_private(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode())
    os.replace(new, path)
