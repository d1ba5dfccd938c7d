"""What senders were told of their messages, to be told the same if they say them again.

A message is settled when its sender has been told what became of it; from then on only its *fate* is kept. A sender
that was not reached by the answer repeats the message, and hears the answer again: the message is not accepted a second
time. So fates bound how late a sender may repeat itself. Of settled messages the last `REMEMBERED_FATES` are kept; a
sender repeats what it has heard nothing of as soon as it is connected again, and nothing older.

What an earlier broker has left counts as well. Of its fates the store knows those that matter: messages that wait in
mailboxes (their senders may have heard `queued`), and refusals. A broadcast that waits in some mailboxes may have been
delivered to others, and its sender may have heard nothing: it is no fate, but who holds it, and who has no room for it,
is known, and whoever takes it up again (`earlier_cast`) passes over those.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable

from zmqbus.broker.sessions import Session
from zmqbus.broker.storage.api import Refusal, Store
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.verbs import State

#: Ids of settled messages that are remembered, so that sending again is harmless. A sender keeps at most 1,000
#: unconfirmed (`client.core.WINDOW_MESSAGES`), so this covers every one of 20 senders at full tilt.
REMEMBERED_FATES = 20_000


class Fate(NamedTuple):
    """What the sender of a settled message was told, to be told again if it sends again. Messages that were settled
    together share one: a receipt's ids are filled in when it is repeated.

    A refusal is a fate, too: what was refused may not be accepted when it is repeated, behind what was sent after it.
    """

    sender_id: str
    answer: verbs.Receipt | verbs.Tally | verbs.Refused

    def answer_for(self, msg_id: str) -> verbs.Receipt | verbs.Tally | verbs.Refused:
        """What to tell the sender of this message of it."""
        answer = self.answer
        # guards: dedup [._replace(msg_ids=(msg_id,)) =>]
        return answer._replace(msg_ids=(msg_id,)) if isinstance(answer, verbs.Receipt) else answer


class Fates:
    """All that is known of settled messages, oldest first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Not a dict: it would look for its oldest key past all those that were deleted before.
        self._settled: OrderedDict[str, Fate] = OrderedDict()
        self._earlier: dict[str, Fate] = {}  # those that an earlier broker has left; their number is bounded by it
        self._earlier_casts: dict[str, set[str]] = {}  # broadcasts that it left → the mailboxes that hold them
        self._earlier_full: dict[str, set[str]] = {}  # likewise → the mailboxes that had no room for them
        self._moved: dict[str, str] = {}  # mailbox that was merged into another → that one

    def __repr__(self) -> str:
        return f"<Fates of {len(self._settled)} messages, and of {len(self._earlier)} before>"

    # --- looking up

    def find(self, msg_id: str) -> Fate | None:
        """What the sender of this message was told; None if it is not settled, or is long past."""
        return self._settled.get(msg_id) or self._earlier.get(msg_id)  # guards: dedup [or self._earlier.get(msg_id) =>]

    def none_of(self, msg_ids: Collection[str]) -> bool:
        """Whether nothing at all is known of any of these."""
        # guards: dedup [, self._earlier_casts, self._earlier_full =>]
        known = (self._settled, self._earlier, self._earlier_casts, self._earlier_full)
        return all(one.keys().isdisjoint(msg_ids) for one in known)

    def earlier_cast(self, msg_id: str) -> tuple[Collection[str], Collection[str]]:
        """The mailboxes that hold this broadcast since before this broker began, and those that had no room for it.
        Once: after that it is a message like any other."""
        holders: Collection[str]
        full: Collection[str]
        # guards: dedup [self._earlier_casts.pop => self._earlier_casts.get]
        holders, full = self._earlier_casts.pop(msg_id, ()), self._earlier_full.pop(msg_id, ())
        if self._moved and (holders or full):
            holders, full = set(map(self._now, holders)), set(map(self._now, full))
            return holders, full - holders
        return holders, full

    def moved(self, mailbox: str, into: str) -> None:
        """What this mailbox held is in another one."""
        if self._earlier_casts or self._earlier_full:
            self._moved[mailbox] = into

    def _now(self, mailbox: str) -> str:
        while mailbox in self._moved:
            mailbox = self._moved[mailbox]
        return mailbox

    # --- what is told

    def keep(self, msg_id: str, fate: Fate) -> None:
        """A message is settled."""
        settled = self._settled
        settled[msg_id] = fate  # guards: dedup
        while len(settled) > REMEMBERED_FATES:
            settled.popitem(last=False)

    def keep_all(self, msg_ids: Iterable[str], fate: Fate) -> None:
        """Several are, in the same way."""
        settled = self._settled
        settled.update(dict.fromkeys(msg_ids, fate))
        while len(settled) > REMEMBERED_FATES:  # guards: dedup
            settled.popitem(last=False)

    def keep_refused(self, refused: verbs.Refused, sender_id: str) -> None:
        """A message is refused, for good: the next broker, too, has to know."""
        self.keep(refused.ref, Fate(sender_id, refused))
        self._store.save_refusal(Refusal(refused.ref, sender_id, refused.code, refused.text))  # guards: dedup

    def keep_full(self, msg_id: str, sender_id: str, mailbox: str) -> None:
        """A broadcast is not for this mailbox, which has no room for it: the next broker has to know who goes
        without."""
        self._store.save_refusal(Refusal(f"{msg_id}/{mailbox}", sender_id, "", ""))

    # --- what an earlier broker has left

    def remember_queued(self, msg_id: str, sender_id: str, session: Session) -> None:
        """A message is in the session's mailbox since before this broker began."""
        receipt = verbs.Receipt(State.AWAY, session.session_id, session.name, 0, ())
        self._earlier[msg_id] = Fate(sender_id, receipt)

    def remember_cast(self, msg_id: str, mailbox: str) -> None:
        """A broadcast is in this mailbox since before this broker began; what became of it elsewhere is not known."""
        self._earlier_casts.setdefault(msg_id, set()).add(mailbox)

    def remember_refused(self, refusal: Refusal) -> None:
        """A message was refused by an earlier broker, or had no room in one mailbox."""
        msg_id, of_one, mailbox = refusal.msg_id.partition("/")
        if of_one:
            self._earlier_full.setdefault(msg_id, set()).add(mailbox)
            return
        refused = verbs.Refused(refusal.msg_id, refusal.code, refusal.text)
        self._earlier[refusal.msg_id] = Fate(refusal.sender_id, refused)
