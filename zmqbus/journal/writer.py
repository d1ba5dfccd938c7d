"""Writing messages.log: every message, once, in the order of acceptance.

Theory of operation
===================

The log is a list of *segments*, files of JSON lines: `messages.log` is written to, `messages.log.1` is the one before
it, and so on. Each segment begins with a line that holds its *serial*, which rises by one with each rotation, so that a
pointer (serial, offset, length, CRC-32) holds through any number of renames. The broker is the only writer; any process
of the user may read, without a lock.

*Guarantees of the writer*

* A batch goes into the log whole or not at all. A write that fails is cut off again; where even that fails, before the
  next batch. Only a writer that dies between two bytes of a write leaves a torn line; its successor cuts that off and
  reports it. (Complete lines of such a batch stay. Nobody has heard of them, so their senders send them again under the
  same ids, and of two records with one id the later one counts.)
* Rotation makes the new segment under another name first, so a full disk stops it before anything is renamed. Files are
  renamed upwards from the first free number, so a rotation that was cut short leaves a gap and loses nothing.
* Only the oldest segments are deleted, and only while no unread mail points into them. A segment whose first line
  cannot be read might hold such mail, so it is deleted only when no mail is waiting at all.
* Unread mail keeps its records, not whole segments: `compact` copies the records of a segment that are still needed
  into a file of their own, each to the offset that it had, with holes between them, so that the pointers hold. The
  copy gets its name when it is complete, and the segment is deleted after that; a writer that dies between leaves both.
* If something else has cut, moved or removed the log (`> messages.log`), the writer notices before its next batch and
  begins a segment under a new serial, so that no pointer ever means two things.
* Appended lines outlive the process. `sync` makes them outlive a power cut too.

`reader` describes what readers do; `record`, what a line looks like.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress

from zmqbus.errors import Unauthorized
from zmqbus.journal.lines import find_backward
from zmqbus.journal.reader import Pointer
from zmqbus.journal.record import JournalError, SplicedLine, second_of
from zmqbus.journal.segments import (
    MAX_META_BYTES,
    META_START,
    compacted,
    compacted_path,
    is_start_of_meta,
    newest_serial,
    open_if_there,
    read_meta,
    segments,
    serial_of,
    unfinished,
)
from zmqbus.security.private_files import open_private, secure_dir

#: A file of this size still opens in an editor, and grep reads it in 20 ms.
SEGMENT_BYTES = 50 * 1024 * 1024
#: Rotated segments that stay although no mail needs them.
KEEP_SEGMENTS = 5
#: A batch up to this size is joined for writing. A larger one goes to the kernel as a list: a copy of 10 MiB costs more
#: than a longer list.
JOIN_BYTES = 256 * 1024
#: Compaction copies pieces of this size.
_COPY_BYTES = 1024 * 1024
#: Buffers in one `writev` (IOV_MAX of Linux and macOS).
MAX_BUFFERS = 1024
#: Buffers of a `SplicedLine`, with its newline.
_MOST_PARTS = 4

#: On macOS, fsync leaves the data in the disk's own cache, and this call does not. Elsewhere fsync is enough.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class JournalFull(JournalError):
    """There is no room for the log: on the disk, in the quota, or under the process's limit."""


