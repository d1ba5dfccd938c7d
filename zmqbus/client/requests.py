"""Requests to a group and work for one, on the client's side. No sockets, no clock.

Theory of operation
===================

*A request is its caller's until it is answered* (`Asked`). Nobody confirms it before that, so it is said again with
each HELLO, marked as such; its id makes that harmless. The broker forgets it some seconds after the connection.

*A worker remembers what it has done* (`Hands`). It is given a request once, however often the broker repeats it, and
names with each HELLO what it has in hand, so that no broker gives that to another worker. Nor is an answer confirmed,
so the last ones are kept and named there, too: if a broker, or the connection, died with one of them, the broker hands
out the request again, to the worker that has the answer, and it is given again without any work.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from zmqbus.wire import verbs

#: Answers that a worker remembers: as many as a caller may have on the way,
REMEMBERED_ANSWERS = 1_000
#: and no more of their bodies than this. The newest stays, however large.
REMEMBERED_BYTES = 16 * 1024 * 1024


class Asked:
    """What was asked of groups, and is not answered."""

    def __init__(self, transmit: Callable[[verbs.Envelope], None]) -> None:
        self._transmit = transmit
        self._requests: dict[str, verbs.Request] = {}
        self._said: set[str] = set()  # those of them that were transmitted, over whichever connection
        self.size_bytes = 0  #: of their bodies

    def __repr__(self) -> str:
        return f"{len(self._requests)} asked"

    def __contains__(self, msg_id: str) -> bool:
        """Whether the answer to this request is waited for."""
        return msg_id in self._requests

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._requests)

    def add(self, request: verbs.Request, *, say: bool) -> None:
        """Keeps a request, and says it if that can be done now."""
        self._requests[request.msg_id] = request
        self.size_bytes += len(request.body)
        if say:
            self._said.add(request.msg_id)
            self._transmit(request)

    def repeat(self) -> None:
        """After HELLO: says all that there is, in the order in which it was asked."""
        for msg_id, request in self._requests.items():
            self._transmit(request._replace(again=True) if msg_id in self._said else request)
        self._said.update(self._requests)

    def pop(self, msg_id: str) -> bool:
        """It is answered. False if it was not waited for."""
        request = self._requests.pop(msg_id, None)
        if request is None:
            return False
        self.size_bytes -= len(request.body)
        self._said.discard(msg_id)
        return True

    def withdraw(self, msg_ids: Iterable[str], *, say: bool) -> None:
        """These are waited for no longer. Where it cannot be said, they are not repeated with the next HELLO."""
        dropped = tuple(msg_id for msg_id in msg_ids if self.pop(msg_id))
        if dropped and say:
            self._transmit(verbs.Withdraw(dropped))


class Hands:
    """What a worker has in hand, and what it has answered."""

    def __init__(self, transmit: Callable[[verbs.Envelope], None]) -> None:
        self._transmit = transmit
        self._credit: int | None = None  # None: it is no worker
        self._holding: dict[str, None] = {}
        self._answered: OrderedDict[str, verbs.Answer] = OrderedDict()  # the one given last stands last
        self._answered_bytes = 0

    def __repr__(self) -> str:
        return f"{len(self._holding)} in hand"

    @property
    def count(self) -> int:
        """How many requests are in hand."""
        return len(self._holding)

    def offer(self, credit: int, *, say: bool) -> None:
        """So many may be in hand at a time, over this connection and any later one."""
        self._credit = credit
        if say:
            self._transmit(verbs.Offer(credit, (), ()))

    def repeat(self) -> None:
        """After HELLO: offers again, and names what is here from before."""
        if self._credit is not None:
            self._transmit(verbs.Offer(self._credit, tuple(self._holding), tuple(self._answered)))

    def take(self, msg_id: str) -> bool:
        """A request has come. False if the application has it, or has answered it; the answer is given again then."""
        if msg_id in self._holding:  # guards: worker
            return False
        answer = self._answered.get(msg_id)
        if answer is not None:
            self._transmit(answer)
            return False
        self._holding[msg_id] = None
        return True

    def answer(self, answer: verbs.Answer, *, say: bool) -> None:
        """The application has done it. Passed over if it is not in hand."""
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
        """Takes no more, and forgets what is in hand. False if there is nothing."""
        self._credit = 0 if self._credit is not None else None
        held = bool(self._holding)
        self._holding.clear()  # guards: worker
        return held

    def drop(self, msg_ids: Iterable[str]) -> tuple[str, ...]:
        """The answers to these are not wanted. Returns those that are in hand, and are so no longer."""
        return tuple(msg_id for msg_id in msg_ids if self._holding.pop(msg_id, self) is None)
