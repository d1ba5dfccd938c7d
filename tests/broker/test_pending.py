"""What is alike of all that a wake has staged, and what becomes of it behind the journal."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmqbus.broker.events import Instant
from zmqbus.broker.pending import Several, Single, Staged, StagedRun, entry_of, gathered, run_of
from zmqbus.journal.record import Record
from zmqbus.wire.verbs import INLINE_BYTES, MAX_ENVELOPE_MESSAGES, SPILL_BYTES, Format, Pointer, Scope

NOW = Instant(5.0, 1_700_000_000.0, 1_700_000_009.0)
ALICE: Any = SimpleNamespace(route=b"alice", sender_id="alice-id")
ANNA: Any = SimpleNamespace(route=b"anna", sender_id="anna-id")
BOB: Any = SimpleNamespace(name="bob")
CAROL: Any = SimpleNamespace(name="carol")


def said(number: int = 0, *, body: bytes = b"x", ts: float = 17.5, name: str = "alice", **more: Any) -> Staged:
    """A message of Alice's to Bob."""
    fields: dict[str, Any] = {"scope": 0, "target": "bob", "fmt": 0, "reply_to": None, "again": False}
    send = Single(f"message{number:04d}", **(fields | {key: more.pop(key) for key in fields if key in more}), body=body)
    staged: dict[str, Any] = {
        "sender": ALICE,
        "receivers": [BOB],
        "full": [],
        "waiter": None,
        "size_bytes": len(body),
        **more,
    }
    sender_id = staged["sender"].sender_id
    record = Record(ts, send.msg_id, "message", sender_id, name, "Älice", "bob", "bob-id", send.reply_to, "text", body)
    return Staged(
        staged["sender"], send, record, staged["receivers"], staged["full"], staged["waiter"], staged["size_bytes"]
    )


def in_one_piece(*numbers: int) -> StagedRun:
    """What has come as a run."""
    first = said(numbers[0])
    msg_ids = tuple(f"message{number:04d}" for number in numbers)
    sends = Several(0, "bob", 0, msg_ids, (b"x",) * len(numbers))
    return StagedRun(ALICE, sends, first.record, [BOB], len(numbers))


def ids(message: Staged | StagedRun) -> tuple[str, ...]:
    return message.sends.msg_ids if isinstance(message, StagedRun) else (message.send.msg_id,)


def numbers(staged: Sequence[Staged | StagedRun]) -> list[list[int]]:
    """Those that stand in one piece."""
    return [[int(msg_id[-4:]) for msg_id in ids(message)] for message in gathered(staged)]


# --- what is alike


def test_neighbours_that_are_alike_become_one():
    (run,) = gathered([said(0, body=b"one"), said(1, body=b""), said(2, body="ü".encode())])
    assert isinstance(run, StagedRun)
    assert run.sends == Several(0, "bob", 0, ("message0000", "message0001", "message0002"), (b"one", b"", "ü".encode()))
    assert (run.sender, run.receivers, run.size_bytes) == (ALICE, [BOB], 5)


def test_one_alone_and_nothing_stay_what_they_are():
    alone = said()
    assert list(gathered([alone])) == [alone] and list(gathered([])) == []
    piece = in_one_piece(1, 2)
    assert list(gathered([alone, piece])) == [alone, piece]


def test_they_need_not_be_of_one_list_of_receivers():
    """Each is staged with a list of its own."""
    assert numbers([said(0, receivers=[BOB, CAROL], scope=1), said(1, receivers=[BOB, CAROL], scope=1)]) == [[0, 1]]


@pytest.mark.parametrize("scope", [Scope.SESSION, Scope.ALL, Scope.PROJECT, Scope.TOPIC])
def test_to_one_or_to_many(scope):
    (run,) = gathered([said(0, scope=scope), said(1, scope=scope)])
    assert isinstance(run, StagedRun) and run.sends.scope == scope


APART: dict[str, dict[str, Any]] = {
    "another format": {"fmt": Format.BYTES},
    "an answer": {"reply_to": "question0001"},
    "said before": {"again": True},
    "to a group": {"scope": Scope.GROUP},
    "some go without": {"full": [CAROL]},
    "for who awaits it": {"waiter": ANNA},
    "a large one": {"body": bytes(INLINE_BYTES + 1)},
    "a body in a file": {"body": b"", "size_bytes": 100_000},
}


@pytest.mark.parametrize("more", APART.values(), ids=APART)
def test_what_no_run_can_be_stays_by_itself_and_in_its_place(more):
    assert numbers([said(0, **more), said(1, **more)]) == [[0], [1]]
    assert numbers([said(0), said(1), said(2, **more), said(3), said(4)]) == [[0, 1], [2], [3, 4]]


OTHERS: dict[str, dict[str, Any]] = {
    "another sender": {"sender": ANNA},
    "another connection of the sender": {"sender": SimpleNamespace(route=b"other", sender_id="alice-id")},
    "another name since": {"name": "alicia"},
    "another receiver": {"receivers": [CAROL]},
    "more receivers": {"receivers": [BOB, CAROL]},
    "another scope": {"scope": Scope.TOPIC},
    "another target": {"target": "bo"},
    "another wake": {"ts": 17.6},
}