class Journal:
    """The log, open for writing. Only one process at a time may have it open: the broker's election ensures that.

    Continues an existing log at its end. Raises `Unauthorized` for files that are links or open to others,
    and `JournalError` if the log cannot be opened or begun.
    """

    def __init__(self, path: str, *, segment_bytes: int = SEGMENT_BYTES, keep: int = KEEP_SEGMENTS) -> None:
        self._path = path
        self._segment_bytes = segment_bytes
        self._keep = keep
        self._closed = False
        self._fd = -1
        self._torn = False  # a failed write could not be cut off yet
        self._serial = 0
        self._start = 0  # where the first record of the segment is
        self._size = 0
        #: Serials of the segments that may not be on the disk completely; first the continued one, which an earlier
        #: writer may not have synced.
        self._unsynced: set[int] = set()
        self._names_unsynced = True  # a file was made or renamed
        self._refused: tuple[type[JournalError], str] | None = None  # the error of a sync that the disk refused
        #: Damage that was found, and what was done about it; None if the log was in order.
        self.recovered: str | None = None
        secure_dir(os.path.dirname(path))
        try:
            self._open()
            for name in unfinished(path):
                os.unlink(name)
        except OSError as error:
            raise self._failed(error) from None

    @property
    def segment(self) -> int:
        """Serial of the segment that is written to."""
        return self._serial

    def append(
        self, lines: Sequence[bytes | SplicedLine], *, oldest_needed: int | Callable[[], int | None] | None = None
    ) -> list[Pointer]:
        """Writes these lines (of `encode` or `splice_line`), all of them or none; returns where each is.

        `oldest_needed` is the lowest serial that unread mail points to, None where there is no such mail; or a function
        that returns it, which is called only before a rotation deletes a segment.

        Raises `JournalFull` or another `JournalError` if they cannot be written. The log is unchanged then, and takes
        the next batch as soon as there is room.
        """
        if not lines:
            return []
        total_bytes = sum(map(len, lines)) + len(lines)
        if self._closed:
            raise JournalError("the journal is closed; open another one")
        try:
            self._ready()
            if self._size > self._start and self._size + total_bytes > self._segment_bytes:
                self._rotate(oldest_needed)
            self._write(lines, total_bytes)
        except OSError as error:
            raise self._failed(error) from None
        except Unauthorized as error:
            # Somebody has changed the permissions of a segment: the senders of this batch hear that it failed.
            raise JournalError(str(error)) from None
        pointers = []
        offset = self._size
        for line in lines:
            length = len(line)
            crc = zlib.crc32(line) if line.__class__ is bytes else line.crc  # type: ignore[union-attr]
            pointers.append(Pointer(self._serial, offset, length, crc))
            offset += length + 1
        self._size = offset
        self._unsynced.add(self._serial)
        return pointers

    def sync(self) -> None:
        """Waits until all written lines are on the disk, so that they outlive a power cut.

        Costs nothing if nothing was written since the last time. Covers segments that were rotated away and, the first
        time, the segment that was continued; not files that somebody else has removed.

        Raises `JournalError` if that fails; and always from then on if the disk refused: the kernel forgets a page that
        it could not write, so another attempt would only seem to succeed.
        """
        if self._closed:
            raise JournalError("the journal is closed; open another one")
        if self._refused is not None:
            kind, text = self._refused
            raise kind(text)
        if not self._unsynced and not self._names_unsynced:
            return
        try:
            if self._fd >= 0 and self._serial in self._unsynced:
                self._flush(self._fd)
                self._unsynced.remove(self._serial)
            if self._unsynced:
                for segment in segments(self._path):
                    if segment.serial in self._unsynced:
                        self._flush_and_close(open_if_there(segment.path))
                self._unsynced.clear()
            if self._names_unsynced:
                directory = os.path.dirname(self._path) or "."
                self._flush_and_close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                self._names_unsynced = False
        except OSError as error:
            raise self._failed(error) from None
        except Unauthorized as error:
            raise JournalError(str(error)) from None

    def _flush_and_close(self, fd: int | None) -> None:
        if fd is not None:
            try:
                self._flush(fd)
            finally:
                os.close(fd)

    def _flush(self, fd: int) -> None:
        try:
            if _FULL_SYNC is None:
                os.fsync(fd)
            else:
                fcntl.fcntl(fd, _FULL_SYNC)
        except OSError as error:
            kind = JournalFull if error.errno in _NO_ROOM else JournalError
            text = (
                f"the disk has not taken what was written to {self._path} ({error.strerror}); a power cut would lose "
                "it. See to the disk, then restart the broker: zmqbus broker --stop"
            )
            self._refused = kind, text
            raise kind(text) from None

    def close(self) -> None:
        """Closes the file; nothing can be appended any more. Idempotent."""
        self._closed = True
        self._forget()

    def _failed(self, error: OSError) -> JournalError:
        if error.errno in _NO_ROOM:
            return JournalFull(
                f"there is no room to write {self._path} ({error.strerror}); make room on its disk, then send again"
            )
        return JournalError(f"{self._path} cannot be written: {error.strerror}; see to its disk, then send again")

    def _forget(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _ready(self) -> None:
        """Makes sure that the descriptor is that of the log, and that nobody else has changed the log. 2 µs a batch."""
        if self._fd < 0:
            self._open()
            return
        if self._torn:
            os.ftruncate(self._fd, self._size)
            self._torn = False
        ours = os.fstat(self._fd)
        try:
            named = os.lstat(self._path)
            moved = (named.st_ino, named.st_dev) != (ours.st_ino, ours.st_dev)
        except FileNotFoundError:
            moved = True
        if not moved and ours.st_size == self._size:
            return
        self._forget()
        if not moved and ours.st_size > self._size:
            # No pointer leads to the lines that were added. They stay, and do no harm.
            self._report(f"something else has written to {self._path}")
            self._open()
            return
        self._report(f"{self._path} was {'moved or removed' if moved else 'cut'}; another segment was begun")
        self._open(resume=False)

    def _open(self, *, resume: bool = True) -> None:
        """Continues the log at its end; begins a segment if none can be continued."""
        fd = open_private(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            size = os.fstat(fd).st_size
            head = read_meta(fd)
            serial = serial_of(head)
            if serial is not None and resume:
                end = find_backward(fd, size, b"\n") + 1
                if end < size:
                    os.ftruncate(fd, end)  # guards: journal
                    self._report(f"cut off an unfinished record ({size - end:,} bytes) at the end of {self._path}")
                self._serial, self._start, self._size = serial, head.index(b"\n") + 1, end
            elif serial is None and size < MAX_META_BYTES and b"\n" not in head and is_start_of_meta(head):
                if size:
                    os.ftruncate(fd, 0)
                    self._report(f"restarted {self._path}, which held only an unfinished first line")
                self._names_unsynced = True  # the file may be new
                self._serial, self._start = self._begin(fd)
                self._size = self._start
            else:
                if serial is None:
                    self._report(f"set {self._path} aside, which does not begin as a segment, and began a new one")
                self._rotate(None, delete=False)
                return
            self._unsynced.add(self._serial)
            self._fd, fd = fd, -1
        finally:
            if fd >= 0:
                os.close(fd)

    def _report(self, text: str) -> None:
        self.recovered = text if self.recovered is None else f"{self.recovered}; {text}"

    def _begin(self, fd: int) -> tuple[int, int]:
        """Writes the first line of a new segment into an empty file; returns its serial and where records start."""
        compacted_serial = max((serial for serial, _ in compacted(self._path)), default=0)
        # guards: retention: serials are never reused [, compacted_serial =>]
        serial = max(self._serial, newest_serial(segments(self._path)), compacted_serial) + 1
        meta = META_START + b'%d,"format":1,"created":"%sZ"}\n' % (serial, second_of(int(time.time())).encode())
        if os.write(fd, meta) != len(meta):
            # The part that was written is recognised as an unfinished first line.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return serial, len(meta)

    def _rotate(self, oldest_needed: int | Callable[[], int | None] | None, *, delete: bool = True) -> None:
        new_path = self._path + ".new"
        fd = open_private(new_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
        try:
            # If this fails, nothing has been renamed, and the current segment goes on.
            serial, start = self._begin(fd)
            number = 1
            while os.path.lexists(f"{self._path}.{number}"):
                number += 1
            # If one of these fails, the next batch opens the log again and continues what it finds.
            self._forget()
            self._names_unsynced = True
            for to in range(number, 1, -1):
                os.rename(f"{self._path}.{to - 1}", f"{self._path}.{to}")
            os.rename(self._path, f"{self._path}.1")
            os.rename(new_path, self._path)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._serial, self._start, self._size = fd, serial, start, start
        if delete:
            self._delete_old(oldest_needed)

    def _delete_old(self, oldest_needed: int | Callable[[], int | None] | None) -> None:
        old = [(serial, name) for number, serial, name in segments(self._path) if number > self._keep]
        if not old:
            return
        needed = oldest_needed() if callable(oldest_needed) else oldest_needed
        for serial, name in old:
            if needed is None or 0 < serial < needed:  # guards: retention: unread mail points into it [< needed =>]
                try:
                    os.unlink(name)
                except OSError:
                    # Too many segments are no reason to refuse mail. The next rotation tries again.
                    pass

    # --- compaction

    def excess(self) -> list[tuple[int, str]]:
        """Serials and paths of the segments that stay only because unread mail points into them."""
        return [(serial, name) for number, serial, name in segments(self._path) if number > self._keep and serial]

    def sizes(self, files: Sequence[tuple[int, str]]) -> list[int]:
        """Bytes on the disk of each of these."""
        found = []
        for _, name in files:
            with suppress(OSError):
                found.append(os.stat(name).st_blocks * 512)
        return found

    def compacted(self) -> list[tuple[int, str, int]]:
        """Serial, path and bytes on the disk of each compacted segment."""
        found = []
        for serial, name in compacted(self._path):
            with suppress(OSError):
                found.append((serial, name, os.stat(name).st_blocks * 512))
        return found

    def compact(self, serial: int, name: str, records: Sequence[tuple[int, int]]) -> None:
        """Keeps only these records, (offset, length) in order, of a segment or of an already compacted one.

        `serial` is its serial, `name` its path. Raises `JournalError` if that cannot be done; nothing changes then.
        """
        target = compacted_path(self._path, serial)
        new = f"{target}.new"
        try:
            if records:
                source = open_private(name, os.O_RDONLY)
                try:
                    self._copy_records(source, new, records)
                finally:
                    os.close(source)
                os.rename(new, target)
                self._names_unsynced = True
            if name != target or not records:
                os.unlink(name)
        except OSError as error:
            with suppress(OSError):
                os.unlink(new)
            raise self._failed(error) from None
        except Unauthorized as error:
            raise JournalError(str(error)) from None

    def _copy_records(self, source: int, new: str, records: Sequence[tuple[int, int]]) -> None:
        fd = open_private(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            for offset, length in records:
                at, end = offset - 1, offset + length + 1  # with the newlines before and after it
                while at < end:
                    piece = os.pread(source, min(_COPY_BYTES, end - at), at)
                    if not piece:
                        break  # it was cut: a reader of the record hears that it is damaged
                    at += os.pwrite(fd, piece, at)
            os.fsync(fd)  # the segment is deleted once this has its name, and no later error would show a lost write
        finally:
            os.close(fd)

    def _write(self, lines: Sequence[bytes | SplicedLine], total_bytes: int) -> None:
        """Writes the lines in one call where the kernel can. After a failure the file has its old size again."""
        buffers: list[bytes] = []
        if total_bytes > JOIN_BYTES and _MOST_PARTS * len(lines) <= MAX_BUFFERS:
            for line in lines:
                buffers += (*line.parts, b"\n") if isinstance(line, SplicedLine) else (line, b"\n")
        else:
            if SplicedLine in set(map(type, lines)):
                lines = [b"".join(line.parts) if isinstance(line, SplicedLine) else line for line in lines]
            buffers.append(b"\n".join((*lines, b"")))  # type: ignore[arg-type]  # none of them is spliced here
        try:
            written = os.writev(self._fd, buffers)
            if written < total_bytes:
                # A disk that becomes full takes a part first. Writing on brings the reason.
                left = memoryview(b"".join(buffers))[written:]
                while left:
                    left = left[os.write(self._fd, left) :]
        except BaseException:
            try:
                os.ftruncate(self._fd, self._size)  # guards: journal
            except OSError:
                self._torn = True  # `_ready` cuts it off before the next batch
            raise
