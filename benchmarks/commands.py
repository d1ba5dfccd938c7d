#!/usr/bin/env python3
"""What a user waits for: whole processes, and what a session costs while nothing happens.

    python benchmarks/commands.py [--rounds N] [--idle SECONDS]

Each round runs the commands and the yardstick (`python -c "import zmq, msgpack"`, the least that any client in Python
has to do) one after the other, so that a noisy machine is noisy for all of them; the medians and their ratio count, not
single times. The receivers take turns, or their pacing would be what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
YARDSTICK = [sys.executable, "-c", "import zmq, msgpack"]
LISTENERS = 8
PATIENCE_S = 20.0


def free_port() -> int:
    """A port below the ephemeral range that nobody has."""
    while True:
        port = random.randint(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Listener:
    """A listener, and the times at which its lines came."""

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
        """Seconds from the start of the process until its session is on the bus."""
        deadline_s = time.perf_counter() + PATIENCE_S
        while not os.path.exists(self.state):
            if time.perf_counter() > deadline_s:
                raise SystemExit("a listener does not connect")
            time.sleep(0.0005)
        return time.perf_counter() - self.started_s

    def line_s(self) -> float:
        """When the next line came."""
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


@contextlib.contextmanager
def stage() -> Iterator[dict[str, str]]:
    """An environment of its own, whose broker is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="zmqbus-bench-") as directory:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("INTER_SESSION_", "CLAUDE"))}
        for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):
            kept.pop(name, None)  # users have neither
        environ = {
            **kept,
            "HOME": directory,
            "INTER_SESSION_DATA_DIR": os.path.join(directory, "data"),
            "INTER_SESSION_PORT": str(free_port()),
        }
        try:
            yield environ
        finally:
            run([sys.executable, f"{ROOT}/bin/zmqbus", "broker", "--stop"], environ)


def run(command: list[str], environ: dict[str, str], given: str = "") -> float:
    """Wall-clock seconds of a whole process; `given` is what it reads."""
    with tempfile.TemporaryFile("w+") as stdin:
        stdin.write(given)
        stdin.seek(0)
        began_s = time.perf_counter()
        process = subprocess.Popen(command, env=environ, stdin=stdin, stdout=subprocess.DEVNULL)
        # Without a timeout: with one, `subprocess` polls with sleeps that double, and every figure is a power of two.
        if process.wait():
            raise SystemExit(f"{command} ended with status {process.returncode}")
        return time.perf_counter() - began_s


def status_kib(pid: int, field: str) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def row(name: str, values: list[float], unit: str = "ms", scale: float = 1000.0, note: str = "") -> None:
    middle = statistics.median(values) * scale
    print(f"  {name:<44} {middle:8.1f} {unit:<3} ({min(values) * scale:.1f} … {max(values) * scale:.1f})  {note}")


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Whole processes, side by side.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of idleness to measure; 0: none")
    options = parser.parse_args()
    with stage() as environ:
        run([sys.executable, f"{ROOT}/bin/zmqbus", "broker"], environ)
        listeners = [Listener(environ, f"listener-{number}") for number in range(LISTENERS)]
        for listener in listeners:
            listener.connected_s()
        commands: dict[str, Callable[[Listener], float]] = {
            "python -c 'import zmq, msgpack'": lambda _: run(YARDSTICK, environ),
            "send.py, delivered": lambda listener: run(send(listener), environ),
            "send.py, until the line has come": lambda listener: until_line(listener),
            "list.py": lambda _: run([sys.executable, f"{ROOT}/bin/list.py"], environ),
            "hook.py, a listener runs": lambda listener: hook(listener.agent.pid, "UserPromptSubmit"),
            "hook.py, none runs, and nothing waits": lambda _: hook(away, "UserPromptSubmit"),
            "hook.py, none runs, and a message waits": lambda _: with_mail(),
            "hook.py, at the start of a session": lambda listener: hook(listener.agent.pid, "SessionStart"),
        }
        away = os.getpid()  # the owner of a session that has joined without a listener: this very process

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

        times: dict[str, list[float]] = {name: [] for name in commands}
        turn = 0
        for number in range(options.rounds + 1):
            for name, command in commands.items():
                turn += 1
                listener = listeners[turn % LISTENERS]
                taken_s = command(listener)
                if number:  # the first round warms up
                    times[name].append(taken_s)
                if name == "send.py, delivered":
                    listener.line_s()
        print(f"whole processes, median of {options.rounds} rounds (min … max)")
        yardstick, *others = commands
        row(yardstick, times[yardstick], note="the yardstick")
        for name in others:
            ratios = [a / b for a, b in zip(times[name], times[yardstick], strict=True)]
            row(name, times[name], note=f"{statistics.median(ratios):.2f} × the yardstick")
        connecting: list[float] = []
        for number in range(options.rounds):
            newcomer = Listener(environ, f"newcomer-{number}")
            connecting.append(newcomer.connected_s())
            newcomer.close()
        row("listener, from its start to connected", connecting)
        with open(f"{environ['INTER_SESSION_DATA_DIR']}/server.{environ['INTER_SESSION_PORT']}.pid") as file:
            broker = int(file.read())
        print("resident memory")
        row("a listener", [status_kib(one.process.pid, "VmRSS") for one in listeners], "MB", 1 / 1024)
        row("the broker", [status_kib(broker, "VmRSS")], "MB", 1 / 1024)
        if options.idle:
            pids = [*(one.process.pid for one in listeners), broker]
            before = [cpu_s(pid) for pid in pids]
            time.sleep(options.idle)  # what is measured is that nothing happens
            used = [(cpu_s(pid) - spent) / options.idle for pid, spent in zip(pids, before, strict=True)]
            resolution = 1 / os.sysconf("SC_CLK_TCK") / options.idle
            print(f"processor while idle for {options.idle:g} s (resolution {resolution:.3%})")
            row("a listener", used[:-1], "%", 100)
            row(f"the broker of {LISTENERS}", used[-1:], "%", 100)
        for listener in listeners:
            listener.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
