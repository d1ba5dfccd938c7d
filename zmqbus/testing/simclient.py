"""A simulated client: the application above a real `ClientCore`, and the queues of its sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING
from zlib import crc32

from zmqbus.client import core as client
from zmqbus.client.seen import SeenIds
from zmqbus.errors import ZmqbusError
from zmqbus.journal.large_record import escape_body
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Format, Scope

if TYPE_CHECKING:
    from zmqbus.testing.simnet import SimNet


class SimClient:
    """A client of a `SimNet`, with everything that its application has received."""

    def __init__(self, net: SimNet, persona: client.Persona, taken: SeenIds | None = None) -> None:
        self.net = net
        self.persona = persona
        self.taken = SeenIds() if taken is None else taken
        self.core = client.ClientCore(persona, "test", self.taken)
        self.route = b""
        self.stopped = False  #: receives nothing and does not tick, as a process after SIGSTOP
        self.orphaned = False  #: its broker is dead, which it notices after the messages still in transit
        self.up: deque[list[bytes]] = deque()
        self.down: deque[list[bytes]] = deque()
        self.published: deque[list[bytes]] = deque()
        self.filters: list[bytes] = []
        self.handed: list[client.Incoming] = []  #: messages handed to the application and not yet taken
        self.history: list[client.Incoming] = []  #: all messages ever handed to the application
        self.answers: dict[str, verbs.Receipt | verbs.Tally | ZmqbusError] = {}
        self.responses: dict[str, verbs.Envelope | ZmqbusError] = {}
        self.works: dict[str, verbs.Work] = {}  #: requests in hand: neither answered nor withdrawn
        self.done: list[str] = []  #: ids of all requests ever received, in order
        self.dropped: list[str] = []  #: ids of requests that were withdrawn while in hand
        self.results: dict[str, verbs.Result | ZmqbusError] = {}  #: results of its own requests to groups
        self.renames: list[str] = []
        self.notices: list[verbs.Notice] = []
        self.closed: list[ZmqbusError | None] = []
        self.core.spools = True
        self._file = ""  # the spool file that WELCOME named
        self._pieces: dict[str, int] = {}  # message id → offset of its body in the spool file
        self._new_id = verbs.IdMaker(f"client{len(net.clients):02d}".encode())
        self._decoder = codec.Decoder(from_broker=True)

    def __repr__(self) -> str:
        return f"<SimClient {self.core!r}>"

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of the messages handed out and not taken."""
        return [self.net.body(message) for message in self.handed]

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
        """Sends a message; returns its id, under which `answers` will hold the receipt."""
        msg_id = msg_id or self._new_id()
        self._do(self.core.send(client.Outgoing(msg_id, scope, target, fmt, reply_to, False, body)))
        return msg_id

    def send_all(
        self,
        target: str,
        bodies: Sequence[bytes],
        *,
        scope: Scope = Scope.SESSION,
        msg_ids: Sequence[str] | None = None,
    ) -> list[str]:
        """Sends several messages as one batch; returns their ids."""
        msg_ids = [self._new_id() for _ in bodies] if msg_ids is None else list(msg_ids)
        sends = [
            client.Outgoing(msg_id, scope, target, Format.TEXT, None, False, body)
            for msg_id, body in zip(msg_ids, bodies, strict=True)
        ]
        self._do(self.core.send_all(sends))
        return msg_ids

    def ask(self, target: str, body: bytes) -> str:
        """Sends a question whose answer comes to this connection; returns its id."""
        msg_id = self._new_id()
        self._do(self.core.await_answer(msg_id))
        return self.send(target, body, msg_id=msg_id)

    def request(self, envelope: verbs.Envelope) -> None:
        """Sends a request to the broker itself (LIST, STATUS, …)."""
        self._do(self.core.request(envelope))

    def call(self, group: str, body: bytes = b"", *, patient: bool = True, msg_id: str | None = None) -> str:
        """Sends a request to a group; returns its id, under which `results` will hold the result."""
        msg_id = msg_id or self._new_id()
        self._do(self.core.ask(verbs.Request(msg_id, group, Format.TEXT, patient, False, body)))
        return msg_id

    def withdraw(self, *msg_ids: str) -> None:
        """Withdraws these requests."""
        self._do(self.core.withdraw(msg_ids))

    def offer(self, credit: int) -> None:
        """Works for its groups, with at most `credit` requests in hand."""
        self._do(self.core.offer(credit))

    def answer(self, msg_id: str, body: bytes = b"", *, fmt: Format = Format.TEXT) -> None:
        """Answers a request."""
        self.works.pop(msg_id, None)
        self._do(self.core.answer(msg_id, fmt, body))

    def work(self, count: int = 1_000_000) -> list[verbs.Work]:
        """Answers the oldest `count` requests in hand with b"done " + their body; returns them."""
        done = list(self.works.values())[:count]
        for work in done:
            self.answer(work.msg_id, b"done " + self.net.body(work))
        return done

    def take_all(self) -> list[client.Incoming]:
        """Takes and acknowledges everything handed out. Returns what the application shows."""
        return self.take(len(self.handed))

    def take(self, count: int = 1) -> list[client.Incoming]:
        """Takes the oldest messages. Returns those that no other process of the session has already shown."""
        shown = []
        for message in self.handed[:count]:
            if message.msg_id not in self.taken:
                shown.append(message)
        for ticket in _joined([message.ticket for message in self.handed[:count]]):
            self.core.taken(ticket)
        del self.handed[:count]
        self._do(self.core.acknowledge())
        return shown

    # --- the transport

    def connect(self) -> None:
        """Connects, under a new route."""
        if self.orphaned:
            self.disconnect()
        self.route = self.net.new_route(self)
        self._do(self.core.handle(self.net.clock.mono_s, client.Up()))

    def disconnect(self) -> None:
        """Breaks the connection: messages in transit in both directions are lost, as are the SUB's filters."""
        self.net.lose(self)
        self.drop_subscriber()
        self.orphaned = False
        self.up.clear()
        self.down.clear()
        self._do(self.core.handle(self.net.clock.mono_s, client.Down()))

    def vanish(self) -> None:
        """Breaks the connection without the broker's knowledge: what it sends is accepted and discarded."""
        self.net.divert(self)
        self.filters = []
        self.disconnect()

    def drop_subscriber(self) -> None:
        """Breaks the SUB's connection; the broker sees the presence subscription go."""
        self.published.clear()
        filters, self.filters = self.filters, []
        self.net.changed_filters(filters, [])

    def bye(self) -> None:
        """Says goodbye to the broker."""
        self._do(self.core.bye())

    def raw(self, frames: list[bytes]) -> None:
        """Sends arbitrary frames, such as no client core would send."""
        self.up.append(frames)

    def receive(self) -> bool:
        """Handles one message from the broker, the SUB's first. Returns False if there is none."""
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
        """Tells the core that time has passed."""
        if self.stopped or self.net.routes.get(self.route) is not self:
            return
        self._do(self.core.handle(self.net.clock.mono_s, client.Tick()))

    def _put_down(self, send: verbs.Send) -> verbs.Send:
        """Writes a large body to the spool file, and returns the envelope that refers to it."""
        (msg_id,), (body,) = send.msg_ids, send.bodies
        try:
            piece = escape_body(verbs.FORMAT_WORDS[send.fmt], body)
        except ZmqbusError:
            return send
        # One is not overwritten by the next, so the offsets rise.
        offset = self._pieces[msg_id] = max(self._pieces.values(), default=-1) + 1
        self.net.spool[self._file, offset] = piece
        numbers = (len(body), offset, len(piece), crc32(piece))
        return send._replace(file=self._file, piece=numbers, bodies=(b"",))

    def _do(self, effects: list[client.Effect]) -> None:
        outgoing: list[verbs.Envelope] = []
        for effect in effects:
            match effect:
                case client.Transmit(envelope):
                    outgoing.append(envelope)
                case client.Spool(send):
                    outgoing.append(self._put_down(send))
                case client.Unspool(msg_ids):
                    for msg_id in msg_ids:
                        self.net.spool.pop((self._file, self._pieces.pop(msg_id, -1)), None)
                case client.Welcomed():
                    self._file, self._pieces = self.net.new_file(), {}
                case client.Subscribe(_, channels):
                    old, self.filters = self.filters, list(channels)
                    self.net.changed_filters(old, self.filters)
                case client.Retune(drop, add):
                    self.filters = [add if one == drop else one for one in self.filters]
                case client.Hand():
                    self.handed += effect.messages()
                    self.history += effect.messages()
                case client.TakeBack():
                    self.handed.clear()
                case client.Confirmed(msg_ids, outcome):
                    for msg_id in msg_ids:
                        assert msg_id not in self.answers, f"{msg_id} was answered twice"
                        self.answers[msg_id] = outcome
                case client.Response(ref, envelope):
                    self.responses[ref] = envelope
                case client.Resolved(msg_id, result):
                    assert msg_id not in self.results, f"{msg_id} was answered twice"
                    self.results[msg_id] = result
                case client.StartWork(work):
                    assert work.msg_id not in self.works, f"{work.msg_id} was handed out twice"
                    self.works[work.msg_id] = work
                    self.done.append(work.msg_id)
                case client.Withdrawn(msg_ids):
                    self.dropped += msg_ids
                    for msg_id in msg_ids:
                        del self.works[msg_id]
                case client.Noticed(notice):
                    self.notices.append(notice)
                case client.Renamed(name):
                    self.renames.append(name)
                case client.Closed(reason):
                    self.closed.append(reason)
        if not self.orphaned:  # its broker is dead
            for batch in codec.batches(outgoing):
                self.up.append(codec.encode(batch))


def _joined(tickets: list[client.Ticket]) -> list[client.Ticket]:
    """The same tickets, in as few as possible: numbers of one lease in a row, of messages that answer nothing."""
    joined: list[client.Ticket] = []
    for ticket in tickets:
        last = joined[-1] if joined else ticket
        follows = ticket.lease == last.lease and ticket.number == last.number + len(last.msg_ids)
        if follows and ticket.reply_to is None and last.reply_to is None:
            joined[-1] = last._replace(msg_ids=last.msg_ids + ticket.msg_ids)
        else:
            joined.append(ticket)
    return joined
