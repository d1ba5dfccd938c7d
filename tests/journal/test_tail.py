"""Following the log: over rotations, torn lines, damage and removal."""

from __future__ import annotations

import os
import random
import re
import threading

import pytest

from tests.records import ids, ids_of, line, write
from zmqbus.journal import segments as segments_module
from zmqbus.journal import tail
from zmqbus.journal.filter import Wanted
from zmqbus.journal.history import History
from zmqbus.journal.segments import Place, Segment, numbered_segments
from zmqbus.journal.tail import Follower
from zmqbus.journal.writer import Journal

PATIENCE_S = 90.0


class TestFollowing:
    def test_new_entries_only(self, rotating: Journal, path: str) -> None:
        write(rotating, 3)
        with Follower(path) as follower:
            assert follower.poll() == []
            written = write(rotating, 2, start=3)
            assert ids_of(follower.poll()) == written

    def test_over_rotations(self, rotating: Journal, path: str) -> None:
        with Follower(path) as follower:
            found: list[str] = []
            expected: list[str] = []
            for start in range(0, 200, 10):
                expected += write(rotating, start % 7 + 1, start=start)
                found += ids_of(follower.poll())
            assert found == expected
        assert len(numbered_segments(path)[0]) > 10

    def test_log_that_does_not_exist_yet(self, path: str) -> None:
        with Follower(path) as follower:
            assert follower.poll() == []
            log = Journal(path)
            written = write(log, 2)
            assert ids_of(follower.poll()) == written
            log.close()

    def test_continues_from_a_place(self, rotating: Journal, path: str) -> None:
        written = write(rotating, 30)
        with Follower(path, Place(0, 0)) as follower:
            assert ids_of(follower.poll()) == written
            place = follower.place
        more = write(rotating, 30, start=30)
        with Follower(path, place) as follower:
            assert ids_of(follower.poll()) == more

    def test_unfinished_line_is_waited_for(self, path: str) -> None:
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

    def test_unfinished_line_that_is_cut_off(self, path: str) -> None:
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

    def test_damaged_lines_are_skipped_and_counted(self, path: str) -> None:
        log = Journal(path)
        with Follower(path) as follower:
            with open(path, "ab") as file:
                file.write(b"rubbish\n\n" + line("good00000000") + b"\n")
            assert ids_of(follower.poll()) == ["good00000000"]
            assert follower.damaged == 2
        log.close()

    def test_emptied_log(self, path: str) -> None:
        """Its writer notices, and begins another segment."""
        log = Journal(path)
        write(log, 3)
        with Follower(path) as follower:
            os.truncate(path, 0)
            assert follower.poll() == []
            written = write(log, 1, start=3)
            assert ids_of(follower.poll()) == written
        log.close()

    def test_emptied_log_without_a_writer(self, path: str) -> None:
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

    def test_cut_log_that_is_continued(self, path: str) -> None:
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

    def test_removed_log(self, path: str) -> None:
        log = Journal(path)
        write(log, 3)
        with Follower(path) as follower:
            follower.poll()
            os.unlink(path)
            assert follower.poll() == []
            written = write(log, 2, start=3)
            assert ids_of(follower.poll()) == written
        log.close()

    def test_deleted_segments_are_skipped(self, path: str) -> None:
        log = Journal(path, segment_bytes=1, keep=2)
        written = write(log, 6)
        with Follower(path, Place(1, 0)) as follower:
            assert ids_of(follower.poll()) == written[3:]
        log.close()

    def test_poll_returns_a_bounded_number(self, path: str) -> None:
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

    def test_poll_reads_bounded_bytes(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tail, "POLL_BYTES", 1000)
        log = Journal(path)
        written = write(log, 30)
        wanted = Wanted(pattern=re.compile(written[-1]))
        with Follower(path, Place(0, 0), wanted=wanted) as follower:
            assert follower.poll() == []
            assert follower.wait_s == 0.0
        assert ids_of(list(History(path).entries(wanted=wanted))) == written[-1:]
        log.close()

    @pytest.mark.parametrize("oldest", [True, False])
    def test_segment_missing_from_one_listing_is_not_skipped(
        self, path: str, monkeypatch: pytest.MonkeyPatch, oldest: bool
    ) -> None:
        """Its file was renamed between the reading and the opening of names. Also where none is older."""
        log = Journal(path, segment_bytes=1)
        written = write(log, 3)
        log.close()
        real = segments_module.segments
        missed = 1 if oldest else 2
        looks: list[int] = []

        def counted_segments(path: str) -> list[Segment]:
            looks.append(1)
            return [found for found in real(path) if len(looks) > 1 or found[1] != missed]

        monkeypatch.setattr(segments_module, "segments", counted_segments)
        with Follower(path, Place(missed, 0)) as follower:
            assert ids_of(follower.poll()) == written[missed - 1 :]

    def test_waits_longer_when_nothing_comes(self, rotating: Journal, path: str) -> None:
        with Follower(path) as follower:
            waits = []
            for _ in range(20):
                follower.poll()
                waits.append(follower.wait_s)
            assert waits == sorted(waits)
            assert (waits[0], waits[-1]) == (tail.ACTIVE_WAIT_S, tail.IDLE_WAIT_S)
            write(rotating, 1)
            follower.poll()
            assert follower.wait_s == tail.ACTIVE_WAIT_S

    def test_concurrent_writer(self, path: str) -> None:
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
