"""Entries of records, and the criteria that select them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.records import RECORD, RECORDS, encode_record
from zmqbus.journal.filter import ALL, SUMMARY_BYTES, SUMMARY_CHARS, Entry, LineFilter, Wanted
from zmqbus.journal.record import HEAD_BYTES, Record, as_text
from zmqbus.journal.segments import Place

PLACE = Place(3, 100)


@pytest.fixture
def nothing() -> Iterator[int]:
    """A descriptor of which nothing should be read."""
    fd = os.open(os.devnull, os.O_RDONLY)
    yield fd
    os.close(fd)


def take(line: bytes, wanted: Wanted = ALL) -> Entry | bool:
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        return LineFilter(wanted).match(fd, PLACE, len(line), line)
    finally:
        os.close(fd)


def entry_of(record: Record) -> Entry:
    found = take(encode_record(record))
    assert isinstance(found, Entry)
    return found


@given(RECORDS)
def test_entry_has_the_fields_of_the_record(record: Record) -> None:
    line = encode_record(record)
    found = take(line)
    assert isinstance(found, Entry)
    text = as_text(record.fmt, record.body)
    assert found == Entry(PLACE, len(line), *record[:-1], text[:SUMMARY_CHARS], len(text) <= SUMMARY_CHARS)
    assert found.after == Place(3, 100 + len(line) + 1)


@given(st.text(st.sampled_from('a"\\\n\x01ß漢😀'), min_size=SUMMARY_CHARS - 3, max_size=3 * SUMMARY_CHARS))
def test_long_text_is_cut_between_characters(text: str) -> None:
    found = entry_of(RECORD._replace(body=text.encode()))
    assert text.startswith(found.head)
    assert found.whole == (found.head == text)
    assert found.whole or len(found.head) >= SUMMARY_CHARS - 3


def test_beginning_of_a_long_line_is_enough(nothing: int) -> None:
    line = encode_record(RECORD._replace(body=b"x" * 3_000_000))
    found = LineFilter(ALL).match(nothing, PLACE, len(line), line[:HEAD_BYTES])
    assert isinstance(found, Entry)
    assert (found.head, found.whole) == ("x" * SUMMARY_CHARS, False)


def test_summaries_of_values_and_bytes() -> None:
    assert entry_of(RECORD._replace(fmt="msgpack", body=msgpack.packb({"a": 1}))).head == "{'a': 1}"
    found = entry_of(RECORD._replace(fmt="bytes", body=b"12345"))
    assert (found.head, found.whole, found.fmt) == ("<5 bytes>", True, "bytes")
    for size in range(SUMMARY_BYTES, SUMMARY_BYTES + 4):  # whose base64 ends in each way
        large = entry_of(RECORD._replace(fmt="bytes", body=b"1" * size))
        assert (large.head, large.whole) == (f"<{size} bytes>", True)
    values = entry_of(RECORD._replace(fmt="msgpack", body=msgpack.packb([0.5] * SUMMARY_BYTES)))
    assert not values.whole


def test_summary_of_large_bytes(tmp_path: Path) -> None:
    line = encode_record(RECORD._replace(fmt="bytes", body=b"1" * 100_001))
    (tmp_path / "log").write_bytes(line)
    for damage in (b"", b"x"):
        with open(tmp_path / "log", "r+b") as file:
            file.seek(len(line) - len(damage))
            file.write(damage)
            file.flush()
            found = LineFilter(ALL).match(file.fileno(), PLACE._replace(offset=0), len(line), line[:HEAD_BYTES])
        assert found is True if damage else isinstance(found, Entry) and found.head == "<100001 bytes>"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"rubbish",
        b"{}",
        encode_record(RECORD)[:-1],
        encode_record(RECORD).replace(b'"message"', b'"massage"'),
        encode_record(RECORD).replace(b"2026-", b"2O26-"),
        encode_record(RECORD).replace(b"T03:", b"T63:"),
        encode_record(RECORD._replace(fmt="bytes", body=b"123")).replace(b'"MTIz"', b'"MTI"'),
    ],
)
def test_other_lines_are_damaged(line: bytes) -> None:
    assert take(line) is True


def test_first_line_of_a_segment_is_not_damaged() -> None:
    assert take(b'{"kind":"segment","segment":1,"format":1,"created":"2026-01-01T00:00:00Z"}') is False


def test_keys_in_another_order(tmp_path: Path) -> None:
    fields = json.loads(encode_record(RECORD))
    line = json.dumps(dict(reversed(fields.items()))).encode()
    found = take(line)
    assert isinstance(found, Entry)
    assert (found.msg_id, found.head, found.whole) == (RECORD.msg_id, "run the tests", True)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (Wanted(sender="orchestrator"), True),
        (Wanted(sender="orchestrato"), False),
        (Wanted(sender="123e4567"), True),
        (Wanted(sender="123e456"), False),
        (Wanted(sender=RECORD.from_session), True),
        (Wanted(receiver="auth"), True),
        (Wanted(receiver="223e4567"), True),
        (Wanted(receiver="orchestrator"), False),
        (Wanted(kinds=frozenset(("message", "broadcast"))), True),
        (Wanted(kinds=frozenset(("request",))), False),
        (Wanted(since_ts=RECORD.ts), True),
        (Wanted(since_ts=RECORD.ts - 1000), True),
        (Wanted(since_ts=RECORD.ts + 0.001), False),
        (Wanted(pattern=re.compile("the tests")), True),
        (Wanted(pattern=re.compile("The Tests")), False),
        (Wanted(pattern=re.compile("The Tests", re.IGNORECASE)), True),
        (Wanted(pattern=re.compile(r"^run\b.*s$")), True),
        (Wanted(pattern=re.compile("orchestrator")), False),
        (Wanted("orchestrator", "auth", 0.0, re.compile("run"), frozenset(("message",))), True),
        (Wanted("orchestrator", "auth", 0.0, re.compile("ran"), frozenset(("message",))), False),
    ],
)
def test_criteria(wanted: Wanted, fits: bool) -> None:
    found = take(encode_record(RECORD), wanted)
    assert isinstance(found, Entry) == fits
    assert isinstance(found, Entry) or found is False


@given(RECORDS, st.data())
def test_plain_pattern_finds_every_part_of_the_text(record: Record, data: st.DataObject) -> None:
    """Also where the log spells it in another way, as it does with ids and line ends."""
    text = as_text(record.fmt, record.body)
    begin = data.draw(st.integers(0, len(text)))
    part = text[begin : begin + data.draw(st.integers(1, 12))]
    pattern = re.compile(part if re.fullmatch(r"[\w =]+", part, re.ASCII) else re.escape(part))
    assert isinstance(take(encode_record(record), Wanted(pattern=pattern)), Entry)


def test_hidden_id_is_found() -> None:
    record = RECORD._replace(reply_to="abcdef123456", body=b"as to abcdef123456: done")
    assert isinstance(take(encode_record(record), Wanted(pattern=re.compile("abcdef123456"))), Entry)


def test_pattern_searches_all_of_a_long_text(tmp_path: Path) -> None:
    line = encode_record(RECORD._replace(body=b"x" * 2_000_000 + b" needle"))
    path = tmp_path / "file"
    path.write_bytes(line)
    fd = os.open(path, os.O_RDONLY)
    try:
        for source, is_there in (("needle", True), ("no[o]dle", False), ("x needle$", True)):
            found = LineFilter(Wanted(pattern=re.compile(source))).match(fd, Place(1, 0), len(line), line[:HEAD_BYTES])
            assert isinstance(found, Entry) == is_there
        # It ends before its line does.
        found = LineFilter(Wanted(pattern=re.compile("needle"))).match(fd, Place(1, 9), len(line), line[:HEAD_BYTES])
        assert found is True
    finally:
        os.close(fd)
