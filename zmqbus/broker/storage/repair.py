"""Repair: copies the readable rows of a damaged mailbox database into a new one.

Theory of operation
===================

A range of keys is read upwards until an error, then downwards until an error. In the gap, a readable key is searched at
twice the distance each time; if there is one, the keys before it and from it on are read the same way. So a bad page
costs only the rows that it held.

SQLite does not check values, so each copied row must be one that a broker could have written (`is_valid`).

The rows are read from a copy of the damaged file, so that no byte of the original changes: SQLite writes a write-ahead
log into its database even when that is only read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterator

from zmqbus.broker.storage.schema import (
    APPLICATION_ID,
    MAILBOXES,
    OWED,
    PAGE_BYTES,
    TABLES,
    Row,
    Table,
    decoded,
    is_valid,
    make_tables,
)
from zmqbus.security.private_files import open_private

#: Suffixes of the SQLite files that belong to a database.
WAL, JOURNAL = "-wal", "-journal"
#: Suffix of the database that takes the place of the damaged one.
NEW = ".new"
#: Suffix of the copy that is read.
COPY = ".reading"
#: Constant bytes of the file header, by offset: magic, page size, read and write versions, payload fractions; schema
#: format; text encoding. SQLite refuses a whole file for one wrong byte among them.
_CONSTANTS = ((0, b"SQLite format 3\0\x10\0\2\2\0\x40\x20\x20"), (44, b"\0\0\0\4"), (56, b"\0\0\0\1"))
_APPLICATION_ID_AT = 68
#: Reads that are tried in one damaged table. A bad page costs about 20. A table that needs more is beyond repair, and
#: reading it to the end would delay the start of a broker too long.
MAX_READS = 50_000
#: Rows that are copied at once.
COPY_ROWS = 1000
#: Upper bound of the numbers of mailboxes and messages.
MAX_NUMBER = 1 << 40
#: Ends each notice about lost mail.
STILL_THERE = "the texts of all messages are still in messages.log, and zmqbus inbox --msg <id> prints one"
#: Exceptions that `sqlite3` raises for a file; the second when its message quotes text that is not UTF-8.
FileErrors = (sqlite3.Error, UnicodeDecodeError)


def is_damage(error: Exception) -> bool:
    """Whether an error is due to the content of the file, and not to its surroundings."""
    # SQLite reports an overwritten format number in the header as an OperationalError.
    return type(error) in (sqlite3.DatabaseError, UnicodeDecodeError) or "unsupported file format" in str(error)


def repair(path: str) -> str:
    """Creates a new database beside the damaged one, with its readable rows. Returns a sentence about the result.

    The names of the new database and of the copy must be free.
    """
    import shutil  # 0.7 MB that hardly any broker needs

    new, copy = path + NEW, path + COPY
    try:
        for suffix in (WAL, ""):
            if os.path.exists(path + suffix):
                os.close(open_private(copy + suffix, os.O_RDWR | os.O_CREAT))
                shutil.copyfile(path + suffix, copy + suffix)
        # SQLite reads a truncated page as if zeros followed, which would change the values in it.
        whole_bytes = os.path.getsize(copy) // PAGE_BYTES * PAGE_BYTES
        if whole_bytes:
            os.truncate(copy, whole_bytes)
        _restore_header(copy)
        os.close(open_private(new, os.O_RDWR | os.O_CREAT))
        target = sqlite3.connect(new, isolation_level=None)
        try:
            make_tables(target)
            target.execute("BEGIN IMMEDIATE")
            result = _copy_tables(copy, target)
            target.execute("COMMIT")
        finally:
            target.close()
        return result
    finally:
        remove(copy)


def _restore_header(copy: str) -> None:
    """Writes the constant bytes of the header into a database of ours."""
    with open(copy, "r+b") as file:
        file.seek(_APPLICATION_ID_AT)
        if file.read(4) == APPLICATION_ID.to_bytes(4, "big"):
            for at, content in _CONSTANTS:
                file.seek(at)
                file.write(content)


def _copy_tables(copy: str, target: sqlite3.Connection) -> str:
    source = sqlite3.connect(copy, isolation_level=None)
    try:
        source.text_factory = decoded
        try:
            source.execute("PRAGMA locking_mode = EXCLUSIVE")
            source.execute("PRAGMA cell_size_check = ON")
            source.execute("PRAGMA writable_schema = ON")  # reads a file that is shorter than its header says
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except FileErrors:
            return "Nothing in it could be read; " + STILL_THERE
        keys: set[int] = set()
        copies = [_copy_table(source, table, keys, target) for table in TABLES]
    finally:
        try:
            source.close()
        except FileErrors:
            pass  # it is a copy that is about to be deleted
    copied = {table.name: count for table, (count, _) in zip(TABLES, copies, strict=True)}
    result = f"Saved from it: {copied['owed']} messages and {copied['sessions']} sessions"
    if any(lost for _, lost in copies):
        return f"{result}; others could not be read. {STILL_THERE.capitalize()}"
    return f"{result}; nothing was lost"


def _copy_table(
    source: sqlite3.Connection, table: Table, keys: set[int], target: sqlite3.Connection
) -> tuple[int, bool]:
    """Copies the readable rows of a table, and adds mailboxes to `keys`.

    Returns the number of rows, and whether any could not be read.
    """
    reader = _TableReader(source, table, keys)
    batch: list[Row] = []
    for row in reader.rows():
        batch.append(row)
        if table is MAILBOXES:
            keys.add(row[0])
        if len(batch) >= COPY_ROWS:
            target.executemany(table.insert, batch)
            batch.clear()
    target.executemany(table.insert, batch)
    return target.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0], reader.lost


class _TableReader:
    """Reads all readable rows of one table of a damaged database."""

    def __init__(self, source: sqlite3.Connection, table: Table, mailboxes: set[int]) -> None:
        self._source = source
        self._table = table
        self._mailboxes = mailboxes
        self._tries = MAX_READS
        self._taken = 0
        self.lost = False  #: whether any row could not be read

    def rows(self) -> Iterator[Row]:
        """Its valid rows, in no particular order."""
        try:
            self._source.execute(f"SELECT {self._table.names} FROM {self._table.name} LIMIT 0")
        except FileErrors:
            self.lost = True  # no such table, or one with other columns
            return
        if self._table is OWED:
            # The messages of a mailbox whose key is lost have no receiver.
            for mailbox in sorted(self._mailboxes):
                yield from self._range("seq", f"mailbox = {mailbox:d} AND ")
            self.lost = self.lost or self._count() != self._taken
        else:
            yield from self._range("rowid", "")

    def _count(self) -> int | None:
        try:
            count: int = self._source.execute(f"SELECT count(*) FROM {self._table.name}").fetchone()[0]
            return count
        except FileErrors:
            return None

    def _range(self, key: str, where: str) -> Iterator[Row]:
        """All readable rows that match `where`; `key` is their integer key."""
        waiting = [(0, MAX_NUMBER)]
        while waiting and self._tries > 0:
            low, high = waiting.pop()
            low = yield from self._read(key, where, low, high)
            if low > high:
                continue
            high = yield from self._read(key, where, low, high, down=True)
            step = 1
            while low + step <= high:
                if self._is_readable(key, where, low + step, high):
                    waiting += [(low, low + step - 1), (low + step, high)]
                    break
                step *= 2

    def _read(self, key: str, where: str, low: int, high: int, down: bool = False) -> Generator[Row, None, int]:
        """Reads rows from one end until an error. Returns the new end, which is past the other one if all was read."""
        self._tries -= 1
        select = (
            f"SELECT {key}, {self._table.names} FROM {self._table.name} WHERE {where}{key} BETWEEN ? AND ? "
            f"ORDER BY {key} {'DESC' if down else 'ASC'}"
        )
        try:
            for number, *row in self._source.execute(select, (low, high)):
                if type(number) is not int or not low <= number <= high:
                    raise sqlite3.DatabaseError("a row out of place")
                low, high = (low, number - 1) if down else (number + 1, high)
                self._taken += 1
                if is_valid(self._table, tuple(row)):
                    yield tuple(row)
                else:
                    self.lost = True
            return low - 1 if down else high + 1
        except FileErrors:
            self.lost = True
            return high if down else low

    def _is_readable(self, key: str, where: str, low: int, high: int) -> bool:
        self._tries -= 1
        select = f"SELECT {key} FROM {self._table.name} WHERE {where}{key} BETWEEN ? AND ? ORDER BY {key} LIMIT 1"
        try:
            self._source.execute(select, (low, high)).fetchall()
            return True
        except FileErrors:
            return False


def remove(path: str) -> None:
    """Removes a database with its other files."""
    for suffix in ("", WAL, JOURNAL, "-shm"):
        try:
            os.unlink(path + suffix)
        except FileNotFoundError:
            pass
