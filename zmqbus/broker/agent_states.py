"""What the agents of sessions do (SETSTATE), who waits for it (UNTIL), and the notices of it (NOTICE). Pure.

Theory of operation
===================

A session's own processes tell what its agent does. The broker keeps that in memory with the session: a listener tells
it again after each HELLO, so a new broker knows it within a moment. One state the broker finds out itself: `gone`, when
the session has left or the process whose life bounds it has ended.

*Notices.* Two topics tell what happens to sessions: `sys.sessions` (they come, go, get another name) and `sys.state`.
Notices are ephemeral: published once, not stored, not repeated. At most one a second is published for each session and
topic; what happens in between is summed up, and a session that is again as it was last told needs no notice. So a
listener that reconnects, or a broker that is replaced, tells nobody anything.

*Waiting.* UNTIL is answered when the state is reached, without any polling by the client. The state is compared with
each change, and with each tick for what the broker finds out itself.
"""

from __future__ import annotations

from zmqbus.broker.admission import Admission
from zmqbus.broker.events import Instant, Outbox, Publish
from zmqbus.broker.registry import Registry
from zmqbus.broker.sessions import RETURN_S, Connection, Session, SessionState
from zmqbus.broker.takeover import Takeover
from zmqbus.errors import InvalidPayload, NotConnected, RateLimited
from zmqbus.text.display import sanitise
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.handlers import handles
from zmqbus.wire.verbs import AGENT_STATES, Scope

#: Seconds between two notices about one session on one topic.
NOTICE_PAUSE_S = 1.0
#: Pause between two looks at whether the owners of sessions that are away still live: states are true within 2 s.
AGENT_LOOK_S = 1.0
#: UNTILs that one connection may have open.
MAX_UNTILS = 16

GONE, UNKNOWN = "gone", "unknown"
SESSIONS, STATE = verbs.SYSTEM_TOPICS


class _Wait(NamedTuple):
    """An UNTIL that is not answered yet."""

    connection: Connection
    ref: str
    session: Session
    states: tuple[str, ...]


class _Told(NamedTuple):
    """What the notices have told of a session last."""

    present: bool
    name: str
    state: str
    detail: str


