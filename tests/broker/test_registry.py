"""The tables of who is there, and how a target is found in them."""

from __future__ import annotations

import pytest

from zmqbus.broker import registry as registry_module
from zmqbus.broker.registry import MAX_LISTED, MIN_ID_PREFIX, STANDING, Registry, Session, Standing
from zmqbus.errors import Ambiguous, UnknownPeer
from zmqbus.testing.store import MemoryStore
from zmqbus.wire.verbs import Role, Scope


@pytest.fixture
def registry() -> Registry:
    return Registry(MemoryStore())


def add(registry: Registry, name: str, session_id: str = "", *, live: bool = True, since: float = 0.0) -> Session:
    session = registry.enter(session_id or f"id-of-{name}", "token", "")
    session.name, session.since_ts = name, since
    if live:
        session.conn = registry.connect(name.encode(), Standing.MEMBER, f"lease-{name}", 0.0)
        session.conn.session = session
        registry.take_name(session, name)
    registry.keep(session)
    return session


def test_every_role_has_a_standing():
    assert set(STANDING) == set(Role)


# --- connections


def test_connections_are_found_by_route_and_lease_until_they_are_dropped(registry):
    one = registry.connect(b"r1", Standing.HELPER, "l1", 0.0)
    two = registry.connect(b"r2", Standing.GUEST, "l2", 0.0)
    assert one.peer != two.peer
    assert registry.by_lease("l1") is one and registry.connections[b"r2"] is two
    registry.drop(one)
    registry.drop(one)
    assert registry.by_lease("l1") is None and registry.connections == {b"r2": two}
    assert registry.connect(b"r1", Standing.HELPER, "l3", 0.0).peer not in (one.peer, two.peer)


# --- names


def test_a_name_is_held_by_one_and_kept_by_those_who_leave(registry):
    alice = add(registry, "alice")
    assert registry.holder("alice") is alice
    registry.take_name(alice, "lead")
    assert registry.holder("alice") is None and registry.holder("lead") is alice
    registry.release_name(alice)
    assert registry.holder("lead") is None and alice.name == "lead"
    other = add(registry, "lead", "another")
    registry.release_name(alice)  # its name is somebody else's now
    assert registry.holder("lead") is other


def test_who_is_live_and_who_can_be_reached(registry):
    alice, bob, carol = add(registry, "alice"), add(registry, "bob", live=False), add(registry, "carol", live=False)
    carol.left = True
    assert list(registry.live()) == [alice]
    assert list(registry.reachable()) == [alice, bob]
    registry.forget(alice)
    assert list(registry.live()) == [] and list(registry.reachable()) == [bob]


# --- targets


def test_the_order_of_resolution(registry):
    auth = add(registry, "auth", "aaaa-1")
    api = add(registry, "auth-api", "bbbb-2")
    named_like_an_id = add(registry, "aaaa-1", "cccc-3")
    assert registry.resolve("aaaa-1") is auth  # an id comes before a name
    assert registry.resolve("auth") is auth  # an exact name before a prefix
    assert registry.resolve("auth-") is api
    assert registry.resolve("cccc") is named_like_an_id  # a prefix of an id comes last
    with pytest.raises(UnknownPeer):
        registry.resolve("ccc")  # and is long enough
    assert MIN_ID_PREFIX == 4


def test_those_connected_are_asked_before_those_away(registry):
    away = add(registry, "worker", "old", live=False)
    assert registry.resolve("worker") is away and registry.resolve("work") is away
    live = add(registry, "worker", "new")
    assert registry.resolve("worker") is live and registry.resolve("work") is live
    assert registry.resolve("old") is away


def test_of_two_away_under_one_name_the_later_is_meant(registry):
    add(registry, "worker", "one", live=False, since=1.0)
    later = add(registry, "worker", "two", live=False, since=2.0)
    add(registry, "worker", "three", live=False, since=1.5)
    assert registry.resolve("worker") is later


def test_who_has_left_is_not_found(registry):
    gone = add(registry, "worker", "the-id", live=False)
    gone.left = True
    for target in ("worker", "the-id", "work"):
        with pytest.raises(UnknownPeer):
            registry.resolve(target)


def test_several_matches_are_listed_but_not_all(registry):
    for number in range(MAX_LISTED + 2):
        add(registry, f"w-{number}")
    with pytest.raises(Ambiguous, match=r"w-0 .*w-4 .* and 2 more; use the whole name"):
        registry.resolve("w-")


@pytest.mark.parametrize("target", ["", "zz", "ali\x1b[31m\nce", "x" * 5_000])
def test_no_match_is_told_in_one_short_line(registry, target):
    add(registry, "alice")
    with pytest.raises(UnknownPeer) as caught:
        registry.resolve(target)
    text = str(caught.value)
    assert "alice" in text and text.isprintable() and len(text) < 400


def test_nobody_there(registry):
    with pytest.raises(UnknownPeer, match="nobody is on the bus yet"):
        registry.resolve("alice")


# --- many


def test_audiences(registry):
    alice, bob, carol = add(registry, "alice"), add(registry, "bob", live=False), add(registry, "carol", live=False)
    alice.project = bob.project = "/a"
    bob.topics = carol.topics = frozenset(("deploys",))
    carol.left = True
    assert list(registry.audience(Scope.ALL, "")) == [alice, bob]
    assert list(registry.audience(Scope.PROJECT, "/a")) == [alice, bob]
    assert list(registry.audience(Scope.PROJECT, "/a/b")) == []
    assert list(registry.audience(Scope.TOPIC, "deploys")) == [bob]


def test_members_of_a_group_are_connected(registry):
    alice, bob = add(registry, "alice"), add(registry, "bob", live=False)
    alice.groups = bob.groups = frozenset(("workers",))
    assert registry.members("workers") == [alice]
    assert registry.members("others") == []


def test_repr(registry):
    alice = add(registry, "alice", "0123456789")
    assert repr(registry) == "<Registry: 1 connections, 1 of 1 live>"
    assert repr(alice) == "<Session 'alice' 01234567 live: 0 unread>"
    assert repr(alice.conn) == "<Connection 616c696365 member for alice>"


def test_sessions_that_came_and_went_make_room_before_those_that_were_here(registry, monkeypatch):
    """Whoever enters ten thousand sessions, each for a moment, crowds out those, and nobody's that was here."""
    monkeypatch.setattr(registry_module, "MAX_SESSIONS", 20)
    honest = [add(registry, f"honest-{number}", live=False, since=100.0) for number in range(10)]
    for session in honest:
        session.away_since_s = 100.0 + registry_module.BRIEF_S
    for number in range(200):
        brief = add(registry, f"brief-{number}", live=False, since=1_000.0 + number)
        brief.away_since_s = 1_000.0 + number
    assert [session for session in registry.sessions.values() if session in honest] == honest
    assert len(registry.sessions) == 20
    assert sorted(s.name for s in registry.sessions.values() if s not in honest) == sorted(
        f"brief-{number}" for number in range(190, 200)
    )
