#!/usr/bin/env python3
"""Times that a user waits for: whole commands; and the cost of an idle session.

    python benchmarks/commands.py [--rounds N] [--idle SECONDS]

Each round runs the commands and the yardstick (`python -c "import zmq, msgpack"`, the least that any client in Python
has to do) one after the other, so that a noisy machine is noisy for all of them; the medians and their ratio count, not
single times. The receivers take turns, since otherwise their pacing would be measured.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # for `python benchmarks/commands.py`

from benchmarks import procfs
from benchmarks.stage import ROOT, broker_pid, stage

#: The least that any client in Python has to do; and its name among the results.
YARDSTICK = [sys.executable, "-c", "import zmq, msgpack"]
YARDSTICK_NAME = "python -c 'import zmq, msgpack'"
SEND, LINE, LIST = "send.py, delivered", "send.py, until the line has come", "list.py"
LISTENERS = 8
PATIENCE_S = 20.0


class Listener:
    """A listener, and the times of its lines."""

    def __init__(self, environ: dict[str, str], name: str) -> None:
        self.agent = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.started_s = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, f"{ROOT}/bin/client.py", "--name", name],
            stdout=subprocess.PIPE,
            env={**environ, "INTER_SESSION_PPID_OVERRIDE": str(self.agent.pid)},
        )
        self.state = os.path.join(environ["INTER_SESSION_DATA_DIR"], "clients", f"{self.agent.pid}.session")

    def connected_s(self) -> float:
        """Seconds from the start of the process until its session has connected."""
        deadline_s = time.perf_counter() + PATIENCE_S
        while not os.path.exists(self.state):
            if time.perf_counter() > deadline_s:
                raise SystemExit("a listener does not connect")
            time.sleep(0.0005)
        return time.perf_counter() - self.started_s

    def line_s(self) -> float:
        """Returns when the next line came."""
        assert self.process.stdout is not None
        self.process.stdout.readline()
        return time.perf_counter()

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None and self.agent.stdin is not None
        self.process.stdout.close()
        self.agent.stdin.close()
        self.agent.wait(PATIENCE_S)


def run(command: list[str], environ: dict[str, str], given: str = "") -> float:
    """Returns the wall-clock seconds of a whole process; `given` is its standard input."""
    with tempfile.TemporaryFile("w+") as stdin:
        stdin.write(given)
        stdin.seek(0)
        began_s = time.perf_counter()
        process = subprocess.Popen(command, env=environ, stdin=stdin, stdout=subprocess.DEVNULL)
        # Without a timeout: with one, `subprocess` polls with sleeps that double, and every figure is a power of two.
        if process.wait():
            raise SystemExit(f"{command} ended with status {process.returncode}")
        return time.perf_counter() - began_s


@dataclass(slots=True)
class Found:
    """The results, in seconds, bytes, and shares of a processor."""

    times_s: dict[str, list[float]] = field(default_factory=dict)  #: command → a time for each round
    connecting_s: list[float] = field(default_factory=list)
    listener_bytes: list[float] = field(default_factory=list)
    broker_bytes: float = 0.0
    listener_idle: list[float] = field(default_factory=list)
    broker_idle: float = 0.0

    def ratio(self, name: str) -> float:
        """Returns the ratio of a command to the yardstick, in the same rounds."""
        pairs = zip(self.times_s[name], self.times_s[YARDSTICK_NAME], strict=True)
        return statistics.median(a / b for a, b in pairs)


def row(name: str, values: list[float], unit: str = "ms", scale: float = 1000.0, note: str = "") -> None:
    middle = statistics.median(values) * scale
    print(f"  {name:<44} {middle:8.1f} {unit:<3} ({min(values) * scale:.1f} … {max(values) * scale:.1f})  {note}")


def measure(rounds: int, idle_s: float, only: tuple[str, ...] = ()) -> Found:
    """Runs the commands. `only`: measure just these, beside the yardstick, and nothing else."""
    found = Found()
    with stage() as environ:
        run([sys.executable, f"{ROOT}/bin/zmqbus", "broker"], environ)
        listeners = [Listener(environ, f"listener-{number}") for number in range(LISTENERS)]
        try:
            for listener in listeners:
                listener.connected_s()
            _commands(found, environ, listeners, rounds, only)
            if not only:
                _rest(found, environ, listeners, rounds, idle_s)
        finally:
            for listener in listeners:
                listener.close()
    return found


def _commands(
    found: Found, environ: dict[str, str], listeners: list[Listener], rounds: int, only: tuple[str, ...]
) -> None:
    commands: dict[str, Callable[[Listener], float]] = {
        YARDSTICK_NAME: lambda _: run(YARDSTICK, environ),
        SEND: lambda listener: run(send(listener), environ),
        LINE: lambda listener: until_line(listener),
        LIST: lambda _: run([sys.executable, f"{ROOT}/bin/list.py"], environ),
        "hook.py, a listener runs": lambda listener: hook(listener.agent.pid, "UserPromptSubmit"),
        "hook.py, none runs, and nothing waits": lambda _: hook(away, "UserPromptSubmit"),
        "hook.py, none runs, and a message waits": lambda _: with_mail(),
        "hook.py, at the start of a session": lambda listener: hook(listener.agent.pid, "SessionStart"),
    }
    if only:
        commands = {name: command for name, command in commands.items() if name == YARDSTICK_NAME or name in only}
    away = os.getpid()  # this process owns the session that has joined without a listener

    def as_owner(pid: int) -> dict[str, str]:
        return {**environ, "INTER_SESSION_PPID_OVERRIDE": str(pid)}

    run([sys.executable, f"{ROOT}/bin/client.py", "--away", "--name", "away"], as_owner(away))

    def hook(owner: int, event: str) -> float:
        return run([sys.executable, f"{ROOT}/bin/hook.py"], as_owner(owner), f'{{"hook_event_name": "{event}"}}')

    def with_mail() -> float:
        run([sys.executable, f"{ROOT}/bin/send.py", "--as", "bench", "--to", "away", "--text", "hello"], environ)
        return hook(away, "UserPromptSubmit")

    def until_line(listener: Listener) -> float:
        began_s = time.perf_counter()
        process = subprocess.Popen(send(listener), env=environ, stdout=subprocess.DEVNULL)
        arrived_s = listener.line_s()
        process.wait()
        return arrived_s - began_s

    def send(listener: Listener) -> list[str]:
        name = f"listener-{listeners.index(listener)}"
        return [sys.executable, f"{ROOT}/bin/send.py", "--as", "bench", "--to", name, "--text", "hello"]

    found.times_s = {name: [] for name in commands}
    turn = 0
    for number in range(rounds + 1):
        for name, command in commands.items():
            turn += 1
            listener = listeners[turn % LISTENERS]
            taken_s = command(listener)
            if number:  # the first round warms up
                found.times_s[name].append(taken_s)
            if name == SEND:
                listener.line_s()


def _rest(found: Found, environ: dict[str, str], listeners: list[Listener], rounds: int, idle_s: float) -> None:
    for number in range(rounds):
        newcomer = Listener(environ, f"newcomer-{number}")
        try:
            found.connecting_s.append(newcomer.connected_s())
        finally:
            newcomer.close()
    broker = broker_pid(environ)
    found.listener_bytes = [procfs.rss_bytes(one.process.pid) for one in listeners]
    found.broker_bytes = procfs.rss_bytes(broker)
    if idle_s:
        pids = [*(one.process.pid for one in listeners), broker]
        before_s = [procfs.cpu_s(pid) for pid in pids]
        time.sleep(idle_s)  # the idle time that is measured
        used = [(procfs.cpu_s(pid) - spent_s) / idle_s for pid, spent_s in zip(pids, before_s, strict=True)]
        found.listener_idle, found.broker_idle = used[:-1], used[-1]


def main() -> int:
    """Measures, and prints the results."""
    parser = argparse.ArgumentParser(description="Whole processes, side by side.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of idleness to measure; 0: none")
    options = parser.parse_args()
    found = measure(options.rounds, options.idle)
    print(f"whole processes, median of {options.rounds} rounds (min … max)")
    for name, times_s in found.times_s.items():
        row(
            name,
            times_s,
            note="the yardstick" if name == YARDSTICK_NAME else f"{found.ratio(name):.2f} × the yardstick",
        )
    row("listener, from its start to connected", found.connecting_s)
    print("resident memory")
    row("a listener", found.listener_bytes, "MB", 1e-6)
    row("the broker", [found.broker_bytes], "MB", 1e-6)
    if options.idle:
        print(f"processor while idle for {options.idle:g} s")
        row("a listener", found.listener_idle, "%", 100)
        row(f"the broker of {LISTENERS}", [found.broker_idle], "%", 100)
    return 0


if __name__ == "__main__":
    sys.exit(main())
