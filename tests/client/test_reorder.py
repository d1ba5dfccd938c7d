"""The order of what comes in: one call at a time, and against a broker whose broadcasts are lost at random."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.client import interval_set
from zmqbus.client.events import Batch
from zmqbus.client.reorder import ReorderBuffer
from zmqbus.client.seen import SeenIds
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Broadcast, Deliver, Header, Scope

ME = 4  # number of the connection
HEADER = Header("s", "n", None, Scope.ALL, "", 0, None, 1.0)


def welcome(**more: Any) -> verbs.Welcome:
    return verbs.Welcome(1, "9.9", "epoch", "id", "me", "lease", ME, 5555, 10, 0)._replace(**more)


def deliver(seq: int, count: int = 1, *, bcast: int = 0, after: int = 0, msg_id: str = "") -> Deliver:
    msg_ids = (msg_id,) if msg_id else tuple(casts(bcast) if bcast else directs(*range(seq, seq + count)))
    return Deliver(HEADER, seq, bcast, after, -1, None, 0, msg_ids, (b"",) * count)


def broadcast(
    bcast: int, prev: int = 0, count: int = 1, *, scope: Scope = Scope.ALL, target: str = "", **more: Any
) -> Broadcast:
    msg_ids = tuple(casts(*range(bcast, bcast + count)))
    header = HEADER._replace(scope=scope, target=target)
    return Broadcast(header, "epoch", bcast, prev, (), None, msg_ids, (b"",) * count)._replace(**more)


def apart(batch: Any) -> Iterator[Any]:
    """Yields each message as a batch of one, as the broker could have sent it."""
    for place, (msg_id, body) in enumerate(zip(batch.msg_ids, batch.bodies, strict=True)):
        numbers = {"seq": batch.seq + place} if isinstance(batch, Deliver) else {"bcast": batch.bcast + place}
        if isinstance(batch, Broadcast) and place:
            numbers["prev"] = batch.bcast + place - 1
        yield batch._replace(msg_ids=(msg_id,), bodies=(body,), **numbers)


def beat(*owed: int, upto: int = 99) -> verbs.Beat:
    return verbs.Beat("epoch", upto, owed)


def directs(*seqs: int) -> list[str]:
    return [f"direct{seq:06d}" for seq in seqs]


def casts(*numbers: int) -> list[str]:
    return [f"bcast{number:07d}" for number in numbers]


class Client:
    """A `ReorderBuffer` that records what it hands out and requests. Each call returns the ids that it handed out."""

    def __init__(self) -> None:
        self.taken_ids = SeenIds()
        self.numbers: dict[str, int] = {}  # ticket numbers; the last, if it came twice
        self.handed: list[str] = []
        self.sizes: list[int] = []  # of the batches
        self.asked: list[tuple[int, ...]] = []
        self.buffer = ReorderBuffer(self.taken_ids, self._hand, lambda refill: self.asked.append(refill.bcasts))
        self.buffer.begin(welcome())

    def _hand(self, batch: Batch, number: int) -> None:
        self.numbers.update(zip(batch.msg_ids, itertools.count(number), strict=False))
        self.handed += batch.msg_ids
        self.sizes.append(len(batch.msg_ids))

    def dealer(self, *envelopes: Deliver | verbs.Beat) -> list[str]:
        before = len(self.handed)
        for envelope in envelopes:
            if isinstance(envelope, Deliver):
                self.buffer.deliver(envelope)
            else:
                self.buffer.beat(envelope)
        return self.handed[before:]

    def sub(self, *batches: Broadcast, channel: bytes | None = None) -> list[str]:
        before = len(self.handed)
        for batch in batches:
            own = verbs.channel(batch.header.scope, batch.header.target)
            self.buffer.broadcast(own if channel is None else channel, batch)
        return self.handed[before:]

    def take(self, *msg_ids: str) -> verbs.Ack | None:
        for msg_id in msg_ids:
            self.taken_ids.add(msg_id)
            self.buffer.settle(self.numbers[msg_id])
        return self.ack()

    def ack(self) -> verbs.Ack | None:
        return self.buffer.ack() if self.buffer.ack_due else None


@pytest.fixture
def client() -> Client:
    return Client()


# --- acknowledging


def test_acknowledgements_are_cumulative_up_to_the_first_untaken_message(client):
    client.dealer(deliver(1), deliver(2), deliver(3), deliver(4))
    assert client.take(*directs(2, 3)) is None  # the first is still out
    assert client.take(*directs(1)) == verbs.Ack(3, ())
    assert client.take() is None
    assert client.take(*directs(4)) == verbs.Ack(4, ())


def test_broadcasts_are_acknowledged_by_their_numbers(client):
    client.sub(broadcast(11))
    client.dealer(deliver(2, after=11), deliver(5, bcast=12))
    assert client.take(*casts(11), *directs(2)) == verbs.Ack(2, (11,))
    assert client.take(*casts(12)) == verbs.Ack(2, (12,))  # not by the number it has in the mailbox


def test_broadcast_is_acknowledged_after_its_predecessors(client):
    client.sub(broadcast(11), broadcast(12, prev=11))
    assert client.take(*casts(12)) is None
    assert client.take(*casts(11)) == verbs.Ack(0, (11, 12))


@given(st.permutations(range(1, 7)), st.lists(st.integers(1, 6)))
def test_messages_may_be_taken_in_any_order(order, cuts):
    client = Client()
    client.dealer(*(deliver(number) for number in range(1, 7)))
    done: set[int] = set()
    acknowledged = 0
    for size in [*cuts, 6]:
        part, order = order[:size], order[size:]
        done.update(part)
        ack = client.take(*directs(*part))
        reached = next(number for number in range(8) if number + 1 not in done)
        assert ack == (verbs.Ack(reached, ()) if reached > acknowledged else None)
        acknowledged = reached
    assert acknowledged == 6 and client.buffer.handed == 0
    assert not client.buffer._taken_numbers  # settled numbers are not kept


def test_message_taken_twice_is_acknowledged_once(client):
    client.dealer(deliver(1), deliver(2), deliver(3))
    assert client.take(*directs(2, 2)) is None
    assert client.take(*directs(1, 1)) == verbs.Ack(2, ())
    assert client.take(*directs(1, 2)) is None
    assert client.buffer.handed == 1


def test_unknown_ticket_number_settles_nothing(client):
    client.dealer(deliver(1))
    for number in (-1, 0, 2, 3):
        client.buffer.settle(number)
    assert client.dealer(deliver(2), deliver(3)) == directs(2, 3)
    assert client.take(*directs(1)) == verbs.Ack(1, ())


def test_message_taken_before_is_acknowledged_in_order_and_not_handed_out(client):
    client.taken_ids.add("direct000002")
    client.taken_ids.add("bcast0000011")
    assert client.dealer(deliver(1), deliver(2)) == directs(1)
    assert client.sub(broadcast(11)) == []
    assert client.ack() is None
    assert client.take(*directs(1)) == verbs.Ack(2, (11,))


def test_single_message_taken_before_is_acknowledged_at_once(client):
    client.taken_ids.add("direct000001")
    assert client.dealer(deliver(1)) == []
    assert client.ack() == verbs.Ack(1, ())


# --- giving back


def test_messages_given_back_hold_up_no_acknowledgement(client):
    client.dealer(deliver(1), deliver(2), deliver(3))
    client.take(*directs(1, 3))
    old = dict(client.numbers)
    client.buffer.give_back()
    assert client.buffer.handed == 0
    assert client.dealer(deliver(2), deliver(3), deliver(4)) == directs(2, 4)
    client.ack()
    for number in old.values():
        client.buffer.settle(number)
    assert client.ack() is None
    assert client.take(*directs(2)) == verbs.Ack(3, ())
    assert not client.buffer._taken_numbers
    client.dealer(deliver(5))
    client.take(*directs(5))
    client.buffer.give_back()
    assert not client.buffer._taken_numbers


def test_taken_messages_are_acknowledged_after_giving_back(client):
    client.dealer(deliver(1), deliver(2))
    client.sub(broadcast(11))
    client.buffer.settle(client.numbers["direct000001"])
    client.buffer.give_back()
    assert client.ack() == verbs.Ack(1, ())


def test_recall_forgets_untaken_and_held_messages(client):
    client.dealer(deliver(1), deliver(2, after=99))
    client.sub(broadcast(13, prev=12))
    assert (client.buffer.handed, client.buffer.held) == (1, 2)
    client.buffer.recall((12, 13))
    assert (client.buffer.handed, client.buffer.held) == (0, 0)
    assert client.dealer(deliver(1), deliver(2), deliver(3)) == directs(1, 2, 3)
    assert client.take(*directs(1, 2, 3)) == verbs.Ack(3, ())


def test_recall_ignores_broadcasts_under_way(client):
    client.sub(broadcast(12, prev=11))
    assert client.asked == [(11,)]
    client.buffer.recall((11, 12))
    assert client.sub(broadcast(11), broadcast(12, prev=11)) == []
    assert client.dealer(deliver(1, bcast=11)) == []
    assert client.sub(broadcast(13, prev=12)) == casts(13)  # nothing is asked for any more
    assert client.asked == [(11,)]


def test_new_lease_forgets_everything(client):
    client.sub(broadcast(11))
    client.dealer(deliver(1), deliver(2, after=99))
    client.sub(broadcast(13, prev=12))
    for msg_id in (*casts(11), *directs(1)):
        client.buffer.settle(client.numbers[msg_id])
    client.buffer.begin(welcome(lease="other", bcast=13))
    assert client.ack() is None
    assert (client.buffer.handed, client.buffer.held) == (0, 0)
    assert client.sub(broadcast(14)) == casts(14)
    assert client.dealer(deliver(1)) == directs(1)
    assert client.take(*casts(14)) == verbs.Ack(0, (14,))  # without the numbers under the old lease


def test_new_lease_has_its_own_numbers(client):
    assert client.sub(broadcast(30), broadcast(40, prev=39)) == casts(30)
    client.buffer.begin(welcome(epoch="second", bcast=20, peer=9))
    assert client.sub(broadcast(41)) == []  # the old broker's
    assert client.sub(broadcast(20, epoch="second")) == []
    assert client.sub(broadcast(22, prev=21, epoch="second")) == []
    assert client.asked == [(39,), (21,)]  # by the old numbers it would not be a gap
    assert client.dealer(verbs.Beat("second", 22, (22,))) == casts(22)
    assert client.sub(broadcast(23, prev=22, epoch="second", spared=(9,))) == []
    assert client.sub(broadcast(24, prev=23, epoch="second", spared=(ME,))) == casts(24)  # that is another by now
    assert client.sub(broadcast(30, prev=24, epoch="second")) == casts(30)  # that was another


def test_new_lease_has_no_open_refill(client):
    client.sub(broadcast(12, prev=11))
    client.buffer.begin(welcome(bcast=20))
    assert client.sub(broadcast(21, prev=12)) == casts(21)


def test_ticket_numbers_go_on_over_leases(client):
    client.dealer(deliver(1))
    old = client.numbers["direct000001"]
    client.buffer.begin(welcome(lease="other"))
    client.dealer(deliver(7))
    client.buffer.settle(old)
    assert client.ack() is None
    assert client.take(*directs(7)) == verbs.Ack(7, ())


# --- broadcasts


def test_broadcast_is_handed_out_once(client):
    assert client.sub(broadcast(11)) == casts(11)
    assert client.sub(broadcast(11)) == []
    assert client.dealer(deliver(1, bcast=11)) == []
    assert client.take(*casts(11)) == verbs.Ack(0, (11,))


@pytest.mark.parametrize(
    ("other", "channel"),
    [
        (broadcast(11, epoch="another"), None),
        (broadcast(10), None),  # before this lease
        (broadcast(11, spared=(3, ME)), None),
        (broadcast(11), b"#deploys\0"),  # not its channel
        (broadcast(11), b"*\0more"),  # a filter is a prefix
        (broadcast(11, 10, 2, epoch="another"), None),
        (broadcast(9, 8, 2), None),
        (broadcast(11, 10, 2), b"*\0more"),
    ],
    ids=["epoch", "old", "spared", "channel", "prefix", "batch of epoch", "old batch", "batch of prefix"],
)
def test_broadcasts_for_others_are_ignored(client, other, channel):
    assert client.sub(other, channel=channel) == []
    assert client.buffer.held == 0 and client.asked == []
    assert client.sub(broadcast(11)) == casts(11)


@pytest.mark.parametrize(
    ("other", "channel"),
    [(broadcast(12, prev=11, epoch="another"), None), (broadcast(12, prev=11), b"*\0more")],
    ids=["epoch", "prefix"],
)
def test_broadcasts_for_others_show_no_gap(client, other, channel):
    client.sub(other, channel=channel)
    assert client.asked == []
    client.sub(broadcast(13, prev=12))
    assert client.asked == [(12,)]  # nor is it one that has come


def test_message_waits_for_the_broadcast_before_it(client):
    assert client.dealer(deliver(2, after=11), deliver(3)) == []
    assert client.buffer.held == 2
    assert client.sub(broadcast(11)) == [*casts(11), *directs(2, 3)]
    assert client.buffer.held == 0


def test_message_waits_behind_a_held_message(client):
    assert client.dealer(deliver(2, after=11), deliver(3, after=12)) == []
    assert client.sub(broadcast(11)) == [*casts(11), *directs(2)]
    assert client.dealer(deliver(4)) == []
    assert client.sub(broadcast(12, prev=11)) == [*casts(12), *directs(3, 4)]


def test_message_follows_a_resent_broadcast(client):
    assert client.dealer(deliver(2, after=11), deliver(1, bcast=11)) == [*casts(11), *directs(2)]


def test_message_behind_a_seen_broadcast_need_not_wait(client):
    client.sub(broadcast(11))
    assert client.dealer(deliver(2, after=11)) == directs(2)


def test_gap_is_requested_once_and_not_overtaken(client):
    assert client.sub(broadcast(12, prev=11), broadcast(13, prev=12)) == []
    assert client.dealer(deliver(4, after=13)) == []
    assert client.asked == [(11,)]
    assert client.dealer(deliver(1, bcast=11), beat(11, 12, 13)) == [*casts(11, 12, 13), *directs(4)]
    assert client.asked == [(11,)]


def test_message_does_not_overtake_a_held_broadcast(client):
    client.sub(broadcast(12, prev=11))
    assert client.dealer(deliver(4)) == []
    assert client.sub(broadcast(13, prev=12)) == []
    assert client.dealer(deliver(1, bcast=11)) == [*casts(11, 12, 13), *directs(4)]


def test_held_broadcasts_come_before_held_delivers(client):
    client.sub(broadcast(12, prev=11))
    client.dealer(deliver(4, after=13))
    client.sub(broadcast(13, prev=12))
    assert client.dealer(deliver(1, bcast=11)) == [*casts(11, 12, 13), *directs(4)]


def test_gap_before_a_spared_broadcast_is_requested(client):
    client.sub(broadcast(12, prev=11, spared=(ME,)))
    assert client.asked == [(11,)]
    assert client.sub(broadcast(13, prev=12)) == []
    assert client.dealer(deliver(1, bcast=11), beat(11, 13)) == casts(11, 13)


def test_spared_broadcast_is_no_gap(client):
    client.sub(broadcast(11, spared=(ME,)))
    assert client.sub(broadcast(12, prev=11)) == casts(12)
    assert client.asked == []


def test_spared_broadcast_is_not_seen(client):
    """It comes by DELIVER, and a message that must follow it waits."""
    client.sub(broadcast(11, spared=(ME,)))
    assert client.dealer(deliver(2, after=11)) == []
    assert client.dealer(deliver(1, bcast=11)) == [*casts(11), *directs(2)]


def test_channels_have_their_own_gaps(client):
    topic: Any = {"scope": Scope.TOPIC, "target": "deploys"}
    assert client.sub(broadcast(12), broadcast(13, prev=0, **topic), broadcast(14, prev=12)) == casts(12, 13, 14)
    assert client.asked == []
    assert client.sub(broadcast(16, prev=15, **topic)) == []
    assert client.asked == [(15,)]


def test_numbers_from_before_the_lease_are_no_gap(client):
    assert client.sub(broadcast(12, prev=10)) == casts(12)
    assert client.asked == []


def test_gap_that_is_filled_already_is_not_requested(client):
    client.dealer(deliver(1, bcast=11))
    assert client.sub(broadcast(12, prev=11)) == casts(12)
    assert client.asked == []


def test_broadcast_for_others_is_not_waited_for(client):
    client.sub(broadcast(12, prev=11))
    assert client.dealer(beat(12)) == casts(12)
    assert client.dealer(deliver(5, after=11)) == directs(5)  # it counts as seen


# --- beats


def test_beat_requests_missing_broadcasts(client):
    client.sub(broadcast(12))
    client.dealer(beat(12, 13, 14))
    assert client.asked == [(13, 14)]
    client.dealer(beat(12, 13, 14))
    assert client.asked == [(13, 14)]
    client.dealer(verbs.Beat("another", 99, (15,)))
    assert client.asked == [(13, 14)]


def test_beat_does_not_request_held_broadcasts(client):
    client.sub(broadcast(12, prev=11))
    client.dealer(beat(11, 12))
    assert client.asked == [(11,)]


def test_broadcasts_wait_for_a_beats_refill(client):
    client.dealer(beat(11))
    assert client.sub(broadcast(12, prev=11)) == []
    assert client.asked == [(11,)]
    assert client.dealer(deliver(1, bcast=11)) == casts(11, 12)


def test_beat_says_nothing_about_later_numbers(client):
    client.sub(broadcast(13, prev=12))
    assert client.dealer(beat(upto=11)) == []
    assert client.dealer(beat(13, upto=12)) == casts(13)


def test_beat_of_another_broker_releases_nothing(client):
    client.sub(broadcast(12, prev=11))
    assert client.dealer(verbs.Beat("another", 99, ())) == []
    assert client.buffer.held == 1


def test_late_copy_is_ignored(client):
    client.dealer(beat(11))
    client.sub(broadcast(12, prev=11))
    assert client.dealer(deliver(1, bcast=11), deliver(2, bcast=12), beat(11, 12)) == casts(11, 12)
    assert client.buffer.held == 0
    client.dealer(beat(13))
    assert client.sub(broadcast(11)) == []
    assert client.buffer.held == 0  # nor is it kept while something is asked for


ORDERS = [
    order
    for order in itertools.permutations(("cast12", "cast14", "beat", "direct"))
    if order.index("cast12") < order.index("cast14")  # the SUB keeps its order
]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_losses_are_repaired_in_every_order(client, order):
    """11 and 13 never come by the SUB. The broker answers each REFILL as it has to, after whatever comes next."""
    for name in order:
        match name:
            case "cast12":
                client.sub(broadcast(12, prev=11))
            case "cast14":
                client.sub(broadcast(14, prev=13))
            case "beat":
                client.dealer(beat(11, 12, 13, 14))
            case "direct":
                client.dealer(deliver(5, after=14))
    answered = 0
    while answered < len(client.asked):
        last = max(client.asked[answered])
        answered += 1
        answer = [deliver(number - 10, bcast=number) for number in (11, 12, 13, 14) if number <= last]
        client.dealer(*answer, beat(11, 12, 13, 14))
    assert client.handed == [*casts(11, 12, 13, 14), *directs(5)]


# --- memory


def test_oldest_numbers_are_forgotten(monkeypatch):
    monkeypatch.setattr(interval_set, "REMEMBERED", 3)
    client = Client()
    client.sub(*(broadcast(number, prev=number - 1) for number in range(11, 15)))
    assert client.dealer(deliver(1, bcast=12), deliver(2, bcast=14)) == []
    assert client.dealer(deliver(3, bcast=11)) == casts(11)  # longer ago than anything that can be under way


def test_repr(client):
    client.dealer(deliver(1), deliver(2, after=99))
    client.sub(broadcast(12, prev=11))
    assert repr(client.buffer) == "<ReorderBuffer: 1 handed out, 2 held, 1 asked for>"


# --- against a broker


class Item:
    """A message in the broker's mailbox."""

    def __init__(self, seq: int, msg_id: str, bcast: int) -> None:
        self.seq = seq
        self.msg_id = msg_id
        self.bcast = bcast
        self.resent = False


