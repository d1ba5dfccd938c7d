"""Restores the state of an earlier broker, and removes sessions and mail whose time is over.

Sessions outlive their connections and their broker, and mail outlives sessions. So a broker begins with the sessions
and the mail of its predecessor (`recover`), a new session of an agent receives the mail of its dead predecessor
(`takeover`), and mail that was not read for seven days is removed, with a line in the log (`tick`).

An *ephemeral* session, whose name was made up by its client, is different: no later session will take that name,
so no other session would ever read its mail. It is kept, with its mailbox, as long as its own process may reconnect.
When that process has ended, or has sent BYE, the session is *discarded*: it leaves all lists at once and its unread
mail is dropped, and it is forgotten once no command acts for it any more. A session that its owner gives up (FORGET) is
discarded as well.

Nothing else is ever dropped.
"""

from __future__ import annotations

from collections.abc import Callable

from zmqbus.broker.dedup import REMEMBERED_OUTCOMES
from zmqbus.broker.delivery import Delivery
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.registry import Registry
from zmqbus.broker.reply_routing import ReplyRouting
from zmqbus.broker.sessions import Session, SessionState
from zmqbus.broker.storage.api import Box, Owed, Recovered, Refusal, SessionRow, Store
from zmqbus.broker.takeover import Takeover
from zmqbus.wire import verbs

#: How long unread mail is kept. A session that has been away for so long receives no more, and is forgotten once its
#: mailbox is empty.
KEEP_S = 7 * 24 * 3600.0
#: Pause between two looks for expired mail.
EXPIRY_LOOK_S = 600.0
#: Pause between two looks at the processes of disconnected ephemeral sessions.
EPHEMERAL_LOOK_S = 1.0
#: Message ids that a line of the log lists at most.
MAX_LOGGED = 20