class AgentStates:
    """Keeps the states, answers UNTIL and publishes the notices. Not thread-safe."""

    def __init__(self, out: Outbox, registry: Registry, admission: Admission, takeover: Takeover) -> None:
        self._out = out
        self._registry = registry
        self._admission = admission
        self._takeover = takeover
        self._waits: list[_Wait] = []
        self._told: dict[str, tuple[Session, _Told, float]] = {}  # by session id; and when, on the monotonic clock
        self._changed: dict[str, Session] = {}  # sessions that may need a notice
        self._quiet_until_s = 0.0
        self._look_due_s = 0.0

    def __repr__(self) -> str:
        return f"<AgentStates: {len(self._waits)} waits, {len(self._changed)} changed>"

    @property
    def needs_tick(self) -> bool:
        """Whether a notice is due within a second."""
        return bool(self._changed)

    def recover(self, now: Instant) -> None:
        """Takes the sessions that were connected to the earlier broker as told of; they have `RETURN_S` to return."""
        self._quiet_until_s = now.mono_s + RETURN_S
        for session in self._registry.sessions.values():
            if session.was_connected:
                told = _Told(True, session.name, UNKNOWN, "")
                self._told[session.session_id] = session, told, now.mono_s
                self._changed[session.session_id] = session

    # --- what clients ask for

    @handles(verbs.SetState)
    def set_state(self, now: Instant, who: Connection, told: verbs.SetState) -> None:
        """Notes what the agent of the sender's session does."""
        session = who.session
        assert session is not None
        if told.state not in AGENT_STATES:
            raise InvalidPayload(f"the state {told.state!r} is none of {', '.join(AGENT_STATES)}")
        if not session.is_reachable:
            raise NotConnected("the session has left the bus; connect it first")
        if (told.state, told.detail) != (session.agent, session.agent_detail):
            session.agent, session.agent_detail = told.state, sanitise(told.detail)
            session.agent_since_ts = min(told.since, now.wall_s) if told.since > 0 else now.wall_s
            self.changed(now, session)
        self._out.reply(who.route, verbs.Done(told.ref, told.state))

    @handles(verbs.Until)
    def until(self, now: Instant, who: Connection, asked: verbs.Until) -> None:
        """Answers once the session's agent is in one of these states; at once if it is."""
        if not asked.states or any(state not in AGENT_STATES for state in asked.states):
            raise InvalidPayload(f"UNTIL names states that are none of {', '.join(AGENT_STATES)}")
        session = self._admission.resolve(now, asked.target)
        if sum(wait.connection is who for wait in self._waits) >= MAX_UNTILS:  # guards: rate limits [off]
            raise RateLimited(f"{MAX_UNTILS} waits at once are the limit of one connection; end one first")
        wait = _Wait(who, asked.ref, session, asked.states)
        if not self._is_over(now, wait):
            self._waits.append(wait)

    # --- what happens to sessions

    def state_of(self, now: Instant, session: Session, *, ask: bool = False) -> str:
        """Returns what a session's agent does, as far as is known.

        Whether the owner of a session that is away still lives is asked only where its agent has told of itself, or
        with `ask`: each look at a process takes 12 us.
        """
        session = session.heir
        if session.state in (SessionState.LEFT, SessionState.DISCARDED, SessionState.FORGOTTEN):
            return GONE
        if session.conn is not None or (session.agent == UNKNOWN and not ask):
            return session.agent
        return GONE if self._takeover.has_ended(now, session) else session.agent

    def changed(self, now: Instant, session: Session) -> None:
        """Notes that a session came, went, has another name or another state."""
        self._changed[session.session_id] = session
        self._tell(now, session)
        if self._waits:
            self._answer(now)

    def parted(self, now: Instant, connection: Connection) -> None:
        """Forgets what a connection waits for; it asks again over the next one."""
        if self._waits:
            self._waits = [wait for wait in self._waits if wait.connection is not connection]

    def tick(self, now: Instant) -> None:
        """Publishes the notices that are due, and looks for agents that are gone."""
        if now.mono_s >= self._look_due_s:
            self._look_due_s = now.mono_s + AGENT_LOOK_S
            for session, told, _ in list(self._told.values()):
                if told.state not in (GONE, UNKNOWN) and session.conn is None and self.state_of(now, session) == GONE:
                    self._changed[session.session_id] = session
            if self._waits:
                self._answer(now)
        for session in list(self._changed.values()):
            self._tell(now, session)

    def _answer(self, now: Instant) -> None:
        self._waits = [wait for wait in self._waits if not self._is_over(now, wait)]

    def _is_over(self, now: Instant, wait: _Wait) -> bool:
        state = self.state_of(now, wait.session, ask=GONE in wait.states)
        if state not in wait.states:
            return False
        self._out.reply(wait.connection.route, verbs.Done(wait.ref, state))
        return True

    def _tell(self, now: Instant, session: Session) -> None:
        """Publishes what has changed since the last notices about a session, unless that is less than a second ago."""
        key = session.session_id
        before: _Told | None = None
        if key in self._told:
            _, before, told_s = self._told[key]
            if now.mono_s - told_s < NOTICE_PAUSE_S:  # guards: notices [off]
                return
            if before.present and session.conn is None and self._may_return(now, session):
                return
        del self._changed[key]
        after = _Told(session.conn is not None, session.name, self.state_of(now, session), session.agent_detail)
        if before is None:
            before = after._replace(present=False, state=UNKNOWN, detail="")
        if after == before:
            return
        self._told[key] = session, after, now.mono_s
        if after.present != before.present:
            self._publish(now, SESSIONS, session, "came" if after.present else "went", "")
        elif after.name != before.name:
            self._publish(now, SESSIONS, session, "renamed", before.name)
        if (after.state, after.detail) != (before.state, before.detail):
            self._publish(now, STATE, session, after.state, after.detail if after.state == "blocked" else "")
        if not after.present and after.state in (GONE, UNKNOWN):
            del self._told[key]  # nothing more will happen to it; if it comes back, that is news

    def _may_return(self, now: Instant, session: Session) -> bool:
        """Whether a session has just lost its connection, and may be back in a moment."""
        if session.state is not SessionState.AWAY:
            return False
        return now.steady_s - session.away_since_s < NOTICE_PAUSE_S or now.mono_s < self._quiet_until_s

    def _publish(self, now: Instant, topic: str, session: Session, change: str, detail: str) -> None:
        notice = verbs.Notice(topic, session.session_id, session.name, change, detail, now.wall_s)
        self._out.put(Publish(verbs.channel(Scope.TOPIC, topic), notice))
