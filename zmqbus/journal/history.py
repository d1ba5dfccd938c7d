"""The history of the bus, out of messages.log: in pages backwards, from its beginning on, and as it grows.

Theory of operation
===================

Whoever looks at the past needs no broker: the log holds every message once, in the order of acceptance, and what its
writer keeps to (`journal`) is enough to read it while it is written. What is told of each message, `entry` says.

* *Places.* A `Place` is the serial of a segment and an offset in it, and orders all records that there are. It holds
  through any number of rotations, so that it can be kept and gone on from: by the next page, by a search index, by a
  program that has been away. A segment whose first line is damaged has no serial of its own; it is given the one
  between its neighbours', where there is room for it, and is passed over where there is none.
* *Following.* A `Follower` looks at the size of the file, often while something comes and less often when nothing does:
  two system calls a look. Only lines that have an end are read, so a line that is half written is waited for. When the
  name `messages.log` has gone to another file, the old one is read to its end first and then left for the next serial.

What does not begin as a record does is passed over and counted (`damaged`).

Two records with one id are possible: the broker was killed before it could confirm the first, and the sender has sent
the message again. They say the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from zmqbus.journal.filter import ALL, Entry, Place, Sieve, Wanted, whole_line
from zmqbus.journal.reader import (
    MAX_META_BYTES,
    PIECE_BYTES,
    READ_ATTEMPTS,
    SegmentGone,
    find_back,
    lines_back,
    open_if_there,
    open_segment,
    serial_of,
    survey,
)
from zmqbus.journal.record import HEAD_BYTES, JournalError, Record, as_text, decode_record

#: Entries that one look of a follower returns at most, so that whoever shows them can show some before it reads more,
POLL_ENTRIES = 500
#: and bytes that one look reads at most, where nothing is wanted of what it reads.
POLL_BYTES = 16 * 1024 * 1024
#: Between two looks at a log that grows: nobody sees a delay of this length,
ACTIVE_WAIT_S = 0.05
#: and at one that does not: 4 looks a second cost under 0.1 % of a core.
IDLE_WAIT_S = 0.25
#: The end of a longer line is looked for in pieces of this size.
_END_BYTES = 64 * 1024

__all__ = ("ALL", "Entry", "Follower", "History", "Page", "Place", "Wanted", "follow", "lines", "numbered")


class Page(NamedTuple):
    """Some entries, the newest first."""

    entries: list[Entry]
    before: Place | None  # where the next page begins; None: there is nothing before this one
    damaged: int  # lines that were passed over on the way


def lines(fd: int, start: int) -> Iterator[tuple[int, int, bytes]]:
    """The lines from `start` on, as `lines_back` gives them, up to the end of the last one that has an end yet."""
    while piece := os.pread(fd, PIECE_BYTES, start):
        whole = piece.rfind(b"\n")
        if whole >= 0:
            for line in piece[:whole].split(b"\n"):
                yield start, len(line), line
                start += len(line) + 1
            continue
        end = start + len(piece)
        while (more := os.pread(fd, PIECE_BYTES, end)) and (found := more.find(b"\n")) < 0:
            end += len(more)
        if not more:
            return
        end += found
        yield start, end - start, piece[:HEAD_BYTES]
        start = end + 1


def numbered(path: str) -> tuple[list[tuple[int, str]], list[str]]:
    """Serials and names of the segments, the oldest first, also of those that do not say their serial and must have it;
    and the names of those that cannot be placed. (The newest is among these before it has its first line.)"""
    before = None
    for _ in range(READ_ATTEMPTS):
        found = survey(path)
        serials = [serial for _, serial, _ in found]
        if found == before or serials == list(range(serials[0] if serials else 0, 0, -1))[: len(serials)]:
            break  # none is missing; or it is missing for good, and not for having been renamed during the look
        before = found
    return _placed(found)


def _placed(found: list[tuple[int, int, str]]) -> tuple[list[tuple[int, str]], list[str]]:
    known: list[tuple[int, str]] = []
    lost: list[str] = []
    unknown: list[str] = []  # between the last of `known` and the next one
    for _, serial, name in reversed(found):
        if not serial:
            unknown.append(name)
            continue
        before = known[-1][0] if known else 0
        if serial <= before:
            continue  # renamed while the directory was read: it stands there twice
        room = serial - 1 - before
        lost += unknown[: max(0, len(unknown) - room)]
        placed = unknown[-room:] if room else []
        known += [(serial - len(placed) + at, old) for at, old in enumerate(placed)]
        known.append((serial, name))
        unknown = []
    return known, lost + unknown


def segments_back(path: str, before: Place | None, since_ts: float | None) -> Iterator[tuple[int, int, int]]:
    """The segments that have something before a place (None: the end of the log) and were written to since an instant,
    the newest first: serial, descriptor, which is open until the next one is asked for, and where to end."""
    known, _ = numbered(path)
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


def open_numbered(path: str, serial: int, name: str) -> int | None:
    """A descriptor of that segment; None if it is gone."""
    fd = open_if_there(name)
    if fd is not None:
        if serial_of(os.pread(fd, MAX_META_BYTES, 0)) in (serial, None):
            return fd
        os.close(fd)
    try:
        return open_segment(path, serial)  # renamed since
    except SegmentGone:
        return None


def entry_at(fd: int, place: Place, sieve: Sieve) -> Entry | None:
    """The entry whose line begins there, in the segment that is open; None if there is none, or it is not wanted."""
    line = os.pread(fd, HEAD_BYTES, place.offset)
    length = line.find(b"\n")
    if length >= 0:
        line = line[:length]
    else:
        at = len(line)
        while (piece := os.pread(fd, _END_BYTES, place.offset + at)) and (end := piece.find(b"\n")) < 0:
            at += len(piece)
        if not piece:
            return None  # it has no end
        length = at + end
    found = sieve.take(fd, place, length, line)
    return found if isinstance(found, Entry) else None


class History:
    """Reads the log at `path`, which need not be there. Keeps nothing open between two calls. For one thread at a time.

    All methods raise `Unauthorized` for files that are open to others, and `JournalError` where one cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._names: dict[int, str] = {}  # where segments were when they were looked for last
        #: Lines that were passed over by `entries`, so far.
        self.damaged = 0

    def __repr__(self) -> str:
        return f"<History of {self._path}>"

    def end(self) -> Place:
        """Where the next record will begin, so that `page(before=end)` holds all there is now, and a follower that
        starts there all that comes after it. (0, 0) where there is no log."""
        known, _ = numbered(self._path)
        for serial, name in reversed(known):
            with _errors(self._path):
                fd = open_numbered(self._path, serial, name)
                if fd is not None:
                    try:
                        return Place(serial, find_back(fd, os.fstat(fd).st_size, b"\n") + 1)
                    finally:
                        os.close(fd)
        return Place(0, 0)

    def page(
        self,
        before: Place | None = None,
        *,
        limit: int = 50,
        wanted: Wanted = ALL,
        limit_bytes: int | None = None,
    ) -> Page:
        """The newest `limit` entries that lie before a place (None: the end of the log) and are wanted.

        Fewer come at the beginning of the log (`Page.before` is None then), and where `limit_bytes` of it have been
        read: who looks for what is rare goes on from `Page.before` then, and can do something else in between.
        """
        entries: list[Entry] = []
        damaged = read_bytes = 0
        next_before: Place | None = None
        for place, length, found in self._back(before, wanted):
            if isinstance(found, Entry):
                entries.append(found)
            else:
                damaged += found
            read_bytes += length
            if len(entries) >= limit or (limit_bytes is not None and read_bytes >= limit_bytes):
                next_before = place
                break
        return Page(entries, next_before, damaged)

    def entries(self, after: Place | None = None, *, wanted: Wanted = ALL) -> Iterator[Entry]:
        """The entries from a place (None: the beginning) to the end of the log as it is when that is reached, the
        oldest first. Adds to `damaged`."""
        follower = Follower(self._path, after or self._first_since(wanted.since_ts), wanted=wanted)
        try:
            while (found := follower.poll()) or not follower.wait_s:
                yield from found
        finally:
            self.damaged += follower.damaged
            follower.close()

    def text(self, entry: Entry) -> str:
        """The whole text of an entry. Raises `SegmentGone` if its segment is gone, `JournalError` if it is damaged."""
        if entry.whole:
            return entry.head
        record = self.record(entry)
        return as_text(record.fmt, record.body)

    def record(self, entry: Entry) -> Record:
        """The record of an entry, whole. Raises as `text` does."""
        with _errors(self._path):
            fd = self._segment(entry.place.segment)
            try:
                return decode_record(whole_line(fd, entry.place, entry.length))
            finally:
                os.close(fd)

    def at(self, places: Iterable[Place], *, wanted: Wanted = ALL) -> Iterator[Entry]:
        """The wanted ones of the entries at these places, in this order. What is gone or damaged is left out."""
        sieve = Sieve(wanted)
        segment, fd = 0, -1
        try:
            for place in places:
                if place.segment != segment:
                    if fd >= 0:
                        os.close(fd)
                        fd = -1
                    segment = place.segment
                    try:
                        fd = self._segment(segment)
                    except SegmentGone:
                        pass
                if fd >= 0:
                    with _errors(self._path):
                        found = entry_at(fd, place, sieve)
                    if found is not None:
                        yield found
        finally:
            if fd >= 0:
                os.close(fd)

    def _segment(self, serial: int) -> int:
        for _ in range(2):
            fd = open_numbered(self._path, serial, self._names[serial]) if serial in self._names else None
            if fd is not None:
                return fd
            self._names = dict(numbered(self._path)[0])
        raise SegmentGone(f"segment {serial} of {self._path} is gone; ask for the message to be sent again")

    def _first_since(self, since_ts: float | None) -> Place:
        """Where to begin to look for what came since a time: no segment before that was written to since."""
        if since_ts is not None:
            for serial, name in numbered(self._path)[0]:
                try:
                    if os.stat(name).st_mtime >= since_ts - 1:
                        return Place(serial, 0)
                except FileNotFoundError:
                    break  # renamed meanwhile
        return Place(0, 0)

    def _back(self, before: Place | None, wanted: Wanted) -> Iterator[tuple[Place, int, Entry | bool]]:
        """Place and length of each line before a place, the newest first, and what the sieve has to say of it."""
        sieve = Sieve(wanted)
        with _errors(self._path):
            for serial, fd, end in segments_back(self._path, before, wanted.since_ts):
                for start, length, line in lines_back(fd, 0, end):
                    place = Place(serial, start)
                    yield place, length, sieve.take(fd, place, length, line)


