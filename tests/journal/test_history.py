"""Pages backwards, all from the beginning, and following: over rotation, torn tails, damage and removal."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.records import RECORD, encode_record, ids, ids_of, line, write
from zmqbus.errors import Unauthorized
from zmqbus.journal import history, tail
from zmqbus.journal import lines as lines_module
from zmqbus.journal.filter import ALL, Wanted
from zmqbus.journal.history import History
from zmqbus.journal.record import JournalError, Record, decode_record
from zmqbus.journal.segments import Place, SegmentGone, numbered_segments
from zmqbus.journal.tail import Follower
from zmqbus.journal.writer import Journal

PATIENCE_S = 90.0


def backwards(path: str, limit: int, wanted: Wanted = ALL, limit_bytes: int | None = None) -> list[str]:
    """Ids of all pages, the oldest first."""
    found: list[str] = []
    before: Place | None = None
    while True:
        page = History(path).page(before, limit=limit, wanted=wanted, limit_bytes=limit_bytes)
        assert len(page.entries) <= limit
        found += ids_of(page.entries)
        before = page.before
        if before is None:
            return found[::-1]


class TestPages:
    def test_missing_log(self, path: str) -> None:
        assert History(path).page() == ([], None, 0)
        assert list(History(path).entries()) == []
        assert History(path).end() == Place(0, 0)

    @pytest.mark.parametrize("limit", [1, 2, 7, 1000])
    @pytest.mark.parametrize("piece_bytes", [64, 1000, 1024 * 1024])
    def test_pages_hold_everything_once(
        self, rotating: Journal, path: str, monkeypatch: pytest.MonkeyPatch, limit: int, piece_bytes: int
    ) -> None:
        monkeypatch.setattr(lines_module, "PIECE_BYTES", piece_bytes)
        written = write(rotating, 40)
        assert len(numbered_segments(path)[0]) > 5
        assert backwards(path, limit) == written
        assert ids_of(list(History(path).entries())) == written

    def test_new_records_do_not_move_pages(self, rotating: Journal, path: str) -> None:
        written = write(rotating, 30)
        page = History(path).page(limit=10)
        write(rotating, 30, start=30)
        assert ids_of(History(path).page(page.before, limit=10).entries) == written[10:20][::-1]

    def test_places_sort_and_locate_entries(self, rotating: Journal, path: str) -> None:
        write(rotating, 30)
        found = list(History(path).entries())
        assert sorted(found, key=lambda entry: entry.place) == found
        places = [entry.place for entry in found]
        random.Random(1).shuffle(places)
        assert [entry.place for entry in History(path).at(places)] == places
        for entry in found:
            assert History(path).text(entry) == f"number {entry.msg_id}"
        assert list(History(path).entries(found[-1].after)) == []
        assert list(History(path).entries(found[9].place)) == found[9:]

    def test_criteria_narrow_a_search(self, rotating: Journal, path: str) -> None:
        written = ids(20)
        for number, msg_id in enumerate(written):
            rotating.append(
                [encode_record(RECORD._replace(msg_id=msg_id, from_name=f"n{number % 3}", ts=1000.0 + number))]
            )
        wanted = Wanted(sender="n1", since_ts=1005.0)
        expected = [msg_id for number, msg_id in enumerate(written) if number % 3 == 1 and number >= 5]
        assert backwards(path, 2, wanted) == expected
        assert ids_of(list(History(path).entries(wanted=wanted))) == expected
        assert ids_of(list(History(path).at([entry.place for entry in History(path).entries()], wanted=wanted))) == (
            expected
        )

    def test_older_segments_are_not_read(self, rotating: Journal, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        write(rotating, 20)
        for _, name in numbered_segments(path)[0][:-1]:
            os.utime(name, (1000, 1000))
        read: list[int] = []
        real = lines_module.lines_backward

        def counted(fd: int, floor: int, end: int) -> Iterator[tuple[int, int, bytes]]:
            read.append(fd)
            return real(fd, floor, end)

        monkeypatch.setattr(history, "lines_backward", counted)
        History(path).page(wanted=Wanted(since_ts=2000.0))
        assert len(read) == 1

    def test_page_ends_after_limit_bytes(self, rotating: Journal, path: str) -> None:
        written = write(rotating, 40)
        wanted = Wanted(pattern=re.compile(written[0]))
        page = History(path).page(wanted=wanted, limit_bytes=500)
        assert page.entries == []
        assert page.before is not None
        assert backwards(path, 10, wanted, limit_bytes=500) == written[:1]

    def test_damaged_lines_are_counted(self, path: str) -> None:
        log = Journal(path)
        written = write(log, 3)
        log.close()
        data = Path(path).read_bytes().replace(b'"msg_id":"id0000000001"', b'"msg_id":\0id0000000001"')
        Path(path).write_bytes(data + b"{torn")
        page = History(path).page()
        assert (ids_of(page.entries), page.damaged) == ([written[2], written[0]], 1)
        reader = History(path)
        assert ids_of(list(reader.entries())) == [written[0], written[2]]
        assert reader.damaged == 1

    def test_bodies_are_loaded_only_on_demand(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        log = Journal(path)
        text = "x" * (3 * lines_module.PIECE_BYTES)
        log.append([line("big000000000", text), line("small0000000", "small")])
        log.close()
        wholes: list[int] = []

        def counted(data: bytes) -> Record:
            wholes.append(len(data))
            return decode_record(data)

        monkeypatch.setattr(history, "decode_record", counted)
        for entries in (History(path).page().entries[::-1], list(History(path).entries())):
            assert [(entry.msg_id, len(entry.head), entry.whole) for entry in entries] == [
                ("big000000000", 500, False),
                ("small0000000", 5, True),
            ]
            assert wholes == []
        assert History(path).text(entries[0]) == text
        assert len(wholes) == 1

    def test_deleted_entry(self, path: str) -> None:
        log = Journal(path, segment_bytes=1, keep=2)
        write(log, 3)
        oldest = History(path).page().entries[-1]
        write(log, 3, start=3)
        with pytest.raises(SegmentGone, match="is gone"):
            History(path).record(oldest)
        assert list(History(path).at([oldest.place])) == []
        log.close()

    def test_cut_record(self, path: str) -> None:
        log = Journal(path)
        log.append([line("big000000000", "x" * 1000)])
        log.close()
        entry = History(path).page().entries[0]
        os.truncate(path, 200)
        with pytest.raises(JournalError, match="damaged"):
            History(path).text(entry)

    def test_files_open_to_others_are_refused(self, rotating: Journal, path: str) -> None:
        write(rotating, 3)
        os.chmod(path, 0o644)
        for read in (History(path).page, History(path).end, Follower(path, Place(0, 0)).poll):
            with pytest.raises(Unauthorized, match="chmod 600"):
                read()

    def test_failing_disk(self, rotating: Journal, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        write(rotating, 3)

        def fails(*arguments: object) -> Any:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(history, "lines_backward", fails)
        monkeypatch.setattr(tail, "lines_forward", fails)
        for read in (History(path).page, Follower(path, Place(0, 0)).poll):
            with pytest.raises(JournalError, match="Input/output error; see to its disk"):
                read()
