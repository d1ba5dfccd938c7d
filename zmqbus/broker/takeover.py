"""Mail follows the name: sessions whose owners have died, and who takes over what waits for them.

Theory of operation
===================

A session belongs to a process, its owner, and dies with it; nobody can ever come back as that session. But what was
sent to it was sent to a name, and the next run of the same agent comes under that name in the same project. So the pair
of both is a *seat*, and sessions follow each other in it.

*The bearer of a seat* is the session that is connected under the name; else, of those that are away, the one that came
last. Those that left on purpose count only where there is no other, and only when their owners have ended, for nobody
can send to them. Sessions that nobody named have no seat: their mail goes with them, so they take over none, either.

*One rule*: a session whose owner has certainly ended, and that is not the bearer of its seat, is *taken over* by the
bearer. Its mail is merged into the bearer's mailbox (`Mailbox.take_over`: in the order of acceptance, behind what is
under way, nothing twice), its id stands for the bearer from now on (`Registry.succeed`), and it is gone. Hence of
sessions whose owners are dead there is at most one for each seat; whoever comes under the name in that project is the
bearer, and gets all of it; and the mail of one that dies while a younger one is connected goes to that one at once.
An owner that may live is never taken for dead (`owner_lives`), so its session keeps what it has, and its id.

A bearer that has died and has no mail is of use for an hour: the next run may be about to start, and messages to the
name are queued for it. Then it is forgotten.

*One commit.* All of a take-over (the mail, the id, the end of the old session) is changes of the store in one wake, and
a wake is one commit. Whatever instant a broker dies at, the next one finds the seat as it was before, and takes over
anew, or as it was after. What the bearer was sent before a commit that never came is sent once more, and it recognises
the ids.

*Repeated messages.* A sender that has heard nothing sends its message again. The dedup window knows it by its id, or by
the mailbox that holds it, which is the bearer's from then on (`DedupWindow.moved`); the journal, by the session that it
was for, whose id leads to the bearer. So it is not accepted a second time. A message that the dead session had taken,
without its sender having been told, may be shown once more to the bearer: nobody is left who knows.

*When it is looked.* Whether a process lives is a question to the system (12 µs), so it is asked where the answer
matters: when a session comes under a name or asks for its mail, when mail would be queued for a session of a seat that
several share, when all sessions are listed; and in rounds, each session at most every ten seconds.
A session that is alone in its seat and has mail is not asked about at all: nothing would follow from it. More than
`LOOKS_A_SECOND` are never asked; the rest counts as living for a moment. And the answer "ended" is final.

A mailbox that a command reads is left alone until that has ended, and taken over in the next round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zmqbus.broker.delivery import Delivery
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.registry import Registry
from zmqbus.broker.sessions import Session, bearer_of
from zmqbus.journal.record import Earlier

#: How long a dead session that nothing waits for is kept, for those who send to its name.
EMPTY_KEEP_S = 3600.0
#: A round of looks begins at most so often: mail of one that has died under a younger session waits that long.
ROUND_S = 10.0
#: Sessions that a round comes to in one step, and the time between two of these. (A broker that has nothing else to do
#: hears of the time every two seconds only.) So 10,000 take 100 s at most, and less than 3 ms of each.
ROUND_SESSIONS = 200
STEP_S = 1.0
#: Looks at owners in any second, whatever asks for them: 6 ms.
LOOKS_A_SECOND = 500


class Takeover:
    """Sees to it that the mail of the dead is where the next of their name will look for it."""

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
        self._round: list[Session] = []  # those that this round has not come to
        self._round_due_s = 0.0  # monotonic
        self._next_s = 0.0  # likewise: when the round goes on
        self._second_s = 0.0  # when the second began
        self._looks = 0  # since then

    def __repr__(self) -> str:
        return f"<Takeover: {len(self._round)} sessions to be looked at>"

    # --- when it is looked

    def settle(self, now: Instant, session: Session) -> bool:
        """Brings the seat of a session in order. Whether anything has changed: the session may not be there any
        more."""
        seat = self._registry.seat(session)
        # guards: takeover [self._settle(now, seat) => session.conn is not None and self._settle(now, seat)]
        if len(seat) > 1 and self._settle(now, seat):
            return True
        return self._forget_empty(now, session)

    def settle_shared(self, now: Instant) -> None:
        """Brings in order all seats that several sessions share."""
        for seat in self._registry.shared_seats():
            self._settle(now, seat)

    def settle_all(self, now: Instant) -> None:
        """Brings everything in order: nobody has looked for a while."""
        for session in self._registry.away():
            self._look_after(now, session)

    def tick(self, now: Instant) -> None:
        """Goes on with the round, or begins another one."""
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

    # --- what is done

    def _settle(self, now: Instant, seat: list[Session]) -> bool:
        ended = [session for session in seat if session.conn is None and self._has_ended(now, session)]
        if not ended:
            return False
        bearer = bearer_of([one for one in seat if one.is_reachable or one in ended])
        taken = [session for session in _oldest_first(ended) if session is not bearer and self._is_closed(session)]
        return any([self._take_over(now, bearer, session) for session in taken])

    def _take_over(self, now: Instant, bearer: Session, other: Session) -> bool:
        count = other.mailbox.total
        if not self._delivery.take_over(now, bearer, other):
            return False  # the store cannot be read just now
        if other.restored and (not bearer.restored or self._entered_before(other, bearer)):
            # What an earlier broker has accepted for the one, and is said again to many, is for the other.
            bearer.restored, bearer.entered_after = True, other.entered_after  # guards: takeover
        self._registry.succeed(other, bearer, now.steady_s)
        self._registry.keep(bearer)
        if count:
            self._out.note(f"{bearer!r} takes over {count} messages of {other.session_id[:8]}, whose owner is gone")
        return True

    def _forget_empty(self, now: Instant, session: Session) -> bool:
        """Forgets a session that has died an hour ago and for which nothing waits."""
        mailbox = session.mailbox
        if session.conn is not None or not session.persistent or mailbox.total or mailbox.is_expecting:
            return False
        if now.steady_s - session.away_since_s < EMPTY_KEEP_S:
            return False
        # In this order: as long as it lives, the hour has not begun.
        if not self._has_ended(now, session) or now.steady_s - session.owner_seen_s < EMPTY_KEEP_S:
            return False
        if not self._is_closed(session):
            return False
        self._registry.forget(session)  # guards: takeover
        return True

    def _entered_before(self, one: Session, other: Session) -> bool:
        first, second = self._sent_before(one.entered_after), self._sent_before(other.entered_after)
        # What is not found is older than all that is.
        return first is None or (second is not None and first.place < second.place)

    def _is_closed(self, session: Session) -> bool:
        # guards: takeover [self._delivery.consumer(session.mailbox) is None => True]
        return self._delivery.consumer(session.mailbox) is None

    def _has_ended(self, now: Instant, session: Session) -> bool:
        """Whether the owner of a session is known to have ended."""
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
