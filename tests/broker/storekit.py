"""Helpers for tests of stores: a journal with real records, and entries that point to them."""

from __future__ import annotations

import os
from pathlib import Path

from tests.records import encode_record
from zmqbus.broker.storage.api import Awaited, Entry, Refusal, SessionRow
from zmqbus.broker.storage.sqlite import SqliteStore
from zmqbus.journal.record import Record
from zmqbus.journal.writer import Journal
from zmqbus.wire.verbs import SPILL_BYTES, Format, Header, Scope

SENDER = "123e4567-e89b-42d3-a456-426614174000"


class Bench:
    """A data directory with a journal; creates entries whose records are in it, and opens databases."""

    def __init__(self, directory: Path, *, segment_bytes: int = 50 * 1024 * 1024) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)
        self.directory = directory
        self.path = str(directory / "mailboxes.sqlite3")
        self.log = str(directory / "messages.log")
        self.journal = Journal(self.log, segment_bytes=segment_bytes)
        self._made = 0

    def __repr__(self) -> str:
        return f"<Bench {self.directory}: {self._made} entries>"

    def entry(self, body: bytes = b"hello", *, fmt: Format = Format.TEXT, accepted_s: float | None = None) -> Entry:
        """The next message, accepted a second after the one before."""
        self._made += 1
        number = self._made
        record = Record(
            1_700_000_000.0 + number,
            f"message{number:05d}",
            "message",
            SENDER,
            "web",
            "Web — Ünï",
            "auth",
            "box",
            "question1",
            "bytes" if fmt == Format.BYTES else "text",
            body,
        )
        (pointer,) = self.journal.append([encode_record(record)], oldest_needed=1)
        return Entry(
            Header(SENDER, "web", record.from_label, Scope.SESSION, "auth", fmt, record.reply_to, record.ts),
            record.msg_id,
            float(number) if accepted_s is None else accepted_s,
            len(body),
            pointer,
            b"" if len(body) > SPILL_BYTES else body,
        )

    def open(self, **options) -> SqliteStore:
        """Opens the database, as the next broker would."""
        return SqliteStore(self.path, self.log, **options)

    def names(self, what: str) -> list[str]:
        """Names of the files in the directory that contain `what`."""
        return sorted(name for name in os.listdir(self.directory) if what in name)


#: Size of a database that `fill` has filled.
MESSAGES = 1200
BOXES = 3

Kept = dict[str, dict[int, Entry]]


def session(session_id: str = "s1", **changes) -> SessionRow:
    """A session with a value in each field."""
    row = SessionRow(
        session_id,
        "digest",
        session_id,
        f"name-{session_id}",
        "Lábel",
        "/work/api",
        "/work",
        "1234",
        ("deploys", "naïve"),
        ("resizers",),
        "message0000a",
        1_700_000_000.5,
        17.25,
        True,
    )
    return row._replace(**changes)


def awaited(msg_id: str) -> Awaited:
    """An awaited answer."""
    return Awaited(msg_id, "waiter", "web")


def refusal(number: int, text: str = "too long") -> Refusal:
    """One of many refusals."""
    return Refusal(f"refused{number:05d}", SENDER, "text_too_long", text)


def fill(store: SqliteStore, bench: Bench, count: int = MESSAGES) -> Kept:
    """Puts messages into three mailboxes, and adds some rows of every other kind."""
    kept: Kept = {}
    for number in range(count):
        box = kept.setdefault(f"box{number % BOXES}", {})
        box[len(box) + 1] = bench.entry(b"text %d" % number)
        store.put(f"box{number % BOXES}", len(box), box[len(box)])
    for number in range(20):
        store.save_session(session(f"box{number}"))
        store.save_awaited(awaited(f"awaited{number}"))
        store.save_refusal(refusal(number))
    store.commit()
    return kept


def look(store: SqliteStore, kept: Kept) -> tuple[int, int]:
    """Checks that every row was once put; returns the numbers of messages and of sessions."""
    found = store.recover(10_000)
    messages = 0
    for key, box in kept.items():
        after = store.after(key, 0, 10_000)
        assert [number for number, _ in after] == sorted(number for number, _ in after)
        for number, entry in after:
            assert entry == box[number], f"{entry} is not {box[number]}"
        messages += len(after)
    assert messages == store.total() == sum(box.messages for box in found.boxes) == len(found.owed)
    assert set(found.sessions) <= {session(f"box{number}") for number in range(20)}
    return messages, len(found.sessions)


def works(bench: Bench, store: SqliteStore) -> None:
    """Checks that the store accepts messages and keeps them, and closes it."""
    made = bench.entry()
    store.put("new", 1, made)
    store.commit()
    store.close()
    store = bench.open()
    assert store.notices == [] and store.after("new", 0, 9) == [(1, made)]
    store.close()


def overwrite(path: str, at: int, content: bytes) -> None:
    """Overwrites a part of a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)
