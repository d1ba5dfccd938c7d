"""Messages between their acceptance and the journal's answer, and what becomes of those that are alike.

What has come one by one within a wake, from one sender to the same receivers, and differs in ids and bodies only,
leaves the journal as a run (`window`), as if its sender had said it in one piece. Neighbours only: the order in which
things were said is the order in which they happen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from zmqbus.broker.events import Instant
from zmqbus.broker.in_flight import Common, Run
from zmqbus.broker.sessions import Connection, Session
from zmqbus.broker.storage.api import Entry
from zmqbus.journal.record import Record, Records
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.verbs import MAX_ENVELOPE_MESSAGES, Format, Pointer, Scope

if TYPE_CHECKING:
    from zmqbus.broker.reply_routing import Expected

#: As an integer: to look a member of an enum up costs more than to compare it.
_TEXT = int(Format.TEXT)
#: Scopes that say all there is to say of whom a message is for.
_WITHOUT_TARGET = (int(Scope.SESSION), int(Scope.ALL))


class Single(NamedTuple):
    """A SEND of one message."""

    msg_id: str
    scope: int
    target: str
    fmt: int
    reply_to: str | None
    again: bool
    body: bytes


class Several(NamedTuple):
    """A SEND of several messages."""

    scope: int
    target: str
    fmt: int
    msg_ids: tuple[str, ...]
    bodies: tuple[bytes, ...]


class Staged(NamedTuple):
    """A message between its acceptance and the journal's answer."""

    sender: Connection
    send: Single
    record: Record
    receivers: list[Session]
    full: list[Session]  # those that a broadcast is not for, having no room for it
    waiter: Connection | Expected | None
    size_bytes: int


class StagedRun(NamedTuple):
    """The same of several, alike."""

    sender: Connection
    sends: Several
    record: Record | Records  # of all, or of the first
    receivers: list[Session]
    size_bytes: int


def entry_of(now: Instant, message: Staged, pointer: Pointer) -> Entry:
    """A message that is in the journal, at this place."""
    msg_id, scope, target, fmt, reply_to, again, body = message.send
    record = message.record
    size_bytes = message.size_bytes
    return Entry(
        msg_id,
        record.from_session,
        record.from_name,
        record.from_label,
        scope,
        "" if scope in _WITHOUT_TARGET else target,
        fmt,
        reply_to,
        record.ts,
        now.steady_s,  # guards: recovery [now.steady_s => now.wall_s]
        size_bytes,
        pointer,
        b"" if size_bytes > verbs.SPILL_BYTES else body,
        again,
    )


def gathered(staged: Iterable[Staged | StagedRun]) -> Iterator[Staged | StagedRun]:
    """The same, with those that are alike and were said one after the other in one piece."""
    for _, group in groupby(staged, _kind):
        alike = list(group)
        # guards: coalescing [range(0, len(alike), MAX_ENVELOPE_MESSAGES) => range(0, len(alike), len(alike))]
        # guards: coalescing [len(alike) => MAX_ENVELOPE_MESSAGES]
        yield from (
            _as_run(alike[start : start + MAX_ENVELOPE_MESSAGES])
            for start in range(0, len(alike), MAX_ENVELOPE_MESSAGES)
        )


def _as_run(alike: Sequence[Staged | StagedRun]) -> Staged | StagedRun:
    first = alike[0]
    if len(alike) == 1 or isinstance(first, StagedRun):
        return first
    messages = [message.send for message in alike if isinstance(message, Staged)]
    bodies = tuple(send.body for send in messages)
    _, scope, target, fmt, _, _, _ = first.send
    sends = Several(scope, target, fmt, tuple(send.msg_id for send in messages), bodies)
    return StagedRun(first.sender, sends, first.record, first.receivers, sum(map(len, bodies)))


def _kind(message: Staged | StagedRun) -> object:
    """What is the same for messages that are alike."""
    if isinstance(message, StagedRun):
        return id(message)
    send, record = message.send, message.record
    # guards: coalescing [send.fmt != _TEXT or =>]
    if (
        send.fmt != _TEXT
        or send.reply_to is not None  # guards: coalescing
        or send.again  # guards: coalescing
        or send.scope == Scope.GROUP  # guards: coalescing
        or message.full  # guards: coalescing
        or message.waiter is not None  # guards: coalescing
        or len(send.body) > verbs.INLINE_BYTES  # guards: coalescing
        # guards: coalescing
        or len(send.body) < message.size_bytes  # it is in a file
    ):
        return id(message)
    receivers = tuple(map(id, message.receivers))
    # guards: coalescing [message.sender.route, =>]
    # guards: coalescing [record.ts, =>]
    # guards: coalescing [record[3:6], =>]
    # guards: coalescing [, receivers =>]
    return message.sender.route, record.ts, record[3:6], send.scope, send.target, receivers


def run_of(now: Instant, message: StagedRun, pointers: Sequence[Pointer]) -> Run:
    """Several that are, at these places."""
    record, sends = message.record, message.sends
    common = Common(
        record.from_session,
        record.from_name,
        record.from_label,
        sends.scope,
        "" if sends.scope in _WITHOUT_TARGET else sends.target,
        sends.fmt,
        record.ts,
        now.steady_s,
    )
    return Run(common, sends.msg_ids, sends.bodies, pointers, message.sender.route, message.size_bytes)
