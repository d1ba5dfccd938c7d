"""The simulated world: broker, clients and network in this process, under a clock that moves while a test waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.contract.worlds import Carrier, Member, World
from zmqbus.client import core
from zmqbus.client.seen import SeenIds
from zmqbus.journal.record import Record, decode_record
from zmqbus.testing import SimClient, SimNet
from zmqbus.testing.simnet import Death
from zmqbus.wire import codec, verbs

#: How long a condition may take, s, by the simulated clock.
DEADLINE_S = 30.0
#: The clock's step while a test waits: well below the shortest timer.
STEP_S = 0.05


class SimMember(Member):
    """A `SimClient` as a `Member`."""

    def __init__(self, world: SimWorld, client: SimClient) -> None:
        super().__init__(world, client.core, client.taken)
        self._net = world.net
        self.client = client
        self.handed, self.history = client.handed, client.history
        self.answers, self.responses = client.answers, client.responses
        self.works, self.done = client.works, client.done
        self.dropped, self.results = client.dropped, client.results
        self.renames, self.closed = client.renames, client.closed

    def perform(self, effects: list[core.Effect]) -> None:
        self.client._do(effects)

    def raw(self, *envelopes: verbs.Envelope) -> None:
        self.client.raw(codec.encode(envelopes))

    def cut(self) -> None:
        self.client.disconnect()
        self.client.connect()

    def cut_subscriber(self) -> None:
        self.client.drop_subscriber()

    def lose_broadcast(self) -> None:
        self._net.wake()
        assert len(self.client.published) == 1, f"not one message on the SUB: {self.client.published}"
        self.client.published.clear()

    def stop(self) -> None:
        self.client.stopped = True

    def go(self) -> None:
        self.client.stopped = False

    def die(self) -> None:
        self.ended = True
        self.client.stopped = False
        self.client.disconnect()
        self.handed.clear()
        self.works.clear()

    def bye(self) -> None:
        self.client.bye()
        self._net.wake()
        self.die()


class SimWorld(World):
    """A world in this process, under a clock that moves while a test waits."""

    living_owner = "1:1"
    dead_owner = "2:2"

    def __init__(self) -> None:
        super().__init__()
        self.net = SimNet()
        self._stalled = False

    def _make(self, persona: core.Persona, taken: SeenIds) -> Member:
        client = SimClient(self.net, persona, taken)
        self.net.clients.append(client)
        member = SimMember(self, client)
        client.connect()
        return member

    def new_owner(self) -> str:
        owner = f"{next(self._pids)}:1"
        self.net.living_owners.add(owner)
        return owner

    def end_owner(self, owner: str) -> None:
        self.net.living_owners.discard(owner)

    def attach(self, *members: Member) -> None:
        self.quiet()
        for member in members:
            assert isinstance(member, SimMember)
            assert self.net.broker.registry.connections[member.client.route].subscribed

    @property
    def now_s(self) -> float:
        return self.net.clock.mono_s

    def until(self, condition: Callable[[], Any]) -> None:
        assert not self._stalled, "the broker hears nothing"
        end_s = self.now_s + DEADLINE_S
        self.net.settle()
        while not condition():
            assert self.now_s < end_s, f"not within {DEADLINE_S:.0f} s: {self.members} at {self.net}"
            self.net.advance(STEP_S)

    def quiet(self) -> None:
        assert not self._stalled, "the broker hears nothing"
        self.net.settle()

    def pass_time(self, seconds: float) -> None:
        """Lets time pass."""
        self.net.advance(seconds, step_s=max(STEP_S, seconds / 100))

    def stall_broker(self) -> None:
        self._stalled = True

    def kill_broker(self) -> None:
        self.net.kill_broker(Death.DECIDED if self._stalled else Death.SENT)
        self._stalled = False

    def whole(self, carrier: Carrier) -> bytes:
        return self.net.body(carrier)

    def journal(self) -> list[Record]:
        return list(map(decode_record, self.net.journal))
