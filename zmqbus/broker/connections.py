"""The broker's connections: how they begin (HELLO), stay alive (PING, silence) and end (BYE, loss). Pure.

Theory of operation
===================

A connection is a route of the ROUTER that has said HELLO. Its role gives its state (`sessions.STATE_OF_ROLE`), and a
member, a helper or a guest acts for a session or under a name, whose token it has to know. A session has one member: a
newer process that claims the session displaces the older one.

A connection ends by BYE, by a HELLO that follows it, or by its loss. libzmq does not report a loss on a ROUTER; three
signs stand for it. The client's SUB is gone (`unsubscribed`), which is seen at once. A send finds the route
unreachable. Or the connection is silent: then it is probed, and it ends if its process has ended.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from zmqbus.broker.admission import Admission
from zmqbus.broker.agent_states import AgentStates
from zmqbus.broker.delivery import Delivery
from zmqbus.broker.events import Instant, Outbox, Publish
from zmqbus.broker.fetch import Fetches
from zmqbus.broker.groups.requests import RequestBroker
from zmqbus.broker.registry import Registry
from zmqbus.broker.reply_routing import ReplyRouting
from zmqbus.broker.retention import Retention
from zmqbus.broker.sessions import NO_NAMES, STATE_OF_ROLE, Connection, ConnectionState, Session
from zmqbus.broker.takeover import Takeover
from zmqbus.errors import BrokerUnavailable, NameTaken, ProtocolError, Unauthorized
from zmqbus.security.digest import sha256
from zmqbus.wire import naming, verbs
from zmqbus.wire.handlers import handles

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


def check_token(session: Session, token: str) -> None:
    """Raises `Unauthorized` if this is not the token with which the session was made."""
    # guards: sessions [sha256(token.encode()).hexdigest() => session.token_digest]
    # These are digests, so the time of their comparison reveals nothing of the token.
    if session.token_digest != sha256(token.encode()).hexdigest():
        raise Unauthorized(f"the token is not that of session {session.session_id:.40}; connect the session again")


class Connections:
    """Begins and ends connections, and tells all parts of the broker. Not thread-safe."""

    def __init__(
        self,
        out: Outbox,
        registry: Registry,
        delivery: Delivery,
        admission: Admission,
        reply_routing: ReplyRouting,
        fetches: Fetches,
        requests: RequestBroker,
        takeover: Takeover,
        retention: Retention,
        agent_states: AgentStates,
        *,
        epoch: str,
        release: str,
        pub_port: int,
        new_token: Callable[[], str],
        owner_lives: Callable[[str], bool],
    ) -> None:
        self.pub_port = pub_port
        self._out = out
        self._registry = registry
        self._delivery = delivery
        self._admission = admission
        self._reply_routing = reply_routing
        self._fetches = fetches
        self._requests = requests
        self._takeover = takeover
        self._retention = retention
        self._agent_states = agent_states
        self._epoch = epoch
        self._release = release
        self._new_token = new_token
        self._owner_lives = owner_lives
        self._silence_due_s = 0.0

    # --- HELLO

    @handles(verbs.Hello)
    def _hello(self, now: Instant, who: Connection | bytes, hello: verbs.Hello) -> None:
        """Connects a client: ends its connections from before, claims its session, and answers with WELCOME."""
        state, name, label = self._checked(hello)
        if not self._registry.connections:
            self._takeover.settle_all(now)  # a broker without connections gets no `Tick`
        session: Session | None = None
        if state is ConnectionState.GUEST:
            self._check_guest(name, hello)
        elif state is not ConnectionState.OBSERVER:
            session = self._claim(hello, name, state)
        self._end_earlier(now, who, hello)
        if state is ConnectionState.MEMBER and session is not None and session.conn is not None:
            self._displace(now, session, hello.pid)  # guards: sessions: one process per session
        connection = self._connect(now, who if isinstance(who, bytes) else who.route, state, name, session, hello)
        if session is not None and (state is ConnectionState.MEMBER or not session.name):
            session.label = label
            # Many sessions share these strings: keep one copy.
            session.cwd, session.project = sys.intern(hello.cwd), sys.intern(hello.project)
        if session is not None and state is ConnectionState.MEMBER:
            self._enter(now, connection, session, name, hello)
        elif session is not None and not session.name:
            # A helper has connected before its listener has found the new broker: the session is away, under its name.
            # (It has not connected itself: a session that has, and is away, bears the seat before it.)
            session.name, session.away_since_s = name, now.steady_s
            session.owner, session.persistent = hello.owner, hello.named
            self._registry.keep(session)
            self._retention.parted(session)
        if session is not None and state is ConnectionState.HELPER:
            self._takeover.settle(now, session)
        self._welcome(connection, session, name)
        if session is not None and state is ConnectionState.MEMBER:
            connection.mailbox = session.mailbox
            if self._delivery.consumer(session.mailbox) is None:
                # Otherwise a command reads the mailbox, and returns it when it ends.
                self._delivery.attach(now, session.mailbox, connection)
            self._requests.reconnected(now, session, is_program=connection.program)
            self._admission.retry_held(now)  # guards: dedup
            self._agent_states.changed(now, session)

    def _checked(self, hello: verbs.Hello) -> tuple[ConnectionState, str, str | None]:
        """Returns the connection's state, the name and the label that a HELLO asks for, after a check of its fields."""
        if hello.version != verbs.VERSION:
            raise BrokerUnavailable(
                f"this client (release {hello.release:.20}) speaks protocol {hello.version}, the broker (release "
                f"{self._release}) speaks {verbs.VERSION}; end the older of the two: zmqbus broker --stop"
            )
        try:
            role = verbs.Role(hello.role)
        except ValueError:
            raise ProtocolError(f"HELLO with an unknown role, {hello.role}") from None
        for topic in hello.topics:
            naming.check_topic(topic)
        for group in hello.groups:
            naming.check_name(group, "group")
        label = naming.check_label(hello.label) or None if hello.label else None
        return STATE_OF_ROLE[role], naming.check_name(hello.name) if hello.name else "", label

    def _end_earlier(self, now: Instant, who: Connection | bytes, hello: verbs.Hello) -> None:
        """Ends the connections that this client had before."""
        if isinstance(who, Connection):
            self.part(now, who, left=True)  # what it awaits comes again with this HELLO
        before = self._registry.by_lease(hello.lease) if hello.lease else None
        if before is not None:
            # The same client over a new connection. The end of the old one may go unnoticed for seconds, which would
            # keep the messages in flight to it, its awaited answers and the mailbox it reads.
            self.part(now, before)
        if hello.lease:
            self._requests.caller_returned(hello.lease)

    def _connect(
        self, now: Instant, route: bytes, state: ConnectionState, name: str, session: Session | None, hello: verbs.Hello
    ) -> Connection:
        connection = self._registry.connect(route, state, self._new_token(), now.mono_s)
        connection.allowed = verbs.SENT_BY[verbs.Role(hello.role)]
        connection.session = session
        connection.owner = hello.owner
        connection.program = hello.role == verbs.Role.PROGRAM
        if state is ConnectionState.GUEST:
            connection.guest = name
            # Derived from the token, so that a guest may repeat its messages over a new connection; receivers, who see
            # the id, cannot derive the token from it.
            # It has the form of a session id, which no name has: an answer to it cannot reach another session.
            connection.guest_id = verbs.session_id_of(sha256((hello.token or "").encode()).digest()[:16])
        return connection

    def _enter(self, now: Instant, connection: Connection, session: Session, name: str, hello: verbs.Hello) -> None:
        """Makes a session live: its process has connected."""
        session.pid, session.owner, session.owner_ended = hello.pid, hello.owner, False
        session.topics = frozenset(hello.topics) if hello.topics else NO_NAMES
        session.groups = frozenset(hello.groups) if hello.groups else NO_NAMES
        session.connect(connection)
        session.persistent = hello.named
        session.since_ts = now.wall_s
        self._registry.take_name(session, name)
        self._registry.keep(session)  # guards: recovery [self._registry.keep => self._registry._file]
        self._takeover.settle(now, session)

    def _welcome(self, connection: Connection, session: Session | None, name: str) -> None:
        welcome = verbs.Welcome(
            verbs.VERSION,
            self._release,
            self._epoch,
            session.session_id if session else connection.guest_id,
            session.name if session else name,
            connection.lease,
            connection.peer,
            self.pub_port,
            self._delivery.bcast,
            session.mailbox.total if session else 0,
        )
        self._out.reply(connection.route, welcome)

    def _claim(self, hello: verbs.Hello, name: str, state: ConnectionState) -> Session:
        """Returns the session that a HELLO acts for, after a check of its token; enters it if it is new."""
        if not hello.session_id or not hello.token or not name:
            raise ProtocolError("HELLO for a session needs its id, its token and its name")
        if not naming.is_session_id(hello.session_id):  # guards: sessions [off]
            raise ProtocolError("HELLO with a session id that is no UUID in lower case")
        session = self._registry.sessions.get(hello.session_id)
        digest = sha256(hello.token.encode()).hexdigest()
        if session is not None:
            check_token(session, hello.token)
        if state is ConnectionState.MEMBER:
            self._registry.check_free(session, name)
        return session or self._registry.enter(hello.session_id, digest, self._admission.last_id)

    def _check_guest(self, name: str, hello: verbs.Hello) -> None:
        if not name or not hello.token:
            raise ProtocolError("HELLO of a guest needs a name and a token")
        if self._registry.holder(name) is not None:
            raise NameTaken(f"'{name}' is the name of a connected session; give --as another one")

    def _displace(self, now: Instant, session: Session, by_pid: int) -> None:
        """Closes the connection of the session's earlier process, since a newer one has claimed the session."""
        assert session.conn is not None
        self.tell(session, verbs.Displaced(by_pid), last=True)
        self.part(now, session.conn)

    # --- while it stands

    def tell(self, session: Session, envelope: verbs.Envelope, *, last: bool = False, name: str | None = None) -> None:
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

    @handles(verbs.Ping)
    def _ping(self, now: Instant, who: Connection, ping: verbs.Ping) -> None:
        session = who.session
        if ping.lease != who.lease:  # guards: sessions [off]
            self._out.reply(who.route, verbs.Expired())
        elif session is not None and who.state is ConnectionState.MEMBER and ping.name != session.name:
            self._out.reply(who.route, verbs.Renamed(session.name))

    def subscribed(self, lease: str) -> None:
        """Notes that a client's SUB is in force."""
        connection = self._registry.by_lease(lease)
        if connection is not None:
            connection.subscribed = True
        else:
            self._registry.resubscribed(lease)

    def tick(self, now: Instant) -> None:
        """Looks after silent connections."""
        if now.mono_s < self._silence_due_s:
            return
        self._silence_due_s = now.mono_s + SILENCE_LOOK_S
        for connection in [c for c in self._registry.connections.values() if now.mono_s - c.last_seen_s > SILENCE_S]:
            self._look_after_silent(now, connection)

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
            self.part(now, connection)
            return
        if not connection.silent:
            connection.silent = True
            connection.probe_at_s = now.mono_s
            self._out.note(f"{connection!r} has been silent for {SILENCE_S:.0f} s; it is busy, or stopped")
            self._requests.silence_changed(connection)
        if now.mono_s >= connection.probe_at_s:
            pause_s = min(max(now.mono_s - connection.last_seen_s, SILENCE_S), MAX_PROBE_PAUSE_S)
            connection.probe_at_s = now.mono_s + pause_s
            self._out.reply(connection.route, verbs.Probe())  # guards: dead peers

    # --- its end

    @handles(verbs.Bye)
    def _bye(self, now: Instant, who: Connection, _: verbs.Bye) -> None:
        self.part(now, who, left=True, gone=True)

    def part(self, now: Instant, connection: Connection, *, left: bool = False, gone: bool = False) -> None:
        """Ends a connection. `left`: in good order; otherwise it may reconnect. `gone`: no other one has replaced it.

        The order matters. First the session becomes away, so that nothing below delivers to the connection again. A
        command that reads an inbox returns it while it is still the consumer. The awaited answers become expected
        before the command's mailbox is closed, so that answers in it are held. Then the mailbox is closed, and answers
        in a mailbox of the command's own move to the session. Only then may a command that waits read the session's
        mailbox, and the session may be discarded. Its requests come last: a worker may be a discarded session.
        """
        self._registry.drop(connection)
        session = connection.session
        own = session is not None and session.conn is connection
        if session is not None and own:
            session.part(now.steady_s)
            if gone:  # guards: failover [off]
                session.groups = NO_NAMES  # it works for no group any more, and no later broker waits for it
            self._registry.release_name(session)
            self._registry.keep(session)
        self._fetches.forget(connection)
        self._fetches.end(now, connection)
        self._reply_routing.forget_waits(now, connection, left=left)
        mailbox = connection.mailbox
        if mailbox is not None:
            if self._delivery.consumer(mailbox) is connection:
                # guards: reply routing [, self._reply_routing.hold =>]
                self._delivery.detach(mailbox, self._reply_routing.hold)
            if session is None or mailbox is not session.mailbox:
                self._fetches.hand_back(now, connection, mailbox)
        if session is not None and own:
            self._fetches.parted(now, session)
            self._retention.parted(session, gone=gone)
        self._requests.parted(now, connection, gone=gone)
        self._agent_states.parted(now, connection)
        if session is not None and own:
            self._agent_states.changed(now, session)

    def unsubscribed(self, now: Instant, lease: str) -> None:
        """Ends a connection whose SUB is gone: the only sign of a dead peer that libzmq gives at once."""
        connection = self._registry.by_lease(lease)
        if connection is not None:
            self._out.reply(connection.route, verbs.Expired())
            self.part(now, connection)
        self._registry.lingering.pop(lease, None)

    def unreachable(self, now: Instant, route: bytes) -> None:
        """Ends the connection of a route that the ROUTER cannot send to any more."""
        connection = self._registry.connections.get(route)
        if connection is not None:
            self.part(now, connection)
