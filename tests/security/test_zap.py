"""Authentication (ZAP): the rule, and real handshakes over loopback."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket as plain_socket
import time
from collections.abc import Iterator

import pytest
import zmq
import zmq.auth
import zmq.utils.monitor
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from zmqbus.security import zap
from zmqbus.security.keys import ClientKeys, broker_keys, client_keys, curve_client
from zmqbus.security.zap import RETIRED_S, ZAP_ENDPOINT, ZapHandler, curve_server, zap_reply

#: Far over the time of any step on a loaded machine.
DEADLINE_S = 90.0

FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)


RAW = bytes(range(32))
ALLOWED = frozenset([z85.encode(RAW)])
REQUEST = [b"1.0", b"7", b"zmqbus", b"127.0.0.1", b"", b"CURVE", RAW]


class TestZapReply:
    def test_key_of_the_user_is_accepted(self):
        assert zap_reply(REQUEST, ALLOWED) == [b"1.0", b"7", b"200", b"OK", b"user", b""]

    @pytest.mark.parametrize(
        ("position", "value", "status"),
        [
            (0, b"2.0", b"500"),
            (3, b"10.0.0.1", b"400"),
            (3, b"::1", b"400"),
            (3, b"", b"400"),
            (3, b"1127.0.0.1", b"400"),
            (5, b"NULL", b"400"),
            (5, b"PLAIN", b"400"),
            (5, b"GSSAPI", b"400"),
            (5, b"curve", b"400"),
            (6, bytes(32), b"400"),
            (6, RAW[:31], b"500"),
            (6, b"", b"500"),
            (6, z85.encode(RAW), b"500"),
        ],
    )
    def test_other_requests_are_refused(self, position, value, status):
        request = [*REQUEST[:position], value, *REQUEST[position + 1 :]]
        answer = zap_reply(request, ALLOWED)
        assert answer is not None
        assert (answer[:3], len(answer), answer[4]) == ([b"1.0", b"7", status], 6, b"")
        assert answer[3]

    def test_everyone_is_refused_without_allowed_keys(self):
        assert zap_reply(REQUEST, frozenset()) != zap_reply(REQUEST, ALLOWED)

    @pytest.mark.parametrize("length", range(6))
    def test_truncated_request_gets_500_or_nothing(self, length):
        answer = zap_reply(REQUEST[:length], ALLOWED)
        assert answer is None if length < 2 else answer is not None and answer[2] == b"500"

    def test_mechanisms_without_credentials(self):
        assert zap_reply([*REQUEST[:5], b"NULL"], ALLOWED)[2] == b"400"  # type: ignore[index]
        assert zap_reply(REQUEST[:6], ALLOWED)[2] == b"500"  # type: ignore[index]
        assert zap_reply([*REQUEST, b"more"], ALLOWED)[2] == b"500"  # type: ignore[index]

    @given(
        st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(REQUEST)), max_size=9),
        st.frozensets(st.binary(min_size=40, max_size=40), max_size=2),
    )
    def test_only_allowed_keys_over_loopback_are_accepted(self, frames, others):
        answer = zap_reply(frames, ALLOWED | others)
        if answer is not None and answer[2] == b"200":
            assert frames[0] == b"1.0" and frames[5] == b"CURVE" and frames[3].startswith(b"127.")
            assert z85.encode(frames[6]) in ALLOWED | others and len(frames) == 7


class Bus:
    """A server with the broker's keys and its ZAP handler, polled as the broker would."""

    def __init__(self, data: str, *, handler: bool = True) -> None:
        self.keys = broker_keys(data)
        self.client_keys = client_keys(data)
        self.context: zmq.Context = zmq.Context()
        allowed = self.keys.allowed_clients
        self.zap: ZapHandler | None = ZapHandler(self.context, allowed) if handler else None
        self.server = self.context.socket(zmq.ROUTER)
        curve_server(self.server, self.keys)
        self.monitor = self.server.get_monitor_socket()
        port = self.server.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.clients: list[zmq.Socket] = []

    def client(self, keys: ClientKeys | None = None, context: zmq.Context | None = None) -> zmq.Socket:
        """A client socket, to be closed with the bus."""
        client = (context or self.context).socket(zmq.DEALER)
        self.clients.append(client)
        client.linger = 0
        if keys is not None:
            curve_client(client, keys)
        return client

    def receives(self, *, refusals: int = 0) -> bool:
        """Polls as the broker does until a message arrives (True) or so many handshakes have failed (False)."""
        poller = zmq.Poller()
        poller.register(self.server, zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)
        if self.zap is not None:
            for one in self.zap.sockets:
                poller.register(one, zmq.POLLIN)
        deadline = time.monotonic() + DEADLINE_S
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poller.poll(math.ceil(left * 1000)))
            if self.zap is not None and not ready.keys().isdisjoint(self.zap.sockets):
                self.zap.handle()
            if self.server in ready:
                self.server.recv_multipart()
                return True
            if self.monitor in ready:
                event = zmq.utils.monitor.recv_monitor_message(self.monitor)["event"]
                if refusals:  # otherwise the handshake of another client may fail
                    assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
                    refusals -= event in FAILURES
                    if not refusals:
                        return False
        raise AssertionError("neither accepted nor refused")

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if self.zap is not None:
            self.zap.close()
        self.server.disable_monitor()
        self.monitor.close(0)
        self.server.close(0)
        self.context.term()


