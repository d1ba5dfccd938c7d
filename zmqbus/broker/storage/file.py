"""The file of the mailbox database: creates, opens and checks it, and replaces it if it cannot be used.

Theory of operation
===================

A broker must start, whatever its file contains. So a file that cannot be opened is *set aside*:

* a file of a newer release (`user_version` over `FORMAT`), as `<name>.newer-<time>`: it is in order, and can be put
  back. A new database is created.
* a damaged file, or one of another program, as `<name>.damaged-<time>`. Its readable rows are first copied into a new
  database (`repair`), without changing a byte of it.

The steps are ordered so that a crash between them is safe. The new database is completed as `<name>.new`, beside the
damaged one; then that one is renamed, then its write-ahead log, then the new one takes its place. A write-ahead log
must never be left beside a database that it does not belong to: SQLite would apply its pages.

The class of a `sqlite3` error tells damage from obstacles: a full disk, a missing permission or a lock raises
OperationalError, an invalid database DatabaseError itself.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
from struct import Struct
from typing import Literal

from zmqbus.broker.storage.api import StoreError
from zmqbus.broker.storage.repair import COPY, JOURNAL, NEW, STILL_THERE, WAL, FileErrors, is_damage, remove, repair
from zmqbus.broker.storage.schema import (
    APPLICATION_ID,
    FORMAT,
    MAILBOXES,
    OWED,
    PAGE_BYTES,
    TABLES,
    Row,
    decoded,
    is_valid,
    make_tables,
)
from zmqbus.security.private_files import check_private_file, open_private

#: A format number over this one is damage, not a newer release.
MAX_FORMAT = 99
#: Pages (of 4 KiB) in the write-ahead log at which SQLite makes a checkpoint. Each checkpoint costs two fsyncs on the
#: broker's only thread, some milliseconds, so not the usual 1000; a log of 16 MiB still opens in 20 ms.
CHECKPOINT_PAGES = 4000
#: The first commit after a checkpoint truncates the log, so that all its pages are of one generation.
WAL_BYTES = 0
#: Pages kept in memory: the ends of a thousand mailboxes.
CACHE_KIB = 8 * 1024
#: Only one broker runs at a time, so a held lock is that of a user's own SQLite client.
LOCK_TIMEOUT_S = 2.0
_CURE = "make room on its disk, or make it and its directory writable"
_NEWER = "written by a newer release"
#: Header of a write-ahead log: magic, version, page size, checkpoints, two salts, checksum.
_LOG_HEADER = Struct(">8I")
#: Header of a page in it: number, size of the database if the page ends a commit (else 0), salts, checksum.
_PAGE_HEADER = Struct(">6I")

# --- opening ----------------------------------------------------------------------------------------------------


def open_database(path: str, notices: list[str], *, power: bool) -> sqlite3.Connection:
    """Opens the database at `path` exclusively, and creates it if there is none.

    Adds a sentence to `notices` for each fault that was found and how it was handled. With `power`, commits survive a
    power failure as well.

    Raises `Unauthorized` for files that are links or open to others, and `StoreError` for obstacles: no permission, a
    full disk, another program that holds it.
    """
    try:
        for suffix in (WAL, JOURNAL):
            if os.path.lexists(path + suffix):
                check_private_file(path + suffix)
        _finish_repair(path, notices)
        # SQLite creates its other files with the mode of this one. Close it before SQLite opens it: closing any
        # descriptor of a file releases the locks that this process has on it.
        os.close(open_private(path, os.O_RDWR | os.O_CREAT))
        last_commit = _last_commit(path + WAL)
        try:
            return _opened(path, notices, power, last_commit)
        except _Unusable as error:
            fault = str(error)
        return replace(path, fault, notices, power=power)
    except FileErrors as error:
        raise store_error(path, error) from None
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}; {_CURE}, then start the broker again") from None


def replace(path: str, fault: str, notices: list[str], *, power: bool) -> sqlite3.Connection:
    """Sets aside a database that cannot be used, which must not be open, and opens a new one in its place."""
    newer = fault.startswith(_NEWER)
    saved = "" if newer else repair(path)
    aside = _free_name(path, "newer" if newer else "damaged")
    try:
        for suffix in ("", WAL, JOURNAL):
            if os.path.lexists(path + suffix):
                os.rename(path + suffix, aside + suffix)
        if newer:
            notices.append(
                f"{path} was {fault}; it is now {aside}, and the mailboxes are empty. To read its mail, install that "
                f"release, stop the broker, and move the file back"
            )
        else:
            os.rename(path + NEW, path)
            notices.append(f"{path} was damaged ({fault}); it is now {aside}. {saved}")
    except OSError as error:
        raise StoreError(
            f"cannot use {path} ({fault}), nor set it aside: {error.strerror}; move it away by hand, or make its "
            "directory writable, then start the broker again"
        ) from None
    os.close(open_private(path, os.O_RDWR | os.O_CREAT))
    try:
        return _opened(path, notices, power)
    except _Unusable as error:
        raise StoreError(f"cannot create {path}: {error}; {_CURE}, then start the broker again") from None


def store_error(path: str, error: Exception) -> StoreError:
    """The `StoreError` for an error of SQLite, with its remedy."""
    if is_damage(error):
        return StoreError(f"{path} is damaged ({error}); restart the broker to repair it: zmqbus broker --stop")
    if "locked" in str(error):
        return StoreError(f"{path} is held by another program (see: fuser {path}); end that one, then try again")
    return StoreError(f"cannot write {path} ({error}); {_CURE}, then try again")


class _Unusable(Exception):
    """The file is not a usable database; the message is the fault."""


def _opened(path: str, notices: list[str], power: bool, last_commit: int = 0) -> sqlite3.Connection:
    """Opens and checks the database. Raises `_Unusable`, with the database closed."""
    connection = None
    try:
        connection = _connect(path, power)
        fault = _fault(connection, path, notices, last_commit)
        if fault is None:
            _begin(connection)
            return connection
        raise _Unusable(fault)
    except BaseException as error:
        if connection is not None:
            connection.close()
        # The file could be opened for writing before, so a header is to blame for "readonly".
        if isinstance(error, FileErrors) and (is_damage(error) or "readonly" in str(error)):
            raise _Unusable(str(error)) from None
        raise


def _connect(path: str, power: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
    try:
        for pragma in (
            "locking_mode = EXCLUSIVE",  # otherwise SQLite keeps another file, the log's index in shared memory
            # NORMAL: commits survive the death of the process; a power failure costs the last ones at most.
            f"synchronous = {'FULL' if power else 'NORMAL'}",
            f"fullfsync = {int(power)}",  # macOS: flushes the cache of the disk as well
            f"cache_size = -{CACHE_KIB}",
            "temp_store = MEMORY",  # keeps user data out of /tmp
            "trusted_schema = OFF",
            "cell_size_check = ON",  # finds a bad page before following it
        ):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _fault(connection: sqlite3.Connection, path: str, notices: list[str], last_commit: int = 0) -> str | None:
    """The fault of the database; None if it is in order. Creates the tables in an empty one."""
    connection.text_factory = decoded
    try:
        application, version = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
        if not (application or version or found):
            make_tables(connection)
            return None
        if application != APPLICATION_ID:
            return "the database of another program"
        if FORMAT < version <= MAX_FORMAT:
            return f"{_NEWER} (format {version}; this one knows {FORMAT})"
        if version != FORMAT or any(found.get(table.name) != table.create for table in TABLES):
            return "its tables are not those of a mailbox database"
        with contextlib.suppress(sqlite3.OperationalError):  # a broker starts on a full disk, too
            if last_commit:
                (_, frames, _) = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if frames < last_commit:
                    _keep_log(path, notices)
            # Each run begins its own log: SQLite could take the pages of a dead one for valid.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            # By now the log has completed the last page, if it could.
            if os.path.getsize(path) % PAGE_BYTES:
                return "its last page is truncated"
        # Reads every page, in 20 ms for 100,000 messages. (quick_check misses keys that are out of order.)
        verdict: str = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            return " ".join(verdict.split())
        connection.execute("DELETE FROM awaited WHERE 0")  # fails where the header says "read-only"; BEGIN does not
        _drop_invalid(connection, path, notices)
        return None
    finally:
        connection.text_factory = str


def _drop_invalid(connection: sqlite3.Connection, path: str, notices: list[str]) -> None:
    """Deletes invalid rows, and messages of unknown mailboxes. Takes 0.2 s for 100,000 messages."""
    dropped = []
    keys: set[int] = set()
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table in TABLES:
            key = "mailbox, seq" if table is OWED else "rowid"
            width = 2 if table is OWED else 1
            bad: list[Row] = []
            for row in connection.execute(f"SELECT {key}, {table.names} FROM {table.name}"):
                if not is_valid(table, row[width:]) or (table is OWED and row[0] not in keys):
                    bad.append(row[:width])
                elif table is MAILBOXES:
                    keys.add(row[0])
            if bad:
                before = connection.total_changes
                where = " AND ".join(f"{name} IS ?" for name in key.split(", "))
                connection.executemany(f"DELETE FROM {table.name} WHERE {where}", bad)
                dropped.append(f"{len(bad)} of {table.name}")
            if bad and table is OWED:
                # A key that is text but not UTF-8 does not match itself.
                connection.execute("DELETE FROM owed WHERE typeof(mailbox) <> 'integer' OR typeof(seq) <> 'integer'")
            if bad and connection.total_changes - before != len(bad):
                raise sqlite3.DatabaseError("rows that cannot be found by their keys")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    if dropped:
        notices.append(f"{path} held invalid rows, which were dropped: {', '.join(dropped)}")


def _begin(connection: sqlite3.Connection) -> None:
    # Only now, so that a foreign database stays unchanged, and a new one has its header in the file, not in the log.
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(
            f"SQLite {sqlite3.sqlite_version} cannot use a write-ahead log here ({mode}); install another version"
        )
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")


def _finish_repair(path: str, notices: list[str]) -> None:
    """Finishes a repair during which a broker died, and sets aside a log whose database is gone."""
    if not os.path.lexists(path) or (not os.path.islink(path) and not os.path.getsize(path)):
        # SQLite would delete a log beside an empty database.
        if os.path.lexists(path + WAL) and os.path.getsize(path + WAL):
            aside = _free_name(path, "damaged")
            os.rename(path + WAL, aside + WAL)
            notices.append(f"{path} was empty or gone; its write-ahead log is now {aside + WAL}")
        if not os.path.lexists(path) and os.path.lexists(path + NEW):
            os.rename(path + NEW, path)
            notices.append(f"restored {path}, which an earlier broker had repaired")
    for name in (path + NEW, path + COPY):
        remove(name)


def _last_commit(wal: str) -> int:
    """Number of the last page of a write-ahead log that ends a commit, even if earlier pages are damaged."""
    try:
        fd = open_private(wal, os.O_RDONLY)
    except FileNotFoundError:
        return 0
    with open(fd, "rb") as file:
        header = file.read(_LOG_HEADER.size)
        if len(header) < _LOG_HEADER.size:
            return 0
        magic, _, page_bytes, _, *salts, sum_1, sum_2 = _LOG_HEADER.unpack(header)
        if (sum_1, sum_2) != _checksum(header[:24], "big" if magic & 1 else "little"):
            return sys.maxsize  # the header is damaged, so SQLite will read none of it
        frames = (os.fstat(fd).st_size - len(header)) // (_PAGE_HEADER.size + page_bytes)
        # After a checkpoint the log is overwritten from its start, under other salts, and the first commit truncates
        # the rest. A writer that dies may leave a page unwritten behind its header, so a commit counts if another
        # page of this generation follows it, or if the file ends with it.
        last = commit = 0
        mine = False
        for number in range(1, frames + 1):
            page = file.read(_PAGE_HEADER.size)
            _, size, *page_salts, _, _ = _PAGE_HEADER.unpack(page)
            mine = page_salts == salts
            if mine:
                last = commit
                if size:
                    commit = number
            elif last:
                return number  # the older pages were truncated, so this page is damaged
            file.seek(page_bytes, os.SEEK_CUR)
        return commit if mine and last else last


def _checksum(data: bytes, order: Literal["big", "little"]) -> tuple[int, int]:
    """Checksum of a write-ahead log's header."""
    first = second = 0
    for at in range(0, len(data) - 7, 8):
        first = (first + int.from_bytes(data[at : at + 4], order) + second) & 0xFFFFFFFF
        second = (second + int.from_bytes(data[at + 4 : at + 8], order) + first) & 0xFFFFFFFF
    return first, second


def _keep_log(path: str, notices: list[str]) -> None:
    """Keeps a copy of a log with a damaged page: SQLite silently ignores that page and all that follow.

    A process that dies leaves pages without a commit, or an incomplete last page; only damage leaves further pages
    behind an incomplete one.
    """
    import shutil  # 0.7 MB that hardly any broker needs

    aside = _free_name(path, "damaged") + WAL
    # A copy, since SQLite goes on writing into the file itself.
    with (
        open(open_private(path + WAL, os.O_RDONLY), "rb") as log,
        open(open_private(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as copy,
    ):
        shutil.copyfileobj(log, copy)
    notices.append(
        f"{path + WAL} was damaged, and the last changes to the mailboxes were lost: some messages may be shown again, "
        f"others not at all. It is kept as {aside}; {STILL_THERE}"
    )


def _free_name(path: str, what: str) -> str:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    name = first = f"{path}.{what}-{stamp}"
    number = 1
    while os.path.lexists(name) or os.path.lexists(name + WAL):
        number += 1
        name = f"{first}-{number}"
    return name
