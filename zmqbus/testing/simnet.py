"""The simulated network between one `BrokerCore` and any number of `ClientCore`s.

It does what the sockets do, and no more: three queues a client (up and down the DEALER, down the SUB), each in order,
none in order with another; a SUB that gets what its filters, which are prefixes, let through; a mark that reaches the
broker behind all other filters; a route that is new with each connection.

And it does to them what happens to sockets and processes:

* a PUB drops (`SimClient.published` may lose any of its messages),
* a connection is cut, with all that was under way (`disconnect`), or the peer is gone and nobody has noticed: the route
  takes messages, and they end nowhere (`vanish`),
* a process stands still, and what is for it piles up (`stopped`),
* the journal or the store cannot write (`journal_fails`, `store.fails`),
* the broker dies, between any two steps of a wake, and of what it had sent the last may be lost in its own queues
  (`kill_broker`); the next one knows what store and journal hold.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from zmqbus import codec, protocol
from zmqbus.broker import core as broker
from zmqbus.broker import events
from zmqbus.broker.store import StoreError
from zmqbus.client import core as client
from zmqbus.client.taken import TakenIds
from zmqbus.errors import ZmqbusError
from zmqbus.protocol import Format, Role, Scope
from zmqbus.readback import Earlier
from zmqbus.record import decode_record, encode_record
from zmqbus.testing.store import MemoryStore


class ManualClock:
    """A monotonic and a wall clock that move when they are told to."""

    def __init__(self, mono_s: float = 1_000.0, wall_s: float = 1_700_000_000.0) -> None:
        self.mono_s = mono_s
        self.wall_s = self.steady_s = wall_s

    def __repr__(self) -> str:
        return f"<ManualClock {self.mono_s:.3f}>"

    @property
    def now(self) -> events.Instant:
        return events.Instant(self.mono_s, self.wall_s, self.steady_s)

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.mono_s += seconds
        self.wall_s += seconds
        self.steady_s += seconds

    def set_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock forward, or back. It is what the next broker takes for the time."""
        self.wall_s += seconds


class Death(IntEnum):
    """What the broker has done of a wake when it dies."""

    DECIDED = 0  #: nothing that anybody could see
    JOURNALED = 1
    COMMITTED = 2
    SENT = 3


