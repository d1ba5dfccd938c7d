"""Neighbours that differ in id and body only become one batch, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.client.coalesce import batches_of
from zmqbus.client.events import Outgoing
from zmqbus.wire.verbs import INLINE_BYTES, MAX_ENVELOPE_MESSAGES, Format, Scope, Send


def message(number: int = 0, **more: Any) -> Outgoing:
    body = b"%d" % number
    return Outgoing(f"message{number:04d}", Scope.SESSION, "bob", Format.TEXT, None, False, body)._replace(**more)


def messages(count: int, **more: Any) -> list[Outgoing]:
    return [message(number, **more) for number in range(count)]


def apart(batches: Sequence[Send]) -> list[Outgoing]:
    """The messages that the broker makes of them."""
    return [
        Outgoing(msg_id, *batch[:5], body)
        for batch in batches
        for msg_id, body in zip(batch.msg_ids, batch.bodies, strict=True)
    ]


def sizes(batches: Sequence[Send]) -> list[int]:
    return [len(batch.msg_ids) for batch in batches]


def test_neighbours_become_one_batch():
    assert list(batches_of(messages(3))) == [
        Send(
            Scope.SESSION,
            "bob",
            Format.TEXT,
            None,
            False,
            None,
            None,
            ("message0000", "message0001", "message0002"),
            (b"0", b"1", b"2"),
        )
    ]


def test_nothing_makes_no_batch():
    assert list(batches_of([])) == []


@pytest.mark.parametrize("scope", [scope for scope in Scope if scope != Scope.GROUP])
def test_messages_of_each_scope_share_a_batch(scope):
    alike = messages(3, scope=scope)
    (batch,) = batches_of(alike)
    assert (batch.scope, batch.target) == (scope, "bob") and apart([batch]) == alike


@pytest.mark.parametrize(
    "more",
    [{"target": "carol"}, {"fmt": Format.BYTES}, {"reply_to": "question0001"}, {"again": True}, {"scope": Scope.ALL}],
)
def test_a_different_message_keeps_its_place_between_batches(more):
    mixed = [*messages(2), message(7, **more), *messages(2)]
    batches = list(batches_of(mixed))
    assert sizes(batches) == [2, 1, 2] and apart(batches) == mixed


@pytest.mark.parametrize("more", [{"reply_to": "question0001"}, {"again": True}, {"scope": Scope.GROUP}])
def test_answers_repeats_and_requests_to_groups_are_sent_alone(more):
    batches = list(batches_of(messages(3, **more)))
    assert sizes(batches) == [1, 1, 1] and apart(batches) == messages(3, **more)


def test_a_body_that_needs_a_frame_of_its_own_is_sent_alone():
    assert sizes(list(batches_of([message(0), message(1, body=bytes(INLINE_BYTES))]))) == [2]
    assert sizes(list(batches_of([message(0), message(1, body=bytes(INLINE_BYTES + 1)), message(2)]))) == [1, 1, 1]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (MAX_ENVELOPE_MESSAGES, [MAX_ENVELOPE_MESSAGES]),
        (MAX_ENVELOPE_MESSAGES + 1, [MAX_ENVELOPE_MESSAGES, 1]),
        (2 * MAX_ENVELOPE_MESSAGES + 2, [MAX_ENVELOPE_MESSAGES, MAX_ENVELOPE_MESSAGES, 2]),
    ],
)
def test_a_batch_has_at_most_max_run_messages(count, expected):
    batches = list(batches_of(messages(count)))
    assert sizes(batches) == expected and apart(batches) == messages(count)


@given(
    st.lists(
        st.builds(
            Outgoing,
            st.uuids().map(lambda one: one.hex[:12]),
            st.sampled_from((0, 0, 0, *Scope)),
            st.sampled_from(("bob", "carol")),
            st.sampled_from((0, 2)),
            st.sampled_from((None, None, "question0001")),
            st.sampled_from((False, False, True)),
            st.sampled_from((b"", b"x", bytes(INLINE_BYTES), bytes(INLINE_BYTES + 1))),
        ),
        max_size=40,
    )
)
def test_batches_hold_the_same_messages_in_the_same_order(mixed: list[Outgoing]) -> None:
    batches = list(batches_of(mixed))
    assert apart(batches) == mixed
    for batch in batches:
        single = batch.reply_to is not None or batch.again or batch.scope == Scope.GROUP
        longest = max(map(len, batch.bodies))
        assert 1 <= len(batch.bodies) <= (1 if single or longest > INLINE_BYTES else MAX_ENVELOPE_MESSAGES)