@contextmanager
def _errors(path: str) -> Iterator[None]:
    """What the system refuses becomes a `JournalError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}; see to its disk, then try again") from None


class Follower:
    """Reads what is added to the log at `path`, which need not be there yet. For one thread; to be closed.

    `start`: the place to begin at (None: where the log ends now). Where its segment is deleted, the next one that is
    there is begun with.
    """

    def __init__(self, path: str, start: Place | None = None, *, wanted: Wanted = ALL) -> None:
        self._path = path
        self._sieve = Sieve(wanted)
        self._fd = -1
        self._last_look = False  # the file was renamed: what is in it now is all
        self._left_bytes = 0
        #: Where it goes on: a follower that starts there gets everything that this one has not returned.
        self.place = History(path).end() if start is None else start
        #: Lines that were passed over because they are no records.
        self.damaged = 0
        #: How long to wait before the next `poll`, in seconds; 0 where there is more already.
        self.wait_s = 0.0

    def __repr__(self) -> str:
        return f"<Follower of {self._path} at {tuple(self.place)}, {self.damaged} damaged>"

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. Idempotent; a later `poll` opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._last_look = False

    def poll(self) -> list[Entry]:
        """What has come, the oldest first; at most `POLL_ENTRIES`, and out of `POLL_BYTES`. Never waits.

        There is no more now where `wait_s` is not 0 afterwards. Raises `Unauthorized` for files that are open to
        others, `JournalError` where one cannot be read.
        """
        entries: list[Entry] = []
        begin = self.place
        self._left_bytes = POLL_BYTES
        with _errors(self._path):
            while len(entries) < POLL_ENTRIES and self._left_bytes > 0:
                if self._fd < 0 and not self._open_next():
                    break
                if not self._read(entries) and (self._fd < 0 or not self._moved()):
                    break
            else:
                self.wait_s = 0.0
                return entries
        if self.place != begin:
            self.wait_s = ACTIVE_WAIT_S
        else:
            self.wait_s = min(IDLE_WAIT_S, max(ACTIVE_WAIT_S, self.wait_s * 1.2))
        return entries

    def _read(self, entries: list[Entry]) -> bool:
        """Reads on in the segment; returns whether there was a line."""
        segment, begin = self.place
        size = os.fstat(self._fd).st_size
        if size < begin:
            self._cut(size)
        if size <= begin:
            return False
        for start, length, line in lines(self._fd, begin):
            self.place = Place(segment, start + length + 1)
            self._left_bytes -= length
            found = self._sieve.take(self._fd, Place(segment, start), length, line)
            if isinstance(found, Entry):
                entries.append(found)
            else:
                self.damaged += found
            if len(entries) >= POLL_ENTRIES or self._left_bytes <= 0:
                break
        return self.place.offset > begin

    def _cut(self, size: int) -> None:
        """Somebody has emptied or cut the file. Its writer begins another one, or goes on with this one where it was
        restarted meanwhile: with what is left of it, or under a new serial."""
        serial = serial_of(os.pread(self._fd, MAX_META_BYTES, 0))
        if serial == self.place.segment:
            self.place = Place(serial, find_back(self._fd, size, b"\n") + 1)
        else:
            self.close()

    def _moved(self) -> bool:
        """Whether to go round once more: another file has the name, so this one is not written to any more."""
        if self._last_look:
            self.close()
            self.place = Place(self.place.segment + 1, 0)
            return True
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False  # it is being renamed just now, or was removed; the next one will come under this name
        here = os.fstat(self._fd)
        # What was written between the reading and the renaming is still to be read.
        self._last_look = (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
        return self._last_look

    def _open_next(self) -> bool:
        """Opens the segment of the place, or the first one after it. That the one of the place is gone is believed when
        two looks are alike: one look may miss what is renamed meanwhile."""
        before = None
        for _ in range(READ_ATTEMPTS):
            known, _ = numbered(self._path)
            for serial, name in known:
                if serial < self.place.segment:
                    continue
                if serial != self.place.segment and known != before:
                    break
                fd = open_numbered(self._path, serial, name)
                if fd is not None:
                    self._fd = fd
                    if serial != self.place.segment:
                        self.place = Place(serial, 0)
                    return True
            else:
                return False
            before = known
        return False  # the next poll looks again


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def follow(
    path: str,
    start: Place | None = None,
    *,
    wanted: Wanted = ALL,
    wait: Callable[[float], bool] = _sleep,
) -> Iterator[Entry]:
    """Everything that is wanted from a place (None: where the log ends now) on, as it comes; without end.

    `wait(seconds)` is called where there is nothing, and ends the following by returning True: the `wait` of a
    `threading.Event` fits. Raises as `Follower.poll` does.
    """
    with Follower(path, start, wanted=wanted) as follower:
        while True:
            yield from follower.poll()
            if follower.wait_s and wait(follower.wait_s):
                return
