"""Which verb a connection may say, and what a refusal of it refers to: the tables of `core`."""

from __future__ import annotations

from zmqbus import protocol
from zmqbus.broker.registry import Standing


def ref_of(envelope: protocol.Envelope) -> str:
    """What a refusal of this envelope refers to."""
    match envelope:
        case protocol.Hello():
            return "hello"
        case protocol.Send(msg_id=msg_id) | protocol.Request(msg_id=msg_id) | protocol.Answer(msg_id=msg_id):
            return msg_id
        case protocol.Spooled(msg_id=msg_id):
            return msg_id
        case _:
            ref = getattr(envelope, "ref", "")
            return ref if isinstance(ref, str) else ""


_COMMON = frozenset(
    (
        protocol.Hello,
        protocol.Bye,
        protocol.Ping,
        protocol.List,
        protocol.Status,
        protocol.Stop,
        protocol.Remove,
    )
)

#: Which verb a connection may say in which standing. What is not here is refused; a stranger is told to say HELLO.
ALLOWED: dict[Standing, frozenset[type]] = {
    Standing.STRANGER: frozenset((protocol.Hello, protocol.Forget)),
    Standing.MEMBER: _COMMON
    | {
        protocol.Send,
        protocol.Sends,
        protocol.Spooled,
        protocol.Ack,
        protocol.Refill,
        protocol.Recalled,
        protocol.Rename,
        protocol.Disconnect,
        protocol.Forget,
        protocol.Request,
        protocol.Withdraw,
        protocol.Offer,
        protocol.Answer,
    },
    Standing.HELPER: _COMMON
    | {
        protocol.Send,
        protocol.Sends,
        protocol.Spooled,
        protocol.Await,
        protocol.Unawait,
        protocol.Ack,
        protocol.Rename,
        protocol.Disconnect,
        protocol.Forget,
        protocol.Fetch,
        protocol.Preview,
        protocol.MarkRead,
        protocol.Request,
        protocol.Withdraw,
    },
    Standing.GUEST: _COMMON
    | {
        protocol.Send,
        protocol.Sends,
        protocol.Spooled,
        protocol.Await,
        protocol.Unawait,
        protocol.Ack,
        protocol.Request,
        protocol.Withdraw,
    },
    Standing.OBSERVER: _COMMON,
}

FROM_STRANGERS = ALLOWED[Standing.STRANGER]
