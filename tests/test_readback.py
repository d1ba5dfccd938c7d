"""What a reader of the log may rely on."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.records import RECORD, RECORDS, ids, line
from zmqbus import readback
from zmqbus.errors import Unauthorized
from zmqbus.journal import Journal
from zmqbus.readback import Pointer, Reader, SegmentGone, find, read, recent, segments
from zmqbus.record import HEAD_BYTES, JournalError, Record, decode_record, encode_record


@pytest.fixture
def path(tmp_path) -> str:
    tmp_path.chmod(0o700)
    return str(tmp_path / "messages.log")


@pytest.fixture
def log(path) -> Iterator[Journal]:
    log = Journal(path)
    yield log
    log.close()


class TestReading:
    def test_log_that_is_not_there(self, tmp_path):
        missing = str(tmp_path / "none" / "messages.log")
        assert segments(missing) == []
        assert find(missing, "abc123def456") is None
        with pytest.raises(JournalError, match="not there yet"):
            read(missing, Pointer(1, 0, 1, 0))

    def test_segment_that_is_gone_or_to_come(self, path):
        log = Journal(path, segment_bytes=1, keep=1)
        pointers = [log.append([line(msg_id)])[0] for msg_id in ids(4)]
        with pytest.raises(JournalError, match=r"segment 1 .* is gone"):
            read(path, pointers[0])
        with pytest.raises(JournalError, match=r"segment 5 .* is not there yet"):
            read(path, pointers[0]._replace(segment=5))
        log.close()

    @pytest.mark.parametrize(
        "change",
        [
            {"offset": 3},
            {"offset": -1},
            {"offset": 10**12},
            {"length": 5},
            {"length": 0},
            {"length": -1},
            {"length": 10**12},
            {"crc": 1},
        ],
        ids=str,
    )
    def test_wrong_pointer(self, log, path, change):
        pointer = log.append([line()])[0]
        with pytest.raises(JournalError, match="damaged"):
            read(path, pointer._replace(**change))

    def test_pointer_of_another_shape(self, log, path):
        with pytest.raises(JournalError, match="no pointer"):
            read(path, (1, 2, 3))

    def test_other_files_are_no_segments(self, log, path, tmp_path):
        for name in ("messages.log.x", "messages.log.01", "messages.log.", "messages.log.1.gz", "messages.log.²"):
            (tmp_path / name).touch(mode=0o644)
        assert segments(path) == [(1, path)]

    def test_unsafe_segment_is_refused(self, log, path):
        pointer = log.append([line()])[0]
        os.chmod(path, 0o644)
        with pytest.raises(Unauthorized, match="chmod 600"):
            read(path, pointer)
        with pytest.raises(Unauthorized, match="chmod 600"):
            find(path, RECORD.msg_id)

    def test_finds_the_newest_over_all_segments(self, path):
        log = Journal(path, segment_bytes=1)
        for number, msg_id in enumerate([*ids(5), ids(5)[1]]):
            log.append([line(msg_id, f"number {number}")])
        found = [find(path, msg_id) for msg_id in ids(5)]
        assert [record and record.body for record in found] == [b"number %d" % number for number in (0, 5, 2, 3, 4)]
        log.close()

    @pytest.mark.parametrize("piece_bytes", [1, 7, 64, 1000])
    def test_finds_over_the_borders_of_pieces(self, log, path, monkeypatch, piece_bytes):
        monkeypatch.setattr(readback, "PIECE_BYTES", piece_bytes)
        log.append([line(msg_id, "x" * number) for number, msg_id in enumerate(ids(40))])
        for number, msg_id in enumerate(ids(40)):
            record = find(path, msg_id)
            assert record is not None
            assert (record.msg_id, len(record.body)) == (msg_id, number)
        assert find(path, "none00000000") is None

    def test_finds_no_id_that_a_text_pretends(self, log, path):
        log.append([line(text='"msg_id":"fake00000000","kind":'), line(text=',"msg_id":"fake00000000",')])
        assert find(path, "fake00000000") is None

    def test_passes_over_what_is_damaged_or_unfinished(self, log, path):
        log.append([line(text="whole")])
        with open(path, "ab") as file:
            file.write(line().replace(b'"kind":"message"', b'"kind":"massage"') + b"\n" + line()[:-3])
        record = find(path, RECORD.msg_id)
        assert record is not None
        assert record.body == b"whole"

    @pytest.mark.parametrize("how", ["read", "find"])
    def test_rotation_in_the_middle(self, path, monkeypatch, how):
        """Between the survey and the opening of the files, everything moves by one."""
        log = Journal(path, segment_bytes=1)
        pointers = [log.append([line(msg_id)])[0] for msg_id in ids(3)]
        real = readback.survey
        rotations: list[int] = []

        def survey(name: str) -> list[tuple[int, int, str]]:
            found = real(name)
            if len(rotations) < 2:
                rotations.append(len(found))
                with monkeypatch.context() as patch:
                    patch.setattr(readback, "survey", real)
                    log.append([line("later0000000")])
            return found

        monkeypatch.setattr(readback, "survey", survey)
        if how == "read":
            assert read(path, pointers[0]).msg_id == ids(3)[0]
        else:
            assert find(path, ids(3)[0]) == RECORD._replace(msg_id=ids(3)[0])
        assert rotations == [3, 4]
        log.close()

    @pytest.mark.parametrize("how", ["read", "find"])
    def test_rotation_after_the_names_were_read(self, path, monkeypatch, how):
        """The oldest segment gets a name that was not there when the directory was read."""
        log = Journal(path, segment_bytes=1)
        pointers = [log.append([line(msg_id)])[0] for msg_id in ids(3)]
        real = os.listdir

        def listdir(name: str) -> list[str]:
            found = real(name)
            monkeypatch.setattr(os, "listdir", real)
            log.append([line("later0000000")])
            return found

        monkeypatch.setattr(os, "listdir", listdir)
        record = read(path, pointers[0]) if how == "read" else find(path, ids(3)[0])
        assert record == RECORD._replace(msg_id=ids(3)[0])
        log.close()

    def test_while_somebody_writes_and_rotates(self, path):
        log = Journal(path, segment_bytes=2000, keep=1000)
        written: list[Pointer] = []
        faults: list[BaseException] = []
        done = threading.Event()

        def check() -> None:
            try:
                while not done.is_set():
                    for number in range(max(0, len(written) - 3), len(written)):
                        assert read(path, written[number]).body == b"%d" % number
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=check) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(300):
            written += log.append([line(text=str(number))])
        done.set()
        for thread in threads:
            thread.join()
        log.close()
        assert faults == []
        assert log.segment > 30
