"""A sender of the soak run: a process that sends until its input ends, and writes down each receipt.

    python -m tests.soak.player PLAN    # a JSON object, see `Plan`

It keeps a window of messages in flight, in bursts with pauses, and continues when its broker dies. It notes each
message before sending it and each receipt right after it came, one unbuffered line each, so that the notes are true
whenever it is killed. Standard input sets the rate, in messages a second; when it ends, the sender waits for its last
receipts.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import time
from collections import deque
from typing import NamedTuple

from tests.soak.history import EVERYONE, make_text
from tests.soak.wire import Wire, notes_to, void
from zmqbus.client.oneshot import OneShotClient, guest
from zmqbus.errors import NotConnected, ZmqbusError
from zmqbus.session.identity import identify
from zmqbus.wire.verbs import Receipt, Scope, State, Tally

#: How long it waits for the last receipts, s: each may take a second, and the broker may just have died.
LAST_S = 20.0
#: Pause before it tries again to send as a session without a running listener, s.
AGAIN_S = 0.2
#: Sizes of bursts; below MANY_A_SECOND, only the first two are used.
BURSTS = (1, 1, 2, 5, 10, 40)
MANY_A_SECOND = 5.0
#: A backlog is made up for within CATCH_UP_S, and a pause after a burst is at most LONGEST_PAUSE_S.
CATCH_UP_S = 2.0
LONGEST_PAUSE_S = 3.0
#: The largest share of broadcasts among the messages: each goes to all receivers, which then fall behind.
MOST_BROADCASTS = 0.1
#: Factor of the process number in the number of a run.
RUNS_A_PROCESS = 1000


class Plan(NamedTuple):
    """The orders of one process."""

    name: str
    incarnation: int  #: how many processes of this name came before
    seed: int
    notes: str  #: path of the file
    receivers: tuple[str, ...]  #: possible targets
    rate: float  #: messages a second, on average
    as_session: bool  #: sends as the session of its owner, otherwise as a guest
    wire: str  #: "" or the file for the faults of its bad wire
    broadcasts_a_minute: float
    large_part: float  #: share of the messages over 64 KiB


class Notes:
    """The file of notes. Each line is one write."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, kind: str, text: str) -> None:
        """Writes a line with the time."""
        line = f"{kind} {time.monotonic():.6f} {text}".replace("\n", " ")
        void(os.write(self._descriptor, f"{line}\n".encode()))


class _Answers(dict[str, object]):
    """Takes the place of the client's own dictionary, and notes each receipt the moment it comes."""

    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self._notes = notes

    def __setitem__(self, msg_id: str, answer: object) -> None:
        if isinstance(answer, ZmqbusError):
            self._notes.write("e", f"{msg_id} {getattr(answer, 'code', '?')} {answer}")
        elif isinstance(answer, Tally):
            full = ",".join(answer.without) or "-"
            self._notes.write("b", f"{msg_id} {answer.delivered} {answer.queued} {full}")
        elif isinstance(answer, Receipt) and answer.state == State.DELIVERED:
            self._notes.write("d", msg_id)
        elif isinstance(answer, Receipt):
            self._notes.write("q", f"{msg_id} {'busy' if answer.state == State.BUSY else 'away'}")
        super().__setitem__(msg_id, answer)


class Player:
    """Sends messages by a plan until standard input ends."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._notes = Notes(plan.notes)
        self._rate = plan.rate
        self._runs = 0
        self._ending = False

    def run(self) -> None:
        """Sends over one connection after the other."""
        while not self._ending:
            try:
                with self._open() as bus:
                    self._play(bus)
            except NotConnected:
                self._listen(AGAIN_S)  # the listener was killed, and will be restarted
            except ZmqbusError as error:
                self._notes.write("x", f"{error.code} {error}")

    def _open(self) -> OneShotClient:
        caller = identify()
        bus = caller.act()[1] if self._plan.as_session else guest(caller.settings, self._plan.name)
        self._runs += 1
        return bus

    def _play(self, bus: OneShotClient) -> None:
        run = self._plan.incarnation * RUNS_A_PROCESS + self._runs
        self._notes.write("o", str(run))
        bus._answers = _Answers(self._notes)  # type: ignore[assignment]
        make_id = bus._new_id
        window = self._random.randint(50, 200)
        pending: deque[str] = deque()
        number = 0
        next_s = time.monotonic()
        while not self._ending:
            for _ in range(self._random.choice(BURSTS if self._rate >= MANY_A_SECOND else BURSTS[:2])):
                number += 1
                label, many, target, size = self._draw(run, number)
                msg_id = make_id()
                bus._new_id = lambda msg_id=msg_id: msg_id  # type: ignore[assignment]
                self._notes.write("s", f"{label} {msg_id} {target} {size}")
                body = make_text(label, target, size).encode()
                if many:
                    bus.post("", body, scope=Scope.ALL)
                else:
                    bus.post(target, body)
                pending.append(msg_id)
                next_s += self._random.expovariate(self._rate)
            self._hear(bus, pending, window)
            now_s = time.monotonic()
            # A backlog from the time without a broker is not sent all at once, and messages sent before the rate
            # rose do not count.
            next_s = min(max(next_s, now_s - CATCH_UP_S), now_s + LONGEST_PAUSE_S)
            while (left_s := next_s - now_s) > 0 and not self._ending:
                bus._pump(min(left_s, 0.1))
                self._listen(0)
                now_s = time.monotonic()
            self._listen(0)
        end_s = time.monotonic() + LAST_S
        while pending and time.monotonic() < end_s:
            self._hear(bus, pending, len(pending) - 1)

    def _hear(self, bus: OneShotClient, pending: deque[str], room: int) -> None:
        """Waits until at most `room` are in flight. Refusals have been noted; other errors are raised."""
        while pending and (len(pending) > room or pending[0] in bus._answers):
            try:
                bus.outcome(pending[0])
            except ZmqbusError:
                if pending[0] in bus._transport.core._unconfirmed:
                    raise
            pending.popleft()

    def _draw(self, run: int, number: int) -> tuple[str, bool, str, int]:
        """Draws the label, broadcast flag, target and size of the next message."""
        label = f"{self._plan.name}.{run}:{number}"
        many = self._random.random() < min(MOST_BROADCASTS, self._plan.broadcasts_a_minute / 60 / self._rate)
        target = EVERYONE if many else self._random.choice(self._plan.receivers)
        kind = self._random.random()
        if kind < self._plan.large_part:
            size = self._random.randint(66_000, 200_000)
        elif kind < 0.1:
            size = self._random.randint(400, 6_000)
        else:
            size = self._random.randint(40, 300)
        return label, many, target, size

    def _listen(self, timeout_s: float) -> None:
        """Reads the rate from standard input."""
        while select.select([0], [], [], timeout_s)[0]:
            words = os.read(0, 4096).split()
            if not words:
                self._ending = True
                return
            self._rate = float(words[-1])
            timeout_s = 0


def main() -> int:
    """Runs a sender with the plan in the first argument."""
    plan = Plan(**json.loads(sys.argv[1]))
    if plan.wire:
        Wire(plan.seed, note=notes_to(plan.wire)).install()
    Player(plan).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
