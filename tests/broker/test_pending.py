"""Pending messages: which neighbours share a batch, and what they are once they are in the journal."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmqbus.broker.events import Instant
from zmqbus.broker.pending import Pending, merged
from zmqbus.wire.verbs import INLINE_BYTES, MAX_ENVELOPE_MESSAGES, SPILL_BYTES, Format, Header, Scope

NOW = Instant(1.0, 17.5, 3_000.0)
ALICE: Any = SimpleNamespace(route=b"alice")
ANNA: Any = SimpleNamespace(route=b"anna")
BOB: Any = SimpleNamespace(name="bob")
CAROL: Any = SimpleNamespace(name="carol")
HEADER = Header("alice-id", "alice", "Älice", 0, "bob", 0, None, 17.5)


def pending(*numbers: int, body: bytes = b"x", **more: Any) -> Pending:
    """Messages of Alice's to Bob that came in one SEND."""
    header = HEADER._replace(**{key: more.pop(key) for key in list(more) if key in Header._fields})
    fields: dict[str, Any] = {
        "sender": ALICE,
        "header": header,
        "msg_ids": tuple(f"message{number:04d}" for number in numbers or (0,)),
        "bodies": (body,) * max(1, len(numbers)),
        "size_bytes": len(body) * max(1, len(numbers)),
        "repeated": False,
        "receivers": [BOB],
        "full": [],
        "waiter": None,
    }
    return Pending(**(fields | more))


def numbers(messages: list[Pending]) -> list[list[int]]:
    """Returns the numbers of the messages that share a batch."""
    return [[int(msg_id[-4:]) for msg_id in message.msg_ids] for message in merged(messages)]


class TestMerging:
    @pytest.mark.parametrize("scope", [Scope.SESSION, Scope.ALL, Scope.PROJECT, Scope.TOPIC])
    def test_alike_neighbours_share_a_batch(self, scope):
        bodies = (b"one", b"", "ü".encode())
        (one,) = merged([pending(number, body=body, scope=scope) for number, body in enumerate(bodies)])
        assert (one.bodies, one.size_bytes) == (bodies, 5)
        assert one.msg_ids == ("message0000", "message0001", "message0002")
        assert (one.sender, one.receivers, one.header) == (ALICE, [BOB], HEADER._replace(scope=scope))

    def test_lists_of_the_same_receivers_are_equal(self):
        assert numbers([pending(0, receivers=[BOB, CAROL]), pending(1, receivers=[BOB, CAROL])]) == [[0, 1]]

    def test_a_message_alone_stays_what_it_is(self):
        alone = pending()
        assert list(merged([alone])) == [alone] and list(merged([])) == []

    def test_a_batch_that_came_as_one_stays_as_it_is(self):
        assert numbers([pending(0, 1), pending(2, 3), pending(4), pending(5), pending(6, 7)]) == [
            [0, 1],
            [2, 3],
            [4, 5],
            [6, 7],
        ]

    def test_the_longest_inline_body_may_be_in_a_batch(self):
        assert numbers([pending(0, body=bytes(INLINE_BYTES)), pending(1)]) == [[0, 1]]

    @pytest.mark.parametrize("more", [0, 1, MAX_ENVELOPE_MESSAGES + 2])
    def test_a_batch_is_no_longer_than_an_envelope_may_be(self, more):
        count = MAX_ENVELOPE_MESSAGES + more
        found = numbers([pending(number) for number in range(count)])
        assert list(chain.from_iterable(found)) == list(range(count))
        assert [len(batch) for batch in found[:-1]] == [MAX_ENVELOPE_MESSAGES] * (len(found) - 1)


ALONE: dict[str, dict[str, Any]] = {
    "another format": {"fmt": Format.BYTES},
    "an answer": {"reply_to": "question0001"},
    "a repeat": {"repeated": True},
    "to a group": {"scope": Scope.GROUP},
    "some have no room": {"full": [CAROL]},
    "awaited by a command": {"waiter": ANNA},
    "a large one": {"body": bytes(INLINE_BYTES + 1)},
    "a body in a spool file": {"body": b"", "size_bytes": 100_000},
}
OTHERS: dict[str, dict[str, Any]] = {
    "another sender": {"sender": ANNA},
    "another name since": {"from_name": "alicia"},
    "another receiver": {"receivers": [CAROL]},
    "more receivers": {"receivers": [BOB, CAROL]},
    "another scope": {"scope": Scope.TOPIC},
    "another target": {"target": "bo"},
    "another wake": {"ts": 17.6},
}


@pytest.mark.parametrize("more", ALONE.values(), ids=ALONE)
def test_some_messages_stand_alone(more):
    assert numbers([pending(0, **more), pending(1, **more)]) == [[0], [1]]
    messages = [pending(0), pending(1), pending(2, **more), pending(3), pending(4)]
    assert numbers(messages) == [[0, 1], [2], [3, 4]]


@pytest.mark.parametrize("more", OTHERS.values(), ids=OTHERS)
def test_a_difference_ends_a_batch(more):
    messages = [pending(0), pending(1), pending(2, **more), pending(3, **more), pending(4)]
    assert numbers(messages) == [[0, 1], [2, 3], [4]]


KINDS: list[dict[str, Any]] = [{}, {}, {}, *ALONE.values(), *OTHERS.values()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(KINDS) - 1), max_size=40))
def test_merging_keeps_every_message_and_its_place(kinds):
    messages = [pending(place, **KINDS[kind]) for place, kind in enumerate(kinds)]
    found = list(merged(messages))
    for part in ("msg_ids", "bodies"):
        before, after = ([getattr(message, part) for message in several] for several in (messages, found))
        assert list(chain.from_iterable(after)) == list(chain.from_iterable(before))
    of = {message.msg_ids[0]: message for message in messages}
    for message in found:
        for msg_id in message.msg_ids:
            assert message[:2] == of[msg_id][:2] and message[5:] == of[msg_id][5:]


class TestJournaled:
    def test_a_batch_has_the_places_of_its_messages(self):
        pointers = [(1, 0, 90, 7), (1, 100, 90, 7)]
        batch = pending(0, 1, body=b"xy").batch(NOW, pointers)
        assert (batch.pointers, batch.origin, batch.size_bytes) == (pointers, b"alice", 4)
        assert batch.accepted_s == NOW.steady_s  # ages do not depend on the wall clock

    @pytest.mark.parametrize(("size_bytes", "spilled"), [(SPILL_BYTES, False), (SPILL_BYTES + 1, True)])
    def test_a_spilled_body_is_not_kept(self, size_bytes, spilled):
        batch = pending(body=bytes(size_bytes)).batch(NOW, [(1, 2, 3, 4)])
        assert (batch.spilled, batch.size_bytes) == (spilled, size_bytes)
        assert batch.bodies == ((b"",) if spilled else (bytes(size_bytes),))

    def test_a_body_in_a_spool_file_is_spilled(self):
        assert pending(body=b"", size_bytes=100_000).batch(NOW, [(1, 2, 3, 4)]).spilled