class Bus:
    """One mailbox of a broker that keeps the rules of `docs/protocol.md`, the streams between it and its consumer, and
    an application. Nothing moves by itself; messages on the SUB may be lost at any time."""

    CHANNELS = ((Scope.ALL, ""), (Scope.TOPIC, "deploys"))

    def __init__(self) -> None:
        self.order: list[str] = []  # all that was ever in the mailbox
        self.items: deque[Item] = deque()
        self.open = True
        self.seq = self.bcast = 0
        self.peer = 0
        self.prev: dict[bytes, int] = {}
        self.channel = (Scope.ALL, "")  # that something was last published on to this mailbox
        self.acknowledged: set[int] = set()
        self.dealer: deque[Deliver | verbs.Beat | verbs.Recall] = deque()
        self.sub: deque[tuple[bytes, Broadcast]] = deque()
        self.up: deque[verbs.Refill | verbs.Ack | verbs.Recalled] = deque()
        # the application
        self.taken_ids = SeenIds()
        self.taken: list[str] = []
        self.in_hand: list[tuple[int, str]] = []
        self.place = 0  # in `order`, of the next that is to be handed out if it is not taken
        self.buffer = ReorderBuffer(self.taken_ids, self._hand, self.up.append)
        self.reconnect()

    # the broker

    def direct(self) -> None:
        self._append()
        if self.open:
            self._deliver(self.items[-1])

    def cast(self, channel: tuple[Scope, str], *, spared: bool = False, others: bool = True) -> None:
        """`spared`: there is no credit for it. `others`: it is published in any case, for others are there."""
        self.bcast += 1
        published = [item for item in self.items if item.bcast]
        may_publish = self.open and len(published) == len(self.items) and (not published or self.channel == channel)
        if may_publish and not spared:
            self.channel = channel
            self._append(self.bcast)
            self._publish(channel, ())
        else:
            self.direct()
            if others:
                self._publish(channel, (self.peer,))

    def foreign(self, channel: tuple[Scope, str]) -> None:
        """Its own, or one that there is no room for."""
        self.bcast += 1
        self._publish(channel, (self.peer,))

    def beat(self) -> None:
        self.dealer.append(verbs.Beat("epoch", self.bcast, tuple(item.bcast for item in self._owed())))

    def recall(self) -> None:
        if self.open and self.items:
            self.open = False
            self.dealer.append(verbs.Recall(1, tuple(item.bcast for item in self._owed())))

    def reconnect(self) -> None:
        self.peer += 1
        for stream in (self.dealer, self.sub, self.up):
            stream.clear()
        self.buffer.begin(welcome(peer=self.peer, bcast=self.bcast))
        self._taken_back()
        self._attach()

    def hear(self) -> None:
        match self.up.popleft():
            case verbs.Refill(numbers):
                owed = self._owed()
                for item in owed:
                    if item.bcast <= max(numbers) and not item.resent:
                        item.resent = True
                        self._deliver(item, item.bcast)
                self.dealer.append(verbs.Beat("epoch", self.bcast, tuple(item.bcast for item in owed)))
            case verbs.Ack(seq, bcasts):
                self.acknowledged.update({item.bcast for item in self.items if item.bcast}.intersection(bcasts))
                while self.items:
                    item = self.items[0]
                    if (item.bcast not in self.acknowledged) if item.bcast else (item.seq > seq):
                        break
                    assert item.msg_id in self.taken_ids
                    self.items.popleft()
            case verbs.Recalled():
                self._attach()

    def _append(self, bcast: int = 0) -> None:
        self.seq += 1
        self.order.append(f"m{self.seq}")
        self.items.append(Item(self.seq, self.order[-1], bcast))

    def _attach(self) -> None:
        """All that is in the mailbox goes out by the DEALER."""
        self.open = True
        self.acknowledged.clear()
        for item in self.items:
            item.bcast = 0
            item.resent = False
        for item in self.items:
            self._deliver(item)

    def _owed(self) -> list[Item]:
        return [item for item in self.items if item.bcast and item.bcast not in self.acknowledged]

    def _deliver(self, item: Item, bcast: int = 0) -> None:
        after = 0 if bcast else max((other.bcast for other in self.items), default=0)
        self.dealer.append(deliver(item.seq, bcast=bcast, after=after, msg_id=item.msg_id))

    def _publish(self, where: tuple[Scope, str], spared: tuple[int, ...]) -> None:
        channel = verbs.channel(*where)
        prev, self.prev[channel] = self.prev.get(channel, 0), self.bcast
        msg_id = "spared" if spared else self.items[-1].msg_id
        message = broadcast(self.bcast, prev, spared=spared, msg_ids=(msg_id,), scope=where[0], target=where[1])
        self.sub.append((channel, message))

    # the client

    def hear_dealer(self) -> None:
        match self.dealer.popleft():
            case Deliver() as message:
                self.buffer.deliver(message)
            case verbs.Beat() as message:
                self.buffer.beat(message)
            case verbs.Recall(generation, bcasts):
                self.buffer.recall(bcasts)
                self._taken_back()
                self._acknowledge()
                self.up.append(verbs.Recalled(generation))

    def hear_sub(self) -> None:
        self.buffer.broadcast(*self.sub.popleft())

    def _hand(self, batch: Batch, number: int) -> None:
        while self.order[self.place] in self.taken_ids:
            self.place += 1
        (msg_id,) = batch.msg_ids
        assert msg_id == self.order[self.place]
        self.place += 1
        self.in_hand.append((number, msg_id))

    def _taken_back(self) -> None:
        self.in_hand.clear()
        self.place = 0

    def take(self, which: int = 0) -> None:
        number, msg_id = self.in_hand.pop(which)
        assert msg_id not in self.taken
        self.taken.append(msg_id)
        self.taken_ids.add(msg_id)
        self.buffer.settle(number)

    def _acknowledge(self) -> None:
        if self.buffer.ack_due:
            self.up.append(self.buffer.ack())

    # what happens

    def step(self, name: str) -> None:
        match name.split():
            case ["direct"]:
                self.direct()
            case ["cast", channel]:
                self.cast(self.CHANNELS[int(channel)])
            case ["spare", channel]:
                self.cast(self.CHANNELS[int(channel)], spared=True)
            case ["alone", channel]:
                self.cast(self.CHANNELS[int(channel)], spared=True, others=False)
            case ["foreign", channel]:
                self.foreign(self.CHANNELS[int(channel)])
            case ["beat"]:
                self.beat()
            case ["recall"]:
                self.recall()
            case ["reconnect"]:
                self.reconnect()
            case ["hear"] if self.up:
                self.hear()
            case ["dealer"] if self.dealer:
                self.hear_dealer()
            case ["sub"] if self.sub:
                self.hear_sub()
            case ["lose"] if self.sub:
                self.sub.popleft()
            case ["take", which] if self.in_hand:
                self.take(int(which))
            case ["acknowledge"]:
                self._acknowledge()

    def settle_down(self) -> None:
        """Runs until nothing is under way. Then one BEAT of the broker must repair all losses."""
        self._calm()
        self.beat()
        self._calm()

    def _calm(self) -> None:
        while self.up or self.dealer or self.sub or self.in_hand or self.buffer.ack_due:
            for name in ("sub", "dealer", "take 0", "acknowledge", "hear"):
                self.step(name)


