"""Who is on the bus: sessions, the connections that speak for them, and how a target is found.

A *session* outlives its connections: it is `live` while a listener or program holds a lease for it and `away` after
that, with its mailbox. A *connection* is one routing id of the ROUTER socket. The ROUTER draws routing ids itself, a
new one for each TCP connection, so no peer can take another's; what binds a connection to a session is the token in
its HELLO, and what tells a newer claim from an older one is the lease.

The store keeps every session, so that mail can be sent to those that are away, whichever broker they last met.

Names are unique among connected sessions only. A session that is away still answers to its name as long as nobody
connected has it, which is what lets mail wait for it; it never keeps the name from anyone.

Sessions of one name and project share a *seat*, and follow each other in it (`takeover`). The id of one that was taken
over leads to the one that did it, for as long as mail is kept; whoever still holds such a session, and has something
for it, asks for its `heir`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum

from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.storage.api import SessionRow, Store, succeeded_row
from zmqbus.errors import Ambiguous, RateLimited, UnknownPeer
from zmqbus.text.display import sanitise
from zmqbus.wire import naming
from zmqbus.wire.verbs import Role, Scope

#: A unique prefix of a session id counts as a target from this length on.
MIN_ID_PREFIX = 4
#: Names and matches that an error lists at most.
MAX_LISTED = 5
#: Ended connections whose SUB is still there: they are named in each broadcast, which holds 4,096 names.
MAX_LINGERING = 1_000
#: Sessions that are remembered, connected or away: each costs a kilobyte. Beyond that one for which nothing waits makes
#: room: the one that has been away for longest of those that were here briefly, or else of all.
MAX_SESSIONS = 10_000
#: Ids of sessions that were taken over that are remembered: each may be said again by a sender that holds on to it.
MAX_SUCCEEDED = 10_000
#: A session that was connected for no longer than this makes room before those that were.
BRIEF_S = 60.0
#: The topics or groups of a session that has joined none, as most have: one set for all of them.
NO_NAMES: frozenset[str] = frozenset()


class Standing(Enum):
    """What a connection has shown itself to be: the state of its machine in `core`."""

    STRANGER = "stranger"  #: has not said HELLO, or its lease is over
    MEMBER = "member"  #: the listener or program of a session
    HELPER = "helper"
    GUEST = "guest"
    OBSERVER = "observer"


STANDING = {
    Role.LISTENER: Standing.MEMBER,
    Role.PROGRAM: Standing.MEMBER,
    Role.HELPER: Standing.HELPER,
    Role.GUEST: Standing.GUEST,
    Role.OBSERVER: Standing.OBSERVER,
}


class Connection:
    """One routing id, from its HELLO until it leaves, is lost or is displaced."""

    __slots__ = (
        "allowed",
        "answered_bytes",
        "attached",
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
        "related",
        "requested_s",
        "requests",
        "route",
        "session",
        "silent",
        "standing",
        "waits",
    )

    def __init__(self, route: bytes, standing: Standing, peer: int, lease: str, now_s: float) -> None:
        self.route = route
        self.standing = standing
        self.allowed: frozenset[type] = frozenset()  #: what it may say, by the table in `manners`
        self.peer = peer  #: small number that stands for the lease in `Broadcast.spared`
        self.lease = lease
        self.last_seen_s = now_s
        self.owner = ""  #: the process whose life bounds it, as HELLO named it
        self.silent = False  #: has said nothing for a while: busy, or stopped
        self.probe_at_s = 0.0  #: while it is silent: when it is probed next
        self.session: Session | None = None
        self.program = False  #: of the role PROGRAM: it may be a worker
        self.related = False  #: of the broker's own release: it knows all verbs
        self.guest = ""  #: the name that a guest speaks under
        self.guest_id = ""
        self.attached = False  #: its SUB is in force
        self.mailbox: Mailbox | None = None  #: what this connection consumes
        self.fetches = 0  #: how often it has read a mailbox
        self.previews = 0  #: how often it has looked at one, or marked messages in it
        self.requests = 0.0  #: bulky answers that it has been given lately, as `core` counts them
        self.answered_bytes = 0.0  #: and their size
        self.requested_s = now_s
        self.waits: set[str] = set()  #: ids of messages whose answers it waits for
        self.fetching: Fetching | None = None
        self.beaten = 0  #: last broadcast that it was reminded of

    def __repr__(self) -> str:
        who = self.session.name if self.session else self.guest or "nobody"
        return f"<Connection {self.route.hex()} {self.standing.value} for {who}{' attached' if self.attached else ''}>"

    @property
    def sender_id(self) -> str:
        return self.session.session_id if self.session else self.guest_id

    @property
    def sender_name(self) -> str:
        return self.session.name if self.session else self.guest


class Fetching:
    """A helper reads a session's mailbox: what it asked for, and how far it is."""

    __slots__ = ("count", "deadline_s", "peek", "ref", "session", "started")

    def __init__(self, ref: str, peek: bool, session: Session, deadline_s: float) -> None:
        self.ref = ref
        self.peek = peek
        self.session = session
        self.deadline_s = deadline_s  #: the listener must have given back what it holds by then
        self.started = False
        self.count = 0


