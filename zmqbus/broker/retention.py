"""What nobody asks for: taking up what an earlier broker left, and what is too old.

Sessions outlive their connections and their broker, and mail outlives sessions. So a broker begins with what the one
before it has left (`recover`); an agent that was started anew gets what was sent to the one that died (`takeover`); and
what has not been read for seven days goes, with a line in the log (`tick`).

A session that nobody named is another matter: nobody can know the name that it would come back under, so mail that is
kept for it is kept for nobody. It is away, with its mailbox, as long as it may come back: its connection or its broker
is gone, and its process is not. When that has ended too, or has said that it will not be back, it is *given up*: out of
all lists at once, and forgotten, with what it has not read, as soon as nobody speaks for it any more (its commands may
still be there). A session whose owner says that it is over for good (FORGET) goes the same way.

Nothing else is ever dropped.
"""

from __future__ import annotations

from collections.abc import Callable

from zmqbus.broker.dedup import REMEMBERED_FATES
from zmqbus.broker.delivery import Delivery
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.registry import Registry, Session
from zmqbus.broker.reply_routing import Awaits
from zmqbus.broker.storage.api import Box, Refusal, Store
from zmqbus.broker.takeover import Takeover
from zmqbus.wire import verbs

#: How long a message is kept for a session that does not read it. A session that has been away for so long gets no
#: more, and is forgotten when nothing waits for it.
KEEP_S = 7 * 24 * 3600.0
#: How often what has become too old is looked for.
EXPIRY_LOOK_S = 600.0
#: How often it is looked whether those that nobody named, and that are not connected, may come back yet.
PASSING_LOOK_S = 1.0
#: Ids that a line of the log lists at most.
MAX_LOGGED = 20


