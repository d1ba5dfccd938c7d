"""What a process keeps of the sessions that it has closed."""

from __future__ import annotations

import os

import pytest

from zmqbus.client import identity_cache


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_cache, "_left", {})


def test_what_was_left_is_taken_up_once_by_its_name_and_data_directory():
    one, two = identity_cache.CachedIdentity.new(), identity_cache.CachedIdentity.new()
    assert one.session_id != two.session_id and one.token != two.token
    identity_cache.leave("/data", "alice", one)
    identity_cache.leave("/other", "alice", two)
    assert identity_cache.take("/data", "bob") is None
    assert identity_cache.take("/data", "alice") is one
    assert identity_cache.take("/data", "alice") is None
    assert identity_cache.take("/other", "alice") is two


def test_the_last_one_of_a_name_counts():
    first, last = identity_cache.CachedIdentity.new(), identity_cache.CachedIdentity.new()
    identity_cache.leave("/data", "alice", first)
    identity_cache.leave("/data", "alice", last)
    assert identity_cache.take("/data", "alice") is last


def test_a_child_finds_nothing_that_the_parent_has_left(monkeypatch: pytest.MonkeyPatch):
    identity_cache.leave("/data", "alice", identity_cache.CachedIdentity.new())
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)
    assert identity_cache.take("/data", "alice") is None


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(identity_cache, "REMEMBERED_SESSIONS", 3)
    for number in range(5):
        identity_cache.leave("/data", f"n{number}", identity_cache.CachedIdentity.new())
    identity_cache.leave("/data", "n2", identity_cache.CachedIdentity.new())  # the newest again
    identity_cache.leave("/data", "n5", identity_cache.CachedIdentity.new())
    assert [key[2] for key in identity_cache._left] == ["n4", "n2", "n5"]
