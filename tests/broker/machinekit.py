"""Faults of processes, connections and the broker on a simulated bus: rules shared by the state machines.

`test_machine` applies them to mailboxes, `test_request_machine` to requests and workers. Each machine defines how its
processes start and end, and which invariants hold.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from zmqbus.client.core import Phase
from zmqbus.testing import SimClient, SimNet
from zmqbus.testing.simnet import Death

#: The deep sweep, of `make sweep`.
SOAK = "SOAK" in os.environ

RUN = settings(
    max_examples=5_000 if SOAK else 300,
    stateful_step_count=60 if SOAK else 40,
    derandomize="CI" in os.environ and not SOAK,  # on CI every run takes the same examples
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

#: One of the machine's own names.
any_name = st.runner().flatmap(lambda machine: st.sampled_from(machine.NAMES))


class Mishaps(RuleBasedStateMachine):
    """A bus whose processes start, end, stop and lose their connections, and whose broker dies."""

    NAMES: tuple[str, ...] = ()
    net: SimNet
    processes: dict[str, SimClient]

    def start(self, name: str) -> Any:
        """Adds a process of this name to `processes`, and connects it."""
        raise NotImplementedError

    def end(self, process: SimClient, *, bye: bool = False) -> None:
        """Ends a process, with its sockets and its unacknowledged messages."""
        raise NotImplementedError

    def broker_dies(self) -> None:
        """Called before the broker is killed, for machines that count it."""

    def comes_to_rest(self) -> None:
        """Called when nothing is in flight: check what must hold then."""

    # --- processes

    @rule(name=any_name)
    def connect(self, name: str) -> None:
        process = self.processes.get(name)
        if process is None:
            self.start(name)
        elif process.core.phase is Phase.OFFLINE:
            process.stopped = False
            process.connect()

    @rule(name=any_name, bye=st.booleans())
    def leave(self, name: str, bye: bool) -> None:
        process = self.processes.pop(name, None)
        if process is not None:
            self.end(process, bye=bye)

    @rule(name=any_name)
    def take_over(self, name: str) -> None:
        """Another process takes the session over while the first one is still there."""
        old = self.processes.get(name)
        if old is not None:
            old.stopped = True  # otherwise each would take it back from the other
        self.start(name)
        self.net.settle()
        if old is not None:
            self.end(old)

    @rule(name=any_name, stopped=st.booleans())
    def stop(self, name: str, stopped: bool) -> None:
        process = self.processes.get(name)
        if process is not None:
            process.stopped = stopped

    # --- wires

    @rule(name=any_name, again=st.booleans())
    def cut(self, name: str, again: bool) -> None:
        process = self.processes.get(name)
        if process is not None:
            process.disconnect()
            if again:
                process.connect()

    @rule(name=any_name, again=st.booleans())
    def vanish(self, name: str, again: bool) -> None:
        """Breaks the connection without the broker noticing."""
        process = self.processes.get(name)
        if process is not None:
            process.vanish()
            if again:
                process.connect()

    # --- the broker

    @rule(death=st.sampled_from(Death), lost=st.integers(0, 4))
    def kill_the_broker(self, death: Death, lost: int) -> None:
        self.broker_dies()
        self.net.kill_broker(death, lost)

    @rule(fails=st.booleans())
    def journal(self, fails: bool) -> None:
        self.net.wake()
        self.net.journal_fails = "no space left on device" if fails else None

    # --- time

    @rule()
    def step(self) -> None:
        self.net.step()

    @rule(name=any_name)
    def receive(self, name: str) -> None:
        process = self.processes.get(name)
        if process is not None:
            process.receive()

    @rule()
    def settle(self) -> None:
        self.net.settle()
        self.comes_to_rest()
