"""Reads large bodies from the spool files of their senders.

Theory of operation
===================

A sender writes a large body, escaped as it will stand in the journal, into its own file below `spool/` and names the
place in SEND. So neither encryption nor the broker's escaping touches it. The sender can change the file at any
time, so nothing here relies on its content:

* The *name* is 32 hexadecimal digits and leads to no other directory. The file must be a private one of this user and
  no link (`security.private_files.open_private`).
* The body is *read once*, into memory, and the bytes that were checked are the bytes that are journaled. If the
  sender's checksum does not match, only the sender's own message is unreadable.
* The file is read after every other check of the message has passed, *in the place of an inline body*. If it cannot be
  read the message is refused for good: accepted on a later attempt, it would overtake its successors.
* An envelope of a hundred bytes can ask for 16 MiB, so the bytes read in a wake are bounded. A sender that puts each
  spooled body in a message of its own never meets the bound, since the server stops draining before.

Each connection has at most one file open. When the connection has ended nobody can name that file again, so it is
removed: the sender may have been killed. Files of earlier senders are removed at the start, before the first WELCOME; a
client begins a new file with each WELCOME.
"""

from __future__ import annotations

import os
from collections.abc import Container
from contextlib import suppress

from zmqbus.broker.body_checks import SPOOL_NAME, Spooled
from zmqbus.errors import BrokerUnavailable, RateLimited
from zmqbus.security.private_files import open_private, secure_dir
from zmqbus.wire import verbs

#: The server stops draining once this much was read; the message that crosses the bound may add as much again.
WAKE_BYTES = verbs.MAX_SPELLED_BYTES


class SpoolReader:
    """The open spool files, one for each connection. Create it before the first client connects."""

    def __init__(self, directory: str) -> None:
        """Removes the files of earlier senders. Raises as `secure_dir` does."""
        self._directory = directory
        self._open: dict[bytes, tuple[str, int]] = {}  # route → name and descriptor
        self.read_bytes = 0  #: in this wake; the server sets it to 0 when a wake begins
        secure_dir(directory)
        with suppress(OSError):  # a file that cannot be removed only takes up room
            for name in os.listdir(directory):
                if SPOOL_NAME.fullmatch(name):
                    self._remove(name)

    def __repr__(self) -> str:
        return f"<SpoolReader of {self._directory}: {len(self._open)} open>"

    def read(self, route: bytes, spooled: Spooled) -> bytes:
        """Reads the escaped body as the file holds it now. Call `spooled_body` before, and check the bytes after.

        Raises `BrokerUnavailable` or `Unauthorized` if the file cannot be read, and `RateLimited` if one message asks
        for too much.
        """
        if self.read_bytes >= WAKE_BYTES:  # guards: spool files [off]
            raise RateLimited("too many large bodies in one message; send each in a message of its own")
        self.read_bytes += spooled.length
        try:
            escaped = os.pread(self._descriptor(route, spooled.file), spooled.length, spooled.offset)
        except OSError as error:
            raise self._unreadable(spooled, error.strerror) from None
        if len(escaped) != spooled.length:
            raise self._unreadable(spooled, "it is shorter than its sender says")
        return escaped

    def _descriptor(self, route: bytes, name: str) -> int:
        current = self._open.get(route)
        if current is not None and current[0] == name:
            return current[1]
        fd = open_private(os.path.join(self._directory, name), os.O_RDONLY)
        if current is not None:
            self._drop(route)
        self._open[route] = name, fd
        return fd

    def _unreadable(self, spooled: Spooled, why: str | None) -> BrokerUnavailable:
        path = os.path.join(self._directory, spooled.file)
        return BrokerUnavailable(f"cannot read the spooled text in {path}: {why}; send it again")

    def sweep(self, connected: Container[bytes]) -> None:
        """Removes the files of connections that have ended. `connected`: the routes of the others."""
        for route in [route for route in self._open if route not in connected]:
            self._drop(route)

    @property
    def is_empty(self) -> bool:
        """Whether no file is open, so that there is nothing to sweep."""
        return not self._open

    def _drop(self, route: bytes) -> None:
        name, fd = self._open.pop(route)
        os.close(fd)
        self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(os.path.join(self._directory, name))

    def close(self) -> None:
        """Closes the files and leaves them in place.

        Connected clients either name them to the next broker or remove them themselves.
        """
        while self._open:
            os.close(self._open.popitem()[1][1])
