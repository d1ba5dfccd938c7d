"""Batches of messages, and how they stand on the wire: the only place that knows of single messages there.

A batch is one or more messages of one sender that differ in their ids and bodies only (and in their numbers, which rise
by one). A message that is an answer, has waited, is sent again, or whose body is in the journal, is a batch of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, TypeVar

from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs


class Send(NamedTuple):
    """Messages to pass on, in this order."""

    scope: int
    target: str
    fmt: int
    reply_to: str | None
    again: bool
    msg_ids: tuple[str, ...]
    bodies: tuple[bytes, ...]


class Deliver(NamedTuple):
    """Messages that came over the DEALER: numbered from `seq` on, or from `bcast` on if they were published."""

    seq: int
    bcast: int
    after: int
    from_session: str
    from_name: str
    from_label: str | None
    scope: int
    target: str
    fmt: int
    reply_to: str | None
    ts: float
    age_s: int
    pointer: tuple[int, ...] | None
    size_bytes: int
    msg_ids: tuple[str, ...]
    bodies: tuple[bytes, ...]


class Broadcast(NamedTuple):
    """Messages that came over the SUB, numbered from `bcast` on."""

    epoch: str
    bcast: int
    prev: int
    spared: tuple[int, ...]
    from_session: str
    from_name: str
    from_label: str | None
    scope: int
    target: str
    fmt: int
    reply_to: str | None
    ts: float
    pointer: tuple[int, ...] | None
    msg_ids: tuple[str, ...]
    bodies: tuple[bytes, ...]


Batch: TypeAlias = Deliver | Broadcast
_B = TypeVar("_B", Deliver, Broadcast, Deliver | Broadcast)


def apart(batch: _B) -> Iterator[_B]:
    """Each message of a batch as a batch of one."""
    for place, (msg_id, body) in enumerate(zip(batch.msg_ids, batch.bodies, strict=False)):
        alone = batch._replace(msg_ids=(msg_id,), bodies=(body,))
        if isinstance(alone, Deliver):
            yield alone._replace(seq=alone.seq + place)
        else:
            number = alone.bcast + place
            # guards: reordering [number - 1 if place else =>]
            yield alone._replace(bcast=number, prev=number - 1 if place else alone.prev)


def age_s(batch: Batch) -> int:
    """How long its message waited; -1: it did not."""
    return batch.age_s if isinstance(batch, Deliver) else -1


def size_bytes(batch: Batch) -> int:
    """The size of the body that is in the journal; -1: not told."""
    return batch.size_bytes if isinstance(batch, Deliver) else -1


def delivered(envelope: verbs.Deliver) -> Deliver:
    """A batch as it came over the DEALER."""
    header, seq, bcast, after, age_s, pointer, size_bytes, msg_ids, bodies = envelope
    return Deliver(seq, bcast, after, *header, age_s, pointer, size_bytes, msg_ids, bodies)


def published(envelope: verbs.Broadcast) -> Broadcast:
    """A batch as it came over the SUB."""
    header, epoch, bcast, prev, spared, pointer, msg_ids, bodies = envelope
    return Broadcast(epoch, bcast, prev, spared, *header, pointer, msg_ids, bodies)


def to_wire(send: Send) -> verbs.Send:
    """The envelope of a batch."""
    scope, target, fmt, reply_to, again, msg_ids, bodies = send
    return verbs.Send(scope, target, fmt, reply_to, again, None, None, msg_ids, bodies)
