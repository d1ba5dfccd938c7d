"""The broker's shell on real sockets, within this process. The tests call `Server._wake`, so nothing waits for time."""

from __future__ import annotations

import os
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from zmqbus.broker.shell import indexer, spool_reader
from zmqbus.broker.shell import server as server_module
from zmqbus.broker.shell.log import Log
from zmqbus.broker.shell.server import DRAIN_MESSAGES, Server
from zmqbus.errors import PortHeld, Unauthorized
from zmqbus.journal.reader import read
from zmqbus.journal.search_index import Index
from zmqbus.security import zap
from zmqbus.security.keys import client_keys, curve_client
from zmqbus.settings import Settings, load
from zmqbus.testing import session_id_of
from zmqbus.wire import codec, verbs

DEADLINE_MS = 90_000


@pytest.fixture
def settings(data_dir: Path, free_port: int) -> Settings:
    return load({"port": str(free_port)})


class Served:
    """A server and its clients. `turn` runs the body of the loop once a socket is ready."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.server = Server(settings, Log(settings.paths.broker_log))
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.peers: list[zmq.Socket[bytes]] = []

    def turn(self, timeout_ms: int = 0) -> None:
        self.server._wake(dict(self.server._poller.poll(timeout_ms)))

    def peer(self) -> zmq.Socket[bytes]:
        peer = self.context.socket(zmq.DEALER)
        peer.linger = 0
        curve_client(peer, client_keys(self.settings.data_dir))
        peer.connect(f"tcp://127.0.0.1:{self.settings.port}")
        self.peers.append(peer)
        return peer

    def hear(self, peer: zmq.Socket[bytes]) -> list[Any]:
        for _ in range(DEADLINE_MS // 10):
            self.turn(5)
            if peer.poll(5):
                return list(codec.Decoder(from_broker=True).decode(peer.recv_multipart()))
        raise AssertionError("the broker does not answer")

    def enter(self, role: int = 4, name: str | None = None) -> zmq.Socket[bytes]:
        peer = self.peer()
        session_id = session_id_of(name) if name else None
        hello = verbs.Hello(verbs.VERSION, "0", role, session_id, name, name, None, "/", "/", 1, "1:1", (), (), None)
        peer.send_multipart(codec.encode([hello]))
        assert isinstance(self.hear(peer)[0], verbs.Welcome)
        return peer

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.context.term()
        self.server.close()


@pytest.fixture
def served(settings: Settings) -> Iterator[Served]:
    served = Served(settings)
    served.server.open()
    yield served
    served.close()


def test_a_status_request_is_answered(served):
    peer = served.enter()
    peer.send_multipart(codec.encode([verbs.Status("s")]))
    (health,) = served.hear(peer)
    assert dict(health.figures)["connections"] == 1


def test_renewing_the_zap_handler_keeps_connections(served, monkeypatch):
    monkeypatch.setattr(zap, "RENEW_AFTER", 1)
    monkeypatch.setattr(zap, "RETIRED_S", 0.0)
    peers: list[zmq.Socket[bytes]] = []
    for _ in range(3):
        before = served.server._zap.socket
        peers.append(served.enter())
        for _ in range(DEADLINE_MS // 10):
            if before.closed:
                break
            served.turn(10)
        assert before.closed and served.server._zap.sockets == (served.server._zap.socket,)
    for peer in peers:
        peer.send_multipart(codec.encode([verbs.Status("s")]))
        (health,) = served.hear(peer)
        assert dict(health.figures)["connections"] == 3


def test_both_ports_are_bound_to_loopback_only(served):
    for port in (served.settings.port, served.server._core.pub_port):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.2", port))  # fails if the broker has bound 0.0.0.0
    assert 10_000 <= served.server._core.pub_port < 30_000


def test_a_held_port_raises_and_leaves_nothing_open(settings):
    with socket.create_server(("127.0.0.1", settings.port)):
        server = Server(settings, Log(settings.paths.broker_log))
        with pytest.raises(PortHeld, match=f"port {settings.port} is held by another program"):
            server.open()
        server.close()
        server.close()  # idempotent
    again = Served(settings)
    again.server.open()
    again.close()


def test_envelopes_for_one_peer_travel_as_one_message(served):
    peer = served.enter()
    peer.send_multipart(codec.encode([verbs.Status(f"s{number}") for number in range(20)]))
    assert [health.ref for health in served.hear(peer)] == [f"s{number}" for number in range(20)]


def test_junk_is_refused_and_the_next_message_processed(served):
    peer = served.enter()
    for junk in ([b""], [b"\xc1"], [b"\x91" * 5000], [b"\x90", b"extra"], [msgpack.packb([[99]])]):
        peer.send_multipart(junk)
    peer.send_multipart(codec.encode([verbs.Status("s")]))
    heard: list[Any] = []
    while len(heard) < 6:
        heard += served.hear(peer)
    assert [type(one).__name__ for one in heard] == ["Refused"] * 5 + ["Health"]


def test_a_drain_is_bounded(served):
    """A flood on one socket leaves the loop to the others after `DRAIN_MESSAGES`."""
    peer = served.enter()
    for _ in range(2 * DRAIN_MESSAGES):
        peer.send_multipart(codec.encode([verbs.Status("s")]))
    taken: list[int] = []
    original = served.server._core.handle

    def count(now: Any, event: Any) -> Any:
        taken[-1] += type(event).__name__ == "Received"
        return original(now, event)

    served.server._core.handle = count
    while sum(taken) < 2 * DRAIN_MESSAGES:
        taken.append(0)
        served.turn(10)
    assert max(taken) <= DRAIN_MESSAGES


def test_a_failed_journal_write_refuses_only_its_wake(served, monkeypatch):
    from zmqbus.journal.writer import JournalFull

    peer = served.enter(3, "guest")
    bob = served.enter(1, "bob")
    journal = served.server._journal
    original = type(journal).append

    def full(*_: Any, **__: Any) -> Any:
        raise JournalFull("there is no room")

    monkeypatch.setattr(type(journal), "append", full)
    peer.send_multipart(codec.encode([verbs.Send.one("aaaaaaaaaa01", 0, "bob", 0, None, False, b"lost")]))
    (refused,) = served.hear(peer)
    assert (refused.ref, refused.code) == ("aaaaaaaaaa01", "broker_unavailable")
    monkeypatch.setattr(type(journal), "append", original)
    peer.send_multipart(codec.encode([verbs.Send.one("aaaaaaaaaa02", 0, "bob", 0, None, False, b"kept")]))
    (deliver,) = served.hear(bob)
    assert deliver.bodies == (b"kept",)


def test_a_missing_database_is_reported(settings):
    served = Served(settings)
    served.server.open()
    assert served.server.notices == []
    served.enter(1, "bob")
    guest = served.enter(3, "guest")
    guest.send_multipart(codec.encode([verbs.Send.one("aaaaaaaaaa01", 0, "bob", 0, None, False, b"x")]))
    served.turn(DEADLINE_MS)
    served.close()
    os.unlink(settings.paths.database)
    again = Server(settings, Log(settings.paths.broker_log))
    again.open()
    assert len(again.notices) == 1 and "was gone and was created again" in again.notices[0]
    again.close()


@pytest.mark.parametrize("durability, expected", [("process", ["commit"]), ("power", ["sync", "commit"])])
def test_queued_is_sent_after_the_commit_and_the_sync(served, monkeypatch, durability, expected):
    guest, bob = served.enter(3, "guest"), served.enter(1, "bob")
    bob.send_multipart(codec.encode([verbs.Bye()]))
    while served.server._core.registry.holder("bob"):
        served.turn(5)
    server = served.server
    server._settings = served.settings._replace(durability=durability)
    done: list[str] = []

    def watch(owner: object, method: str, word: str) -> None:
        original = getattr(owner, method)

        def watched(*arguments: object) -> None:
            if word != "send" or server._outbox:
                done.append(word)
            original(*arguments)

        monkeypatch.setattr(owner, method, watched)

    watch(server, "_send_all", "send")
    watch(server._journal, "sync", "sync")
    watch(server._store, "commit", "commit")
    guest.send_multipart(codec.encode([verbs.Send.one("aaaaaaaaaa01", 0, "bob", 0, None, False, b"x")]))
    (receipt,) = served.hear(guest)
    assert receipt.state == verbs.State.AWAY
    assert done == [*expected, "send"]


def test_an_unreachable_peer_does_not_stop_the_loop(served):
    gone = served.enter(1, "bob")
    gone.close()
    peer = served.enter(3, "guest")
    peer.send_multipart(codec.encode([verbs.Send.one("aaaaaaaaaa01", 0, "bob", 0, None, False, b"x")]))
    (receipt,) = served.hear(peer)
    assert receipt.state in (verbs.State.AWAY, verbs.State.BUSY)


def test_it_ends_when_idle_but_not_while_connected(served):
    peer = served.enter()
    served.server._settings = served.settings._replace(idle_shutdown_s=0.06)
    for _ in range(20):
        served.turn(5)
    assert served.server._stop_reason is None
    peer.send_multipart(codec.encode([verbs.Bye()]))
    assert "idle" in served.server.run()


def test_stop_ends_it(served):
    peer = served.enter()
    peer.send_multipart(codec.encode([verbs.Stop("s")]))
    assert served.server.run() == "asked to stop"
    assert peer.poll(DEADLINE_MS)


def test_only_presence_subscriptions_are_processed(served):
    member = served.peer()
    session = (session_id_of("bob"), "token", "bob")
    hello = verbs.Hello(verbs.VERSION, "0", 1, *session, None, "/", "/", 1, "1:1", (), (), None)
    member.send_multipart(codec.encode([hello]))
    (welcome,) = served.hear(member)
    rogue = served.context.socket(zmq.XSUB)
    rogue.linger = 0
    served.peers.append(rogue)
    curve_client(rogue, client_keys(served.settings.data_dir))
    rogue.connect(f"tcp://127.0.0.1:{served.server._core.pub_port}")
    for junk in (b"\2", b"junk", b"\1~", b"\1~\xff\0", b"\1~nobody\0", b"\1*\0"):
        rogue.send(junk)
    rogue.send_multipart([b"\1~" + welcome.lease.encode() + b"\0", b"and more"])
    rogue.send(b"\1" + verbs.mark_channel(welcome.lease))
    connection = served.server._core.registry.by_lease(welcome.lease)
    assert connection is not None
    for _ in range(DEADLINE_MS // 10):
        served.turn(10)
        if connection.subscribed:
            break
    assert connection.subscribed


# --- the search index, beside it


def _turn_until_indexed(served: Served, condition: Any) -> None:
    deadline_s = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline_s
        served.server._ticked_s = 0.0
        served.server._indexer._look_due_s = min(served.server._indexer._look_due_s, time.monotonic())
        served.turn(5)


def _speak(served: Served, peer: zmq.Socket[bytes], msg_id: str, text: str) -> Any:
    peer.send_multipart(codec.encode([verbs.Send.one(msg_id, verbs.Scope.ALL, "", 0, None, False, text.encode())]))
    return served.hear(peer)[0]


def test_the_search_index_is_updated(served, monkeypatch):
    monkeypatch.setattr(indexer, "GROWTH_BYTES", 1000)
    peer = served.enter(role=0, name="alice")
    assert isinstance(_speak(served, peer, "aaaaaaaaaaaa", "apple " + "x" * 2000), verbs.Tally)
    path = served.settings.paths.search_index

    def is_indexed() -> bool:
        index = Index.open_existing(path)
        if index is None:
            return False
        with index:
            return any(list(index.matches(serial, "apple", 2**62)) for serial in index.segments())

    _turn_until_indexed(served, is_indexed)


def test_a_failing_indexer_is_logged_once_and_stops_nothing(served, monkeypatch):
    monkeypatch.setattr(indexer, "GROWTH_BYTES", 1000)
    os.mkdir(served.settings.paths.search_index, 0o700)
    said: list[str] = []
    monkeypatch.setattr(served.server._indexer, "_report", said.append)
    peer = served.enter(role=0, name="alice")
    _speak(served, peer, "aaaaaaaaaaaa", "x" * 2000)
    _turn_until_indexed(served, lambda: bool(said))
    assert isinstance(_speak(served, peer, "bbbbbbbbbbbb", "x" * 2000), verbs.Tally)
    assert len(said) == 1
    assert "search.sqlite is not a file" in said[0]


class TestSpooled:
    """Large bodies in spool files."""

    BODY = b"x" * 70_000

    def write_spool(self, served: Served, name: str, pieces: int = 1) -> Path:
        path = Path(served.settings.paths.spool, name)
        path.write_bytes(self.BODY * pieces)
        path.chmod(0o600)
        return path

    def spooled(self, number: int, name: str, target: str = "bob") -> verbs.Send:
        size = len(self.BODY)
        crc = zlib.crc32(self.BODY)
        piece = (size, number * size, size, crc)
        return verbs.Send(0, target, 0, None, False, name, piece, (f"message{number:05}",), (b"",))

    def test_spooled_bodies_are_journaled_and_delivered_as_pointers(self, served):
        alice, bob = served.enter(2, "alice"), served.enter(1, "bob")
        self.write_spool(served, "a" * 32, pieces=2)
        alice.send_multipart(codec.encode([self.spooled(0, "a" * 32)]))
        alice.send_multipart(codec.encode([self.spooled(1, "a" * 32)]))
        delivered: list[Any] = []
        while len(delivered) < 2:
            delivered += served.hear(bob)
        for number, one in enumerate(delivered):
            assert (one.msg_ids, one.bodies) == ((f"message{number:05}",), (b"",))
            assert read(served.settings.paths.log, one.pointer).body == self.BODY

    def test_a_file_is_removed_when_its_connection_has_ended(self, served):
        alice, watcher = served.enter(2, "alice"), served.enter()
        served.enter(1, "bob")
        path = self.write_spool(served, "a" * 32)
        alice.send_multipart(codec.encode([self.spooled(0, "a" * 32), verbs.Bye()]))
        for _ in range(DEADLINE_MS // 10):
            served.turn(10)
            watcher.send_multipart(codec.encode([verbs.Status("s")]))  # wakes the loop
            if not path.exists():
                break
        assert not path.exists()
        with pytest.raises(zmq.Again):
            alice.recv_multipart(zmq.NOBLOCK)

    def test_a_file_is_removed_with_the_last_connection(self, served):
        alice = served.enter(3, "alice")
        path = self.write_spool(served, "a" * 32)
        refused = self.spooled(0, "a" * 32, target="alice2")
        alice.send_multipart(codec.encode([refused]))
        assert served.hear(alice)[0].code == "unknown_peer"
        assert served.server._spools.is_empty  # the file was not opened
        served.enter(1, "bob")
        alice.send_multipart(codec.encode([self.spooled(0, "a" * 32)._replace(msg_ids=("message99999",))]))
        while served.server._spools.is_empty:
            served.turn(5)
        for peer in served.peers:
            peer.send_multipart(codec.encode([verbs.Bye()]))
        for _ in range(DEADLINE_MS // 10):
            served.turn(10)
            if not path.exists():
                break
        assert not path.exists()

    def test_files_of_earlier_clients_are_removed_at_the_start(self, settings):
        spool = Path(settings.paths.spool)
        spool.mkdir(mode=0o700, parents=True)
        Path(settings.data_dir).chmod(0o700)
        (spool / ("a" * 32)).write_bytes(b"left")
        server = Server(settings, Log(settings.paths.broker_log))
        server.open()
        server.close()
        assert list(spool.iterdir()) == []

    def test_a_spool_directory_that_others_can_read_is_refused(self, settings):
        spool = Path(settings.paths.spool)
        spool.mkdir(mode=0o700, parents=True)
        Path(settings.data_dir).chmod(0o700)
        spool.chmod(0o750)
        server = Server(settings, Log(settings.paths.broker_log))
        with pytest.raises(Unauthorized, match="chmod 700"):
            server.open()
        server.close()

    def test_the_bytes_read_in_a_wake_are_bounded(self, served, monkeypatch):
        monkeypatch.setattr(spool_reader, "WAKE_BYTES", 100_000)
        monkeypatch.setattr(server_module, "WAKE_BYTES", 100_000)
        alice, bob = served.enter(2, "alice"), served.enter(1, "bob")
        self.write_spool(served, "a" * 32, pieces=10)
        for number in range(10):
            alice.send_multipart(codec.encode([self.spooled(number, "a" * 32)]))
        delivered: list[Any] = []
        while len(delivered) < 10:
            delivered += served.hear(bob)
            assert served.server._spools.read_bytes <= 140_000
        assert [one.msg_ids[0] for one in delivered] == [f"message{number:05}" for number in range(10)]

    def test_bodies_over_the_bound_in_one_message_are_refused(self, served, monkeypatch):
        monkeypatch.setattr(spool_reader, "WAKE_BYTES", 100_000)
        alice = served.enter(2, "alice")
        served.enter(1, "bob")
        self.write_spool(served, "a" * 32, pieces=10)
        alice.send_multipart(codec.encode([self.spooled(number, "a" * 32) for number in range(10)]))
        codes = [one.code for one in served.hear(alice) if isinstance(one, verbs.Refused)]
        assert codes == ["rate_limited"] * 8

    def test_the_codec_sends_each_spooled_body_by_itself(self):
        many = [self.spooled(number, "a" * 32) for number in range(3)]
        assert [len(batch) for batch in codec.batches(many)] == [1, 1, 1]
