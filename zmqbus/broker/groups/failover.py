"""What a new broker has to find out about the requests of the one before it.

The callers say their requests again, the workers name what they have in hand, and neither waits for the other. So there
are two sides to be brought together:

* A request that is said again waits (in *limbo*) as long as any session that may have it has not come back: one that
  has joined the group, was not seen to leave it, and whose process lives. The store knows those sessions. A worker may
  take its time to come back: a handler that holds the interpreter keeps it from saying anything, for however long.
* What a worker of that time names and nobody has asked here yet is a *claim*. When the caller says the request, it is
  that worker's. A worker may have answered it, too, to a broker that died with the answer; it is handed the request
  again then, and remembers. The caller may take its time as well, so a claim stays as long as its worker does.

A session that comes back and does not offer is no worker, and nothing waits for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.groups.model import Worker
from zmqbus.broker.groups.queues import Board
from zmqbus.broker.sessions import Session
from zmqbus.wire import verbs

#: How long callers that have lost their connection are expected back with what no worker has, and how long a worker
#: without a connection counts that has nothing in hand. Clients look for a broker for five seconds, and have found one
#: after some tenths.
RETURN_S = 5.0
#: And how long a program that has come back may take to offer, before it counts as none that works. The offer comes in
#: the message of its HELLO, or right behind it.
OFFER_S = 1.0
#: Claims that are remembered when the worker has answered: as many as answers of this broker's own time.
MAX_CLAIMS = 20_000
#: Sessions that a line of the log lists at most.
MAX_LISTED = 5


class Aftermath:
    """What is left to be settled after another broker."""

    def __init__(self, board: Board, out: Outbox, owner_lives: Callable[[str], bool]) -> None:
        self._board = board
        self._out = out
        self._owner_lives = owner_lives
        self._known: frozenset[str] = frozenset()  # sessions that may have had requests of another broker
        # Id → who has it, and whether it has answered it; those that were claimed first stand first.
        self._claims: OrderedDict[str, tuple[Worker, bool]] = OrderedDict()
        self._expected: dict[str, set[str]] = {}  # group → sessions that may have some of its requests
        self._owners: dict[str, str] = {}  # those sessions → their owners
        self._came: dict[str, float] = {}  # those of them that are here → when they count as none that works
        self._until_s = 0.0
        self._is_early = False  # it is not so late yet that those who are expected should have come

    def __repr__(self) -> str:
        return f"<Aftermath: {len(self._owners)} sessions expected, {len(self._claims)} claims>"

    @property
    def lasts(self) -> bool:
        """Whether time alone may change something here."""
        return bool(self._board.limbo or self._is_early)

    def begin(self, now: Instant, sessions: Iterable[Session]) -> None:
        """The broker is new. `sessions`: those that the one before has known."""
        self._until_s = now.mono_s + RETURN_S
        for session in sessions:
            # guards: failover [self._owner_lives(session.owner) => not session.away_since_s]
            if session.groups and session.is_reachable and self._owner_lives(session.owner):
                self._owners[session.session_id] = session.owner
                for name in session.groups:
                    self._expected.setdefault(name, set()).add(session.session_id)
        self._known = frozenset(self._owners)
        self._is_early = bool(self._owners)

    def expects(self, name: str) -> bool:
        """Whether a session that has joined this group may have requests of it in hand, and has not come back."""
        return name in self._expected

    def expects_soon(self, name: str, without: str = "") -> bool:
        """Whether a session of this group, another one than that, should be back in a moment."""
        expected = self._expected.get(name)
        return self._is_early and expected is not None and expected != {without}

    def came(self, now: Instant, session_id: str) -> None:
        """A program is back, and may be about to offer."""
        if session_id in self._owners:
            self._came.setdefault(session_id, now.mono_s + OFFER_S)

    def arrived(self, session_id: str) -> None:
        """A session has come and offered, or will not: nothing waits for it any more."""
        if self._owners.pop(session_id, None) is None:
            return
        self._came.pop(session_id, None)
        for name, expected in list(self._expected.items()):
            expected.discard(session_id)
            if not expected:
                del self._expected[name]
                self._empty_limbo(name)

    def _empty_limbo(self, name: str) -> None:
        """All who may have had something of this group are back, or ended: what nobody has is for anybody."""
        for request in [one for one in self._board.limbo.values() if one.group.name == name]:
            self._board.take_out(request)
            self._board.wait(request)
        if name in self._board.groups:
            self._board.changed[self._board.groups[name]] = None

    # --- claims

    def claim(self, worker: Worker, msg_id: str, *, answered: bool) -> bool:
        """A worker has a request that nobody has asked here. False: nobody will."""
        # guards: failover [worker.session_id not in self._known or =>]
        if worker.session_id not in self._known or msg_id in self._claims or not verbs.is_msg_id(msg_id):
            return False
        self._claims[msg_id] = (worker, answered)
        if not answered:
            worker.claims.add(msg_id)
        self._bound()
        return True

    def _bound(self) -> None:
        """Forgets the oldest of those that are answered, where there are too many."""
        if len(self._claims) > MAX_CLAIMS:
            oldest = next((msg_id for msg_id, (_, answered) in self._claims.items() if answered), None)
            if oldest is not None:
                del self._claims[oldest]

    def answered(self, worker: Worker, msg_id: str) -> bool:
        """A worker has answered what it claims, and has a hand free. False if that is no claim of its own."""
        if self._claims.get(msg_id, (None, False))[0] is not worker:
            return False
        self._claims[msg_id] = (worker, True)
        worker.claims.discard(msg_id)
        self._board.load_changed(worker)
        return True

    def settle(self, msg_id: str) -> tuple[Worker, bool] | None:
        """The caller has come: whose it is, and whether it is answered."""
        found = self._claims.pop(msg_id, None)
        if found is not None:
            found[0].claims.discard(msg_id)
            self._board.load_changed(found[0])
        return found

    def forget(self, worker: Worker) -> None:
        """A worker is gone, or will say anew what it has."""
        for msg_id in [one for one, (claimant, _) in self._claims.items() if claimant is worker]:
            del self._claims[msg_id]
        worker.claims.clear()

    # --- time

    def tick(self, now: Instant) -> None:
        """Waits no longer for those whose processes have ended, nor for those who do not work any more."""
        for session_id, owner in list(self._owners.items()):
            came_s = self._came.get(session_id)
            if (came_s is not None and now.mono_s >= came_s) or not self._owner_lives(owner):
                self.arrived(session_id)
        if self._is_early and (now.mono_s >= self._until_s or not self._owners):
            self._is_early = False
            for name, expected in self._expected.items():
                self._note_late(name, expected)

    def _note_late(self, name: str, expected: set[str]) -> None:
        """These sessions should be back by now: whoever wants an answer at once or not at all waits no longer."""
        if name in self._board.groups:
            self._board.changed[self._board.groups[name]] = None
        waiting = sum(request.group.name == name for request in self._board.limbo.values())
        if waiting:
            who = ", ".join(sorted(expected)[:MAX_LISTED])
            self._out.note(
                f"{waiting} requests to @{name} may be at work in sessions that have not come back, and whose "
                f"processes live ({who}): nobody else is given them before those have ended"
            )
