"""Requests to a worker group while workers hang, are stopped and die: the processes, and their account.

    python -m tests.soak.labour work NOTES         # a worker of the group
    python -m tests.soak.labour ask NOTES SEED     # a requester

Each writes a line per event to a file of its own (`player.Notes`): a worker which requests it has begun and finished,
the requester what it has asked and which answers came. The requester ends when its standard input ends and the last
answer has come. A line `hold SECONDS` on it makes one of the next requests hold the worker's interpreter for so long,
as a C extension does: the process lives, and answers nothing.

`settle` checks the notes against the guarantees of requests:

| fault | meaning |
|---|---|
| run twice | a second worker began a request while the process of the first one lived |
| unanswered | the requester lives, and got no answer |
| invented | the answer belongs to another request |
| failed | it ended with an error that nothing excuses |
"""

from __future__ import annotations

import ctypes
import os
import random
import select
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import zmqbus
from tests.soak.history import Blow
from tests.soak.player import Notes

GROUP = "hands"
#: Requests in flight, and the mean pause between two of them, s.
WINDOW = 16
PAUSE_S = 0.15
#: How long an ordinary request takes, s.
WORK_S = (0.0, 0.03)
#: How long to wait for the last answers, s: stopped and hanging workers have to continue first.
LAST_S = 90.0
#: The kill of a process is recorded within this time, s.
NOTED_S = 0.25
#: A broker that was stopped within this time, s, excuses a request that no broker answered.
EXCUSED_S = 25.0
#: How many workers die with a request before it is refused as poisoned.
POISON = 3

FAULTS = ("run twice", "unanswered", "invented", "failed")


class Step(NamedTuple):
    """One line of the notes."""

    at_s: float
    kind: str  #: "begin", "finish" (of a worker), "ask", "answer", "error" (of the requester)
    label: str
    pid: int
    detail: str = ""


class Fault(NamedTuple):
    """One broken promise."""

    kind: str  #: one of FAULTS
    label: str
    why: str


class LabourAccount(NamedTuple):
    """The figures, and every fault."""

    asked: int
    answered: int
    begun: int
    again: int  #: requests that a second worker began after the first one's death
    held: int  #: requests that held an interpreter
    errors: Counter[str]  #: by code, the excused ones among them
    faults: list[Fault]


# --- the processes ----------------------------------------------------------------------------------------------


def hold_interpreter(seconds: float) -> None:
    """Sleeps with the interpreter lock held: no other thread of this process runs meanwhile."""
    ctypes.PyDLL(None).poll(None, 0, int(seconds * 1000))


def work(notes: Notes) -> None:
    """Serves the group until it is killed."""
    pid = os.getpid()

    def handle(message: zmqbus.Message) -> str | None:
        if not isinstance(message.body, list):
            return None  # broadcasts arrive here as well
        label, busy_s, hold = message.body
        notes.write("begin", f"{label} {pid}")
        if hold:
            hold_interpreter(busy_s)
        else:
            time.sleep(busy_s)
        notes.write("finish", f"{label} {pid}")
        return f"done {label}"

    with zmqbus.connect(group=GROUP) as bus:
        bus.serve(handle)


def ask(notes: Notes, seed: int) -> None:
    """Sends requests until standard input ends, then waits for the last answers."""
    chance = random.Random(seed)
    pid = os.getpid()
    pending: dict[Future[Any], str] = {}
    waiting: list[float] = []  # how long the next requests hold an interpreter
    number = 0
    buffer = b""
    ending_s: float | None = None
    with zmqbus.connect() as bus:
        while ending_s is None or (pending and time.monotonic() < ending_s):
            if ending_s is None and len(pending) < WINDOW:
                number += 1
                hold_s = waiting.pop() if waiting else 0.0
                label = f"q{pid}:{number}"
                notes.write("ask", f"{label} {pid} {hold_s:g}")
                body = [label, hold_s or chance.uniform(*WORK_S), bool(hold_s)]
                pending[bus.request(f"@{GROUP}", body)] = label
            done, _ = wait(pending, chance.expovariate(1 / PAUSE_S), return_when=FIRST_COMPLETED)
            for future in done:
                _hear(notes, pending.pop(future), pid, future)
            if ending_s is None and select.select([0], [], [], 0)[0]:
                part = os.read(0, 4096)
                if not part:
                    ending_s = time.monotonic() + LAST_S
                *lines, buffer = (buffer + part).split(b"\n")
                waiting += [float(line.split()[1]) for line in lines]


