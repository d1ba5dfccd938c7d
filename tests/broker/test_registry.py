"""The registry's tables of sessions and connections, and the resolution of targets in them."""

from __future__ import annotations

import pytest

from zmqbus.broker import registry as registry_module
from zmqbus.broker.registry import MAX_LISTED, MIN_ID_PREFIX, Registry
from zmqbus.broker.sessions import ConnectionState, Session
from zmqbus.errors import Ambiguous, UnknownPeer
from zmqbus.testing.store import MemoryStore
from zmqbus.wire.verbs import Scope


@pytest.fixture
def registry() -> Registry:
    return Registry(MemoryStore())


def add(registry: Registry, name: str, session_id: str = "", *, live: bool = True, since: float = 0.0) -> Session:
    session = registry.enter(session_id or f"id-of-{name}", "token", "")
    session.name, session.since_ts = name, since
    if live:
        connection = registry.connect(name.encode(), ConnectionState.MEMBER, f"lease-{name}", 0.0)
        connection.session = session
        session.connect(connection)
        registry.take_name(session, name)
    registry.keep(session)
    return session


def test_connections_are_found_by_route_and_lease_until_they_are_dropped(registry):
    one = registry.connect(b"r1", ConnectionState.HELPER, "l1", 0.0)
    two = registry.connect(b"r2", ConnectionState.GUEST, "l2", 0.0)
    assert registry.by_lease("l1") is one and registry.connections[b"r2"] is two
    registry.drop(one)
    assert registry.by_lease("l1") is None and registry.connections == {b"r2": two}
    again = registry.connect(b"r1", ConnectionState.HELPER, "l3", 0.0)
    assert len({one.peer, two.peer, again.peer}) == 3


class TestNames:
    def test_a_released_name_is_free_and_still_addresses_its_session(self, registry):
        alice = add(registry, "alice")
        registry.take_name(alice, "lead")
        assert registry.holder("alice") is None and registry.holder("lead") is alice
        registry.release_name(alice)
        assert registry.holder("lead") is None and alice.name == "lead"
        other = add(registry, "lead", "another")
        registry.release_name(alice)  # does not free the name of the other session
        assert registry.holder("lead") is other

    def test_live_and_reachable_sessions(self, registry):
        alice, bob, carol = add(registry, "alice"), add(registry, "bob", live=False), add(registry, "carol", live=False)
        carol.leave()
        assert list(registry.live()) == [alice]
        assert list(registry.reachable()) == [alice, bob]
        registry.forget(bob)
        assert list(registry.reachable()) == [alice]


class TestResolution:
    def test_ids_come_before_names_and_names_before_prefixes(self, registry):
        auth = add(registry, "auth", "aaaa-1")
        api = add(registry, "auth-api", "bbbb-2")
        named_like_an_id = add(registry, "aaaa-1", "cccc-3")
        assert registry.resolve("aaaa-1") is auth
        assert registry.resolve("auth") is auth
        assert registry.resolve("auth-") is api
        assert registry.resolve("cccc") is named_like_an_id
        with pytest.raises(UnknownPeer):
            registry.resolve("ccc")  # shorter than the least prefix of an id
        assert MIN_ID_PREFIX == 4

    def test_connected_sessions_come_before_those_away(self, registry):
        away = add(registry, "worker", "old", live=False)
        assert registry.resolve("worker") is away and registry.resolve("work") is away
        live = add(registry, "worker", "new")
        assert registry.resolve("worker") is live and registry.resolve("work") is live
        assert registry.resolve("old") is away

    def test_of_several_away_under_one_name_the_last_to_connect_is_found(self, registry):
        add(registry, "worker", "one", live=False, since=1.0)
        last = add(registry, "worker", "two", live=False, since=2.0)
        add(registry, "worker", "three", live=False, since=1.5)
        assert registry.resolve("worker") is last

    def test_a_session_that_has_left_is_not_found(self, registry):
        add(registry, "worker", "the-id", live=False).leave()
        for target in ("worker", "the-id", "work"):
            with pytest.raises(UnknownPeer):
                registry.resolve(target)

    def test_an_ambiguous_target_lists_some_of_its_matches(self, registry):
        for number in range(MAX_LISTED + 2):
            add(registry, f"w-{number}")
        with pytest.raises(Ambiguous, match=r"w-0 .*w-4 .* and 2 more; use the whole name"):
            registry.resolve("w-")

    @pytest.mark.parametrize("target", ["", "zz", "ali\x1b[31m\nce", "x" * 5_000])
    def test_an_unknown_target_is_quoted_in_one_short_line(self, registry, target):
        add(registry, "alice")
        with pytest.raises(UnknownPeer) as caught:
            registry.resolve(target)
        text = str(caught.value)
        assert "alice" in text and text.isprintable() and len(text) < 400

    def test_an_empty_bus_is_named_as_such(self, registry):
        with pytest.raises(UnknownPeer, match="nobody is on the bus yet"):
            registry.resolve("alice")


def test_audiences_are_reachable_sessions_of_a_project_or_topic(registry):
    alice, bob, carol = add(registry, "alice"), add(registry, "bob", live=False), add(registry, "carol", live=False)
    alice.project = bob.project = "/a"
    bob.topics = carol.topics = frozenset(("deploys",))
    carol.leave()
    assert list(registry.audience(Scope.ALL, "")) == [alice, bob]
    assert list(registry.audience(Scope.PROJECT, "/a")) == [alice, bob]
    assert list(registry.audience(Scope.PROJECT, "/a/b")) == []
    assert list(registry.audience(Scope.TOPIC, "deploys")) == [bob]


def test_only_connected_sessions_are_members_of_a_group(registry):
    alice, bob = add(registry, "alice"), add(registry, "bob", live=False)
    alice.groups = bob.groups = frozenset(("workers",))
    assert registry.members("workers") == [alice]
    assert registry.members("others") == []


def test_brief_sessions_make_room_before_established_ones(registry, monkeypatch):
    """A flood of sessions that connect for a moment crowds out only its own kind."""
    monkeypatch.setattr(registry_module, "MAX_SESSIONS", 20)
    established = [add(registry, f"established-{number}", live=False, since=100.0) for number in range(10)]
    for session in established:
        session.away_since_s = 100.0 + registry_module.BRIEF_S
    for number in range(200):
        brief = add(registry, f"brief-{number}", live=False, since=1_000.0 + number)
        brief.away_since_s = 1_000.0 + number
    kept = list(registry.sessions.values())
    assert kept[:10] == established
    assert [session.name for session in kept[10:]] == [f"brief-{number}" for number in range(190, 200)]
