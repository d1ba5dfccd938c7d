"""The search index: filled in steps, without deleted segments, and replaced whenever it is invalid."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.records import RECORD, encode_record, ids, line
from zmqbus.errors import Unauthorized
from zmqbus.journal import search_index as search_index_module
from zmqbus.journal.history import History
from zmqbus.journal.search_index import DamagedIndex, Index, IndexFault, remove
from zmqbus.journal.writer import Journal


@pytest.fixture
def index_path(tmp_path: Path) -> str:
    return str(tmp_path / "search.sqlite")


@pytest.fixture
def log(path: str) -> Iterator[Journal]:
    log = Journal(path, segment_bytes=2000, keep=3)
    yield log
    log.close()


def write(log: Journal, *texts: str, start: int = 0) -> None:
    for msg_id, text in zip(ids(len(texts), start), texts, strict=True):
        log.append([line(msg_id, text)])


def fill(index_path: str, path: str) -> int:
    with Index.open(index_path) as index:
        return index.fill(path)


def found(index_path: str, query: str) -> list[tuple[int, int]]:
    index = Index.open_existing(index_path)
    assert index is not None
    with index:
        return [(serial, at) for serial in sorted(index.segments()) for at in index.matches(serial, query, 2**62)]


def places(path: str, *numbers: int) -> list[tuple[int, int]]:
    entries = list(History(path).entries())
    return [tuple(entries[number].place) for number in numbers]  # type: ignore[misc]


def test_indexed_records_are_found(log: Journal, path: str, index_path: str) -> None:
    write(log, "the apple falls", "pears", "an APPLE a day", "Äpfel")
    assert fill(index_path, path) > 0
    assert sorted(found(index_path, "apple")) == places(path, 0, 2)
    assert found(index_path, "apfel") == places(path, 3)
    assert stat.S_IMODE(os.stat(index_path).st_mode) == 0o600


def test_missing_log_gives_an_empty_index(path: str, index_path: str) -> None:
    assert fill(index_path, path) == 0
    assert found(index_path, "apple") == []


def test_filled_in_steps(log: Journal, path: str, index_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_index_module, "BATCH_BYTES", 1)
    write(log, "one", "two", "three")
    with Index.open(index_path) as index:
        steps = iter((True, True, False))
        index.fill(path, lambda: next(steps))
        done = index.segments()[1].done
        assert [next(iter(index.matches(1, word, 2**62)), None) is not None for word in ("one", "two", "three")] == (
            [True, False, False]  # the first step was the segment's own first line
        )
    fill(index_path, path)
    write(log, "four", start=3)
    fill(index_path, path)
    assert [found(index_path, word) for word in ("one", "two", "three", "four")] == (
        [places(path, number) for number in range(4)]
    )
    with Index.open(index_path) as index:
        assert index.segments()[1].done > done
        assert index.fill(path) == 0


def test_two_processes_that_fill_add_nothing_twice(
    log: Journal, path: str, index_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index_module, "BATCH_BYTES", 1)
    write(log, "one", "two", "three")
    with Index.open(index_path) as first, Index.open(index_path) as second:

        def alternate() -> bool:
            second.fill(path, iter((True, False)).__next__)
            return True

        first.fill(path, alternate)
    assert [found(index_path, word) for word in ("one", "two", "three")] == [places(path, n) for n in range(3)]


def test_deleted_segments_are_dropped(log: Journal, path: str, index_path: str) -> None:
    write(log, "apple", *["x" * 1000] * 3)
    fill(index_path, path)
    assert found(index_path, "apple") == places(path, 0)
    write(log, *["y" * 1900] * 6, start=10)
    fill(index_path, path)
    assert found(index_path, "apple") == []
    with sqlite3.connect(index_path) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE sql LIKE '%fts5%'")]
    connection.close()
    assert len(tables) == 4


def test_restarted_log_is_indexed_again(path: str, index_path: str, tmp_path: Path) -> None:
    log = Journal(path)
    write(log, "apple apple apple apple", "plum")
    fill(index_path, path)
    log.close()
    os.unlink(path)
    log = Journal(path)
    write(log, "pear", "apple", "and so on, until it is longer than the first one was: " + "x" * 500)
    log.close()
    fill(index_path, path)
    assert found(index_path, "apple") == places(path, 1)
    assert found(index_path, "plum") == []


def test_cut_log_is_indexed_again(path: str, index_path: str) -> None:
    log = Journal(path)
    write(log, "apple", "plum")
    log.close()
    fill(index_path, path)
    os.truncate(path, os.stat(path).st_size - 5)
    log = Journal(path)
    write(log, "pear", start=2)
    log.close()
    fill(index_path, path)
    assert [len(found(index_path, word)) for word in ("apple", "plum", "pear")] == [1, 0, 1]


def test_values_are_indexed_and_bytes_are_not(path: str, index_path: str) -> None:
    log = Journal(path)
    log.append([encode_record(RECORD._replace(fmt="msgpack", body=b"\x81\xa5apple\x01"))])
    log.append([encode_record(RECORD._replace(fmt="bytes", body=b"apple"))])
    log.append([b'{"rubbish apple":', encode_record(RECORD._replace(body=b"x" * 3_000_000 + b" apple"))])
    log.close()
    fill(index_path, path)
    assert sorted(found(index_path, "apple")) == places(path, 0, 2)
    assert found(index_path, "bytes") == []


@pytest.mark.parametrize(
    "content",
    [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000],
    ids=["another file", "a damaged one"],
)
def test_file_that_is_no_index_is_replaced(log: Journal, path: str, index_path: str, content: bytes) -> None:
    write(log, "apple")
    Path(index_path).write_bytes(content)
    os.chmod(index_path, 0o600)
    fill(index_path, path)
    assert found(index_path, "apple") == places(path, 0)


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 99", "PRAGMA application_id = 1"])
def test_index_of_another_release_is_replaced(log: Journal, path: str, index_path: str, statement: str) -> None:
    write(log, "apple")
    fill(index_path, path)
    connection = sqlite3.connect(index_path)
    connection.execute(statement)
    connection.close()
    assert Index.open_existing(index_path) is None
    fill(index_path, path)
    assert found(index_path, "apple") == places(path, 0)


def test_later_damage_is_reported(log: Journal, path: str, index_path: str) -> None:
    write(log, *["some words of a text"] * 200)
    fill(index_path, path)
    with open(index_path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (os.stat(index_path).st_size - 4096))
    with pytest.raises(DamagedIndex, match="is damaged"), Index.open(index_path) as index:
        index.fill(path)
    remove(index_path)
    fill(index_path, path)


def test_files_open_to_others_are_refused(log: Journal, path: str, index_path: str) -> None:
    fill(index_path, path)
    os.chmod(index_path, 0o644)
    for open_it in (Index.open, Index.open_existing):
        with pytest.raises(Unauthorized, match="chmod 600"):
            open_it(index_path)


def test_missing_index(index_path: str) -> None:
    assert Index.open_existing(index_path) is None
    assert not os.path.lexists(index_path)


def test_unwritable_directory(tmp_path: Path) -> None:
    with pytest.raises(IndexFault, match="cannot be made"):
        Index.open(str(tmp_path / "none" / "search.sqlite"))


def test_full_disk(log: Journal, path: str, index_path: str) -> None:
    write(log, *["words " * 100] * 3)
    with Index.open(index_path) as index:
        index._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(IndexFault, match="full; make room on its disk"):
            index.fill(path)
        index._connection.execute("PRAGMA max_page_count = 100000")
        index.fill(path)  # continues as soon as there is room
    assert len(found(index_path, "words")) == len(places(path, *range(len(list(History(path).entries())))))
