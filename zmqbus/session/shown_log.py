"""What a session has shown already, on file: no message is shown twice, though listener and broker die together.

Theory of operation
===================

A message is acknowledged after its line has been written. If the broker dies before the acknowledgement is there, the
message comes again, and its id tells that it was shown. A process can remember that (`TakenIds`); this file remembers
it for the next listener of the owner, and for the commands that act as the session: what `zmqbus inbox` printed is not
shown again either, nor the other way round.

`clients/<pid of the owner>.shown` (`zmqbus.session.owner_files` has the rule) begins with a line that names the
session. A file of another session (an earlier owner with this pid) counts as not there. After that come the ids, a line
each, in the order in which they were shown.

* **One write adds.** The file is open for appending and each record goes out in one write, at once: the id is on file
  before the acknowledgement leaves. A record begins with a newline of its own, so that what an earlier one left torn
  (a full disk) stays alone on its line. A line that is no id is passed over, and one without an end is not read yet.
* **One stat looks.** `in` compares the file of this name with what was read of it. If it is longer, the rest is read;
  if it is another file, that one is opened.
* **The keeper alone replaces.** The listener, which holds the session's lock, begins the file and rewrites it when it
  has grown to twice its ids. Others append at any time, and nobody waits for a lock. So who appended looks again
  whether the file has been replaced meanwhile, and then appends to the new one too; and the keeper, having replaced it,
  reads the end of the old one. Whichever comes first, the id is in the new file.
* **No failure stops anyone.** An id that cannot be written is kept in memory. That is what the file is for: it may
  spare the reader a second look at a message, and must not cost him the first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence

from zmqbus.client import seen
from zmqbus.client.seen import TakenIds
from zmqbus.errors import Unauthorized, ZmqbusError
from zmqbus.security.private_files import open_file, replace
from zmqbus.session.owner_files import SHOWN, OwnerFiles
from zmqbus.wire.verbs import MSG_ID_LENGTH

#: A file of this size is rewritten: it has twice the ids that are remembered, so that is done once in 10,000 messages.
COMPACT_BYTES = 2 * seen.REMEMBERED * (MSG_ID_LENGTH + 2)
#: So much is read at most: more is there only if no listener could rewrite it, and the newest ids stand at the end.
MAX_READ_BYTES = 2 * COMPACT_BYTES
#: How often an id is written anew because the file was replaced meanwhile. That happens once in 10,000 messages, so
#: the second try is the last one; no loop of this program is without an end.
TRIES = 100

#: The rule of `protocol.is_msg_id`, for a whole file at once.
_ID = re.compile(rf"^[a-z0-9]{{8,{MSG_ID_LENGTH}}}$", re.MULTILINE | re.ASCII)


def _untold(text: str) -> None:
    """Commands have nobody to tell."""


class Shown(TakenIds):
    """The ids of the messages that one session has shown. Opened when something is asked or added, not before."""

    def __init__(
        self,
        files: OwnerFiles,
        session_id: str,
        *,
        keeper: bool = False,
        trace: Callable[[str], None] = _untold,
    ) -> None:
        """`keeper`: this is the session's listener, and holds its lock. Only then the file is made or replaced."""
        super().__init__()
        self._path = files.path(SHOWN)
        self._head = f"{session_id}\n".encode()
        self._keeper = keeper
        self._trace = trace
        self._fd = -1
        self._file: tuple[int, int] | None = None  # device and inode of what is open
        self._read_bytes = 0  # how far it has been read: to the end of a line
        self._compact_bytes = COMPACT_BYTES
        self._told = False  # that ids are in memory only
        self._news = False  # somebody else has added ids

    def __repr__(self) -> str:
        where = f"{self._read_bytes} bytes of {self._path}" if self._fd >= 0 else f"{self._path} not open"
        return f"<Shown: {len(self)} ids, {where}>"

    def open(self) -> None:
        """Makes and reads the file, so that nothing is left to do when a message comes, and commands find it.

        Raises `Unauthorized` for a file that others could have written, or a link; any other failure is traced.
        """
        try:
            self._open()
        except Unauthorized:
            raise
        except (ZmqbusError, OSError) as error:
            self._tell(error)

    def close(self) -> None:
        """Closes the file; what is asked or added later opens it again. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._file = -1, None

    def __contains__(self, msg_id: str) -> bool:
        if msg_id in self._ids:
            return True
        try:
            self._look()
        except (ZmqbusError, OSError) as error:
            self._tell(error)
        return msg_id in self._ids

    def isdisjoint(self, msg_ids: Iterable[str]) -> bool:
        try:
            self._look()
        except (ZmqbusError, OSError) as error:
            self._tell(error)
        return super().isdisjoint(msg_ids)

    def news(self) -> bool:
        """Whether another process of the session has shown something since this was asked last."""
        try:
            self._look()
        except (ZmqbusError, OSError) as error:
            self._tell(error)
        news, self._news = self._news, False
        return news

    def add(self, msg_id: str) -> None:
        """This message has been shown. An id that is there already is not written again."""
        self.add_all((msg_id,))

    def add_all(self, msg_ids: Sequence[str]) -> None:
        """These messages have been shown: all of them in one write."""
        new = [msg_id for msg_id in msg_ids if msg_id not in self._ids]
        super().add_all(new)
        if new:
            self._append(new)

    # --- the file

    def _look(self) -> None:
        """Reads what others have added."""
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != self._file or there.st_size < self._read_bytes:
            self._open()
        elif there.st_size > self._read_bytes:
            self._read()

    def _open(self) -> None:
        """Opens the file that has the name now, or (the keeper) begins one. For others there may be none."""
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
        found = _ID.findall(text)
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
                    return  # the listener could not make one
                # What a full disk cuts short is a torn line, and no id to anybody.
                os.write(self._fd, record)
                if self._keeper or self._is_current():
                    break
                self.close()
            self._told = False
        except (ZmqbusError, OSError) as error:
            self._tell(error)

    def _is_current(self) -> bool:
        """Whether what is open still has the name. To be asked after the write: see above."""
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return True  # the session has ended, and there is no other file to write to
        return (there.st_dev, there.st_ino) == self._file

    def _compact(self) -> None:
        """Replaces the file by one with the ids that are remembered."""
        try:
            replace(self._path, self._content())
        except (ZmqbusError, OSError) as error:
            self._compact_bytes = 2 * self._read_bytes  # not with each message
            self._trace(f"{self._path} is not rewritten: {error}")
            return
        self._compact_bytes = COMPACT_BYTES
        old, old_bytes = self._fd, self._read_bytes
        self._fd, self._file = -1, None
        try:
            self._attach()
            # What others wrote to the old file before they could see the new one.
            self.add_all(_ID.findall(_whole_lines(old, old_bytes)[0]))
        finally:
            os.close(old)

    def _content(self) -> bytes:
        return self._head + _record(tuple(self))

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            self._trace(f"ids of shown messages are kept in memory only: {error}")


def _record(msg_ids: Sequence[str]) -> bytes:
    return "".join([f"\n{msg_id}\n" for msg_id in msg_ids]).encode()


def _whole_lines(fd: int, start: int) -> tuple[str, int]:
    """The text from `start` to the end of the last line that has one, and where that is."""
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
