"""The database file: damaged write-ahead logs, files of newer releases, and obstacles to opening it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from tests.broker.storekit import MESSAGES, Bench, Kept, look, overwrite, works
from zmqbus.broker.storage import file
from zmqbus.broker.storage.api import StoreError
from zmqbus.broker.storage.sqlite import SqliteStore
from zmqbus.errors import Unauthorized

# --- the write-ahead log


@pytest.fixture
def died(bench) -> tuple[Bench, Kept]:
    """Files of a killed broker: three commits of 400 messages, all of them in the write-ahead log only."""
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


def test_an_intact_log_is_read(died):
    bench, kept = died
    store = bench.open()
    assert look(store, kept) == (1200, 0) and store.notices == []
    works(bench, store)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7, 0.999])
def test_a_truncated_log_keeps_whole_commits(died, share):
    bench, kept = died
    os.truncate(bench.path + "-wal", int(os.path.getsize(bench.path + "-wal") * share))
    store = bench.open()
    messages, _ = look(store, kept)
    assert messages in {0.0: (0,), 0.1: (0,), 0.5: (400,), 0.7: (800, 400), 0.999: (800,)}[share]
    works(bench, store)


@pytest.mark.parametrize("at", ["header", "first page", "middle"])
def test_a_damaged_log_is_kept_and_reported(died, at):
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


def test_an_incomplete_last_page_is_no_damage(died):
    bench, kept = died
    with open(bench.path + "-wal", "ab") as log:
        log.write(b"\0" * 3000)
    store = bench.open()
    assert look(store, kept) == (1200, 0) and store.notices == []
    works(bench, store)


def test_a_reused_log_is_no_damage(bench, monkeypatch):
    monkeypatch.setattr(file, "CHECKPOINT_PAGES", 50)
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
            other = SqliteStore(str(copy / "mailboxes.sqlite3"), bench.log)
            assert look(other, kept) == (number, 0) and other.notices == []
            other.close()
    store.close()


def test_a_log_beside_an_empty_database_is_kept(died):
    bench, kept = died
    os.truncate(bench.path, 0)
    log = Path(bench.path + "-wal").read_bytes()
    store = bench.open()
    assert look(store, kept) == (0, 0)
    (aside,) = bench.names("damaged")
    assert aside in store.notices[0] and (bench.directory / aside).read_bytes() == log
    works(bench, store)


def test_an_intact_log_repairs_the_damaged_page(died):
    bench, kept = died
    overwrite(bench.path, 0, b"\xa5" * 100)
    store = bench.open()
    assert look(store, kept) == (1200, 0) and store.notices == [], "the log has the damaged page as well"
    works(bench, store)


# --- a newer release


def test_a_file_of_a_newer_release_is_set_aside_and_can_be_put_back(bench, kept):
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


def test_files_set_aside_in_one_second_get_distinct_names(bench, monkeypatch):
    monkeypatch.setattr(time, "gmtime", lambda: (2026, 1, 2, 3, 4, 5, 0, 0, 0))
    for number in range(3):
        Path(bench.path).write_bytes(b"rubbish %d" % number)
        os.chmod(bench.path, 0o600)
        bench.open().close()
    found = [name for name in bench.names("damaged") if not name.endswith("-wal")]
    stamp = "mailboxes.sqlite3.damaged-20260102T030405Z"
    assert found == [stamp, f"{stamp}-2", f"{stamp}-3"]
    assert [(bench.directory / name).read_bytes() for name in found] == [b"rubbish %d" % number for number in range(3)]


# --- obstacles


def test_a_file_that_cannot_be_set_aside_stays_unchanged(bench, kept, monkeypatch):
    overwrite(bench.path, 0, b"rubbish" * 20)
    before = Path(bench.path).read_bytes()

    def rename(old, new):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(StoreError, match=r"nor set it aside: Permission denied; move it away by hand"):
            bench.open()
    assert Path(bench.path).read_bytes() == before
    store = bench.open()
    look(store, kept)
    works(bench, store)


class Died(BaseException):
    """An error that no code catches."""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_crash_between_the_renames_loses_nothing(died, monkeypatch, renames):
    """The next broker continues after 0, 1 or 2 of the three renames."""
    bench, kept = died
    left = renames
    rename = os.rename

    def dying(old, new):
        nonlocal left
        if left == 0:
            raise Died
        left -= 1
        rename(old, new)

    # A clean close removes the log; that of a damaged database may stay, and has to be moved as well.
    monkeypatch.setattr(file, "_fault", lambda *args: "damaged, for the test")
    closing = file.replace

    def replace(path, *args, **options):
        Path(path + "-wal").touch(mode=0o600)
        return closing(path, *args, **options)

    monkeypatch.setattr(file, "replace", replace)
    monkeypatch.setattr(os, "rename", dying)
    with pytest.raises(Died):
        bench.open()
    monkeypatch.undo()
    store = bench.open()
    assert look(store, kept) == (1200, 0)
    assert not bench.names(".new") and not bench.names(".reading")
    works(bench, store)


def test_a_locked_file_is_no_damage(bench, kept, monkeypatch):
    monkeypatch.setattr(file, "LOCK_TIMEOUT_S", 0.05)
    other = sqlite3.connect(bench.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"held by another program .*end that one"):
        bench.open()
    other.execute("ROLLBACK")
    other.close()
    store = bench.open()
    assert look(store, kept) == (MESSAGES, 20) and store.notices == []
    store.close()


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(StoreError, match=r"cannot open .*: No such file"):
        SqliteStore(str(tmp_path / "none" / "mailboxes.sqlite3"), str(tmp_path / "none" / "messages.log"))


def test_a_log_that_others_can_read_is_refused(bench, kept):
    Path(bench.path + "-wal").touch(mode=0o644)
    os.chmod(bench.path + "-wal", 0o644)
    with pytest.raises(Unauthorized, match="-wal is open to other users"):
        bench.open()