class Session:
    """An agent or a script on the bus."""

    __slots__ = (
        "away_since_s",
        "broadcasts",
        "conn",
        "cwd",
        "entered_after",
        "filed",
        "groups",
        "label",
        "left",
        "mailbox",
        "name",
        "named",
        "owner",
        "owner_ended",
        "owner_seen_s",
        "pid",
        "project",
        "recalls",
        "restored",
        "session_id",
        "since_ts",
        "successor",
        "token_digest",
        "topics",
    )

    def __init__(self, session_id: str, token_digest: str, mailbox: Mailbox) -> None:
        self.session_id = session_id
        self.token_digest = token_digest  #: SHA-256, hex: the token itself is its holders' secret
        self.mailbox = mailbox
        self.name = ""
        self.label: str | None = None
        self.cwd = ""
        self.project = ""
        self.pid = 0
        self.owner = ""  #: the process whose life bounds it
        self.owner_ended = False  #: that process is known to have ended: for good
        self.owner_seen_s = 0.0  #: when it was seen to run, on the steady clock
        self.successor: Session | None = None  #: who has taken it over
        self.filed: str | None = None  #: the name that the registry has filed it under
        self.topics = NO_NAMES
        self.groups = NO_NAMES
        self.entered_after = ""  #: id of the message that was accepted last before its first coming
        self.since_ts = 0.0  #: wall clock of its last coming
        self.conn: Connection | None = None
        self.away_since_s = 0.0  #: on the steady clock
        self.left = False  #: disconnected on purpose: not to be found, nor broadcast to, until it comes back
        self.named = True  #: somebody chose its name; else nothing is kept for it when it has gone for good
        self.broadcasts: deque[float] | None = None  #: when it made those of the last minute; None: never any
        self.recalls = 0
        self.restored = False  #: an earlier broker knew it

    def __repr__(self) -> str:
        state = "live" if self.conn else "left" if self.left else "away"
        return f"<Session {self.name!r} {self.session_id[:8]} {state}: {self.mailbox.total} unread>"

    @property
    def heir(self) -> Session:
        """Itself, or whoever has taken it over, or that one in turn."""
        session = self
        while session.successor is not None:
            session = session.successor
        return session


def last_come(sessions: list[Session]) -> Session:
    """Who of these bears the name that they share: the one that is connected; else whoever came last, and has not left
    on purpose."""
    # Of several within one reading of the clock, the one that was filed last.
    return max(reversed(sessions), key=lambda one: (one.conn is not None, not one.left, one.since_ts))


