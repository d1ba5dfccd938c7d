"""Requests and work under any sequence of mishaps, driven by hypothesis; the mailboxes have `test_machine`.

The model knows who asked what, and which processes are there. What each has in hand, and what has become of each
request, is seen at the clients. The bounds are set down to a handful, so that each is reached.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from tests.broker.machinekit import RUN, Mishaps
from zmqbus import errors
from zmqbus.broker.groups import queues as board
from zmqbus.broker.groups import requests
from zmqbus.client.core import Phase
from zmqbus.testing import SimClient, SimNet
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role

#: What each works for. `both` asks, too, and may meet its own requests.
WORKERS = {"wendy": ("g",), "will": ("g", "h"), "both": ("g",)}
CALLERS = ("alice", "bob", "both")
#: Nobody chose their names: they are forgotten with their processes.
NAMELESS = ("will", "both")
NAMES = tuple(sorted({*WORKERS, *CALLERS}))

MAX_WAITING = 8
MAX_CREDIT = 3

#: Rounds of "settle, work, let time pass" after which a bus that still owes an answer is stuck: some for the work, the
#: rest for timers (twelve seconds until a process is found to have ended whose sockets another holds, perhaps three
#: times).
ROUNDS = 120

names = st.sampled_from(NAMES)
workers = st.sampled_from(sorted(WORKERS))


class Asked(NamedTuple):
    """What the model knows of a request."""

    order: int
    process: SimClient
    patient: bool


class Shop(Mishaps):
    """Two who ask, two who work, and one who does both."""

    NAMES = NAMES

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(board, "MAX_WAITING", MAX_WAITING)
        self.patch.setattr(board, "MAX_HANDED_BYTES", 3)  # the bodies have one byte, or two
        self.patch.setattr(requests, "MAX_CREDIT", MAX_CREDIT)
        self.net = SimNet()
        self.processes: dict[str, SimClient] = {}
        self.ended: list[SimClient] = []
        self.asked: dict[str, Asked] = {}
        self.withdrawn: set[str] = set()
        self.gone = 0  # workers that have ended with something in hand
        self.holders: dict[str, SimClient] = {}  # who was given each request last
        self.journal_failed = False
        self.started = 0
        for name in ("alice", "wendy"):
            self.start(name)

    def start(self, name: str) -> SimClient:
        self.started += 1
        owner = f"{name}:{self.started}"
        self.net.living_owners.add(owner)
        process = self.net.session(
            name,
            role=Role.PROGRAM,
            connect=False,
            groups=WORKERS.get(name, ()),
            owner=owner,
            named=name not in NAMELESS,
        )
        if name in WORKERS:
            process.offer(1 + self.started % MAX_CREDIT)
        self.processes[name] = process
        process.connect()
        return process

    def end(self, process: SimClient, *, bye: bool = False) -> None:
        """The process is gone, with what it had in hand, and what it asked."""
        process.stopped = False
        if process.works:
            self.gone += 1
        if bye:
            process.bye()
            self.net.wake()
        self.net.living_owners.discard(process.persona.owner)
        process.disconnect()
        process.works.clear()
        self.ended.append(process)

    @rule(name=st.sampled_from(NAMES))
    def end_with_sockets_held(self, name: str) -> None:
        """The process is gone, and a child that it has forked keeps its sockets open, and says nothing."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        if process.works:
            self.gone += 1
        self.net.living_owners.discard(process.persona.owner)
        process.stopped = True
        process.works.clear()
        self.ended.append(process)

    @rule(fails=st.booleans())
    def journal(self, fails: bool) -> None:
        self.journal_failed = self.journal_failed or fails
        super().journal(fails)

    def comes_to_rest(self) -> None:
        self.nobody_has_what_another_has()

    # --- requests

    @rule(name=st.sampled_from(CALLERS), group=st.sampled_from("ggh"), patient=st.booleans(), count=st.integers(1, 4))
    def ask(self, name: str, group: str, patient: bool, count: int) -> None:
        process = self.processes.get(name)
        if process is None:
            return
        for _ in range(count):
            order = len(self.asked)
            msg_id = process._new_id()
            self.asked[msg_id] = Asked(order, process, patient)
            process.call(group, str(order).encode(), patient=patient, msg_id=msg_id)

    @rule(name=st.sampled_from(CALLERS), number=st.integers(0, 20))
    def withdraw(self, name: str, number: int) -> None:
        process = self.processes.get(name)
        if process is None:
            return
        mine = [one for one, asked in self.asked.items() if asked.process is process and one not in process.results]
        if number < len(mine):
            self.withdrawn.add(mine[number])
            process.withdraw(mine[number])

    @rule(name=workers, count=st.integers(1, 4))
    def work(self, name: str, count: int) -> None:
        process = self.processes.get(name)
        if process is not None and not process.stopped:
            process.work(count)

    @rule(name=workers, credit=st.integers(0, MAX_CREDIT + 1))
    def offer(self, name: str, credit: int) -> None:
        process = self.processes.get(name)
        if process is not None:
            process.offer(credit)

    # --- time

    @rule(seconds=st.sampled_from((0.1, 1.0, 4.0, 6.0, 20.0, 60.0)))
    def wait(self, seconds: float) -> None:
        self.net.advance(seconds, step_s=max(0.1, seconds / 10))
        self.nobody_has_what_another_has()

    # --- what must hold

    def nobody_has_what_another_has(self) -> None:
        """Of those who are connected and have heard all that was said to them."""
        holders: dict[str, str] = {}
        for name, process in self.processes.items():
            if process.stopped or process.core.phase is not Phase.READY:
                continue
            if process.route not in self.net.routes or self.net.routes[process.route] is None:
                continue
            for msg_id in process.works:
                assert msg_id not in holders, f"{name} and {holders[msg_id]} both have {msg_id}"
                holders[msg_id] = name

    @invariant()
    def nobody_does_what_another_may_be_doing(self) -> None:
        """However long that one has said nothing: only its end, or its word, gives a request to another."""
        for name, process in getattr(self, "processes", {}).items():
            for msg_id in process.done:
                holder = self.holders.setdefault(msg_id, process)
                if holder is not process:
                    assert holder in self.ended, f"{name} was given {msg_id}, which {holder} may be doing"
                    self.holders[msg_id] = process

    @invariant()
    def credit_is_kept(self) -> None:
        for process in getattr(self, "processes", {}).values():
            assert len(process.works) <= MAX_CREDIT, f"{process} has too much in hand"
            for work in process.works.values():
                assert work.from_session != process.persona.session_id, f"{process} got its own request"

    @invariant()
    def the_books_are_right(self) -> None:
        if not hasattr(self, "net"):
            return
        core = self.net.broker.pool
        kept = 0
        for group in core._board.groups.values():
            queues = [group._queue, *group._aside.values()]
            waiting = [request for queue in queues for request in queue.values()]
            assert group.waiting == len(waiting) and all(group._aside.values())
            assert group.size_bytes == sum(request.size_bytes for request in waiting)
            assert group.impatient == sum(not request.patient for request in waiting)
            assert group._ready_count == sum(map(len, group._ready.values()))
            assert group.joined == sum(group in worker.groups for worker in core._workers.values())
            kept += group.size_bytes + group.reserved_bytes
            # What a worker has given up comes on top of what was let in.
            assert group.waiting + group.reserved <= MAX_WAITING + len(WORKERS) * MAX_CREDIT
            ready = [worker.session_id for level in group._ready.values() for worker in level]
            for worker in core._workers.values():
                load = len(worker.hand) + len(worker.claims)
                fits = worker.conn is not None and not worker.conn.silent and load < worker.credit
                assert (worker.session_id in ready) == (fits and group in worker.groups)
            # Nothing waits that somebody could have.
            assert all(one == request.caller.sender_id for one in ready for request in waiting)
        assert kept == core._board.size_bytes
        for request in core._requests.values():
            assert request.caller.requests[request.msg_id] is request
            assert request.worker is None or request.worker.hand[request.msg_id] is request
        for worker in core._workers.values():
            assert all(request.worker is worker for request in worker.hand.values())
            assert worker.handed_bytes == sum(request.handed_bytes for request in worker.hand.values())

    # --- and in the end

    def teardown(self) -> None:
        if not hasattr(self, "net"):
            return
        try:
            self.come_to_rest()
            self.account()
            self.leave_nothing()
        finally:
            self.patch.undo()

    def waiting(self) -> list[str]:
        """Requests that somebody still waits for."""
        here = list(self.processes.values())
        return [
            msg_id
            for msg_id, asked in self.asked.items()
            if asked.process in here and msg_id not in asked.process.results and msg_id not in self.withdrawn
        ]

    def come_to_rest(self) -> None:
        """Everybody comes back, and works."""
        self.net.journal_fails = None
        for name in NAMES:
            self.connect(name)
            self.processes[name].stopped = False
            if name in WORKERS:
                self.processes[name].offer(2)
        for _ in range(ROUNDS):
            self.net.settle()
            self.nobody_has_what_another_has()
            for process in self.processes.values():
                process.work()
            self.net.advance(0.5)
            if not self.waiting() and not any(process.works for process in self.processes.values()):
                break

    def account(self) -> None:
        waiting = self.waiting()
        assert not waiting, f"never answered: {waiting}"
        done = {msg_id for process in [*self.processes.values(), *self.ended] for msg_id in process.done}
        for msg_id, asked in self.asked.items():
            outcome = asked.process.results.get(msg_id)
            note(f"{asked.order} {msg_id} of {asked.process.persona.name}: {outcome}")
            if isinstance(outcome, verbs.Result):
                assert self.net.body(outcome) == b"done %d" % asked.order
                assert msg_id in done
            elif isinstance(outcome, errors.UnknownPeer):
                assert not asked.patient
            elif isinstance(outcome, errors.Poisoned):
                assert self.gone >= 3
            elif isinstance(outcome, errors.BrokerUnavailable):
                assert self.journal_failed
            elif outcome is not None:
                assert isinstance(outcome, errors.RateLimited), outcome

    def leave_nothing(self) -> None:
        """Whatever a request, a worker or a connection has left in the broker's tables is a leak."""
        for process in self.processes.values():
            process.bye()
        self.net.settle()
        self.net.advance(20, step_s=1)
        known = {session.name for session in self.net.broker.registry.sessions.values()}
        assert not known & {*NAMELESS} and not self.net.broker.retention.needs_tick
        core = self.net.broker.pool
        for table in ("_staged", "_requests", "_callers", "_orphans", "_late", "_workers", "_absent"):
            assert not getattr(core, table), f"{table} leaks: {getattr(core, table)}"
        assert core._orphaned == 0
        assert (core._board.groups, core._board.limbo, core._board.changed, core._board.size_bytes) == ({}, {}, {}, 0)
        assert not core.aftermath._claims and not core.aftermath._expected
        assert not core.aftermath._owners and not core.aftermath._came
        assert core.idle and self.net.broker.idle and self.net.broker.next_tick_s() is None


TestShop = pytest.mark.slow(Shop.TestCase)
TestShop.settings = RUN
