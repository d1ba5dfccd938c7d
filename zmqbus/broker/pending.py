"""Messages between their acceptance and the journal's answer.

Neighbours that came one by one within a wake, from one sender to the same receivers, and that differ only in id and
body, leave the journal as one batch, as if their sender had sent them so. Only neighbours, since the order in which a
sender sends is the order in which its messages are accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from zmqbus.broker.events import Instant
from zmqbus.broker.in_flight import Batch
from zmqbus.broker.sessions import Connection, Session
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.verbs import MAX_ENVELOPE_MESSAGES, Format, Header, Pointer, Scope

if TYPE_CHECKING:
    from zmqbus.broker.reply_routing import Expected

#: As an integer: looking up an enum member costs more than comparing it.
_TEXT = int(Format.TEXT)


class Pending(NamedTuple):
    """Messages that are accepted, and not yet in the journal."""

    sender: Connection
    header: Header
    msg_ids: Sequence[str]
    bodies: Sequence[bytes]
    size_bytes: int  #: of all bodies, wherever they are
    repeated: bool
    receivers: list[Session]
    full: list[Session]  #: sessions that have no room for a broadcast
    waiter: Connection | Expected | None  #: the connection that awaits this very answer

    def batch(self, now: Instant, pointers: Sequence[Pointer]) -> Batch:
        """Returns the messages as they are in the journal, at these places."""
        bodies: Sequence[bytes] = self.bodies
        if len(bodies) == 1 and self.size_bytes > verbs.SPILL_BYTES:
            bodies = (b"",)
        return Batch(
            self.header,
            self.msg_ids,
            bodies,
            pointers,
            now.steady_s,  # guards: recovery [now.steady_s => now.wall_s]
            self.size_bytes,
            self.sender.route,
            self.repeated,
        )


def merged(pending: Iterable[Pending]) -> Iterator[Pending]:
    """Yields the same messages in the same order, neighbours that may share a batch as one."""
    for _, group in groupby(pending, _key):
        alike = list(group)
        # guards: coalescing [range(0, len(alike), MAX_ENVELOPE_MESSAGES) => range(0, len(alike), len(alike))]
        # guards: coalescing [len(alike) => MAX_ENVELOPE_MESSAGES]
        for start in range(0, len(alike), MAX_ENVELOPE_MESSAGES):
            yield _as_one(alike[start : start + MAX_ENVELOPE_MESSAGES])


def _as_one(alike: Sequence[Pending]) -> Pending:
    first = alike[0]
    if len(alike) == 1:
        return first
    return first._replace(
        msg_ids=tuple([one.msg_ids[0] for one in alike]),
        bodies=tuple([one.bodies[0] for one in alike]),
        size_bytes=sum([one.size_bytes for one in alike]),
    )


def _key(message: Pending) -> object:
    """Returns what messages have in common that may share a batch. Of those that must not, it is their own."""
    header = message.header
    if (
        len(message.msg_ids) > 1
        or header.fmt != _TEXT  # guards: coalescing
        or header.reply_to is not None  # guards: coalescing
        or message.repeated  # guards: coalescing
        or header.scope == Scope.GROUP  # guards: coalescing
        or message.full  # guards: coalescing
        or message.waiter is not None  # guards: coalescing
        or message.size_bytes > verbs.INLINE_BYTES  # guards: coalescing
    ):
        return id(message)
    # guards: coalescing [message.sender.route, =>]
    # guards: coalescing [header, =>]
    # guards: coalescing [, *map(id, message.receivers) =>]
    return (message.sender.route, header, *map(id, message.receivers))
