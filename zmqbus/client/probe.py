"""One look at the broker that starts none: whether it answers, and what it says. For whoever looks for faults."""

from __future__ import annotations

import time
from typing import Any

import zmq

import zmqbus
from zmqbus import codec, protocol, security
from zmqbus.client import core
from zmqbus.client.taken import TakenIds
from zmqbus.errors import BrokerUnavailable, ProtocolError, ZmqbusError
from zmqbus.protocol import Role
from zmqbus.settings import Settings

#: A broker answers within milliseconds; one that takes so long is stopped, or drowned.
PATIENCE_S = 3.0


def probe(settings: Settings, patience_s: float = PATIENCE_S) -> dict[str, Any]:
    """The figures of the broker on the settings' port.

    Makes nothing and starts nothing, but for keys where there are none; see to that before. Raises `BrokerUnavailable`
    if no broker answers in time, or one of another protocol does, and `Unauthorized` where the keys are not in order.
    """
    keys = security.client_keys(settings.data_dir)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        security.curve_client(dealer, keys)
        dealer.linger = 0  # or whoever looks would wait for a broker that hangs
        dealer.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_FRAME_BYTES)
        dealer.connect(f"tcp://127.0.0.1:{settings.port}")
        return _ask(dealer, settings.port, time.monotonic() + patience_s, patience_s)
    finally:
        dealer.close()
        context.term()


def _ask(dealer: zmq.Socket[bytes], port: int, deadline_s: float, patience_s: float) -> dict[str, Any]:
    client = core.ClientCore(core.Persona(role=Role.OBSERVER), zmqbus.__version__, TakenIds())
    decoder = codec.Decoder(from_broker=True)
    effects = client.handle(time.monotonic(), core.Up())
    asked = False
    while True:
        if client.phase is core.Phase.READY and not asked:
            asked = True
            effects += client.request(protocol.Status("probe"))
        out = [effect.envelope for effect in effects if isinstance(effect, core.Transmit)]
        if out:
            dealer.send_multipart(codec.encode(out))
        for effect in effects:
            if isinstance(effect, core.Closed):
                raise effect.reason or BrokerUnavailable(f"the broker on port {port} has refused to talk")
            if isinstance(effect, core.Response):
                if isinstance(effect.envelope, ZmqbusError):
                    raise effect.envelope
                if isinstance(effect.envelope, protocol.Health):
                    dealer.send_multipart(codec.encode([protocol.Bye()]))
                    return dict(effect.envelope.figures)
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not dealer.poll(int(left_s * 1000) + 1):
            raise BrokerUnavailable(f"the broker on port {port} does not answer within {patience_s:g} s")
        try:
            envelopes = decoder.decode(dealer.recv_multipart())
        except ProtocolError:
            effects = []
            continue
        effects = client.handle(time.monotonic(), core.Received(envelopes))
