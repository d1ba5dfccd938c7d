"""Workers: sessions that send OFFER, from their coming to their end.

A worker may be busy without a word for any time: a handler holds the interpreter, or the process was stopped. Neither
silence nor a lost connection is its end. It keeps its requests as long as its process lives, and is sent no more while
it is silent. When its process has ended, or it has left in good order, other workers get its requests, before all that
wait. Three workers whose processes end with one request may have died of it: it is refused (`ledger.MAX_TRIES`). A
worker that comes back names its requests in OFFER.
"""

from __future__ import annotations

from collections.abc import Callable

from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.groups.failover import Reconciliation
from zmqbus.broker.groups.ledger import Ledger
from zmqbus.broker.groups.model import Group, Request, Stage, Worker
from zmqbus.broker.groups.queues import DispatchQueues
from zmqbus.broker.sessions import RETURN_S, Connection, Session
from zmqbus.errors import ProtocolError
from zmqbus.wire import verbs

#: Unanswered requests that a worker may have; a larger credit counts as this one.
MAX_CREDIT = 1_000
#: Requests that an OFFER may name as held, and as answered: the number of answers that a worker remembers.
MAX_NAMED = 1_000
#: Groups of one worker: each of them learns of every change of its load.
MAX_GROUPS = 64


class Workers:
    """All workers, connected or not."""

    def __init__(
        self,
        ledger: Ledger,
        queues: DispatchQueues,
        reconciliation: Reconciliation,
        out: Outbox,
        owner_lives: Callable[[str], bool],
    ) -> None:
        self._ledger = ledger
        self._queues = queues
        self._reconciliation = reconciliation
        self._out = out
        self._owner_lives = owner_lives
        self._by_session: dict[str, Worker] = {}
        self._absent: dict[Worker, None] = {}  # those without a connection

    def __repr__(self) -> str:
        return f"<Workers: {len(self._by_session)}, {len(self._absent)} of them absent>"

    def __len__(self) -> int:
        return len(self._by_session)

    @property
    def needs_tick(self) -> bool:
        """Whether time alone may change something here."""
        return bool(self._absent)

    @property
    def assigned(self) -> int:
        """Number of requests that workers have."""
        return sum(len(worker.assigned) for worker in self._by_session.values())

    def of(self, who: Connection) -> Worker | None:
        """The worker that is connected over this connection."""
        worker = self._by_session.get(who.session.session_id) if who.session is not None else None
        return worker if worker is not None and worker.conn is who else None

    def serves(self, group: Group, sender_id: str) -> bool:
        """Whether the group has, or soon has again, a worker other than the caller itself."""
        own = self._by_session.get(sender_id)
        if len(group.workers) > (own is not None and own in group.workers):
            return True
        return self._reconciliation.expects_soon(group.name, sender_id)

    def may_have(self, worker: Worker, request: Request) -> bool:
        """Whether a worker may work on a request: it has joined the group, and did not send the request itself."""
        return request.group in worker.groups and request.caller.sender_id != worker.session_id

    # --- OFFER

    def offer(self, who: Connection, offer: verbs.Offer) -> None:
        """Enters a worker, or changes its credit. Raises `ProtocolError` for an OFFER that no client sends."""
        session = who.session
        assert session is not None
        self._check(who, session, offer)
        worker = self._by_session.get(session.session_id)
        if worker is None:
            worker = self._by_session[session.session_id] = Worker(session.session_id)
        worker.credit = min(max(offer.credit, 0), MAX_CREDIT)
        if worker.conn is not who:
            self._connect(worker, session, who, offer)
        for group in worker.groups:
            if worker.credit:
                group.workers[worker] = None
            else:
                group.workers.pop(worker, None)
        self._queues.worker_changed(worker)
        self._reconciliation.stop_expecting(session.session_id)

    def _check(self, who: Connection, session: Session, offer: verbs.Offer) -> None:
        if not who.program:
            raise ProtocolError("only a program can be a worker")
        if not session.groups or len(session.groups) > MAX_GROUPS:
            raise ProtocolError(f"a worker has joined one group at least, and {MAX_GROUPS} at most")
        if len(offer.holding) > MAX_NAMED or len(offer.answered) > MAX_NAMED:
            raise ProtocolError(f"OFFER names {MAX_NAMED:,} requests at most")

    def _connect(self, worker: Worker, session: Session, who: Connection, offer: verbs.Offer) -> None:
        """Binds a new or returning worker to its connection, and brings its requests in line with its OFFER."""
        self._absent.pop(worker, None)
        died = worker.owner != session.owner and not self._owner_lives(worker.owner)
        worker.owner = session.owner
        worker.conn = who
        self._queues.join(worker, session.groups)
        self._compare_assigned(worker, offer, died=died)
        unwanted = []
        for msg_id in offer.holding:
            if msg_id not in worker.assigned and not self._reclaim(worker, msg_id, answered=False):
                unwanted.append(msg_id)
        for msg_id in offer.answered:
            if msg_id not in worker.assigned:
                self._reclaim(worker, msg_id, answered=True)
        if unwanted:  # guards: failover [off]
            self._out.reply(who.route, verbs.Withdrawn(tuple(unwanted)))

    def _compare_assigned(self, worker: Worker, offer: verbs.Offer, *, died: bool) -> None:
        """Asks again for answers that were lost, and requeues requests that the worker does not name.

        Those were lost on their way to it, or (`died`) together with the process that was there before this one.
        """
        holding, answered = set(offer.holding), set(offer.answered)
        for request in reversed(list(worker.assigned.values())):
            if request.msg_id in answered:
                self._queues.send_work(worker, request)  # guards: failover
            elif request.msg_id not in holding:  # guards: failover [off]
                self._requeue(worker, request, died=died)

    def _reclaim(self, worker: Worker, msg_id: str, *, answered: bool) -> bool:
        """Assigns a request to the worker that names it as held or answered. False if it must drop the request."""
        request = self._ledger.requests.get(msg_id)
        if request is None or request.stage is Stage.STAGED:
            return self._reconciliation.add_claim(worker, msg_id, answered=answered)
        if request.stage in (Stage.WAITING, Stage.QUARANTINED) and self.may_have(worker, request):
            self._queues.remove(request)
            self.assign_claimed(worker, request, answered=answered)
            return True
        if answered and request.stage is Stage.ASSIGNED and worker.session_id in request.lost_with:
            self._queues.send_work(worker, request)  # it was given up with the answer, which may still come first
        return False

    def assign_claimed(self, worker: Worker, request: Request, *, answered: bool) -> None:
        """Assigns a request to a worker that has it already. If it has answered, WORK makes it repeat the answer."""
        self._queues.assign(worker, request)
        if answered:
            self._queues.send_work(worker, request)
        request.free_body()

    # --- their end

    def parted(self, now: Instant, who: Connection, *, gone: bool) -> None:
        """Handles the end of a connection. `gone` means that it has sent BYE, so that its worker is given up."""
        worker = self.of(who)
        if worker is None:
            return
        worker.conn = None
        self._reconciliation.drop_claims(worker)
        worker.update_level()
        lives = self._owner_lives(worker.owner)
        if gone or not lives:  # guards: failover [on]
            self._give_up(worker, died=not lives)  # guards: failover [not lives => True]
        else:
            worker.until_s = now.mono_s + RETURN_S
            self._absent[worker] = None

    def left(self, session: Session) -> None:
        """Gives up the worker of a session that has left for good, over whichever connection."""
        worker = self._by_session.get(session.session_id)
        if worker is not None and worker.conn is None:
            self._give_up(worker, died=not self._owner_lives(worker.owner))
        self._reconciliation.stop_expecting(session.session_id)

    def silence_changed(self, who: Connection) -> None:
        """Updates the queues when a connection falls silent, or is heard again."""
        worker = self.of(who)
        if worker is not None:
            self._queues.worker_changed(worker)

    def _give_up(self, worker: Worker, *, died: bool) -> None:
        """Requeues the requests of a worker. `died` if its process has ended; else it has given them back."""
        self._absent.pop(worker, None)
        del self._by_session[worker.session_id]
        self._queues.leave(worker)
        if worker.assigned:
            self._out.note(f"{worker!r} is gone; its requests go to other workers")
        for request in reversed(list(worker.assigned.values())):
            self._requeue(worker, request, died=died)

    def _requeue(self, worker: Worker, request: Request, *, died: bool) -> None:
        waits = self._ledger.requeue(worker, request, died=died)
        if waits and request.patient and not self.serves(request.group, request.caller.sender_id):
            self._queues.notify_assignment(request, has_worker=False)

    def check_owners(self, now: Instant) -> None:
        """Gives up absent workers whose processes have ended, and those without requests whose time is over."""
        for worker in list(self._absent):
            if not self._owner_lives(worker.owner):
                self._give_up(worker, died=True)
            # guards: failover [and not worker.assigned =>]
            elif now.mono_s >= worker.until_s and not worker.assigned:
                self._give_up(worker, died=False)
