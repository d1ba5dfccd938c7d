"""The store in memory: numbers in order, whatever order they were put in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.broker.store import Entry, MemoryStore


def entry(number: int, segment: int = 1) -> Entry:
    return Entry(f"message{number:04d}", "s", "n", None, 0, "", 0, None, 1.0, 1, (segment, number, 9, 0), b"x")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def numbers(store: MemoryStore, box: str, after: int = 0, limit: int = 100) -> list[int]:
    return [number for number, _ in store.after(box, after, limit)]


def test_what_was_put_comes_in_order_of_its_number(store):
    for number in (5, 1, 3):
        store.put("box", number, entry(number))
    assert numbers(store, "box") == [1, 3, 5]
    assert numbers(store, "box", after=1) == [3, 5]
    assert numbers(store, "box", limit=2) == [1, 3]
    assert numbers(store, "box", after=5) == []
    assert store.after("box", 2, 1) == [(3, entry(3))]


def test_mailboxes_do_not_see_each_other(store):
    store.put("one", 1, entry(1))
    assert numbers(store, "two") == []
    store.remove("two", [1])
    assert store.total() == 1


def test_putting_or_removing_again_is_no_error(store):
    store.put("box", 1, entry(1))
    store.put("box", 1, entry(1))
    assert store.total() == 1
    store.remove("box", [1, 2])
    store.remove("box", [1])
    assert store.total() == 0 and not store._boxes
    store.commit()


def test_it_says_that_it_does_not_last(store):
    assert not store.durable


def test_the_oldest_segment_that_is_needed(store):
    assert store.oldest_segment() is None
    store.put("one", 1, entry(1, segment=7))
    store.put("two", 1, entry(2, segment=5))
    assert store.oldest_segment() == 5
    store.remove("two", [1])
    assert store.oldest_segment() == 7


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("ab"), st.integers(1, 9))))
def test_it_is_a_sorted_dictionary_for_each_mailbox(moves):
    store = MemoryStore()
    model: dict[str, set[int]] = {"a": set(), "b": set()}
    for put, box, number in moves:
        if put:
            store.put(box, number, entry(number))
            model[box].add(number)
        else:
            store.remove(box, [number])
            model[box].discard(number)
        assert store.total() == sum(map(len, model.values()))
        for name, expected in model.items():
            assert numbers(store, name) == sorted(expected)
            assert numbers(store, name, number, 2) == [n for n in sorted(expected) if n > number][:2]


def test_repr(store):
    store.put("box", 1, entry(1))
    assert repr(store) == "<MemoryStore: 1 messages in 1 mailboxes>"
