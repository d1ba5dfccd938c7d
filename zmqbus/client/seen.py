"""The ids of the messages that an application has taken.

An acknowledgement may be lost, with the broker or with the connection. Then the message comes again, and its id shows
that it was taken. The newest ids are kept: at most the messages that were under way can come again.

This lives as long as the process. `zmqbus.session.shown_log` is a subclass that outlives it. The creator of a
`ClientCore` chooses; the core itself touches no file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

#: Ids that are kept. At most 1,000 messages, the broker's credit of one receiver, can come again; ten times that costs
#: a megabyte.
REMEMBERED = 10_000


class SeenIds:
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
        """Returns whether none of these ids is here."""
        return self._ids.isdisjoint(msg_ids)

    def add(self, msg_id: str) -> None:
        """Adds the id of a taken message; one that is here keeps its place."""
        if msg_id not in self._ids:
            self._ids.add(msg_id)
            self._order.append(msg_id)
            self._trim()

    def add_all(self, msg_ids: Sequence[str]) -> None:
        """Adds the ids of taken messages, in this order."""
        if not self._ids.isdisjoint(msg_ids):
            msg_ids = [msg_id for msg_id in msg_ids if msg_id not in self._ids]
        self._order.extend(dict.fromkeys(msg_ids))
        self._ids.update(msg_ids)
        self._trim()

    def _trim(self) -> None:
        extra = len(self._order) - REMEMBERED
        if extra > 0:
            self._ids.difference_update([self._order.popleft() for _ in range(extra)])
