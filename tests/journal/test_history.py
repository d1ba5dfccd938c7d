"""Pages backwards, all from the beginning, and following: over rotation, torn tails, damage and removal."""

from __future__ import annotations

import os
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.records import RECORD, ids, line
from zmqbus.errors import Unauthorized
from zmqbus.journal import history
from zmqbus.journal import reader as readback
from zmqbus.journal.history import Entry, Follower, History, Place, Wanted, follow, numbered
from zmqbus.journal.reader import SegmentGone
from zmqbus.journal.record import JournalError, Record, decode_record, encode_record
from zmqbus.journal.writer import Journal

PATIENCE_S = 90.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    tmp_path.chmod(0o700)
    return str(tmp_path / "messages.log")


@pytest.fixture
def log(path: str) -> Iterator[Journal]:
    """Rotated after a few hundred bytes, so that a test has many segments."""
    log = Journal(path, segment_bytes=1000, keep=100)
    yield log
    log.close()


def write(log: Journal, count: int, start: int = 0) -> list[str]:
    written = ids(count, start)
    for msg_id in written:
        log.append([line(msg_id, f"number {msg_id}")])
    return written


def ids_of(entries: list[Entry]) -> list[str]:
    return [entry.msg_id for entry in entries]


def backwards(path: str, limit: int, wanted: Wanted = history.ALL, limit_bytes: int | None = None) -> list[str]:
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
    def test_no_log(self, path: str) -> None:
        assert History(path).page() == ([], None, 0)
        assert list(History(path).entries()) == []
        assert History(path).end() == Place(0, 0)

    @pytest.mark.parametrize("limit", [1, 2, 7, 1000])
    @pytest.mark.parametrize("piece_bytes", [64, 1000, 1024 * 1024])
    def test_pages_hold_everything_once(
        self, log: Journal, path: str, monkeypatch: pytest.MonkeyPatch, limit: int, piece_bytes: int
    ) -> None:
        for module in (readback, history):
            monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
        written = write(log, 40)
        assert len(numbered(path)[0]) > 5
        assert backwards(path, limit) == written
        assert ids_of(list(History(path).entries())) == written

    def test_what_comes_meanwhile_moves_no_page(self, log: Journal, path: str) -> None:
        written = write(log, 30)
        page = History(path).page(limit=10)
        write(log, 30, start=30)
        assert ids_of(History(path).page(page.before, limit=10).entries) == written[10:20][::-1]

    def test_places_order_entries_and_lead_back_to_them(self, log: Journal, path: str) -> None:
        write(log, 30)
        found = list(History(path).entries())
        assert sorted(found, key=lambda entry: entry.place) == found
        places = [entry.place for entry in found]
        random.Random(1).shuffle(places)
        assert [entry.place for entry in History(path).at(places)] == places
        for entry in found:
            assert History(path).text(entry) == f"number {entry.msg_id}"
        assert list(History(path).entries(found[-1].after)) == []
        assert list(History(path).entries(found[9].place)) == found[9:]

    def test_filters(self, log: Journal, path: str) -> None:
        written = ids(20)
        for number, msg_id in enumerate(written):
            log.append([encode_record(RECORD._replace(msg_id=msg_id, from_name=f"n{number % 3}", ts=1000.0 + number))])
        wanted = Wanted(sender="n1", since_ts=1005.0)
        expected = [msg_id for number, msg_id in enumerate(written) if number % 3 == 1 and number >= 5]
        assert backwards(path, 2, wanted) == expected
        assert ids_of(list(History(path).entries(wanted=wanted))) == expected
        assert ids_of(list(History(path).at([entry.place for entry in History(path).entries()], wanted=wanted))) == (
            expected
        )

    def test_a_segment_that_is_older_is_not_read(
        self, log: Journal, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(log, 20)
        for _, name in numbered(path)[0][:-1]:
            os.utime(name, (1000, 1000))
        read: list[int] = []
        real = readback.lines_back

        def counted(fd: int, floor: int, end: int) -> Iterator[tuple[int, int, bytes]]:
            read.append(fd)
            return real(fd, floor, end)

        monkeypatch.setattr(history, "lines_back", counted)
        History(path).page(wanted=Wanted(since_ts=2000.0))
        assert len(read) == 1

    def test_a_page_ends_where_enough_was_read(self, log: Journal, path: str) -> None:
        written = write(log, 40)
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

    def test_a_body_is_not_loaded_unless_it_is_wanted(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        log = Journal(path)
        text = "x" * (3 * readback.PIECE_BYTES)
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

    def test_what_is_gone(self, path: str) -> None:
        log = Journal(path, segment_bytes=1, keep=2)
        write(log, 3)
        oldest = History(path).page().entries[-1]
        write(log, 3, start=3)
        with pytest.raises(SegmentGone, match="is gone"):
            History(path).record(oldest)
        assert list(History(path).at([oldest.place])) == []
        log.close()

    def test_a_record_that_was_cut(self, path: str) -> None:
        log = Journal(path)
        log.append([line("big000000000", "x" * 1000)])
        log.close()
        entry = History(path).page().entries[0]
        os.truncate(path, 200)
        with pytest.raises(JournalError, match="damaged"):
            History(path).text(entry)

    def test_files_that_are_open_to_others_are_refused(self, log: Journal, path: str) -> None:
        write(log, 3)
        os.chmod(path, 0o644)
        for read in (History(path).page, History(path).end, Follower(path, Place(0, 0)).poll):
            with pytest.raises(Unauthorized, match="chmod 600"):
                read()

    def test_a_disk_that_fails(self, log: Journal, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        write(log, 3)

        def fails(*arguments: object) -> Any:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(history, "lines_back", fails)
        monkeypatch.setattr(history, "lines", fails)
        for read in (History(path).page, Follower(path, Place(0, 0)).poll):
            with pytest.raises(JournalError, match="Input/output error; see to its disk"):
                read()

    def test_repr(self, path: str) -> None:
        assert repr(History(path)) == f"<History of {path}>"
        assert repr(Follower(path)) == f"<Follower of {path} at (0, 0), 0 damaged>"


class TestSegmentsWithoutTheirFirstLine:
    def spoil(self, name: str) -> None:
        with open(name, "r+b") as file:
            file.write(b"?")

    def test_they_are_read_where_their_serial_is_clear(self, path: str) -> None:
        log = Journal(path, segment_bytes=1, keep=100)
        written = write(log, 6)
        log.close()
        for number in (1, 2, 5):  # serials 5, 4 and 1
            self.spoil(f"{path}.{number}")
        assert [serial for serial, _ in numbered(path)[0]] == [1, 2, 3, 4, 5, 6]
        assert backwards(path, 2) == written
        assert ids_of(list(History(path).entries())) == written
        assert History(path).text(History(path).page(limit=6).entries[1]) == f"number {written[4]}"

    def test_they_are_passed_over_where_it_is_not(self, path: str) -> None:
        log = Journal(path, segment_bytes=1, keep=100)
        written = write(log, 3)
        log.close()
        self.spoil(path)
        log = Journal(path, segment_bytes=1)  # puts it aside, and takes its serial again
        written += write(log, 1, start=3)
        log.close()
        known, lost = numbered(path)
        assert ([serial for serial, _ in known], lost) == ([1, 2, 3], [f"{path}.1"])
        assert backwards(path, 2) == [written[0], written[1], written[3]]

    def test_one_that_is_just_begun(self, path: str) -> None:
        with open(path, "w") as file:
            os.fchmod(file.fileno(), 0o600)
        assert numbered(path) == ([], [path])
        assert History(path).page() == ([], None, 0)


class TestFollowing:
    def test_from_now_on(self, log: Journal, path: str) -> None:
        write(log, 3)
        with Follower(path) as follower:
            assert follower.poll() == []
            written = write(log, 2, start=3)
            assert ids_of(follower.poll()) == written

    def test_over_rotations(self, log: Journal, path: str) -> None:
        with Follower(path) as follower:
            found: list[str] = []
            expected: list[str] = []
            for start in range(0, 200, 10):
                expected += write(log, start % 7 + 1, start=start)
                found += ids_of(follower.poll())
            assert found == expected
        assert len(numbered(path)[0]) > 10

    def test_a_log_that_is_not_there_yet(self, path: str) -> None:
        with Follower(path) as follower:
            assert follower.poll() == []
            log = Journal(path)
            written = write(log, 2)
            assert ids_of(follower.poll()) == written
            log.close()

    def test_gone_on_from_a_place(self, log: Journal, path: str) -> None:
        written = write(log, 30)
        with Follower(path, Place(0, 0)) as follower:
            assert ids_of(follower.poll()) == written
            place = follower.place
        more = write(log, 30, start=30)
        with Follower(path, place) as follower:
            assert ids_of(follower.poll()) == more

    def test_a_half_written_line_is_waited_for(self, path: str) -> None:
        log = Journal(path)
        with Follower(path) as follower:
            data = line("torn00000000")
            for part in (data[:50], data[50:100], data[100:]):
                with open(path, "ab") as file:
                    file.write(part)
                assert follower.poll() == []
            with open(path, "ab") as file:
                file.write(b"\n")
            assert ids_of(follower.poll()) == ["torn00000000"]
            assert follower.damaged == 0
        log.close()

    def test_a_half_written_line_that_is_cut_off(self, path: str) -> None:
        log = Journal(path)
        write(log, 1)
        log.close()
        with Follower(path) as follower:
            with open(path, "ab") as file:
                file.write(line("torn00000000")[:100])
            assert follower.poll() == []
            log = Journal(path)  # cuts it off
            written = write(log, 2, start=1)
            assert ids_of(follower.poll()) == written
            assert follower.damaged == 0
        log.close()

    def test_damaged_lines_are_passed_over_and_counted(self, path: str) -> None:
        log = Journal(path)
        with Follower(path) as follower:
            with open(path, "ab") as file:
                file.write(b"rubbish\n\n" + line("good00000000") + b"\n")
            assert ids_of(follower.poll()) == ["good00000000"]
            assert follower.damaged == 2
        log.close()

    def test_a_log_that_somebody_empties(self, path: str) -> None:
        """Its writer notices, and begins another segment."""
        log = Journal(path)
        write(log, 3)
        with Follower(path) as follower:
            os.truncate(path, 0)
            assert follower.poll() == []
            written = write(log, 1, start=3)
            assert ids_of(follower.poll()) == written
        log.close()

    def test_a_log_that_somebody_empties_while_no_broker_runs(self, path: str) -> None:
        log = Journal(path)
        write(log, 3)
        log.close()
        with Follower(path) as follower:
            follower.poll()
            os.truncate(path, 0)
            follower.poll()
            log = Journal(path)
            written = write(log, 1, start=3)
            follower.poll()
            assert ids_of(list(History(path).entries())) == written
        log.close()

    def test_a_log_that_is_cut_and_gone_on_with(self, path: str) -> None:
        log = Journal(path)
        write(log, 3)
        size = os.stat(path).st_size
        log.close()
        with Follower(path) as follower:
            os.truncate(path, size - 10)
            assert follower.poll() == []
            log = Journal(path)
            written = write(log, 1, start=3)
            assert ids_of(follower.poll()) == written
        log.close()

    def test_a_log_that_somebody_removes(self, path: str) -> None:
        log = Journal(path)
        write(log, 3)
        with Follower(path) as follower:
            follower.poll()
            os.unlink(path)
            assert follower.poll() == []
            written = write(log, 2, start=3)
            assert ids_of(follower.poll()) == written
        log.close()

    def test_what_was_deleted_is_left_out(self, path: str) -> None:
        log = Journal(path, segment_bytes=1, keep=2)
        written = write(log, 6)
        with Follower(path, Place(1, 0)) as follower:
            assert ids_of(follower.poll()) == written[3:]
        log.close()

    def test_a_look_returns_no_more_than_a_few_hundred(self, path: str) -> None:
        log = Journal(path)
        written = ids(1200)
        log.append([line(msg_id) for msg_id in written])
        with Follower(path, Place(0, 0)) as follower:
            found = follower.poll()
            assert (ids_of(found), follower.wait_s) == (written[:500], 0.0)
            found += follower.poll()
            found += follower.poll()
            assert ids_of(found) == written
            assert follower.wait_s > 0
        log.close()

    def test_a_look_reads_no_more_than_some_bytes(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history, "POLL_BYTES", 1000)
        log = Journal(path)
        written = write(log, 30)
        wanted = Wanted(pattern=re.compile(written[-1]))
        with Follower(path, Place(0, 0), wanted=wanted) as follower:
            assert follower.poll() == []
            assert follower.wait_s == 0.0
        assert ids_of(list(History(path).entries(wanted=wanted))) == written[-1:]
        log.close()

    @pytest.mark.parametrize("oldest", [True, False])
    def test_a_segment_that_one_look_misses_is_not_passed_over(
        self, path: str, monkeypatch: pytest.MonkeyPatch, oldest: bool
    ) -> None:
        """Its file was renamed between the reading and the opening of names. Also where none is older."""
        log = Journal(path, segment_bytes=1)
        written = write(log, 3)
        log.close()
        real = readback.survey
        missed = 1 if oldest else 2
        looks: list[int] = []

        def survey(path: str) -> list[tuple[int, int, str]]:
            looks.append(1)
            return [found for found in real(path) if len(looks) > 1 or found[1] != missed]

        monkeypatch.setattr("zmqbus.journal.history.survey", survey)
        with Follower(path, Place(missed, 0)) as follower:
            assert ids_of(follower.poll()) == written[missed - 1 :]

    def test_it_looks_less_often_when_nothing_comes(self, log: Journal, path: str) -> None:
        with Follower(path) as follower:
            waits = []
            for _ in range(20):
                follower.poll()
                waits.append(follower.wait_s)
            assert waits == sorted(waits)
            assert (waits[0], waits[-1]) == (history.ACTIVE_WAIT_S, history.IDLE_WAIT_S)
            write(log, 1)
            follower.poll()
            assert follower.wait_s == history.ACTIVE_WAIT_S

    def test_follow_ends_when_it_is_told_to(self, log: Journal, path: str) -> None:
        written = write(log, 3)
        waited: list[float] = []

        def wait(seconds: float) -> bool:
            waited.append(seconds)
            if len(waited) == 1:
                written.extend(write(log, 3, start=3))
            return len(waited) == 3

        assert ids_of(list(follow(path, Place(0, 0), wait=wait))) == written
        assert len(waited) == 3

    def test_a_writer_and_a_follower_at_once(self, path: str) -> None:
        """Thousands of records over dozens of segments, read while they are written: each once, in order."""
        written = ids(3000)

        def run() -> None:
            log = Journal(path, segment_bytes=20_000, keep=1000)
            chance = random.Random(7)
            at = 0
            while at < len(written):
                count = chance.randrange(1, 20)
                log.append([line(msg_id, "x" * chance.randrange(300)) for msg_id in written[at : at + count]])
                at += count
            log.close()

        found: list[str] = []
        writer = threading.Thread(target=run)
        with Follower(path, Place(0, 0)) as follower:
            writer.start()
            while True:
                ended = not writer.is_alive()
                more = follower.poll()
                found += ids_of(more)
                if ended and not more:
                    break
            assert follower.damaged == 0
        writer.join(PATIENCE_S)
        assert found == written
