"""In which order what comes in is handed to the application, and what may be acknowledged. No sockets, no clock.

Theory of operation
===================

Messages come on two ways. What comes over the DEALER is one ordered stream, and loses nothing. A broadcast comes over
the SUB, which may drop it, and is told apart by its number. `Inbound` makes one order of both, the mailbox's, by the
rules of section 8.2 of `docs/protocol.md`:

    DELIVER                      ──▶ handed out; held if something before it is, or is not here yet
    DELIVERS                     ──▶ likewise, each; in one piece if that goes for all of them
    DELIVER of a broadcast       ──▶ handed out at once: it was published, and is sent again since that copy was lost
    BROADCAST                    ──▶ handed out; held while anything is asked for
    a gap, or a BEAT that owes   ──▶ REFILL
    BEAT                         ──▶ what was asked for and is not owed will not come

A message that must follow a broadcast names it (`after`) and is held until that one is here. A broadcast names the one
before it on its channel (`prev`): if that one did not come, REFILL asks for it. Whether anything was lost behind the
last one that came, only the broker knows: its BEAT says what is owed. And a BEAT tells that nothing more will come of
what was asked for: the number was somebody else's.

Held broadcasts come before held DELIVERs, whichever came first. For the broker publishes nothing to a consumer that has
a DELIVER under way: whatever is published comes before those.

*Acknowledging.* Each message is handed out under a ticket number, one up from the one before, and the application says
which it has taken (`settle`), in whatever order. The messages of a run have numbers in a row, and are settled together
or one by one. The acknowledgement for the DEALER is cumulative, so it goes no
further than the first message that is not taken. Broadcasts are acknowledged each by its number, since a SUB may lose
any. What was handed out may have to be given back (`give_back`, `recall`, a new lease): then it is the mailbox's again,
its ticket number settles nothing any more, and if it is still owed it comes again.

A message that was taken already (its acknowledgement was lost with a connection) is acknowledged again and not handed
out a second time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import TypeAlias

from zmqbus.client.interval_set import Numbers
from zmqbus.client.seen import TakenIds
from zmqbus.wire import verbs

Message: TypeAlias = verbs.Deliver | verbs.Broadcast
Messages: TypeAlias = verbs.Delivers | verbs.Broadcasts


class Inbound:
    """What has come to one client, from one WELCOME to the next. Not thread-safe."""

    def __init__(
        self,
        taken: TakenIds,
        hand: Callable[[Message, int], None],
        ask: Callable[[verbs.Refill], None],
        hand_run: Callable[[Messages, int], None] | None = None,
    ) -> None:
        """`taken`: what is not handed out again; whoever calls `settle` adds to it. `hand` is called with each message
        for the application, in order, and its ticket number (or `hand_run`, if it is given, with several that are
        alike, and the number of the first); `ask` with what the broker is to be asked for."""
        self.ack_due = False  #: `ack` has something new to say
        self._taken_ids = taken
        self._hand = hand
        self._hand_run = hand_run
        self._ask = ask
        # the lease
        self._epoch = ""
        self._since = 0  # number of the last broadcast before it
        self._peer = 0
        # What has been handed out, in order, and not settled: the last has the ticket number `_number`, the first
        # `_first`. As (seq, bcast, how many): of several, the numbers of the first.
        self._number = 0
        self._first = 1
        self._handed: deque[tuple[int, int, int]] = deque()
        self._taken_numbers: set[int] = set()  # behind one that is not taken
        self._ack_seq = 0
        self._ack_bcasts: list[int] = []
        # broadcasts
        self._seen = Numbers()  # those, too, that will not come
        self._last_on: dict[bytes, int] = {}  # channel → number of the last one that came
        self._asked: set[int] = set()
        # what is held: all of the first come before all of the second
        self._held_casts: deque[verbs.Broadcast] = deque()
        self._held_delivers: deque[verbs.Deliver] = deque()

    def __repr__(self) -> str:
        return f"<Inbound: {self.handed} handed out, {self.held} held, {len(self._asked)} asked for>"

    @property
    def handed(self) -> int:
        """Messages that were handed out, and cannot be acknowledged yet."""
        return self._number + 1 - self._first

    @property
    def held(self) -> int:
        """Messages that something before them is missing for."""
        return len(self._held_casts) + len(self._held_delivers)

    # --- the lease

    def begin(self, welcome: verbs.Welcome) -> None:
        """A new lease: the broker sends again whatever was not acknowledged, so what is held or handed out is void."""
        self._epoch, self._since, self._peer = welcome.epoch, welcome.bcast, welcome.peer
        self.give_back()
        self._drop_held()
        self._ack_seq, self._ack_bcasts, self.ack_due = 0, [], False
        self._seen.clear()
        self._last_on.clear()
        self._asked.clear()

    def give_back(self) -> None:
        """What has been handed out and is not taken is the mailbox's again. Kept here, it would hold up all later
        acknowledgements."""
        self._handed.clear()
        self._first = self._number + 1
        self._taken_numbers.clear()

    def recall(self, bcasts: Sequence[int]) -> None:
        """Gives back what is held as well, and passes over these broadcasts, which may still be under way."""
        self.give_back()
        self._drop_held()
        for number in bcasts:
            self._asked.discard(number)
            self._seen.add(number)

    def _drop_held(self) -> None:
        self._held_casts.clear()
        self._held_delivers.clear()

    # --- what comes

    def deliver(self, deliver: verbs.Deliver) -> None:
        """A message came over the DEALER."""
        if deliver.bcast:
            if deliver.bcast not in self._seen:
                self._arrive(deliver, 0, deliver.bcast)
            self._release()
        # guards: reordering [or (deliver.after and deliver.after not in self._seen) =>]
        elif self._held_delivers or self._held_casts or (deliver.after and deliver.after not in self._seen):
            self._held_delivers.append(deliver)
        else:
            self._arrive(deliver, deliver.seq, 0)

    def deliver_all(self, run: verbs.Delivers) -> None:
        """Several came over the DEALER, alike. In one piece, unless something tells them apart."""
        if not run.msg_ids or len(run.msg_ids) != len(run.bodies):  # guards: reordering [not run.msg_ids or =>]
            return  # no broker says that
        # guards: reordering [or self._held_delivers or self._held_casts =>]
        if (
            self._hand_run is None
            or self._held_delivers
            or self._held_casts
            or (run.after and run.after not in self._seen)  # guards: reordering
            or not self._taken_ids.isdisjoint(run.msg_ids)  # guards: reordering
        ):
            for deliver in _delivers(run):
                self.deliver(deliver)
            return
        first = self._number + 1
        self._number += len(run.msg_ids)
        self._handed.append((run.seq, 0, len(run.msg_ids)))
        self._hand_run(run, first)

    def broadcast(self, channel: bytes, cast: verbs.Broadcast) -> None:
        """A message came over the SUB, on this channel."""
        # guards: reordering [cast.epoch != self._epoch or =>]
        if (
            cast.epoch != self._epoch
            or cast.bcast <= self._since
            # A SUB filter is a prefix: what matched it may be for another channel.
            or channel != verbs.channel(cast.scope, cast.target)  # guards: reordering
        ):
            return
        last = self._last_on.get(channel, self._since)
        self._last_on[channel] = cast.bcast
        if cast.prev > last and cast.prev not in self._seen and cast.prev not in self._asked:
            # One is missing on this channel. It may have been somebody else's only: the broker's BEAT will tell.
            self._refill((cast.prev,))  # guards: reordering
        # guards: reordering [self._peer not in cast.spared and =>]
        if self._peer not in cast.spared and cast.bcast not in self._seen:
            self._held_casts.append(cast)
        self._release()

    def broadcast_all(self, channel: bytes, run: verbs.Broadcasts) -> None:
        """Several came over the SUB, alike. In one piece, unless something tells them apart, or is in their way."""
        if not run.msg_ids or len(run.msg_ids) != len(run.bodies):  # guards: reordering [not run.msg_ids or =>]
            return  # no broker says that
        numbers = range(run.bcast, run.bcast + len(run.msg_ids))
        if (
            self._hand_run is None
            or run.epoch != self._epoch  # guards: reordering
            or run.bcast <= self._since  # guards: reordering
            or channel != verbs.channel(run.scope, run.target)  # guards: reordering
            or run.prev > self._last_on.get(channel, self._since)  # guards: reordering
            or self._peer in run.spared  # guards: reordering
            or self._asked  # guards: reordering
            or self._held_delivers  # guards: reordering
            or self._held_casts
            or self._seen.has_any(numbers.start, numbers.stop)  # guards: reordering
            or not self._taken_ids.isdisjoint(run.msg_ids)  # guards: reordering
        ):
            for cast in _broadcasts(run):
                self.broadcast(channel, cast)
            return
        self._last_on[channel] = numbers[-1]  # guards: reordering
        self._seen.add_all(numbers.start, numbers.stop)  # guards: reordering
        first = self._number + 1
        self._number += len(numbers)
        self._handed.append((0, run.bcast, len(numbers)))
        self._hand_run(run, first)

    def beat(self, beat: verbs.Beat) -> None:
        """The broker says what is owed."""
        if beat.epoch != self._epoch:
            return
        held = {cast.bcast for cast in self._held_casts}
        missing = tuple(n for n in beat.bcasts if n not in self._seen and n not in held and n not in self._asked)
        if missing:  # guards: reordering
            self._refill(missing)
        # What was asked for and is not owed will not come; nothing need wait for it.
        for number in [n for n in self._asked if n <= beat.upto and n not in beat.bcasts]:
            self._asked.discard(number)
            self._seen.add(number)
        self._release()

    def _refill(self, numbers: tuple[int, ...]) -> None:
        self._asked.update(numbers)
        self._ask(verbs.Refill(numbers))

    def _release(self) -> None:
        """Hands out what is held, as far as nothing before it is missing. While broadcasts are being asked for no
        published one passes: those that are missing come before it."""
        casts = self._held_casts
        while casts:
            if self._asked:
                return
            cast = casts.popleft()
            if cast.bcast not in self._seen:  # else it was filled in while this copy was held
                self._arrive(cast, 0, cast.bcast)
        delivers = self._held_delivers
        while delivers and (not delivers[0].after or delivers[0].after in self._seen):
            deliver = delivers.popleft()
            self._arrive(deliver, deliver.seq, 0)

    def _arrive(self, message: Message, seq: int, bcast: int) -> None:
        """Hands a message out, unless it has been taken before. It is acknowledged by `seq` or by `bcast`; the other
        is 0."""
        if bcast:
            self._seen.add(bcast)
            self._asked.discard(bcast)
        self._number += 1
        self._handed.append((seq, bcast, 1))
        if message.msg_id in self._taken_ids:  # guards: client dedup [off]
            self.settle(self._number)
        else:
            self._hand(message, self._number)

    # --- what the application says

    def settle(self, number: int) -> None:
        """The message with this ticket number is taken."""
        self.settle_run(number, 1)

    def settle_run(self, number: int, messages: int) -> None:
        """So many messages from this ticket number on are taken."""
        # guards: reordering: only what was handed out [min(number + messages, self._number + 1) => number + messages]
        end = min(number + messages, self._number + 1)
        number = max(number, self._first)  # guards: reordering
        messages = end - number
        if messages <= 0:
            return  # settled, or given back in the meantime
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
            seq, bcast, several = self._handed.popleft()
            if several > messages:
                rest = several - messages
                # guards: reordering [self._handed.appendleft => bool]
                self._handed.appendleft((0, bcast + messages, rest) if bcast else (seq + messages, 0, rest))
                several = messages
            if bcast:
                self._ack_bcasts += range(bcast, bcast + several)
            else:
                self._ack_seq = seq + several - 1
            messages -= several

    def ack(self) -> verbs.Ack:
        """The acknowledgement of all that was taken since the last one."""
        bcasts, self._ack_bcasts = self._ack_bcasts, []
        self.ack_due = False
        return verbs.Ack(self._ack_seq, tuple(bcasts))


def _delivers(run: verbs.Delivers) -> Iterator[verbs.Deliver]:
    """Each by itself."""
    for seq, msg_id, body in zip(count(run.seq), run.msg_ids, run.bodies, strict=False):
        yield verbs.Deliver(
            seq,
            0,
            run.after,
            msg_id,
            run.from_session,
            run.from_name,
            run.from_label,
            verbs.Scope.SESSION,
            "",
            run.fmt,
            None,
            run.ts,
            -1,
            None,
            len(body),
            body,
        )


def _broadcasts(run: verbs.Broadcasts) -> Iterator[verbs.Broadcast]:
    prev = run.prev
    for bcast, msg_id, body in zip(count(run.bcast), run.msg_ids, run.bodies, strict=False):
        yield verbs.Broadcast(
            run.epoch,
            bcast,
            prev,
            run.spared,
            msg_id,
            run.from_session,
            run.from_name,
            run.from_label,
            run.scope,
            run.target,
            run.fmt,
            None,
            run.ts,
            None,
            body,
        )
        prev = bcast  # guards: reordering
