"""Reconciliation after a failover: which worker has which request of an earlier broker.

Callers repeat their requests to the new broker, workers name the requests that they have, and neither waits for the
other. So two sides have to be brought together:

* A repeated request is *quarantined* as long as a session that may already have it is expected back: a session that
  joined the group, was not seen to leave it, and whose process lives. The store lists those sessions. A worker may take
  any time to come back: a handler that holds the interpreter keeps it from sending anything.
* A request that a worker names before its caller has repeated it is an *orphan claim*. When the caller repeats the
  request, it is assigned to that worker. The worker may even have answered it, to a broker that died with the answer;
  it is sent the request again then, and remembers its answer. A caller may take any time as well, so a claim is kept as
  long as its worker.

A session that comes back without an OFFER is no worker, and nothing waits for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.groups.model import Worker
from zmqbus.broker.groups.queues import DispatchQueues
from zmqbus.broker.sessions import RETURN_S, Session
from zmqbus.wire import verbs

#: How long a program that has reconnected may take to send OFFER before it counts as no worker. The OFFER comes in the
#: message of its HELLO, or right behind it.
OFFER_S = 1.0
#: Answered claims that are remembered: as many as answers of this broker's own time.
MAX_CLAIMS = 20_000
#: Sessions that a line of the log lists at most.
MAX_LISTED = 5


class Reconciliation:
    """Tracks the sessions that are expected back, and the orphan claims of those that are."""

    def __init__(self, queues: DispatchQueues, out: Outbox, owner_lives: Callable[[str], bool]) -> None:
        self._queues = queues
        self._out = out
        self._owner_lives = owner_lives
        self._former: frozenset[str] = frozenset()  # sessions that may have requests of an earlier broker
        # Message id → worker, and whether it has answered; oldest claim first.
        self._claims: OrderedDict[str, tuple[Worker, bool]] = OrderedDict()
        self._expected: dict[str, set[str]] = {}  # group → expected sessions
        self._owners: dict[str, str] = {}  # expected session → its owner
        self._offer_due_s: dict[str, float] = {}  # expected session that has reconnected → when its OFFER is overdue
        self._until_s = 0.0
        self._is_early = False  # expected sessions are not late yet

    def __repr__(self) -> str:
        return f"<Reconciliation: {len(self._owners)} sessions expected, {len(self._claims)} claims>"

    @property
    def needs_tick(self) -> bool:
        """Whether time alone may change something here."""
        return bool(self._queues.quarantined or self._is_early)

    def begin(self, now: Instant, sessions: Iterable[Session]) -> None:
        """Starts to expect the members of groups among the sessions of the earlier broker."""
        self._until_s = now.mono_s + RETURN_S
        for session in sessions:
            # guards: failover [self._owner_lives(session.owner) => not session.away_since_s]
            if session.groups and session.is_reachable and self._owner_lives(session.owner):
                self._owners[session.session_id] = session.owner
                for name in session.groups:
                    self._expected.setdefault(name, set()).add(session.session_id)
        self._former = frozenset(self._owners)
        self._is_early = bool(self._owners)

    def expects(self, name: str) -> bool:
        """Whether a session that may have requests to this group is expected back."""
        return name in self._expected

    def expects_soon(self, name: str, without: str = "") -> bool:
        """Whether a session of this group, other than `without`, should be back in a moment."""
        expected = self._expected.get(name)
        return self._is_early and expected is not None and expected != {without}

    def reconnected(self, now: Instant, session_id: str) -> None:
        """Notes that a program is back, so that its OFFER is due soon."""
        if session_id in self._owners:
            self._offer_due_s.setdefault(session_id, now.mono_s + OFFER_S)

    def stop_expecting(self, session_id: str) -> None:
        """Notes that a session has sent its OFFER, or never will."""
        if self._owners.pop(session_id, None) is None:
            return
        self._offer_due_s.pop(session_id, None)
        for name, expected in list(self._expected.items()):
            expected.discard(session_id)
            if not expected:
                del self._expected[name]
                self._end_quarantine(name)

    def _end_quarantine(self, name: str) -> None:
        """Queues the quarantined requests of a group, whose expected sessions are all back or gone."""
        for request in [one for one in self._queues.quarantined.values() if one.group.name == name]:
            self._queues.remove(request)
            self._queues.enqueue(request)
        if name in self._queues.groups:
            self._queues.changed[self._queues.groups[name]] = None

    # --- orphan claims

    def add_claim(self, worker: Worker, msg_id: str, *, answered: bool) -> bool:
        """Enters a request that a worker names and no caller has repeated. False if no caller ever will."""
        # guards: failover [worker.session_id not in self._former or =>]
        if worker.session_id not in self._former or msg_id in self._claims or not verbs.is_msg_id(msg_id):
            return False
        self._claims[msg_id] = (worker, answered)
        if not answered:
            worker.claims.add(msg_id)
        if len(self._claims) > MAX_CLAIMS:
            self._forget_oldest_answered()
        return True

    def _forget_oldest_answered(self) -> None:
        oldest = next((msg_id for msg_id, (_, answered) in self._claims.items() if answered), None)
        if oldest is not None:
            del self._claims[oldest]

    def answer_claim(self, worker: Worker, msg_id: str) -> bool:
        """Notes that a worker has answered its claim, and so has credit again. False if the claim is not its own."""
        if self._claims.get(msg_id, (None, False))[0] is not worker:
            return False
        self._claims[msg_id] = (worker, True)
        worker.claims.discard(msg_id)
        self._queues.worker_changed(worker)
        return True

    def take_claim(self, msg_id: str) -> tuple[Worker, bool] | None:
        """Removes the claim to a request that its caller has repeated: its worker, and whether it has answered."""
        found = self._claims.pop(msg_id, None)
        if found is not None:
            found[0].claims.discard(msg_id)
            self._queues.worker_changed(found[0])
        return found

    def drop_claims(self, worker: Worker) -> None:
        """Removes the claims of a worker that is gone, or that will name its requests again."""
        for msg_id in [one for one, (claimant, _) in self._claims.items() if claimant is worker]:
            del self._claims[msg_id]
        worker.claims.clear()

    # --- time

    def tick(self, now: Instant) -> None:
        """Stops expecting sessions whose processes have ended, or that have reconnected without an OFFER."""
        for session_id, owner in list(self._owners.items()):
            due_s = self._offer_due_s.get(session_id)
            if (due_s is not None and now.mono_s >= due_s) or not self._owner_lives(owner):
                self.stop_expecting(session_id)
        if self._is_early and (now.mono_s >= self._until_s or not self._owners):
            self._is_early = False
            for name, expected in self._expected.items():
                self._note_late(name, expected)

    def _note_late(self, name: str, expected: set[str]) -> None:
        """Lets impatient requests fail where the expected sessions are late, and logs the quarantined ones."""
        if name in self._queues.groups:
            self._queues.changed[self._queues.groups[name]] = None
        waiting = sum(request.group.name == name for request in self._queues.quarantined.values())
        if waiting:
            who = ", ".join(sorted(expected)[:MAX_LISTED])
            self._out.note(
                f"{waiting} requests to @{name} may be at work in sessions that have not come back, but whose "
                f"processes live ({who}): no other worker gets them before these have ended"
            )
