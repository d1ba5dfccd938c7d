"""Messages on their way: from the journal to the receivers, and back as outcomes to their senders.

A message that has been journaled is *open* until its sender has been told its outcome; then only that is remembered
(`dedup`), so that a sender that repeats the message hears the same again. To one receiver the answer is a RECEIPT:
`delivered` when the consumer of the mailbox has acknowledged it, `queued` as soon as the store has committed it. To
many it is a TALLY, when each has done one or the other, which takes a second at most.

Messages that were accepted together (`in_flight.Batch`) go out and are acknowledged together. Where they fare
differently (some go out now, the others are stored) the batch is split, for this mailbox only.

*Due* are the answers that wait for the commit. It comes at the end of the wake, and covers all of them; if the disk
refuses it, the messages that were accepted in this very wake are taken back and refused, and the older ones wait for
another commit: no sender has been told anything that is not so.

A mailbox has at most one *consumer*, the connection that it is open towards: the session's own process, or a command
that reads it in its place (`fetch`), or, for the answers that a command waits for, that command.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from zmqbus.broker.dedup import DedupWindow, Outcome
from zmqbus.broker.events import Instant, Outbox, Publish
from zmqbus.broker.in_flight import Batch, BroadcastProgress, InFlight, Stage
from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.sessions import Connection, Session, SessionState
from zmqbus.broker.storage.api import Entry, Store
from zmqbus.errors import BrokerUnavailable, ProtocolError, UnknownPeer
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.handlers import handles
from zmqbus.wire.verbs import State

#: A receiver that has not taken a message by then is reported as busy.
BUSY_AFTER_S = 1.0
#: A published broadcast that is not acknowledged by then is called to mind (BEAT).
BEAT_AFTER_S = 0.25


class _Due(NamedTuple):
    """A sender is to hear `queued` after the next commit."""

    piece: InFlight
    session: Session
    state: State
    away_s: int


class Delivery:
    """All messages in flight, to all receivers."""

    def __init__(self, out: Outbox, epoch: str, store: Store, lingering: dict[str, int]) -> None:
        """`lingering`: see `Registry`."""
        self._lingering = lingering
        self._out = out
        self._epoch = epoch
        self.dedup = DedupWindow(store)  #: outcomes of messages that are closed
        self.bcast = 0  #: number of the last broadcast
        self._channels: dict[bytes, int] = {}  # number of the last one that was published on each
        self._open: dict[str, Batch] = {}  # by message id: the sender has not been told its outcome
        self._due: list[_Due] = []
        self._fresh: list[_Due] = []  # those of them that were accepted since the last commit
        self._taken_over = False  # a session was, since the last batch: receivers of pending messages may be gone
        self._commits = True  # the last commit went well
        self._active: dict[Mailbox, None] = {}  # those with a message under way; a set would make runs differ
        self._consumers: dict[Mailbox, Connection] = {}

    def __repr__(self) -> str:
        return f"<Delivery: {len(self._open)} unsettled, broadcast {self.bcast}>"

    @property
    def unsettled(self) -> int:
        """Messages whose senders have not been told what became of them."""
        return len(self._open)

    def under_way(self) -> tuple[int, int]:
        """Messages that are sent and not acknowledged, and the bytes of credit that they use."""
        return sum(len(box.window) for box in self._active), sum(box.window_bytes for box in self._active)

    @property
    def waits(self) -> bool:
        """Whether time alone may change something here: a message is under way."""
        return bool(self._active)

    def oldest_segment(self) -> int | None:
        """The oldest segment of the journal that a message under way points into; None if there is none."""
        found = (box.window.oldest_segment() for box in self._active)
        return min((number for number in found if number is not None), default=None)

    # --- consumers

    def consumer(self, mailbox: Mailbox) -> Connection | None:
        """The connection that the mailbox is open towards, or was, until it is asked to give back what it holds."""
        return self._consumers.get(mailbox)

    def attach(self, now: Instant, mailbox: Mailbox, consumer: Connection) -> None:
        """Opens a mailbox towards a connection, and sends what waits in it."""
        consumer.mailbox = mailbox
        mailbox.open = True
        self._consumers[mailbox] = consumer
        self._pump(now, mailbox)

    def detach(self, mailbox: Mailbox, hold: Callable[[Batch], bool] = lambda batch: False) -> None:
        """Closes a mailbox whose consumer is gone. Senders that wait for a receipt hear that their messages are queued,
        unless `hold` keeps an answer for a consumer that is expected back."""
        consumer = self._consumers.pop(mailbox, None)
        self._active.pop(mailbox, None)
        for piece in mailbox.close():
            if hold(piece.batch):
                mailbox.retract(piece)
                piece.enter(Stage.DONE)
            elif consumer is not None and consumer.session is not None:
                self._settle_queued(piece, consumer.session, State.BUSY if consumer.session.conn else State.AWAY, 0)
            elif consumer is not None:
                piece.enter(Stage.DONE)
                left = UnknownPeer(f"'{consumer.guest}' left without taking it")
                for msg_id in piece.msg_ids:
                    self._out.refuse(piece.batch.origin, msg_id, left)
                    self._open.pop(msg_id, None)

    def forsake(self, session: Session) -> int:
        """Gives up the mailbox of a session that is gone for good, which has no consumer. Senders that have been told
        nothing yet hear that their messages were not taken. Returns how many messages are given up."""
        for piece in [due.piece for due in self._due if due.session.heir is session and not due.piece.told]:
            piece.enter(Stage.DONE)
            for progress in piece.progress:
                progress.remaining -= 1
                if not progress.remaining:
                    self._settle_broadcast(piece.batch, progress)
            if not piece.progress:
                left = f"'{session.name}' left for good without taking it; see who is there: zmqbus list"
                self._refuse_open(piece.batch, piece.msg_ids, UnknownPeer.code, left)
        self._due = [due for due in self._due if due.session.heir is not session]
        self._fresh = [due for due in self._fresh if due.session is not session]
        return session.mailbox.empty()

    def take_over(self, now: Instant, session: Session, other: Session) -> bool:
        """What waits for a session whose owner has ended is for another one now; senders that are about to hear that it
        is queued will. False, and nothing is done, if the store cannot be read."""
        if not session.mailbox.take_over(other.mailbox):
            return False
        self.dedup.moved(other.mailbox.key, session.mailbox.key)  # guards: takeover
        self._taken_over = True
        self._pump(now, session.mailbox)
        return True

    # --- out to the receivers

    def to_one(self, now: Instant, session: Session, batch: Batch) -> None:
        """Delivers directed messages.

        Those that cannot be sent now, since the receiver is away or has no credit, are stored, and their sender gets
        that answer at once.
        """
        if session.successor is not None:  # guards: takeover [off]
            session = session.heir  # taken over since the message became pending
        for msg_id in batch.msg_ids:  # guards: batch delivery
            self._open[msg_id] = batch
        self._enqueue(now, session, batch)

    def to_waiter(self, now: Instant, waiter: Connection, batch: Batch) -> bool:
        """Delivers an answer to the connection that awaits it. False if that cannot take it, and has no mailbox where
        it could stay."""
        mailbox = waiter.mailbox
        assert mailbox is not None
        if waiter.session is None and not mailbox.room(batch):
            return False
        self._open[batch.msg_ids[0]] = batch
        sent, stored = mailbox.append(batch, now.mono_s)
        if sent is not None:
            self._active[mailbox] = None
            self._deliver(now, waiter, sent, waited=batch.repeated)
        elif stored is not None and waiter.session is not None:
            self._settle_queued(stored, waiter.session, State.BUSY, 0)
        return True

    def to_many(
        self, now: Instant, receivers: list[Session], batch: Batch, sender: Connection, full: list[Session]
    ) -> None:
        """Delivers broadcasts: published once to all who can take them that way, and put into the mailboxes of all
        others. `full`: the sessions that have no room for them."""
        count = len(batch.msg_ids)
        # guards: broadcasts [off]
        if count > 1 and any(0 < session.mailbox.publishable(batch) < count for session in receivers):
            for one in batch.apart():  # credit ends among them
                self.to_many(now, receivers, one, sender, full)
            return
        first = self.bcast + 1
        self.bcast += count  # guards: broadcasts [count => 1]
        if self._taken_over:  # guards: takeover [off]
            # Since they became pending; perhaps by a session that gets them as well.
            receivers = list({session.heir: None for session in receivers if session.heir is not sender.session})
            full = [session for session in {one.heir: None for one in full} if session not in receivers]
        # Of several, nothing is known from an earlier broker: a repeat stands alone.
        holders, without_room = self.dedup.earlier_cast(batch.msg_ids[0])
        # There may be room by now, and younger ones of the same sender in it.
        full = [*full, *(session for session in receivers if session.mailbox.key in without_room)]
        receivers = [session for session in receivers if session.mailbox.key not in without_room]
        for session in full:
            self.dedup.keep_full(batch.msg_ids[0], batch.sender_id, session.mailbox.key)
        names = tuple(session.name for session in full)
        batch.progress = [BroadcastProgress(msg_id, len(receivers), names) for msg_id in batch.msg_ids]
        for msg_id in batch.msg_ids:  # guards: broadcasts
            self._open[msg_id] = batch
        # Subscribers who get them by another way, or not at all: their own sender, and sessions without room.
        # guards: broadcasts [sender.session, =>]
        without = [sender.session, *full]
        spared = [session.conn.peer for session in without if session is not None and session.conn is not None]
        spared += self._lingering.values()  # guards: order: a SUB may outlive its connection
        published = False
        for session in receivers:
            conn = session.conn
            if session.mailbox.key in holders:  # guards: dedup [off]
                # Sent to an earlier broker, which stored it here: it comes, or came, from there.
                self._count(batch, batch.progress, delivered=False)
            elif (
                conn is not None
                and conn.subscribed  # guards: broadcasts
                and not conn.recalling  # guards: reading: a broadcast may overtake RECALL
                and not batch.repeated  # guards: dedup
                and session.mailbox.publishable(batch) == count  # guards: broadcasts
            ):
                published = True
                session.mailbox.append(batch, now.mono_s, bcast=first)
                self._active[session.mailbox] = None
                continue
            else:
                self._enqueue(now, session, batch)
            if conn is not None:
                spared.append(conn.peer)
        if published:
            self._publish(batch, first, spared)
        for progress in batch.progress:
            if not progress.remaining and not progress.told:
                self._settle_broadcast(batch, progress)

    def _publish(self, batch: Batch, first: int, spared: list[int]) -> None:
        channel = verbs.channel(batch.header.scope, batch.header.target)
        prev = self._channels.get(channel, 0)
        self._channels[channel] = self.bcast  # only published broadcasts can be missed  # guards: broadcasts
        broadcast = verbs.Broadcast(
            batch.header,
            self._epoch,
            first,
            prev,  # guards: broadcasts [prev => 0]
            tuple(spared),
            batch.pointers[0] if batch.spilled else None,
            tuple(batch.msg_ids),
            tuple(batch.bodies),
        )
        self._out.put(Publish(channel, broadcast))

    def begin(self, batch: Batch) -> None:
        """Opens an answer for a command that has no connection: it is journaled, and its sender waits."""
        self._open[batch.msg_ids[0]] = batch

    def drop(self, msg_id: str) -> None:
        """Closes a message whose sender gets its outcome in another way."""
        self._open.pop(msg_id, None)

    def put_back(self, now: Instant, session: Session, entry: Entry) -> None:
        """Moves a message, whose sender has been told `queued`, to a session's mailbox. So it is stored there, too."""
        mailbox = session.heir.mailbox
        sent, stored = mailbox.append(Batch.of_entry(entry), now.mono_s)
        if sent is not None:
            self._active[mailbox] = None
            self._deliver(now, self._consumers[mailbox], sent, waited=False)
            mailbox.secure(sent)  # guards: reply routing
            sent.enter(Stage.TOLD)
        if stored is not None:
            stored.enter(Stage.TOLD)

    def _enqueue(self, now: Instant, session: Session, batch: Batch) -> None:
        """Puts messages in a session's mailbox, and sends those that may go now."""
        mailbox = session.mailbox
        sent, stored = mailbox.append(batch, now.mono_s)
        if sent is not None:
            self._active[mailbox] = None
            # One that is repeated may have been shown before: a receiver that meets it twice is to know why.
            # guards: dedup [waited=batch.repeated => waited=False]
            self._deliver(now, self._consumers[mailbox], sent, waited=batch.repeated)
        if stored is not None:
            self._fresh.append(self._settle_behind(now, stored, session))
            if session.state is SessionState.DISCARDED:  # guards: ephemeral sessions
                self.forsake(session)

    def _pump(self, now: Instant, mailbox: Mailbox) -> None:
        """Sends what waits behind the window, as far as credit goes."""
        consumer = self._consumers.get(mailbox)
        if consumer is None:
            return
        for piece in mailbox.refill(now.mono_s):
            self._deliver(now, consumer, piece, waited=True)
        if mailbox.window:
            self._active[mailbox] = None

    def _deliver(self, now: Instant, consumer: Connection, piece: InFlight, *, waited: bool) -> None:
        """Sends messages to the consumer; with their age if they `waited`."""
        batch = piece.batch
        mailbox = consumer.mailbox
        assert mailbox is not None
        age_s = max(0, int(now.steady_s - batch.accepted_s)) if waited else -1
        if consumer.fetching is not None:
            consumer.fetching.count += piece.count  # guards: batch delivery
        pointer = batch.pointers[0] if batch.spilled else None
        after = mailbox.after  # guards: batch delivery [mailbox.after => 0]
        deliver = verbs.Deliver(
            batch.header,
            piece.seq,
            0,
            after,
            age_s,
            pointer,
            piece.size_bytes,
            tuple(piece.msg_ids),
            tuple(piece.bodies),
        )
        self._out.reply(consumer.route, deliver)

    def _deliver_again(self, consumer: Connection, bcast: int, piece: InFlight, at: int) -> None:
        """Sends a published broadcast, one of these messages, by DELIVER."""
        batch, index = piece.batch, piece.start + at
        body = batch.bodies[index]
        if consumer.fetching is not None:
            consumer.fetching.count += 1
        pointer, size_bytes = (batch.pointers[0], batch.size_bytes) if batch.spilled else (None, len(body))
        deliver = verbs.Deliver(
            batch.header, piece.seq + at, bcast, 0, -1, pointer, size_bytes, (batch.msg_ids[index],), (body,)
        )
        self._out.reply(consumer.route, deliver)

    # --- what comes back

    def acknowledge(self, now: Instant, who: Connection, ack: verbs.Ack) -> None:
        """The consumer has taken messages: their senders hear of it, and others follow."""
        mailbox = who.mailbox
        # guards: sessions [or self._consumers.get(mailbox) is not who =>]
        if mailbox is None or self._consumers.get(mailbox) is not who:
            return  # sent before it heard that the mailbox is read elsewhere
        done = mailbox.acknowledge(ack.seq, ack.bcasts)
        if not done:
            return
        delivered: dict[tuple[bytes, str], list[str]] = {}
        for piece in done:
            self._out.counts.taken += piece.count
            told = piece.told
            piece.enter(Stage.DONE)
            if told:
                continue
            if piece.batch.progress:
                self._count(piece.batch, piece.progress, delivered=True)  # guards: broadcasts
            else:
                delivered.setdefault((piece.batch.origin, piece.batch.sender_id), []).extend(piece.msg_ids)
        for (route, sender_id), msg_ids in delivered.items():
            self._settle_delivered(route, sender_id, who, msg_ids)
        self._pump(now, mailbox)
        if not mailbox.window:
            self._active.pop(mailbox, None)

    @handles(verbs.Refill)
    def refill(self, now: Instant, who: Connection, refill: verbs.Refill) -> None:
        """Published broadcasts did not arrive: they are sent again, and then the numbers of all that are owed."""
        if who.mailbox is None:
            return
        # All up to the highest, not the named ones alone: the client knows of the last gap only, and there may be more.
        for bcast, piece, at in who.mailbox.unsent(max(refill.bcasts, default=0)):
            self._out.counts.broadcasts_resent += 1
            self._deliver_again(who, bcast, piece, at)  # guards: retransmission
        self._out.reply(who.route, verbs.Beat(self._epoch, self.bcast, who.mailbox.owed()))

    def refuse(self, who: Connection, refused: verbs.Refused) -> None:
        """A message is not accepted, and will not be."""
        self._out.counts.refuse(refused.code)
        self._out.reply(who.route, refused)
        if refused.ref not in self._open and self.dedup.find(refused.ref) is None:
            self.dedup.keep_refused(refused, who.sender_id)

    def said_before(self, who: Connection, msg_id: str) -> bool:
        """Whether a message of this id has been journaled: then its sender gets the recorded outcome, or will.

        Raises `ProtocolError` if it was another's.
        """
        known = self.dedup.find(msg_id) or self._open.get(msg_id)
        if known is None:
            return False
        if who.sender_id != known.sender_id:
            raise ProtocolError("a message id that another session has used")
        self._out.counts.repeated += 1
        if isinstance(known, Outcome):
            self._out.reply(who.route, known.answer_for(msg_id))
        else:
            known.origin = who.route
        return True

    def all_new(self, msg_ids: Collection[str]) -> bool:
        """Whether no message of these ids has been journaled, nor is remembered as refused."""
        return self._open.keys().isdisjoint(msg_ids) and self.dedup.none_of(msg_ids)

    # --- what senders hear

    def _settle_delivered(self, route: bytes, sender_id: str, who: Connection, msg_ids: list[str]) -> None:
        self._out.counts.delivered += len(msg_ids)
        receipt = verbs.Receipt(State.DELIVERED, who.sender_id, who.sender_name, 0, tuple(msg_ids))
        self._out.reply(route, receipt)
        fate = Outcome(sender_id, receipt._replace(msg_ids=()))
        settled = [msg_id for msg_id in msg_ids if self._open.pop(msg_id, None) is not None]
        self.dedup.keep_all(settled, fate)

    def _settle_behind(self, now: Instant, piece: InFlight, session: Session) -> _Due:
        if session.conn is None:
            return self._settle_queued(piece, session, State.AWAY, max(0, int(now.steady_s - session.away_since_s)))
        return self._settle_queued(piece, session, State.BUSY, 0)

    def _settle_queued(self, piece: InFlight, session: Session, state: State, away_s: int) -> _Due:
        """The messages are in the store: their sender hears so when the store has committed."""
        due = _Due(piece, session, state, away_s)
        if piece.stage is not Stage.DUE:
            piece.enter(Stage.DUE)
            self._due.append(due)
        return due

    @property
    def waits_for_commit(self) -> bool:
        """Whether anybody is to hear of a commit."""
        return bool(self._due) or not self._commits

    def committed(self, now: Instant) -> None:
        """Sends the receipts of messages that are now committed."""
        due, self._due = self._due, []
        self._fresh.clear()
        self._taken_over = False
        for piece, session, state, away_s in due:
            if piece.told:  # guards: durability
                continue  # acknowledged in the meantime
            piece.enter(Stage.TOLD)
            if piece.batch.progress:
                self._count(piece.batch, piece.progress, delivered=False)
                continue
            self._out.counts.queued += piece.count
            receipt = verbs.Receipt(state, session.session_id, session.name, away_s, tuple(piece.msg_ids))
            for msg_id in piece.msg_ids:
                self._open.pop(msg_id, None)
            self.dedup.keep_all(piece.msg_ids, Outcome(piece.batch.sender_id, receipt._replace(msg_ids=())))
            self._out.reply(piece.batch.origin, receipt)
        if not self._commits:
            self._commits = True
            # While it could not write, the store may have shown less than it holds.
            for mailbox in list(self._consumers):  # guards: durability
                self._pump(now, mailbox)

    def commit_failed(self, reason: str) -> None:
        """Refuses the messages of this wake, since the commit failed: none has a receipt yet."""
        self._commits = self._taken_over = False
        fresh, self._fresh = self._fresh, []
        for piece, session, _, _ in fresh:
            piece.enter(Stage.DONE)
            session.mailbox.retract(piece)  # guards: durability
            if not piece.batch.progress:
                self._out.counts.refuse(BrokerUnavailable.code, piece.count)
                self._refuse_open(piece.batch, piece.msg_ids, BrokerUnavailable.code, reason)
                continue
            for progress in piece.progress:
                self._not_saved(piece.batch, progress, session, reason)
        self._due = [due for due in self._due if not due.piece.told]

    def _not_saved(self, batch: Batch, progress: BroadcastProgress, session: Session, reason: str) -> None:
        """Takes back a broadcast for one receiver, for which the disk did not take it."""
        self._out.counts.refuse(BrokerUnavailable.code)
        progress.unsaved += (session.name,)  # guards: sessions [progress.unsaved => progress.full]
        self.dedup.keep_full(progress.msg_id, batch.sender_id, session.mailbox.key)
        progress.remaining -= 1
        if progress.remaining or progress.told:
            return
        if progress.delivered or progress.queued:
            self._settle_broadcast(batch, progress)
        else:  # nobody has it at all
            progress.told = True
            self._refuse_open(batch, (progress.msg_id,), BrokerUnavailable.code, reason)

    def _refuse_open(self, batch: Batch, msg_ids: Sequence[str], code: str, text: str) -> None:
        """Refuses open messages for good."""
        for msg_id in msg_ids:
            refused = verbs.Refused(msg_id, code, text)
            self._open.pop(msg_id, None)
            self._out.reply(batch.origin, refused)
            self.dedup.keep_refused(refused, batch.sender_id)

    def _count(self, batch: Batch, several: Sequence[BroadcastProgress], *, delivered: bool) -> None:
        """Counts another receiver that has these broadcasts, or for which they are stored."""
        for progress in several:
            progress.remaining -= 1
            if delivered:
                progress.delivered += 1
                self._out.counts.delivered += 1
            else:
                progress.queued += 1
                self._out.counts.queued += 1
            if not progress.remaining:
                self._settle_broadcast(batch, progress)

    def _settle_broadcast(self, batch: Batch, progress: BroadcastProgress) -> None:
        progress.told = True
        tally = verbs.Tally(progress.msg_id, progress.delivered, progress.queued, progress.full, progress.unsaved)
        self._open.pop(progress.msg_id, None)
        self._out.reply(batch.origin, tally)
        self.dedup.keep(progress.msg_id, Outcome(batch.sender_id, tally))

    # --- time

    def tick(self, now: Instant) -> None:
        """Receivers that have not taken a message within a second: its sender hears `queued`, the truth by now."""
        for mailbox in list(self._active):
            consumer = self._consumers.get(mailbox)
            if consumer is None or not mailbox.window:
                self._active.pop(mailbox, None)
                continue
            for piece in mailbox.window:
                if now.mono_s - piece.accepted_s < BUSY_AFTER_S:
                    break
                # A guest's are left alone: nothing may be called queued that would die with it.
                if piece.stage in (Stage.UNSTORED, Stage.STORED) and consumer.session is not None:
                    mailbox.secure(piece)
                    self._settle_queued(piece, consumer.session, State.BUSY, 0)
            self._beat(now, mailbox, consumer)  # guards: retransmission

    def _beat(self, now: Instant, mailbox: Mailbox, consumer: Connection) -> None:
        last = mailbox.after
        if last > consumer.beaten and now.mono_s - mailbox.window.oldest.accepted_s >= BEAT_AFTER_S:
            consumer.beaten = last
            self._out.reply(consumer.route, verbs.Beat(self._epoch, self.bcast, mailbox.owed()))