class Upkeep:
    """The housekeeper."""

    def __init__(
        self,
        registry: Registry,
        delivery: Delivery,
        awaits: Awaits,
        store: Store,
        out: Outbox,
        owner_lives: Callable[[str], bool],
        takeover: Takeover,
    ) -> None:
        self._registry = registry
        self._delivery = delivery
        self._awaits = awaits
        self._store = store
        self._out = out
        self._owner_lives = owner_lives
        self._takeover = takeover
        self._look_due_s = 0.0  # monotonic
        self._passing_due_s = 0.0
        self._passing: dict[str, Session] = {}  # by id: those that are not here, and may have to be forgotten

    def __repr__(self) -> str:
        return f"<Upkeep, {len(self._registry.unclaimed)} mailboxes unclaimed, {len(self._passing)} sessions passing>"

    @property
    def expects(self) -> bool:
        """Whether time alone may change something here soon."""
        return bool(self._passing)

    # --- where another broker died

    def recover(self, now: Instant) -> None:
        """Puts what an earlier broker has left into the tables."""
        found = self._store.recover(REMEMBERED_FATES)
        boxes: dict[str, Session] = {}
        given_up: set[str] = set()
        for row in found.sessions:
            if row.successor:
                self._registry.restore_succeeded(row)
                continue
            # guards: ephemeral sessions [or not self._owner_lives(row.owner) =>]
            if not row.named and (row.left or not self._owner_lives(row.owner)):
                self._store.forget_session(row.session_id)
                given_up.add(row.mailbox)
                continue
            session = self._registry.restore(row, now.steady_s)
            boxes[session.mailbox.key] = session
            self.parted(session)
        for refusal in found.refusals:
            self._delivery.fates.remember_refused(self._with_heir(refusal))
        for awaited in found.awaited:
            self._awaits.expect(awaited, self._registry.known(awaited.waiter_id), now)
        for box in found.boxes:
            if box.mailbox in boxes:
                boxes[box.mailbox].mailbox.restore(box)  # guards: recovery
        for box in found.boxes:
            if box.mailbox in given_up:
                mailbox = Mailbox(box.mailbox, self._store)
                mailbox.restore(box)
                self._note_lost(f"session {box.mailbox}", mailbox.empty())
            elif box.mailbox not in boxes:
                self._take_in(now, box)
        for owed in found.owed:
            receiver = boxes.get(owed.mailbox) or self._registry.known(owed.mailbox.partition("/")[0])
            if owed.scope in verbs.TO_MANY:
                self._delivery.fates.remember_cast(owed.msg_id, owed.mailbox)
            elif receiver is not None:
                self._delivery.fates.remember_queued(owed.msg_id, owed.from_session, receiver)
        if self._registry.sessions:
            unread = sum(box.messages for box in found.boxes)
            self._out.note(f"took up {len(self._registry.sessions)} sessions and {unread} unread messages")
        self._takeover.settle_all(now)

    def _with_heir(self, refusal: Refusal) -> Refusal:
        """Where it is of one mailbox, and that was merged into another: of that one."""
        msg_id, of_one, mailbox = refusal.msg_id.partition("/")
        heir = self._registry.known(mailbox) if of_one else None
        return refusal if heir is None else refusal._replace(msg_id=f"{msg_id}/{heir.mailbox.key}")

    def _take_in(self, now: Instant, box: Box) -> None:
        """A mailbox that is no known session's."""
        mailbox = Mailbox(box.mailbox, self._store)
        mailbox.restore(box)
        session_id, of_command, _ = box.mailbox.partition("/")
        if not of_command:
            # What was known of the session was damaged. When its process comes back, it brings that along.
            self._registry.unclaimed[session_id] = mailbox
            return
        # Answers for a command that ended with the broker. They are for its session now; a guest, which has none, has
        # had them, or their sender has not been told and will say them again.
        session = self._registry.known(session_id)
        for item in mailbox.drain():
            if session is not None:
                self._delivery.put_back(now, session, item.entry)

    # --- where nobody comes back

    def parted(self, session: Session, *, gone: bool = False) -> None:
        """A session has no connection of its own (any more). `gone`: in good order, so it will not be back. To be
        called when its mailbox is closed; for a session with a name of its own, nothing happens."""
        if session.named:
            return
        self._passing[session.session_id] = session
        # guards: ephemeral sessions [or not self._owner_lives(session.owner) =>]
        if gone or not self._owner_lives(session.owner):
            self._give_up(session)

    def _give_up(self, session: Session) -> None:
        session.left = True
        self._registry.keep(session)
        self._forsake(session)

    def _forsake(self, session: Session) -> None:
        if self._delivery.consumer(session.mailbox) is None:  # else a command reads it
            self._note_lost(repr(session), self._delivery.forsake(session))

    def _note_lost(self, whose: str, count: int) -> None:
        if count:
            self._out.note(f"{whose} is gone for good, and {count} messages that it has not read with it")

    def _look_after(self, session: Session) -> None:
        """One of those that pass: is it back, is it over, may it be forgotten?"""
        if session.conn is not None or session.named:
            del self._passing[session.session_id]
        # guards: ephemeral sessions [and not self._owner_lives(session.owner) =>]
        elif not session.left and not self._owner_lives(session.owner):
            self._give_up(session)
        elif session.left and not session.mailbox.awaits and not self._registry.spoken_for(session):
            self._forsake(session)
            self._registry.forget(session)
            del self._passing[session.session_id]

    # --- what is too old

    def tick(self, now: Instant) -> None:
        """Forgets sessions that will not come back. Drops, now and then, what has not been read for too long."""
        if self._passing and now.mono_s >= self._passing_due_s:
            self._passing_due_s = now.mono_s + PASSING_LOOK_S
            for session in [*self._passing.values()]:
                self._look_after(session)
        if now.mono_s < self._look_due_s:
            return
        self._look_due_s = now.mono_s + EXPIRY_LOOK_S
        before_s = now.steady_s - KEEP_S
        self._registry.drop_succeeded(before_s)
        stale = set(self._store.stale(before_s))
        for session in [*self._registry.sessions.values()]:
            if session.mailbox.key in stale:
                self._expire(session.mailbox, repr(session), before_s)  # guards: recovery
            if session.conn is None and session.away_since_s < before_s:
                if not session.mailbox.total:
                    self._out.note(f"{session!r} has been away for 7 days and is forgotten")
                    self._registry.forget(session)
                elif not session.left:
                    session.left = True
                    self._registry.keep(session)
        for key, mailbox in [*self._registry.unclaimed.items()]:
            if key in stale:
                self._expire(mailbox, f"session {key}, which has not come back,", before_s)
                if not mailbox.total:
                    del self._registry.unclaimed[key]

    def _expire(self, mailbox: Mailbox, whose: str, before_s: float) -> None:
        expired = mailbox.expire(before_s)
        if expired:
            ids = ", ".join(f"{entry.msg_id} from {entry.from_name}" for entry in expired[:MAX_LOGGED])
            more = f" and {len(expired) - MAX_LOGGED} more" if len(expired) > MAX_LOGGED else ""
            self._out.note(f"{whose} has not read for 7 days, and loses {len(expired)} messages: {ids}{more}")
