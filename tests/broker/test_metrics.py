"""The broker's counters match the events, and each metric in HEALTH is described."""

from __future__ import annotations

from typing import Any

import pytest

from zmqbus.testing import SimNet
from zmqbus.wire import codec, verbs
from zmqbus.wire.metrics_catalogue import FIGURES, about
from zmqbus.wire.verbs import Role, Scope


@pytest.fixture
def net() -> SimNet:
    return SimNet()


def figures(net: SimNet) -> dict[str, Any]:
    observer = net.observer()
    observer.request(verbs.Status("r"))
    net.settle()
    health = observer.responses["r"]
    assert isinstance(health, verbs.Health)
    observer.bye()
    net.settle()
    return dict(health.figures)


def test_the_catalogue_describes_exactly_the_metrics_in_health(net: SimNet) -> None:
    found = figures(net)
    shell = {"connections_closed", "handshakes_refused", "log_kept_bytes", "notices"}
    assert found.keys() | shell == FIGURES.keys()
    for name, value in found.items():
        figure = about(name)
        assert figure is not None
        assert figure.kind == "word" or type(value) is int


def test_directed_messages_are_counted(net: SimNet) -> None:
    alice, bob = net.session("alice"), net.session("bob")
    carol = net.session("carol")
    carol.bye()
    net.settle()
    for _ in range(3):
        alice.send("bob", b"hello")
    alice.send("carol", b"hello, carol")
    net.settle()
    found = figures(net)
    assert [found[name] for name in ("sessions", "away", "accepted", "accepted_bytes")] == [2, 1, 4, 27]
    assert found["under_way"] == 3
    assert found["under_way_bytes"] >= 15
    assert [found[name] for name in ("untold", "unread", "unread_bytes", "longest_mailbox")] == [3, 4, 27, 3]
    assert [found[name] for name in ("delivered", "queued", "taken")] == [0, 1, 0]
    bob.take_all()
    net.settle()
    found = figures(net)
    assert [found[name] for name in ("delivered", "queued", "taken", "under_way", "untold")] == [3, 1, 3, 0, 0]
    net.session("carol").take_all()
    net.settle()
    found = figures(net)
    assert [found[name] for name in ("delivered", "queued", "taken", "unread")] == [3, 1, 4, 0]


def test_a_busy_session_is_counted(net: SimNet) -> None:
    alice, _ = net.session("alice"), net.session("bob")
    alice.send("bob", b"hello")
    net.settle()
    assert figures(net)["busy"] == 0
    net.advance(6)
    found = figures(net)
    assert (found["busy"], found["queued"]) == (1, 1)


def test_broadcasts_are_counted(net: SimNet) -> None:
    alice, bob, _ = net.session("alice"), net.session("bob"), net.session("carol")
    alice.send("", b"hello", scope=Scope.ALL)
    net.settle()
    bob.take_all()
    net.settle()
    net.advance(2, step_s=0.1)
    found = figures(net)
    assert [found[name] for name in ("accepted", "broadcasts", "delivered", "queued")] == [1, 1, 1, 1]


def test_retransmitted_broadcasts_are_counted(net: SimNet) -> None:
    alice, bob = net.session("alice"), net.session("bob")
    alice.send("", b"lost", scope=Scope.ALL)
    net.wake()
    bob.published.clear()  # a PUB at its high-water mark drops silently
    net.advance(2, step_s=0.1)
    assert bob.bodies == [b"lost"]
    assert figures(net)["broadcasts_resent"] == 1


def test_repeated_messages_are_counted(net: SimNet) -> None:
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"hello")
    net.settle()
    bob.take_all()
    net.settle()
    alice.raw(codec.encode([verbs.Send.one(msg_id, Scope.SESSION, "bob", 0, None, False, b"hello")]))
    net.settle()
    found = figures(net)
    assert (found["repeated"], found["accepted"]) == (1, 1)


def test_refusals_are_counted_by_code(net: SimNet) -> None:
    alice = net.session("alice")
    alice.send("nobody", b"hello")
    alice.send("nobody", b"hello")
    alice.send("alice", b"hello")
    alice.call("none", b"x", patient=False)
    alice.raw([b"rubbish"])
    net.settle()
    found = figures(net)
    assert found["refused_unknown_peer"] >= 3
    assert sum(value for name, value in found.items() if name.startswith("refused_")) == 5


def test_a_failed_journal_write_counts_as_a_refusal(net: SimNet) -> None:
    alice, _ = net.session("alice"), net.session("bob")
    net.journal_fails = "no room"
    alice.send("bob", b"hello")
    net.settle()
    found = figures(net)
    assert (found["refused_broker_unavailable"], found["accepted"]) == (1, 0)


def test_requests_are_counted(net: SimNet) -> None:
    caller, worker = net.session("caller"), net.session("worker", role=Role.PROGRAM, groups=("g",))
    worker.offer(10)
    net.settle()
    for _ in range(3):
        caller.call("g", b"x")
    net.settle()
    found = figures(net)
    names = ("workers", "groups", "requests_accepted", "requests_answered", "requests_in_hand")
    assert [found[name] for name in names] == [1, 1, 3, 0, 3]
    worker.work()
    net.settle()
    found = figures(net)
    assert [found[name] for name in names] == [1, 1, 3, 3, 0]


def test_a_new_broker_starts_at_zero(net: SimNet) -> None:
    alice, _ = net.session("alice"), net.session("bob")
    alice.send("nobody", b"hello")
    net.settle()
    epoch = figures(net)["epoch"]
    net.restart_broker()
    net.settle()
    found = figures(net)
    assert found["epoch"] != epoch
    assert "refused_unknown_peer" not in found
