"""A broker starts with any damaged database, and keeps its readable rows."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.broker.storekit import MESSAGES, Bench, Kept, fill, look, overwrite, works
from zmqbus.broker.storage.schema import PAGE_BYTES as PAGE
from zmqbus.broker.storage.schema import TABLES
from zmqbus.broker.storage.sqlite import SqliteStore


def pages_of(path: str, table: str) -> list[int]:
    """The pages of a table, in order; all pages if SQLite was built without `dbstat`."""
    db = sqlite3.connect(path)
    try:
        rows = db.execute("SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path", (table,))
        return [number for (number,) in rows]
    except sqlite3.OperationalError:
        return list(range(len(TABLES) + 5, os.path.getsize(path) // PAGE))
    finally:
        db.close()


def test_a_bad_page_costs_only_its_rows(bench, kept):
    pages = pages_of(bench.path, "owed")
    bad = pages[len(pages) // 2]
    overwrite(bench.path, (bad - 1) * PAGE, b"\xa5" * PAGE)
    before = Path(bench.path).read_bytes()
    store = bench.open()
    messages, sessions = look(store, kept)
    assert MESSAGES - 40 <= messages < MESSAGES and sessions == 20
    assert len(store.recover(99).awaited) == 20 and len(store.recover(99).refusals) == 20
    (notice,) = store.notices
    (aside,) = bench.names("damaged")
    assert f"Saved from it: {messages} messages and 20 sessions" in notice and "others could not be read" in notice
    assert aside in notice and "messages.log" in notice
    assert (bench.directory / aside).read_bytes() == before, "the original is unchanged"
    assert all(os.stat(bench.directory / name).st_mode & 0o777 == 0o600 for name in bench.names("mailboxes"))
    assert bench.names("mailboxes") == ["mailboxes.sqlite3", "mailboxes.sqlite3-wal", aside]
    works(bench, store)


@pytest.mark.parametrize("where", ["first", "last", "both ends", "every third"])
def test_bad_pages_at_any_place(bench, kept, where):
    pages = pages_of(bench.path, "owed")
    chosen = {"first": pages[:1], "last": pages[-1:], "both ends": [pages[0], pages[-1]], "every third": pages[::3]}
    for bad in chosen[where]:
        overwrite(bench.path, (bad - 1) * PAGE, b"\xa5" * PAGE)
    store = bench.open()
    messages, sessions = look(store, kept)
    assert messages >= MESSAGES - 40 * len(chosen[where]) and sessions == 20
    assert "others could not be read" in store.notices[0]
    works(bench, store)


@pytest.mark.parametrize("share", [0.999, 0.97, 0.9, 0.5, 0.1])
def test_a_truncated_file_keeps_the_rest(bench, kept, share):
    os.truncate(bench.path, int(os.path.getsize(bench.path) * share))
    store = bench.open()
    messages, _ = look(store, kept)
    assert messages < MESSAGES and (messages > 0 or share < 0.95), "without the upper pages no row can be found"
    assert len(store.notices) == 1 and len(bench.names("damaged")) == 1
    works(bench, store)


@pytest.mark.parametrize("table", ["owed", "sessions", "awaited", "refusals"])
def test_a_truncated_page_yields_no_altered_rows(bench, kept, table):
    """SQLite reads it as if zeros followed, which would change values."""
    end = pages_of(bench.path, table)[-1] * PAGE
    intact = Path(bench.path).read_bytes()
    for missing in range(1, 700, 31):
        for name in bench.names("mailboxes"):
            os.unlink(bench.directory / name)
        with open(os.open(bench.path, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
            file.write(intact[: end - missing])
        store = bench.open()
        messages, _ = look(store, kept)
        assert messages < MESSAGES or table != "owed"
        assert len(store.notices) == 1 and len(bench.names("damaged")) == 1
        store.close()


def test_a_truncated_last_page_is_noticed(bench, kept):
    """The rest of the file is in order, and the rest of that page could pass for values."""
    db = sqlite3.connect(bench.path)
    db.execute("VACUUM")  # leaves no free page at the end
    db.close()
    os.truncate(bench.path, os.path.getsize(bench.path) - 5)
    store = bench.open()
    look(store, kept)
    assert "was damaged (its last page is truncated)" in store.notices[0] and len(bench.names("damaged")) == 1
    works(bench, store)


def test_an_empty_file_becomes_a_new_database(bench, kept):
    os.truncate(bench.path, 0)
    store = bench.open()
    assert look(store, kept) == (0, 0) and store.notices == [] and bench.names("damaged") == []
    works(bench, store)


@pytest.mark.parametrize("content", [b"hello", b"\0" * 10_000, b"SQLite format 3\0" + b"\xff" * 9000, os.urandom(5000)])
def test_a_file_that_is_no_database_is_set_aside(bench, kept, content):
    Path(bench.path).write_bytes(content)
    store = bench.open()
    assert look(store, kept) == (0, 0)
    (notice,) = store.notices
    (aside,) = bench.names("damaged")
    assert "was damaged" in notice and aside in notice and (bench.directory / aside).read_bytes() == content
    works(bench, store)


def test_one_wrong_byte_in_the_header_costs_nothing(bench):
    store = bench.open()
    kept = fill(store, bench, 30)
    store.close()
    intact = Path(bench.path).read_bytes()
    for at in range(100):
        for name in bench.names("mailboxes"):
            os.unlink(bench.directory / name)
        fd = os.open(bench.path, os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, intact[:at] + bytes([intact[at] ^ 0xFF]) + intact[at + 1 :])
        os.close(fd)
        store = bench.open()
        messages, _ = look(store, kept)
        assert messages == 30, f"byte {at}: {store.notices}"
        store.close()


class Sample:
    """A database to copy and damage."""

    def __init__(self, bench: Bench, kept: Kept) -> None:
        self.bench = bench
        self.kept = kept


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 40), cut=st.integers(0, 3))
def test_random_damage_never_raises(sample, seed, flips, cut):
    source, kept = sample.bench, sample.kept
    with tempfile.TemporaryDirectory(prefix="zb-repair-") as name:
        shutil.copytree(source.directory, name, dirs_exist_ok=True)
        path, log = str(Path(name) / "mailboxes.sqlite3"), str(Path(name) / "messages.log")
        chance = random.Random(seed)
        size = os.path.getsize(path)
        for _ in range(flips):
            overwrite(path, chance.randrange(size - 64), chance.randbytes(chance.choice((1, 2, 60))))
        if cut == 3:
            os.truncate(path, chance.randrange(size))
        store = SqliteStore(path, log)
        # Without checksums, SQLite misses a wrong letter in a name; that must not raise.
        store.recover(1000)
        for key in kept:
            numbers = [number for number, _ in store.after(key, 0, 10_000)]
            assert numbers == sorted(numbers)
        assert store.total() == sum(box.messages for box in store.recover(9).boxes)
        store.stale(5.0)
        store.oldest_segment()
        store.remove("box0", range(1, 500))
        store.put("box0", 1000, kept["box0"][1])
        try:
            store.commit()
        finally:
            store.close()


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Iterator[Sample]:
    bench = Bench(tmp_path_factory.mktemp("repair") / "data")
    store = bench.open()
    kept = fill(store, bench, 200)
    store.close()
    yield Sample(bench, kept)
    bench.journal.close()


def test_keys_out_of_order_are_noticed(bench, kept):
    """A search would miss the misplaced row, although every page is valid by itself."""
    content = Path(bench.path).read_bytes()
    at = content.index(b"message00302")  # the byte before a message id, in the second mailbox, is its number
    assert content[at - 1] == 101
    overwrite(bench.path, at - 1, b"\x01")
    store = bench.open()
    messages, _ = look(store, kept)
    assert messages >= MESSAGES - 60 and "order" in store.notices[0].lower()
    works(bench, store)


def test_a_database_of_another_program_is_set_aside(bench):
    db = sqlite3.connect(bench.path)
    with db:
        db.execute("PRAGMA application_id = 7")
        db.execute("CREATE TABLE owed (something)")
        db.execute("INSERT INTO owed VALUES ('x')")
    db.close()
    os.chmod(bench.path, 0o600)
    before = Path(bench.path).read_bytes()
    store = bench.open()
    assert "the database of another program" in store.notices[0] and store.total() == 0
    (aside,) = bench.names("damaged")
    assert (bench.directory / aside).read_bytes() == before
    works(bench, store)


def test_changed_tables_are_restored(bench, kept):
    db = sqlite3.connect(bench.path)
    with db:
        db.execute("ALTER TABLE sessions ADD COLUMN colour TEXT")
        db.execute("DROP TABLE awaited")
    db.close()
    store = bench.open()
    assert look(store, kept) == (MESSAGES, 20)
    assert "its tables are not those" in store.notices[0]
    works(bench, store)


def test_mail_of_lost_mailboxes_is_reported(bench, kept):
    for bad in pages_of(bench.path, "mailboxes"):
        overwrite(bench.path, (bad - 1) * PAGE, b"\xa5" * PAGE)
    store = bench.open()
    assert look(store, kept) == (0, 20)
    assert "others could not be read" in store.notices[0]
    works(bench, store)
