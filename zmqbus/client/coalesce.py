"""What is said one after the other, said as one: neighbouring SENDs that are alike become a SENDS.

Only neighbours, for the order in which a client says things is the order in which they happen.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from operator import itemgetter

from zmqbus.wire import verbs
from zmqbus.wire.verbs import INLINE_BYTES, MAX_RUN, Scope

_ALIKE = itemgetter(slice(1, 6))  # scope, target, fmt, reply_to, again
_MSG_ID, _BODY = itemgetter(0), itemgetter(6)


def runs_of(sends: Collection[verbs.Send]) -> list[verbs.Send | verbs.Sends]:
    """The same messages, in the same order, in as few envelopes as can be."""
    if len(sends) == 1:
        return list(sends)
    said: list[verbs.Send | verbs.Sends] = []
    for (scope, target, fmt, reply_to, again), group in groupby(sends, _ALIKE):
        run = list(group)
        # guards: coalescing [or reply_to is not None =>]
        # guards: coalescing [or again =>]
        # guards: coalescing [or scope == Scope.GROUP =>]
        if len(run) == 1 or scope == Scope.GROUP or reply_to is not None or again:  # of a group, each has another taker
            said += run
            continue
        bodies = tuple(map(_BODY, run))
        if max(map(len, bodies)) > INLINE_BYTES:  # guards: coalescing
            said += run
            continue
        msg_ids = tuple(map(_MSG_ID, run))
        for start in range(0, len(run), MAX_RUN):
            end = start + MAX_RUN
            said.append(verbs.Sends(scope, target, fmt, msg_ids[start:end], bodies[start:end]))
    return said