STEPS: Sequence[str] = (
    *("acknowledge", "acknowledge", "take 0", "take 0", "take 0", "take -1"),
    *("direct", "direct", "cast 0", "cast 0", "cast 0", "cast 1", "spare 0", "alone 0", "foreign 0", "foreign 1"),
    *("hear", "hear", "dealer", "dealer", "dealer", "sub", "sub", "sub", "lose", "lose", "beat"),
    *("recall", "reconnect"),
)


def test_model_loses_and_repairs():
    bus = Bus()
    for name in ("cast 0", "cast 0", "cast 0", "lose", "sub", "lose", "direct", "dealer"):
        bus.step(name)
    assert bus.taken == [] and bus.buffer.held == 2
    bus.settle_down()
    assert bus.taken == ["m1", "m2", "m3", "m4"] and not bus.items


@given(st.lists(st.sampled_from(STEPS), min_size=40, max_size=120))
def test_application_sees_the_mailboxs_order_and_each_message_once(steps):
    """That the order is right and nothing is acknowledged too early is asserted where it happens, in `Bus`."""
    bus = Bus()
    for name in steps:
        bus.step(name)
    bus.settle_down()
    assert sorted(bus.taken) == sorted(bus.order)
    assert not bus.items  # and all of it is acknowledged
    assert bus.buffer.held == bus.buffer.handed == 0


