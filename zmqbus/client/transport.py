"""A client's shell: the sockets, and the way back when the broker is gone.

`pump` is the whole of it: wait for something, let the core decide, do what concerns the sockets, and return what
concerns the application. It holds no thread; whoever owns a `Transport` calls `pump`, from one thread.

A caller that waits in another way (`io_thread` does, with a lock that may not be held while it waits) polls `descriptors()` for
`wait_s()`, and then calls `turn` with those that are readable. ZeroMQ's descriptors tell of a change, not of a state: a
socket that was touched may have something although its descriptor is quiet. So whoever has had something sent calls
`overlooked` before it sleeps.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Collection, Iterable
from struct import unpack_from
from typing import TYPE_CHECKING

import zmq

from zmqbus.client import core, launch
from zmqbus.errors import BrokerUnavailable, PortHeld, ProtocolError, ZmqbusError
from zmqbus.security.keys import ClientKeys, client_keys, curve_client
from zmqbus.settings import Settings, warn_on_stderr
from zmqbus.system import descriptors
from zmqbus.system.pidfile import Served
from zmqbus.wire import codec, sockets, verbs

if TYPE_CHECKING:
    from zmqbus.client.spool_writer import Spool

#: Between two looks whether there is a broker at all, while there is no WELCOME.
LOOK_S = 0.5
#: Without even a handshake for so long, one is launched whatever the pid file says: it may be left from a broker that
#: was killed, while one on another port holds the data directory, and the launch finds out and says so. Not sooner: a
#: thousand clients at once wait for seconds, and each of their launches would cost the broker 80 ms of a processor.
INSIST_S = 3.0
#: Without a WELCOME for so long since the last launch, or since the handshake, it is no use.
CONNECT_S = 5.0
#: First and longest pause between two launches that failed, for those who go on trying (a listener whose disk is full).
BACKOFF_S = (0.5, 30.0)
#: How long what was said last may take to go out when a transport is closed: a broker that hangs keeps nobody.
LINGER_MS = 500
#: ZeroMQ messages taken from one socket before the others get their turn.
DRAIN_MESSAGES = 100
#: What a connection takes: context, sockets, monitor, and the I/O thread's pipe are 11, a SUB is 2 more; and files that are
#: open for a moment: keys, the log, or the pipes to a broker that is started.
DESCRIPTORS = 11 + 2 + 8
#: Ports from here on may be given out by the kernel as somebody's source port.
EPHEMERAL_FROM = 30_000

# Not MONITOR_STOPPED: that one is sent without a time limit, and a monitor that nobody reads any more hangs the close.
_WATCHED = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED
#: As long as nobody has welcomed us.
_WITHOUT = (core.Phase.OFFLINE, core.Phase.GREETING)
#: What concerns the sockets, but for `Transmit`.
_OURS = frozenset((core.Subscribe, core.Retune, core.Welcomed, core.Spool, core.Unspool))


def endpoint(port: int) -> str:
    """Where a client connects to."""
    # A socket that retries a closed port in the ephemeral range can be given that very port as its own, connect to
    # itself, and so keep the broker from binding it. Another source address rules that out where there is one.
    if port >= EPHEMERAL_FROM and sys.platform == "linux":
        return f"tcp://127.0.0.2:0;127.0.0.1:{port}"
    return f"tcp://127.0.0.1:{port}"


def _dealer(context: zmq.Context[zmq.Socket[bytes]], keys: ClientKeys) -> zmq.Socket[bytes]:
    """The socket for directed envelopes. It has no routing id: the broker's ROUTER draws one that nobody can take."""
    dealer = context.socket(zmq.DEALER)
    curve_client(dealer, keys)
    dealer.linger = 0  # until WELCOME: what a broker never answered is not worth waiting for
    dealer.sndhwm = dealer.rcvhwm = 0  # credit bounds both ways; a mark here would block or drop
    dealer.setsockopt(zmq.MAXMSGSIZE, verbs.MAX_FRAME_BYTES)
    # Not RECONNECT_IVL_MAX, which switches the jitter off: clients of a broker that died would come back in step.
    dealer.reconnect_ivl = random.randint(10, 40)
    return dealer


