"""Take-overs on real files: every death of a broker on the way, and what the tables keep of them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.broker.filenet import FileNet, crashes, worlds
from tests.broker.storekit import Bench
from zmqbus.broker import mailbox
from zmqbus.broker.in_flight import Batch
from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.storage import sqlite
from zmqbus.broker.storage.api import SessionRow, succeeded_row
from zmqbus.broker.takeover import ROUND_S
from zmqbus.testing import SimClient, session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope

#: Deaths that are tried; all of them with SOAK.
TRIED = 1_000_000 if "SOAK" in os.environ else 150


def start(net: FileNet, number: int) -> SimClient:
    owner = f"{number}:owner"
    net.living_owners.add(owner)
    return net.session("bob", session_id=session_id_of(f"bob-{number}"), token=f"token-{number}", owner=owner)


def leave(net: FileNet, member: SimClient) -> None:
    member.bye()
    net.settle()
    member.disconnect()
    net.clients.remove(member)


def say(net: FileNet, target: str, body: bytes) -> None:
    alice = net.clients[0]
    alice.send(target, body, scope=Scope.SESSION if target else Scope.ALL)
    net.settle()


def nights(net: FileNet) -> None:
    """Two that have mail, some of it the same, die; the third takes it over, and reads some; and so does a fourth."""
    net.session("alice")
    leave(net, start(net, 1))
    say(net, session_id_of("bob-1"), b"first")
    leave(net, start(net, 2))
    for number in range(3):
        say(net, session_id_of("bob-2"), b"%d" % number)
        say(net, "", b"%d to all" % number)
        say(net, session_id_of("bob-1"), b"%d" % number + b"x" * 400)
    net.living_owners -= {"1:owner", "2:owner"}
    third = start(net, 3)
    third.take(3)
    net.settle()
    say(net, "bob", b"to the third")
    leave(net, third)
    net.living_owners.discard("3:owner")
    fourth = start(net, 4)
    fourth.take(2)
    net.settle()


@pytest.mark.slow
def test_any_death_on_the_way_loses_doubles_or_reorders_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(verbs, "SPILL_BYTES", 300)
    monkeypatch.setattr(sqlite, "SPILL_BYTES", 300)
    monkeypatch.setattr(verbs, "INLINE_BYTES", 300)  # a spilled body shares no batch
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 4)
    net = FileNet(tmp_path / "run")
    nights(net)
    net.recording = False
    found = crashes(net)
    assert len(found) > 100
    if len(found) > TRIED:
        found = [found[number] for number in sorted(random.Random(1).sample(range(len(found)), TRIED))]
    for crash, world in worlds(net, found, tmp_path):
        try:
            all_comes_to_the_fourth(world)
        except AssertionError as error:
            raise AssertionError(f"{crash}: {error}") from error
    net.close()


def all_comes_to_the_fourth(world: FileNet) -> None:
    for member in [*world.clients]:
        if member.persona.name == "bob" and member.persona.session_id != session_id_of("bob-4"):
            world.clients.remove(member)
    world.living_owners -= {"1:owner", "2:owner", "3:owner"}
    if not world.clients:
        return  # nobody had come
    alice = world.clients[0]
    fourth = world.clients[1] if len(world.clients) > 1 else start(world, 4)
    world.settle()
    world.advance(ROUND_S + 2, step_s=1)
    waiting = [entry.msg_id for _, entry in world.store.heads(session_id_of("bob-4"), 0)]
    assert len(waiting) == len(set(waiting)), "something waits twice"
    while fourth.handed:
        fourth.take_all()
        world.settle()
    world.advance(1)
    said = list(alice.answers)  # one after the other
    got = list(dict.fromkeys(message.msg_id for message in fourth.history))
    assert got == sorted(got, key=said.index), "not in the order of acceptance"
    third = set(world.shown.get(session_id_of("bob-3"), ()))
    assert {*got, *third} == set(said), "something is lost"
    assert not [answer for answer in alice.answers.values() if isinstance(answer, Exception)]
    assert world.store.total() == 0 and not alice.core.unconfirmed
    assert sorted(session.name for session in world.broker.registry.sessions.values()) == ["alice", "bob"]


# --- tables


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "data")


def test_a_merged_mailbox_is_the_same_for_the_next_broker(bench: Bench) -> None:
    store = bench.open()
    one, other = Mailbox("one", store), Mailbox("other", store)
    entries = [bench.entry(b"body %d" % number * (20_000 if number == 4 else 1)) for number in range(9)]
    for number, entry in enumerate(entries):
        if number % 3 != 1:
            one.append(Batch.of_entry(entry), 0.0)
        if number % 3 != 0:
            other.append(Batch.of_entry(entry), 0.0)
    store.commit()
    assert one.take_over(other)
    assert (one.total, other.total, store.total()) == (9, 0, 9)
    store.commit()
    before = [entry for _, entry in store.after("one", 0, 100)]
    assert before == entries
    store.close()
    later = bench.open()
    assert [entry for _, entry in later.after("one", 0, 100)] == entries
    assert later.after("other", 0, 100) == []
    (box,) = later.recover(100).boxes
    assert (box.mailbox, box.messages, box.size_bytes) == ("one", 9, sum(entry.size_bytes for entry in entries))
    restored = Mailbox("one", later)
    restored.restore(box)
    assert restored.total_bytes == one.total_bytes
    later.close()


def test_no_body_is_read_to_move_it(bench: Bench, monkeypatch) -> None:
    store = bench.open()
    for number in range(50):
        store.put("other", number + 1, bench.entry(b"x" * 1000))
    store.commit()
    store.close()
    store = bench.open()
    one, other = Mailbox("one", store), Mailbox("other", store)
    other.restore(store.recover(100).boxes[0])
    monkeypatch.setattr(store._reader, "read_many", lambda *_: pytest.fail("read"))
    assert one.take_over(other) and one.total == 50
    store.commit()
    monkeypatch.undo()
    assert [entry.body for _, entry in store.after("one", 0, 100)] == [b"x" * 1000] * 50
    store.close()


def test_where_the_store_cannot_be_read_nothing_is_moved(bench: Bench, monkeypatch) -> None:
    store = bench.open()
    one, other = Mailbox("one", store), Mailbox("other", store)
    for number in range(3):
        (one if number == 1 else other).append(Batch.of_entry(bench.entry()), 0.0)
    store.commit()
    for mailbox_ in ("one", "other"):
        real = store.heads

        def partly(key: str, seq: int, without: str = mailbox_, real=real):
            return real(key, seq)[1:] if key == without else real(key, seq)

        monkeypatch.setattr(store, "heads", partly)
        assert not one.take_over(other)
        monkeypatch.setattr(store, "heads", real)
        assert (one.total, other.total, store.total(), store.pending) == (1, 2, 3, False)
    assert one.take_over(other) and one.total == 3
    store.close()


def test_who_was_taken_over_is_known_to_the_next_broker(bench: Bench) -> None:
    session = SessionRow("two", "digest", "two", "bob", None, "/", "/", "1:1", (), (), "", 1.0, 2.0, False)
    rows = [session, succeeded_row("one", "two", 3.0)]
    store = bench.open()
    for row in rows:
        store.save_session(row)
    store.commit()
    store.close()
    store = bench.open()
    assert store.recover(100).sessions == rows
    store.close()
