"""A client's shell: its sockets, and the search for a new broker when the old one is gone.

`pump` is the main loop's body: wait for an event, let the core decide, carry out the effects on the sockets, and return
the effects for the application. It has no thread of its own; the owner of a `Transport` calls `pump` from one thread.

A caller that must wait otherwise (`io_thread`, whose lock may not be held while it waits) polls `descriptors()` for
`wait_s()` seconds, and then calls `turn` with the readable ones. ZeroMQ's descriptors are edge-triggered: a socket that
was used may have input although its descriptor is quiet. So after a send, call `overlooked` before the next poll.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Collection, Iterable
from struct import unpack_from
from typing import TYPE_CHECKING

import zmq

from zmqbus.client import core, locate
from zmqbus.errors import BrokerUnavailable, PortHeld, ProtocolError, ZmqbusError
from zmqbus.security.keys import ClientKeys, client_keys, curve_client
from zmqbus.settings import Settings, warn_on_stderr
from zmqbus.system import descriptors
from zmqbus.system.pidfile import Served
from zmqbus.wire import codec, sockets, verbs

if TYPE_CHECKING:
    from zmqbus.client.launch import Launch
    from zmqbus.client.spool_writer import SpoolWriter

#: Seconds between two looks for a running broker, until WELCOME.
LOOK_S = 0.5
#: Without even a handshake for so many seconds, launch a broker whatever the pid file says: it may be left from one
#: that was killed, while a broker on another port holds the data directory; the launch finds that out and says so. Not
#: sooner: a thousand clients at once wait for seconds, and each launch would cost the broker 80 ms of a processor.
INSIST_S = 3.0
#: Without a WELCOME for so many seconds since the last launch, or since the handshake, give up.
CONNECT_S = 5.0
#: First and longest pause in seconds between two failed launches, for a patient client (a listener on a full disk).
BACKOFF_S = (0.5, 30.0)
#: How long what was said last may take to go out when a transport is closed: a broker that hangs keeps nobody.
LINGER_MS = 500
#: ZeroMQ messages read from one socket before the others get their turn.
DRAIN_MESSAGES = 100
#: File descriptors of a connection: context, sockets, monitor and the I/O thread's pipe are 11, a SUB is 2 more; and 8
#: for files that are open for a moment: keys, the log, or the pipes to a broker that is started.
DESCRIPTORS = 11 + 2 + 8
#: From this port on the kernel may choose source ports.
EPHEMERAL_FROM = 30_000

# Not MONITOR_STOPPED: libzmq sends that without a time limit, and a monitor that is no longer read hangs the close.
_WATCHED = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED
#: Phases before WELCOME.
_WITHOUT = (core.Phase.OFFLINE, core.Phase.GREETING)
#: Effects for the sockets, except `Transmit`.
_OURS = frozenset((core.Subscribe, core.Retune, core.Welcomed, core.Spool, core.Unspool))


def endpoint(port: int) -> str:
    """Returns the endpoint that a client connects to."""
    # A socket that retries a closed port in the ephemeral range can be given that very port as its own, connect to
    # itself, and so keep the broker from binding it. A different source address rules that out, where there is one.
    if port >= EPHEMERAL_FROM and sys.platform == "linux":
        return f"tcp://127.0.0.2:0;127.0.0.1:{port}"
    return f"tcp://127.0.0.1:{port}"


def _dealer(context: zmq.Context[zmq.Socket[bytes]], keys: ClientKeys) -> zmq.Socket[bytes]:
    """Makes the socket for directed envelopes. It sets no routing id: the broker's ROUTER draws one that is unique."""
    dealer = context.socket(zmq.DEALER)
    curve_client(dealer, keys)
    dealer.linger = 0  # until WELCOME: a broker that never answered is not worth waiting for
    dealer.sndhwm = dealer.rcvhwm = 0  # credit bounds both ways; a mark here would block or drop
    dealer.setsockopt(zmq.MAXMSGSIZE, verbs.MAX_FRAME_BYTES)
    # Not RECONNECT_IVL_MAX, which switches the jitter off: all clients of a dead broker would reconnect in step.
    dealer.reconnect_ivl = random.randint(10, 40)
    return dealer


def _subscriber(context: zmq.Context[zmq.Socket[bytes]], keys: ClientKeys) -> zmq.Socket[bytes]:
    """Makes the socket for broadcasts."""
    subscriber = context.socket(zmq.SUB)
    curve_client(subscriber, keys)
    subscriber.linger = 0
    subscriber.rcvhwm = 0  # the broker's credit bounds it
    subscriber.setsockopt(zmq.MAXMSGSIZE, verbs.MAX_FRAME_BYTES)
    subscriber.reconnect_ivl = random.randint(10, 40)
    return subscriber


