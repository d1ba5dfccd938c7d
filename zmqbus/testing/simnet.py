"""The simulated network between one `BrokerCore` and any number of `ClientCore`s.

It does what the sockets do, and no more: three queues a client (up and down the DEALER, down the SUB), each in order,
none in order with another; a SUB that gets what its filters, which are prefixes, let through; a mark that reaches the
broker behind all other filters; a route that is new with each connection.
"""

from __future__ import annotations

from collections import deque

from zmqbus import protocol
from zmqbus.broker import core as broker
from zmqbus.broker import events
from zmqbus.broker.store import MemoryStore, Store
from zmqbus.client import core as client
from zmqbus.errors import ZmqbusError
from zmqbus.journal import encode_record
from zmqbus.protocol import Format, Role, Scope


class ManualClock:
    """A monotonic and a wall clock that move when they are told to."""

    def __init__(self, mono_s: float = 1_000.0, wall_s: float = 1_700_000_000.0) -> None:
        self.mono_s = mono_s
        self.wall_s = wall_s

    def __repr__(self) -> str:
        return f"<ManualClock {self.mono_s:.3f}>"

    @property
    def now(self) -> events.Instant:
        return events.Instant(self.mono_s, self.wall_s)

    def advance(self, seconds: float) -> None:
        """Moves both clocks forward."""
        self.mono_s += seconds
        self.wall_s += seconds


class SimClient:
    """A client on a `SimNet`, with what its application has seen."""

    def __init__(self, net: SimNet, persona: client.Persona) -> None:
        self.net = net
        self.persona = persona
        self.core = client.ClientCore(persona, "test")
        self.route = b""
        self.up: deque[list[bytes]] = deque()
        self.down: deque[list[bytes]] = deque()
        self.published: deque[list[bytes]] = deque()
        self.filters: list[bytes] = []
        self.handed: list[client.Incoming] = []  #: and not taken
        self.history: list[client.Incoming] = []  #: all that was ever handed out
        self.answers: dict[str, protocol.Receipt | protocol.Tally | ZmqbusError] = {}
        self.responses: dict[str, protocol.Envelope | ZmqbusError] = {}
        self.renames: list[str] = []
        self.closed: list[ZmqbusError | None] = []
        self._new_id = protocol.IdMaker(f"client{len(net.clients):02d}".encode())
        self._decoder = protocol.Decoder(from_broker=True)

    def __repr__(self) -> str:
        return f"<SimClient {self.core!r}>"

    @property
    def bodies(self) -> list[bytes]:
        """Bodies handed out and not taken."""
        return [message.body for message in self.handed]

    # --- the application

    def send(
        self,
        target: str,
        body: bytes = b"",
        *,
        scope: Scope = Scope.SESSION,
        fmt: Format = Format.TEXT,
        reply_to: str | None = None,
        msg_id: str | None = None,
    ) -> str:
        """Sends; returns the id under which `answers` will hold what became of it."""
        msg_id = msg_id or self._new_id()
        self._do(self.core.send(protocol.Send(msg_id, scope, target, fmt, reply_to, body)))
        return msg_id

    def ask(self, target: str, body: bytes) -> str:
        """Sends, and awaits the answer on this connection."""
        msg_id = self._new_id()
        self._do(self.core.await_answer(msg_id))
        return self.send(target, body, msg_id=msg_id)

    def request(self, envelope: protocol.Envelope) -> None:
        """Asks the broker for something."""
        self._do(self.core.request(envelope))

    def take_all(self) -> None:
        """Takes what has been handed out, in order, and acknowledges it."""
        for message in self.handed:
            self.core.taken(message.ticket)
        self.handed.clear()
        self._do(self.core.acknowledge())

    def take(self, count: int = 1) -> None:
        """Takes the oldest messages."""
        for message in self.handed[:count]:
            self.core.taken(message.ticket)
        del self.handed[:count]
        self._do(self.core.acknowledge())

    # --- the transport

    def connect(self) -> None:
        """A new connection, under a new route."""
        self.route = self.net.new_route(self)
        self._do(self.core.handle(self.net.clock.mono_s, client.Up()))

    def disconnect(self) -> None:
        """The connection breaks: what was under way either way is gone, and the SUB's filters with it."""
        self.up.clear()
        self.down.clear()
        self.net.lose(self)
        self.drop_subscriber()
        self._do(self.core.handle(self.net.clock.mono_s, client.Down()))

    def drop_subscriber(self) -> None:
        """The SUB's connection breaks; the broker sees the mark go."""
        self.published.clear()
        filters, self.filters = self.filters, []
        self.net.changed_filters(filters, [])

    def bye(self) -> None:
        """Leaves in good order."""
        self._do(self.core.bye())

    def raw(self, frames: list[bytes]) -> None:
        """Sends frames that no client core would send."""
        self.up.append(frames)

    def receive(self) -> bool:
        """Deals with one message from the broker, if there is one; the SUB's first."""
        now_s = self.net.clock.mono_s
        if self.published:
            channel, *frames = self.published.popleft()
            self._do(self.core.handle(now_s, client.Published(channel, self._decoder.decode(frames))))
        elif self.down:
            self._do(self.core.handle(now_s, client.Received(self._decoder.decode(self.down.popleft()))))
        else:
            return False
        return True

    def tick(self) -> None:
        """Time has passed."""
        self._do(self.core.handle(self.net.clock.mono_s, client.Tick()))

    def _do(self, effects: list[client.Effect]) -> None:
        outgoing: list[protocol.Envelope] = []
        for effect in effects:
            match effect:
                case client.Transmit(envelope):
                    outgoing.append(envelope)
                case client.Subscribe(_, channels):
                    old, self.filters = self.filters, list(channels)
                    self.net.changed_filters(old, self.filters)
                case client.Retune(drop, add):
                    self.filters = [add if one == drop else one for one in self.filters]
                case client.Hand(message):
                    self.handed.append(message)
                    self.history.append(message)
                case client.TakeBack():
                    self.handed.clear()
                case client.Answer(msg_id, outcome):
                    assert msg_id not in self.answers, f"{msg_id} was answered twice"
                    self.answers[msg_id] = outcome
                case client.Response(ref, envelope):
                    self.responses[ref] = envelope
                case client.Renamed(name):
                    self.renames.append(name)
                case client.Closed(reason):
                    self.closed.append(reason)
        for batch in protocol.batches(outgoing):
            self.up.append(protocol.encode(batch))


