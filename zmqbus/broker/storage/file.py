"""The file of the mailboxes: made, opened and looked through; set aside if it cannot be used, and saved from.

Theory of operation
===================

A broker has to start whatever is in its file. So a file is only ever opened, or *set aside*:

* one of a newer release (`user_version` over `FORMAT`), as `<name>.newer-<time>`: nothing is wrong with it, and it can
  be put back. A new database is begun.
* one that is damaged, or that another program has put there, as `<name>.damaged-<time>`. What can still be read of it
  is saved into a new database first. No byte of what was set aside is changed by that: a copy is read.

The order of the steps makes it safe to die between them. The new database is made complete as `<name>.new`, beside the
one that is damaged; then that one is renamed, then its write-ahead log, then the new one takes its place. A write-ahead
log must never be left to a database that it does not belong to: SQLite would take its pages for that one's.

What is damaged and what is merely in the way are told apart by the class that `sqlite3` gives its errors: for a
full disk, a missing permission or a lock it is OperationalError, for a database that is none DatabaseError itself.
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
from zmqbus.broker.storage.repair import COPY, JOURNAL, NEW, STILL_THERE, WAL, FileErrors, is_damage, remove, save
from zmqbus.broker.storage.schema import (
    APPLICATION_ID,
    FORMAT,
    MAILBOXES,
    OWED,
    PAGE_BYTES,
    TABLES,
    Row,
    decoded,
    make_tables,
    sound,
)
from zmqbus.security.private_files import check_private_file, open_private

#: A higher number than this was not written by a release, but by damage.
MAX_FORMAT = 99
#: Pages (of 4 KiB) after which the write-ahead log is worked into the database. Each time costs two fsyncs on the
#: broker's only thread, some milliseconds, so not the usual 1000; but a log of 16 MiB still opens in 20 ms.
CHECKPOINT_PAGES = 4000
#: The first commit after a checkpoint cuts off the rest of the older log, so that all behind it is of this one.
WAL_BYTES = 0
#: Pages kept in memory: the ends of a thousand mailboxes.
CACHE_KIB = 8 * 1024
#: The broker's election lets one process in, so whoever holds the lock is somebody who looks at the file by hand.
LOCK_TIMEOUT_S = 2.0
_CURE = "make room on its disk, or make it and its directory writable"
_NEWER = "written by a newer release"
#: Of a write-ahead log: magic, version, page size, checkpoints, two salts, checksum.
_LOG_HEADER = Struct(">8I")
#: Of a page in it: its number, the size of the database if it ends a commit (else 0), the salts, checksum.
_PAGE_HEADER = Struct(">6I")

# --- opening ----------------------------------------------------------------------------------------------------


def open_database(path: str, notices: list[str], *, power: bool) -> sqlite3.Connection:
    """The database at `path`, made if there is none, and held alone until it is closed.

    What was found wrong, and what was done about it, is added to `notices`, a sentence each. With `power`, commits
    outlive a failure of the machine's power too.

    Raises `Unauthorized` for files that are links or open to others, `StoreError` if something is in the way: no
    permission, a full disk, another program that holds it.
    """
    try:
        for suffix in (WAL, JOURNAL):
            if os.path.lexists(path + suffix):
                check_private_file(path + suffix)
        _take_up(path, notices)
        # SQLite makes its other files with the mode of this one. It is closed again before SQLite opens it: to close
        # any descriptor of a file gives up the locks that this process has on it.
        os.close(open_private(path, os.O_RDWR | os.O_CREAT))
        last_commit = _last_commit(path + WAL)
        try:
            return _opened(path, notices, power, last_commit)
        except _Unusable as error:
            fault = str(error)
        return mend(path, fault, notices, power=power)
    except FileErrors as error:
        raise in_the_way(path, error) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be opened: {error.strerror}; {_CURE}, then start the broker again") from None


def mend(path: str, fault: str, notices: list[str], *, power: bool) -> sqlite3.Connection:
    """Sets aside a database that cannot be used (nobody may have it open) and opens a new one in its place."""
    newer = fault.startswith(_NEWER)
    saved = "" if newer else save(path)
    aside = _free_name(path, "newer" if newer else "damaged")
    try:
        for suffix in ("", WAL, JOURNAL):
            if os.path.lexists(path + suffix):
                os.rename(path + suffix, aside + suffix)
        if newer:
            notices.append(
                f"{path} was {fault}; it is now {aside}, and empty mailboxes were begun. To get at its mail, install "
                f"that release, stop the broker, and move the file back"
            )
        else:
            os.rename(path + NEW, path)
            notices.append(f"{path} was damaged ({fault}); it is now {aside}. {saved}")
    except OSError as error:
        raise StoreError(
            f"{path} cannot be used ({fault}) and cannot be set aside: {error.strerror}; move it away by hand, "
            "or make its directory writable, then start the broker again"
        ) from None
    os.close(open_private(path, os.O_RDWR | os.O_CREAT))
    try:
        return _opened(path, notices, power)
    except _Unusable as error:
        raise StoreError(f"{path} cannot be made: {error}; {_CURE}, then start the broker again") from None


def in_the_way(path: str, error: Exception) -> StoreError:
    """What to tell about an error of SQLite's that is no damage; or that is, where nothing was to be done about it."""
    if is_damage(error):
        return StoreError(
            f"{path} is damaged ({error}); restart the broker, which saves what can be read: zmqbus broker --stop"
        )
    if "locked" in str(error):
        return StoreError(f"{path} is held by another program (see: fuser {path}); end that one, then try again")
    return StoreError(f"{path} cannot be written ({error}); {_CURE}, then try again")


