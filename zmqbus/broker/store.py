"""Who still has to get what.

A store keeps the messages that a mailbox cannot hand on at once: the receiver is away, has used up its credit, or has
not acknowledged within the second after which the sender is told `queued`. Mailboxes number their messages; the store
keeps them under (mailbox, number) and gives them back in that order.

Writes become binding with `commit`, once per wake of the broker, before anybody is told of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple, Protocol

from zmqbus.protocol import Pointer


class Entry(NamedTuple):
    """A message that was accepted: written to the journal, and owed to its receivers. Shared by all of them."""

    msg_id: str
    from_session: str
    from_name: str
    from_label: str | None
    scope: int
    target: str
    fmt: int
    reply_to: str | None
    ts: float  #: wall clock, s
    size_bytes: int
    pointer: Pointer
    body: bytes  #: empty where the body was spilled and the pointer is all that travels

    @property
    def spilled(self) -> bool:
        return len(self.body) != self.size_bytes

    @property
    def credit_bytes(self) -> int:
        """What it weighs on the way to a receiver: the body and about as much again as the fields of a small one."""
        return len(self.body) + 200


class Store(Protocol):
    """What `core` needs of a store. All methods are cheap; only `commit` may touch the disk."""

    #: Whether what was committed outlives the process.
    durable: bool

    def put(self, mailbox: str, seq: int, entry: Entry) -> None:
        """Keeps the entry under the mailbox's number; the same number again is no error."""

    def remove(self, mailbox: str, seqs: Iterable[int]) -> None:
        """Forgets these numbers; those that are not there are passed over."""

    def after(self, mailbox: str, seq: int, limit: int) -> list[tuple[int, Entry]]:
        """Up to `limit` entries with numbers over `seq`, in order."""

    def total(self) -> int:
        """Messages kept, over all mailboxes."""

    def oldest_segment(self) -> int | None:
        """The oldest segment of the journal that a message kept here points into; None if there is none."""

    def commit(self) -> None:
        """Makes all that was put and removed binding."""


class MemoryStore:
    """A store that lives and dies with the broker."""

    durable = False

    def __init__(self) -> None:
        self._boxes: dict[str, dict[int, Entry]] = {}

    def __repr__(self) -> str:
        return f"<MemoryStore: {self.total()} messages in {len(self._boxes)} mailboxes>"

    def put(self, mailbox: str, seq: int, entry: Entry) -> None:
        self._boxes.setdefault(mailbox, {})[seq] = entry

    def remove(self, mailbox: str, seqs: Iterable[int]) -> None:
        box = self._boxes.get(mailbox)
        if box is None:
            return
        for seq in seqs:
            box.pop(seq, None)
        if not box:
            del self._boxes[mailbox]

    def after(self, mailbox: str, seq: int, limit: int) -> list[tuple[int, Entry]]:
        box = self._boxes.get(mailbox, {})
        # Numbers are put in rising order but for those that the window hands back when a receiver goes.
        return list(islice(((number, box[number]) for number in sorted(box) if number > seq), limit))

    def total(self) -> int:
        return sum(map(len, self._boxes.values()))

    def oldest_segment(self) -> int | None:
        return min((entry.pointer[0] for box in self._boxes.values() for entry in box.values()), default=None)

    def commit(self) -> None:
        """Nothing to do: memory is binding as long as it lasts."""
