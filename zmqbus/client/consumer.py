"""The half of a program's bus that receives: the messages of its mailbox, and the work of its groups.

Theory of operation
===================

A message is *taken* when the program has it in hand: `next_message` returns it and, unless the program acknowledges
itself, says so; only then its sender hears `delivered`. What was not taken is the mailbox's, whatever has been
received: a lost connection takes it back, and it comes again.

What comes in one piece stays in one piece here (`_Batch`), with a mark how far it is taken. If the mailbox takes it
back, the messages up to the mark, as far as the core has not been told of them, are `unsure`: they will come again, and
are acknowledged then without being handed out. Where the program acknowledges, no runs come.

Where the program acknowledges (`manual`), a message stays owed while it is worked on. Should it come again meanwhile,
over another connection, it is the same message: it is not handed out twice, and the acknowledgement that is due goes
with the newer ticket.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from zmqbus.client import core, payload
from zmqbus.client.io_thread import IoThread, closed
from zmqbus.client.message import Message, of_batch
from zmqbus.client.transport import Transport
from zmqbus.errors import ZmqbusError
from zmqbus.wire import verbs

#: Messages that are taken one after the other are acknowledged together, and requests answered, no later than this
#: after the first of them. One that is alone is acknowledged, or answered, at once.
COALESCE_S = 0.001
#: Ref of what a session says that goes for good.
FORGET_REF = "forget"
#: How long whoever stops working waits until the broker has heard of it: that takes milliseconds, and where it has a
#: successor, two seconds. After that, requests that have crossed it on the way are left to their deadlines.
SETTLE_S = 5.0


class _Arrival:
    """Messages that came as one batch, and how far the program has taken them."""

    __slots__ = ("at", "batch", "msg_ids", "ticket", "told")

    def __init__(self, hand: core.Hand) -> None:
        self.ticket, self.batch = hand
        self.msg_ids = self.batch.msg_ids
        self.at = 0  #: so many are taken
        self.told = 0  #: and of so many of them the core knows


class Consumer:
    """Receives. Thread-safe."""

    def __init__(self, transport: Transport, log_path: str, *, manual: bool) -> None:
        self._io = IoThread(transport, self)
        self._log = payload.Log(log_path)
        self._manual = manual
        self._arrived = threading.Condition()
        # These belong to the condition's lock.
        self._inbox: deque[_Arrival] = deque()
        self._work: deque[verbs.Work] = deque()
        self._withdrawn: set[str] = set()
        self._error: ZmqbusError | None = None
        self._watchers: list[Callable[[], None]] = []
        self._tickets: dict[str, core.Ticket] = {}  # of messages in the program's hands, not acknowledged
        self._taken: dict[str, core.Ticket] = {}  # of those that the program is done with; the broker has to be told
        self._batches: list[_Arrival] = []  # likewise, where they came in one piece: as far as each is taken
        self._waiting = 0  # threads that wait for a message
        self._given: deque[_Arrival] = deque()  # messages that are theirs, and taken
        self._unsure: dict[str, None] = {}  # taken, not told, and the mailbox's again: they will come again
        # Whoever answers puts it in at one end, the I/O thread takes it out at the other.
        self._answers: deque[tuple[str, int, bytes]] = deque()
        self._forgets = False  # it goes for good: to be said behind all that it has taken
        self._forgetting = False  # that is said
        self._given_up: int | None = None  # and carried out: so many messages were not taken
        self._asked = ""  # ref of what the broker is asked to see that it has heard everything before that
        self._due_s: float | None = None  # when these are to be said at the latest
        self._groups = transport.core.persona.groups
        self.name = transport.core.persona.name or ""  #: what the session goes by

    def __repr__(self) -> str:
        return f"<Consumer {self.name!r}: {self.unread} messages, {len(self._work)} requests>"

    @property
    def unread(self) -> int:
        """Messages that are here and not taken."""
        return sum(len(one.msg_ids) - one.at for one in list(self._inbox))  # guards: consumer [- one.at =>]

    def open(self) -> core.Welcomed:
        """Connects. Raises what keeps it from doing so."""
        welcomed = self._io.open()
        self.name = welcomed.welcome.name
        return welcomed

    def close(self) -> None:
        """Ends the connection; whoever waits for a message hears `NotConnected`."""
        self._io.close()

    def close_soon(self) -> None:
        """As `close`, but waits for nothing: for a bus that nobody has closed, and nobody has any more."""
        self._io.close_soon()

    def forget(self, timeout_s: float) -> int | None:
        """Leaves for good: the name is free, and what has not been taken is given up. Waits up to `timeout_s` for the
        broker's word; returns how many messages were not taken, None if it does not come.

        It is said whatever happens: if the wait is interrupted, with `close` at the latest.
        """
        self._forgets = True
        try:
            self._io.execute()
        except ZmqbusError:
            return None  # the connection has ended, and with it all that could be said
        if self._io.is_current_thread:
            return None
        with self._arrived:
            self._arrived.wait_for(lambda: self._given_up is not None or self._error is not None, timeout_s)
            return self._given_up

    def check(self) -> None:
        """Raises `ForkedBus` in a child process, `NotConnected` when closed, and what has ended the connection."""
        self._io.check()

    # --- messages

    def next_message(self, timeout_s: float | None) -> Message | None:
        """The next message, oldest first; None if none comes in time. Raises what ended the connection."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._io.check()
        with self._arrived:
            if not (self._inbox or self._given or self._wait_for_message(deadline_s)):
                return None
            was_given = bool(self._given)  # guards: consumer [self._given => self._given and not self._inbox]
            if was_given:
                arrival, place = self._given.popleft(), 0
            else:
                arrival = self._inbox[0]
                place = self._take_from(arrival)
            is_last = not self._inbox
        if not self._manual and not was_given:
            self._soon(at_once=is_last)
        return of_batch(arrival.batch, place, self._log, self._done if self._manual else None)

    def _wait_for_message(self, deadline_s: float | None) -> bool:
        """Whether there is a message before the deadline. Under the lock."""
        while not self._inbox and not self._given:  # guards: consumer [and not self._given =>]
            if self._error is not None:
                raise self._error
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            self._waiting += 1
            try:
                self._arrived.wait(left_s)
            finally:
                self._waiting -= 1  # guards: consumer
        return True

    def _take_from(self, first: _Arrival) -> int:
        """Takes the next message of the batch that stands first in the inbox; returns its place there. Under the same
        hold of the lock as the look at the inbox: should the mailbox take it back now, it comes again, and is known."""
        place = first.at
        first.at = place + 1
        if first.at == len(first.msg_ids):
            self._inbox.popleft()
        if self._manual:
            self._tickets[first.msg_ids[place]] = first.ticket.part(place, place + 1)
        elif place == first.told:  # the first one that the core has not been told of
            self._batches.append(first)
        return place

    def _done(self, message: Message) -> None:
        self._io.check()
        with self._arrived:
            ticket = self._tickets.pop(message.msg_id, None)
            if ticket is not None:
                self._taken[message.msg_id] = ticket
        if ticket is not None:
            self._soon(at_once=True)

    def _soon(self, *, at_once: bool) -> None:
        """There is something to say: now, or with what follows it."""
        if at_once:
            self._io.execute()
        elif self._due_s is None:
            self._due_s = due_s = time.monotonic() + COALESCE_S
            self._io.wake_by(due_s)

    # --- work

    def offer(self, credit: int) -> None:
        """Says how many requests of its groups the program takes at a time; nothing where it has joined none."""
        if self._groups:
            self._io.execute(lambda client: client.offer(credit))

    def stop_work(self) -> None:
        """Takes no more requests. Returns when all are here that the broker has handed over before it heard of that:
        they are this program's to answer, for nobody else gets them while it is connected."""

        def say(client: core.ClientCore) -> list[core.Effect]:
            if not client.persona.groups:
                return []
            self._asked = ref = f"w{id(done)}"
            return [*client.offer(0), *client.request(verbs.Status(ref))]

        done = object()
        self._io.execute(say)
        with self._arrived:
            self._arrived.wait_for(lambda: not self._asked or self._error is not None, SETTLE_S)

    def give_back(self) -> None:
        """Takes no more requests, and leaves those that are here, and not answered, to other workers."""

        def say(client: core.ClientCore) -> list[core.Effect]:
            with self._arrived:
                self._work.clear()
            effects: list[core.Effect] = []
            while self._answers:  # first, or they were given back, too
                effects += client.answer(*self._answers.popleft())
            return effects + client.give_back()

        self._io.execute(say)

    def next_work(self, timeout_s: float | None, *, or_message: bool = False) -> verbs.Work | Message | None:
        """The next request of a group (or, with `or_message`, the next message); None if none comes in time."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._io.check()
            with self._arrived:
                while not self._work and not (or_message and (self._inbox or self._given)):
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
        if not self._withdrawn:
            return False
        with self._arrived:
            found = msg_id in self._withdrawn
            self._withdrawn.discard(msg_id)
            return found

    def answer(self, msg_id: str, fmt: int, body: bytes) -> None:
        """Answers a request of a group: at once, or where more of them wait here, together with their answers."""
        self._io.check()
        self._answers.append((msg_id, fmt, body))
        if self._withdrawn:
            with self._arrived:
                self._withdrawn.discard(msg_id)  # told while it was worked on, when nobody asks any more
        self._soon(at_once=not self._work)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls this, from the I/O thread, whenever something has come."""
        with self._arrived:
            self._watchers.append(watcher)

    # --- Application

    def on_effects(self, effects: Sequence[core.Effect]) -> None:
        """See `io_thread.Application`."""
        arrived = False
        with self._arrived:  # once for all of them
            for effect in effects:
                match effect:
                    case core.Hand():
                        arrived |= self._hand(effect)
                    case core.StartWork(work):
                        self._work.append(work)
                        arrived = True
                    case core.TakeBack():
                        self._inbox.clear()
                        for batch in self._batches:
                            self._unsure.update(dict.fromkeys(batch.msg_ids[batch.told : batch.at]))  # guards: consumer
                    case core.Response(ref, envelope):
                        if ref == FORGET_REF:
                            self._given_up = int(envelope.text) if isinstance(envelope, verbs.Done) else 0
                        if ref == self._asked:
                            self._asked = ""
                        self._arrived.notify_all()
                    case core.Withdrawn(msg_ids):
                        self._withdrawn.update(msg_ids)
                    case core.Renamed(name):
                        self.name = name
            if arrived:
                self._give()
                self._arrived.notify_all()  # not one: those who wait do not all wait for the same
        if arrived:
            for watcher in self._watchers:
                self._io.call_later(watcher)

    def _give(self) -> None:
        """A message that is alone is the program's at once, if somebody waits for it: it is acknowledged while whoever
        that is wakes up."""
        # guards: consumer [self._waiting and =>]
        # guards: consumer [and not self._manual =>]
        # guards: consumer [and not self._given =>]
        # guards: consumer [len(self._inbox) == 1 => self._inbox]
        if self._waiting and len(self._inbox) == 1 and not self._manual and not self._given:
            first = self._inbox[0]
            if len(first.msg_ids) == 1:  # guards: consumer [on]
                self._take_from(first)  # guards: consumer
                self._given.append(first)

    def _hand(self, hand: core.Hand) -> bool:
        """Messages have come. False if the program has all of them in hand already, from another connection."""
        known = (self._tickets, self._taken, self._unsure)  # guards: consumer [, self._unsure =>]
        if not any(some and not some.keys().isdisjoint(hand.ticket.msg_ids) for some in known):
            self._inbox.append(_Arrival(hand))
            return True
        return any([self._hand_known(one) for one in hand.apart()])

    def _hand_known(self, hand: core.Hand) -> bool:
        """Likewise one, which may be in hand."""
        (msg_id,) = hand.ticket.msg_ids
        if msg_id in self._tickets:
            self._tickets[msg_id] = hand.ticket
        elif msg_id in self._taken or msg_id in self._unsure:
            self._taken[msg_id] = hand.ticket  # guards: consumer
        else:
            self._inbox.append(_Arrival(hand))
            return True
        return False

    def drain(self, client: core.ClientCore) -> list[core.Effect]:
        """See `io_thread.Application`."""
        self._due_s = None
        effects: list[core.Effect] = []
        if self._taken or self._batches:
            with self._arrived:
                taken, self._taken = self._taken, {}
                batches = [(batch, batch.told, batch.at) for batch in self._batches]
                for batch in self._batches:  # guards: consumer
                    batch.told = batch.at
                self._batches.clear()
                self._unsure.clear()  # guards: consumer
            for batch, told, at in batches:
                client.taken(batch.ticket.part(told, at))
            for ticket in taken.values():
                client.taken(ticket)
            effects += client.acknowledge()
        while self._answers:
            effects += client.answer(*self._answers.popleft())
        if self._forgets and not self._forgetting:
            self._forgetting = True
            persona = client.persona
            effects += client.request(verbs.Forget(FORGET_REF, persona.session_id or "", persona.token or ""))
        return effects

    def deadline_s(self) -> float | None:
        """See `io_thread.Application`."""
        return self._due_s

    def on_deadline(self) -> None:
        """See `io_thread.Application`."""
        try:
            self._io.execute()
        except ZmqbusError:
            pass  # then they come again, and are known

    def on_end(self, error: ZmqbusError) -> None:
        """See `io_thread.Application`."""
        self._log.close()
        with self._arrived:
            if self._error is None:
                self._error = closed() if self._forgets else error
            self._arrived.notify_all()
        for watcher in self._watchers:
            self._io.call_later(watcher)
