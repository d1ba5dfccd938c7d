"""Large bodies that their senders have put down in files: checked, and read.

Theory of operation
===================

A sender writes a large body, as it will stand in the log, into a file of its own below `spool/`, and says where
(SPOOLED). So neither encryption nor the broker's escaping touches it. What a sender may write there, it may also change
at any time, and so nothing here relies on it:

* The *name* is 32 hexadecimal digits, which lead nowhere else; the file is a private one of the user's, and no link
  (`security.open_private`).
* The piece is *read once*, into memory; what is checked is what is written to the log. Where the sender's checksum is
  not that of the piece, it is the sender's own message that cannot be read.
* It is asked for when everything else about the message is in order, and *in the place of a body* that came along: a
  message whose piece cannot be read is refused, and stays so. Were it sent anew, it would come behind later ones.
* An envelope of a hundred bytes can ask for 16 MiB. So there is a bound for what a wake reads, and whoever sends each
  in a message of its own never meets it, since the server stops draining before.

One file is open for each connection. When the connection has ended, nobody will name that file again, and it is
removed: the sender may have been killed. What earlier senders left is removed at the start, before anyone is welcomed;
a client begins a new file with each WELCOME.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container
from contextlib import suppress

from zmqbus import protocol
from zmqbus.errors import BrokerUnavailable, ProtocolError, RateLimited, Unauthorized
from zmqbus.protocol import Format
from zmqbus.security import open_private, secure_dir

_NAME = re.compile("[0-9a-f]{32}")
#: With so much read the server drains no more; as much again may come in the message that went over it.
WAKE_BYTES = protocol.MAX_SPELLED_BYTES
#: What one byte of a text may become in JSON: `\u0000`.
MOST_ESCAPED = 6


def check(spooled: protocol.Spooled) -> None:
    """Raises `ProtocolError` for what no sender says: of a piece that cannot be, or cannot be of that body."""
    size_bytes, length = spooled.size_bytes, spooled.length
    if not _NAME.fullmatch(spooled.file):
        raise ProtocolError("SPOOLED names a file by 32 hexadecimal digits")
    if not 0 <= spooled.offset <= protocol.MAX_SPOOL_BYTES or not 0 <= spooled.crc < 1 << 32:
        raise ProtocolError("SPOOLED with an offset or a checksum that is none")
    if spooled.fmt == Format.TEXT:
        fits = size_bytes <= length <= MOST_ESCAPED * size_bytes
    else:
        fits = length == (size_bytes + 2) // 3 * 4
    if size_bytes <= protocol.SPILL_BYTES or length > protocol.MAX_SPELLED_BYTES or not fits:
        raise ProtocolError(f"SPOOLED with {size_bytes} bytes that are spelled in {length}")


class Spools:
    """The files of those who are connected. Made when nobody is."""

    def __init__(self, directory: str) -> None:
        """Removes what earlier senders have left. Raises what `secure_dir` raises."""
        self._directory = directory
        self._open: dict[bytes, tuple[str, int]] = {}  # route → name and descriptor
        self.read_bytes = 0  #: since the wake began, which sets it to 0
        secure_dir(directory)
        with suppress(OSError):  # what cannot be removed takes up room, and no more
            for name in os.listdir(directory):
                if _NAME.fullmatch(name):
                    self._remove(name)

    def __repr__(self) -> str:
        return f"<Spools in {self._directory}: {len(self._open)} open>"

    def read(self, route: bytes, spooled: protocol.Spooled) -> bytes:
        """The piece, as it is at this moment. Raises `BrokerUnavailable` or `Unauthorized` where it cannot be read, and
        `RateLimited` where too much was asked for in one message. To be checked before (`check`) and after."""
        if self.read_bytes >= WAKE_BYTES:  # guards: spool files [off]
            raise RateLimited("too many large bodies in one message; send each in a message of its own")
        self.read_bytes += spooled.length
        try:
            piece = os.pread(self._descriptor(route, spooled.file), spooled.length, spooled.offset)
        except OSError as error:
            raise self._unreadable(spooled, error.strerror) from None
        if len(piece) != spooled.length:
            raise self._unreadable(spooled, "it is shorter than its sender says")
        return piece

    def _descriptor(self, route: bytes, name: str) -> int:
        found = self._open.get(route)
        if found is not None and found[0] == name:
            return found[1]
        fd = open_private(os.path.join(self._directory, name), os.O_RDONLY)
        if found is not None:
            self._drop(route)
        self._open[route] = name, fd
        return fd

    def _unreadable(self, spooled: protocol.Spooled, why: str | None) -> BrokerUnavailable:
        path = os.path.join(self._directory, spooled.file)
        return BrokerUnavailable(f"the text that was put down in {path} cannot be read: {why}; send it again")

    def sweep(self, connected: Container[bytes]) -> None:
        """Removes the files of those that are connected no longer."""
        for route in [route for route in self._open if route not in connected]:
            self._drop(route)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to sweep."""
        return not self._open

    def _drop(self, route: bytes) -> None:
        name, fd = self._open.pop(route)
        os.close(fd)
        self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(os.path.join(self._directory, name))

    def close(self) -> None:
        """Closes the files. They stay: who is connected may be told of them by the next broker, or removes them."""
        while self._open:
            os.close(self._open.popitem()[1][1])


def no_spools(route: bytes, spooled: protocol.Spooled) -> bytes:
    """For a broker that has no files."""
    raise Unauthorized("this broker reads no files; send the body along")
