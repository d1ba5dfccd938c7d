"""Whatever is in the file of the mailboxes: the broker starts, and what can be read is saved."""

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
from zmqbus.broker.storage.sqlite import Database


@pytest.fixture
def bench(tmp_path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "data")
    yield bench
    bench.journal.close()


@pytest.fixture
def kept(bench) -> Kept:
    """What is in the closed database of the bench."""
    store = bench.open()
    kept = fill(store, bench)
    store.close()
    return kept


def pages_of(path: str, table: str) -> list[int]:
    """The pages of a table, in order; skips the test where SQLite cannot tell."""
    db = sqlite3.connect(path)
    try:
        rows = db.execute("SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path", (table,))
        return [number for (number,) in rows]
    except sqlite3.OperationalError:
        return list(range(len(TABLES) + 5, os.path.getsize(path) // PAGE))  # built without dbstat
    finally:
        db.close()


# --- what was damaged


def test_a_bad_page_costs_its_rows(bench, kept):
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
    assert (bench.directory / aside).read_bytes() == before, "not a byte of it is changed"
    assert all(os.stat(bench.directory / name).st_mode & 0o777 == 0o600 for name in bench.names("mailboxes"))
    assert bench.names("mailboxes") == ["mailboxes.sqlite3", "mailboxes.sqlite3-wal", aside]
    works(bench, store)


@pytest.mark.parametrize("where", ["first", "last", "both ends", "every third"])
def test_bad_pages_anywhere(bench, kept, where):
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
def test_a_truncated_file(bench, kept, share):
    os.truncate(bench.path, int(os.path.getsize(bench.path) * share))
    store = bench.open()
    messages, _ = look(store, kept)
    assert messages < MESSAGES and (messages > 0 or share < 0.95), (
        "where the upper pages are cut off, none can be found"
    )
    assert len(store.notices) == 1 and len(bench.names("damaged")) == 1
    works(bench, store)


@pytest.mark.parametrize("table", ["owed", "sessions", "awaited", "refusals"])
def test_a_page_that_is_cut_off_costs_its_rows_and_makes_no_others(bench, kept, table):
    """SQLite reads it as if zeros followed: rows with other values than were put in."""
    end = pages_of(bench.path, table)[-1] * PAGE
    sound_file = Path(bench.path).read_bytes()
    for missing in range(1, 700, 31):
        for name in bench.names("mailboxes"):
            os.unlink(bench.directory / name)
        with open(os.open(bench.path, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
            file.write(sound_file[: end - missing])
        store = bench.open()
        messages, _ = look(store, kept)
        assert messages < MESSAGES or table != "owed"
        assert len(store.notices) == 1 and len(bench.names("damaged")) == 1
        store.close()


def test_the_last_page_alone_is_cut_off(bench, kept):
    """Nothing else in the file is amiss, and the rest of what it held could pass for values."""
    db = sqlite3.connect(bench.path)
    db.execute("VACUUM")  # leaves no free page at the end
    db.close()
    os.truncate(bench.path, os.path.getsize(bench.path) - 5)
    store = bench.open()
    look(store, kept)
    assert "was damaged (its last page is cut off)" in store.notices[0] and len(bench.names("damaged")) == 1
    works(bench, store)


def test_an_empty_file_is_a_new_one(bench, kept):
    os.truncate(bench.path, 0)
    store = bench.open()
    assert look(store, kept) == (0, 0) and store.notices == [] and bench.names("damaged") == []
    works(bench, store)


@pytest.mark.parametrize("content", [b"hello", b"\0" * 10_000, b"SQLite format 3\0" + b"\xff" * 9000, os.urandom(5000)])
def test_no_database_at_all(bench, kept, content):
    Path(bench.path).write_bytes(content)
    store = bench.open()
    assert look(store, kept) == (0, 0)
    (notice,) = store.notices
    (aside,) = bench.names("damaged")
    assert "was damaged" in notice and aside in notice and (bench.directory / aside).read_bytes() == content
    works(bench, store)


def test_any_byte_of_the_header(bench):
    store = bench.open()
    kept = fill(store, bench, 30)
    store.close()
    sound_file = Path(bench.path).read_bytes()
    for at in range(100):
        for name in bench.names("mailboxes"):
            os.unlink(bench.directory / name)
        fd = os.open(bench.path, os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, sound_file[:at] + bytes([sound_file[at] ^ 0xFF]) + sound_file[at + 1 :])
        os.close(fd)
        store = bench.open()
        messages, _ = look(store, kept)
        assert messages == 30, f"byte {at}: {store.notices}"
        store.close()


class Sample:
    """A database to be copied and damaged."""

    def __init__(self, bench: Bench, kept: Kept) -> None:
        self.bench = bench
        self.kept = kept


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 40), cut=st.integers(0, 3))
def test_garbled_anywhere(garbled_base, seed, flips, cut):
    source, kept = garbled_base.bench, garbled_base.kept
    with tempfile.TemporaryDirectory(prefix="zb-salvage-") as name:
        shutil.copytree(source.directory, name, dirs_exist_ok=True)
        path, log = str(Path(name) / "mailboxes.sqlite3"), str(Path(name) / "messages.log")
        chance = random.Random(seed)
        size = os.path.getsize(path)
        for _ in range(flips):
            overwrite(path, chance.randrange(size - 64), chance.randbytes(chance.choice((1, 2, 60))))
        if cut == 3:
            os.truncate(path, chance.randrange(size))
        store = Database(path, log)
        # What SQLite cannot see (there are no checksums) may be a wrong letter in a name. It is never an exception.
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
def garbled_base(tmp_path_factory) -> Iterator[Sample]:
    bench = Bench(tmp_path_factory.mktemp("salvage") / "data")
    store = bench.open()
    kept = fill(store, bench, 200)
    store.close()
    yield Sample(bench, kept)
    bench.journal.close()


def test_numbers_out_of_order(bench, kept):
    """A search would pass over what stands in the wrong place, though every page looks well."""
    content = Path(bench.path).read_bytes()
    at = content.index(b"message00302")  # the number of a message is the byte before its id, in the second mailbox
    assert content[at - 1] == 101
    overwrite(bench.path, at - 1, b"\x01")
    store = bench.open()
    messages, _ = look(store, kept)
    assert messages >= MESSAGES - 60 and "order" in store.notices[0].lower()
    works(bench, store)


def test_another_programs_database(bench):
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


def test_tables_that_somebody_has_changed(bench, kept):
    db = sqlite3.connect(bench.path)
    with db:
        db.execute("ALTER TABLE sessions ADD COLUMN colour TEXT")
        db.execute("DROP TABLE awaited")
    db.close()
    store = bench.open()
    assert look(store, kept) == (MESSAGES, 20)
    assert "its tables are not those" in store.notices[0]
    works(bench, store)


def test_mail_whose_mailboxes_are_lost_is_spoken_of(bench, kept):
    for bad in pages_of(bench.path, "mailboxes"):
        overwrite(bench.path, (bad - 1) * PAGE, b"\xa5" * PAGE)
    store = bench.open()
    assert look(store, kept) == (0, 20)
    assert "others could not be read" in store.notices[0]
    works(bench, store)
