#!/usr/bin/env python3
"""A tour with real processes: three sessions, a broker, and messages sent with the commands in bin/.

    make demo

Three idle processes stand for three agents, since a session belongs to the agent that owns its listener. The tour uses
a temporary data directory and a free port, and leaves nothing behind; its last section checks that.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(0, ROOT)  # for a checkout; harmless elsewhere

from zmqbus.process import is_alive, process_of  # noqa: E402 - found by the line above

PATIENCE_S = 20.0
LONG_TEXT = "The whole of it arrives. " * (2 * 1024 * 1024 // 25)


class Session:
    """An agent, its listener, and the listener's output."""

    def __init__(self, demo: Demo, name: str, *flags: str) -> None:
        self.name = name
        self._demo = demo
        self.agent = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        self.output = os.path.join(demo.directory, f"{name}.out")
        self.listen(*flags)

    def listen(self, *flags: str) -> None:
        """Starts the listener, also again after it has ended."""
        with open(self.output, "ab") as output:
            self.listener = subprocess.Popen(
                [sys.executable, f"{ROOT}/bin/client.py", "--name", self.name, *flags],
                stdout=output,
                env=self.environ,
                cwd=self._demo.directory,
            )

    @property
    def environ(self) -> dict[str, str]:
        return {**self._demo.environ, "INTER_SESSION_PPID_OVERRIDE": str(self.agent.pid)}

    def start(self, script: str, *arguments: str, **more: object) -> subprocess.Popen[str]:
        """Starts a command of bin/ as a shell of this agent would."""
        shown = shlex.join(argument if len(argument) < 60 else f"{argument[:40]}…" for argument in arguments)
        print(f"  {self.name}$ {script} {shown}")
        return subprocess.Popen(
            [sys.executable, f"{ROOT}/bin/{script}", *arguments],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE if more else subprocess.DEVNULL,
            env=self.environ,
            cwd=self._demo.directory,
            text=True,
        )

    def run(self, script: str, *arguments: str, text: str | None = None) -> str:
        """Runs a command to its end and returns its output; a failure ends the demo."""
        process = self.start(script, *arguments, **({"text": text} if text is not None else {}))
        answer, _ = process.communicate(text, timeout=PATIENCE_S)
        if process.returncode:
            raise SystemExit(f"{script} ended with status {process.returncode}")
        print("".join(f"    {line}\n" for line in answer.splitlines()), end="")
        return answer

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits until the listener has printed a match; returns it."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            with open(self.output, encoding="utf-8") as output:
                match = re.search(pattern, output.read())
            if match:
                return match
            if self.listener.poll() is not None:
                raise SystemExit(f"the listener of {self.name} ended with status {self.listener.returncode}")
            time.sleep(0.02)
        raise SystemExit(f"{self.name} has not seen {pattern!r}")


class Demo:
    """The data directory, the port and the sessions of a tour."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.port = _free_port()
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("INTER_SESSION_", "CLAUDE_"))}
        self.environ = {
            **environ,
            "HOME": directory,
            "INTER_SESSION_DATA_DIR": os.path.join(directory, "data"),
            "INTER_SESSION_PORT": str(self.port),
        }
        self.sessions: list[Session] = []

    def session(self, name: str, *flags: str) -> Session:
        session = Session(self, name, *flags)
        self.sessions.append(session)
        return session

    def pids(self) -> dict[str, int]:
        """Returns the pids of all processes of the demo, including the broker's."""
        pids = {f"{session.name}'s listener": session.listener.pid for session in self.sessions}
        pids |= {f"{session.name}'s agent": session.agent.pid for session in self.sessions}
        with contextlib.suppress(OSError, ValueError), open(f"{self.directory}/data/server.{self.port}.pid") as file:
            pids["the broker"] = int(file.read())
        return pids

    def close(self) -> None:
        """Ends the processes that still run."""
        stop = [sys.executable, f"{ROOT}/bin/zmqbus", "broker", "--stop"]
        for session in self.sessions:
            session.agent.stdin.close()  # type: ignore[union-attr]
            session.agent.wait(PATIENCE_S)
            if session.listener.poll() is None:
                session.listener.terminate()
            session.listener.wait(PATIENCE_S)
        subprocess.run(stop, env=self.environ, stdout=subprocess.DEVNULL, check=False, timeout=PATIENCE_S)


