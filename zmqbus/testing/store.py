"""A mailbox store in memory, for tests: it can fail to commit, and forget what was not committed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from zmqbus.broker.storage.api import Awaited, Box, Entry, Owed, Recovered, Refusal, SessionRow, StoreError


class _Tables:
    """The tables of the store."""

    def __init__(self) -> None:
        self.boxes: dict[str, dict[int, tuple[int, Entry]]] = {}  # mailbox → number → (order of coming, entry)
        self.sessions: dict[str, SessionRow] = {}
        self.awaited: dict[str, Awaited] = {}
        self.refusals: dict[str, Refusal] = {}
        self.order = 0

    def copy(self) -> _Tables:
        """Returns a copy; rows are immutable and therefore shared."""
        other = _Tables()
        other.boxes = {key: dict(box) for key, box in self.boxes.items()}
        other.sessions, other.awaited, other.refusals = dict(self.sessions), dict(self.awaited), dict(self.refusals)
        other.order = self.order
        return other


class MemoryStore:
    """A `Store` in memory. `crash()` returns to the last commit, as the death of a broker does.

    While `fails` is a text, commits raise `StoreError` with it.
    """

    def __init__(self) -> None:
        self._now = _Tables()
        self._committed = _Tables()
        self._dirty = False
        self.fails: str | None = None
        self.commits = 0  #: how many commits had something to write

    def __repr__(self) -> str:
        return f"<MemoryStore: {self.total()} messages in {len(self._now.boxes)} mailboxes>"

    def crash(self) -> None:
        """Discards everything since the last commit."""
        self._now = self._committed.copy()
        self._dirty = False

    # --- Store

    def recover(self, limit: int) -> Recovered:
        tables = self._now
        rows = sorted((order, mailbox, entry) for mailbox, box in tables.boxes.items() for order, entry in box.values())
        return Recovered(
            sessions=list(tables.sessions.values()),
            boxes=[
                Box(key, len(box), sum(entry.size_bytes for _, entry in box.values()), max(box))
                for key, box in tables.boxes.items()
            ],
            owed=[Owed(mailbox, e.msg_id, e.header.from_session, e.header.scope) for _, mailbox, e in rows[-limit:]],
            awaited=list(tables.awaited.values()),
            refusals=list(tables.refusals.values())[-limit:],
        )

    def put(self, mailbox: str, seq: int, entry: Entry) -> None:
        self._dirty = True
        self._now.order += 1
        self._now.boxes.setdefault(mailbox, {})[seq] = (self._now.order, entry._replace(repeated=False))

    def remove(self, mailbox: str, seqs: Iterable[int]) -> None:
        self._dirty = True
        box = self._now.boxes.get(mailbox)
        if box is None:
            return
        for seq in seqs:
            box.pop(seq, None)
        if not box:
            del self._now.boxes[mailbox]

    def after(self, mailbox: str, seq: int, limit: int) -> list[tuple[int, Entry]]:
        box = self._now.boxes.get(mailbox, {})
        # Numbers come in rising order, except those that the in-flight window returns when a receiver leaves.
        return list(islice(((number, box[number][1]) for number in sorted(box) if number > seq), limit))

    def heads(self, mailbox: str, seq: int) -> list[tuple[int, Entry]]:
        return self.after(mailbox, seq, len(self._now.boxes.get(mailbox, ())))

    def stale(self, before_s: float) -> list[str]:
        boxes = self._now.boxes.items()
        return [key for key, box in boxes if any(entry.accepted_s < before_s for _, entry in box.values())]

    def total(self) -> int:
        return sum(map(len, self._now.boxes.values()))

    def oldest_segment(self) -> int | None:
        # Removed rows count until the commit, since without it they are there again.
        boxes = [*self._now.boxes.values(), *self._committed.boxes.values()]
        return min((entry.pointer[0] for box in boxes for _, entry in box.values()), default=None)

    def save_session(self, row: SessionRow) -> None:
        self._dirty = True
        self._now.sessions[row.session_id] = row

    def forget_session(self, session_id: str) -> None:
        self._dirty = True
        self._now.sessions.pop(session_id, None)

    def save_awaited(self, awaited: Awaited) -> None:
        self._dirty = True
        self._now.awaited[awaited.msg_id] = awaited

    def forget_awaited(self, msg_ids: Iterable[str]) -> None:
        self._dirty = True
        for msg_id in msg_ids:
            self._now.awaited.pop(msg_id, None)

    def save_refusal(self, refusal: Refusal) -> None:
        self._dirty = True
        self._now.refusals[refusal.msg_id] = refusal

    @property
    def pending(self) -> bool:
        return self._dirty

    def commit(self) -> None:
        if not self._dirty:
            return
        if self.fails is not None:
            raise StoreError(self.fails)
        self._committed = self._now.copy()
        self._dirty = False
        self.commits += 1

    def close(self) -> None:
        self.crash()
