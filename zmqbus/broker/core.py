"""What the broker decides. No sockets, no clock, no files, no randomness: `handle(now, event)` returns effects.

Theory of operation
===================

A connection is a small machine whose states are `Standing`s, and `_TABLE` says which verb each of them may say. A pair
that is not in the table is an error of the peer, answered as such; nothing is passed over in silence, and nothing that
one peer says can cost another anything. A stranger's only verb is HELLO: to all else the answer is EXPIRED, upon which
a well-behaved client says HELLO and sends again what nobody has confirmed.

A message goes through four steps, and each is visible to whoever would have to know if the next did not come:

1. *staged*: checked, its receivers found. The effect is `Append`; nobody has been told anything.
2. *journaled*: the shell has written the wake's records in one write and says so (`Journaled`). Now the message has a
   place in the log, is numbered in each receiver's mailbox, and goes out to those who have credit.
3. *settled*: the receiver's application has acknowledged it (the sender hears `delivered`), or it is in the store (the
   sender hears `queued`): at once where the receiver is away, after a second where it does not answer.
4. *gone*: acknowledged, and out of mailbox and store.

If the journal cannot be written, step 2 does not happen (`JournalFailed`): the senders are refused, and the mailboxes
are as they were. A sender repeats what it has not been told about; `_fates` remembers ids, so that it may.

Time is handed in as an `Instant`: the monotonic clock for every interval, the wall clock only for what people read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hmac import compare_digest
from typing import Literal, NamedTuple, TypeAlias

from zmqbus import naming, protocol
from zmqbus.broker.mailbox import Item, Mailbox, Tally
from zmqbus.broker.registry import STANDING, Connection, Fetching, Registry, Session, Standing
from zmqbus.broker.store import Entry, Store
from zmqbus.errors import (
    InvalidPayload,
    NameTaken,
    NotConnected,
    ProtocolError,
    RateLimited,
    TextTooLong,
    Unauthorized,
    UnknownPeer,
    ZmqbusError,
)
from zmqbus.journal import Record
from zmqbus.protocol import Format, Pointer, Scope, State

#: A receiver that has not taken a message by then is reported as busy (SPEC 5).
BUSY_AFTER_S = 1.0
#: The state `busy` in a list: has not taken its messages for so long (SPEC 6).
BUSY_STATE_S = 5.0
#: A connection that says nothing for so long is gone. Clients ping every 4 s, so that three pings are lost by then; the
#: promise is that a dead listener is off the list within 15 s.
SILENCE_S = 12.0
#: Broadcasts of a session within a minute (SPEC 3), whatever helpers it uses.
BROADCASTS_PER_MINUTE = 60
MINUTE_S = 60.0
#: A published broadcast that is not acknowledged by then is called to mind (BEAT).
BEAT_AFTER_S = 0.25
#: How long a listener has to give back what it holds, before a FETCH goes on without it.
RECALL_S = 1.0
#: Answers that one connection may wait for: as many as it may have messages unconfirmed.
MAX_WAITS = 1_000
#: How long an absent session is remembered, with or without mail (SPEC 7.5).
KEEP_AWAY_S = 7 * 24 * 3600.0
#: Ids of settled messages that are remembered, so that sending again is harmless. A sender keeps at most 1,000
#: unconfirmed (`client.core.WINDOW_MESSAGES`), so this covers every one of 20 senders at full tilt.
REMEMBERED_FATES = 20_000


class Instant(NamedTuple):
    """Now."""

    mono_s: float
    wall_s: float


# --- events -----------------------------------------------------------------------------------------------------


class Received(NamedTuple):
    """One message from a connection."""

    route: bytes
    envelopes: list[protocol.Envelope]


class Malformed(NamedTuple):
    """A message that could not be decoded."""

    route: bytes
    reason: str


class Unreachable(NamedTuple):
    """The ROUTER knows no such route, or the peer behind it does not read."""

    route: bytes


class Marked(NamedTuple):
    """A client's subscriptions are in force."""

    lease: str


class Unmarked(NamedTuple):
    """A client's SUB connection has gone."""

    lease: str


class Journaled(NamedTuple):
    """What was staged has been written; a pointer for each record, in order."""

    pointers: list[Pointer]


class JournalFailed(NamedTuple):
    """What was staged has not been written."""

    reason: str


class Tick(NamedTuple):
    """Time has passed."""


Event: TypeAlias = Received | Malformed | Unreachable | Marked | Unmarked | Journaled | JournalFailed | Tick

# --- effects ----------------------------------------------------------------------------------------------------


class Reply(NamedTuple):
    """Send over the ROUTER."""

    route: bytes
    envelope: protocol.Envelope


class Publish(NamedTuple):
    """Send over the PUB."""

    channel: bytes
    envelope: protocol.Envelope


class Append(NamedTuple):
    """Write to the journal before anything that follows becomes visible."""

    record: Record


class Note(NamedTuple):
    """A line for broker.log."""

    text: str


class Halt(NamedTuple):
    """The broker is asked to end."""


Effect: TypeAlias = Reply | Publish | Append | Note | Halt


class Staged(NamedTuple):
    """A message between its acceptance and the journal's answer."""

    connection: Connection
    send: protocol.Send
    record: Record
    label: str | None
    receivers: list[Session]
    waiter: Connection | None
    group: bool