def _subscriber(context: zmq.Context[zmq.Socket[bytes]], keys: ClientKeys) -> zmq.Socket[bytes]:
    """The socket for broadcasts."""
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
        """`patient` goes on for ever when there is no broker and none can be started (a listener that has been on the
        bus before); else that is an error after 5 s. `starts`: whether it starts a broker; if not, and where none runs,
        or none any more, that is a `BrokerUnavailable` at once. `warn` is told what a broker that was launched here has
        found damaged; by default it goes to standard error."""
        self._warn = warn
        self._settings = settings
        self._port = settings.port  # that the dealer connects to
        self._held = False  # it was told that the port is held
        self.core = client
        self.patient = patient
        self._starts = starts
        self.waits_to_launch = True  #: False: `pump` and `turn` go on while a broker starts, and return at once
        self._launching: launch.Launch | None = None
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
        self._spool: Spool | None = None
        client.spools = True
        self._has_sent = False  # since somebody has looked whether the dealer has something
        self._look_at_subscriber = False  # likewise; or more was there than is taken at a time
        self._connected = False
        self._launched = False
        self._has_tried = False  # whether this process can use the loopback at all
        self._since_s = 0.0  # when the wait for a WELCOME began
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
        """Begins to connect, having started a broker if there is none.

        Raises what `launch.launch` raises, unless the transport is patient.
        """
        self._since_s = time.monotonic()
        self._next_launch_s = self._since_s + LOOK_S
        served = launch.find_broker(self._settings)
        if not self._starts:
            self._demand(served)
        elif served is None:
            self._launch()
            served = launch.find_broker(self._settings)
        else:
            launch.check_reach(self._settings, served)
        self._port = self._settings.port if served is None else served.port
        self._dealer.connect(endpoint(self._port))

    @property
    def port(self) -> int:
        """The port on which the broker is looked for."""
        return self._port

    def watch(self, descriptor: int, *, hang_up: bool = False) -> None:
        """Makes `pump` return when this descriptor is readable, too; with `hang_up`, when its other end has gone."""
        self._poller.register(descriptor, zmq.POLLERR if hang_up else zmq.POLLIN)

    def restart(self, client: core.ClientCore) -> list[core.Effect]:
        """Goes on over the same sockets as somebody else (another name, after the first was taken)."""
        self.core = client
        client.spools = True
        return self.perform(client.handle(time.monotonic(), core.Up())) if self._connected else []

    def close(self) -> None:
        """Sends what is left to say, and closes. Takes at most half a second, and that only if the broker hangs."""
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
        """Carries out what concerns the sockets, and gives back the rest, which is the application's."""
        rest: list[core.Effect] = []
        outbox = self._outbox
        for effect in effects:
            kind = effect.__class__  # most are of the first or the last kind, and there are many
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
                    from zmqbus.client.spool_writer import Spool  # which few commands need

                    self._spool = Spool(self._settings.paths.spool)
                self._outbox.append(self._spool.put(send) or send)
                self._send_out()  # the broker has work for a millisecond, and so has the next body here
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
        """Waits up to `timeout_s` (None: as long as it takes) for something to happen, and deals with it.

        Returns the effects for the application, which may be none. Raises `PortHeld` or `BrokerUnavailable` as `open`.
        """
        wait_s = self.wait_s()
        if timeout_s is not None:
            wait_s = min(wait_s, timeout_s)
        # Rounded up: a poll that ends a fraction early would turn into a spin until the time has come.
        self._poller.poll(int(max(0.0, wait_s) * 1000 + 0.999))
        return self.turn(self._descriptors)

    def descriptors(self) -> tuple[int, ...]:
        """What to poll for input. They change when the session is welcomed. New ones are quiet until `turn` was called
        with them: there may be something already."""
        return self._descriptors

    def wait_s(self) -> float:
        """How long there is nothing to do, if nothing comes."""
        now_s = time.monotonic()
        if self._launching is not None:
            return min(launch.LOOK_S, self.core.next_tick_s(now_s))
        if self.core.phase in _WITHOUT:
            return min(self._next_launch_s - now_s, self.core.next_tick_s(now_s))
        return self.core.next_tick_s(now_s)

    def turn(self, ready: Collection[int]) -> list[core.Effect]:
        """Deals with what there is on these descriptors, without waiting, and with what the time has brought. There may
        be more of it after `DRAIN_MESSAGES`: then `overlooked` says so. Raises as `pump`."""
        now_s = time.monotonic()
        found: list[core.Effect] = []
        dealer, monitor, *subscriber = self._descriptors
        lost_or_found = monitor in ready
        if lost_or_found:
            found += self._drain_monitor(now_s)
        # The SUB first: what came over the DEALER may be waiting for it.
        if subscriber and subscriber[0] in ready:
            found += self._drain_subscriber(now_s)
        # What came before a loss is there when the loss is told, though the poll may have looked a moment too early.
        if lost_or_found or dealer in ready:
            found += self._drain_dealer(now_s)
        if self.core.next_tick_s(now_s) <= 0:
            found += self.perform(self.core.handle(now_s, core.Tick()))
        # What was found comes first, for it may be the last that was wanted: the answer to STOP arrives together with
        # the loss, and a broker launched here would be one that nobody asked for.
        if not found and (self._launching is not None or self.core.phase in _WITHOUT):
            self._look_for_broker(now_s)
        return found

    def overlooked(self) -> tuple[int, ...]:
        """Descriptors that are quiet although there is something, which whoever has touched their sockets may have
        caused. To be given to `turn`."""
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
                self._since_s = now_s  # there is a broker (no other has its keys); WELCOME is on its way
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
        """Nobody has welcomed us yet: is there a broker at all? Or one is being started here."""
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
        served = launch.find_broker(self._settings)
        if not self._connected and not self._has_tried and not self.patient:
            self._check_loopback(served)
        unheard = not self._launched and not self._connected
        if not self._starts:
            self._demand(served)
        elif (unheard and waited_s > INSIST_S) or served is None:
            self._launch()
            served = launch.find_broker(self._settings)
        self._follow(self._settings.port if served is None else served.port)

    def _follow(self, port: int) -> None:
        """Turns to the port on which the broker is now: the next one may have found the last one's taken."""
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
        launch.check_reach(self._settings, served)

    def _check_loopback(self, served: Served | None) -> None:
        """Checks, after half a second without an answer, whether this process can use the loopback at all. Once: a
        thousand clients that wait for one broker must not double its work."""
        self._has_tried = True
        launch.check_reach(self._settings, served)
        launch.check_loopback(self._port)

    def _launch(self) -> None:
        """Starts a broker, or goes on with that."""
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
                return  # somebody else has started one
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