def _free_port() -> int:
    """Returns a free port below the range from which the kernel takes ports for connections."""
    while True:
        port = random.randint(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _part(title: str) -> None:
    print(f"\n=== {title}")


def tour(demo: Demo) -> None:
    """Runs all sections of the tour."""
    _part("three sessions connect; the first one starts the broker")
    web = demo.session("web", "--label", "Web app")
    auth = demo.session("auth", "--label", "Auth service", "--topic", "deploys")
    docs = demo.session("docs", "--label", "Docs", "--topic", "deploys")
    deadline_s = time.monotonic() + PATIENCE_S
    while len(_listed(demo)) < 3:
        if time.monotonic() > deadline_s:
            raise SystemExit("the three sessions have not connected")
        time.sleep(0.05)
    web.run("list.py")

    _part("a message to one session: `delivered` means that its listener has printed the line")
    web.run("send.py", "--to", "auth", "--text", "please run the tests of the login page")

    _part("a broadcast to everyone, and one to a topic")
    auth.run("send.py", "--all", "--text", "status: I rebase main in five minutes")
    web.run("send.py", "--topic", "deploys", "--text", "status: v2.3 is on staging")

    _part("a question that waits for its answer")
    asking = web.start("send.py", "--to", "auth", "--text", "question: may I merge?", "--wait", "20")
    question = auth.wait_for(r"msg=(\w+) .*question: may I merge")[1]
    auth.run("send.py", "--to", "web", "--reply-to", question, "--text", "answer: yes, CI is green")
    answer, _ = asking.communicate(timeout=PATIENCE_S)
    print(f"    {answer.strip()}   <- what `--wait` printed")

    _part("a long text of 2 MiB: shown in two lines, complete in the log")
    docs.run("send.py", "--to", "web", "--text-file", "-", text=LONG_TEXT)
    msg_id = web.wait_for(r"msg=(\w+) cont\] full text (.*)")[1]
    with open(f"{demo.directory}/data/messages.log", encoding="utf-8") as log:
        line = [line for line in log if msg_id in line][-1]
    whole = json.loads(line)["text"] == LONG_TEXT
    print(f"    grep -F '{msg_id}' messages.log | tail -1   gives the whole text: {'yes' if whole else 'NO'}")

    _part("a listener ends, as monitors do: the message waits for the agent's next listener")
    docs.listener.terminate()
    docs.listener.wait(PATIENCE_S)
    auth.run("send.py", "--to", "docs", "--text", "please update the changelog")
    docs.listen()
    docs.wait_for("changelog")

    _part("the output of each listener")
    for session in demo.sessions:
        with open(session.output, encoding="utf-8") as output:
            lines = output.read().splitlines()
        print(f"  {session.name}:")
        for shown in lines:
            print(f"    {shown if len(shown) <= 130 else f'{shown[:127]}…'}")

    _part("all sessions disconnect")
    for session in demo.sessions:
        session.run("zmqbus", "disconnect")
        session.listener.wait(PATIENCE_S)
    if not whole:
        raise SystemExit("the long text in the log is not complete")


def _listed(demo: Demo) -> list[object]:
    answer = subprocess.run(
        [sys.executable, f"{ROOT}/bin/list.py", "--json"],
        env=demo.environ,
        stdout=subprocess.PIPE,
        check=False,
        timeout=PATIENCE_S,
    )
    return json.loads(answer.stdout or "[]")  # type: ignore[no-any-return]


@contextlib.contextmanager
def _stage() -> Iterator[Demo]:
    with tempfile.TemporaryDirectory(prefix="zmqbus-demo-") as directory:
        demo = Demo(directory)
        pids: dict[str, int] = {}
        try:
            yield demo
            pids = demo.pids()
        finally:
            demo.close()
        # A zombie has ended; in a container no process may ever collect its status.
        left = {who: pid for who, pid in pids.items() if is_alive(process_of(pid))}
        if left:
            raise SystemExit(f"still running: {left}")
        print(f"\nall {len(pids)} processes have ended, and {directory} has been removed")


def main() -> int:
    """Runs the tour; returns 0 if all of it worked."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with _stage() as demo:
        tour(demo)
    return 0


if __name__ == "__main__":
    sys.exit(main())
