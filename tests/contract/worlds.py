"""Two worlds that keep the same contract: the simulated network, and real sockets with a broker process.

Theory of operation
===================

A contract test is written once, against `World` and `Member`, and runs in both. So it shows that the bus keeps its
promises over real sockets, and that the simulated network behaves like them.

Both worlds use the real cores of broker and client. The simulated world runs them under its own clock. The real world
starts a broker as users do (a detached process, a port, a data directory), and its members are transports driven by the
test's thread, so that a member acts only while the test waits.

What happens between two calls is not defined: the simulated world stands still, the real one goes on. A test may rely
on what both have in common:

* `until` waits for a condition, `quiet` until all earlier messages have had their effect over the DEALERs. There is no
  such wait for published messages: a test sends another one after them on the same channel.
* a cut connection and a dying broker may or may not lose the messages in transit.
* a member holds messages until the test takes them; after a second their senders hear `busy`. On a slow machine they
  may hear it although the receiver is about to take them, which `hears` allows for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

from zmqbus.broker.delivery import BUSY_AFTER_S
from zmqbus.client import core
from zmqbus.client.seen import SeenIds
from zmqbus.errors import ZmqbusError
from zmqbus.journal.record import Record
from zmqbus.testing import session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format, Role, Scope, State

#: The outcome of a message: a state or the code of a refusal; for a broadcast (delivered, queued), followed by the
#: names of receivers with full mailboxes.
Fate: TypeAlias = str | tuple[int | str, ...]
#: Messages whose body may be in the journal.
Carrier: TypeAlias = core.Incoming | verbs.Work | verbs.Result


def _gist(fate: Fate | None, expected: Fate) -> Fate | None:
    """Returns an outcome in which `busy` counts as the expected `delivered`."""
    match fate:
        case (int(delivered), int(queued), *full):
            return (delivered + queued, *full)
        case "busy" if expected == "delivered":
            return "delivered"
    return fate


class Member(ABC):
    """A client in a `World`, with everything that its application has received."""

    def __init__(self, world: World, client: core.ClientCore, taken: SeenIds) -> None:
        self.world = world
        self.core = client
        self.shown = taken  #: ids taken by the processes of this session
        self.handed: list[core.Incoming] = []  #: messages handed out and not taken
        self.history: list[core.Incoming] = []  #: all messages ever handed out
        self.answers: dict[str, verbs.Receipt | verbs.Tally | ZmqbusError] = {}
        self.responses: dict[str, verbs.Envelope | ZmqbusError] = {}
        self.works: dict[str, verbs.Work] = {}  #: requests in hand
        self.done: list[str] = []  #: ids of all requests received
        self.dropped: list[str] = []  #: ids of requests withdrawn while in hand
        self.results: dict[str, verbs.Result | ZmqbusError] = {}
        self.renames: list[str] = []
        self.closed: list[ZmqbusError | None] = []
        self.heard: list[verbs.Envelope] = []  #: envelopes from the DEALER
        self.overheard: list[verbs.Envelope] = []  #: envelopes from the SUB
        self.losses = 0  #: lost connections that it has noticed
        self.ended = False  #: its process has ended
        self._sent_s: dict[str, float] = {}
        self._listen_in(client)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.core!r}>"

    def _listen_in(self, client: core.ClientCore) -> None:
        handle = client.handle

        def recording(now_s: float, event: core.Event) -> list[core.Effect]:
            match event:
                case core.Received(envelopes):
                    self.heard += envelopes
                case core.Published(_, envelopes):
                    self.overheard += envelopes
                case core.Down():
                    self.losses += 1
            return handle(now_s, event)

        client.handle = recording  # type: ignore[method-assign]

    # --- what a test looks at

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of the messages handed out and not taken."""
        return [message.body for message in self.handed]

    def taken_of(self, msg_ids: Collection[str]) -> list[str]:
        """Returns which of these messages any process of the session has taken, in the order of taking."""
        return [msg_id for msg_id in self.shown if msg_id in msg_ids]

    @property
    def ready(self) -> bool:
        """Whether the client has been welcomed."""
        return self.core.phase is core.Phase.READY

    @property
    def lease(self) -> str:
        """The lease of its connection."""
        assert self.core.welcome is not None
        return self.core.welcome.lease

    def fate(self, msg_id: str) -> Fate | None:
        """Returns the outcome of a message, or None if it has none yet."""
        match self.answers.get(msg_id):
            case None:
                return None
            case verbs.Receipt(state=state):
                return State(state).name.lower()
            case verbs.Tally(delivered=delivered, queued=queued) as tally:
                return (delivered, queued, *tally.without)
            case error:
                return error.code

    # --- what an application does

    @abstractmethod
    def perform(self, effects: list[core.Effect]) -> None:
        """Carries out effects of the core."""

    @abstractmethod
    def raw(self, *envelopes: verbs.Envelope) -> None:
        """Sends envelopes that no client core would send."""

    def send(
        self,
        target: str,
        body: bytes = b"",
        *,
        scope: Scope = Scope.SESSION,
        fmt: Format = Format.TEXT,
        reply_to: str | None = None,
        msg_id: str | None = None,
        again: bool = False,
    ) -> str:
        """Sends a message; returns its id."""
        msg_id = msg_id or self.world.new_id()
        self._sent_s.setdefault(msg_id, self.world.now_s)
        self.answers.pop(msg_id, None)
        self.perform(self.core.send(core.Outgoing(msg_id, scope, target, fmt, reply_to, again, body)))
        return msg_id

    def send_all(
        self, target: str, *bodies: bytes, scope: Scope = Scope.SESSION, fmt: Format = Format.TEXT
    ) -> list[str]:
        """Sends several messages as one batch; returns their ids."""
        sends = [core.Outgoing(self.world.new_id(), scope, target, fmt, None, False, body) for body in bodies]
        for send in sends:
            self._sent_s.setdefault(send.msg_id, self.world.now_s)
        self.perform(self.core.send_all(sends))
        return [send.msg_id for send in sends]

    def to_all(self, body: bytes = b"") -> str:
        """Broadcasts to all sessions."""
        return self.send("", body, scope=Scope.ALL)

    def ask(self, target: str, body: bytes) -> str:
        """Sends a question whose answer comes to this connection; returns its id."""
        msg_id = self.world.new_id()
        self.perform(self.core.await_answer(msg_id))
        return self.send(target, body, msg_id=msg_id)

    def call(self, group: str, body: bytes = b"", *, patient: bool = True) -> str:
        """Sends a request to a group; returns its id."""
        msg_id = self.world.new_id()
        self.perform(self.core.ask(verbs.Request(msg_id, group, Format.TEXT, patient, False, body)))
        return msg_id

    def withdraw(self, *msg_ids: str) -> None:
        """Withdraws these requests."""
        self.perform(self.core.withdraw(msg_ids))

    def offer(self, credit: int) -> None:
        """Works for its groups, with at most `credit` requests in hand."""
        self.perform(self.core.offer(credit))

    def work(self, *expected: str) -> None:
        """Waits until exactly these requests are in hand, and answers each with its own body."""
        if len(self.works) < len(expected):
            self.world.until(lambda: len(self.works) >= len(expected))
        assert sorted(self.works) == sorted(expected)
        for msg_id in expected:
            work = self.works.pop(msg_id)
            self.perform(self.core.answer(msg_id, work.fmt, b"done " + self.world.whole(work)))

    def hears_back(self, msg_id: str, expected: bytes | None = None) -> verbs.Result:
        """Waits for the answer to a request, and checks it."""
        self.world.until(lambda: msg_id in self.results)
        result = self.results[msg_id]
        assert isinstance(result, verbs.Result), result
        assert expected is None or self.world.whole(result) == expected
        return result

    def hears_why_not(self, msg_id: str) -> str:
        """Waits for the refusal of a request; returns its code."""
        self.world.until(lambda: msg_id in self.results)
        error = self.results[msg_id]
        assert isinstance(error, ZmqbusError), error
        return error.code

    def repeat(self, msg_id: str, target: str, body: bytes = b"", *, scope: Scope = Scope.SESSION) -> None:
        """Repeats a message, as a sender without a receipt does."""
        self.answers.pop(msg_id, None)
        self.send(target, body, scope=scope, msg_id=msg_id, again=True)

    def hears(self, msg_id: str, expected: Fate) -> verbs.Receipt | verbs.Tally | ZmqbusError:
        """Waits for the outcome of a message, and checks it; returns the receipt."""
        self.world.until(lambda: msg_id in self.answers)
        fate = self.fate(msg_id)
        if self.world.now_s - self._sent_s[msg_id] >= BUSY_AFTER_S:
            # `busy` is true as well if the receiver, or the machine, took longer than a second.
            assert _gist(fate, expected) == _gist(expected, expected), self.answers[msg_id]
        else:
            assert fate == expected, self.answers[msg_id]
        return self.answers[msg_id]

    def hears_it_is_safe(self, msg_id: str) -> verbs.Receipt | verbs.Tally:
        """Waits until a message is reported as delivered or queued everywhere; returns the receipt."""
        self.world.until(lambda: msg_id in self.answers)
        answer = self.answers[msg_id]
        assert isinstance(answer, verbs.Receipt) or (isinstance(answer, verbs.Tally) and not answer.without), answer
        return answer

    def gets(self, *expected: bytes) -> list[core.Incoming]:
        """Waits for as many messages, and checks their bodies; does not take them."""
        self.world.until(lambda: len(self.handed) >= len(expected))
        assert self.bodies == list(expected)
        return list(self.handed)

    def take(self, count: int = 1) -> list[core.Incoming]:
        """Takes the oldest messages. Returns those that no other process of the session has already shown."""
        shown = []
        for message in self.handed[:count]:
            if message.msg_id not in self.shown:
                shown.append(message)
            self.core.taken(message.ticket)
        del self.handed[:count]
        self.perform(self.core.acknowledge())
        return shown

    def take_all(self) -> list[core.Incoming]:
        """Takes all messages handed out."""
        return self.take(len(self.handed))

    def drain(self, count: int = 1_000_000) -> bool:
        """Takes up to `count` messages. Returns True, for use in conditions."""
        self.take(min(count, len(self.handed)))
        return True

    def takes(self, *expected: bytes) -> list[core.Incoming]:
        """Waits for messages with these bodies, and takes them."""
        self.gets(*expected)
        return self.take_all()

    def begin(self, request: verbs.Envelope) -> None:
        """Sends a request to the broker, without waiting for the response."""
        self.perform(self.core.request(request))

    def request(self, request: verbs.Envelope) -> Any:
        """Sends a request to the broker; returns the response or the error."""
        self.begin(request)
        ref: str = request.ref  # type: ignore[union-attr]
        self.world.until(lambda: ref in self.responses)
        return self.responses.pop(ref)

    # --- what happens to it

    @abstractmethod
    def cut(self) -> None:
        """Breaks its connections, and waits until it has noticed; it then reconnects."""

    @abstractmethod
    def cut_subscriber(self) -> None:
        """Breaks the connection of its SUB, which reconnects by itself."""

    @abstractmethod
    def lose_broadcast(self) -> None:
        """Drops the next message on its SUB. No other may be in transit there."""

    @abstractmethod
    def stop(self) -> None:
        """Stops its process."""

    @abstractmethod
    def go(self) -> None:
        """Continues its process."""

    @abstractmethod
    def die(self) -> None:
        """Kills its process."""

    @abstractmethod
    def bye(self) -> None:
        """Says BYE, and ends its process."""


