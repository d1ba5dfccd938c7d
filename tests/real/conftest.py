"""The bus as users have it: real processes and sockets, with one data directory and one port for each test.

The fixture `bus` starts listeners, each with an owner process of its own, runs the commands in bin/ as one of those
owners, and ends everything when the test ends. Tests wait for states (a line, an exit, a file, the output of `list`),
with a deadline that only a hang can miss; nothing here measures time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from zmqbus.client.oneshot import guest
from zmqbus.client.receipts import Receipt
from zmqbus.settings import load

ROOT = Path(__file__).resolve().parent.parent.parent

#: How long a condition may take, s. Generous: two cores may be shared with the whole suite.
DEADLINE_S = 90.0
#: The same for conditions that may take 15 s by themselves (a dead listener leaves the list).
LONG_DEADLINE_S = 90.0
#: A command that takes longer, s, hangs.
COMMAND_TIMEOUT_S = 90.0
POLL_S = 0.02

#: JSON objects of `list --json` and of the log. (Within the class, `Bus.list` hides the built-in type.)
Rows = list[dict[str, Any]]
Receipts = list[Receipt]

#: The line of a message, with its fields in order.
HEADER = re.compile(
    r"^\[inter-session msg=(?P<id>[a-z0-9]{8,12}) from=\"(?P<name>[a-z0-9-]{1,40})\"(?: \"(?P<label>[^\"]*)\")?"
    r"(?: re=(?P<re>[a-z0-9]{8,12}))?(?: to=(?P<to>all|#\S+|%\S+))?(?: queued=(?P<queued>\S+))?"
    r"(?: truncated=(?P<truncated>\d+))?\] (?P<text>.*)$"
)


def wait_until(condition: Callable[[], Any], what: str, timeout: float = DEADLINE_S) -> Any:
    """Waits for a true value of `condition()` and returns it; fails the test after `timeout` seconds."""
    end_s = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end_s:
            pytest.fail(f"not within {timeout:g} s: {what}")
        time.sleep(POLL_S)
    return value


class Owner:
    """The owner process of a session. It lives until it is killed or the test run ends."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.pid = self._process.pid

    def kill(self) -> None:
        """Kills and reaps it."""
        self._process.kill()
        self._process.wait(DEADLINE_S)
        if self._process.stdin is not None:
            self._process.stdin.close()


class ListenerProcess:
    """A running `bin/client.py`. `lines` is its output so far, `errors` its standard error."""

    def __init__(self, bus: Bus, process: subprocess.Popen[bytes], owner: Owner) -> None:
        self.bus = bus
        self.process = process
        self.owner = owner
        self.pid = process.pid
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=_collect, args=(stream, into), daemon=True)
            for stream, into in ((process.stdout, self.lines), (process.stderr, self.errors))
            if stream is not None
        ]
        for reader in self._readers:
            reader.start()

    @property
    def state_path(self) -> Path:
        return self.bus.data_dir / "clients" / f"{self.owner.pid}.session"

    @property
    def state(self) -> dict[str, Any]:
        """The content of this owner's state file; {} if there is none."""
        try:
            state: dict[str, Any] = json.loads(self.state_path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return state

    @property
    def name(self) -> str:
        return str(self.state["name"])

    @property
    def session_id(self) -> str:
        return str(self.state["session_id"])

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs."""
        return self.process.poll()

    def wait_for(self, pattern: str, *, after: int = 0, timeout: float = DEADLINE_S) -> str:
        """Waits for a line, from number `after` on, that matches the regular expression; returns it."""
        expression = re.compile(pattern)

        def found() -> str | None:
            return next((line for line in self.lines[after:] if expression.search(line)), None)

        end_s = time.monotonic() + timeout
        while (line := found()) is None:
            if (ended := self.status is not None) or time.monotonic() > end_s:
                for reader in self._readers if ended else ():
                    reader.join(DEADLINE_S)
                if (line := found()) is not None:
                    break
                why = f"exit {self.status}" if ended else "it runs on"
                pytest.fail(f"no line matches {pattern!r} ({why}); lines {self.lines!r}, errors {self.errors!r}")
            time.sleep(POLL_S)
        return line

    def wait_message(self, text: str, *, after: int = 0, timeout: float = DEADLINE_S) -> dict[str, str | None]:
        """Waits for a message line with this text; returns its fields as HEADER names them."""
        line = self.wait_for(r"^\[inter-session msg=.*" + re.escape(text), after=after, timeout=timeout)
        match = HEADER.match(line)
        assert match is not None, f"not the line of a message: {line!r}"
        return match.groupdict()

    def wait_connected(self, timeout: float = DEADLINE_S) -> ListenerProcess:
        """Waits until this process (not an earlier one of the same owner) has a session."""

        def connected() -> bool:
            if self.status is not None:
                pytest.fail(f"ended with {self.status}; lines {self.lines!r}, errors {self.errors!r}")
            return self.state.get("listener_pid") == self.pid

        wait_until(connected, f"the listener connects; lines {self.lines!r}, errors {self.errors!r}", timeout)
        return self

    def wait_exit(self, timeout: float = DEADLINE_S) -> int:
        """Waits for its end; returns the exit status. `lines` and `errors` are complete then."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout:g} s; lines {self.lines!r}, errors {self.errors!r}")
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return status

    def send_signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def stop(self, signum: int = signal.SIGTERM, timeout: float = DEADLINE_S) -> int:
        """Sends a signal and waits for the end; returns the exit status (negative: killed by that signal)."""
        self.send_signal(signum)
        return self.wait_exit(timeout)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def _collect(stream: Any, into: list[str]) -> None:
    # Bytes, not text: only "\n" ends a line here, as in the harness, and not a stray "\r" or U+2028.
    for line in stream:
        into.append(line.decode("utf-8").removesuffix("\n"))


