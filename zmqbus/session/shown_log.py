"""The ids of the messages that a session has shown, on file: none is shown twice, even if listener and broker both die.

Theory of operation
===================

A message is acknowledged after its line has been written. If the broker dies before it gets the acknowledgement, the
message comes again, and its id shows that it is known. One process can remember that (`SeenIds`); this file remembers
it for the next listener of the owner, and for the commands that act as the session: a message that `zmqbus inbox` has
printed is not shown again either, and vice versa.

`clients/<pid of the owner>.shown` (`zmqbus.session.owner_files` has the rule for names) begins with a line with the
session's id. A file of another session (an earlier owner with this pid) counts as absent. The ids of the messages
follow, a line each, in the order in which they were shown.

* **One write adds.** The file is opened for appending and each record is one write, made at once: the id is on file
  before the acknowledgement leaves. A record begins with a newline, so that an earlier record that a full disk cut
  short stays alone on its line. A line that is not an id is ignored, and a line without an end is not read yet.
* **One stat checks.** `in` compares the file that has the name with the part of it that was read. If the file is
  longer, the rest is read; if it is another file, that one is opened.
* **Only the keeper replaces.** The listener, which holds the session's lock, creates the file, and rewrites it when it
  has grown to twice its ids. Others append at any time, and nobody waits for a lock. So a process that has appended
  checks whether the file was replaced meanwhile, and then appends to the new one too; and the keeper, after replacing
  it, reads the end of the old one. Whichever comes first, the id is in the new file.
* **No failure stops anyone.** An id that cannot be written is kept in memory. The file may spare the reader a second
  look at a message; it must not cost him the first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence

from zmqbus.client import seen
from zmqbus.client.seen import SeenIds
from zmqbus.errors import Unauthorized, ZmqbusError
from zmqbus.security.private_files import open_file, replace
from zmqbus.session.owner_files import SHOWN, OwnerFiles
from zmqbus.wire.verbs import MSG_ID_LENGTH

#: A file of this size is rewritten: it has twice the ids to remember, so that happens once in 10,000 messages.
COMPACT_BYTES = 2 * seen.REMEMBERED * (MSG_ID_LENGTH + 2)
#: The largest part that is read: the file is longer only if no listener could rewrite it, and the newest ids are last.
MAX_READ_BYTES = 2 * COMPACT_BYTES
#: How often an id is rewritten because the file was replaced meanwhile. That happens once in 10,000 messages, so the
#: second try succeeds; the bound is there because every loop has one.
TRIES = 100

#: The rule of `verbs.is_msg_id`, for a whole file at once. Compiled when a file is read: that takes a quarter of a
#: millisecond, which a command without one does not need.
_ID = rf"(?am)^[a-z0-9]{{8,{MSG_ID_LENGTH}}}$"


def _no_trace(text: str) -> None:
    """Drops the text: commands have no trace."""


class Shown(SeenIds):
    """The ids of the messages that one session has shown. The file is opened by the first check or addition."""

    def __init__(
        self,
        files: OwnerFiles,
        session_id: str,
        *,
        keeper: bool = False,
        trace: Callable[[str], None] = _no_trace,
    ) -> None:
        """`keeper`: this is the session's listener, which holds its lock; only it creates or replaces the file."""
        super().__init__()
        self._path = files.path(SHOWN)
        self._head = f"{session_id}\n".encode()
        self._keeper = keeper
        self._trace = trace
        self._fd = -1
        self._file: tuple[int, int] | None = None  # device and inode of the open file
        self._read_bytes = 0  # how far it has been read: to the end of a line
        self._compact_bytes = COMPACT_BYTES
        self._reported = False  # that ids are in memory only
        self._news = False  # another process has added ids

    def __repr__(self) -> str:
        where = f"{self._read_bytes} bytes of {self._path}" if self._fd >= 0 else f"{self._path} not open"
        return f"<Shown: {len(self)} ids, {where}>"

    def open(self) -> None:
        """Creates and reads the file before the first message comes, so that commands find it.

        Raises `Unauthorized` for a file that others could have written, or a link; any other failure is traced.
        """
        try:
            self._open()
        except Unauthorized:
            raise
        except (ZmqbusError, OSError) as error:
            self._report(error)

    def close(self) -> None:
        """Closes the file; the next check or addition opens it again. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._file = -1, None

    def __contains__(self, msg_id: str) -> bool:
        if msg_id in self._ids:
            return True
        try:
            self._refresh()
        except (ZmqbusError, OSError) as error:
            self._report(error)
        return msg_id in self._ids

    def isdisjoint(self, msg_ids: Iterable[str]) -> bool:
        try:
            self._refresh()
        except (ZmqbusError, OSError) as error:
            self._report(error)
        return super().isdisjoint(msg_ids)

    def news(self) -> bool:
        """Whether another process of the session has shown a message since the last call."""
        try:
            self._refresh()
        except (ZmqbusError, OSError) as error:
            self._report(error)
        news, self._news = self._news, False
        return news

    def add(self, msg_id: str) -> None:
        """Records that a message has been shown. A known id is not written again."""
        self.add_all((msg_id,))

    def add_all(self, msg_ids: Sequence[str]) -> None:
        """Records, in one write, that these messages have been shown."""
        new = [msg_id for msg_id in msg_ids if msg_id not in self._ids]
        super().add_all(new)
        if new:
            self._append(new)

    # --- the file

    def _refresh(self) -> None:
        """Reads the ids that others have added."""
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != self._file or there.st_size < self._read_bytes:
            self._open()
        elif there.st_size > self._read_bytes:
            self._read()

    def _open(self) -> None:
        """Opens the file that has the name now, or creates it as the keeper. For others there may be none."""
        self.close()
        if not self._attach() and self._keeper:
            replace(self._path, self._content())
            self._attach()
        if self._fd >= 0:
            self._read()

    def _attach(self) -> bool:
        try:
            self._fd = open_file(self._path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return False
        if os.pread(self._fd, len(self._head), 0) != self._head:
            self.close()
            return False
        found = os.fstat(self._fd)
        self._file = found.st_dev, found.st_ino
        self._read_bytes = len(self._head)
        return True

    def _read(self) -> None:
        text, self._read_bytes = _whole_lines(self._fd, self._read_bytes)
        found = re.findall(_ID, text)
        self._news = self._news or any(msg_id not in self._ids for msg_id in found)
        super().add_all(found)
        if self._keeper and self._read_bytes > self._compact_bytes:
            self._compact()

    def _append(self, msg_ids: Sequence[str]) -> None:
        record = _record(msg_ids)
        try:
            for _ in range(TRIES):
                if self._fd < 0:
                    self._open()
                if self._fd < 0:
                    return  # the listener could not create it
                # A full disk may cut the record short; a torn line counts as no id.
                os.write(self._fd, record)
                if self._keeper or self._is_current():
                    break
                self.close()
            self._reported = False
        except (ZmqbusError, OSError) as error:
            self._report(error)

    def _is_current(self) -> bool:
        """Whether the open file still has the name. Check this after the write: see the module's docstring."""
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return True  # the session has ended, and there is no other file
        return (there.st_dev, there.st_ino) == self._file

    def _compact(self) -> None:
        """Replaces the file by one that has only the ids to remember."""
        try:
            replace(self._path, self._content())
        except (ZmqbusError, OSError) as error:
            self._compact_bytes = 2 * self._read_bytes  # do not retry with each message
            self._trace(f"{self._path} is not rewritten: {error}")
            return
        self._compact_bytes = COMPACT_BYTES
        old, old_bytes = self._fd, self._read_bytes
        self._fd, self._file = -1, None
        try:
            self._attach()
            # Ids that others wrote to the old file before they could see the new one.
            self.add_all(re.findall(_ID, _whole_lines(old, old_bytes)[0]))
        finally:
            os.close(old)

    def _content(self) -> bytes:
        return self._head + _record(tuple(self))

    def _report(self, error: Exception) -> None:
        if not self._reported:
            self._reported = True
            self._trace(f"ids of shown messages are kept in memory only: {error}")


def _record(msg_ids: Sequence[str]) -> bytes:
    return "".join([f"\n{msg_id}\n" for msg_id in msg_ids]).encode()


def _whole_lines(fd: int, start: int) -> tuple[str, int]:
    """The text from `start` to the end of the last complete line, and the position of that end."""
    end = os.fstat(fd).st_size
    start = max(start, end - MAX_READ_BYTES)
    parts: list[bytes] = []
    place = start
    while place < end and (part := os.pread(fd, end - place, place)):
        parts.append(part)
        place += len(part)
    data = b"".join(parts)
    data = data[: data.rfind(b"\n") + 1]
    return data.decode("ascii", "replace"), start + len(data)