# --- batches


def test_batch_is_handed_out_whole_and_acknowledged_in_parts(client):
    assert client.dealer(deliver(1, 4), deliver(5, 2)) == directs(1, 2, 3, 4, 5, 6)
    assert client.sizes == [4, 2] and client.buffer.handed == 6
    assert client.take(*directs(1, 2)) == verbs.Ack(2, ())
    assert client.take(*directs(4)) is None
    assert client.take(*directs(3)) == verbs.Ack(4, ())
    assert client.take(*directs(5, 6)) == verbs.Ack(6, ())
    assert client.buffer.handed == 0 and not client.buffer._handed


def test_batch_taken_whole_is_acknowledged_whole(client):
    client.dealer(deliver(3, 5))
    client.dealer(deliver(8))
    client.buffer.settle(client.numbers["direct000003"], 5)
    assert client.ack() == verbs.Ack(7, ())
    client.buffer.settle(client.numbers["direct000008"], 1)
    assert client.ack() == verbs.Ack(8, ())


def test_messages_of_a_batch_taken_before_are_not_handed_out(client):
    for msg_id in directs(1, 2, 4):
        client.taken_ids.add(msg_id)
    assert client.dealer(deliver(1, 5)) == directs(3, 5)
    assert client.ack() == verbs.Ack(2, ())
    assert client.take(*directs(3)) == verbs.Ack(4, ())
    assert client.take(*directs(5)) == verbs.Ack(5, ())


