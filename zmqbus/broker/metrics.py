"""Counters of a broker for `zmqbus stats`: plain integers, incremented where the event happens.

No decision depends on them, and a new broker begins at 0. State that the tables hold anyway (connected sessions,
waiting mail) is not counted here, but looked up when STATUS asks for it.
"""

from __future__ import annotations

from zmqbus.wire.metrics_catalogue import REFUSED


class Metrics:
    """The counters, under their names in HEALTH; see `zmqbus.wire.metrics_catalogue`."""

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
        self.refused: dict[str, int] = {}  #: by error code, of which there are a dozen

    def __repr__(self) -> str:
        return f"<Metrics: {dict(self.figures())}>"

    def refuse(self, code: str, count: int = 1) -> None:
        """Counts refusals with this error code."""
        self.refused[code] = self.refused.get(code, 0) + count

    def figures(self) -> tuple[tuple[str, int], ...]:
        """Names and values of all counters."""
        plain = tuple((name, getattr(self, name)) for name in self.__slots__ if name != "refused")
        return (*plain, *((f"{REFUSED}{code}", count) for code, count in sorted(self.refused.items())))
