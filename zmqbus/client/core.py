"""What a client decides. No sockets, no clock: `handle(now_s, event)` returns effects.

Theory of operation
===================

The machine of a connection:

    OFFLINE ──up──▶ GREETING ──WELCOME──▶ READY ──EXPIRED──▶ GREETING
       ▲               │                    │
       └────down───────┴────────────────────┘            any ──DISPLACED, DISCONNECTED, HELLO refused──▶ CLOSED

*Out.* A message is kept until its sender has been told what became of it, and sent again with every HELLO; its id makes
that harmless. Neighbours that are alike are said as one (`gathering`), and again each by itself. HELLO and what waits
go in one wire message, so a command that says one thing needs one round trip.

*In.* Messages are handed out in the mailbox's order, which `Inbound` makes of the two ways on which they come; the
application says which it has taken, and the broker is told, once for many. The ids of what was taken are remembered
(`TakenIds`), for as long as whoever made that lets it, so that nothing that comes again is handed out again.

*Work.* Requests to a group are kept until they are answered, and said again with every HELLO, as messages are; and what
a worker has in hand is named there. `work` has both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from operator import attrgetter

from zmqbus import errors
from zmqbus.client.coalesce import batches_of
from zmqbus.client.events import (
    Answer,
    Answered,
    Assignment,
    Batch,
    Closed,
    Do,
    Down,
    Effect,
    Event,
    Hand,
    Incoming,
    Outgoing,
    Published,
    Received,
    Renamed,
    Response,
    Retune,
    Spool,
    Subscribe,
    TakeBack,
    Tick,
    Ticket,
    Transmit,
    Unspool,
    Up,
    Welcomed,
    Withdrawn,
)
from zmqbus.client.reorder import Inbound
from zmqbus.client.requests import Asked, Hands
from zmqbus.client.seen import TakenIds
from zmqbus.settings import shown_path
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role, Scope

__all__ = [  # of `events`, for the users of this module
    "Answer",
    "Answered",
    "Assignment",
    "Batch",
    "Closed",
    "Do",
    "Down",
    "Effect",
    "Event",
    "Hand",
    "Incoming",
    "Outgoing",
    "Published",
    "Received",
    "Renamed",
    "Response",
    "Retune",
    "Spool",
    "Subscribe",
    "TakeBack",
    "Tick",
    "Ticket",
    "Transmit",
    "Unspool",
    "Up",
    "Welcomed",
    "Withdrawn",
]

#: Messages that a client has on the way and not confirmed. The broker remembers ids for at least as many of each.
WINDOW_MESSAGES = 1_000
#: Bytes of their bodies: two of the largest may be under way.
WINDOW_BYTES = 2 * verbs.MAX_BODY_BYTES
#: Without traffic for so long, a ping. After 12 s the broker counts it as busy (`broker.core.SILENCE_S`).
PING_S = 4.0


class Phase(Enum):
    """Where the machine is."""

    OFFLINE = "offline"
    GREETING = "greeting"
    READY = "ready"
    CLOSED = "closed"


class Persona(NamedTuple):
    """Who a client is: what HELLO says."""

    role: Role
    session_id: str | None = None
    token: str | None = None
    name: str | None = None
    label: str | None = None
    cwd: str = ""
    project: str = ""
    pid: int = 0
    owner: str = ""
    topics: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    named: bool = True  #: somebody chose the name; else the session is forgotten with its process


class Displaced(errors.BrokerError):
    """Another process took the session over."""

    code = "displaced"


_TARGET = attrgetter("target")


def _is_for_a_file(batch: verbs.Send) -> bool:
    """Whether its body is put down in a file. What was said before goes along: the broker may know it."""
    # guards: retransmission [and not batch.again =>]
    return len(batch.bodies[0]) > verbs.SPILL_BYTES and not batch.again


class ClientCore:
    """One connection to the broker, without its sockets. Not thread-safe."""

    def __init__(self, persona: Persona, release: str, taken: TakenIds | None = None) -> None:
        """`taken`: what the application has taken before, where that is remembered for longer than this core lives."""
        self.persona = persona
        self.phase = Phase.OFFLINE
        self.welcome: verbs.Welcome | None = None
        self._version = release
        self._out: list[Effect] = []
        self._unconfirmed: dict[str, Outgoing] = {}
        self._unsaid: set[str] = set()  # those of them that were never transmitted, over no connection
        self._unconfirmed_bytes = 0
        self.spools = False  #: whoever acts for it can put bodies down in a file (`Spool`)
        self._spooled: set[str] = set()  # messages whose bodies are in one
        self._awaited: dict[str, None] = {}
        self._requests: dict[str, verbs.Envelope] = {}
        self._spoke_s = 0.0
        self._taken_ids = TakenIds() if taken is None else taken
        self._inbound = Inbound(self._taken_ids, self._hand, self._transmit)
        self._asked = Asked(self._transmit)
        self._hands = Hands(self._transmit)

    def __repr__(self) -> str:
        return (
            f"<ClientCore {self.persona.name or 'nobody'} {self.phase.value}: {len(self._unconfirmed)} unconfirmed, "
            f"{self._inbound.handed} handed out, {self._inbound.held} held, {self._asked!r}, {self._hands!r}>"
        )

    # --- what the application says

    def send(self, message: Outgoing) -> list[Effect]:
        """Sends a message, and keeps it until an `Answer` for it."""
        return self.send_all((message,))

    def send_all(self, messages: Iterable[Outgoing]) -> list[Effect]:
        """Sends messages, in this order, and keeps each until an `Answer` for it. `room` says how many there may be."""
        new = {message.msg_id: message for message in messages}
        self._refuse_unfit(new)  # guards: message limits
        self._unconfirmed.update(new)
        self._unconfirmed_bytes += sum([len(message.body) for message in new.values()])
        if self._greeted:
            self._send(new.values())
        else:
            self._unsaid.update(new)
        return self._flush()

    def _send(self, messages: Iterable[Outgoing]) -> None:
        # A spool file is for one WELCOME.
        may_spool = self.spools and self.phase is Phase.READY
        for batch in batches_of(messages):
            if may_spool and _is_for_a_file(batch):
                self._spooled.update(batch.msg_ids)
                self._out.append(Spool(batch))
            else:
                self._out.append(Transmit(batch))

    def _refuse_unfit(self, new: dict[str, Outgoing]) -> None:
        """Takes out what must not be said, and answers it. The broker, or libzmq, would refuse all that goes with it,
        at every HELLO; and here alone it is known which one it is."""
        for target in set(map(_TARGET, new.values())):
            try:
                verbs.check_target(target)
            except errors.ZmqbusError as error:
                self._answer_unfit(new, [message for message in new.values() if message.target == target], error)
        for message in [message for message in new.values() if message.reply_to is not None]:
            try:
                verbs.check_fields(verbs.Send.one(*message))
            except errors.ZmqbusError as error:
                self._answer_unfit(new, [message], error)

    def _answer_unfit(self, new: dict[str, Outgoing], unfit: list[Outgoing], error: errors.ZmqbusError) -> None:
        for message in unfit:
            del new[message.msg_id]
        self._out.append(Answer(tuple(message.msg_id for message in unfit), error))

    def await_answer(self, msg_id: str) -> list[Effect]:
        """The answer to this message comes here, and not to the session's mailbox. To be said before it is sent."""
        self._awaited[msg_id] = None
        if self._greeted:
            self._transmit(verbs.Await(msg_id))
        return self._flush()

    def unawait(self, msg_ids: Iterable[str]) -> list[Effect]:
        """The answers to these messages are awaited here no longer; what still comes goes to the session's mailbox."""
        dropped = tuple(msg_id for msg_id in msg_ids if self._awaited.pop(msg_id, self) is None)
        if dropped and self._greeted:
            self._transmit(verbs.Unawait(dropped))
        return self._flush()

    def ask(self, request: verbs.Request) -> list[Effect]:
        """Asks a group for something, and keeps the request until an `Answered` for it, or until it is withdrawn.
        `may_ask` says whether there is room for it."""
        try:
            verbs.check_fields(request)
        except errors.ZmqbusError as error:
            self._out.append(Answered(request.msg_id, error))
            return self._flush()
        self._asked.add(request, say=self._greeted)
        return self._flush()

    def withdraw(self, msg_ids: Iterable[str]) -> list[Effect]:
        """The answers to these requests are not wanted any more: no `Answered` will come for them."""
        self._asked.withdraw(msg_ids, say=self._greeted)
        return self._flush()

    def offer(self, credit: int) -> list[Effect]:
        """Works for the session's groups, with up to `credit` unanswered requests at a time (0: takes no more); each
        comes as a `Do`, and is answered with `answer`."""
        self._hands.offer(credit, say=self._greeted)
        return self._flush()

    def answer(self, msg_id: str, fmt: int, body: bytes) -> list[Effect]:
        """Answers a request that a `Do` has brought. Nothing happens if it was withdrawn, or is answered already."""
        self._hands.answer(verbs.Answer(msg_id, fmt, body), say=self._greeted)
        return self._flush()

    def give_back(self) -> list[Effect]:
        """Works no more, and does not answer what it has in hand: other workers may have that.

        No verb says so. A worker that says HELLO names what it has in hand; this one says it again, and names nothing.
        """
        if self._hands.give_back() and self._greeted:
            self._greet()
        return self._flush()

    def request(self, request: verbs.Envelope) -> list[Effect]:
        """Asks the broker for something; a `Response` with its ref follows."""
        try:
            verbs.check_fields(request)
        except errors.ZmqbusError as error:
            self._out.append(Response(request.ref, error))  # type: ignore[union-attr]
            return self._flush()
        self._requests[request.ref] = request  # type: ignore[union-attr]
        if self._greeted:
            self._transmit(request)
        return self._flush()

    @property
    def _greeted(self) -> bool:
        """Whether what is said now comes behind a HELLO. WELCOME need not be here yet: the broker takes it in order."""
        return self.phase in (Phase.GREETING, Phase.READY)

    @property
    def may_send(self) -> bool:
        """Whether another message fits what may be unconfirmed. More is an error of the caller's, and memory."""
        return len(self._unconfirmed) < WINDOW_MESSAGES and self._unconfirmed_bytes <= WINDOW_BYTES

    @property
    def room(self) -> tuple[int, int]:
        """How many more messages may be unconfirmed, and how many bytes of their bodies; the last may go over that."""
        return WINDOW_MESSAGES - len(self._unconfirmed), WINDOW_BYTES - self._unconfirmed_bytes

    @property
    def may_ask(self) -> bool:
        """Whether another request fits what may be unanswered. The broker refuses more than 1,000."""
        return self._asked.count < WINDOW_MESSAGES and self._asked.size_bytes <= WINDOW_BYTES

    @property
    def asked(self) -> int:
        """Requests that are not answered."""
        return self._asked.count

    @property
    def in_hand(self) -> int:
        """Requests that the application has been given to work on, and has not answered."""
        return self._hands.count

    @property
    def unconfirmed(self) -> int:
        """Messages whose fate is open."""
        return len(self._unconfirmed)

    def taken(self, ticket: Ticket) -> None:
        """The application has taken these messages. `acknowledge` tells the broker, once for many."""
        self._taken_ids.add_all(ticket.msg_ids)  # guards: client dedup
        if ticket.reply_to is not None:
            self._awaited.pop(ticket.reply_to, None)
        if self.welcome is not None and ticket.lease == self.welcome.lease:
            self._inbound.settle(ticket.number, len(ticket.msg_ids))

    def acknowledge(self) -> list[Effect]:
        """The acknowledgement of all that was taken since the last one."""
        self._acknowledge()
        return self._flush()

    def _acknowledge(self) -> None:
        if self._inbound.ack_due and self.phase is Phase.READY:
            self._transmit(self._inbound.ack())

    def bye(self) -> list[Effect]:
        """Leaves in good order."""
        if self.phase in (Phase.READY, Phase.GREETING):
            self._transmit(verbs.Bye())
        self.phase = Phase.CLOSED
        return self._flush()

    # --- what happens

    def handle(self, now_s: float, event: Event) -> list[Effect]:
        """What is to be done about an event, in order."""
        before = self.phase
        if before is Phase.CLOSED:
            return []
        match event:
            case Received(envelopes):
                for envelope in envelopes:
                    rule = _TABLE.get(envelope.__class__)
                    if rule is not None and self.phase is not Phase.CLOSED:
                        rule(self, envelope)
            case Published(channel, envelopes):
                for envelope in envelopes:
                    if isinstance(envelope, verbs.Broadcast):
                        # Without a lease it does not know whether it is for it, and where its place is: behind what
                        # waits in the mailbox, perhaps. It comes from there.
                        # guards: reordering [self.phase is Phase.READY => self.phase is not Phase.OFFLINE]
                        if self.phase is Phase.READY:
                            self._inbound.broadcast(channel, envelope)
                    elif channel == verbs.name_channel(self.persona.name or "") and envelope.__class__ in _TABLE:
                        _TABLE[envelope.__class__](self, envelope)
            case Up():
                self._greet()
            case Down():
                self.phase = Phase.OFFLINE
            case Tick():
                self._tick(now_s)
        # What came a second time is acknowledged here: the application hears nothing of it, and may be silent for long.
        self._acknowledge()
        for effect in self._out:
            if effect.__class__ is Transmit:
                self._spoke_s = now_s
                break
        return self._flush()

    def next_tick_s(self, now_s: float) -> float:
        """Seconds until `Tick` is wanted."""
        return max(0.0, self._spoke_s + PING_S - now_s)

    def _tick(self, now_s: float) -> None:
        if self.phase is Phase.READY and self.welcome is not None and now_s - self._spoke_s >= PING_S:
            self._transmit(verbs.Ping(self.welcome.lease, self.persona.name or ""))
        elif now_s - self._spoke_s >= PING_S:
            self._spoke_s = now_s

    # --- connection

    def _greet(self) -> None:
        persona = self.persona
        hello = verbs.Hello(
            verbs.VERSION,
            self._version,
            persona.role,
            persona.session_id,
            persona.token,
            persona.name,
            persona.label,
            shown_path(persona.cwd),
            persona.project,
            persona.pid,
            persona.owner,
            persona.topics,
            persona.groups,
            self.welcome.lease if self.welcome is not None else None,
            persona.named,
        )
        try:
            verbs.check_fields(hello)
        except errors.ZmqbusError as error:
            self.phase = Phase.CLOSED
            self._out.append(Closed(error))
            return
        self.phase = Phase.GREETING
        self._transmit(hello)
        # In one wire message with HELLO: one round trip for a command that has one thing to say.
        for msg_id in self._awaited:
            self._transmit(verbs.Await(msg_id))
        self._send(  # guards: retransmission
            # guards: retransmission [if message.msg_id in self._unsaid else message._replace(again=True) =>]
            message if message.msg_id in self._unsaid else message._replace(again=True)
            for message in self._unconfirmed.values()
        )
        self._unsaid.clear()
        for request in self._requests.values():
            self._transmit(request)
        self._asked.repeat()
        self._hands.repeat()

    def _expired(self, _: verbs.Expired) -> None:
        # While greeting, it answers something older than the HELLO that is under way.
        if self.phase is Phase.READY:
            self._greet()

    def _welcome(self, welcome: verbs.Welcome) -> None:
        self.welcome = welcome
        self.persona = self.persona._replace(name=welcome.name or self.persona.name)
        self.phase = Phase.READY
        self._inbound.begin(welcome)
        self._out.append(TakeBack())
        if self.persona.role in (Role.LISTENER, Role.PROGRAM):
            self._out.append(Subscribe(welcome.pub_port, self._channels(welcome)))
        self._out.append(Welcomed(welcome))

    def _channels(self, welcome: verbs.Welcome) -> tuple[bytes, ...]:
        """What the session follows. The mark comes last: the broker sees it when all the others are in force."""
        return (
            verbs.EVERYONE,
            verbs.channel(Scope.PROJECT, self.persona.project),
            *(verbs.channel(Scope.TOPIC, topic) for topic in self.persona.topics),
            verbs.name_channel(welcome.name),
            verbs.mark_channel(welcome.lease),
        )

    def _refused(self, refused: verbs.Refused) -> None:
        error = errors.from_code(refused.code, refused.text)
        if refused.ref == "hello":
            self.phase = Phase.CLOSED
            self._out.append(Closed(error))
        elif refused.ref in self._unconfirmed:
            self._confirm((refused.ref,), error)
        elif refused.ref in self._requests:
            del self._requests[refused.ref]
            self._out.append(Response(refused.ref, error))
        elif self._asked.pop(refused.ref):
            self._out.append(Answered(refused.ref, error))

    def _probe(self, _: verbs.Probe) -> None:
        if self.phase is Phase.READY and self.welcome is not None:
            self._transmit(verbs.Ping(self.welcome.lease, self.persona.name or ""))

    def _displaced(self, displaced: verbs.Displaced) -> None:
        if displaced.by_pid != self.persona.pid:
            self.phase = Phase.CLOSED
            self._out.append(Closed(Displaced(f"process {displaced.by_pid} has taken this session over")))

    def _disconnected(self, _: verbs.Disconnected) -> None:
        self.phase = Phase.CLOSED
        self._out.append(Closed(None))

    def _renamed(self, renamed: verbs.Renamed) -> None:
        old = self.persona.name or ""
        if renamed.name != old:
            self.persona = self.persona._replace(name=renamed.name)
            self._out.append(Retune(verbs.name_channel(old), verbs.name_channel(renamed.name)))
            self._out.append(Renamed(renamed.name))

    # --- what became of what was sent

    def _receipt(self, receipt: verbs.Receipt) -> None:
        self._confirm(receipt.msg_ids, receipt)

    def _tally(self, tally: verbs.Tally) -> None:
        self._confirm((tally.msg_id,), tally)

    def _confirm(self, msg_ids: Iterable[str], outcome: verbs.Receipt | verbs.Tally | errors.ZmqbusError) -> None:
        ended = []
        for msg_id in msg_ids:
            message = self._unconfirmed.pop(msg_id, None)
            if message is not None:
                self._unconfirmed_bytes -= len(message.body)
                ended.append(msg_id)
        if self._unsaid:
            self._unsaid.difference_update(ended)
        if self._spooled:
            done = self._spooled.intersection(ended)
            if done:
                self._spooled -= done
                self._out.append(Unspool(tuple(done)))
        if ended:
            self._out.append(Answer(tuple(ended), outcome))

    def _response(self, envelope: verbs.Sessions | verbs.Done | verbs.Health | verbs.Fetched) -> None:
        if isinstance(envelope, verbs.Fetched):
            self._inbound.give_back()  # what was only looked at
        request = self._requests.pop(envelope.ref, None)
        if request is not None:
            self._out.append(Response(envelope.ref, envelope))
        own = isinstance(request, verbs.Forget) and request.session_id == self.persona.session_id
        if own and self.persona.role in (Role.LISTENER, Role.PROGRAM):
            # Whatever it said from here on would be answered by EXPIRED, and the next HELLO bring the session back.
            self.phase = Phase.CLOSED
            self._out.append(Closed(None))

    # --- work

    def _result(self, result: verbs.Result) -> None:
        if self._asked.pop(result.msg_id):
            self._out.append(Answered(result.msg_id, result))

    def _work(self, work: verbs.Work) -> None:
        # Before WELCOME it is the broker's word to a connection that has ended since: it knows what HELLO named.
        # guards: worker [self.phase is Phase.READY and =>]
        if self.phase is Phase.READY and self._hands.take(work.msg_id):
            self._out.append(Do(work))

    def _withdrawn(self, withdrawn: verbs.Withdrawn) -> None:
        dropped = self._hands.drop(withdrawn.msg_ids)
        if dropped:
            self._out.append(Withdrawn(dropped))

    def _assignment(self, assignment: verbs.Assignment) -> None:
        if assignment.msg_id in self._asked:
            self._out.append(Assignment(assignment.msg_id, assignment.has_worker))

    # --- messages

    def _deliver(self, batch: verbs.Deliver) -> None:
        self._inbound.deliver(batch)

    def _beat(self, beat: verbs.Beat) -> None:
        self._inbound.beat(beat)

    def _recall(self, recall: verbs.Recall) -> None:
        # Everything taken so far is acknowledged before the answer, and everything else is the mailbox's again.
        self._inbound.recall(recall.bcasts)
        self._out.append(TakeBack())
        self._acknowledge()
        self._transmit(verbs.Recalled(recall.generation))

    def _hand(self, batch: Batch, number: int) -> None:
        assert self.welcome is not None
        self._out.append(Hand(Ticket(self.welcome.lease, number, batch.msg_ids, batch.header.reply_to), batch))

    # --- plumbing

    def _transmit(self, envelope: verbs.Envelope) -> None:
        self._out.append(Transmit(envelope))

    def _flush(self) -> list[Effect]:
        out, self._out = self._out, []
        return out


#: What the broker may say.
_TABLE: dict[type, Callable[..., None]] = {
    verbs.Welcome: ClientCore._welcome,
    verbs.Refused: ClientCore._refused,
    verbs.Expired: ClientCore._expired,
    verbs.Probe: ClientCore._probe,
    verbs.Displaced: ClientCore._displaced,
    verbs.Disconnected: ClientCore._disconnected,
    verbs.Renamed: ClientCore._renamed,
    verbs.Deliver: ClientCore._deliver,
    verbs.Receipt: ClientCore._receipt,
    verbs.Tally: ClientCore._tally,
    verbs.Sessions: ClientCore._response,
    verbs.Done: ClientCore._response,
    verbs.Health: ClientCore._response,
    verbs.Fetched: ClientCore._response,
    verbs.Previews: ClientCore._response,
    verbs.Recall: ClientCore._recall,
    verbs.Beat: ClientCore._beat,
    verbs.Work: ClientCore._work,
    verbs.Result: ClientCore._result,
    verbs.Withdrawn: ClientCore._withdrawn,
    verbs.Assignment: ClientCore._assignment,
}
