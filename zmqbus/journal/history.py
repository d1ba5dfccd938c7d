"""The history of the bus, read from messages.log: in pages backwards, from the beginning on, or at known places.

Reading the past needs no broker: the log holds every message once, in the order of acceptance, and what its writer
guarantees (`writer`) is enough to read it while it is written. `filter` defines the entries and which are wanted;
`tail` reads new entries. A line that is no record is skipped and counted (`damaged`).

Two records with one id are possible: the broker was killed before it could confirm the first, and the sender sent the
message again. They say the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from zmqbus.journal.filter import ALL, Entry, LineFilter, Wanted, whole_line
from zmqbus.journal.lines import line_at, lines_backward
from zmqbus.journal.record import Record, as_text, decode_record
from zmqbus.journal.segments import (
    Place,
    SegmentGone,
    end_of_log,
    numbered_segments,
    open_numbered,
    reading_errors,
    segment_gone,
    segments_back,
)
from zmqbus.journal.tail import Follower


class Page(NamedTuple):
    """Some entries, the newest first."""

    entries: list[Entry]
    before: Place | None  # where the next page begins; None: this is the last page
    damaged: int  # lines that were skipped on the way


def entry_at(fd: int, place: Place, line_filter: LineFilter) -> Entry | None:
    """The entry whose line begins at a place in the open segment; None if there is none, or it is not wanted."""
    line = line_at(fd, place.offset)
    found = None if line is None else line_filter.match(fd, place, *line)
    return found if isinstance(found, Entry) else None


class History:
    """Reads the log at `path`, which need not exist. Keeps no file open between two calls. For one thread at a time.

    All methods raise `Unauthorized` for files that are open to others, and `JournalError` where one cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._names: dict[int, str] = {}  # paths of the segments, as of the last listing
        #: Lines that `entries` has skipped so far because they are no records.
        self.damaged = 0

    def end(self) -> Place:
        """Where the next record will begin; (0, 0) where there is no log.

        `page(before=end)` returns all there is now, and a `Follower` that starts there all that comes after it.
        """
        return end_of_log(self._path)

    def page(
        self,
        before: Place | None = None,
        *,
        limit: int = 50,
        wanted: Wanted = ALL,
        limit_bytes: int | None = None,
    ) -> Page:
        """The newest `limit` entries that lie before a place (None: the end of the log) and are wanted.

        Fewer come at the beginning of the log (`Page.before` is None then), and when `limit_bytes` have been read: a
        search for something rare goes on from `Page.before` then, and can do something else in between.
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
        """The entries from a place (None: the beginning) to the end of the log, oldest first. Adds to `damaged`."""
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
        with reading_errors(self._path):
            fd = self._segment(entry.place.segment)
            try:
                return decode_record(whole_line(fd, entry.place, entry.length))
            finally:
                os.close(fd)

    def at(self, places: Iterable[Place], *, wanted: Wanted = ALL) -> Iterator[Entry]:
        """The entries at these places that are wanted, in this order; without those that are gone or damaged."""
        line_filter = LineFilter(wanted)
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
                    with reading_errors(self._path):
                        found = entry_at(fd, place, line_filter)
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
            self._names = dict(numbered_segments(self._path)[0])
        raise segment_gone(self._path, serial)

    def _first_since(self, since_ts: float | None) -> Place:
        """Where to begin to look for entries since a time: no earlier segment was written to since."""
        if since_ts is not None:
            for serial, name in numbered_segments(self._path)[0]:
                try:
                    if os.stat(name).st_mtime >= since_ts - 1:
                        return Place(serial, 0)
                except FileNotFoundError:
                    break  # renamed meanwhile
        return Place(0, 0)

    def _back(self, before: Place | None, wanted: Wanted) -> Iterator[tuple[Place, int, Entry | bool]]:
        """Place and length of each line before a place, the newest first, and the filter's result for it."""
        line_filter = LineFilter(wanted)
        with reading_errors(self._path):
            for serial, fd, end in segments_back(self._path, before, wanted.since_ts):
                for start, length, line in lines_backward(fd, 0, end):
                    place = Place(serial, start)
                    yield place, length, line_filter.match(fd, place, length, line)