class Bus:
    """One bus: a data directory, a port, its listeners, and the commands."""

    def __init__(
        self, data_dir: Path, port: int, cwd: Path, make_env: Callable[[dict[str, str] | None], dict[str, str]]
    ) -> None:
        self.data_dir = data_dir
        self.port = port
        self.cwd = cwd
        self.log_path = data_dir / "messages.log"
        self._make_env = make_env
        self._stack = contextlib.ExitStack()

    # --- processes

    def owner(self) -> Owner:
        """A new owner process; killed when the test ends."""
        owner = Owner()
        self._stack.callback(owner.kill)
        return owner

    def env(self, owner: Owner | ListenerProcess | None = None, extra: dict[str, str] | None = None) -> dict[str, str]:
        """The environment of a command; "" in `extra` drops a variable."""
        own = {"INTER_SESSION_PORT": str(self.port)}
        if isinstance(owner, ListenerProcess):
            owner = owner.owner
        if owner is not None:
            own["INTER_SESSION_PPID_OVERRIDE"] = str(owner.pid)
        return self._make_env({**own, **(extra or {})})

    def popen(
        self,
        script: str,
        *args: str,
        owner: Owner | ListenerProcess | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """Starts `bin/<script>` with byte pipes; it is killed when the test ends."""
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "bin" / script), *args],
            env=self.env(owner, env),
            cwd=cwd or self.cwd,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        self._stack.callback(_end, process)
        return process

    def listener(
        self,
        name: str | None = None,
        *flags: str,
        owner: Owner | ListenerProcess | None = None,
        label: str | None = None,
        topics: Sequence[str] = (),
        groups: Sequence[str] = (),
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        connected: bool = True,
    ) -> ListenerProcess:
        """Starts `bin/client.py` with an owner of its own (or `owner`); waits until it has a session if `connected`."""
        if isinstance(owner, ListenerProcess):
            owner = owner.owner
        owner = owner or self.owner()
        args = ["--name", name] if name is not None else []
        args += ["--label", label] if label is not None else []
        for option, values in (("--topic", topics), ("--group", groups)):
            for value in values:
                args += [option, value]
        process = self.popen("client.py", *args, *flags, owner=owner, env=env, cwd=cwd)
        listener = ListenerProcess(self, process, owner)
        self._stack.callback(listener.close)
        return listener.wait_connected() if connected else listener

    # --- commands

    def run(
        self,
        script: str,
        *args: str,
        owner: Owner | ListenerProcess | None = None,
        input: str | bytes | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = COMMAND_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `bin/<script>` to its end, as the session of `owner` (a new process without a session if None)."""
        given = input.encode() if isinstance(input, str) else input or b""
        done = subprocess.run(
            [sys.executable, str(ROOT / "bin" / script), *args],
            input=given,
            capture_output=True,
            env=self.env(owner or self.stranger, env),
            cwd=cwd or self.cwd,
            timeout=timeout,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    @property
    def stranger(self) -> Owner:
        """A process without a session: the default owner of commands."""
        if not hasattr(self, "_stranger"):
            self._stranger = self.owner()
        return self._stranger

    def send(
        self, *args: str, owner: Owner | ListenerProcess | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """`bin/send.py`."""
        return self.run("send.py", *args, owner=owner, **options)

    def deliver(self, to: str, text: str, *args: str, owner: Owner | ListenerProcess | None = None) -> str:
        """Sends as `owner`, or under the name `script`; demands success; returns the message's id."""
        sender = ["--as", "script"] if owner is None else []
        # The final line end is not part of the text, so that a text may end with one.
        done = self.send("--to", to, "--text-file", "-", *sender, *args, owner=owner, input=f"{text}\n")
        assert (done.returncode, done.stderr) == (0, ""), done
        match = re.match(r"(?:delivered|queued) msg=([a-z0-9]{8,12}) to=", done.stdout)
        assert match is not None, done.stdout
        return match[1]

    def zmqbus(
        self, *args: str, owner: Owner | ListenerProcess | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """`bin/zmqbus`."""
        return self.run("zmqbus", *args, owner=owner, **options)

    def list(self, *flags: str, owner: Owner | ListenerProcess | None = None, **options: Any) -> Rows:
        """The output of `bin/list.py --json`."""
        done = self.run("list.py", "--json", *flags, owner=owner, **options)
        assert done.returncode == 0, done
        sessions: Rows = json.loads(done.stdout)
        return sessions

    def states(self) -> dict[str, str]:
        """The states of all sessions that the broker knows, by name."""
        return {session["name"]: session["state"] for session in self.list("--all")}

    def wait_state(self, name: str, state: str | None, timeout: float = LONG_DEADLINE_S) -> None:
        """Waits until `list --all` shows `name` in `state`; None: until it is unknown."""
        wait_until(lambda: self.states().get(name) == state, f"{name} is {state}", timeout)

    def burst(self, to: str, texts: Iterable[str], sender: str = "script") -> Receipts:
        """Sends many texts at once, in order, as a script; returns their receipts."""
        environ = self.env()
        with guest(load(environ=environ), sender) as link:
            sent = [link.post(to, text.encode()) for text in texts]
            return [cast(Receipt, link.outcome(msg_id)) for msg_id in sent]

    # --- the broker

    def broker_pid(self) -> int | None:
        """The pid that the broker's pid file names."""
        try:
            return int((self.data_dir / f"server.{self.port}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def signal_broker(self, signum: int) -> int:
        """Sends a signal to the broker; returns its pid."""
        pid = self.broker_pid()
        assert pid is not None, "no broker"
        os.kill(pid, signum)
        return pid

    def records(self) -> Rows:
        """All records of messages.log."""
        return [json.loads(line) for line in self.log_path.read_text("utf-8").split("\n") if line]

    def close(self) -> None:
        """Ends everything, the broker last."""
        self._stack.close()
        pid = self.broker_pid()
        try:
            broker = psutil.Process(pid) if pid else None
            if broker is None or broker.environ().get("INTER_SESSION_DATA_DIR") != str(self.data_dir):
                return  # none, or the pid belongs to another process by now
            broker.send_signal(signal.SIGCONT)
            broker.terminate()
            # Not broker.wait(): init may take seconds to reap an orphan.
            wait_until(lambda: has_ended(broker), f"the broker (pid {pid}) ends after SIGTERM")
        except psutil.Error:  # it has just ended
            return


def has_ended(process: psutil.Process) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait(DEADLINE_S)
    for stream in (process.stdin, process.stdout, process.stderr):
        # ListenerProcess.close() has joined the reading threads and closed their streams before.
        if stream is not None:
            stream.close()


@pytest.fixture
def bus(data_dir: Path, free_port: int, bin_env: Callable[[dict[str, str] | None], dict[str, str]]) -> Iterator[Bus]:
    """A bus for this test; see `Bus`. Its commands run in an empty directory outside any git work tree."""
    with tempfile.TemporaryDirectory(prefix="zb-work-") as parent:
        # A valid session name, which sessions take over unchanged. Random names may have "_", which theirs have not.
        work = Path(parent).resolve() / "work"
        work.mkdir()
        harness = Bus(data_dir, free_port, work, bin_env)
        try:
            yield harness
        finally:
            harness.close()
