"""Receipts of messages. Apart from `message`, since commands need nothing else of that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from zmqbus.errors import ZmqbusError
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.verbs import State


class Receipt(NamedTuple):
    """The outcome of a message to one receiver."""

    msg_id: str
    state: str  #: "delivered": the receiver's process has taken it; "queued": stored, and to be shown later
    to: str  #: the receiver's name
    session_id: str
    busy: bool  #: queued because the receiver is connected and did not take it within a second
    away_s: int  #: how long the receiver has been away


class BroadcastReceipt(NamedTuple):
    """The outcome of a message to many receivers."""

    msg_id: str
    delivered: int
    queued: int
    full: tuple[str, ...]  #: sessions that do not get it, since their mailboxes are full
    unsaved: tuple[str, ...] = ()  #: sessions that do not get it, since the broker could not store it


def receipt_of(msg_id: str, outcome: verbs.Receipt | verbs.Tally) -> Receipt | BroadcastReceipt:
    """Returns the receipt of a message, from the broker's RECEIPT or TALLY."""
    if isinstance(outcome, verbs.Tally):
        return BroadcastReceipt(outcome.msg_id, outcome.delivered, outcome.queued, outcome.full, outcome.unsaved)
    return Receipt(msg_id, *_state_of(outcome))


def receipts_of(
    msg_ids: Iterable[str], outcome: verbs.Receipt | verbs.Tally | ZmqbusError
) -> Iterator[tuple[str, Receipt | BroadcastReceipt | ZmqbusError]]:
    """Yields the id and the receipt (or the error) of each of several messages that share an outcome."""
    if isinstance(outcome, verbs.Receipt):
        state = _state_of(outcome)
        for msg_id in msg_ids:
            yield msg_id, Receipt(msg_id, *state)
        return
    for msg_id in msg_ids:
        yield msg_id, outcome if isinstance(outcome, ZmqbusError) else receipt_of(msg_id, outcome)


def _state_of(receipt: verbs.Receipt) -> tuple[str, str, str, bool, int]:
    return (
        "delivered" if receipt.state == State.DELIVERED else "queued",
        receipt.name,
        receipt.session_id,
        receipt.state == State.BUSY,
        receipt.away_s,
    )
