"""Memory pressure: which connections are closed, and which are not. (See also real/test_floods.py.)"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from zmqbus.broker.shell.pressure import (
    HARD_BYTES,
    LOOK_S,
    MAX_SUBSCRIBING_BYTES,
    SETTLED_S,
    SOFT_BYTES,
    WATCH_S,
    MemoryPressure,
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux counts a connection's bytes")


class Net:
    """Two ports of this process, and peers that are connected to them."""

    def __init__(self) -> None:
        self._listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.ports = tuple(listener.getsockname()[1] for listener in self._listeners)
        self._made: list[socket.socket] = []
        self.watch = MemoryPressure(*self.ports)
        self.grown = 0
        self.watch._resident_bytes = lambda: self.watch._base_bytes + self.grown  # type: ignore[method-assign]
        self.now_s = 0.0

    def peer(self, port: int = 0) -> tuple[socket.socket, socket.socket]:
        """A connection: the peer's end, and the broker's."""
        peer = socket.create_connection(("127.0.0.1", self.ports[port]))
        own, _ = self._listeners[port].accept()
        own.settimeout(10)
        peer.settimeout(10)
        self._made += [peer, own]
        return peer, own

    def say(self, ends: tuple[socket.socket, socket.socket], size: int) -> None:
        peer, own = ends
        peer.sendall(bytes(size))
        left = size
        while left:
            left -= len(own.recv(left))

    def look(self, grown: int, after_s: float = LOOK_S) -> list[str]:
        self.grown = grown
        self.now_s += after_s
        return self.watch.look(self.now_s, lambda: 0)

    def close(self) -> None:
        self.watch.close()
        for one in (*self._made, *self._listeners):
            one.close()


@pytest.fixture
def net() -> Iterator[Net]:
    net = Net()
    yield net
    net.close()


def is_closed(ends: tuple[socket.socket, socket.socket]) -> bool:
    peer, _ = ends
    peer.setblocking(False)
    try:
        return peer.recv(1 << 20) == b""
    except BlockingIOError:
        return False
    finally:
        peer.settimeout(10)


def test_below_the_bound_no_connection_is_closed(net: Net) -> None:
    loud = net.peer()
    assert net.look(0) == []
    assert net.watch.wait_s == LOOK_S
    net.look(SOFT_BYTES)
    assert net.watch.wait_s == WATCH_S
    net.say(loud, 1_000_000)
    assert net.look(HARD_BYTES - 1) == []
    assert not is_closed(loud)
    net.look(0)
    assert net.watch.wait_s == LOOK_S and net.watch.closed == 0


def test_the_connection_that_has_sent_most_is_closed(net: Net) -> None:
    old, loud, quiet = net.peer(), net.peer(), net.peer()
    net.say(old, 3_000_000)  # before the watch
    net.look(SOFT_BYTES)
    net.say(loud, 2_000_000)
    net.say(quiet, 1_000)
    (line,) = net.look(HARD_BYTES)
    assert "2,000,000 bytes" in line
    assert [is_closed(one) for one in (old, loud, quiet)] == [False, True, False]


def test_memory_that_the_broker_keeps_does_not_count(net: Net) -> None:
    loud = net.peer()
    net.look(SOFT_BYTES)
    net.say(loud, 1_000_000)
    net.grown = 10 * HARD_BYTES
    assert net.watch.look(net.now_s + 1, lambda: 10 * HARD_BYTES - SOFT_BYTES) == []
    assert not is_closed(loud)


def test_a_connection_that_reads_nothing_is_closed_first(net: Net) -> None:
    deaf, loud = net.peer(), net.peer()
    _, own = deaf
    own.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            own.send(bytes(100_000))
    net.look(SOFT_BYTES)
    net.say(loud, 1_000_000)
    (line,) = net.look(HARD_BYTES)
    assert "reads nothing" in line
    assert not is_closed(loud)


def test_a_flood_of_subscriptions_is_closed(net: Net) -> None:
    loud, flood, honest = net.peer(), net.peer(1), net.peer(1)
    net.say(flood, MAX_SUBSCRIBING_BYTES + 1)
    net.say(honest, 5_000)
    net.look(SOFT_BYTES)
    net.say(loud, 1_000_000)
    assert is_closed(flood) and not is_closed(honest) and not is_closed(loud)


def test_a_connection_that_has_sent_before_the_watch_is_found_later(net: Net) -> None:
    stalled = net.peer()
    net.say(stalled, 1_000_000)
    net.look(HARD_BYTES)
    assert not is_closed(stalled)
    net.look(HARD_BYTES, WATCH_S)
    assert net.look(HARD_BYTES, SETTLED_S + 1)
    assert is_closed(stalled)


def test_settled_growth_is_checked_less_often(net: Net) -> None:
    net.look(SOFT_BYTES)
    net.look(SOFT_BYTES, SETTLED_S + 1)
    assert net.watch._due_s == net.now_s + SETTLED_S


def test_connections_to_other_ports_are_ignored(net: Net) -> None:
    other = socket.create_server(("127.0.0.1", 0))
    with other, socket.create_connection(other.getsockname()) as peer:
        own, _ = other.accept()
        with own:
            net.look(SOFT_BYTES)
            peer.sendall(bytes(100_000))
            assert net.look(HARD_BYTES) == []


def test_without_proc_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_proc(*_: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", no_proc)
    watch = MemoryPressure(1, 2)
    assert watch.wait_s is None and watch.look(1.0, lambda: 0) == []
    watch.close()


def test_thread_closes_a_subscriber_that_sends_too_much(net: Net) -> None:
    """The broker's loop does not look while libzmq reads a flood of subscriptions."""
    net.grown = SOFT_BYTES
    honest, flooding = net.peer(1), net.peer(1)
    net.say(honest, 1_000)
    net.say(flooding, MAX_SUBSCRIBING_BYTES + 1)
    net.watch.start()
    assert flooding[0].recv(1) == b""
    net.say(honest, 1)
    net.watch.close()
    assert net.look(SOFT_BYTES) == [
        f"closed a connection: it has sent {MAX_SUBSCRIBING_BYTES + 1:,} bytes of subscriptions"
    ]
    assert net.watch.closed == 1
