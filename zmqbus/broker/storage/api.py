"""The store's interface: the rows that the broker keeps on disk, and the operations that it needs.

A store keeps the messages that a mailbox cannot deliver at once: the receiver is away, has used up its credit, or has
not acknowledged within the second after which the sender hears `queued`. Mailboxes number their messages; the store
keeps them under (mailbox, number) and returns them in that order. Beside them it keeps the state that the next broker
continues with: the sessions, the awaited answers, and the refusals.

Changes become binding with `commit`, once per wake of the broker, before any client hears of them. `sqlite` is the
durable store, `zmqbus.testing.store` one for tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from zmqbus.errors import BrokerUnavailable
from zmqbus.tuples import NamedTuple
from zmqbus.wire.verbs import Header, Pointer

#: Credit that the fields of a message take beside its body: as much again as a small body.
FIELDS_BYTES = 200


class StoreError(BrokerUnavailable):
    """The changes since the last commit are not on disk."""


class Entry(NamedTuple):
    """An accepted message: journaled, and owed to its receivers, which share it."""

    header: Header
    msg_id: str
    accepted_s: float  #: when the broker accepted it, on the steady clock, for ages
    size_bytes: int
    pointer: Pointer
    body: bytes  #: empty if the body was spilled, so that only the pointer travels
    repeated: bool = False  #: sent before, perhaps to a broker that died

    @property
    def spilled(self) -> bool:
        """Whether only the journal has the body."""
        return len(self.body) != self.size_bytes

    @property
    def credit_bytes(self) -> int:
        """Credit that it takes while it is in flight."""
        return len(self.body) + FIELDS_BYTES


class SessionRow(NamedTuple):
    """The part of a session that the next broker has to know."""

    session_id: str
    token_digest: str  #: SHA-256 of the token, hex
    mailbox: str  #: key of its mailbox: its own id, or that of the session whose mail it took over
    name: str
    label: str | None
    cwd: str
    project: str
    owner: str
    topics: tuple[str, ...]
    groups: tuple[str, ...]
    entered_after: str  #: id of the last message accepted before it first connected; "": unknown
    since_ts: float  #: when it last connected, on the wall clock
    away_since_s: float | None  #: on the steady clock; None: connected when this was saved
    left: bool  #: disconnected on purpose, or discarded
    persistent: bool = True  #: its name was chosen; else it is forgotten with its process
    successor: str = ""  #: id of the session that has taken it over; else ""


def succeeded_row(session_id: str, successor: str, at_s: float) -> SessionRow:
    """The row of a session that another one has taken over, at `at_s` of the steady clock."""
    return SessionRow(session_id, "", "", "", None, "", "", "", (), (), "", 0.0, at_s, True, True, successor)


class Awaited(NamedTuple):
    """An answer that a command awaits."""

    msg_id: str  #: of the message that will be answered
    waiter_id: str  #: session id, or that of a guest
    waiter_name: str


class Refusal(NamedTuple):
    """A message that was refused, and must be refused again when it is repeated."""

    msg_id: str  #: if only one mailbox had no room for a broadcast: the id, a slash, and the mailbox
    sender_id: str
    code: str
    text: str


class Box(NamedTuple):
    """Size of one mailbox."""

    mailbox: str
    messages: int
    size_bytes: int
    last_seq: int


class Owed(NamedTuple):
    """A message in one mailbox, without its content."""

    mailbox: str
    msg_id: str
    from_session: str
    scope: int


class Recovered(NamedTuple):
    """State that an earlier broker has left."""

    sessions: list[SessionRow]
    boxes: list[Box]  #: the mailboxes that are not empty
    owed: list[Owed]  #: the newest up to the limit, oldest first
    awaited: list[Awaited]
    refusals: list[Refusal]  #: oldest first


class Store(Protocol):
    """The operations that the core needs. All are cheap; only `commit` waits for a disk.

    Reads see earlier changes, committed or not. After a failed `commit` the changes are kept, reads may return less
    than there is, and every further `commit` tries all of them again: nothing is lost as long as the process lives.
    """

    def recover(self, limit: int) -> Recovered:
        """Returns the kept state. Call it once, first. `limit` bounds `Recovered.owed` and `.refusals`."""

    # --- messages

    def put(self, mailbox: str, seq: int, entry: Entry) -> None:
        """Keeps an entry under a number of the mailbox, replacing the entry there."""

    def remove(self, mailbox: str, seqs: Iterable[int]) -> None:
        """Removes these numbers; ignores those that are not there."""

    def after(self, mailbox: str, seq: int, limit: int) -> list[tuple[int, Entry]]:
        """Up to `limit` entries with numbers over `seq`, in order."""

    def heads(self, mailbox: str, seq: int) -> list[tuple[int, Entry]]:
        """All entries with numbers over `seq`, in order, perhaps without their bodies."""

    def stale(self, before_s: float) -> list[str]:
        """Mailboxes with messages that were accepted before this instant of the steady clock."""

    def total(self) -> int:
        """Number of messages in all mailboxes."""

    def oldest_segment(self) -> int | None:
        """The oldest journal segment that a kept message points into, removed but uncommitted ones included."""

    # --- sessions, awaited answers, refusals

    def save_session(self, row: SessionRow) -> None:
        """Keeps a session, replacing the row of its id."""

    def forget_session(self, session_id: str) -> None:
        """Removes a session's row; its messages stay until the mailbox removes them."""

    def save_awaited(self, awaited: Awaited) -> None:
        """Keeps an awaited answer."""

    def forget_awaited(self, msg_ids: Iterable[str]) -> None:
        """Removes awaited answers."""

    def save_refusal(self, refusal: Refusal) -> None:
        """Keeps a refusal. All but the newest 20,000 may be forgotten."""

    # --- the disk

    @property
    def pending(self) -> bool:
        """Whether there are changes since the last successful commit."""

    def commit(self) -> None:
        """Writes all changes. Raises `StoreError` if they cannot be written."""

    def close(self) -> None:
        """Closes it in good order, without the uncommitted changes."""
