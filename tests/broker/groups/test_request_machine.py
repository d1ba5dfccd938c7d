"""Requests to worker groups under any sequence of faults, driven by hypothesis. (Mailboxes: `test_machine`.)

The model knows the requests and the living processes. Which worker has which request, and the outcome of each request,
is observed at the clients. All bounds are lowered to a handful, so that each is reached.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from tests.broker.machinekit import RUN, Mishaps
from zmqbus import errors
from zmqbus.broker.groups import queues
from zmqbus.broker.groups import workers as workers_module
from zmqbus.client.core import Phase
from zmqbus.testing import SimClient, SimNet
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role

#: Worker → its groups. `both` is a caller as well, and may meet its own requests.
WORKERS = {"wendy": ("g",), "will": ("g", "h"), "both": ("g",)}
CALLERS = ("alice", "bob", "both")
#: Ephemeral sessions: they are forgotten with their processes.
EPHEMERAL = ("will", "both")
NAMES = tuple(sorted({*WORKERS, *CALLERS}))

MAX_WAITING = 8
MAX_CREDIT = 3

#: Rounds of "settle, work, let time pass" after which a bus that still owes an answer is stuck. Most of them are for
#: timers: it takes twelve seconds to find out that a process has ended whose sockets another one holds, perhaps three
#: times in a row.
ROUNDS = 120

names = st.sampled_from(NAMES)
workers = st.sampled_from(sorted(WORKERS))


class Asked(NamedTuple):
    """A request of the model."""

    order: int
    process: SimClient
    patient: bool


class RequestMachine(Mishaps):
    """Two callers, two workers, and one process that is both."""

    NAMES = NAMES

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(queues, "MAX_WAITING", MAX_WAITING)
        self.patch.setattr(queues, "MAX_SENT_BYTES", 3)  # bodies have one or two bytes
        self.patch.setattr(workers_module, "MAX_CREDIT", MAX_CREDIT)
        self.net = SimNet()
        self.processes: dict[str, SimClient] = {}
        self.ended: list[SimClient] = []
        self.asked: dict[str, Asked] = {}
        self.withdrawn: set[str] = set()
        self.gone = 0  # workers that have ended with a request
        self.holders: dict[str, SimClient] = {}  # request → the process that started it last
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
            named=name not in EPHEMERAL,
        )
        if name in WORKERS:
            process.offer(1 + self.started % MAX_CREDIT)
        self.processes[name] = process
        process.connect()
        return process

    def end(self, process: SimClient, *, bye: bool = False) -> None:
        """Ends a process, with its assigned and its unanswered requests."""
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
        """Ends a process whose forked child keeps its sockets open and sends nothing."""
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
        self.check_single_holders()

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
        self.check_single_holders()

    # --- what must hold

    def check_single_holders(self) -> None:
        """No two connected workers that have received everything have the same request."""
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
    def requests_run_on_one_living_worker(self) -> None:
        """Only the end of a worker, or its own word, moves its request to another, however long it is silent."""
        for name, process in getattr(self, "processes", {}).items():
            for msg_id in process.done:
                holder = self.holders.setdefault(msg_id, process)
                if holder is not process:
                    assert holder in self.ended, f"{name} got {msg_id}, which {holder} may be working on"
                    self.holders[msg_id] = process

    @invariant()
    def credit_is_kept(self) -> None:
        for process in getattr(self, "processes", {}).values():
            assert len(process.works) <= MAX_CREDIT, f"{process} exceeds its credit"
            for work in process.works.values():
                assert work.from_session != process.persona.session_id, f"{process} got its own request"

    @invariant()
    def tables_are_consistent(self) -> None:
        if not hasattr(self, "net"):
            return
        broker = self.net.broker.requests
        all_workers = broker._workers._by_session.values()
        kept = 0
        for group in broker._queues.groups.values():
            waiting = [request for queue in (group._queue, *group._aside.values()) for request in queue.values()]
            assert group.waiting == len(waiting) and all(group._aside.values())
            assert group.size_bytes == sum(request.size_bytes for request in waiting)
            assert group.impatient == sum(not request.patient for request in waiting)
            assert group._ready_count == sum(map(len, group._ready.values()))
            assert group.joined == sum(group in worker.groups for worker in all_workers)
            kept += group.size_bytes + group.reserved_bytes
            # Requeued requests come on top of the admitted ones.
            assert group.waiting + group.reserved <= MAX_WAITING + len(WORKERS) * MAX_CREDIT
            ready = [worker.session_id for level in group._ready.values() for worker in level]
            for worker in all_workers:
                load = len(worker.assigned) + len(worker.claims)
                fits = worker.conn is not None and not worker.conn.silent and load < worker.credit
                assert (worker.session_id in ready) == (fits and group in worker.groups)
            # No request waits that a worker could take.
            assert all(one == request.caller.sender_id for one in ready for request in waiting)
        assert kept == broker._queues.size_bytes
        for request in broker._ledger.requests.values():
            assert request.caller.requests[request.msg_id] is request
            assert request.worker is None or request.worker.assigned[request.msg_id] is request
        for worker in all_workers:
            assert all(request.worker is worker for request in worker.assigned.values())
            assert worker.sent_bytes == sum(request.sent_bytes for request in worker.assigned.values())

    # --- and in the end

    def teardown(self) -> None:
        if not hasattr(self, "net"):
            return
        try:
            self.come_to_rest()
            self.account()
            self.check_leaks()
        finally:
            self.patch.undo()

    def waiting(self) -> list[str]:
        """Requests whose callers still wait for them."""
        here = list(self.processes.values())
        return [
            msg_id
            for msg_id, asked in self.asked.items()
            if asked.process in here and msg_id not in asked.process.results and msg_id not in self.withdrawn
        ]

    def come_to_rest(self) -> None:
        """Brings every process back, and lets the workers work."""
        self.net.journal_fails = None
        for name in NAMES:
            self.connect(name)
            self.processes[name].stopped = False
            if name in WORKERS:
                self.processes[name].offer(2)
        for _ in range(ROUNDS):
            self.net.settle()
            self.check_single_holders()
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

    def check_leaks(self) -> None:
        """Nothing of the requests, workers and connections is left in the broker's tables."""
        for process in self.processes.values():
            process.bye()
        self.net.settle()
        self.net.advance(20, step_s=1)
        known = {session.name for session in self.net.broker.registry.sessions.values()}
        assert not known & {*EPHEMERAL} and not self.net.broker.retention.needs_tick
        broker = self.net.broker.requests
        tables = {
            broker: ("_staged",),
            broker._ledger: ("requests",),
            broker._callers: ("_connected", "_lost", "_orphans", "_late"),
            broker._workers: ("_by_session", "_absent"),
            broker._queues: ("groups", "quarantined", "changed", "size_bytes"),
            broker._reconciliation: ("_claims", "_expected", "_owners", "_offer_due_s"),
        }
        for part, names in tables.items():
            assert not any(getattr(part, name) for name in names), f"{part!r} leaks: {names}"
        assert broker.idle and self.net.broker.idle and self.net.broker.next_tick_s() is None


TestRequestMachine = pytest.mark.slow(RequestMachine.TestCase)
TestRequestMachine.settings = RUN
