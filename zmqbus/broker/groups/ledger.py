"""Unanswered requests by id, the ways in which they end, and the outcomes of those that have ended.

An outcome is remembered with the place of its record in the journal. So a caller whose connection was lost with the
answer receives it again when it repeats the request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from zmqbus.broker.events import Outbox
from zmqbus.broker.groups.model import Request, Stage, Worker
from zmqbus.broker.groups.queues import DispatchQueues
from zmqbus.errors import Poisoned, ProtocolError, ZmqbusError
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs

#: Outcomes that are remembered for callers that come back: those of 20 callers at full tilt.
REMEMBERED_RESULTS = 20_000
#: Number of workers whose processes may end with a request; then it is refused.
MAX_TRIES = 3


class _Past(NamedTuple):
    """Outcome of a request that has ended."""

    caller_id: str
    outcome: verbs.Result | verbs.Refused


class Ledger:
    """Adds, ends and remembers requests."""

    def __init__(self, queues: DispatchQueues, out: Outbox) -> None:
        self._queues = queues
        self._out = out
        self.requests: dict[str, Request] = {}  #: by id; none that is GONE
        self._past: OrderedDict[str, _Past] = OrderedDict()
        self.redispatched = 0  #: requests that were taken from workers that are gone

    def __repr__(self) -> str:
        return f"<Ledger: {len(self.requests)} requests, {len(self._past)} outcomes>"

    def outcome(self, msg_id: str, caller_id: str) -> verbs.Result | verbs.Refused | None:
        """Outcome of an ended request. Raises `ProtocolError` if another caller has used the id."""
        past = self._past.get(msg_id)
        if past is None:
            return None
        if past.caller_id != caller_id:
            raise ProtocolError("a request id that another session has used")
        return past.outcome

    def remember(self, request: Request, outcome: verbs.Result | verbs.Refused) -> None:
        """Keeps an outcome for a caller that repeats the request."""
        self._past[request.msg_id] = _Past(request.caller.sender_id, outcome)
        if len(self._past) > REMEMBERED_RESULTS:
            self._past.popitem(last=False)

    def forget_outcome(self, msg_id: str) -> None:
        """Forgets an outcome that the journal does not have."""
        self._past.pop(msg_id, None)

    def remove(self, request: Request) -> None:
        """Takes a request out of all tables."""
        del self.requests[request.msg_id]
        del request.caller.requests[request.msg_id]
        self._queues.remove(request)
        request.stage = Stage.GONE

    def end(self, request: Request, outcome: verbs.Result | verbs.Refused) -> None:
        """Removes a request and sends its outcome to the caller, if that is connected."""
        conn = request.caller.conn
        self.remove(request)
        if conn is not None:
            if outcome.__class__ is verbs.Result:
                self._out.counts.requests_answered += 1
            self._out.reply(conn.route, outcome)

    def fail(self, request: Request, error: ZmqbusError, *, remember: bool = False) -> None:
        """Removes a request and refuses it."""
        refused = verbs.Refused(request.msg_id, error.code, str(error))
        self._out.counts.refuse(refused.code)
        self.end(request, refused)
        if remember:
            self.remember(request, refused)

    def withdraw(self, requests: Iterable[Request]) -> None:
        """Removes requests that their callers do not wait for any more, and notifies their workers."""
        by_worker: dict[Worker, list[str]] = {}
        for request in list(requests):
            if request.worker is not None:
                by_worker.setdefault(request.worker, []).append(request.msg_id)
            self.remove(request)
        for worker, msg_ids in by_worker.items():
            if worker.conn is not None:
                self._out.reply(worker.conn.route, verbs.Withdrawn(tuple(msg_ids)))  # guards: requests

    def requeue(self, worker: Worker, request: Request, *, died: bool) -> bool:
        """Takes a request from its worker and queues it before all others; false if it has ended instead.

        `died` means that the worker's process has ended with it; otherwise the worker has given it back.
        """
        self._queues.remove(request)
        if request.caller.late:
            self.remove(request)  # it was kept for the worker's sake; its caller may repeat it
            return False
        if died:
            request.tries += 1
            request.lost_with += (worker.session_id,)
        if request.tries >= MAX_TRIES:  # guards: requests [off]
            self._fail_poisoned(request)
            return False
        self.redispatched += 1
        self._queues.enqueue(request, front=True)  # guards: requests [, front=True =>]
        return True

    def _fail_poisoned(self, request: Request) -> None:
        error = Poisoned(
            f"the processes of {request.tries} workers of the group '{request.group.name}' have ended with this "
            "request in hand, one after the other, and it is given to no more; see why (messages.log has it under "
            f"{request.msg_id}) before you ask again"
        )
        self._out.note(f"{request!r} is refused: {request.tries} workers have died with it")
        self.fail(request, error, remember=True)
