"""Messages on their way: from the journal to the receivers, and what their senders hear.

A message that has been journaled is *open* until its sender has been told what became of it; then only its fate is
remembered (`fates`), so that a sender that repeats itself hears the same again. To one receiver the answer is a
RECEIPT: `delivered` when the consumer of the mailbox has acknowledged it, `queued` as soon as the store has committed
it. To many it is a TALLY, when each has done one or the other, which takes a second at most.

Messages that were accepted as a run (`window.Run`) are open under one object, and go out and are acknowledged as one,
as long as all that happens to them is that. What has to be told, stored or looked at for one of them takes it apart.

*Due* are those answers that wait for the commit. It comes at the end of the wake, and takes all of them along; if the
disk refuses it, what was accepted in this very wake is taken back and refused, and the rest waits for another commit:
nobody has been told anything that is not so.

A mailbox has at most one *consumer*, the connection that it is open towards: the session's own process, or a command
that reads it in its place (`reading`), or, for the answers that a command waits for, that command.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from zmqbus.broker.dedup import Fate, Fates
from zmqbus.broker.events import Instant, Outbox, Publish
from zmqbus.broker.in_flight import Item, Run, Tally
from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.sessions import Connection, Session, SessionState
from zmqbus.broker.storage.api import Entry, Store
from zmqbus.errors import BrokerUnavailable, ProtocolError, UnknownPeer
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.verbs import State

#: A receiver that has not taken a message by then is reported as busy.
BUSY_AFTER_S = 1.0
#: A published broadcast that is not acknowledged by then is called to mind (BEAT).
BEAT_AFTER_S = 0.25


class _Due(NamedTuple):
    """A sender is to hear `queued` after the next commit."""

    item: Item
    session: Session
    state: State
    away_s: int


class Delivery:
    """All messages that are under way, whoever they are for."""

    def __init__(self, out: Outbox, epoch: str, store: Store, lingering: dict[str, int]) -> None:
        """`lingering`: see `Registry`."""
        self._lingering = lingering
        self._out = out
        self._epoch = epoch
        self.fates = Fates(store)  #: of what is not open any more
        self.bcast = 0  #: number of the last broadcast
        self._channels: dict[bytes, int] = {}  # number of the last one that was published on each
        self._open: dict[str, Item | Run | Tally] = {}  # by message id: the sender has not been told
        self._due: list[_Due] = []
        self._fresh: list[_Due] = []  # those of them that were accepted since the last commit
        self._taken_over = False  # since then a session was; so receivers of what is staged may not be there any more
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

    def detach(self, mailbox: Mailbox, hold: Callable[[Item], bool] = lambda item: False) -> None:
        """The consumer is gone: whoever waits for a receipt hears that the message is queued; unless `hold` keeps the
        message for a consumer that is expected back."""
        consumer = self._consumers.pop(mailbox, None)
        self._active.pop(mailbox, None)
        for item in mailbox.close():
            if hold(item):
                mailbox.retract(item)
            elif consumer is not None and consumer.session is not None:
                self._settle_queued(item, consumer.session, State.BUSY if consumer.session.conn else State.AWAY, 0)
            elif consumer is not None:
                item.told = True
                left = UnknownPeer(f"'{consumer.guest}' left without taking it")
                self._out.refuse(item.origin, item.entry.msg_id, left)
                self._open.pop(item.entry.msg_id, None)

    def forsake(self, session: Session) -> int:
        """A session is gone for good: what is in its mailbox, which has no consumer, is nobody's. Senders that have
        been told nothing of their message yet hear that it was not taken. Returns how many messages are given up."""
        for item in [due.item for due in self._due if due.session.heir is session and not due.item.told]:
            item.told = True
            if item.tally is not None:
                item.tally.remaining -= 1
                if not item.tally.remaining:
                    self._settle_tally(item.tally)
                continue
            msg_id = item.entry.msg_id
            left = f"'{session.name}' left for good without taking it; see who is there: zmqbus list"
            refused = verbs.Refused(msg_id, UnknownPeer.code, left)
            self._open.pop(msg_id, None)
            self._out.reply(item.origin, refused)
            self.fates.keep_refused(refused, item.sender_id)
        self._due = [due for due in self._due if due.session.heir is not session]
        self._fresh = [due for due in self._fresh if due.session is not session]
        return session.mailbox.empty()

    def take_over(self, now: Instant, session: Session, other: Session) -> bool:
        """What waits for a session whose owner has ended is for another one now; senders that are about to hear that it
        is queued will. False, and nothing is done, if the store cannot be read."""
        if not session.mailbox.take_over(other.mailbox):
            return False
        self.fates.moved(other.mailbox.key, session.mailbox.key)  # guards: takeover
        self._taken_over = True
        self._pump(now, session.mailbox)
        return True

    # --- out to the receivers

    def to_one(self, now: Instant, session: Session, entry: Entry, origin: bytes) -> None:
        """A directed message. If it cannot go out now, it is stored, and its sender told so at once: the receiver is
        away, or has as much under way as it may."""
        if session.successor is not None:  # guards: takeover [off]
            session = session.heir  # taken over since the message was staged
        item = self._enqueue(now, session, entry, origin=origin)
        self._open[entry.msg_id] = item
        if item.stored:
            self._fresh.append(self._settle_behind(now, item, session))
            if session.state is SessionState.DISCARDED:  # guards: ephemeral sessions
                self.forsake(session)

    def run_to_one(self, now: Instant, session: Session, run: Run) -> None:
        """Directed messages of one sender, in one piece as far as they can go out now."""
        if session.successor is not None:
            session = session.heir
        mailbox = session.mailbox
        consumer = self._consumers.get(mailbox)
        count = mailbox.room(run) if consumer is not None else 0
        ready = run
        if count < len(run):
            ready = run.take(count)
        if count and consumer is not None:
            mailbox.append_run(ready, now.mono_s)
            self._open.update(dict.fromkeys(ready.msg_ids, ready))  # guards: batch delivery
            self._active[mailbox] = None
            delivers = verbs.Deliver(
                ready.common.header,
                ready.seq,
                0,
                mailbox.after,  # guards: batch delivery [mailbox.after => 0]
                -1,
                None,
                ready.size_bytes,
                tuple(ready.msg_ids),
                tuple(ready.bodies),
            )
            if consumer.fetching is not None:
                consumer.fetching.count += count  # guards: batch delivery
            self._out.reply(consumer.route, delivers)
        if ready is not run:
            for entry in run.entries():  # guards: batch delivery
                self.to_one(now, session, entry, run.origin)

    def to_waiter(self, now: Instant, waiter: Connection, entry: Entry, origin: bytes) -> bool:
        """An answer for the connection that waits for it. False if that cannot take it, and has no mailbox where it
        could stay."""
        assert waiter.mailbox is not None
        if waiter.session is None and not waiter.mailbox.may_send(entry):
            return False
        item = waiter.mailbox.append(entry, now.mono_s, origin=origin)
        self._open[entry.msg_id] = item
        if not item.stored:
            self._active[waiter.mailbox] = None
            self._deliver(now, waiter, item)
        elif waiter.session is not None:
            self._settle_queued(item, waiter.session, State.BUSY, 0)
        return True

    def to_many(
        self, now: Instant, receivers: list[Session], entry: Entry, sender: Connection, full: list[Session]
    ) -> None:
        """A broadcast: published once for all who can take it that way, put into the mailboxes of all others. `full`:
        those who go without."""
        self.bcast += 1
        if self._taken_over:  # guards: takeover [off]
            # Since it was staged; perhaps by somebody who gets it as well.
            receivers = list({session.heir: None for session in receivers if session.heir is not sender.session})
            full = [session for session in {one.heir: None for one in full} if session not in receivers]
        holders, without_room = self.fates.earlier_cast(entry.msg_id)
        # There may be room by now, and younger ones of the same sender in it.
        full = [*full, *(session for session in receivers if session.mailbox.key in without_room)]
        receivers = [session for session in receivers if session.mailbox.key not in without_room]
        for session in full:
            self.fates.keep_full(entry.msg_id, entry.from_session, session.mailbox.key)
        tally = Tally(entry.msg_id, entry.from_session, sender.route, len(receivers))
        tally.full = tuple(session.name for session in full)
        self._open[entry.msg_id] = tally
        # Those on the channel who get it by another way, or not at all: its own sender, and who has no room for it.
        without = [sender.session, *full]
        spared = [session.conn.peer for session in without if session is not None and session.conn is not None]
        spared += self._lingering.values()  # guards: order: a SUB may outlive its connection
        published = False
        for session in receivers:
            if session.mailbox.key in holders:  # guards: dedup [off]
                # Said to an earlier broker, which stored it here: it comes, or came, from there.
                if session.conn is not None:
                    spared.append(session.conn.peer)
                self._count(tally, delivered=False)
                continue
            subscribed = session.conn is not None and session.conn.subscribed
            # guards: dedup [and not entry.repeated =>]
            if subscribed and not entry.repeated and session.mailbox.may_publish(entry):
                published = True
                session.mailbox.append(entry, now.mono_s, tally=tally, bcast=self.bcast)
                self._active[session.mailbox] = None
                continue
            if session.conn is not None:
                spared.append(session.conn.peer)
            item = self._enqueue(now, session, entry, tally=tally)
            if item.stored:
                self._fresh.append(self._settle_behind(now, item, session))
                if session.state is SessionState.DISCARDED:
                    self.forsake(session)
        if published:
            self._publish(entry, spared)
        if not tally.remaining and not tally.told:
            self._settle_tally(tally)

    def run_to_many(self, now: Instant, receivers: list[Session], run: Run, sender: Connection) -> bool:
        """Broadcasts of one sender that everybody can take in one piece, and in the same way: published. False, and
        nothing is done, if there is anybody who cannot."""
        if not receivers:
            return False
        first = self.bcast + 1
        run.bcast = first
        for session in receivers:
            conn = session.conn
            # guards: broadcasts [conn.subscribed and =>]
            # guards: broadcasts [and session.mailbox.may_publish_run(run) =>]
            if conn is None or not (conn.subscribed and session.mailbox.may_publish_run(run)):
                run.bcast = 0  # guards: broadcasts
                return False
        self.bcast += len(run)  # guards: broadcasts [len(run) => 1]
        run.tallies = [Tally(msg_id, run.sender_id, run.origin, len(receivers)) for msg_id in run.msg_ids]
        self._open.update(zip(run.msg_ids, run.tallies, strict=True))  # guards: broadcasts
        for session in receivers:
            session.mailbox.append_run(run.twin(), now.mono_s)  # guards: broadcasts [.twin() =>]
            self._active[session.mailbox] = None
        own = sender.session.conn if sender.session is not None else None
        # guards: broadcasts [(own.peer,) if own is not None else () =>]
        # guards: broadcasts [*self._lingering.values() =>]
        spared = (*((own.peer,) if own is not None else ()), *self._lingering.values())
        channel = verbs.channel(run.common.scope, run.common.target)
        prev = self._channels.get(channel, 0)
        self._channels[channel] = self.bcast  # guards: broadcasts
        # guards: broadcasts [prev => 0]
        broadcasts = verbs.Broadcast(
            run.common.header, self._epoch, first, prev, spared, None, tuple(run.msg_ids), tuple(run.bodies)
        )
        self._out.put(Publish(channel, broadcasts))
        return True

    def _publish(self, entry: Entry, spared: list[int]) -> None:
        channel = verbs.channel(entry.scope, entry.target)
        prev = self._channels.get(channel, 0)
        self._channels[channel] = self.bcast  # only what is published can be missed
        broadcast = verbs.Broadcast(
            entry.header,
            self._epoch,
            self.bcast,
            prev,
            tuple(spared),
            entry.pointer if entry.spilled else None,
            (entry.msg_id,),
            (entry.body,),
        )
        self._out.put(Publish(channel, broadcast))

    def begin(self, entry: Entry, origin: bytes) -> Item:
        """An answer for a command that has no connection: it is in the journal, and its sender waits."""
        item = self._open[entry.msg_id] = Item(0, entry, 0.0, origin=origin)
        return item

    def drop(self, msg_id: str) -> None:
        """Its sender is told in another way."""
        self._open.pop(msg_id, None)

    def put_back(self, now: Instant, session: Session, entry: Entry) -> None:
        """A message whose sender has been told already changes over to a session's mailbox."""
        self._enqueue(now, session.heir, entry, told=True)

    def _enqueue(
        self,
        now: Instant,
        session: Session,
        entry: Entry,
        *,
        origin: bytes = b"",
        tally: Tally | None = None,
        told: bool = False,
    ) -> Item:
        """Puts a message in a session's mailbox, and sends it if it may go now."""
        mailbox = session.mailbox
        item = mailbox.append(entry, now.mono_s, origin=origin, tally=tally)
        item.told = told
        if not item.stored:
            self._active[mailbox] = None
            self._deliver(now, self._consumers[mailbox], item)
        return item

    def _pump(self, now: Instant, mailbox: Mailbox) -> None:
        """Sends what waits behind the window, as far as credit goes."""
        consumer = self._consumers.get(mailbox)
        if consumer is None:
            return
        for item in mailbox.refill(now.mono_s):
            self._deliver(now, consumer, item)
        if mailbox.window:
            self._active[mailbox] = None

    def _deliver(self, now: Instant, consumer: Connection, item: Item, *, resent: bool = False) -> None:
        entry = item.entry
        # A message waited if it comes out of the store: it could not be handed on when it was accepted. And one that is
        # said again may have been shown before: whoever meets it twice is to know why.
        # guards: dedup [(item.stored or entry.repeated) and not resent => item.stored and not resent]
        waited = (item.stored or entry.repeated) and not resent
        age_s = max(0, int(now.steady_s - entry.accepted_s)) if waited else -1
        mailbox = consumer.mailbox
        assert mailbox is not None
        if consumer.fetching is not None:
            consumer.fetching.count += 1
        bcast, after = (item.bcast, 0) if resent else (0, mailbox.after)
        pointer = entry.pointer if entry.spilled else None
        deliver = verbs.Deliver(
            entry.header, item.seq, bcast, after, age_s, pointer, entry.size_bytes, (entry.msg_id,), (entry.body,)
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
        told: dict[tuple[bytes, str], list[str]] = {}
        for item in done:
            if isinstance(item, Run):
                self._out.counts.taken += len(item)
                for tally in item.tallies:  # guards: broadcasts
                    self._count(tally, delivered=True)
                if item.tallies:  # guards: broadcasts
                    continue
                told.setdefault((item.origin, item.sender_id), []).extend(item.msg_ids)
                continue
            self._out.counts.taken += 1
            if item.told:
                continue
            item.told = True
            if item.tally is not None:
                self._count(item.tally, delivered=True)
            else:
                told.setdefault((item.origin, item.sender_id), []).append(item.entry.msg_id)
        for (route, sender_id), msg_ids in told.items():
            self._settle_delivered(route, sender_id, who, msg_ids)
        self._pump(now, mailbox)
        if not mailbox.window:
            self._active.pop(mailbox, None)

    def refill(self, now: Instant, who: Connection, refill: verbs.Refill) -> None:
        """Published broadcasts did not arrive: they are sent again, and then the numbers of all that are owed."""
        if who.mailbox is None:
            return
        owed = who.mailbox.owed()
        # All up to there, not the named ones alone: the client knows of the last gap only, and there may be more.
        last = max(refill.bcasts, default=0)
        for item in owed:
            if item.bcast <= last and not item.resent:
                item.resent = True
                self._out.counts.broadcasts_resent += 1
                self._deliver(now, who, item, resent=True)  # guards: retransmission
        self._out.reply(who.route, verbs.Beat(self._epoch, self.bcast, tuple(item.bcast for item in owed)))

    def refuse(self, who: Connection, refused: verbs.Refused) -> None:
        """A message is not accepted, and will not be."""
        self._out.counts.refuse(refused.code)
        self._out.reply(who.route, refused)
        if refused.ref not in self._open and self.fates.find(refused.ref) is None:
            self.fates.keep_refused(refused, who.sender_id)

    def said_before(self, who: Connection, msg_id: str) -> bool:
        """Whether a message of this id has been journaled: then its sender is told what it was told, or will be.

        Raises `ProtocolError` if it was another's.
        """
        known = self.fates.find(msg_id) or self._open.get(msg_id)
        if known is None:
            return False
        if isinstance(known, Run):
            known = known.of(msg_id)
        if who.sender_id != known.sender_id:
            raise ProtocolError("a message id that another session has used")
        self._out.counts.repeated += 1
        if isinstance(known, Fate):
            self._out.reply(who.route, known.answer_for(msg_id))
        else:
            known.origin = who.route
        return True

    def all_new(self, msg_ids: Collection[str]) -> bool:
        """Whether no message of these ids has been journaled, nor is remembered as refused."""
        return self._open.keys().isdisjoint(msg_ids) and self.fates.none_of(msg_ids)

    # --- what senders hear

    def _settle_delivered(self, route: bytes, sender_id: str, who: Connection, msg_ids: list[str]) -> None:
        self._out.counts.delivered += len(msg_ids)
        receipt = verbs.Receipt(State.DELIVERED, who.sender_id, who.sender_name, 0, tuple(msg_ids))
        self._out.reply(route, receipt)
        fate = Fate(sender_id, receipt._replace(msg_ids=()))
        settled = [msg_id for msg_id in msg_ids if self._open.pop(msg_id, None) is not None]
        self.fates.keep_all(settled, fate)

    def _settle_behind(self, now: Instant, item: Item, session: Session) -> _Due:
        if session.conn is None:
            return self._settle_queued(item, session, State.AWAY, max(0, int(now.steady_s - session.away_since_s)))
        return self._settle_queued(item, session, State.BUSY, 0)

    def _settle_queued(self, item: Item, session: Session, state: State, away_s: int) -> _Due:
        """The message is in the store: its sender hears so when the store has committed."""
        due = _Due(item, session, state, away_s)
        if not item.due:
            item.due = True
            self._due.append(due)
        return due

    @property
    def waits_for_commit(self) -> bool:
        """Whether anybody is to hear of a commit."""
        return bool(self._due) or not self._commits

    def committed(self, now: Instant) -> None:
        """What is in the store is safe, and senders may hear so."""
        due, self._due = self._due, []
        self._fresh.clear()
        self._taken_over = False
        for item, session, state, away_s in due:
            if item.told:  # guards: durability
                continue  # acknowledged in the meantime
            item.told = True
            if item.tally is not None:
                self._count(item.tally, delivered=False)
                continue
            msg_id = item.entry.msg_id
            self._out.counts.queued += 1
            receipt = verbs.Receipt(state, session.session_id, session.name, away_s, (msg_id,))
            self._open.pop(msg_id, None)
            self.fates.keep(msg_id, Fate(item.sender_id, receipt))
            self._out.reply(item.origin, receipt)
        if not self._commits:
            self._commits = True
            # While it could not write, the store may have shown less than it holds.
            for mailbox in list(self._consumers):  # guards: durability
                self._pump(now, mailbox)

    def commit_failed(self, reason: str) -> None:
        """The disk does not take it. What is not older than this wake is refused: nobody has been told of it."""
        self._commits = self._taken_over = False
        fresh, self._fresh = self._fresh, []
        for item, session, _, _ in fresh:
            item.told = True
            session.mailbox.retract(item)  # guards: durability
            refused = verbs.Refused(item.entry.msg_id, BrokerUnavailable.code, reason)
            self._out.counts.refuse(refused.code)
            tally = item.tally
            if tally is None:
                self._open.pop(item.entry.msg_id, None)
                self._out.reply(item.origin, refused)
                self.fates.keep_refused(refused, item.sender_id)
                continue
            tally.unsaved += (session.name,)  # guards: sessions [tally.unsaved => tally.full]
            self.fates.keep_full(item.entry.msg_id, item.sender_id, session.mailbox.key)
            tally.remaining -= 1
            if tally.remaining or tally.told:
                continue
            if tally.delivered or tally.queued:
                self._settle_tally(tally)
            else:  # it has got to nobody at all
                tally.told = True
                self._open.pop(tally.msg_id, None)
                self._out.reply(tally.origin, refused)
                self.fates.keep_refused(refused, tally.sender_id)
        self._due = [due for due in self._due if not due.item.told]

    def _count(self, tally: Tally, *, delivered: bool) -> None:
        tally.remaining -= 1
        if delivered:
            tally.delivered += 1
            self._out.counts.delivered += 1
        else:
            tally.queued += 1
            self._out.counts.queued += 1
        if not tally.remaining:
            self._settle_tally(tally)

    def _settle_tally(self, tally: Tally) -> None:
        tally.told = True
        answer = verbs.Tally(tally.msg_id, tally.delivered, tally.queued, tally.full, tally.unsaved)
        self._open.pop(tally.msg_id, None)
        self._out.reply(tally.origin, answer)
        self.fates.keep(tally.msg_id, Fate(tally.sender_id, answer))

    # --- time

    def tick(self, now: Instant) -> None:
        """Receivers that have not taken a message within a second: its sender hears `queued`, the truth by now."""
        for mailbox in list(self._active):
            consumer = self._consumers.get(mailbox)
            if consumer is None or not mailbox.window:
                self._active.pop(mailbox, None)
                continue
            # Without the first look, runs that have been under way for a moment would be taken apart.
            late = now.mono_s - mailbox.window.oldest.accepted_s >= BUSY_AFTER_S
            for item in mailbox.window if late else ():
                if now.mono_s - item.accepted_s < BUSY_AFTER_S:
                    break
                # A guest's are left alone: nothing may be called queued that would die with it.
                if not item.told and not item.due and consumer.session is not None:
                    mailbox.secure(item)
                    self._settle_queued(item, consumer.session, State.BUSY, 0)
            self._beat(now, mailbox, consumer)  # guards: retransmission

    def _beat(self, now: Instant, mailbox: Mailbox, consumer: Connection) -> None:
        last = mailbox.after
        if last > consumer.beaten and now.mono_s - mailbox.window.oldest.accepted_s >= BEAT_AFTER_S:
            consumer.beaten = last
            self._out.reply(consumer.route, verbs.Beat(self._epoch, self.bcast, mailbox.owed_numbers()))