class SimNet:
    """One broker, its clients, and the wires between them."""

    def __init__(self, *, store: Store | None = None, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.clients: list[SimClient] = []
        self.journal: list[bytes] = []  #: lines
        self.journal_fails: str | None = None  #: why the next writes fail
        self.notes: list[str] = []
        self.halted = False
        self.mangled = 0  #: messages that were not decodable
        self.store: Store = store or MemoryStore()
        self._tokens = 0
        self._routes: dict[bytes, SimClient] = {}
        self._route_count = 0
        self._decoder = protocol.Decoder(from_broker=False)
        self._epochs = 0
        self.broker = self._new_broker()

    def __repr__(self) -> str:
        return f"<SimNet {self.broker!r}>"

    def _new_broker(self) -> broker.BrokerCore:
        self._epochs += 1
        return broker.BrokerCore(
            epoch=f"epoch{self._epochs}", release="test", store=self.store, new_token=self._token, pub_port=1
        )

    def _token(self) -> str:
        self._tokens += 1
        return f"token{self._tokens:04d}"

    # --- who is there

    def session(
        self, name: str, *, role: Role = Role.LISTENER, connect: bool = True, project: str = "/p", **more: object
    ) -> SimClient:
        """A session's listener (or program), connected and known to the broker."""
        persona = client.Persona(
            role=role,
            session_id=f"{name}-session-id",
            token=f"{name}-token",
            name=name,
            cwd=project,
            project=project,
            pid=1000 + len(self.clients),
            owner="1:1",
        )._replace(**more)  # type: ignore[arg-type]
        return self._enter(persona, connect)

    def helper(self, session: SimClient, *, connect: bool = True) -> SimClient:
        """A short-lived command of a session."""
        return self._enter(session.core.persona._replace(role=Role.HELPER, pid=9000 + len(self.clients)), connect)

    def guest(self, name: str, *, connect: bool = True) -> SimClient:
        """A script that speaks under a name."""
        return self._enter(client.Persona(role=Role.GUEST, name=name, token=f"{name}-token"), connect)

    def observer(self) -> SimClient:
        """Somebody who only looks."""
        return self._enter(client.Persona(role=Role.OBSERVER), True)

    def _enter(self, persona: client.Persona, connect: bool) -> SimClient:
        newcomer = SimClient(self, persona)
        self.clients.append(newcomer)
        if connect:
            newcomer.connect()
            self.settle()
        return newcomer

    # --- wires

    def new_route(self, owner: SimClient) -> bytes:
        """A routing id that nobody has had."""
        self._route_count += 1
        route = self._route_count.to_bytes(5, "big")
        self._routes[route] = owner
        return route

    def lose(self, owner: SimClient) -> None:
        """The route of a client leads nowhere any more."""
        self._routes.pop(owner.route, None)

    def changed_filters(self, old: list[bytes], new: list[bytes]) -> None:
        """What XPUB tells the broker: of all filters, the marks are its business."""
        for channel in old:
            if channel.startswith(protocol.MARK) and channel not in new:
                self._decide(events.Unmarked(channel[1:-1].decode()))
        for channel in new:
            if channel.startswith(protocol.MARK) and channel not in old:
                self._decide(events.Marked(channel[1:-1].decode()))

    def wake(self) -> bool:
        """One wake of the broker: it drains, decides and sends. False if there was nothing for it."""
        busy = False
        effects: list[events.Effect] = []
        for sender in list(self.clients):
            while sender.up:
                busy = True
                frames = sender.up.popleft()
                try:
                    event: events.Event = events.Received(sender.route, self._decoder.decode(frames))
                except ZmqbusError as error:
                    self.mangled += 1
                    event = events.Malformed(sender.route, str(error))
                effects += self.broker.handle(self.clock.now, event)
        self._act(effects)
        return busy

    def step(self) -> bool:
        """One wake of the broker, then one message for each client. False if there was nothing to do."""
        busy = self.wake()
        for receiver in list(self.clients):
            busy = receiver.receive() or busy
        return busy

    def settle(self, limit: int = 10_000) -> None:
        """Goes on until nothing is under way. Raises `AssertionError` if that does not happen."""
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("the bus does not come to rest")

    def advance(self, seconds: float, step_s: float = 0.5) -> None:
        """Moves the clock in steps, with ticks for everyone, and settles after each."""
        while seconds > 0:
            self.clock.advance(min(step_s, seconds))
            seconds -= step_s
            for member in self.clients:
                if member.route in self._routes:
                    member.tick()
            self.settle()
            self._decide(events.Tick())
            self.settle()

    def restart_broker(self) -> None:
        """The broker dies, with all connections, and another comes up on the same store."""
        self.broker = self._new_broker()
        for member in self.clients:
            if member.route in self._routes:
                member.up.clear()
                member.down.clear()
                member.published.clear()
                member.filters = []
                self.lose(member)
                member._do(member.core.handle(self.clock.mono_s, client.Down()))
                member.connect()

    def _decide(self, event: events.Event) -> None:
        self._act(self.broker.handle(self.clock.now, event))

    def _act(self, effects: list[events.Effect]) -> None:
        """What the server does with a wake's effects: journal first, then everything else, coalesced."""
        replies: dict[bytes, list[protocol.Envelope]] = {}
        records: list[bytes] = []
        pending = deque(effects)
        while pending or records:
            if not pending:
                pointers = [(1, number, len(line), 0) for number, line in enumerate(records, start=len(self.journal))]
                if self.journal_fails is None:
                    self.journal += records
                    event: events.Event = events.Journaled([tuple(pointer) for pointer in pointers])
                else:
                    event = events.JournalFailed(self.journal_fails)
                records = []
                pending.extend(self.broker.handle(self.clock.now, event))
                self.store.commit()
                continue
            match pending.popleft():
                case events.Reply(route, envelope):
                    if route in self._routes:
                        replies.setdefault(route, []).append(envelope)
                    else:
                        pending.extend(self.broker.handle(self.clock.now, events.Unreachable(route)))
                case events.Publish(channel, envelope):
                    self._publish(channel, envelope)
                case events.Append(record):
                    records.append(encode_record(record))
                case events.Note(text):
                    self.notes.append(text)
                case events.Halt():
                    self.halted = True
        for route, envelopes in replies.items():
            for batch in protocol.batches(envelopes):
                self._routes[route].down.append(protocol.encode(batch))

    def _publish(self, channel: bytes, envelope: protocol.Envelope) -> None:
        frames = [channel, *protocol.encode([envelope])]
        for member in self.clients:
            if any(channel.startswith(one) for one in member.filters):
                member.published.append(frames)
