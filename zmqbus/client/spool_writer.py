"""Where a client puts large bodies down for the broker: a file of its own, and the room in it.

Theory of operation
===================

A body over 64 KiB would be encrypted, decrypted and escaped on its way into the log, all of it by processes that others
wait for. Instead its sender writes it, as it will stand in the log, into a file below `spool/`, and the broker is told
where (SEND's `file` and `piece`). The broker reads it when it takes the message; so a piece stays as it is until the
sender knows what became of the message, and its room is used again then.

*A file is for one WELCOME.* What was said over a connection that is lost may still lie with the broker when it is said
again, with its body, over the next one. So the next connection gets a file of its own, nothing in the one before is
overwritten, and it is removed when the fate of everything in it is known.

*It is a short cut.* Where there is no room (`MAX_SPOOL_BYTES`), or the disk is full, or the directory is not private,
the body goes along with its message as it always could, and in its place in the order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from zlib import crc32

from zmqbus.errors import ZmqbusError
from zmqbus.journal.large_record import escape_body
from zmqbus.security.private_files import open_private, secure_dir
from zmqbus.wire import verbs

#: After a failure nothing is tried for so long: each attempt costs the spelling of the body.
PAUSE_S = 10.0
#: When nothing is under way, the file is cut down to this: as much as is worth keeping in the page cache.
KEEP_BYTES = 4 * 1024 * 1024


def find_room(used: Iterable[tuple[int, int]], length: int, limit: int) -> int | None:
    """The first offset with room for `length` bytes between these (offset, length), below `limit`; None if none has.
    The first: what was in use a moment ago is in the processor's cache."""
    end = 0
    for offset, taken in sorted(used):
        if offset - end >= length:
            break
        end = offset + taken
    return end if end + length <= limit else None


class Spool:
    """A client's file. Not thread-safe."""

    def __init__(self, directory: str, *, limit_bytes: int = verbs.MAX_SPOOL_BYTES) -> None:
        """Nothing is made before the first `put`."""
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._name = ""
        self._fd = -1
        self._end = 0  # how far the file may have been written
        self._pieces: dict[str, tuple[int, int]] = {}  # message → offset and length
        self._earlier: dict[str, set[str]] = {}  # files of earlier connections → messages whose fate is open
        self._pause_until_s = 0.0

    def __repr__(self) -> str:
        return f"<Spool {self._name or 'without a file'}: {len(self._pieces)} pieces>"

    def put(self, send: verbs.Send) -> verbs.Send | None:
        """Writes the body of a message that is alone in its SEND. Returns the SEND that names the file; None: send it
        as it is."""
        (msg_id,), (body,) = send.msg_ids, send.bodies
        fmt = verbs.FORMAT_WORDS.get(send.fmt)
        if fmt is None or time.monotonic() < self._pause_until_s:
            return None
        try:
            spelled = escape_body(fmt, body)
            length = len(spelled)
            offset = find_room(self._pieces.values(), length, self._limit_bytes)
            if offset is None or length > verbs.MAX_SPELLED_BYTES:
                return None
            if self._fd < 0:
                self._begin()
            self._end = max(self._end, offset + length)
            if os.pwrite(self._fd, spelled, offset) < length:
                raise OSError("the disk has taken a part of it")
        except (OSError, ZmqbusError):
            # The disk is full, or something about the directory is not as it should be (the doctor says what); or it is
            # no text, which the broker says better.
            self._pause_until_s = time.monotonic() + PAUSE_S
            return None
        self._pieces[msg_id] = offset, length  # guards: spool files: reuse a region once its message is confirmed
        piece = (len(body), offset, length, crc32(spelled))
        return send._replace(file=self._name, piece=piece, bodies=(b"",))

    def _begin(self) -> None:
        secure_dir(self._directory)
        name = os.urandom(16).hex()
        self._fd = open_private(os.path.join(self._directory, name), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._name = name

    def free(self, msg_ids: Iterable[str]) -> None:
        """What became of these messages is known: their room is free."""
        for msg_id in msg_ids:
            if self._pieces.pop(msg_id, None) is None:
                self._free_earlier(msg_id)
        if not self._pieces and self._end > KEEP_BYTES:
            with suppress(OSError):
                os.ftruncate(self._fd, KEEP_BYTES)
            self._end = KEEP_BYTES

    def _free_earlier(self, msg_id: str) -> None:
        for name, open_ids in list(self._earlier.items()):
            open_ids.discard(msg_id)
            if not open_ids:
                self._remove(name)
                del self._earlier[name]

    def renew(self) -> None:
        """There is another connection: what comes now goes into another file."""
        if self._fd < 0:
            return
        os.close(self._fd)
        if self._pieces:
            self._earlier[self._name] = set(self._pieces)
        else:
            self._remove(self._name)
        self._fd, self._name, self._end, self._pieces = -1, "", 0, {}

    def _remove(self, name: str) -> None:
        with suppress(OSError):  # the broker has removed it, or the next one will
            os.unlink(os.path.join(self._directory, name))

    def close(self) -> None:
        """Ends the use of the file. It is removed, unless something in it may still be on the way to the broker: then
        the broker removes it when it hears that the connection has ended. Idempotent."""
        for name in self._earlier:
            self._remove(name)
        self._earlier.clear()
        if self._fd >= 0:
            os.close(self._fd)
            if not self._pieces:
                self._remove(self._name)
            self._fd, self._name = -1, ""
        self._pause_until_s = float("inf")
