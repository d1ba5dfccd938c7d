"""Answers that a command waits for, and the command that may have lost its connection.

An answer is for the command that awaits it (AWAIT), and not for its session's mailbox. If that command has lost its
connection, or the broker has died under it, it is back in a moment: for so long it is *expected*, and its answers are
*held*, or the session's listener would show them, and the command wait in vain. What is held is in the journal, and
nowhere else; its sender has been told nothing, so nothing is lost if this broker dies. Which answers are awaited is in
the store: the next broker expects the same commands.

When the time is over, or there are too many to hold, the answers go where they would have gone without AWAIT: into the
session's mailbox; a guest has none, and its answerers hear that it has stopped waiting.
"""

from __future__ import annotations

from zmqbus.broker.delivery import Delivery
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.in_flight import Batch
from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.sessions import Connection, Session
from zmqbus.broker.storage.api import Awaited, Store
from zmqbus.errors import ProtocolError, RateLimited, UnknownPeer, ZmqbusError
from zmqbus.wire import verbs

#: Answers that one connection may wait for: as many as it may have messages unconfirmed.
MAX_WAITS = 1_000
#: How long a command that has lost its connection is expected back. It looks for a broker for five seconds, and has
#: found one after some tenths; the sender of the answer waits as long for its receipt.
EXPECTED_S = 3.0
#: Answers that are held for commands that are expected back; more go where they would have gone without.
MAX_HELD = 1_000


class Expected:
    """A command that awaits an answer, and has no connection."""

    __slots__ = ("held", "sender_id", "sender_name", "session", "until_s")

    mailbox: Mailbox | None = None

    def __init__(self, awaited: Awaited, session: Session | None, until_s: float) -> None:
        self.sender_id = awaited.waiter_id
        self.sender_name = awaited.waiter_name
        self.session = session  #: None: a guest's
        self.until_s = until_s
        self.held: list[Batch] = []  #: answers to its message, whose senders wait to hear of them

    def __repr__(self) -> str:
        return f"<Expected {self.sender_name}: {len(self.held)} held>"


