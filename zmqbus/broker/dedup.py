"""The dedup window: the outcomes that senders received, to be sent again if they repeat a message.

When the sender of a message has been sent its outcome, only that is kept. A sender that the answer did not reach
repeats the message, and gets the answer again: the message is not accepted a second time. So the window bounds how
late a sender may repeat itself. The last `REMEMBERED_OUTCOMES` are kept; a sender repeats messages without an outcome
as soon as it is connected again, and nothing older.

An earlier broker's outcomes count as well. The store knows those that matter: messages that wait in mailboxes (their
senders may have a receipt `queued`), and refusals. A broadcast that waits in some mailboxes may have been delivered to
others, and its sender may have no receipt: that is no outcome. But the mailboxes that hold it, and those without room
for it, are known, and a repeat leaves them out (`earlier_cast`).
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
REMEMBERED_OUTCOMES = 20_000


class Outcome(NamedTuple):
    """The answer to a message, and its sender. Messages that were answered together share one: a receipt's ids are
    filled in when it is repeated.

    A refusal is an outcome, too: a refused message must not be accepted when it is repeated, behind later ones.
    """

    sender_id: str
    answer: verbs.Receipt | verbs.Tally | verbs.Refused

    def answer_for(self, msg_id: str) -> verbs.Receipt | verbs.Tally | verbs.Refused:
        """Returns the answer for one of its messages."""
        answer = self.answer
        # guards: dedup [._replace(msg_ids=(msg_id,)) =>]
        return answer._replace(msg_ids=(msg_id,)) if isinstance(answer, verbs.Receipt) else answer


class DedupWindow:
    """The outcomes of messages, oldest first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Not a dict: it would look for its oldest key past all those that were deleted before.
        self._settled: OrderedDict[str, Outcome] = OrderedDict()
        self._earlier: dict[str, Outcome] = {}  # left by an earlier broker, which bounds their number
        self._earlier_casts: dict[str, set[str]] = {}  # broadcast of an earlier broker → mailboxes that hold it
        self._earlier_full: dict[str, set[str]] = {}  # broadcast of an earlier broker → mailboxes without room for it
        self._moved: dict[str, str] = {}  # mailbox that was merged into another → that one

    def __repr__(self) -> str:
        return f"<DedupWindow of {len(self._settled)} messages, and of {len(self._earlier)} before>"

    # --- looking up

    def find(self, msg_id: str) -> Outcome | None:
        """Returns the outcome of a message; None if it has none yet, or has left the window."""
        return self._settled.get(msg_id) or self._earlier.get(msg_id)  # guards: dedup [or self._earlier.get(msg_id) =>]

    def none_of(self, msg_ids: Collection[str]) -> bool:
        """Whether the window knows nothing of any of these messages."""
        # guards: dedup [, self._earlier_casts, self._earlier_full =>]
        known = (self._settled, self._earlier, self._earlier_casts, self._earlier_full)
        return all(one.keys().isdisjoint(msg_ids) for one in known)

    def earlier_cast(self, msg_id: str) -> tuple[Collection[str], Collection[str]]:
        """Returns the mailboxes that held this broadcast when this broker started, and those without room for it.

        Only once: after that it is a message like any other.
        """
        holders: Collection[str]
        full: Collection[str]
        # guards: dedup [self._earlier_casts.pop => self._earlier_casts.get]
        holders, full = self._earlier_casts.pop(msg_id, ()), self._earlier_full.pop(msg_id, ())
        if self._moved and (holders or full):
            holders, full = set(map(self._now, holders)), set(map(self._now, full))
            return holders, full - holders
        return holders, full

    def moved(self, mailbox: str, into: str) -> None:
        """Notes that a mailbox was merged into another one."""
        if self._earlier_casts or self._earlier_full:
            self._moved[mailbox] = into

    def _now(self, mailbox: str) -> str:
        while mailbox in self._moved:
            mailbox = self._moved[mailbox]
        return mailbox

    # --- outcomes

    def keep(self, msg_id: str, outcome: Outcome) -> None:
        """Keeps the outcome of a message."""
        settled = self._settled
        settled[msg_id] = outcome  # guards: dedup
        while len(settled) > REMEMBERED_OUTCOMES:
            settled.popitem(last=False)

    def keep_all(self, msg_ids: Iterable[str], outcome: Outcome) -> None:
        """Keeps the outcome of several messages."""
        settled = self._settled
        settled.update(dict.fromkeys(msg_ids, outcome))
        while len(settled) > REMEMBERED_OUTCOMES:  # guards: dedup
            settled.popitem(last=False)

    def keep_refused(self, refused: verbs.Refused, sender_id: str) -> None:
        """Keeps a final refusal, for the next broker, too."""
        self.keep(refused.ref, Outcome(sender_id, refused))
        self._store.save_refusal(Refusal(refused.ref, sender_id, refused.code, refused.text))  # guards: dedup

    def keep_full(self, msg_id: str, sender_id: str, mailbox: str) -> None:
        """Notes, for the next broker, that a mailbox has no room for a broadcast."""
        self._store.save_refusal(Refusal(f"{msg_id}/{mailbox}", sender_id, "", ""))

    # --- outcomes of an earlier broker

    def remember_queued(self, msg_id: str, sender_id: str, session: Session) -> None:
        """Enters a message that was already in the session's mailbox when this broker started."""
        receipt = verbs.Receipt(State.AWAY, session.session_id, session.name, 0, ())
        self._earlier[msg_id] = Outcome(sender_id, receipt)

    def remember_cast(self, msg_id: str, mailbox: str) -> None:
        """Enters a broadcast that was already in this mailbox when this broker started.

        Its outcome elsewhere is unknown.
        """
        self._earlier_casts.setdefault(msg_id, set()).add(mailbox)

    def remember_refused(self, refusal: Refusal) -> None:
        """Enters a refusal by an earlier broker: of a message, or of a broadcast for one mailbox."""
        msg_id, of_one, mailbox = refusal.msg_id.partition("/")
        if of_one:
            self._earlier_full.setdefault(msg_id, set()).add(mailbox)
            return
        refused = verbs.Refused(refusal.msg_id, refusal.code, refusal.text)
        self._earlier[refusal.msg_id] = Outcome(refusal.sender_id, refused)
