"""Takeover: the mail of sessions whose owners have died goes to the next session of the same name and project.

Theory of operation
===================

A session belongs to a process, its owner, and dies with it; nothing can ever reconnect as that session. But mail is
sent to a name, and the next run of the same agent connects under that name in the same project. So the pair of name and
project is a *seat*, and sessions follow each other in it.

*The bearer of a seat* is the session that is connected under the name; without one, the latest of those that are away.
Sessions that left on purpose count only if there is no other, and only when their owners have ended, since nobody can
send to them. Ephemeral sessions, whose names are made up, have no seat: they neither hand on mail nor take any over.

*One rule*: the bearer *takes over* each other session of its seat whose owner has certainly ended. The mail of that
session is merged into the bearer's mailbox (`Mailbox.take_over`: in the order of acceptance, behind the messages in
flight, without duplicates), its id resolves to the bearer from then on (`Registry.succeed`), and the session is
removed. Hence each seat has at most one session whose owner is dead. A session that connects under the name in that
project becomes the bearer and gets all of the seat's mail. If a session dies while a younger one is connected, its mail
goes to that one at once. An owner that may be alive is never treated as dead (`owner_lives`), so its session keeps its
mail and its id.

A dead bearer without mail is kept for an hour: the next run may be about to start, and messages to the name are queued
for it. Then it is forgotten.

*One commit.* All changes of a takeover (the mail, the id, the end of the old session) go to the store in one wake, and
a wake is one commit. Whenever a broker dies, the next one finds the seat as it was before, and repeats the takeover, or
as it was after it. Messages that the bearer was sent before a commit that failed are sent again; it recognises their
ids.

*Repeated messages.* A sender without a receipt repeats its message. The dedup window recognises it by its id, or by the
mailbox that holds it, which is now the bearer's (`DedupWindow.moved`); the journal recognises it by the session that it
was for, whose id resolves to the bearer. So it is not accepted a second time. A message that the dead session had
taken, before its sender had a receipt, may be shown again to the bearer: no process is left that knows.

*When owners are checked.* Whether a process lives is a system call (12 µs), so it is made where the answer matters:
when a session connects under a name or asks for its mail, when mail would be queued for a session of a shared seat,
when all sessions are listed; and in rounds, each session at most every ten seconds. A session that is alone in its seat
and has mail is not checked, since nothing would follow from it. There are at most `LOOKS_A_SECOND` checks; the other
owners count as alive until a later one. The answer "ended" is final.

The takeover of a mailbox that a command reads waits for a round after the command has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zmqbus.broker.delivery import Delivery
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.registry import Registry
from zmqbus.broker.sessions import Session, bearer_of
from zmqbus.journal.record import Earlier

#: How long a dead session without mail is kept, so that messages to its name are queued.
EMPTY_KEEP_S = 3600.0
#: Least time between the starts of two rounds of checks. If a session dies while a younger one has its name, its mail
#: waits at most this long.
ROUND_S = 10.0
#: Sessions that a round checks in one step, and the time between two steps. (An idle broker gets a `Tick` only every
#: two seconds.) So a round over 10,000 sessions takes at most 100 s, and less than 3 ms of each step.
ROUND_SESSIONS = 200
STEP_S = 1.0
#: Checks of owners in one second, for all purposes together: 6 ms.
LOOKS_A_SECOND = 500


class Takeover:
    """Moves the mail of sessions whose owners have ended to the bearer of their seat."""

    def __init__(
        self,
        registry: Registry,
        delivery: Delivery,
        out: Outbox,
        owner_lives: Callable[[str], bool],
        sent_before: Callable[[str], Earlier | None],
    ) -> None:
        """`sent_before` looks a message id up in the journal."""
        self._registry = registry
        self._delivery = delivery
        self._out = out
        self._owner_lives = owner_lives
        self._sent_before = sent_before
        self._round: list[Session] = []  # sessions that this round has still to check
        self._round_due_s = 0.0  # monotonic
        self._next_s = 0.0  # monotonic: next step of the round
        self._second_s = 0.0  # monotonic: start of the second in which checks are counted
        self._looks = 0  # checks in it

    def __repr__(self) -> str:
        return f"<Takeover: {len(self._round)} sessions to be looked at>"

    # --- when owners are checked

    def settle(self, now: Instant, session: Session) -> bool:
        """Applies the rule to the seat of a session.

        Returns whether anything has changed; then the session itself may have been removed.
        """
        seat = self._registry.seat(session)
        # guards: takeover [self._settle(now, seat) => session.conn is not None and self._settle(now, seat)]
        if len(seat) > 1 and self._settle(now, seat):
            return True
        return self._forget_empty(now, session)

    def settle_shared(self, now: Instant) -> None:
        """Applies the rule to all seats that several sessions share."""
        for seat in self._registry.shared_seats():
            self._settle(now, seat)

    def settle_all(self, now: Instant) -> None:
        """Checks all sessions that are away, at the start and when no round has run for a while."""
        for session in self._registry.away():
            self._look_after(now, session)

    def tick(self, now: Instant) -> None:
        """Does the next step of the round, or starts another round."""
        if now.mono_s < self._next_s:
            return
        self._next_s = now.mono_s + STEP_S
        if not self._round and now.mono_s >= self._round_due_s:
            self._round_due_s = now.mono_s + ROUND_S
            self._round = self._registry.away()
        batch = self._round[-ROUND_SESSIONS:]
        del self._round[-ROUND_SESSIONS:]
        for session in batch:
            self._look_after(now, session)

    def _look_after(self, now: Instant, session: Session) -> None:
        if self._registry.sessions.get(session.session_id) is session and session.conn is None:
            self.settle(now, session)

    # --- the takeover itself

    def _settle(self, now: Instant, seat: list[Session]) -> bool:
        ended = [session for session in seat if session.conn is None and self.has_ended(now, session)]
        if not ended:
            return False
        bearer = bearer_of([one for one in seat if one.is_reachable or one in ended])
        taken = [session for session in _oldest_first(ended) if session is not bearer and self._is_closed(session)]
        return any([self._take_over(now, bearer, session) for session in taken])

    def _take_over(self, now: Instant, bearer: Session, other: Session) -> bool:
        count = other.mailbox.total
        if not self._delivery.take_over(now, bearer, other):
            return False  # the store cannot be read at the moment
        if other.restored and (not bearer.restored or self._entered_before(other, bearer)):
            # A repeated broadcast that an earlier broker accepted for `other` is for the bearer.
            bearer.restored, bearer.entered_after = True, other.entered_after  # guards: takeover
        self._registry.succeed(other, bearer, now.steady_s)
        self._registry.keep(bearer)
        if count:
            self._out.note(f"{bearer!r} takes over {count} messages of {other.session_id[:8]}, whose owner is gone")
        return True

    def _forget_empty(self, now: Instant, session: Session) -> bool:
        """Forgets a session without mail whose owner ended at least an hour ago."""
        mailbox = session.mailbox
        if session.conn is not None or not session.persistent or mailbox.total or mailbox.is_expecting:
            return False
        if now.steady_s - session.away_since_s < EMPTY_KEEP_S:
            return False
        # In this order: the check renews `owner_seen_s` while the owner lives.
        if not self.has_ended(now, session) or now.steady_s - session.owner_seen_s < EMPTY_KEEP_S:
            return False
        if not self._is_closed(session):
            return False
        self._registry.forget(session)  # guards: takeover
        return True

    def _entered_before(self, one: Session, other: Session) -> bool:
        first, second = self._sent_before(one.entered_after), self._sent_before(other.entered_after)
        # An id that the journal no longer has is older than those that it has.
        return first is None or (second is not None and first.place < second.place)

    def _is_closed(self, session: Session) -> bool:
        # guards: takeover [self._delivery.consumer(session.mailbox) is None => True]
        return self._delivery.consumer(session.mailbox) is None

    def has_ended(self, now: Instant, session: Session) -> bool:
        """Whether the owner of a session is known to have ended; checks it if the rate allows."""
        if session.owner_ended:
            return True
        if now.mono_s - self._second_s >= 1.0:
            self._second_s = now.mono_s
            self._looks = 0
        if self._looks >= LOOKS_A_SECOND:
            return False
        self._looks += 1
        if self._owner_lives(session.owner):  # guards: takeover [off]
            session.owner_seen_s = now.steady_s
            return False
        session.owner_ended = True
        return True


def _oldest_first(sessions: Iterable[Session]) -> list[Session]:
    return sorted(sessions, key=lambda session: session.since_ts)
