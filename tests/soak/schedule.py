"""The schedule of a soak run: which process is hit when and how. All of it follows from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

#: When the first deed comes, s: all processes are connected, and messages are in flight.
WARM_UP_S = 2.0
#: Longer than the silence after which a connection ends, s.
LONG_S = (12.2, 14.0)
SHORT_S = (0.1, 3.0)


class Numbers(NamedTuple):
    """How often each deed is done in ten minutes."""

    broker_kills: int = 40
    listener_kills: int = 50
    sender_kills: int = 30
    inbox_kills: int = 20
    command_kills: int = 30
    expiries: int = 20  #: a listener gets SIGTERM, as from a harness whose monitor expires
    closings: int = 10  #: the reading end of a listener's output is closed
    broker_stops: int = 10
    long_broker_stops: int = 3
    listener_stops: int = 25
    sender_stops: int = 20
    cuts: int = 40  #: all connections of a process on a bad wire are reset, besides the wire's own faults
    owner_deaths: int = 30  #: an agent dies, perhaps some successors too, and one comes under its name to stay
    worker_kills: int = 20
    worker_stops: int = 12  #: for longer than the silence after which a connection ends
    requester_stops: int = 4
    holds: int = 12  #: a handler holds its worker's interpreter for as long
    visits: int = 60  #: of a container that shares the data directory
    seclusions: int = 6  #: of a shell that has a network of its own

    def scaled(self, duration_s: float) -> Numbers:
        """Scales the numbers to a duration, with at least one of each that is not zero."""
        return Numbers(*(count and max(1, round(count * duration_s / 600)) for count in self))


class Setup(NamedTuple):
    """The parameters of a run."""

    base: Path  #: an empty directory, private to the run
    port: int
    seed: int
    duration_s: float
    messages: int
    numbers: Numbers  #: for this duration
    receivers: int = 6
    senders: int = 4
    broadcasts_a_minute: float = 45.0  #: of each sender; the bus allows 60
    large_part: float = 0.01  #: share of the messages over 64 KiB
    workers: int = 3  #: of the group
    tell: Callable[[str], None] | None = None  #: is called with progress reports

    @property
    def receiver_names(self) -> tuple[str, ...]:
        """`r0`, `r1`, …"""
        return tuple(f"r{number}" for number in range(self.receivers))

    @property
    def sender_names(self) -> tuple[str, ...]:
        """`s0`, `s1`, …; the last one sends as the session r0, the others as guests."""
        return tuple(f"s{number}" for number in range(self.senders))

    @property
    def worker_names(self) -> tuple[str, ...]:
        """`w0`, `w1`, …"""
        return tuple(f"w{number}" for number in range(self.workers))

    @property
    def mortal_names(self) -> tuple[str, ...]:
        """The receivers whose owners may die. No sender acts as one of them: it would go on as the successor."""
        return self.receiver_names[2:]

    def is_wired(self, name: str) -> bool:
        """Whether this process is on a bad wire: a third of the listeners, half of the senders."""
        number = int(name[1:])
        return number % 3 == 2 if name[0] == "r" else number % 2 == 1


class Deed(NamedTuple):
    """One event of the schedule."""

    at_s: float  #: seconds since the start
    what: str  #: "kill", "stop", "cut", "expire", "close", "kill inbox", "die", "hold", "visit", "seclude"
    whom: str  #: "broker", "command", "container", "q0" (the requester), or a name
    value: float = 0.0  #: a duration in seconds, or a random number


def schedule(setup: Setup) -> list[Deed]:
    """Returns all deeds in order of time, always the same for the same setup."""
    chance = random.Random(setup.seed)
    receivers, senders = setup.receiver_names, setup.sender_names
    wired = [name for name in (*receivers, *senders) if setup.is_wired(name)]
    numbers = setup.numbers
    deeds: list[Deed] = []

    def some(count: int, what: str, whom: tuple[str, ...], span: tuple[float, float] = (0.0, 1.0)) -> None:
        for _ in range(count if whom else 0):
            at_s = chance.uniform(WARM_UP_S, max(WARM_UP_S, setup.duration_s - 1.0))
            deeds.append(Deed(at_s, what, chance.choice(whom), chance.uniform(*span)))

    some(numbers.broker_kills, "kill", ("broker",))
    some(numbers.listener_kills, "kill", receivers)
    some(numbers.sender_kills, "kill", senders)
    some(numbers.inbox_kills, "kill inbox", receivers)
    some(numbers.command_kills, "kill", ("command",))
    some(numbers.expiries, "expire", receivers)
    some(numbers.closings, "close", receivers)
    some(numbers.broker_stops, "stop", ("broker",), SHORT_S)
    some(numbers.long_broker_stops, "stop", ("broker",), LONG_S)
    some(numbers.listener_stops, "stop", receivers, SHORT_S)
    some(numbers.sender_stops, "stop", senders, SHORT_S)
    some(numbers.cuts, "cut", tuple(wired))
    some(numbers.owner_deaths, "die", setup.mortal_names)
    some(numbers.worker_kills, "kill", setup.worker_names)
    some(numbers.worker_stops, "stop", setup.worker_names, LONG_S)
    requesters = ("q0",) if setup.workers else ()
    some(numbers.requester_stops, "stop", requesters, LONG_S)
    some(numbers.holds, "hold", requesters, LONG_S)
    some(numbers.visits, "visit", ("container",))
    some(numbers.seclusions, "seclude", ("container",))
    # Some die together: a broker with messages in flight, and one of their senders or receivers.
    brokers = [deed for deed in deeds if (deed.what, deed.whom) == ("kill", "broker")]
    others = [deed for deed in deeds if deed.what == "kill" and deed.whom[0] in "rs"]
    for death, other in zip(brokers[::3], chance.sample(others, len(others)), strict=False):
        deeds[deeds.index(other)] = other._replace(at_s=max(0.0, death.at_s + chance.uniform(-0.05, 0.05)))
    # And some visitors come while there is no broker, so that the next one may be theirs.
    visits = [deed for deed in deeds if deed.what == "visit"]
    for death, visit in zip(brokers[1::3], chance.sample(visits, len(visits)), strict=False):
        deeds[deeds.index(visit)] = visit._replace(at_s=max(0.0, death.at_s + chance.uniform(-0.15, 0.05)))
    return sorted(deeds)
