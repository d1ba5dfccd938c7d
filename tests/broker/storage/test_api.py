"""What every store does: one suite, for the one in memory and for the one on the disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.broker.storekit import Bench, awaited, refusal, session
from zmqbus.broker.storage.api import Awaited, Box, Entry, Owed, Refusal, SessionRow, StoreError
from zmqbus.broker.storage.sqlite import Database
from zmqbus.testing.store import MemoryStore
from zmqbus.wire.verbs import SPILL_BYTES, Format

KINDS = ("memory", "database")


class Kept:
    """A store of either kind, and what the next broker finds of it."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.bench = Bench(directory)
        self.store: MemoryStore | Database = MemoryStore() if kind == "memory" else self.bench.open()

    def reopen(self) -> MemoryStore | Database:
        """The broker ends, and another one comes."""
        if isinstance(self.store, MemoryStore):
            self.store.close()
        else:
            self.store.close()
            self.store = self.bench.open()
            assert self.store.notices == []
        return self.store

    def close(self) -> None:
        self.store.close()
        self.bench.journal.close()


@pytest.fixture(params=KINDS)
def kept(request, tmp_path) -> Iterator[Kept]:
    kept = Kept(request.param, tmp_path / "data")
    yield kept
    kept.close()


@pytest.fixture
def store(kept) -> MemoryStore | Database:
    return kept.store


@pytest.fixture
def entry(kept):
    return kept.bench.entry


def numbers(store: MemoryStore | Database, box: str, after: int = 0, limit: int = 100) -> list[int]:
    return [number for number, _ in store.after(box, after, limit)]


# --- messages


def test_what_was_put_comes_in_order_of_its_number(store, entry):
    entries = {number: entry() for number in (5, 1, 3)}
    for number, made in entries.items():
        store.put("box", number, made)
    for _ in ("before the commit", "after it"):
        assert numbers(store, "box") == [1, 3, 5]
        assert numbers(store, "box", after=1) == [3, 5]
        assert numbers(store, "box", limit=2) == [1, 3]
        assert numbers(store, "box", after=5) == []
        assert store.after("box", 2, 1) == [(3, entries[3])]
        store.commit()


@pytest.mark.parametrize(
    ("body", "fmt"),
    [
        (b"", Format.TEXT),
        ("tä\n\0xt \u2028 \U0001f600".encode(), Format.TEXT),
        (bytes(range(256)), Format.BYTES),
        (b"\x93\x01\x02\x03", Format.MSGPACK),
        (b"x" * SPILL_BYTES, Format.TEXT),
        (b"x" * (SPILL_BYTES + 1), Format.TEXT),
    ],
    ids=["empty", "text", "bytes", "msgpack", "long", "spilled"],
)
def test_an_entry_comes_back_as_it_was(kept, entry, body, fmt):
    made = entry(body, fmt=Format.BYTES if fmt == Format.MSGPACK else fmt)._replace(fmt=fmt)
    kept.store.put("box", 1, made)
    kept.store.commit()
    assert kept.store.after("box", 0, 9) == [(1, made)]
    ((_, found),) = kept.reopen().after("box", 0, 9)
    assert found == made and found.spilled is (len(body) > SPILL_BYTES)
    assert type(found.pointer[0]) is int and type(found.ts) is float


def test_one_that_has_no_label_and_answers_nothing(kept, entry):
    made = entry()._replace(from_label=None, reply_to=None)
    kept.store.put("box", 1, made)
    kept.store.commit()
    assert kept.reopen().after("box", 0, 9) == [(1, made)]


def test_that_it_was_said_before_is_not_kept(store, entry):
    made = entry()
    store.put("box", 1, made._replace(repeated=True))
    assert store.after("box", 0, 1) == [(1, made)]


def test_mailboxes_do_not_see_each_other(store, entry):
    store.put("one", 1, entry())
    assert numbers(store, "two") == []
    store.remove("two", [1])
    store.commit()
    assert numbers(store, "one") == [1] and numbers(store, "two") == []
    assert store.total() == 1


