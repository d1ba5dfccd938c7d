"""What can happen to a client, and what it can do: the words between its core and its shell.

As the broker's (`zmqbus.broker.events`): everything the core learns is one of the events, and everything that it wants
done is one of the effects, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from zmqbus import errors
from zmqbus.client.batch import Batch, age_s, apart, size_bytes
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs


class Outgoing(NamedTuple):
    """A message to send. `again`: it was sent before, and its outcome was never told."""

    msg_id: str
    scope: int
    target: str
    fmt: int
    reply_to: str | None
    again: bool
    body: bytes


class Ticket(NamedTuple):
    """What handed-out messages are acknowledged with; the first has this number, and each after it one more."""

    lease: str
    number: int
    msg_ids: tuple[str, ...]
    reply_to: str | None

    def part(self, start: int, stop: int) -> Ticket:
        """The ticket of the messages from `start` on, without `stop`."""
        return Ticket(self.lease, self.number + start, self.msg_ids[start:stop], self.reply_to)


class Incoming(NamedTuple):
    """A message for the application."""

    ticket: Ticket
    msg_id: str
    from_session: str
    from_name: str
    from_label: str | None
    scope: int
    target: str
    fmt: int
    reply_to: str | None
    ts: float
    age_s: int  #: -1: it did not wait
    pointer: tuple[int, ...] | None  #: the body is in the journal
    size_bytes: int  #: of the whole body; -1: not told
    body: bytes


# --- events -----------------------------------------------------------------------------------------------------


class Up(NamedTuple):
    """The transport is connected, anew or for the first time."""


class Down(NamedTuple):
    """The transport has lost its peer."""


class Received(NamedTuple):
    """A message came over the DEALER."""

    envelopes: list[verbs.Envelope]


class Published(NamedTuple):
    """A message came over the SUB."""

    channel: bytes
    envelopes: list[verbs.Envelope]


class Tick(NamedTuple):
    """Time has passed."""


Event: TypeAlias = Up | Down | Received | Published | Tick

# --- effects ----------------------------------------------------------------------------------------------------


class Transmit(NamedTuple):
    """Send over the DEALER; neighbours may share a wire message."""

    envelope: verbs.Envelope


class Spool(NamedTuple):
    """Put the body of this message down in a file and send SPOOLED, or the message as it is if that cannot be done."""

    send: verbs.Send


class Unspool(NamedTuple):
    """What was put down for these messages is not needed any more."""

    msg_ids: tuple[str, ...]


class Subscribe(NamedTuple):
    """(Re)open the SUB on this port with these filters, in this order."""

    port: int
    channels: tuple[bytes, ...]


class Retune(NamedTuple):
    """Change one filter of the SUB."""

    drop: bytes
    add: bytes


class Hand(NamedTuple):
    """Give these messages to the application, in this order."""

    ticket: Ticket
    batch: Batch

    def apart(self) -> Iterator[Hand]:
        """Each message as a batch of one."""
        for place, one in enumerate(apart(self.batch)):
            yield Hand(self.ticket.part(place, place + 1), one)

    def messages(self) -> Iterator[Incoming]:
        """Each message by itself."""
        batch = self.batch
        for place, (msg_id, body) in enumerate(zip(batch.msg_ids, batch.bodies, strict=False)):
            yield Incoming(
                self.ticket.part(place, place + 1),
                msg_id,
                batch.from_session,
                batch.from_name,
                batch.from_label,
                batch.scope,
                batch.target,
                batch.fmt,
                batch.reply_to,
                batch.ts,
                age_s(batch),
                batch.pointer,
                len(body) if batch.pointer is None else size_bytes(batch),
                body,
            )


class TakeBack(NamedTuple):
    """The application forgets what it was handed and has not taken; if it is still owed, it will come again."""


class Answer(NamedTuple):
    """What became of messages that were sent: the same for all of them."""

    msg_ids: tuple[str, ...]
    outcome: verbs.Receipt | verbs.Tally | errors.ZmqbusError


class Response(NamedTuple):
    """What a request (LIST, RENAME, …) brought."""

    ref: str
    envelope: verbs.Envelope | errors.ZmqbusError


class Welcomed(NamedTuple):
    """The session is on the bus, under this name."""

    welcome: verbs.Welcome


class Renamed(NamedTuple):
    """The session goes by another name."""

    name: str


class Closed(NamedTuple):
    """It is over: displaced, disconnected, or refused at the door."""

    reason: errors.ZmqbusError | None


class Answered(NamedTuple):
    """A request that was asked of a group is over: this is its answer, or why there is none."""

    msg_id: str
    outcome: verbs.Result | errors.ZmqbusError


class Do(NamedTuple):
    """A request for the application to work on, told once, however often the broker repeats it."""

    work: verbs.Work


class Withdrawn(NamedTuple):
    """Nobody wants the answers to these any more. What is being worked on may be given up."""

    msg_ids: tuple[str, ...]


class Assignment(NamedTuple):
    """Whether somebody works for the group of this request. Without a word it is so."""

    msg_id: str
    has_worker: bool


Effect: TypeAlias = (
    Transmit
    | Spool
    | Unspool
    | Subscribe
    | Retune
    | Hand
    | TakeBack
    | Answer
    | Response
    | Answered
    | Do
    | Withdrawn
    | Assignment
    | Welcomed
    | Renamed
    | Closed
)
