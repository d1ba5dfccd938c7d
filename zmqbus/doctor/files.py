"""The data directory: whose it is, who may look into it, what lies about in it, and whether it can be read."""

from __future__ import annotations

import glob
import os
import re
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator

from zmqbus.broker.storage.schema import APPLICATION_ID, FORMAT
from zmqbus.doctor.report import Finding, command, fault, ok, warning
from zmqbus.errors import ZmqbusError
from zmqbus.journal.history import History, numbered
from zmqbus.journal.search_index import SUFFIXES, Index
from zmqbus.security.keys import NEW_KEYS_PREFIX, broker_keys
from zmqbus.security.private_files import DIR_MODE, FILE_MODE, is_unmapped
from zmqbus.settings import Settings

#: So much of the log, the newest, is read line by line; the rest has to begin as it should.
READ_BYTES = 64 * 1024 * 1024
#: A database with a write-ahead log is checked in a copy; one that is larger is left to the broker.
COPY_BYTES = 256 * 1024 * 1024
#: Everything that is ours in the data directory, but for the virtual environment.
_OURS = re.compile(
    r"messages\.log(\.[1-9][0-9]*|\.new)?|mailboxes\.sqlite3.*|search\.sqlite(-wal|-shm|-journal)?|broker\.log(\.[0-9]+)?"
    r"|server\.[0-9]+\.(pid|process)|network"
)


def directory(settings: Settings) -> Iterator[Finding]:
    """The data directory itself, and those in it. The others are looked at only if this one is in order."""
    path = settings.data_dir
    if not os.path.lexists(path):
        yield ok("directory", f"{path} is not there yet; the first command that needs it makes it")
        return
    found = list(_private("directory", path, directory=True))
    yield from found or [ok("directory", path)]


def permissions(settings: Settings) -> Iterator[Finding]:
    """All files of ours are private files of the user."""
    paths = settings.paths
    looked = 0
    faults: list[Finding] = []
    for path in (paths.keys, paths.clients, paths.spool):
        if os.path.lexists(path):
            looked += 1
            faults += _private("permissions", path, directory=True)
    names = [
        os.path.join(settings.data_dir, name) for name in sorted(os.listdir(settings.data_dir)) if _OURS.fullmatch(name)
    ]
    for parent in (paths.keys, paths.clients, paths.spool):
        if os.path.isdir(parent) and not os.path.islink(parent):
            names += [os.path.join(parent, name) for name in sorted(os.listdir(parent))]
    for name in names:
        looked += 1
        faults += _private("permissions", name, directory=False)
    yield from faults or [ok("permissions", f"{looked} files and directories are nobody else's")]


def _private(check: str, path: str, *, directory: bool) -> Iterator[Finding]:
    """What `security` would refuse, with the command that mends it."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return  # it has gone meanwhile
    user = os.geteuid()
    if stat.S_ISLNK(found.st_mode):
        yield fault(check, f"{path} is a symbolic link, which is never followed here", command("rm", path))
    elif not (stat.S_ISDIR(found.st_mode) if directory else stat.S_ISREG(found.st_mode)):
        what = "directory" if directory else "file"
        yield fault(check, f"{path} is not a {what}", command("mv", path, f"{path}.aside"))
    elif found.st_uid != user and is_unmapped(found.st_uid):
        yield fault(
            check,
            f"{path} belongs to a user who has no id in this user namespace (uid {found.st_uid}): this shell is in a "
            "sandbox or a container; run the command outside of it",
        )
    elif found.st_uid != user:
        chown = ("chown",) if user == 0 else ("sudo", "chown")
        yield fault(check, f"{path} belongs to another user (uid {found.st_uid})", command(*chown, str(user), path))
    elif found.st_mode & 0o077:
        mode = DIR_MODE if directory else FILE_MODE
        yield fault(
            check,
            f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}), and is refused",
            command("chmod", f"{mode:o}", path),
        )


def keys(settings: Settings, kill: str | None, *, is_served: bool) -> Iterator[Finding]:
    """The keys fit each other. `kill` is the command that ends the broker, where it can be ended from here."""
    path = settings.paths.keys
    for name in sorted(glob.glob(os.path.join(glob.escape(settings.data_dir), f"{NEW_KEYS_PREFIX}*"))):
        yield warning(
            "keys", f"{name} was left by a process that was killed while it made keys", command("rm", "-r", name)
        )
    if not os.path.isdir(path):
        yield ok("keys", "none yet; they are made when they are needed")
        return
    try:
        broker_keys(settings.data_dir)
    except ZmqbusError as error:
        says, remove = str(error).partition("; ")[0], command("rm", "-r", path)
        if is_served and kill is None:
            # It would go on with keys that are gone.
            yield fault("keys", f"{says}; end the broker where it runs (another PID namespace), and then: {remove}")
        else:
            yield fault("keys", says, f"{kill}; {remove}" if is_served else remove)
    else:
        yield ok("keys", path)


def log(settings: Settings) -> Iterator[Finding]:
    """The segments of the log begin as they should, and hold messages."""
    path = settings.paths.log
    try:
        known, lost = numbered(path)
        lost = [name for name in lost if os.path.getsize(name)]
        for name in lost:
            yield fault("log", f"{name} does not begin as a file of the log; it is passed over", _aside(name))
        page = History(path).page(limit=10**9, limit_bytes=READ_BYTES)
    except (ZmqbusError, OSError) as error:
        yield fault("log", str(error))
        return
    if page.damaged:
        yield warning(
            "log",
            f"{page.damaged} of the newest {page.damaged + len(page.entries):,} lines are damaged and passed over; if "
            "something is missing, ask its sender to send it again",
        )
    elif not lost:
        yield ok("log", f"{len(known)} files, {len(page.entries):,} messages read" if known else "nothing was sent yet")


def index(settings: Settings) -> Iterator[Finding]:
    """The search index is one."""
    path = settings.paths.search_index
    if not os.path.lexists(path):
        yield ok("index", "none yet; searches go through the log")
        return
    try:
        found = Index.look(path)
        if found is not None:
            with found:
                found.segments()
    except ZmqbusError:
        found = None
    if found is None:
        names = [path + suffix for suffix in SUFFIXES if os.path.lexists(path + suffix)]
        yield warning("index", f"{path} cannot be used; searches go through the log", command("rm", "-f", *names))
    else:
        yield ok("index", path)


def database(settings: Settings, *, is_served: bool) -> Iterator[Finding]:
    """The mailboxes' database is sound."""
    path = settings.paths.database
    if not os.path.lexists(path):
        yield ok("database", "none yet; the broker makes it")
        return
    if is_served:
        yield ok("database", "held by the broker, which has checked it when it started")
        return
    try:
        says = _unsound(path)
    except OSError as error:
        yield fault("database", f"{path} cannot be read: {error.strerror}")
        return
    if says is None:
        yield ok("database", path)
    else:
        yield fault(
            "database",
            f"{path} {says}; the next broker sets it aside and saves what can be read",
            "zmqbus broker",
        )


def _unsound(path: str) -> str | None:
    """What is wrong with a database that nobody has open; None if nothing is. It is not changed by this."""
    wal = f"{path}-wal"
    if not os.path.getsize(path):
        return None  # the broker begins it anew
    with tempfile.TemporaryDirectory(prefix="zmqbus-") as directory:  # 0700
        if os.path.exists(wal) and os.path.getsize(wal):
            # What is in there belongs to the database, and only a writer could take it up.
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
                return "is the database of another program"
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
