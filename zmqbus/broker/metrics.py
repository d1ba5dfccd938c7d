"""What a broker counts, for `zmqbus stats`: plain integers, each raised where the thing happens.

They are nobody's state: nothing is decided by them, and a new broker begins at 0. What can be told from the tables at
any moment (who is connected, what waits) is not counted here but looked up when it is asked for.
"""

from __future__ import annotations

from zmqbus.wire.metrics_catalogue import REFUSED


class Counts:
    """The counters, by the names that they have in HEALTH; see `zmqbus.wire.metrics_catalogue`."""

    __slots__ = (
        "accepted_bytes",
        "broadcasts_resent",
        "delivered",
        "queued",
        "refused",
        "repeated",
        "requests_accepted",
        "requests_answered",
        "taken",
    )

    def __init__(self) -> None:
        self.accepted_bytes = 0
        self.delivered = 0
        self.queued = 0
        self.taken = 0
        self.repeated = 0
        self.broadcasts_resent = 0
        self.requests_accepted = 0
        self.requests_answered = 0
        self.refused: dict[str, int] = {}  #: by the code of the refusal; there are a dozen of these

    def __repr__(self) -> str:
        return f"<Counts: {dict(self.figures())}>"

    def refuse(self, code: str) -> None:
        """Something was refused, with this code."""
        self.refused[code] = self.refused.get(code, 0) + 1

    def figures(self) -> tuple[tuple[str, int], ...]:
        """Pairs of a name and a value."""
        plain = tuple((name, getattr(self, name)) for name in self.__slots__ if name != "refused")
        return (*plain, *((f"{REFUSED}{code}", count) for code, count in sorted(self.refused.items())))
