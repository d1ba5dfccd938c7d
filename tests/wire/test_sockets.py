"""The frames of a message, over real sockets: nothing is waited for, and nothing overlooked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from zmqbus.wire import sockets

PATIENCE_MS = 20_000


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    router.linger = dealer.linger = 0
    router.router_mandatory = True
    port = router.bind_to_random_port("tcp://127.0.0.1")
    dealer.connect(f"tcp://127.0.0.1:{port}")
    yield router, dealer
    dealer.close()
    router.close()
    context.term()


@pytest.mark.parametrize("sent", [[b"one"], [b"", b""], [b"head", b"body", b"x" * 100_000]])
def test_message_arrives_unchanged(pair, sent):
    router, dealer = pair
    sockets.send(dealer, sent)
    assert router.poll(PATIENCE_MS)
    route, *parts = sockets.receive(router) or []
    assert parts == sent
    sockets.send(router, [route, b"back"])
    assert dealer.poll(PATIENCE_MS)
    assert sockets.receive(dealer) == [b"back"]


def test_receive_without_a_message_returns_none_at_once(pair):
    router, _ = pair
    assert not sockets.has_input(router)
    assert sockets.receive(router) is None


def test_unknown_route_is_an_error(pair):
    router, _ = pair
    with pytest.raises(zmq.ZMQError) as raised:
        sockets.send(router, [b"nobody", b"x"])
    assert raised.value.errno == zmq.EHOSTUNREACH


def test_full_socket_is_an_error(pair):
    context = pair[0].context
    full = context.socket(zmq.PUSH)  # it has no peer at all
    full.linger = 0
    with pytest.raises(zmq.Again):
        sockets.send(full, [b"one", b"two"])
    full.close()


def test_event_consumed_by_touch_is_noticed(pair):
    """The descriptor is edge-triggered: it may be quiet though a message is there. `receive` finds it."""
    router, dealer = pair
    for number in range(3):
        sockets.send(dealer, [str(number).encode()])
    assert router.poll(PATIENCE_MS)
    found: list[bytes] = []
    while len(found) < 3:
        message = sockets.receive(router)
        if message is None:
            assert router.poll(PATIENCE_MS)
        else:
            found.append(message[1])
    assert found == [b"0", b"1", b"2"]
