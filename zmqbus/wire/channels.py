"""The channels of the PUB socket.

A SUB filter is a prefix, so each channel ends with a terminator that none of its parts may contain, and the receiver
compares the whole channel again.
"""

from __future__ import annotations

from zmqbus.wire.header import Scope

EVERYONE = b"*\0"
MARK = b"~"


def channel(scope: int, target: str) -> bytes:
    """Returns the channel of a broadcast."""
    if scope == Scope.ALL:
        return EVERYONE
    return (b"/" if scope == Scope.PROJECT else b"#") + target.encode() + b"\0"


def name_channel(name: str) -> bytes:
    """Returns the channel on which the broker addresses the session of this name."""
    return b"@" + name.encode() + b"\0"


def mark_channel(lease: str) -> bytes:
    """Returns the presence channel of a lease, on which nothing is published.

    A client subscribes to it last, which shows the broker that all its subscriptions are in force; when the
    subscription goes, the connection has gone. (libzmq sends filters that were set before the connection in the order
    of their bytes, and again so after a reconnect: `~` sorts behind all the others.)
    """
    return MARK + lease.encode() + b"\0"