class Fate(NamedTuple):
    """What the sender of a settled message was told, to be told again if it sends again. Messages that were settled
    together share one: a receipt's ids are filled in when it is repeated."""

    sender_id: str
    answer: protocol.Receipt | protocol.Tally


_FORMATS: dict[int, Literal["text", "msgpack", "bytes"]] = {
    Format.TEXT: "text",
    Format.MSGPACK: "msgpack",
    Format.BYTES: "bytes",
}


class BrokerCore:
    """The broker without its sockets. Not thread-safe; `handle` is the only way in."""

    def __init__(
        self, *, epoch: str, release: str, store: Store, new_token: Callable[[], str], pub_port: int = 0
    ) -> None:
        self.epoch = epoch
        self.release = release
        self.pub_port = pub_port
        self.registry = Registry(store)
        self._store = store
        self._new_token = new_token
        self._out: list[Effect] = []
        self._staged: list[Staged] = []
        self._staged_ids: set[str] = set()
        self._bcast = 0
        self._channels: dict[bytes, int] = {}  # last broadcast on each
        self._open: dict[str, Item | Tally] = {}  # accepted, and the sender not told
        self._fates: dict[str, Fate] = {}
        self._tallies: deque[Tally] = deque()
        self._active: set[Mailbox] = set()  # those with a message under way
        self._owners: dict[Mailbox, Connection] = {}  # consumer of each open mailbox
        self._waits: dict[str, Connection] = {}  # message id → who waits for its answer
        self._guest_broadcasts: dict[str, deque[float]] = {}
        self._started: Instant | None = None
        self._accepted = 0

    def __repr__(self) -> str:
        return f"<BrokerCore {self.registry!r}, {len(self._open)} unsettled, broadcast {self._bcast}>"

    # --- the one way in

    def handle(self, now: Instant, event: Event) -> list[Effect]:
        """What is to be done about an event, in order. Raises nothing for anything that a peer can do."""
        if self._started is None:
            self._started = now
        match event:
            case Received(route, envelopes):
                self._receive(now, route, envelopes)
            case Tick():
                self._tick(now)
            case Journaled(pointers):
                self._journaled(now, pointers)
            case JournalFailed(reason):
                self._journal_failed(reason)
            case Marked(lease):
                self._marked(lease)
            case Unmarked(lease):
                self._unmarked(now, lease)
            case Unreachable(route):
                self._unreachable(now, route)
            case Malformed(route, reason):
                self._reply(route, protocol.Refused("", ProtocolError.code, reason))
        out, self._out = self._out, []
        return out

    def next_tick_s(self, now: Instant) -> float | None:
        """How long the shell may sleep before the next `Tick`, in seconds; None: until something comes."""
        if self._active or self._tallies:
            return 0.1
        if self.registry.connections:
            return 2.0
        return None

    @property
    def idle(self) -> bool:
        """Nobody is connected, and nothing would be lost or left undone if the broker ended now."""
        return not self.registry.connections and not self._open and (self._store.durable or not self._store.total())

    # --- connections: who may say what

    def _receive(self, now: Instant, route: bytes, envelopes: list[protocol.Envelope]) -> None:
        connection = self.registry.connections.get(route)
        if connection is not None:
            connection.last_seen_s = now.mono_s
        for envelope in envelopes:
            standing = connection.standing if connection is not None else Standing.STRANGER
            rule = _TABLE[standing].get(envelope.__class__)
            if rule is None:
                if standing is Standing.STRANGER:
                    # One EXPIRED is enough: the client says HELLO and repeats the rest of this message itself.
                    self._reply(route, protocol.Expired())
                    return
                verb = type(envelope).__name__.upper()
                self._refuse(
                    route, _ref(envelope), ProtocolError(f"{verb} is not for a {standing.value}; see docs/protocol.md")
                )
                continue
            try:
                rule(self, now, connection or route, envelope)
            except ZmqbusError as error:
                self._refuse(route, _ref(envelope), error)
                if envelope.__class__ is protocol.Hello:
                    return  # what came with a refused HELLO has nobody to speak for it
            connection = self.registry.connections.get(route)

    def _reply(self, route: bytes, envelope: protocol.Envelope) -> None:
        self._out.append(Reply(route, envelope))

    def _refuse(self, route: bytes, ref: str, error: ZmqbusError) -> None:
        self._reply(route, protocol.Refused(ref, getattr(error, "wire_code", error.code), str(error)))

    def _tell(self, session: Session, envelope: protocol.Envelope) -> None:
        """Says something to a session outside its mailbox: on its own name's channel once that is in force."""
        if session.conn is None:
            return
        if session.conn.attached:
            self._out.append(Publish(protocol.name_channel(session.name), envelope))
        else:
            self._reply(session.conn.route, envelope)

    # --- HELLO and its end

    def _hello(self, now: Instant, who: Connection | bytes, hello: protocol.Hello) -> None:
        route = who if isinstance(who, bytes) else who.route
        if hello.version != protocol.VERSION:
            raise ProtocolError(
                f"this client (release {hello.release:.20}) speaks protocol {hello.version}, the broker (release "
                f"{self.release}) speaks {protocol.VERSION}; end the older of the two: zmqbus broker --stop"
            )
        try:
            standing = STANDING[protocol.Role(hello.role)]
        except ValueError:
            raise ProtocolError(f"HELLO with an unknown role, {hello.role}") from None
        for what, names in (("topic", hello.topics), ("group", hello.groups)):
            for name in names:
                naming.check_name(name, what)
        label = naming.check_label(hello.label) or None if hello.label else None
        name = naming.check_name(hello.name) if hello.name else ""
        session: Session | None = None
        if standing is Standing.GUEST:
            self._check_guest(name, hello)
        elif standing is not Standing.OBSERVER:
            session = self._claim(hello, name, standing)
        if isinstance(who, Connection):
            self._part(now, who)
        if standing is Standing.MEMBER and session is not None and session.conn is not None:
            self._displace(now, session, hello.pid)
        connection = self.registry.connect(route, standing, self._new_token(), hello.pid, now.mono_s)
        connection.session = session
        if standing is Standing.GUEST:
            connection.guest = name
            connection.guest_id = f"guest-{hello.token}"
        if session is not None and (standing is Standing.MEMBER or not session.name):
            session.label = label
            session.cwd, session.project = hello.cwd, hello.project
            session.owner = hello.owner
        if standing is Standing.MEMBER:
            assert session is not None
            session.pid = hello.pid
            session.topics, session.groups = frozenset(hello.topics), frozenset(hello.groups)
            session.conn = connection
            session.left = False
            session.since_ts = now.wall_s
            self.registry.take_name(session, name)
        elif session is not None and not session.name:
            # A helper is here before its listener has found the new broker: the session is away, under its name.
            session.name, session.since_ts, session.away_since_s = name, now.wall_s, now.mono_s
        self._reply(
            route,
            protocol.Welcome(
                protocol.VERSION,
                self.release,
                self.epoch,
                session.session_id if session else connection.guest_id,
                session.name if session else name,
                connection.lease,
                connection.peer,
                self.pub_port,
                self._bcast,
                session.mailbox.total if session else 0,
            ),
        )
        if standing is Standing.MEMBER:
            assert session is not None
            self._attach(now, session.mailbox, connection)

    def _claim(self, hello: protocol.Hello, name: str, standing: Standing) -> Session:
        """The session that a HELLO speaks for, entered if it is new; only the token's holder may."""
        if not hello.session_id or not hello.token or not name or len(hello.session_id) > 64:
            raise ProtocolError("HELLO for a session needs its id, its token and its name")
        session = self.registry.sessions.get(hello.session_id)
        if session is not None and not compare_digest(session.token.encode(), hello.token.encode()):
            raise Unauthorized(
                f"the token is not that of session {hello.session_id:.40}; connect anew: /inter-session connect"
            )
        if standing is Standing.MEMBER:
            self._check_free(session, name)
        return session or self.registry.enter(hello.session_id, hello.token)

    def _check_guest(self, name: str, hello: protocol.Hello) -> None:
        if not name or not hello.token:
            raise ProtocolError("HELLO of a guest needs a name and a token")
        if self.registry.holder(name) is not None:
            raise NameTaken(f"'{name}' is the name of a connected session; give --as another one")

    def _check_free(self, session: Session | None, name: str) -> None:
        holder = self.registry.holder(name)
        if holder is not None and holder is not session:
            raise NameTaken(f"the name '{name}' is taken by another session; choose another one")

    def _displace(self, now: Instant, session: Session, by_pid: int) -> None:
        """A newer process claims the session: the one before is told to close, and has no lease any more."""
        assert session.conn is not None
        self._tell(session, protocol.Displaced(by_pid))
        self._part(now, session.conn)

    def _bye(self, now: Instant, who: Connection, _: protocol.Bye) -> None:
        self._part(now, who)

    def _part(self, now: Instant, connection: Connection) -> None:
        """Ends a connection, whatever it was: its session is away, what it waited for goes back where it belongs."""
        self.registry.drop(connection)
        session = connection.session
        if connection.fetching is not None:
            self._end_fetch(now, connection)
        for msg_id in connection.waits:
            self._waits.pop(msg_id, None)
        if connection.mailbox is not None:
            mailbox = connection.mailbox
            if self._owners.get(mailbox) is connection:
                self._detach(mailbox)
            if session is None or mailbox is not session.mailbox:
                self._hand_back(now, connection, mailbox)
        if session is not None and session.conn is connection:
            session.conn = None
            session.away_since_s = now.mono_s
            self.registry.release_name(session)

    def _hand_back(self, now: Instant, connection: Connection, mailbox: Mailbox) -> None:
        """Answers that a helper waited for and did not take go to the session's mailbox; a guest has none."""
        for item in mailbox.drain():
            if connection.session is not None:
                self._enqueue(now, connection.session, item.entry, origin=b"", tally=None, told=True)
            else:
                self._out.append(Note(f"answer {item.entry.msg_id} to {connection.guest} was not taken"))

    def _ping(self, now: Instant, who: Connection, ping: protocol.Ping) -> None:
        session = who.session
        if ping.lease != who.lease:
            self._reply(who.route, protocol.Expired())
        elif session is not None and who.standing is Standing.MEMBER and ping.name != session.name:
            self._reply(who.route, protocol.Renamed(session.name))

    def _marked(self, lease: str) -> None:
        connection = self.registry.by_lease(lease)
        if connection is not None:
            connection.attached = True

    def _unmarked(self, now: Instant, lease: str) -> None:
        """The one sign of a dead peer that libzmq gives at once; silence is found by `_tick`."""
        connection = self.registry.by_lease(lease)
        if connection is not None:
            self._reply(connection.route, protocol.Expired())
            self._part(now, connection)

    def _unreachable(self, now: Instant, route: bytes) -> None:
        connection = self.registry.connections.get(route)
        if connection is not None:
            self._part(now, connection)

    # --- SEND, until it is in the journal

    def _send(self, now: Instant, who: Connection, send: protocol.Send) -> None:
        if not protocol.is_msg_id(send.msg_id):
            raise ProtocolError("a message id is 8 to 12 lower-case letters and digits")
        if self._said_before(who, send):
            return
        if send.fmt not in _FORMATS:
            raise ProtocolError(f"unknown body format {send.fmt}")
        limit = protocol.MAX_BROADCAST_BYTES if send.scope in protocol.TO_MANY else protocol.MAX_BODY_BYTES
        if len(send.body) > limit:
            raise TextTooLong(
                f"{len(send.body):,} bytes; the limit is {limit:,} bytes "
                f"{'to many' if send.scope in protocol.TO_MANY else 'to one receiver'}; write a file and send its path"
            )
        if send.fmt == Format.TEXT:
            try:
                send.body.decode()
            except UnicodeDecodeError as error:
                raise InvalidPayload(f"the text is not UTF-8 ({error.reason} at byte {error.start})") from None
        receivers, waiter, to = self._address(who, send)
        for session in receivers:
            if waiter is None and session.mailbox.full(len(send.body)):
                raise RateLimited(
                    f"the mailbox of '{session.name}' is full ({session.mailbox.total:,} unread messages); "
                    "retry when it has read some"
                )
        if send.scope in protocol.TO_MANY:
            self._count_broadcast(now, who)
        one = receivers[0] if receivers and send.scope not in protocol.TO_MANY else None
        record = Record(
            ts=now.wall_s,
            msg_id=send.msg_id,
            kind="broadcast" if send.scope in protocol.TO_MANY else "message",
            from_session=who.sender_id,
            from_name=who.sender_name,
            from_label=who.session.label if who.session else None,
            to=to,
            to_session_id=one.session_id if one else waiter.sender_id if waiter else None,
            reply_to=send.reply_to,
            fmt=_FORMATS[send.fmt],
            body=send.body,
        )
        self._staged_ids.add(send.msg_id)
        self._staged.append(Staged(who, send, record, record.from_label, receivers, waiter, send.scope == Scope.GROUP))
        self._out.append(Append(record))

    def _said_before(self, who: Connection, send: protocol.Send) -> bool:
        """Whether this id has been accepted already: then its sender is told what it was told, or will be."""
        fate = self._fates.get(send.msg_id)
        unsettled = self._open.get(send.msg_id)
        if fate is None and unsettled is None:
            return send.msg_id in self._staged_ids
        if who.sender_id != (fate or unsettled).sender_id:  # type: ignore[union-attr]
            raise ProtocolError("a message id that another session has used")
        if fate is not None:
            answer = fate.answer
            if isinstance(answer, protocol.Receipt):
                answer = answer._replace(msg_ids=(send.msg_id,))
            self._reply(who.route, answer)
        elif unsettled is not None:
            unsettled.origin = who.route
        return True

    def _address(self, who: Connection, send: protocol.Send) -> tuple[list[Session], Connection | None, str]:
        """Who gets it: sessions, or the connection that waits for this very answer; and how the log calls them."""
        target = send.target
        if send.scope == Scope.SESSION:
            waiter = self._waits.get(send.reply_to) if send.reply_to else None
            if waiter is not None and target in (waiter.sender_name, waiter.sender_id) and waiter is not who:
                return [], waiter, waiter.sender_name
            session = self.registry.resolve(target)
            if session is who.session:
                raise UnknownPeer(f"'{session.name}' is this session itself; a message needs another receiver")
            return [session], None, session.name
        if send.scope == Scope.GROUP:
            naming.check_name(target, "group")
            members = [session for session in self.registry.members(target) if session is not who.session]
            if not members:
                raise UnknownPeer(f"no connected session has joined the group '{target}'; see: zmqbus list")
            # The least loaded, and among those the one that was least recently given something.
            least = min(members, key=lambda session: (session.mailbox.total, session.mailbox.last_append_s))
            return [least], None, f"@{target}"
        if send.scope == Scope.ALL:
            to = "all"
        elif send.scope == Scope.PROJECT:
            to = f"%{naming.project_name(target)}"
        elif send.scope == Scope.TOPIC:
            naming.check_name(target, "topic")
            to = f"#{target}"
        else:
            raise ProtocolError(f"unknown scope {send.scope}")
        return [s for s in self.registry.audience(send.scope, target) if s is not who.session], None, to

    def _count_broadcast(self, now: Instant, who: Connection) -> None:
        recent = who.session.broadcasts if who.session else self._guest_broadcasts.setdefault(who.sender_name, deque())
        while recent and recent[0] <= now.mono_s - MINUTE_S:
            recent.popleft()
        if len(recent) >= BROADCASTS_PER_MINUTE:
            retry_s = recent[0] + MINUTE_S - now.mono_s
            raise RateLimited(
                f"{BROADCASTS_PER_MINUTE} broadcasts within a minute is the limit of a session; retry in {retry_s:.0f} s"
            )
        recent.append(now.mono_s)

    def _await(self, now: Instant, who: Connection, wanted: protocol.Await) -> None:
        if not protocol.is_msg_id(wanted.msg_id) or len(who.waits) >= MAX_WAITS:
            raise ProtocolError(f"AWAIT names a message id, and a connection awaits {MAX_WAITS} answers at most")
        who.waits.add(wanted.msg_id)
        self._waits[wanted.msg_id] = who
        if who.mailbox is None:
            who.mailbox = Mailbox(f"{who.sender_id}/{who.lease}", self._store)
            who.mailbox.open = True
            self._owners[who.mailbox] = who

    # --- from the journal to the receivers

    def _journaled(self, now: Instant, pointers: list[Pointer]) -> None:
        staged, self._staged = self._staged, []
        self._staged_ids.clear()
        for message, pointer in zip(staged, pointers, strict=True):
            self._accepted += 1
            send, record = message.send, message.record
            spilled = len(send.body) > protocol.SPILL_BYTES
            entry = Entry(
                send.msg_id,
                record.from_session,
                record.from_name,
                message.label,
                send.scope,
                "" if send.scope in (Scope.SESSION, Scope.ALL) else send.target,
                send.fmt,
                send.reply_to,
                record.ts,
                len(send.body),
                tuple(pointer),
                b"" if spilled else send.body,
            )
            if send.scope in protocol.TO_MANY:
                self._dispatch_to_many(now, message, entry)
            elif message.waiter is not None:
                self._dispatch_to_waiter(now, message, entry)
            else:
                session = message.receivers[0]
                item = self._enqueue(now, session, entry, origin=message.connection.route, tally=None)
                self._open[entry.msg_id] = item
                if session.conn is None:
                    self._settle_queued(now, item, session, State.AWAY)

    def _journal_failed(self, reason: str) -> None:
        staged, self._staged = self._staged, []
        self._staged_ids.clear()
        for message in staged:
            self._reply(message.connection.route, protocol.Refused(message.send.msg_id, "broker_unavailable", reason))

    def _dispatch_to_many(self, now: Instant, message: Staged, entry: Entry) -> None:
        self._bcast += 1
        bcast = self._bcast
        tally = Tally(
            entry.msg_id,
            entry.from_session,
            message.connection.route,
            len(message.receivers),
            now.mono_s + BUSY_AFTER_S,
        )
        self._open[entry.msg_id] = tally
        channel = protocol.channel(entry.scope, entry.target)
        spared: list[int] = []
        published = False
        sender = message.connection.session
        if sender is not None and sender.conn is not None:
            spared.append(sender.conn.peer)
        for session in message.receivers:
            if session.conn is not None and session.conn.attached and session.mailbox.may_publish(entry):
                published = True
                session.mailbox.append(entry, now.mono_s, origin=b"", tally=tally, bcast=bcast)
                self._active.add(session.mailbox)
                continue
            if session.conn is not None:
                spared.append(session.conn.peer)
            item = self._enqueue(now, session, entry, origin=b"", tally=tally)
            if session.conn is None:
                item.told = True
                self._count(tally, delivered=False)
        prev = self._channels.get(channel, 0)
        self._channels[channel] = bcast
        if published:
            self._out.append(
                Publish(
                    channel,
                    protocol.Broadcast(
                        self.epoch,
                        bcast,
                        prev,
                        tuple(spared),
                        entry.msg_id,
                        entry.from_session,
                        entry.from_name,
                        entry.from_label,
                        entry.scope,
                        entry.target,
                        entry.fmt,
                        entry.reply_to,
                        entry.ts,
                        entry.pointer if entry.spilled else None,
                        entry.body,
                    ),
                )
            )
        if tally.remaining:
            self._tallies.append(tally)
        elif not tally.told:
            self._settle_tally(tally)

    def _dispatch_to_waiter(self, now: Instant, message: Staged, entry: Entry) -> None:
        waiter = message.waiter
        assert waiter is not None and waiter.mailbox is not None
        if self.registry.connections.get(waiter.route) is waiter:
            item = waiter.mailbox.append(entry, now.mono_s, origin=message.connection.route, tally=None)
            self._active.add(waiter.mailbox)
            self._open[entry.msg_id] = item
            self._deliver(now, waiter, item)
        elif waiter.session is not None:
            item = self._enqueue(now, waiter.session, entry, origin=message.connection.route, tally=None)
            self._open[entry.msg_id] = item
            if waiter.session.conn is None:
                self._settle_queued(now, item, waiter.session, State.AWAY)
        else:
            self._refuse(
                message.connection.route,
                entry.msg_id,
                UnknownPeer(f"'{waiter.guest}' has stopped waiting for the answer; it has no mailbox"),
            )

    def _enqueue(
        self, now: Instant, session: Session, entry: Entry, *, origin: bytes, tally: Tally | None, told: bool = False
    ) -> Item:
        """Puts a message in a session's mailbox, and sends it if it may go now."""
        item = session.mailbox.append(entry, now.mono_s, origin=origin, tally=tally)
        item.told = told
        if not item.stored:
            self._active.add(session.mailbox)
            self._deliver(now, self._owners[session.mailbox], item)
        return item

    def _deliver(self, now: Instant, consumer: Connection, item: Item, *, resent: bool = False) -> None:
        entry = item.entry
        # A message waited if it comes out of the store: it could not be handed on when it was accepted.
        age_s = max(0, int(now.wall_s - entry.ts)) if item.stored and not resent else -1
        mailbox = consumer.mailbox
        assert mailbox is not None
        if consumer.fetching is not None:
            consumer.fetching.count += 1
        self._out.append(
            Reply(
                consumer.route,
                protocol.Deliver(
                    item.seq,
                    item.bcast if resent else 0,
                    0 if resent else mailbox.after,
                    entry.msg_id,
                    entry.from_session,
                    entry.from_name,
                    entry.from_label,
                    entry.scope,
                    entry.target,
                    entry.fmt,
                    entry.reply_to,
                    entry.ts,
                    age_s,
                    entry.pointer if entry.spilled else None,
                    entry.body,
                ),
            )
        )

    def _attach(self, now: Instant, mailbox: Mailbox, consumer: Connection) -> None:
        consumer.mailbox = mailbox
        mailbox.open = True
        self._owners[mailbox] = consumer
        self._pump(now, mailbox)

    def _pump(self, now: Instant, mailbox: Mailbox) -> None:
        """Sends what waits behind the window, as far as credit goes."""
        consumer = self._owners.get(mailbox)
        if consumer is None:
            return
        for item in mailbox.refill(now.mono_s):
            self._deliver(now, consumer, item)
        if mailbox.window:
            self._active.add(mailbox)

    def _detach(self, mailbox: Mailbox) -> None:
        """The consumer is gone: whoever waits for a receipt hears that the message is queued."""
        consumer = self._owners.pop(mailbox, None)
        self._active.discard(mailbox)
        for item in mailbox.close():
            if item.tally is not None:
                self._count(item.tally, delivered=False)
            elif consumer is not None and consumer.session is not None:
                self._answer(
                    item,
                    protocol.Receipt(
                        State.AWAY, consumer.session.session_id, consumer.session.name, 0, (item.entry.msg_id,)
                    ),
                )
            elif consumer is not None:
                self._refuse(item.origin, item.entry.msg_id, UnknownPeer(f"'{consumer.guest}' left without taking it"))
                self._open.pop(item.entry.msg_id, None)
            item.told = True

    # --- acknowledgements, and what senders hear

    def _ack(self, now: Instant, who: Connection, ack: protocol.Ack) -> None:
        mailbox = who.mailbox
        if mailbox is None or self._owners.get(mailbox) is not who:
            return  # sent before it heard that the mailbox is read elsewhere
        done = mailbox.acknowledge(ack.seq, ack.bcasts)
        if not done:
            return
        told: dict[bytes, list[str]] = {}
        for item in done:
            if item.told:
                continue
            item.told = True
            if item.tally is not None:
                self._count(item.tally, delivered=True)
            else:
                told.setdefault(item.origin, []).append(item.entry.msg_id)
        for route, msg_ids in told.items():
            self._settle_delivered(route, who, msg_ids)
        self._pump(now, mailbox)
        if not mailbox.window:
            self._active.discard(mailbox)
        if who.fetching is not None:
            self._advance_fetch(now, who)

    def _settle_delivered(self, route: bytes, who: Connection, msg_ids: list[str]) -> None:
        receipt = protocol.Receipt(State.DELIVERED, who.sender_id, who.sender_name, 0, tuple(msg_ids))
        self._reply(route, receipt)
        fate: Fate | None = None
        for msg_id in msg_ids:
            item = self._open.pop(msg_id, None)
            if item is not None:
                if fate is None or fate.sender_id != item.sender_id:
                    fate = Fate(item.sender_id, receipt._replace(msg_ids=()))
                self._remember(msg_id, fate)

    def _settle_queued(self, now: Instant, item: Item, session: Session, state: State) -> None:
        away_s = int(now.mono_s - session.away_since_s) if state is State.AWAY else 0
        self._answer(item, protocol.Receipt(state, session.session_id, session.name, away_s, (item.entry.msg_id,)))

    def _answer(self, item: Item, receipt: protocol.Receipt) -> None:
        item.told = True
        self._open.pop(item.entry.msg_id, None)
        self._remember(item.entry.msg_id, Fate(item.sender_id, receipt))
        self._reply(item.origin, receipt)

    def _count(self, tally: Tally, *, delivered: bool) -> None:
        if tally.told:
            return
        tally.remaining -= 1
        if delivered:
            tally.delivered += 1
        else:
            tally.queued += 1
        if not tally.remaining:
            self._settle_tally(tally)

    def _settle_tally(self, tally: Tally) -> None:
        tally.told = True
        tally.queued += tally.remaining
        answer = protocol.Tally(tally.msg_id, tally.delivered, tally.queued)
        self._open.pop(tally.msg_id, None)
        self._reply(tally.origin, answer)
        self._remember(tally.msg_id, Fate(tally.sender_id, answer))

    def _remember(self, msg_id: str, fate: Fate) -> None:
        self._fates[msg_id] = fate
        if len(self._fates) > REMEMBERED_FATES:
            del self._fates[next(iter(self._fates))]

    # --- reading a mailbox elsewhere (zmqbus inbox)

    def _fetch(self, now: Instant, who: Connection, fetch: protocol.Fetch) -> None:
        session = who.session
        assert session is not None
        if who.fetching is not None:
            raise ProtocolError("one FETCH at a time")
        reader = self._owners.get(session.mailbox)
        if reader is not None and reader.fetching is not None:
            raise RateLimited("another command reads this inbox; retry when it has ended")
        who.fetching = Fetching(fetch.ref, fetch.peek, session, now.mono_s + RECALL_S)
        if session.conn is not None and session.mailbox.window:
            session.recalls += 1
            self._reply(session.conn.route, protocol.Recall(session.recalls))
        else:
            self._begin_fetch(now, who)

    def _recalled(self, now: Instant, who: Connection, recalled: protocol.Recalled) -> None:
        session = who.session
        assert session is not None
        if recalled.generation != session.recalls:
            return
        for connection in list(self.registry.connections.values()):
            fetching = connection.fetching
            if fetching is not None and fetching.session is session and not fetching.started:
                self._begin_fetch(now, connection)
                return

    def _begin_fetch(self, now: Instant, who: Connection) -> None:
        fetching = who.fetching
        assert fetching is not None
        mailbox = fetching.session.mailbox
        if mailbox in self._owners:
            self._detach(mailbox)
        fetching.started = True
        own = who.mailbox
        if own is not None and own is not mailbox:
            # It has waited for answers on this connection: they come first, through the mailbox they belong to.
            self._detach(own)
            self._hand_back(now, who, own)
        self._attach(now, mailbox, who)
        self._advance_fetch(now, who)

    def _advance_fetch(self, now: Instant, who: Connection) -> None:
        """Ends a FETCH when all has been taken; a peek shows what credit allows, since nothing is acknowledged."""
        fetching = who.fetching
        assert fetching is not None and who.mailbox is not None
        left = who.mailbox.total - len(who.mailbox.window)
        if fetching.peek or (not who.mailbox.window and not left):
            self._reply(who.route, protocol.Fetched(fetching.ref, fetching.count, left))
            self._end_fetch(now, who)

    def _end_fetch(self, now: Instant, who: Connection) -> None:
        """The mailbox goes back to the session's own process, if there is one."""
        fetching = who.fetching
        assert fetching is not None
        who.fetching = None
        mailbox = fetching.session.mailbox
        if fetching.started and self._owners.get(mailbox) is who:
            self._detach(mailbox)
            who.mailbox = None
        if fetching.session.conn is not None and self._owners.get(mailbox) is None:
            self._attach(now, mailbox, fetching.session.conn)

    def _refill(self, now: Instant, who: Connection, refill: protocol.Refill) -> None:
        mailbox = who.mailbox
        if mailbox is None:
            return
        owed = mailbox.owed()
        for item in owed:
            if item.bcast in refill.bcasts:
                self._deliver(now, who, item, resent=True)
        self._reply(who.route, protocol.Beat(self.epoch, tuple(item.bcast for item in owed)))

    # --- looking, renaming, leaving

    def _list(self, now: Instant, who: Connection, wanted: protocol.List) -> None:
        sessions = self.registry.reachable() if wanted.everyone else self.registry.live()
        ordered = sorted(sessions, key=lambda session: session.session_id)
        page = [s for s in ordered if s.session_id > wanted.after][: protocol.LIST_PAGE]
        more = bool(page) and page[-1] is not ordered[-1]
        rows = tuple(tuple(self._row(now, session)) for session in page)
        self._reply(who.route, protocol.Sessions(wanted.ref, rows, more))

    def _row(self, now: Instant, session: Session) -> protocol.Session:
        if session.conn is None:
            state = "away"
        else:
            oldest_s = session.mailbox.oldest_s()
            state = "busy" if oldest_s is not None and now.mono_s - oldest_s >= BUSY_STATE_S else "live"
        return protocol.Session(
            session.name,
            session.label,
            session.project,
            session.cwd,
            state,
            session.since_ts,
            session.session_id,
            session.pid,
            session.mailbox.total,
            int(now.mono_s - session.away_since_s) if session.conn is None else 0,
        )

    def _rename(self, now: Instant, who: Connection, rename: protocol.Rename) -> None:
        session = who.session
        assert session is not None
        name = naming.check_name(rename.name)
        if session.conn is None:
            raise NotConnected("the session's listener is not connected; run /inter-session connect first")
        self._check_free(session, name)
        old = session.name
        if name != old:
            self._tell(session, protocol.Renamed(name))
            self.registry.take_name(session, name)
        self._reply(who.route, protocol.Done(rename.ref, old))

    def _disconnect(self, now: Instant, who: Connection, disconnect: protocol.Disconnect) -> None:
        session = who.session
        assert session is not None
        connected = session.conn is not None
        session.left = True
        if session.conn is not None:
            self._tell(session, protocol.Disconnected())
            self._part(now, session.conn)
        self._reply(who.route, protocol.Done(disconnect.ref, "disconnected" if connected else "not connected"))

    def _status(self, now: Instant, who: Connection, status: protocol.Status) -> None:
        assert self._started is not None
        figures = (
            ("release", self.release),
            ("epoch", self.epoch),
            ("uptime_s", int(now.mono_s - self._started.mono_s)),
            ("sessions", sum(1 for _ in self.registry.live())),
            ("away", sum(1 for s in self.registry.reachable() if s.conn is None)),
            ("connections", len(self.registry.connections)),
            ("accepted", self._accepted),
            ("unread", sum(session.mailbox.total for session in self.registry.sessions.values())),
            ("broadcasts", self._bcast),
            ("durable", self._store.durable),
        )
        self._reply(who.route, protocol.Health(status.ref, figures))

    def _stop(self, now: Instant, who: Connection, stop: protocol.Stop) -> None:
        self._reply(who.route, protocol.Done(stop.ref, "stopping"))
        self._out.append(Halt())

    # --- time

    def _tick(self, now: Instant) -> None:
        self._settle_slow(now)
        for connection in [c for c in self.registry.connections.values() if now.mono_s - c.last_seen_s > SILENCE_S]:
            self._out.append(Note(f"{connection!r} has been silent for {SILENCE_S:.0f} s"))
            self._reply(connection.route, protocol.Expired())
            self._part(now, connection)
        for connection in list(self.registry.connections.values()):
            fetching = connection.fetching
            if fetching is not None and not fetching.started and now.mono_s >= fetching.deadline_s:
                self._begin_fetch(now, connection)
        for name, recent in list(self._guest_broadcasts.items()):
            if recent[-1] <= now.mono_s - MINUTE_S:
                del self._guest_broadcasts[name]
        for session in [s for s in self.registry.sessions.values() if s.conn is None]:
            if now.mono_s - session.away_since_s > KEEP_AWAY_S:
                self._out.append(Note(f"{session!r} has been away for 7 days and is forgotten"))
                self.registry.forget(session)

    def _settle_slow(self, now: Instant) -> None:
        """Receivers that have not taken a message within a second: its sender hears `queued`, the truth by now."""
        for mailbox in list(self._active):
            consumer = self._owners.get(mailbox)
            if consumer is None or not mailbox.window:
                self._active.discard(mailbox)
                continue
            for item in mailbox.window:
                if now.mono_s - item.accepted_s < BUSY_AFTER_S:
                    break
                if item.told:
                    continue
                if item.tally is None:
                    if consumer.session is None:
                        continue  # a guest has no mailbox: nothing may be called queued that would die with it
                    mailbox.secure(item)
                    self._settle_queued(now, item, consumer.session, State.BUSY)
                else:
                    mailbox.secure(item)
                    item.told = True
                    self._count(item.tally, delivered=False)
            last = mailbox.after
            if last > consumer.beaten and now.mono_s - mailbox.window[0].accepted_s >= BEAT_AFTER_S:
                consumer.beaten = last
                self._reply(consumer.route, protocol.Beat(self.epoch, tuple(item.bcast for item in mailbox.owed())))
        while self._tallies and (self._tallies[0].told or self._tallies[0].deadline_s <= now.mono_s):
            tally = self._tallies.popleft()
            if not tally.told:
                self._settle_tally(tally)