def test_batch_given_back_is_settled_by_its_new_numbers_only(client):
    client.dealer(deliver(1, 4))
    client.take(*directs(1))
    old = dict(client.numbers)
    client.buffer.give_back()
    assert client.dealer(deliver(2, 3)) == directs(2, 3, 4)
    client.buffer.settle(old["direct000001"], 4)
    assert client.ack() is None and client.buffer.handed == 3
    assert client.take(*directs(2, 3, 4)) == verbs.Ack(4, ())


def test_ticket_numbers_out_of_range_settle_those_in_range(client):
    client.dealer(deliver(1, 3))
    first = client.numbers["direct000001"]
    client.buffer.settle(first + 3, 5)
    client.buffer.settle(first - 9, 3)
    client.buffer.settle(first, 0)
    assert client.ack() is None and client.buffer.handed == 3
    client.buffer.settle(first - 2, 3)  # reaches one
    assert client.ack() == verbs.Ack(1, ())
    client.buffer.settle(first + 2, 100)
    assert client.ack() is None
    client.dealer(deliver(4, 2))  # which are not settled
    client.buffer.settle(first + 1, 1)
    assert client.ack() == verbs.Ack(3, ()) and client.buffer.handed == 2


def test_numbers_settled_twice_are_not_kept(client):
    client.dealer(deliver(1, 5))
    first = client.numbers["direct000001"]
    client.buffer.settle(first + 2)
    client.buffer.settle(first, 5)
    assert client.ack() == verbs.Ack(5, ()) and not client.buffer._taken_numbers


