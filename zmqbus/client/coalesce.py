"""Messages that wait to be sent, as few batches: neighbours that differ only in id and body share one SEND.

Only neighbours, since the order in which a client sends is the order in which the broker accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter

from zmqbus.client.events import Outgoing
from zmqbus.wire.verbs import INLINE_BYTES, MAX_ENVELOPE_MESSAGES, Scope, Send

#: scope, target, fmt, reply_to, again
_HEADER: Callable[[Outgoing], tuple[int, str, int, str | None, bool]] = itemgetter(slice(1, 6))
_MSG_ID, _BODY = itemgetter(0), itemgetter(6)


def batches_of(messages: Iterable[Outgoing]) -> Iterator[Send]:
    """The same messages, in the same order, in as few batches as possible."""
    for header, group in groupby(messages, _HEADER):
        alike = list(group)
        size = MAX_ENVELOPE_MESSAGES if len(alike) > 1 and _may_share(alike) else 1
        msg_ids, bodies = tuple(map(_MSG_ID, alike)), tuple(map(_BODY, alike))
        for start in range(0, len(alike), size):
            yield Send(*header, None, None, msg_ids[start : start + size], bodies[start : start + size])


def _may_share(alike: list[Outgoing]) -> bool:
    """Whether these messages, which differ in id and body only, may be one batch. An answer may not, nor a message that
    was sent before (each has its own fate), nor a message to a group (each has another receiver), nor a large body."""
    first = alike[0]
    # guards: coalescing [or first.reply_to is not None =>]
    # guards: coalescing [or first.again =>]
    # guards: coalescing [first.scope == Scope.GROUP or =>]
    if first.scope == Scope.GROUP or first.reply_to is not None or first.again:
        return False
    return max(map(len, map(_BODY, alike))) <= INLINE_BYTES  # guards: coalescing [=> return True]
