"""Requests to groups and work for groups, on the client's side. Pure: no sockets, no clock.

Theory of operation
===================

*A caller keeps its request until that is answered* (`OpenRequests`). Nothing confirms it before, so it is sent again
after every HELLO, marked as a repeat; its id makes that harmless. The broker forgets it some seconds after the
connection has ended.

*A worker remembers its work* (`WorkInHand`). It starts a request once, however often the broker repeats it, and names
the requests in hand after every HELLO, so that no broker gives them to another worker. Answers are not confirmed
either, so the last ones are kept and named there, too: if one was lost with a broker or a connection, the broker hands
the request out again, to the worker that has the answer, and that sends the answer again without any work.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from zmqbus.wire import verbs

#: Answers that a worker remembers: as many as a caller may have under way,
REMEMBERED_ANSWERS = 1_000
#: and at most this many bytes of bodies. The newest answer stays, however large.
REMEMBERED_BYTES = 16 * 1024 * 1024


class OpenRequests:
    """The unanswered requests of a caller."""

    def __init__(self, transmit: Callable[[verbs.Envelope], None]) -> None:
        self._transmit = transmit
        self._requests: dict[str, verbs.Request] = {}
        self._sent: set[str] = set()  # those of them that were sent, over any connection
        self.size_bytes = 0  #: of their bodies

    def __repr__(self) -> str:
        return f"{len(self._requests)} asked"

    def __contains__(self, msg_id: str) -> bool:
        """Whether this request is unanswered."""
        return msg_id in self._requests

    @property
    def count(self) -> int:
        """Number of unanswered requests."""
        return len(self._requests)

    def add(self, request: verbs.Request, *, say: bool) -> None:
        """Keeps a request, and with `say` sends it now."""
        self._requests[request.msg_id] = request
        self.size_bytes += len(request.body)
        if say:
            self._sent.add(request.msg_id)
            self._transmit(request)

    def repeat(self) -> None:
        """Sends all requests again after a HELLO, in their order."""
        for msg_id, request in self._requests.items():
            self._transmit(request._replace(again=True) if msg_id in self._sent else request)
        self._sent.update(self._requests)

    def pop(self, msg_id: str) -> bool:
        """Removes an answered request; returns False if it is not here."""
        request = self._requests.pop(msg_id, None)
        if request is None:
            return False
        self.size_bytes -= len(request.body)
        self._sent.discard(msg_id)
        return True

    def withdraw(self, msg_ids: Iterable[str], *, say: bool) -> None:
        """Removes requests whose answers are no longer wanted, and with `say` sends WITHDRAW."""
        dropped = tuple(msg_id for msg_id in msg_ids if self.pop(msg_id))
        if dropped and say:
            self._transmit(verbs.Withdraw(dropped))


class WorkInHand:
    """The requests that a worker has in hand, and its last answers."""

    def __init__(self, transmit: Callable[[verbs.Envelope], None]) -> None:
        self._transmit = transmit
        self._credit: int | None = None  # None: it has never offered
        self._holding: dict[str, None] = {}
        self._answered: OrderedDict[str, verbs.Answer] = OrderedDict()  # in the order of answering
        self._answered_bytes = 0

    def __repr__(self) -> str:
        return f"{len(self._holding)} in hand"

    @property
    def count(self) -> int:
        """Number of requests in hand."""
        return len(self._holding)

    def offer(self, credit: int, *, say: bool) -> None:
        """Sets how many requests may be in hand, on this connection and any later one."""
        self._credit = credit
        if say:
            self._transmit(verbs.Offer(credit, (), ()))

    def repeat(self) -> None:
        """Sends OFFER again after a HELLO, with the requests in hand and the answers from before."""
        if self._credit is not None:
            self._transmit(verbs.Offer(self._credit, tuple(self._holding), tuple(self._answered)))

    def take(self, msg_id: str) -> bool:
        """Takes a request; returns False if it is in hand, or answered: then the answer is sent again."""
        if msg_id in self._holding:  # guards: worker
            return False
        answer = self._answered.get(msg_id)
        if answer is not None:
            self._transmit(answer)
            return False
        self._holding[msg_id] = None
        return True

    def answer(self, answer: verbs.Answer, *, say: bool) -> None:
        """Answers a request; does nothing if it is not in hand."""
        if self._holding.pop(answer.msg_id, self) is self:
            return
        self._answered[answer.msg_id] = answer
        self._answered_bytes += len(answer.body)
        while len(self._answered) > REMEMBERED_ANSWERS or (
            self._answered_bytes > REMEMBERED_BYTES and len(self._answered) > 1
        ):
            self._answered_bytes -= len(self._answered.popitem(last=False)[1].body)
        if say:
            self._transmit(answer)

    def give_back(self) -> bool:
        """Takes no more, and forgets the requests in hand; returns False if there are none."""
        self._credit = 0 if self._credit is not None else None
        held = bool(self._holding)
        self._holding.clear()  # guards: worker
        return held

    def drop(self, msg_ids: Iterable[str]) -> tuple[str, ...]:
        """Removes requests whose answers are not wanted; returns those that were in hand."""
        return tuple(msg_id for msg_id in msg_ids if self._holding.pop(msg_id, self) is None)
