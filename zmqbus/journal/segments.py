"""The files of messages.log: its segments, known by their serials, whatever they are named now.

`messages.log` is written to, `messages.log.1` is the segment before it, and so on; see `writer` for what the writer
guarantees. A segment is known by the serial in its first line. Segments are only renamed upwards, so a reader that
looks from the newest on meets each of them, with one exception: a file that got a name which was not there when the
directory was listed. So a reader that has not found a segment lists the directory again, until two listings agree
(`listings`).

A segment whose first line is damaged has no serial. It is given the one between its neighbours' where there is room
for it (`numbered_segments`), so that its records can be read in order with the others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from zmqbus.journal.lines import find_backward
from zmqbus.journal.record import JournalError
from zmqbus.security.private_files import open_private
from zmqbus.tuples import NamedTuple

#: The first line of a segment is under 100 bytes; a longer one is not ours.
MAX_META_BYTES = 256
#: A reader lists the directory so many times at most. Between two listings there must have been a rotation (50 MiB of
#: mail) for another one to be needed.
READ_ATTEMPTS = 10

META_START = b'{"kind":"segment","segment":'
_META = re.compile(META_START + rb'([1-9][0-9]{0,17}),"format":1,"created":"[0-9TZ:.-]{1,40}"\}\n')


class SegmentGone(JournalError):
    """The file that held the record has been deleted."""


class Segment(NamedTuple):
    """A file of the log."""

    number: int  # in its file name; 0: it is written to
    serial: int  # 0: its first line is unreadable
    path: str


class Place(NamedTuple):
    """Where a line of the log begins. Places sort as their records were accepted, and hold through rotations."""

    segment: int  # serial
    offset: int  # bytes


# --- list -------------------------------------------------------------------------------------------------------


def segments(path: str) -> list[Segment]:
    """The segments of the log at `path`, newest first."""
    directory, base = os.path.split(path)
    prefix = base + "."
    names = _names(directory)
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
                found.append(Segment(number, serial_of(read_meta(fd)) or 0, name))
            finally:
                os.close(fd)
    return found


def listings(path: str) -> Iterator[list[Segment]]:
    """Segments for a search, listed again until two listings agree.

    Then no file was renamed during the search, nor between the listing of the directory and the opening of the files.
    """
    before = None
    for _ in range(READ_ATTEMPTS):
        found = segments(path)
        if found == before:
            return
        yield found
        before = found


def numbered_segments(path: str) -> tuple[list[tuple[int, str]], list[str]]:
    """Serials and paths of the segments, the oldest first, and the paths of files that cannot be placed among them.

    A segment without a readable serial gets the serial that it must have. (The newest has no place before it has its
    first line.)
    """
    before = None
    for _ in range(READ_ATTEMPTS):
        found = segments(path)
        serials = [segment.serial for segment in found]
        if found == before or serials == list(range(serials[0] if serials else 0, 0, -1))[: len(serials)]:
            break  # none is missing; or it is missing for good, and not because it was renamed during the listing
        before = found
    return _number(found)


def _number(found: list[Segment]) -> tuple[list[tuple[int, str]], list[str]]:
    known: list[tuple[int, str]] = []
    lost: list[str] = []
    unknown: list[str] = []  # between the last of `known` and the next one
    for _, serial, name in reversed(found):
        if not serial:
            unknown.append(name)
            continue
        before = known[-1][0] if known else 0
        if serial <= before:
            continue  # renamed while the directory was listed: it stands there twice
        room = serial - 1 - before
        lost += unknown[: max(0, len(unknown) - room)]
        placed = unknown[-room:] if room else []
        known += [(serial - len(placed) + at, old) for at, old in enumerate(placed)]
        known.append((serial, name))
        unknown = []
    return known, lost + unknown


def newest_serial(found: list[Segment]) -> int:
    """The highest serial; 0 where there is none."""
    return max((segment.serial for segment in found), default=0)


# --- compacted segments -----------------------------------------------------------------------------------------


def compacted_path(path: str, serial: int) -> str:
    """The file with the records of a deleted segment that unread mail still points to.

    Each record has the offset that it had in the segment; there are holes between them.
    """
    return f"{path}.kept.{serial}"


def compacted(path: str) -> list[tuple[int, str]]:
    """Serials and paths of the compacted segments, in order."""
    directory, base = os.path.split(path)
    prefix = base + ".kept."
    serials = [name[len(prefix) :] for name in _names(directory) if name.startswith(prefix)]
    return sorted((int(one), compacted_path(path, int(one))) for one in serials if one.isascii() and one.isdigit())


def unfinished(path: str) -> list[str]:
    """Paths of compacted segments that their writer did not finish before it died."""
    directory, base = os.path.split(path)
    prefix = base + ".kept."
    return [os.path.join(directory, name) for name in _names(directory) if _is_draft(name, prefix)]


def _is_draft(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name.endswith(".new")


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory or ".")
    except FileNotFoundError:
        return []


# --- open -------------------------------------------------------------------------------------------------------


def open_if_there(path: str) -> int | None:
    """A descriptor of a file of the log; None if there is none (it was renamed since the directory was listed)."""
    try:
        return open_private(path, os.O_RDONLY)
    except FileNotFoundError:
        return None


def open_segment(path: str, serial: int) -> int:
    """A descriptor of the segment with this serial, or of what compaction has left of it.

    Raises `SegmentGone` if it has been deleted, `JournalError` if it does not exist yet.
    """
    newest = 0
    for found in listings(path):
        newest = newest_serial(found)
        for segment in found:
            # The name may mean another file by now; the descriptor does not change.
            fd = _open_checked(segment.path, serial) if segment.serial == serial else None
            if fd is not None:
                return fd
    fd = open_if_there(compacted_path(path, serial))
    if fd is not None:
        return fd
    if serial > newest:
        raise JournalError(f"segment {serial} of {path} does not exist yet (the newest is {newest}); try again")
    raise segment_gone(path, serial)


def segment_gone(path: str, serial: int) -> SegmentGone:
    """The error to raise for a segment that has been deleted."""
    return SegmentGone(f"segment {serial} of {path} is gone; ask for the message to be sent again")


def open_numbered(path: str, serial: int, name: str) -> int | None:
    """A descriptor of a segment that `numbered_segments` has found under this name; None if it has been deleted."""
    fd = _open_checked(name, serial, None)
    if fd is not None:
        return fd
    try:
        return open_segment(path, serial)  # renamed since
    except SegmentGone:
        return None


def _open_checked(name: str, *serials: int | None) -> int | None:
    """A descriptor of the file if its serial is one of these (None: unreadable)."""
    fd = open_if_there(name)
    if fd is None:
        return None
    try:
        if serial_of(read_meta(fd)) in serials:
            fd, checked = -1, fd
            return checked
        return None
    finally:
        if fd >= 0:
            os.close(fd)


def segments_back(path: str, before: Place | None, since_ts: float | None) -> Iterator[tuple[int, int, int]]:
    """The segments with records before a place (None: the end of the log) and since a time, the newest first.

    Yields serial, descriptor (open until the next one is asked for) and the offset to stop at.
    """
    known, _ = numbered_segments(path)
    for serial, name in reversed(known):
        if before is not None and serial > before.segment:
            continue
        fd = open_numbered(path, serial, name)
        if fd is None:
            continue
        try:
            found = os.fstat(fd)
            if since_ts is not None and found.st_mtime < since_ts - 1:
                continue  # nothing has been written to it since
            end = found.st_size
            if before is not None and serial == before.segment:
                end = min(end, before.offset)
            yield serial, fd, end
        finally:
            os.close(fd)


def end_of_log(path: str) -> Place:
    """Where the next record will begin; (0, 0) where there is no log."""
    known, _ = numbered_segments(path)
    for serial, name in reversed(known):
        with reading_errors(path):
            fd = open_numbered(path, serial, name)
            if fd is not None:
                try:
                    return Place(serial, find_backward(fd, os.fstat(fd).st_size, b"\n") + 1)
                finally:
                    os.close(fd)
    return Place(0, 0)


@contextmanager
def reading_errors(path: str) -> Iterator[None]:
    """Turns an OSError into a `JournalError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}; see to its disk, then try again") from None


# --- the first line ---------------------------------------------------------------------------------------------


def read_meta(fd: int) -> bytes:
    """The beginning of a segment, in which its first line is."""
    return os.pread(fd, MAX_META_BYTES, 0)


def serial_of(head: bytes) -> int | None:
    """The serial of the segment that begins with these bytes; None if no segment does."""
    match = _META.match(head)
    return int(match[1]) if match else None


def is_start_of_meta(head: bytes) -> bool:
    """Whether these bytes are the beginning of a segment's first line, or begin with one."""
    return META_START.startswith(head) or head.startswith(META_START)