class World(ABC):
    """A bus with one broker."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.new_id = verbs.IdMaker()
        self._pids = iter(range(1000, 10_000))
        self._shown: dict[str, SeenIds] = {}

    # --- who is there

    def session(self, name: str, /, **persona: Any) -> Member:
        """Adds the listener of a session, and waits until it is welcomed or refused."""
        return self._enter(
            core.Persona(
                role=Role.LISTENER,
                session_id=session_id_of(name),
                token=f"{name}-token",
                name=name,
                cwd="/p",
                project="/p",
                pid=next(self._pids),
                owner=self.living_owner,
            )._replace(**persona)
        )

    def again(self, member: Member, **persona: Any) -> Member:
        """Adds another process of the same session."""
        return self._enter(member.core.persona._replace(pid=next(self._pids), **persona))

    def helper(self, member: Member) -> Member:
        """Adds a command of the session."""
        return self._enter(member.core.persona._replace(role=Role.HELPER, pid=next(self._pids)))

    def guest(self, name: str) -> Member:
        """Adds a script that sends under a name."""
        return self._enter(core.Persona(role=Role.GUEST, name=name, token=f"{name}-token"))

    def observer(self) -> Member:
        """Adds a client that only asks the broker for information."""
        return self._enter(core.Persona(role=Role.OBSERVER))

    def _enter(self, persona: core.Persona) -> Member:
        own = persona.session_id
        member = self._make(persona, self._shown.setdefault(own, SeenIds()) if own else SeenIds())
        self.members.append(member)
        self.until(lambda: member.ready or member.closed)
        welcome = member.core.welcome
        if welcome is not None and not welcome.waiting and persona.role in (Role.LISTENER, Role.PROGRAM):
            self.attach(member)
        return member

    @abstractmethod
    def _make(self, persona: core.Persona, taken: SeenIds) -> Member: ...

    @abstractmethod
    def attach(self, *members: Member) -> None:
        """Waits until the broker has the presence subscriptions of these members; nothing may be in transit to them."""

    living_owner: str  #: the owner of a session whose process runs
    dead_owner: str

    @abstractmethod
    def new_owner(self) -> str:
        """Returns an owner whose process runs until `end_owner`."""

    @abstractmethod
    def end_owner(self, owner: str) -> None:
        """Ends the process of an owner from `new_owner`."""

    # --- time

    @property
    @abstractmethod
    def now_s(self) -> float:
        """A monotonic clock."""

    @abstractmethod
    def until(self, condition: Callable[[], Any]) -> None:
        """Runs the bus until the condition holds; fails the test if it does not in time."""

    @abstractmethod
    def quiet(self) -> None:
        """Runs the bus until all messages so far, and those that they cause, are handled."""

    # --- the broker

    @abstractmethod
    def stall_broker(self) -> None:
        """Stops the broker. Only `kill_broker` may follow."""

    @abstractmethod
    def kill_broker(self) -> None:
        """Kills the broker and starts another; waits until all members that are not stopped have noticed."""

    @abstractmethod
    def whole(self, carrier: Carrier) -> bytes:
        """Returns the body of a message, from the envelope or from the journal."""

    @abstractmethod
    def journal(self) -> list[Record]:
        """Returns all records of the log."""
