"""What can still be read of a damaged mailbox database, saved into a new one.

Theory of operation
===================

*What can be read* is found by feeling for it. A range of keys is read upwards until an error, then downwards until one.
In what is left, a place that can be read is looked for at twice the distance each time; where there is one, what is
before it and what is behind it are read the same way. So a bad page costs the rows that it held.

What SQLite itself does not check is checked here: each row that is taken over must have values that the broker could
have written (`sound`).

A copy of the damaged file is read, so that no byte of the original is changed: SQLite works a write-ahead log into the
file that it belongs to, and a look at it is enough.
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
    make_tables,
    sound,
)
from zmqbus.security.private_files import open_private

#: SQLite files that belong to a database, after its name.
WAL, JOURNAL = "-wal", "-journal"
#: After the name of the database: the one that takes its place.
NEW = ".new"
#: The copy that is read while saving.
COPY = ".reading"
#: What each database of ours begins with, and where: magic, page size, who may write and read it, shares of a page;
#: format of the schema; encoding. SQLite refuses a whole file for one wrong byte in it.
_CONSTANTS = ((0, b"SQLite format 3\0\x10\0\2\2\0\x40\x20\x20"), (44, b"\0\0\0\4"), (56, b"\0\0\0\1"))
_APPLICATION_ID_AT = 68
#: Readings that are tried in one damaged table. A bad page costs about 20; with so many it is no table any more, and to
#: read it to the end would take longer than anyone wants to wait for a broker.
MAX_READINGS = 50_000
#: Rows that are written at once while saving.
SAVE_ROWS = 1000
#: Numbers of mailboxes and messages are below it.
MAX_NUMBER = 1 << 40
#: What to say to those whose mail is lost.
STILL_THERE = "the texts of all messages are still in messages.log, and zmqbus inbox --msg <id> prints one"
#: What `sqlite3` raises for a file: the second where it wants to say something that is in the file, and not UTF-8.
FileErrors = (sqlite3.Error, UnicodeDecodeError)


def is_damage(error: Exception) -> bool:
    """Whether the file itself is at fault, and not what is around it."""
    # The one OperationalError is said of a header whose format number was overwritten.
    return type(error) in (sqlite3.DatabaseError, UnicodeDecodeError) or "unsupported file format" in str(error)


def save(path: str) -> str:
    """Makes the new database beside the damaged one, with what can be read of it; returns a sentence about it.

    Neither that name nor that of the copy may be taken.
    """
    import shutil  # 0.7 MB, which hardly any broker needs

    new, copy = path + NEW, path + COPY
    try:
        for suffix in (WAL, ""):
            if os.path.exists(path + suffix):
                os.close(open_private(copy + suffix, os.O_RDWR | os.O_CREAT))
                shutil.copyfile(path + suffix, copy + suffix)
        # SQLite reads a page that is cut off as if zeros followed, which would make other values of what it held.
        whole_bytes = os.path.getsize(copy) // PAGE_BYTES * PAGE_BYTES
        if whole_bytes:
            os.truncate(copy, whole_bytes)
        with open(copy, "r+b") as file:
            file.seek(_APPLICATION_ID_AT)
            if file.read(4) == APPLICATION_ID.to_bytes(4, "big"):
                for at, content in _CONSTANTS:
                    file.seek(at)
                    file.write(content)
        os.close(open_private(new, os.O_RDWR | os.O_CREAT))
        target = sqlite3.connect(new, isolation_level=None)
        try:
            make_tables(target)
            target.execute("BEGIN IMMEDIATE")
            said = _save_tables(copy, target)
            target.execute("COMMIT")
        finally:
            target.close()
        return said
    finally:
        remove(copy)


def _save_tables(copy: str, target: sqlite3.Connection) -> str:
    saved: dict[str, int] = {}
    whole = True
    source = sqlite3.connect(copy, isolation_level=None)
    try:
        source.text_factory = decoded
        try:
            source.execute("PRAGMA locking_mode = EXCLUSIVE")
            source.execute("PRAGMA cell_size_check = ON")
            source.execute("PRAGMA writable_schema = ON")  # a file that is shorter than it says is read all the same
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except FileErrors:
            return "Nothing in it could be read; " + STILL_THERE
        keys: set[int] = set()
        for table in TABLES:
            reader = _Saver(source, table, keys)
            batch: list[Row] = []
            for row in reader.rows():
                batch.append(row)
                if table is MAILBOXES:
                    keys.add(row[0])
                if len(batch) >= SAVE_ROWS:
                    target.executemany(table.insert, batch)
                    batch.clear()
            target.executemany(table.insert, batch)
            saved[table.name] = target.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0]
            whole = whole and not reader.lost
    finally:
        try:
            source.close()
        except FileErrors:
            pass  # it is a copy, and about to be deleted
    said = f"Saved from it: {saved['owed']} messages and {saved['sessions']} sessions"
    return f"{said}; nothing was lost" if whole else f"{said}; others could not be read. {STILL_THERE.capitalize()}"


class _Saver:
    """Reads what can be read of one table of a damaged database."""

    def __init__(self, source: sqlite3.Connection, table: Table, mailboxes: set[int]) -> None:
        self._source = source
        self._table = table
        self._mailboxes = mailboxes
        self._tries = MAX_READINGS
        self._taken = 0
        self.lost = False  #: whether there was anything that could not be read

    def rows(self) -> Iterator[Row]:
        """Its sound rows, in no particular order."""
        try:
            self._source.execute(f"SELECT {self._table.names} FROM {self._table.name} LIMIT 0")
        except FileErrors:
            self.lost = True  # there is no such table, or it is another one
            return
        if self._table is OWED:
            # A mailbox whose key is lost has nobody to get its messages.
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
        """All rows that can be read, of those that `where` picks; the integer `key` tells them apart."""
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
        """The rows up to an error, from one end; returns where that end is now: past the other one if all is read."""
        self._tries -= 1
        select = (
            f"SELECT {key}, {self._table.names} FROM {self._table.name} WHERE {where}{key} BETWEEN ? AND ? "
            f"ORDER BY {key} {'DESC' if down else 'ASC'}"
        )
        try:
            for number, *row in self._source.execute(select, (low, high)):
                if type(number) is not int or not low <= number <= high:
                    raise sqlite3.DatabaseError("a row that is not where it belongs")
                low, high = (low, number - 1) if down else (number + 1, high)
                self._taken += 1
                if sound(self._table, tuple(row)):
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
    for suffix in ("", WAL, JOURNAL, "-shm"):
        try:
            os.unlink(path + suffix)
        except FileNotFoundError:
            pass