@pytest.fixture
def bus(data) -> Iterator[Bus]:
    bus = Bus(data)
    yield bus
    bus.close()


def fresh_pair() -> tuple[bytes, bytes]:
    return zmq.curve_keypair()


class TestHandshakes:
    def test_client_of_the_user_connects(self, bus):
        client = bus.client(bus.client_keys)
        client.connect(bus.endpoint)
        client.send(b"hello")
        assert bus.receives()
        assert bus.zap.refused == 0

    def test_client_with_another_key_is_refused(self, bus):
        public, secret = fresh_pair()
        client = bus.client(ClientKeys(bus.keys.public, public, secret))
        client.connect(bus.endpoint)
        client.send(b"hello")
        assert not bus.receives(refusals=1)
        assert bus.zap.refused == 1

    def test_client_of_another_broker_sends_nothing(self, bus):
        client = bus.client(bus.client_keys._replace(server_public=fresh_pair()[0]))
        client.connect(bus.endpoint)
        client.send(b"hello")
        assert not bus.receives(refusals=1)

    def test_client_without_a_mechanism_is_refused(self, bus):
        client = bus.client()
        client.connect(bus.endpoint)
        client.send(b"hello")
        assert not bus.receives(refusals=1)

    def test_client_with_a_password_is_refused(self, bus):
        client = bus.client()
        client.plain_username, client.plain_password = b"user", b"secret"
        client.connect(bus.endpoint)
        client.send(b"hello")
        assert not bus.receives(refusals=1)

    def test_junk_on_other_connections_does_no_harm(self, bus):
        port = int(bus.endpoint.rsplit(":", 1)[1])
        with plain_socket.create_connection(("127.0.0.1", port), DEADLINE_S) as junk:
            junk.sendall(os.urandom(10_000))
            with plain_socket.create_connection(("127.0.0.1", port), DEADLINE_S) as half:
                half.sendall(b"\xff\0\0\0\0\0\0\0\1\x7f\3")
                client = bus.client(bus.client_keys)
                client.connect(bus.endpoint)
                client.send(b"hello")
                assert bus.receives()

    def test_nobody_connects_without_a_handler(self, data):
        with contextlib.closing(Bus(data, handler=False)) as bus:
            client = bus.client(bus.client_keys)
            client.connect(bus.endpoint)
            client.send(b"hello")
            assert not bus.receives(refusals=1)

    def test_handler_survives_malformed_requests(self, bus):
        asker = bus.context.socket(zmq.DEALER)
        bus.clients.append(asker)
        asker.linger = 0
        asker.connect(ZAP_ENDPOINT)
        asker.send_multipart([b"no", b"delimiter"])
        asker.send_multipart([b"", b"1.0"])
        asker.send_multipart([b"", b"1.0", b"9", b"", b"127.0.0.1", b"", b"NULL"])
        while bus.zap.refused < 3:
            assert bus.zap.socket.poll(DEADLINE_S * 1000)
            bus.zap.handle()
        assert asker.poll(DEADLINE_S * 1000)
        assert asker.recv_multipart() == [b"", b"1.0", b"9", b"400", b"only CURVE is spoken here", b"", b""]

    def test_flood_is_answered_in_portions(self, bus, monkeypatch):
        monkeypatch.setattr(zap, "MAX_HANDSHAKES", 5)
        asker = bus.context.socket(zmq.DEALER)
        bus.clients.append(asker)
        asker.linger = 0
        asker.connect(ZAP_ENDPOINT)
        for number in range(12):
            asker.send_multipart([b"", *REQUEST[:1], b"%d" % number, *REQUEST[2:]])
        assert [bus.zap.handle() for _ in range(4)] == [5, 5, 2, 0]

    def test_second_handler_fails_and_closes_its_socket(self, bus, monkeypatch):
        closed: list[zmq.Socket] = []
        monkeypatch.setattr(zmq.Socket, "close", lambda self, linger=None: closed.append(self))
        with pytest.raises(zmq.ZMQError) as error:
            ZapHandler(bus.context, frozenset())
        # Not by the garbage collector: the error still holds the frame that holds the socket.
        assert error.value.errno == zmq.EADDRINUSE
        assert len(closed) == 1
        monkeypatch.undo()
        closed[0].close()


