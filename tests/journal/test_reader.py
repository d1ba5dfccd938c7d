"""Reading the log by pointer and by id: rotation, damage, hostile pointers, and the newest messages."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.records import RECORD, RECORDS, encode_record, ids, line
from zmqbus.errors import Unauthorized
from zmqbus.journal import lines as lines_module
from zmqbus.journal import reader as reader_module
from zmqbus.journal import segments as segments_module
from zmqbus.journal.reader import Pointer, Reader, find, read, recent
from zmqbus.journal.record import HEAD_BYTES, Earlier, JournalError, Record, decode_ids, decode_record
from zmqbus.journal.segments import Segment, SegmentGone, segments
from zmqbus.journal.writer import Journal


class TestReadAndFind:
    def test_missing_log(self, tmp_path):
        missing = str(tmp_path / "none" / "messages.log")
        assert segments(missing) == []
        assert find(missing, "abc123def456") is None
        with pytest.raises(JournalError, match="does not exist yet"):
            read(missing, Pointer(1, 0, 1, 0))

    def test_missing_segments(self, path):
        log = Journal(path, segment_bytes=1, keep=1)
        pointers = [log.append([line(msg_id)])[0] for msg_id in ids(4)]
        with pytest.raises(JournalError, match=r"segment 1 .* is gone"):
            read(path, pointers[0])
        with pytest.raises(JournalError, match=r"segment 5 .* does not exist yet"):
            read(path, pointers[0]._replace(segment=5))
        log.close()

    @pytest.mark.parametrize("field", ["offset", "length", "crc"])
    @pytest.mark.parametrize("value", [-1, 0, 5, 10**12])
    def test_wrong_pointer(self, log, path, field, value):
        pointer = log.append([line()])[0]
        with pytest.raises(JournalError, match="damaged"):
            read(path, pointer._replace(**{field: value}))
        with pytest.raises(JournalError, match="numbers instead of 4"):
            read(path, pointer[:3])

    def test_unsafe_segment_is_refused(self, log, path):
        pointer = log.append([line()])[0]
        os.chmod(path, 0o644)
        with pytest.raises(Unauthorized, match="chmod 600"):
            read(path, pointer)
        with pytest.raises(Unauthorized, match="chmod 600"):
            find(path, RECORD.msg_id)

    def test_find_returns_the_newest_of_all_segments(self, path):
        log = Journal(path, segment_bytes=1)
        for number, msg_id in enumerate([*ids(5), ids(5)[1]]):
            log.append([line(msg_id, f"number {number}")])
        found = [find(path, msg_id) for msg_id in ids(5)]
        assert [record and record.body for record in found] == [b"number %d" % number for number in (0, 5, 2, 3, 4)]
        log.close()

    @pytest.mark.parametrize("piece_bytes", [1, 7, 64, 1000])
    def test_find_across_the_borders_of_pieces(self, log, path, monkeypatch, piece_bytes):
        monkeypatch.setattr(lines_module, "PIECE_BYTES", piece_bytes)
        log.append([line(msg_id, "x" * number) for number, msg_id in enumerate(ids(40))])
        for number, msg_id in enumerate(ids(40)):
            record = find(path, msg_id)
            assert record is not None
            assert (record.msg_id, len(record.body)) == (msg_id, number)
        assert find(path, "none00000000") is None

    def test_find_ignores_ids_in_texts(self, log, path):
        log.append([line(text='"msg_id":"fake00000000","kind":'), line(text=',"msg_id":"fake00000000",')])
        assert find(path, "fake00000000") is None

    def test_find_skips_damaged_and_unfinished_lines(self, log, path):
        log.append([line(text="whole")])
        with open(path, "ab") as file:
            file.write(line().replace(b'"kind":"message"', b'"kind":"massage"') + b"\n" + line()[:-3])
        record = find(path, RECORD.msg_id)
        assert record is not None
        assert record.body == b"whole"

    @pytest.mark.parametrize("how", ["read", "find"])
    def test_rotation_during_a_search(self, path, monkeypatch, how):
        """Between the listing and the opening of the files, everything moves by one."""
        log = Journal(path, segment_bytes=1)
        pointers = [log.append([line(msg_id)])[0] for msg_id in ids(3)]
        real = segments_module.segments
        rotations: list[int] = []

        def counted_segments(name: str) -> list[Segment]:
            found = real(name)
            if len(rotations) < 2:
                rotations.append(len(found))
                with monkeypatch.context() as patch:
                    patch.setattr(segments_module, "segments", real)
                    log.append([line("later0000000")])
            return found

        monkeypatch.setattr(segments_module, "segments", counted_segments)
        if how == "read":
            assert read(path, pointers[0]).msg_id == ids(3)[0]
        else:
            assert find(path, ids(3)[0]) == RECORD._replace(msg_id=ids(3)[0])
        assert rotations == [3, 4]
        log.close()

    @pytest.mark.parametrize("how", ["read", "find"])
    def test_rotation_after_the_listing(self, path, monkeypatch, how):
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

    def test_reading_during_writes_and_rotations(self, path):
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


@pytest.fixture
def preads(monkeypatch) -> list[int]:
    """How much was asked for, call by call."""
    calls: list[int] = []
    real = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        calls.append(length)
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    return calls


@pytest.fixture
def listed(monkeypatch) -> list[str]:
    calls: list[str] = []
    real = segments_module.segments

    def counted_segments(path: str) -> list[Segment]:
        calls.append(path)
        return real(path)

    monkeypatch.setattr(segments_module, "segments", counted_segments)
    return calls


@pytest.fixture
def reader(path) -> Iterator[Reader]:
    reader = Reader(path)
    yield reader
    reader.close()


def outcomes(results: list[Record | JournalError]) -> list[Record | str]:
    return [str(result) if isinstance(result, JournalError) else result for result in results]


def outcome(path: str, pointer: Pointer) -> Record | str:
    try:
        return read(path, pointer)
    except JournalError as error:
        return str(error)


WRONG = st.one_of(
    st.fixed_dictionaries({"segment": st.sampled_from([-1, 0, 99, 10**30])}),
    st.fixed_dictionaries({"offset": st.sampled_from([-1, 0, 10**12, 10**30])}),
    st.fixed_dictionaries({"length": st.sampled_from([-1, 0, 5, 900, 10**12, 10**30])}),
    st.fixed_dictionaries({"crc": st.just(1)}),
)


class TestReader:
    @settings(max_examples=60)
    @given(
        st.lists(st.lists(RECORDS, min_size=1, max_size=4), min_size=1, max_size=6),
        st.data(),
        st.sampled_from([1, 400, 10**6]),
    )
    def test_read_many_equals_single_reads(self, batches, data, segment_bytes):
        with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
            patch.setattr(reader_module, "GAP_BYTES", data.draw(st.sampled_from([0, 1, 300, 4096])))
            patch.setattr(reader_module, "RUN_BYTES", data.draw(st.sampled_from([1, 700, 256 * 1024])))
            path = f"{directory}/messages.log"
            log = Journal(path, segment_bytes=segment_bytes, keep=2)
            pointers = []
            for batch in batches:
                pointers += log.append([encode_record(record) for record in batch])
            # Not a record, though its checksum is right.
            pointers += log.append([b"damaged before it was written"])
            log.close()
            asked = data.draw(st.lists(st.sampled_from(pointers), max_size=12))
            for number in data.draw(st.sets(st.integers(0, max(0, len(asked) - 1)), max_size=4)) if asked else ():
                asked[number] = asked[number]._replace(**data.draw(WRONG))
            reader = Reader(path, max_open=data.draw(st.integers(1, 3)))
            expected = [outcome(path, pointer) for pointer in asked]
            assert outcomes(reader.read_many(asked)) == expected
            for pointer, single in zip(asked, expected, strict=True):
                assert outcomes(reader.read_many([pointer])) == [single]
                assert reader.intact(pointer) is (isinstance(single, Record) or "no message record" in single)
            reader.close()

    def test_overlapping_pointers(self, log, path, reader):
        pointers = log.append([line(msg_id) for msg_id in ids(3)])
        end = pointers[2].offset + pointers[2].length
        content = Path(path).read_bytes()[pointers[0].offset : end]
        asked = [Pointer(1, pointers[0].offset, len(content), zlib.crc32(content)), *pointers[:2]]
        assert outcomes(reader.read_many(asked)) == [outcome(path, pointer) for pointer in asked]
        assert "no message record" in str(reader.read_many(asked)[0])

    def test_same_errors_as_read(self, log, path, reader):
        pointer = log.append([line()])[0]
        assert reader.read(pointer) == RECORD
        assert reader.read(list(pointer)) == RECORD
        for wrong in (pointer._replace(crc=1), pointer._replace(segment=2), (1, 2, 3)):
            with pytest.raises(JournalError) as expected:
                read(path, wrong)
            with pytest.raises(JournalError) as raised:
                reader.read(wrong)
            assert str(raised.value) == str(expected.value)
            assert not reader.intact(wrong)

    def test_neighbours_are_read_together(self, log, reader, preads):
        pointers = log.append([line(msg_id) for msg_id in ids(100)])
        reader.read(pointers[0])
        del preads[:]
        assert [record.msg_id for record in reader.read_many(pointers) if isinstance(record, Record)] == ids(100)
        assert preads == [pointers[-1].offset + pointers[-1].length - pointers[0].offset]

    def test_reads_are_bounded(self, log, reader, preads, monkeypatch):
        monkeypatch.setattr(reader_module, "RUN_BYTES", 1000)
        sizes = [10, 10, 10, 5000, 10]
        pointers = log.append([line(text="x" * size) for size in sizes])
        results = reader.read_many(pointers)
        assert [len(record.body) for record in results if isinstance(record, Record)] == sizes
        assert max(preads[:3]) <= 1000  # and from then on the large one, by itself

    def test_large_records_in_a_row(self, log, path, reader, monkeypatch):
        """They are read into one buffer, and none is changed by the next."""
        monkeypatch.setattr(reader_module, "BUFFER_BYTES", 600_000)
        texts = ["a" * 300_000, 'say "b"\n' * 60_000, "ß" * 400_000, "d" * 280_000, "\x01" * 100_000, "f" * 300_001]
        records = [RECORD._replace(body=text.encode()) for text in texts]
        records.append(RECORD._replace(fmt="bytes", body=bytes(range(256)) * 2000))
        records.append(RECORD._replace(body=b"back\\slash" * 40_000))
        pointers = log.append([encode_record(record) for record in records])
        found = [reader.read(pointer) for pointer in [*pointers, *reversed(pointers)]]
        assert found == [*records, *reversed(records)]
        assert reader.read_many(pointers) == records
        assert [read(path, pointer) for pointer in pointers] == records
        assert {type(record.body) for record in found} == {bytes}

    def test_damaged_large_record_costs_no_other(self, log, path, reader):
        lines = [line(msg_id, "x" * 400_000) for msg_id in ids(3)]
        pointers = log.append([lines[0], lines[1][:-2] + b"  ", lines[2]])
        with open(path, "r+b") as file:
            file.seek(pointers[2].offset + 200_000)
            file.write(b"y")
        wrong = [pointers[0]._replace(length=pointers[0].length - 1), pointers[0]._replace(crc=7)]
        results = reader.read_many([*pointers, *wrong])
        assert [type(one) for one in results] == [Record, *[JournalError] * 4]
        assert reader.read(pointers[0]).msg_id == ids(1)[0]
        with open(path, "r+b") as file:
            file.truncate(pointers[0].offset + 100_000)
        with pytest.raises(JournalError):
            reader.read(pointers[0])

    def test_gaps_are_not_read(self, log, reader, preads):
        pointers = log.append([line(), line(text="x" * 100_000), line()])
        reader.read(pointers[0])
        del preads[:]
        reader.read_many([pointers[0], pointers[2]])
        assert preads == [pointers[0].length, pointers[2].length]

    @pytest.mark.parametrize(
        ("field", "value"),
        [*(("length", size) for size in (10**12, 10**30, -5)), *(("offset", at) for at in (10**12, 10**30, -1))],
    )
    def test_hostile_pointer_reads_nothing(self, log, reader, preads, field, value):
        pointer = log.append([line()])[0]
        reader.read(pointer)
        del preads[:]
        wrong = pointer._replace(**{field: value})
        assert isinstance(reader.read_many([wrong])[0], JournalError)
        assert not reader.intact(wrong)
        assert preads == []

    def test_renamed_segment_is_the_same_file(self, path, reader, listed):
        log = Journal(path, segment_bytes=1)
        pointers = log.append([line(ids(1)[0])])
        reader.read(pointers[0])
        for msg_id in ids(4, start=1):
            pointers += log.append([line(msg_id)])
        del listed[:]
        assert reader.read(pointers[0]).msg_id == ids(1)[0]
        assert listed == []
        assert [reader.read(pointer).msg_id for pointer in pointers] == ids(5)
        log.close()

    def test_appended_records_of_an_open_segment(self, log, reader):
        for msg_id in ids(3):
            pointer = log.append([line(msg_id)])[0]
            assert reader.intact(pointer)
            assert reader.read(pointer).msg_id == msg_id

    def test_open_files_are_bounded(self, path):
        log = Journal(path, segment_bytes=1)
        pointers = [log.append([line(msg_id)])[0] for msg_id in ids(6)]
        before = len(os.listdir("/dev/fd"))
        reader = Reader(path, max_open=2)
        assert len(reader.read_many(pointers)) == 6
        reader.read(pointers[4])
        reader.read(pointers[0])
        assert len(os.listdir("/dev/fd")) == before + 2
        reader.close()
        reader.close()
        assert len(os.listdir("/dev/fd")) == before
        for use in (reader.read, reader.intact):
            with pytest.raises(JournalError, match="closed"):
                use(pointers[0])
        with pytest.raises(JournalError, match="closed"):
            reader.read_many([])
        log.close()

    def test_deleted_segment_is_read_until_it_is_pushed_out(self, path):
        log = Journal(path, segment_bytes=1, keep=1)
        reader = Reader(path, max_open=1)
        first = log.append([line()])[0]
        reader.read(first)
        for msg_id in ids(3):
            last = log.append([line(msg_id)])[0]
        assert reader.read(first) == RECORD
        reader.read(last)
        with pytest.raises(SegmentGone, match=r"segment 1 .* is gone"):
            reader.read(first)
        reader.close()
        log.close()

    def test_missing_segment_is_not_searched_twice(self, path, reader, listed):
        log = Journal(path, segment_bytes=1)
        pointers = [log.append([line(msg_id)])[0] for msg_id in ids(3)]
        log.close()
        os.rename(path + ".1", path + ".kept")
        os.utime(os.path.dirname(path), ns=(1, 1))
        assert not reader.intact(pointers[1])
        del listed[:]
        assert not reader.intact(pointers[1])
        assert isinstance(reader.read_many([pointers[1]])[0], SegmentGone)
        assert listed == []
        # But it does when the directory has changed.
        os.rename(path + ".kept", path + ".1")
        assert not reader.intact(pointers[1]._replace(segment=-1))
        assert os.stat(os.path.dirname(path)).st_mtime_ns != 1
        assert reader.intact(pointers[1])

    def test_future_segment_is_searched_each_time(self, path, reader):
        log = Journal(path, segment_bytes=1)
        pointer = log.append([line()])[0]
        os.utime(os.path.dirname(path), ns=(1, 1))
        with pytest.raises(JournalError, match="does not exist yet"):
            reader.read(pointer._replace(segment=2))
        later = log.append([line()])[0]
        os.utime(os.path.dirname(path), ns=(1, 1))  # two changes may have the same time
        assert reader.read(later) == RECORD
        log.close()

    def test_unsafe_segment(self, log, path, reader):
        pointer = log.append([line()])[0]
        os.chmod(path, 0o644)
        with pytest.raises(JournalError, match="chmod 600"):
            reader.read(pointer)
        assert not reader.intact(pointer)
        os.chmod(path, 0o600)
        assert reader.read(pointer) == RECORD

    def test_lack_of_descriptors(self, log, reader, monkeypatch):
        def too_many(*_: object) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        pointer = log.append([line()])[0]
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", too_many)
            with pytest.raises(JournalError, match="Too many open files"):
                reader.read(pointer)
            assert not reader.intact(pointer)
        assert reader.read(pointer) == RECORD

    def test_failing_disk_fails_one_segment(self, path, reader, monkeypatch):
        log = Journal(path, segment_bytes=2000)
        pointers = [*log.append([line(text="x" * 900), line(text="y" * 900)]), *log.append([line()])]
        reader.read_many(pointers)
        real = os.pread

        def pread(fd: int, length: int, offset: int) -> bytes:
            if offset == pointers[1].offset:
                raise OSError(errno.EIO, "Input/output error")
            return real(fd, length, offset)

        monkeypatch.setattr(os, "pread", pread)
        monkeypatch.setattr(reader_module, "RUN_BYTES", 1000)
        first, second, third = reader.read_many(pointers)
        assert isinstance(first, Record)
        assert third == RECORD
        with pytest.raises(JournalError, match="Input/output error"):
            reader.read(pointers[1])
        assert isinstance(second, JournalError)
        assert [reader.intact(pointer) for pointer in pointers] == [True, False, True]
        log.close()

    def test_segment_that_was_cut(self, log, path, reader):
        pointers = log.append([line(msg_id) for msg_id in ids(3)])
        reader.read_many(pointers)
        os.truncate(path, pointers[1].offset + 5)
        results = reader.read_many(pointers)
        assert [isinstance(result, JournalError) for result in results] == [False, True, True]
        assert [reader.intact(pointer) for pointer in pointers] == [True, False, False]

    def test_segment_that_is_cut_while_it_is_read(self, log, path, reader, monkeypatch):
        pointers = log.append([line(msg_id) for msg_id in ids(3)])
        reader.read_many(pointers)
        real = os.pread

        def pread(fd: int, length: int, offset: int) -> bytes:
            os.truncate(path, pointers[1].offset + 5)
            return real(fd, length, offset)

        monkeypatch.setattr(os, "pread", pread)
        # Nothing has the checksum 0, but is no record for that.
        asked = [*pointers[:2], pointers[2]._replace(crc=0)]
        results = reader.read_many(asked)
        assert ["ask its sender" in str(result) for result in results] == [False, True, True]
        monkeypatch.setattr(os, "pread", lambda *_: b"")
        assert not reader.intact(pointers[0]._replace(crc=0))

    @pytest.mark.parametrize("piece_bytes", [1, 7, 100, 10**6])
    def test_intact_across_the_borders_of_pieces(self, log, path, reader, monkeypatch, piece_bytes, preads):
        pointer = log.append([line(text="x" * 500)])[0]
        reader.read(pointer)
        monkeypatch.setattr(reader_module, "PIECE_BYTES", piece_bytes)
        del preads[:]
        assert reader.intact(pointer)
        assert max(preads) <= piece_bytes
        content = bytearray(Path(path).read_bytes())
        content[-3] ^= 1
        Path(path).write_bytes(content)
        assert not reader.intact(pointer)
        os.truncate(path, len(content) - 2)
        assert not reader.intact(pointer)


class TestReadHead:
    TEXT = ('an "ä"\n\\' * 400_000).encode()

    def test_returns_the_beginning_of_the_text(self, log, reader, preads):
        (large,) = log.append([encode_record(RECORD._replace(body=self.TEXT))])
        head = reader.read_head(large, RECORD.msg_id, 4096)
        assert len(head) >= 4096 and self.TEXT.startswith(head)
        assert sum(preads) < 10 * HEAD_BYTES, "no more of it is read"
        (short,) = log.append([encode_record(RECORD._replace(body=b"short"))])
        assert reader.read_head(short, RECORD.msg_id, 4096) == b"short"

    def test_other_records_and_pointers_are_refused(self, log, reader):
        text, value = log.append([encode_record(RECORD), encode_record(RECORD._replace(fmt="bytes", body=b"x"))])
        segment, offset, length, crc = text
        for pointer, msg_id in (
            (text, "another00000"),
            (value, RECORD.msg_id),
            ((segment, offset, length + 10**9, crc), RECORD.msg_id),
            ((segment, offset + 10**9, length, crc), RECORD.msg_id),
        ):
            with pytest.raises(JournalError, match="damaged"):
                reader.read_head(pointer, msg_id, 10)
        with pytest.raises(JournalError, match="numbers instead of 4"):
            reader.read_head((1, 2), RECORD.msg_id, 10)
        reader.close()
        with pytest.raises(JournalError, match="closed"):
            reader.read_head(text, RECORD.msg_id, 10)


def recent_by_a_full_parse(path: str, records: int, limit_bytes: int) -> dict[str, Earlier]:
    newest_first: list[Record] = []
    for _, _, name in segments(path):
        content = Path(name).read_bytes()
        end = len(content)
        for number, text in enumerate(reversed(content.split(b"\n"))):
            start = end - len(text)
            if number and limit_bytes >= len(content) - start:
                try:
                    record = decode_record(text)
                except JournalError:
                    pass
                else:
                    if record.kind in ("message", "broadcast"):
                        newest_first.append(record)
            end = start - 1
        limit_bytes -= len(content)
    found: dict[str, Earlier] = {}
    for age, record in reversed([*enumerate(newest_first[: max(0, records)])]):
        first = found.get(record.msg_id)
        place = records - age if first is None else first.place
        found[record.msg_id] = Earlier(record.from_session, record.to_session_id, place)
    return found


GARBAGE = st.sampled_from([b"", b"{}", b"hello", b"\xff" * 40, line()[:60], line()[20:], b'{"ts":"2026-01-02"', b"[1]"])


class TestRecent:
    @given(
        st.lists(st.lists(RECORDS.map(encode_record) | GARBAGE, min_size=1, max_size=5), max_size=6),
        st.integers(-1, 12),
        st.integers(-1, 6000) | st.just(10**9),
        st.sampled_from([1, 50, 400, 10**6]),
        st.sampled_from([1, 400, 10**6]),
        st.sampled_from([b"", b"half a li", line(), b"x" * 900]),
    )
    def test_equals_a_full_parse(self, batches, records, limit_bytes, piece_bytes, segment_bytes, torn):
        with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
            path = f"{directory}/messages.log"
            log = Journal(path, segment_bytes=segment_bytes)
            for batch in batches:
                log.append(batch)
            log.close()
            with open(path, "ab") as file:
                file.write(torn)
            expected = recent_by_a_full_parse(path, records, limit_bytes)
            patch.setattr(lines_module, "PIECE_BYTES", piece_bytes)
            found = recent(path, records=records, limit_bytes=limit_bytes)
            assert found == expected

    @pytest.mark.parametrize("segment_bytes", [1, 700, 10**6])
    def test_limit_at_any_byte(self, path, monkeypatch, segment_bytes):
        log = Journal(path, segment_bytes=segment_bytes)
        for number, msg_id in enumerate(ids(4)):
            log.append([line(msg_id, "x" * number)])
        log.close()
        size = sum(os.path.getsize(name) for _, _, name in segments(path))
        for piece_bytes in (100, 1000):
            monkeypatch.setattr(lines_module, "PIECE_BYTES", piece_bytes)
            for limit_bytes in range(size + 2):
                found = recent(path, records=10, limit_bytes=limit_bytes)
                assert list(found) == list(recent_by_a_full_parse(path, 10, limit_bytes))

    def test_later_record_with_the_same_id_counts(self, path):
        log = Journal(path, segment_bytes=1)
        for to in ("a", "b", "c"):
            log.append([line("other0000000"), encode_record(RECORD._replace(to_session_id=to))])
        found = recent(path, records=100, limit_bytes=10**6)
        assert found[RECORD.msg_id][:2] == (RECORD.from_session, "c")
        assert found[RECORD.msg_id].place == found["other0000000"].place + 1  # the places of the first batch
        assert list(found) == ["other0000000", RECORD.msg_id]
        log.close()

    def test_large_records_are_not_read_completely(self, log, path):
        bodies = [b"x", b"y" * 3_000_000, b"z", b'"' * 40_000, b'"to_session_id":"x",' * 100_000]
        log.append(
            [
                encode_record(RECORD._replace(msg_id=msg_id, to_session_id=msg_id, body=body))
                for msg_id, body in zip(ids(5), bodies, strict=True)
            ]
        )
        heads = []

        def counted(head: bytes) -> tuple[str, str, str | None] | None:
            heads.append(len(head))
            return decode_ids(head)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reader_module, "decode_ids", counted)
            found = recent(path, records=100, limit_bytes=10**9)
        assert {msg_id: seen[:2] for msg_id, seen in found.items()} == {i: (RECORD.from_session, i) for i in ids(5)}
        assert [seen.place for seen in found.values()] == [96, 97, 98, 99, 100]
        assert max(heads) == HEAD_BYTES

    def test_requests_and_answers_are_not_counted(self, log, path):
        first, *others, last = ids(20)
        work = [
            encode_record(RECORD._replace(msg_id=one, kind=kind)) for one in others for kind in ("request", "answer")
        ]
        log.append([line(first), *work, line(last)])
        found = recent(path, records=2, limit_bytes=10**9)
        assert list(found) == [first, last]
        assert [seen.place for seen in found.values()] == [1, 2]

    def test_stops_after_enough_records(self, log, path, preads):
        log.append([line(msg_id, "x" * 10_000) for msg_id in ids(1000)])
        assert list(recent(path, records=5, limit_bytes=10**9)) == ids(5, start=995)
        assert sum(preads) < 3 * lines_module.PIECE_BYTES

    @pytest.mark.parametrize("end", [b"\n", b""])
    def test_reads_no_more_than_its_limit(self, log, path, preads, end):
        """Not even where there is no end of a line for a long way."""
        log.append([line()])
        with open(path, "ab") as file:
            file.write(b"\0" * 10_000_000 + end)
        assert recent(path, records=5, limit_bytes=1_000_000) == {}
        assert sum(preads) < 4 * 1_000_000

    def test_log_cut_meanwhile(self, log, path, monkeypatch):
        pointers = log.append([line(msg_id) for msg_id in ids(3)])
        real = lines_module.find_backward

        def find_back(*arguments: Any) -> int:
            found = real(*arguments)
            os.truncate(path, pointers[2].offset - 3)
            return found

        monkeypatch.setattr(lines_module, "find_backward", find_back)
        assert ids(2)[1] not in recent(path, records=5, limit_bytes=10**6)

    def test_missing_log(self, tmp_path):
        assert recent(str(tmp_path / "none" / "messages.log"), records=5, limit_bytes=10**6) == {}

    def test_unsafe_and_unreadable(self, log, path, monkeypatch):
        os.chmod(path, 0o644)
        with pytest.raises(Unauthorized, match="chmod 600"):
            recent(path, records=5, limit_bytes=10**6)
        os.chmod(path, 0o600)

        def broken(*_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "pread", broken)
        with pytest.raises(JournalError, match="Input/output error"):
            recent(path, records=5, limit_bytes=10**6)
