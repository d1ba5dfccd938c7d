"""One session, one connection, and the states that each may be in.

A *session* is an agent or a script on the bus. It outlives its connections: it is LIVE while a listener or program
holds a lease for it, and AWAY after that, with its mailbox. A *connection* is one routing id of the ROUTER socket. The
ROUTER draws a new routing id for each TCP connection, so no peer can take another's; the token in HELLO binds a
connection to a session, and the lease tells a newer claim from an older one.

The two tables of transitions are complete: tests replace both `state` attributes with checked ones, so that a
transition that is not listed raises (`tests/transitions.py`).
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from zmqbus.broker.mailbox import Mailbox
from zmqbus.wire.verbs import Role

#: Topics or groups of a session that has joined none, as most have: one set for all of them.
NO_NAMES: frozenset[str] = frozenset()
#: Seconds in which a client is expected back that has lost its connection, or whose broker has ended. Clients notice
#: that at once, look for a broker for five seconds, and have found one after some tenths.
RETURN_S = 5.0


class ConnectionState(Enum):
    """What a connection has registered as; `verbs.TABLE` lists the verbs that each state may send."""

    UNREGISTERED = "unregistered"  #: no HELLO yet, or its lease has ended
    MEMBER = "member"  #: the listener or program of a session
    HELPER = "helper"  #: a command that acts as a session
    GUEST = "guest"  #: a command that sends under a name, without a session
    OBSERVER = "observer"  #: a command that only looks
    CLOSED = "closed"  #: left, lost, displaced, or replaced by another HELLO


STATE_OF_ROLE = {
    Role.LISTENER: ConnectionState.MEMBER,
    Role.PROGRAM: ConnectionState.MEMBER,
    Role.HELPER: ConnectionState.HELPER,
    Role.GUEST: ConnectionState.GUEST,
    Role.OBSERVER: ConnectionState.OBSERVER,
}

CONNECTION_TRANSITIONS: dict[ConnectionState, frozenset[ConnectionState]] = {
    ConnectionState.UNREGISTERED: frozenset(STATE_OF_ROLE.values()),
    **{state: frozenset((ConnectionState.CLOSED,)) for state in STATE_OF_ROLE.values()},
    ConnectionState.CLOSED: frozenset(),
}


class SessionState(Enum):
    """Whether a session is connected, and if not, whether it can be reached and may come back."""

    AWAY = "away"  #: not connected; mail waits for it
    LIVE = "live"  #: a connection speaks for it
    LEFT = "left"  #: disconnected on purpose, or away for too long: cannot be found nor broadcast to, but may come back
    DISCARDED = "discarded"  #: gone for good, and so is its mail; forgotten once no command speaks for it
    TAKEN_OVER = "taken over"  #: its mail and its id belong to its successor
    FORGOTTEN = "forgotten"  #: in no table any more


SESSION_TRANSITIONS: dict[SessionState, frozenset[SessionState]] = {
    SessionState.AWAY: frozenset(SessionState) - {SessionState.AWAY},
    SessionState.LIVE: frozenset((SessionState.AWAY,)),
    SessionState.LEFT: frozenset(
        (SessionState.LIVE, SessionState.DISCARDED, SessionState.TAKEN_OVER, SessionState.FORGOTTEN)
    ),
    SessionState.DISCARDED: frozenset((SessionState.LIVE, SessionState.FORGOTTEN)),
    SessionState.TAKEN_OVER: frozenset(),
    SessionState.FORGOTTEN: frozenset(),
}


class Connection:
    """One routing id, from its HELLO until it is closed.

    Three flags are no states, since they change independently of what the connection registered as, and of each other:
    `subscribed` follows its second TCP connection, `silent` follows the clock, and `recalling` the commands that read
    its session's inbox.
    """

    __slots__ = (
        "allowed",
        "answered_bytes",
        "beaten",
        "fetches",
        "fetching",
        "guest",
        "guest_id",
        "last_seen_s",
        "lease",
        "mailbox",
        "owner",
        "peer",
        "previews",
        "probe_at_s",
        "program",
        "recalling",
        "requested_s",
        "requests",
        "route",
        "session",
        "silent",
        "state",
        "subscribed",
        "waits",
    )

    def __init__(self, route: bytes, peer: int, lease: str, now_s: float) -> None:
        self.route = route
        self.state = ConnectionState.UNREGISTERED
        self.allowed: frozenset[type] = frozenset()  #: the verbs that it may send in its state
        self.peer = peer  #: small number that stands for the lease in `Broadcast.spared`
        self.lease = lease
        self.last_seen_s = now_s
        self.owner = ""  #: the process whose life bounds it, as HELLO named it
        self.silent = False  #: not heard of for a while: busy, or stopped
        self.probe_at_s = 0.0  #: when a silent connection is probed next
        self.session: Session | None = None
        self.program = False  #: registered with the role PROGRAM, so it may be a worker
        self.guest = ""  #: the name that a guest sends under
        self.guest_id = ""
        self.subscribed = False  #: its subscriptions are in force
        self.recalling = False  #: it has not answered the last RECALL
        self.mailbox: Mailbox | None = None  #: the mailbox that this connection consumes
        self.fetches = 0  #: FETCHes so far
        self.previews = 0  #: PREVIEWs and MARKREADs so far
        self.requests = 0.0  #: bulky answers lately, as `core` counts them
        self.answered_bytes = 0.0  #: and their size
        self.requested_s = now_s
        self.waits: set[str] = set()  #: ids of messages whose answers it awaits
        self.fetching: Fetching | None = None
        self.beaten = 0  #: the last broadcast that a beat has announced to it

    def __repr__(self) -> str:
        who = self.session.name if self.session else self.guest or "nobody"
        return f"<Connection {self.route.hex()} {self.state.value} for {who}>"

    @property
    def sender_id(self) -> str:
        """Session id that its messages carry."""
        return self.session.session_id if self.session else self.guest_id

    @property
    def sender_name(self) -> str:
        """Name that its messages carry."""
        return self.session.name if self.session else self.guest


class Fetching:
    """Progress of a command that reads its session's mailbox (FETCH)."""

    __slots__ = ("count", "deadline_s", "peek", "ref", "session", "started")

    def __init__(self, ref: str, peek: bool, session: Session, deadline_s: float) -> None:
        self.ref = ref
        self.peek = peek
        self.session = session
        self.deadline_s = deadline_s  #: until then the listener may hand back its unacknowledged messages
        self.started = False
        self.count = 0


