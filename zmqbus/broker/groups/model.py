"""Requests, those who ask, those who work, and how a group brings them together. Tables; `pool` decides.

Theory of operation
===================

A *group* has two sides. On the one, its workers, sorted by how many requests each has in hand, as far as they have
credit for another: `_ready` is a list of queues, one for each number, and a worker whose number changes goes to the end
of another queue. So the first of the lowest queue that is not empty is the least loaded, and of several the one that
has been so for longest. On the other, the requests that wait, in their order. `match` takes the head of each.

A caller never gets its own request, though it may be a worker of the group that it asks. When the head of the queue is
the worker's own, it is put aside, in a queue of that caller's, from which all others take it in its turn. Each request
is put aside once at most, so `match` costs the same however many wait.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

from zmqbus.broker.sessions import Connection
from zmqbus.wire.verbs import Pointer


class Stage(Enum):
    """Where a request is."""

    STAGED = "staged"  #: its record is about to be written
    LIMBO = "limbo"  #: an earlier broker may have given it to a worker that has not come back yet
    WAITING = "waiting"  #: in the group's queue
    HELD = "held"  #: a worker has it
    ANSWERED = "answered"  #: the record of its answer is about to be written
    GONE = "gone"  #: answered, refused or withdrawn


class Caller:
    """A connection that asks, or asked and is expected back, and what it waits for."""

    __slots__ = ("conn", "late", "lease", "lost", "owner", "requests", "returned", "sender_id", "until_s")

    def __init__(self, conn: Connection) -> None:
        self.conn: Connection | None = conn
        self.sender_id = conn.sender_id
        self.lease = conn.lease
        self.owner = conn.owner  #: its process
        self.requests: dict[str, Request] = {}
        self.until_s = 0.0  #: without a connection: requests that no worker has are kept for it until then
        self.lost = 0  #: how many requests it had when it lost its connection
        self.returned = False  #: the same client has a new connection, and has said again there what it still wants
        self.late = False  #: it has not come back in time; only what workers have in hand is kept for it

    def __repr__(self) -> str:
        return f"<Caller {self.conn!r}: {len(self.requests)} unanswered>"


class Request:
    """What was asked of a group, until it is answered, refused or withdrawn."""

    __slots__ = (
        "again",
        "body",
        "caller",
        "fmt",
        "from_label",
        "from_name",
        "group",
        "had",
        "handed_bytes",
        "msg_id",
        "order",
        "patient",
        "pointer",
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
        self.size_bytes = len(body)  #: of what is kept here
        self.patient = False
        self.again = False
        self.pointer: Pointer | None = None
        self.spilled = False  #: the body is in the journal only
        self.stage = Stage.STAGED
        self.order = 0  #: among those that wait
        self.tries = 0  #: workers whose processes have ended with it in hand
        self.had: tuple[str, ...] = ()  #: the sessions of those: one of them may still answer
        self.unassigned = False  #: its caller was told that nobody works for the group
        self.worker: Worker | None = None
        self.handed_bytes = 0  #: of the body that was sent to it

    def __repr__(self) -> str:
        return f"<Request {self.msg_id} to @{self.group.name} {self.stage.value}>"

    def let_go(self) -> None:
        """A worker has the body. For another one, if there has to be one, there is the journal, once it is there."""
        if self.pointer is None:
            return
        self.body, self.size_bytes, self.spilled = b"", 0, True


class Worker:
    """A session that has offered to work, and what it has in hand."""

    __slots__ = (
        "claims",
        "conn",
        "credit",
        "groups",
        "hand",
        "handed_bytes",
        "level",
        "owner",
        "session_id",
        "until_s",
    )

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.owner = ""  #: the process that has what is in hand
        self.conn: Connection | None = None
        self.credit = 0
        self.hand: dict[str, Request] = {}
        self.handed_bytes = 0  #: of the bodies that were sent to it, of what is in hand
        self.claims: set[str] = set()  #: ids of what it has in hand, by its own account, and nobody has asked here yet
        self.groups: tuple[Group, ...] = ()
        self.level = -1  #: the queue of `Group._ready` that it stands in; -1: none
        self.until_s = 0.0  #: without a connection, and with nothing in hand, it counts as a worker until then

    @property
    def responsive(self) -> bool:
        """Whether it can be given something: it is connected, and was heard of lately."""
        return self.conn is not None and not self.conn.silent  # guards: requests [and not self.conn.silent =>]

    def __repr__(self) -> str:
        return f"<Worker {self.session_id[:8]}: {len(self.hand)} of {self.credit} in hand>"

    def place(self) -> None:
        """To be called whenever the load, the credit, the connection or its silence has changed."""
        load = len(self.hand) + len(self.claims)  # guards: requests [+ len(self.claims) =>]
        # guards: requests [load < self.credit => load <= self.credit]
        level = load if load < self.credit and self.responsive else -1
        if level != self.level:
            for group in self.groups:
                group.settle(self, level)
            self.level = level


class Group:
    """The workers of one name, and the requests that wait for them."""

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
        self.workers: dict[Worker, None] = {}  #: with or without a connection; none that offers nothing
        self.joined = 0  #: workers, those that offer nothing among them
        self._ready: dict[int, OrderedDict[Worker, None]] = {}
        self._ready_count = 0
        self._lowest = 0  # no queue below this one has anybody
        self._queue: OrderedDict[str, Request] = OrderedDict()
        self._aside: dict[str, OrderedDict[str, Request]] = {}  # by their callers' sessions
        self.waiting = 0  #: requests in the queues
        self.size_bytes = 0  #: of their bodies
        self.impatient = 0  #: those of them that are refused when there is no worker
        self.reserved = 0  #: requests that may come into the queue yet
        self.reserved_bytes = 0

    def __repr__(self) -> str:
        return f"<Group {self.name}: {len(self.workers)} workers, {self.waiting} waiting>"

    @property
    def empty(self) -> bool:
        """Whether it may be forgotten."""
        return not (self.joined or self.waiting or self.reserved)

    def settle(self, worker: Worker, level: int) -> None:
        """Puts a worker behind those of this load; -1: it takes nothing now."""
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
        """It waits, behind the others or before them."""
        self._queue[request.msg_id] = request
        if front:
            self._queue.move_to_end(request.msg_id, last=False)
        self.waiting += 1
        self.size_bytes += request.size_bytes
        self.impatient += not request.patient

    def remove(self, request: Request) -> None:
        """It waits no longer."""
        if self._queue.pop(request.msg_id, None) is None:
            aside = self._aside[request.caller.sender_id]
            del aside[request.msg_id]
            if not aside:
                del self._aside[request.caller.sender_id]
        self.waiting -= 1
        self.size_bytes -= request.size_bytes
        self.impatient -= not request.patient

    def match(self) -> tuple[Worker, Request] | None:
        """The next worker and the next request for it, which is removed; None if nothing fits together."""
        if not self.waiting or not self._ready_count:
            return None
        while not self._ready.get(self._lowest):
            self._lowest += 1
        level, seen = self._lowest, 0
        while seen < self._ready_count:
            # All but one of the workers fit: only he who has asked for all that waits goes without.
            for worker in self._ready.get(level, ()):
                request = self._oldest_for(worker.session_id)
                if request is not None:
                    self.remove(request)
                    return worker, request
                seen += 1
            level += 1
        return None

    def _oldest_for(self, session_id: str) -> Request | None:
        """What waits for longest, and was not asked by this session."""
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

    def hopeless(self) -> list[Request]:
        """The impatient ones for which no worker is left."""
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
