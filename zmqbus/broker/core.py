"""The broker's decisions, without sockets, clock, files or randomness: `handle(now, event)` returns effects.

Theory of operation
===================

A connection is a small state machine (`ConnectionState`), and `verbs.TABLE` lists the roles that may send each verb.
A verb that the role may not send is answered as an error of the peer; nothing is dropped silently, and no envelope of
one peer can harm another. An unregistered connection may only send HELLO: any other verb is answered by EXPIRED, upon
which a correct client sends HELLO and repeats its unconfirmed messages.

This module handles connections and requests for information; `retention` does what no client asks for. A message goes
through four steps:

1. *pending* (`admission`): checked, its receivers found. The effect is `Append`; nobody has been sent anything yet.
2. *journaled*: the shell has written the wake's records in one write and reports it (`Journaled`). The message has a
   place in the journal and a number in each receiver's mailbox, and is sent to the receivers with credit (`delivery`).
3. *outcome sent*: the receiver's application has acknowledged it (the sender gets `delivered`), or the store has
   committed it (`Committed`; the sender gets `queued`): at once if the receiver is away, after a second if it does not
   acknowledge.
4. *done*: acknowledged, and removed from mailbox and store.

Messages that were sent together take these steps together, as a batch (`in_flight.Batch`), as long as they have the
same outcome; a single message is a batch of one.

If the journal cannot be written, step 2 does not happen (`JournalFailed`): the messages are refused, and the mailboxes
are unchanged. If the store cannot commit, the messages of this wake that it should have kept are removed again and
refused (`CommitFailed`). A sender repeats messages without an outcome; the dedup window (`dedup`) makes that harmless.
`fetch` is the one detour: a command that reads messages in place of the listener. Apart from all this, `requests`
handles work that is sent to a group and answered by one of its workers. It is no mail, and need not be safe before it
is passed on (`may_speak_first`).

A broker may die at any instant. All that it has confirmed holds at the next broker (`recover`), which restores sessions
and their mail from the store. Clients repeat all that was not confirmed. There is no third case.

Time is an argument, an `Instant`: its monotonic clock serves intervals, its steady clock ages, and its wall clock only
timestamps for people.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from zmqbus.broker.admission import Admission
from zmqbus.broker.body_checks import Spooled, no_spools
from zmqbus.broker.delivery import Delivery
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
    Publish,
    Received,
    Tick,
    Unmarked,
    Unreachable,
)
from zmqbus.broker.fetch import Fetches
from zmqbus.broker.groups.requests import RequestBroker
from zmqbus.broker.registry import Registry
from zmqbus.broker.reply_routing import ReplyRouting
from zmqbus.broker.retention import Retention
from zmqbus.broker.sessions import NO_NAMES, STATE_OF_ROLE, Connection, ConnectionState, Session, SessionState
from zmqbus.broker.storage.api import Store
from zmqbus.broker.takeover import Takeover
from zmqbus.errors import (
    BrokerUnavailable,
    NameTaken,
    NotConnected,
    ProtocolError,
    RateLimited,
    Unauthorized,
    UnknownPeer,
    ZmqbusError,
)
from zmqbus.journal.record import Earlier
from zmqbus.security.digest import sha256
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import Pointer

#: A session that has not acknowledged its messages for this long is listed as `busy`.
BUSY_STATE_S = 5.0
#: A connection that has sent nothing for this long is silent: clients ping every 4 s, so three pings are missing.
#: Silence is not death: a process that is stopped, or busy without releasing its interpreter, sends nothing either. A
#: silent connection is listed as busy and given no more work, and it ends only if its process has ended or its TCP
#: connection is gone. The promise is that a dead listener is off the list within 15 s.
SILENCE_S = 12.0
#: Pause between two checks for silent connections.
SILENCE_LOOK_S = 0.5
#: The longest pause between two probes of a silent connection; the pauses double up to it. Probes of a stopped process
#: stay in its buffers, which hold some thousands of them.
MAX_PROBE_PAUSE_S = 600.0
#: Notices that the status includes, the first ones; broker.log has them all.
MAX_NOTICES = 20
#: Lists that one connection may ask for at once, and per second after that. A list is the largest answer to the
#: smallest question, and answers to a client that does not read would pile up.
LISTS_AT_ONCE = 50
LISTS_A_SECOND = 10
#: Bytes of lists and figures for one connection at once, and per second after that: enough to list 10,000 sessions.
ANSWERS_AT_ONCE_BYTES = 4 * 1024 * 1024
ANSWERS_A_SECOND_BYTES = 1024 * 1024
#: Size at which a page of a list ends, if not at `LIST_PAGE` rows: the paths of two hundred sessions may be 1.6 MB.
PAGE_BYTES = 64 * 1024
#: Bytes counted for an answer with figures, and for a row of a list besides its strings.
HEALTH_BYTES = 2_000
ROW_BYTES = 80
#: Pause between two `Tick`s while messages are in flight: a tenth of the second that receivers have to acknowledge.
BUSY_TICK_S = 0.1
#: Pause otherwise, as long as anybody is connected: silence is measured in seconds.
QUIET_TICK_S = 2.0


def _is_busy(now: Instant, session: Session) -> bool:
    """Whether a connected session is silent, or has not acknowledged a message for `BUSY_STATE_S`."""
    if session.conn is not None and session.conn.silent:
        return True
    oldest_s = session.mailbox.oldest_s()
    return oldest_s is not None and now.mono_s - oldest_s >= BUSY_STATE_S


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
        self._new_token = new_token
        self._out = Outbox()
        self.shell_figures: Callable[[], tuple[tuple[str, int], ...]] = tuple  #: figures of the shell
        #: Renames of this wake: route and ref of the request, session, old and new name.
        self._renaming: list[tuple[bytes, str, Session, str, str]] = []
        self.notices: list[str] = []  #: damaged or quarantined data, the first `MAX_NOTICES`
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
        self._owner_lives = owner_lives
        self._silence_due_s = 0.0
        self._started: Instant | None = None
        self._rules: dict[type, Callable[..., None]] = {
            verbs.Hello: self._hello,
            verbs.Bye: self._bye,
            verbs.Ping: self._ping,
            verbs.Send: self.admission.send,
            verbs.Await: self.reply_routing.await_answer,
            verbs.Unawait: self.reply_routing.unawait,
            verbs.Request: self.requests.request,
            verbs.Withdraw: self.requests.withdraw,
            verbs.Offer: self.requests.offer,
            verbs.Answer: self.requests.answer,
            verbs.Ack: self._ack,
            verbs.Refill: self.delivery.refill,
            verbs.Fetch: self.fetches.fetch,
            verbs.Preview: self.fetches.preview,
            verbs.MarkRead: self.fetches.mark_read,
            verbs.Recalled: self.fetches.recalled,
            verbs.List: self._list,
            verbs.Rename: self._rename,
            verbs.Disconnect: self._disconnect,
            verbs.Forget: self._forget,
            verbs.Remove: self._remove,
            verbs.Status: self._status,
            verbs.Stop: self._stop,
        }

    def __repr__(self) -> str:
        return f"<BrokerCore {self.registry!r}, {self.delivery.unsettled} unsettled, broadcast {self.delivery.bcast}>"

    # --- events

    def handle(self, now: Instant, event: Event) -> list[Effect]:
        """Returns the effects of an event, in order. No behaviour of a peer makes it raise."""
        if self._started is None:
            self._started = now
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
                self._renames_kept(now, None)
            case CommitFailed(reason):
                self.delivery.commit_failed(reason)  # guards: durability [=> self.delivery.committed(now)]
                self._renames_kept(now, reason)  # guards: sessions: announce a name once it is stored [reason => None]
            case Marked(lease):
                self._marked(lease)
            case Unmarked(lease):
                self._unmarked(now, lease)
            case Unreachable(route):
                self._unreachable(now, route)
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

    def notice(self, text: str) -> None:
        """Adds a notice of damaged or quarantined data to the status."""
        if len(self.notices) < MAX_NOTICES:
            self.notices.append(text)

    def recover(self, now: Instant) -> list[Effect]:
        """Restores the state that an earlier broker left. Call it once, before any event."""
        self.retention.recover(now)
        self.requests.recover(now, self.registry.sessions.values())
        return self._out.take()

    def next_tick_s(self) -> float | None:
        """Returns how long the shell may sleep before the next `Tick`, in seconds; None: until there is input."""
        if (
            self.delivery.waits
            or self.delivery.waits_for_commit
            or self.reply_routing.expects
            or self.requests.needs_tick
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

    # --- connections and permissions

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
                self._rules[envelope.__class__](now, connection or route, envelope)
            except ZmqbusError as error:
                self._out.refuse_all(route, verbs.refs_of(envelope.__class__, envelope), error)
                if envelope.__class__ is verbs.Hello:
                    return  # after a refused HELLO the other envelopes have no session
            connection = self.registry.connections.get(route)

    def _tell(self, session: Session, envelope: verbs.Envelope, *, last: bool = False, name: str | None = None) -> None:
        """Sends an envelope to a session outside its mailbox, on the channel of its name once that is in force.

        `name` is its former name, if it has just been renamed. The `last` envelope goes over the ROUTER as well: the
        channel may be lost just after a renaming, and a listener that missed it would get EXPIRED at its next ping, and
        reconnect.
        """
        if session.conn is None:
            return
        if session.conn.subscribed:
            self._out.put(Publish(verbs.name_channel(name or session.name), envelope))
        if last or not session.conn.subscribed:
            self._out.reply(session.conn.route, envelope)

    # --- HELLO and its end

    def _hello(self, now: Instant, who: Connection | bytes, hello: verbs.Hello) -> None:
        route = who if isinstance(who, bytes) else who.route
        if hello.version != verbs.VERSION:
            raise BrokerUnavailable(
                f"this client (release {hello.release:.20}) speaks protocol {hello.version}, the broker (release "
                f"{self.release}) speaks {verbs.VERSION}; end the older of the two: zmqbus broker --stop"
            )
        try:
            role = verbs.Role(hello.role)
        except ValueError:
            raise ProtocolError(f"HELLO with an unknown role, {hello.role}") from None
        state = STATE_OF_ROLE[role]
        for what, names in (("topic", hello.topics), ("group", hello.groups)):
            for name in names:
                naming.check_name(name, what)
        label = naming.check_label(hello.label) or None if hello.label else None
        if not self.registry.connections:
            self.takeover.settle_all(now)  # a broker without connections gets no `Tick`
        name = naming.check_name(hello.name) if hello.name else ""
        session: Session | None = None
        if state is ConnectionState.GUEST:
            self._check_guest(name, hello)
        elif state is not ConnectionState.OBSERVER:
            session = self._claim(hello, name, state)
        if isinstance(who, Connection):
            self._part(now, who, left=True)  # what it awaits comes again with this HELLO
        before = self.registry.by_lease(hello.lease) if hello.lease else None
        if before is not None:
            # The same client over a new connection. The end of the old one may go unnoticed for seconds, which would
            # keep the messages in flight to it, its awaited answers and the mailbox it reads.
            self._part(now, before)
        if hello.lease:
            self.requests.caller_returned(hello.lease)
        if state is ConnectionState.MEMBER and session is not None and session.conn is not None:
            self._displace(now, session, hello.pid)  # guards: sessions: one process per session
        connection = self.registry.connect(route, state, self._new_token(), now.mono_s)
        connection.allowed = verbs.SENT_BY[role]
        connection.session = session
        connection.owner = hello.owner
        connection.program = hello.role == verbs.Role.PROGRAM
        if state is ConnectionState.GUEST:
            connection.guest = name
            # Derived from the token, so that a guest may repeat its messages over a new connection; receivers, who see
            # the id, cannot derive the token from it.
            # It has the form of a session id, which no name has: an answer to it cannot reach another session.
            connection.guest_id = verbs.session_id_of(sha256((hello.token or "").encode()).digest()[:16])
        if session is not None and (state is ConnectionState.MEMBER or not session.name):
            session.label = label
            # Many sessions share these strings: keep one copy.
            session.cwd, session.project = sys.intern(hello.cwd), sys.intern(hello.project)
        if state is ConnectionState.MEMBER:
            assert session is not None
            session.pid, session.owner, session.owner_ended = hello.pid, hello.owner, False
            session.topics = frozenset(hello.topics) if hello.topics else NO_NAMES
            session.groups = frozenset(hello.groups) if hello.groups else NO_NAMES
            session.connect(connection)
            session.persistent = hello.named
            session.since_ts = now.wall_s
            self.registry.take_name(session, name)
            self.registry.keep(session)  # guards: recovery [self.registry.keep => self.registry._file]
            self.takeover.settle(now, session)
        elif session is not None and not session.name:
            # A helper has connected before its listener has found the new broker: the session is away, under its name.
            # (It has not connected itself: a session that has, and is away, bears the seat before it.)
            session.name, session.away_since_s = name, now.steady_s
            session.owner, session.persistent = hello.owner, hello.named
            self.registry.keep(session)
            self.retention.parted(session)
        if session is not None and state is ConnectionState.HELPER:
            self.takeover.settle(now, session)
        self._out.reply(
            route,
            verbs.Welcome(
                verbs.VERSION,
                self.release,
                self.epoch,
                session.session_id if session else connection.guest_id,
                session.name if session else name,
                connection.lease,
                connection.peer,
                self.pub_port,
                self.delivery.bcast,
                session.mailbox.total if session else 0,
            ),
        )
        if state is ConnectionState.MEMBER:
            assert session is not None
            connection.mailbox = session.mailbox
            if self.delivery.consumer(session.mailbox) is None:
                # Otherwise a command reads the mailbox, and returns it when it ends.
                self.delivery.attach(now, session.mailbox, connection)
            self.requests.reconnected(now, session, is_program=connection.program)

    def _claim(self, hello: verbs.Hello, name: str, state: ConnectionState) -> Session:
        """Returns the session that a HELLO acts for, after a check of its token; enters it if it is new."""
        if not hello.session_id or not hello.token or not name:
            raise ProtocolError("HELLO for a session needs its id, its token and its name")
        if not naming.is_session_id(hello.session_id):  # guards: sessions [off]
            raise ProtocolError("HELLO with a session id that is no UUID in lower case")
        session = self.registry.sessions.get(hello.session_id)
        digest = sha256(hello.token.encode()).hexdigest()
        if session is not None:
            self._check_token(session, hello.token)
        if state is ConnectionState.MEMBER:
            self._check_free(session, name)
        return session or self.registry.enter(hello.session_id, digest, self.admission.last_id)

    def _check_token(self, session: Session, token: str) -> None:
        # guards: sessions [sha256(token.encode()).hexdigest() => session.token_digest]
        # These are digests, so the time of their comparison reveals nothing of the token.
        if session.token_digest != sha256(token.encode()).hexdigest():
            raise Unauthorized(f"the token is not that of session {session.session_id:.40}; connect the session again")

    def _check_guest(self, name: str, hello: verbs.Hello) -> None:
        if not name or not hello.token:
            raise ProtocolError("HELLO of a guest needs a name and a token")
        if self.registry.holder(name) is not None:
            raise NameTaken(f"'{name}' is the name of a connected session; give --as another one")

    def _check_free(self, session: Session | None, name: str) -> None:
        holder = self.registry.holder(name)
        if holder is not None and holder is not session:  # guards: sessions [off]
            raise NameTaken(f"the name '{name}' is taken by another session; choose another one")

    def _displace(self, now: Instant, session: Session, by_pid: int) -> None:
        """Closes the connection of the session's earlier process, since a newer one has claimed the session."""
        assert session.conn is not None
        self._tell(session, verbs.Displaced(by_pid), last=True)
        self._part(now, session.conn)

    def _bye(self, now: Instant, who: Connection, _: verbs.Bye) -> None:
        self._part(now, who, left=True, gone=True)

    def _part(self, now: Instant, connection: Connection, *, left: bool = False, gone: bool = False) -> None:
        """Ends a connection. `left`: in good order; otherwise it may reconnect. `gone`: no other one has replaced it.

        The order matters. First the session becomes away, so that nothing below delivers to the connection again. A
        command that reads an inbox returns it while it is still the consumer. The awaited answers become expected
        before the command's mailbox is closed, so that answers in it are held. Then the mailbox is closed, and answers
        in a mailbox of the command's own move to the session. Only then may a command that waits read the session's
        mailbox, and the session may be discarded. Its requests come last: a worker may be a discarded session.
        """
        self.registry.drop(connection)
        session = connection.session
        own = session is not None and session.conn is connection
        if session is not None and own:
            session.part(now.steady_s)
            if gone:  # guards: failover [off]
                session.groups = NO_NAMES  # it works for no group any more, and no later broker waits for it
            self.registry.release_name(session)
            self.registry.keep(session)
        self.fetches.end(now, connection)
        self.reply_routing.forget_waits(now, connection, left=left)
        mailbox = connection.mailbox
        if mailbox is not None:
            if self.delivery.consumer(mailbox) is connection:
                # guards: reply routing [, self.reply_routing.hold =>]
                self.delivery.detach(mailbox, self.reply_routing.hold)
            if session is None or mailbox is not session.mailbox:
                self.fetches.hand_back(now, connection, mailbox)
        if session is not None and own:
            self.fetches.parted(now, session)
            self.retention.parted(session, gone=gone)
        self.requests.parted(now, connection, gone=gone)

    def _ping(self, now: Instant, who: Connection, ping: verbs.Ping) -> None:
        session = who.session
        if ping.lease != who.lease:  # guards: sessions [off]
            self._out.reply(who.route, verbs.Expired())
        elif session is not None and who.state is ConnectionState.MEMBER and ping.name != session.name:
            self._out.reply(who.route, verbs.Renamed(session.name))

    def _marked(self, lease: str) -> None:
        connection = self.registry.by_lease(lease)
        if connection is not None:
            connection.subscribed = True
        else:
            self.registry.resubscribed(lease)

    def _unmarked(self, now: Instant, lease: str) -> None:
        """Ends a connection whose SUB is gone: the only sign of a dead peer that libzmq gives at once."""
        connection = self.registry.by_lease(lease)
        if connection is not None:
            self._out.reply(connection.route, verbs.Expired())
            self._part(now, connection)
        self.registry.lingering.pop(lease, None)

    def _unreachable(self, now: Instant, route: bytes) -> None:
        connection = self.registry.connections.get(route)
        if connection is not None:
            self._part(now, connection)

    def _ack(self, now: Instant, who: Connection, ack: verbs.Ack) -> None:
        self.delivery.acknowledge(now, who, ack)
        self.fetches.advance(now, who)

    # --- looking, renaming, leaving

    def _list(self, now: Instant, who: Connection, wanted: verbs.List) -> None:
        self._count_bulky(now, who)
        if who.requests >= LISTS_AT_ONCE:  # guards: rate limits [off]
            raise RateLimited(
                f"{LISTS_AT_ONCE} lists at once, and {LISTS_A_SECOND} a second, are the limit; retry in 1 s"
            )
        who.requests += 1
        if wanted.everyone:
            self.takeover.settle_shared(now)
        sessions = self.registry.reachable() if wanted.everyone else self.registry.live()
        ordered = sorted(sessions, key=lambda session: session.session_id)
        page = []
        size_bytes = 0
        for session in ordered:
            if session.session_id > wanted.after:
                page.append(session)
                size_bytes += ROW_BYTES + len(session.cwd) + len(session.project) + len(session.label or "")
                if len(page) >= verbs.LIST_PAGE or size_bytes >= PAGE_BYTES:
                    break
        who.answered_bytes += size_bytes
        more = bool(page) and page[-1] is not ordered[-1]
        rows = tuple(tuple(self._row(now, session)) for session in page)
        self._out.reply(who.route, verbs.Sessions(wanted.ref, rows, more))

    def _count_bulky(self, now: Instant, who: Connection) -> None:
        """Raises `RateLimited` if a connection has asked for more lists and figures than it can have read."""
        passed_s = now.mono_s - who.requested_s
        who.requested_s = now.mono_s
        who.requests = max(0.0, who.requests - passed_s * LISTS_A_SECOND)
        who.answered_bytes = max(0.0, who.answered_bytes - passed_s * ANSWERS_A_SECOND_BYTES)
        if who.answered_bytes >= ANSWERS_AT_ONCE_BYTES:  # guards: rate limits [off]
            raise RateLimited(
                f"{ANSWERS_AT_ONCE_BYTES >> 20} MiB of lists and figures at once, and "
                f"{ANSWERS_A_SECOND_BYTES >> 20} MiB a second, are the limit; retry in 1 s"
            )

    def _row(self, now: Instant, session: Session) -> verbs.Session:
        state = "away" if session.conn is None else "busy" if _is_busy(now, session) else "live"
        return verbs.Session(
            session.name,
            session.label,
            session.project,
            session.cwd,
            state,
            session.since_ts,
            session.session_id,
            session.pid,
            session.mailbox.total,
            max(0, int(now.steady_s - session.away_since_s)) if session.conn is None else 0,
        )

    def _rename(self, now: Instant, who: Connection, rename: verbs.Rename) -> None:
        session = who.session
        assert session is not None
        name = naming.check_name(rename.name)
        if session.conn is None:
            raise NotConnected("the session's listener is not connected; connect the session first")
        self._check_free(session, name)
        old = session.name
        if name == old:
            self._out.reply(who.route, verbs.Done(rename.ref, old))
            return
        self.registry.take_name(session, name)
        self.registry.keep(session)
        self._renaming.append((who.route, rename.ref, session, old, name))

    def _renames_kept(self, now: Instant, reason: str | None) -> None:
        """Announces the new names that are now in the store; with `reason`, takes them back, since the commit failed.

        Mail for a name that the next broker does not know could go to another session.
        """
        renaming, self._renaming = self._renaming, []
        if reason is None:
            for route, ref, session, old, name in renaming:
                self._tell(session, verbs.Renamed(name), name=old)
                self.takeover.settle(now, session)  # guards: takeover
                self._out.reply(route, verbs.Done(ref, old))
            return
        for route, ref, session, old, _ in reversed(renaming):  # reversed for a session that was renamed twice
            # If a session that has just connected has the old name, this one keeps the new until the disk has room.
            with suppress(NameTaken):
                self._check_free(session, old)
                self.registry.take_name(session, old)
                self.registry.keep(session)
            self._out.reply(route, verbs.Refused(ref, BrokerUnavailable.code, f"not renamed: {reason}"))

    def _disconnect(self, now: Instant, who: Connection, disconnect: verbs.Disconnect) -> None:
        session = who.session
        assert session is not None
        was_there = session.state not in (SessionState.LEFT, SessionState.DISCARDED)  # AWAY counts as well
        if session.conn is not None:
            self._tell(session, verbs.Disconnected(), last=True)
            self._part(now, session.conn, gone=True)
        session.leave()
        self.requests.left(session)
        self.registry.keep(session)
        self.retention.parted(session, gone=True)
        self._out.reply(who.route, verbs.Done(disconnect.ref, "disconnected" if was_there else "not connected"))

    def _forget(self, now: Instant, who: Connection | bytes, forget: verbs.Forget) -> None:
        # Accepted from any holder of the token: the loss of its mark may be noticed before a client's last message.
        session = self.registry.sessions.get(forget.session_id)
        unread = 0
        if session is not None:
            self._check_token(session, forget.token)
            unread = session.mailbox.total
            session.persistent = False
            own = session.conn
            if own is not None:
                if own is not who:
                    self._tell(session, verbs.Disconnected(), last=True)
                self._part(now, own, gone=True)
            self.requests.left(session)
            self.retention.parted(session, gone=True)
        self._out.reply(who if isinstance(who, bytes) else who.route, verbs.Done(forget.ref, str(unread)))

    def _remove(self, now: Instant, who: Connection, remove: verbs.Remove) -> None:
        session = self.registry.known(remove.session_id)
        if session is None or not session.is_reachable:  # guards: takeover [or not session.is_reachable =>]
            raise UnknownPeer("that session is not on the bus any more; see who is: zmqbus list --all")
        if session.conn is not None:
            raise Unauthorized(
                f"'{session.name}' is connected, and only those away can be removed; end it first: zmqbus disconnect "
                "in its own shell, or on the page of zmqbus console"
            )
        if self.delivery.consumer(session.mailbox) is not None:
            raise RateLimited(f"a command reads the inbox of '{session.name}'; repeat this when it has ended")
        unread = session.mailbox.total
        if 0 <= remove.unread < unread:  # guards: takeover [off]
            raise RateLimited(f"{unread} messages wait for '{session.name}' by now; look again before you remove them")
        self._out.note(f"{session!r} is removed on request")
        session.persistent = False
        self.retention.parted(session, gone=True)
        self._out.reply(who.route, verbs.Done(remove.ref, str(unread)))

    def _status(self, now: Instant, who: Connection, status: verbs.Status) -> None:
        assert self._started is not None
        self._count_bulky(now, who)
        who.answered_bytes += HEALTH_BYTES
        boxes = [session.mailbox for session in self.registry.sessions.values()]
        under_way, under_way_bytes = self.delivery.under_way()
        figures = (
            ("release", self.release),
            ("protocol", verbs.VERSION),
            ("epoch", self.epoch),
            ("uptime_s", int(now.mono_s - self._started.mono_s)),
            ("sessions", sum(1 for _ in self.registry.live())),
            ("busy", sum(_is_busy(now, session) for session in self.registry.live())),
            ("away", sum(1 for s in self.registry.reachable() if s.conn is None)),
            ("connections", len(self.registry.connections)),
            ("accepted", self.admission.accepted),
            ("unread", sum(box.total for box in boxes)),
            ("unread_bytes", sum(box.total_bytes for box in boxes)),
            ("longest_mailbox", max((box.total for box in boxes), default=0)),
            ("under_way", under_way),
            ("under_way_bytes", under_way_bytes),
            ("untold", self.delivery.unsettled),
            ("broadcasts", self.delivery.bcast),
            *self.requests.figures(),
            *self._out.counts.figures(),
            *self.shell_figures(),
            *((("notices", "; ".join(self.notices)),) if self.notices else ()),
        )
        self._out.reply(who.route, verbs.Health(status.ref, figures))

    def _stop(self, now: Instant, who: Connection, stop: verbs.Stop) -> None:
        self._out.reply(who.route, verbs.Done(stop.ref, "stopping"))
        self._out.put(Halt())

    # --- time

    def _tick(self, now: Instant) -> None:
        self.delivery.tick(now)
        if now.mono_s >= self._silence_due_s:
            self._silence_due_s = now.mono_s + SILENCE_LOOK_S
            for connection in [c for c in self.registry.connections.values() if now.mono_s - c.last_seen_s > SILENCE_S]:
                self._look_after_silent(now, connection)
        self.fetches.tick(now)
        self.reply_routing.tick(now)
        self.admission.tick(now)
        self.requests.tick(now)
        self.takeover.tick(now)  # guards: takeover
        self.retention.tick(now)

    def _look_after_silent(self, now: Instant, connection: Connection) -> None:
        """Ends or probes a silent connection.

        It ends if its process has ended, though a forked child may hold its sockets, and if it keeps an inbox from its
        session. Otherwise it is probed: if it is gone, the shell finds the route unreachable.
        """
        ended = not self._owner_lives(connection.owner)
        # guards: dead peers [on]
        # guards: dead peers: others may hold the sockets of a dead process [ended or =>]
        # guards: dead peers: a stopped command must not hold an inbox [or connection.fetching is not None =>]
        if ended or connection.fetching is not None:
            why = "its process has ended" if ended else "it reads the inbox of a session"
            self._out.note(f"{connection!r} has been silent for {SILENCE_S:.0f} s, and {why}: it is given up")
            self._out.reply(connection.route, verbs.Expired())
            self._part(now, connection)
            return
        if not connection.silent:
            connection.silent = True
            connection.probe_at_s = now.mono_s
            self._out.note(f"{connection!r} has been silent for {SILENCE_S:.0f} s; it is busy, or stopped")
            self.requests.silence_changed(connection)
        if now.mono_s >= connection.probe_at_s:
            pause_s = min(max(now.mono_s - connection.last_seen_s, SILENCE_S), MAX_PROBE_PAUSE_S)
            connection.probe_at_s = now.mono_s + pause_s
            self._out.reply(connection.route, verbs.Probe())  # guards: dead peers
