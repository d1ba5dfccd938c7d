"""Tables of the sessions and connections that the broker knows, and how a target is resolved in them.

The store keeps every session, so that mail can be sent to those that are away, whichever broker they last met.

Names are unique among connected sessions only. A session that is away can still be addressed by its name as long as no
connected one has it, so that mail waits for it; but it never keeps the name from anyone.

Sessions of one name and project share a *seat* and follow each other in it (`takeover`). The id of a session that was
taken over leads to its successor for as long as mail is kept; code that still holds such a session asks for its `heir`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.sessions import Connection, ConnectionState, Session, SessionState, bearer_of
from zmqbus.broker.storage.api import SessionRow, Store, succeeded_row
from zmqbus.errors import Ambiguous, NameTaken, RateLimited, UnknownPeer
from zmqbus.text.display import sanitise
from zmqbus.wire import naming
from zmqbus.wire.verbs import Scope

#: A unique prefix of a session id counts as a target from this length on.
MIN_ID_PREFIX = 4
#: Names and matches that an error lists at most.
MAX_LISTED = 5
#: Closed connections whose SUB may still be there: each broadcast names them, and has room for 4,096 names.
MAX_LINGERING = 1_000
#: Sessions that are remembered, connected or away; each costs a kilobyte. Beyond that a session without mail makes
#: room: the longest away, first among those that were connected only briefly.
MAX_SESSIONS = 10_000
#: Ids of taken over sessions that are remembered: a sender may repeat a message to any of them.
MAX_SUCCEEDED = 10_000
#: A session that was connected for no longer than this, in seconds, makes room before the others.
BRIEF_S = 60.0


class Registry:
    """Keeps the tables of sessions and connections consistent; the callers send the answers to clients."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.connections: dict[bytes, Connection] = {}
        self.sessions: dict[str, Session] = {}
        self.unclaimed: dict[str, Mailbox] = {}  #: session id → mail of a session whose row is lost
        self._connected: dict[str, Session] = {}  # by name
        self._filed: dict[str, list[Session]] = {}  # by name, connected or not
        self._shared: dict[str, None] = {}  # names that several sessions have
        # Id of a session that was taken over → id of its successor, and when; oldest first.
        self._succeeded: dict[str, tuple[str, float]] = {}
        self._leases: dict[str, Connection] = {}
        self._peers = 0
        #: Lease → peer of closed connections whose SUB still receives broadcasts. The client may not have noticed the
        #: end yet, and a broadcast that it receives there would overtake its waiting mail.
        self.lingering: dict[str, int] = {}
        self._closed: dict[str, int] = {}  # the same, including those whose SUB is gone: it may reconnect by itself

    def __repr__(self) -> str:
        return f"<Registry: {len(self.connections)} connections, {len(self._connected)} of {len(self.sessions)} live>"

    # --- connections

    def connect(self, route: bytes, state: ConnectionState, lease: str, now_s: float) -> Connection:
        """Adds a connection that HELLO has put into this state."""
        self._peers += 1
        connection = Connection(route, self._peers, lease, now_s)
        connection.state = state
        self.connections[route] = connection
        self._leases[lease] = connection
        return connection

    def drop(self, connection: Connection) -> None:
        """Removes a connection and closes it; parting its session is up to the caller."""
        connection.state = ConnectionState.CLOSED
        del self.connections[connection.route]
        del self._leases[connection.lease]
        if connection.subscribed:
            self.lingering[connection.lease] = self._closed[connection.lease] = connection.peer
            if len(self._closed) > MAX_LINGERING:
                oldest = next(iter(self._closed))
                del self._closed[oldest]
                self.lingering.pop(oldest, None)

    def resubscribed(self, lease: str) -> None:
        """Notes that the SUB of a closed connection has reconnected, with its filters."""
        if lease in self._closed:
            self.lingering[lease] = self._closed[lease]

    def by_lease(self, lease: str) -> Connection | None:
        """The open connection with this lease."""
        return self._leases.get(lease)

    # --- sessions

    def enter(self, session_id: str, token_digest: str, last_id: str) -> Session:
        """Adds a new session, AWAY and without a name until a connection brings both.

        `last_id` is the id of the last accepted message. Raises `RateLimited` if all sessions that can be remembered
        are connected or have mail.
        """
        if len(self.sessions) >= MAX_SESSIONS:
            idle = [s for s in self.sessions.values() if s.conn is None and not s.mailbox.total]
            if not idle:
                raise RateLimited(f"{MAX_SESSIONS:,} sessions are connected or have mail; end some, then connect again")
            # Brief visitors make room first, so that a flood of them cannot crowd out established sessions.
            self.forget(min(idle, key=lambda one: (one.away_since_s - one.since_ts >= BRIEF_S, one.away_since_s)))
        # guards: recovery: mail survives a lost session row [self.unclaimed.pop(session_id, None) or =>]
        mailbox = self.unclaimed.pop(session_id, None) or Mailbox(session_id, self._store)
        session = self.sessions[session_id] = Session(session_id, token_digest, mailbox)
        session.entered_after = last_id
        self._succeeded.pop(session_id, None)
        return session

    def restore(self, row: SessionRow, now_s: float) -> Session:
        """Adds a session that an earlier broker knew.

        If it was connected when that broker died, it is AWAY from `now_s` of the steady clock on.
        """
        mailbox = Mailbox(row.mailbox, self._store)
        session = self.sessions[row.session_id] = Session(row.session_id, row.token_digest, mailbox)
        session.name, session.label = row.name, row.label
        session.cwd, session.project, session.owner = row.cwd, row.project, row.owner
        session.topics, session.groups = frozenset(row.topics), frozenset(row.groups)
        session.entered_after, session.since_ts = row.entered_after, row.since_ts
        session.persistent = row.persistent
        session.restored = True
        session.was_connected = row.away_since_s is None
        session.away_since_s = now_s if row.away_since_s is None else row.away_since_s
        if row.left:
            session.leave()
        self._file(session)
        if row.away_since_s is None:
            self.keep(session)
        return session

    def restore_succeeded(self, row: SessionRow) -> None:
        """Adds the id of a session that was taken over under an earlier broker."""
        self._succeeded[row.session_id] = (row.successor, row.away_since_s or 0.0)

    def keep(self, session: Session) -> None:
        """Saves a session; call it after every change that a later broker has to know."""
        if self.sessions.get(session.session_id) is not session:
            # guards: takeover
            return  # forgotten or taken over, while one of its commands is still connected
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
                session.state in (SessionState.LEFT, SessionState.DISCARDED),
                session.persistent,
            )
        )

    def forget(self, session: Session) -> None:
        """Removes a session that is not connected, from the tables and from the store."""
        if self.sessions.get(session.session_id) is session:
            session.state = SessionState.FORGOTTEN
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
        """The persistent sessions of this one's name and project, itself included."""
        filed = self._filed.get(session.name, ())
        # guards: takeover [and one.persistent =>]
        return [one for one in filed if one.project == session.project and one.persistent]

    def shared_seats(self) -> list[list[Session]]:
        """All seats that several sessions share."""
        seats: dict[tuple[str, str], list[Session]] = {}
        for name in self._shared:
            for session in self._filed[name]:
                if session.persistent:
                    seats.setdefault((name, session.project), []).append(session)
        return [seat for seat in seats.values() if len(seat) > 1]

    def away(self) -> list[Session]:
        """Sessions that are not connected."""
        return [session for session in self.sessions.values() if session.conn is None]

    def succeed(self, session: Session, successor: Session, now_s: float) -> None:
        """Removes a session whose mail another one has taken over, at `now_s` of the steady clock.

        Its id leads to the successor from now on.
        """
        session.state = SessionState.TAKEN_OVER
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
        """Forgets the ids that were taken over before this instant of the steady clock, or whose heir is gone."""
        for session_id, (_, at_s) in list(self._succeeded.items()):
            if at_s < before_s or self.known(session_id) is None:
                self._forget_succeeded(session_id)

    def _forget_succeeded(self, session_id: str) -> None:
        del self._succeeded[session_id]
        self._store.forget_session(session_id)

    def known(self, session_id: str) -> Session | None:
        """The session of this id, or its heir."""
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

    def check_free(self, session: Session | None, name: str) -> None:
        """Raises `NameTaken` if another connected session has the name."""
        holder = self.holder(name)
        if holder is not None and holder is not session:  # guards: sessions [off]
            raise NameTaken(f"the name '{name}' is taken by another session; choose another one")

    def take_name(self, session: Session, name: str) -> None:
        """Gives a connected session a name that no other connected session has."""
        self.release_name(session)
        session.name = name
        self._connected[name] = session

    def release_name(self, session: Session) -> None:
        """Frees the name for other sessions; mail can still be addressed to this one by it."""
        if self._connected.get(session.name) is session:
            del self._connected[session.name]

    def live(self) -> Iterator[Session]:
        """Connected sessions, in the order in which they took their names."""
        return iter(self._connected.values())

    def reachable(self) -> Iterator[Session]:
        """Sessions that mail can be sent to: connected, or away."""
        live, away = SessionState.LIVE, SessionState.AWAY  # not `is_reachable`: each broadcast asks all sessions
        return (session for session in self.sessions.values() if session.state is live or session.state is away)

    # --- targets

    def resolve(self, target: str) -> Session:
        """Finds the session of a target: by exact id, exact name, unique prefix of a name, or unique prefix of an id.

        At each step connected sessions take precedence. Raises `Ambiguous` with the matches, or `UnknownPeer` with the
        nearest names.
        """
        session = self._connected.get(target)
        if session is not None and target not in self.sessions:
            return session  # the hot path: an exact name
        exact = self.known(target)
        if exact is not None and exact.is_reachable:
            return exact
        if session is not None:
            return session
        named = self._away_by_name(target)
        if named is not None:
            return named
        reachable = list(self.reachable())
        return (target and self._by_prefix(reachable, target)) or self._raise_unknown(reachable, target)

    def _by_prefix(self, reachable: list[Session], target: str) -> Session | None:
        by_name = _connected_first([session for session in reachable if session.name.startswith(target)])
        if len({session.name for session in by_name}) == 1:
            # Sessions that share one name are one target.
            return by_name[0] if len(by_name) == 1 else self._away_by_name(by_name[0].name) or by_name[0]
        by_id = [session for session in reachable if session.session_id.startswith(target)]
        found = by_name or (_connected_first(by_id) if len(target) >= MIN_ID_PREFIX else [])
        if len(found) > 1:
            listed = ", ".join(f"{s.name} ({s.session_id[:8]})" for s in found[:MAX_LISTED])
            more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
            raise Ambiguous(f"'{sanitise(target, 80)}' matches {listed}{more}; use the whole name or session id")
        return found[0] if found else None

    def _raise_unknown(self, reachable: list[Session], target: str) -> NoReturn:
        names = sorted({session.name for session in reachable})
        near = naming.nearest(target[:80], names, MAX_LISTED) or names[:MAX_LISTED]
        hint = f"connected or away: {', '.join(near)}" if near else "nobody is on the bus yet"
        raise UnknownPeer(f"no session answers to '{sanitise(target, 80)}'; {hint}; see: zmqbus list --all")

    def _away_by_name(self, name: str) -> Session | None:
        """The session that a name addresses while no connected session has it."""
        named = [session for session in self._filed.get(name, ()) if session.is_reachable]
        return bearer_of(named) if named else None

    def audience(self, scope: int, target: str) -> Iterator[Session]:
        """The sessions that a message to many addresses; the caller leaves out its sender."""
        for session in self.reachable():
            if (
                scope == Scope.ALL
                or (scope == Scope.PROJECT and session.project == target)
                or (scope == Scope.TOPIC and target in session.topics)
            ):
                yield session

    def is_represented(self, session: Session) -> bool:
        """Whether any connection acts for a session: its own, or a command's."""
        return any(connection.session is session for connection in self.connections.values())

    def members(self, group: str) -> list[Session]:
        """The connected sessions that have joined a group."""
        return [session for session in self._connected.values() if group in session.groups]


def _connected_first(matches: list[Session]) -> list[Session]:
    """Returns the connected sessions among these, or all if none is connected."""
    return [session for session in matches if session.conn] or matches
