"""The search index: a database beside the log, made from nothing else, that anybody may delete at any time.

Theory of operation
===================

`search.sqlite` holds, for each segment of the log, one FTS5 table of the words in its texts, under the offset at which
a record begins. A table for a segment, because segments are what goes: dropping a table costs nothing, while SQLite
before 3.43 cannot take single texts out of an index that does not keep them. And it does not keep them (they are in the
log): the index of 1 GB of texts is some 400 MB, of which a search reads a few pages.

*Filling.* `fill` goes on where each segment's row says (`done`), in transactions of a few MiB: killed at any instant,
it has lost the last of them at most, and two that fill at once follow on each other. The row also says which file it
was made from: how the segment begins, and the last bytes before `done`. A file of which that is not true any more
(the log was removed and begun again, or somebody has cut it) is indexed anew.

*Disposable.* A database that is damaged, of another release or no database at all is deleted and begun again. The log
is the only thing that a search depends on: what is not in the index, it looks for in the log itself (`query`).

*Off the broker's way.* 27 MB/s is what one core indexes, so one text of 10 MiB takes 0.4 s and cannot be divided. That
is too long for any pause of the broker's loop; so a process of its own does it, at the lowest priority: see
`broker.indexer`.
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

#: Of this layout. Another one in the file: it is made anew.
FORMAT = 1
APPLICATION_ID = 0x7A62_5331  # "zbS1"
#: Lines of so many bytes go into one transaction. It takes some 150 ms: who ends this process waits so long.
BATCH_BYTES = 4 * 1024 * 1024
#: So many bytes of a segment's beginning and of the end of what is indexed tell that it is the same one.
MARK_BYTES = 64
#: Another process fills at the same time: one transaction of it.
LOCK_TIMEOUT_S = 5.0
#: Accents do not matter, nor does case.
TOKENIZE = "unicode61 remove_diacritics 2"
SUFFIXES = ("", "-wal", "-shm", "-journal")


class IndexFault(JournalError):
    """The index cannot be written or read. Searches go through the log then."""


class Done(NamedTuple):
    """How far a segment is indexed."""

    serial: int
    done: int  # bytes
    head: bytes  # the first bytes of the file
    tail: bytes  # the last ones before `done`


def _table(serial: int) -> str:
    return f"texts_{serial:d}"


class Index:
    """The database, open. `Index.open` opens it to be filled, `Index.look` to be read."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection

    def __repr__(self) -> str:
        return f"<Index {self._path}>"

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database. Idempotent."""
        self._connection.close()

    @classmethod
    def open(cls, path: str) -> Index:
        """Opens the index to be filled; makes it if there is none, or none that can be used.

        Raises `IndexFault` where that is not possible, `Unauthorized` for a file that is a link or open to others.
        """
        for attempt in (1, 2):
            os_errors: OSError | None = None
            try:
                # SQLite makes its other files with the mode of this one. Closed before SQLite opens it: to close any
                # descriptor of a file gives up the locks that this process has on it.
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
    def look(cls, path: str) -> Index | None:
        """Opens the index to be read; None if there is none that can be. Raises `Unauthorized` as `open` does."""
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

    def segments(self) -> dict[int, Done]:
        """How far each segment is indexed, by its serial. Raises `IndexFault`."""
        with self._errors():
            rows = self._connection.execute("SELECT serial, done, head, tail FROM segments").fetchall()
        return {row[0]: Done(*row) for row in rows}

    def matches(self, serial: int, query: str, before: int) -> Iterator[int]:
        """Offsets of the records in a segment that an FTS5 query finds, those before `before`, the last one first.

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

    def fill(self, log_path: str, goes_on: Callable[[], bool] = lambda: True) -> int:
        """Indexes what is in the log and not in here, and drops what is in here and not in the log any more.

        Returns how many records were added. `goes_on` is asked between two transactions, each of some 150 ms. Raises
        `IndexFault` where the index cannot be written, `JournalError` where the log cannot be read.
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
                continue  # whoever searches is told
            if fd is None:
                continue  # deleted meanwhile
            try:
                while goes_on() and (records := self._add(fd, serial)):
                    added += records
            except OSError as error:
                raise JournalError(f"{name} cannot be read: {error.strerror}; see to its disk") from None
            finally:
                os.close(fd)
        return added

    def _add(self, fd: int, serial: int) -> int:
        """Indexes some more of a segment, in one transaction; returns how many lines there were."""
        with self._errors(), self._transaction():
            there = self.segments().get(serial)
            if there is not None and not is_of(there, fd):
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
    """The texts of lines, as they are indexed."""

    def __init__(self) -> None:
        self._filter = LineFilter(ALL)

    def of(self, fd: int, place: Place, length: int, line: bytes) -> str:
        """The whole text of a line, of which `line` may be no more than the beginning; empty for what has none."""
        entry = self._filter.match(fd, place, length, line)
        if not isinstance(entry, Entry) or entry.fmt == "bytes":
            return ""
        try:
            return entry.head if entry.whole else text_of(fd, place, length, line)
        except JournalError:
            return ""  # it is damaged


def is_of(done: Done, fd: int) -> bool:
    """Whether what was indexed was this file, and is still in it."""
    mark = max(0, done.done - MARK_BYTES)
    head = os.pread(fd, min(MARK_BYTES, done.done), 0)
    return (head, os.pread(fd, done.done - mark, mark)) == (done.head, done.tail)


def remove(path: str) -> None:
    """Deletes the index. Raises `IndexFault`."""
    for suffix in SUFFIXES:
        try:
            os.unlink(path + suffix)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise IndexFault(f"{path} is damaged, and cannot be removed: {error.strerror}; remove it by hand") from None


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
    """Makes the tables in an empty file; raises DatabaseError for one that holds something else."""
    connection.execute("PRAGMA journal_mode = WAL")  # so that nobody waits for who fills
    connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last transactions, and nothing else
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
    """For a full disk, a missing permission or a lock it is OperationalError; for what is no database, its parent."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def _fault(path: str, error: sqlite3.Error) -> IndexFault:
    if _is_damage(error):
        return DamagedIndex(f"the search index {path} is damaged ({error}); it is made anew, or: rm '{path}'")
    return IndexFault(f"the search index {path} cannot be used: {error}; make room on its disk, or: rm '{path}'")


class DamagedIndex(IndexFault):
    """It is no database any more; deleting it mends that."""
