"""Messages that the log lost: every pointer is checked, and the bytes of the smallest records."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker.storekit import Bench
from zmqbus.broker.storage.api import Entry
from zmqbus.journal.reader import Reader
from zmqbus.journal.verify import LogVerifier, unreadable_notice


@pytest.fixture
def bench(tmp_path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "data", segment_bytes=20_000)
    yield bench
    bench.journal.close()


@pytest.fixture
def reader(bench) -> Iterator[Reader]:
    reader = Reader(bench.log)
    yield reader
    reader.close()


def spoil(bench: Bench, entry: Entry) -> None:
    with open(bench.log, "r+b") as file:
        file.seek(entry.pointer[1] + 5)
        file.write(b"#")


def found(bench: Bench, reader: Reader, entries: list[Entry], **options) -> set[str]:
    check = LogVerifier(bench.log, reader, **options)
    for entry in entries:
        check.add(entry.msg_id, *entry.pointer)
    return check.unreadable()


def test_intact_log_has_no_unreadable_messages(bench, reader):
    assert found(bench, reader, [bench.entry(b"x" * 500) for _ in range(200)]) == set()


def test_pointers_outside_of_segments_are_unreadable(bench, reader):
    made = [bench.entry() for _ in range(9)]
    segment, start, length, crc = made[0].pointer
    pointers = [
        (segment, start, length, crc),
        (segment, start, length, crc ^ 1),
        (segment, start + 1, length, crc),
        (segment, -1, length, crc),
        (segment, start, 0, crc),
        (segment, start, -5, crc),
        (segment, 1 << 60, length, crc),
        (segment + 1, start, length, crc),
        (0, start, length, crc),
    ]
    wrong = [entry._replace(pointer=pointer) for entry, pointer in zip(made, pointers, strict=True)]
    assert found(bench, reader, wrong) == {entry.msg_id for entry in made[1:]}


def test_smallest_records_are_read_up_to_the_bound(bench, reader):
    """In whatever order they come, and however many are dropped on the way."""
    small = [bench.entry(b"x") for _ in range(5)]
    large = [bench.entry(b"x" * 3000) for _ in range(3)]
    for entry in (small[2], large[1]):
        spoil(bench, entry)
    for order in (small + large, large + small):
        assert found(bench, reader, order) == {small[2].msg_id, large[1].msg_id}
        assert found(bench, reader, order, check_bytes=2000) == {small[2].msg_id}
        assert found(bench, reader, order, check_bytes=0) == set()


def test_broadcast_is_read_once(bench, reader, monkeypatch):
    asked = []

    def intact(pointer):
        asked.append(pointer)
        return True

    monkeypatch.setattr(reader, "intact", intact)
    entry = bench.entry()
    assert found(bench, reader, [entry] * 100, check_bytes=entry.pointer[2]) == set()
    assert asked == [entry.pointer]


def test_missing_segment_is_unreadable(bench, reader):
    made = [bench.entry(b"x" * 1000) for _ in range(40)]
    first = made[0].pointer[0]
    oldest = max(name for name in os.listdir(bench.directory) if name.startswith("messages.log."))
    assert f'"segment":{first},' in Path(bench.directory / oldest).read_text()
    os.unlink(bench.directory / oldest)
    assert found(bench, reader, made) == {entry.msg_id for entry in made if entry.pointer[0] == first}


def test_notice_lists_messages_and_receivers():
    text = unreadable_notice("/log", ["id1", "id2"], {"id1": ["web"], "id2": ["a", "b", "c", "d", "e"]}, "gone")
    assert "2 unread messages cannot be read back from /log (gone): id1 for web, id2 for a, b, c and 2 others;" in text
    many = [f"id{number}" for number in range(1234)]
    text = unreadable_notice("/log", many, {}, "gone")
    assert "id19 for somebody and 1,214 more;" in text and "id20" not in text