@pytest.mark.parametrize("commits", [False, True])
def test_putting_or_removing_again_is_no_error(store, entry, commits):
    made = entry()

    def step() -> None:
        if commits:
            store.commit()

    store.put("box", 1, made)
    step()
    store.put("box", 1, made)
    step()
    assert store.total() == 1
    store.remove("box", [1, 2])
    step()
    store.remove("box", [1])
    store.remove("box", [])
    step()
    assert store.total() == 0 and numbers(store, "box") == []
    store.put("box", 1, made)
    step()
    assert store.total() == 1 and store.after("box", 0, 9) == [(1, made)]


def test_a_number_below_those_that_are_there(store, entry):
    store.put("box", 9, entry())
    store.commit()
    store.put("box", 4, entry())
    assert store.total() == 2 and numbers(store, "box") == [4, 9]
    store.commit()
    assert numbers(store, "box") == [4, 9]


def test_what_is_put_in_the_place_of_another_replaces_it(kept, entry):
    first, second = entry(), entry()
    kept.store.put("box", 1, first)
    kept.store.commit()
    kept.store.put("box", 1, second)
    assert kept.store.after("box", 0, 9) == [(1, second)] and kept.store.total() == 1
    kept.store.commit()
    assert kept.reopen().after("box", 0, 9) == [(1, second)]


@pytest.mark.parametrize("commits", [False, True])
def test_what_is_replaced_and_removed_is_gone(kept, entry, commits):
    kept.store.put("box", 1, entry())
    kept.store.commit()
    kept.store.put("box", 1, entry())
    if commits:
        kept.store.commit()
    kept.store.remove("box", [1])
    assert kept.store.total() == 0 and numbers(kept.store, "box") == []
    kept.store.commit()
    assert numbers(kept.reopen(), "box") == []


def test_removed_and_put_again_before_a_commit(kept, entry):
    kept.store.put("box", 1, entry())
    kept.store.commit()
    second = entry()
    kept.store.remove("box", [1])
    kept.store.put("box", 1, second)
    assert kept.store.total() == 1 and kept.store.after("box", 0, 9) == [(1, second)]
    kept.store.commit()
    assert kept.reopen().after("box", 0, 9) == [(1, second)] and kept.store.total() == 1


def test_many_in_pages(kept, entry):
    made = {number: entry(b"%d" % number) for number in range(1, 501)}
    for number, one in made.items():
        kept.store.put("box", number, one)
        if number == 300:
            kept.store.commit()
    kept.store.remove("box", range(100, 200))
    kept.store.remove("box", [1, 500])
    expected = [number for number in made if not 100 <= number < 200 and number not in (1, 500)]
    for store in (kept.store, None, None):
        if store is None:
            kept.store.commit()
            store = kept.reopen()
        assert store.total() == len(expected)
        seq, found = 0, []
        while page := store.after("box", seq, 70):
            assert len(page) <= 70
            found += page
            seq = page[-1][0]
        assert found == [(number, made[number]) for number in expected]


def test_the_oldest_segment_that_is_needed(store, entry):
    def at(segment: int) -> Entry:
        made = entry()
        return made._replace(pointer=(segment, *made.pointer[1:]))

    assert store.oldest_segment() is None
    store.put("one", 1, at(7))
    store.put("two", 1, at(5))
    assert store.oldest_segment() == 5
    store.commit()
    assert store.oldest_segment() == 5
    store.remove("two", [1])
    assert store.oldest_segment() == 5  # until it is committed, the next broker may find it there
    store.commit()
    assert store.oldest_segment() == 7
    store.put("one", 1, at(9))
    assert store.oldest_segment() == 7
    store.commit()
    assert store.oldest_segment() == 9
    store.remove("one", [1])
    assert store.oldest_segment() == 9
    store.commit()
    assert store.oldest_segment() is None


