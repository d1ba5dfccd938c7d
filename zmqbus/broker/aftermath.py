"""What a new broker has to find out about the requests of the one before it, in its first seconds.

The callers say their requests again, the workers name what they have in hand, and neither waits for the other. So there
are two sides to be brought together:

* A request that is said again waits (in *limbo*) as long as any session of its group that was connected when the last
  broker ended has not come back: that one may have it. The store knows those sessions.
* What a worker names and nobody has asked here yet is a *claim*. When the caller says the request, it is that worker's.
  A worker may have answered it, too, to a broker that died with the answer; it is handed the request again then, and
  remembers.

After `RETURN_S` whoever is not here is late: limbo is emptied into the queues, and the workers hear that nobody wants
what they have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zmqbus import protocol
from zmqbus.broker.board import Board
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.registry import Session
from zmqbus.broker.workers import Worker

#: How long callers and workers that have lost their connection, or their broker, are expected back. They look for a
#: broker for five seconds, and have found one after some tenths.
RETURN_S = 5.0
#: And how long a program that has come back may take to offer, before it counts as none that works. The offer comes in
#: the message of its HELLO, or right behind it.
OFFER_S = 1.0


class Aftermath:
    """What is left to be settled after another broker."""

    def __init__(self, board: Board, out: Outbox, owner_lives: Callable[[str], bool]) -> None:
        self._board = board
        self._out = out
        self._owner_lives = owner_lives
        self._until_s = 0.0  # 0: it is over
        self._claims: dict[str, tuple[Worker, bool]] = {}  # id → who has it, and whether it has answered it
        self._expected: dict[str, set[str]] = {}  # group → sessions that may have some of its requests
        self._owners: dict[str, str] = {}  # those sessions → their owners
        self._came: dict[str, float] = {}  # those of them that are here → when they count as none that works

    def __repr__(self) -> str:
        return f"<Aftermath: {len(self._owners)} sessions expected, {len(self._claims)} claims>"

    @property
    def lasts(self) -> bool:
        """Whether time alone may change something here."""
        return bool(self._claims or self._board.limbo)

    def begin(self, now: Instant, sessions: Iterable[Session]) -> None:
        """The broker is new. `sessions`: those that were connected to the one before."""
        self._until_s = now.mono_s + RETURN_S
        for session in sessions:
            if session.groups and self._owner_lives(session.owner):
                self._owners[session.session_id] = session.owner
                for name in session.groups:
                    self._expected.setdefault(name, set()).add(session.session_id)

    def expects(self, name: str, without: str = "") -> bool:
        """Whether a session of this group may come back; another one than that."""
        expected = self._expected.get(name)
        return expected is not None and expected != {without}

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
        """All who may have had something of this group are back, or late: what nobody has is for anybody."""
        for request in [one for one in self._board.limbo.values() if one.group.name == name]:
            self._board.take_out(request)
            self._board.wait(request)
        if name in self._board.groups:
            self._board.changed[self._board.groups[name]] = None

    # --- claims

    def claim(self, worker: Worker, msg_id: str, *, answered: bool) -> bool:
        """A worker has a request that nobody has asked here. False: nobody will."""
        if not self._until_s or msg_id in self._claims or not protocol.is_msg_id(msg_id):
            return False
        self._claims[msg_id] = (worker, answered)
        if not answered:
            worker.claims.add(msg_id)
        return True

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
        """Waits no longer for whoever is late, or dead."""
        if not self._until_s:
            return
        late = now.mono_s >= self._until_s
        for session_id, owner in list(self._owners.items()):
            if late or now.mono_s >= self._came.get(session_id, self._until_s) or not self._owner_lives(owner):
                self.arrived(session_id)
        if not late:
            return
        self._until_s = 0.0
        claims, self._claims = self._claims, {}
        unwanted: dict[Worker, list[str]] = {}
        for msg_id, (worker, answered) in claims.items():
            if not answered:
                unwanted.setdefault(worker, []).append(msg_id)
        for worker, msg_ids in unwanted.items():
            worker.claims.clear()
            self._board.load_changed(worker)
            if worker.conn is not None:
                self._out.reply(worker.conn.route, protocol.Withdrawn(tuple(msg_ids)))