class SimClient:
    """A client on a `SimNet`, with what its application has seen."""

    def __init__(self, net: SimNet, persona: client.Persona, taken: TakenIds | None = None) -> None:
        self.net = net
        self.persona = persona
        self.taken = TakenIds() if taken is None else taken
        self.core = client.ClientCore(persona, "test", self.taken)
        self.route = b""
        self.stopped = False  #: it stands still: receives nothing, and notices no passing of time
        self.orphaned = False  #: its broker is dead, which it sees when it has received what was still under way
        self.up: deque[list[bytes]] = deque()
        self.down: deque[list[bytes]] = deque()
        self.published: deque[list[bytes]] = deque()
        self.filters: list[bytes] = []
        self.handed: list[client.Incoming] = []  #: and not taken
        self.history: list[client.Incoming] = []  #: all that was ever handed out
        self.answers: dict[str, protocol.Receipt | protocol.Tally | ZmqbusError] = {}
        self.responses: dict[str, protocol.Envelope | ZmqbusError] = {}
        self.works: dict[str, protocol.Work] = {}  #: requests in hand: neither answered nor withdrawn
        self.done: list[str] = []  #: ids of all that it was ever given to work on, in order
        self.dropped: list[str] = []  #: ids of those that were withdrawn while it had them in hand
        self.results: dict[str, protocol.Result | ZmqbusError] = {}  #: what came of requests to groups
        self.renames: list[str] = []
        self.closed: list[ZmqbusError | None] = []
        self._new_id = protocol.IdMaker(f"client{len(net.clients):02d}".encode())
        self._decoder = codec.Decoder(from_broker=True)

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
        self._do(self.core.send(protocol.Send(msg_id, scope, target, fmt, reply_to, False, body)))
        return msg_id

    def ask(self, target: str, body: bytes) -> str:
        """Sends, and awaits the answer on this connection."""
        msg_id = self._new_id()
        self._do(self.core.await_answer(msg_id))
        return self.send(target, body, msg_id=msg_id)

    def request(self, envelope: protocol.Envelope) -> None:
        """Asks the broker for something."""
        self._do(self.core.request(envelope))

    def call(self, group: str, body: bytes = b"", *, patient: bool = True, msg_id: str | None = None) -> str:
        """Asks a group; returns the id under which `results` will hold what came of it."""
        msg_id = msg_id or self._new_id()
        self._do(self.core.ask(protocol.Request(msg_id, group, Format.TEXT, patient, False, body)))
        return msg_id

    def withdraw(self, *msg_ids: str) -> None:
        """Waits for the answers to these requests no longer."""
        self._do(self.core.withdraw(msg_ids))

    def offer(self, credit: int) -> None:
        """Works for its groups, with so many requests in hand at a time."""
        self._do(self.core.offer(credit))

    def answer(self, msg_id: str, body: bytes = b"", *, fmt: Format = Format.TEXT) -> None:
        """Answers a request."""
        self.works.pop(msg_id, None)
        self._do(self.core.answer(msg_id, fmt, body))

    def work(self, count: int = 1_000_000) -> list[protocol.Work]:
        """Answers the oldest of what is in hand, each with its own body behind "done "; returns it."""
        done = list(self.works.values())[:count]
        for work in done:
            self.answer(work.msg_id, b"done " + self.net.body(work))
        return done

    def take_all(self) -> list[client.Incoming]:
        """Takes what has been handed out, in order, and acknowledges it. Returns what it shows."""
        return self.take(len(self.handed))

    def take(self, count: int = 1) -> list[client.Incoming]:
        """Takes the oldest messages. Returns what it shows: another process of the session may have shown the rest."""
        shown = []
        for message in self.handed[:count]:
            if message.msg_id not in self.taken:
                shown.append(message)
            self.core.taken(message.ticket)
        del self.handed[:count]
        self._do(self.core.acknowledge())
        return shown

    # --- the transport

    def connect(self) -> None:
        """A new connection, under a new route."""
        if self.orphaned:
            self.disconnect()
        self.route = self.net.new_route(self)
        self._do(self.core.handle(self.net.clock.mono_s, client.Up()))

    def disconnect(self) -> None:
        """The connection breaks: what was under way either way is gone, and the SUB's filters with it."""
        self.net.lose(self)
        self.drop_subscriber()
        self.orphaned = False
        self.up.clear()
        self.down.clear()
        self._do(self.core.handle(self.net.clock.mono_s, client.Down()))

    def vanish(self) -> None:
        """The connection is dead, and the broker has not noticed: what it sends is taken, and ends nowhere."""
        self.net.divert(self)
        self.filters = []
        self.disconnect()

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
        if self.stopped:
            return False
        if self.published:
            channel, *frames = self.published.popleft()
            self._do(self.core.handle(now_s, client.Published(channel, self._decoder.decode(frames))))
        elif self.down:
            self._do(self.core.handle(now_s, client.Received(self._decoder.decode(self.down.popleft()))))
        elif self.orphaned:
            self.connect()
        else:
            return False
        return True

    def tick(self) -> None:
        """Time has passed."""
        if self.stopped or self.net.routes.get(self.route) is not self:
            return
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
                case client.Answered(msg_id, result):
                    assert msg_id not in self.results, f"{msg_id} was answered twice"
                    self.results[msg_id] = result
                case client.Do(work):
                    assert work.msg_id not in self.works, f"{work.msg_id} was handed out twice"
                    self.works[work.msg_id] = work
                    self.done.append(work.msg_id)
                case client.Withdrawn(msg_ids):
                    self.dropped += msg_ids
                    for msg_id in msg_ids:
                        del self.works[msg_id]
                case client.Renamed(name):
                    self.renames.append(name)
                case client.Closed(reason):
                    self.closed.append(reason)
        if not self.orphaned:  # else there is nobody at the other end
            for batch in codec.batches(outgoing):
                self.up.append(codec.encode(batch))


