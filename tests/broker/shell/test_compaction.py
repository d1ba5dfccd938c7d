"""Compaction keeps the records of unread mail, and only those; no crash in between loses one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.records import RECORD, encode_record
from zmqbus.broker.shell import compaction
from zmqbus.broker.shell.compaction import LOOK_S, Compaction
from zmqbus.broker.storage.api import Entry, StoreError
from zmqbus.broker.storage.sqlite import SqliteStore
from zmqbus.journal.reader import Reader, find
from zmqbus.journal.record import JournalError
from zmqbus.journal.segments import compacted, compacted_path
from zmqbus.journal.verify import LogVerifier
from zmqbus.journal.writer import Journal
from zmqbus.wire.verbs import Header

HEADER = Header("s", "n", None, 0, "bob", 0, None, 1.0)

SEGMENT_BYTES = 64 * 1024
KEEP = 2


class Log:
    """A journal of small segments, a store, and their compaction."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "messages.log")
        self.directory = directory
        self.database = str(directory / "mail.db")
        self.under_way: int | None = None
        self.warnings: list[str] = []
        self.said = 0
        self.now_s = 0.0
        self.unread: dict[int, tuple[Any, bytes]] = {}  # number in the mailbox → pointer and body
        self.open()

    def open(self) -> None:
        self.journal = Journal(self.path, segment_bytes=SEGMENT_BYTES, keep=KEEP)
        self.store = SqliteStore(self.database, self.path)
        core: Any = SimpleNamespace(
            delivery=SimpleNamespace(waits_for_commit=False), oldest_under_way=lambda: self.under_way
        )
        self.compaction = Compaction(self.journal, self.store, core, self.warnings.append)

    def close(self) -> None:
        self.store.close()
        self.journal.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def say(self, body: bytes, *, keep: bool = False) -> int:
        """Journals a message, with `keep` into the mailbox as well; returns its number there."""
        self.said += 1
        msg_id = f"message{self.said:05d}"
        record = RECORD._replace(msg_id=msg_id, body=body, fmt="text")
        (pointer,) = self.journal.append([encode_record(record)], oldest_needed=self.store.oldest_segment)
        if keep:
            entry = Entry(HEADER, msg_id, 1.0, len(body), pointer, b"")
            self.store.put("box", self.said, entry)
            self.store.commit()
            self.unread[self.said] = pointer, body
        return self.said

    def read(self, number: int) -> None:
        self.store.remove("box", [number])
        self.store.commit()
        del self.unread[number]

    def fill(self, segments: int) -> None:
        """Journals so many segments of messages that are read."""
        until = self.journal.segment + segments
        while self.journal.segment < until:
            self.say(b"x" * 5_000)

    def compact(self) -> None:
        for _ in range(50):
            self.now_s += LOOK_S
            self.compaction.tick(self.now_s)

    def check(self) -> None:
        """All unread messages can be read, by pointer and by id."""
        reader = Reader(self.path)
        check = LogVerifier(self.path, reader)
        for number, (pointer, body) in self.unread.items():
            assert reader.read(pointer).body == body
            check.add(f"message{number:05d}", *pointer)
            found = find(self.path, f"message{number:05d}")
            assert found is not None and found.body == body
        assert check.unreadable() == set()
        reader.close()

    @property
    def disk_bytes(self) -> int:
        return sum(one.stat().st_blocks * 512 for one in self.directory.glob("messages.log*"))


@pytest.fixture
def log(tmp_path: Path) -> Any:
    tmp_path.chmod(0o700)
    log = Log(tmp_path)
    yield log
    log.close()


def test_one_unread_message_keeps_only_its_own_record(log: Log) -> None:
    log.say(b"unread", keep=True)
    for _ in range(5):
        log.fill(10)
        log.compact()
        log.check()
        assert log.disk_bytes < (KEEP + 3) * SEGMENT_BYTES
    assert log.compaction.kept_bytes <= 8192
    assert [serial for serial, _ in compacted(log.path)] == [1]
    log.restart()
    log.check()


def test_a_compacted_file_is_removed_when_its_mail_is_read(log: Log) -> None:
    number = log.say(b"unread", keep=True)
    log.fill(10)
    log.compact()
    assert compacted(log.path)
    log.read(number)
    log.compact()
    assert compacted(log.path) == [] and log.compaction.kept_bytes == 0


