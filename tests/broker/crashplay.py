"""What happens on the bus while it is recorded (`crashkit`)."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.broker.crashkit import GUEST, LATE, FileNet, Sent
from zmqbus.client.core import Persona, Phase
from zmqbus.testing import SimClient, session_id_of
from zmqbus.testing.simnet import Death
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role, Scope


class Play:
    """Things that happen to a few sessions, a helper and a guest; what, `chance` decides."""

    NAMES = ("alice", "bob", "carol", "dave")
    TOPIC, GROUP = "deploys", "workers"

    def __init__(self, net: FileNet, seed: int) -> None:
        self.net = net
        self.chance = random.Random(seed)
        self._renames = 0
        self._processes = 0
        if not net.ledger.names:
            for name in self.NAMES:
                self.start(session_id_of(name))

    def __repr__(self) -> str:
        return f"<Play on {self.net!r}>"

    # --- who is there

    def start(self, session_id: str) -> SimClient:
        """A process of this session comes."""
        self._processes += 1
        ledger = self.net.ledger
        name = next(name for name in self.NAMES if session_id_of(name) == session_id)
        ledger.names.setdefault(session_id, {name})
        persona = Persona(
            role=Role.LISTENER,
            session_id=session_id,
            token=f"{name}-token",
            name=max(ledger.names[session_id]),
            cwd="/p",
            project="/p",
            pid=1000 + self._processes,
            owner="1:1",
            topics=(self.TOPIC,) if name != "dave" else (),
            groups=(self.GROUP,) if name != "alice" else (),
        )
        ledger.personas[session_id] = persona
        return self.net._enter(persona, True)

    def end(self, member: SimClient, *, bye: bool) -> None:
        """A process ends, in good order or not."""
        member.stopped = False
        if bye and member.core.phase is Phase.READY:
            member.bye()
            self.net.wake()
        member.disconnect()
        self.net.clients.remove(member)

    def somebody(self) -> SimClient:
        """A session's listener."""
        return self.chance.choice(self.listeners() or [self.start(session_id_of("alice"))])

    def listeners(self) -> list[SimClient]:
        """All of them."""
        return [member for member in self.net.clients if member.persona.role == Role.LISTENER]

    # --- messages

    def next_id(self) -> str:
        """The id of the next message; a client of the network may have those of one that has gone."""
        return f"message{len(self.net.ledger.sent):04d}"

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
        """Says something; `perhaps`: the sessions that may get it, and each will unless there are only so many
        `takers`."""
        ledger = self.net.ledger
        who = f"{member.persona.name} {member.persona.pid}"
        order = len(ledger.sent)
        body = b"%d %s" % (order, b"x" * self.chance.choice((0, 0, 30, 200, verbs.SPILL_BYTES + 1)))
        known = self.net.broker.registry.sessions
        surely = perhaps if takers is None else set()
        if scope in verbs.TO_MANY:
            surely = perhaps & set(known)
        msg_id = self.next_id()
        ledger.sent[msg_id] = Sent(
            order, who, frozenset(surely), frozenset(perhaps), takers, body, reply_to is not None
        )
        member.send(target, body, scope=scope, msg_id=msg_id, reply_to=reply_to)
        return msg_id

    def directed(self) -> None:
        """Somebody says something to one session, and perhaps more to others."""
        for _ in range(self.chance.randint(1, 4)):
            member = self.somebody()
            other = self.chance.choice([one for one in self.net.ledger.names if one != member.persona.session_id])
            target = other if self.chance.random() < 0.5 else max(self.net.ledger.names[other])
            self.send(member, Scope.SESSION, target, {other})

    def to_many(self) -> None:
        """A broadcast, a topic's, or something for one of a group."""
        member = self.somebody()
        others = set(self.net.ledger.names) - {member.persona.session_id or ""}
        kind = self.chance.randrange(3)
        if kind == 0:
            self.send(member, Scope.TOPIC, self.TOPIC, others - {session_id_of("dave")})
        elif kind == 1:
            self.send(member, Scope.GROUP, self.GROUP, others - {session_id_of("alice")}, takers=1)
        else:
            self.send(member, Scope.ALL, "", others | {LATE})

    def refused(self) -> None:
        """Something to a name that nobody has; the next that is renamed, or comes, will have it."""
        member = self.somebody()
        others = set(self.net.ledger.names) - {member.persona.session_id or ""}
        self.net.ledger.wanted = f"name-{self._renames + 1:03d}"
        self.send(member, Scope.SESSION, self.net.ledger.wanted, others | {LATE}, takers=1)
        self.net.wake()

    def ask(self) -> None:
        """A helper, or a guest, asks; somebody answers, by and by."""
        if any(member.persona.role in (Role.HELPER, Role.GUEST) for member in self.net.clients):
            return
        there = [member for member in self.listeners() if not member.stopped]
        if len(there) < 2:
            return
        asker, other = self.chance.sample(there, 2)
        if self.chance.random() < 0.5:
            member, who = self.net.helper(asker), asker.persona.session_id or ""
            name = max(self.net.ledger.names[who])
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
        """Applications take some of what they were handed; who has its answer, ends."""
        for member in list(self.net.clients):
            if self.chance.random() < 0.6:
                self.net.take(member, self.chance.randint(1, 5))
        for member in list(self.net.clients):
            if member.persona.role in (Role.HELPER, Role.GUEST) and member.history and not member.handed:
                self.end(member, bye=True)  # it has its answer

    # --- mishaps

    def come_or_go(self) -> None:
        """A session's listener ends, or another one comes."""
        session_id = self.chance.choice(list(self.net.ledger.names))
        member = self.net.live(session_id)
        if member is None:
            self.start(session_id)
        else:
            self.end(member, bye=self.chance.random() < 0.5)

    def stand_still(self) -> None:
        """A process is stopped, or goes on."""
        member = self.somebody()
        member.stopped = not member.stopped

    def cut(self) -> None:
        """A connection breaks, and there is another one."""
        member = self.somebody()
        if not member.stopped:
            member.disconnect()
            member.connect()

    def rename(self) -> None:
        """A session takes another name."""
        member = self.somebody()
        session_id = member.persona.session_id or ""
        if member.core.phase is not Phase.READY or member.stopped:
            return
        self._renames += 1
        name = f"name-{self._renames:03d}"
        self.net.ledger.wanted = ""
        names = self.net.ledger.names[session_id]
        names.add(name)
        member.request(verbs.Rename(f"r{self._renames}", name))
        self.net.settle()
        if f"r{self._renames}" in member.responses:
            names.intersection_update({name})

    def some_steps(self) -> None:
        """The broker wakes a few times."""
        for _ in range(self.chance.randint(1, 4)):
            self.net.step()

    def some_time(self) -> None:
        """Time passes."""
        self.net.advance(self.chance.choice((0.3, 1.2)))

    def kill(self) -> None:
        """The broker dies."""
        self.net.kill_broker(self.chance.choice(list(Death)), self.chance.randrange(4))

    def go_on(self, count: int) -> None:
        """Lets so many things happen."""
        things: dict[Callable[[], None], int] = {
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
        for thing in self.chance.choices(list(things), list(things.values()), k=count):
            thing()
