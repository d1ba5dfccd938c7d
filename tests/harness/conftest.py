"""Sessions of the played Claude Code, each a real process called `claude`, on one data directory and one port.

`start_claude` begins a session. Its monitors, shells and hooks find their owner as in a real one, by walking up the
process tree. `Claude` gives orders and keeps the notifications. When the test ends, all sessions are ended, and the
test fails if a notification was suppressed or cut, unless the session may lose some.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import pytest

from tests.real.conftest import DEADLINE_S, HEADER, ROOT, wait_until
from zmqbus.client.oneshot import guest
from zmqbus.settings import load

PLUGIN = ROOT / "plugin"
#: Longer than a command may take in the session, which reports that itself, s.
ORDER_TIMEOUT_S = 120.0

Fields = dict[str, Any]
MakeEnv = Callable[[dict[str, str] | None], dict[str, str]]


class Done(NamedTuple):
    """The result of a command; status None: it took too long and was killed."""

    status: int | None
    stdout: str
    stderr: str


class Claude:
    """A session: its directory, its process and its orders; `events` are those of its monitors so far."""

    def __init__(self, config: Fields, env: dict[str, str], data_dir: Path, errors: Path) -> None:
        self.directory = Path(config["project_dir"])
        self.data_dir = data_dir
        self.events: list[Fields] = []
        self.started: Fields = {}  #: the answer to the order `start`
        self._errors = errors
        self._numbers = itertools.count()
        self._answers: dict[int, concurrent.futures.Future[Fields]] = {}
        with errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                ["claude", "-S", "-m", "tests.harness.claude", json.dumps(config)],
                executable=sys.executable,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # A file: a process that outlives the session would keep a pipe open.
                stderr=stderr,
                env=env,
                cwd=self.directory,
            )
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()

    # --- orders

    def begin(self, order: str, **fields: Any) -> concurrent.futures.Future[Fields]:
        """Gives an order without waiting for the answer. Orders are carried out one after the other."""
        number = next(self._numbers)
        answer = self._answers[number] = concurrent.futures.Future()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": number, "order": order, **fields}).encode() + b"\n")
        self.process.stdin.flush()
        return answer

    def order(self, order: str, **fields: Any) -> Fields:
        """Gives an order, and returns the answer."""
        answer = self.begin(order, **fields).result(ORDER_TIMEOUT_S)
        assert "error" not in answer, (order, fields, answer, self.errors)
        return answer

    def bash(self, command: str, input: str = "") -> Done:
        """Runs a command of the agent in a shell."""
        answer = self.order("bash", command=command, input=input)
        return Done(answer["status"], answer["stdout"], answer["stderr"])

    def begin_bash(self, command: str) -> Callable[[], Done]:
        """Starts a command of the agent; returns a function that waits for its result."""
        future = self.begin("bash", command=command)

        def wait() -> Done:
            answer = future.result(ORDER_TIMEOUT_S)
            return Done(answer["status"], answer["stdout"], answer["stderr"])

        return wait

    def monitor(self, command: str, timeout_ms: int = 300_000) -> str:
        """Starts a monitor; returns its name in the events."""
        return str(self.order("monitor", command=command, timeout_ms=timeout_ms)["monitor"])

    def skill(self, name: str = "inter-session:inter-session") -> list[str]:
        """Invokes the skill; returns the monitors that it started."""
        return list(self.order("skill", name=name)["monitors"])

    def stop(self, monitor: str) -> Fields:
        """Kills a monitor; returns the event."""
        self.order("stop", monitor=monitor)
        return self.wait_ended(monitor)

    def hook(self, event: str, **fields: Any) -> list[Fields]:
        """Runs all hooks of an event; returns their `status`, `stdout`, `output` (if it is JSON) and `stderr`."""
        return list(self.order("hook", event=event, **fields)["hooks"])

    def clear(self) -> Fields:
        """`/clear`: the new `session_id`, and what the `hooks` did."""
        return self.order("clear")

    # --- what the agent sees

    def lines(self, monitor: str | None = None) -> list[str]:
        """All lines shown, of one monitor or of all."""
        return [
            line
            for event in list(self.events)
            if event["event"] == "notification" and monitor in (None, event["monitor"]) and not event["suppressed"]
            for line in event["text"].split("\n")
        ]

    @property
    def lost(self) -> list[Fields]:
        """Notifications that were suppressed or cut."""
        return [event for event in list(self.events) if event.get("suppressed") or event.get("cut")]

    @property
    def errors(self) -> str:
        """Standard error of the monitors, and of the session itself."""
        return self._errors.read_text("utf-8", "replace")

    def wait_for(self, pattern: str, *, after: int = 0, monitor: str | None = None, timeout: float = DEADLINE_S) -> str:
        """The first line, from number `after` on, in which the regular expression is found."""
        expression = re.compile(pattern)

        def found() -> str | None:
            return next((line for line in self.lines(monitor)[after:] if expression.search(line)), None)

        return str(self._wait_until(found, f"a line matches {pattern!r}", timeout))

    def wait_message(self, text: str, *, after: int = 0, timeout: float = DEADLINE_S) -> dict[str, str | None]:
        """The fields of the first message line with `text` in it, as HEADER names them."""
        line = self.wait_for(r"^\[inter-session msg=.*" + re.escape(text), after=after, timeout=timeout)
        match = HEADER.match(line)
        assert match is not None, f"not the line of a message: {line!r}"
        return match.groupdict()

    def texts(self) -> list[str]:
        """The texts of all messages shown, in order."""
        return [match["text"] for line in self.lines() if (match := HEADER.match(line))]

    def wait_ended(self, monitor: str, timeout: float = DEADLINE_S) -> Fields:
        """Waits for the end of a monitor; returns the event."""
        event: Fields = self._wait_until(lambda: self.ended(monitor), f"monitor {monitor} ends", timeout)
        return event

    def ended(self, monitor: str) -> Fields | None:
        """The event of a monitor's end, or None."""
        events = list(self.events)
        return next((each for each in events if each["event"] == "ended" and each["monitor"] == monitor), None)

    # --- its session on the bus

    def send(self, to: str, text: str, *flags: str) -> str:
        """Sends a message as the agent, demands success, and returns its id."""
        done = self.bash(shlex.join(["send.py", "--to", to, "--text-file", "-", *flags]), input=f"{text}\n")
        match = re.fullmatch(r"(?:delivered|queued) msg=([a-z0-9]{8,12}) to=.*\n", done.stdout)
        assert (done.status, done.stderr) == (0, "") and match is not None, done
        return match[1]

    def states(self) -> dict[str, str]:
        """The states of all sessions by name, as the agent lists them."""
        done = self.bash("list.py --all --json")
        assert (done.status, done.stderr) == (0, ""), done
        return {row["name"]: row["state"] for row in json.loads(done.stdout)}

    def unread(self) -> list[str]:
        """Reads the inbox as the agent; returns the texts."""
        done = self.bash("zmqbus inbox --json")
        assert (done.status, done.stderr) == (0, ""), done
        return [json.loads(line)["text"] for line in done.stdout.splitlines()]

    @property
    def state(self) -> Fields:
        """What the state file of this owner says; {} if there is none."""
        try:
            state: Fields = json.loads((self.data_dir / "clients" / f"{self.pid}.session").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return state

    def wait_connected(self, after: Fields | None = None) -> Fields:
        """Waits until a listener has connected; returns the state. `after`: another listener than that state's."""
        connected_as: Fields = self._wait_until(lambda: self.connected(after), "the listener connects", DEADLINE_S)
        return connected_as

    def connected(self, after: Fields | None = None) -> Fields | None:
        """The state of the session if a listener has connected, or None."""
        state = self.state
        return state if state and state["listener_pid"] != (after or {}).get("listener_pid") else None

    # --- its end

    def kill(self) -> None:
        """Kills the process with SIGKILL."""
        self.process.kill()
        self._finish()

    def close(self) -> None:
        """Ends the session, which kills its monitors."""
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.kill()
                pytest.fail(f"the session (pid {self.pid}) did not end; errors {self.errors}")
            self._finish()

    def _wait_until(self, condition: Callable[[], Any], what: str, timeout: float) -> Any:
        """Waits like `wait_until`; a failure shows the events and errors."""
        try:
            return wait_until(condition, what, timeout)
        except pytest.fail.Exception as failure:
            pytest.fail(f"{failure}; events {self.events!r}, errors {self.errors}")

    def _finish(self) -> None:
        self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            told: Fields = json.loads(line)
            if "answer" in told:
                self._answers.pop(told["answer"]).set_result(told)
            else:
                self.events.append(told)
        for answer in self._answers.values():
            answer.cancel()


class StartClaude(Protocol):
    """Begins a session; see the fixture `start_claude`."""

    def __call__(
        self,
        directory: Path | None = None,
        *,
        plugin: Path = PLUGIN,
        options: Fields | None = None,
        env: dict[str, str] | None = None,
        lossy: bool = False,
        **times_s: float,
    ) -> Claude: ...


@pytest.fixture
def start_claude(data_dir: Path, free_port: int, bin_env: MakeEnv, tmp_path: Path) -> Iterator[StartClaude]:
    """`start_claude(directory, plugin=…, options=…, env=…)` begins a session, and waits until it has begun.

    It runs in `tmp_path / "app"` if no directory is given. The port is in the environment, unless `options` (those that
    the user has set for the plugin) have it. `lossy`: notifications may be suppressed or cut. `times_s`: as in Config.
    """
    claudes: dict[Claude, bool] = {}

    def start(
        directory: Path | None = None,
        *,
        plugin: Path = PLUGIN,
        options: Fields | None = None,
        env: dict[str, str] | None = None,
        lossy: bool = False,
        **times_s: float,
    ) -> Claude:
        directory = directory or tmp_path / "app"
        scratch = tmp_path / f"claude-{len(claudes)}"
        plugin_data = data_dir.parent / "home" / ".claude" / "plugins" / "data" / "inter-session-zmqbus"
        for each in (directory, scratch, plugin_data):
            each.mkdir(parents=True, exist_ok=True)
        config = {
            "plugin_root": str(plugin),
            "plugin_data": str(plugin_data),
            "project_dir": str(directory.resolve()),
            "scratch": str(scratch),
            "options": options or {},
            **times_s,
        }
        own = {
            "INTER_SESSION_PORT": "" if options and "port" in options else str(free_port),
            # The owner is found by walking up.
            "INTER_SESSION_PPID_OVERRIDE": "",
            # The plugin runs `python3`, which needs the dependencies.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            # An interpreter under another name does not find its library. Its children do not get these.
            "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}",
            "PYTHONPATH": str(ROOT),
        }
        claude = Claude(config, bin_env({**own, **(env or {})}), data_dir, scratch / "errors")
        stack.callback(claude.close)
        claudes[claude] = lossy
        claude.started = claude.order("start")
        return claude

    with contextlib.ExitStack() as stack:
        yield start
    lost = [event for claude, lossy in claudes.items() if not lossy for event in claude.lost]
    assert not lost, f"the agent was not shown all of it: {lost!r}"


class Connect(Protocol):
    """Begins a connected session; see the fixture `connect`."""

    def __call__(self, name: str, timeout_ms: int = 300_000) -> Claude: ...


@pytest.fixture
def connect(start_claude: StartClaude, tmp_path: Path) -> Connect:
    """`connect(name)` begins a session in a directory of its own, whose agent connects with the Monitor tool."""

    def start(name: str, timeout_ms: int = 300_000) -> Claude:
        claude = start_claude(tmp_path / name)
        claude.monitor(f"exec client.py --name {name}", timeout_ms)
        claude.wait_connected()
        return claude

    return start


class Script(Protocol):
    """Sends texts, all at once or with pauses, and waits for all receipts; see the fixture `script`."""

    def __call__(self, to: str, texts: Iterable[str], pause_s: float = 0.0) -> None: ...


@pytest.fixture
def script(bin_env: MakeEnv, free_port: int) -> Script:
    """`script(to, texts)` sends as a script, which is faster than an agent's commands."""

    def send(to: str, texts: Iterable[str], pause_s: float = 0.0) -> None:
        with guest(load(environ=bin_env({"INTER_SESSION_PORT": str(free_port)})), "script") as bus:
            sent = []
            for text in texts:
                sent.append(bus.post(to, text.encode()))
                if pause_s:
                    bus.sessions()  # a round trip: messages are sent during calls only
                    time.sleep(pause_s)
            for msg_id in sent:
                bus.outcome(msg_id)

    return send
