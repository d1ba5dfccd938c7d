"""The spool file of a client: its regions, their lifetime, and sending without one."""

from __future__ import annotations

import os
import random
import stat
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.broker.body_checks import Spooled, spooled_body
from zmqbus.client import spool_writer as spool_module
from zmqbus.client.spool_writer import SpoolWriter, find_room
from zmqbus.journal.large_record import check_escaped, escape_body
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format, Scope

SIZE = 100_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path / "spool"


@pytest.fixture
def spool(directory: Path) -> SpoolWriter:
    return SpoolWriter(str(directory), limit_bytes=10 * SIZE)


def message(number: int, body: bytes = b"x" * SIZE, fmt: int = Format.TEXT) -> verbs.Send:
    return verbs.Send.one(f"message{number:05}", Scope.SESSION, "bob", fmt, None, False, body)


def piece(directory: Path, spooled: Spooled) -> bytes:
    """Returns the escaped body, as the broker would read it."""
    content = (directory / spooled.file).read_bytes()
    return content[spooled.offset : spooled.offset + spooled.length]


def try_put(spool: SpoolWriter, send: verbs.Send) -> Spooled | None:
    """Writes a body; returns the SEND that names its region."""
    named = spool.put(send)
    if named is None:
        return None
    assert named._replace(file=None, piece=None) == send._replace(bodies=(b"",))
    return spooled_body(named)


def put(spool: SpoolWriter, send: verbs.Send) -> Spooled:
    spooled = try_put(spool, send)
    assert spooled is not None
    return spooled


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 10))), st.integers(1, 20))
def test_room_is_found_where_there_is_some(asked, length):
    """Pieces that were put where there was room never overlap, and lie below the limit."""
    used: list[tuple[int, int]] = []
    for drop, size in asked:
        if used and drop % 3 == 0:
            used.pop(drop % len(used))
        at = find_room(used, size, 40)
        taken = {byte for start, count in used for byte in range(start, start + count)}
        free_runs = [at for at in range(41 - size) if taken.isdisjoint(range(at, at + size))]
        assert at == (free_runs[0] if free_runs else None)
        if at is not None:
            used.append((at, size))
    assert find_room([], length, length) == 0
    assert find_room([], length + 1, length) is None


