"""Who still has to get what, and who they are: what the broker keeps on disk, and what it asks of the keeper.

A store keeps the messages that a mailbox cannot hand on at once: the receiver is away, has used up its credit, or has
not acknowledged within the second after which the sender is told `queued`. Mailboxes number their messages; the store
keeps them under (mailbox, number) and gives them back in that order. Beside them it keeps what a broker needs to go on
where another one died: the sessions, the answers that are awaited, and what senders were refused.

Changes become binding with `commit`, once per wake of the broker, before anybody is told of them. `database` is the
store that outlives the process; `zmqbus.testing.store` one for tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from zmqbus.errors import BrokerUnavailable
from zmqbus.tuples import NamedTuple
from zmqbus.wire.verbs import Pointer

#: What the fields of a message weigh on its way to a receiver: as much again as a small body.
FIELDS_BYTES = 200


class StoreError(BrokerUnavailable):
    """What was changed since the last commit is not on the disk."""


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
    accepted_s: float  #: the same instant on the clock that never jumps (`Instant.steady_s`): ages are taken from it
    size_bytes: int
    pointer: Pointer
    body: bytes  #: empty where the body was spilled and the pointer is all that travels
    repeated: bool = False  #: its sender has said it before, perhaps to a broker that died

    @property
    def envelope(self) -> tuple[str, str, str, str | None, int, str, int, str | None, float]:
        """Its fields from `msg_id` to `ts`, which travel on as they are."""
        return self[:9]

    @property
    def spilled(self) -> bool:
        return len(self.body) != self.size_bytes

    @property
    def credit_bytes(self) -> int:
        """What it weighs on the way to a receiver."""
        return len(self.body) + FIELDS_BYTES


class SessionRow(NamedTuple):
    """A session, as the next broker has to know it."""

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
    entered_after: str  #: id of the message that was accepted last before its first coming; "": not known
    since_ts: float  #: wall clock of its last coming, s
    away_since_s: float | None  #: on the steady clock; None: connected when this was kept
    left: bool  #: disconnected on purpose, or discarded
    persistent: bool = True  #: somebody chose its name; else it is forgotten with its process
    successor: str = ""  #: id of the session that has taken it over, which this id stands for; else ""


def succeeded_row(session_id: str, successor: str, at_s: float) -> SessionRow:
    """What is left of a session that another one has taken over, at `at_s` of the steady clock."""
    return SessionRow(session_id, "", "", "", None, "", "", "", (), (), "", 0.0, at_s, True, True, successor)


class Awaited(NamedTuple):
    """An answer that a command waits for."""

    msg_id: str  #: of the message that will be answered
    waiter_id: str  #: session id, or that of a guest
    waiter_name: str


class Refusal(NamedTuple):
    """A message that was not accepted, and must not be when it is said again."""

    msg_id: str  #: where one mailbox only had no room for a message to many, the id, a slash, and the mailbox
    sender_id: str
    code: str
    text: str


class Box(NamedTuple):
    """What one mailbox holds."""

    mailbox: str
    messages: int
    size_bytes: int
    last_seq: int


class Owed(NamedTuple):
    """A message that one mailbox holds, without what is in it."""

    mailbox: str
    msg_id: str
    from_session: str
    scope: int


class Recovered(NamedTuple):
    """What an earlier broker has left."""

    sessions: list[SessionRow]
    boxes: list[Box]  #: those that are not empty
    owed: list[Owed]  #: the newest, up to the limit that was asked for; oldest first
    awaited: list[Awaited]
    refusals: list[Refusal]  #: oldest first


class Store(Protocol):
    """What `core` needs of a store. All methods are cheap; only `commit` waits for a disk.

    Reads see what was changed before, committed or not. After a failed `commit` the changes are kept, reads may find
    less than there is, and every `commit` tries all of it again: nothing is lost as long as the process lives.
    """

    def recover(self, limit: int) -> Recovered:
        """What is kept; asked once, before anything else. `limit` bounds `Recovered.owed` and `.refusals`."""

    # --- messages

    def put(self, mailbox: str, seq: int, entry: Entry) -> None:
        """Keeps the entry under the mailbox's number; the same number again is no error."""

    def remove(self, mailbox: str, seqs: Iterable[int]) -> None:
        """Forgets these numbers; those that are not there are passed over."""

    def after(self, mailbox: str, seq: int, limit: int) -> list[tuple[int, Entry]]:
        """Up to `limit` entries with numbers over `seq`, in order."""

    def heads(self, mailbox: str, seq: int) -> list[tuple[int, Entry]]:
        """All entries with numbers over `seq`, in order; their bodies may be left out."""

    def stale(self, before_s: float) -> list[str]:
        """The mailboxes that hold messages accepted before this instant of the steady clock."""

    def total(self) -> int:
        """Messages kept, over all mailboxes."""

    def oldest_segment(self) -> int | None:
        """The oldest segment of the journal that a message kept here points into, or one whose removal has not been
        committed; None if there is none."""

    # --- who they are for

    def save_session(self, row: SessionRow) -> None:
        """Keeps a session, in the place of what was kept under its id."""

    def forget_session(self, session_id: str) -> None:
        """Forgets a session; its messages are the mailbox's affair."""

    def save_awaited(self, awaited: Awaited) -> None:
        """Keeps that an answer is awaited."""

    def forget_awaited(self, msg_ids: Iterable[str]) -> None:
        """These answers are awaited no longer."""

    def save_refusal(self, refusal: Refusal) -> None:
        """Keeps what a sender was refused. Old ones may be forgotten, but not the newest 20,000."""

    # --- the disk

    @property
    def pending(self) -> bool:
        """Whether anything was changed since the last commit that went well."""

    def commit(self) -> None:
        """Makes all changes binding. Raises `StoreError` if the disk does not take them."""

    def close(self) -> None:
        """Ends it in good order. What was not committed is dropped."""
