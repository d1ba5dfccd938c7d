"""The files of the log: which are segments, and which serial a damaged one must have."""

from __future__ import annotations

import os
from pathlib import Path

from tests.records import ids_of, write
from zmqbus.journal.history import History
from zmqbus.journal.segments import numbered_segments, segments
from zmqbus.journal.writer import Journal

PATIENCE_S = 90.0


class TestDamagedFirstLine:
    def spoil(self, name: str) -> None:
        with open(name, "r+b") as file:
            file.write(b"?")

    def test_read_where_the_serial_is_clear(self, path: str) -> None:
        log = Journal(path, segment_bytes=1, keep=100)
        written = write(log, 6)
        log.close()
        for number in (1, 2, 5):  # serials 5, 4 and 1
            self.spoil(f"{path}.{number}")
        assert [serial for serial, _ in numbered_segments(path)[0]] == [1, 2, 3, 4, 5, 6]
        assert ids_of(History(path).page().entries)[::-1] == written
        assert ids_of(list(History(path).entries())) == written
        assert History(path).text(History(path).page(limit=6).entries[1]) == f"number {written[4]}"

    def test_ignored_where_the_serial_is_ambiguous(self, path: str) -> None:
        log = Journal(path, segment_bytes=1, keep=100)
        written = write(log, 3)
        log.close()
        self.spoil(path)
        log = Journal(path, segment_bytes=1)  # puts it aside, and takes its serial again
        written += write(log, 1, start=3)
        log.close()
        known, lost = numbered_segments(path)
        assert ([serial for serial, _ in known], lost) == ([1, 2, 3], [f"{path}.1"])
        assert ids_of(list(History(path).entries())) == [written[0], written[1], written[3]]

    def test_segment_that_was_just_begun(self, path: str) -> None:
        with open(path, "w") as file:
            os.fchmod(file.fileno(), 0o600)
        assert numbered_segments(path) == ([], [path])
        assert History(path).page() == ([], None, 0)


def test_other_files_are_no_segments(rotating: Journal, path: str) -> None:
    for name in (".x", ".01", ".", ".1.gz", ".²"):
        Path(path + name).touch(mode=0o644)
    assert segments(path) == [(0, 1, path)]
