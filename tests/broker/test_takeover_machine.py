"""Mail follows the name, under any sequence of mishaps: the bus of `test_machine`, whose sessions' owners die.

A name is borne by one session after the other. The model knows who each of them is (its id, and its owner), which of
them have died, and who has what from whom. Whatever happened, in the end all that waits for any of them has come to the
last one of the name, once.

What a session had taken when its owner died, and its sender or the broker had not heard of it yet, may be shown once
more: nobody is left who knows. The model makes note of these, and of nothing else.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from tests.broker import test_machine
from tests.broker.machinekit import RUN
from tests.broker.test_machine import FOLLOWERS, GROUP, MEMBERS, NAMES, TOPIC, names
from zmqbus.broker import takeover
from zmqbus.broker.connections import SILENCE_S
from zmqbus.client.core import Incoming, Phase
from zmqbus.errors import ZmqbusError
from zmqbus.journal.record import decode_record
from zmqbus.testing import SimClient, session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope


class Ident(NamedTuple):
    """What makes a process the session that it is."""

    session_id: str
    token: str
    owner: str


class Nights(test_machine.Bus):
    """One run after the other under each name, each started when the one before it is dead."""

    def prepare(self) -> None:
        self.patch.setattr(takeover, "EMPTY_KEEP_S", 1e9)  # nothing is forgotten while clocks are set
        self.idents: dict[str, Ident] = {}  # name → who bears it, or bore it last and may come back
        self.runs = 0
        self.by_session: dict[str, Counter[str]] = {}  # what each has taken
        self.taken_in_order: dict[str, None] = {}  # by whomever
        self.uncertain: set[str] = set()  # taken by one that died before that was known
        self.twins: dict[str, list[tuple[str, int]]] = {}  # name → other names that were one with it before this order

    def start(self, name: str) -> None:
        ident = self.idents.get(name)
        if ident is None:
            self.runs += 1
            ident = self.idents[name] = Ident(
                session_id_of(f"{self.runs}-of-{name}"), f"token-{self.runs}", f"{self.runs}:{name}"
            )
            self.net.living_owners.add(ident.owner)
        holder = self.net.broker.registry.holder(name)
        if holder is not None and holder.session_id != ident.session_id:
            self.net.advance(SILENCE_S + 1, step_s=4)  # one that has vanished has the name, until that is noticed
        topics = (TOPIC,) if name in FOLLOWERS else ()
        groups = (GROUP,) if name in MEMBERS else ()
        process = self.net.session(name, connect=False, topics=topics, groups=groups, **ident._asdict())
        self.processes[name] = process
        process.connect()

    @rule(name=names, bye=st.booleans())
    def die(self, name: str, bye: bool) -> None:
        """The owner ends, and with it all that the session was."""
        process = self.processes.pop(name, None)
        if process is not None:
            self.end(process, bye=bye)
        ident = self.idents.pop(name, None)
        if ident is not None:
            self.owner_dies(ident)

    def owner_dies(self, ident: Ident) -> None:
        self.net.living_owners.discard(ident.owner)
        for msg_id in self.by_session.get(ident.session_id, ()):
            sent = self.sent[msg_id]
            told = sent.process.answers.get(msg_id) is not None
            kept = [box for box in self.net.store._committed.boxes.values()]
            if not told or any(entry.msg_id == msg_id for box in kept for _, entry in box.values()):
                self.uncertain.add(msg_id)
        session = self.net.broker.registry.sessions.get(ident.session_id)
        if session is not None:
            self.uncertain.update(one for piece in session.mailbox.window for one in piece.msg_ids)

    def take_from(self, name: str, process: SimClient, count: int) -> None:
        own = process.core.persona.session_id
        assert own is not None
        taken = self.by_session.setdefault(own, Counter())
        for message in process.take(count):
            sent = self.sent[message.msg_id]
            assert self.net.body(message) == str(sent.order).encode()
            assert not taken[message.msg_id], f"{own} took twice: {message}"
            taken[message.msg_id] += 1
            self.taken_in_order.setdefault(message.msg_id)
            credited = self.credited(name, message.msg_id)
            assert credited, f"{own} got what was not for {name}: {message}"
            for one in credited:
                self.takes(one, message)

    def takes(self, name: str, message: Incoming) -> None:
        if message.msg_id not in {before.msg_id for before in self.taken[name]}:
            self.taken[name].append(message)
        else:
            assert message.msg_id in self.uncertain, f"{name} was shown twice: {message}"

    def credited(self, name: str, msg_id: str) -> set[str]:
        """The names that a message has come to with this session."""
        sent = self.sent[msg_id]
        if sent.takers is not None:  # for one of a group, whatever it goes by
            return {name} & sent.perhaps
        return {name, *(twin for twin, order in self.twins.get(name, ()) if sent.order < order)} & sent.perhaps

    def send(self, sender: str, target: str, scope: Scope, count: int = 1) -> None:
        first = len(self.sent)
        super().send(sender, target, scope, count)
        if scope in verbs.TO_MANY:  # another session of the sender's name may not be taken over yet
            for msg_id in list(self.sent)[first:]:
                sent = self.sent[msg_id]
                self.sent[msg_id] = sent._replace(perhaps=sent.perhaps | {sender})

    @invariant()
    def nothing_waits_twice(self) -> None:
        if not hasattr(self, "net"):
            return
        for key, box in self.net.store._now.boxes.items():
            waiting = Counter(entry.msg_id for _, entry in box.values())
            assert not waiting or max(waiting.values()) == 1, f"{key}: {waiting}"

    def come_to_rest(self) -> None:
        super().come_to_rest()
        self.net.advance(takeover.ROUND_S + SILENCE_S, step_s=2)
        sessions = self.net.broker.registry.sessions.values()
        assert sorted(session.name for session in sessions) == sorted(NAMES), f"ghosts stay: {sessions}"


class Seats(Nights):
    """Besides: several living sessions of one name, one after the other, and names that others had.

    Of two sessions that lived at the same time each gets its broadcasts; and what the older one leaves comes to the
    younger behind what that has had. So what holds for a session is looked at here, not what holds for a name.
    """

    ALONE = False

    def prepare(self) -> None:
        super().prepare()
        self.asleep: dict[str, list[Ident]] = {name: [] for name in NAMES}  # away, and alive
        self.renames = 0

    def known(self) -> frozenset[str]:
        """A name that was given up may still stand in a store that cannot be written."""
        return super().known() & {session.name for session in self.net.broker.registry.reachable()}

    @rule(name=names, bye=st.booleans())
    def fall_asleep(self, name: str, bye: bool) -> None:
        """The session is away, and its owner lives; another one may take its name."""
        process = self.processes.pop(name, None)
        if process is not None:
            self.end(process, bye=bye)
        ident = self.idents.pop(name, None)
        if ident is not None:
            self.asleep[name].append(ident)

    @rule(name=names)
    def wake_up(self, name: str) -> None:
        if name in self.processes or not self.asleep[name]:
            return
        before = self.idents.pop(name, None)
        self.idents[name] = self.asleep[name].pop(0)
        if before is not None:
            self.asleep[name].append(before)
        self.start(name)

    @rule(name=names)
    def die_asleep(self, name: str) -> None:
        if self.asleep[name]:
            self.owner_dies(self.asleep[name].pop(0))

    @rule(name=names, to=names)
    def rename(self, name: str, to: str) -> None:
        """A session takes a name that others have had."""
        process = self.processes.get(name)
        if process is None or to in self.processes or process.stopped or process.core.phase is not Phase.READY:
            return
        self.renames += 1
        ref = f"rename{self.renames}"
        process.request(verbs.Rename(ref, to))
        self.net.settle()
        done = process.responses.get(ref)
        if done is None or isinstance(done, ZmqbusError):
            return
        order = len(self.sent)
        pairs = {(twin, before) for twin, before in self.twins.get(name, ())} | {(name, order)}
        self.twins[to] = [*self.twins.get(to, ()), *pairs]
        for msg_id, sent in self.sent.items():
            if sent.process is process and msg_id not in process.answers:
                # Said again, it is not for the name that is its sender's own by now.
                self.sent[msg_id] = sent._replace(surely=sent.surely - {to})
        other = self.idents.pop(to, None)
        if other is not None:
            self.asleep[to].append(other)
        self.idents[to] = self.idents.pop(name)
        self.processes[to] = self.processes.pop(name)

    def send(self, sender: str, target: str, scope: Scope, count: int = 1) -> None:
        first = len(self.sent)
        super().send(sender, target, scope, count)
        if scope == Scope.GROUP:  # which the sessions have joined, and not their names
            for msg_id in list(self.sent)[first:]:
                self.sent[msg_id] = self.sent[msg_id]._replace(perhaps=frozenset(NAMES))

    def takes(self, name: str, message: Incoming) -> None:
        sent = self.sent[message.msg_id]
        if len(sent.perhaps) == 1:
            super().takes(name, message)
        elif message.msg_id not in {before.msg_id for before in self.taken[name]}:
            self.taken[name].append(message)

    @invariant()
    def order_holds(self) -> None:
        """See `order_holds_by_sessions`: what was for another session may come behind younger ones."""

    def order_holds_by_sessions(self) -> None:
        """Order holds from a process to the session that its messages were accepted for, even after a takeover."""
        first: dict[str, str | None] = {}
        for record in map(decode_record, self.net.journal):
            first.setdefault(record.msg_id, record.to_session_id)
        orders: dict[tuple[SimClient, str], list[int]] = {}
        for msg_id in self.taken_in_order:
            receiver = first[msg_id]
            if receiver is not None:
                orders.setdefault((self.sent[msg_id].process, receiver), []).append(self.sent[msg_id].order)
        for (process, receiver), order in orders.items():
            assert order == sorted(order), f"from {process} to {receiver}: {order}"

    def come_to_rest(self) -> None:
        for name in NAMES:
            while self.asleep[name]:
                self.owner_dies(self.asleep[name].pop())
        super().come_to_rest()
        self.order_holds_by_sessions()


TestNights = pytest.mark.slow(Nights.TestCase)
TestNights.settings = RUN
TestSeats = pytest.mark.slow(Seats.TestCase)
TestSeats.settings = RUN
