"""Two worlds that keep the same contract: the simulated network, and real sockets with a broker in a process.

Theory of operation
===================

A test of the contract is written once, against `World` and `Member`, and runs in both. So it shows two things: that the
bus keeps its promises over real sockets, and that what the simulated network says about them can be believed.

In both worlds the cores of broker and client are the real ones. The simulated world runs them under a clock of its own.
The real one starts its broker as users do (a detached process, a port, a data directory), and its members are `Link`s,
which the test's own thread pumps; so nothing happens to a member but while the test waits.

What happens between two calls is left open: the simulated world does nothing by itself, the real one goes on. A test
may rely on what both have in common:

* `until` waits for a condition, `quiet` until all that was said before has had its effect over the DEALERs. Of what is
  published there is no such end: a test sends something behind it on the same channel.
* a connection that is cut, and a broker that dies, may take along what was under way, or may not.
* a member that the test does not take messages for holds them; after a second its senders hear `busy`. On a machine
  that stands still for so long they hear it a little too often, and `hears` knows that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

from zmqbus.broker.delivery import BUSY_AFTER_S
from zmqbus.client import core
from zmqbus.client.seen import TakenIds
from zmqbus.errors import ZmqbusError
from zmqbus.journal.record import Record
from zmqbus.testing import session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format, Role, Scope, State

#: What became of a message in few words: a state or the code of a refusal; of one to many (delivered, queued), and
#: behind these the names of those who go without.
Fate: TypeAlias = str | tuple[int | str, ...]
#: What may have its body in the journal.
Carrier: TypeAlias = core.Incoming | verbs.Work | verbs.Result


def _gist(fate: Fate | None, expected: Fate) -> Fate | None:
    """A fate without the difference between what was taken and what waits, where it was to be taken."""
    match fate:
        case (int(delivered), int(queued), *full):
            return (delivered + queued, *full)
        case "busy" if expected == "delivered":
            return "delivered"
    return fate


class Member(ABC):
    """Somebody on the bus, with what the application has seen. Made by a `World`."""

    def __init__(self, world: World, client: core.ClientCore, taken: TakenIds) -> None:
        self.world = world
        self.core = client
        self.shown = taken  #: what the processes of this session have taken
        self.handed: list[core.Incoming] = []  #: and not taken
        self.history: list[core.Incoming] = []  #: all that was ever handed out
        self.answers: dict[str, verbs.Receipt | verbs.Tally | ZmqbusError] = {}
        self.responses: dict[str, verbs.Envelope | ZmqbusError] = {}
        self.works: dict[str, verbs.Work] = {}  #: requests in hand
        self.done: list[str] = []  #: ids of all that it was given to work on
        self.dropped: list[str] = []  #: ids of those that were withdrawn while it had them
        self.results: dict[str, verbs.Result | ZmqbusError] = {}
        self.renames: list[str] = []
        self.closed: list[ZmqbusError | None] = []
        self.heard: list[verbs.Envelope] = []  #: what came over the DEALER
        self.overheard: list[verbs.Envelope] = []  #: what came over the SUB
        self.losses = 0  #: of connections, as far as it has noticed
        self.ended = False  #: its process is no more
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
        """Bodies handed out and not taken."""
        return [message.body for message in self.handed]

    def taken_of(self, msg_ids: Collection[str]) -> list[str]:
        """Those of these messages that were taken, by whichever process of the session, in the order of that."""
        return [msg_id for msg_id in self.shown if msg_id in msg_ids]

    @property
    def ready(self) -> bool:
        """Whether the client takes itself for welcomed."""
        return self.core.phase is core.Phase.READY

    @property
    def lease(self) -> str:
        """The lease that it goes by."""
        assert self.core.welcome is not None
        return self.core.welcome.lease

    def fate(self, msg_id: str) -> Fate | None:
        """What became of a message; None: not known yet."""
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
        """Carries out what the core wants."""

    @abstractmethod
    def raw(self, *envelopes: verbs.Envelope) -> None:
        """Says what no client core would say."""

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
        """Sends; returns the message's id."""
        msg_id = msg_id or self.world.new_id()
        self._sent_s.setdefault(msg_id, self.world.now_s)
        self.answers.pop(msg_id, None)
        self.perform(self.core.send(core.Outgoing(msg_id, scope, target, fmt, reply_to, again, body)))
        return msg_id

    def send_all(
        self, target: str, *bodies: bytes, scope: Scope = Scope.SESSION, fmt: Format = Format.TEXT
    ) -> list[str]:
        """Sends several at once, which travel in one piece; returns their ids."""
        sends = [core.Outgoing(self.world.new_id(), scope, target, fmt, None, False, body) for body in bodies]
        for send in sends:
            self._sent_s.setdefault(send.msg_id, self.world.now_s)
        self.perform(self.core.send_all(sends))
        return [send.msg_id for send in sends]

    def to_all(self, body: bytes = b"") -> str:
        """Sends to everyone."""
        return self.send("", body, scope=Scope.ALL)

    def ask(self, target: str, body: bytes) -> str:
        """Sends, and awaits the answer on this connection."""
        msg_id = self.world.new_id()
        self.perform(self.core.await_answer(msg_id))
        return self.send(target, body, msg_id=msg_id)

    def call(self, group: str, body: bytes = b"", *, patient: bool = True) -> str:
        """Asks a group; returns the request's id."""
        msg_id = self.world.new_id()
        self.perform(self.core.ask(verbs.Request(msg_id, group, Format.TEXT, patient, False, body)))
        return msg_id

    def withdraw(self, *msg_ids: str) -> None:
        """Waits for the answers to these no longer."""
        self.perform(self.core.withdraw(msg_ids))

    def offer(self, credit: int) -> None:
        """Works for its groups."""
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
        """Waits for the answer to a request, which must be this."""
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
        """Says a message again, as a sender that has heard nothing."""
        self.answers.pop(msg_id, None)
        self.send(target, body, scope=scope, msg_id=msg_id, again=True)

    def hears(self, msg_id: str, expected: Fate) -> verbs.Receipt | verbs.Tally | ZmqbusError:
        """Waits for what became of a message, which must be this; returns all that was said."""
        self.world.until(lambda: msg_id in self.answers)
        fate = self.fate(msg_id)
        if self.world.now_s - self._sent_s[msg_id] >= BUSY_AFTER_S:
            # The receiver, or the machine, took longer than that; then `busy` is the truth, too.
            assert _gist(fate, expected) == _gist(expected, expected), self.answers[msg_id]
        else:
            assert fate == expected, self.answers[msg_id]
        return self.answers[msg_id]

    def hears_it_is_safe(self, msg_id: str) -> verbs.Receipt | verbs.Tally:
        """Waits for what became of a message: it was taken, or it waits, everywhere; returns what was said."""
        self.world.until(lambda: msg_id in self.answers)
        answer = self.answers[msg_id]
        assert isinstance(answer, verbs.Receipt) or (isinstance(answer, verbs.Tally) and not answer.without), answer
        return answer

    def gets(self, *expected: bytes) -> list[core.Incoming]:
        """Waits until so many messages are here, which must have these bodies; does not take them."""
        self.world.until(lambda: len(self.handed) >= len(expected))
        assert self.bodies == list(expected)
        return list(self.handed)

    def take(self, count: int = 1) -> list[core.Incoming]:
        """Takes the oldest messages. Returns what it shows: another process of the session may have shown the rest."""
        shown = []
        for message in self.handed[:count]:
            if message.msg_id not in self.shown:
                shown.append(message)
            self.core.taken(message.ticket)
        del self.handed[:count]
        self.perform(self.core.acknowledge())
        return shown

    def take_all(self) -> list[core.Incoming]:
        """Takes what has been handed out."""
        return self.take(len(self.handed))

    def drain(self, count: int = 1_000_000) -> bool:
        """Takes up to so many of what is here. True, so that conditions can do it while they wait."""
        self.take(min(count, len(self.handed)))
        return True

    def takes(self, *expected: bytes) -> list[core.Incoming]:
        """`gets`, and takes them."""
        self.gets(*expected)
        return self.take_all()

    def begin(self, request: verbs.Envelope) -> None:
        """Asks the broker for something, and does not wait."""
        self.perform(self.core.request(request))

    def request(self, request: verbs.Envelope) -> Any:
        """Asks the broker for something; returns the response, or the error that it is."""
        self.begin(request)
        ref: str = request.ref  # type: ignore[union-attr]
        self.world.until(lambda: ref in self.responses)
        return self.responses.pop(ref)

    # --- what happens to it

    @abstractmethod
    def cut(self) -> None:
        """Its connections break, and it makes new ones. It has noticed the loss when this returns."""

    @abstractmethod
    def cut_subscriber(self) -> None:
        """The connection of its SUB breaks, and comes back by itself."""

    @abstractmethod
    def lose_broadcast(self) -> None:
        """The next message on its SUB does not reach it. To be called when nothing else is under way there."""

    @abstractmethod
    def stop(self) -> None:
        """Its process stands still."""

    @abstractmethod
    def go(self) -> None:
        """Its process goes on."""

    @abstractmethod
    def die(self) -> None:
        """Its process is gone without a word."""

    @abstractmethod
    def bye(self) -> None:
        """It leaves in good order, and its process ends."""


