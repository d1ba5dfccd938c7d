"""Behaviour of libzmq that this project relies on, though its manual does not promise all of it.

If a test fails with another libzmq, its docstring names the decision that has to be reconsidered.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from struct import unpack_from
from typing import Any

import pytest
import zmq

from zmqbus.security.keys import BrokerKeys, ClientKeys, curve_client
from zmqbus.security.zap import ZapHandler, curve_server
from zmqbus.wire import verbs

#: Deadline for events that must happen.
DEADLINE_MS = 90_000
#: Wait for events that must not happen: many times as long as they take when they do.
QUIET_MS = 300


class Wire:
    """One context, whose sockets are closed with it, and an address for them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.address = f"tcp://127.0.0.1:{port}"
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._stack = contextlib.ExitStack()

    def socket(self, kind: int, **options: Any) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.linger = 0
        for name, value in options.items():
            socket.setsockopt(getattr(zmq, name.upper()), value)
        self._stack.callback(socket.close)
        return socket

    def bound(self, kind: int, **options: Any) -> zmq.Socket[bytes]:
        socket = self.socket(kind, **options)
        socket.bind(self.address)
        return socket

    def connected(self, kind: int, **options: Any) -> zmq.Socket[bytes]:
        socket = self.socket(kind, **options)
        socket.connect(self.address)
        return socket

    def events(self, socket: zmq.Socket[bytes]) -> Callable[[], int]:
        """A function that waits for the next event of the socket's connections, and returns its number."""
        # Not get_monitor_socket() and disable_monitor(): the last event, MONITOR_STOPPED, is sent without a time limit,
        # and where the reader has gone before (a garbage collection is enough) the call never returns.
        address = f"inproc://monitor-{id(socket)}"
        socket.monitor(address, zmq.EVENT_ALL & ~zmq.EVENT_MONITOR_STOPPED)
        monitor = self.socket(zmq.PAIR)
        monitor.connect(address)

        def wait() -> int:
            assert monitor.poll(DEADLINE_MS), "nothing happens"
            (event,) = unpack_from("=H", monitor.recv_multipart()[0])
            return int(event)

        return wait

    def close(self) -> None:
        self._stack.close()
        self.context.term()


@pytest.fixture
def wire(free_port: int) -> Iterator[Wire]:
    wire = Wire(free_port)
    yield wire
    wire.close()


def bind_when_free(socket: zmq.Socket[bytes], port: int) -> None:
    """Binds a port whose last owner was closed a moment ago: a thread of libzmq does that later."""
    deadline_s = time.monotonic() + DEADLINE_MS / 1000
    while True:
        try:
            socket.bind(f"tcp://127.0.0.1:{port}")
            return
        except zmq.ZMQError as error:
            assert error.errno == zmq.EADDRINUSE and time.monotonic() < deadline_s
            time.sleep(0.005)


def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    assert socket.poll(DEADLINE_MS), "nothing arrives"
    return socket.recv_multipart()


def until(next_event: Callable[[], int], wanted: int) -> None:
    while next_event() != wanted:
        pass


# --- subscriptions


CHANNELS = [
    verbs.EVERYONE,
    verbs.channel(verbs.Scope.PROJECT, "/home/someone/work"),
    verbs.channel(verbs.Scope.TOPIC, "zoo"),
    verbs.channel(verbs.Scope.TOPIC, "ants"),
    verbs.name_channel("auth"),
]
MARK = verbs.mark_channel("0123456789abcdef")


@pytest.mark.parametrize("first", [True, False], ids=["mark set first", "mark set last"])
def test_filters_set_before_connecting_arrive_before_the_marker(wire, first):
    """`protocol.mark_channel`: when the broker sees the mark, all other subscriptions are in force."""
    subscriber = wire.socket(zmq.SUB)
    for channel in [MARK, *CHANNELS] if first else [*CHANNELS, MARK]:
        subscriber.subscribe(channel)
    publisher = wire.bound(zmq.XPUB)
    subscriber.connect(wire.address)
    arrived = [receive(publisher)[0] for _ in range(len(CHANNELS) + 1)]
    assert sorted(arrived) == sorted(b"\1" + channel for channel in [*CHANNELS, MARK])
    assert arrived[-1] == b"\1" + MARK


