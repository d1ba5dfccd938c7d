"""The receiving half of a program's bus: the messages of its mailbox, and the work of its groups.

Theory of operation
===================

A message is *taken* when `next_message` returns it and, with `ack="manual"`, when the program acknowledges it; only
then its sender's receipt says `delivered`. Untaken messages belong to the mailbox, though they are here: a lost
connection takes them back, and they come again.

A batch stays one here (`_Arrival`), with a mark of how many of its messages are taken. When the mailbox takes it back,
the messages up to the mark of which the core has not been told become `unsure`: they will come again, and are
acknowledged then without being handed out.

With manual acknowledgement a message is owed while the program works on it. If it comes again meanwhile, over another
connection, it is not handed out twice, and its acknowledgement uses the newer ticket.
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

#: Acknowledgements of a burst of messages, and answers to a burst of requests, go out together, at most this many
#: seconds after the first. A single one goes out at once.
COALESCE_S = 0.001
#: Ref of the FORGET of a session that leaves for good.
FORGET_REF = "forget"
#: Ref of the SETSTATE that tells a new broker what the program does.
STATE_REF = "state"
#: Notices that are kept until the program reads them; further ones push out the oldest.
MAX_NOTICES = 1_000
#: How many seconds a stopping worker waits for the broker to confirm: it takes milliseconds, or two seconds if the
#: broker has a successor. After that, requests that are still on their way are left to their deadlines.
SETTLE_S = 5.0


class _Arrival:
    """Messages that came as one batch, and how far the program has taken them."""

    __slots__ = ("at", "batch", "msg_ids", "ticket", "told")

    def __init__(self, hand: core.Hand) -> None:
        self.ticket, self.batch = hand
        self.msg_ids = self.batch.msg_ids
        self.at = 0  #: how many are taken
        self.told = 0  #: how many of these the core was told of


class Consumer:
    """Receives messages and work. Thread-safe."""

    def __init__(self, transport: Transport, log_path: str, *, manual: bool) -> None:
        self._io = IoThread(transport, self)
        self._log = payload.Log(log_path)
        self._manual = manual
        self._arrived = threading.Condition()
        # Under the condition's lock.
        self._inbox: deque[_Arrival] = deque()
        self._work: deque[verbs.Work] = deque()
        self._notices: deque[verbs.Notice] = deque(maxlen=MAX_NOTICES)
        self._withdrawn: set[str] = set()
        self._error: ZmqbusError | None = None
        self._watchers: list[Callable[[], None]] = []
        self._tickets: dict[str, core.Ticket] = {}  # of messages that the program has not acknowledged
        self._taken: dict[str, core.Ticket] = {}  # of acknowledged ones, for the core
        self._batches: list[_Arrival] = []  # with taken messages, for the core
        self._waiting = 0  # threads that wait for a message
        self._given: deque[_Arrival] = deque()  # taken messages for those threads
        self._unsure: dict[str, None] = {}  # see the theory of operation
        # Written by threads that answer, read by the I/O thread.
        self._answers: deque[tuple[str, int, bytes]] = deque()
        self._forgets = False  # FORGET is to be sent, behind all acknowledgements
        self._forgetting = False  # FORGET was sent
        self._given_up: int | None = None  # the number of untaken messages, from the response
        self._state: verbs.SetState | None = None  # what the program says that it does
        self._state_due = False  # a new connection has not been told
        self._asked = ""  # ref of a request that shows that the broker has read all envelopes before it
        self._deadline_s: float | None = None  # when acknowledgements and answers go out at the latest
        self._groups = transport.core.persona.groups
        #: Whether the session has joined a topic of the bus itself, of which it gets notices.
        self.has_notices = not set(verbs.SYSTEM_TOPICS).isdisjoint(transport.core.persona.topics)
        self.name = transport.core.persona.name or ""  #: of the session

    def __repr__(self) -> str:
        return f"<Consumer {self.name!r}: {self.unread} messages, {len(self._work)} requests>"

    @property
    def unread(self) -> int:
        """Number of untaken messages that are here."""
        return sum(len(one.msg_ids) - one.at for one in list(self._inbox))  # guards: consumer [- one.at =>]

    def open(self) -> core.Welcomed:
        """Connects. Raises as `IoThread.open`."""
        welcomed = self._io.open()
        self.name = welcomed.welcome.name
        return welcomed

    def close(self) -> None:
        """Ends the connection; threads that wait for a message get `NotConnected`."""
        self._io.close()

    def close_soon(self) -> None:
        """Ends the connection without waiting, for a finaliser."""
        self._io.close_soon()

    def forget(self, timeout_s: float) -> int | None:
        """Leaves for good: frees the name, and gives untaken messages up. Waits up to `timeout_s` for the broker's
        response; returns how many messages were given up, None without a response.

        FORGET is sent whatever happens, even if the wait is interrupted: with `close` at the latest.
        """
        self._forgets = True
        try:
            self._io.execute()
        except ZmqbusError:
            return None  # the connection has ended
        if self._io.is_current_thread:
            return None
        with self._arrived:
            self._arrived.wait_for(lambda: self._given_up is not None or self._error is not None, timeout_s)
            return self._given_up

    def check(self) -> None:
        """Raises as `IoThread.check`."""
        self._io.check()

    # --- messages

    def next_message(self, timeout_s: float | None) -> Message | None:
        """Returns the next message, oldest first; None if none comes in time. Raises the error that ended the
        connection."""
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
        """Waits for a message; returns False at the deadline. Under the lock."""
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
        """Takes the next message of the first batch in the inbox; returns its place in the batch. Under the lock, held
        since the look at the inbox: if the mailbox takes the message back from now on, it is recognised."""
        place = first.at
        first.at = place + 1
        if first.at == len(first.msg_ids):
            self._inbox.popleft()
        if self._manual:
            self._tickets[first.msg_ids[place]] = first.ticket.part(place, place + 1)
        elif place == first.told:  # the core knows all messages before it
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
        """Sends acknowledgements and answers: now, or with later ones within `COALESCE_S`."""
        if at_once:
            self._io.execute()
        elif self._deadline_s is None:
            self._deadline_s = due_s = time.monotonic() + COALESCE_S
            self._io.wake_by(due_s)

    # --- states of agents

    def keep_state(self, state: str, detail: str) -> verbs.SetState:
        """Notes what the program does, to tell each new connection; returns the request that tells it now."""
        before = self._state
        if before is None or (before.state, before.detail) != (state, detail):
            before = verbs.SetState(STATE_REF, state, time.time(), detail)
        self._state = before
        return before

    def next_notice(self, timeout_s: float | None) -> verbs.Notice | None:
        """Returns the next notice, oldest first; None if none comes in time. Raises the error that ended the
        connection."""
        self._io.check()
        with self._arrived:
            self._arrived.wait_for(lambda: self._notices or self._error is not None, timeout_s)
            if self._notices:
                return self._notices.popleft()
            if self._error is not None:
                raise self._error
            return None

    # --- work

    def offer(self, credit: int) -> None:
        """Offers to take this many requests at a time; does nothing without groups."""
        if self._groups:
            self._io.execute(lambda client: client.offer(credit))

    def stop_work(self) -> None:
        """Takes no more requests. Returns when all requests are here that the broker has handed over before it read
        that: this program must answer them, since no other worker gets them while it is connected."""

        def act(client: core.ClientCore) -> list[core.Effect]:
            if not client.persona.groups:
                return []
            self._asked = ref = f"w{id(done)}"
            return [*client.offer(0), *client.request(verbs.Status(ref))]

        done = object()
        self._io.execute(act)
        with self._arrived:
            self._arrived.wait_for(lambda: not self._asked or self._error is not None, SETTLE_S)

    def give_back(self) -> None:
        """Takes no more requests, and leaves unanswered ones to other workers."""

        def act(client: core.ClientCore) -> list[core.Effect]:
            with self._arrived:
                self._work.clear()
            effects: list[core.Effect] = []
            while self._answers:  # first: otherwise these requests would be given back, too
                effects += client.answer(*self._answers.popleft())
            return effects + client.give_back()

        self._io.execute(act)

    def next_work(self, timeout_s: float | None, *, or_message: bool = False) -> verbs.Work | Message | None:
        """Returns the next request of a group (or, with `or_message`, the next message); None if none comes in time."""
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
        """Returns whether this request was withdrawn. Call once, before the work begins."""
        if not self._withdrawn:
            return False
        with self._arrived:
            found = msg_id in self._withdrawn
            self._withdrawn.discard(msg_id)
            return found

    def answer(self, msg_id: str, fmt: int, body: bytes) -> None:
        """Answers a request of a group: at once, or if more requests wait here, together with their answers."""
        self._io.check()
        self._answers.append((msg_id, fmt, body))
        if self._withdrawn:
            with self._arrived:
                self._withdrawn.discard(msg_id)  # it may have come during the work
        self._soon(at_once=not self._work)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls the watcher, from the I/O thread, whenever messages, requests or notices have come."""
        with self._arrived:
            self._watchers.append(watcher)

    # --- Application

    def on_effects(self, effects: Sequence[core.Effect]) -> None:
        """See `io_thread.Application`."""
        arrived = noticed = False
        with self._arrived:
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
                    case core.Noticed(notice):
                        self._notices.append(notice)
                        noticed = True
                    case core.Welcomed() if self._state is not None:
                        self._state_due = True
                        self._io.call_later(self.on_deadline)
            if arrived:
                self._give()
            if arrived or noticed:
                self._arrived.notify_all()  # all: the threads wait for different things
        if arrived or noticed:
            for watcher in self._watchers:
                self._io.call_later(watcher)

    def _give(self) -> None:
        """Takes a single message at once if a thread waits for it, so that it is acknowledged while that wakes up."""
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
        """Puts messages into the inbox; returns False if the program has all of them, from another connection."""
        known = (self._tickets, self._taken, self._unsure)  # guards: consumer [, self._unsure =>]
        if not any(some and not some.keys().isdisjoint(hand.ticket.msg_ids) for some in known):
            self._inbox.append(_Arrival(hand))
            return True
        return any([self._hand_known(one) for one in hand.apart()])

    def _hand_known(self, hand: core.Hand) -> bool:
        """Puts one message into the inbox, unless the program has it: then notes its new ticket."""
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
        self._deadline_s = None
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
        if self._state_due and self._state is not None:
            self._state_due = False
            effects += client.request(self._state)
        if self._forgets and not self._forgetting:
            self._forgetting = True
            persona = client.persona
            effects += client.request(verbs.Forget(FORGET_REF, persona.session_id or "", persona.token or ""))
        return effects

    def deadline_s(self) -> float | None:
        """See `io_thread.Application`."""
        return self._deadline_s

    def on_deadline(self) -> None:
        """See `io_thread.Application`."""
        try:
            self._io.execute()
        except ZmqbusError:
            pass  # the messages will come again, and are recognised

    def on_end(self, error: ZmqbusError) -> None:
        """See `io_thread.Application`."""
        self._log.close()
        with self._arrived:
            if self._error is None:
                self._error = closed() if self._forgets else error
            self._arrived.notify_all()
        for watcher in self._watchers:
            self._io.call_later(watcher)
