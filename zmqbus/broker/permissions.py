"""Which verb a connection may say: the table of `core`."""

from __future__ import annotations

from zmqbus.broker.sessions import ConnectionState
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

#: Verbs that a connection may send in each state. Any other is refused; an unregistered connection is answered EXPIRED.
ALLOWED: dict[ConnectionState, frozenset[type]] = {
    ConnectionState.UNREGISTERED: frozenset((verbs.Hello, verbs.Forget)),
    ConnectionState.MEMBER: _COMMON
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
    ConnectionState.HELPER: _COMMON
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
    ConnectionState.GUEST: _COMMON
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
    ConnectionState.OBSERVER: _COMMON,
}

FROM_UNREGISTERED = ALLOWED[ConnectionState.UNREGISTERED]