class Transport:
    """Connects a `ClientCore` to the broker."""

    def __init__(
        self,
        settings: Settings,
        client: core.ClientCore,
        *,
        patient: bool = False,
        starts: bool = True,
        warn: Callable[[str], None] = warn_on_stderr,
    ) -> None:
        """`patient`: keep trying for ever when no broker runs and none can be started (a listener that has been on the
        bus before); otherwise that is an error after 5 s. `starts`: start a broker where none runs; otherwise that is a
        `BrokerUnavailable` at once. `warn` gets the notices of a broker that was started here and has found something
        damaged; by default they go to standard error."""
        self._warn = warn
        self._settings = settings
        self._port = settings.port  # of the dealer's endpoint
        self._held = False  # the warning that the port is held was given
        self.core = client
        self.patient = patient
        self._starts = starts
        self.waits_to_launch = True  #: False: `pump` and `turn` go on while a broker starts, and return at once
        self._launching: Launch | None = None
        self._keys = client_keys(settings.data_dir)
        descriptors.reserve(DESCRIPTORS, "a connection to the bus")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._decoder = codec.Decoder(from_broker=True)
        self._dealer = _dealer(self._context, self._keys)
        self._monitor = self._watch(self._dealer)
        self._subscriber: zmq.Socket[bytes] | None = None
        self._poller.register(self._dealer, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._descriptors: tuple[int, ...] = (int(self._dealer.fileno()), int(self._monitor.fileno()))
        self._outbox: list[verbs.Envelope] = []
        self._spool: SpoolWriter | None = None
        client.spools = True
        self._has_sent = False  # since the dealer was last checked for input; or it has more than one turn reads
        self._look_at_subscriber = False  # likewise of the subscriber
        self._connected = False
        self._launched = False
        self._has_tried = False  # `_check_loopback` was called
        self._since_s = 0.0  # start of the wait for a WELCOME
        self._next_launch_s = 0.0
        self._pause_s = BACKOFF_S[0]

    def __repr__(self) -> str:
        return f"<Transport to port {self._port}: {self.core!r}>"

    def _watch(self, dealer: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        dealer.monitor("inproc://zmqbus.monitor", _WATCHED)
        monitor = self._context.socket(zmq.PAIR)
        monitor.linger = 0
        monitor.connect("inproc://zmqbus.monitor")
        return monitor

    # --- life

    def open(self) -> None:
        """Begins to connect; starts a broker first if none runs.

        Raises as `launch.launch` does, unless the transport is patient.
        """
        self._since_s = time.monotonic()
        self._next_launch_s = self._since_s + LOOK_S
        served = locate.find_broker(self._settings)
        if not self._starts:
            self._demand(served)
        elif served is None:
            self._launch()
            served = locate.find_broker(self._settings)
        else:
            locate.check_reach(self._settings, served)
        self._port = self._settings.port if served is None else served.port
        self._dealer.connect(endpoint(self._port))

    @property
    def port(self) -> int:
        """The broker's port."""
        return self._port

    def watch(self, descriptor: int, *, hang_up: bool = False) -> None:
        """Makes `pump` return also when this descriptor is readable; with `hang_up`, when its other end has gone."""
        self._poller.register(descriptor, zmq.POLLERR if hang_up else zmq.POLLIN)

    def restart(self, client: core.ClientCore) -> list[core.Effect]:
        """Goes on over the same sockets with another core (another name, after the first was taken)."""
        self.core = client
        client.spools = True
        return self.perform(client.handle(time.monotonic(), core.Up())) if self._connected else []

    def close(self) -> None:
        """Sends all queued messages, and closes. Takes at most half a second, and that only if the broker hangs."""
        self._end_launch()
        self._dealer.linger = LINGER_MS if self._connected else 0
        self._dealer.disable_monitor()
        self._monitor.close()
        self._dealer.close()
        if self._subscriber is not None:
            self._subscriber.close()
        self._context.term()
        if self._spool is not None:
            self._spool.close()

    # --- the application's side

    def perform(self, effects: Iterable[core.Effect]) -> list[core.Effect]:
        """Carries out the effects for the sockets, and returns the others, which are the application's."""
        rest: list[core.Effect] = []
        outbox = self._outbox
        for effect in effects:
            kind = effect.__class__  # nearly all are `Transmit` or the application's, and there are many
            if kind is core.Transmit:
                outbox.append(effect.envelope)  # type: ignore[union-attr, arg-type]
            elif kind in _OURS:
                self._do(effect, rest)
            else:
                rest.append(effect)
        if outbox:
            self._send_out()
        return rest

    def _send_out(self) -> None:
        outbox = self._outbox[:]
        self._outbox.clear()
        self._has_sent = True
        for batch in codec.batches(outbox) if len(outbox) > 1 else (outbox,):
            sockets.send(self._dealer, codec.encode(batch))

    def _do(self, effect: core.Effect, rest: list[core.Effect]) -> None:
        match effect:
            case core.Subscribe(port, channels):
                self._subscribe(port, channels)
            case core.Retune(drop, add):
                if self._subscriber is not None:
                    self._subscriber.subscribe(add)
                    self._subscriber.unsubscribe(drop)
                    self._look_at_subscriber = True
            case core.Spool(send):
                if self._spool is None:
                    from zmqbus.client.spool_writer import SpoolWriter  # few commands need it

                    self._spool = SpoolWriter(self._settings.paths.spool)
                self._outbox.append(self._spool.put(send) or send)
                self._send_out()  # while the broker reads this body, the next one is written here
            case core.Unspool(msg_ids):
                if self._spool is not None:
                    self._spool.free(msg_ids)
            case core.Welcomed():
                if self._spool is not None:
                    self._spool.renew()  # guards: spool files: one spool file per connection
                self._launched = self._held = False
                self._pause_s = BACKOFF_S[0]
                rest.append(effect)

    def pump(self, timeout_s: float | None) -> list[core.Effect]:
        """Waits up to `timeout_s` (None: without limit) for an event, and handles it.

        Returns the effects for the application, possibly none. Raises `PortHeld` or `BrokerUnavailable` as `open`.
        """
        wait_s = self.wait_s()
        if timeout_s is not None:
            wait_s = min(wait_s, timeout_s)
        # Rounded up: a poll that ends a fraction early would turn into a spin until the time has come.
        self._poller.poll(int(max(0.0, wait_s) * 1000 + 0.999))
        return self.turn(self._descriptors)

    def descriptors(self) -> tuple[int, ...]:
        """Returns the descriptors to poll for input. They change with WELCOME. Call `turn` with new ones before the
        first poll: they may have input already."""
        return self._descriptors

    def wait_s(self) -> float:
        """Returns for how many seconds there is nothing to do unless input comes."""
        now_s = time.monotonic()
        if self._launching is not None:
            return min(self._launching.look_s, self.core.next_tick_s(now_s))
        if self.core.phase in _WITHOUT:
            return min(self._next_launch_s - now_s, self.core.next_tick_s(now_s))
        return self.core.next_tick_s(now_s)

    def turn(self, ready: Collection[int]) -> list[core.Effect]:
        """Handles, without waiting, the input on these descriptors and the timers that have run out. After
        `DRAIN_MESSAGES` there may be more input: then `overlooked` says so. Raises as `pump`."""
        now_s = time.monotonic()
        found: list[core.Effect] = []
        dealer, monitor, *subscriber = self._descriptors
        lost_or_found = monitor in ready
        if lost_or_found:
            found += self._drain_monitor(now_s)
        # The SUB first: messages of the DEALER may have to wait for its broadcasts.
        if subscriber and subscriber[0] in ready:
            found += self._drain_subscriber(now_s)
        # Input that came before a loss is there when the monitor reports the loss, though the poll may have missed it.
        if lost_or_found or dealer in ready:
            found += self._drain_dealer(now_s)
        if self.core.next_tick_s(now_s) <= 0:
            found += self.perform(self.core.handle(now_s, core.Tick()))
        # Only without input, which may be the last that was wanted: the answer to STOP arrives together with the loss,
        # and nobody asked for another broker.
        if not found and (self._launching is not None or self.core.phase in _WITHOUT):
            self._look_for_broker(now_s)
        return found

    def overlooked(self) -> tuple[int, ...]:
        """Returns descriptors that may be quiet although their sockets have input, since the sockets were used. Give
        them to `turn`."""
        missed: tuple[int, ...] = ()
        if self._has_sent:
            if sockets.has_input(self._dealer):
                missed = self._descriptors[:1]
            else:
                self._has_sent = False
        if self._look_at_subscriber:
            missed += self._descriptors[2:]
        return missed

    # --- sockets

    def _drain_monitor(self, now_s: float) -> list[core.Effect]:
        found: list[core.Effect] = []
        while (parts := sockets.receive(self._monitor)) is not None:
            (event,) = unpack_from("=H", parts[0])
            if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                self._connected = True
                self._since_s = now_s  # there is a broker (nobody else has its keys); WELCOME is on its way
                self._next_launch_s = now_s + LOOK_S
                found += self.perform(self.core.handle(now_s, core.Up()))
            elif event == zmq.Event.DISCONNECTED:
                self._connected = False
                self._since_s = now_s
                self._next_launch_s = now_s
                found += self.perform(self.core.handle(now_s, core.Down()))
        return found

    def _drain_dealer(self, now_s: float) -> list[core.Effect]:
        found: list[core.Effect] = []
        for _ in range(DRAIN_MESSAGES):
            parts = sockets.receive(self._dealer)
            if parts is None:
                self._has_sent = False
                return found
            try:
                envelopes = self._decoder.decode(parts)
            except ProtocolError:
                continue  # a newer broker's verb: a client that must understand it has been refused at HELLO
            found += self.perform(self.core.handle(now_s, core.Received(envelopes)))
        self._has_sent = True
        return found

    def _drain_subscriber(self, now_s: float) -> list[core.Effect]:
        assert self._subscriber is not None
        found: list[core.Effect] = []
        for _ in range(DRAIN_MESSAGES):
            parts = sockets.receive(self._subscriber)
            if parts is None:
                self._look_at_subscriber = False
                return found
            channel, *rest = parts
            try:
                envelopes = self._decoder.decode(rest)
            except (ProtocolError, IndexError):
                continue
            found += self.perform(self.core.handle(now_s, core.Published(channel, envelopes)))
        self._look_at_subscriber = True
        return found

    def _subscribe(self, port: int, channels: tuple[bytes, ...]) -> None:
        if self._subscriber is not None:
            self._poller.unregister(self._subscriber)
            self._subscriber.close()
        self._subscriber = _subscriber(self._context, self._keys)
        for channel in channels:
            self._subscriber.subscribe(channel)
        self._subscriber.connect(endpoint(port))
        self._poller.register(self._subscriber, zmq.POLLIN)
        self._descriptors = (*self._descriptors[:2], int(self._subscriber.fileno()))

    # --- a broker

    def _look_for_broker(self, now_s: float) -> None:
        """Before WELCOME: continues the launch under way, or looks whether a broker runs, and launches one if not."""
        if self._launching is not None:
            self._launch()
            return
        if now_s < self._next_launch_s:
            return
        waited_s = now_s - self._since_s
        answerable = self._launched or self._connected or not self._starts
        if answerable and not self.patient and waited_s > CONNECT_S:
            raise BrokerUnavailable(
                f"the broker on port {self._port} does not answer; see {self._settings.paths.broker_log}, "
                "or stop it with: zmqbus broker --stop"
            )
        self._next_launch_s = now_s + LOOK_S
        served = locate.find_broker(self._settings)
        if not self._connected and not self._has_tried and not self.patient:
            self._check_loopback(served)
        unheard = not self._launched and not self._connected
        if not self._starts:
            self._demand(served)
        elif (unheard and waited_s > INSIST_S) or served is None:
            self._launch()
            served = locate.find_broker(self._settings)
        self._follow(self._settings.port if served is None else served.port)

    def _follow(self, port: int) -> None:
        """Connects to the port of the broker that runs now: its predecessor's port may have been taken."""
        if port != self._port and not self._connected:  # guards: reconnect: the broker has another port now [off]
            self._dealer.disconnect(endpoint(self._port))
            self._dealer.connect(endpoint(port))
            self._port = port

    def _demand(self, served: Served | None) -> None:
        """Raises `BrokerUnavailable` where no broker runs, or none that can be reached."""
        if served is None:
            raise BrokerUnavailable(
                f"no broker runs on port {self._settings.port}; the next session starts one, or: zmqbus broker"
            )
        locate.check_reach(self._settings, served)

    def _check_loopback(self, served: Served | None) -> None:
        """Checks, after half a second without an answer, whether this process can use the loopback at all. Once: a
        thousand clients that wait for one broker must not double its work."""
        self._has_tried = True
        locate.check_reach(self._settings, served)
        locate.check_loopback(self._port)

    def _launch(self) -> None:
        """Starts a broker, or continues its start."""
        from zmqbus.client import launch  # 1 ms that only a client without a broker pays

        try:
            notices: str | None
            if self.waits_to_launch:
                notices = launch.launch(self._settings)
            else:
                self._launching = self._launching or launch.Launch(self._settings)
                notices = self._launching.step()
                if notices is None:
                    return
                self._end_launch()
        except ZmqbusError as error:
            self._end_launch()
            if self.core.phase is core.Phase.READY:
                return  # another client has started one
            # guards: reconnect [not self.patient => isinstance(error, PortHeld) or not self.patient]
            if not self.patient:
                raise
            if isinstance(error, PortHeld) and not self._held:
                self._held = True
                self._warn(f"{error}; this waits until the port is free")
            self._next_launch_s = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, BACKOFF_S[1])
        else:
            self._launched = True
            self._since_s = time.monotonic()
            self._next_launch_s = self._since_s + LOOK_S
            if notices:
                self._warn(notices)

    def _end_launch(self) -> None:
        if self._launching is not None:
            self._launching.close()
            self._launching = None
