"""The ids of the messages that an application has taken.

An acknowledgement can be lost: the broker dies before it has it, or the connection does. Then the message comes again,
and its id tells that it was taken. The ids are kept in the order in which they were added, and the oldest are
forgotten: what can come again is what was under way at most.

This is the memory of one process. `zmqbus.session.shown_log` is a kind of it that outlives the process; whoever makes a
`ClientCore` gives it one of the two, and the core itself touches no file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

#: Ids of taken messages that are remembered: the broker has at most 1,000 under way to one receiver, so that many can
#: come again; ten times that costs a megabyte.
REMEMBERED = 10_000


class TakenIds:
    """The newest `REMEMBERED` ids of taken messages. Not thread-safe."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._order: deque[str] = deque()  # the same, oldest first

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self._ids)} ids>"

    def __contains__(self, msg_id: str) -> bool:
        return msg_id in self._ids

    def __iter__(self) -> Iterator[str]:
        """Oldest first."""
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._ids)

    def isdisjoint(self, msg_ids: Iterable[str]) -> bool:
        """Whether none of these is among them."""
        return self._ids.isdisjoint(msg_ids)

    def add(self, msg_id: str) -> None:
        """The application has taken this message. An id that is there already keeps its place."""
        if msg_id not in self._ids:
            self._ids.add(msg_id)
            self._order.append(msg_id)
            self._trim()

    def add_all(self, msg_ids: Sequence[str]) -> None:
        """The application has taken these messages, in this order."""
        if not self._ids.isdisjoint(msg_ids):
            msg_ids = [msg_id for msg_id in msg_ids if msg_id not in self._ids]
        self._order.extend(dict.fromkeys(msg_ids))
        self._ids.update(msg_ids)
        self._trim()

    def _trim(self) -> None:
        extra = len(self._order) - REMEMBERED
        if extra > 0:
            self._ids.difference_update([self._order.popleft() for _ in range(extra)])
