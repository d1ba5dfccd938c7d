"""What is under way: runs, their parts, and the order of both."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.broker.in_flight import Common, Item, Run, Tally, Window
from zmqbus.broker.storage.api import FIELDS_BYTES, Entry
from zmqbus.wire.verbs import Scope

COMMON = Common("sender-id", "alice", "Älice", 0, "", 0, 17.5, 3.5)


def run(count: int, seq: int = 1, *, size_bytes: int = 3, segment: int = 1) -> Run:
    """A run whose first message is `seq`, as a mailbox makes it."""
    numbers = range(seq, seq + count)
    one = Run(
        COMMON,
        tuple(f"message{number:05d}" for number in numbers),
        tuple(bytes([number % 256]) * size_bytes for number in numbers),
        tuple((segment, number, 9, 0) for number in numbers),
        b"route",
        count * size_bytes,
    )
    one.seq, one.accepted_s = seq, 8.0
    return one


def item(seq: int, segment: int = 1) -> Item:
    entry = Entry(f"message{seq:05d}", "s", "n", None, 0, "", 0, None, 1.0, 1.0, 1, (segment, seq, 9, 0), b"x")
    return Item(seq, entry, 8.0)


def ids(one: Item | Run) -> list[str]:
    return list(one.msg_ids) if isinstance(one, Run) else [one.entry.msg_id]


def named(*seqs: int) -> list[str]:
    return [f"message{seq:05d}" for seq in seqs]


def published(count: int, seq: int = 1, *, bcast: int = 20) -> Run:
    """A run of broadcasts, whose first has this number."""
    one = run(count, seq)
    one.bcast = bcast
    one.tallies = [Tally(msg_id, one.sender_id, one.origin, 1) for msg_id in one.msg_ids]
    return one


# --- a run


def test_each_message_of_a_run_is_what_it_would_have_been_by_itself():
    for number, entry in enumerate(run(3, 7).entries(), 7):
        assert entry == Entry(
            f"message{number:05d}",
            "sender-id",
            "alice",
            "Älice",
            Scope.SESSION,
            "",
            0,
            None,
            17.5,
            3.5,
            3,
            (1, number, 9, 0),
            bytes([number]) * 3,
        )
        assert not entry.repeated and not entry.spilled


def test_its_items_go_on_from_its_number_and_answer_where_it_did():
    one = run(3, 7)
    items = one.apart()
    assert [found.seq for found in items] == [7, 8, 9]
    assert {(found.accepted_s, found.origin, found.sender_id) for found in items} == {(8.0, b"route", "sender-id")}
    assert not any(found.told or found.due or found.stored or found.bcast for found in items)


def test_it_weighs_what_its_messages_do():
    one = run(5, size_bytes=100)
    assert one.weight_bytes == sum(entry.credit_bytes for entry in one.entries()) == 5 * (100 + FIELDS_BYTES)
    assert one.size_bytes == 500


def test_what_stands_for_a_message_is_the_run_until_it_is_apart():
    one = run(3)
    assert one.of("message00002") is one
    items = one.apart()
    assert [one.of(msg_id) for msg_id in named(1, 2, 3)] == items


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 50))
def test_the_first_ones_can_be_taken_off(count, taken, size_bytes):
    whole = list(run(count, 4, size_bytes=size_bytes).entries())
    rest = run(count, 4, size_bytes=size_bytes)
    first = rest.take(taken)
    taken = min(taken, count)
    assert (len(first), len(rest)) == (taken, count - taken)
    assert [*first.entries(), *rest.entries()] == whole
    assert (first.seq, rest.seq) == (4, 4 + taken) or taken == count  # nothing is left that has a number
    assert (first.size_bytes, rest.size_bytes) == (taken * size_bytes, (count - taken) * size_bytes)
    assert (first.accepted_s, first.origin) == (rest.accepted_s, rest.origin) == (8.0, b"route")


# --- the window


def test_the_first_ones_of_a_published_run_take_their_numbers_and_tallies_along():
    whole = published(4, 7)
    tallies = list(whole.tallies)
    first = whole.take(1)
    assert (first.bcast, first.tallies) == (20, tallies[:1])
    assert (whole.bcast, whole.seq, whole.tallies) == (21, 8, tallies[1:])
    assert [(item.bcast, item.tally) for item in whole.apart()] == [
        (21, tallies[1]),
        (22, tallies[2]),
        (23, tallies[3]),
    ]


def test_a_twin_is_the_same_for_another_mailbox():
    whole = published(3, 7)
    twin = whole.twin()
    twin.seq, twin.accepted_s = 90, 9.0
    twin.take(2)
    assert (whole.seq, whole.accepted_s, len(whole), whole.bcast, whole.size_bytes) == (7, 8.0, 3, 20, 9)
    assert (twin.seq, twin.bcast, twin.size_bytes, list(twin.msg_ids)) == (92, 22, 3, named(9))
    assert twin.tallies[0] is whole.tallies[2]
    assert [one.entry for one in twin.apart()] == list(whole.entries())[2:]


def test_which_numbers_were_published_is_known_without_taking_anything_apart():
    window = Window()
    window.append(Item(1, item(1).entry, 8.0, bcast=20))
    window.append_run(published(3, 2, bcast=24))
    window.append_run(run(2, 5))
    window.append(item(7))
    assert list(window.bcasts()) == [20, 24, 25, 26]
    assert len(window._pieces) == 4
    assert [one.bcast for one in window] == [20, 24, 25, 26, 0, 0, 0]
    assert list(window.bcasts()) == [20, 24, 25, 26]


def test_an_item_is_made_for_each_when_somebody_looks():
    window = Window()
    window.append(item(1))
    window.append_run(run(3, 2))
    window.append(item(5))
    window.append_run(run(2, 6))
    assert len(window) == 7
    assert repr(window) == "<Window of 7 in 4>"
    assert [one.seq for one in window] == [1, 2, 3, 4, 5, 6, 7]
    assert repr(window) == "<Window of 7 in 7>"
    assert list(window) == list(window)  # they are the same objects from then on
    assert window[3].seq == 4 and window[-1].seq == 7


def test_to_ask_for_the_oldest_takes_nothing_apart():
    window = Window()
    first = run(3)
    window.append_run(first)
    window.append(item(4))
    assert window.oldest is first and len(window) == 4
    assert repr(window) == "<Window of 4 in 2>"


def test_the_first_of_the_oldest_run_leave_and_the_rest_stays_one():
    window = Window()
    window.append_run(run(5))
    window.append(item(6))
    gone = window.pop_run(2)
    assert ids(gone) == named(1, 2) and len(window) == 4
    assert ids(window.oldest) == named(3, 4, 5)
    assert ids(window.pop_run(99)) == named(3, 4, 5)  # no further than the run goes
    assert window.popleft().seq == 6
    assert not window
    assert repr(window) == "<Window of 0 in 0>"


def test_an_item_leaves_only_by_itself_and_a_run_only_as_one():
    window = Window()
    window.append_run(run(2))
    with pytest.raises(AssertionError):
        window.popleft()
    window = Window()
    window.append(item(1))
    with pytest.raises(AssertionError):
        window.pop_run(1)


def test_what_is_apart_counts_no_run_any_more():
    """Or each look would go through all of it again."""
    window = Window()
    window.append_run(run(2))
    first = list(window)
    window.append(item(3))
    assert window._apart() is window._apart()
    assert list(window)[:2] == first
    window.append_run(run(2, 4))
    assert [one.seq for one in window] == [1, 2, 3, 4, 5] and list(window)[:2] == first


def test_the_oldest_segment_is_that_of_whatever_points_the_farthest_back():
    window = Window()
    assert window.oldest_segment() is None
    window.append(item(1, segment=4))
    window.append_run(run(3, 2, segment=3))
    assert window.oldest_segment() == 3
    list(window)
    assert window.oldest_segment() == 3
    torn = run(2, 5)
    torn.pointers = ((2, 0, 9, 0), (5, 0, 9, 0))  # the journal went on to another one in the middle
    window.append_run(torn)
    assert window.oldest_segment() == 2


moves = st.lists(
    st.one_of(
        st.just(("item", 1)),
        st.tuples(st.just("run"), st.integers(1, 6)),
        st.tuples(st.just("pop"), st.integers(1, 4)),
        st.tuples(st.sampled_from(("look", "index")), st.just(1)),
    ),
    max_size=40,
)


@given(moves)
def test_whatever_it_is_asked_its_messages_stay_in_order(moves: list[tuple[str, Any]]) -> None:
    window = Window()
    last = 0
    there: list[str] = []
    for move, number in moves:
        if move == "item":
            last += 1
            window.append(item(last))
            there += named(last)
        elif move == "run":
            window.append_run(run(number, last + 1))
            there += named(*range(last + 1, last + 1 + number))
            last += number
        elif move == "pop" and window:
            oldest = window.oldest
            gone = window.pop_run(oldest.seq + number - 1) if isinstance(oldest, Run) else window.popleft()
            assert ids(gone) == there[: len(ids(gone))]
            del there[: len(ids(gone))]
        elif move == "look":
            assert [one.entry.msg_id for one in window] == there
        elif move == "index" and window:
            assert window[-1].entry.msg_id == there[-1]
        assert len(window) == len(there) and bool(window) == bool(there)
        assert window._runs == sum(isinstance(piece, Run) for piece in window._pieces)
        if there:
            assert ids(window.oldest)[0] == there[0]


def test_repr():
    one = run(3, 4)
    assert repr(one) == "<Run of 3 from 4 on>"
    one.apart()
    assert repr(one) == "<Run of 3 from 4 on, apart>"
