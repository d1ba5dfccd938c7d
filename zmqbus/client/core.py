"""The state machine of a client: `handle(now_s, event)` returns effects. Pure: no sockets, no clock.

Theory of operation
===================

The machine of a connection:

    OFFLINE ──up──▶ GREETING ──WELCOME──▶ READY ──EXPIRED──▶ GREETING
       ▲               │                    │
       └────down───────┴────────────────────┘            any ──DISPLACED, DISCONNECTED, HELLO refused──▶ CLOSED

*Sending.* A message is kept until its outcome is reported, and sent again after every HELLO; its id makes that
harmless. Neighbours that differ only in id and body share one SEND (`coalesce`); repeats go alone. HELLO and all that
waits go in one ZeroMQ message, so a command that sends one thing needs one round trip.

*Receiving.* Messages are handed out in the mailbox's order, which `ReorderBuffer` restores from the two sockets. The
application reports which ones it has taken, and the broker gets one acknowledgement for many. `SeenIds` remembers the
ids of taken messages, so that none of them is handed out twice.

*Groups.* Requests are kept until they are answered, and sent again after every HELLO, as messages are; a HELLO also
names the requests that a worker has in hand. Both are in `requests`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from operator import attrgetter

from zmqbus import errors
from zmqbus.client.coalesce import batches_of
from zmqbus.client.events import (
    Assignment,
    Batch,
    Closed,
    Confirmed,
    Down,
    Effect,
    Event,
    Hand,
    Incoming,
    Noticed,
    Outgoing,
    Published,
    Received,
    Renamed,
    Resolved,
    Response,
    Retune,
    Spool,
    StartWork,
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
from zmqbus.client.reorder import ReorderBuffer
from zmqbus.client.requests import OpenRequests, WorkInHand
from zmqbus.client.seen import SeenIds
from zmqbus.settings import shown_path
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.handlers import handlers_of, handles
from zmqbus.wire.verbs import Role, Scope

__all__ = [  # of `events`, for this module's users
    "Assignment",
    "Batch",
    "Closed",
    "Confirmed",
    "Down",
    "Effect",
    "Event",
    "Hand",
    "Incoming",
    "Noticed",
    "Outgoing",
    "Published",
    "Received",
    "Renamed",
    "Resolved",
    "Response",
    "Retune",
    "Spool",
    "StartWork",
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

#: Unconfirmed messages of a client. The broker's dedup window holds at least as many ids of each sender.
WINDOW_MESSAGES = 1_000
#: Bytes of their bodies: two of the largest.
WINDOW_BYTES = 2 * verbs.MAX_BODY_BYTES
#: Seconds without sending before a PING. After 12 s of silence the broker counts the client as busy
#: (`broker.connections.SILENCE_S`).
PING_S = 4.0


class Phase(Enum):
    """Phase of the connection. CLOSED is final."""

    OFFLINE = "offline"
    GREETING = "greeting"
    READY = "ready"
    CLOSED = "closed"


#: Legal changes of phase. READY follows OFFLINE when a WELCOME that came before a loss is read after it.
TRANSITIONS: dict[Phase, tuple[Phase, ...]] = {
    Phase.OFFLINE: (Phase.OFFLINE, Phase.GREETING, Phase.READY, Phase.CLOSED),
    Phase.GREETING: (Phase.GREETING, Phase.READY, Phase.OFFLINE, Phase.CLOSED),
    Phase.READY: (Phase.READY, Phase.GREETING, Phase.OFFLINE, Phase.CLOSED),
    Phase.CLOSED: (Phase.CLOSED,),
}


class Persona(NamedTuple):
    """The identity of a client, as HELLO carries it."""

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
    named: bool = True  #: the name was chosen; otherwise the session is forgotten with its process


class Displaced(errors.BrokerError):
    """Another process took the session over."""

    code = "displaced"


_TARGET = attrgetter("target")


def _is_for_a_file(batch: verbs.Send) -> bool:
    """Returns whether the body goes into a spool file. Not that of a repeat: the broker may know it already."""
    # guards: retransmission [and not batch.again =>]
    return len(batch.bodies[0]) > verbs.SPILL_BYTES and not batch.again


class ClientCore:
    """One connection to the broker, without its sockets. Not thread-safe."""

    def __init__(self, persona: Persona, release: str, taken: SeenIds | None = None) -> None:
        """`taken`: the messages that were taken before, if that is remembered for longer than this core lives."""
        self.persona = persona
        self.phase = Phase.OFFLINE
        self.welcome: verbs.Welcome | None = None
        self._version = release
        self._out: list[Effect] = []
        self._unconfirmed: dict[str, Outgoing] = {}
        self._unsent: set[str] = set()  # those of them that were never sent, over any connection
        self._unconfirmed_bytes = 0
        self.spools = False  #: the shell can write bodies into a spool file (`Spool`)
        self._spooled: set[str] = set()  # messages whose bodies are in a spool file
        self._awaited: dict[str, None] = {}
        self._requests: dict[str, verbs.Envelope] = {}
        self._sent_s = 0.0
        self._taken_ids = SeenIds() if taken is None else taken
        self._reorder = ReorderBuffer(self._taken_ids, self._hand, self._transmit)
        self._open = OpenRequests(self._transmit)
        self._in_hand = WorkInHand(self._transmit)

    def __repr__(self) -> str:
        return (
            f"<ClientCore {self.persona.name or 'nobody'} {self.phase.value}: {len(self._unconfirmed)} unconfirmed, "
            f"{self._reorder.handed} handed out, {self._reorder.held} held, {self._open!r}, {self._in_hand!r}>"
        )

    # --- calls of the application

    def send(self, message: Outgoing) -> list[Effect]:
        """Sends a message, and keeps it until a `Confirmed` for it."""
        return self.send_all((message,))

    def send_all(self, messages: Iterable[Outgoing]) -> list[Effect]:
        """Sends messages, in this order, and keeps each until a `Confirmed` for it. `room` limits how many."""
        new = {message.msg_id: message for message in messages}
        self._refuse_unfit(new)  # guards: message limits
        self._unconfirmed.update(new)
        self._unconfirmed_bytes += sum([len(message.body) for message in new.values()])
        if self._greeted:
            self._send(new.values())
        else:
            self._unsent.update(new)
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
        """Removes messages that must not be sent, and reports their errors. The broker, or libzmq, would refuse
        everything in the same ZeroMQ message, at every HELLO; and only here it is known which message is at fault."""
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
        self._out.append(Confirmed(tuple(message.msg_id for message in unfit), error))

    def await_answer(self, msg_id: str) -> list[Effect]:
        """Directs the answer to this message to this connection, not to the session's mailbox. Call before sending."""
        self._awaited[msg_id] = None
        if self._greeted:
            self._transmit(verbs.Await(msg_id))
        return self._flush()

    def unawait(self, msg_ids: Iterable[str]) -> list[Effect]:
        """Stops awaiting the answers to these messages; late ones go to the session's mailbox."""
        dropped = tuple(msg_id for msg_id in msg_ids if self._awaited.pop(msg_id, self) is None)
        if dropped and self._greeted:
            self._transmit(verbs.Unawait(dropped))
        return self._flush()

    def ask(self, request: verbs.Request) -> list[Effect]:
        """Sends a request to a group, and keeps it until a `Resolved` for it, or until it is withdrawn. Call only if
        `may_ask`."""
        try:
            verbs.check_fields(request)
        except errors.ZmqbusError as error:
            self._out.append(Resolved(request.msg_id, error))
            return self._flush()
        self._open.add(request, say=self._greeted)
        return self._flush()

    def withdraw(self, msg_ids: Iterable[str]) -> list[Effect]:
        """Withdraws requests: no `Resolved` will come for them."""
        self._open.withdraw(msg_ids, say=self._greeted)
        return self._flush()

    def offer(self, credit: int) -> list[Effect]:
        """Offers to work for the session's groups, with up to `credit` unanswered requests at a time (0: no more). Each
        comes as a `StartWork`; answer it with `answer`."""
        self._in_hand.offer(credit, say=self._greeted)
        return self._flush()

    def answer(self, msg_id: str, fmt: int, body: bytes) -> list[Effect]:
        """Answers the request of a `StartWork`. Does nothing if that was withdrawn, or is answered already."""
        self._in_hand.answer(verbs.Answer(msg_id, fmt, body), say=self._greeted)
        return self._flush()

    def give_back(self) -> list[Effect]:
        """Stops working, and leaves the requests in hand to other workers.

        There is no verb for that. A worker's HELLO names the requests that it has in hand; this sends another HELLO
        that names none.
        """
        if self._in_hand.give_back() and self._greeted:
            self._greet()
        return self._flush()

    def request(self, request: verbs.Envelope) -> list[Effect]:
        """Sends a request to the broker; a `Response` with its ref follows."""
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
        """Whether a HELLO was sent on this connection. WELCOME need not be here yet: the broker reads in order."""
        return self.phase in (Phase.GREETING, Phase.READY)

    @property
    def may_send(self) -> bool:
        """Whether another message fits into the window of unconfirmed ones."""
        return len(self._unconfirmed) < WINDOW_MESSAGES and self._unconfirmed_bytes <= WINDOW_BYTES

    @property
    def room(self) -> tuple[int, int]:
        """How many more messages fit into the window, and how many bytes of bodies; the last one may exceed that."""
        return WINDOW_MESSAGES - len(self._unconfirmed), WINDOW_BYTES - self._unconfirmed_bytes

    @property
    def may_ask(self) -> bool:
        """Whether another request to a group fits into the window. The broker refuses more than 1,000."""
        return self._open.count < WINDOW_MESSAGES and self._open.size_bytes <= WINDOW_BYTES

    @property
    def asked(self) -> int:
        """Number of unanswered requests."""
        return self._open.count

    @property
    def in_hand(self) -> int:
        """Number of requests that this worker has in hand."""
        return self._in_hand.count

    @property
    def unconfirmed(self) -> int:
        """Number of messages without an outcome."""
        return len(self._unconfirmed)

    def taken(self, ticket: Ticket) -> None:
        """Notes that the application has taken these messages. `acknowledge` tells the broker, once for many."""
        self._taken_ids.add_all(ticket.msg_ids)  # guards: client dedup
        if ticket.reply_to is not None:
            self._awaited.pop(ticket.reply_to, None)
        if self.welcome is not None and ticket.lease == self.welcome.lease:
            self._reorder.settle(ticket.number, len(ticket.msg_ids))

    def acknowledge(self) -> list[Effect]:
        """Acknowledges to the broker all messages that were taken since the last time."""
        self._acknowledge()
        return self._flush()

    def _acknowledge(self) -> None:
        if self._reorder.ack_due and self.phase is Phase.READY:
            self._transmit(self._reorder.ack())

    def bye(self) -> list[Effect]:
        """Says BYE, and closes."""
        if self.phase in (Phase.READY, Phase.GREETING):
            self._transmit(verbs.Bye())
        self._enter(Phase.CLOSED)
        return self._flush()

    # --- events

    def handle(self, now_s: float, event: Event) -> list[Effect]:
        """Returns the effects of an event, in order."""
        before = self.phase
        if before is Phase.CLOSED:
            return []
        match event:
            case Received(envelopes):
                for envelope in envelopes:
                    rule = HANDLERS.get(envelope.__class__)
                    if rule is not None and self.phase is not Phase.CLOSED:
                        rule(self, envelope)
            case Published(channel, envelopes):
                for envelope in envelopes:
                    if isinstance(envelope, verbs.Broadcast):
                        # Before WELCOME its place is unknown: perhaps behind messages in the mailbox, from where it
                        # will come, too.
                        # guards: reordering [self.phase is Phase.READY => self.phase is not Phase.OFFLINE]
                        if self.phase is Phase.READY:
                            self._reorder.broadcast(channel, envelope)
                    elif isinstance(envelope, verbs.Notice):
                        # The filter is a prefix, and anybody could publish on a topic of another name.
                        if channel == verbs.channel(Scope.TOPIC, envelope.topic):
                            self._out.append(Noticed(envelope))
                    elif channel == verbs.name_channel(self.persona.name or "") and envelope.__class__ in HANDLERS:
                        HANDLERS[envelope.__class__](self, envelope)
            case Up():
                self._greet()
            case Down():
                self._enter(Phase.OFFLINE)
            case Tick():
                self._tick(now_s)
        # Messages that came a second time are acknowledged here: the application does not see them.
        self._acknowledge()
        for effect in self._out:
            if effect.__class__ is Transmit:
                self._sent_s = now_s
                break
        return self._flush()

    def next_tick_s(self, now_s: float) -> float:
        """Returns the seconds until the next `Tick`."""
        return max(0.0, self._sent_s + PING_S - now_s)

    def _tick(self, now_s: float) -> None:
        if self.phase is Phase.READY and self.welcome is not None and now_s - self._sent_s >= PING_S:
            self._transmit(verbs.Ping(self.welcome.lease, self.persona.name or ""))
        elif now_s - self._sent_s >= PING_S:
            self._sent_s = now_s

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
            self._enter(Phase.CLOSED)
            self._out.append(Closed(error))
            return
        self._enter(Phase.GREETING)
        self._transmit(hello)
        # In one ZeroMQ message with HELLO: one round trip for a command that sends one message.
        for msg_id in self._awaited:
            self._transmit(verbs.Await(msg_id))
        self._send(  # guards: retransmission
            # guards: retransmission [if message.msg_id in self._unsent else message._replace(again=True) =>]
            message if message.msg_id in self._unsent else message._replace(again=True)
            for message in self._unconfirmed.values()
        )
        self._unsent.clear()
        for request in self._requests.values():
            self._transmit(request)
        self._open.repeat()
        self._in_hand.repeat()

    @handles(verbs.Expired)
    def _expired(self, _: verbs.Expired) -> None:
        # In GREETING it answers an envelope older than the HELLO under way.
        if self.phase is Phase.READY:
            self._greet()

    @handles(verbs.Welcome)
    def _welcome(self, welcome: verbs.Welcome) -> None:
        self.welcome = welcome
        self.persona = self.persona._replace(name=welcome.name or self.persona.name)
        self._enter(Phase.READY)
        self._reorder.begin(welcome)
        self._out.append(TakeBack())
        if self.persona.role in (Role.LISTENER, Role.PROGRAM):
            self._out.append(Subscribe(welcome.pub_port, self._channels(welcome)))
        self._out.append(Welcomed(welcome))

    def _channels(self, welcome: verbs.Welcome) -> tuple[bytes, ...]:
        """Returns the channels to subscribe to. The presence channel is last: when the broker sees that subscription,
        all the others are in force."""
        return (
            verbs.EVERYONE,
            verbs.channel(Scope.PROJECT, self.persona.project),
            *(verbs.channel(Scope.TOPIC, topic) for topic in self.persona.topics),
            verbs.name_channel(welcome.name),
            verbs.mark_channel(welcome.lease),
        )

    @handles(verbs.Refused)
    def _refused(self, refused: verbs.Refused) -> None:
        error = errors.from_code(refused.code, refused.text)
        if refused.ref == "hello":
            self._enter(Phase.CLOSED)
            self._out.append(Closed(error))
        elif refused.ref in self._unconfirmed:
            self._confirm((refused.ref,), error)
        elif refused.ref in self._requests:
            del self._requests[refused.ref]
            self._out.append(Response(refused.ref, error))
        elif self._open.pop(refused.ref):
            self._out.append(Resolved(refused.ref, error))

    @handles(verbs.Probe)
    def _probe(self, _: verbs.Probe) -> None:
        if self.phase is Phase.READY and self.welcome is not None:
            self._transmit(verbs.Ping(self.welcome.lease, self.persona.name or ""))

    @handles(verbs.Displaced)
    def _displaced(self, displaced: verbs.Displaced) -> None:
        if displaced.by_pid != self.persona.pid:
            self._enter(Phase.CLOSED)
            self._out.append(Closed(Displaced(f"process {displaced.by_pid} has taken this session over")))

    @handles(verbs.Disconnected)
    def _disconnected(self, _: verbs.Disconnected) -> None:
        self._enter(Phase.CLOSED)
        self._out.append(Closed(None))

    @handles(verbs.Renamed)
    def _renamed(self, renamed: verbs.Renamed) -> None:
        old = self.persona.name or ""
        if renamed.name != old:
            self.persona = self.persona._replace(name=renamed.name)
            self._out.append(Retune(verbs.name_channel(old), verbs.name_channel(renamed.name)))
            self._out.append(Renamed(renamed.name))

    # --- outcomes

    @handles(verbs.Receipt)
    def _receipt(self, receipt: verbs.Receipt) -> None:
        self._confirm(receipt.msg_ids, receipt)

    @handles(verbs.Tally)
    def _tally(self, tally: verbs.Tally) -> None:
        self._confirm((tally.msg_id,), tally)

    def _confirm(self, msg_ids: Iterable[str], outcome: verbs.Receipt | verbs.Tally | errors.ZmqbusError) -> None:
        ended = []
        for msg_id in msg_ids:
            message = self._unconfirmed.pop(msg_id, None)
            if message is not None:
                self._unconfirmed_bytes -= len(message.body)
                ended.append(msg_id)
        if self._unsent:
            self._unsent.difference_update(ended)
        if self._spooled:
            done = self._spooled.intersection(ended)
            if done:
                self._spooled -= done
                self._out.append(Unspool(tuple(done)))
        if ended:
            self._out.append(Confirmed(tuple(ended), outcome))

    @handles(verbs.Sessions, verbs.Done, verbs.Health, verbs.Fetched, verbs.Previews)
    def _response(self, envelope: verbs.Sessions | verbs.Done | verbs.Health | verbs.Fetched) -> None:
        if isinstance(envelope, verbs.Fetched):
            self._reorder.give_back()  # messages that were only peeked at
        request = self._requests.pop(envelope.ref, None)
        if request is not None:
            self._out.append(Response(envelope.ref, envelope))
        own = isinstance(request, verbs.Forget) and request.session_id == self.persona.session_id
        if own and self.persona.role in (Role.LISTENER, Role.PROGRAM):
            # Any further envelope would be answered by EXPIRED, and the HELLO after that would bring the session back.
            self._enter(Phase.CLOSED)
            self._out.append(Closed(None))

    # --- work

    @handles(verbs.Result)
    def _result(self, result: verbs.Result) -> None:
        if self._open.pop(result.msg_id):
            self._out.append(Resolved(result.msg_id, result))

    @handles(verbs.Work)
    def _work(self, work: verbs.Work) -> None:
        # Before WELCOME it was sent to an earlier connection: the broker knows the requests that HELLO names.
        # guards: worker [self.phase is Phase.READY and =>]
        if self.phase is Phase.READY and self._in_hand.take(work.msg_id):
            self._out.append(StartWork(work))

    @handles(verbs.Withdrawn)
    def _withdrawn(self, withdrawn: verbs.Withdrawn) -> None:
        dropped = self._in_hand.drop(withdrawn.msg_ids)
        if dropped:
            self._out.append(Withdrawn(dropped))

    @handles(verbs.Assignment)
    def _assignment(self, assignment: verbs.Assignment) -> None:
        if assignment.msg_id in self._open:
            self._out.append(Assignment(assignment.msg_id, assignment.has_worker))

    # --- messages

    @handles(verbs.Deliver)
    def _deliver(self, batch: verbs.Deliver) -> None:
        self._reorder.deliver(batch)

    @handles(verbs.Beat)
    def _beat(self, beat: verbs.Beat) -> None:
        self._reorder.beat(beat)

    @handles(verbs.Recall)
    def _recall(self, recall: verbs.Recall) -> None:
        # All taken messages are acknowledged before RECALLED; all others go back to the mailbox.
        self._reorder.recall(recall.bcasts)
        self._out.append(TakeBack())
        self._acknowledge()
        self._transmit(verbs.Recalled(recall.generation))

    def _hand(self, batch: Batch, number: int) -> None:
        assert self.welcome is not None
        self._out.append(Hand(Ticket(self.welcome.lease, number, batch.msg_ids, batch.header.reply_to), batch))

    # --- helpers

    def _enter(self, phase: Phase) -> None:
        assert phase in TRANSITIONS[self.phase], f"{self.phase} to {phase}"
        self.phase = phase

    def _transmit(self, envelope: verbs.Envelope) -> None:
        self._out.append(Transmit(envelope))

    def _flush(self) -> list[Effect]:
        out, self._out = self._out, []
        return out


#: Verbs that come by the PUB alone.
BY_CHANNEL = frozenset((verbs.Broadcast, verbs.Notice))
#: The handler of each verb of the broker but those of the PUB alone, which come with their channel (`Published`). Fails
#: here where the table and the handlers differ.
HANDLERS: dict[type, Callable[..., None]] = {
    verb: getattr(part, method)
    for verb, (part, method) in handlers_of(
        (verb.cls for verb in verbs.TABLE if verb.from_broker and verb.cls not in BY_CHANNEL), ClientCore
    ).items()
}
