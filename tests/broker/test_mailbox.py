"""One mailbox: its order, its window, its credit, and what falls back when a consumer goes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmqbus.broker import mailbox
from zmqbus.broker.in_flight import Common, Item, Run, Tally
from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.storage.api import Entry
from zmqbus.testing.store import MemoryStore

NOW_S = 5.0


def entry(number: int = 0, size_bytes: int = 1, spilled: bool = False) -> Entry:
    body = b"" if spilled else bytes(size_bytes)
    return Entry(f"message{number:04d}", "s", "n", None, 0, "", 0, None, 1.0, 1.0, size_bytes, (1, number, 9, 0), body)


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
    item = box.append(entry(), NOW_S)
    assert box.window[-1] is item and not item.stored
    assert (box.total, store.total()) == (1, 0)


def test_a_closed_one_stores(store):
    box = Mailbox("key", store)
    item = box.append(entry(), NOW_S)
    assert item.stored and not box.window
    assert (box.total, store.total()) == (1, 1)


def test_acknowledgements_are_cumulative_and_free_what_was_stored(box, store):
    items = [box.append(entry(n), NOW_S) for n in range(4)]
    box.secure(items[1])
    box.secure(items[1])  # again is no error
    assert store.total() == 2  # it takes along what is before it
    assert seqs(box.acknowledge(3, ())) == [1, 2, 3]
    assert (box.total, box.total_bytes, store.total()) == (1, 1, 0)
    assert box.acknowledge(3, ()) == []
    assert box.acknowledge(-1, ()) == []
    assert seqs(box.acknowledge(2**64 - 1, ())) == [4]


def test_credit_by_number(box, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 3)
    items = [box.append(entry(n), NOW_S) for n in range(5)]
    assert [item.stored for item in items] == [True] * 5  # what is stored takes along all before it
    assert seqs(box.window) == [1, 2, 3]
    box.acknowledge(1, ())
    assert seqs(box.refill(NOW_S)) == [4]
    box.acknowledge(4, ())
    assert seqs(box.refill(NOW_S)) == [5]
    assert list(box.refill(NOW_S)) == []


def test_credit_by_size_lets_a_single_large_one_pass(box, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_BYTES", 1_000)
    first, second = (box.append(entry(n, 5_000), NOW_S) for n in range(2))
    assert list(box.window) == [first] and second.stored
    box.acknowledge(1, ())
    assert seqs(box.refill(NOW_S)) == [2]


def test_a_spilled_body_costs_next_to_no_credit_and_counts_in_full():
    spilled = entry(0, 1_000_000, spilled=True)
    assert spilled.spilled and spilled.credit_bytes == 200
    box = Mailbox("key", MemoryStore())
    box.append(spilled, NOW_S)
    assert box.total_bytes == 1_000_000


def test_nothing_overtakes_the_backlog(box, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 1)
    box.append(entry(0), NOW_S)
    box.append(entry(1), NOW_S)
    box.acknowledge(1, ())
    late = box.append(entry(2), NOW_S)
    assert late.stored
    assert not box.may_send(entry()) and not box.may_publish(entry())
    assert seqs(box.refill(NOW_S)) == [2]


def test_what_comes_out_of_the_store_has_been_told(box, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 1)
    box.append(entry(0), NOW_S)
    box.append(entry(1), NOW_S)
    box.acknowledge(1, ())
    (item,) = box.refill(NOW_S + 7)
    assert item.told and item.stored and item.accepted_s == NOW_S + 7


# --- broadcasts


def test_a_broadcast_is_published_only_while_nothing_is_under_way_by_dealer(box):
    assert box.may_publish(entry())
    box.append(entry(0), NOW_S, bcast=7)
    assert box.may_publish(entry()) and box.after == 7
    box.append(entry(1), NOW_S)
    assert not box.may_publish(entry())
    box.acknowledge(0, (7,))
    assert box.after == 0 and not box.may_publish(entry())
    box.acknowledge(2, ())
    assert box.may_publish(entry())


def test_broadcasts_are_acknowledged_by_name_and_leave_in_order(box):
    for number in (7, 8, 9):
        box.append(entry(number), NOW_S, bcast=number)
    assert box.acknowledge(3, (8,)) == []  # a cumulative number says nothing about broadcasts
    assert [item.bcast for item in box.owed()] == [7, 9]
    assert [item.bcast for item in box.acknowledge(0, (7,))] == [7, 8]
    assert [item.bcast for item in box.acknowledge(0, (9, 9, 1000))] == [9]
    assert box.owed() == [] and not box._taken_bcasts and not box._published


def test_mailboxes_share_what_is_empty_and_nothing_else(box, store):
    """What is not there yet is one object for all of them, which must stay empty."""
    other = mailbox.Mailbox("other", store)
    other.open = True
    box.append(entry(0), NOW_S, bcast=7)
    box.append(entry(1), NOW_S, bcast=8)
    box.acknowledge(0, (8,))
    assert not other.window and not other._published and not other._taken_bcasts
    other.append(entry(0), NOW_S, bcast=9)
    assert [item.bcast for item in box.owed()] == [7] and [item.bcast for item in other.owed()] == [9]
    box.acknowledge(0, (7,))
    other.close()
    fresh = mailbox.Mailbox("fresh", store)
    assert not fresh.window and not fresh._published and not fresh._taken_bcasts
    assert box._published is fresh._published  # and what was needed once is let go


def test_a_directed_message_waits_in_the_window_for_the_broadcast_before_it(box):
    box.append(entry(0), NOW_S, bcast=7)
    box.append(entry(1), NOW_S)
    assert box.acknowledge(2, ()) == []
    assert seqs(box.acknowledge(2, (7,))) == [1, 2]


# --- the consumer goes


def test_the_window_falls_back_and_comes_again_from_the_start(box, store):
    box.append(entry(0), NOW_S, bcast=7)
    box.append(entry(1), NOW_S).told = True
    box.append(entry(2), NOW_S)
    assert seqs(box.close()) == [1, 3]  # nobody has been told of these
    assert not box.open and not box.window and box.after == 0 and store.total() == 3
    box.append(entry(3), NOW_S)
    assert list(box.refill(NOW_S)) == []
    box.open = True
    again = list(box.refill(NOW_S))
    assert seqs(again) == [1, 2, 3, 4] and [item.bcast for item in again] == [0, 0, 0, 0]
    box.acknowledge(4, ())
    assert (box.total, box.total_bytes, store.total()) == (0, 0, 0)


def test_drain_empties_it(store):
    box = Mailbox("key", store)
    for number in range(3):
        box.append(entry(number), NOW_S)
    assert [item.entry.msg_id[-1] for item in box.drain()] == ["0", "1", "2"]
    assert (box.total, box.total_bytes, store.total()) == (0, 0, 0)


def test_full(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 2)
    monkeypatch.setattr(mailbox, "MAX_BYTES", 10)
    box = Mailbox("key", MemoryStore())
    assert not box.full(10) and box.full(11)
    box.append(entry(0, 4), NOW_S)
    assert not box.full(6) and box.full(7)
    box.append(entry(1, 4), NOW_S)
    assert box.full(0)


def test_what_is_on_its_way_through_the_journal_is_part_of_its_load(box):
    box.append(entry(), NOW_S)
    box.reserve(10, 3)
    assert (box.total, box.load, box.awaits) == (1, 4, True)
    box.release(10, 3)
    assert (box.load, box.awaits) == (1, False)


def test_oldest(box):
    assert box.oldest_s() is None
    box.append(entry(0), 3.0)
    box.append(entry(1), 4.0)
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
                box.append(entry(appended), NOW_S)
                appended += 1
            elif move == "publish" and box.may_publish(entry()):
                box.append(entry(appended), NOW_S, bcast=appended + 1)
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
                box.secure(box.window[0])
            if box.open:
                list(box.refill(NOW_S))
            assert len(box.window) <= 3
            assert box.total == len(box.window) + box._backlog == box.total_bytes == appended - len(left)
            assert store.total() >= box._backlog
        assert left == list(range(1, len(left) + 1))


# --- runs


def run(first: int, sizes: list[int], *, bcast: int = 0) -> Run:
    entries = [entry(first + place, size) for place, size in enumerate(sizes)]
    return Run(
        Common("s", "n", None, 0, "", 0, 1.0, 1.0),
        tuple(one.msg_id for one in entries),
        tuple(one.body for one in entries),
        tuple(one.pointer for one in entries),
        b"",
        sum(sizes),
        bcast,
        [Tally(one.msg_id, "s", b"", 2) for one in entries] if bcast else (),
    )


def test_a_run_is_under_way_and_not_stored(box, store):
    assert box.room(run(0, [1, 2, 3])) == 3
    box.append_run(run(0, [1, 2, 3]), NOW_S)
    assert (box.total, box.total_bytes, store.total(), box.window_bytes) == (3, 6, 0, 606)
    assert not box.may_publish(entry())
    assert box.oldest_s() == box.last_append_s == NOW_S


def test_what_is_stored_behind_a_run_takes_it_along(store):
    box = Mailbox("key", store)
    box.open = True
    box.append_run(run(0, [1, 1]), NOW_S)
    box.open = False
    assert box.append(entry(2), NOW_S).stored
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
        (9, 603, 0, [500, 1, 1], 0),
        (9, 902, 0, [500, 1, 1], 2),
        (9, 900, 0, [1, 500, 1, 1], 1),
        (9, 901, 0, [1, 500, 1, 1], 2),
    ],
)
def test_there_is_room_for_as_many_as_credit_allows(
    box, monkeypatch, credit_messages, credit_bytes, before, sizes, room
):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", credit_messages)
    monkeypatch.setattr(mailbox, "CREDIT_BYTES", credit_bytes)
    for number in range(before):
        assert not box.append(entry(number), NOW_S).stored
    assert box.room(run(before, sizes)) == room


def test_there_is_no_room_where_messages_wait_nor_where_nobody_reads(box, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 1)
    box.append(entry(0), NOW_S)
    box.append(entry(1), NOW_S)
    box.acknowledge(1, ())
    assert box.room(run(2, [1])) == 0
    list(box.refill(NOW_S))
    box.acknowledge(2, ())
    assert box.room(run(2, [1])) == 1
    box.close()
    assert box.room(run(2, [1])) == 0


def test_a_run_leaves_as_far_as_it_is_acknowledged(box, store):
    box.append(entry(0), NOW_S)
    box.append_run(run(1, [1, 2, 3]), NOW_S)
    box.append(entry(4), NOW_S)
    first, part = box.acknowledge(3, ())
    assert (first.seq, list(part.msg_ids)) == (1, ["message0001", "message0002"])
    assert (box.total, box.total_bytes, box.window_bytes) == (2, 4, 404)
    assert box.acknowledge(3, ()) == []
    rest, last = box.acknowledge(99, ())
    assert (list(rest.msg_ids), last.seq) == (["message0003"], 5)
    assert (box.total, box.total_bytes, box.window_bytes, store.total()) == (0, 0, 0, 0)


def test_a_run_waits_for_the_broadcast_before_it(box):
    box.append(entry(0), NOW_S, bcast=7)
    box.append_run(run(1, [1, 1]), NOW_S)
    assert box.after == 7
    assert box.acknowledge(3, ()) == []
    cast, both = box.acknowledge(3, (7,))
    assert (cast.bcast, len(both)) == (7, 2)


def test_a_published_run_is_acknowledged_by_its_numbers_and_leaves_in_order(box, store):
    assert box.may_publish_run(run(0, [1, 2, 3], bcast=7))
    box.append_run(run(0, [1, 2, 3], bcast=7), NOW_S)
    assert (box.after, box.owed_numbers()) == (9, (7, 8, 9))
    assert (box.total, box.total_bytes, box.window_bytes, store.total()) == (3, 6, 606, 0)
    assert box.acknowledge(99, ()) == []  # that is said of what has come by DEALER
    assert box.acknowledge(0, (8, 9, 99)) == []
    assert (box.owed_numbers(), box.after) == ((7,), 9)
    (taken,) = box.acknowledge(0, (7, 8))
    assert list(taken.msg_ids) == ["message0000", "message0001", "message0002"]
    assert (box.after, box.owed_numbers(), box.total, box.window_bytes) == (0, (), 0, 0)


def test_a_published_run_leaves_as_far_as_it_is_acknowledged(box):
    box.append_run(run(0, [1, 2, 3, 4], bcast=7), NOW_S)
    (first,) = box.acknowledge(0, (7, 9))
    assert (list(first.msg_ids), first.bcast, len(first.tallies)) == (["message0000"], 7, 1)
    assert (box.owed_numbers(), box.total, box.total_bytes) == ((8, 10), 3, 9)
    (middle,) = box.acknowledge(0, (8,))
    assert (middle.bcast, [tally.msg_id for tally in middle.tallies]) == (8, ["message0001", "message0002"])
    assert [item.bcast for item in box.owed()] == [10]
    (last,) = box.acknowledge(0, (10,))
    assert (last.bcast, last.tally.msg_id, box.total) == (10, "message0003", 0)


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
def test_a_run_is_published_only_where_each_of_it_would_be(box, monkeypatch, before, allowed):
    if before == "published":
        box.append(entry(0), NOW_S, bcast=1)
    elif before == "another channel":
        box.append(entry(0)._replace(scope=3, target="deploys"), NOW_S, bcast=1)
    elif before == "by dealer":
        box.append(entry(0), NOW_S)
    elif before == "backlog":
        with monkeypatch.context() as patch:
            patch.setattr(mailbox, "CREDIT_MESSAGES", 0)
            box.append(entry(0), NOW_S)
    elif before == "nobody":
        box.close()
    assert box.may_publish_run(run(1, [1, 1], bcast=2)) == box.may_publish(entry(1)) == allowed


@pytest.mark.parametrize(
    ("credit_messages", "credit_bytes", "allowed"),
    [(4, 10_000, True), (3, 10_000, False), (9, 804, True), (9, 803, False)],
)
def test_a_run_is_published_as_a_whole_or_not(box, monkeypatch, credit_messages, credit_bytes, allowed):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", credit_messages)
    monkeypatch.setattr(mailbox, "CREDIT_BYTES", credit_bytes)
    box.append(entry(0), NOW_S, bcast=1)  # each weighs 201
    assert box.may_publish_run(run(1, [1, 1, 1], bcast=2)) == allowed


@pytest.mark.parametrize("taken", [(), (8,)])
def test_what_is_owed_of_a_published_run_falls_back(box, store, taken):
    box.append_run(run(0, [1, 2, 3], bcast=7), NOW_S)
    box.acknowledge(0, taken)
    untold = box.close()
    assert [(item.bcast, item.tally.msg_id) for item in untold] == [
        (7 + place, f"message000{place}") for place in range(3)
    ]
    assert (box.after, box.owed_numbers(), store.total()) == (0, (), 3)
    box.open = True
    assert [(item.seq, item.bcast) for item in box.refill(NOW_S)] == [(1, 0), (2, 0), (3, 0)]
    assert box.acknowledge(0, (7, 8, 9)) == []  # those numbers are of another connection
    assert told(box.acknowledge(3, ())) == ["message0000", "message0001", "message0002"]


def test_mailboxes_share_the_tallies_of_a_run_and_nothing_else(store):
    first, second = Mailbox("first", store), Mailbox("second", store)
    several = run(0, [1, 1], bcast=7)
    for box in (first, second):
        box.open = True
        box.append_run(several.twin(), NOW_S)
    (done,) = first.acknowledge(0, (7,))
    assert (len(first.window), len(second.window)) == (1, 2)
    (other,) = second.acknowledge(0, (7, 8))
    assert isinstance(done, Run) and isinstance(other, Run)
    assert done.tallies[0] is other.tallies[0] and len(other.tallies) == 2
    assert first.owed()[0].tally is other.tallies[1]


def shape(box: Mailbox, store: MemoryStore) -> tuple[object, ...]:
    """All that anybody can see of a mailbox without taking a run apart."""
    return (
        (len(box.window), box.total, box.total_bytes, box.window_bytes, box.after, box.oldest_s(), box.last_append_s),
        (box.full(1), box.may_send(entry()), box.may_publish(entry()), box.window.oldest_segment()),
        (box.may_publish(OTHER), box.owed_numbers()),
        store.after("key", 0, 1000),
    )


#: On another channel than all the rest.
OTHER = entry()._replace(scope=3, target="deploys")


def told(settled: list[Item | Run]) -> list[str]:
    return [msg_id for one in settled for msg_id in (one.msg_ids if isinstance(one, Run) else (one.entry.msg_id,))]


MOVES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(("run", "cast", "cast")), st.lists(st.integers(0, 300), min_size=1, max_size=7)),
        st.tuples(st.just("named"), st.lists(st.integers(0, 9), max_size=7)),
        st.tuples(
            st.sampled_from(("append", "publish", "ack", "close", "open", "secure", "refill", "expire", "owed")),
            st.integers(0, 9),
        ),
    ),
    max_size=30,
)


@settings(max_examples=200)
@given(MOVES)
def test_runs_change_nothing_but_how_often_something_is_done(moves):
    """The same messages, once as runs and once one by one: the same is under way, stored, settled and dropped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mailbox, "CREDIT_MESSAGES", 6)
        patch.setattr(mailbox, "CREDIT_BYTES", 1500)
        stores = MemoryStore(), MemoryStore()
        boxes = in_runs, one_by_one = Mailbox("key", stores[0]), Mailbox("key", stores[1])
        count = 0
        for now_s, (move, what) in enumerate(moves, 1):
            if move == "run":
                several = run(count, what)
                entries = list(several.entries())
                room = in_runs.room(several)
                ready = several.take(room) if room < len(several) else several
                if room:
                    in_runs.append_run(ready, now_s)
                if ready is not several:
                    for one in several.entries():
                        in_runs.append(one, now_s)
                for one in entries:
                    one_by_one.append(one, now_s)
                count += len(what)
            elif move == "cast":
                several = run(count, what, bcast=count + 1)
                if in_runs.may_publish_run(several):
                    for number, one in enumerate(several.entries(), count + 1):
                        assert one_by_one.may_publish(one)
                        one_by_one.append(one, now_s, bcast=number)
                    in_runs.append_run(several, now_s)
                    count += len(what)
            elif move == "named":  # some of what is under way, and what is not, in any order, and twice
                owed = [*in_runs.owed_numbers(), 99_999]
                picked = [owed[place % len(owed)] for place in what]
                assert told(in_runs.acknowledge(0, picked)) == told(one_by_one.acknowledge(0, picked))
            elif move == "append":
                for box in boxes:
                    box.append(entry(count), now_s)
                count += 1
            elif move == "publish":
                if in_runs.may_publish(entry()):
                    for box in boxes:
                        box.append(entry(count), now_s, bcast=count + 1)
                    count += 1
            elif move == "ack":
                up_to = in_runs._seq - in_runs.total + what
                numbers = tuple(range(count + 1)) if what % 2 else ()
                assert told(in_runs.acknowledge(up_to, numbers)) == told(one_by_one.acknowledge(up_to, numbers))
            elif move == "close":
                assert [one.entry for one in in_runs.close()] == [one.entry for one in one_by_one.close()]
            elif move == "open":
                in_runs.open = one_by_one.open = True
            elif move == "secure":
                for box in boxes:
                    if len(box.window) > what:
                        box.secure(box.window[what])
                    elif what > 7:
                        box.secure()
            elif move == "refill":
                assert [one.entry for one in in_runs.refill(now_s)] == [one.entry for one in one_by_one.refill(now_s)]
            elif move == "expire":
                assert in_runs.expire(what) == one_by_one.expire(what)
            elif move == "owed":
                assert [one.bcast for one in in_runs.owed()] == [one.bcast for one in one_by_one.owed()]
            assert shape(in_runs, stores[0]) == shape(one_by_one, stores[1])
        for box in boxes:
            box.close()
        assert shape(in_runs, stores[0]) == shape(one_by_one, stores[1])


def test_repr(box):
    item = box.append(entry(1), NOW_S, bcast=3)
    assert repr(box) == "<Mailbox key open: 1 under way, 0 behind>"
    assert repr(item) == "<Item 1 message0001 published as 3>"
    assert repr(Tally("m", "s", b"", 2)) == "<Tally m: 0 delivered, 0 queued, 2 open>"


def test_what_has_left_of_published_runs_is_not_owed_nor_under_way(box):
    box.append_run(run(0, [1, 2], bcast=7), NOW_S)
    box.append_run(run(2, [1, 2, 3], bcast=9), NOW_S)
    assert [len(piece) for piece in box.acknowledge(0, (7, 8, 9))] == [2, 1]
    assert box.owed_numbers() == (10, 11) and box.after == 11
    assert box._published == {10, 11}
    box.acknowledge(0, (10, 11))
    assert not box._published and box.after == 0
