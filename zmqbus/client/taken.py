"""The ids of the messages that an application has taken.

An acknowledgement can be lost: the broker dies before it has it, or the connection does. Then the message comes again,
and its id tells that it was taken. The ids are kept in the order in which they were added, and the oldest are
forgotten: what can come again is what was under way at most.

This is the memory of one process. One that is to outlive it (a session's, `zmqbus.session.shown`) is a kind of it, and
is given to the `ClientCore` by who makes it: the core itself touches no file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

#: Ids of taken messages that are remembered: the broker has at most 1,000 under way to one receiver, so that many can
#: come again; ten times that costs a megabyte.
REMEMBERED = 10_000


class TakenIds:
    """The newest `REMEMBERED` ids of taken messages. Not thread-safe."""

    def __init__(self) -> None:
        # Oldest first. Not a dict: it would look for its oldest key past all those that were deleted before.
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self._ids)} ids>"

    def __contains__(self, msg_id: str) -> bool:
        return msg_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def isdisjoint(self, msg_ids: Iterable[str]) -> bool:
        """Whether none of these is among them."""
        return self._ids.keys().isdisjoint(msg_ids)

    def add(self, msg_id: str) -> None:
        """The application has taken this message. An id that is there already keeps its place."""
        self._ids[msg_id] = None
        if len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)

    def add_all(self, msg_ids: Sequence[str]) -> None:
        """The application has taken these messages, in this order."""
        self._ids.update(dict.fromkeys(msg_ids))
        while len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)
