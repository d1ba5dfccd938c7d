"""The tables of the mailbox database, and the check of their rows.

SQLite does not enforce the type of a column. So a file that was edited, or that a bad disk has changed, can hold rows
that no broker has written; `is_valid` finds them before any other code sees them.
"""

from __future__ import annotations

import json
import sqlite3
from itertools import product
from typing import Any

from zmqbus.broker.storage.api import SessionRow
from zmqbus.tuples import NamedTuple

#: "zmqb": marks the file as ours, also for file(1).
APPLICATION_ID = 0x7A6D7162
#: Number of the tables' format. A broker that finds a higher one begins a new file.
FORMAT = 1
#: Size of the file's pages.
PAGE_BYTES = 4096

Row = tuple[Any, ...]


class Column(NamedTuple):
    """A column: its name, its declaration, and the types that its values may have."""

    name: str
    declared: str
    types: tuple[type, ...]


class Table(NamedTuple):
    """A table: its columns, and the statements that create and fill it."""

    name: str
    columns: tuple[Column, ...]
    constraint: str = ""

    @property
    def names(self) -> str:
        """Its columns, as a statement lists them."""
        return ", ".join(column.name for column in self.columns)

    @property
    def create(self) -> str:
        """The statement that creates it; SQLite keeps its text to the letter."""
        columns = ", ".join(f"{column.name} {column.declared}" for column in self.columns)
        return f"CREATE TABLE {self.name} ({columns}{self.constraint}"

    @property
    def insert(self) -> str:
        """The statement that inserts a row, replacing one with the same key."""
        return f"INSERT OR REPLACE INTO {self.name} VALUES ({', '.join('?' * len(self.columns))})"


def _text(name: str, more: str = "") -> Column:
    return Column(name, f"TEXT NOT NULL{more}", (str,))


def _maybe(name: str, declared: str, kind: type) -> Column:
    return Column(name, declared, (kind, type(None)))


def _number(name: str) -> Column:
    return Column(name, "INTEGER NOT NULL", (int,))


def _real(name: str) -> Column:
    return Column(name, "REAL NOT NULL", (float,))


_ID = Column("id", "INTEGER PRIMARY KEY", (int,))

MAILBOXES = Table("mailboxes", (_ID, _text("key", " UNIQUE")), ")")
#: The rows of a mailbox are stored in the order of their numbers, so that no separate index has to be written.
OWED = Table(
    "owed",
    (
        _number("mailbox"),
        _number("seq"),
        _text("msg_id"),
        _text("from_session"),
        _text("from_name"),
        _maybe("from_label", "TEXT", str),
        _number("scope"),
        _text("target"),
        _number("fmt"),
        _maybe("reply_to", "TEXT", str),
        _real("ts"),
        _real("accepted_s"),
        _number("size_bytes"),
        _number("segment"),
        _number("start"),
        _number("length"),
        _number("crc"),
    ),
    ", PRIMARY KEY (mailbox, seq)) WITHOUT ROWID",
)
SESSIONS = Table(
    "sessions",
    (
        _text("session_id", " PRIMARY KEY"),
        _text("token_digest"),
        _text("mailbox"),
        _text("name"),
        _maybe("label", "TEXT", str),
        _text("cwd"),
        _text("project"),
        _text("owner"),
        _text("topics"),
        _text("member_of"),
        _text("entered_after"),
        _real("since_ts"),
        _maybe("away_since_s", "REAL", float),
        _number("has_left"),
    ),
    ")",
)
AWAITED = Table("awaited", (_text("msg_id", " PRIMARY KEY"), _text("waiter_id"), _text("waiter_name")), ")")
REFUSALS = Table("refusals", (_ID, _text("msg_id", " UNIQUE"), _text("sender_id"), _text("code"), _text("reason")), ")")
TABLES = (MAILBOXES, OWED, SESSIONS, AWAITED, REFUSALS)

_SCOPE, _FMT, _SIZE, _POINTER = (
    [column.name for column in OWED.columns].index(name) for name in ("scope", "fmt", "size_bytes", "segment")
)
#: Scopes and formats are numbered from 0 (docs/protocol.md, section 5).
_SCOPES, _FORMATS = range(5), range(3)
_LISTS = tuple(number for number, column in enumerate(SESSIONS.columns) if column.name in ("topics", "member_of"))
#: Bits of `has_left`. (The last two came later, and need no other table.) With the last, `mailbox` is the id of the
#: session that has taken this one over.
_LEFT, _EPHEMERAL, _SUCCEEDED = 1, 2, 4
_KINDS = {table.name: frozenset(product(*(column.types for column in table.columns))) for table in TABLES}


def is_valid(table: Table, row: Row) -> bool:
    """Whether a broker can have written this row."""
    if tuple(map(type, row)) not in _KINDS[table.name]:
        return False
    if table is OWED:
        segment, start, length, _ = row[_POINTER:]
        placed = segment > 0 and start > 0 and length > 0
        return placed and row[1] > 0 and row[_SIZE] >= 0 and row[_SCOPE] in _SCOPES and row[_FMT] in _FORMATS
    return table is not SESSIONS or all(strings(row[number]) is not None for number in _LISTS)


def strings(text: str) -> tuple[str, ...] | None:
    """The strings in a JSON array of strings; None if it is something else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return tuple(found) if type(found) is list and all(type(item) is str for item in found) else None


def row_of(session: SessionRow) -> Row:
    """The row of a session."""
    return (
        *session[:2],
        session.successor or session.mailbox,
        *session[3:8],
        json.dumps(session.topics),
        json.dumps(session.groups),
        session.entered_after,
        session.since_ts,
        session.away_since_s,
        session.left * _LEFT + (not session.persistent) * _EPHEMERAL + bool(session.successor) * _SUCCEEDED,
    )


def session_of(row: Row) -> SessionRow:
    """The session of a valid row."""
    state = row[13]
    mailbox, successor = ("", row[2]) if state & _SUCCEEDED else (row[2], "")
    lists = (strings(row[number]) for number in _LISTS)
    left, persistent = bool(state & _LEFT), not state & _EPHEMERAL
    return SessionRow._make((*row[:2], mailbox, *row[3:8], *lists, *row[10:13], left, persistent, successor))


def decoded(raw: bytes) -> str | bytes:
    """Decodes text for `Connection.text_factory`; invalid UTF-8 stays bytes, which `is_valid` refuses."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def make_tables(connection: sqlite3.Connection) -> None:
    """Creates all tables, or none."""
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("BEGIN EXCLUSIVE")
    for table in TABLES:
        connection.execute(table.create)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("COMMIT")
