"""REQUEST and WORK: what is asked of a group, and those who work for it. No mailbox, no row in the store.

Theory of operation
===================

A request is its caller's until it is answered. Nobody is ever told that it is queued, so nothing of it has to outlive
the broker: the caller says it again to the next one, and the answer is its only confirmation. What is kept here is who
has it in hand, and that is kept for one purpose, that no two workers have it unless the first was given up.

It goes through the stages of `workers.Stage`: its record is written (STAGED), it waits in its group's queue (WAITING)
until a worker has credit, which may be at once, it is in hand (HELD), and the record of its answer is written
(ANSWERED). The queues move once for each event, in `flush`, for the groups in which something has changed.

*The journal* has all of it. A small request or answer is passed on at once, and its record written in the same wake
(`_Staged.passed`): nobody but its caller answers for it, and to write it takes a fifth of the way to the worker. What
is larger is written first, as messages are: to be refused where it cannot be, and because it travels on as a pointer.

*Who is gone and who comes back.* A worker may be busy without a word for any time: a handler holds the interpreter, or
the process was stopped. Neither silence nor a lost connection is its end. It keeps what it has in hand for as long as
its process lives, and is given nothing more while it is silent. What it has goes to others, before all that wait, when
its process has ended, or when it has left in good order. Three workers whose processes end with one request in hand may
have died of it: it is refused. A worker that comes back names what it has in hand.

A caller whose connection is lost is expected back for `RETURN_S`. It says its requests again, and is given what has
become of them. After that time what no worker has is withdrawn: the caller may say it again. What a worker has in hand
is kept as long as the caller's process lives, or a caller that is busy, too, would have it done a second time.

*A broker that is new* knows none of this, and learns it from both sides (`aftermath`).

*Answers* are remembered by their place in the journal, so that a caller whose connection was lost with one gets it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

from zmqbus.broker.body_checks import check_body
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.groups.failover import RETURN_S, Aftermath
from zmqbus.broker.groups.model import Caller, Group, Request, Stage, Worker
from zmqbus.broker.groups.queues import Board
from zmqbus.broker.sessions import Connection, Session
from zmqbus.errors import BrokerUnavailable, Poisoned, ProtocolError, UnknownPeer, ZmqbusError
from zmqbus.journal.record import Record
from zmqbus.security.digest import sha256
from zmqbus.tuples import NamedTuple
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import Pointer

#: What a request takes in memory beside its body.
REQUEST_BYTES = 1_000
#: Requests of one connection that are not answered: as many as it may have messages unconfirmed.
MAX_UNANSWERED = 1_000
#: Requests whose callers are expected back; beyond that the oldest of these are withdrawn early.
MAX_ORPHANS = 10_000
#: Unanswered requests that a worker may have at a time; who offers more is given no more.
MAX_CREDIT = 1_000
#: Requests that an OFFER may name as held, and as answered: a worker remembers so many answers.
MAX_NAMED = 1_000
#: Groups that a worker may work for: each has to learn of every change of its load.
MAX_GROUPS = 64
#: Bodies up to this are passed on before they are in the journal. They stay in memory until then, which is no longer
#: than a wake.
PASSED_BYTES = verbs.INLINE_BYTES
#: The processes of so many workers may end with a request in hand; it is given to no other.
MAX_TRIES = 3
#: How often it is looked which processes still live, of workers and callers without a connection.
OWNER_LOOK_S = 0.1
#: Answers whose place in the journal is remembered, for callers that come back: all of 20 callers at full tilt.
REMEMBERED_RESULTS = 20_000


class _Past(NamedTuple):
    """What became of a request, to be told again to a caller that has not heard it."""

    caller_id: str
    told: verbs.Result | verbs.Refused


class _Staged(NamedTuple):
    """A request or an answer whose record is about to be written."""

    place: int  # among the records of the wake
    request: Request
    answer: verbs.Result | None  # None: it is the request itself
    size_bytes: int

    @property
    def passed(self) -> bool:
        """It has been passed on already."""
        # guards: requests: journal a large request first [self.size_bytes <= PASSED_BYTES => True]
        return self.size_bytes <= PASSED_BYTES


class Pool:
    """All requests, and all who work."""

    def __init__(self, out: Outbox, epoch: str, owner_lives: Callable[[str], bool]) -> None:
        """`owner_lives`: whether the process that a HELLO named as its session's owner still runs."""
        self._out = out
        self._board = Board(out)
        self.aftermath = Aftermath(self._board, out, owner_lives)
        self._owner_lives = owner_lives
        self._new_id = verbs.IdMaker(sha256(epoch.encode()).digest()[:8])  # unique, as the epoch is
        self._staged: list[_Staged] = []
        self._requests: dict[str, Request] = {}  # by id; none that is gone
        self._callers: dict[Connection, Caller] = {}
        self._orphans: deque[Caller] = deque()  # callers without a connection, the first to be given up first
        self._orphaned = 0  # their requests, when they lost it
        self._late: dict[Caller, None] = {}  # callers that have not come back in time, and for whom workers are at work
        self._owners_due_s = 0.0  # when it is looked next which processes still live
        self._workers: dict[str, Worker] = {}  # by session id
        self._absent: dict[Worker, None] = {}  # those without a connection
        self._past: OrderedDict[str, _Past] = OrderedDict()
        self.redispatched = 0  #: requests that were taken from workers that are gone

    def __repr__(self) -> str:
        return f"<Pool: {len(self._requests)} requests, {len(self._workers)} workers>"

    # --- what others ask

    @property
    def idle(self) -> bool:
        """Nobody waits for an answer."""
        return not self._requests

    @property
    def expects(self) -> bool:
        """Whether time alone may change something here."""
        return bool(self._orphans or self._late or self._absent or self.aftermath.lasts)

    def oldest_segment(self) -> int | None:
        """The oldest segment of the journal that a request points into."""
        return min((one.pointer[0] for one in self._requests.values() if one.pointer is not None), default=None)

    def figures(self) -> tuple[tuple[str, int], ...]:
        """What STATUS tells of it."""
        return (
            ("workers", len(self._workers)),
            ("groups", len(self._board.groups)),
            ("requests_waiting", self._board.waiting),
            ("requests_in_hand", sum(len(worker.hand) for worker in self._workers.values())),
            ("requests_redispatched", self.redispatched),
        )

    @property
    def kept_bytes(self) -> int:
        """What its requests take in memory."""
        return self._board.size_bytes + REQUEST_BYTES * len(self._requests)

    # --- callers

    def request(self, now: Instant, who: Connection, asked: verbs.Request) -> None:
        """Stages a request. Raises what it is refused with."""
        caller = self._callers.get(who)
        if caller is None:
            caller = self._callers[who] = Caller(who)
        msg_id = asked.msg_id
        if not verbs.is_msg_id(msg_id):
            raise ProtocolError("a request's id is 8 to 12 lower-case letters and digits")
        known = self._requests.get(msg_id)
        if known is not None:  # guards: requests
            self._adopt(caller, known)
            return
        past = self._past.get(msg_id)
        if past is not None:
            if past.caller_id != caller.sender_id:
                raise ProtocolError("a request id that another session has used")
            self._out.reply(who.route, past.told)
            return
        if len(caller.requests) >= MAX_UNANSWERED:
            raise ProtocolError(f"a connection may have {MAX_UNANSWERED:,} requests unanswered, and has")
        name = asked.group
        group = self._board.groups.get(name)
        if group is None:
            group = Group(naming.check_name(name, "group"))
        check_body(asked.fmt, asked.body, to_many=False)
        kept = b"" if len(asked.body) > verbs.SPILL_BYTES else asked.body
        self._board.check_room(group, len(kept))
        manned = self._has_worker(group, caller.sender_id)
        if not asked.patient and not manned:
            raise UnknownPeer(f"nobody works for the group '{name}'; start a worker, then ask again; see: zmqbus list")
        self._board.groups[name] = group
        request = Request(msg_id, caller, group, asked.fmt, now.wall_s, kept)
        request.from_name = who.sender_name
        request.from_label = who.session.label if who.session is not None else None
        request.patient = asked.patient
        request.again = asked.again
        request.spilled = len(asked.body) > verbs.SPILL_BYTES
        if not manned:  # guards: requests [off]
            self._board.tell_assignment(request, has_worker=False)
        caller.requests[msg_id] = self._requests[msg_id] = request
        record = Record(
            now.wall_s,
            msg_id,
            "request",
            caller.sender_id,
            request.from_name,
            request.from_label,
            f"@{name}",
            None,
            None,
            verbs.FORMAT_WORDS[asked.fmt],
            asked.body,
        )
        staged = _Staged(self._out.append(record), request, None, len(asked.body))
        self._staged.append(staged)
        if staged.passed:
            self._enter(request)
        else:
            self._board.reserve(request)

    def _adopt(self, caller: Caller, request: Request) -> None:
        """It is said again, over a new connection most likely, which is the one that has to hear of it."""
        before = request.caller
        if before.sender_id != caller.sender_id:
            raise ProtocolError("a request id that another session has used")
        if before is not caller:
            if len(caller.requests) >= MAX_UNANSWERED:
                raise ProtocolError(f"a connection may have {MAX_UNANSWERED:,} requests unanswered, and has")
            del before.requests[request.msg_id]
            caller.requests[request.msg_id] = request
            request.caller = caller
            if request.unassigned:
                self._board.tell_assignment(request, has_worker=False)

    def _has_worker(self, group: Group, sender_id: str) -> bool:
        """Whether anybody works for the group but its caller, or is expected back."""
        own = self._workers.get(sender_id)
        if len(group.workers) > (own is not None and own in group.workers):
            return True
        return self.aftermath.expects_soon(group.name, sender_id)

    def withdraw(self, now: Instant, who: Connection, withdrawn: verbs.Withdraw) -> None:
        """The caller waits for these no longer."""
        caller = self._callers.get(who)
        if caller is not None:
            self._withdraw([caller.requests[one] for one in dict.fromkeys(withdrawn.msg_ids) if one in caller.requests])

    def caller_returned(self, lease: str) -> None:
        """The client that had this lease is back, over another connection, and says again there what it still wants."""
        for caller in (*self._orphans, *self._late):
            if caller.lease == lease:
                caller.returned = True
                if caller.late:
                    caller.until_s = 0.0
                return

    def _withdraw(self, requests: Iterable[Request]) -> None:
        told: dict[Worker, list[str]] = {}
        for request in list(requests):
            if request.worker is not None:
                told.setdefault(request.worker, []).append(request.msg_id)
            self._remove(request)
        for worker, msg_ids in told.items():
            if worker.conn is not None:
                self._out.reply(worker.conn.route, verbs.Withdrawn(tuple(msg_ids)))  # guards: requests

    def _remove(self, request: Request) -> None:
        """It is over, and in no table any more."""
        del self._requests[request.msg_id]
        del request.caller.requests[request.msg_id]
        self._board.take_out(request)
        request.stage = Stage.GONE

    def flush(self) -> None:
        """What an event has changed takes effect: requests go to whoever can take them, or to nobody."""
        while self._board.changed:
            for group in self._board.move():
                if group.impatient and not group.workers and not self.aftermath.expects_soon(group.name):
                    self._refuse_hopeless(group)

    def _refuse_hopeless(self, group: Group) -> None:
        for request in group.hopeless():
            left = f"nobody works for the group '{group.name}' any more; start a worker, then ask again"
            self._fail(request, UnknownPeer(left))

    # --- workers

    def offer(self, now: Instant, who: Connection, offer: verbs.Offer) -> None:
        """A program works for its groups, or takes more or less from now on. Raises what it is refused with."""
        session = who.session
        assert session is not None
        if not who.program:
            raise ProtocolError("only a program can be a worker")
        if not session.groups or len(session.groups) > MAX_GROUPS:
            raise ProtocolError(f"a worker has joined one group at least, and {MAX_GROUPS} at most")
        if len(offer.holding) > MAX_NAMED or len(offer.answered) > MAX_NAMED:
            raise ProtocolError(f"OFFER names {MAX_NAMED:,} requests at most")
        worker = self._workers.get(session.session_id)
        if worker is None:
            worker = self._workers[session.session_id] = Worker(session.session_id)
        worker.credit = min(max(offer.credit, 0), MAX_CREDIT)
        if worker.conn is not who:
            self._reunite(worker, session, who, offer)
        for group in worker.groups:
            if worker.credit:
                group.workers[worker] = None
            else:
                group.workers.pop(worker, None)
        self._board.load_changed(worker)
        self.aftermath.arrived(session.session_id)

    def _reunite(self, worker: Worker, session: Session, who: Connection, offer: verbs.Offer) -> None:
        """A worker has come, or come back: what it has from before stays its own, as far as nobody else has it."""
        self._absent.pop(worker, None)
        died = worker.owner != session.owner and not self._owner_lives(worker.owner)
        worker.owner = session.owner
        worker.conn = who
        self._board.join(worker, session.groups)
        holding, answered = set(offer.holding), set(offer.answered)
        for request in reversed(list(worker.hand.values())):
            if request.msg_id in answered:
                self._board.hand(worker, request)  # guards: failover
            elif request.msg_id not in holding:  # guards: failover [off]
                # It was lost on the way to it; or with the process that was there before this one.
                self._redispatch(worker, request, died=died)
        unwanted = []
        for msg_id in offer.holding:
            if msg_id not in worker.hand and not self._reclaim(worker, msg_id, answered=False):
                unwanted.append(msg_id)
        for msg_id in offer.answered:
            if msg_id not in worker.hand:
                self._reclaim(worker, msg_id, answered=True)
        if unwanted:  # guards: failover [off]
            self._out.reply(who.route, verbs.Withdrawn(tuple(unwanted)))

    def _reclaim(self, worker: Worker, msg_id: str, *, answered: bool) -> bool:
        """It says that it has this request in hand, or has answered it. False if it is not to go on with it."""
        request = self._requests.get(msg_id)
        if request is None or request.stage is Stage.STAGED:
            return self.aftermath.claim(worker, msg_id, answered=answered)
        if request.stage in (Stage.WAITING, Stage.LIMBO) and self._may_have(worker, request):
            self._board.take_out(request)
            self._board.give(worker, request)
            if answered:
                self._board.hand(worker, request)
            request.let_go()
            return True
        if answered and request.stage is Stage.HELD and worker.session_id in request.had:
            self._board.hand(worker, request)  # it was given up, and has the answer: that may be here first
        return False

    def _may_have(self, worker: Worker, request: Request) -> bool:
        return request.group in worker.groups and request.caller.sender_id != worker.session_id

    def answer(self, now: Instant, who: Connection, answer: verbs.Answer) -> None:
        """Stages an answer. Raises what it is refused with."""
        session = who.session
        assert session is not None
        worker = self._workers.get(session.session_id)
        if worker is None or worker.conn is not who:
            raise ProtocolError("ANSWER without an OFFER")
        if self.aftermath.answered(worker, answer.msg_id):
            return  # nobody has asked here yet; when somebody has, the worker is asked for it again, and remembers
        request = self._requests.get(answer.msg_id)
        if request is None or request.stage is Stage.ANSWERED:
            return  # withdrawn, or another was faster
        holder = request.worker
        # guards: requests: only workers that had the request may answer [session.session_id not in request.had or =>]
        if holder is not worker and (session.session_id not in request.had or request.stage is Stage.STAGED):
            raise ProtocolError("an answer to a request that this worker does not have")
        try:
            check_body(answer.fmt, answer.body, to_many=False)
        except ZmqbusError as error:
            if holder is worker:
                # It will not get better, and the caller would wait for ever.
                self._fail(request, type(error)(f"the answer of '{session.name}' is not valid: {error}"), remember=True)
            raise
        if holder is not worker:
            self._out.note(f"{request!r} is answered by {worker!r}, which had been given up")
            if holder is not None and holder.conn is not None:  # guards: failover [off]
                self._out.reply(holder.conn.route, verbs.Withdrawn((request.msg_id,)))
        self._board.take_out(request)
        request.stage = Stage.ANSWERED
        caller = request.caller
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
        record = Record(
            now.wall_s,
            answer_id,
            "answer",
            session.session_id,
            session.name,
            session.label,
            request.from_name,
            caller.sender_id,
            request.msg_id,
            verbs.FORMAT_WORDS[answer.fmt],
            answer.body,
        )
        staged = _Staged(self._out.append(record), request, result, len(answer.body))
        self._staged.append(staged)
        if staged.passed:
            self._end(request, result)
            self._remember(request, result)

    # --- the journal's answer

    @property
    def places(self) -> list[int]:
        """Which of the wake's records are these."""
        return [staged.place for staged in self._staged]

    @property
    def waits_for_journal(self) -> bool:
        """Whether anybody is to hear something only when the wake's records are written."""
        return any(not staged.passed for staged in self._staged)

    def journaled(self, now: Instant, pointers: Sequence[Pointer]) -> None:
        """The wake's records are in the log, at these places: what waits for that goes out, and home."""
        staged, self._staged = self._staged, []
        for one in staged:
            request, pointer = one.request, pointers[one.place]
            if one.answer is None:
                request.pointer = pointer
                if one.passed:
                    if request.stage is Stage.HELD:
                        request.let_go()
                    continue
                self._board.release(request)
                if request.stage is not Stage.GONE:
                    self._enter(request)
                continue
            if not one.passed:
                if request.stage is Stage.GONE:
                    continue
                spilled = one.size_bytes > verbs.SPILL_BYTES
                self._end(request, one.answer._replace(pointer=pointer) if spilled else one.answer)
            # guards: requests [=> self._past.pop(request.msg_id, None)]
            self._remember(request, one.answer._replace(pointer=pointer, body=b""))

    def journal_failed(self, reason: str) -> None:
        """They are not in the log. The callers are told so, but for answers that they have."""
        staged, self._staged = self._staged, []
        for one in staged:
            request = one.request
            if one.passed and one.answer is not None:
                self._past.pop(request.msg_id, None)  # there is no place where it could be had again
                continue
            if one.answer is None and not one.passed:
                self._board.release(request)
            if request.stage is Stage.GONE:
                continue
            if request.worker is not None and request.worker.conn is not None:
                self._out.reply(request.worker.conn.route, verbs.Withdrawn((request.msg_id,)))
            self._fail(request, BrokerUnavailable(reason))

    def _enter(self, request: Request) -> None:
        """A request may be handed out. A worker may have it already, or may yet turn out to have it."""
        self._out.counts.requests_accepted += 1
        # guards: failover [self.aftermath.settle(request.msg_id) if request.again else =>]
        claim = self.aftermath.settle(request.msg_id) if request.again else None
        if claim is not None:
            worker, answered = claim
            if self._may_have(worker, request):
                self._board.give(worker, request)
                if answered:
                    self._board.hand(worker, request)
                request.let_go()
                return
        if request.again and self.aftermath.expects(request.group.name):  # guards: failover [off]
            self._board.in_limbo(request)
        else:
            self._board.wait(request)

    def _end(self, request: Request, told: verbs.Result | verbs.Refused) -> None:
        conn = request.caller.conn
        self._remove(request)
        if conn is not None:
            if told.__class__ is verbs.Result:
                self._out.counts.requests_answered += 1
            self._out.reply(conn.route, told)

    def _fail(self, request: Request, error: ZmqbusError, *, remember: bool = False) -> None:
        refused = verbs.Refused(request.msg_id, error.code, str(error))
        self._out.counts.refuse(refused.code)
        self._end(request, refused)
        if remember:
            self._remember(request, refused)

    def _remember(self, request: Request, told: verbs.Result | verbs.Refused) -> None:
        self._past[request.msg_id] = _Past(request.caller.sender_id, told)
        if len(self._past) > REMEMBERED_RESULTS:
            self._past.popitem(last=False)

    # --- who goes, and who comes back

    def parted(self, now: Instant, who: Connection, *, gone: bool) -> None:
        """A connection has ended. `gone`: in good order, so nobody is expected back."""
        caller = self._callers.pop(who, None)
        if caller is not None and caller.requests:
            caller.conn = None
            if gone:
                self._withdraw(caller.requests.values())
            else:
                caller.until_s = now.mono_s + RETURN_S
                caller.lost = len(caller.requests)
                caller.returned = False
                self._orphans.append(caller)
                self._orphaned += caller.lost
                while self._orphaned > MAX_ORPHANS:
                    self._give_up_caller()
        worker = self._workers.get(who.session.session_id) if who.session is not None else None
        if worker is None or worker.conn is not who:
            return
        worker.conn = None
        self.aftermath.forget(worker)
        worker.place()
        lives = self._owner_lives(worker.owner)
        if gone or not lives:  # guards: failover [on]
            self._give_up(worker, died=not lives)  # guards: failover [not lives => True]
        else:
            worker.until_s = now.mono_s + RETURN_S
            self._absent[worker] = None

    def left(self, session: Session) -> None:
        """A session has left for good, over whichever connection: nothing is kept for its worker."""
        worker = self._workers.get(session.session_id)
        if worker is not None and worker.conn is None:
            self._give_up(worker, died=not self._owner_lives(worker.owner))
        self.aftermath.arrived(session.session_id)

    def silence_changed(self, who: Connection) -> None:
        """A connection has fallen silent, or has been heard again: a silent worker is given nothing more."""
        worker = self._workers.get(who.session.session_id) if who.session is not None else None
        if worker is not None and worker.conn is who:
            self._board.load_changed(worker)

    def _give_up_caller(self) -> None:
        """Keeps nothing more for the first of those that are expected back, but what workers have in hand."""
        caller = self._orphans.popleft()
        self._orphaned -= caller.lost
        caller.late = True
        if caller.returned or not self._owner_lives(caller.owner):  # guards: failover [on]
            self._withdraw(caller.requests.values())
            return
        self._withdraw(
            [one for one in caller.requests.values() if one.worker is None and one.stage is not Stage.ANSWERED]
        )
        if caller.requests:
            self._late[caller] = None

    def _look_after_late(self, now: Instant, caller: Caller) -> None:
        """A caller for which workers are still at work: what for, if it has ended, or wants it no longer?"""
        if caller.requests and caller.returned and not caller.until_s:
            caller.until_s = now.mono_s + RETURN_S  # it is saying its requests again
        elif (caller.returned and now.mono_s >= caller.until_s) or not self._owner_lives(caller.owner):
            self._withdraw(caller.requests.values())
        if not caller.requests:
            del self._late[caller]

    def _give_up(self, worker: Worker, *, died: bool) -> None:
        """Others have to do what a worker had in hand. `died`: its process has ended; else it has given that back."""
        self._absent.pop(worker, None)
        del self._workers[worker.session_id]
        self._board.leave(worker)
        if worker.hand:
            self._out.note(f"{worker!r} is gone; others get what it had")
        for request in reversed(list(worker.hand.values())):
            self._redispatch(worker, request, died=died)

    def _redispatch(self, worker: Worker, request: Request, *, died: bool) -> None:
        """From this worker's hands to the head of the queue."""
        self._board.take_out(request)
        if request.caller.late:
            self._remove(request)  # it was kept for the worker's sake; the caller may say it again
            return
        if died:
            request.tries += 1
            request.had += (worker.session_id,)
        if request.tries >= MAX_TRIES:  # guards: requests [off]
            error = Poisoned(
                f"the processes of {request.tries} workers of the group '{request.group.name}' have ended with this "
                "request in hand, one after the other, and it is given to no more; see why (messages.log has it under "
                f"{request.msg_id}) before you ask again"
            )
            self._out.note(f"{request!r} is refused: {request.tries} workers have died with it")
            self._fail(request, error, remember=True)
            return
        self.redispatched += 1
        self._board.wait(request, front=True)  # guards: requests [, front=True =>]
        if request.patient and not self._has_worker(request.group, request.caller.sender_id):
            self._board.tell_assignment(request, has_worker=False)

    def tick(self, now: Instant) -> None:
        """Gives up whoever has ended, and keeps only so much for whoever has not come back."""
        while self._orphans and now.mono_s >= self._orphans[0].until_s:  # guards: failover
            self._give_up_caller()
        if now.mono_s >= self._owners_due_s:
            self._owners_due_s = now.mono_s + OWNER_LOOK_S
            for worker in list(self._absent):
                if not self._owner_lives(worker.owner):
                    self._give_up(worker, died=True)
                elif now.mono_s >= worker.until_s and not worker.hand:  # guards: failover [and not worker.hand =>]
                    self._give_up(worker, died=False)
            for caller in list(self._late):
                self._look_after_late(now, caller)
            self.aftermath.tick(now)
        for group in self._board.groups.values():
            if group.impatient and len(group.workers) == 1 and not self.aftermath.expects_soon(group.name):
                self._refuse_hopeless(group)  # the one that is left may be the caller itself
