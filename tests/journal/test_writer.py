"""The writer of the log: batches, rotation, failed writes, recovery, and syncing to the disk."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.records import RECORD, encode_record, ids, line, records_of
from zmqbus.errors import BrokerUnavailable, Unauthorized
from zmqbus.journal import writer
from zmqbus.journal.large_record import escape_body
from zmqbus.journal.reader import Pointer, find, read
from zmqbus.journal.record import JournalError, encode, splice_line
from zmqbus.journal.segments import segments
from zmqbus.journal.writer import Journal, JournalFull
from zmqbus.wire.msg_ids import IdMaker


def serials(path: str) -> list[int]:
    return [segment.serial for segment in segments(path)]


def lines_of(name: str) -> list[bytes]:
    return Path(name).read_bytes().split(b"\n")


class TestGrep:
    def test_prints_the_whole_message(self, log, path):
        """The exact command of the contract, after later messages that quote the id in many ways."""
        body = "first line\nline two\u2028" + "x" * 100_000
        make = IdMaker()
        msg_id, answer_id = make(), make()
        answer = RECORD._replace(msg_id=answer_id, reply_to=msg_id)
        mentions = [
            f"done: {msg_id} and [inter-session msg={msg_id}] again",
            f"as in msg={msg_id}",
            f"see {msg_id}",
            msg_id,
            f'"msg_id":"{msg_id}"',
            f"x{msg_id}y\\{msg_id}",
            f"{msg_id} " * 1000,  # long enough for another way of writing it
        ]
        later = [
            answer,
            *(RECORD._replace(msg_id=make(), body=text.encode()) for text in mentions),
            RECORD._replace(msg_id=make(), from_name=f"about-{msg_id}", from_label=msg_id, to=msg_id),
        ]
        alike = [f"and {msg_id} too".encode()] * 3
        log.append([encode_record(RECORD._replace(msg_id=msg_id, body=body.encode()))])
        log.append([encode_record(record) for record in later])
        log.append(encode(records_of(RECORD)._replace(msg_ids=[make() for _ in alike], bodies=alike)))
        command = f"grep -F '{msg_id}' {path} | tail -1"
        printed = subprocess.run(command, shell=True, capture_output=True, check=True).stdout
        assert json.loads(printed)["text"] == body
        command = f"grep -F '{answer_id}' {path} | tail -1"
        printed = subprocess.run(command, shell=True, capture_output=True, check=True).stdout
        assert json.loads(printed)["reply_to"] == msg_id


class TestWriting:
    def test_pointers_lead_to_the_records(self, log, path):
        lines = [line(msg_id, f"text {msg_id}") for msg_id in ids(5)]
        pointers = [*log.append(lines[:1]), *log.append(lines[1:])]
        assert [read(path, pointer).msg_id for pointer in pointers] == ids(5)
        assert pointers[3] == Pointer(1, pointers[2].offset + len(lines[2]) + 1, len(lines[3]), zlib.crc32(lines[3]))
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
        assert log.recovered is None

    @pytest.mark.parametrize("others", [0, 3, 600])
    @pytest.mark.parametrize("size_bytes", [100, 70_000, 1_000_000])
    def test_lines_with_bodies_that_the_sender_escaped(self, log, path, size_bytes, others):
        """Of any size, among other lines: pointers and checksums are right."""
        record = RECORD._replace(msg_id="escaped00000", body=b'say "x"\n' * (size_bytes // 8))
        text = escape_body("text", record.body)
        spliced = splice_line(records_of(record), text, zlib.crc32(text))
        plain = [line(msg_id, f"text {msg_id}") for msg_id in ids(others)]
        pointers = log.append([*plain[:2], spliced, *plain[2:], spliced])
        assert len(pointers) == others + 2
        assert [read(path, pointer).body for pointer in (pointers[min(2, others)], pointers[-1])] == [record.body] * 2
        assert [read(path, pointer).msg_id for pointer in pointers].count("escaped00000") == 2
        assert Path(path).read_bytes().count(b"\n") == others + 3

    def test_wrong_checksum_costs_only_its_line(self, log, path):
        text = escape_body("text", b"x" * 70_000)
        spliced = splice_line(records_of(RECORD), text, zlib.crc32(text) ^ 1)
        before, bad, behind = log.append([line("one111111111"), spliced, line("two222222222")])
        assert [read(path, one).msg_id for one in (before, behind)] == ["one111111111", "two222222222"]
        with pytest.raises(JournalError, match="damaged"):
            read(path, bad)

    def test_empty_batch_writes_nothing(self, log, path):
        before = os.path.getsize(path)
        assert log.append([]) == []
        assert os.path.getsize(path) == before

    @pytest.mark.parametrize("sizes", [[10_000_000], [300_000, 10, 500_000], [1000] * 600, [10] * 3000])
    def test_batches_of_all_shapes(self, log, path, sizes):
        lines = [line(msg_id, "é" * (size // 2)) for msg_id, size in zip(ids(len(sizes)), sizes, strict=True)]
        pointers = log.append(lines)
        assert lines_of(path)[1:-1] == lines
        for number in {0, len(sizes) // 2, len(sizes) - 1}:
            assert read(path, pointers[number]).body == b"\xc3\xa9" * (sizes[number] // 2)

    @pytest.mark.parametrize("count", [1, 400])
    def test_batch_is_one_write(self, log, monkeypatch, count):
        calls: list[int] = []
        real = os.writev

        def counted(fd: int, buffers: list[bytes]) -> int:
            calls.append(len(buffers))
            return real(fd, buffers)

        monkeypatch.setattr(os, "writev", counted)
        monkeypatch.setattr(os, "write", None)
        log.append([line()] * count)
        assert len(calls) == 1

    def test_continues_an_existing_log(self, path):
        first = Journal(path)
        old = first.append([line(ids(1)[0])])
        first.close()
        second = Journal(path)
        new = second.append([line(ids(2)[1])])
        second.close()
        assert second.recovered is None
        assert new[0].segment == old[0].segment
        assert [read(path, pointer).msg_id for pointer in old + new] == ids(2)

    def test_closed_journal_refuses_lines(self, log):
        log.close()
        log.close()
        with pytest.raises(JournalError, match="closed"):
            log.append([line()])

    def test_missing_directory_is_made(self, tmp_path):
        Journal(str(tmp_path / "a" / "messages.log")).close()
        assert stat.S_IMODE(os.lstat(tmp_path / "a").st_mode) == 0o700

    @pytest.mark.parametrize("suffix", ["", ".1", ".new"])
    @pytest.mark.parametrize("fault", ["link", "others"])
    def test_unsafe_files_are_refused(self, path, tmp_path, suffix, fault):
        small = Journal(path, segment_bytes=1)
        small.append([line()])
        if fault == "link":
            (tmp_path / "elsewhere").touch()
            if suffix != ".1":
                Path(path).rename(path + ".1")
            os.symlink(tmp_path / "elsewhere", path + suffix)
        else:
            Path(path + suffix).touch()
            os.chmod(path + suffix, 0o640)
        with pytest.raises(JournalError, match=r"symbolic link|chmod 600") as error:
            small.append([line()])
            small.append([line()])
        assert isinstance(error.value, BrokerUnavailable)
        if suffix == "":
            with pytest.raises(Unauthorized):
                Journal(path)
        small.close()
        assert (tmp_path / "elsewhere").exists() is (fault == "link")
        if fault == "link":
            assert not (tmp_path / "elsewhere").read_bytes()


class TestRotation:
    def test_rotates_before_a_batch_that_does_not_fit(self, path):
        size = len(line()) + 1
        log = Journal(path, segment_bytes=100 + 3 * size)
        pointers = [log.append([line(msg_id)])[0] for msg_id in ids(9)]
        assert [pointer.segment for pointer in pointers] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
        assert log.segment == 3
        assert segments(path) == [(0, 3, path), (1, 2, path + ".1"), (2, 1, path + ".2")]
        assert all(os.path.getsize(name) <= 100 + 3 * size for _, _, name in segments(path))
        assert [read(path, pointer).msg_id for pointer in pointers] == ids(9)
        log.close()

    def test_large_batch_goes_into_one_segment(self, path):
        log = Journal(path, segment_bytes=500)
        log.append([line()])
        pointers = log.append([line(msg_id) for msg_id in ids(50)])
        assert {pointer.segment for pointer in pointers} == {2}
        # An empty segment is not rotated: it would not make room.
        assert len(segments(path)) == 2
        log.close()

    def test_five_segments_stay_and_serials_rise(self, path):
        log = Journal(path, segment_bytes=1)
        for msg_id in ids(12):
            log.append([line(msg_id)])
        assert serials(path) == [12, 11, 10, 9, 8, 7]
        assert sorted(os.listdir(os.path.dirname(path))) == [
            "messages.log",
            *(f"messages.log.{n}" for n in range(1, 6)),
        ]
        log.close()
        again = Journal(path, segment_bytes=1)
        assert again.append([line()])[0].segment == 13
        again.close()

    def test_segments_that_mail_points_into_stay(self, path):
        log = Journal(path, segment_bytes=1, keep=2)
        pointers = [log.append([line(msg_id)], oldest_needed=3)[0] for msg_id in ids(12)]
        assert serials(path) == [12, 11, 10, 9, 8, 7, 6, 5, 4, 3]
        assert read(path, pointers[2]).msg_id == ids(12)[2]
        log.append([line()], oldest_needed=9)
        assert serials(path) == [13, 12, 11, 10, 9]
        log.append([line()])
        assert serials(path) == [14, 13, 12]
        log.close()

    def test_oldest_needed_is_asked_only_before_a_deletion(self, path):
        asked: list[int] = []
        log = Journal(path, segment_bytes=1, keep=2)
        for number in range(1, 6):

            def needed(number: int = number) -> None:
                asked.append(number)

            log.append([line()], oldest_needed=needed)
        assert asked == [4, 5]
        log.close()

    def test_segment_that_cannot_be_deleted_refuses_no_mail(self, path, monkeypatch):
        def denied(_: str) -> None:
            raise PermissionError(errno.EPERM, "not permitted")

        log = Journal(path, segment_bytes=1, keep=1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", denied)
            for msg_id in ids(4):
                log.append([line(msg_id)])
        assert len(segments(path)) == 4
        log.append([line()])
        assert len(segments(path)) == 2
        log.close()

    @pytest.mark.parametrize("killed_at", range(4))
    @pytest.mark.parametrize("restart", [True, False])
    def test_rotation_killed_at_any_step_loses_nothing(self, path, monkeypatch, killed_at, restart):
        class Killed(BaseException):
            pass

        log = Journal(path, segment_bytes=1)
        pointers = [log.append([line(msg_id)])[0] for msg_id in ids(3)]
        real, calls = os.rename, []

        def rename(source: str, target: str) -> None:
            calls.append(source)
            if len(calls) == killed_at + 1:
                raise Killed if restart else OSError(errno.EIO, "Input/output error")
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            with pytest.raises(Killed if restart else JournalError):
                log.append([line("never0000000")])
        if restart:
            log.close()
            log = Journal(path, segment_bytes=1)
        pointers += [log.append([line(msg_id)])[0] for msg_id in ids(2, start=3)]
        log.close()
        assert [read(path, pointer).msg_id for pointer in pointers] == ids(5)
        assert len({pointer.segment for pointer in pointers}) == 5
        found = serials(path)
        assert found == sorted(set(found), reverse=True)
        assert find(path, "never0000000") is None
        assert not os.path.exists(path + ".new")

    def test_full_disk_renames_nothing(self, path, monkeypatch):
        def full(fd: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        log = Journal(path, segment_bytes=1)
        log.append([line()])
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(JournalFull, match="No space left"):
                log.append([line()])
        assert segments(path) == [(0, 1, path)]
        assert log.append([line()])[0].segment == 2
        log.close()


class TestFailedWrites:
    @pytest.mark.parametrize("taken", [0, 1, 50, 300])
    def test_failed_write_leaves_no_half_batch(self, log, path, monkeypatch, taken):
        log.append([line("before000000")])
        before = Path(path).read_bytes()
        real = os.writev

        def short(fd: int, buffers: list[bytes]) -> int:
            if not taken:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(fd, [b"".join(buffers)[:taken]])

        def full(fd: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", short)
            patch.setattr(os, "write", full)
            with pytest.raises(JournalFull, match="make room"):
                log.append([line(msg_id) for msg_id in ids(3)])
        assert Path(path).read_bytes() == before
        pointer = log.append([line("after0000000")])[0]
        assert pointer.offset == len(before)
        assert read(path, pointer).msg_id == "after0000000"
        assert log.recovered is None

    def test_short_write_is_continued(self, log, path, monkeypatch):
        real = os.writev
        monkeypatch.setattr(os, "writev", lambda fd, buffers: real(fd, [b"".join(buffers)[:7]]))
        pointers = log.append([line(msg_id) for msg_id in ids(3)])
        assert [read(path, pointer).msg_id for pointer in pointers] == ids(3)

    def test_failed_write_is_cut_off_before_the_next_batch(self, log, path, monkeypatch):
        real = os.writev

        def broken(*_: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        def short(fd: int, buffers: list[bytes]) -> int:
            real(fd, [b"".join(buffers)[: len(line()) + 9]])
            return broken()

        before = Path(path).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", short)
            patch.setattr(os, "ftruncate", broken)
            for _ in range(2):
                with pytest.raises(JournalError, match="Input/output error"):
                    log.append([line(), line()])
        assert len(Path(path).read_bytes()) == len(before) + len(line()) + 9
        pointer = log.append([line()])[0]
        assert pointer.offset == len(before)
        assert Path(path).read_bytes() == before + line() + b"\n"
        assert log.recovered is None

    def test_file_size_limit_of_the_kernel(self, path):
        """EFBIG from the kernel: first a short write, then the error. Python ignores SIGXFSZ."""
        code = """
