"""The real world: a broker process, sockets, files and real time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from struct import unpack_from
from typing import Any

import pytest
import zmq

import zmqbus
from tests.contract.worlds import Carrier, Member, World
from zmqbus.client import core, launch, locate
from zmqbus.client import transport as transport_module
from zmqbus.client.seen import SeenIds
from zmqbus.client.transport import Transport
from zmqbus.journal import reader
from zmqbus.journal.record import Record, decode_record
from zmqbus.process import process_of
from zmqbus.settings import Settings
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Role, Scope

#: How long a condition may take, s, on two cores that many share.
DEADLINE_S = 90.0
#: How long the test's thread waits for input, s, before it checks the clients' timers.
PUMP_S = 0.02
#: The longest pause between two probes of a presence subscription, s.
MAX_PAUSE_S = 4.0
#: The longest pause between two LISTs, s: the broker allows ten a second.
LOOK_S = 0.2


class _Monitor(zmq.Socket[bytes]):
    """A monitor socket that notes the file descriptor of the connection."""

    connected_fd = -1

    def recv(self, *args: Any, **more: Any) -> Any:
        frame = super().recv(*args, **more)
        if not self.getsockopt(zmq.RCVMORE):
            return frame  # the endpoint
        event, value = unpack_from("=Hi", frame)
        if event == zmq.Event.CONNECTED:
            self.connected_fd = value
        return frame


class _Transport(Transport):
    """A `Transport` whose connections can be cut."""

    def _watch(self, dealer: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        dealer.monitor("inproc://zmqbus.monitor", transport_module._WATCHED | zmq.Event.CONNECTED)
        self._cutter = _Monitor(self._context, zmq.PAIR)
        self._cutter.linger = 0
        self._cutter.connect("inproc://zmqbus.monitor")
        return self._cutter

    @property
    def sockets(self) -> Iterable[zmq.Socket[bytes]]:
        """The sockets that can have input."""
        yield from filter(None, (self._dealer, self._monitor, self._subscriber))

    def cut_dealer(self) -> None:
        """Shuts down the TCP connection, for both of its ends."""
        with socket.socket(fileno=os.dup(self._cutter.connected_fd)) as connection:
            assert connection.getpeername()[1] == self._settings.port
            connection.shutdown(socket.SHUT_RDWR)

    def cut_subscriber(self) -> None:
        """Reconnects the SUB; its filters are sent again over the new TCP connection."""
        assert self._subscriber is not None and self.core.welcome is not None
        endpoint = transport_module.endpoint(self.core.welcome.pub_port)
        self._subscriber.disconnect(endpoint)
        self._subscriber.connect(endpoint)

    def lose_published(self, timeout_s: float) -> None:
        """Reads one message from the SUB, and discards it."""
        assert self._subscriber is not None
        assert self._subscriber.poll(int(timeout_s * 1000)), "nothing was published"
        self._subscriber.recv_multipart(zmq.NOBLOCK)

    def abandon(self) -> None:
        """Closes without sending queued messages."""
        self._connected = False
        self.close()


class RealMember(Member):
    """A `Transport` as a `Member`."""

    def __init__(self, world: RealWorld, persona: core.Persona, taken: SeenIds) -> None:
        client = core.ClientCore(persona, zmqbus.__version__, taken)
        super().__init__(world, client, taken)
        self._world = world
        self.stopped = False
        self.link = _Transport(world.settings, client, patient=True)
        self.link.open()

    def perform(self, effects: list[core.Effect]) -> None:
        for effect in self.link.perform(effects):
            match effect:
                case core.Hand():
                    self.handed += effect.messages()
                    self.history += effect.messages()
                case core.TakeBack():
                    self.handed.clear()
                case core.Confirmed(msg_ids, outcome):
                    for msg_id in msg_ids:
                        assert msg_id not in self.answers, f"{msg_id} was answered twice"
                        self.answers[msg_id] = outcome
                case core.Response(ref, envelope):
                    self.responses[ref] = envelope
                case core.Resolved(msg_id, result):
                    assert msg_id not in self.results, f"{msg_id} was answered twice"
                    self.results[msg_id] = result
                case core.StartWork(work):
                    assert work.msg_id not in self.works, f"{work.msg_id} was handed out twice"
                    self.works[work.msg_id] = work
                    self.done.append(work.msg_id)
                case core.Withdrawn(msg_ids):
                    self.dropped += msg_ids
                    for msg_id in msg_ids:
                        del self.works[msg_id]
                case core.Renamed(name):
                    self.renames.append(name)
                case core.Closed(reason):
                    self.closed.append(reason)

    def pump(self) -> None:
        """Handles all input, without waiting."""
        self.perform(self.link.pump(0))

    def raw(self, *envelopes: verbs.Envelope) -> None:
        self.link._dealer.send_multipart(codec.encode(envelopes), zmq.NOBLOCK)

    def cut(self) -> None:
        self.world.until(lambda: self.ready)  # so that there is a connection to cut
        before = self.losses
        self.link.cut_dealer()
        if self.core.persona.role in (Role.LISTENER, Role.PROGRAM):
            self.link.cut_subscriber()
        self.world.until(lambda: self.losses > before)

    def cut_subscriber(self) -> None:
        self.link.cut_subscriber()

    def lose_broadcast(self) -> None:
        self.link.lose_published(DEADLINE_S)

    def stop(self) -> None:
        self.stopped = True

    def go(self) -> None:
        self.stopped = False

    def die(self) -> None:
        self._end(self.link.abandon)

    def bye(self) -> None:
        self.perform(self.core.bye())
        self._end(self.link.close)

    def _end(self, close: Callable[[], None]) -> None:
        if not self.ended:
            self.ended = True
            close()
            self.handed.clear()
            self.works.clear()
            self._world.see_off(self.core.persona)


class RealWorld(World):
    """A broker process, sockets, files and real time."""

    def __init__(self, settings: Settings, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.settings = settings
        self._launch = launch.launch
        # The world starts its brokers itself: otherwise each member would start a candidate after a broker's death,
        # which is tested in tests/real/test_broker_life.py and takes half a second.
        patch.setattr(launch, "launch", lambda settings: "")
        own = process_of(os.getpid())
        self.living_owner = own.text
        self.dead_owner = own._replace(started="0").text
        self._owners: dict[str, subprocess.Popen[bytes]] = {}
        self._prober: Member | None = None
        self._watcher: Member | None = None
        self._barriers = 0
        self._stalled = False
        self._closing = False
        self._launch(settings)

    def _make(self, persona: core.Persona, taken: SeenIds) -> Member:
        # A topic of its own, for `attach`.
        if persona.role in (Role.LISTENER, Role.PROGRAM):
            persona = persona._replace(topics=(*persona.topics, f"probe-{persona.pid}"))
        return RealMember(self, persona, taken)

    def new_owner(self) -> str:
        process = subprocess.Popen(["sleep", "600"])
        owner = process_of(process.pid).text
        self._owners[owner] = process
        return owner

    def end_owner(self, owner: str) -> None:
        process = self._owners.pop(owner)
        process.kill()
        process.wait()

    def _turning(self) -> list[RealMember]:
        members = [member for member in self.members if isinstance(member, RealMember)]
        return [member for member in members if not member.ended and not member.stopped]

    def attach(self, *members: Member) -> None:
        # Only the broker sees a presence subscription; once it has, a broadcast to one session comes over the SUB.
        self._prober = self._prober or self.guest("prober")
        for member in members:
            topic = f"probe-{member.core.persona.pid}"
            before = len(member.overheard)
            pause_s = PUMP_S
            while len(member.overheard) == before:  # until the subscription is known
                probe = self._prober.send(topic, b"probe", scope=Scope.TOPIC)
                self.until(lambda member=member: member.handed)  # type: ignore[misc]
                assert member.bodies == [b"probe"]
                member.take_all()
                member.history.pop()
                self._prober.hears(probe, (1, 0))
                if len(member.overheard) == before:
                    # After a pause: the prober may broadcast only sixty times a minute.
                    next_s = self.now_s + pause_s
                    self.until(lambda: self.now_s >= next_s)  # noqa: B023
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)

    @property
    def now_s(self) -> float:
        return time.monotonic()

    def until(self, condition: Callable[[], Any]) -> None:
        end_s = self.now_s + DEADLINE_S
        while True:
            for member in self._turning():
                member.pump()
            if condition():
                return
            assert self.now_s < end_s, f"not within {DEADLINE_S:.0f} s: {self.members}"
            self._rest()

    def _rest(self) -> None:
        poller = zmq.Poller()
        for member in self._turning():
            for one in member.link.sockets:
                poller.register(one, zmq.POLLIN)
        poller.poll(int(PUMP_S * 1000))

    def quiet(self) -> None:
        # Twice: input of the first round may cause messages to others.
        for _ in range(2):
            self.until(lambda: all(member.ready or member.closed for member in self._turning()))
            self._barriers += 1
            ref = f"quiet-{self._barriers}"
            asked = [member for member in self._turning() if member.ready]
            for member in asked:
                member.begin(verbs.Status(ref))
            self.until(lambda: all(ref in member.responses or member.closed for member in asked))  # noqa: B023
            for member in asked:
                member.responses.pop(ref, None)

    def see_off(self, persona: core.Persona) -> None:
        """Waits until the broker knows that this process is gone, which the simulated broker knows at once."""
        if persona.role not in (Role.LISTENER, Role.PROGRAM) or self._stalled or self._closing:
            return
        self._watcher = self._watcher or self.observer()
        pause_s, end_s = 0.005, self.now_s + DEADLINE_S
        while self._is_listed(persona):
            assert self.now_s < end_s, f"{persona.name} is still connected for the broker"
            look_s = self.now_s + pause_s
            self.until(lambda: self.now_s >= look_s)  # noqa: B023
            pause_s = min(2 * pause_s, LOOK_S)

    def _is_listed(self, persona: core.Persona) -> bool:
        """Whether this process is the connected one of its session."""
        assert self._watcher is not None
        page = self._watcher.request(verbs.List("watch", False, ""))
        rows = map(verbs.Session._make, page.rows)
        return any(row.session_id == persona.session_id and row.pid == persona.pid for row in rows)

    def _broker_pid(self) -> int:
        pid = locate.broker_pid(self.settings)
        assert pid is not None, "there is no broker"
        return pid

    def stall_broker(self) -> None:
        self._stalled = True
        os.kill(self._broker_pid(), signal.SIGSTOP)

    def kill_broker(self) -> None:
        if not self._stalled:
            self.until(lambda: all(member.ready or member.closed for member in self._turning()))
        turning = [member for member in self._turning() if member.ready]  # the others have no connection to lose
        before = [member.losses for member in turning]
        os.kill(self._broker_pid(), signal.SIGKILL)
        self.until(lambda: locate.broker_pid(self.settings) is None)
        self.until(lambda: all(member.losses > count for member, count in zip(turning, before, strict=True)))
        self._launch(self.settings)
        self._stalled = False

    def whole(self, carrier: Carrier) -> bytes:
        if carrier.pointer is None:
            return carrier.body
        return reader.read(self.settings.paths.log, carrier.pointer).body

    def journal(self) -> list[Record]:
        with open(self.settings.paths.log, "rb") as log:
            return [decode_record(line) for line in log if not line.startswith(b'{"kind":"segment"')]

    def close(self) -> None:
        """Ends all members. The fixture `data_dir` ends the broker."""
        self._closing = True
        for member in self.members:
            member.die()
        for owner in list(self._owners):
            self.end_owner(owner)
