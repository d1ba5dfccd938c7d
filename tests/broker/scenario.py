"""Random events on a simulated bus, for recording (`filenet`)."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.broker.filenet import GUEST, LATE, FileNet, Sent
from zmqbus.client.core import Persona, Phase
from zmqbus.testing import SimClient, session_id_of
from zmqbus.testing.simnet import Death
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role, Scope


class Scenario:
    """Lets random events happen to a few sessions, a helper and a guest."""

    NAMES = ("alice", "bob", "carol", "dave")
    TOPIC, GROUP = "deploys", "workers"

    def __init__(self, net: FileNet, seed: int) -> None:
        self.net = net
        self.chance = random.Random(seed)
        self._renames = 0
        self._processes = 0
        if not net.oracle.names:
            for name in self.NAMES:
                self.start(session_id_of(name))

    def __repr__(self) -> str:
        return f"<Scenario on {self.net!r}>"

    # --- processes

    def start(self, session_id: str) -> SimClient:
        """Starts a process of this session."""
        self._processes += 1
        oracle = self.net.oracle
        name = next(name for name in self.NAMES if session_id_of(name) == session_id)
        oracle.names.setdefault(session_id, {name})
        persona = Persona(
            role=Role.LISTENER,
            session_id=session_id,
            token=f"{name}-token",
            name=max(oracle.names[session_id]),
            cwd="/p",
            project="/p",
            pid=1000 + self._processes,
            owner="1:1",
            topics=(self.TOPIC,) if name != "dave" else (),
            groups=(self.GROUP,) if name != "alice" else (),
        )
        oracle.personas[session_id] = persona
        return self.net._enter(persona, True)

    def end(self, member: SimClient, *, bye: bool) -> None:
        """Ends a process, in good order or not."""
        member.stopped = False
        if bye and member.core.phase is Phase.READY:
            member.bye()
            self.net.wake()
        member.disconnect()
        self.net.clients.remove(member)

    def any_listener(self) -> SimClient:
        """A random listener."""
        return self.chance.choice(self.listeners() or [self.start(session_id_of("alice"))])

    def listeners(self) -> list[SimClient]:
        """All listeners."""
        return [member for member in self.net.clients if member.persona.role == Role.LISTENER]

    # --- messages

    def next_id(self) -> str:
        """The id of the next message, unique over all clients."""
        return f"message{len(self.net.oracle.sent):04d}"

    def send(
        self,
        member: SimClient,
        scope: Scope,
        target: str,
        perhaps: set[str],
        *,
        takers: int | None = None,
        reply_to: str | None = None,
    ) -> str:
        """Sends a message. All sessions in `perhaps` get it, or only `takers` of them."""
        oracle = self.net.oracle
        who = f"{member.persona.name} {member.persona.pid}"
        order = len(oracle.sent)
        body = b"%d %s" % (order, b"x" * self.chance.choice((0, 0, 30, 200, verbs.SPILL_BYTES + 1)))
        known = self.net.broker.registry.sessions
        surely = perhaps if takers is None else set()
        if scope in verbs.TO_MANY:
            surely = perhaps & set(known)
        msg_id = self.next_id()
        oracle.sent[msg_id] = Sent(
            order, who, frozenset(surely), frozenset(perhaps), takers, body, reply_to is not None
        )
        member.send(target, body, scope=scope, msg_id=msg_id, reply_to=reply_to)
        return msg_id

    def directed(self) -> None:
        """Sends some directed messages."""
        for _ in range(self.chance.randint(1, 4)):
            member = self.any_listener()
            other = self.chance.choice([one for one in self.net.oracle.names if one != member.persona.session_id])
            target = other if self.chance.random() < 0.5 else max(self.net.oracle.names[other])
            self.send(member, Scope.SESSION, target, {other})

    def to_many(self) -> None:
        """Sends a broadcast, to all or to a topic, or a message to a group."""
        member = self.any_listener()
        others = set(self.net.oracle.names) - {member.persona.session_id or ""}
        kind = self.chance.randrange(3)
        if kind == 0:
            self.send(member, Scope.TOPIC, self.TOPIC, others - {session_id_of("dave")})
        elif kind == 1:
            self.send(member, Scope.GROUP, self.GROUP, others - {session_id_of("alice")}, takers=1)
        else:
            self.send(member, Scope.ALL, "", others | {LATE})

    def refused(self) -> None:
        """Sends a message to a name without a session, which the next renamed or new session will have."""
        member = self.any_listener()
        others = set(self.net.oracle.names) - {member.persona.session_id or ""}
        self.net.oracle.wanted = f"name-{self._renames + 1:03d}"
        self.send(member, Scope.SESSION, self.net.oracle.wanted, others | {LATE}, takers=1)
        self.net.wake()

    def ask(self) -> None:
        """Lets a helper or a guest ask a question, and a listener answer it."""
        if any(member.persona.role in (Role.HELPER, Role.GUEST) for member in self.net.clients):
            return
        there = [member for member in self.listeners() if not member.stopped]
        if len(there) < 2:
            return
        asker, other = self.chance.sample(there, 2)
        if self.chance.random() < 0.5:
            member, who = self.net.helper(asker), asker.persona.session_id or ""
            name = max(self.net.oracle.names[who])
        else:
            member, who = self.net.guest(GUEST), GUEST
            name = GUEST
        question = self.next_id()
        receiver = other.persona.session_id or ""
        member._do(member.core.await_answer(question))
        self.send(member, Scope.SESSION, receiver, {receiver})
        self.some_steps()
        self.send(other, Scope.SESSION, name, {who}, reply_to=question)

    def take_some(self) -> None:
        """Lets applications take some messages; commands that have their answer end."""
        for member in list(self.net.clients):
            if self.chance.random() < 0.6:
                self.net.take(member, self.chance.randint(1, 5))
        for member in list(self.net.clients):
            if member.persona.role in (Role.HELPER, Role.GUEST) and member.history and not member.handed:
                self.end(member, bye=True)  # it has its answer

    # --- faults

    def come_or_go(self) -> None:
        """Ends a session's listener, or starts another one."""
        session_id = self.chance.choice(list(self.net.oracle.names))
        member = self.net.live(session_id)
        if member is None:
            self.start(session_id)
        else:
            self.end(member, bye=self.chance.random() < 0.5)

    def stand_still(self) -> None:
        """Stops a process, or continues it."""
        member = self.any_listener()
        member.stopped = not member.stopped

    def cut(self) -> None:
        """Breaks a connection, and makes another one."""
        member = self.any_listener()
        if not member.stopped:
            member.disconnect()
            member.connect()

    def rename(self) -> None:
        """Renames a session."""
        member = self.any_listener()
        session_id = member.persona.session_id or ""
        if member.core.phase is not Phase.READY or member.stopped:
            return
        self._renames += 1
        name = f"name-{self._renames:03d}"
        self.net.oracle.wanted = ""
        names = self.net.oracle.names[session_id]
        names.add(name)
        member.request(verbs.Rename(f"r{self._renames}", name))
        self.net.settle()
        if f"r{self._renames}" in member.responses:
            names.intersection_update({name})

    def some_steps(self) -> None:
        """Lets the broker wake a few times."""
        for _ in range(self.chance.randint(1, 4)):
            self.net.step()

    def some_time(self) -> None:
        """Lets time pass."""
        self.net.advance(self.chance.choice((0.3, 1.2)))

    def kill(self) -> None:
        """Kills the broker."""
        self.net.kill_broker(self.chance.choice(list(Death)), self.chance.randrange(4))

    def go_on(self, count: int) -> None:
        """Lets `count` events happen."""
        events: dict[Callable[[], None], int] = {
            self.directed: 8,
            self.to_many: 3,
            self.refused: 1,
            self.ask: 3,
            self.take_some: 5,
            self.come_or_go: 3,
            self.stand_still: 1,
            self.cut: 1,
            self.rename: 1,
            self.some_steps: 6,
            self.net.settle: 2,
            self.some_time: 2,
            self.kill: 1,
        }
        for event in self.chance.choices(list(events), list(events.values()), k=count):
            event()
