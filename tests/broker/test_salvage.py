"""Whatever is in the file of the mailboxes: the broker starts, what can be read is saved, nothing is thrown away."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.broker.storekit import Bench, awaited, refusal, session
from zmqbus.broker import salvage
from zmqbus.broker.database import Database
from zmqbus.broker.store import Entry, StoreError
from zmqbus.broker.tables import OWED, TABLES, sound
from zmqbus.errors import Unauthorized

PAGE = 4096
MESSAGES = 1200
BOXES = 3

Kept = dict[str, dict[int, Entry]]


@pytest.fixture
def bench(tmp_path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "data")
    yield bench
    bench.journal.close()


def fill(store: Database, bench: Bench, count: int = MESSAGES) -> Kept:
    """Puts in messages for three mailboxes, and some of everything else."""
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


@pytest.fixture
def kept(bench) -> Kept:
    """What is in the closed database of the bench."""
    store = bench.open()
    kept = fill(store, bench)
    store.close()
    return kept


def look(store: Database, kept: Kept) -> tuple[int, int]:
    """Checks that all that is there was once put; returns how many messages, and how many sessions."""
    found = store.recover(10_000)
    messages = 0
    for key, box in kept.items():
        after = store.after(key, 0, 10_000)
        assert [number for number, _ in after] == sorted(number for number, _ in after)
        for number, entry in after:
            assert entry == box[number]
        messages += len(after)
    assert messages == store.total() == sum(box.messages for box in found.boxes) == len(found.owed)
    assert set(found.sessions) <= {session(f"box{number}") for number in range(20)}
    return messages, len(found.sessions)


def works(bench: Bench, store: Database) -> None:
    """Checks that it takes messages, and keeps them."""
    made = bench.entry()
    store.put("new", 1, made)
    store.commit()
    store.close()
    store = bench.open()
    assert store.notices == [] and store.after("new", 0, 9) == [(1, made)]
    store.close()


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


def overwrite(path: str, at: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)


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


@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.1])
def test_a_truncated_file(bench, kept, share):
    os.truncate(bench.path, int(os.path.getsize(bench.path) * share))
    store = bench.open()
    messages, _ = look(store, kept)
    assert messages < MESSAGES and (messages > 0 or share < 0.9)
    assert len(store.notices) == 1 and len(bench.names("damaged")) == 1
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
        assert messages == 30 or store.notices, f"byte {at}"
        store.close()


class Sample:
    """A database to be copied and damaged."""

    def __init__(self, bench: Bench, kept: Kept) -> None:
        self.bench = bench
        self.kept = kept


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


# --- the write-ahead log


@pytest.fixture
def died(bench) -> tuple[Bench, Kept]:
    """What a killed broker leaves: three commits of 400 messages, all of them in the log only."""
    store = bench.open()
    kept: Kept = {"box0": {}}
    for number in range(1, 1201):
        kept["box0"][number] = bench.entry(b"text %d" % number)
        store.put("box0", number, kept["box0"][number])
        if number % 400 == 0:
            store.commit()
    files = {suffix: Path(bench.path + suffix).read_bytes() for suffix in ("", "-wal")}
    store.close()
    for suffix, content in files.items():
        fd = os.open(bench.path + suffix, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.write(fd, content)
        os.close(fd)
    return bench, kept


def test_a_log_that_is_whole(died):
    bench, kept = died
    store = bench.open()
    assert look(store, kept) == (1200, 0) and store.notices == []
    works(bench, store)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7, 0.999])
def test_a_log_that_was_cut(died, share):
    """As by a failure of power, or a copy that was not finished: whole commits are kept."""
    bench, kept = died
    os.truncate(bench.path + "-wal", int(os.path.getsize(bench.path + "-wal") * share))
    store = bench.open()
    messages, _ = look(store, kept)
    assert messages in {0.0: (0,), 0.1: (0,), 0.5: (400,), 0.7: (800, 400), 0.999: (800,)}[share]
    works(bench, store)


@pytest.mark.parametrize("at", ["header", "first page", "middle"])
def test_a_log_that_was_garbled_is_kept_and_spoken_of(died, at):
    bench, kept = died
    log = Path(bench.path + "-wal")
    size = log.stat().st_size
    overwrite(str(log), {"header": 17, "first page": 100, "middle": size // 2}[at], b"\xa5\x5a" * 4)
    before = log.read_bytes()
    store = bench.open()
    messages, _ = look(store, kept)
    assert messages == (400 if at == "middle" else 0)
    (notice,) = store.notices
    (aside,) = bench.names("damaged")
    assert "the last changes to the mailboxes were lost" in notice and aside in notice
    assert (bench.directory / aside).read_bytes() == before
    works(bench, store)


def test_the_end_of_a_write_that_was_cut_short_is_no_damage(died):
    bench, kept = died
    with open(bench.path + "-wal", "ab") as log:
        log.write(b"\0" * 3000)
    store = bench.open()
    assert look(store, kept) == (1200, 0) and store.notices == []
    works(bench, store)


def test_a_log_that_was_written_over_from_its_start_is_no_damage(bench, monkeypatch):
    monkeypatch.setattr(salvage, "CHECKPOINT_PAGES", 50)
    store = bench.open()
    kept: Kept = {"box0": {}}
    for number in range(1, 601):
        kept["box0"][number] = bench.entry(b"text %d" % number)
        store.put("box0", number, kept["box0"][number])
        store.commit()
        if number % 97 == 0:
            copy = bench.directory / f"copy{number}"
            copy.mkdir(mode=0o700)
            for name in bench.names("mailboxes.sqlite3"):
                shutil.copy(bench.directory / name, copy / name)
            other = Database(str(copy / "mailboxes.sqlite3"), bench.log)
            assert look(other, kept) == (number, 0) and other.notices == []
            other.close()
    store.close()


def test_a_log_beside_an_empty_file_is_kept(died):
    bench, kept = died
    os.truncate(bench.path, 0)
    log = Path(bench.path + "-wal").read_bytes()
    store = bench.open()
    assert look(store, kept) == (0, 0)
    (aside,) = bench.names("damaged")
    assert aside in store.notices[0] and (bench.directory / aside).read_bytes() == log
    works(bench, store)


def test_damage_with_a_log_beside_it(died):
    bench, kept = died
    overwrite(bench.path, 0, b"\xa5" * 100)
    store = bench.open()
    look(store, kept)
    assert len(store.notices) == 1
    works(bench, store)


# --- a newer release


def test_a_file_of_a_newer_release_is_put_aside_and_can_be_put_back(bench, kept):
    db = sqlite3.connect(bench.path)
    with db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    store = bench.open()
    assert look(store, kept) == (0, 0)
    (notice,) = store.notices
    (aside,) = bench.names("newer")
    assert "written by a newer release (format 2" in notice and aside in notice and "move the file back" in notice
    works(bench, store)
    db = sqlite3.connect(bench.directory / aside)
    assert db.execute("SELECT count(*) FROM owed").fetchone() == (MESSAGES,)
    with db:
        db.execute("PRAGMA user_version = 1")
    db.close()
    os.rename(bench.directory / aside, bench.path)
    store = bench.open()
    assert look(store, kept) == (MESSAGES, 20) and store.notices == []
    store.close()


def test_two_in_one_second_have_two_names(bench, monkeypatch):
    monkeypatch.setattr(salvage.time, "gmtime", lambda: (2026, 1, 2, 3, 4, 5, 0, 0, 0))
    for number in range(3):
        Path(bench.path).write_bytes(b"rubbish %d" % number)
        os.chmod(bench.path, 0o600)
        bench.open().close()
    found = [name for name in bench.names("damaged") if not name.endswith("-wal")]
    stamp = "mailboxes.sqlite3.damaged-20260102T030405Z"
    assert found == [stamp, f"{stamp}-2", f"{stamp}-3"]
    assert [(bench.directory / name).read_bytes() for name in found] == [b"rubbish %d" % number for number in range(3)]


# --- what is in the way


def test_one_that_cannot_be_set_aside(bench, kept, monkeypatch):
    overwrite(bench.path, 0, b"rubbish" * 20)
    before = Path(bench.path).read_bytes()

    def rename(old, new):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(salvage.os, "rename", rename)
        with pytest.raises(StoreError, match=r"cannot be set aside: Permission denied; move it away by hand"):
            bench.open()
    assert Path(bench.path).read_bytes() == before
    store = bench.open()
    look(store, kept)
    works(bench, store)


class Died(BaseException):
    """Not an error that anything would catch."""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_death_while_it_is_set_aside_loses_nothing(died, monkeypatch, renames):
    """After so many of the three renames: the next broker goes on from there."""
    bench, kept = died
    left = renames
    rename = os.rename

    def dying(old, new):
        nonlocal left
        if left == 0:
            raise Died
        left -= 1
        rename(old, new)

    # A connection that closes works its log into the file; the log of a damaged one may stay, and has to move too.
    monkeypatch.setattr(salvage, "_fault", lambda *args: "said to be damaged")
    closing = salvage.mend

    def mend(path, *args, **options):
        Path(path + "-wal").touch(mode=0o600)
        return closing(path, *args, **options)

    monkeypatch.setattr(salvage, "mend", mend)
    monkeypatch.setattr(salvage.os, "rename", dying)
    with pytest.raises(Died):
        bench.open()
    monkeypatch.undo()
    store = bench.open()
    assert look(store, kept) == (1200, 0)
    assert not bench.names(".new") and not bench.names(".reading")
    works(bench, store)


def test_a_lock_is_no_damage(bench, kept, monkeypatch):
    monkeypatch.setattr(salvage, "LOCK_TIMEOUT_S", 0.05)
    other = sqlite3.connect(bench.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"held by another program .*end that one"):
        bench.open()
    other.execute("ROLLBACK")
    other.close()
    store = bench.open()
    assert look(store, kept) == (MESSAGES, 20) and store.notices == []
    store.close()


def test_no_directory(tmp_path):
    with pytest.raises(StoreError, match=r"cannot be opened: No such file"):
        Database(str(tmp_path / "none" / "mailboxes.sqlite3"), str(tmp_path / "none" / "messages.log"))


def test_a_log_of_somebody_else(bench, kept):
    Path(bench.path + "-wal").touch(mode=0o644)
    os.chmod(bench.path + "-wal", 0o644)
    with pytest.raises(Unauthorized, match="-wal is open to other users"):
        bench.open()


# --- parts


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_sqlite_keeps_the_statement_that_made_a_table(table):
    db = sqlite3.connect(":memory:")
    db.execute(table.create)
    assert db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table.name,)).fetchone() == (table.create,)
    db.close()


def test_what_is_sound():
    row = (1, 1, "id", "s", "n", None, 0, "t", 0, None, 1.0, 1.0, 5, 1, 0, 9, 7)
    assert sound(OWED, row) and sound(OWED, (*row[:5], "label", *row[6:]))
    for number, value in ((0, "1"), (1, 0), (2, None), (2, b"id"), (6, 5), (8, 3), (10, 1), (12, -1), (16, None)):
        assert not sound(OWED, (*row[:number], value, *row[number + 1 :]))
