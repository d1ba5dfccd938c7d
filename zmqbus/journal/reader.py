"""Reading messages.log: by pointer, by message id, and between whom the newest messages went.

Theory of operation
===================

A reader takes no lock; what the writer guarantees is in `writer`. A reader checks three things:

* *The right file.* A segment is found by its serial (`segments`). A `Reader` keeps the files open, and so need not
  look for them again.
* *The right place.* A pointer may be damaged, or come from another program. It is compared with the size of the file
  before anything is read, and no memory is allocated for missing bytes.
* *The right bytes.* A record is checked against the length and the CRC-32 of its pointer before it is parsed.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby, islice

from zmqbus.errors import Unauthorized
from zmqbus.journal.large_record import unescape_start
from zmqbus.journal.lines import PIECE_BYTES, find_backward, lines_backward, whole_line_at
from zmqbus.journal.record import (
    HEAD_BYTES,
    Earlier,
    JournalError,
    Record,
    decode_head,
    decode_ids,
    decode_large,
    decode_record,
    is_request_or_answer,
    quote,
)
from zmqbus.journal.segments import (
    SegmentGone,
    compacted,
    listings,
    open_if_there,
    open_segment,
    read_meta,
    reading_errors,
    segment_gone,
    segments,
    serial_of,
)
from zmqbus.tuples import NamedTuple

#: Segments that a `Reader` keeps open: more than the log keeps without a need. A backlog that reaches over more is read
#: in order, so each is opened once even then.
MAX_OPEN_SEGMENTS = 16
#: Records with no more than this between them are read together: 4 KiB too much cost less than another call.
GAP_BYTES = 4096
#: So much is read together at most; only a single record may be larger.
RUN_BYTES = 256 * 1024
#: A `Reader` keeps a buffer of this size from one large record to the next.
BUFFER_BYTES = 4 * 1024 * 1024


class Pointer(NamedTuple):
    """Where a record is: `length` bytes from `offset` on, without the newline, in the segment with this serial."""

    segment: int
    offset: int
    length: int
    crc: int  # zlib.crc32 of these bytes


# --- by pointer -------------------------------------------------------------------------------------------------


class Reader:
    """Reads records by pointer, and keeps the files open between the readings. For one thread.

    A segment stays the same file whatever it is renamed to. A deleted one can be read until other segments push its
    descriptor out.
    """

    def __init__(self, path: str, *, max_open: int = MAX_OPEN_SEGMENTS) -> None:
        self._path = path
        self._max_open = max_open
        self._closed = False
        self._buffer = bytearray()
        #: Serial -> descriptor; the one used last stands last.
        self._fds: dict[int, int] = {}
        #: Serials not found in the directory as it was at `_changed_ns`. A mailbox may hold many messages of a segment
        #: that somebody has deleted; without this set, each of them would list the directory twice.
        self._gone: set[int] = set()
        self._changed_ns = 0

    def read(self, pointer: Sequence[int]) -> Record:
        """The record at this pointer. Raises `JournalError` if it cannot be read as it was written."""
        result = self.read_many([pointer])[0]
        if isinstance(result, JournalError):
            raise result
        return result

    def read_many(self, pointers: Sequence[Sequence[int]]) -> list[Record | JournalError]:
        """What `read` would return or raise for each pointer, in this order. Neighbours are read together."""
        self._check_open()
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
                # Records that were read before it happened are good.
                for *_, number in wanted:
                    results.setdefault(number, error)
        return [results[number] for number in range(len(pointers))]

    def read_head(self, pointer: Sequence[int], msg_id: str, limit_bytes: int) -> bytes:
        """The beginning of the body of a text message, at least `limit_bytes` of it where there is as much.

        Reads no more than that, so it checks the id of the message instead of the checksum. Raises `JournalError` if
        there is another record, or none, or one whose body is no text.
        """
        self._check_open()
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
        return unescape_start(line[head.body_at :])

    def intact(self, pointer: Sequence[int]) -> bool:
        """Whether the pointer leads to bytes of its length and checksum. They are not parsed, nor held all at once."""
        self._check_open()
        if len(pointer) != 4:
            return False
        segment, offset, length, crc = pointer
        try:
            fd = self._descriptor(segment)
            return _is_within(offset, length, os.fstat(fd).st_size) and _crc_at(fd, offset, length) == crc
        except (JournalError, OSError):
            return False

    def close(self) -> None:
        """Closes the files; nothing can be read any more. Idempotent."""
        self._closed = True
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _check_open(self) -> None:
        if self._closed:
            raise JournalError("the reader is closed; open another one")

    def _read_segment(
        self, segment: int, wanted: list[tuple[int, ...]], results: dict[int, Record | JournalError]
    ) -> None:
        """Puts the records at these (segment, offset, length, crc, number), which are in order, into `results`."""
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
        if end - start > RUN_BYTES:  # a single record
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
            raise segment_gone(self._path, segment)
        try:
            return open_segment(self._path, segment)
        except SegmentGone:
            self._gone.add(segment)
            raise


def _read_large(fd: int, offset: int, length: int, crc: int, buffer: bytearray) -> Record | None:
    """Reads a single large record, its body into `buffer`; None if it does not match the pointer.

    The buffer is resized and used again for the next one: fresh memory for a megabyte costs more page faults than its
    copy. Raises `JournalError` as `decode_record` does.
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
    """The record at a pointer into the log at `path`, without a `Reader`.

    Raises `JournalError` if its segment is gone or does not exist yet, or if the record does not match the pointer.
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


def _crc_at(fd: int, offset: int, length: int) -> int | None:
    """CRC-32 of a part of a file, read in pieces; None if the file is cut meanwhile."""
    found, end = 0, offset + length
    while offset < end:
        piece = os.pread(fd, min(PIECE_BYTES, end - offset), offset)
        if not piece:
            return None
        found = zlib.crc32(piece, found)
        offset += len(piece)
    return found


def _is_within(offset: int, length: int, size: int) -> bool:
    return offset >= 0 and 0 < length <= size - offset


def _damaged(path: str, segment: int, offset: int) -> JournalError:
    return JournalError(
        f"the record at {offset} in segment {segment} of {path} is damaged; ask its sender to send it again"
    )


def _no_pointer(path: str, pointer: Sequence[int]) -> JournalError:
    return JournalError(
        f"a pointer into {path} has {len(pointer)} numbers instead of 4; the broker is of another release: restart it"
    )


def _unreadable(path: str, segment: int, error: OSError) -> JournalError:
    return JournalError(
        f"segment {segment} of {path} cannot be read: {error.strerror}; see to its disk, then try again"
    )


# --- by id, and the newest --------------------------------------------------------------------------------------


def find(path: str, msg_id: str) -> Record | None:
    """The newest record of this message in all segments; None if there is none.

    Skips damaged and unfinished lines. Raises `Unauthorized` for files that are open to others.
    """
    # A quote within a string is escaped, so these bytes occur only where it is a key.
    needle = b'"msg_id":' + quote(msg_id).encode() + b","
    for fd in _each_newest_first(path):
        record = _find_in(fd, needle, msg_id)
        if record is not None:
            return record
    return None


def _each_newest_first(path: str) -> Iterator[int]:
    """A descriptor of every segment, then of every compacted one; open until the next one is asked for."""
    searched: set[int] = set()
    for found in listings(path):
        for segment in found:
            fd = open_if_there(segment.path)
            if fd is None:
                continue
            try:
                serial = serial_of(read_meta(fd)) or 0
                if serial and serial in searched:
                    continue  # renamed since it was searched
                searched.add(serial)
                yield fd
            finally:
                os.close(fd)
    for _, name in reversed(compacted(path)):
        fd = open_if_there(name)
        if fd is not None:
            try:
                yield fd
            finally:
                os.close(fd)


def _find_in(fd: int, needle: bytes, msg_id: str) -> Record | None:
    end = os.fstat(fd).st_size
    while (at := find_backward(fd, end, needle)) >= 0:
        start = find_backward(fd, at, b"\n") + 1
        line = whole_line_at(fd, start)
        if line is not None:
            try:
                record = decode_record(line)
            except JournalError:
                record = None  # an older record of the same message may be whole
            if record is not None and record.msg_id == msg_id:
                return record
        end = start
    return None


def recent(path: str, *, records: int, limit_bytes: int) -> dict[str, Earlier]:
    """Between whom the newest messages went, by their ids, the oldest first; without requests and their answers.

    Looks at the newest `records` messages in the last `limit_bytes` of the log, over all its segments. Of two with one
    id the later one counts, with the place of the first. Reads no more than the head of a line, and skips lines that
    are unfinished or do not begin as a record. Segments that are begun meanwhile are not looked at. Raises
    `Unauthorized` for files that are open to others, `JournalError` for those that cannot be read.
    """
    newest_first: dict[str, Earlier] = {}
    with reading_errors(path):
        for at, (msg_id, sender, receiver) in enumerate(islice(_newest_ids(path, limit_bytes), max(0, records))):
            later = newest_first.get(msg_id)
            place = records - at
            newest_first[msg_id] = Earlier(sender, receiver, place) if later is None else later._replace(place=place)
    return dict(reversed(newest_first.items()))


def _newest_ids(path: str, limit_bytes: int) -> Iterator[tuple[str, str, str | None]]:
    """The ids in each message of the last `limit_bytes` of the log, newest first."""
    searched: set[int] = set()
    for segment in segments(path):
        fd = open_if_there(segment.path) if limit_bytes > 0 else None
        if fd is None:
            continue
        try:
            serial = serial_of(read_meta(fd)) or 0
            if serial and serial in searched:
                continue  # renamed since the directory was listed
            searched.add(serial)
            size = os.fstat(fd).st_size
            for _, _, line in lines_backward(fd, max(0, size - limit_bytes), size):
                head = line[:HEAD_BYTES]
                ids = None if is_request_or_answer(head) else decode_ids(head)
                if ids is not None:
                    yield ids
            limit_bytes -= size
        finally:
            os.close(fd)
