"""Routes answers to the commands that await them, also across a lost connection.

An answer goes to the command that awaits it (AWAIT), not to its session's mailbox. If that command has lost its
connection, or the broker has died, it reconnects within moments: until then it is *expected*, and its answers are
*held*; otherwise the session's listener would show them, and the command would wait in vain. A held answer is in the
journal only; its sender has no receipt, so nothing is lost if this broker dies. The store records which answers are
awaited: the next broker expects the same commands.

When the time is over, or there are too many to hold, the answers go where they would have gone without AWAIT: into the
session's mailbox. A guest has none, so the senders of its answers get an error that it has stopped waiting.
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
from zmqbus.wire.handlers import handles

#: Answers that one connection may await: as many as it may have unconfirmed messages.
MAX_WAITS = 1_000
#: How long a command that has lost its connection is expected. It looks for a broker for five seconds, and finds one
#: after a few tenths; the sender of a held answer waits this long for its receipt.
EXPECTED_S = 3.0
#: Answers held for expected commands; further ones go where they would have gone without AWAIT.
MAX_HELD = 1_000


class Expected:
    """A command that awaits an answer and has lost its connection."""

    __slots__ = ("held", "sender_id", "sender_name", "session", "until_s")

    mailbox: Mailbox | None = None

    def __init__(self, awaited: Awaited, session: Session | None, until_s: float) -> None:
        self.sender_id = awaited.waiter_id
        self.sender_name = awaited.waiter_name
        self.session = session  #: None for a guest
        self.until_s = until_s
        self.held: list[Batch] = []  #: answers to its message, whose senders have no receipt yet

    def __repr__(self) -> str:
        return f"<Expected {self.sender_name}: {len(self.held)} held>"


class ReplyRouting:
    """The connections and expected commands that await answers, by message id."""

    def __init__(self, delivery: Delivery, store: Store, out: Outbox) -> None:
        self._delivery = delivery
        self._store = store
        self._out = out
        self._waits: dict[str, Connection] = {}  # message id → connection that awaits its answer
        self._expected: dict[str, Expected] = {}  # message id → command that has lost its connection
        self._held = 0  # answers held for expected commands

    def __repr__(self) -> str:
        counts = f"{len(self._waits)} answers awaited, {len(self._expected)} commands expected, {self._held} held"
        return f"<ReplyRouting: {counts}>"

    @property
    def expects(self) -> bool:
        """Whether time alone may change something here."""
        return bool(self._expected)

    @handles(verbs.Await)
    def await_answer(self, now: Instant, who: Connection, wanted: verbs.Await) -> None:
        """Routes the answer to a message to this connection instead of the session's mailbox."""
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

    @handles(verbs.Unawait)
    def unawait(self, now: Instant, who: Connection, dropped: verbs.Unawait) -> None:
        """Ends the waits of a connection: answers go where they would have gone without AWAIT."""
        mine = [msg_id for msg_id in dropped.msg_ids if self._waits.get(msg_id) is who]
        for msg_id in mine:
            del self._waits[msg_id]
            who.waits.discard(msg_id)
        if mine:
            self._store.forget_awaited(mine)

    def waiter(self, msg_id: str) -> Connection | Expected | None:
        """Returns the connection or expected command that awaits the answer to this message."""
        waiter = self._waits.get(msg_id)
        if waiter is not None:
            return waiter
        return self._expected.get(msg_id) if self._held < MAX_HELD else None

    def open_answers(self, now: Instant, who: Connection) -> None:
        """Gives a helper or guest a mailbox for the answers that it awaits."""
        self._delivery.attach(now, Mailbox(f"{who.sender_id}/{who.lease}", self._store), who)

    def expect(self, awaited: Awaited, session: Session | None, now: Instant) -> None:
        """Expects a command that awaits an answer and has lost its connection, or its broker."""
        self._expected[awaited.msg_id] = Expected(awaited, session, now.mono_s + EXPECTED_S)

    def forget_waits(self, now: Instant, who: Connection, *, left: bool) -> None:
        """Ends the waits of a closed connection. Unless it `left` in good order, its command is expected."""
        mine = [msg_id for msg_id in who.waits if self._waits.get(msg_id) is who]
        for msg_id in mine:
            del self._waits[msg_id]
            if not left:
                self.expect(Awaited(msg_id, who.sender_id, who.sender_name), who.session, now)
        if left and mine:
            self._store.forget_awaited(mine)

    def hold(self, batch: Batch) -> bool:
        """Holds an answer, whose sender has no receipt yet, for its expected command. False if there is none."""
        expected = self._expected.get(batch.header.reply_to or "")
        if expected is None or self._held >= MAX_HELD:
            return False
        expected.held.append(batch)
        self._held += 1
        return True

    def pass_on(self, now: Instant, waiter: Connection | Expected, batch: Batch) -> None:
        """Delivers a journaled answer to the connection that awaits it now.

        Since the answer became pending, the command may have lost its connection, or reconnected.
        """
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
        """Delivers an answer without its command to the session's mailbox; a guest has none, so it is refused."""
        if session is not None:
            self._delivery.to_one(now, session, batch)
        else:
            self._refuse(batch, UnknownPeer(f"'{name}' has stopped waiting for the answer; it has no mailbox"))

    def _refuse(self, batch: Batch, error: ZmqbusError) -> None:
        for msg_id in batch.msg_ids:
            self._delivery.drop(msg_id)
            self._out.refuse(batch.origin, msg_id, error)

    def tick(self, now: Instant) -> None:
        """Gives up the expected commands whose time is over."""
        for msg_id, expected in list(self._expected.items()):
            if now.mono_s >= expected.until_s:
                del self._expected[msg_id]
                self._held -= len(expected.held)
                self._store.forget_awaited((msg_id,))
                for batch in expected.held:  # guards: reply routing
                    self._without_waiter(now, expected.session, expected.sender_name, batch)
