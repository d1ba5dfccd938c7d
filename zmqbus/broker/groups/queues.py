"""Dispatch queues of all groups: moves requests between the tables of `model`.

Each request is counted in one place at a time: *reserved*, while its record is written or while it is quarantined;
*waiting*; or *assigned* to a worker. The bounds hold for the first two together, so that every admitted request finds
room. An assigned request costs next to nothing: the journal has its body.

Every change that may let a request move puts its group into `changed`, and `dispatch` visits each of these once.
"""

from __future__ import annotations

from collections.abc import Iterable

from zmqbus.broker.events import Outbox
from zmqbus.broker.groups.model import Group, Request, Stage, Worker
from zmqbus.errors import RateLimited
from zmqbus.wire import verbs

#: Requests that wait in one group,
MAX_WAITING = 10_000
#: their bodies, as far as they are kept here (those over `SPILL_BYTES` are not),
MAX_WAITING_BYTES = 64 * 1024 * 1024
#: and the bodies in all groups together, since a client may name any number of groups.
MAX_POOL_BYTES = 256 * 1024 * 1024
#: Bodies under way to one worker, which may be stopped: as many as to a session. Beyond that a worker is sent pointers
#: into the journal.
MAX_SENT_BYTES = 4 * 1024 * 1024


class DispatchQueues:
    """The queues of all groups."""

    def __init__(self, out: Outbox) -> None:
        self._out = out
        self.groups: dict[str, Group] = {}
        self.quarantined: dict[str, Request] = {}  #: by id: requests that a worker may already have
        self.changed: dict[Group, None] = {}  #: groups to visit; a set would make the order of runs random
        self.size_bytes = 0  #: of the bodies that are kept
        self._last = 0  # order of the request at the end of the queues
        self._first = 0  # and of the one at their front

    def __repr__(self) -> str:
        return f"<DispatchQueues: {self.waiting} waiting in {len(self.groups)} groups>"

    @property
    def waiting(self) -> int:
        """Number of requests that no worker has."""
        return len(self.quarantined) + sum(group.waiting for group in self.groups.values())

    def check_room(self, group: Group, size_bytes: int) -> None:
        """Raises `RateLimited` if there is no room for another request with such a body."""
        if group.waiting + group.reserved >= MAX_WAITING or (
            group.size_bytes + group.reserved_bytes + size_bytes > MAX_WAITING_BYTES
        ):
            raise RateLimited(
                f"{group.waiting + group.reserved:,} requests wait in the group '{group.name}' already; "
                "ask again when some of them are answered, or start more workers"
            )
        if self.size_bytes + size_bytes > MAX_POOL_BYTES:
            raise RateLimited("too many large requests wait for workers; ask again when some of them are answered")

    def reserve(self, request: Request) -> None:
        """Keeps room for a request that may still enter the queue."""
        request.group.reserved += 1
        request.group.reserved_bytes += request.size_bytes
        self.size_bytes += request.size_bytes

    def release(self, request: Request) -> None:
        """Gives up the reserved room of a request, which is about to enter the queue or never will."""
        request.group.reserved -= 1
        request.group.reserved_bytes -= request.size_bytes
        self.size_bytes -= request.size_bytes
        self.changed[request.group] = None

    def quarantine(self, request: Request) -> None:
        """Holds a request back: a worker that is expected back may already have it."""
        request.stage = Stage.QUARANTINED
        self.quarantined[request.msg_id] = request
        self.reserve(request)

    def enqueue(self, request: Request, *, front: bool = False) -> None:
        """Puts a request at the end, or at the front, of its group's queue."""
        if front:
            self._first -= 1
            request.order = self._first
        else:
            self._last += 1
            request.order = self._last
        request.stage = Stage.WAITING
        # The group may have been dropped as empty while a worker, which has left it since, had the request.
        request.group = self.groups.setdefault(request.group.name, request.group)
        request.group.put(request, front=front)
        self.size_bytes += request.size_bytes
        self.changed[request.group] = None

    def join(self, worker: Worker, names: Iterable[str]) -> None:
        """Makes a worker a member of exactly these groups."""
        self.leave(worker)
        worker.groups = tuple(self.groups.setdefault(name, Group(name)) for name in sorted(names))
        for group in worker.groups:
            group.joined += 1

    def leave(self, worker: Worker) -> None:
        """Takes a worker out of all its groups."""
        for group in worker.groups:
            group.set_level(worker, -1)
            group.workers.pop(worker, None)
            group.joined -= 1
            self.changed[group] = None
        worker.level = -1
        worker.groups = ()

    def worker_changed(self, worker: Worker) -> None:
        """Updates the queues after a change of a worker's load, credit or responsiveness."""
        worker.update_level()
        for group in worker.groups:
            self.changed[group] = None

    def remove(self, request: Request) -> None:
        """Takes a request from the queue or the quarantine, or from its worker."""
        if request.worker is not None:
            worker, request.worker = request.worker, None
            del worker.assigned[request.msg_id]
            worker.sent_bytes -= request.sent_bytes
            request.sent_bytes = 0
            self.worker_changed(worker)
        elif request.stage is Stage.WAITING:
            request.group.remove(request)
            self.size_bytes -= request.size_bytes
            self.changed[request.group] = None
        elif request.stage is Stage.QUARANTINED:
            del self.quarantined[request.msg_id]
            self.release(request)

    def assign(self, worker: Worker, request: Request) -> None:
        """Enters a request as this worker's, without sending it."""
        request.stage = Stage.ASSIGNED
        if request.unassigned:
            self.notify_assignment(request, has_worker=True)
        request.worker = worker
        worker.assigned[request.msg_id] = request
        worker.update_level()

    def notify_assignment(self, request: Request, *, has_worker: bool) -> None:
        """Tells the caller whether its request has, or can get, a worker."""
        request.unassigned = not has_worker
        if request.caller.conn is not None:
            self._out.reply(request.caller.conn.route, verbs.Assignment(request.msg_id, has_worker))

    def send_work(self, worker: Worker, request: Request) -> None:
        """Sends WORK for an assigned request, perhaps a second time."""
        assert worker.conn is not None
        size_bytes = len(request.body)
        if worker.sent_bytes + size_bytes > MAX_SENT_BYTES:
            request.free_body()
        else:
            worker.sent_bytes += size_bytes
            request.sent_bytes += size_bytes
        work = verbs.Work(
            request.msg_id,
            request.caller.sender_id,
            request.from_name,
            request.from_label,
            request.group.name,
            request.fmt,
            request.ts,
            request.tries,
            request.pointer if request.spilled else None,
            request.body,
        )
        self._out.reply(worker.conn.route, work)
        request.free_body()

    def dispatch(self) -> list[Group]:
        """Assigns and sends waiting requests in all changed groups, as far as there is credit. Returns those groups."""
        visited: list[Group] = []
        while self.changed:
            group = next(iter(self.changed))
            del self.changed[group]
            while (found := group.match()) is not None:
                worker, request = found
                self.size_bytes -= request.size_bytes
                self.assign(worker, request)
                self.send_work(worker, request)
                if len(worker.groups) > 1:
                    # Visit this group last when the worker has credit again: the others get their turn.
                    worker.groups = (*(one for one in worker.groups if one is not group), group)
            if group.is_empty and self.groups.get(group.name) is group:
                del self.groups[group.name]
            visited.append(group)
        return visited