class TestPieces:
    @pytest.mark.parametrize(
        ("fmt", "word", "body"),
        [
            (Format.TEXT, "text", b'say "x"\n' * 20_000),
            (Format.TEXT, "text", "grüße \u2028 msg=abcdefgh \x01".encode() * 5_000),
            (Format.BYTES, "bytes", bytes(range(256)) * 400),
            (Format.MSGPACK, "msgpack", b"\xc4" * 70_001),
        ],
    )
    def test_are_what_the_log_will_have_and_pass_the_brokers_checks(self, spool, directory, fmt, word, body):
        spooled = put(spool, message(1, body, fmt))
        found = piece(directory, spooled)
        check_escaped(word, found, spooled.size_bytes, spooled.crc)
        assert found == escape_body(word, body)
        assert (spooled.size_bytes, spooled.crc) == (len(body), zlib.crc32(found))

    def test_are_nobody_elses(self, spool, directory):
        spooled = put(spool, message(1))
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / spooled.file).stat().st_mode) == 0o600

    def test_lie_side_by_side_until_their_fate_is_known(self, spool, directory):
        spooled = [put(spool, message(n, bytes([97 + n]) * SIZE)) for n in range(10)]
        assert len({one.file for one in spooled}) == 1
        assert [piece(directory, one)[:1] for one in spooled] == [bytes([97 + n]) for n in range(10)]
        assert spool.put(message(10)) is None  # there is no room
        spool.free(["message00003", "unknown00000"])
        again = put(spool, message(11, b"z" * SIZE))
        assert again.offset == spooled[3].offset
        others = [one for one in spooled if one is not spooled[3]]
        assert [piece(directory, one)[:1] for one in others] == [bytes([97 + n]) for n in range(10) if n != 3]

    def test_of_any_sizes_are_never_overwritten_while_they_are_needed(self, spool, directory):
        draw = random.Random(7)
        there: dict[str, tuple[Spooled, bytes]] = {}
        refused = 0
        for number in range(300):
            body = bytes([97 + number % 26]) * draw.randrange(70_000, 250_000)
            spooled = try_put(spool, message(number, body))
            if spooled is not None:
                there[f"message{number:05}"] = spooled, body
            else:
                refused += 1
            while there and (len(there) > 5 or draw.random() < 0.3):
                gone = draw.choice(list(there))
                del there[gone]
                spool.free([gone])
            for one, expected in there.values():
                assert piece(directory, one) == expected
        assert 0 < refused < 250
        assert os.path.getsize(directory / spool._name) <= 10 * SIZE

    def test_room_is_given_back_when_nothing_is_under_way(self, directory, monkeypatch):
        monkeypatch.setattr(spool_module, "KEEP_BYTES", 2 * SIZE)
        spool = SpoolWriter(str(directory))
        spooled = [put(spool, message(n)) for n in range(6)]
        path = directory / spooled[0].file
        spool.free([f"message{n:05}" for n in range(5)])
        assert path.stat().st_size == 6 * SIZE
        spool.free(["message00005"])
        assert path.stat().st_size == 2 * SIZE
        assert piece(directory, put(spool, message(7, b"y" * 3 * SIZE))) == b"y" * 3 * SIZE

    def test_body_over_the_spool_limit_is_sent_inline(self, directory, monkeypatch):
        monkeypatch.setattr(verbs, "MAX_SPELLED_BYTES", SIZE)
        spool = SpoolWriter(str(directory))
        assert spool.put(message(1, b"\n" * (SIZE // 2 + 1))) is None
        assert spool.put(message(2, b"\n" * (SIZE // 2))) is not None


class TestFiles:
    def test_each_welcome_has_its_own_and_the_one_before_stays_as_long_as_it_may_be_read(self, spool, directory):
        first = [put(spool, message(n, b"a" * SIZE)) for n in range(2)]
        spool.renew()
        second = put(spool, message(2, b"b" * SIZE))
        assert second.file != first[0].file
        assert piece(directory, first[1]) == b"a" * SIZE
        spool.free(["message00000"])
        assert (directory / first[0].file).exists()
        spool.free(["message00001"])
        assert [one.name for one in directory.iterdir()] == [second.file]
        spool.free(["message00002"])
        spool.renew()
        assert list(directory.iterdir()) == []

    def test_it_is_removed_at_the_end(self, spool, directory):
        put(spool, message(1))
        spool.free(["message00001"])
        spool.close()
        spool.close()
        assert list(directory.iterdir()) == []
        assert spool.put(message(2)) is None

    def test_but_not_while_something_in_it_is_on_its_way(self, spool, directory):
        old = put(spool, message(1))
        spool.renew()
        spooled = put(spool, message(2))
        spool.close()
        assert [one.name for one in directory.iterdir()] == [spooled.file]
        assert old.file != spooled.file

    def test_nothing_is_made_before_it_is_needed(self, spool, directory):
        spool.renew()
        spool.free(["message00001"])
        assert "without a file: 0 pieces" in repr(spool)
        spool.close()
        assert not directory.exists()

    def test_removed_files(self, spool, directory):
        one = put(spool, message(1))
        (directory / one.file).unlink()
        spool.free(["message00001"])
        spool.renew()
        directory.rmdir()
        assert put(spool, message(2)).file in os.listdir(directory)
        spool.close()


class TestFailures:
    """None of them is the program's: the body goes along with its message."""

    def test_a_directory_that_is_open_to_others(self, spool, directory):
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)
        assert spool.put(message(1)) is None
        assert list(directory.iterdir()) == []

    def test_a_directory_that_is_a_link(self, spool, directory, tmp_path):
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        directory.symlink_to(tmp_path / "elsewhere")
        assert spool.put(message(1)) is None
        assert list((tmp_path / "elsewhere").iterdir()) == []

    @pytest.mark.parametrize("kind", ["error", "short"])
    def test_a_full_disk_and_for_a_while_it_is_not_tried_again(self, spool, directory, monkeypatch, kind):
        first = put(spool, message(0, b"a" * SIZE))
        calls = []

        def full(fd: int, data: bytes, offset: int) -> int:
            calls.append(offset)
            if kind == "error":
                raise OSError(28, "No space left on device")
            return len(data) - 1

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            assert spool.put(message(1)) is None
            assert spool.put(message(2)) is None
        assert calls == [SIZE]
        assert spool.put(message(3)) is None
        monkeypatch.setattr(spool_module, "PAUSE_S", 0.0)
        later_s = time.monotonic() + 11
        monkeypatch.setattr(time, "monotonic", lambda: later_s)
        assert put(spool, message(4)).offset == SIZE
        assert piece(directory, first) == b"a" * SIZE

    def test_invalid_text_and_unknown_format(self, spool):
        assert spool.put(message(1, b"\xff" * SIZE)) is None
        assert SpoolWriter("/nowhere").put(message(1, fmt=9)) is None
