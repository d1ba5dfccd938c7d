"""Compacts old journal segments to the records that unread mail still points to.

A segment past the number that is always kept stays as long as a message in some mailbox points into it. Without
compaction, one message that is never read would keep everything that was journaled after it. So such a segment is
reduced to the records that the store points to (`Journal.compact`); the pointers stay valid.

Compaction looks for work at the start and whenever a segment was begun. It rewrites one file at a time, and only when
the store has nothing uncommitted, so that the store knows every pointer. Segments with messages in flight are left
alone until these have arrived, since nothing lists the records they need. A compacted file is compacted again when less
than half of it is needed, and removed when nothing is.
"""

from __future__ import annotations

from collections.abc import Callable

from zmqbus.broker.core import BrokerCore
from zmqbus.broker.storage.api import StoreError
from zmqbus.broker.storage.sqlite import SqliteStore
from zmqbus.journal.record import JournalError
from zmqbus.journal.writer import Journal

#: A file with less waste than this is not worth another copy: each record takes blocks of 4 KiB.
SLACK_BYTES = 1024 * 1024
#: Pause between two looks while anything is kept or could not be compacted; mail is read meanwhile.
LOOK_S = 60.0


class Compaction:
    """Compacts one segment at each tick, as far as there are any."""

    def __init__(self, journal: Journal, store: SqliteStore, core: BrokerCore, warn: Callable[[str], None]) -> None:
        self._journal = journal
        self._store = store
        self._core = core
        self._warn = warn
        self._seen_segment = -1  # the current segment at the last look
        self._due_s = 0.0
        self._look_again = False  # something is kept, or could not be compacted
        self._todo: list[tuple[int, str]] = []
        self.kept_bytes = 0  #: of disk, for unread mail alone, at the last look

    def __repr__(self) -> str:
        return f"<Compaction: {self.kept_bytes:,} bytes kept, {len(self._todo)} files to do>"

    def tick(self, now_s: float) -> None:
        """Compacts the next file, or looks for files to compact."""
        if self._core.delivery.waits_for_commit or self._store.pending:  # guards: retention
            return
        try:
            if self._todo:
                self._compact(*self._todo.pop())
                if not self._todo:
                    self._find_work()
            elif self._journal.segment != self._seen_segment or (self._look_again and now_s >= self._due_s):
                self._seen_segment = self._journal.segment
                self._due_s = now_s + LOOK_S
                self._todo = self._find_work()
        except (StoreError, JournalError) as error:
            self._todo.clear()
            self._look_again = True
            self._warn(f"cannot compact old journal segments, trying again later: {error}")

    def _find_work(self) -> list[tuple[int, str]]:
        """Lists the files to compact, and measures the segments that stay."""
        todo = self._journal.excess()
        whole = self._journal.sizes(todo)
        compacted = self._journal.compacted()
        self.kept_bytes = sum(whole) + sum(size_bytes for _, _, size_bytes in compacted)
        self._look_again = bool(self.kept_bytes)
        for serial, name, size_bytes in compacted:
            needed_bytes = sum(length for _, length in self._store.records_in(serial))
            if not needed_bytes or size_bytes > 2 * needed_bytes + SLACK_BYTES:
                todo.append((serial, name))
        return todo

    def _compact(self, serial: int, name: str) -> None:
        oldest = self._core.oldest_under_way()
        if oldest is None or serial < oldest:  # guards: retention: messages in flight point into it [on]
            self._journal.compact(serial, name, self._store.records_in(serial))
