"""Events and effects of the client's core, between it and its shell.

As the broker's (`zmqbus.broker.events`): all input of the core is an event, and all that it wants done is an effect.
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
    """The transport is connected."""


class Down(NamedTuple):
    """The connection is lost."""


class Received(NamedTuple):
    """A ZeroMQ message came over the DEALER."""

    envelopes: list[verbs.Envelope]


class Published(NamedTuple):
    """A ZeroMQ message came over the SUB."""

    channel: bytes
    envelopes: list[verbs.Envelope]


class Tick(NamedTuple):
    """Time has passed."""


Event: TypeAlias = Up | Down | Received | Published | Tick

# --- effects ----------------------------------------------------------------------------------------------------


class Transmit(NamedTuple):
    """Send over the DEALER; neighbours may share a ZeroMQ message."""

    envelope: verbs.Envelope


class Spool(NamedTuple):
    """Write the body of this message into a spool file and send a SEND that names the file; if that fails, the SEND as
    it is."""

    send: verbs.Send


class Unspool(NamedTuple):
    """Free the spool file's regions of these messages."""

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
    """Forget the messages that were handed out and not taken; those still owed will come again."""


class Confirmed(NamedTuple):
    """The outcome of sent messages, the same for all of them."""

    msg_ids: tuple[str, ...]
    outcome: verbs.Receipt | verbs.Tally | errors.ZmqbusError


class Response(NamedTuple):
    """The response to a request (LIST, RENAME, …)."""

    ref: str
    envelope: verbs.Envelope | errors.ZmqbusError


class Welcomed(NamedTuple):
    """The session is connected under this name."""

    welcome: verbs.Welcome


class Renamed(NamedTuple):
    """The session has another name."""

    name: str


class Noticed(NamedTuple):
    """Something happened to a session (`sys.sessions`, `sys.state`)."""

    notice: verbs.Notice


class Closed(NamedTuple):
    """The connection is closed for good: displaced, disconnected, or HELLO refused."""

    reason: errors.ZmqbusError | None


class Resolved(NamedTuple):
    """The outcome of a request to a group: its answer, or an error."""

    msg_id: str
    outcome: verbs.Result | errors.ZmqbusError


class StartWork(NamedTuple):
    """Work on a request. Comes once, however often the broker repeats the request."""

    work: verbs.Work


class Withdrawn(NamedTuple):
    """Drop the work on these requests: their answers are no longer wanted."""

    msg_ids: tuple[str, ...]


class Assignment(NamedTuple):
    """Whether a worker serves the group of this request. Assume so until this comes."""

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
    | Confirmed
    | Response
    | Resolved
    | StartWork
    | Withdrawn
    | Assignment
    | Welcomed
    | Noticed
    | Renamed
    | Closed
)
