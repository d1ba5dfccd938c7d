"""Behaviour of every store: one suite for the durable one and for the one in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.broker.storekit import Bench, awaited, refusal, session
from zmqbus.broker.storage.api import Awaited, Box, Entry, Owed, Refusal, SessionRow, StoreError
from zmqbus.broker.storage.sqlite import SqliteStore
from zmqbus.testing.store import MemoryStore
from zmqbus.wire.verbs import SPILL_BYTES, Format

KINDS = ("memory", "database")


class Kept:
    """A store of either kind that can be reopened."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.bench = Bench(directory)
        self.store: MemoryStore | SqliteStore = MemoryStore() if kind == "memory" else self.bench.open()

    def reopen(self) -> MemoryStore | SqliteStore:
        """Opens the store as the next broker does."""
        if isinstance(self.store, MemoryStore):
            self.store.close()
        else:
            self.store.close()
            self.store = self.bench.open()
            assert self.store.notices == []
        return self.store

    def close(self) -> None:
        self.store.close()
        self.store.close()  # idempotent
        self.bench.journal.close()


def with_long_target(one: Entry) -> Entry:
    """An entry whose row fills more of a page."""
    return one._replace(header=one.header._replace(target="t" * 200))


@pytest.fixture(params=KINDS)
def kept(request, tmp_path) -> Iterator[Kept]:
    kept = Kept(request.param, tmp_path / "data")
    yield kept
    kept.close()


@pytest.fixture
def store(kept) -> MemoryStore | SqliteStore:
    return kept.store


@pytest.fixture
def entry(kept):
    return kept.bench.entry


def numbers(store: MemoryStore | SqliteStore, box: str, after: int = 0, limit: int = 100) -> list[int]:
    return [number for number, _ in store.after(box, after, limit)]


# --- messages


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
def test_entries_are_returned_unchanged(kept, entry, body, fmt):
    made = entry(body, fmt=Format.BYTES if fmt == Format.MSGPACK else fmt)
    made = made._replace(header=made.header._replace(fmt=fmt))
    kept.store.put("box", 1, made)
    kept.store.commit()
    assert kept.store.after("box", 0, 9) == [(1, made)]
    ((_, found),) = kept.reopen().after("box", 0, 9)
    assert found == made and found.spilled is (len(body) > SPILL_BYTES)
    assert type(found.pointer[0]) is int and type(found.header.ts) is float


def test_optional_fields_may_be_missing(kept, entry):
    made = entry()
    made = made._replace(header=made.header._replace(from_label=None, reply_to=None))
    kept.store.put("box", 1, made)
    kept.store.commit()
    assert kept.reopen().after("box", 0, 9) == [(1, made)]


def test_the_mark_of_a_repeat_is_not_kept(store, entry):
    made = entry()
    store.put("box", 1, made._replace(repeated=True))
    assert store.after("box", 0, 1) == [(1, made)]


def test_paging_through_many_entries(kept, entry):
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


def test_oldest_needed_segment(store, entry):
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
    assert store.oldest_segment() == 5  # a broker that restarts before the commit needs it
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


def test_mailboxes_with_stale_messages(store, entry):
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


# --- recovery


def test_a_new_store_is_empty(store):
    assert store.recover(10) == ([], [], [], [], [])
    assert store.total() == 0 and not store.pending


def test_committed_messages_are_recovered(kept, entry):
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
        Owed(key, one.msg_id, one.header.from_session, one.header.scope)
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


def test_uncommitted_changes_are_dropped(kept, entry):
    kept.store.put("box", 1, entry())
    kept.store.save_session(session())
    kept.store.save_awaited(awaited("m"))
    kept.store.save_refusal(refusal(1))
    assert kept.store.pending
    assert kept.reopen().recover(9) == ([], [], [], [], [])
    assert kept.store.total() == 0 and not kept.store.pending


def test_uncommitted_removals_are_undone(kept, entry):
    made = entry()
    kept.store.put("box", 1, made)
    kept.store.save_session(session())
    kept.store.commit()
    kept.store.remove("box", [1])
    kept.store.forget_session("s1")
    assert kept.reopen().after("box", 0, 9) == [(1, made)]
    assert kept.store.recover(9).sessions == [session()]


@pytest.mark.parametrize("commits", [False, True])
def test_sessions_are_recovered(kept, commits):
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
def test_awaited_answers_are_recovered(kept, commits):
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


def test_the_newest_refusals_are_recovered_in_order(kept):
    for number in range(50):
        kept.store.save_refusal(refusal(number))
        if number % 7 == 0:
            kept.store.commit()
    kept.store.save_refusal(refusal(49, "another reason"))
    kept.store.commit()
    found = kept.reopen().recover(20).refusals
    assert found == [*(refusal(number) for number in range(30, 49)), refusal(49, "another reason")]
    assert all(type(one) is Refusal for one in found)


# --- the disk


def test_pending_changes(store, entry):
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


def fail(store: MemoryStore | SqliteStore, reason: str | None) -> None:
    """Makes the commits of a store fail, or succeed again."""
    if isinstance(store, MemoryStore):
        store.fails = reason
    else:
        # With fewer pages than the file has, SQLite fails as on a full disk.
        store._db.execute(f"PRAGMA max_page_count = {1 if reason else 1 << 30}")


def test_a_failed_commit_loses_nothing(kept, entry):
    store = kept.store
    first = entry()
    store.put("box", 1, first)
    store.commit()
    fail(store, "disk full")
    more = {number: entry(b"x" * 200) for number in range(2, 200)}
    for number, one in more.items():
        store.put("box", number, with_long_target(one))
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
    assert store.after("box", 0, 999) == [(n, with_long_target(one)) for n, one in more.items()]
    assert store.recover(9).sessions == [session(cwd="c" * 5000)]


def test_a_crash_after_a_failed_commit_keeps_earlier_commits(kept, entry):
    first = entry()
    kept.store.put("box", 1, first)
    kept.store.commit()
    fail(kept.store, "disk full")
    for number in range(2, 200):
        kept.store.put("box", number, with_long_target(entry()))
    kept.store.remove("box", [1])
    with pytest.raises(StoreError):
        kept.store.commit()
    assert kept.reopen().after("box", 0, 9) == [(1, first)]


@pytest.mark.parametrize("kind", KINDS)
@given(moves=st.lists(st.tuples(st.sampled_from("prc"), st.sampled_from("ab"), st.integers(1, 9)), max_size=40))
def test_a_mailbox_is_a_sorted_dictionary(kind, moves):
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
        store.commit()
        store = kept.reopen()
        assert all(store.after(key, 0, 99) == sorted(expected.items()) for key, expected in model.items())
        kept.close()