import os, resource, sys
from zmqbus.journal.writer import Journal, JournalFull
from tests_line import line
log = Journal(sys.argv[1])
log.append([line])
size = os.path.getsize(sys.argv[1])
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for room in (0, 1, len(line), 2 * len(line) + 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
    try:
        log.append([line] * 3)
    except JournalFull as error:
        assert "File too large" in str(error), error
    else:
        sys.exit("was written")
    assert os.path.getsize(sys.argv[1]) == size
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
print(*log.append([line])[0])
"""
        module = Path(os.path.dirname(path), "tests_line.py")
        module.write_text(f"line = {line()!r}\n")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(module.parent), *filter(None, sys.path)])}
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=env)
        assert (done.stderr, done.returncode) == ("", 0)
        assert read(path, [int(part) for part in done.stdout.split()]) == RECORD
        assert lines_of(path)[1:] == [line(), line(), b""]


class TestRecovery:
    def test_torn_line_is_cut_and_reported(self, path):
        log = Journal(path)
        pointer = log.append([line()])[0]
        log.close()
        with open(path, "ab") as file:
            file.write(line()[:40])
        log = Journal(path)
        assert log.recovered is not None
        assert "40 bytes" in log.recovered
        assert log.append([line()])[0].offset == pointer.offset + pointer.length + 1
        assert read(path, pointer) == RECORD
        log.close()

    def test_every_prefix_of_the_log_can_be_continued(self, path):
        log = Journal(path)
        pointers = log.append([line(msg_id) for msg_id in ids(2)])
        log.close()
        whole = Path(path).read_bytes()
        for length in range(len(whole) + 1):
            Path(path).write_bytes(whole[:length])
            log = Journal(path)
            new = log.append([line("new000000000")])[0]
            log.close()
            kept = [pointer for pointer in pointers if pointer.offset + pointer.length < length]
            assert [read(path, pointer).msg_id for pointer in [*kept, new]] == [*ids(2)[: len(kept)], "new000000000"]
            assert (log.recovered is None) is (length == 0 or whole[length - 1 : length] == b"\n")
            assert segments(path) == [(0, 1, path)]
            assert b"\n" not in lines_of(path) and lines_of(path)[-1] == b""

    @given(st.data())
    def test_flipped_bit_is_noticed(self, data):
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/messages.log"
            log = Journal(path)
            pointers = log.append([line(msg_id) for msg_id in ids(3)])
            log.close()
            content = bytearray(Path(path).read_bytes())
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            Path(path).write_bytes(content)
            for again in range(2):
                for msg_id, pointer in zip(ids(3), pointers, strict=True):
                    try:
                        assert read(path, pointer).msg_id == msg_id
                    except JournalError:
                        pass
                for msg_id in ids(3):
                    record = find(path, msg_id)
                    assert record is None or record.msg_id == msg_id
                if not again:
                    log = Journal(path)
                    assert read(path, log.append([line("new000000000")])[0]).msg_id == "new000000000"
                    log.close()

    @pytest.mark.parametrize(
        "content",
        [
            b"from another program\n",
            b"no line at all",
            line() + b"\n",
            b'{"kind":"segment","segment":0,"format":1,"created":"2026-01-02T03:04:05Z"}\n',
            b'{"kind":"segment","segment":1,"format":2,"created":"2026-01-02T03:04:05Z"}\n',
            b'{"kind":"segment","segment":' + b"1" * 1000,
            b"\0" * 1000,
        ],
        ids=["text", "bytes", "record", "zero", "format", "endless", "nothing"],
    )
    def test_file_that_is_no_segment_is_set_aside(self, path, content):
        Path(path).write_bytes(content)
        os.chmod(path, 0o600)
        log = Journal(path)
        assert log.recovered is not None
        assert "aside" in log.recovered
        pointer = log.append([line()])[0]
        assert Path(path + ".1").read_bytes() == content
        assert read(path, pointer) == RECORD
        assert segments(path) == [(0, 1, path), (1, 0, path + ".1")]
        log.close()

    def test_segment_without_a_serial_stays_while_mail_waits(self, path):
        Path(path).write_bytes(b"damaged\n")
        os.chmod(path, 0o600)
        log = Journal(path, segment_bytes=1, keep=1)
        for _ in range(4):
            log.append([line()], oldest_needed=4)
        assert serials(path) == [4, 3, 0]
        log.append([line()])
        assert serials(path) == [5, 4]
        log.close()

    def test_serial_rises_where_the_log_is_missing(self, path):
        log = Journal(path, segment_bytes=1)
        pointers = [log.append([line(msg_id)])[0] for msg_id in ids(3)]
        log.close()
        os.unlink(path)
        log = Journal(path)
        assert log.append([line()])[0].segment == 3
        assert read(path, pointers[1]).msg_id == ids(3)[1]
        log.close()

    @pytest.mark.parametrize("what", ["cut", "shortened", "removed", "moved", "replaced"])
    def test_log_changed_by_another_program(self, log, path, what):
        old = log.append([line(msg_id) for msg_id in ids(3)])
        if what == "cut":
            os.truncate(path, 0)
        elif what == "shortened":
            os.truncate(path, old[1].offset)
        elif what == "removed":
            os.unlink(path)
        else:
            os.rename(path, path + ".bak")
            if what == "replaced":
                Path(path).touch(mode=0o600)
        new = log.append([line("new000000000")])[0]
        assert new.segment == 2
        assert read(path, new).msg_id == "new000000000"
        assert log.recovered is not None
        for pointer in old[1:]:
            with pytest.raises(JournalError):
                read(path, pointer)

    def test_log_appended_by_another_program(self, log, path):
        old = log.append([line(ids(1)[0])])[0]
        with open(path, "ab") as file:
            file.write(b"hello\nhalf a li")
        new = log.append([line("new000000000")])[0]
        assert [read(path, pointer).msg_id for pointer in (old, new)] == [ids(1)[0], "new000000000"]
        assert lines_of(path)[2] == b"hello"
        assert log.recovered is not None
        assert "something else" in log.recovered


class Disk:
    """Records the inodes that are synced; each of `errors` is raised by one sync."""

    def __init__(self) -> None:
        self.synced: list[int] = []
        self.errors: list[int] = []

    def fsync(self, fd: int) -> None:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        self.synced.append(os.fstat(fd).st_ino)

    def took(self, *names: str) -> bool:
        """Whether exactly these files were synced since the last call, in this order."""
        synced, self.synced = self.synced, []
        return synced == [os.stat(name).st_ino for name in names]


@pytest.fixture
def disk(monkeypatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    monkeypatch.setattr(writer, "_FULL_SYNC", None)
    return disk


class TestSync:
    def test_sync_on_a_real_disk(self, log):
        log.append([line()])
        log.sync()
        log.sync()

    def test_new_log_and_its_name(self, log, path, disk):
        log.sync()
        assert disk.took(path, os.path.dirname(path))

    def test_only_new_lines_are_synced(self, log, path, disk):
        log.sync()
        disk.took()
        log.sync()
        log.append([])
        log.sync()
        assert disk.took()
        log.append([line()])
        log.append([line()])
        log.sync()
        log.sync()
        assert disk.took(path)

    def test_continued_log_is_synced(self, path, disk):
        Journal(path).close()
        log = Journal(path)
        log.sync()
        assert disk.took(path, os.path.dirname(path))
        log.close()

    def test_rotated_segments_are_synced(self, path, disk):
        log = Journal(path, segment_bytes=1)
        log.append([line()])
        log.sync()
        disk.took()
        for _ in range(3):
            log.append([line()])
        log.sync()
        assert disk.took(path, path + ".1", path + ".2", os.path.dirname(path))
        log.append([line()])
        log.sync()
        assert disk.took(path, os.path.dirname(path))
        log.close()

    def test_deleted_segment_is_not_synced(self, path, disk):
        log = Journal(path, segment_bytes=1, keep=1)
        for _ in range(4):
            log.append([line()])
        log.sync()
        assert disk.took(path, path + ".1", os.path.dirname(path))
        log.close()

    def test_moved_log_is_not_synced(self, log, path, disk):
        log.sync()
        disk.took()
        log.append([line()])
        os.rename(path, path + ".bak")
        log.append([line()])
        log.sync()
        assert disk.took(path, os.path.dirname(path))

    @pytest.mark.parametrize("failing", range(3))
    def test_names_are_synced_after_an_interrupted_rotation(self, path, monkeypatch, disk, failing):
        log = Journal(path, segment_bytes=1)
        log.append([line()])
        log.append([line()])
        log.sync()
        disk.took()
        real, calls = os.rename, []

        def rename(source: str, target: str) -> None:
            calls.append(source)
            if len(calls) == failing + 1:
                raise OSError(errno.EIO, "Input/output error")
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            with pytest.raises(JournalError):
                log.append([line()])
        log.sync()
        assert disk.took(os.path.dirname(path))
        log.append([line()])
        log.sync()
        assert os.stat(path).st_ino in disk.synced
        assert os.stat(os.path.dirname(path)).st_ino in disk.synced
        log.close()

    @pytest.mark.parametrize(
        ("number", "kind"), [(errno.EIO, JournalError), (errno.ENOSPC, JournalFull), (errno.EDQUOT, JournalFull)]
    )
    @pytest.mark.parametrize("what", ["data", "name"])
    def test_sync_fails_for_ever_after_the_disk_refused(self, log, disk, number, kind, what):
        if what == "data":
            log.sync()
        log.append([line()])
        disk.errors = [number]
        with pytest.raises(kind, match=r"power cut.*restart the broker") as first:
            log.sync()
        # The log still takes lines, but no sync succeeds any more.
        log.append([line()])
        with pytest.raises(kind) as second:
            log.sync()
        assert str(first.value) == str(second.value)
        assert first.value is not second.value  # it would grow by a traceback each time

    def test_sync_is_retried_after_other_errors(self, path, monkeypatch, disk):
        def too_many(*_: object) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        log = Journal(path, segment_bytes=1)
        log.append([line()])
        log.append([line()])
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", too_many)
            with pytest.raises(JournalError, match="Too many open files"):
                log.sync()
        os.chmod(path + ".1", 0o644)
        with pytest.raises(JournalError, match="chmod 600"):
            log.sync()
        os.chmod(path + ".1", 0o600)
        disk.took()
        log.sync()
        assert disk.took(path + ".1", os.path.dirname(path))
        log.close()

    def test_full_sync_where_the_system_has_it(self, log, monkeypatch):
        calls: list[int] = []
        monkeypatch.setattr(writer, "_FULL_SYNC", 51)
        monkeypatch.setattr(fcntl, "fcntl", lambda fd, command: calls.append(command))
        log.sync()
        assert calls == [51, 51]

    def test_closed_journal_cannot_be_synced(self, log):
        log.close()
        with pytest.raises(JournalError, match="closed"):
            log.sync()

    def test_leaves_no_descriptor_open(self, path, disk):
        before = len(os.listdir("/dev/fd"))
        log = Journal(path, segment_bytes=1)
        for _ in range(3):
            log.append([line()])
        log.sync()
        log.close()
        assert len(os.listdir("/dev/fd")) == before
