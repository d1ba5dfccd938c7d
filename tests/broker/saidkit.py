"""The same, said in one piece or one by one: what is seen of it on a bus each."""

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
Way: TypeAlias = Literal["run", "wake", "alone"]
WAYS: tuple[Way, ...] = ("run", "wake", "alone")
#: Ids and bodies.
Messages: TypeAlias = list[tuple[str, bytes]]


class Said:
    """A bus of its own on which alice says the same in one of the ways; what is seen of it."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.net = SimNet()
        self.alice, self.bob = self.net.session("alice"), self.net.session("bob")
        self.members = [self.alice, self.bob]
        self.heard: list[verbs.Envelope] = []
        self.published: list[verbs.Broadcast] = []  #: to bob, unless the PUB has lost it
        self.listen_in(self.alice)
        self.listen_in(self.bob, self._hear_published)

    def __repr__(self) -> str:
        return f"<Said {self.way}>"

    def session(self, name: str, **more: object) -> SimClient:
        """Another one, whose mail is looked at, too."""
        self.members.append(self.net.session(name, **more))  # type: ignore[arg-type]
        return self.members[-1]

    def listen_in(self, member: SimClient, note: Callable[[client.Event], None] | None = None) -> None:
        """Notes what that one hears over the DEALER."""
        handle = member.core.handle

        def recording(now_s: float, event: client.Event) -> list[client.Effect]:
            (note or self._hear)(event)
            return handle(now_s, event)

        member.core.handle = recording  # type: ignore[method-assign]

    def _hear(self, event: client.Event) -> None:
        if isinstance(event, client.Received):
            self.heard += event.envelopes

    def _hear_published(self, event: client.Event) -> None:
        if isinstance(event, client.Published):
            for one in event.envelopes:
                if isinstance(one, verbs.Broadcast):
                    self.published.append(one)

    def put(
        self,
        target: str,
        messages: Messages,
        fmt: int = Format.TEXT,
        *,
        by: SimClient | None = None,
        scope: int = Scope.SESSION,
    ) -> None:
        """Says it; nobody has heard it yet."""
        if self.way == "run":
            msg_ids, bodies = zip(*messages, strict=True)
            said: list[verbs.Envelope] = [verbs.Send(scope, target, fmt, None, False, None, None, msg_ids, bodies)]
        else:
            said = [verbs.Send.one(msg_id, scope, target, fmt, None, False, body) for msg_id, body in messages]
        (by or self.alice).raw(codec.encode(said))

    def say(self, target: str, messages: Messages, fmt: int = Format.TEXT, *, scope: int = Scope.SESSION) -> None:
        """Says it, and everybody has heard it."""
        self.put(target, messages, fmt, scope=scope)
        self.net.settle()

    def to_all(self, messages: Messages) -> None:
        """Says it to everybody."""
        self.say("", messages, scope=Scope.ALL)

    def befall(self, step: str, count: int) -> None:
        """What may happen to bob, and to the broker's disk, between two messages."""
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
    def told(self) -> list[tuple[str, str]]:
        """Of each message, in the order in which alice hears it: its state, its count, or its refusal with its text."""
        told = []
        for envelope in self.heard:
            if isinstance(envelope, verbs.Receipt):
                told += [(msg_id, State(envelope.state).name) for msg_id in envelope.msg_ids]
            elif isinstance(envelope, verbs.Tally):
                full = "".join(f" without {name}" for name in envelope.without)
                told.append((envelope.msg_id, f"{envelope.delivered} and {envelope.queued}{full}"))
            elif isinstance(envelope, verbs.Refused):
                told.append((envelope.ref, f"{envelope.code}: {envelope.text}"))
        return told

    @property
    def seen(self) -> tuple[object, ...]:
        """All there is to compare."""
        counts, sessions = self.net.broker._out.counts, self.net.broker.registry.sessions
        boxes = [sessions[session_id_of(member.persona.name or "")].mailbox for member in self.members]
        names = ("taken", "delivered", "queued", "repeated", "accepted_bytes", "broadcasts_resent")
        return (
            [[message[1:] for message in member.history] for member in self.members],  # without their tickets
            self.told,
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
    def in_one_piece(self) -> list[int]:
        """How many messages each BROADCAST held."""
        return [len(one.msg_ids) for one in self.published]


def messages(*bodies: bytes, first: int = 0) -> Messages:
    """With ids in a row."""
    return [(f"message{number:04d}", body) for number, body in enumerate(bodies, first)]


def with_ids(*msg_ids: str) -> Messages:
    """With bodies in a row."""
    return [(msg_id, b"%d" % number) for number, msg_id in enumerate(msg_ids)]


def both(play: Callable[[Said], None]) -> Said:
    """Plays it in each way, and holds what came of it against each other. Returns what came of one SEND."""
    played = []
    for way in WAYS:
        said = Said(way)
        with pytest.MonkeyPatch.context() as patch:
            if way == "alone":
                patch.setattr(admission, "merged", list)
            play(said)
            said.net.settle()
        played.append(said)
        assert said.net.mangled == 0
    for said in played[1:]:
        assert said.seen == played[0].seen, said
    return played[0]


def refused(said: Said, *msg_ids: str) -> list[str]:
    """The codes that these were refused with."""
    told = dict(said.told)
    return [told[msg_id].partition(":")[0] for msg_id in msg_ids]
