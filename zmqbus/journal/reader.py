"""Reading messages.log: by pointer, by id, and the newest of it.

Theory of operation
===================

What the log is and what its writer keeps to, `journal` says. A reader takes no lock, and looks at three things:

* *The right file.* A segment is known by the serial on its first line; its name only says where it is now. Segments
  only move upwards, so a reader that looks at them from the newest on meets each, whatever is renamed meanwhile; but
  for one that has got a name which was not there when the directory was read. So a reader who has not found it looks
  again, until two looks agree. A `Reader` keeps the files open, and need not look again.
* *The right place.* A pointer may be damaged, or come from another program. It is held against the size of the file
  before anything is read, and no memory is taken for what is not there.
* *The right bytes.* A record is checked against the length and the checksum of its pointer before it is parsed.

Files are read in pieces and not mapped into memory, for one that is cut meanwhile would kill the process.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby

from zmqbus.errors import Unauthorized
from zmqbus.journal.record import (
    HEAD_BYTES,
    Earlier,
    JournalError,
    Record,
    decode_head,
    decode_large,
    decode_record,
    decode_start,
    glance,
    is_of_work,
    quote,
)
from zmqbus.security.private_files import open_private
from zmqbus.tuples import NamedTuple

#: The first line of a segment is under 100 bytes; a longer one is not ours.
MAX_META_BYTES = 256
#: Files are searched in pieces of this size: large enough to be fast, small enough for a helper.
PIECE_BYTES = 1024 * 1024
#: So many surveys a reader makes at most. Before each but the second, a rotation (50 MiB of mail) must have come.
READ_ATTEMPTS = 10
#: Segments that a `Reader` keeps open. More than are kept without a need; a backlog that reaches over more is read in
#: order, so each is opened once even then.
MAX_OPEN_SEGMENTS = 16
#: Records with no more than this between them are fetched together: to read 4 KiB too much costs less than a call.
GAP_BYTES = 4096
#: So much is fetched together at most, but for a single record that is larger.
RUN_BYTES = 256 * 1024
#: So large a buffer a `Reader` keeps from one large record to the next.
BUFFER_BYTES = 4 * 1024 * 1024

META_START = b'{"kind":"segment","segment":'
_META = re.compile(META_START + rb'([1-9][0-9]{0,17}),"format":1,"created":"[0-9TZ:.-]{1,40}"\}\n')


class SegmentGone(JournalError):
    """The file that the record was in is not there any more."""


class Pointer(NamedTuple):
    """Where a record is: `length` bytes from `offset` on, without the newline, in the segment with that serial."""

    segment: int
    offset: int
    length: int
    crc: int  # zlib.crc32 of these bytes


# --- by pointer -------------------------------------------------------------------------------------------------


class Reader:
    """Reads records by pointer, and keeps the files open between the readings. For one thread.

    A segment stays the same file whatever it is renamed to. One that was deleted may be read until its descriptor is
    pushed out by those of others.
    """

    def __init__(self, path: str, *, max_open: int = MAX_OPEN_SEGMENTS) -> None:
        self._path = path
        self._max_open = max_open
        self._closed = False
        self._buffer = bytearray()
        #: Serial -> descriptor; what was used last stands last.
        self._fds: dict[int, int] = {}
        #: What was not to be found in the directory as it was at `_changed_ns`. A mailbox may hold many messages whose
        #: segment somebody has deleted; without this, each of them would cost two surveys.
        self._gone: set[int] = set()
        self._changed_ns = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"segments {sorted(self._fds)} open"
        return f"<Reader {self._path}: {state}>"

    def read(self, pointer: Sequence[int]) -> Record:
        """The record that the pointer points to. Raises `JournalError` if it cannot be read back as it was written."""
        result = self.read_many([pointer])[0]
        if isinstance(result, JournalError):
            raise result
        return result

    def read_many(self, pointers: Sequence[Sequence[int]]) -> list[Record | JournalError]:
        """For each pointer, in this order, what `read` would return or raise. Neighbours are fetched together."""
        if self._closed:
            raise JournalError("the reader is closed; open another one")
        results: dict[int, Record | JournalError] = {}
        good = []
        for number, pointer in enumerate(pointers):
            if len(pointer) == 4:
                good.append((*pointer, number))
            else:
                results[number] = _no_pointer(self._path, pointer)
        for segment, group in groupby(sorted(good), key=lambda item: item[0]):
            wanted = list(group)
            try:
                self._read_segment(segment, wanted, results)
            except JournalError as error:
                # Those that had been read before it happened are good.
                for *_, number in wanted:
                    results.setdefault(number, error)
        return [results[number] for number in range(len(pointers))]

    def read_head(self, pointer: Sequence[int], msg_id: str, limit_bytes: int) -> bytes:
        """The beginning of the body of a text message, at least `limit_bytes` of it where there is as much. Reads no
        more than that, so it is checked against the id of the message, and not against the checksum.

        Raises `JournalError` if another record is there, or none, or one whose body is no text.
        """
        if self._closed:
            raise JournalError("the reader is closed; open another one")
        if len(pointer) != 4:
            raise _no_pointer(self._path, pointer)
        segment, offset, length, _ = pointer
        fd = self._descriptor(segment)
        # A character of the text takes six bytes at most, as an escape.
        try:
            within = _is_within(offset, length, os.fstat(fd).st_size)
            line = os.pread(fd, min(length, HEAD_BYTES + 6 * limit_bytes), offset) if within else b""
        except OSError as error:
            raise _unreadable(self._path, segment, error) from None
        head = decode_head(line)
        if head is None or head.msg_id != msg_id or head.fmt != "text":  # guards: journal [or head.msg_id != msg_id =>]
            raise _damaged(self._path, segment, offset)
        return decode_start(line[head.body_at :])

    def intact(self, pointer: Sequence[int]) -> bool:
        """Whether the pointer leads to bytes of its length and checksum; they are not parsed, nor held all at once."""
        if self._closed:
            raise JournalError("the reader is closed; open another one")
        if len(pointer) != 4:
            return False
        segment, offset, length, crc = pointer
        try:
            fd = self._descriptor(segment)
            if not _is_within(offset, length, os.fstat(fd).st_size):
                return False
            found = 0
            end = offset + length
            while offset < end:
                piece = os.pread(fd, min(PIECE_BYTES, end - offset), offset)
                if not piece:
                    return False  # cut meanwhile
                found = zlib.crc32(piece, found)
                offset += len(piece)
        except (JournalError, OSError):
            return False
        return found == crc

    def close(self) -> None:
        """Closes the files; nothing can be read any more. Idempotent."""
        self._closed = True
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _read_segment(
        self, segment: int, wanted: list[tuple[int, ...]], results: dict[int, Record | JournalError]
    ) -> None:
        """Puts into `results` what these (segment, offset, length, crc, number) lead to; they are in order."""
        fd = self._descriptor(segment)
        try:
            size = os.fstat(fd).st_size
            run: list[tuple[int, ...]] = []
            start = end = 0
            for item in wanted:
                _, offset, length, _, number = item
                if not _is_within(offset, length, size):
                    results[number] = _damaged(self._path, segment, offset)
                    continue
                item_end = offset + length
                if not run or offset - end > GAP_BYTES or max(end, item_end) - start > RUN_BYTES:
                    self._read_run(fd, start, end, run, results)
                    run, start, end = [], offset, offset
                run.append(item)
                end = max(end, item_end)
            self._read_run(fd, start, end, run, results)
        except OSError as error:
            raise _unreadable(self._path, segment, error) from None

    def _read_run(
        self, fd: int, start: int, end: int, run: list[tuple[int, ...]], results: dict[int, Record | JournalError]
    ) -> None:
        if not run:
            return
        if end - start > RUN_BYTES:  # a single one
            segment, offset, length, crc, number = run[0]
            try:
                found = _read_large(fd, offset, length, crc, self._buffer)
                results[number] = found or _damaged(self._path, segment, offset)
            except JournalError as error:
                results[number] = error
            if len(self._buffer) > BUFFER_BYTES:
                self._buffer = bytearray()
            return
        piece = os.pread(fd, end - start, start)
        for segment, offset, length, crc, number in run:
            line = piece[offset - start : offset - start + length]
            if len(line) == length and zlib.crc32(line) == crc:
                try:
                    results[number] = decode_record(line)
                except JournalError as error:
                    results[number] = error
            else:
                results[number] = _damaged(self._path, segment, offset)

    def _descriptor(self, segment: int) -> int:
        fd = self._fds.pop(segment, -1)
        if fd < 0:
            try:
                fd = self._open(segment)
            except OSError as error:
                raise _unreadable(self._path, segment, error) from None
            except Unauthorized as error:
                raise JournalError(str(error)) from None
            while len(self._fds) >= self._max_open:
                os.close(self._fds.pop(next(iter(self._fds))))
        self._fds[segment] = fd
        return fd

    def _open(self, segment: int) -> int:
        try:
            changed_ns = os.stat(os.path.dirname(self._path) or ".").st_mtime_ns
        except FileNotFoundError:
            changed_ns = 0
        if changed_ns != self._changed_ns:
            self._gone.clear()
            self._changed_ns = changed_ns
        elif segment in self._gone:
            raise _gone(self._path, segment)
        try:
            return open_segment(self._path, segment)
        except SegmentGone:
            self._gone.add(segment)
            raise


def _read_large(fd: int, offset: int, length: int, crc: int, buffer: bytearray) -> Record | None:
    """A single large record: what stands around its body is read apart, and the body into `buffer`, which is given the
    length that it needs. None if it is not what the pointer says. Raises `JournalError` as `decode_record`.

    The buffer is there again for the next one: a megabyte that comes fresh from the system costs more page faults than
    its copy.
    """
    start = os.pread(fd, HEAD_BYTES, offset)
    head = decode_head(start)
    body_at = 0 if head is None else head.body_at
    size_bytes = length - body_at - 2
    if len(buffer) < size_bytes:
        buffer.extend(bytes(size_bytes - len(buffer)))
    else:
        del buffer[size_bytes:]
    whole = os.preadv(fd, [buffer], offset + body_at) == size_bytes
    end = os.pread(fd, 2, offset + length - 2)
    start = start[:body_at]
    if not whole or len(end) < 2 or zlib.crc32(end, zlib.crc32(buffer, zlib.crc32(start))) != crc:
        return None
    record = decode_large(head, buffer) if head is not None and end == b'"}' else None
    return decode_record(b"".join((start, buffer, end))) if record is None else record


def read(path: str, pointer: Sequence[int]) -> Record:
    """The record that a pointer of the log at `path` points to.

    Raises `JournalError` if its segment is gone or not there yet, or if the record is not what the pointer says.
    """
    if len(pointer) != 4:
        raise _no_pointer(path, pointer)
    segment, offset, length, crc = pointer
    fd = open_segment(path, segment)
    try:
        line = os.pread(fd, length, offset) if _is_within(offset, length, os.fstat(fd).st_size) else b""
    finally:
        os.close(fd)
    if len(line) != length or zlib.crc32(line) != crc:  # guards: journal [or zlib.crc32(line) != crc =>]
        raise _damaged(path, segment, offset)
    return decode_record(line)


def _is_within(offset: int, length: int, size: int) -> bool:
    return offset >= 0 and 0 < length <= size - offset


def open_segment(path: str, segment: int) -> int:
    """A descriptor of the segment with this serial, whatever its name is now. Raises `SegmentGone` if there is none
    any more, `JournalError` if there is none yet."""
    newest = 0
    for found in surveys(path):
        newest = newest_serial(found)
        for _, serial, name in found:
            fd = open_if_there(name) if serial == segment else None
            if fd is None:
                continue
            # The name may mean another file than it did in the survey; the descriptor will not.
            try:
                is_it = serial_of(os.pread(fd, MAX_META_BYTES, 0)) == segment
            except BaseException:
                os.close(fd)
                raise
            if is_it:
                return fd
            os.close(fd)
    fd = open_if_there(kept_path(path, segment))
    if fd is not None:
        return fd
    if segment > newest:
        raise JournalError(f"segment {segment} of {path} is not there yet (the newest is {newest}); try again")
    raise _gone(path, segment)


def _gone(path: str, segment: int) -> SegmentGone:
    return SegmentGone(f"segment {segment} of {path} is gone; ask for the message to be sent again")


def _damaged(path: str, segment: int, offset: int) -> JournalError:
    return JournalError(
        f"the record at {offset} in segment {segment} of {path} is damaged; ask its sender to send it again"
    )


def _no_pointer(path: str, pointer: Sequence[int]) -> JournalError:
    return JournalError(
        f"what has {len(pointer)} numbers is no pointer into {path}; the broker is of another release: restart it"
    )


def _unreadable(path: str, segment: int, error: OSError) -> JournalError:
    return JournalError(
        f"segment {segment} of {path} cannot be read: {error.strerror}; see to its disk, then try again"
    )


# --- by id, and the newest --------------------------------------------------------------------------------------


def find(path: str, msg_id: str) -> Record | None:
    """The newest record of this message, in whichever segment; None if there is none.

    Lines that are damaged or unfinished are passed over. Raises `Unauthorized` for files that are open to others.
    """
    # A quote within a string is escaped, so this occurs nowhere but where it is a key.
    needle = b'"msg_id":' + quote(msg_id).encode() + b","
    searched: set[int] = set()
    for found in surveys(path):
        for _, _, name in found:
            fd = open_if_there(name)
            if fd is None:
                continue
            try:
                serial = serial_of(os.pread(fd, MAX_META_BYTES, 0)) or 0
                record = None if serial and serial in searched else _find_in(fd, needle, msg_id)
                searched.add(serial)
            finally:
                os.close(fd)
            if record is not None:
                return record
    for _, name in reversed(kept(path)):
        fd = open_if_there(name)
        if fd is not None:
            try:
                record = _find_in(fd, needle, msg_id)
            finally:
                os.close(fd)
            if record is not None:
                return record
    return None


def _find_in(fd: int, needle: bytes, msg_id: str) -> Record | None:
    end = os.fstat(fd).st_size
    while (at := find_back(fd, end, needle)) >= 0:
        start = find_back(fd, at, b"\n") + 1
        line = _read_line(fd, start)
        if line is not None:
            try:
                record = decode_record(line)
            except JournalError:
                record = None  # an older record of the same message may be whole
            if record is not None and record.msg_id == msg_id:
                return record
        end = start
    return None


def _read_line(fd: int, start: int) -> bytes | None:
    """The line that begins at `start`, without its newline; None if it is unfinished."""
    pieces: list[bytes] = []
    while piece := os.pread(fd, PIECE_BYTES, start):
        end = piece.find(b"\n")
        if end >= 0:
            pieces.append(piece[:end])
            return b"".join(pieces)
        pieces.append(piece)
        start += len(piece)
    return None


def recent(path: str, *, records: int, limit_bytes: int) -> dict[str, Earlier]:
    """Between whom the newest messages went, by their ids, the oldest first. Requests and answers to them are none.

    Looks at the newest `records` messages that lie in the last `limit_bytes` of the log, over all its segments. Of two
    with one id the later one counts, but for its place, which is that of the first. No more than the head of a line is
    looked at; lines that do not begin as a record does, or are unfinished, are passed over. Segments that are begun
    meanwhile are not looked at. Raises `Unauthorized` for files that are open to others, and `JournalError` for those
    that cannot be read.
    """
    newest_first: dict[str, Earlier] = {}
    searched: set[int] = set()
    try:
        for _, _, name in survey(path):
            fd = open_if_there(name) if records > 0 and limit_bytes > 0 else None
            if fd is None:
                continue
            try:
                serial = serial_of(os.pread(fd, MAX_META_BYTES, 0)) or 0
                if serial and serial in searched:
                    continue  # renamed since the survey
                searched.add(serial)
                size = os.fstat(fd).st_size
                for _, _, line in lines_back(fd, max(0, size - limit_bytes), size):
                    head = line[:HEAD_BYTES]
                    seen = None if is_of_work(head) else glance(head)
                    if seen is None:
                        continue
                    later = newest_first.get(seen[0])
                    newest_first[seen[0]] = Earlier(*(seen[1:] if later is None else later[:2]), records)
                    records -= 1
                    if records <= 0:
                        break
                limit_bytes -= size
            finally:
                os.close(fd)
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}; see to its disk, then try again") from None
    return dict(reversed(newest_first.items()))


def lines_back(fd: int, floor: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """The lines that lie between `floor` and `end`, the last one first: where each begins, how long it is without its
    newline, and its bytes; of a line that does not fit a piece no more than the first `HEAD_BYTES`."""
    end = find_back(fd, end, b"\n", floor) + 1
    while end > floor:
        start = max(floor, end - PIECE_BYTES)
        piece = os.pread(fd, end - start, start)
        if len(piece) < end - start:
            return  # cut meanwhile
        first, *others = piece[:-1].split(b"\n")
        at = end
        for line in reversed(others):
            at -= len(line) + 1
            yield at, len(line), line
        end = start + len(first) + 1
        if others:
            continue  # the first line may have begun before the piece, so it is left to the next one
        line_start = find_back(fd, start, b"\n", floor) + 1
        if not line_start:
            if floor and os.pread(fd, 1, floor - 1) != b"\n":
                return
            line_start = floor
        length = end - 1 - line_start
        yield line_start, length, first if line_start == start else os.pread(fd, min(HEAD_BYTES, length), line_start)
        end = line_start


# --- the files -------------------------------------------------------------------------------------------------


def segments(path: str) -> list[tuple[int, str]]:
    """The segments of the log at `path`, newest first: serial and file name. Serial 0: its first line is unreadable."""
    return [(serial, name) for _, serial, name in survey(path)]


def surveys(path: str) -> Iterator[list[tuple[int, int, str]]]:
    """Surveys for a search, until one is like the one before it: then nothing was renamed while that was searched, nor
    had got a new name between the reading of the directory and the opening of the files."""
    before = None
    for _ in range(READ_ATTEMPTS):
        found = survey(path)
        if found == before:
            return
        yield found
        before = found


def survey(path: str) -> list[tuple[int, int, str]]:
    """What there is of the log, newest first: number in the file name (0: none), serial (0: unreadable), file name."""
    directory, base = os.path.split(path)
    prefix = base + "."
    try:
        names = os.listdir(directory or ".")
    except FileNotFoundError:
        return []
    numbers = [0] if base in names else []
    for name in names:
        suffix = name[len(prefix) :] if name.startswith(prefix) else ""
        if suffix.isascii() and suffix.isdigit() and suffix[0] != "0":
            numbers.append(int(suffix))
    found = []
    for number in sorted(numbers):
        name = f"{path}.{number}" if number else path
        fd = open_if_there(name)
        if fd is not None:
            try:
                found.append((number, serial_of(os.pread(fd, MAX_META_BYTES, 0)) or 0, name))
            finally:
                os.close(fd)
    return found


def kept_path(path: str, serial: int) -> str:
    """Where the records of a segment are that unread mail points to, when the segment itself has been deleted: each at
    the offset that it had, and between them nothing."""
    return f"{path}.kept.{serial}"


def kept(path: str) -> list[tuple[int, str]]:
    """The serials of those that there are, and their files, in order."""
    directory, base = os.path.split(path)
    prefix = base + ".kept."
    try:
        names = [name for name in os.listdir(directory or ".") if name.startswith(prefix)]
    except FileNotFoundError:
        return []
    serials = [name[len(prefix) :] for name in names]
    return sorted((int(one), kept_path(path, int(one))) for one in serials if one.isascii() and one.isdigit())


def unfinished(path: str) -> list[str]:
    """Files that were to become such, when their writer died."""
    directory, base = os.path.split(path)
    names = os.listdir(directory or ".")
    return [os.path.join(directory, one) for one in names if one.startswith(f"{base}.kept.") and one.endswith(".new")]


def newest_serial(found: list[tuple[int, int, str]]) -> int:
    return max((serial for _, serial, _ in found), default=0)


def open_if_there(name: str) -> int | None:
    try:
        return open_private(name, os.O_RDONLY)
    except FileNotFoundError:
        return None  # renamed since the directory was read


def is_start_of_meta(head: bytes) -> bool:
    return META_START.startswith(head) or head.startswith(META_START)


def serial_of(head: bytes) -> int | None:
    """The serial of the segment that begins with these bytes; None if none does."""
    match = _META.match(head)
    return int(match[1]) if match else None


def find_back(fd: int, end: int, needle: bytes, floor: int = 0) -> int:
    """Where `needle` occurs last between `floor` and `end`; -1 if it does not. In pieces, for a segment is large."""
    overlap = len(needle) - 1
    piece_bytes = max(PIECE_BYTES, 2 * len(needle))
    while end > floor:
        start = max(floor, end - piece_bytes)
        at = os.pread(fd, end - start, start).rfind(needle)
        if at >= 0:
            return start + at
        end = start + overlap if start > floor else floor
    return -1
