"""The simulated network between one `BrokerCore` and any number of `ClientCore`s.

It models what ZeroMQ guarantees and no more. Each client has three queues (DEALER up, DEALER down, SUB), each in order,
with no order between them. A SUB receives what matches its prefix filters. The presence subscription reaches the broker
after the other filters. Each connection has a new route, and each WELCOME names a new spool file for large bodies.

Faults that a test can inject:

* a PUB that drops messages: remove any of `SimClient.published`,
* a connection that breaks, with everything in transit (`disconnect`),
* a peer that is gone without the broker's knowledge: its route accepts messages and discards them (`vanish`),
* a stopped process, whose messages pile up (`stopped`),
* a journal or a store that cannot write (`journal_fails`, `store.fails`),
* the death of the broker between any two steps of a wake, which may also lose the last messages in its send queues
  (`kill_broker`); the next broker knows what store and journal hold.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from zmqbus.broker import core as broker
from zmqbus.broker import events
from zmqbus.broker.body_checks import Spooled
from zmqbus.broker.storage.api import StoreError
from zmqbus.client import core as client
from zmqbus.client.seen import SeenIds
from zmqbus.errors import BrokerUnavailable, ZmqbusError
from zmqbus.journal.record import Earlier, SplicedLine, decode_record, encode_all
from zmqbus.security.digest import sha256
from zmqbus.testing.simclient import SimClient
from zmqbus.testing.store import MemoryStore
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Role


def session_id_of(name: str) -> str:
    """Returns the session id for a name: always the same one, and ids sort as their names do."""
    raw = name.encode() if len(name) <= 16 else sha256(name.encode()).digest()
    return verbs.session_id_of(raw[:16].ljust(16, b"\0"))


class ManualClock:
    """A monotonic clock and a wall clock that only a test moves."""

    def __init__(self, mono_s: float = 1_000.0, wall_s: float = 1_700_000_000.0) -> None:
        self.mono_s = mono_s
        self.wall_s = self.steady_s = wall_s

    def __repr__(self) -> str:
        return f"<ManualClock {self.mono_s:.3f}>"

    @property
    def now(self) -> events.Instant:
        return events.Instant(self.mono_s, self.wall_s, self.steady_s)

    def advance(self, seconds: float) -> None:
        """Moves all clocks forward."""
        self.mono_s += seconds
        self.wall_s += seconds
        self.steady_s += seconds

    def set_wall(self, seconds: float) -> None:
        """Sets the wall clock forward or back, in seconds. The steady clock follows when the next broker starts."""
        self.wall_s += seconds


class Death(IntEnum):
    """The step of a wake (decide, send ephemeral messages, journal, commit, send) after which the broker dies."""

    DECIDED = 0  #: nothing has left the process
    PASSED = 1  #: sent what needs no journal
    JOURNALED = 2
    COMMITTED = 3
    SENT = 4


class SimNet:
    """One simulated broker, its clients, and the connections between them."""

    def __init__(self, *, store: MemoryStore | None = None, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.clients: list[SimClient] = []
        self.journal: list[bytes] = []  #: lines
        self.journal_fails: str | None = None  #: why the next writes fail
        self.notes: list[str] = []
        self.halted = False
        self.mangled = 0  #: messages that could not be decoded
        self.store = store or MemoryStore()
        self.routes: dict[bytes, SimClient | None] = {}  #: None: the peer is gone and the broker does not know it
        self.shown: dict[str, SeenIds] = {}  #: session id → ids taken by any of its processes, past or present
        self.spool: dict[tuple[str, int], bytes] = {}  #: (file, offset) → spooled body
        self.living_owners = {"1:1"}  #: owners whose processes are alive
        self._tokens = 0
        self._route_count = 0
        self._files = 0
        self._decoder = codec.Decoder(from_broker=False)
        self._epochs = 0
        self._outbox: dict[bytes, list[verbs.Envelope]] = {}
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
            read_spooled=self._read_spooled,
        )
        self._do(self.broker.recover(self.clock.now))

    def _read_spooled(self, _: bytes, spooled: Spooled) -> bytes:
        try:
            return self.spool[spooled.file, spooled.offset]
        except KeyError:
            raise BrokerUnavailable("the spooled body is missing; send it again") from None

    def body(self, carrier: verbs.Work | verbs.Result | client.Incoming) -> bytes:
        """Returns the body, from the envelope or, for large ones, from the journal."""
        return carrier.body if carrier.pointer is None else decode_record(self.journal[carrier.pointer[1]]).body

    def _token(self) -> str:
        self._tokens += 1
        return f"token{self._tokens:04d}"

    # --- who is there

    def session(
        self, name: str, *, role: Role = Role.LISTENER, connect: bool = True, project: str = "/p", **more: object
    ) -> SimClient:
        """Adds the listener (or program) of a session; `more`: other fields of its `Persona`."""
        persona = client.Persona(
            role=role,
            session_id=session_id_of(name),
            token=f"{name}-token",
            name=name,
            cwd=project,
            project=project,
            pid=1000 + len(self.clients),
            owner="1:1",
        )._replace(**more)  # type: ignore[arg-type]
        return self._enter(persona, connect)

    def helper(self, session: SimClient, *, connect: bool = True) -> SimClient:
        """Adds a short-lived command of a session."""
        return self._enter(session.core.persona._replace(role=Role.HELPER, pid=9000 + len(self.clients)), connect)

    def guest(self, name: str, *, connect: bool = True) -> SimClient:
        """Adds a script without a session, which sends under a name."""
        return self._enter(client.Persona(role=Role.GUEST, name=name, token=f"{name}-token"), connect)

    def observer(self) -> SimClient:
        """Adds a client that only asks the broker for information."""
        return self._enter(client.Persona(role=Role.OBSERVER), True)

    def _enter(self, persona: client.Persona, connect: bool) -> SimClient:
        own = persona.session_id
        newcomer = SimClient(self, persona, self.shown.setdefault(own, SeenIds()) if own else None)
        self.clients.append(newcomer)
        if connect:
            newcomer.connect()
            self.settle()
        return newcomer

    # --- wires

    def new_route(self, owner: SimClient) -> bytes:
        """Returns an unused routing id."""
        self._route_count += 1
        route = self._route_count.to_bytes(5, "big")
        self.routes[route] = owner
        return route

    def new_file(self) -> str:
        """Returns the name of an unused spool file."""
        self._files += 1
        return f"{self._files:032x}"

    def lose(self, owner: SimClient) -> None:
        """Removes the route of a client: the broker's next message to it is unreachable."""
        if self.routes.get(owner.route) is owner:
            del self.routes[owner.route]

    def divert(self, owner: SimClient) -> None:
        """Makes the route of a client accept and discard messages."""
        if owner.route in self.routes:
            self.routes[owner.route] = None

    def changed_filters(self, old: list[bytes], new: list[bytes]) -> None:
        """Reports presence subscriptions that came or went to the broker, as XPUB does."""
        for channel in old:
            if channel.startswith(verbs.MARK) and channel not in new:
                self._marks.append(events.Unmarked(channel[1:-1].decode()))
        for channel in new:
            if channel.startswith(verbs.MARK) and channel not in old:
                self._marks.append(events.Marked(channel[1:-1].decode()))

    # --- the broker's shell

    def wake(self, death: Death = Death.SENT) -> bool:
        """Runs one wake of the broker: drain, decide, journal, commit, send. Returns False if nothing had arrived.

        The wake stops after the step that `death` names.
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
                case events.Append(records):
                    lines = encode_all((records,))
                    self._records += [b"".join(line.parts) if isinstance(line, SplicedLine) else line for line in lines]
                case events.Note(text):
                    self.notes.append(text)
                case events.Halt():
                    self.halted = True

    def _finish(self, death: Death = Death.SENT) -> None:
        """Runs the steps of a wake that follow the decisions."""
        if death >= Death.PASSED and self._records and self.broker.may_speak_first:
            self._send_all()
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
        pointers: list[verbs.Pointer] = [(1, first + number, len(line), 0) for number, line in enumerate(records)]
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
        """Runs one wake of the broker, then gives each client one message. Returns False if nothing happened."""
        busy = self.wake()
        for receiver in list(self.clients):
            busy = receiver.receive() or busy
        return busy

    def settle(self, limit: int = 10_000) -> None:
        """Steps until nothing is in transit. Raises `AssertionError` after `limit` steps."""
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("the bus does not come to rest")

    def advance(self, seconds: float, step_s: float = 0.5) -> None:
        """Moves the clock forward in steps of `step_s`; after each, all cores tick and the bus settles."""
        while seconds > 0:
            self.clock.advance(min(step_s, seconds))
            seconds -= step_s
            for member in self.clients:
                member.tick()
            self.settle()
            self._decide(events.Tick())
            self.settle()

    def kill_broker(self, death: Death = Death.SENT, lost: int = 1_000_000) -> None:
        """Kills the broker after the step `death` of a wake, and starts another one on its store and journal.

        The last `lost` messages to each client were still in the broker's send queues and are lost. The client
        receives the others, then notices the death and connects to the new broker.
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
        """Kills the broker with everything in transit, and connects all its clients to the next one."""
        self.kill_broker()
        for member in self.clients:
            if member.orphaned:
                member.connect()
