"""zmqbus with many sessions in one process, and senders of many broadcasts.

Each session has the connections, keys and core of a program of its own (`client.transport`, `client.core`); only the
interpreter is shared, since a thousand interpreters would not fit the machine.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Collection
from typing import Any

import zmqbus
from benchmarks import work
from benchmarks.stage import PATIENCE_S
from zmqbus.client import core, payload
from zmqbus.client.producer import Producer
from zmqbus.client.transport import Transport
from zmqbus.process import process_of
from zmqbus.settings import load
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format, Role, Scope

#: Between two looks at who has a ping to send, or waits for a broker: a look at hundreds of sessions costs as much as
#: some messages.
LOOK_S = 0.1
#: Broadcasts that one sender may make within a minute.
BROADCASTS = 60
#: What all seats have joined, and nobody else.
TOPIC = "seats"


class Seats:
    """Some sessions, named by their number."""

    def __init__(self, first: int, count: int) -> None:
        self._settings = load()
        owner = process_of(os.getpid())
        self._personas = [
            core.Persona(
                role=Role.PROGRAM,
                session_id=verbs.new_session_id(),
                token=verbs.new_token(),
                name=f"seat-{number}",
                cwd="/",
                project="/",
                pid=os.getpid(),
                owner=owner.text,
                topics=(TOPIC,),
            )
            for number in range(first, first + count)
        ]
        self._take: Callable[[int, bytes], None] = _nobody
        self._begin()

    def _begin(self) -> None:
        self._poller = select.epoll()
        self._watched: dict[int, int] = {}  # descriptor → index of its link
        self._links = [self._link(one) for one in self._personas]
        self._opened: list[Transport] = []
        self._looked_s = 0.0
        self._welcomed = 0

    def _link(self, persona: core.Persona) -> Transport:
        return Transport(self._settings, core.ClientCore(persona, zmqbus.__version__))

    def connect(self) -> float:
        """Connects all; returns when the last one had connected."""
        for index, link in enumerate(self._links):
            link.open()
            self._opened.append(link)
            self._watch(index)
            self._look(index, link, link.descriptors())  # nothing shows on them before somebody has looked
            self._turn(-1, 0.0)  # those before it go on meanwhile, as they would in processes of their own
        self._run(lambda: self._welcomed >= len(self._links))
        for link in self._links:
            link.patient = True
        return time.monotonic()

    def leave(self) -> None:
        """Disconnects all; they keep their mailboxes and can come back."""
        self.close()
        self._begin()

    def drain(self, count: int, size_bytes: int) -> tuple[float, float]:
        """Reconnects all, and lets each take `count` waiting messages; returns when they began, and when the last one
        was read."""
        began_s = time.monotonic()
        return began_s, self._attend(count, size_bytes, connected=False)

    def listen(self, count: int, size_bytes: int) -> float:
        """Lets each take and acknowledge `count` messages; returns when the last one was read."""
        return self._attend(count, size_bytes, connected=True)

    def _attend(self, count: int, size_bytes: int, *, connected: bool) -> float:
        checks = [work.Tick(count, size_bytes) for _ in self._links]
        left = len(checks)

        def take(index: int, body: bytes) -> None:
            nonlocal left
            if not checks[index].take(body.decode()):
                left -= 1

        self._take = take
        if not connected:
            self.connect()
        self._run(lambda: not left)
        self._take = _nobody
        return time.monotonic()

    def wait(self, descriptor: int) -> None:
        """Answers pings until there is input."""
        self._poller.register(descriptor, select.EPOLLIN)
        try:
            while not self._turn(descriptor, LOOK_S):
                pass
        finally:
            self._poller.unregister(descriptor)

    def close(self) -> None:
        """Closes all connections; the broker notices that the sessions leave."""
        for link in self._links:
            link.perform(link.core.bye())
            link.close()

    def _watch(self, index: int) -> None:
        for descriptor in self._links[index].descriptors():
            if self._watched.get(descriptor) != index:
                self._watched[descriptor] = index
                self._poller.register(descriptor, select.EPOLLIN)

    def _run(self, over: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not over():
            if time.monotonic() > deadline_s:
                raise TimeoutError("not everything has come to all sessions")
            self._turn(-1, LOOK_S)

    def _turn(self, descriptor: int, timeout_s: float) -> bool:
        """Waits for input and handles it; returns whether it came from this descriptor."""
        found = [number for number, _ in self._poller.poll(timeout_s)]
        busy: dict[int, list[int]] = {}
        for number in found:
            if number in self._watched:
                busy.setdefault(self._watched[number], []).append(number)
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            for index, link in enumerate(self._opened):
                if link.wait_s() <= 0:
                    busy.setdefault(index, [])
        for index, numbers in busy.items():
            self._look(index, self._links[index], numbers)
        return descriptor in found

    def _look(self, index: int, link: Transport, ready: Collection[int]) -> None:
        while True:
            known = link.descriptors()
            self._deal(index, link, link.turn(ready))
            ready = link.descriptors() if link.descriptors() is not known else link.overlooked()
            if not ready:
                return

    def _deal(self, index: int, link: Transport, effects: list[core.Effect]) -> None:
        taken = False
        for effect in effects:
            match effect:
                case core.Welcomed():
                    self._welcomed += 1
                    self._watch(index)
                case core.Hand(ticket, batch):
                    if batch.pointer is not None:
                        (message,) = effect.messages()
                        self._take(index, payload.load(message, self._settings.paths.log))
                    else:
                        for body in batch.bodies:
                            self._take(index, body)
                    link.core.taken(ticket)
                    taken = True
                case core.Closed(reason):
                    raise reason or RuntimeError("a session was ended")
        if taken:
            link.perform(link.core.acknowledge())


def _nobody(index: int, body: bytes) -> None:
    raise RuntimeError(f"seat {index} was not expecting {body!r}")


class Announcer:
    """Broadcasts to the seats: as several sessions, since each may make no more than 60 within a minute."""

    def __init__(self) -> None:
        self._settings = load()
        self._sessions = 0
        self._owner = process_of(os.getpid()).text
        self._speakers: list[Producer] = []

    def prepare(self, count: int) -> None:
        """Connects sessions for so many broadcasts. They receive none themselves."""
        while len(self._speakers) * BROADCASTS < count:
            self._sessions += 1
            persona = core.Persona(
                role=Role.HELPER,
                session_id=verbs.new_session_id(),
                token=verbs.new_token(),
                name=f"announcer-{self._sessions}",
                owner=self._owner,
                named=False,
            )
            link = Transport(self._settings, core.ClientCore(persona, zmqbus.__version__))
            speaker = Producer(link, self._settings.paths.log)
            speaker.open()
            self._speakers.append(speaker)

    def publish(self, count: int, size_bytes: int) -> tuple[float, float]:
        """Broadcasts `count` messages; returns when it began, and when each was accepted and delivered."""
        texts = [text.encode() for text in work.bodies(count, size_bytes)]
        began_s = time.monotonic()
        receipts: list[Any] = []
        for number, text in enumerate(texts):
            speaker = self._speakers[number // BROADCASTS]
            receipts.append(speaker.send(Scope.TOPIC, TOPIC, Format.TEXT, text)[1])
        for receipt in receipts:
            receipt.result(PATIENCE_S)
        ended_s = time.monotonic()
        for speaker in self._speakers:
            speaker.close()
        self._speakers.clear()
        return began_s, ended_s

    def close(self) -> None:
        """Closes all connections."""
        for speaker in self._speakers:
            speaker.close()