@pytest.mark.parametrize("more", [{"msg_ids": ()}, {"bodies": ()}, {"msg_ids": (), "bodies": ()}])
def test_malformed_batch_is_ignored(client, more):
    assert client.dealer(deliver(1, 2)._replace(**more)) == []
    assert client.sub(broadcast(11, 0, 2)._replace(**more)) == []
    assert client.buffer.handed == client.buffer.held == 0 and client.sizes == []
    assert client.dealer(deliver(1)) == directs(1)
    assert client.sub(broadcast(11, 10)) == casts(11) and client.asked == []
    assert client.take(*directs(1)) == verbs.Ack(1, ())


BATCH_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("batch"), st.integers(1, 5)),
        st.tuples(st.just("settle"), st.tuples(st.integers(-2, 12), st.integers(0, 6))),
        st.tuples(st.just("cast"), st.booleans()),
        st.tuples(st.just("taken"), st.integers(1, 8)),
        st.tuples(st.sampled_from(("deliver", "ack", "back", "heal")), st.none()),
    ),
    max_size=40,
)


@given(BATCH_STEPS)
def test_batches_equal_single_messages(steps):
    batched, client = Client(), Client()
    seq, bcast, lost = 0, 10, 0
    for step, what in steps:
        if step == "batch":
            one = deliver(seq + 1, what, after=lost)
            seq += what
            assert batched.dealer(one) == client.dealer(*apart(one))
        elif step == "deliver":
            seq += 1
            assert batched.dealer(deliver(seq, after=lost)) == client.dealer(deliver(seq, after=lost))
        elif step == "taken":
            batched.taken_ids.add(f"direct{seq + what:06d}")
            client.taken_ids.add(f"direct{seq + what:06d}")
        elif step == "cast":
            bcast += 1
            if what and not lost:
                lost = bcast  # it does not come, and what follows waits for it
            else:
                cast = broadcast(bcast, prev=bcast - 1)
                assert batched.sub(cast) == client.sub(cast)
        elif step == "heal" and lost:
            assert batched.dealer(deliver(0, bcast=lost)) == client.dealer(deliver(0, bcast=lost))
            assert batched.dealer(beat(upto=bcast)) == client.dealer(beat(upto=bcast))
            lost = 0
        elif step == "settle":
            first = batched.buffer._first + what[0]
            batched.buffer.settle(first, what[1])
            for number in range(first, first + what[1]):
                client.buffer.settle(number)
        elif step == "back":
            batched.buffer.give_back()
            client.buffer.give_back()
        elif step == "ack":
            assert batched.ack() == client.ack()
        assert batched.numbers == client.numbers and batched.asked == client.asked
        assert (batched.buffer.handed, batched.buffer.held) == (client.buffer.handed, client.buffer.held)
        assert batched.buffer._taken_numbers == client.buffer._taken_numbers
        assert sum(several for _, _, several in batched.buffer._handed) == batched.buffer.handed
    assert batched.ack() == client.ack()


