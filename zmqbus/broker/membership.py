"""Changes of a session that a client asks for: RENAME, DISCONNECT, FORGET, REMOVE. Pure."""

from __future__ import annotations

from contextlib import suppress

from zmqbus.broker.agent_states import AgentStates
from zmqbus.broker.connections import Connections, check_token
from zmqbus.broker.delivery import Delivery
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.groups.requests import RequestBroker
from zmqbus.broker.registry import Registry
from zmqbus.broker.retention import Retention
from zmqbus.broker.sessions import Connection, Session, SessionState
from zmqbus.broker.takeover import Takeover
from zmqbus.errors import BrokerUnavailable, NameTaken, NotConnected, RateLimited, Unauthorized, UnknownPeer
from zmqbus.wire import naming, verbs
from zmqbus.wire.handlers import handles


class Membership:
    """Renames sessions, and takes them off the bus. Not thread-safe."""

    def __init__(
        self,
        out: Outbox,
        registry: Registry,
        delivery: Delivery,
        connections: Connections,
        requests: RequestBroker,
        takeover: Takeover,
        retention: Retention,
        agent_states: AgentStates,
    ) -> None:
        self._out = out
        self._registry = registry
        self._delivery = delivery
        self._connections = connections
        self._requests = requests
        self._takeover = takeover
        self._retention = retention
        self._agent_states = agent_states
        #: Renames of this wake: route and ref of the request, session, old and new name.
        self._renaming: list[tuple[bytes, str, Session, str, str]] = []

    @handles(verbs.Rename)
    def _rename(self, now: Instant, who: Connection, rename: verbs.Rename) -> None:
        session = who.session
        assert session is not None
        name = naming.check_name(rename.name)
        if session.conn is None:
            raise NotConnected("the session's listener is not connected; connect the session first")
        self._registry.check_free(session, name)
        old = session.name
        if name == old:
            self._out.reply(who.route, verbs.Done(rename.ref, old))
            return
        self._registry.take_name(session, name)
        self._registry.keep(session)
        self._renaming.append((who.route, rename.ref, session, old, name))

    def renames_kept(self, now: Instant, reason: str | None) -> None:
        """Announces the new names that are now in the store; with `reason`, takes them back, since the commit failed.

        Mail for a name that the next broker does not know could go to another session.
        """
        renaming, self._renaming = self._renaming, []
        if reason is None:
            for route, ref, session, old, name in renaming:
                self._connections.tell(session, verbs.Renamed(name), name=old)
                self._takeover.settle(now, session)  # guards: takeover
                self._agent_states.changed(now, session)
                self._out.reply(route, verbs.Done(ref, old))
            return
        for route, ref, session, old, _ in reversed(renaming):  # reversed for a session that was renamed twice
            # If a session that has just connected has the old name, this one keeps the new until the disk has room.
            with suppress(NameTaken):
                self._registry.check_free(session, old)
                self._registry.take_name(session, old)
                self._registry.keep(session)
            self._out.reply(route, verbs.Refused(ref, BrokerUnavailable.code, f"not renamed: {reason}"))

    @handles(verbs.Disconnect)
    def _disconnect(self, now: Instant, who: Connection, disconnect: verbs.Disconnect) -> None:
        session = who.session
        assert session is not None
        was_there = session.state not in (SessionState.LEFT, SessionState.DISCARDED)  # AWAY counts as well
        if session.conn is not None:
            self._connections.tell(session, verbs.Disconnected(), last=True)
            self._connections.part(now, session.conn, gone=True)
        session.leave()
        self._requests.left(session)
        self._registry.keep(session)
        self._retention.parted(session, gone=True)
        self._agent_states.changed(now, session)
        self._out.reply(who.route, verbs.Done(disconnect.ref, "disconnected" if was_there else "not connected"))

    @handles(verbs.Forget)
    def _forget(self, now: Instant, who: Connection | bytes, forget: verbs.Forget) -> None:
        # Accepted from any holder of the token: the loss of its mark may be noticed before a client's last message.
        session = self._registry.sessions.get(forget.session_id)
        unread = 0
        if session is not None:
            check_token(session, forget.token)
            unread = session.mailbox.total
            session.persistent = False
            own = session.conn
            if own is not None:
                if own is not who:
                    self._connections.tell(session, verbs.Disconnected(), last=True)
                self._connections.part(now, own, gone=True)
            self._requests.left(session)
            self._retention.parted(session, gone=True)
            self._agent_states.changed(now, session)
        self._out.reply(who if isinstance(who, bytes) else who.route, verbs.Done(forget.ref, str(unread)))

    @handles(verbs.Remove)
    def _remove(self, now: Instant, who: Connection, remove: verbs.Remove) -> None:
        session = self._registry.known(remove.session_id)
        if session is None or not session.is_reachable:  # guards: takeover [or not session.is_reachable =>]
            raise UnknownPeer("that session is not on the bus any more; see who is: zmqbus list --all")
        if session.conn is not None:
            raise Unauthorized(
                f"'{session.name}' is connected, and only those away can be removed; end it first: zmqbus disconnect "
                "in its own shell, or on the page of zmqbus console"
            )
        if self._delivery.consumer(session.mailbox) is not None:
            raise RateLimited(f"a command reads the inbox of '{session.name}'; repeat this when it has ended")
        unread = session.mailbox.total
        if 0 <= remove.unread < unread:  # guards: takeover [off]
            raise RateLimited(f"{unread} messages wait for '{session.name}' by now; look again before you remove them")
        self._out.note(f"{session!r} is removed on request")
        session.persistent = False
        self._retention.parted(session, gone=True)
        self._agent_states.changed(now, session)
        self._out.reply(who.route, verbs.Done(remove.ref, str(unread)))
