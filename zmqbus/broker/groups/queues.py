"""Where the requests to groups wait, and who has them in hand: the moves between the tables of `workers`.

Every request is counted in one place at a time: *reserved*, while its record is written or while it may turn out that a
worker has it already; *waiting*; or in the hands of a worker. The bounds hold for the first two together, so that what
has been let in always finds room. What is in a worker's hands costs next to nothing: the body is in the journal.

Whatever may let something move puts its group among the `changed`, and `move` looks at each of those once.
"""

from __future__ import annotations

from collections.abc import Iterable

from zmqbus.broker.events import Outbox
from zmqbus.broker.groups.model import Group, Request, Stage, Worker
from zmqbus.errors import RateLimited
from zmqbus.wire import verbs

#: Requests that wait in one group,
MAX_WAITING = 10_000
#: and their bodies, as far as they are kept here (a larger one than `SPILL_BYTES` is not);
MAX_WAITING_BYTES = 64 * 1024 * 1024
#: and those of all groups together, for anybody may name any number of groups.
MAX_POOL_BYTES = 256 * 1024 * 1024
#: Bodies under way to one worker, which may stand still: as much as a mailbox has under way. Beyond that the worker is
#: told where they are in the journal.
MAX_HANDED_BYTES = 4 * 1024 * 1024


class Board:
    """All groups, and all that waits in them."""

    def __init__(self, out: Outbox) -> None:
        self._out = out
        self.groups: dict[str, Group] = {}
        self.limbo: dict[str, Request] = {}  #: those that a worker may have already, by their ids
        self.changed: dict[Group, None] = {}  #: something may move there; a set would make runs differ
        self.size_bytes = 0  #: of the bodies that are kept
        self._order = 0  # of the last request that was put at the end of a queue
        self._front = 0  # and before all others

    def __repr__(self) -> str:
        return f"<Board: {self.waiting} waiting in {len(self.groups)} groups>"

    @property
    def waiting(self) -> int:
        """Requests that no worker has."""
        return len(self.limbo) + sum(group.waiting for group in self.groups.values())

    def check_room(self, group: Group, size_bytes: int) -> None:
        """Raises `RateLimited` if another request with such a body may not come in."""
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
        """It may come into the queue yet."""
        request.group.reserved += 1
        request.group.reserved_bytes += request.size_bytes
        self.size_bytes += request.size_bytes

    def release(self, request: Request) -> None:
        """It is about to come into the queue, or will not."""
        request.group.reserved -= 1
        request.group.reserved_bytes -= request.size_bytes
        self.size_bytes -= request.size_bytes
        self.changed[request.group] = None

    def in_limbo(self, request: Request) -> None:
        """A worker may have it already, and is expected."""
        request.stage = Stage.LIMBO
        self.limbo[request.msg_id] = request
        self.reserve(request)

    def wait(self, request: Request, *, front: bool = False) -> None:
        """It waits for a worker, from now on."""
        if front:
            self._front -= 1
            request.order = self._front
        else:
            self._order += 1
            request.order = self._order
        request.stage = Stage.WAITING
        # Its group may have been forgotten, with everybody in it, while a worker had it that works for others by now.
        request.group = self.groups.setdefault(request.group.name, request.group)
        request.group.put(request, front=front)
        self.size_bytes += request.size_bytes
        self.changed[request.group] = None

    def join(self, worker: Worker, names: Iterable[str]) -> None:
        """A worker works for these groups from now on, and for no others."""
        self.leave(worker)
        worker.groups = tuple(self.groups.setdefault(name, Group(name)) for name in sorted(names))
        for group in worker.groups:
            group.joined += 1

    def leave(self, worker: Worker) -> None:
        """A worker works for none of its groups any more."""
        for group in worker.groups:
            group.settle(worker, -1)
            group.workers.pop(worker, None)
            group.joined -= 1
            self.changed[group] = None
        worker.level = -1
        worker.groups = ()

    def load_changed(self, worker: Worker) -> None:
        """A worker has another load or credit than before, and its groups may move."""
        worker.place()
        for group in worker.groups:
            self.changed[group] = None

    def take_out(self, request: Request) -> None:
        """Out of where it waits, or out of its worker's hands."""
        if request.worker is not None:
            worker, request.worker = request.worker, None
            del worker.hand[request.msg_id]
            worker.handed_bytes -= request.handed_bytes
            request.handed_bytes = 0
            self.load_changed(worker)
        elif request.stage is Stage.WAITING:
            request.group.remove(request)
            self.size_bytes -= request.size_bytes
            self.changed[request.group] = None
        elif request.stage is Stage.LIMBO:
            del self.limbo[request.msg_id]
            self.release(request)

    def give(self, worker: Worker, request: Request) -> None:
        """It is this worker's, as far as the tables go."""
        request.stage = Stage.HELD
        if request.unassigned:
            self.tell_assignment(request, has_worker=True)
        request.worker = worker
        worker.hand[request.msg_id] = request
        worker.place()

    def tell_assignment(self, request: Request, *, has_worker: bool) -> None:
        """The caller is to know whether there is anybody for its request."""
        request.unassigned = not has_worker
        if request.caller.conn is not None:
            self._out.reply(request.caller.conn.route, verbs.Assignment(request.msg_id, has_worker))

    def hand(self, worker: Worker, request: Request) -> None:
        """WORK for a worker; which it may have had before."""
        assert worker.conn is not None
        size_bytes = len(request.body)
        if worker.handed_bytes + size_bytes > MAX_HANDED_BYTES:
            request.let_go()
        else:
            worker.handed_bytes += size_bytes
            request.handed_bytes += size_bytes
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
        request.let_go()

    def move(self) -> list[Group]:
        """Hands out what waits, as far as there is credit, wherever something has changed. Returns those groups."""
        seen: list[Group] = []
        while self.changed:
            group = next(iter(self.changed))
            del self.changed[group]
            while (found := group.match()) is not None:
                worker, request = found
                self.size_bytes -= request.size_bytes
                self.give(worker, request)
                self.hand(worker, request)
                if len(worker.groups) > 1:
                    # It comes last when the worker has a hand free again, or it would leave nothing for the others.
                    worker.groups = (*(one for one in worker.groups if one is not group), group)
            if group.empty and self.groups.get(group.name) is group:
                del self.groups[group.name]
            seen.append(group)
        return seen
