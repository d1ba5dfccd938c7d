"""Writes large bodies into a spool file for the broker, and keeps account of the regions in it.

Theory of operation
===================

A body over 64 KiB would be encrypted, decrypted and escaped on its way into the journal, by processes that others wait
for. Instead its sender writes it, escaped as in the journal, into a file below `spool/`, and tells the broker where
(SEND's `file` and `piece`). The broker reads it when it accepts the message; so the region stays as it is until the
outcome of the message is known, and is reused then.

*A file is for one WELCOME.* A SEND over a lost connection may still lie with the broker while its repeat, with the
body, goes over the next one. So the next connection gets a file of its own, nothing in the earlier file is overwritten,
and it is removed when the outcomes of all its messages are known.

*It is a short cut.* If there is no room (`MAX_SPOOL_BYTES`), or the disk is full, or the directory is not private, the
body travels in its message, in its place in the order.
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

#: Seconds without another attempt after a failure: each costs the escaping of a body.
PAUSE_S = 10.0
#: The file is truncated to this when it holds no region: as much as is worth keeping in the page cache.
KEEP_BYTES = 4 * 1024 * 1024


def find_room(used: Iterable[tuple[int, int]], length: int, limit: int) -> int | None:
    """Returns the first offset with room for `length` bytes between these regions (offset, length), below `limit`; None
    if there is none. The first, since a region that was just in use is in the processor's cache."""
    end = 0
    for offset, taken in sorted(used):
        if offset - end >= length:
            break
        end = offset + taken
    return end if end + length <= limit else None


class SpoolWriter:
    """The spool file of a client. Not thread-safe."""

    def __init__(self, directory: str, *, limit_bytes: int = verbs.MAX_SPOOL_BYTES) -> None:
        """Creates nothing before the first `put`."""
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._name = ""
        self._fd = -1
        self._end = 0  # the end of the written part
        self._pieces: dict[str, tuple[int, int]] = {}  # message → its region (offset, length)
        self._earlier: dict[str, set[str]] = {}  # files of earlier connections → messages without an outcome
        self._pause_until_s = 0.0

    def __repr__(self) -> str:
        return f"<SpoolWriter {self._name or 'without a file'}: {len(self._pieces)} pieces>"

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
                raise OSError("the disk is full")
        except (OSError, ZmqbusError):
            # The disk is full, or the directory is not in order (the doctor reports it); or the body is not UTF-8,
            # which the broker reports better.
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
        """Frees the regions of messages whose outcome is known."""
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
        """Begins a new file, for another connection."""
        if self._fd < 0:
            return
        os.close(self._fd)
        if self._pieces:
            self._earlier[self._name] = set(self._pieces)
        else:
            self._remove(self._name)
        self._fd, self._name, self._end, self._pieces = -1, "", 0, {}

    def _remove(self, name: str) -> None:
        with suppress(OSError):  # the broker has removed it, or its successor will
            os.unlink(os.path.join(self._directory, name))

    def close(self) -> None:
        """Closes the file, and removes it unless the broker may still have to read it: then the broker removes it when
        the connection has ended. Idempotent."""
        for name in self._earlier:
            self._remove(name)
        self._earlier.clear()
        if self._fd >= 0:
            os.close(self._fd)
            if not self._pieces:
                self._remove(self._name)
            self._fd, self._name = -1, ""
        self._pause_until_s = float("inf")