class Registry:
    """The tables. Changes keep them consistent; nothing here decides what anybody is told."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.connections: dict[bytes, Connection] = {}
        self.sessions: dict[str, Session] = {}
        self.unclaimed: dict[str, Mailbox] = {}  #: mail of sessions that nothing else is known of, by their ids
        self._connected: dict[str, Session] = {}  # by name
        self._filed: dict[str, list[Session]] = {}  # by name, all of them
        self._shared: dict[str, None] = {}  # names that several sessions have
        self._succeeded: dict[
            str, tuple[str, float]
        ] = {}  # id of one taken over → id of who did it, and when; oldest first
        self._leases: dict[str, Connection] = {}
        self._peers = 0
        #: Lease → peer of connections that have ended while their SUB still takes what is published. The client may not
        #: know of the end yet, and what it took from there would overtake what waits for it.
        self.lingering: dict[str, int] = {}
        self._ended: dict[str, int] = {}  # likewise, whether their SUB is there or not: it may come back by itself

    def __repr__(self) -> str:
        return f"<Registry: {len(self.connections)} connections, {len(self._connected)} of {len(self.sessions)} live>"

    # --- connections

    def connect(self, route: bytes, standing: Standing, lease: str, now_s: float) -> Connection:
        """Enters a connection that has said HELLO."""
        self._peers += 1
        connection = Connection(route, standing, self._peers, lease, now_s)
        self.connections[route] = connection
        self._leases[lease] = connection
        return connection

    def drop(self, connection: Connection) -> None:
        """Forgets a connection; its session, if it had one, is away."""
        self.connections.pop(connection.route, None)
        self._leases.pop(connection.lease, None)
        if connection.attached:
            self.lingering[connection.lease] = self._ended[connection.lease] = connection.peer
            if len(self._ended) > MAX_LINGERING:
                oldest = next(iter(self._ended))
                del self._ended[oldest]
                self.lingering.pop(oldest, None)

    def came_back(self, lease: str) -> None:
        """The SUB of a connection that has ended has connected anew, with its filters."""
        if lease in self._ended:
            self.lingering[lease] = self._ended[lease]

    def by_lease(self, lease: str) -> Connection | None:
        return self._leases.get(lease)

    # --- sessions

    def enter(self, session_id: str, token_digest: str, last_id: str) -> Session:
        """A new session, away and without a name until a connection brings both. `last_id`: of the message that was
        accepted last.

        Raises `RateLimited` where as many sessions as are remembered are connected or have mail.
        """
        if len(self.sessions) >= MAX_SESSIONS:
            idle = [s for s in self.sessions.values() if s.conn is None and not s.mailbox.total]
            if not idle:
                raise RateLimited(f"{MAX_SESSIONS:,} sessions are connected or have mail; end some, then connect again")
            # Those first that came and went at once: with them nobody can crowd out those that were here.
            self.forget(min(idle, key=lambda one: (one.away_since_s - one.since_ts >= BRIEF_S, one.away_since_s)))
        # guards: recovery: mail survives a lost session row [self.unclaimed.pop(session_id, None) or =>]
        mailbox = self.unclaimed.pop(session_id, None) or Mailbox(session_id, self._store)
        session = self.sessions[session_id] = Session(session_id, token_digest, mailbox)
        session.entered_after = last_id
        self._succeeded.pop(session_id, None)
        return session

    def restore(self, row: SessionRow, now_s: float) -> Session:
        """A session that an earlier broker knew. It is away; if it was connected when that one died, from now on
        (`now_s`, of the steady clock)."""
        mailbox = Mailbox(row.mailbox, self._store)
        session = self.sessions[row.session_id] = Session(row.session_id, row.token_digest, mailbox)
        session.name, session.label = row.name, row.label
        session.cwd, session.project, session.owner = row.cwd, row.project, row.owner
        session.topics, session.groups = frozenset(row.topics), frozenset(row.groups)
        session.entered_after, session.since_ts, session.left = row.entered_after, row.since_ts, row.left
        session.named = row.named
        session.restored = True
        session.away_since_s = now_s if row.away_since_s is None else row.away_since_s
        self._file(session)
        if row.away_since_s is None:
            self.keep(session)
        return session

    def restore_succeeded(self, row: SessionRow) -> None:
        """A session that was taken over under an earlier broker."""
        self._succeeded[row.session_id] = (row.successor, row.away_since_s or 0.0)

    def keep(self, session: Session) -> None:
        """Puts what is known of a session into the store; to be called whenever that has changed."""
        if self.sessions.get(session.session_id) is not session:
            # guards: takeover
            return  # forgotten, or taken over: a command of it may still be there
        self._file(session)
        self._store.save_session(
            SessionRow(
                session.session_id,
                session.token_digest,
                session.mailbox.key,
                session.name,
                session.label,
                session.cwd,
                session.project,
                session.owner,
                tuple(sorted(session.topics)),
                tuple(sorted(session.groups)),
                session.entered_after,
                session.since_ts,
                session.away_since_s if session.conn is None else None,
                session.left,
                session.named,
            )
        )

    def forget(self, session: Session) -> None:
        """Removes a session for good."""
        self.release_name(session)
        if self.sessions.get(session.session_id) is session:
            del self.sessions[session.session_id]
            self._unfile(session)
            self._store.forget_session(session.session_id)

    # --- seats

    def _file(self, session: Session) -> None:
        name = session.name
        if session.filed == name:
            return
        self._unfile(session)
        session.filed = name
        filed = self._filed.setdefault(name, [])
        filed.append(session)
        if len(filed) == 2:
            self._shared[name] = None

    def _unfile(self, session: Session) -> None:
        name, session.filed = session.filed, None
        if name is None:
            return
        filed = self._filed[name]
        filed.remove(session)
        if len(filed) == 1:
            del self._shared[name]
        elif not filed:
            del self._filed[name]

    def seat(self, session: Session) -> list[Session]:
        """The sessions of this one's name and project that somebody named, itself among them."""
        filed = self._filed.get(session.name, ())
        # guards: takeover [and one.named =>]
        return [one for one in filed if one.project == session.project and one.named]

    def shared_seats(self) -> list[list[Session]]:
        """All seats of several sessions."""
        seats: dict[tuple[str, str], list[Session]] = {}
        for name in self._shared:
            for session in self._filed[name]:
                if session.named:
                    seats.setdefault((name, session.project), []).append(session)
        return [seat for seat in seats.values() if len(seat) > 1]

    def away(self) -> list[Session]:
        """Sessions that are not connected."""
        return [session for session in self.sessions.values() if session.conn is None]

    def succeed(self, session: Session, successor: Session, now_s: float) -> None:
        """Removes a session that another one has taken over (at `now_s` of the steady clock): its id stands for that
        one."""
        self.release_name(session)
        del self.sessions[session.session_id]
        self._unfile(session)
        session.successor = successor
        self._succeeded.pop(session.session_id, None)
        self._succeeded[session.session_id] = (successor.session_id, now_s)
        # guards: takeover [=> self._store.forget_session(session.session_id)]
        self._store.save_session(succeeded_row(session.session_id, successor.session_id, now_s))
        if len(self._succeeded) > MAX_SUCCEEDED:
            self._forget_succeeded(next(iter(self._succeeded)))

    def drop_succeeded(self, before_s: float) -> None:
        """Forgets who was taken over before this instant of the steady clock, and by nobody who is left."""
        for session_id, (_, at_s) in list(self._succeeded.items()):
            if at_s < before_s or self.known(session_id) is None:
                self._forget_succeeded(session_id)

    def _forget_succeeded(self, session_id: str) -> None:
        del self._succeeded[session_id]
        self._store.forget_session(session_id)

    def known(self, session_id: str) -> Session | None:
        """The session of this id, or who has taken it over."""
        for _ in range(MAX_SUCCEEDED):  # a damaged store may hold a circle
            session = self.sessions.get(session_id)
            if session is not None or session_id not in self._succeeded:
                return session
            session_id, _ = self._succeeded[session_id]
        return None

    # --- names

    def holder(self, name: str) -> Session | None:
        """The connected session of this name."""
        return self._connected.get(name)

    def take_name(self, session: Session, name: str) -> None:
        """Gives a connected session its name; the caller has made sure that it is free."""
        self.release_name(session)
        session.name = name
        self._connected[name] = session

    def release_name(self, session: Session) -> None:
        """The session keeps the name it goes by, and holds it no longer."""
        if self._connected.get(session.name) is session:
            del self._connected[session.name]

    def live(self) -> Iterator[Session]:
        """Connected sessions, in the order of their names' taking."""
        return iter(self._connected.values())

    def reachable(self) -> Iterator[Session]:
        """Sessions that mail can be sent to: connected, or away."""
        return (session for session in self.sessions.values() if not session.left)

    # --- who is meant

    def resolve(self, target: str) -> Session:
        """The session that a target names, in this order: exact id, exact name, unique prefix of a name,
        unique prefix of an id. At each step those connected are asked before those away.

        Raises `Ambiguous` with the matches, `UnknownPeer` with the nearest names.
        """
        session = self._connected.get(target)
        if session is not None and target not in self.sessions:
            return session  # the hot path: an exact name
        exact = self.known(target)
        if exact is not None and not exact.left:
            return exact
        if session is not None:
            return session
        named = self._away_by_name(target)
        if named is not None:
            return named
        reachable = list(self.reachable())
        shown = sanitise(target, 80)
        if target:
            for by_name, matches in (
                (True, [session for session in reachable if session.name.startswith(target)]),
                (False, [s for s in reachable if len(target) >= MIN_ID_PREFIX and s.session_id.startswith(target)]),
            ):
                connected = [session for session in matches if session.conn]
                found = connected or matches
                if len(found) == 1:
                    return found[0]
                if by_name and found and len({one.name for one in found}) == 1:
                    # One name that several have had, which is one that is meant.
                    return self._away_by_name(found[0].name) or found[0]
                if found:
                    listed = ", ".join(f"{s.name} ({s.session_id[:8]})" for s in found[:MAX_LISTED])
                    more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
                    raise Ambiguous(f"'{shown}' matches {listed}{more}; use the whole name or session id")
        names = sorted({session.name for session in reachable})
        near = naming.nearest(target[:80], names, MAX_LISTED) or names[:MAX_LISTED]
        hint = f"connected or away: {', '.join(near)}" if near else "nobody is on the bus yet"
        raise UnknownPeer(f"no session answers to '{shown}'; {hint}; see: zmqbus list --all")

    def _away_by_name(self, name: str) -> Session | None:
        """Whom a name means that nobody connected has."""
        named = [session for session in self._filed.get(name, ()) if not session.left]
        return last_come(named) if named else None

    def audience(self, scope: int, target: str) -> Iterator[Session]:
        """The sessions that a message to many is for; the caller leaves out its sender."""
        for session in self.reachable():
            if (
                scope == Scope.ALL
                or (scope == Scope.PROJECT and session.project == target)
                or (scope == Scope.TOPIC and target in session.topics)
            ):
                yield session

    def spoken_for(self, session: Session) -> bool:
        """Whether any connection acts for a session: its own, or a command's."""
        return any(connection.session is session for connection in self.connections.values())

    def members(self, group: str) -> list[Session]:
        """The connected sessions that have joined a group."""
        return [session for session in self._connected.values() if group in session.groups]
