"""A sender of the chaos run: a process that says things until it is told to stop, and notes what it was told.

    python -m tests.soak.player PLAN    # a JSON object, see `Plan`

It keeps a window of messages under way, in bursts with pauses between them, and goes on when its broker dies.
What it does it notes in a file of its own before (a message is to be sent) or at once after (an answer was heard), one
unbuffered line each, so that a kill at any instant leaves the truth. Standard input tells it how many messages a second
it is to send; when that ends, it hears what is still to be answered, and ends too.
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
from zmqbus.client.oneshot import CommandBus, guest
from zmqbus.errors import NotConnected, ZmqbusError
from zmqbus.session.identity import identify
from zmqbus.wire.verbs import Receipt, Scope, State, Tally

#: How long it waits for the last answers: they take a second each, and a broker may have died this instant.
LAST_S = 20.0
#: Between two tries to speak as a session whose listener is not there.
AGAIN_S = 0.2
#: So many messages are said at once; at less than so many a second, only the first two.
BURSTS = (1, 1, 2, 5, 10, 40)
MANY_A_SECOND = 5.0
#: What was missed is made up for within this time, and who has said much is silent for so long at most.
CATCH_UP_S = 2.0
LONGEST_PAUSE_S = 3.0
#: Of the messages, however few there are: each goes to everybody, who then fall behind.
MOST_BROADCASTS = 0.1
#: Messages of a run: the number of the connection stands above these in the label.
RUNS_A_PROCESS = 1000


class Plan(NamedTuple):
    """What one process is to do."""

    name: str
    incarnation: int  #: how many processes of this name there were before
    seed: int
    notes: str  #: path of the file
    receivers: tuple[str, ...]  #: whom it may send to
    rate: float  #: messages a second, on the average
    as_session: bool  #: speaks as the session of its owner; else as a guest
    wire: str  #: "" or the path where the troubles of its wire are noted
    broadcasts_a_minute: float
    large_part: float  #: of the messages, how many are over 64 KiB


class Notes:
    """The file. Each line is one write."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, kind: str, text: str) -> None:
        """Notes that this happened now."""
        line = f"{kind} {time.monotonic():.6f} {text}".replace("\n", " ")
        void(os.write(self._descriptor, f"{line}\n".encode()))


class _Answers(dict[str, object]):
    """In the place of the bus's own: notes each answer at the instant at which it is heard."""

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
    """Sends by a plan until standard input ends."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._notes = Notes(plan.notes)
        self._rate = plan.rate
        self._runs = 0
        self._ending = False

    def __repr__(self) -> str:
        return f"<Player {self._plan.name}: run {self._runs}>"

    def run(self) -> None:
        """Plays on one connection after the other."""
        while not self._ending:
            try:
                with self._open() as bus:
                    self._play(bus)
            except NotConnected:
                self._listen(AGAIN_S)  # the session's listener was killed; another one comes
            except ZmqbusError as error:
                self._notes.write("x", f"{error.code} {error}")

    def _open(self) -> CommandBus:
        caller = identify()
        bus = caller.act()[1] if self._plan.as_session else guest(caller.settings, self._plan.name)
        self._runs += 1
        return bus

    def _play(self, bus: CommandBus) -> None:
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
            # What was missed while a broker was away is not made up for all at once; and how much was said before the
            # rate rose does not matter.
            next_s = min(max(next_s, now_s - CATCH_UP_S), now_s + LONGEST_PAUSE_S)
            while (left_s := next_s - now_s) > 0 and not self._ending:
                bus._pump(min(left_s, 0.1))
                self._listen(0)
                now_s = time.monotonic()
            self._listen(0)
        end_s = time.monotonic() + LAST_S
        while pending and time.monotonic() < end_s:
            self._hear(bus, pending, len(pending) - 1)

    def _hear(self, bus: CommandBus, pending: deque[str], room: int) -> None:
        """Waits until no more than `room` are under way. A refusal has been noted; whatever else comes is raised."""
        while pending and (len(pending) > room or pending[0] in bus._answers):
            try:
                bus.outcome(pending[0])
            except ZmqbusError:
                if pending[0] in bus._link.core._unconfirmed:
                    raise
            pending.popleft()

    def _draw(self, run: int, number: int) -> tuple[str, bool, str, int]:
        """Label, whether it is to all, target and size of the next message."""
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
        """Takes in what standard input says."""
        while select.select([0], [], [], timeout_s)[0]:
            words = os.read(0, 4096).split()
            if not words:
                self._ending = True
                return
            self._rate = float(words[-1])
            timeout_s = 0


def main() -> int:
    """See the module."""
    plan = Plan(**json.loads(sys.argv[1]))
    if plan.wire:
        Wire(plan.seed, note=notes_to(plan.wire)).install()
    Player(plan).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
