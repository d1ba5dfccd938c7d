"""The half of a program's bus that receives: the messages of its mailbox, and the work of its groups.

Theory of operation
===================

A message is *taken* when the program has it in hand: `next_message` returns it and, unless the program acknowledges
itself, says so; only then its sender hears `delivered`. What was not taken is the mailbox's, whatever has been
received: a lost connection takes it back, and it comes again.

Where the program acknowledges (`manual`), a message stays owed while it is worked on. Should it come again meanwhile,
over another connection, it is the same message: it is not handed out twice, and the acknowledgement that is due goes
with the newer ticket.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from zmqbus import protocol
from zmqbus.client import core
from zmqbus.client.driver import Driver
from zmqbus.client.link import Link
from zmqbus.client.messages import Message, of_incoming
from zmqbus.errors import NotConnected, ZmqbusError

#: Messages that are taken one after the other are acknowledged together, and requests answered, no later than this
#: after the first of them. One that is alone is acknowledged, or answered, at once.
COALESCE_S = 0.001


class Receiver:
    """Receives. Thread-safe."""

    def __init__(self, link: Link, log_path: str, *, manual: bool) -> None:
        self._driver = Driver(link, self)
        self._log_path = log_path
        self._manual = manual
        self._arrived = threading.Condition()
        # These belong to the condition's lock.
        self._inbox: deque[core.Incoming] = deque()
        self._work: deque[protocol.Work] = deque()
        self._withdrawn: set[str] = set()
        self._error: ZmqbusError | None = None
        self._watchers: list[Callable[[], None]] = []
        self._tickets: dict[str, core.Ticket] = {}  # of messages in the program's hands, not acknowledged
        # Whoever takes a message puts it in at one end, the driver takes it out at the other.
        self._taken: deque[core.Ticket] = deque()
        self._answers: deque[tuple[str, int, bytes]] = deque()
        self._due_s: float | None = None  # when these are to be said at the latest
        self.name = link.core.persona.name or ""  #: what the session goes by

    def __repr__(self) -> str:
        return f"<Receiver {self.name!r}: {len(self._inbox)} messages, {len(self._work)} requests>"

    def open(self) -> core.Welcomed:
        """Connects. Raises what keeps it from doing so."""
        welcomed = self._driver.open()
        self.name = welcomed.welcome.name
        return welcomed

    def close(self) -> None:
        """Ends the connection; whoever waits for a message hears `NotConnected`."""
        self._driver.close()
        self.ended(NotConnected("the bus was closed"))

    def check(self) -> None:
        """Raises `ForkedBus` in a child process, `NotConnected` when closed."""
        self._driver.check()

    # --- messages

    def next_message(self, timeout_s: float | None) -> Message | None:
        """The next message, oldest first; None if none comes in time. Raises what ended the connection."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._driver.check()
            with self._arrived:
                while not self._inbox:
                    if self._error is not None:
                        raise self._error
                    left_s = None if deadline_s is None else deadline_s - time.monotonic()
                    if left_s is not None and left_s <= 0:
                        return None
                    self._arrived.wait(left_s)
                incoming = self._inbox.popleft()
                last = not self._inbox
            if self._take(incoming, last=last):
                return of_incoming(incoming, self._log_path, self._done if self._manual else None)

    def _take(self, incoming: core.Incoming, *, last: bool) -> bool:
        """Whether the message is this program's to handle; it may have been taken back, and come again, meanwhile.
        `last`: there is no other behind it."""
        if not self._manual:
            self._acknowledge(incoming.ticket, at_once=last)
            return True
        with self._arrived:
            first = incoming.msg_id not in self._tickets
            self._tickets[incoming.msg_id] = incoming.ticket
        return first

    def _done(self, message: Message) -> None:
        self._driver.check()
        with self._arrived:
            ticket = self._tickets.pop(message.msg_id, None)
        if ticket is not None:
            self._acknowledge(ticket, at_once=True)

    def _acknowledge(self, ticket: core.Ticket, *, at_once: bool) -> None:
        self._taken.append(ticket)
        self._soon(at_once=at_once)

    def _soon(self, *, at_once: bool) -> None:
        """There is something to say: now, or with what follows it."""
        if at_once:
            self._driver.say()
        elif self._due_s is None:
            self._due_s = due_s = time.monotonic() + COALESCE_S
            self._driver.nudge(due_s)

    # --- work

    def offer(self, credit: int) -> None:
        """Says how many requests of its groups the program takes at a time."""
        self._driver.say(lambda client: client.offer(credit))

    def next_work(self, timeout_s: float | None, *, or_message: bool = False) -> protocol.Work | Message | None:
        """The next request of a group (or, with `or_message`, the next message); None if none comes in time."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._driver.check()
            with self._arrived:
                while not self._work and not (or_message and self._inbox):
                    if self._error is not None:
                        raise self._error
                    left_s = None if deadline_s is None else deadline_s - time.monotonic()
                    if left_s is not None and left_s <= 0:
                        return None
                    self._arrived.wait(left_s)
                if self._work:
                    return self._work.popleft()
            message = self.next_message(0.0)
            if message is not None:
                return message

    def is_withdrawn(self, msg_id: str) -> bool:
        """Whether nobody waits for the answer to this request any more; asked once, when its turn has come."""
        with self._arrived:
            found = msg_id in self._withdrawn
            self._withdrawn.discard(msg_id)
            return found

    def answer(self, msg_id: str, fmt: int, body: bytes) -> None:
        """Answers a request of a group: at once, or where more of them wait here, together with their answers."""
        self._driver.check()
        self._answers.append((msg_id, fmt, body))
        self._soon(at_once=not self._work)

    def interrupt(self) -> None:
        """Wakes whoever waits, with `NotConnected`."""
        with self._arrived:
            self._arrived.notify_all()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls this, from the driver's thread, whenever something has come."""
        with self._arrived:
            self._watchers.append(watcher)

    # --- Application

    def deal(self, effect: core.Effect) -> None:
        """See `driver.Application`."""
        match effect:
            case core.Hand(message):
                with self._arrived:
                    in_hand = message.msg_id in self._tickets
                    if in_hand:
                        self._tickets[message.msg_id] = message.ticket
                if not in_hand:
                    self._arrive(lambda: self._inbox.append(message))
            case core.TakeBack():
                with self._arrived:
                    self._inbox.clear()
            case core.Do(work):
                self._arrive(lambda: self._work.append(work))
            case core.Withdrawn(msg_ids):
                with self._arrived:
                    self._withdrawn.update(msg_ids)
            case core.Renamed(name):
                self.name = name

    def speak(self, client: core.ClientCore) -> list[core.Effect]:
        """See `driver.Application`."""
        self._due_s = None
        effects: list[core.Effect] = []
        if self._taken:
            while self._taken:
                client.taken(self._taken.popleft())
            effects += client.acknowledge()
        while self._answers:
            effects += client.answer(*self._answers.popleft())
        return effects

    def due_s(self) -> float | None:
        """See `driver.Application`."""
        return self._due_s

    def ring(self) -> None:
        """See `driver.Application`."""
        try:
            self._driver.say()
        except NotConnected:
            pass  # then they come again, and are known

    def ended(self, error: ZmqbusError) -> None:
        """See `driver.Application`."""
        with self._arrived:
            if self._error is None:
                self._error = error
            self._arrived.notify_all()
            watchers = [*self._watchers]
        for watcher in watchers:
            watcher()

    def _arrive(self, put: Callable[[], None]) -> None:
        with self._arrived:
            put()
            self._arrived.notify()
        for watcher in self._watchers:
            self._driver.later(watcher)