def test_first_last_and_large_records_are_kept(log: Log) -> None:
    for body in (b"first", b"y" * 60_000, b"z" * 10_000, "grüße\n".encode() * 1_000):
        log.say(body, keep=True)
        log.fill(1)
        log.say(body + b"!", keep=True)
    log.fill(10)
    log.compact()
    log.check()
    assert len(compacted(log.path)) >= 4


def test_a_compacted_file_is_compacted_again_when_mostly_read(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SLACK_BYTES", 0)
    numbers = [log.say(b"u" * 5_000, keep=True) for _ in range(9)]
    log.fill(10)
    log.compact()
    before = log.compaction.kept_bytes
    for number in numbers[:-1]:
        log.read(number)
    log.compact()
    log.check()
    assert log.compaction.kept_bytes < before / 2


def test_segments_with_messages_in_flight_are_left_alone(log: Log) -> None:
    log.say(b"unread", keep=True)
    log.under_way = 1
    log.fill(10)
    log.compact()
    assert compacted(log.path) == [] and log.journal.excess()
    log.under_way = None
    log.compact()
    assert [serial for serial, _ in compacted(log.path)] == [1] and not log.journal.excess()
    log.check()


def test_nothing_is_compacted_while_changes_are_pending(log: Log) -> None:
    log.say(b"unread", keep=True)
    log.fill(10)
    entry = Entry(HEADER, "pending00001", 1.0, 1, log.unread[1][0], b"")
    log.store.put("box", 99, entry)
    log.compact()
    assert compacted(log.path) == []


def test_serials_of_compacted_files_are_not_reused(log: Log) -> None:
    log.fill(5)
    log.say(b"unread", keep=True)
    log.fill(5)
    log.compact()
    log.close()
    for name in log.directory.glob("messages.log*"):
        if "kept" not in name.name:
            name.unlink()
    log.open()
    assert log.journal.segment > max(serial for serial, _ in compacted(log.path))
    log.check()


class Crash(Exception):
    """The process has been killed."""


CALLS = ("pwrite", "fsync", "rename", "unlink", "ftruncate")


def crashing(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """Raises `Crash` at the `at`th change of a file, after half of it if it is a write, and at all later ones."""
    count = 0

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                if name == "pwrite":
                    real(args[0], args[1][: len(args[1]) // 2], args[2])
                raise Crash
            if count > at:
                raise Crash
            return real(*args, **more)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrap(name))
    return lambda: count


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_a_crash_at_any_step_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    monkeypatch.setattr(compaction, "SLACK_BYTES", 0)
    at, steps = 0, 1
    while at < steps:
        at += 1
        directory = tmp_path / str(at)
        directory.mkdir(mode=0o700)
        log = Log(directory)
        numbers = [log.say(b"%d" % number * 3_000, keep=True) for number in range(8)]
        log.fill(8)
        if again:
            log.compact()
            for number in numbers[1:]:
                log.read(number)
        with monkeypatch.context() as patched:
            counted = crashing(patched, at)
            try:
                log.compact()
            except Crash:
                steps = at + 1
            else:
                steps = at
                assert counted() < at
        log.restart()
        assert not [name for name in os.listdir(directory) if name.endswith(".new")]
        log.check()
        log.compact()
        log.check()
        assert not log.journal.excess()
        assert log.warnings == []
        assert not [name for name in os.listdir(directory) if name.endswith(".new")]
        log.close()
    assert at > 3


def test_a_full_disk_changes_nothing_and_is_retried(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.say(b"unread", keep=True)
    log.fill(10)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        log.compact()
    assert log.warnings and "no room" in log.warnings[0]
    assert compacted(log.path) == [] and log.journal.excess()
    log.check()
    log.compact()
    assert not log.journal.excess()
    log.check()


def test_an_unreadable_store_keeps_all_segments(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> Any:
        raise StoreError("it cannot be read")

    log.say(b"unread", keep=True)
    log.fill(10)
    monkeypatch.setattr(log.store, "records_in", fails)
    log.compact()
    assert log.journal.excess() and "it cannot be read" in log.warnings[0]


def test_a_segment_that_others_can_read_is_not_compacted(log: Log) -> None:
    log.say(b"unread", keep=True)
    log.fill(10)
    ((serial, name), *_) = log.journal.excess()[-1:]
    os.chmod(name, 0o644)
    with pytest.raises(JournalError):
        log.journal.compact(serial, name, [(100, 10)])
    assert os.path.exists(name) and not os.path.exists(compacted_path(log.path, serial))
    os.chmod(name, 0o600)
