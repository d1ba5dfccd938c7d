"""What unread mail keeps of the log: records, not segments.

A segment that is older than those that are kept for everybody stays as long as a message in some mailbox points into
it, and one message that is never read would keep all that was ever said after it. So of such a segment the records are
kept that the store still points to, and the rest goes (`Journal.keep_only`). The pointers stay as they are.

It is looked for when a segment was begun, and at the start; one file at a time, when nothing is pending, so that a
store that is asked knows all. Segments with anything under way wait until it has arrived: nobody has listed that. What
was kept is thinned again when less than half of it is needed, and goes when nothing is.
"""

from __future__ import annotations

from collections.abc import Callable

from zmqbus.broker.core import BrokerCore
from zmqbus.broker.database import Database
from zmqbus.broker.store import StoreError
from zmqbus.journal import Journal
from zmqbus.record import JournalError

#: A file with so much that is not needed is not worth another copy: each record takes blocks of 4 KiB.
SLACK_BYTES = 1024 * 1024
#: How often it is looked again while anything is kept, or could not be thinned: mail is read meanwhile.
LOOK_S = 60.0


class Thinning:
    """Sees to it, a file at a time."""

    def __init__(self, journal: Journal, store: Database, core: BrokerCore, warn: Callable[[str], None]) -> None:
        self._journal = journal
        self._store = store
        self._core = core
        self._warn = warn
        self._seen = -1  # the segment that was written to when it was looked last
        self._due_s = 0.0
        self._again = False  # there is something to look at again
        self._todo: list[tuple[int, str]] = []
        self.kept_bytes = 0  #: of the disk, for unread mail alone, when it was looked last

    def __repr__(self) -> str:
        return f"<Thinning: {self.kept_bytes:,} bytes kept, {len(self._todo)} files to look at>"

    def tick(self, now_s: float) -> None:
        """Looks, or goes on with what it has found."""
        if self._core.delivery.waits_for_commit or self._store.pending:  # guards: retention
            return
        try:
            if self._todo:
                self._thin(*self._todo.pop())
                if not self._todo:
                    self._survey()
            elif self._journal.segment != self._seen or (self._again and now_s >= self._due_s):
                self._seen = self._journal.segment
                self._due_s = now_s + LOOK_S
                self._todo = self._survey()
        except (StoreError, JournalError) as error:
            self._todo.clear()
            self._again = True
            self._warn(f"what unread mail does not need of the log is kept for now: {error}")

    def _survey(self) -> list[tuple[int, str]]:
        """What there is to be thinned; and how much is kept."""
        todo = self._journal.excess()
        whole = self._journal.sizes(todo)
        thinned = self._journal.kept()
        self.kept_bytes = sum(whole) + sum(size_bytes for _, _, size_bytes in thinned)
        self._again = bool(self.kept_bytes)
        for serial, name, size_bytes in thinned:
            needed_bytes = sum(length for _, length in self._store.records_in(serial))
            if not needed_bytes or size_bytes > 2 * needed_bytes + SLACK_BYTES:
                todo.append((serial, name))
        return todo

    def _thin(self, serial: int, name: str) -> None:
        oldest = self._core.oldest_under_way()
        if oldest is None or serial < oldest:  # guards: retention: messages in flight point into it [on]
            self._journal.keep_only(serial, name, self._store.records_in(serial))