class Retention:
    """Decides which sessions and messages to keep after a restart, after a session has gone, and after seven days."""

    def __init__(
        self,
        registry: Registry,
        delivery: Delivery,
        reply_routing: ReplyRouting,
        store: Store,
        out: Outbox,
        owner_lives: Callable[[str], bool],
        takeover: Takeover,
    ) -> None:
        self._registry = registry
        self._delivery = delivery
        self._reply_routing = reply_routing
        self._store = store
        self._out = out
        self._owner_lives = owner_lives
        self._takeover = takeover
        self._expiry_due_s = 0.0  # monotonic
        self._ephemeral_due_s = 0.0
        self._ephemeral: dict[str, Session] = {}  # disconnected ephemeral sessions, by id

    def __repr__(self) -> str:
        return (
            f"<Retention: {len(self._registry.unclaimed)} unclaimed mailboxes, {len(self._ephemeral)} ephemeral away>"
        )

    @property
    def needs_tick(self) -> bool:
        """Whether time alone may soon change something here."""
        return bool(self._ephemeral)

    # --- recovery

    def recover(self, now: Instant) -> None:
        """Restores the tables from the store. Call it once, before any other event."""
        found = self._store.recover(REMEMBERED_OUTCOMES)
        boxes: dict[str, Session] = {}
        discarded: set[str] = set()
        for row in found.sessions:
            self._recover_session(now, row, boxes, discarded)
        for refusal in found.refusals:
            self._delivery.dedup.remember_refused(self._with_heir(refusal))
        for awaited in found.awaited:
            self._reply_routing.expect(awaited, self._registry.known(awaited.waiter_id), now)
        self._recover_mail(now, found, boxes, discarded)
        for owed in found.owed:
            self._remember_owed(owed, boxes)
        if self._registry.sessions:
            unread = sum(box.messages for box in found.boxes)
            self._out.note(f"restored {len(self._registry.sessions)} sessions and {unread} unread messages")
        self._takeover.settle_all(now)

    def _recover_session(self, now: Instant, row: SessionRow, boxes: dict[str, Session], discarded: set[str]) -> None:
        """Restores a session, and enters its mailbox key into `boxes`, or into `discarded` if it cannot come back."""
        if row.successor:
            self._registry.restore_succeeded(row)
            return
        # guards: ephemeral sessions [or not self._owner_lives(row.owner) =>]
        if not row.persistent and (row.left or not self._owner_lives(row.owner)):
            self._store.forget_session(row.session_id)
            discarded.add(row.mailbox)
            return
        session = self._registry.restore(row, now.steady_s)
        boxes[session.mailbox.key] = session
        self.parted(session)

    def _recover_mail(self, now: Instant, found: Recovered, boxes: dict[str, Session], discarded: set[str]) -> None:
        for box in found.boxes:
            if box.mailbox in boxes:
                boxes[box.mailbox].mailbox.restore(box)  # guards: recovery
        for box in found.boxes:
            if box.mailbox in discarded:
                mailbox = Mailbox(box.mailbox, self._store)
                mailbox.restore(box)
                self._note_dropped(f"session {box.mailbox}", mailbox.empty())
            elif box.mailbox not in boxes:
                self._recover_ownerless(now, box)

    def _recover_ownerless(self, now: Instant, box: Box) -> None:
        """Restores a mailbox that belongs to no known session."""
        mailbox = Mailbox(box.mailbox, self._store)
        mailbox.restore(box)
        session_id, of_command, _ = box.mailbox.partition("/")
        if not of_command:
            # The session's row was damaged. When its process reconnects, it brings the same data along.
            self._registry.unclaimed[session_id] = mailbox
            return
        # Answers for a command that ended with the broker go to its session now. A guest has no session: either
        # it has received them, or their sender has no receipt and sends them again.
        session = self._registry.known(session_id)
        for entry in mailbox.drain():
            if session is not None:
                self._delivery.put_back(now, session, entry)

    def _with_heir(self, refusal: Refusal) -> Refusal:
        """Moves a refusal of one mailbox to the mailbox that it was merged into."""
        msg_id, of_one, mailbox = refusal.msg_id.partition("/")
        heir = self._registry.known(mailbox) if of_one else None
        return refusal if heir is None else refusal._replace(msg_id=f"{msg_id}/{heir.mailbox.key}")

    def _remember_owed(self, owed: Owed, boxes: dict[str, Session]) -> None:
        """Enters a stored message into the dedup window, for senders that repeat it."""
        receiver = boxes.get(owed.mailbox) or self._registry.known(owed.mailbox.partition("/")[0])
        if owed.scope in verbs.TO_MANY:
            self._delivery.dedup.remember_cast(owed.msg_id, owed.mailbox)
        elif receiver is not None:
            self._delivery.dedup.remember_queued(owed.msg_id, owed.from_session, receiver)

    # --- ephemeral sessions

    def parted(self, session: Session, *, gone: bool = False) -> None:
        """Watches an ephemeral session that has lost its connection; ignores persistent ones.

        `gone` means that it has sent BYE, so that it will not reconnect. Call this when its mailbox is closed.
        """
        if session.persistent or session.state is SessionState.FORGOTTEN:
            return
        self._ephemeral[session.session_id] = session
        # guards: ephemeral sessions [or not self._owner_lives(session.owner) =>]
        if gone or not self._owner_lives(session.owner):
            self._discard(session)

    def _discard(self, session: Session) -> None:
        session.discard()
        self._registry.keep(session)
        self._drop_mail(session)

    def _drop_mail(self, session: Session) -> None:
        if self._delivery.consumer(session.mailbox) is None:  # else a command reads it
            self._note_dropped(repr(session), self._delivery.forsake(session))

    def _note_dropped(self, whose: str, count: int) -> None:
        if count:
            self._out.note(f"{whose} is gone for good; dropped its {count} unread messages")

    def _check_ephemeral(self, session: Session) -> None:
        """Stops watching an ephemeral session that has reconnected, discards one whose process has ended, and forgets a
        discarded session that nothing needs any more."""
        if session.conn is not None or session.persistent:
            del self._ephemeral[session.session_id]
        # guards: ephemeral sessions [and not self._owner_lives(session.owner) =>]
        elif session.state is SessionState.AWAY and not self._owner_lives(session.owner):
            self._discard(session)
        elif session.state is not SessionState.AWAY and not self._is_needed(session):
            self._drop_mail(session)
            self._registry.forget(session)
            del self._ephemeral[session.session_id]

    def _is_needed(self, session: Session) -> bool:
        return bool(session.mailbox.is_expecting) or self._registry.is_represented(session)

    # --- expiry

    def tick(self, now: Instant) -> None:
        """Forgets ephemeral sessions that cannot come back, and from time to time drops expired mail."""
        if self._ephemeral and now.mono_s >= self._ephemeral_due_s:
            self._ephemeral_due_s = now.mono_s + EPHEMERAL_LOOK_S
            for session in [*self._ephemeral.values()]:
                self._check_ephemeral(session)
        if now.mono_s >= self._expiry_due_s:
            self._expiry_due_s = now.mono_s + EXPIRY_LOOK_S
            self._expire(now.steady_s - KEEP_S)

    def _expire(self, before_s: float) -> None:
        """Drops mail and sessions from before this instant of the steady clock."""
        self._registry.drop_succeeded(before_s)
        stale = set(self._store.stale(before_s))
        for session in [*self._registry.sessions.values()]:
            if session.mailbox.key in stale:
                self._expire_mail(session.mailbox, repr(session), before_s)  # guards: recovery
            if session.conn is None and session.away_since_s < before_s:
                self._expire_session(session)
        for key, mailbox in [*self._registry.unclaimed.items()]:
            if key in stale:
                self._expire_mail(mailbox, f"session {key}, which has not come back,", before_s)
                if not mailbox.total:
                    del self._registry.unclaimed[key]

    def _expire_session(self, session: Session) -> None:
        if not session.mailbox.total:
            self._out.note(f"{session!r} has been away for 7 days and is forgotten")
            self._registry.forget(session)
        elif session.is_reachable:
            session.leave()
            self._registry.keep(session)

    def _expire_mail(self, mailbox: Mailbox, whose: str, before_s: float) -> None:
        expired = mailbox.expire(before_s)
        if expired:
            ids = ", ".join(f"{entry.msg_id} from {entry.header.from_name}" for entry in expired[:MAX_LOGGED])
            more = f" and {len(expired) - MAX_LOGGED} more" if len(expired) > MAX_LOGGED else ""
            self._out.note(f"{whose} has not read for 7 days, and loses {len(expired)} messages: {ids}{more}")