class ReplyRouting:
    """Who awaits which answers."""

    def __init__(self, delivery: Delivery, store: Store, out: Outbox) -> None:
        self._delivery = delivery
        self._store = store
        self._out = out
        self._waits: dict[str, Connection] = {}  # message id → who waits for its answer
        self._expected: dict[str, Expected] = {}  # likewise, of those that have lost their connection
        self._held = 0  # answers that are kept for them

    def __repr__(self) -> str:
        counts = f"{len(self._waits)} answers awaited, {len(self._expected)} commands expected, {self._held} held"
        return f"<ReplyRouting: {counts}>"

    @property
    def expects(self) -> bool:
        """Whether time alone may change something here."""
        return bool(self._expected)

    def await_answer(self, now: Instant, who: Connection, wanted: verbs.Await) -> None:
        """The answer to a message is for this connection, and not for the session's mailbox."""
        if not verbs.is_msg_id(wanted.msg_id) or len(who.waits) >= MAX_WAITS:
            raise ProtocolError(f"AWAIT names a message id, and a connection awaits {MAX_WAITS} answers at most")
        other = self._waits.get(wanted.msg_id)
        if other is not None and other.sender_id != who.sender_id:
            raise ProtocolError("the answer to this message is awaited by another session")
        expected = self._expected.get(wanted.msg_id)
        if expected is not None and expected.sender_id != who.sender_id:
            raise ProtocolError("the answer to this message is awaited by another session")
        who.waits.add(wanted.msg_id)
        self._waits[wanted.msg_id] = who
        if who.mailbox is None:
            self.open_answers(now, who)
        if expected is None:
            self._store.save_awaited(Awaited(wanted.msg_id, who.sender_id, who.sender_name))  # guards: reply routing
            return
        del self._expected[wanted.msg_id]
        self._held -= len(expected.held)
        for batch in expected.held:  # guards: reply routing
            self._to_waiter(now, who, batch)

    def unawait(self, now: Instant, who: Connection, dropped: verbs.Unawait) -> None:
        """The answers to these messages go where they would have gone without AWAIT."""
        mine = [msg_id for msg_id in dropped.msg_ids if self._waits.get(msg_id) is who]
        for msg_id in mine:
            del self._waits[msg_id]
            who.waits.discard(msg_id)
        if mine:
            self._store.forget_awaited(mine)

    def waiter(self, msg_id: str) -> Connection | Expected | None:
        """Who awaits the answer to this message."""
        waiter = self._waits.get(msg_id)
        if waiter is not None:
            return waiter
        return self._expected.get(msg_id) if self._held < MAX_HELD else None

    def open_answers(self, now: Instant, who: Connection) -> None:
        """Gives a helper or guest a mailbox for the answers that it waits for."""
        self._delivery.attach(now, Mailbox(f"{who.sender_id}/{who.lease}", self._store), who)

    def expect(self, awaited: Awaited, session: Session | None, now: Instant) -> None:
        """A command that waits for an answer has lost its connection, or its broker."""
        self._expected[awaited.msg_id] = Expected(awaited, session, now.mono_s + EXPECTED_S)

    def forget_waits(self, now: Instant, who: Connection, *, left: bool) -> None:
        """The connection has gone. Unless it has left in good order, the command may be back in a moment."""
        mine = [msg_id for msg_id in who.waits if self._waits.get(msg_id) is who]
        for msg_id in mine:
            del self._waits[msg_id]
            if not left:
                self.expect(Awaited(msg_id, who.sender_id, who.sender_name), who.session, now)
        if left and mine:
            self._store.forget_awaited(mine)

    def hold(self, batch: Batch) -> bool:
        """Keeps an answer, whose sender has not been told of it, for the command that is expected back, if one is."""
        expected = self._expected.get(batch.header.reply_to or "")
        if expected is None or self._held >= MAX_HELD:
            return False
        expected.held.append(batch)
        self._held += 1
        return True

    def pass_on(self, now: Instant, waiter: Connection | Expected, batch: Batch) -> None:
        """Delivers a journaled answer to the connection that awaits it now: since it became pending, the command may
        have lost its connection, or come back."""
        awaiting = self._waits.get(batch.header.reply_to or "")
        if awaiting is not None and awaiting.sender_id == waiter.sender_id:
            self._to_waiter(now, awaiting, batch)
            return
        self._delivery.begin(batch)
        if not self.hold(batch):
            self._without_waiter(now, waiter.session, waiter.sender_name, batch)

    def _to_waiter(self, now: Instant, waiter: Connection, batch: Batch) -> None:
        if not self._delivery.to_waiter(now, waiter, batch):
            busy = RateLimited(f"'{waiter.guest}' has not taken the answers it was sent; retry when it has")
            self._refuse(batch, busy)

    def _without_waiter(self, now: Instant, session: Session | None, name: str, batch: Batch) -> None:
        """The command has gone: the answer is for its session's mailbox, and a guest has none."""
        if session is not None:
            self._delivery.to_one(now, session, batch)
        else:
            self._refuse(batch, UnknownPeer(f"'{name}' has stopped waiting for the answer; it has no mailbox"))

    def _refuse(self, batch: Batch, error: ZmqbusError) -> None:
        for msg_id in batch.msg_ids:
            self._delivery.drop(msg_id)
            self._out.refuse(batch.origin, msg_id, error)

    def tick(self, now: Instant) -> None:
        """Gives up commands that have not come back."""
        for msg_id, expected in list(self._expected.items()):
            if now.mono_s >= expected.until_s:
                del self._expected[msg_id]
                self._held -= len(expected.held)
                self._store.forget_awaited((msg_id,))
                for batch in expected.held:  # guards: reply routing
                    self._without_waiter(now, expected.session, expected.sender_name, batch)