# --- batches of broadcasts


def test_published_batch_is_handed_out_whole_and_acknowledged_in_parts(client):
    assert client.sub(broadcast(11, 10, 4), broadcast(15, 14, 2)) == casts(11, 12, 13, 14, 15, 16)
    assert client.sizes == [4, 2] and client.buffer.handed == 6
    assert client.take(*casts(11, 12)) == verbs.Ack(0, (11, 12))
    assert client.take(*casts(14)) is None
    assert client.take(*casts(13)) == verbs.Ack(0, (13, 14))
    client.buffer.settle(client.numbers["bcast0000015"], 2)
    assert client.ack() == verbs.Ack(0, (15, 16))
    assert client.buffer.handed == 0 and not client.buffer._handed


def test_of_a_late_batch_only_messages_not_resent_are_handed_out(client):
    client.dealer(beat(11, 12))
    client.dealer(deliver(1, bcast=11))
    assert client.sub(broadcast(11, 0, 3)) == []  # 12 is asked for
    assert client.dealer(deliver(2, bcast=12)) == casts(12, 13)
    assert client.take(*casts(11, 12, 13)) == verbs.Ack(0, (11, 12, 13))


def test_held_message_goes_between_the_messages_of_a_batch(client):
    """It keeps its place between the broadcasts that it was sent between."""
    client.dealer(deliver(5, after=11))
    assert client.sub(broadcast(11, 0, 2)) == [*casts(11), *directs(5), *casts(12)]
    assert client.sizes == [1, 1, 1]