class Session:
    """An agent or a script on the bus.

    Three flags are no states. `persistent` is part of the identity that HELLO gives. `restored` says where the session
    comes from, and stays. `owner_ended` caches an answer of the operating system, which may come in any state without a
    connection.
    """

    __slots__ = (
        "agent",
        "agent_detail",
        "agent_since_ts",
        "away_since_s",
        "broadcasts",
        "conn",
        "cwd",
        "entered_after",
        "filed",
        "groups",
        "label",
        "mailbox",
        "name",
        "owner",
        "owner_ended",
        "owner_seen_s",
        "persistent",
        "pid",
        "project",
        "recalls",
        "restored",
        "session_id",
        "since_ts",
        "state",
        "successor",
        "token_digest",
        "topics",
        "was_connected",
    )

    def __init__(self, session_id: str, token_digest: str, mailbox: Mailbox) -> None:
        self.session_id = session_id
        self.token_digest = token_digest  #: SHA-256, hex: only the session's own processes know the token
        self.mailbox = mailbox
        self.state = SessionState.AWAY
        self.name = ""
        self.label: str | None = None
        self.cwd = ""
        self.project = ""
        self.pid = 0
        self.owner = ""  #: the process whose life bounds it
        self.owner_ended = False  #: that process is known to have ended: for good
        self.owner_seen_s = 0.0  #: when it was last seen running, on the steady clock
        self.successor: Session | None = None  #: the session that has taken it over
        self.filed: str | None = None  #: the name that the registry has filed it under
        self.topics = NO_NAMES
        self.groups = NO_NAMES
        self.entered_after = ""  #: id of the last message that was accepted before it first connected
        self.since_ts = 0.0  #: when it last connected, on the wall clock
        self.conn: Connection | None = None  #: set exactly while it is LIVE
        self.away_since_s = 0.0  #: on the steady clock
        self.persistent = True  #: its name was chosen; an ephemeral session is discarded when it has gone for good
        self.broadcasts: deque[float] | None = None  #: times of its broadcasts in the last minute; None: never any
        self.recalls = 0  #: number of its last RECALL; an answer to an earlier one is ignored
        self.restored = False  #: known to an earlier broker
        self.was_connected = False  #: connected to it when it ended
        self.agent = "unknown"  #: what its agent does, as its own processes say
        self.agent_since_ts = 0.0  #: since when, on the wall clock
        self.agent_detail = ""  #: of a blocked agent: what it waits for

    def __repr__(self) -> str:
        return f"<Session {self.name!r} {self.session_id[:8]} {self.state.value}: {self.mailbox.total} unread>"

    @property
    def is_reachable(self) -> bool:
        """Whether mail can be sent to it."""
        return self.state is SessionState.LIVE or self.state is SessionState.AWAY

    @property
    def heir(self) -> Session:
        """Itself, or the session that has taken it over, directly or through others."""
        session = self
        while session.successor is not None:
            session = session.successor
        return session

    def connect(self, connection: Connection) -> None:
        """Makes it LIVE over this connection."""
        self.conn = connection
        self.state = SessionState.LIVE

    def part(self, now_s: float) -> None:
        """Makes it AWAY since this instant of the steady clock."""
        self.conn = None
        self.away_since_s = now_s
        self.state = SessionState.AWAY

    def leave(self) -> None:
        """Makes a session that is not connected unreachable until it comes back."""
        if self.state is SessionState.AWAY:
            self.state = SessionState.LEFT if self.persistent else SessionState.DISCARDED

    def discard(self) -> None:
        """Marks a session that is not connected, and its mail, as gone for good."""
        self.persistent = False
        if self.state in (SessionState.AWAY, SessionState.LEFT):
            self.state = SessionState.DISCARDED


def bearer_of(sessions: list[Session]) -> Session:
    """The bearer of the name that these share: the connected one, else the last that connected and has not left."""
    # Of several within one reading of the clock, the one that was filed last.
    return max(reversed(sessions), key=lambda one: (one.conn is not None, one.is_reachable, one.since_ts))