class TestRenewal:
    """The handler's socket is replaced while clients stay connected."""

    @pytest.fixture(autouse=True)
    def after_one_answer(self, monkeypatch) -> None:
        monkeypatch.setattr(zap, "RENEW_AFTER", 1)

    def connect(self, bus: Bus) -> zmq.Socket:
        client = bus.client(bus.client_keys)
        client.connect(bus.endpoint)
        client.send(b"hello")
        assert bus.receives()
        return client

    def test_connected_clients_stay_and_others_connect(self, bus):
        old = bus.zap.socket
        first = self.connect(bus)
        assert bus.zap.renew(100.0)
        assert bus.zap.sockets == (bus.zap.socket, old) and bus.zap.socket is not old
        assert not bus.zap.renew(100.0)  # requests on their way to the old one have time
        assert bus.zap.renew(100.0 + 2 * RETIRED_S)
        assert old.closed and bus.zap.sockets == (bus.zap.socket,)
        self.connect(bus)
        first.send(b"still here")
        assert bus.receives()
        assert bus.zap.refused == 0

    def test_unknown_keys_are_refused_afterwards(self, bus):
        self.connect(bus)
        assert bus.zap.renew(0.0)
        public, secret = fresh_pair()
        client = bus.client(ClientKeys(bus.keys.public, public, secret))
        client.connect(bus.endpoint)
        client.send(b"hello")
        while bus.zap.refused == 0:
            assert bus.zap.socket.poll(DEADLINE_S * 1000)
            bus.zap.handle()
        assert not bus.server.poll(0)

    def test_requests_to_the_old_socket_are_answered(self, bus):
        asker = bus.context.socket(zmq.DEALER)
        bus.clients.append(asker)
        asker.linger = 0
        asker.connect(ZAP_ENDPOINT)
        self.connect(bus)
        assert bus.zap.renew(0.0)
        retired = bus.zap.sockets[1]
        asker.send_multipart([b"", *REQUEST])
        assert retired.poll(DEADLINE_S * 1000)
        assert bus.zap.handle() == 1
        assert asker.poll(DEADLINE_S * 1000) and asker.recv_multipart()[2] == b"7"
        asker.send_multipart([b"", *REQUEST])
        assert retired.poll(DEADLINE_S * 1000)
        assert not bus.zap.renew(10.0)  # it answers this one, and waits again
        assert asker.poll(DEADLINE_S * 1000) and asker.recv_multipart()[2] == b"7"
        assert not bus.zap.renew(10.0 + RETIRED_S / 2)
        assert bus.zap.renew(10.0 + 2 * RETIRED_S) and retired.closed

    def test_not_before_many_answers(self, bus, monkeypatch):
        monkeypatch.setattr(zap, "RENEW_AFTER", 2)
        self.connect(bus)
        assert not bus.zap.renew(0.0)
        self.connect(bus)
        assert bus.zap.renew(0.0)

    def test_never_where_a_missing_handler_would_accept_everyone(self, data, monkeypatch):
        """For a moment between the two sockets there is no handler."""
        monkeypatch.setattr(zap, "_enforces_domain", lambda socket: False)
        with contextlib.closing(Bus(data)) as bus:
            self.connect(bus)
            assert bus.zap is not None and not bus.zap.renew(0.0)

    def test_old_socket_stays_when_no_other_can_be_opened(self, bus, monkeypatch):
        self.connect(bus)

        def fail(*_: object) -> None:
            raise zmq.ZMQError(errno.EMFILE)

        with monkeypatch.context() as full:
            full.setattr(bus.zap, "_open", fail)
            assert not bus.zap.renew(0.0)
        self.connect(bus)
        assert bus.zap.renew(0.0)
