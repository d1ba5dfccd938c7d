"""A look at the broker that starts none: whether it answers, what it says, who is there. For whoever only watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import zmq

import zmqbus
from zmqbus.client import core
from zmqbus.client.launch import at_broker, check_loopback, check_reach
from zmqbus.client.seen import TakenIds
from zmqbus.client.transport import endpoint
from zmqbus.errors import BrokerUnavailable, ProtocolError, ZmqbusError
from zmqbus.security.keys import client_keys, curve_client
from zmqbus.settings import Settings
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Role

#: A broker answers within milliseconds; one that takes so long is stopped, or drowned.
PATIENCE_S = 3.0


class Probe:
    """A connection to the broker on the settings' port, for some questions; a context manager.

    Makes nothing and starts nothing, but for keys where there are none; see to that before. Everything here, all
    together, takes at most `patience_s`, and raises `BrokerUnavailable` if no broker answers in that time, or one of
    another protocol does, and `Unauthorized` where the keys are not in order.
    """

    def __init__(self, settings: Settings, patience_s: float = PATIENCE_S) -> None:
        self._settings = settings = at_broker(settings)
        self._port = settings.port
        self._patience_s = patience_s
        self._deadline_s = time.monotonic() + patience_s
        self._refs = 0
        self._responses: dict[str, verbs.Envelope | ZmqbusError] = {}
        self._client = core.ClientCore(core.Persona(role=Role.OBSERVER), zmqbus.__version__, TakenIds())
        self._decoder = codec.Decoder(from_broker=True)
        keys = client_keys(settings.data_dir)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        curve_client(self._dealer, keys)
        self._dealer.linger = 0  # or whoever looks would wait for a broker that hangs
        self._dealer.setsockopt(zmq.MAXMSGSIZE, verbs.MAX_FRAME_BYTES)

    def __repr__(self) -> str:
        return f"<Probe of port {self._port}: {self._client!r}>"

    def __enter__(self) -> Probe:
        try:
            check_reach(self._settings)
            self._dealer.connect(endpoint(self._port))
            self._perform(self._client.handle(time.monotonic(), core.Up()))
            while self._client.phase is not core.Phase.READY:
                self._turn()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection. Idempotent."""
        if not self._dealer.closed:
            if self._client.phase is core.Phase.READY:
                self._dealer.linger = 100
                self._perform(self._client.bye())
            self._dealer.close()
            self._context.term()

    def figures(self) -> dict[str, Any]:
        """What the broker counts; see `zmqbus.wire.metrics_catalogue`."""
        health = self._ask(verbs.Status)
        assert isinstance(health, verbs.Health)
        return dict(health.figures)

    def sessions(self, *, everyone: bool = False) -> list[verbs.Session]:
        """The connected sessions; with `everyone` those that are away, too."""
        rows: list[verbs.Session] = []
        while True:
            after = rows[-1].session_id if rows else ""
            page = self._ask(lambda ref, after=after: verbs.List(ref, everyone, after))  # type: ignore[misc]
            assert isinstance(page, verbs.Sessions)
            rows += [verbs.Session._make(row) for row in page.rows]
            if not page.more:
                return rows

    def _ask(self, make: Callable[[str], verbs.Envelope]) -> verbs.Envelope:
        self._refs += 1
        ref = f"p{self._refs}"
        self._perform(self._client.request(make(ref)))
        while ref not in self._responses:
            self._turn()
        response = self._responses.pop(ref)
        if isinstance(response, ZmqbusError):
            raise response
        return response

    def _turn(self) -> None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0 or not self._dealer.poll(int(left_s * 1000) + 1):
            check_loopback(self._port)
            raise BrokerUnavailable(
                f"the broker on port {self._port} does not answer within {self._patience_s:g} s; see: zmqbus doctor"
            )
        try:
            envelopes = self._decoder.decode(self._dealer.recv_multipart())
        except ProtocolError:
            return  # a newer broker's verb
        self._perform(self._client.handle(time.monotonic(), core.Received(envelopes)))

    def _perform(self, effects: list[core.Effect]) -> None:
        out: list[verbs.Envelope] = []
        for effect in effects:
            match effect:
                case core.Transmit(envelope):
                    out.append(envelope)
                case core.Response(ref, response):
                    self._responses[ref] = response
                case core.Closed(reason):
                    raise reason or BrokerUnavailable(f"the broker on port {self._port} has refused to talk")
        if out:
            self._dealer.send_multipart(codec.encode(out))
