"""The broker's decisions, without sockets, clock, files or randomness: `handle(now, event)` returns effects.

Theory of operation
===================

A connection is a small state machine (`ConnectionState`), and `verbs.TABLE` lists the roles that may send each verb.
A verb that the role may not send is answered as an error of the peer; nothing is dropped silently, and no envelope of
one peer can harm another. An unregistered connection may only send HELLO and FORGET (`Verb.unregistered`): any other
verb is answered by EXPIRED, upon which a correct client sends HELLO and repeats its unconfirmed messages.

Each verb's handler stands beside `@handles(verbs.X)` in the module of its subject: `connections` (HELLO, PING, BYE),
`directory` (LIST, STATUS), `membership` (RENAME, DISCONNECT, FORGET, REMOVE), `admission` (SEND), `delivery`,
`fetch`, `reply_routing`, `agent_states` (SETSTATE, UNTIL), `groups.requests`. `retention` does what no client asks
for. This module dispatches the events to them, and keeps the order of a wake: decide, journal, commit, send. A
message goes through four steps:

1. *pending* (`admission`): checked, its receivers found. The effect is `Append`; nobody has been sent anything yet.
2. *journaled*: the shell has written the wake's records in one write and reports it (`Journaled`). The message has a
   place in the journal and a number in each receiver's mailbox, and is sent to the receivers with credit (`delivery`).
3. *outcome sent*: the receiver's application has acknowledged it (the sender gets `delivered`), or the store has
   committed it (`Committed`; the sender gets `queued`): at once if the receiver is away, after a second if it does not
   acknowledge.
4. *done*: acknowledged, and removed from mailbox and store.

Messages that were sent together take these steps together, as a batch (`in_flight.Batch`), as long as they have the
same outcome; a single message is a batch of one.

If the journal cannot be written, step 2 does not happen (`JournalFailed`): the messages are refused, and the
mailboxes are unchanged. If the store cannot commit, the messages of this wake that it should have kept are removed
again and refused (`CommitFailed`). A sender repeats messages without an outcome; the dedup window (`dedup`) makes
that harmless. `fetch` is the one detour: a command that reads messages in place of the listener. Apart from all this,
`groups.requests` handles work that is sent to a group and answered by one of its workers. It is no mail, and need not
be safe before it is passed on (`may_speak_first`).

A broker may die at any instant. All that it has confirmed holds at the next broker (`recover`), which restores sessions
and their mail from the store. Clients repeat all that was not confirmed. There is no third case.

Time is an argument, an `Instant`: its monotonic clock serves intervals, its steady clock ages, and its wall clock only
timestamps for people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zmqbus.broker.admission import Admission
from zmqbus.broker.agent_states import AgentStates
from zmqbus.broker.body_checks import Spooled, no_spools
from zmqbus.broker.connections import Connections
from zmqbus.broker.delivery import Delivery
from zmqbus.broker.directory import Directory
from zmqbus.broker.events import (
    CommitFailed,
    Committed,
    Effect,
    Event,
    Halt,
    Instant,
    Journaled,
    JournalFailed,
    Malformed,
    Marked,
    Outbox,
    Received,
    Tick,
    Unmarked,
    Unreachable,
)
from zmqbus.broker.fetch import Fetches
from zmqbus.broker.groups.requests import RequestBroker
from zmqbus.broker.membership import Membership
from zmqbus.broker.registry import Registry
from zmqbus.broker.reply_routing import ReplyRouting
from zmqbus.broker.retention import Retention
from zmqbus.broker.sessions import Connection
from zmqbus.broker.storage.api import Store
from zmqbus.broker.takeover import Takeover
from zmqbus.errors import ProtocolError, ZmqbusError
from zmqbus.journal.record import Earlier
from zmqbus.wire import verbs
from zmqbus.wire.handlers import handlers_of, handles
from zmqbus.wire.verbs import Pointer

#: Pause between two `Tick`s while messages are in flight: a tenth of the second that receivers have to acknowledge.
BUSY_TICK_S = 0.1
#: Pause otherwise, as long as anybody is connected: silence is measured in seconds.
QUIET_TICK_S = 2.0


class BrokerCore:
    """The broker without its sockets: `handle` takes all its input. Not thread-safe."""

    def __init__(
        self,
        *,
        epoch: str,
        release: str,
        store: Store,
        new_token: Callable[[], str],
        pub_port: int = 0,
        sent_before: Callable[[str], Earlier | None] = lambda msg_id: None,
        owner_lives: Callable[[str], bool] = lambda owner: True,
        last_id: str = "",
        read_spooled: Callable[[bytes, Spooled], bytes] = no_spools,
    ) -> None:
        """Creates a core that knows nothing yet; call `recover` first.

        `last_id` is the last message id in the journal, and `sent_before` looks an id up there. `read_spooled` reads
        the file of a SPOOLED message, or raises the reason why it cannot. `owner_lives` tells whether the owner named
        in a HELLO still runs.
        """
        self.epoch = epoch
        self.release = release
        self.pub_port = pub_port
        self.registry = Registry(store)
        self._store = store
        self._out = Outbox()
        self.delivery = Delivery(self._out, epoch, store, self.registry.lingering)
        self.reply_routing = ReplyRouting(self.delivery, store, self._out)
        self.takeover = Takeover(self.registry, self.delivery, self._out, owner_lives, sent_before)
        self.admission = Admission(
            self.registry,
            self.delivery,
            self.reply_routing,
            self.takeover,
            self._out,
            sent_before,
            last_id,
            read_spooled,
        )
        self.requests = RequestBroker(self._out, epoch, owner_lives)
        self.fetches = Fetches(self.registry, self.delivery, self.reply_routing, self._out)
        self.retention = Retention(
            self.registry, self.delivery, self.reply_routing, store, self._out, owner_lives, self.takeover
        )
        self.agent_states = AgentStates(self._out, self.registry, self.admission, self.takeover)
        self.connections = Connections(
            self._out,
            self.registry,
            self.delivery,
            self.admission,
            self.reply_routing,
            self.fetches,
            self.requests,
            self.takeover,
            self.retention,
            self.agent_states,
            epoch=epoch,
            release=release,
            pub_port=pub_port,
            new_token=new_token,
            owner_lives=owner_lives,
        )
        self.directory = Directory(
            self._out,
            self.registry,
            self.delivery,
            self.admission,
            self.requests,
            self.takeover,
            self.agent_states,
            epoch=epoch,
            release=release,
        )
        self.membership = Membership(
            self._out,
            self.registry,
            self.delivery,
            self.connections,
            self.requests,
            self.takeover,
            self.retention,
            self.agent_states,
        )
        self._started = False
        parts = {type(part): part for part in (self, *vars(self).values())}
        self._handlers: dict[type, Callable[..., None]] = {
            verb: getattr(parts[part], method) for verb, (part, method) in HANDLERS.items()
        }

    def __repr__(self) -> str:
        return f"<BrokerCore {self.registry!r}, {self.delivery.unsettled} unsettled, broadcast {self.delivery.bcast}>"

    # --- events

    def handle(self, now: Instant, event: Event) -> list[Effect]:
        """Returns the effects of an event, in order. No behaviour of a peer makes it raise."""
        if not self._started:
            self._started = True
            self.directory.start(now)
        match event:
            case Received(route, envelopes):
                self._receive(now, route, envelopes)
            case Journaled(pointers):
                # guards: durability [=> self._journaled(now, pointers); self.delivery.committed(now)]
                self._journaled(now, pointers)
            case Tick():
                self._tick(now)
            case JournalFailed(reason):
                self._out.appended = 0
                self.admission.journal_failed(reason)
                self.requests.journal_failed(reason)  # guards: requests
            case Committed():
                self.delivery.committed(now)
                self.membership.renames_kept(now, None)
                self.fetches.committed(now)  # guards: waiter
            case CommitFailed(reason):
                self.delivery.commit_failed(reason)  # guards: durability [=> self.delivery.committed(now)]
                # guards: sessions: announce a name once it is stored [reason => None]
                self.membership.renames_kept(now, reason)
            case Marked(lease):
                self.connections.subscribed(lease)
            case Unmarked(lease):
                self.connections.unsubscribed(now, lease)
            case Unreachable(route):
                self.connections.unreachable(now, route)
            case Malformed(route, reason):
                self._out.counts.refuse(ProtocolError.code)
                self._out.reply(route, verbs.Refused("", ProtocolError.code, reason))
        self.requests.flush()
        return self._out.take()

    def _journaled(self, now: Instant, pointers: Sequence[Pointer]) -> None:
        self._out.appended = 0
        of_requests = self.requests.places
        if not of_requests:
            self.admission.journaled(now, pointers)
            return
        if len(of_requests) < len(pointers):
            others = set(range(len(pointers))).difference(of_requests)
            self.admission.journaled(now, [pointers[place] for place in sorted(others)])
        self.requests.journaled(now, pointers)

    def recover(self, now: Instant) -> list[Effect]:
        """Restores the state that an earlier broker left. Call it once, before any event."""
        self.retention.recover(now)
        self.admission.recover(now)
        self.requests.recover(now, self.registry.sessions.values())
        self.agent_states.recover(now)
        return self._out.take()

    def _tick(self, now: Instant) -> None:
        self.delivery.tick(now)
        self.connections.tick(now)
        self.fetches.tick(now)
        self.reply_routing.tick(now)
        self.admission.tick(now)
        self.requests.tick(now)
        self.takeover.tick(now)  # guards: takeover
        self.agent_states.tick(now)
        self.retention.tick(now)

    # --- dispatch

    def _receive(self, now: Instant, route: bytes, envelopes: list[verbs.Envelope]) -> None:
        connection = self.registry.connections.get(route)
        if connection is not None:
            connection.last_seen_s = now.mono_s
            if connection.silent:
                connection.silent = False
                self.requests.silence_changed(connection)
        for envelope in envelopes:
            if envelope.__class__ not in (connection.allowed if connection is not None else verbs.UNREGISTERED):
                if isinstance(envelope, verbs.Faulty) and (connection is not None or envelope.refs == ("hello",)):
                    self._out.refuse_all(route, envelope.refs, ProtocolError(envelope.reason))
                    if envelope.refs == ("hello",):
                        return
                    continue
                if connection is None:
                    # One EXPIRED is enough: the client says HELLO and repeats the rest of this message itself.
                    self._out.reply(route, verbs.Expired())
                    return
                verb = type(envelope).__name__.upper()
                misplaced = ProtocolError(f"{verb} is not for a {connection.state.value}; see docs/protocol.md")
                self._out.refuse_all(route, verbs.refs_of(envelope.__class__, envelope), misplaced)
                continue
            try:
                self._handlers[envelope.__class__](now, connection or route, envelope)
            except ZmqbusError as error:
                self._out.refuse_all(route, verbs.refs_of(envelope.__class__, envelope), error)
                if envelope.__class__ is verbs.Hello:
                    return  # after a refused HELLO the other envelopes have no session
            connection = self.registry.connections.get(route)

    @handles(verbs.Ack)
    def _ack(self, now: Instant, who: Connection, ack: verbs.Ack) -> None:
        self.delivery.acknowledge(now, who, ack)
        self.fetches.advance(now, who)

    @handles(verbs.Stop)
    def _stop(self, now: Instant, who: Connection, stop: verbs.Stop) -> None:
        self._out.reply(who.route, verbs.Done(stop.ref, "stopping"))
        self._out.put(Halt())

    # --- questions of the shell

    def next_tick_s(self) -> float | None:
        """Returns how long the shell may sleep before the next `Tick`, in seconds; None: until there is input."""
        if (
            self.delivery.waits
            or self.delivery.waits_for_commit
            or self.reply_routing.expects
            or self.requests.needs_tick
            or self.agent_states.needs_tick
        ):
            return BUSY_TICK_S
        if self.registry.connections or self.retention.needs_tick:
            return QUIET_TICK_S
        return None

    @property
    def may_speak_first(self) -> bool:
        """Whether the effects of this wake may be sent before its records are written.

        True if none of them depends on the records or on the store.
        """
        return not (
            self.admission.waits_for_journal
            or self.requests.waits_for_journal
            or self.delivery.waits_for_commit
            or self._store.pending
        )

    @property
    def idle(self) -> bool:
        """Whether nobody is connected, and nothing would be lost or left undone if the broker ended now."""
        if self.registry.connections:
            return False
        return not self.delivery.unsettled and not self._store.pending and self.requests.idle

    def oldest_segment(self) -> int | None:
        """Returns the oldest segment of the journal that is still needed, None if none is, before one is deleted."""
        parts = (self.delivery, self._store, self.requests)  # guards: requests [, self.requests =>]
        return min((number for part in parts if (number := part.oldest_segment()) is not None), default=None)

    def oldest_under_way(self) -> int | None:
        """Returns the oldest segment of the journal needed by messages or requests that are not in the store."""
        found = (self.delivery.oldest_segment(), self.requests.oldest_segment())
        return min((number for number in found if number is not None), default=None)


#: Which class and method handles each verb that a client may send. Fails here where the table and the handlers differ.
HANDLERS = handlers_of(
    (verb.cls for verb in verbs.TABLE if not verb.from_broker),
    BrokerCore,
    Connections,
    Directory,
    Membership,
    Admission,
    AgentStates,
    Delivery,
    Fetches,
    ReplyRouting,
    RequestBroker,
)