def test_who_holds_what_is_too_old(store, entry):
    store.put("old", 1, entry(accepted_s=10.0))
    store.put("new", 1, entry(accepted_s=20.0))
    store.put("both", 1, entry(accepted_s=20.0))
    store.put("both", 2, entry(accepted_s=10.0))
    for _ in ("before the commit", "after it"):
        assert store.stale(10.0) == []
        assert sorted(store.stale(10.5)) == ["both", "old"]
        store.commit()
    store.remove("old", [1])
    store.put("both", 2, entry(accepted_s=30.0))
    store.put("new", 2, entry(accepted_s=5.0))
    for _ in ("before the commit", "after it"):
        assert sorted(store.stale(15.0)) == ["new"]
        store.commit()


# --- what the next broker finds


def test_nothing_at_first(store):
    assert store.recover(10) == ([], [], [], [], [])
    assert store.total() == 0 and not store.pending


def test_what_was_committed_is_found(kept, entry):
    made = [entry(b"x" * size) for size in (1, 20, 300, 4000)]
    store = kept.store
    store.put("one", 3, made[0])
    store.put("two", 1, made[1])
    store.put("one", 4, made[2])
    store.put("gone", 1, made[3])
    store.commit()
    store.remove("gone", [1])
    store.commit()
    found = kept.reopen().recover(10)
    assert sorted(found.boxes) == [Box("one", 2, 301, 4), Box("two", 1, 20, 1)]
    assert found.owed == [
        Owed(key, one.msg_id, one.from_session, one.scope)
        for key, one in (("one", made[0]), ("two", made[1]), ("one", made[2]))
    ]
    assert kept.store.recover(2).owed == found.owed[1:]
    assert kept.store.total() == 3


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("persistent", [False, True])
def test_left_and_persistent_are_kept_independently(kept, left, persistent):
    row = session(left=left, persistent=persistent)
    kept.store.save_session(row)
    kept.store.commit()
    assert kept.reopen().recover(9).sessions == [row]


def test_what_was_not_committed_is_dropped(kept, entry):
    kept.store.put("box", 1, entry())
    kept.store.save_session(session())
    kept.store.save_awaited(awaited("m"))
    kept.store.save_refusal(refusal(1))
    assert kept.store.pending
    assert kept.reopen().recover(9) == ([], [], [], [], [])
    assert kept.store.total() == 0 and not kept.store.pending


def test_removals_that_were_not_committed_are_undone(kept, entry):
    made = entry()
    kept.store.put("box", 1, made)
    kept.store.save_session(session())
    kept.store.commit()
    kept.store.remove("box", [1])
    kept.store.forget_session("s1")
    assert kept.reopen().after("box", 0, 9) == [(1, made)]
    assert kept.store.recover(9).sessions == [session()]


@pytest.mark.parametrize("commits", [False, True])
def test_sessions(kept, commits):
    def step() -> None:
        if commits:
            kept.store.commit()

    changed = session("s1", name="other", away_since_s=None, left=False, label=None, topics=(), groups=('"q",',))
    kept.store.save_session(session("s1"))
    kept.store.save_session(session("s2"))
    kept.store.save_session(session("s3"))
    step()
    kept.store.save_session(changed)
    kept.store.forget_session("s2")
    kept.store.forget_session("nobody")
    kept.store.forget_session("s3")
    kept.store.save_session(session("s3"))
    kept.store.commit()
    found = kept.reopen().recover(9).sessions
    assert sorted(found) == [changed, session("s3")]
    assert [(type(row), type(row.left), type(row.topics)) for row in found] == [(SessionRow, bool, tuple)] * 2


@pytest.mark.parametrize("commits", [False, True])
def test_awaited_answers(kept, commits):
    for msg_id in "abc":
        kept.store.save_awaited(awaited(msg_id))
    if commits:
        kept.store.commit()
    kept.store.forget_awaited(["a", "nothing"])
    kept.store.save_awaited(Awaited("b", "another", "x"))
    kept.store.commit()
    found = kept.reopen().recover(9).awaited
    assert sorted(found) == [Awaited("b", "another", "x"), awaited("c")]
    assert all(type(one) is Awaited for one in found)


def test_refusals_come_oldest_first_and_bounded(kept):
    for number in range(50):
        kept.store.save_refusal(refusal(number))
        if number % 7 == 0:
            kept.store.commit()
    kept.store.commit()
    found = kept.reopen().recover(20).refusals
    assert found == [refusal(number) for number in range(30, 50)]
    assert all(type(one) is Refusal for one in found)


