"""Check at the start of a broker that the log still holds the messages of the database.

The record of every row must lie within an existing segment. To check its bytes takes reading it; that is done for the
smallest records first, up to `CHECK_BYTES`, so that a start does not take as long as reading all mail. Damage that is
not found here is found at delivery.
"""

from __future__ import annotations

import os
import sqlite3

from zmqbus.journal.reader import Reader
from zmqbus.journal.segments import compacted, segments

#: Records that are read: most of what waits, in 0.3 s.
CHECK_BYTES = 64 * 1024 * 1024
#: Messages that a notice lists.
NAMED = 20


class LogVerifier:
    """Collects the pointers of rows and then returns the messages whose records cannot be read."""

    def __init__(self, journal_path: str, reader: Reader, *, check_bytes: int = CHECK_BYTES) -> None:
        self._reader = reader
        self._check_bytes = check_bytes
        self._sizes: dict[int, int] = {}
        files = [(segment.serial, segment.path) for segment in segments(journal_path)]
        for serial, name in (*files, *compacted(journal_path)):
            try:
                self._sizes.setdefault(serial, os.stat(name).st_size)
            except FileNotFoundError:
                continue
        self._sizes.pop(0, None)  # segments with an unreadable serial
        self._unreadable: set[str] = set()
        self._waiting: dict[tuple[int, int, int, int], str] = {}  # pointer -> message
        self._waiting_bytes = 0

    def add(self, msg_id: str, segment: int, start: int, length: int, crc: int) -> None:
        """Adds a message and the pointer to its record."""
        if start + length > self._sizes.get(segment, 0):
            self._unreadable.add(msg_id)
            return
        pointer = (segment, start, length, crc)
        if pointer not in self._waiting:  # a broadcast has many rows
            self._waiting[pointer] = msg_id
            self._waiting_bytes += length
            if self._waiting_bytes > 2 * self._check_bytes:
                self._thin()

    def unreadable(self) -> set[str]:
        """The ids of the messages whose records are missing or damaged."""
        self._thin()
        for pointer in sorted(self._waiting):
            if not self._reader.intact(pointer):
                self._unreadable.add(self._waiting[pointer])
        self._waiting.clear()
        self._waiting_bytes = 0
        return self._unreadable

    def _thin(self) -> None:
        if self._waiting_bytes <= self._check_bytes:
            return
        rows = sorted(self._waiting.items(), key=lambda item: item[0][2])
        self._waiting.clear()
        self._waiting_bytes = 0
        for pointer, msg_id in rows:
            if self._waiting_bytes + pointer[2] > self._check_bytes:
                return
            self._waiting[pointer] = msg_id
            self._waiting_bytes += pointer[2]


def receivers_of(db: sqlite3.Connection, msg_ids: list[str]) -> dict[str, list[str]]:
    """The names of the sessions that these messages wait for; the key of a mailbox without a session."""
    names = dict(db.execute("SELECT mailbox, name FROM sessions"))
    marks = ", ".join("?" * len(msg_ids))
    receivers: dict[str, list[str]] = {}
    select = f"SELECT DISTINCT msg_id, key FROM owed JOIN mailboxes ON id = mailbox WHERE msg_id IN ({marks})"
    for msg_id, key in db.execute(select, msg_ids):
        receivers.setdefault(msg_id, []).append(names.get(key) or key)
    return receivers


def unreadable_notice(journal_path: str, msg_ids: list[str], receivers: dict[str, list[str]], why: str) -> str:
    """The notice about messages whose texts are lost; lists the first `NAMED` of them."""
    listed = ", ".join(f"{msg_id} for {_several(receivers.get(msg_id, []))}" for msg_id in msg_ids[:NAMED])
    if len(msg_ids) > NAMED:
        listed += f" and {len(msg_ids) - NAMED:,} more"
    return (
        f"the texts of {len(msg_ids):,} unread messages cannot be read back from {journal_path} ({why}): {listed}; "
        "their receivers are told who wrote; ask the senders to send them again"
    )


def _several(names: list[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names) or "somebody"
    return f"{', '.join(names[:3])} and {len(names) - 3} others"