class _Unusable(Exception):
    """The file is no database that can be used; says why."""


def _opened(path: str, notices: list[str], power: bool, last_commit: int = 0) -> sqlite3.Connection:
    """The database, found to be in order. Raises `_Unusable`; then nobody has it open."""
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
        # The file was opened for writing before, so it is its header that forbids it.
        if isinstance(error, FileErrors) and (is_damage(error) or "readonly" in str(error)):
            raise _Unusable(str(error)) from None
        raise


def _connect(path: str, power: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
    try:
        for pragma in (
            "locking_mode = EXCLUSIVE",  # without it, an index of the log in shared memory: one file more
            # NORMAL: what a killed process has committed is there, and a power failure costs the last commits at most.
            f"synchronous = {'FULL' if power else 'NORMAL'}",
            f"fullfsync = {int(power)}",  # macOS: an fsync that reaches the disk itself
            f"cache_size = -{CACHE_KIB}",
            "temp_store = MEMORY",  # what belongs to the user stays out of /tmp
            "trusted_schema = OFF",
            "cell_size_check = ON",  # a bad page is found before it is followed
        ):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _fault(connection: sqlite3.Connection, path: str, notices: list[str], last_commit: int = 0) -> str | None:
    """What is wrong with the database; None if nothing is. One without anything in it becomes one of ours."""
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
        with contextlib.suppress(sqlite3.OperationalError):  # a full disk keeps no broker from starting
            if last_commit:
                (_, frames, _) = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if frames < last_commit:
                    _keep_log(path, notices)
            # Each run begins a log of its own: what a dead one has left in it could pass for this one's.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            # What was missing of the last page has come out of the log by now, if it was in there.
            if os.path.getsize(path) % PAGE_BYTES:
                return "its last page is cut off"
        # It reads every page, in 20 ms for 100,000 messages. (quick_check does not see that keys are out of order.)
        verdict: str = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            return " ".join(verdict.split())
        connection.execute("DELETE FROM awaited WHERE 0")  # fails where the header says "read-only"; BEGIN does not
        _drop_unsound(connection, path, notices)
        return None
    finally:
        connection.text_factory = str


def _drop_unsound(connection: sqlite3.Connection, path: str, notices: list[str]) -> None:
    """Deletes the rows that no broker has written, and messages that belong to no mailbox. 0.2 s for 100,000."""
    dropped = []
    keys: set[int] = set()
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table in TABLES:
            key = "mailbox, seq" if table is OWED else "rowid"
            width = 2 if table is OWED else 1
            bad: list[Row] = []
            for row in connection.execute(f"SELECT {key}, {table.names} FROM {table.name}"):
                if not sound(table, row[width:]) or (table is OWED and row[0] not in keys):
                    bad.append(row[:width])
                elif table is MAILBOXES:
                    keys.add(row[0])
            if bad:
                before = connection.total_changes
                where = " AND ".join(f"{name} IS ?" for name in key.split(", "))
                connection.executemany(f"DELETE FROM {table.name} WHERE {where}", bad)
                dropped.append(f"{len(bad)} of {table.name}")
            if bad and table is OWED:
                # A key that is text, and not UTF-8, does not find itself again.
                connection.execute("DELETE FROM owed WHERE typeof(mailbox) <> 'integer' OR typeof(seq) <> 'integer'")
            if bad and connection.total_changes - before != len(bad):
                raise sqlite3.DatabaseError("rows that can be seen and not be found")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    if dropped:
        notices.append(f"{path} held rows that no broker has written, which were dropped: {', '.join(dropped)}")


def _begin(connection: sqlite3.Connection) -> None:
    # Only now: a database that is not ours stays as it was, and a new one has its marks in the file, not in the log.
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(f"SQLite {sqlite3.sqlite_version} keeps no write-ahead log here ({mode}); install another one")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")


def _take_up(path: str, notices: list[str]) -> None:
    """Ends what a broker that died while it mended has left undone, and keeps a log without its database from harm."""
    if not os.path.lexists(path) or (not os.path.islink(path) and not os.path.getsize(path)):
        # SQLite deletes a log beside a database that is empty.
        if os.path.lexists(path + WAL) and os.path.getsize(path + WAL):
            aside = _free_name(path, "damaged")
            os.rename(path + WAL, aside + WAL)
            notices.append(f"{path} was empty or gone; what was left of it is {aside + WAL}")
        if not os.path.lexists(path) and os.path.lexists(path + NEW):
            os.rename(path + NEW, path)
            notices.append(f"took up {path}, which an earlier broker had saved from a damaged one")
    for name in (path + NEW, path + COPY):
        remove(name)


def _last_commit(wal: str) -> int:
    """The number of the last page in a write-ahead log that ends a commit, whether or not all before it are whole."""
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
            return sys.maxsize  # nobody can tell, and nothing of it will be read
        frames = (os.fstat(fd).st_size - len(header)) // (_PAGE_HEADER.size + page_bytes)
        # After a checkpoint the log is written over from its start, under other salts, and the first commit cuts off
        # what is left of the old one. A writer that dies may leave the last page unwritten behind its header, so a
        # commit counts when something of this log follows it, or when the file ends with it.
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
                return number  # it was cut off long ago, so this is no older page
            file.seek(page_bytes, os.SEEK_CUR)
        return commit if mine and last else last


def _checksum(data: bytes, order: Literal["big", "little"]) -> tuple[int, int]:
    """SQLite's checksum."""
    first = second = 0
    for at in range(0, len(data) - 7, 8):
        first = (first + int.from_bytes(data[at : at + 4], order) + second) & 0xFFFFFFFF
        second = (second + int.from_bytes(data[at + 4 : at + 8], order) + first) & 0xFFFFFFFF
    return first, second


def _keep_log(path: str, notices: list[str]) -> None:
    """Keeps a log in which SQLite has found a damaged page: it passes over that and all that follows, and says nothing.

    A process that dies leaves pages that no commit ends, or a last one that is not whole; only damage leaves more
    behind a page that is not whole.
    """
    import shutil  # 0.7 MB, which hardly any broker needs

    aside = _free_name(path, "damaged") + WAL
    # A copy: SQLite goes on writing into this very file.
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
