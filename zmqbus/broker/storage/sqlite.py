"""The durable store: an SQLite database beside the journal.

Theory of operation
===================

The database lists which messages are still owed to whom. It holds no bodies: messages.log is their only copy, a row
points into it, and `after` reads them back. The entries put last are cached, up to `CACHE_BYTES`, so that a receiver
that is a little behind costs no reading.

*Changes wait in memory* until `commit` writes all of them in one transaction. A message that is put and removed between
two commits costs nothing. Reads merge the waiting changes with the tables. So nothing depends on the time of the write:
while the disk is full, mailboxes go on working as far as memory goes, and the first commit after that writes all
changes. They are forgotten only when COMMIT has succeeded.

*Counting without reading.* A number over the highest one in the table (`_Box.high`) is new. For a lower one, and for
removed ones, the table is asked, which costs as much as writing them would; so `total` is always exact.

*Distrust.* `file` checks the database and drops invalid rows when a broker starts, and `recover` compares the rows with
the journal. A message whose record is gone stays in its mailbox: it is delivered like a spilled one, so that its
receiver learns who has sent it, and that the text cannot be read.

Only `commit`, `recover` and opening raise for disk errors. A failed read returns what it has and adds a notice, and the
next commit fails as well, so that no sender hears that all is well.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal

from zmqbus.broker.storage import file
from zmqbus.broker.storage.api import Awaited, Box, Entry, Owed, Recovered, Refusal, SessionRow
from zmqbus.broker.storage.repair import FileErrors
from zmqbus.broker.storage.schema import AWAITED, MAILBOXES, OWED, SESSIONS, Row, Table, row_of, session_of
from zmqbus.errors import ZmqbusError
from zmqbus.journal.reader import Reader
from zmqbus.journal.verify import NAMED, LogVerifier, receivers_of, unreadable_notice
from zmqbus.wire.verbs import SPILL_BYTES, Header, Pointer

#: Size of the cache of entries: as much as may be in flight to one receiver, so that receivers that keep up within
#: their credit are served from memory.
CACHE_BYTES = 4 * 1024 * 1024
#: Bodies that one `after` returns at most, unless a single one is larger. Less than the cache takes, so that entries
#: for which a receiver has no credit yet are not read from the disk again.
READ_BYTES = 1024 * 1024
#: Refusals that are kept.
KEEP_REFUSALS = 20_000
#: New refusals after which the oldest are deleted.
PRUNE_REFUSALS = 2_000
#: Unreadable messages that are remembered, so that each is reported once; if more are lost, some are reported twice.
MAX_REPORTED = 100_000
#: Notices that are kept until the shell takes them.
MAX_NOTICES = 100

_ENTRY, _POINTER = 2, 13  # index of the fields of an `Entry`, and of its pointer, in a row


class _Box:
    """One mailbox: its uncommitted changes, and the highest number of its rows."""

    __slots__ = ("high", "kept", "key", "number", "puts", "removes", "replaced")

    def __init__(self, number: int, key: str, high: int = 0, *, kept: bool = False) -> None:
        self.number = number  # its id in the tables
        self.key = key
        self.high = high  # the highest number of a row
        self.kept = kept  # has a row in the table of mailboxes
        self.puts: dict[int, Entry] = {}
        self.removes: set[int] = set()  # numbers of rows to delete
        self.replaced: set[int] = set()  # in `puts`, with a row that is not in `removes`


class SqliteStore:
    """A `Store` in the file `path`, for the journal at `journal_path`. For one thread; opens the file exclusively.

    `durability` "process" survives the death of the process; "power" a power failure as well, at the price of an fsync
    for each commit (the journal has to be synced before). `notices` has a sentence for each fault that was found and
    how it was handled; the shell passes them on and clears the list.

    Raises `Unauthorized` for files that are links or open to others, and `StoreError` if the file cannot be created or
    opened.
    """

    def __init__(self, path: str, journal_path: str, *, durability: Literal["process", "power"] = "process") -> None:
        self.notices: list[str] = []
        self._path = path
        self._journal_path = journal_path
        self._power = durability == "power"
        self._total = 0
        self._boxes: dict[str, _Box] = {}
        self._next_number = 1
        self._changed: set[_Box] = set()
        # The last change of each row; None: deleted.
        self._sessions: dict[str, SessionRow | None] = {}
        self._awaited: dict[str, Awaited | None] = {}
        self._refusals: dict[str, Refusal] = {}
        self._refused = 0  # refusals since the oldest were deleted
        self._cache: OrderedDict[Pointer, Entry] = OrderedDict()
        self._cache_bytes = 0
        self._reported: set[str] = set()
        self._closed = False
        self._db = file.open_database(path, self.notices, power=self._power)
        try:
            self._reader = Reader(journal_path)
            self._load_mailboxes()
        except FileErrors as error:
            self._db.close()
            raise file.store_error(path, error) from None
        except BaseException:
            self._db.close()
            raise

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._total} messages in {len(self._boxes)} mailboxes"
        return f"<SqliteStore {self._path}: {state}{', changes pending' if self.pending else ''}>"

    def _load_mailboxes(self) -> None:
        """Lists the mailboxes, and deletes the empty ones."""
        self._boxes.clear()
        self._total = 0
        keys = dict(self._db.execute("SELECT id, key FROM mailboxes"))
        self._next_number = max(keys, default=0) + 1
        empty = set(keys)
        for number, messages, high in self._db.execute("SELECT mailbox, count(*), max(seq) FROM owed GROUP BY mailbox"):
            if number in keys:
                self._boxes[keys[number]] = _Box(number, keys[number], high, kept=True)
                self._total += messages
                empty.discard(number)
        if empty:
            self._db.execute("BEGIN IMMEDIATE")  # one commit for all, since each costs an fsync with durability "power"
            self._db.executemany("DELETE FROM mailboxes WHERE id = ?", [(number,) for number in empty])
            self._db.execute("COMMIT")

    # --- recovery

    def recover(self, limit: int) -> Recovered:
        try:
            return self._recover(limit)
        except FileErrors as error:
            raise file.store_error(self._path, error) from None

    def _recover(self, limit: int) -> Recovered:
        db = self._db
        sessions = [session_of(row) for row in db.execute(f"SELECT {SESSIONS.names} FROM sessions ORDER BY rowid")]
        self._prune(db)
        refusals = db.execute(
            "SELECT msg_id, sender_id, code, reason FROM refusals ORDER BY id DESC LIMIT ?", (limit,)
        ).fetchall()
        boxes, owed = self._recover_owed(limit)
        return Recovered(
            sessions,
            boxes,
            owed,
            [Awaited(*row) for row in db.execute(f"SELECT {AWAITED.names} FROM awaited ORDER BY rowid")],
            [Refusal(*row) for row in reversed(refusals)],
        )

    def _recover_owed(self, limit: int) -> tuple[list[Box], list[Owed]]:
        """Reads all rows once, and compares them with the journal."""
        keys = {box.number: box.key for box in self._boxes.values()}
        try:
            check = LogVerifier(self._journal_path, self._reader)
        except (ZmqbusError, OSError) as error:
            self._note(f"could not compare the waiting mail with {self._journal_path}: {error}")
            check = None
        boxes: list[Box] = []
        newest: list[tuple[float, int, int, Owed]] = []
        mailbox, key, messages, size, last, order_s = 0, "", 0, 0, 0, 0.0
        rows = self._db.execute(
            "SELECT mailbox, seq, msg_id, from_session, scope, accepted_s, size_bytes, segment, start, length, crc "
            "FROM owed ORDER BY mailbox, seq"
        )
        for number, seq, msg_id, from_session, scope, accepted_s, size_bytes, *pointer in rows:
            if number != mailbox:
                if messages:
                    boxes.append(Box(key, messages, size, last))
                mailbox, key, messages, size, order_s = number, keys[number], 0, 0, accepted_s
            messages += 1
            size += size_bytes
            last = seq
            # Mail taken over from another mailbox may be older than the mail before it; the numbers give the order.
            order_s = max(order_s, accepted_s)
            newest.append((order_s, number, seq, Owed(key, msg_id, from_session, scope)))
            if len(newest) > 2 * limit + 1000:
                newest = sorted(newest)[-limit:] if limit else []
            if check is not None and size_bytes:
                check.add(msg_id, *pointer)
        if messages:
            boxes.append(Box(key, messages, size, last))
        if check is not None and (unreadable := check.unreadable()):
            self._report_unreadable(sorted(unreadable), "their records are gone or damaged")
        newest.sort()
        return boxes, [owed for *_, owed in newest[-limit:]] if limit else []

    # --- messages

    def put(self, mailbox: str, seq: int, entry: Entry) -> None:
        box = self._boxes.get(mailbox)
        if box is None:
            box = self._boxes[mailbox] = _Box(self._next_number, mailbox)
            self._next_number += 1
        if entry.repeated:
            entry = entry._replace(repeated=False)
        if seq not in box.puts:
            if seq <= box.high and seq not in box.removes and self._in_table(box, [seq]):
                box.replaced.add(seq)
            else:
                self._total += 1
        box.puts[seq] = entry
        self._changed.add(box)
        if entry.body:
            self._remember(entry)

    def remove(self, mailbox: str, seqs: Iterable[int]) -> None:
        box = self._boxes.get(mailbox)
        if box is None:
            return
        puts, removes, kept = box.puts, box.removes, []
        for seq in seqs:
            if seq in puts:
                del puts[seq]
                self._total -= 1
                if seq in box.replaced:
                    box.replaced.discard(seq)
                    removes.add(seq)
            elif seq <= box.high and seq not in removes:
                kept.append(seq)
        if kept:
            found = self._in_table(box, kept)
            removes |= found
            self._total -= len(found)
        if puts or removes:
            self._changed.add(box)
        else:
            self._changed.discard(box)

    def after(self, mailbox: str, seq: int, limit: int) -> list[tuple[int, Entry]]:
        box = self._boxes.get(mailbox)
        if box is None or limit <= 0:
            return []
        found: dict[int, Entry] = {}
        room = READ_BYTES
        for number, entry in self._merged(box, seq, limit):
            if not entry.body and entry.size_bytes <= SPILL_BYTES:
                room -= entry.size_bytes
            if room < 0 and found:
                break
            found[number] = entry
        self._read_bodies(found)
        return list(found.items())

    def heads(self, mailbox: str, seq: int) -> list[tuple[int, Entry]]:
        box = self._boxes.get(mailbox)
        return [] if box is None else list(self._merged(box, seq, self._total))

    def _merged(self, box: _Box, seq: int, limit: int) -> Iterator[tuple[int, Entry]]:
        """Entries of a mailbox after `seq`, in order, without bodies that only the journal has."""
        entries: dict[int, Entry] = {}
        if box.high > seq:
            hidden = sum(1 for number in (*box.removes, *box.puts) if number > seq)
            select = f"SELECT {OWED.names} FROM owed WHERE mailbox = ? AND seq > ? ORDER BY seq LIMIT ?"
            try:
                for row in self._db.execute(select, (box.number, seq, limit + hidden)):
                    if row[1] not in box.removes:
                        entries[row[1]] = self._entry(row)
            except FileErrors as error:
                self._failed_read(error)
        waiting = [number for number in box.puts if number > seq]
        if waiting:
            entries.update((number, box.puts[number]) for number in waiting)
            return islice(((number, entries[number]) for number in sorted(entries)), limit)
        return islice(iter(entries.items()), limit)

    def _entry(self, row: Row) -> Entry:
        pointer = row[_POINTER:]
        entry = self._cache.get(pointer)
        if entry is not None and entry.msg_id == row[_ENTRY]:
            return entry
        header = Header._make(row[_ENTRY + 1 : _POINTER - 2])
        return Entry(header, row[_ENTRY], row[_POINTER - 2], row[_POINTER - 1], pointer, b"", False)

    def _read_bodies(self, found: dict[int, Entry]) -> None:
        """Adds the bodies of entries that are in the journal and were not spilled."""
        wanted = [
            (number, entry) for number, entry in found.items() if not entry.body and 0 < entry.size_bytes <= SPILL_BYTES
        ]
        if not wanted:
            return
        unreadable: dict[str, str] = {}
        try:
            results = self._reader.read_many([entry.pointer for _, entry in wanted])
        except (ZmqbusError, OSError) as error:
            unreadable = {entry.msg_id: str(error) for _, entry in wanted}
        else:
            for (number, entry), record in zip(wanted, results, strict=True):
                if isinstance(record, ZmqbusError):
                    unreadable[entry.msg_id] = str(record)
                elif record.msg_id != entry.msg_id or len(record.body) != entry.size_bytes:
                    unreadable[entry.msg_id] = "another record is in its place"
                else:
                    found[number] = entry._replace(body=record.body)
                    self._remember(found[number])
        new = [msg_id for msg_id in unreadable if msg_id not in self._reported]
        if new:
            self._report_unreadable(new, unreadable[new[0]])

    def _remember(self, entry: Entry) -> None:
        if entry.pointer in self._cache:
            return
        self._cache[entry.pointer] = entry
        self._cache_bytes += entry.credit_bytes
        while self._cache_bytes > CACHE_BYTES:
            self._cache_bytes -= self._cache.popitem(last=False)[1].credit_bytes

    def _in_table(self, box: _Box, seqs: list[int]) -> set[int]:
        """The numbers among these that have rows, whatever the uncommitted changes are."""
        found: set[int] = set()
        try:
            if len(seqs) > 2 and max(seqs) - min(seqs) < 4 * len(seqs):
                select = "SELECT seq FROM owed WHERE mailbox = ? AND seq BETWEEN ? AND ?"
                found.update(seq for (seq,) in self._db.execute(select, (box.number, min(seqs), max(seqs))))
                return found.intersection(seqs)
            select = "SELECT 1 FROM owed WHERE mailbox = ? AND seq = ?"
            found.update(seq for seq in seqs if self._db.execute(select, (box.number, seq)).fetchone())
            return found
        except FileErrors as error:
            self._failed_read(error)
            return set(seqs)  # deleting a missing row is harmless

    def stale(self, before_s: float) -> list[str]:
        found: set[str] = set()
        boxes = {box.number: box for box in self._boxes.values()}
        try:
            # Reads all rows, in 10 ms for 100,000; an index would cost more with every message.
            for number, seq in self._db.execute("SELECT mailbox, seq FROM owed WHERE accepted_s < ?", (before_s,)):
                box = boxes.get(number)
                if box is not None and seq not in box.removes and seq not in box.puts:
                    found.add(box.key)
        except FileErrors as error:
            self._failed_read(error)
        for box in self._changed:
            if any(entry.accepted_s < before_s for entry in box.puts.values()):
                found.add(box.key)
        return sorted(found)

    def total(self) -> int:
        return self._total

    def oldest_segment(self) -> int | None:
        # Removed rows count until the commit: if it fails, the next broker finds them.
        oldest: list[int] = [entry.pointer[0] for box in self._changed for entry in box.puts.values()]
        try:
            oldest += [row[0] for row in self._db.execute("SELECT min(segment) FROM owed") if row[0] is not None]
        except FileErrors as error:
            self._failed_read(error)
            return 0  # older than all, so that no segment is deleted
        return min(oldest, default=None)

    def records_in(self, segment: int) -> list[tuple[int, int]]:
        """Offset and length of the records in a segment that kept messages point to, in order.

        Call it when nothing is pending. Raises `StoreError` if the file cannot be read.
        """
        try:
            select = "SELECT DISTINCT start, length FROM owed WHERE segment = ? ORDER BY start"
            return self._db.execute(select, (segment,)).fetchall()
        except FileErrors as error:
            raise file.store_error(self._path, error) from None

    # --- sessions, awaited answers, refusals

    def save_session(self, row: SessionRow) -> None:
        self._sessions[row.session_id] = row

    def forget_session(self, session_id: str) -> None:
        self._sessions[session_id] = None

    def save_awaited(self, awaited: Awaited) -> None:
        self._awaited[awaited.msg_id] = awaited

    def forget_awaited(self, msg_ids: Iterable[str]) -> None:
        for msg_id in msg_ids:
            self._awaited[msg_id] = None

    def save_refusal(self, refusal: Refusal) -> None:
        self._refusals.pop(refusal.msg_id, None)  # moves it to the newest
        self._refusals[refusal.msg_id] = refusal

    # --- the disk

    @property
    def pending(self) -> bool:
        return bool(self._changed or self._sessions or self._awaited or self._refusals)

    def commit(self) -> None:
        if not self.pending:
            return
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            if self._changed:
                self._write_messages(db)
            for table, changes in ((SESSIONS, self._sessions), (AWAITED, self._awaited)):
                if changes:
                    self._write_rows(db, table, changes)
            if self._refusals:
                db.executemany(
                    "INSERT OR REPLACE INTO refusals (msg_id, sender_id, code, reason) VALUES (?, ?, ?, ?)",
                    self._refusals.values(),
                )
                if self._refused + len(self._refusals) >= PRUNE_REFUSALS:
                    self._prune(db)
            db.execute("COMMIT")
        except FileErrors as error:
            self._roll_back()
            # guards: durability [raise => self._changed.clear(); raise]
            raise file.store_error(self._path, error) from None
        except BaseException:
            self._roll_back()
            raise
        for box in self._changed:
            if box.puts:
                box.high = max(box.high, max(box.puts))
                box.kept = True
                box.puts.clear()
            box.removes.clear()
            box.replaced.clear()
        self._changed.clear()
        self._sessions.clear()
        self._awaited.clear()
        self._refused = (self._refused + len(self._refusals)) % PRUNE_REFUSALS
        self._refusals.clear()

    def _write_messages(self, db: sqlite3.Connection) -> None:
        new = [(box.number, box.key) for box in self._changed if box.puts and not box.kept]
        if new:
            db.executemany(MAILBOXES.insert, new)
        removes = [(box.number, seq) for box in self._changed for seq in box.removes]
        if removes:
            db.executemany("DELETE FROM owed WHERE mailbox = ? AND seq = ?", removes)
        puts = [
            (box.number, seq, entry.msg_id, *entry.header, entry.accepted_s, entry.size_bytes, *entry.pointer)
            for box in self._changed
            for seq, entry in box.puts.items()
        ]
        if puts:
            db.executemany(OWED.insert, puts)

    def _write_rows(self, db: sqlite3.Connection, table: Table, changes: dict[str, Any]) -> None:
        gone = [(key,) for key, row in changes.items() if row is None]
        if gone:
            db.executemany(f"DELETE FROM {table.name} WHERE {table.columns[0].name} = ?", gone)
        kept = [row for row in changes.values() if row is not None]
        if table is SESSIONS:
            kept = [row_of(row) for row in kept]
        if kept:
            db.executemany(table.insert, kept)

    def _prune(self, db: sqlite3.Connection) -> None:
        db.execute(
            "DELETE FROM refusals WHERE id <= (SELECT id FROM refusals ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (KEEP_REFUSALS,),
        )

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except FileErrors:
            pass  # SQLite has done it, or the next BEGIN raises

    # --- errors

    def _note(self, text: str) -> None:
        if len(self.notices) < MAX_NOTICES:
            self.notices.append(text)

    def _failed_read(self, error: Exception) -> None:
        text = str(file.store_error(self._path, error))
        if text not in self.notices:
            self._note(text)

    def _report_unreadable(self, msg_ids: list[str], why: str) -> None:
        """Adds a notice that names messages without readable text, and their receivers."""
        if len(self._reported) > MAX_REPORTED:
            self._reported.clear()
        self._reported.update(msg_ids)
        try:
            receivers = receivers_of(self._db, msg_ids[:NAMED])
        except FileErrors as error:
            self._failed_read(error)
            receivers = {}
        self._note(unreadable_notice(self._journal_path, msg_ids, receivers, why))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._reader.close()
        self._db.close()