def test_a_refusal_that_is_said_again_is_one(kept):
    kept.store.save_refusal(refusal(1))
    kept.store.commit()
    kept.store.save_refusal(refusal(1, "another reason"))
    kept.store.commit()
    assert kept.reopen().recover(20).refusals == [refusal(1, "another reason")]


# --- the disk


def test_whether_there_is_anything_to_commit(store, entry):
    def settled() -> None:
        assert store.pending
        store.commit()
        assert not store.pending
        store.commit()

    assert not store.pending
    store.put("box", 1, entry())
    settled()
    store.remove("box", [1])
    settled()
    store.save_session(session())
    settled()
    store.forget_session("s1")
    settled()
    store.save_awaited(awaited("m"))
    settled()
    store.forget_awaited(["m"])
    settled()
    store.save_refusal(refusal(1))
    settled()
    store.after("box", 0, 10)
    assert not store.pending


def fail(store: MemoryStore | Database, reason: str | None) -> None:
    """Makes the commits of a store fail, or go well again."""
    if isinstance(store, MemoryStore):
        store.fails = reason
    else:
        # A page less than it has: SQLite says what it says of a full disk.
        store._db.execute(f"PRAGMA max_page_count = {1 if reason else 1 << 30}")


def test_a_commit_that_fails_loses_nothing(kept, entry):
    store = kept.store
    first = entry()
    store.put("box", 1, first)
    store.commit()
    fail(store, "disk full")
    more = {number: entry(b"x" * 200) for number in range(2, 200)}
    for number, one in more.items():
        store.put("box", number, one._replace(target="t" * 200))
    store.remove("box", [1])
    store.save_session(session(cwd="c" * 5000))
    for _ in range(3):
        with pytest.raises(StoreError, match=r"disk .*full|disk full|database or disk is full"):
            store.commit()
        assert store.pending
        assert numbers(store, "box", limit=999) == list(more) and store.total() == len(more)
    fail(store, None)
    store.commit()
    assert not store.pending
    store = kept.reopen()
    assert store.after("box", 0, 999) == [(n, one._replace(target="t" * 200)) for n, one in more.items()]
    assert store.recover(9).sessions == [session(cwd="c" * 5000)]


def test_the_death_after_a_failed_commit_leaves_what_was_committed(kept, entry):
    first = entry()
    kept.store.put("box", 1, first)
    kept.store.commit()
    fail(kept.store, "disk full")
    for number in range(2, 200):
        kept.store.put("box", number, entry()._replace(target="t" * 200))
    kept.store.remove("box", [1])
    with pytest.raises(StoreError):
        kept.store.commit()
    assert kept.reopen().after("box", 0, 9) == [(1, first)]


@pytest.mark.parametrize("kind", KINDS)
@given(moves=st.lists(st.tuples(st.sampled_from("prc"), st.sampled_from("ab"), st.integers(1, 9)), max_size=40))
def test_it_is_a_sorted_dictionary_for_each_mailbox(kind, moves):
    with tempfile.TemporaryDirectory(prefix="zb-store-") as name:
        kept = Kept(kind, Path(name))
        store = kept.store
        model: dict[str, dict[int, Entry]] = {"a": {}, "b": {}}
        for move, box, number in moves:
            if move == "p":
                store.put(box, number, made := kept.bench.entry())
                model[box][number] = made
            elif move == "r":
                store.remove(box, range(number, number + number % 3 + 1))
                for gone in range(number, number + number % 3 + 1):
                    model[box].pop(gone, None)
            else:
                store.commit()
            assert store.total() == sum(map(len, model.values()))
            for key, expected in model.items():
                assert store.after(key, 0, 99) == sorted(expected.items())
                assert store.after(key, number, 2) == sorted((n, e) for n, e in expected.items() if n > number)[:2]
        kept.close()


def test_closing_twice_is_no_error(kept):
    kept.store.close()
    kept.store.close()
