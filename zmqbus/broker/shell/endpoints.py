"""Creates and binds the broker's two sockets: a ROUTER for directed envelopes, and an XPUB for broadcasts."""

from __future__ import annotations

import random
from contextlib import suppress

import zmq

from zmqbus.errors import BrokerUnavailable
from zmqbus.security.keys import BrokerKeys
from zmqbus.security.zap import curve_server
from zmqbus.wire import verbs

#: Messages queued for one peer before it counts as gone. Credit keeps an honest peer far below (1,000 messages, many of
#: which travel as one); only a peer that asks without reading gets here.
PEER_HWM = 400
#: Messages of one peer that wait for the next wake, which takes as many (`server.DRAIN_MESSAGES`). Each may hold 512
#: envelopes.
PEER_IN_HWM = 200
#: Subscriptions of one peer that wait to be processed. (With 1, libzmq 4.3.5 never finishes reading a message of
#: several frames.)
SUBSCRIBER_IN_HWM = 8
#: Time limit of a handshake, so that half-open connections do not pile up.
HANDSHAKE_MS = 5_000
#: Connections that may wait for their handshake: 1,000 sessions may connect at once.
BACKLOG = 1_024
#: Greatest length of a subscription; nothing else is sent to the PUB.
MAX_SUBSCRIPTION_BYTES = 16 * 1024
#: How long a closing broker tries to send its last messages.
LINGER_MS = 500
#: An option of libzmq's context that pyzmq does not name. It keeps frames in the buffer that they were read into, which
#: takes another page for each connection, 8 MB for 1,000 sessions; with CURVE all frames are copied anyway.
_ZERO_COPY_RECV = 10
#: Range of the broadcast port, and of the router's if its own is held: below every system's ephemeral ports. A client
#: that retries a closed ephemeral port can be given that very port and connect to itself.
ANY_PORTS = range(10_000, 30_000)


def new_context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context of its own for the broker's sockets."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with suppress(zmq.ZMQError):  # a libzmq without this option just needs more memory
        context.set(_ZERO_COPY_RECV, 0)
    return context


def _secure(socket: zmq.Socket[bytes], keys: BrokerKeys) -> None:
    """Sets the options that both sockets share."""
    curve_server(socket, keys)
    socket.linger = LINGER_MS  # without it, term() would wait for peers that never read
    socket.sndhwm = PEER_HWM  # without it, a peer that does not read would grow the broker
    socket.rcvhwm = PEER_IN_HWM  # bounds a flood between two wakes; TCP holds the rest back
    socket.handshake_ivl = HANDSHAKE_MS  # by default an unfinished handshake would hold its connection for 30 s
    socket.backlog = BACKLOG  # with 100, some of many simultaneous clients would be refused


def router(context: zmq.Context[zmq.Socket[bytes]], keys: BrokerKeys) -> zmq.Socket[bytes]:
    """The socket for directed envelopes."""
    socket = context.socket(zmq.ROUTER)
    _secure(socket, keys)
    socket.router_mandatory = True  # sending to a route that is gone raises
    socket.setsockopt(zmq.MAXMSGSIZE, verbs.MAX_FRAME_BYTES)  # otherwise a giant frame would be read to its end
    return socket


def publisher(context: zmq.Context[zmq.Socket[bytes]], keys: BrokerKeys) -> zmq.Socket[bytes]:
    """The socket for broadcasts, an XPUB: a PUB that receives its subscriptions."""
    socket = context.socket(zmq.XPUB)
    _secure(socket, keys)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_SUBSCRIPTION_BYTES)
    # libzmq processes subscriptions until none is left, however long it takes. With a short queue, a peer that sends
    # them without end has to wait, and the loop goes on.
    socket.rcvhwm = SUBSCRIBER_IN_HWM
    return socket


def bind_any(socket: zmq.Socket[bytes]) -> int:
    """Binds a socket to a free port of `ANY_PORTS`, which is returned. Raises `BrokerUnavailable` if none is free."""
    for port in random.sample(ANY_PORTS, 200):
        try:
            socket.bind(f"tcp://127.0.0.1:{port}")
        except zmq.ZMQError:
            continue
        return port
    raise BrokerUnavailable("no free port between 10000 and 29999; end the programs that hold them")