class World(ABC):
    """A bus with one broker."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.new_id = verbs.IdMaker()
        self._pids = iter(range(1000, 10_000))
        self._shown: dict[str, TakenIds] = {}

    # --- who is there

    def session(self, name: str, /, **persona: Any) -> Member:
        """A session's listener: welcomed, or refused, when this returns."""
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
        """Another process of the same session."""
        return self._enter(member.core.persona._replace(pid=next(self._pids), **persona))

    def helper(self, member: Member) -> Member:
        """A command of the session."""
        return self._enter(member.core.persona._replace(role=Role.HELPER, pid=next(self._pids)))

    def guest(self, name: str) -> Member:
        """A script that speaks under a name."""
        return self._enter(core.Persona(role=Role.GUEST, name=name, token=f"{name}-token"))

    def observer(self) -> Member:
        """Somebody who only looks."""
        return self._enter(core.Persona(role=Role.OBSERVER))

    def _enter(self, persona: core.Persona) -> Member:
        own = persona.session_id
        member = self._make(persona, self._shown.setdefault(own, TakenIds()) if own else TakenIds())
        self.members.append(member)
        self.until(lambda: member.ready or member.closed)
        welcome = member.core.welcome
        if welcome is not None and not welcome.waiting and persona.role in (Role.LISTENER, Role.PROGRAM):
            self.attach(member)
        return member

    @abstractmethod
    def _make(self, persona: core.Persona, taken: TakenIds) -> Member: ...

    @abstractmethod
    def attach(self, *members: Member) -> None:
        """Waits until the marks of these members are in force. To be called when nothing is under way to them."""

    living_owner: str  #: of a session: a process that runs
    dead_owner: str

    @abstractmethod
    def new_owner(self) -> str:
        """A process that runs until `end_owner`."""

    @abstractmethod
    def end_owner(self, owner: str) -> None:
        """A process of `new_owner` ends."""

    # --- time

    @property
    @abstractmethod
    def now_s(self) -> float:
        """A clock that is never set."""

    @abstractmethod
    def until(self, condition: Callable[[], Any]) -> None:
        """Lets the bus go on until the condition holds; fails the test if that does not happen."""

    @abstractmethod
    def quiet(self) -> None:
        """Lets the bus go on until what has been said, and what that has caused, is done."""

    # --- the broker

    @abstractmethod
    def stall_broker(self) -> None:
        """From now on the broker hears nothing. Only its death follows."""

    @abstractmethod
    def kill_broker(self) -> None:
        """The broker dies at once, and another one comes up in its place; members that do not stand still know."""

    @abstractmethod
    def whole(self, carrier: Carrier) -> bytes:
        """The body of a message, wherever it is."""

    @abstractmethod
    def journal(self) -> list[Record]:
        """All that the log holds."""
