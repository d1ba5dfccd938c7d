"""One mailbox: its order, its window, its credit, and what falls back when a consumer goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.broker import mailbox
from zmqbus.broker.in_flight import Batch, BroadcastProgress, InFlight, Stage
from zmqbus.broker.mailbox import Mailbox
from zmqbus.testing.store import MemoryStore
from zmqbus.wire.verbs import Header

NOW_S = 5.0


HEADER = Header("s", "n", None, 0, "", 0, None, 1.0)


def message(number: int = 0, size_bytes: int = 1, *, spilled: bool = False) -> Batch:
    body = b"" if spilled else bytes(size_bytes)
    return Batch(HEADER, (f"message{number:04d}",), (body,), ((1, number, 9, 0),), 1.0, size_bytes)


def several(first: int, sizes: list[int], *, published: bool = False) -> Batch:
    """Messages with these sizes in one batch."""
    ids = tuple(f"message{first + place:04d}" for place in range(len(sizes)))
    pointers = [(1, first + place, 9, 0) for place in range(len(sizes))]
    batch = Batch(HEADER, ids, tuple(map(bytes, sizes)), pointers, 1.0, sum(sizes))
    if published:
        batch.progress = [BroadcastProgress(msg_id, 2) for msg_id in ids]
    return batch


def put(box: Mailbox, batch: Batch, now_s: float, *, bcast: int = 0) -> InFlight:
    """Puts messages in that stay in one piece; returns that."""
    (piece,) = (piece for piece in box.append(batch, now_s, bcast=bcast) if piece is not None)
    return piece


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def box(store: MemoryStore) -> Mailbox:
    box = Mailbox("key", store)
    box.open = True
    return box


def seqs(items) -> list[int]:
    return [item.seq for item in items]


def test_an_open_one_sends_at_once_and_stores_nothing(box, store):
    item = put(box, message(), NOW_S)
    assert list(box.window) == [item] and not item.stored
    assert (box.total, store.total()) == (1, 0)


def test_a_closed_one_stores(store):
    box = Mailbox("key", store)
    item = put(box, message(), NOW_S)
    assert item.stored and not box.window
    assert (box.total, store.total()) == (1, 1)


def test_acknowledgements_are_cumulative_and_free_what_was_stored(box, store):
    items = [put(box, message(n), NOW_S) for n in range(4)]
    box.secure(items[1])
    box.secure(items[1])  # again is no error
    assert store.total() == 2  # storing one stores all before it
    assert seqs(box.acknowledge(3, ())) == [1, 2, 3]
    assert (box.total, box.total_bytes, store.total()) == (1, 1, 0)
    assert box.acknowledge(3, ()) == []
    assert box.acknowledge(-1, ()) == []
    assert seqs(box.acknowledge(2**64 - 1, ())) == [4]


def test_credit_by_number(box, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 3)
    items = [put(box, message(n), NOW_S) for n in range(5)]
    assert [item.stored for item in items] == [True] * 5  # storing one stores all before it
    assert seqs(box.window) == [1, 2, 3]
    box.acknowledge(1, ())
    assert seqs(box.refill(NOW_S)) == [4]
    box.acknowledge(4, ())
    assert seqs(box.refill(NOW_S)) == [5]
    assert list(box.refill(NOW_S)) == []


def test_credit_by_size_lets_a_single_large_one_pass(box, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_BYTES", 1_000)
    first, second = (put(box, message(n, 5_000), NOW_S) for n in range(2))
    assert list(box.window) == [first] and second.stored
    box.acknowledge(1, ())
    assert seqs(box.refill(NOW_S)) == [2]


def test_a_spilled_body_costs_next_to_no_credit_and_counts_in_full():
    spilled = message(0, 1_000_000, spilled=True)
    box = Mailbox("key", MemoryStore())
    piece = put(box, spilled, NOW_S)
    assert spilled.spilled and piece.weight_bytes == 200
    assert box.total_bytes == 1_000_000


def test_nothing_overtakes_the_backlog(box, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 1)
    put(box, message(0), NOW_S)
    put(box, message(1), NOW_S)
    box.acknowledge(1, ())
    late = put(box, message(2), NOW_S)
    assert late.stored
    assert not box.room(message()) and not box.publishable(message())
    assert seqs(box.refill(NOW_S)) == [2]


def test_message_from_the_store_counts_as_reported(box, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 1)
    put(box, message(0), NOW_S)
    put(box, message(1), NOW_S)
    box.acknowledge(1, ())
    (item,) = box.refill(NOW_S + 7)
    assert item.told and item.stored and item.accepted_s == NOW_S + 7


# --- broadcasts


def test_a_broadcast_is_published_only_while_nothing_is_under_way_by_dealer(box):
    assert box.publishable(message())
    put(box, message(0), NOW_S, bcast=7)
    assert box.publishable(message()) and box.after == 7
    put(box, message(1), NOW_S)
    assert not box.publishable(message())
    box.acknowledge(0, (7,))
    assert box.after == 0 and not box.publishable(message())
    box.acknowledge(2, ())
    assert box.publishable(message())


def test_broadcasts_are_acknowledged_by_name_and_leave_in_order(box):
    for number in (7, 8, 9):
        put(box, message(number), NOW_S, bcast=number)
    assert box.acknowledge(3, (8,)) == []  # a cumulative number says nothing about broadcasts
    assert box.owed() == (7, 9)
    assert [piece.bcast for piece in box.acknowledge(0, (7,))] == [7, 8]
    assert [item.bcast for item in box.acknowledge(0, (9, 9, 1000))] == [9]
    assert box.owed() == () and not box._taken_bcasts and not box._published


def test_mailboxes_share_empty_collections_only(box, store):
    """All empty mailboxes share one window and one set, which must stay empty."""
    other = mailbox.Mailbox("other", store)
    other.open = True
    put(box, message(0), NOW_S, bcast=7)
    put(box, message(1), NOW_S, bcast=8)
    box.acknowledge(0, (8,))
    assert not other.window and not other._published and not other._taken_bcasts
    put(other, message(0), NOW_S, bcast=9)
    assert box.owed() == (7,) and other.owed() == (9,)
    box.acknowledge(0, (7,))
    other.close()
    fresh = mailbox.Mailbox("fresh", store)
    assert not fresh.window and not fresh._published and not fresh._taken_bcasts
    assert box._published is fresh._published  # and what was needed once is let go


def test_a_directed_message_waits_in_the_window_for_the_broadcast_before_it(box):
    put(box, message(0), NOW_S, bcast=7)
    put(box, message(1), NOW_S)
    assert box.acknowledge(2, ()) == []
    assert seqs(box.acknowledge(2, (7,))) == [1, 2]


# --- the consumer goes


def test_the_window_falls_back_and_comes_again_from_the_start(box, store):
    put(box, message(0), NOW_S, bcast=7)
    second = put(box, message(1), NOW_S)
    put(box, message(2), NOW_S)
    box.secure(second)
    second.enter(Stage.TOLD)
    assert seqs(box.close()) == [1, 3]  # nobody has been told of these
    assert not box.open and not box.window and box.after == 0 and store.total() == 3
    put(box, message(3), NOW_S)
    assert list(box.refill(NOW_S)) == []
    box.open = True
    again = list(box.refill(NOW_S))
    assert seqs(again) == [1, 2, 3, 4] and [item.bcast for item in again] == [0, 0, 0, 0]
    box.acknowledge(4, ())
    assert (box.total, box.total_bytes, store.total()) == (0, 0, 0)


def test_drain_empties_it(store):
    box = Mailbox("key", store)
    for number in range(3):
        put(box, message(number), NOW_S)
    assert [entry.msg_id[-1] for entry in box.drain()] == ["0", "1", "2"]
    assert (box.total, box.total_bytes, store.total()) == (0, 0, 0)


def test_full(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 2)
    monkeypatch.setattr(mailbox, "MAX_BYTES", 10)
    box = Mailbox("key", MemoryStore())
    assert not box.full(10) and box.full(11)
    put(box, message(0, 4), NOW_S)
    assert not box.full(6) and box.full(7)
    put(box, message(1, 4), NOW_S)
    assert box.full(0)


def test_load_includes_messages_being_journaled(box):
    put(box, message(), NOW_S)
    box.reserve(10, 3)
    assert (box.total, box.load, box.is_expecting) == (1, 4, True)
    box.release(10, 3)
    assert (box.load, box.is_expecting) == (1, False)


def test_oldest(box):
    assert box.oldest_s() is None
    put(box, message(0), 3.0)
    put(box, message(1), 4.0)
    assert box.oldest_s() == 3.0


steps = st.lists(st.tuples(st.sampled_from(("append", "publish", "ack", "close", "open", "secure")), st.integers(1, 9)))


@given(steps)
def test_whatever_happens_each_message_leaves_once_and_in_order(moves):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mailbox, "CREDIT_MESSAGES", 3)
        store = MemoryStore()
        box = Mailbox("key", store)
        left: list[int] = []
        appended = 0
        for move, number in moves:
            if move == "append":
                put(box, message(appended), NOW_S)
                appended += 1
            elif move == "publish" and box.publishable(message()):
                put(box, message(appended), NOW_S, bcast=appended + 1)
                appended += 1
            elif move == "ack":
                taken = [item for item in list(box.window)[:number]]
                direct = [item.seq for item in taken if not item.bcast]
                left += seqs(box.acknowledge(max(direct, default=0), [item.bcast for item in taken if item.bcast]))
            elif move == "close":
                box.close()
            elif move == "open":
                box.open = True
            elif move == "secure" and box.window:
                box.secure(box.window.oldest)
            if box.open:
                list(box.refill(NOW_S))
            assert len(box.window) <= 3
            assert box.total == len(box.window) + box._backlog == box.total_bytes == appended - len(left)
            assert store.total() >= box._backlog
        assert left == list(range(1, len(left) + 1))


# --- several in one batch


def test_a_batch_is_in_flight_and_not_stored(box, store):
    put(box, several(0, [1, 2, 3]), NOW_S)
    assert (box.total, box.total_bytes, store.total(), box.window_bytes) == (3, 6, 0, 606)
    assert not box.publishable(message())
    assert box.oldest_s() == box.last_append_s == NOW_S


def test_a_message_that_is_stored_takes_the_batch_before_it_along(store):
    box = Mailbox("key", store)
    box.open = True
    put(box, several(0, [1, 1]), NOW_S)
    box.open = False
    assert put(box, message(2), NOW_S).stored
    assert [seq for seq, _ in store.after("key", 0, 9)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("credit_messages", "credit_bytes", "before", "sizes", "room"),
    [
        (3, 10_000, 0, [1] * 5, 3),
        (3, 10_000, 2, [1] * 5, 1),
        (3, 10_000, 3, [1] * 5, 0),
        (9, 602, 0, [1, 1, 1], 2),  # each weighs 201
        (9, 603, 0, [1, 1, 1], 3),
        (9, 603, 1, [1, 1, 1], 2),
        (9, 603, 0, [500, 1, 1], 1),  # the first may be larger than all credit
        (9, 603, 1, [500, 1, 1], 0),
        (9, 902, 0, [500, 1, 1], 2),
        (9, 900, 0, [1, 500, 1, 1], 1),
        (9, 901, 0, [1, 500, 1, 1], 2),
    ],
)
def test_a_batch_is_sent_as_far_as_credit_goes(
    box, store, monkeypatch, credit_messages, credit_bytes, before, sizes, room
):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", credit_messages)
    monkeypatch.setattr(mailbox, "CREDIT_BYTES", credit_bytes)
    for number in range(before):
        assert not put(box, message(number), NOW_S).stored
    batch = several(before, sizes)
    assert box.room(batch) == box.publishable(batch) + (room if before else 0) == room
    sent, stored = box.append(batch, NOW_S)
    assert (sent.count if sent else 0) == room and (stored.count if stored else 0) == len(sizes) - room
    assert store.total() == (before + len(sizes) if stored else 0)  # stored, and all before it
    assert box.total == before + len(sizes)


def test_there_is_no_room_where_messages_wait_or_nobody_reads(box, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 1)
    put(box, message(0), NOW_S)
    put(box, message(1), NOW_S)
    box.acknowledge(1, ())
    assert box.room(several(2, [1, 1])) == 0
    list(box.refill(NOW_S))
    box.acknowledge(2, ())
    assert box.room(several(2, [1, 1])) == 1
    box.close()
    assert box.room(several(2, [1, 1])) == 0


def test_a_batch_leaves_as_far_as_it_is_acknowledged(box, store):
    put(box, message(0), NOW_S)
    put(box, several(1, [1, 2, 3]), NOW_S)
    put(box, message(4), NOW_S)
    first, part = box.acknowledge(3, ())
    assert (first.seq, list(part.msg_ids)) == (1, ["message0001", "message0002"])
    assert (box.total, box.total_bytes, box.window_bytes) == (2, 4, 404)
    assert box.acknowledge(3, ()) == []
    rest, last = box.acknowledge(99, ())
    assert (list(rest.msg_ids), last.seq) == (["message0003"], 5)
    assert (box.total, box.total_bytes, box.window_bytes, store.total()) == (0, 0, 0, 0)


def test_a_published_batch_leaves_as_far_as_it_is_acknowledged(box):
    put(box, several(0, [1, 2, 3, 4], published=True), NOW_S, bcast=7)
    assert (box.after, box.owed(), box.total_bytes) == (10, (7, 8, 9, 10), 10)
    assert box.acknowledge(99, ()) == []  # a cumulative number says nothing about broadcasts
    (first,) = box.acknowledge(0, (7, 9, 99))
    assert (list(first.msg_ids), first.bcast) == (["message0000"], 7)
    assert (box.owed(), box.total, box.total_bytes) == ((8, 10), 3, 9)
    (middle,) = box.acknowledge(0, (8,))
    assert (middle.bcast, [one.msg_id for one in middle.progress]) == (8, ["message0001", "message0002"])
    assert box._published == {10}
    (last,) = box.acknowledge(0, (10,))
    assert (last.bcast, box.total, box.after, box._published) == (10, 0, 0, set())


@pytest.mark.parametrize(
    ("before", "allowed"),
    [
        ("nothing", True),
        ("published", True),
        ("another channel", False),
        ("by dealer", False),
        ("backlog", False),
        ("nobody", False),
    ],
)
def test_a_batch_is_published_only_where_each_of_its_messages_would_be(box, monkeypatch, before, allowed):
    if before == "published":
        put(box, message(0), NOW_S, bcast=1)
    elif before == "another channel":
        other = message(0)
        other.header = HEADER._replace(scope=3, target="deploys")
        put(box, other, NOW_S, bcast=1)
    elif before == "by dealer":
        put(box, message(0), NOW_S)
    elif before == "backlog":
        with monkeypatch.context() as patch:
            patch.setattr(mailbox, "CREDIT_MESSAGES", 0)
            put(box, message(0), NOW_S)
    elif before == "nobody":
        box.close()
    assert (box.publishable(several(1, [1, 1])), box.publishable(message(1))) == ((2, 1) if allowed else (0, 0))


@pytest.mark.parametrize(
    ("credit_messages", "credit_bytes", "count"),
    [(4, 10_000, 3), (3, 10_000, 2), (9, 804, 3), (9, 803, 2)],
)
def test_credit_holds_for_published_batches(box, monkeypatch, credit_messages, credit_bytes, count):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", credit_messages)
    monkeypatch.setattr(mailbox, "CREDIT_BYTES", credit_bytes)
    put(box, message(0), NOW_S, bcast=1)  # each weighs 201
    assert box.publishable(several(1, [1, 1, 1])) == count


@pytest.mark.parametrize("taken", [(), (8,)])
def test_a_published_batch_falls_back_without_its_numbers(box, store, taken):
    put(box, several(0, [1, 2, 3], published=True), NOW_S, bcast=7)
    box.acknowledge(0, taken)
    (untold,) = box.close()
    assert [one.msg_id for one in untold.progress] == ["message0000", "message0001", "message0002"]
    assert (box.after, box.owed(), store.total()) == (0, (), 3)
    box.open = True
    assert [(piece.seq, piece.bcast) for piece in box.refill(NOW_S)] == [(1, 0), (2, 0), (3, 0)]
    assert box.acknowledge(0, (7, 8, 9)) == []  # those numbers are of another connection
    assert [piece.seq for piece in box.acknowledge(3, ())] == [1, 2, 3]


def test_broadcasts_are_sent_again_once(box):
    put(box, several(0, [1, 2, 3], published=True), NOW_S, bcast=7)
    put(box, several(3, [1, 1], published=True), NOW_S, bcast=12)
    box.acknowledge(0, (8,))

    def again(upto: int) -> list[tuple[int, str]]:
        return [(number, piece.msg_ids[at]) for number, piece, at in box.unsent(upto)]

    assert again(6) == []
    assert again(9) == [(7, "message0000"), (9, "message0002")]
    assert again(9) == []
    assert again(10_000) == [(12, "message0003"), (13, "message0004")]
    put(box, message(5), NOW_S, bcast=14)
    assert again(14) == [(14, "message0005")]  # not counted as sent again for the number that was named before
    box.close()
    box.open = True
    list(box.refill(NOW_S))
    box.acknowledge(6, ())
    put(box, message(6), NOW_S, bcast=15)
    assert again(15) == [(15, "message0006")]


def test_mailboxes_share_a_batch_and_split_it_each_for_itself(store):
    first, second = Mailbox("first", store), Mailbox("second", store)
    batch = several(0, [1, 1], published=True)
    for box in (first, second):
        box.open = True
        put(box, batch, NOW_S, bcast=7)
    (done,) = first.acknowledge(0, (7,))
    assert (len(first.window), len(second.window)) == (1, 2)
    (other,) = second.acknowledge(0, (7, 8))
    assert done.progress[0] is other.progress[0] and len(other.progress) == 2


def test_repr(box):
    piece = put(box, message(1), NOW_S, bcast=3)
    assert repr(box) == "<Mailbox key open: 1 in flight, 0 behind>"
    assert repr(piece) == "<InFlight of 1 from 1 published as 3, unstored>"