def _hear(notes: Notes, label: str, pid: int, future: Any) -> None:
    try:
        message = future.result()
    except zmqbus.ZmqbusError as error:
        notes.write("error", f"{label} {pid} {error.code} {error}")
    else:
        notes.write("answer", f"{label} {pid} {message.body}")


# --- the account ------------------------------------------------------------------------------------------------


def read_steps(directory: Path) -> list[Step]:
    """Reads the notes of all workers and requesters, sorted by time."""
    steps: list[Step] = []
    for path in sorted(directory.glob("*.labour")):
        for line in path.read_text("utf-8").split("\n")[:-1]:
            kind, at, label, pid, *rest = line.split(" ", 4)
            steps.append(Step(float(at), kind, label, int(pid), " ".join(rest)))
    return sorted(steps)


def settle(steps: list[Step], blows: list[Blow]) -> LabourAccount:
    """Returns the account of a finished run."""
    killed_s = {blow.pid: blow.at_s for blow in blows if blow.what == "kill"}
    stops_s = [blow.at_s for blow in blows if (blow.what, blow.whom) == ("stop", "broker")]
    begun: dict[str, list[Step]] = defaultdict(list)
    outcomes: dict[str, Step] = {}
    for step in steps:
        if step.kind == "begin":
            begun[step.label].append(step)
        elif step.kind in ("answer", "error"):
            outcomes[step.label] = step
    asked = [step for step in steps if step.kind == "ask"]
    faults = [fault for runs in begun.values() for fault in _run_twice(runs, killed_s)]
    for step in asked:
        outcome = outcomes.get(step.label)
        if outcome is None:
            if step.pid not in killed_s:
                faults.append(Fault("unanswered", step.label, f"begun by {[one.pid for one in begun[step.label]]}"))
        elif outcome.kind == "error":
            deaths = sum(one.pid in killed_s for one in begun[step.label])
            if not _is_excused(outcome, stops_s, deaths):
                faults.append(Fault("failed", step.label, outcome.detail))
        elif outcome.detail != f"done {step.label}":
            faults.append(Fault("invented", step.label, outcome.detail))
    return LabourAccount(
        asked=len(asked),
        answered=sum(step.kind == "answer" for step in outcomes.values()),
        begun=len(begun),
        again=sum(len(runs) > 1 for runs in begun.values()),
        held=sum(step.detail != "0" and step.label in begun for step in asked),
        errors=Counter(step.detail.partition(" ")[0] for step in outcomes.values() if step.kind == "error"),
        faults=faults,
    )


def _run_twice(runs: list[Step], killed_s: dict[int, float]) -> list[Fault]:
    return [
        Fault("run twice", second.label, f"by {first.pid} at {first.at_s:.3f}, by {second.pid} at {second.at_s:.3f}")
        for first, second in pairwise(runs)
        if killed_s.get(first.pid, float("inf")) > second.at_s + NOTED_S
    ]


def _is_excused(outcome: Step, stops_s: list[float], deaths: int) -> bool:
    code = outcome.detail.partition(" ")[0]
    if code == "poisoned":
        return deaths >= POISON
    return code == "broker_unavailable" and any(0 < outcome.at_s - at_s < EXCUSED_S for at_s in stops_s)


def table(account: LabourAccount) -> str:
    """Formats the account as lines of text."""
    errors = ", ".join(f"{count} {code}" for code, count in account.errors.most_common()) or "0"
    lines = {
        "requests": f"{account.asked:,} asked, {account.answered:,} answered, {account.again} begun again after a "
        f"death, {account.held} held their worker's interpreter; errors: {errors}",
        **{kind.upper(): str(sum(fault.kind == kind for fault in account.faults)) for kind in FAULTS},
    }
    return "\n".join(f"{name:<12}{text}" for name, text in lines.items())


def main() -> int:
    """Runs a worker or a requester; see the module."""
    role, path, *rest = sys.argv[1:]
    notes = Notes(path)
    if role == "work":
        work(notes)
    else:
        ask(notes, int(rest[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
