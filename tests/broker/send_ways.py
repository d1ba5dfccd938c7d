"""Compares what a bus does with messages sent as one batch, and sent one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import pytest

from zmqbus.broker import admission
from zmqbus.client import core as client
from zmqbus.testing import SimClient, SimNet, session_id_of
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Format, Scope, State

#: In one SEND; in SENDs of one message within one wake; in SENDs that the broker takes one by one within a wake.
Way: TypeAlias = Literal["batch", "wake", "alone"]
WAYS: tuple[Way, ...] = ("batch", "wake", "alone")
#: Ids and bodies.
Messages: TypeAlias = list[tuple[str, bytes]]


class SendBus:
    """A bus on which alice sends messages in one of the ways; records what happens."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.net = SimNet()
        self.alice, self.bob = self.net.session("alice"), self.net.session("bob")
        self.members = [self.alice, self.bob]
        self.received: list[verbs.Envelope] = []
        self.published: list[verbs.Broadcast] = []  #: to bob, unless the PUB has lost it
        self.listen_in(self.alice)
        self.listen_in(self.bob, self._hear_published)

    def __repr__(self) -> str:
        return f"<SendBus {self.way}>"

    def session(self, name: str, **more: object) -> SimClient:
        """Adds a session whose mail is compared, too."""
        self.members.append(self.net.session(name, **more))  # type: ignore[arg-type]
        return self.members[-1]

    def listen_in(self, member: SimClient, note: Callable[[client.Event], None] | None = None) -> None:
        """Records what a member receives over the DEALER."""
        handle = member.core.handle

        def recording(now_s: float, event: client.Event) -> list[client.Effect]:
            (note or self._hear)(event)
            return handle(now_s, event)

        member.core.handle = recording  # type: ignore[method-assign]

    def _hear(self, event: client.Event) -> None:
        if isinstance(event, client.Received):
            self.received += event.envelopes

    def _hear_published(self, event: client.Event) -> None:
        if isinstance(event, client.Published):
            for one in event.envelopes:
                if isinstance(one, verbs.Broadcast):
                    self.published.append(one)

    def send_unread(
        self,
        target: str,
        messages: Messages,
        fmt: int = Format.TEXT,
        *,
        by: SimClient | None = None,
        scope: int = Scope.SESSION,
    ) -> None:
        """Sends messages that nobody has received yet."""
        if self.way == "batch":
            msg_ids, bodies = zip(*messages, strict=True)
            bus: list[verbs.Envelope] = [verbs.Send(scope, target, fmt, None, False, None, None, msg_ids, bodies)]
        else:
            bus = [verbs.Send.one(msg_id, scope, target, fmt, None, False, body) for msg_id, body in messages]
        (by or self.alice).raw(codec.encode(bus))

    def send(self, target: str, messages: Messages, fmt: int = Format.TEXT, *, scope: int = Scope.SESSION) -> None:
        """Sends messages and waits until everybody has received them."""
        self.send_unread(target, messages, fmt, scope=scope)
        self.net.settle()

    def to_all(self, messages: Messages) -> None:
        """Broadcasts messages to all sessions."""
        self.send("", messages, scope=Scope.ALL)

    def disturb(self, step: str, count: int) -> None:
        """Disturbs bob, or the broker's disk, between two messages."""
        match step:
            case "take":
                self.bob.take(count)
            case "drop":
                self.bob.disconnect()
                self.bob.connect()
            case "bye":
                self.bob.bye()
                self.net.settle()
                self.bob.disconnect()
                self.bob.core.phase = client.Phase.OFFLINE
                self.bob.connect()
            case "wait":
                self.net.advance(0.6 * count, step_s=0.2)
            case "fail":
                self.net.journal_fails = "no space" if count > 2 else None
            case _:
                raise ValueError(step)

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        """State, count, or refusal with its text, by message id, in the order in which alice receives them."""
        outcomes = []
        for envelope in self.received:
            if isinstance(envelope, verbs.Receipt):
                outcomes += [(msg_id, State(envelope.state).name) for msg_id in envelope.msg_ids]
            elif isinstance(envelope, verbs.Tally):
                full = "".join(f" without {name}" for name in envelope.without)
                outcomes.append((envelope.msg_id, f"{envelope.delivered} and {envelope.queued}{full}"))
            elif isinstance(envelope, verbs.Refused):
                outcomes.append((envelope.ref, f"{envelope.code}: {envelope.text}"))
        return outcomes

    @property
    def observed(self) -> tuple[object, ...]:
        """Everything that must be equal in all ways."""
        counts, sessions = self.net.broker._out.counts, self.net.broker.registry.sessions
        boxes = [sessions[session_id_of(member.persona.name or "")].mailbox for member in self.members]
        names = ("taken", "delivered", "queued", "repeated", "accepted_bytes", "broadcasts_resent")
        return (
            [[message[1:] for message in member.history] for member in self.members],  # without their tickets
            self.outcomes,
            self.net.journal,
            [(box.total, box.total_bytes, box.window_bytes, box._reserved, box._reserved_bytes) for box in boxes],
            [(box.after, box.owed()) for box in boxes],
            self.net.store.total(),
            {name: getattr(counts, name) for name in names},
            counts.refused,
            (self.net.broker.admission.accepted, self.net.broker.admission.last_id),
            (self.net.broker.delivery.unsettled, self.net.broker.delivery.bcast, self.net.broker.delivery._channels),
        )

    @property
    def batch_sizes(self) -> list[int]:
        """The number of messages in each BROADCAST."""
        return [len(one.msg_ids) for one in self.published]


def messages(*bodies: bytes, first: int = 0) -> Messages:
    """Pairs bodies with consecutive ids."""
    return [(f"message{number:04d}", body) for number, body in enumerate(bodies, first)]


def with_ids(*msg_ids: str) -> Messages:
    """Pairs ids with consecutive bodies."""
    return [(msg_id, b"%d" % number) for number, msg_id in enumerate(msg_ids)]


def in_each_way(scenario: Callable[[SendBus], None]) -> SendBus:
    """Plays a scenario in each way and compares the results. Returns the bus of the batch."""
    played = []
    for way in WAYS:
        bus = SendBus(way)
        with pytest.MonkeyPatch.context() as patch:
            if way == "alone":
                patch.setattr(admission, "merged", list)
            scenario(bus)
            bus.net.settle()
        played.append(bus)
        assert bus.net.mangled == 0
    for bus in played[1:]:
        assert bus.observed == played[0].observed, bus
    return played[0]


def refused(bus: SendBus, *msg_ids: str) -> list[str]:
    """The codes with which these messages were refused."""
    outcomes = dict(bus.outcomes)
    return [outcomes[msg_id].partition(":")[0] for msg_id in msg_ids]