def test_filters_arrive_again_after_a_reconnect(wire, free_port):
    """A SUB reconnects to a new broker by itself, and the marker must mean the same there.

    (Only while its owner polls it: the thread that has the socket sends the filters.)
    """
    subscriber = wire.socket(zmq.SUB, reconnect_ivl=10)
    for channel in [*CHANNELS, MARK]:
        subscriber.subscribe(channel)
    subscriber.connect(wire.address)
    poller = zmq.Poller()
    poller.register(subscriber, zmq.POLLIN)
    for _ in range(2):
        publisher = wire.socket(zmq.XPUB)
        bind_when_free(publisher, free_port)
        poller.register(publisher, zmq.POLLIN)
        arrived: list[bytes] = []
        while len(arrived) <= len(CHANNELS):
            assert publisher in dict(poller.poll(DEADLINE_MS)), "nothing arrives"
            arrived.append(publisher.recv())
        assert sorted(arrived) == sorted(b"\1" + channel for channel in [*CHANNELS, MARK])
        assert arrived[-1] == b"\1" + MARK
        poller.unregister(publisher)
        publisher.close()


def test_killed_subscriber_is_unsubscribed(wire, free_port):
    """`core.Unmarked`: the one sign of a dead peer that libzmq gives at once."""
    publisher = wire.bound(zmq.XPUB)
    script = (
        "import sys, zmq; s = zmq.Context().socket(zmq.SUB); "
        f"s.subscribe({MARK!r}); s.connect('tcp://127.0.0.1:{free_port}'); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
        assert receive(publisher) == [b"\1" + MARK]
        process.send_signal(signal.SIGKILL)
        assert receive(publisher) == [b"\0" + MARK]


def test_second_subscriber_of_a_channel_is_hidden(wire):
    """Why each lease has a channel of its own: XPUB reports only the first and the last subscriber of a channel."""
    publisher = wire.bound(zmq.XPUB)
    for own in (b"~one\0", b"~two\0"):
        subscriber = wire.socket(zmq.SUB)
        subscriber.subscribe(verbs.EVERYONE)
        subscriber.subscribe(own)
        subscriber.connect(wire.address)
        while receive(publisher) != [b"\1" + own]:
            pass
    subscriber.close()
    assert receive(publisher) == [b"\0" + b"~two\0"]  # not EVERYONE, to which the other is still subscribed


def test_a_filter_is_a_prefix(wire):
    """Why each channel ends with a terminator and is compared again."""
    publisher = wire.bound(zmq.XPUB)
    subscriber = wire.socket(zmq.SUB)
    subscriber.subscribe(b"@al")
    subscriber.connect(wire.address)
    receive(publisher)
    publisher.send_multipart([b"@alice\0", b"for her"])
    assert receive(subscriber) == [b"@alice\0", b"for her"]


def test_messages_of_subscribers_are_visible_unless_they_are_subscriptions(wire):
    """XPUB returns messages of XSUB peers to its owner: `server._drain_subscriptions` has to drop them."""
    publisher = wire.bound(zmq.XPUB)
    rogue = wire.connected(zmq.XSUB)
    rogue.send_multipart([b"\2junk", b"more"])
    assert receive(publisher)[0] == b"\2junk"


# --- routes


def test_an_unknown_route_is_an_error(wire):
    """`core.Unreachable`: with ROUTER_MANDATORY the broker hears of it instead of losing the message."""
    router = wire.bound(zmq.ROUTER, router_mandatory=1)
    with pytest.raises(zmq.ZMQError) as caught:
        router.send_multipart([b"\0abcd", b"hello"], zmq.NOBLOCK)
    assert caught.value.errno == zmq.EHOSTUNREACH


def test_a_route_whose_peer_does_not_read_is_an_error_at_the_high_water_mark(wire):
    """Why `server._send_all` expects EAGAIN: a peer that sends without reading is dropped, and blocks nobody."""
    router = wire.bound(zmq.ROUTER, router_mandatory=1, sndhwm=10, sndbuf=4096)
    peer = wire.connected(zmq.DEALER, rcvhwm=1, rcvbuf=4096)
    peer.send(b"here")
    route, _ = receive(router)
    with pytest.raises(zmq.Again):
        for _ in range(100_000):
            router.send_multipart([route, bytes(4096)], zmq.NOBLOCK)


def test_drawn_routes_differ_and_begin_with_a_zero_byte(wire):
    """`broker.registry`: a connection is known by its route."""
    router = wire.bound(zmq.ROUTER, router_mandatory=1)
    for _ in range(50):
        peer = wire.connected(zmq.DEALER)
        peer.send(b"")
    routes = {receive(router)[0] for _ in range(50)}
    assert len(routes) == 50
    assert {(len(route), route[:1]) for route in routes} == {(5, b"\0")}


def test_a_drawn_route_in_use_cannot_be_taken(wire):
    """No peer can pose as another connection, though it may ask for any route, also for a drawn one."""
    router = wire.bound(zmq.ROUTER, router_mandatory=1)
    honest = wire.connected(zmq.DEALER)
    honest.send(b"first")
    route, _ = receive(router)
    thief = wire.connected(zmq.DEALER, routing_id=route)
    thief.send(b"thief")
    assert not router.poll(QUIET_MS)
    router.send_multipart([route, b"answer"])
    assert receive(honest) == [b"answer"]
    assert not thief.poll(0)


def test_taking_a_route_before_it_is_drawn_ends_the_process(free_port):
    """Known, without a remedy in libzmq 4.3.5: it counts routes up and asserts that the next one is free.

    It takes a peer with the user's own key, which could as well send a signal; clients start another broker then.
    """
    script = f"""
import resource, zmq
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
context = zmq.Context()
router = context.socket(zmq.ROUTER)
router.bind("tcp://127.0.0.1:{free_port}")
def peer(route=None):
    dealer = context.socket(zmq.DEALER)
    if route is not None:
        dealer.routing_id = b"\\0" + route.to_bytes(4, "big")
    dealer.connect("tcp://127.0.0.1:{free_port}")
    dealer.send(b"")
    assert router.poll(10_000)
    return dealer, int.from_bytes(router.recv_multipart()[0][1:], "big")
honest, drawn = peer()
squatter, _ = peer((drawn + 1) % 2**32)
peer()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=90)
    assert done.returncode == -signal.SIGABRT
    assert b"Assertion failed" in done.stderr


def test_route_in_use_cannot_be_taken(wire):
    """Without ROUTER_HANDOVER a second peer with the same name is ignored silently, and the first stays."""
    router = wire.bound(zmq.ROUTER, router_mandatory=1)
    first = wire.connected(zmq.DEALER, routing_id=b"me")
    first.send(b"first")
    assert receive(router) == [b"me", b"first"]
    second = wire.connected(zmq.DEALER, routing_id=b"me")
    second.send(b"second")
    assert not router.poll(QUIET_MS)
    router.send_multipart([b"me", b"answer"])
    assert receive(first) == [b"answer"]


def test_frame_over_maxmsgsize_disconnects_only_its_sender(wire):
    router = wire.bound(zmq.ROUTER, router_mandatory=1, maxmsgsize=1000)
    honest, giant = wire.socket(zmq.DEALER), wire.socket(zmq.DEALER)
    next_event = wire.events(giant)
    for peer in (honest, giant):
        peer.connect(wire.address)
        peer.send(b"here")
        receive(router)
    until(next_event, zmq.EVENT_HANDSHAKE_SUCCEEDED)
    giant.send(bytes(1001))
    giant.send(b"goes down with it")
    until(next_event, zmq.EVENT_DISCONNECTED)
    honest.send(bytes(1000))
    assert receive(router)[1] == bytes(1000)


# --- CURVE


def curve_router(wire: Wire, port: int, allowed: frozenset[bytes]) -> tuple[zmq.Socket[bytes], bytes, Any]:
    public, secret = zmq.curve_keypair()
    zap = ZapHandler(wire.context, allowed)
    router = wire.socket(zmq.ROUTER)
    curve_server(router, BrokerKeys(public, secret, allowed))
    router.bind(f"tcp://127.0.0.1:{port}")
    wire._stack.callback(zap.close)
    return router, public, zap


@pytest.mark.parametrize("wrong", ["client key", "server key", "no CURVE"])
def test_wrong_keys_are_refused(wire, free_port, wrong):
    own, secret = zmq.curve_keypair()
    router, server_public, zap = curve_router(wire, free_port, frozenset((own,)))
    peers = []
    for right in (False, True):
        peer = wire.socket(zmq.DEALER, reconnect_ivl=20)
        keys = ClientKeys(server_public, own, secret)
        if not right and wrong == "client key":
            keys = ClientKeys(server_public, *zmq.curve_keypair())
        elif not right and wrong == "server key":
            keys = ClientKeys(zmq.curve_keypair()[0], own, secret)
        if right or wrong != "no CURVE":
            curve_client(peer, keys)
        next_event = wire.events(peer)
        peer.connect(wire.address)
        peer.send(b"right" if right else b"wrong")
        peers.append((peer, next_event))
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    poller.register(zap.socket, zmq.POLLIN)
    arrived: list[bytes] = []
    while not arrived:
        for ready, _ in poller.poll(DEADLINE_MS):
            if ready is zap.socket:
                zap.handle()
            else:
                arrived.append(router.recv_multipart()[1])
    # The wrong one began before the right one; it is given some more time, and tries again and again meanwhile.
    for _ in range(QUIET_MS // 20):
        for ready, _ in poller.poll(20):
            if ready is zap.socket:
                zap.handle()
            else:
                arrived.append(router.recv_multipart()[1])
    assert arrived == [b"right"]
    _, wrong_events = peers[0]
    event = wrong_events()
    while event in (zmq.EVENT_CONNECT_DELAYED, zmq.EVENT_CONNECTED, zmq.EVENT_CONNECT_RETRIED):
        event = wrong_events()
    assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED


def test_without_a_zap_handler_the_public_key_is_enough(wire):
    """Why the broker has a handler (`ZapHandler`) before its first socket binds."""
    public, secret = zmq.curve_keypair()
    router = wire.bound(zmq.ROUTER, curve_server=1, curve_secretkey=secret, curve_publickey=public)
    anyone = wire.socket(zmq.DEALER)
    curve_client(anyone, ClientKeys(public, *zmq.curve_keypair()))
    anyone.connect(wire.address)
    anyone.send(b"hello")
    assert receive(router)[1] == b"hello"


# --- addresses and pipes


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is there by itself on Linux only")
def test_a_source_address_can_be_bound(wire, free_port):
    """`link.endpoint`: from another source address, a socket that retries a port cannot connect to itself."""
    router = wire.bound(zmq.ROUTER)
    dealer = wire.socket(zmq.DEALER)
    dealer.connect(f"tcp://127.0.0.2:0;127.0.0.1:{free_port}")
    dealer.send(b"hello")
    assert router.poll(DEADLINE_MS)
    frame = router.recv_multipart(copy=False)[1]
    assert frame.bytes == b"hello"
    assert frame.get("Peer-Address") == "127.0.0.2"


def test_dealer_queues_messages_without_a_peer(wire):
    """A message that was sent into the void comes later: ids make it harmless."""
    dealer = wire.connected(zmq.DEALER, reconnect_ivl=10)
    dealer.send(b"early")
    router = wire.bound(zmq.ROUTER)
    assert receive(router)[1] == b"early"


def test_monitor_reports_handshake_and_loss(wire):
    """`link._drain_monitor`: the first two bytes of an event are its number, in the machine's order."""
    router = wire.bound(zmq.ROUTER)
    dealer = wire.socket(zmq.DEALER)
    dealer.monitor("inproc://watch", zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
    monitor = wire.socket(zmq.PAIR)
    monitor.connect("inproc://watch")
    dealer.connect(wire.address)
    assert unpack_from("=H", receive(monitor)[0]) == (zmq.EVENT_HANDSHAKE_SUCCEEDED,)
    router.close()
    assert unpack_from("=H", receive(monitor)[0]) == (zmq.EVENT_DISCONNECTED,)
    dealer.disable_monitor()


def test_poll_reports_a_pipe_without_a_reader(wire):
    """`listener._check_reader`: asked for no events at all, poll() reports that the reader has gone."""
    reader, writer = os.pipe()
    poller = select.poll()
    poller.register(writer, 0)
    try:
        assert poller.poll(0) == []
        os.close(reader)
        assert poller.poll(0) == [(writer, select.POLLERR)]
    finally:
        os.close(writer)
