"""Bodies at their two ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgpack
import pytest

from tests.records import encode_record
from zmqbus.client import payload
from zmqbus.client.core import Incoming, Ticket
from zmqbus.errors import InvalidPayload, TextTooLong
from zmqbus.journal import segments
from zmqbus.journal.record import JournalError, Record
from zmqbus.journal.writer import Journal
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format


def incoming(body: bytes, pointer: tuple[int, ...] | None = None) -> Incoming:
    ticket = Ticket("lease", 1, ("aaaaaaaaaaaa",), None)
    header = verbs.Header("s", "n", None, 0, "", 0, None, 1.0)
    return Incoming(ticket, "aaaaaaaaaaaa", header, -1, pointer, len(body), body)


# --- texts


@pytest.mark.parametrize("text", ["", "plain", "grüße ↵ 🙂", "\0"])
def test_a_text_is_utf_8(text):
    assert payload.from_text(text, to_many=False) == text.encode()
    assert payload.from_text(text.encode(), to_many=True) == text.encode()
    assert payload.as_text(Format.TEXT, text.encode()) == text


@pytest.mark.parametrize(("to_many", "limit"), [(False, 10 * 1024 * 1024), (True, 256 * 1024)])
def test_the_limit_is_named(to_many, limit):
    assert len(payload.from_text("x" * limit, to_many=to_many)) == limit
    with pytest.raises(TextTooLong, match=f"{limit:,} bytes"):
        payload.from_text("x" * (limit + 1), to_many=to_many)
    with pytest.raises(TextTooLong):  # bytes count, not characters
        payload.from_text("ü" * (limit // 2 + 1), to_many=to_many)


def test_invalid_text_is_refused_with_its_position():
    with pytest.raises(InvalidPayload, match="at byte 3"):
        payload.from_text(b"abc\xff", to_many=False)
    with pytest.raises(InvalidPayload, match="at 1"):
        payload.from_text("a\ud800", to_many=False)


# --- from the message or from the log


def test_a_small_body_is_in_the_message(tmp_path):
    assert payload.load(incoming(b"here"), str(tmp_path / "none")) == b"here"


def test_a_large_body_is_read_from_the_log(tmp_path):
    tmp_path.chmod(0o700)
    log = str(tmp_path / "messages.log")
    body = b"x" * (verbs.SPILL_BYTES + 1)
    record = Record(1.0, "aaaaaaaaaaaa", "message", "s", "n", None, "bob", "id", None, "text", body)
    journal = Journal(log)
    (pointer,) = journal.append([encode_record(record)])
    journal.close()
    assert payload.load(incoming(b"", tuple(pointer)), log) == body
    with pytest.raises(JournalError):
        payload.load(incoming(b"", (pointer.segment, pointer.offset, pointer.length, pointer.crc ^ 1)), log)


class TestLog:
    """The journal of a program that reads much of it."""

    @pytest.fixture
    def written(self, tmp_path):
        """The path of a log with three bodies, and pointers to them."""
        tmp_path.chmod(0o700)
        path = str(tmp_path / "messages.log")
        journal = Journal(path)
        record = Record(1.0, "aaaaaaaaaaaa", "message", "s", "n", None, "bob", "id", None, "text", b"")
        pointers = journal.append([encode_record(record._replace(body=bytes([97 + n]) * 70_000)) for n in range(3)])
        journal.close()
        return path, [tuple(pointer) for pointer in pointers]

    def test_bodies_are_read_one_after_the_other_from_files_that_stay_open(self, written, monkeypatch):
        path, pointers = written
        log = payload.Log(path)
        assert log.load(incoming(b"here")) == b"here"
        assert log.load(incoming(b"", pointers[0])) == b"a" * 70_000
        monkeypatch.setattr(segments, "segments", lambda path: pytest.fail("it looked for the file again"))
        assert [log.load(incoming(b"", one))[:1] for one in pointers] == [b"a", b"b", b"c"]
        log.close()

    def test_when_it_is_closed_or_in_use_they_are_read_all_the_same(self, written):
        path, pointers = written
        log = payload.Log(path)
        with log._lock:
            assert log.load(incoming(b"", pointers[1])) == b"b" * 70_000
        log.close()
        log.close()
        assert log.load(incoming(b"", pointers[2])) == b"c" * 70_000
        assert log._reader is None

    def test_by_many_threads_at_once(self, written):
        path, pointers = written
        log = payload.Log(path)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: log.load(incoming(b"", pointers[n % 3]))[:1], range(300)))
        assert found == [b"a", b"b", b"c"] * 100
        log.close()

    def test_what_cannot_be_read_is_an_error_and_the_next_is_read(self, written):
        path, pointers = written
        log = payload.Log(path)
        for bad in ((*pointers[0][:3], 1), (9, *pointers[0][1:]), (1, 2, 3)):
            with pytest.raises(JournalError):
                log.load(incoming(b"", bad))
        assert log.load(incoming(b"", pointers[0])) == b"a" * 70_000
        log.close()


# --- to look at


def test_values_are_shown_in_pythons_notation():
    assert payload.as_text(Format.MSGPACK, msgpack.packb({"a": [1, None], 2: b"x"})) == "{'a': [1, None], 2: b'x'}"


def test_what_cannot_be_shown_is_counted():
    assert payload.as_text(Format.BYTES, b"12345") == "<5 bytes>"
    assert payload.as_text(Format.MSGPACK, b"\xc1") == "<1 bytes>"
    assert payload.as_text(99, b"12") == "<2 bytes>"
    assert payload.as_text(Format.TEXT, b"a\xffb") == "a\ufffdb"


def test_a_lone_surrogate_is_not_called_empty() -> None:
    """`from_text` reports that."""
    payload.check_not_empty("\ud800")
    with pytest.raises(InvalidPayload, match="text is empty"):
        payload.check_not_empty(" \u200b")
