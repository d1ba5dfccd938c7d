"""Following messages.log: the entries that are added to it, as they come.

A `Follower` looks at the size of the file, often while something comes and less often when nothing does: two system
calls a look. It reads complete lines only, so a line that is half written is waited for. When the name `messages.log`
has moved to another file, the old one is read to its end first and then left for the next serial.

A line that is no record is skipped and counted (`damaged`).
"""

from __future__ import annotations

import os

from zmqbus.journal.filter import ALL, Entry, LineFilter, Wanted
from zmqbus.journal.lines import find_backward, lines_forward
from zmqbus.journal.segments import (
    READ_ATTEMPTS,
    Place,
    end_of_log,
    numbered_segments,
    open_numbered,
    read_meta,
    reading_errors,
    serial_of,
)

#: Entries that one look returns at most, so that a caller can show some before it reads more,
POLL_ENTRIES = 500
#: and bytes that one look reads at most, where nothing of what it reads is wanted.
POLL_BYTES = 16 * 1024 * 1024
#: Pause between two looks at a log that grows: nobody sees a delay of this length.
ACTIVE_WAIT_S = 0.05
#: Pause between two looks at a log that does not: 4 looks a second cost under 0.1 % of a core.
IDLE_WAIT_S = 0.25


class Follower:
    """Reads entries as they are added to the log at `path`, which need not exist yet. For one thread; to be closed.

    `start`: the place to begin at (None: where the log ends now). If its segment has been deleted, the next existing
    one is the beginning.
    """

    def __init__(self, path: str, start: Place | None = None, *, wanted: Wanted = ALL) -> None:
        self._path = path
        self._filter = LineFilter(wanted)
        self._fd = -1
        self._last_look = False  # the file was renamed, so nothing more is added to it
        self._left_bytes = 0
        #: Where the next look begins: a follower that starts there gets all that this one has not returned.
        self.place = end_of_log(path) if start is None else start
        #: Lines that were skipped because they are no records.
        self.damaged = 0
        #: How long to wait before the next `poll`, in seconds; 0 where there is more already.
        self.wait_s = 0.0

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
        """The entries added since the last look, oldest first: at most `POLL_ENTRIES`, from `POLL_BYTES`. Never waits.

        Sets `wait_s` to 0 where there is more already. Raises `Unauthorized` for files that are open to
        others, `JournalError` where one cannot be read.
        """
        entries: list[Entry] = []
        begin = self.place
        self._left_bytes = POLL_BYTES
        with reading_errors(self._path):
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
        for start, length, line in lines_forward(self._fd, begin):
            self.place = Place(segment, start + length + 1)
            self._left_bytes -= length
            found = self._filter.match(self._fd, Place(segment, start), length, line)
            if isinstance(found, Entry):
                entries.append(found)
            else:
                self.damaged += found
            if len(entries) >= POLL_ENTRIES or self._left_bytes <= 0:
                break
        return self.place.offset > begin

    def _cut(self, size: int) -> None:
        """Finds the new place in a file that somebody has emptied or cut.

        Its writer begins another one; or, if it was restarted meanwhile, goes on with the rest of this one, or with
        this file under a new serial.
        """
        serial = serial_of(read_meta(self._fd))
        if serial == self.place.segment:
            self.place = Place(serial, find_backward(self._fd, size, b"\n") + 1)
        else:
            self.close()

    def _moved(self) -> bool:
        """Whether to read once more: another file has the name now, so this one is not written to any more."""
        if self._last_look:
            self.close()
            self.place = Place(self.place.segment + 1, 0)
            return True
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False  # being renamed just now, or removed; the next segment will get this name
        here = os.fstat(self._fd)
        # Lines written between the last reading and the renaming are still to be read.
        self._last_look = (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
        return self._last_look

    def _open_next(self) -> bool:
        """Opens the segment of the current place, or the first one after it.

        The segment counts as gone only when two listings agree: one may miss a file that is renamed meanwhile.
        """
        before = None
        for _ in range(READ_ATTEMPTS):
            known, _ = numbered_segments(self._path)
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
