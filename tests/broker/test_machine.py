"""The bus under any sequence of mishaps: broker, clients and the simulated network between them, driven by hypothesis.

The model is small. It knows who sent what to whom, what became of it in the sender's eyes, and what every session has
taken; all promises are about these three. The limits are set down to a handful for the run, so that each is reached.

Anything may die at any time, the broker between any two steps of a wake. One thing is done in one piece that has two:
showing a message and noting down that it was shown. The promise makes an exception of a death between those two.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from tests.broker.machinekit import RUN, Mishaps
from zmqbus.broker import mailbox
from zmqbus.broker.fetch import RECALL_S
from zmqbus.client import coalesce
from zmqbus.client.core import Incoming, Phase
from zmqbus.errors import BrokerUnavailable, UnknownPeer, ZmqbusError
from zmqbus.testing import SimClient, SimNet
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope, State

NAMES = ("alice", "bob", "carol", "dave")
TOPIC = "deploys"
FOLLOWERS = NAMES[:3]
GROUP = "workers"
MEMBERS = NAMES[1:]

CREDIT = 4
MAILBOX = 12

#: Rounds of "settle, take, let time pass" after which a bus that still holds something is stuck. Each takes a credit's
#: worth out of every mailbox; the rest is for timers (a beat, a second until `busy`, twelve of silence).
ROUNDS = 100

names = st.sampled_from(NAMES)


class Sent(NamedTuple):
    """What the model knows of a message."""

    order: int
    sender: str
    process: SimClient
    surely: frozenset[str]  # sessions that must get it, if it was accepted
    perhaps: frozenset[str]  # sessions that may get it
    takers: int | None  # how many of those must; None: no matter
    deaths: int  # of brokers, before it was sent


class Bus(Mishaps):
    """Directed messages and broadcasts, with everything that can go wrong between two processes."""

    NAMES = NAMES
    ALONE = True  # a name is borne by one session at a time

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(mailbox, "CREDIT_MESSAGES", CREDIT)
        self.patch.setattr(mailbox, "MAX_MESSAGES", MAILBOX)
        self.prepare()
        self.net = SimNet()
        self.processes: dict[str, SimClient] = {}
        self.sent: dict[str, Sent] = {}
        self.deaths = 0  # of brokers
        self.store_failed = False
        self.taken: dict[str, list[Incoming]] = {name: [] for name in NAMES}
        for name in NAMES[:2]:
            self.start(name)

    def prepare(self) -> None:
        """What one kind of bus has otherwise than the others."""

    def start(self, name: str) -> None:
        topics = (TOPIC,) if name in FOLLOWERS else ()
        groups = (GROUP,) if name in MEMBERS else ()
        self.processes[name] = self.net.session(name, connect=False, topics=topics, groups=groups)
        self.processes[name].connect()

    def broker_dies(self) -> None:
        self.deaths += 1

    def known(self) -> frozenset[str]:
        """Sessions that are on record: they are connected or away, for any broker."""
        return frozenset(row.name for row in self.net.store._committed.sessions.values())

    def end(self, process: SimClient, *, bye: bool = False) -> None:
        """The process is gone, with its sockets and what it had been handed."""
        process.stopped = False
        if bye:
            process.bye()
            self.net.wake()
        process.disconnect()
        process.handed.clear()

    def take_from(self, name: str, process: SimClient, count: int) -> None:
        for message in process.take(count):
            sent = self.sent[message.msg_id]
            assert name in sent.perhaps, f"{name} got what was not for it: {message}"
            assert message.msg_id not in {before.msg_id for before in self.taken[name]}, f"{name} took twice: {message}"
            assert self.net.body(message) == str(sent.order).encode()
            self.taken[name].append(message)

    # --- wires

    @rule(name=names)
    def cut_subscriber(self, name: str) -> None:
        process = self.processes.get(name)
        if process is not None:
            process.drop_subscriber()

    @rule(sender=names, mask=st.integers(1, 2 ** len(NAMES) - 1), more=st.integers(0, 3), count=st.integers(1, CREDIT))
    def lose_a_broadcast(self, sender: str, mask: int, more: int, count: int) -> None:
        """The PUB drops one, or several that travel in one piece, for some of its subscribers, and perhaps not the ones
        after it."""
        if sender not in self.processes:
            return
        self.send(sender, "", Scope.ALL, count)
        self.net.wake()
        for bit, name in enumerate(NAMES):
            process = self.processes.get(name)
            if mask >> bit & 1 and process is not None and process.published:
                process.published.pop()
        for _ in range(more):
            self.send(sender, "", Scope.ALL)

    @rule(fails=st.booleans())
    def store(self, fails: bool) -> None:
        self.net.wake()
        self.net.store.fails = "no space left on device" if fails else None
        self.store_failed = self.store_failed or fails

    @rule(seconds=st.sampled_from((-3600, 3600)))
    def set_the_clock(self, seconds: float) -> None:
        self.net.clock.set_wall(seconds)

    # --- messages

    def send(self, sender: str, target: str, scope: Scope, count: int = 1) -> None:
        """Several travel in one piece."""
        process = self.processes.get(sender)
        if process is None:
            return
        others = frozenset(NAMES) - {sender}
        takers = None
        if scope == Scope.SESSION:
            surely = perhaps = frozenset((target,))
        elif scope == Scope.GROUP:
            surely, perhaps, takers = frozenset(), others & frozenset(MEMBERS), 1
        elif scope == Scope.ALL:
            surely, perhaps = self.known() & others, others
        else:
            surely, perhaps = self.known() & others & frozenset(FOLLOWERS), others & frozenset(FOLLOWERS)
        first = len(self.sent)
        msg_ids = [process._new_id() for _ in range(count)]
        for order, msg_id in enumerate(msg_ids, first):
            self.sent[msg_id] = Sent(order, sender, process, surely, perhaps, takers, self.deaths)
        bodies = [str(order).encode() for order in range(first, first + count)]
        process.send_all(target, bodies, scope=scope, msg_ids=msg_ids)

    @rule(sender=names, receiver=names, count=st.integers(1, 3))
    def send_one(self, sender: str, receiver: str, count: int) -> None:
        if sender != receiver:
            for _ in range(count):
                self.send(sender, receiver, Scope.SESSION)

    @rule(sender=names, receiver=names, count=st.integers(2, MAILBOX + 2))
    def send_a_run(self, sender: str, receiver: str, count: int) -> None:
        """In one piece as many as credit is for, and more than a mailbox holds."""
        if sender != receiver:
            self.send(sender, receiver, Scope.SESSION, count)

    @rule(sender=names, count=st.integers(2, CREDIT + 2))
    def broadcast_a_run(self, sender: str, count: int) -> None:
        self.send(sender, "", Scope.ALL, count)

    @rule(sender=names)
    def broadcast(self, sender: str) -> None:
        self.send(sender, "", Scope.ALL)

    @rule(sender=names)
    def send_to_a_group(self, sender: str) -> None:
        self.send(sender, GROUP, Scope.GROUP)

    @rule(name=names, count=st.integers(1, 6))
    def take(self, name: str, count: int) -> None:
        process = self.processes.get(name)
        if process is not None:
            self.take_from(name, process, count)

    @rule(name=names, peek=st.booleans(), count=st.integers(0, 10), ending=st.sampled_from(("bye", "cut")))
    def fetch(self, name: str, peek: bool, count: int, ending: str) -> None:
        """A command reads the inbox, takes some of it, and ends, perhaps before it was served."""
        process = self.processes.get(name)
        if process is None or process.core.phase is not Phase.READY:
            return
        helper = self.net.helper(process, connect=False)
        helper.connect()
        helper.request(verbs.Fetch("f", peek))
        for _ in range(count):
            self.net.step()
            if not peek:
                self.take_from(name, helper, 1)
        self.end(helper, bye=ending == "bye")
        self.net.settle()

    @rule(name=names, sender=names, count=st.integers(1, 4), later=st.lists(st.booleans(), min_size=1, max_size=4))
    def fetch_from_a_stopped_listener(self, name: str, sender: str, count: int, later: list[bool]) -> None:
        """A command reads the inbox of a stopped listener, which goes on after later messages: broadcasts (True) or
        directed ones."""
        process = self.processes.get(name)
        if process is None or process.core.phase is not Phase.READY or sender == name:
            return
        process.stopped = True
        self.send(sender, name, Scope.SESSION)
        helper = self.net.helper(process, connect=False)
        helper.connect()
        helper.request(verbs.Fetch("f", False))
        self.net.advance(2 * RECALL_S)
        for _ in range(count):
            self.take_from(name, helper, CREDIT)
            self.net.settle()
        self.end(helper, bye=True)
        for to_all in later:
            self.send(sender, "" if to_all else name, Scope.ALL if to_all else Scope.SESSION)
        self.net.settle()
        process.stopped = False

    # --- time

    @rule(seconds=st.sampled_from((0.1, 0.3, 1.1, 5.0, 13.0)))
    def wait(self, seconds: float) -> None:
        self.net.advance(seconds, step_s=max(0.1, seconds / 10))

    # --- what must hold at any time

    @invariant()
    def credit_is_kept(self) -> None:
        if not hasattr(self, "net"):
            return
        for box in self.net.broker.delivery._consumers:
            assert len(box.window) <= CREDIT
            assert len(box.window) + box._backlog == box.total

    @invariant()
    def nothing_is_handed_out_twice(self) -> None:
        if not hasattr(self, "net"):
            return
        for name, process in self.processes.items():
            handed = [message.msg_id for message in process.handed]
            assert len(handed) == len(set(handed)), f"{name} holds a message twice"

    @invariant()
    def delivered_is_the_truth(self) -> None:
        if not hasattr(self, "net"):
            return
        for msg_id, sent in self.sent.items():
            answer = sent.process.answers.get(msg_id)
            if isinstance(answer, verbs.Receipt) and answer.state == State.DELIVERED:
                takers = {name for name in NAMES if any(message.msg_id == msg_id for message in self.taken[name])}
                assert takers, f"{msg_id} was not taken"

    @invariant()
    def order_holds(self) -> None:
        if not hasattr(self, "net"):
            return
        for name, messages in self.taken.items():
            for sender in NAMES:
                order = [self.sent[m.msg_id].order for m in messages if self.sent[m.msg_id].sender == sender]
                assert order == sorted(order), f"from {sender} to {name}: {order}"

    # --- and in the end

    def teardown(self) -> None:
        if not hasattr(self, "net"):
            return
        try:
            self.come_to_rest()
            self.account()
            self.leave_nothing()
        finally:
            self.patch.undo()

    def come_to_rest(self) -> None:
        """Everybody comes back, and reads all there is."""
        self.net.journal_fails = self.net.store.fails = None
        for name in NAMES:
            self.connect(name)
            self.processes[name].stopped = False
        for _ in range(ROUNDS):
            self.net.settle()
            for name, process in self.processes.items():
                self.take_from(name, process, len(process.handed))
            self.net.advance(0.5)
            waiting = sum(session.mailbox.total for session in self.net.broker.registry.sessions.values())
            if not waiting and not any(process.core.unconfirmed for process in self.processes.values()):
                break
        self.nothing_is_handed_out_twice()
        self.order_holds()

    def account(self) -> None:
        taken = {name: Counter(message.msg_id for message in messages) for name, messages in self.taken.items()}
        for msg_id, sent in self.sent.items():
            answer = sent.process.answers.get(msg_id)
            takers = {name for name in NAMES if taken[name][msg_id]}
            note(f"{sent.order} {msg_id} of {sent.sender}: {answer}, taken by {takers}")
            assert takers <= sent.perhaps
            if isinstance(answer, BrokerUnavailable) and self.deaths > sent.deaths:
                pass  # there was no room for it when it was said again; what came of the first time, nobody knows
            elif isinstance(answer, UnknownPeer) and self.deaths > sent.deaths and self.store_failed and sent.takers:
                assert len(takers) <= 1  # likewise, where the member that had it went with the broker and is not stored
            elif isinstance(answer, ZmqbusError):
                assert not takers, f"{msg_id} was refused ({answer}) and shown"
            elif answer is not None:
                full = set(answer.without) if isinstance(answer, verbs.Tally) else set()
                assert takers >= sent.surely - full, f"{msg_id} is lost: not taken by {set(sent.surely - takers)}"
                # As with a refusal: said again, there was no room for it; it may have been there before.
                again = self.deaths > sent.deaths
                assert again or not self.ALONE or not takers & full, (
                    f"{msg_id} was shown to {takers & full}, who go without"
                )
                assert sent.takers in (None, len(takers)), f"{msg_id} was taken by {takers or 'nobody'}"
            else:
                assert sent.process is not self.processes[sent.sender], f"{msg_id}: its sender never heard of it"

    def leave_nothing(self) -> None:
        """Whatever a message or a connection has left in the broker's tables is a leak."""
        for process in self.processes.values():
            process.bye()
        self.net.settle()
        self.net.advance(20, step_s=5)
        core = self.net.broker
        for part, tables in (
            (core.delivery, ("_open", "_consumers", "_active", "_due", "_fresh")),
            (core.admission, ("_pending", "_places", "_held")),
            (core.reply_routing, ("_waits", "_expected")),
            (core.fetches, ("_readers",)),
        ):
            for table in tables:
                assert not getattr(part, table), f"{table} leaks: {getattr(part, table)}"
        assert not core.registry.connections
        assert not core.registry._leases
        assert self.net.store.total() == 0
        assert core.idle
        for session in core.registry.sessions.values():
            box = session.mailbox
            assert (box.total, box.total_bytes, box._window_bytes, box._by_dealer) == (0, 0, 0, 0), box
            assert not box._published and not box._taken_bcasts


class Topics(Bus):
    """Two channels for the same receiver. Nothing is lost on the PUB here."""

    @precondition(lambda self: False)
    @rule(sender=names)
    def lose_a_broadcast(self, sender: str) -> None:
        """Not in this one."""

    @rule(sender=names, count=st.integers(1, CREDIT))
    def topic(self, sender: str, count: int) -> None:
        self.send(sender, TOPIC, Scope.TOPIC, count)


class Files(Bus):
    """All bodies are put down in files, which may be lost."""

    def prepare(self) -> None:
        self.patch.setattr(verbs, "SPILL_BYTES", 0)
        # A body in a file is larger than one that shares a batch.
        self.patch.setattr(coalesce, "INLINE_BYTES", 0)
        self.patch.setattr(verbs, "INLINE_BYTES", 0)

    @rule()
    def lose_the_files(self) -> None:
        self.net.spool.clear()


TestBus = pytest.mark.slow(Bus.TestCase)
TestBus.settings = RUN
TestTopics = pytest.mark.slow(Topics.TestCase)
TestTopics.settings = RUN
TestFiles = pytest.mark.slow(Files.TestCase)
TestFiles.settings = RUN
