"""The ids of taken messages, in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.client import core, seen
from zmqbus.client.seen import SeenIds
from zmqbus.wire.verbs import Role


def test_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "REMEMBERED", 3)
    ids = SeenIds()
    for msg_id in ("a", "b", "a", "c", "d"):
        ids.add(msg_id)
    assert [msg_id in ids for msg_id in "abcde"] == [False, True, True, True, False]
    assert len(ids) == 3
    assert repr(ids) == "<SeenIds: 3 ids>"


@given(st.lists(st.integers(0, 30), max_size=100))
def test_like_a_list(numbers: list[int]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(seen, "REMEMBERED", 8)
        ids, model = SeenIds(), []
        for number in numbers:
            ids.add(str(number))
            if number not in model:
                model.append(number)
            model = model[-8:]
        assert {number for number in range(31) if str(number) in ids} == set(model)


def test_a_core_goes_by_the_memory_that_it_is_given_though_it_is_empty() -> None:
    ids = SeenIds()
    client = core.ClientCore(core.Persona(role=Role.PROGRAM), "1", ids)
    client.taken(core.Ticket("lease", 1, ("m1",), None))
    assert "m1" in ids
    core.ClientCore(core.Persona(role=Role.PROGRAM), "1").taken(core.Ticket("lease", 1, ("m2",), None))
    assert "m2" not in ids  # a core that is given none has its own


def test_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "REMEMBERED", 3)
    ids = SeenIds()
    assert ids.isdisjoint(("a", "b")) and ids.isdisjoint(())
    ids.add_all(("a", "b"))
    assert not ids.isdisjoint(("x", "b")) and ids.isdisjoint(("x", "y"))
    ids.add_all(("c", "b", "d", "e"))
    assert [msg_id in ids for msg_id in "abcde"] == [False, False, True, True, True]
