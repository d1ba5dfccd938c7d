"""Checks that the database, the log and the search index can be read."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator

from zmqbus.broker.storage.schema import APPLICATION_ID, FORMAT
from zmqbus.doctor.report import Finding, command, fault, ok, warning
from zmqbus.errors import ZmqbusError
from zmqbus.journal.history import History
from zmqbus.journal.search_index import SUFFIXES, Index
from zmqbus.journal.segments import numbered_segments
from zmqbus.settings import Settings

#: The newest part of the log that is read line by line; of the rest only the first line of each segment is checked.
READ_BYTES = 64 * 1024 * 1024
#: A database with a write-ahead log is checked in a copy, up to this size; a larger one is left to the broker.
COPY_BYTES = 256 * 1024 * 1024


def log(settings: Settings) -> Iterator[Finding]:
    """Checks the head of each segment of the log, and reads the newest messages."""
    path = settings.paths.log
    try:
        known, invalid = numbered_segments(path)
        invalid = [name for name in invalid if os.path.getsize(name)]
        for name in invalid:
            yield fault("log", f"{name} does not start as a log file; its messages are ignored", _aside(name))
        page = History(path).page(limit=10**9, limit_bytes=READ_BYTES)
    except (ZmqbusError, OSError) as error:
        yield fault("log", str(error))
        return
    if page.damaged:
        yield warning(
            "log",
            f"{page.damaged} of the newest {page.damaged + len(page.entries):,} lines are damaged and ignored; if a "
            "message is missing, ask its sender to send it again",
        )
    elif not invalid:
        yield ok("log", f"{len(known)} files, {len(page.entries):,} messages read" if known else "nothing was sent yet")


def index(settings: Settings) -> Iterator[Finding]:
    """Checks that the search index can be read."""
    path = settings.paths.search_index
    if not os.path.lexists(path):
        yield ok("index", "none yet; searches scan the log")
        return
    try:
        found = Index.open_existing(path)
        if found is not None:
            with found:
                found.segments()
    except ZmqbusError:
        found = None
    if found is None:
        names = [path + suffix for suffix in SUFFIXES if os.path.lexists(path + suffix)]
        yield warning("index", f"{path} cannot be used; searches scan the log", command("rm", "-f", *names))
    else:
        yield ok("index", path)


def database(settings: Settings, *, is_served: bool) -> Iterator[Finding]:
    """Checks the integrity of the mailboxes' database."""
    path = settings.paths.database
    if not os.path.lexists(path):
        yield ok("database", "none yet; the broker makes it")
        return
    if is_served:
        yield ok("database", "in use by the broker, which checked it at its start")
        return
    try:
        says = damage(path)
    except OSError as error:
        yield fault("database", f"{path} cannot be read: {error.strerror}")
        return
    if says is None:
        yield ok("database", path)
    else:
        yield fault(
            "database",
            f"{path} {says}; the next broker sets it aside and keeps the readable part",
            "zmqbus broker",
        )


def damage(path: str) -> str | None:
    """Returns what is wrong with a database that no process has open, None if nothing is. Does not change it."""
    wal = f"{path}-wal"
    if not os.path.getsize(path):
        return None  # the broker fills an empty file
    with tempfile.TemporaryDirectory(prefix="zmqbus-") as directory:  # 0700
        if os.path.exists(wal) and os.path.getsize(wal):
            # The write-ahead log belongs to the database, and only a writer can apply it: check a copy.
            if os.path.getsize(path) + os.path.getsize(wal) > COPY_BYTES:
                return None
            copy = os.path.join(directory, "copy")
            shutil.copyfile(path, copy)
            shutil.copyfile(wal, f"{copy}-wal")
            return _checked(f"file:{copy}")
        from urllib.parse import quote

        return _checked(f"file:{quote(path)}?mode=ro&immutable=1")


def _checked(uri: str) -> str | None:
    try:
        connection = sqlite3.connect(uri, uri=True)
        try:
            application, version = (
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            if application != APPLICATION_ID:
                return "belongs to another program"
            if version > FORMAT:
                return f"was written by a newer release (format {version})"
            verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            return None if verdict == "ok" else f"is damaged ({' '.join(str(verdict).split())})"
        finally:
            connection.close()
    except sqlite3.Error as error:
        return f"is damaged ({error})"


def _aside(name: str) -> str:
    return command("mv", name, f"{name}-damaged")