def test_of_a_batch_across_the_beginning_of_the_lease_only_later_messages_count(client):
    assert client.sub(broadcast(9, 8, 4)) == casts(11, 12)


def test_oldest_numbers_of_batches_are_forgotten(client, monkeypatch):
    monkeypatch.setattr(interval_set, "REMEMBERED", 5)
    for bcast in range(11, 41, 3):
        client.sub(broadcast(bcast, bcast - 1, 3))
    assert [number for number in range(60) if number in client.buffer._seen] == [36, 37, 38, 39, 40]


CHANNELS = ((Scope.ALL, ""), (Scope.TOPIC, "deploys"))
CAST_STEPS = st.lists(
    st.one_of(
        # its channel, how many, how many are missing before it on that channel, is it spared, and does it come
        st.tuples(
            st.sampled_from(("batch", "batch", "batch", "late", "foreign")),
            st.tuples(st.integers(0, 1), st.integers(1, 4), st.integers(0, 2), st.booleans()),
        ),
        st.tuples(st.just("settle"), st.tuples(st.integers(-2, 12), st.integers(0, 6))),
        st.tuples(st.just("taken"), st.integers(1, 8)),
        st.tuples(st.just("beat"), st.lists(st.integers(0, 12), max_size=4)),
        st.tuples(st.just("recall"), st.lists(st.integers(0, 12), max_size=4)),
        st.tuples(st.sampled_from(("deliver", "follow", "resend", "ack", "back", "begin")), st.none()),
    ),
    max_size=40,
)


@given(CAST_STEPS)
def test_batches_of_broadcasts_equal_single_ones(steps):
    batched, client = Client(), Client()
    bcast, seq, since, epoch = 10, 0, 10, "epoch"
    last_on = [0, 0]
    for step, what in steps:
        if step in ("batch", "late", "foreign"):
            which, count, missing, spared = what
            if step == "late":
                bcast = max(since, bcast - 3)  # it came by another way meanwhile, or has come once already
            first, prev = bcast + 1 + missing, last_on[which] if not missing else bcast + missing
            scope, target = CHANNELS[which]
            one = broadcast(first, prev, count, scope=scope, target=target, epoch="x" if step == "foreign" else epoch)
            if spared and not missing:
                one = one._replace(spared=(1, ME))
            bcast = last_on[which] = first + count - 1
            assert batched.sub(one) == client.sub(*apart(one))
        elif step in ("deliver", "follow"):
            seq += 1
            one_more = deliver(seq, after=bcast + 1 if step == "follow" else 0)
            assert batched.dealer(one_more) == client.dealer(one_more)
        elif step == "resend" and batched.asked:
            for number in batched.asked[-1]:
                again = deliver(0, bcast=number)
                assert batched.dealer(again) == client.dealer(again)
        elif step == "beat":
            owed = verbs.Beat(epoch, bcast, tuple(sorted({max(since, bcast - one) + 1 for one in what})))
            assert batched.dealer(owed) == client.dealer(owed)
        elif step == "taken":
            batched.taken_ids.add(f"bcast{bcast + what:07d}")
            client.taken_ids.add(f"bcast{bcast + what:07d}")
        elif step == "settle":
            number = batched.buffer._first + what[0]
            batched.buffer.settle(number, what[1])
            for one_of_them in range(number, number + what[1]):
                client.buffer.settle(one_of_them)
        elif step == "recall":
            for either in (batched, client):
                either.buffer.recall([bcast - one for one in what])
        elif step == "back":
            batched.buffer.give_back()
            client.buffer.give_back()
        elif step == "begin":
            epoch, since = f"{epoch}+", bcast
            for either in (batched, client):
                either.buffer.begin(welcome(epoch=epoch, bcast=since))
        elif step == "ack":
            assert batched.ack() == client.ack()
        assert batched.numbers == client.numbers and batched.asked == client.asked
        assert (batched.buffer.handed, batched.buffer.held) == (client.buffer.handed, client.buffer.held)
        assert batched.buffer._seen == client.buffer._seen
        assert batched.buffer._last_on == client.buffer._last_on
        assert batched.buffer._taken_numbers == client.buffer._taken_numbers
        assert sum(several for _, _, several in batched.buffer._handed) == batched.buffer.handed
    assert batched.ack() == client.ack()
