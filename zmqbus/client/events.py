"""What can happen to a client, and what it can do: the words between its core and its shell.

As the broker's (`zmqbus.broker.events`): everything the core learns is one of the events, and everything that it wants
done is one of the effects, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from zmqbus import errors
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Header

#: Messages as they come, one or more.
Batch: TypeAlias = verbs.Deliver | verbs.Broadcast


class Outgoing(NamedTuple):
    """A message to send. `again`: it was sent before, and no outcome was reported."""

    msg_id: str
    scope: int
    target: str
    fmt: int
    reply_to: str | None
    again: bool
    body: bytes


class Ticket(NamedTuple):
    """The acknowledgement of messages that were handed out: consecutive numbers from `number` on, under a lease."""

    lease: str
    number: int
    msg_ids: tuple[str, ...]
    reply_to: str | None

    def part(self, start: int, stop: int) -> Ticket:
        """Returns the ticket of the messages from place `start` up to, and without, `stop`."""
        return Ticket(self.lease, self.number + start, self.msg_ids[start:stop], self.reply_to)


class Incoming(NamedTuple):
    """One message for the application."""

    ticket: Ticket
    msg_id: str
    header: Header
    age_s: int  #: how long it waited; -1: it did not
    pointer: tuple[int, ...] | None  #: where the body is in the journal, if it is there
    size_bytes: int  #: of the whole body; -1: unknown
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
    """Hand these messages to the application, in this order."""

    ticket: Ticket
    batch: Batch

    def apart(self) -> Iterator[Hand]:
        """Yields each message as a batch of one, for the application (`bcast` and `seq` stay those of the first)."""
        batch = self.batch
        for place, (msg_id, body) in enumerate(zip(batch.msg_ids, batch.bodies, strict=False)):
            yield Hand(self.ticket.part(place, place + 1), batch._replace(msg_ids=(msg_id,), bodies=(body,)))

    def messages(self) -> Iterator[Incoming]:
        """Yields each message."""
        batch = self.batch
        age_s, size_bytes = -1, -1
        if isinstance(batch, verbs.Deliver):
            age_s, size_bytes = batch.age_s, batch.size_bytes
        for place, (msg_id, body) in enumerate(zip(batch.msg_ids, batch.bodies, strict=False)):
            ticket = self.ticket.part(place, place + 1)
            size = len(body) if batch.pointer is None else size_bytes
            yield Incoming(ticket, msg_id, batch.header, age_s, batch.pointer, size, body)


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