@pytest.mark.parametrize("more", OTHERS.values(), ids=OTHERS)
def test_whatever_differs_is_another_run(more):
    staged = [said(0), said(1), said(2, **more), said(3, **more), said(4)]
    assert numbers(staged) == [[0, 1], [2, 3], [4]]


def test_the_longest_body_that_stays_in_its_envelope_may_be_in_a_run():
    assert numbers([said(0, body=bytes(INLINE_BYTES)), said(1)]) == [[0, 1]]


def test_what_came_as_a_run_stays_that_run():
    staged: list[Staged | StagedRun] = [in_one_piece(0, 1), in_one_piece(2, 3), said(4), said(5), in_one_piece(6, 7)]
    assert numbers(staged) == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("count", "lengths"),
    [
        (MAX_ENVELOPE_MESSAGES, [MAX_ENVELOPE_MESSAGES]),
        (MAX_ENVELOPE_MESSAGES + 1, [MAX_ENVELOPE_MESSAGES, 1]),
        (2 * MAX_ENVELOPE_MESSAGES + 2, [MAX_ENVELOPE_MESSAGES, MAX_ENVELOPE_MESSAGES, 2]),
    ],
)
def test_a_run_is_no_longer_than_a_run_may_be(count, lengths):
    found = list(gathered([said(number) for number in range(count)]))
    assert [len(ids(message)) for message in found] == lengths
    assert [isinstance(message, StagedRun) for message in found] == [length > 1 for length in lengths]
    assert sum(map(ids, found), ()) == tuple(f"message{number:04d}" for number in range(count))


# --- what it is behind the journal


def pointers(count: int) -> list[Pointer]:
    return [(1, 100 * place, 90, 7) for place in range(count)]


@pytest.mark.parametrize("scope", [Scope.SESSION, Scope.ALL, Scope.PROJECT, Scope.TOPIC])
def test_each_of_a_run_is_what_it_would_have_been_by_itself(scope):
    staged = [said(number, body=b"%d" % number, scope=scope, receivers=[BOB, CAROL]) for number in range(3)]
    (message,) = gathered(staged)
    assert isinstance(message, StagedRun)
    run = run_of(NOW, message, pointers(3))
    one_by_one = [entry_of(NOW, one, pointer) for one, pointer in zip(staged, pointers(3), strict=True)]
    assert list(run.entries()) == one_by_one
    assert {entry.target for entry in one_by_one} == {"bob" if scope in (Scope.PROJECT, Scope.TOPIC) else ""}
    assert (run.origin, run.size_bytes) == (b"alice", 3)


def test_a_body_that_travels_as_a_pointer_is_not_kept():
    large = bytes(SPILL_BYTES + 1)
    entry = entry_of(NOW, said(body=large), (1, 2, 3, 4))
    assert entry.spilled and entry.body == b"" and entry.size_bytes == SPILL_BYTES + 1
    largest = entry_of(NOW, said(body=large[1:]), (1, 2, 3, 4))
    assert not largest.spilled and largest.body == large[1:]
    in_file = entry_of(NOW, said(body=b"", size_bytes=100_000), (1, 2, 3, 4))
    assert in_file.spilled and in_file.size_bytes == 100_000


def test_ages_are_counted_from_now_whatever_the_wall_clock_says():
    assert entry_of(NOW, said(), (1, 2, 3, 4)).accepted_s == NOW.steady_s
    (run,) = gathered([said(0), said(1)])
    assert isinstance(run, StagedRun)
    assert [entry.accepted_s for entry in run_of(NOW, run, pointers(2)).entries()] == [NOW.steady_s] * 2


KINDS: list[dict[str, Any]] = [{}, {}, {}, *APART.values(), *OTHERS.values()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, len(KINDS) - 1), max_size=40))
def test_nothing_is_lost_nor_changes_its_place(kinds: list[int]) -> None:
    """-1 stands for one that came as a run."""
    staged: list[Staged | StagedRun] = [
        in_one_piece(2 * place, 2 * place + 1) if kind < 0 else said(2 * place, **KINDS[kind])
        for place, kind in enumerate(kinds)
    ]
    found = list(gathered(staged))
    assert sum(map(ids, found), ()) == sum(map(ids, staged), ())
    assert sum(message.size_bytes for message in found) == sum(message.size_bytes for message in staged)
    by_id = {msg_id: message for message in staged for msg_id in ids(message)}
    for message in found:
        for msg_id in ids(message):
            before = by_id[msg_id]
            assert message.sender is before.sender and message.receivers == before.receivers
            if isinstance(message, StagedRun) and isinstance(before, Staged):
                at = message.sends.msg_ids.index(msg_id)
                assert message.sends.bodies[at] == before.send.body
                assert message.sends[:3] == before.send[1:4]
