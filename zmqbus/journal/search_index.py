"""The search index: a database beside the log, made from the log alone, that may be deleted at any time.

Theory of operation
===================

`search.sqlite` holds one FTS5 table of words for each segment of the log; a row id is the offset at which a record
begins. There is a table for each segment because segments are deleted as a whole: dropping a table costs nothing, while
SQLite before 3.43 cannot remove single texts from an index that does not store them. It does not store them, since they
are in the log: the index of 1 GB of texts is some 400 MB, of which a search reads a few pages.

*Filling.* `fill` continues where each segment's row says (`done`), in transactions of a few MiB: killed at any instant,
it loses at most the last of them, and two that fill at once take turns. The row also identifies the file that it was
made from, by the first bytes of the segment and the last bytes before `done`. A file that no longer matches (the log
was removed and begun again, or somebody has cut it) is indexed again.

*Disposable.* A database that is damaged, of another release or no database at all is deleted and begun again. A search
depends on the log alone: it looks there for everything that is not in the index (`search_query`).

*In a process of its own.* One core indexes 27 MB/s, so one text of 10 MiB takes 0.4 s and cannot be divided. That is
too long for any pause of the broker's loop, so a process of the lowest priority does it: see `broker.shell.indexer`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from zmqbus.errors import Unauthorized
from zmqbus.journal.filter import ALL, Entry, LineFilter, text_of
from zmqbus.journal.lines import lines_forward
from zmqbus.journal.record import JournalError
from zmqbus.journal.segments import Place, numbered_segments, open_if_there, open_numbered
from zmqbus.security.private_files import open_private

#: Version of this layout. A file with another one is replaced.
FORMAT = 1
APPLICATION_ID = 0x7A62_5331  # "zbS1"
#: Bytes of lines in one transaction. It takes some 150 ms, and ending this process may have to wait for it.
BATCH_BYTES = 4 * 1024 * 1024
#: So many first bytes of a segment, and last indexed bytes, identify it.
MARK_BYTES = 64
#: Wait for a transaction of another process that fills at the same time.
LOCK_TIMEOUT_S = 5.0
#: Ignores accents and case.
TOKENIZE = "unicode61 remove_diacritics 2"
SUFFIXES = ("", "-wal", "-shm", "-journal")


class IndexFault(JournalError):
    """The index cannot be written or read. Searches read the log then."""


class Progress(NamedTuple):
    """How far a segment is indexed."""

    serial: int
    done: int  # bytes
    head: bytes  # the first bytes of the file
    tail: bytes  # the last ones before `done`


def _table(serial: int) -> str:
    return f"texts_{serial:d}"


class Index:
    """The open database. `Index.open` opens it for filling, `Index.open_existing` for reading."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database. Idempotent."""
        self._connection.close()

    @classmethod
    def open(cls, path: str) -> Index:
        """Opens the index for filling; makes it if it is missing or unusable.

        Raises `IndexFault` if that fails, `Unauthorized` for a file that is a link or open to others.
        """
        for attempt in (1, 2):
            os_errors: OSError | None = None
            try:
                # SQLite makes its other files with the mode of this one. Closed before SQLite opens it, because closing
                # any descriptor of a file releases this process's locks on it.
                os.close(open_private(path, os.O_RDWR | os.O_CREAT))
                connection = _connect(path, "rwc")
                try:
                    _make(connection)
                    return cls(path, connection)
                except BaseException:
                    connection.close()
                    raise
            except sqlite3.Error as error:
                if attempt == 2 or not _is_damage(error):
                    raise _fault(path, error) from None
            except OSError as error:
                os_errors = error
            if os_errors is not None:
                raise IndexFault(f"{path} cannot be made: {os_errors.strerror}; make room on its disk") from None
            remove(path)
        raise AssertionError("the second attempt returns or raises")

    @classmethod
    def open_existing(cls, path: str) -> Index | None:
        """Opens the index for reading; None if it is missing or unusable. Raises `Unauthorized` as `open` does."""
        fd = open_if_there(path)
        if fd is None:
            return None
        os.close(fd)
        try:
            connection = _connect(path, "rw")  # a reader of a write-ahead log has to write its lock file
        except sqlite3.Error:
            return None
        try:
            if (
                _pragma(connection, "user_version") == FORMAT
                and _pragma(connection, "application_id") == APPLICATION_ID
            ):
                return cls(path, connection)
        except sqlite3.Error:
            pass
        connection.close()
        return None

    def segments(self) -> dict[int, Progress]:
        """How far each segment is indexed, by its serial. Raises `IndexFault`."""
        with self._errors():
            rows = self._connection.execute("SELECT serial, done, head, tail FROM segments").fetchall()
        return {row[0]: Progress(*row) for row in rows}

    def matches(self, serial: int, query: str, before: int) -> Iterator[int]:
        """Offsets of the records in a segment that match an FTS5 query and lie before `before`, the last one first.

        Raises `IndexFault`.
        """
        with self._errors():
            yield from (
                row[0]
                for row in self._connection.execute(
                    f"SELECT rowid FROM {_table(serial)} WHERE {_table(serial)} MATCH ? AND rowid < ? "
                    "ORDER BY rowid DESC",
                    (query, before),
                )
            )

    def fill(self, log_path: str, may_continue: Callable[[], bool] = lambda: True) -> int:
        """Indexes the new records of the log, and drops segments that the log no longer has.

        Returns how many records were added. Calls `may_continue` between transactions, each of some 150 ms. Raises
        `IndexFault` if the index cannot be written, `JournalError` if the log cannot be read.
        """
        known, _ = numbered_segments(log_path)
        with self._errors(), self._transaction():
            for serial in self.segments().keys() - {serial for serial, _ in known}:
                self._drop(serial)
        added = 0
        for serial, name in known:
            try:
                fd = open_numbered(log_path, serial, name)
            except Unauthorized:
                continue  # searches report it
            if fd is None:
                continue  # deleted meanwhile
            try:
                while may_continue() and (records := self._add(fd, serial)):
                    added += records
            except OSError as error:
                raise JournalError(f"{name} cannot be read: {error.strerror}; see to its disk") from None
            finally:
                os.close(fd)
        return added

    def _add(self, fd: int, serial: int) -> int:
        """Indexes the next part of a segment in one transaction; returns the number of its lines."""
        with self._errors(), self._transaction():
            there = self.segments().get(serial)
            if there is not None and not is_same_file(there, fd):
                self._drop(serial)
                there = None
            size = os.fstat(fd).st_size
            begin = 0 if there is None else there.done
            if size == begin:
                return 0
            if there is None:
                self._connection.execute(
                    f"CREATE VIRTUAL TABLE {_table(serial)} USING "
                    f"fts5(text, content='', columnsize=0, tokenize=\"{TOKENIZE}\")"
                )
            count, end = 0, begin
            insert = f"INSERT INTO {_table(serial)} (rowid, text) VALUES (?, ?)"
            texts = Texts()
            for start, length, line in lines_forward(fd, begin):
                text = texts.of(fd, Place(serial, start), length, line)
                if text:
                    self._connection.execute(insert, (start, text))
                count += 1
                end = start + length + 1
                if end - begin >= BATCH_BYTES:
                    break
            if end > begin:
                mark = max(0, end - MARK_BYTES)
                self._connection.execute(
                    "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?)",
                    (serial, end, os.pread(fd, min(MARK_BYTES, end), 0), os.pread(fd, end - mark, mark)),
                )
            return count

    def _drop(self, serial: int) -> None:
        self._connection.execute(f"DROP TABLE IF EXISTS {_table(serial)}")
        self._connection.execute("DELETE FROM segments WHERE serial = ?", (serial,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _fault(self._path, error) from None


class Texts:
    """The texts of lines, as the index has them."""

    def __init__(self) -> None:
        self._filter = LineFilter(ALL)

    def of(self, fd: int, place: Place, length: int, line: bytes) -> str:
        """The whole text of a line, of which `line` may be only the beginning; "" for a record without one."""
        entry = self._filter.match(fd, place, length, line)
        if not isinstance(entry, Entry) or entry.fmt == "bytes":
            return ""
        try:
            return entry.head if entry.whole else text_of(fd, place, length, line)
        except JournalError:
            return ""  # it is damaged


def is_same_file(progress: Progress, fd: int) -> bool:
    """Whether the indexed part is that of this file, and still in it."""
    mark = max(0, progress.done - MARK_BYTES)
    head = os.pread(fd, min(MARK_BYTES, progress.done), 0)
    return (head, os.pread(fd, progress.done - mark, mark)) == (progress.head, progress.tail)


def remove(path: str) -> None:
    """Deletes the index. Raises `IndexFault`."""
    for suffix in SUFFIXES:
        try:
            os.unlink(path + suffix)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise IndexFault(f"{path} is damaged and cannot be removed: {error.strerror}; remove it by hand") from None


def _connect(path: str, mode: str) -> sqlite3.Connection:
    from urllib.parse import quote

    return sqlite3.connect(
        f"file:{quote(path)}?mode={mode}",
        uri=True,
        timeout=LOCK_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _make(connection: sqlite3.Connection) -> None:
    """Makes the tables in an empty file; raises DatabaseError for a file with other contents."""
    connection.execute("PRAGMA journal_mode = WAL")  # so that readers do not wait for the process that fills
    connection.execute("PRAGMA synchronous = NORMAL")  # a power cut costs the last transactions at most
    found = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    if found == (APPLICATION_ID, FORMAT):
        return
    if found != (0, 0) or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise sqlite3.DatabaseError("of another release")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS segments (serial INTEGER PRIMARY KEY, done INTEGER, head BLOB, tail BLOB)"
    )
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("COMMIT")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is damaged: a full disk, a missing permission or a lock are an OperationalError."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def _fault(path: str, error: sqlite3.Error) -> IndexFault:
    if _is_damage(error):
        return DamagedIndex(
            f"the search index {path} is damaged ({error}); the broker makes it again, or run: rm '{path}'"
        )
    return IndexFault(f"the search index {path} cannot be used: {error}; make room on its disk, or run: rm '{path}'")


class DamagedIndex(IndexFault):
    """The file is not a valid database; deleting it is the remedy."""
