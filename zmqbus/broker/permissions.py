"""Which verb a connection may say: the table of `core`."""

from __future__ import annotations

from zmqbus.broker.registry import Standing
from zmqbus.wire import verbs

_COMMON = frozenset(
    (
        verbs.Hello,
        verbs.Bye,
        verbs.Ping,
        verbs.List,
        verbs.Status,
        verbs.Stop,
        verbs.Remove,
    )
)

#: Which verb a connection may say in which standing. What is not here is refused; a stranger is told to say HELLO.
ALLOWED: dict[Standing, frozenset[type]] = {
    Standing.STRANGER: frozenset((verbs.Hello, verbs.Forget)),
    Standing.MEMBER: _COMMON
    | {
        verbs.Send,
        verbs.Sends,
        verbs.Spooled,
        verbs.Ack,
        verbs.Refill,
        verbs.Recalled,
        verbs.Rename,
        verbs.Disconnect,
        verbs.Forget,
        verbs.Request,
        verbs.Withdraw,
        verbs.Offer,
        verbs.Answer,
    },
    Standing.HELPER: _COMMON
    | {
        verbs.Send,
        verbs.Sends,
        verbs.Spooled,
        verbs.Await,
        verbs.Unawait,
        verbs.Ack,
        verbs.Rename,
        verbs.Disconnect,
        verbs.Forget,
        verbs.Fetch,
        verbs.Preview,
        verbs.MarkRead,
        verbs.Request,
        verbs.Withdraw,
    },
    Standing.GUEST: _COMMON
    | {
        verbs.Send,
        verbs.Sends,
        verbs.Spooled,
        verbs.Await,
        verbs.Unawait,
        verbs.Ack,
        verbs.Request,
        verbs.Withdraw,
    },
    Standing.OBSERVER: _COMMON,
}

FROM_STRANGERS = ALLOWED[Standing.STRANGER]