def _ref(envelope: protocol.Envelope) -> str:
    """What a refusal of this envelope refers to."""
    match envelope:
        case protocol.Hello():
            return "hello"
        case protocol.Send(msg_id=msg_id):
            return msg_id
        case _:
            ref = getattr(envelope, "ref", "")
            return ref if isinstance(ref, str) else ""


_COMMON: dict[type, Callable[..., None]] = {
    protocol.Hello: BrokerCore._hello,
    protocol.Bye: BrokerCore._bye,
    protocol.Ping: BrokerCore._ping,
    protocol.List: BrokerCore._list,
    protocol.Status: BrokerCore._status,
    protocol.Stop: BrokerCore._stop,
}

#: Which verb a connection may say in which standing. What is not here is refused.
_TABLE: dict[Standing, dict[type, Callable[..., None]]] = {
    Standing.STRANGER: {
        protocol.Hello: BrokerCore._hello,
    },
    Standing.MEMBER: {
        **_COMMON,
        protocol.Send: BrokerCore._send,
        protocol.Ack: BrokerCore._ack,
        protocol.Refill: BrokerCore._refill,
        protocol.Recalled: BrokerCore._recalled,
        protocol.Rename: BrokerCore._rename,
        protocol.Disconnect: BrokerCore._disconnect,
    },
    Standing.HELPER: {
        **_COMMON,
        protocol.Send: BrokerCore._send,
        protocol.Await: BrokerCore._await,
        protocol.Ack: BrokerCore._ack,
        protocol.Rename: BrokerCore._rename,
        protocol.Disconnect: BrokerCore._disconnect,
        protocol.Fetch: BrokerCore._fetch,
    },
    Standing.GUEST: {
        **_COMMON,
        protocol.Send: BrokerCore._send,
        protocol.Await: BrokerCore._await,
        protocol.Ack: BrokerCore._ack,
    },
    Standing.OBSERVER: _COMMON,
}
