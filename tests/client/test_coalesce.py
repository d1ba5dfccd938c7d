"""What stands next to each other and is alike is said as one, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.client.coalesce import runs_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import INLINE_BYTES, MAX_RUN, Format, Scope, Send, Sends


def send(number: int = 0, **more: Any) -> Send:
    return Send(f"message{number:04d}", Scope.SESSION, "bob", Format.TEXT, None, False, b"%d" % number)._replace(**more)


def sends(count: int, **more: Any) -> list[Send]:
    return [send(number, **more) for number in range(count)]


def apart(said: Sequence[Send | Sends]) -> list[Send]:
    """What the broker makes of it."""
    found: list[Send] = []
    for one in said:
        if isinstance(one, Send):
            found.append(one)
            continue
        assert len(one.msg_ids) == len(one.bodies)
        for msg_id, body in zip(one.msg_ids, one.bodies, strict=True):
            found.append(Send(msg_id, one.scope, one.target, one.fmt, None, False, body))
    return found


def test_neighbours_become_one():
    assert runs_of(sends(3)) == [
        Sends(Scope.SESSION, "bob", Format.TEXT, ("message0000", "message0001", "message0002"), (b"0", b"1", b"2"))
    ]


@pytest.mark.parametrize("scope", [scope for scope in Scope if scope != Scope.GROUP])
def test_to_one_or_to_many_a_run_says_to_whom(scope):
    alike = sends(3, scope=scope)
    (said,) = runs_of(alike)
    assert isinstance(said, Sends) and (said.scope, said.target) == (scope, "bob")
    assert apart([said]) == alike


def test_what_is_for_others_is_no_part_of_it():
    said = runs_of([*sends(2, scope=Scope.ALL), *sends(2, scope=Scope.TOPIC), *sends(2), *sends(2, target="carol")])
    assert [(one.scope, one.target, len(one[-1])) for one in said] == [
        (Scope.ALL, "bob", 2),
        (Scope.TOPIC, "bob", 2),
        (Scope.SESSION, "bob", 2),
        (Scope.SESSION, "carol", 2),
    ]


def test_one_alone_stays_what_it_is():
    assert runs_of(sends(1)) == sends(1)
    assert runs_of([]) == []


@pytest.mark.parametrize(
    "more",
    [
        {"target": "carol"},
        {"fmt": Format.BYTES},
        {"reply_to": "question0001"},
        {"again": True},
        {"scope": Scope.GROUP},
    ],
)
def test_another_one_between_them_keeps_its_place(more):
    other = send(7, **more)
    said = runs_of([*sends(2), other, *sends(2)])
    assert [type(one) for one in said] == [Sends, Send, Sends] and said[1] == other


@pytest.mark.parametrize(
    "more",
    [
        {"reply_to": "question0001"},
        {"again": True},
        {"scope": Scope.GROUP},
    ],
)
def test_what_a_run_cannot_say_is_said_one_by_one(more):
    alike = sends(3, **more)
    assert runs_of(alike) == alike


def test_a_body_that_needs_a_frame_of_its_own_is_no_part_of_a_run():
    largest = send(1, body=bytes(INLINE_BYTES))
    assert [type(one) for one in runs_of([send(0), largest])] == [Sends]
    larger = [send(0), send(1, body=bytes(INLINE_BYTES + 1)), send(2)]
    assert runs_of(larger) == larger


@pytest.mark.parametrize(
    ("count", "lengths"),
    [
        (MAX_RUN, [MAX_RUN]),
        (MAX_RUN + 1, [MAX_RUN, 1]),
        (2 * MAX_RUN + 2, [MAX_RUN, MAX_RUN, 2]),
    ],
)
def test_a_run_is_no_longer_than_it_may_be(count, lengths):
    said = runs_of(sends(count))
    assert [len(one.msg_ids) for one in said if isinstance(one, Sends)] == lengths
    assert apart(said) == sends(count)


MIXED = st.lists(
    st.builds(
        Send,
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


@given(MIXED)
def test_the_same_is_said_in_the_same_order(mixed: list[verbs.Send]) -> None:
    said = runs_of(mixed)
    assert apart(said) == mixed
    for one in said:
        if isinstance(one, Sends):
            assert 1 <= len(one.bodies) <= MAX_RUN and max(map(len, one.bodies)) <= INLINE_BYTES
