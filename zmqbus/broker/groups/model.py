"""Requests, their callers, workers and groups, and how a group matches requests to workers. The rooms beside decide.

Theory of operation
===================

A *group* has two sides. One is its workers that have credit for another request, sorted by load: `_ready` holds a queue
for each number of assigned requests, and a worker whose number changes goes to the end of another queue. So the first
of the lowest queue that is not empty is the least loaded worker, and of several the one that has been so for longest.
The other side is the waiting requests, in their order. `match` takes the head of each.

A caller never gets its own request, though it may be a worker of the group that it asks. If the head of the queue is
the worker's own, it is put aside into a queue of that caller's, from which all other workers take it in its turn. Each
request is put aside at most once, so `match` costs the same however many wait.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

from zmqbus.broker.sessions import Connection
from zmqbus.wire.verbs import Pointer


class Stage(Enum):
    """Where a request is. `STAGE_TRANSITIONS` lists where it may go from there."""

    STAGED = "staged"  #: its record is not written yet
    QUARANTINED = "quarantined"  #: an earlier broker may have assigned it to a worker that has not come back yet
    WAITING = "waiting"  #: in its group's queue
    ASSIGNED = "assigned"  #: a worker has it
    ANSWERED = "answered"  #: the record of its answer is not written yet
    GONE = "gone"  #: answered, refused or withdrawn


STAGE_TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.STAGED: frozenset((Stage.QUARANTINED, Stage.WAITING, Stage.ASSIGNED, Stage.GONE)),
    Stage.QUARANTINED: frozenset((Stage.WAITING, Stage.ASSIGNED, Stage.GONE)),
    Stage.WAITING: frozenset((Stage.ASSIGNED, Stage.ANSWERED, Stage.GONE)),
    Stage.ASSIGNED: frozenset((Stage.WAITING, Stage.ANSWERED, Stage.GONE)),
    Stage.ANSWERED: frozenset((Stage.GONE,)),
    Stage.GONE: frozenset(),
}


class Caller:
    """A connection with unanswered requests, or one that was lost and is expected back."""

    __slots__ = ("conn", "late", "lease", "lost", "owner", "requests", "returned", "sender_id", "until_s")

    def __init__(self, conn: Connection) -> None:
        self.conn: Connection | None = conn
        self.sender_id = conn.sender_id
        self.lease = conn.lease
        self.owner = conn.owner  #: its process
        self.requests: dict[str, Request] = {}
        self.until_s = 0.0  #: without a connection: its unassigned requests are kept until then
        self.lost = 0  #: number of requests when it lost its connection
        self.returned = False  #: the same client has reconnected, and repeats there the requests that it still wants
        self.late = False  #: it has not come back in time: only its assigned requests are kept

    def __repr__(self) -> str:
        return f"<Caller {self.conn!r}: {len(self.requests)} unanswered>"


class Request:
    """One request to a group, until it is answered, refused or withdrawn."""

    __slots__ = (
        "body",
        "caller",
        "fmt",
        "from_label",
        "from_name",
        "group",
        "lost_with",
        "msg_id",
        "order",
        "patient",
        "pointer",
        "repeated",
        "sent_bytes",
        "size_bytes",
        "spilled",
        "stage",
        "tries",
        "ts",
        "unassigned",
        "worker",
    )

    def __init__(self, msg_id: str, caller: Caller, group: Group, fmt: int, ts: float, body: bytes) -> None:
        self.msg_id = msg_id
        self.caller = caller
        self.from_name = ""
        self.from_label: str | None = None
        self.group = group
        self.fmt = fmt
        self.ts = ts
        self.body = body  #: b"" once it is `spilled`
        self.size_bytes = len(body)  #: of the body kept here
        self.patient = False  #: waits where the group has no worker
        self.repeated = False  #: the caller has sent it before, perhaps to an earlier broker
        self.pointer: Pointer | None = None
        self.spilled = False  #: only the journal has the body
        self.stage = Stage.STAGED
        self.order = 0  #: among the waiting ones
        self.tries = 0  #: workers whose processes have ended while they had it
        self.lost_with: tuple[str, ...] = ()  #: the sessions of those workers: one of them may still answer
        self.unassigned = False  #: its caller was told that the group has no worker
        self.worker: Worker | None = None
        self.sent_bytes = 0  #: of the body, to its worker

    def __repr__(self) -> str:
        return f"<Request {self.msg_id} to @{self.group.name} {self.stage.value}>"

    def free_body(self) -> None:
        """Frees the body once the journal has it; another worker, if need be, reads it there."""
        if self.pointer is None:
            return
        self.body, self.size_bytes, self.spilled = b"", 0, True


class Worker:
    """A session that has sent OFFER, and its assigned requests."""

    __slots__ = (
        "assigned",
        "claims",
        "conn",
        "credit",
        "groups",
        "level",
        "owner",
        "sent_bytes",
        "session_id",
        "until_s",
    )

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.owner = ""  #: the process that works on the assigned requests
        self.conn: Connection | None = None
        self.credit = 0
        self.assigned: dict[str, Request] = {}
        self.sent_bytes = 0  #: bodies of the assigned requests that were sent inline
        self.claims: set[str] = set()  #: ids of orphan claims: it works on them, and no caller has repeated them yet
        self.groups: tuple[Group, ...] = ()
        self.level = -1  #: the queue of `Group._ready` that it stands in; -1: none
        self.until_s = 0.0  #: without a connection and without requests, it counts as a worker until then

    @property
    def responsive(self) -> bool:
        """Whether it can take a request: it is connected, and was heard of lately."""
        return self.conn is not None and not self.conn.silent  # guards: requests [and not self.conn.silent =>]

    def __repr__(self) -> str:
        return f"<Worker {self.session_id[:8]}: {len(self.assigned)} of {self.credit} assigned>"

    def update_level(self) -> None:
        """Moves it to the queue of its load. Call this after a change of load, credit, connection or silence."""
        load = len(self.assigned) + len(self.claims)  # guards: requests [+ len(self.claims) =>]
        # guards: requests [load < self.credit => load <= self.credit]
        level = load if load < self.credit and self.responsive else -1
        if level != self.level:
            for group in self.groups:
                group.set_level(self, level)
            self.level = level


class Group:
    """The workers of one group, and the requests that wait for them."""

    __slots__ = (
        "_aside",
        "_lowest",
        "_queue",
        "_ready",
        "_ready_count",
        "impatient",
        "joined",
        "name",
        "reserved",
        "reserved_bytes",
        "size_bytes",
        "waiting",
        "workers",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers: dict[Worker, None] = {}  #: those that offer credit, connected or not
        self.joined = 0  #: workers, including those without credit
        self._ready: dict[int, OrderedDict[Worker, None]] = {}
        self._ready_count = 0
        self._lowest = 0  # all queues below this one are empty
        self._queue: OrderedDict[str, Request] = OrderedDict()
        self._aside: dict[str, OrderedDict[str, Request]] = {}  # by session id of the caller
        self.waiting = 0  #: requests in the queues
        self.size_bytes = 0  #: of their bodies
        self.impatient = 0  #: waiting requests that are refused when no worker is left
        self.reserved = 0  #: requests that may still enter the queue
        self.reserved_bytes = 0

    def __repr__(self) -> str:
        return f"<Group {self.name}: {len(self.workers)} workers, {self.waiting} waiting>"

    @property
    def is_empty(self) -> bool:
        """Whether nothing needs it any more."""
        return not (self.joined or self.waiting or self.reserved)

    def set_level(self, worker: Worker, level: int) -> None:
        """Puts a worker behind those of the same load; -1 takes it out of all queues."""
        if worker.level >= 0:
            del self._ready[worker.level][worker]
            self._ready_count -= 1
        if level >= 0:
            queue = self._ready.get(level)
            if queue is None:
                queue = self._ready[level] = OrderedDict()
            queue[worker] = None
            if level < self._lowest or not self._ready_count:
                self._lowest = level
            self._ready_count += 1

    def put(self, request: Request, *, front: bool = False) -> None:
        """Adds a request at the end of the queue, or at its front."""
        self._queue[request.msg_id] = request
        if front:
            self._queue.move_to_end(request.msg_id, last=False)
        self.waiting += 1
        self.size_bytes += request.size_bytes
        self.impatient += not request.patient

    def remove(self, request: Request) -> None:
        """Takes a request out of the queue."""
        if self._queue.pop(request.msg_id, None) is None:
            aside = self._aside[request.caller.sender_id]
            del aside[request.msg_id]
            if not aside:
                del self._aside[request.caller.sender_id]
        self.waiting -= 1
        self.size_bytes -= request.size_bytes
        self.impatient -= not request.patient

    def match(self) -> tuple[Worker, Request] | None:
        """Takes out the next request together with the worker for it; None if no request has one."""
        if not self.waiting or not self._ready_count:
            return None
        while not self._ready.get(self._lowest):
            self._lowest += 1
        level, seen = self._lowest, 0
        while seen < self._ready_count:
            # Every worker finds a request here, except one that has sent all the waiting ones itself.
            for worker in self._ready.get(level, ()):
                request = self._oldest_for(worker.session_id)
                if request is not None:
                    self.remove(request)
                    return worker, request
                seen += 1
            level += 1
        return None

    def _oldest_for(self, session_id: str) -> Request | None:
        """The request that has waited for longest, of those that this session has not sent."""
        oldest: Request | None = None
        while self._queue:
            first = next(iter(self._queue.values()))
            if first.caller.sender_id != session_id:  # guards: requests: no caller gets its own request [on]
                oldest = first
                break
            self._queue.popitem(last=False)
            self._aside.setdefault(session_id, OrderedDict())[first.msg_id] = first
        for caller_id, aside in self._aside.items():
            if caller_id != session_id:
                first = next(iter(aside.values()))
                # guards: requests [off]
                # guards: requests [or first.order < oldest.order =>]
                if oldest is None or first.order < oldest.order:
                    oldest = first
        return oldest

    def unservable(self) -> list[Request]:
        """The impatient requests for which no worker is left."""
        if not self.impatient or len(self.workers) > 1:
            return []
        only = {worker.session_id for worker in self.workers}
        queues = [self._queue, *self._aside.values()]
        return [
            request
            for queue in queues
            for request in queue.values()
            if not request.patient and (not only or request.caller.sender_id in only)
        ]
