"""The order in which messages are handed to the application, and their acknowledgement. Pure: no sockets, no clock.

Theory of operation
===================

Messages come over two sockets. The DEALER's are one ordered stream without losses. Broadcasts come over the SUB, which
may drop them, and are identified by their numbers. `ReorderBuffer` restores one order of both, the mailbox's, by the
rules of section 8.2 of `docs/protocol.md`:

    DELIVER                      ──▶ handed out; held if an earlier message is held, or not here yet
    DELIVER of a broadcast       ──▶ handed out at once: it was published, and is sent again since that copy was lost
    BROADCAST                    ──▶ handed out; held while a REFILL is unanswered
    a gap, or a BEAT that owes   ──▶ REFILL
    BEAT                         ──▶ broadcasts that were requested and are not owed will not come

A message that must follow a broadcast names it (`after`) and is held until that one is here. A broadcast names its
predecessor on its channel (`prev`): if that did not come, REFILL requests it. Only the broker knows whether broadcasts
were lost behind the last one that came: its BEAT lists those that are owed. A BEAT also shows that a requested number
was somebody else's.

Held broadcasts come before held DELIVERs, whichever came first: the broker publishes nothing to a consumer that has an
unacknowledged DELIVER, so published messages precede those.

*Batches.* A batch stays one as long as the same holds for all its messages; otherwise each goes as a batch of one.

*Acknowledging.* Each message is handed out under a ticket number, one above its predecessor's, and the application
reports which ones it has taken (`settle`), in any order. The acknowledgement for the DEALER is cumulative, so it stops
before the first message that is not taken. Broadcasts are acknowledged by number, since a SUB may lose any. Messages
that were handed out may have to go back to the mailbox (`give_back`, `recall`, a new lease): then their ticket numbers
settle nothing any more, and if they are still owed they come again.

A message that was taken before (its acknowledgement was lost with a connection) is acknowledged again, and not handed
out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from zmqbus.client.events import Batch
from zmqbus.client.interval_set import IntervalSet
from zmqbus.client.seen import SeenIds
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Broadcast, Deliver

_B = TypeVar("_B", Deliver, Broadcast, Deliver | Broadcast)


class ReorderBuffer:
    """The messages that have come under one lease. Not thread-safe."""

    def __init__(self, taken: SeenIds, hand: Callable[[Batch, int], None], ask: Callable[[verbs.Refill], None]) -> None:
        """`taken`: messages that are not handed out again; the caller of `settle` adds to it. `hand` gets each batch
        for the application, in order, and the ticket number of its first message; `ask` gets the REFILLs to send."""
        self.ack_due = False  #: `ack` would acknowledge more
        self._taken_ids = taken
        self._hand = hand
        self._ask = ask
        # the lease
        self._epoch = ""
        self._since = 0  # number of the last broadcast before it
        self._peer = 0
        # Handed out and not settled, in order: ticket numbers `_first` to `_number`, as (mailbox or broadcast number of
        # the first message, whether it is a broadcast's, count).
        self._number = 0
        self._first = 1
        self._handed: deque[tuple[int, bool, int]] = deque()
        self._taken_numbers: set[int] = set()  # of taken messages behind one that is not taken
        self._ack_seq = 0
        self._ack_bcasts: list[int] = []
        # broadcasts
        self._seen = IntervalSet()  # and those that will not come
        self._last_on: dict[bytes, int] = {}  # channel → last number
        self._asked: set[int] = set()
        # held: all of the first come before all of the second
        self._held_casts: deque[Broadcast] = deque()
        self._held_delivers: deque[Deliver] = deque()

    def __repr__(self) -> str:
        return f"<ReorderBuffer: {self.handed} handed out, {self.held} held, {len(self._asked)} asked for>"

    @property
    def handed(self) -> int:
        """Number of messages that were handed out and cannot be acknowledged yet."""
        return self._number + 1 - self._first

    @property
    def held(self) -> int:
        """Number of messages that are held."""
        return sum(len(one.msg_ids) for one in self._held_casts) + sum(len(one.msg_ids) for one in self._held_delivers)

    # --- the lease

    def begin(self, welcome: verbs.Welcome) -> None:
        """Begins a new lease: the broker sends all unacknowledged messages again, so none that is here counts."""
        self._epoch, self._since, self._peer = welcome.epoch, welcome.bcast, welcome.peer
        self.give_back()
        self._drop_held()
        self._ack_seq, self._ack_bcasts, self.ack_due = 0, [], False
        self._seen.clear()
        self._last_on.clear()
        self._asked.clear()

    def give_back(self) -> None:
        """Gives untaken messages back to the mailbox. Kept here, they would hold up all later acknowledgements."""
        self._handed.clear()
        self._first = self._number + 1
        self._taken_numbers.clear()

    def recall(self, bcasts: Sequence[int]) -> None:
        """Gives held messages back, too, and ignores these broadcasts, which may still be under way."""
        self.give_back()
        self._drop_held()
        for number in bcasts:
            self._asked.discard(number)
            self._seen.add(number)

    def _drop_held(self) -> None:
        self._held_casts.clear()
        self._held_delivers.clear()

    # --- arrivals

    def deliver(self, batch: Deliver) -> None:
        """Handles a batch that came over the DEALER."""
        # guards: reordering [not batch.msg_ids or =>]
        if not batch.msg_ids or len(batch.msg_ids) != len(batch.bodies):
            return  # malformed
        if batch.bcast:
            if batch.bcast not in self._seen:
                self._arrive(batch)
            self._release()
        # guards: reordering [or (batch.after and batch.after not in self._seen) =>]
        # guards: reordering [self._held_delivers or self._held_casts or =>]
        elif self._held_delivers or self._held_casts or (batch.after and batch.after not in self._seen):
            self._held_delivers.append(batch)
        else:
            self._arrive(batch)

    def broadcast(self, channel: bytes, batch: Broadcast) -> None:
        """Handles a batch that came over the SUB, on this channel."""
        # guards: reordering [not batch.msg_ids or =>]
        # guards: reordering [or batch.epoch != self._epoch =>]
        if (
            not batch.msg_ids
            or len(batch.msg_ids) != len(batch.bodies)
            or batch.epoch != self._epoch
            # A SUB filter is a prefix: the message may be for another channel.
            or channel != verbs.channel(batch.header.scope, batch.header.target)  # guards: reordering
        ):
            return
        # guards: reordering [batch.bcast <= self._since or =>]
        # guards: reordering [or self._held_delivers =>]
        # guards: reordering [or self._is_seen_of(batch) =>]
        is_torn = batch.bcast <= self._since or self._held_delivers or self._is_seen_of(batch)
        for part in _apart(batch) if is_torn else (batch,):
            if part.bcast > self._since:  # guards: reordering [on]
                self._publish(channel, part)

    def _publish(self, channel: bytes, batch: Broadcast) -> None:
        """Handles broadcasts of which all are seen, or none."""
        last = self._last_on.get(channel, self._since)
        self._last_on[channel] = batch.bcast + len(batch.msg_ids) - 1  # guards: reordering
        if batch.prev > last and batch.prev not in self._seen and batch.prev not in self._asked:
            # One is missing on this channel. Perhaps it was for others only: the broker's BEAT will show that.
            self._refill((batch.prev,))  # guards: reordering
        # guards: reordering [self._peer not in batch.spared and =>]
        if self._peer not in batch.spared and batch.bcast not in self._seen:
            self._held_casts.append(batch)
        self._release()

    def _is_seen_of(self, batch: Broadcast) -> bool:
        """Returns whether any of these broadcasts is seen."""
        return self._seen.has_any(batch.bcast, batch.bcast + len(batch.msg_ids))

    def beat(self, beat: verbs.Beat) -> None:
        """Handles a BEAT: requests owed broadcasts that are missing, and stops waiting for others."""
        if beat.epoch != self._epoch:
            return
        held = {number for cast in self._held_casts for number in _numbers(cast)}
        missing = tuple(n for n in beat.bcasts if n not in self._seen and n not in held and n not in self._asked)
        if missing:  # guards: reordering
            self._refill(missing)
        # A requested broadcast that is not owed will not come.
        for number in [n for n in self._asked if n <= beat.upto and n not in beat.bcasts]:
            self._asked.discard(number)
            self._seen.add(number)
        self._release()

    def _refill(self, numbers: tuple[int, ...]) -> None:
        self._asked.update(numbers)
        self._ask(verbs.Refill(numbers))

    def _release(self) -> None:
        """Hands out held messages up to the first with a missing predecessor. No published broadcast passes requested
        ones, which come before it."""
        casts = self._held_casts
        while casts:
            if self._asked:
                return
            cast = casts.popleft()
            if not self._is_seen_of(cast):
                self._arrive(cast)
                continue
            for part in _apart(cast):  # some were resent while this copy was held
                if part.bcast not in self._seen:
                    self._arrive(part)
        delivers = self._held_delivers
        while delivers and (not delivers[0].after or delivers[0].after in self._seen):
            self._arrive(delivers.popleft())

    def _arrive(self, batch: Batch) -> None:
        """Hands out a batch, except messages that were taken before, which are acknowledged in their place."""
        if batch.bcast:
            numbers = _numbers(batch)
            self._seen.add_all(numbers.start, numbers.stop)  # guards: reordering
            if self._asked:
                self._asked.difference_update(numbers)
        if self._taken_ids.isdisjoint(batch.msg_ids):  # guards: client dedup [on]
            self._hand(batch, self._note(batch))
            return
        for part in _apart(batch):
            number = self._note(part)
            if part.msg_ids[0] in self._taken_ids:  # guards: client dedup [off]
                self.settle(number)
            else:
                self._hand(part, number)

    def _note(self, batch: Batch) -> int:
        """Gives a batch its ticket numbers; returns the first."""
        first = self._number + 1
        self._number += len(batch.msg_ids)
        seq = 0 if isinstance(batch, Broadcast) else batch.seq
        self._handed.append((batch.bcast or seq, bool(batch.bcast), len(batch.msg_ids)))
        return first

    # --- acknowledgements

    def settle(self, number: int, messages: int = 1) -> None:
        """Notes that this many messages are taken, from this ticket number on."""
        # guards: reordering: only what was handed out [min(number + messages, self._number + 1) => number + messages]
        end = min(number + messages, self._number + 1)
        number = max(number, self._first)  # guards: reordering
        messages = end - number
        if messages <= 0:
            return  # settled or given back before
        if number != self._first:  # guards: reordering
            self._taken_numbers.update(range(number, number + messages))
            return
        if self._taken_numbers:
            # guards: reordering
            self._taken_numbers.difference_update(range(number, number + messages))  # settled twice
        self.ack_due = True
        self._settle_first(messages)
        while self._first in self._taken_numbers:
            self._taken_numbers.discard(self._first)
            self._settle_first(1)

    def _settle_first(self, messages: int) -> None:
        self._first += messages
        while messages:
            number, is_cast, several = self._handed.popleft()
            if several > messages:
                # guards: reordering [self._handed.appendleft => bool]
                self._handed.appendleft((number + messages, is_cast, several - messages))
                several = messages
            if is_cast:
                self._ack_bcasts += range(number, number + several)
            else:
                self._ack_seq = number + several - 1
            messages -= several

    def ack(self) -> verbs.Ack:
        """Returns the acknowledgement of the messages that were taken since the last one."""
        bcasts, self._ack_bcasts = self._ack_bcasts, []
        self.ack_due = False
        return verbs.Ack(self._ack_seq, tuple(bcasts))


def _numbers(batch: Batch) -> range:
    """Returns the numbers of a batch of broadcasts."""
    return range(batch.bcast, batch.bcast + len(batch.msg_ids))


def _apart(batch: _B) -> Iterator[_B]:
    """Yields each message as a batch of one, with its own number."""
    for place, (msg_id, body) in enumerate(zip(batch.msg_ids, batch.bodies, strict=False)):
        alone = batch._replace(msg_ids=(msg_id,), bodies=(body,))
        if isinstance(alone, Deliver):
            yield alone._replace(seq=alone.seq + place)
        else:  # `prev` stays: behind the first it is below the last number on the channel, and so shows no gap
            yield alone._replace(bcast=alone.bcast + place)
