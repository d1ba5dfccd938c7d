"""What a process keeps of the sessions that it has closed."""

from __future__ import annotations

import os

import pytest

from zmqbus.client import past


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "_left", {})


def test_what_was_left_is_taken_up_once_by_its_name_and_data_directory():
    one, two = past.Past.new(), past.Past.new()
    assert one.session_id != two.session_id and one.token != two.token
    past.leave("/data", "alice", one)
    past.leave("/other", "alice", two)
    assert past.take("/data", "bob") is None
    assert past.take("/data", "alice") is one
    assert past.take("/data", "alice") is None
    assert past.take("/other", "alice") is two


def test_the_last_one_of_a_name_counts():
    first, last = past.Past.new(), past.Past.new()
    past.leave("/data", "alice", first)
    past.leave("/data", "alice", last)
    assert past.take("/data", "alice") is last


def test_a_child_finds_nothing_that_the_parent_has_left(monkeypatch: pytest.MonkeyPatch):
    past.leave("/data", "alice", past.Past.new())
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)
    assert past.take("/data", "alice") is None


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(past, "REMEMBERED_SESSIONS", 3)
    for number in range(5):
        past.leave("/data", f"n{number}", past.Past.new())
    past.leave("/data", "n2", past.Past.new())  # the newest again
    past.leave("/data", "n5", past.Past.new())
    assert [key[2] for key in past._left] == ["n4", "n2", "n5"]
