"""The request broker: takes REQUESTs to worker groups, dispatches them as WORK, and returns the answers.

Theory of operation
===================

A request stays its caller's until it is answered. Its caller is never told that it is queued, so nothing of it has to
outlive the broker: the caller repeats it to the next one, and the answer is its only confirmation. So there is no
mailbox and no row in the store. The broker tracks which worker has a request for one purpose: no two workers have it,
unless the first was given up.

A request goes through the stages of `model.Stage`. It is STAGED while its record is written; WAITING in its group's
queue until a worker has credit, which may be at once; ASSIGNED to that worker; and ANSWERED while the record of its
answer is written. The queues are dispatched once after each event (`flush`), in the groups that have changed.

*The journal* has all requests and answers. A small one is passed on at once, and its record written in the same wake
(`_Staged.passed`): only its caller answers for it, and writing takes a fifth of the time on the way to the worker. A
larger one is written first, as messages are: it is refused if it cannot be written, and it travels on as a pointer.

*The parts*: `callers` and `workers` know who is gone and who comes back, `queues` hold the waiting requests, `ledger`
ends requests and remembers outcomes, and `failover` reconciles both sides after another broker has died.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from zmqbus.broker.body_checks import check_bodies
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.groups.callers import Callers
from zmqbus.broker.groups.failover import Reconciliation
from zmqbus.broker.groups.ledger import Ledger
from zmqbus.broker.groups.model import Caller, Group, Request, Stage, Worker
from zmqbus.broker.groups.queues import DispatchQueues
from zmqbus.broker.groups.workers import Workers
from zmqbus.broker.sessions import Connection, Session
from zmqbus.errors import BrokerUnavailable, ProtocolError, UnknownPeer, ZmqbusError
from zmqbus.journal.record import Records, Route
from zmqbus.security.digest import sha256
from zmqbus.tuples import NamedTuple
from zmqbus.wire import naming, verbs
from zmqbus.wire.handlers import handles
from zmqbus.wire.verbs import Pointer

#: Memory that a request takes beside its body.
REQUEST_BYTES = 1_000
#: Bodies up to this size are passed on before they are journaled. They stay in memory until then, at most for a wake.
PASSED_BYTES = verbs.INLINE_BYTES
#: Pause between two looks at the processes of workers and callers without a connection.
OWNER_LOOK_S = 0.1


class _Staged(NamedTuple):
    """A request or an answer whose record is about to be written."""

    place: int  # among the records of the wake
    request: Request
    answer: verbs.Result | None  # None for the request itself
    size_bytes: int

    @property
    def passed(self) -> bool:
        """Whether it was passed on already."""
        # guards: requests: journal a large request first [self.size_bytes <= PASSED_BYTES => True]
        return self.size_bytes <= PASSED_BYTES


class RequestBroker:
    """Requests, callers and workers of all groups."""

    def __init__(self, out: Outbox, epoch: str, owner_lives: Callable[[str], bool]) -> None:
        """`owner_lives` tells whether the process that a HELLO named as its session's owner still runs."""
        self._out = out
        self._queues = DispatchQueues(out)
        self._ledger = Ledger(self._queues, out)
        self._reconciliation = Reconciliation(self._queues, out, owner_lives)
        self._callers = Callers(self._ledger, owner_lives)
        self._workers = Workers(self._ledger, self._queues, self._reconciliation, out, owner_lives)
        self._new_id = verbs.IdMaker(sha256(epoch.encode()).digest()[:8])  # unique, as the epoch is
        self._staged: list[_Staged] = []
        self._owners_due_s = 0.0

    def __repr__(self) -> str:
        return f"<RequestBroker: {len(self._ledger.requests)} requests, {len(self._workers)} workers>"

    # --- state

    @property
    def idle(self) -> bool:
        """Whether no request is unanswered."""
        return not self._ledger.requests

    @property
    def needs_tick(self) -> bool:
        """Whether time alone may change something here."""
        return self._callers.needs_tick or self._workers.needs_tick or self._reconciliation.needs_tick

    @property
    def places(self) -> list[int]:
        """Places of its records among those of the wake."""
        return [staged.place for staged in self._staged]

    @property
    def waits_for_journal(self) -> bool:
        """Whether a request or an answer goes out only when the wake's records are written."""
        return any(not staged.passed for staged in self._staged)

    @property
    def kept_bytes(self) -> int:
        """Memory that its requests take."""
        return self._queues.size_bytes + REQUEST_BYTES * len(self._ledger.requests)

    def oldest_segment(self) -> int | None:
        """The oldest segment of the journal that a request points into."""
        pointers = (request.pointer for request in self._ledger.requests.values())
        return min((pointer[0] for pointer in pointers if pointer is not None), default=None)

    def figures(self) -> tuple[tuple[str, int], ...]:
        """Its metrics in STATUS."""
        return (
            ("workers", len(self._workers)),
            ("groups", len(self._queues.groups)),
            ("requests_waiting", self._queues.waiting),
            ("requests_in_hand", self._workers.assigned),
            ("requests_redispatched", self._ledger.redispatched),
        )

    # --- callers

    @handles(verbs.Request)
    def request(self, now: Instant, who: Connection, asked: verbs.Request) -> None:
        """Stages a request. Raises the error to refuse it with."""
        caller = self._callers.of(who)
        msg_id = asked.msg_id
        if not verbs.is_msg_id(msg_id):
            raise ProtocolError("a request's id is 8 to 12 lower-case letters and digits")
        known = self._ledger.requests.get(msg_id)
        if known is not None:  # guards: requests
            if self._callers.adopt(caller, known) and known.unassigned:
                self._queues.notify_assignment(known, has_worker=False)
            return
        outcome = self._ledger.outcome(msg_id, caller.sender_id)
        if outcome is not None:
            self._out.reply(who.route, outcome)
            return
        self._callers.check_room(caller)
        request, has_worker = self._admit(now, caller, asked)
        request.from_name = who.sender_name
        request.from_label = who.session.label if who.session is not None else None
        if not has_worker:  # guards: requests [off]
            self._queues.notify_assignment(request, has_worker=False)
        caller.requests[msg_id] = self._ledger.requests[msg_id] = request
        self._stage_request(request, asked.body)

    def _admit(self, now: Instant, caller: Caller, asked: verbs.Request) -> tuple[Request, bool]:
        """Makes a request that may be staged; also whether its group has a worker. Raises the error to refuse it."""
        name = asked.group
        group = self._queues.groups.get(name)
        if group is None:
            group = Group(naming.check_name(name, "group"))
        check_bodies(asked.fmt, (asked.body,), len(asked.body), to_many=False)
        spilled = len(asked.body) > verbs.SPILL_BYTES
        kept = b"" if spilled else asked.body
        self._queues.check_room(group, len(kept))
        has_worker = self._workers.serves(group, caller.sender_id)
        if not asked.patient and not has_worker:
            raise UnknownPeer(f"nobody works for the group '{name}'; start a worker, then ask again; see: zmqbus list")
        self._queues.groups[name] = group
        request = Request(asked.msg_id, caller, group, asked.fmt, now.wall_s, kept)
        request.patient = asked.patient
        request.repeated = asked.again
        request.spilled = spilled
        return request, has_worker

    def _stage_request(self, request: Request, body: bytes) -> None:
        caller_id, to = request.caller.sender_id, f"@{request.group.name}"
        route = Route("request", caller_id, request.from_name, request.from_label, to, None)
        records = Records(request.ts, route, None, verbs.FORMAT_WORDS[request.fmt], (request.msg_id,), (body,))
        staged = _Staged(self._out.append(records), request, None, len(body))
        self._staged.append(staged)
        if staged.passed:
            self._enter(request)
        else:
            self._queues.reserve(request)

    @handles(verbs.Withdraw)
    def withdraw(self, now: Instant, who: Connection, withdrawn: verbs.Withdraw) -> None:
        """Withdraws requests whose caller does not wait for them any more."""
        self._callers.withdraw(who, withdrawn.msg_ids)

    def caller_returned(self, lease: str) -> None:
        """Notes that the client that had this lease has reconnected, and repeats the requests that it still wants."""
        self._callers.returned(lease)

    # --- workers

    @handles(verbs.Offer)
    def offer(self, now: Instant, who: Connection, offer: verbs.Offer) -> None:
        """Enters a worker, or changes its credit. Raises the error to refuse the OFFER with."""
        self._workers.offer(who, offer)

    @handles(verbs.Answer)
    def answer(self, now: Instant, who: Connection, answer: verbs.Answer) -> None:
        """Stages an answer. Raises the error to refuse it with."""
        session = who.session
        assert session is not None
        worker = self._workers.of(who)
        if worker is None:
            raise ProtocolError("ANSWER without an OFFER")
        if self._reconciliation.answer_claim(worker, answer.msg_id):
            return  # when a caller repeats the request, the worker is asked again, and remembers its answer
        request = self._ledger.requests.get(answer.msg_id)
        if request is None or request.stage is Stage.ANSWERED:
            return  # withdrawn, or another worker was faster
        self._check_answer(request, worker, session, answer)
        self._queues.remove(request)
        request.stage = Stage.ANSWERED
        self._stage_answer(now, request, session, answer)

    def _check_answer(self, request: Request, worker: Worker, session: Session, answer: verbs.Answer) -> None:
        """Raises the error to refuse an answer with; an invalid one from the assigned worker also ends the request."""
        holder = request.worker
        is_holder = holder is worker
        # guards: requests: only its workers may answer [session.session_id not in request.lost_with or =>]
        if not is_holder and (session.session_id not in request.lost_with or request.stage is Stage.STAGED):
            raise ProtocolError("an answer to a request that this worker does not have")
        try:
            check_bodies(answer.fmt, (answer.body,), len(answer.body), to_many=False)
        except ZmqbusError as error:
            if is_holder:
                # A repeated answer would be no better, and the caller would wait for ever.
                invalid = type(error)(f"the answer of '{session.name}' is not valid: {error}")
                self._ledger.fail(request, invalid, remember=True)
            raise
        if not is_holder:
            self._out.note(f"{request!r} is answered by {worker!r}, which had been given up")
            if holder is not None and holder.conn is not None:  # guards: failover [off]
                self._out.reply(holder.conn.route, verbs.Withdrawn((request.msg_id,)))

    def _stage_answer(self, now: Instant, request: Request, session: Session, answer: verbs.Answer) -> None:
        answer_id = self._new_id()
        result = verbs.Result(
            request.msg_id,
            answer_id,
            session.session_id,
            session.name,
            answer.fmt,
            now.wall_s,
            None,
            b"" if len(answer.body) > verbs.SPILL_BYTES else answer.body,
        )
        caller_id = request.caller.sender_id
        route = Route("answer", session.session_id, session.name, session.label, request.from_name, caller_id)
        word = verbs.FORMAT_WORDS[answer.fmt]
        records = Records(now.wall_s, route, request.msg_id, word, (answer_id,), (answer.body,))
        staged = _Staged(self._out.append(records), request, result, len(answer.body))
        self._staged.append(staged)
        if staged.passed:
            self._ledger.end(request, result)
            self._ledger.remember(request, result)

    # --- the journal

    def journaled(self, now: Instant, pointers: Sequence[Pointer]) -> None:
        """Passes on the staged requests and answers whose records are now in the journal, at these places."""
        staged, self._staged = self._staged, []
        for one in staged:
            pointer = pointers[one.place]
            if one.answer is None:
                self._request_journaled(one, pointer)
            else:
                self._answer_journaled(one, one.answer, pointer)

    def _request_journaled(self, staged: _Staged, pointer: Pointer) -> None:
        request = staged.request
        request.pointer = pointer
        if staged.passed:
            if request.stage is Stage.ASSIGNED:
                request.free_body()
            return
        self._queues.release(request)
        if request.stage is not Stage.GONE:
            self._enter(request)

    def _answer_journaled(self, staged: _Staged, answer: verbs.Result, pointer: Pointer) -> None:
        request = staged.request
        if not staged.passed:
            if request.stage is Stage.GONE:
                return
            spilled = staged.size_bytes > verbs.SPILL_BYTES
            self._ledger.end(request, answer._replace(pointer=pointer) if spilled else answer)
        # guards: requests [=> self._ledger.forget_outcome(request.msg_id)]
        self._ledger.remember(request, answer._replace(pointer=pointer, body=b""))

    def journal_failed(self, reason: str) -> None:
        """Refuses the staged requests and answers that are not in the journal, except answers that were passed on."""
        staged, self._staged = self._staged, []
        for one in staged:
            request = one.request
            if one.passed and one.answer is not None:
                self._ledger.forget_outcome(request.msg_id)  # it could not be read again
                continue
            if one.answer is None and not one.passed:
                self._queues.release(request)
            if request.stage is Stage.GONE:
                continue
            if request.worker is not None and request.worker.conn is not None:
                self._out.reply(request.worker.conn.route, verbs.Withdrawn((request.msg_id,)))
            self._ledger.fail(request, BrokerUnavailable(reason))

    def _enter(self, request: Request) -> None:
        """Queues a request; if an earlier broker may have assigned it, claims it or quarantines it instead."""
        self._out.counts.requests_accepted += 1
        # guards: failover [self._reconciliation.take_claim(request.msg_id) if request.repeated else =>]
        claim = self._reconciliation.take_claim(request.msg_id) if request.repeated else None
        if claim is not None and self._workers.may_have(claim[0], request):
            self._workers.assign_claimed(claim[0], request, answered=claim[1])
        elif request.repeated and self._reconciliation.expects(request.group.name):  # guards: failover [off]
            self._queues.quarantine(request)
        else:
            self._queues.enqueue(request)

    # --- connections

    def recover(self, now: Instant, sessions: Iterable[Session]) -> None:
        """Starts the reconciliation with the sessions that an earlier broker knew."""
        self._reconciliation.begin(now, sessions)

    def reconnected(self, now: Instant, session: Session, *, is_program: bool) -> None:
        """Notes that a session has connected; only a program may be a worker and send OFFER."""
        if is_program:
            self._reconciliation.reconnected(now, session.session_id)
        else:
            self._reconciliation.stop_expecting(session.session_id)

    def parted(self, now: Instant, who: Connection, *, gone: bool) -> None:
        """Handles the end of a connection. `gone` means that it has sent BYE, so that it is not expected back."""
        self._callers.parted(now, who, gone=gone)
        self._workers.parted(now, who, gone=gone)

    def left(self, session: Session) -> None:
        """Gives up the worker of a session that has left for good, over whichever connection."""
        self._workers.left(session)

    def silence_changed(self, who: Connection) -> None:
        """Stops dispatching to a worker whose connection falls silent, and resumes when it is heard again."""
        self._workers.silence_changed(who)

    # --- after each event, and with time

    def flush(self) -> None:
        """Dispatches the changed groups, and refuses impatient requests to groups that have no worker left."""
        while self._queues.changed:
            for group in self._queues.dispatch():
                if group.impatient and not group.workers:
                    self._refuse_unservable(group)

    def tick(self, now: Instant) -> None:
        """Gives up callers and workers whose time is over or whose processes have ended."""
        self._callers.tick(now)
        if now.mono_s >= self._owners_due_s:
            self._owners_due_s = now.mono_s + OWNER_LOOK_S
            self._workers.check_owners(now)
            self._callers.check_owners(now)
            self._reconciliation.tick(now)
        for group in self._queues.groups.values():
            if group.impatient and len(group.workers) == 1:
                self._refuse_unservable(group)  # the worker that is left may be the caller itself

    def _refuse_unservable(self, group: Group) -> None:
        if self._reconciliation.expects_soon(group.name):
            return
        for request in group.unservable():
            left = f"nobody works for the group '{group.name}' any more; start a worker, then ask again"
            self._ledger.fail(request, UnknownPeer(left))
