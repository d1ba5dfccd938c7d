"""What may happen to the processes, the wires and the broker of a simulated bus: the rules that its machines share.

`test_machine` plays them against the mailboxes, `test_request_machine` against requests and work. Each has its own idea
of what a process is for, of how one starts and ends, and of what must hold.
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
    derandomize="CI" in os.environ and not SOAK,  # there, a change breaks it or does not
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

#: One of the machine's own names.
anybody = st.runner().flatmap(lambda machine: st.sampled_from(machine.NAMES))


class Mishaps(RuleBasedStateMachine):
    """A bus whose processes come, go, stand still and lose their connections, and whose broker dies."""

    NAMES: tuple[str, ...] = ()
    net: SimNet
    processes: dict[str, SimClient]

    def start(self, name: str) -> Any:
        """Puts a process of this name into `processes`, and connects it."""
        raise NotImplementedError

    def end(self, process: SimClient, *, bye: bool = False) -> None:
        """A process is gone, with its sockets and what it had been handed."""
        raise NotImplementedError

    def broker_dies(self) -> None:
        """To be noted, where it matters."""

    def comes_to_rest(self) -> None:
        """Nothing is under way: what must hold then."""

    # --- processes

    @rule(name=anybody)
    def connect(self, name: str) -> None:
        process = self.processes.get(name)
        if process is None:
            self.start(name)
        elif process.core.phase is Phase.OFFLINE:
            process.stopped = False
            process.connect()

    @rule(name=anybody, bye=st.booleans())
    def leave(self, name: str, bye: bool) -> None:
        process = self.processes.pop(name, None)
        if process is not None:
            self.end(process, bye=bye)

    @rule(name=anybody)
    def take_over(self, name: str) -> None:
        """Another process takes the session over, while the one before is still there."""
        old = self.processes.get(name)
        if old is not None:
            old.stopped = True  # or each would take it back from the other
        self.start(name)
        self.net.settle()
        if old is not None:
            self.end(old)

    @rule(name=anybody, stopped=st.booleans())
    def stop(self, name: str, stopped: bool) -> None:
        process = self.processes.get(name)
        if process is not None:
            process.stopped = stopped

    # --- wires

    @rule(name=anybody, again=st.booleans())
    def cut(self, name: str, again: bool) -> None:
        process = self.processes.get(name)
        if process is not None:
            process.disconnect()
            if again:
                process.connect()

    @rule(name=anybody, again=st.booleans())
    def vanish(self, name: str, again: bool) -> None:
        """The connection is gone, and the broker does not know."""
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

    @rule(name=anybody)
    def receive(self, name: str) -> None:
        process = self.processes.get(name)
        if process is not None:
            process.receive()

    @rule()
    def settle(self) -> None:
        self.net.settle()
        self.comes_to_rest()
