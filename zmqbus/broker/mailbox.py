"""One receiver's mailbox: numbered messages, a window of credit, and the backlog behind it.

Theory of operation
===================

A mailbox is a queue in the order of acceptance, and each message in it has a number (`seq`). Its head is the *window*:
messages in flight to the consumer, not yet acknowledged. Behind the window is the *backlog*, which is in the store. The
window is bounded (credit), so a stopped receiver costs the broker one window and no more; the high-water marks of
libzmq, which drop silently, are never reached.

Messages in the window need not be stored: their sender has no receipt, and would repeat them to the next broker. But
the stored messages are always a prefix of the mailbox: storing one stores all before it. Otherwise a broker that dies
could keep a message and lose an older one, which the sender would repeat too late for its place.

There are two ways to the consumer. Directed messages go over the DEALER. A broadcast is published once for all, and may
reach this consumer that way only if nothing is in flight to it over the DEALER (not even a RECALL, see `fetch`). Then
the two streams need no merging:

* a broadcast is published to this consumer only while neither window nor backlog holds a DEALER message, nor the window
  a message published on another channel, and
* a DEALER message that follows a published one names it (`after`), and the consumer holds it until that has arrived.

So every consumer sees one order, that of its mailbox, at the price of one integer. A broadcast that finds a busy
consumer goes over the DEALER to that consumer only.

A batch enters the window as one item, as far as credit goes; the rest goes into the store, and leaves it message by
message.

The mail of a session that has died moves into the mailbox of its successor (`take_over`): behind the window, whose
numbers are in use, and by the order of acceptance among the backlog, which is renumbered from there on.

Acknowledgements are cumulative for the DEALER, which is one ordered stream, and name each broadcast, since a PUB may
drop some. A message leaves the window only after all those before it. When the consumer goes, the window falls back
into the backlog, and the next consumer gets it from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from zmqbus.broker.in_flight import Batch, InFlight, Stage, Window
from zmqbus.broker.storage.api import FIELDS_BYTES, Box, Entry, Store

#: Messages in flight to one consumer. Enough to keep a fast one busy over a scheduling pause of 10 ms at 100,000/s.
CREDIT_MESSAGES = 1000
#: Bytes in flight to one consumer.
CREDIT_BYTES = 4 * 1024 * 1024
#: Limits of one mailbox: unread messages, and bytes of their bodies. More is refused to the sender.
MAX_MESSAGES = 10_000
MAX_BYTES = 256 * 1024 * 1024
# Shared by all mailboxes that have nothing in flight: a thousand empty objects of each kind would be 1 MB. Never
# changed.
_EMPTY = Window()
_NO_NUMBERS: set[int] = set()
#: Looked up once: members of an enum are not cheap to come by.
_UNSTORED = Stage.UNSTORED


class Mailbox:
    """The queue of one receiver; see the module. Methods return what to send; connections are the callers' business."""

    __slots__ = (
        "_backlog",
        "_by_dealer",
        "_channel",
        "_last_bcast",
        "_published",
        "_resent",
        "_reserved",
        "_reserved_bytes",
        "_sent_seq",
        "_seq",
        "_store",
        "_taken_bcasts",
        "_unstored",
        "_window_bytes",
        "key",
        "last_append_s",
        "open",
        "total_bytes",
        "window",
    )

    def __init__(self, key: str, store: Store) -> None:
        self.key = key
        self._store = store
        self.window = _EMPTY
        self._window_bytes = 0
        self._by_dealer = 0
        self._published = _NO_NUMBERS  # numbers of the broadcasts in the window
        self._last_bcast = 0
        self._channel = (0, "")  # scope and target of the last broadcast in the window
        self._taken_bcasts = _NO_NUMBERS  # acknowledged broadcasts that wait for the messages before them
        self._seq = 0
        self._resent = 0  # the highest number of a broadcast that was sent again over the DEALER, which loses nothing
        self._sent_seq = 0  # the highest number that is or was in the window
        self._backlog = 0
        self._unstored = 0  # messages in the window that are not in the store: its last ones
        self.total_bytes = 0
        self._reserved = self._reserved_bytes = 0
        self.last_append_s = 0.0
        self.open = False  #: there is a consumer, and messages may be sent to it

    def __repr__(self) -> str:
        state = "open" if self.open else "closed"
        return f"<Mailbox {self.key} {state}: {len(self.window)} in flight, {self._backlog} behind>"

    # --- what it holds

    @property
    def total(self) -> int:
        """Unacknowledged messages."""
        return self.window.count + self._backlog

    @property
    def backlog(self) -> int:
        """Messages behind the window."""
        return self._backlog

    @property
    def load(self) -> int:
        """Unacknowledged messages plus those reserved but not yet journaled."""
        return self.total + self._reserved  # guards: mailbox limits [+ self._reserved =>]

    @property
    def window_bytes(self) -> int:
        """Bytes of credit that the messages in flight use."""
        return self._window_bytes

    def restore(self, box: Box) -> None:
        """Restores the counts of the messages that an earlier broker left in the store."""
        self._backlog = box.messages
        self.total_bytes = box.size_bytes
        self._seq = box.last_seq

    def full(self, size_bytes: int, messages: int = 1) -> bool:
        """Whether one more message of this size, or several of this size together, would exceed the limits.

        Reservations count.
        """
        # guards: mailbox limits [self.window.count + self._backlog + self._reserved + messages > MAX_MESSAGES or =>]
        return (
            self.window.count + self._backlog + self._reserved + messages > MAX_MESSAGES
            or self.total_bytes + self._reserved_bytes + size_bytes > MAX_BYTES  # guards: mailbox limits
        )

    def reserve(self, size_bytes: int, messages: int = 1) -> None:
        """Reserves room for messages that are being journaled."""
        self._reserved += messages
        self._reserved_bytes += size_bytes

    @property
    def is_expecting(self) -> bool:
        """Whether a message for this mailbox is being journaled."""
        return self._reserved > 0

    def release(self, size_bytes: int, messages: int = 1) -> None:
        """Ends the reservation of messages that have arrived, or will not."""
        self._reserved -= messages
        self._reserved_bytes -= size_bytes

    @property
    def after(self) -> int:
        """Number of the last published message that the consumer has not acknowledged; 0 if there is none."""
        return self._last_bcast if self._published else 0  # guards: order [self._last_bcast if self._published else =>]

    def oldest_s(self) -> float | None:
        """Returns when the oldest message in flight was accepted; None if there is none."""
        return self.window.oldest.accepted_s if self.window else None

    # --- in

    def publishable(self, batch: Batch) -> int:
        """Returns how many of the first of these broadcasts may reach the consumer by the PUB."""
        # A subscriber notices a gap on one channel, but not the order of messages on two.
        same = not self._published or self._channel == (batch.header.scope, batch.header.target)
        # guards: order [and not self._by_dealer =>]
        # guards: order [and not self._backlog =>]
        # guards: order [and same =>]
        in_line = self.open and same and not self._by_dealer and not self._backlog
        return self._room(batch) if in_line else 0  # guards: credit [self._room(batch) => len(batch)]

    def room(self, batch: Batch) -> int:
        """Returns how many of the first messages of a batch may go out over the DEALER at once."""
        if not self.open or self._backlog:  # guards: in-flight window [or self._backlog =>]
            return 0
        return self._room(batch)

    def _room(self, batch: Batch) -> int:
        """Returns how many of the first messages of a batch the credit allows."""
        count = len(batch.msg_ids)
        if count == 1:
            return int(self._has_credit(len(batch.bodies[0]) + FIELDS_BYTES))
        # guards: credit [min(count, CREDIT_MESSAGES - self.window.count) => count]
        count = min(count, CREDIT_MESSAGES - self.window.count)
        left_bytes = CREDIT_BYTES - self._window_bytes
        if batch.size_bytes + FIELDS_BYTES * len(batch.msg_ids) <= left_bytes:
            return count
        for number, body in enumerate(batch.bodies[:count]):
            left_bytes -= len(body) + FIELDS_BYTES
            if left_bytes < 0 and (number or self.window):  # guards: credit
                return number
        return count

    def append(self, batch: Batch, now_s: float, *, bcast: int = 0) -> tuple[InFlight | None, InFlight | None]:
        """Appends the messages of a batch.

        Returns those that entered the window and are to be sent now, and those behind them that were stored. With
        `bcast`, the number of the first broadcast, all go by the PUB, as `publishable` must have allowed.
        """
        self.last_append_s = now_s
        total = len(batch.msg_ids)
        count = total if bcast else self.room(batch)
        self.total_bytes += batch.size_bytes
        sent = stored = None
        if count:
            sent = InFlight(batch, 0, count, self._seq + 1, now_s, bcast)
            self._enter(sent)
        if count < total:
            stored = InFlight(batch, count, total - count, self._seq + count + 1, now_s)
            self.secure()  # guards: order
            self._put(stored)
            self._backlog += stored.count
        self._seq += total
        return sent, stored

    def secure(self, last: InFlight | None = None) -> None:
        """Stores the messages in flight up to `last` (None: all).

        Call it before their sender gets a receipt for them, and before a later message is stored.
        """
        if not self._unstored or (last is not None and last.stored):
            return
        for piece in islice(self.window, self._first_unstored(), None):
            self._put(piece)
            self._unstored -= piece.count
            if piece is last:
                return

    def _first_unstored(self) -> int:
        """Returns the index of the first item in the window that is not stored; no later one is."""
        unstored = 0
        at = len(self.window.pieces)
        while unstored < self._unstored:
            at -= 1
            unstored += self.window.pieces[at].count
        return at

    def _put(self, piece: InFlight) -> None:
        for seq, entry in piece.entries():
            self._store.put(self.key, seq, entry)
        piece.enter(Stage.STORED)

    def retract(self, piece: InFlight) -> None:
        """Removes stored messages again, the last ones of the backlog."""
        self._backlog -= piece.count
        self.total_bytes -= piece.size_bytes
        self._store.remove(self.key, range(piece.seq, piece.seq + piece.count))

    def expire(self, before_s: float) -> list[Entry]:
        """Drops messages of the backlog accepted before this instant of the steady clock; returns them."""
        expired: list[tuple[int, Entry]] = []
        reached = self._sent_seq
        while found := self._store.after(self.key, reached, 100):
            old = [(seq, entry) for seq, entry in found if entry.accepted_s < before_s]
            expired += old
            if len(old) < len(found):
                break
            reached = found[-1][0]
        self._store.remove(self.key, [seq for seq, _ in expired])
        self._backlog -= len(expired)
        self.total_bytes -= sum(entry.size_bytes for _, entry in expired)
        return [entry for _, entry in expired]

    # --- out

    def refill(self, now_s: float) -> Iterator[InFlight]:
        """Moves messages from the backlog into the window, as far as credit goes, and yields them to be sent."""
        while self.open and self._backlog and self.window.count < CREDIT_MESSAGES:
            room = CREDIT_MESSAGES - self.window.count
            found = self._store.after(self.key, self._sent_seq, min(room, 100))
            for seq, entry in found:
                if not self._has_credit(entry.credit_bytes):
                    return
                piece = InFlight(Batch.of_entry(entry), 0, 1, seq, now_s, stage=Stage.TOLD)
                self._backlog -= 1
                self._enter(piece)
                yield piece
            if not found:
                return

    def acknowledge(self, seq: int, bcasts: Iterable[int]) -> list[InFlight]:
        """Acknowledges the messages that came by DELIVER up to number `seq`, and these broadcasts.

        Returns the messages that leave the window, oldest first.
        """
        done: list[InFlight] = []
        stored: list[int] = []
        window = self.window
        taken = self._taken_bcasts
        # Only broadcasts in flight: any other number that a peer names would stay for ever.
        if self._published and (found := self._published.intersection(bcasts)):
            if taken is _NO_NUMBERS:
                taken = self._taken_bcasts = set()
            taken.update(found)
        pieces = window.pieces
        while pieces and (count := _taken_of(pieces[0], seq, taken)):
            piece = window.pop(count)
            self._leave(piece)
            if piece.stage is not _UNSTORED:
                stored += range(piece.seq, piece.seq + piece.count)
            done.append(piece)
        if stored:
            self._store.remove(self.key, stored)
        if done:
            self._forget_numbers(done)
        return done

    def _forget_numbers(self, done: list[InFlight]) -> None:
        """Forgets the broadcast numbers of messages that have left the window."""
        if not self.window.count:
            # A set never shrinks: those of a thousand receivers that were all behind once would keep 3 MB.
            self._taken_bcasts = self._published = _NO_NUMBERS
            return
        for piece in done:
            if piece.bcast:
                numbers = range(piece.bcast, piece.bcast + piece.count)
                self._taken_bcasts.difference_update(numbers)
                self._published.difference_update(numbers)  # guards: in-flight window

    def close(self) -> list[InFlight]:
        """Returns the window to the backlog, since the consumer has gone.

        Returns the messages whose senders have no receipt.
        """
        self.open = False
        untold = [piece for piece in self.window if not piece.told]
        self.secure()
        self._backlog += self.window.count
        if self.window:
            self._sent_seq = self.window.oldest.seq - 1
        self.window = _EMPTY
        self._taken_bcasts = self._published = _NO_NUMBERS
        self._window_bytes = self._by_dealer = self._resent = 0
        return untold

    def unsent(self, upto: int) -> list[tuple[int, InFlight, int]]:
        """Returns the published broadcasts up to this number that are neither acknowledged nor sent again.

        Each is its number, its item of the window, and its index in that item. They count as sent again from now on.
        """
        upto = min(upto, self._last_bcast)
        found = [
            (number, piece, number - piece.bcast)
            for piece in self.window
            if piece.bcast
            for number in range(max(piece.bcast, self._resent + 1), min(piece.bcast + piece.count, upto + 1))
            if number not in self._taken_bcasts
        ]
        self._resent = max(self._resent, upto)
        return found

    def owed(self) -> tuple[int, ...]:
        """Returns the numbers of the published messages that are not acknowledged."""
        return tuple(
            number
            for piece in self.window
            if piece.bcast
            for number in range(piece.bcast, piece.bcast + piece.count)
            if number not in self._taken_bcasts
        )

    def take_over(self, other: Mailbox) -> bool:
        """Merges all messages of a closed mailbox into this one, and empties that.

        They go behind the window, into the backlog by the order of acceptance; duplicates are left out. The limits do
        not apply: nothing may be lost. Returns False, without any change, if the store cannot be read.
        """
        theirs = self._store.heads(other.key, 0)
        mine = self._store.heads(self.key, self._sent_seq)
        if len(theirs) != other.total or len(mine) != self._backlog:
            return False
        self._store.remove(other.key, [seq for seq, _ in theirs])
        other._backlog = other.total_bytes = 0
        # guards: takeover [{one for piece in self.window for one in piece.msg_ids} if theirs else set() => set()]
        known = {one for piece in self.window for one in piece.msg_ids} if theirs else set()
        known.update(entry.msg_id for _, entry in mine)  # guards: takeover
        new = [(seq, entry) for seq, entry in theirs if entry.msg_id not in known]
        if not new:
            return True
        # guards: takeover
        self.secure()  # the messages in flight come before all that are stored below
        merged = sorted(_placed(mine, 0) + _placed(new, 1))  # guards: takeover [sorted =>]
        kept = next(number for number, (_, whose, _, _) in enumerate(merged) if whose)
        self._store.remove(self.key, [seq for _, whose, seq, _ in merged[kept:] if not whose])
        for _, _, _, entry in merged[kept:]:
            self._seq += 1
            self._store.put(self.key, self._seq, entry)
        self._backlog = len(merged)
        self.total_bytes += sum(entry.size_bytes for _, entry in new)
        return True

    def drain(self) -> list[Entry]:
        """Removes all messages of a closed mailbox, to be moved elsewhere; returns them, oldest first."""
        moved: list[Entry] = []
        while found := self._store.after(self.key, 0, 1000):
            moved += [entry for _, entry in found]
            self._store.remove(self.key, [seq for seq, _ in found])
        self._backlog = self.total_bytes = 0
        return moved

    def oldest(self, limit: int) -> list[tuple[int, Entry]]:
        """Returns the first messages of the backlog, at most `limit` and a few MiB, and leaves them there."""
        return self._store.after(self.key, self._sent_seq, limit)

    def discard(self, found: Sequence[tuple[int, Entry]]) -> None:
        """Removes messages that `oldest` has just returned, since their reader has them."""
        self._store.remove(self.key, [seq for seq, _ in found])
        self._backlog -= len(found)  # guards: reading
        self.total_bytes -= sum(entry.size_bytes for _, entry in found)

    def empty(self) -> int:
        """Drops all messages of a closed mailbox that nobody will read; returns their number."""
        lost, self._backlog, self.total_bytes = self._backlog, 0, 0
        self._store.remove(self.key, range(self._sent_seq + 1, self._seq + 1))
        self._sent_seq = self._seq
        return lost

    # --- the window

    def _has_credit(self, weight_bytes: int) -> bool:
        # guards: credit [self.window.count < CREDIT_MESSAGES and =>]
        return self.window.count < CREDIT_MESSAGES and (
            # guards: credit [self._window_bytes + weight_bytes <= CREDIT_BYTES => True]
            not self.window.count or self._window_bytes + weight_bytes <= CREDIT_BYTES
        )

    def _enter(self, piece: InFlight) -> None:
        if self.window is _EMPTY:
            self.window = Window()
        self.window.append(piece)
        count, bcast = piece.count, piece.bcast
        if piece.stage is _UNSTORED:  # guards: in-flight window
            self._unstored += count
        self._window_bytes += piece.weight_bytes
        self._sent_seq = piece.seq + count - 1
        if not bcast:  # guards: in-flight window [not bcast => piece.seq]
            self._by_dealer += count  # guards: in-flight window
            return
        if self._published is _NO_NUMBERS:
            self._published = set()
        self._published.update(range(bcast, bcast + count))
        self._last_bcast = bcast + count - 1
        header = piece.batch.header
        self._channel = (header.scope, header.target)

    def _leave(self, piece: InFlight) -> None:
        count = piece.count
        if piece.stage is _UNSTORED:
            self._unstored -= count
        self._window_bytes -= piece.weight_bytes
        self.total_bytes -= piece.size_bytes
        if not piece.bcast:
            self._by_dealer -= count


def _placed(entries: list[tuple[int, Entry]], whose: int) -> list[tuple[tuple[int, ...], int, int, Entry]]:
    """Returns the messages of one mailbox with sort keys: their places in the journal, so the order of acceptance.

    A message that follows a younger one (an answer that nobody awaited any more) gets the key of that one, and so keeps
    its place.
    """
    placed = []
    place: tuple[int, ...] = ()
    for seq, entry in entries:
        place = max(place, entry.pointer[:2])
        placed.append((place, whose, seq, entry))
    return placed


def _taken_of(piece: InFlight, seq: int, bcasts: set[int]) -> int:
    """Returns how many of the first messages of an item are acknowledged."""
    if not piece.bcast:  # guards: in-flight window [not piece.bcast => seq]
        return min(max(0, seq - piece.seq + 1), piece.count)
    count = 0
    while count < piece.count and piece.bcast + count in bcasts:
        count += 1
    return count