class SimNet:
    """One broker, its clients, and the wires between them."""

    def __init__(self, *, store: MemoryStore | None = None, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.clients: list[SimClient] = []
        self.journal: list[bytes] = []  #: lines
        self.journal_fails: str | None = None  #: why the next writes fail
        self.notes: list[str] = []
        self.halted = False
        self.mangled = 0  #: messages that were not decodable
        self.store = store or MemoryStore()
        self.routes: dict[bytes, SimClient | None] = {}  #: None: the peer is gone, and that is not known
        self.shown: dict[str, TakenIds] = {}  #: what the processes of each session have taken, which outlives them
        self.living_owners = {"1:1"}  #: owners of sessions that still run
        self._tokens = 0
        self._route_count = 0
        self._decoder = codec.Decoder(from_broker=False)
        self._epochs = 0
        self._outbox: dict[bytes, list[protocol.Envelope]] = {}
        self._channels: list[events.Publish] = []
        self._records: list[bytes] = []
        self._marks: deque[events.Event] = deque()  # what XPUB will show at the next wake
        self._earlier: dict[str, Earlier] = {}
        self._start_broker()

    def __repr__(self) -> str:
        return f"<SimNet {self.broker!r}>"

    def _start_broker(self) -> None:
        self._epochs += 1
        self._earlier = {}
        for place, record in enumerate(map(decode_record, self.journal)):
            first = self._earlier.get(record.msg_id)
            place = place if first is None else first.place
            self._earlier[record.msg_id] = Earlier(record.from_session, record.to_session_id, place)
        self.broker = broker.BrokerCore(
            epoch=f"epoch{self._epochs}",
            release="test",
            store=self.store,
            new_token=self._token,
            pub_port=1,
            sent_before=self._earlier.get,
            owner_lives=self.living_owners.__contains__,
            last_id=decode_record(self.journal[-1]).msg_id if self.journal else "",
        )
        self._do(self.broker.recover(self.clock.now))

    def body(self, carrier: protocol.Work | protocol.Result | client.Incoming) -> bytes:
        """The body, from the envelope or from the journal."""
        return carrier.body if carrier.pointer is None else decode_record(self.journal[carrier.pointer[1]]).body

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
        own = persona.session_id
        newcomer = SimClient(self, persona, self.shown.setdefault(own, TakenIds()) if own else None)
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
        self.routes[route] = owner
        return route

    def lose(self, owner: SimClient) -> None:
        """The route of a client leads nowhere any more."""
        if self.routes.get(owner.route) is owner:
            del self.routes[owner.route]

    def divert(self, owner: SimClient) -> None:
        """The route of a client takes messages, which end nowhere."""
        if owner.route in self.routes:
            self.routes[owner.route] = None

    def changed_filters(self, old: list[bytes], new: list[bytes]) -> None:
        """What XPUB tells the broker: of all filters, the marks are its business."""
        for channel in old:
            if channel.startswith(protocol.MARK) and channel not in new:
                self._marks.append(events.Unmarked(channel[1:-1].decode()))
        for channel in new:
            if channel.startswith(protocol.MARK) and channel not in old:
                self._marks.append(events.Marked(channel[1:-1].decode()))

    # --- the broker's shell

    def wake(self, death: Death = Death.SENT) -> bool:
        """One wake of the broker: it drains, decides, writes, commits and sends. False if there was nothing for it.

        `death`: it gets as far as this, and no further.
        """
        busy = bool(self._marks)
        while self._marks:
            self._do(self.broker.handle(self.clock.now, self._marks.popleft()))
        for sender in list(self.clients):
            while sender.up:
                busy = True
                frames = sender.up.popleft()
                try:
                    event: events.Event = events.Received(sender.route, self._decoder.decode(frames))
                except ZmqbusError as error:
                    self.mangled += 1
                    event = events.Malformed(sender.route, str(error))
                self._do(self.broker.handle(self.clock.now, event))
        self._finish(death)
        return busy

    def _decide(self, event: events.Event) -> None:
        self._do(self.broker.handle(self.clock.now, event))
        self._finish()

    def _do(self, effects: list[events.Effect]) -> None:
        for effect in effects:
            match effect:
                case events.Reply(route, envelope):
                    self._outbox.setdefault(route, []).append(envelope)
                case events.Publish():
                    self._channels.append(effect)
                case events.Append(record):
                    self._records.append(encode_record(record))
                case events.Note(text):
                    self.notes.append(text)
                case events.Halt():
                    self.halted = True

    def _finish(self, death: Death = Death.SENT) -> None:
        """The steps of a wake behind the decisions."""
        if death >= Death.JOURNALED:
            self._write_journal()
        if death >= Death.COMMITTED:
            self._commit()
        if death >= Death.SENT:
            self._send_all()

    def _write_journal(self) -> None:
        if not self._records:
            return
        records, self._records = self._records, []
        if self.journal_fails is not None:
            self._do(self.broker.handle(self.clock.now, events.JournalFailed(self.journal_fails)))
            return
        first = len(self.journal)
        self.journal += records
        pointers: list[protocol.Pointer] = [(1, first + number, len(line), 0) for number, line in enumerate(records)]
        self._do(self.broker.handle(self.clock.now, events.Journaled(pointers)))

    def _commit(self) -> None:
        if not self.store.pending and not self.broker.delivery.waits_for_commit:
            return
        try:
            self.store.commit()
        except StoreError as error:
            self._do(self.broker.handle(self.clock.now, events.CommitFailed(str(error))))
        else:
            self._do(self.broker.handle(self.clock.now, events.Committed()))

    def _send_all(self) -> None:
        while self._outbox or self._channels:
            outbox, self._outbox = self._outbox, {}
            channels, self._channels = self._channels, []
            for publish in channels:
                frames = [publish.channel, *codec.encode([publish.envelope])]
                for member in self.clients:
                    if any(publish.channel.startswith(one) for one in member.filters):
                        member.published.append(frames)
            for route, envelopes in outbox.items():
                if route not in self.routes:
                    self._do(self.broker.handle(self.clock.now, events.Unreachable(route)))
                    continue
                peer = self.routes[route]
                if peer is not None:
                    peer.down.extend(map(codec.encode, codec.batches(envelopes)))
            self._commit()

    # --- life

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
                member.tick()
            self.settle()
            self._decide(events.Tick())
            self.settle()

    def kill_broker(self, death: Death = Death.SENT, lost: int = 1_000_000) -> None:
        """The broker dies in a wake of its own, having got as far as `death`, and another comes up on what it left.

        Of what it had sent, the last `lost` messages to each client were still its own, and are gone; the client
        receives the others, then sees the loss, and connects to the new one.
        """
        self.wake(death)
        self._outbox, self._channels, self._records = {}, [], []
        self._marks.clear()
        self.store.crash()
        for member in self.clients:
            if self.routes.get(member.route) is member:
                for queue in (member.down, member.published):
                    for _ in range(min(lost, len(queue))):
                        queue.pop()
                member.up.clear()
                member.filters = []
                member.orphaned = True
        self.routes.clear()
        self.clock.steady_s = self.clock.wall_s
        self._start_broker()

    def restart_broker(self) -> None:
        """The broker dies, with all that was under way, and everybody is at another one."""
        self.kill_broker()
        for member in self.clients:
            if member.orphaned:
                member.connect()
