"""Fixtures for every test: a data directory, ports, the commands in bin/, and the check that nothing is left running.

* No test sees the user's settings or home: HOME is an empty directory, and the variables of zmqbus and of the harness
  are removed.
* `data_dir` gives a test its own data directory. When the test ends, the broker named by the pid file is stopped; any
  other process that still uses the directory fails the test.
* Every descendant of the test run carries a marker in its environment, so that a detached process without that data
  directory is found when the session ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import hypothesis
import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Carried by all descendants of this process (one for each xdist worker).
MARKER = "ZMQBUS_TEST_RUN"
#: Prefixes of the variables of zmqbus, of the harness, and of a surrounding test run.
PRIVATE_PREFIXES = ("INTER_SESSION_", "CLAUDE", "ZMQBUS_")

#: A command that takes longer, s, hangs.
COMMAND_TIMEOUT_S = 90.0
#: A broker that takes longer, s, to end after SIGTERM hangs.
STOP_TIMEOUT_S = 90.0
#: How long processes that were just killed may stay in the process table, s.
SETTLE_TIMEOUT_S = 30.0

#: Ports come from below the ephemeral range: a client that retries a closed port in that range may connect to itself.
LOWEST_PORT = 10_000
EPHEMERAL_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
DEFAULT_EPHEMERAL_START = 32_768

#: Python ignores these in every process, and `subprocess` restores their defaults in children.
PYTHON_IGNORES = {signal.SIGPIPE, signal.SIGXFSZ}

# No deadline: a slow machine is no failure. print_blob: a failure can be replayed from the log alone.
hypothesis.settings.register_profile("zmqbus", deadline=None, print_blob=True)
# For `make check`: fewer examples, and other ones each time. The whole suite runs all of them.
hypothesis.settings.register_profile("quick", parent=hypothesis.settings.get_profile("zmqbus"), max_examples=30)
hypothesis.settings.load_profile("zmqbus")


def pytest_configure(config: pytest.Config) -> None:
    _start_children_with_default_signals()
    if config.option.markexpr == "not slow":
        hypothesis.settings.load_profile("quick")


def _start_children_with_default_signals() -> None:
    """Replaces each ignored signal by a handler, and unblocks all signals, for the processes that tests start.

    A shell ignores SIGINT for its background jobs, and `nohup` ignores SIGHUP. A new program inherits the ignored and
    the blocked signals, while signals with a handler are reset to their defaults.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for signum in signal.valid_signals() - PYTHON_IGNORES:
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else _ignore)


def _ignore(signum: int, frame: object) -> None:
    """Handles a signal that this process was started to ignore."""


class RunBin(Protocol):
    """Runs `bin/<name>` to its end; see the fixture `run_bin`."""

    def __call__(
        self,
        name: str,
        *args: str,
        env: dict[str, str] | None = None,
        input: str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float = COMMAND_TIMEOUT_S,
        python: str = sys.executable,
    ) -> subprocess.CompletedProcess[str]: ...


class StartBin(Protocol):
    """Starts `bin/<name>` and leaves it running; see the fixture `start_bin`."""

    def __call__(
        self,
        name: str,
        *args: str,
        env: dict[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> subprocess.Popen[str]: ...


@pytest.fixture(scope="session", autouse=True)
def checked_transitions() -> Iterator[None]:
    """Raises wherever a broker in this process leaves the tables of legal transitions."""
    from tests.transitions import check_transitions
    from zmqbus.broker import sessions
    from zmqbus.broker.groups import model

    undo = [
        check_transitions(sessions.Connection, sessions.CONNECTION_TRANSITIONS),
        check_transitions(sessions.Session, sessions.SESSION_TRANSITIONS),
        check_transitions(model.Request, model.STAGE_TRANSITIONS, "stage"),
    ]
    yield
    for restore in undo:
        restore()


@pytest.fixture(scope="session", autouse=True)
def _clean_session() -> Iterator[None]:
    """Clears the environment, and fails if a process is left when all tests of this worker are done."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="zb-home-") as home:
        for variable in [name for name in os.environ if name.startswith(PRIVATE_PREFIXES)]:
            patch.delenv(variable)
        patch.setenv("HOME", home)
        marker = secrets.token_hex(8)
        patch.setenv(MARKER, marker)
        yield
        left = _kill(_with_variable(MARKER, marker))
    if left:
        raise RuntimeError("processes outlived the tests:\n" + "\n".join(left))


@pytest.fixture
def data_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory (0700, short path), named in the environment; HOME is an empty directory beside it.

    No process may use it when the test ends. A broker with a pid file in it is terminated here, and fails the test if
    it does not end. The test has to end all other processes itself.
    """
    base = Path(tempfile.mkdtemp(prefix="zb-"))
    data, home = base / "data", base / "home"
    data.mkdir(mode=0o700)
    home.mkdir(mode=0o700)
    monkeypatch.setenv("INTER_SESSION_DATA_DIR", str(data))
    monkeypatch.setenv("HOME", str(home))
    yield data
    faults = _stop_brokers(data)
    # A client that ended while it started a broker leaves a detached candidate, which may become the broker. So
    # processes are looked for until there are none.
    # One in the middle of exec shows no environment: where there was a broker, a second look has to find none.
    looks, end_s = 2 if (data / "broker.log").exists() else 1, time.monotonic() + SETTLE_TIMEOUT_S
    while looks:
        left = _living(_with_variable("INTER_SESSION_DATA_DIR", str(data)))
        looks -= not left
        if time.monotonic() > end_s:
            faults += ["left running: " + line for line in _kill(left)]
            break
        if looks:
            time.sleep(0.01)
            faults += _stop_brokers(data)
    shutil.rmtree(base, ignore_errors=True)
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


class _Ports:
    """Hands out loopback ports, each once, to all test runs of this machine.

    A test starts its broker some time after it got its port. So each port is locked, as a byte of a file that all runs
    share, until this process ends.
    """

    def __init__(self) -> None:
        path = os.path.join(tempfile.gettempdir(), f"zmqbus-test-ports-{os.getuid()}")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._taken: set[int] = set()
        # Each worker has a range of its own, so that workers seldom try the same port.
        worker = int("".join(filter(str.isdigit, os.environ.get("PYTEST_XDIST_WORKER", ""))) or 0)
        workers = max(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), worker + 1)
        size = (_ephemeral_start() - LOWEST_PORT) // workers
        self._range = range(LOWEST_PORT + worker * size, LOWEST_PORT + (worker + 1) * size)

    def take(self) -> int:
        for port in random.sample(self._range, len(self._range)):
            if port not in self._taken and self._lock(port) and _can_bind(port):
                self._taken.add(port)
                return port
        raise RuntimeError("no free port between the services and the ephemeral range")

    def close(self) -> None:
        os.close(self._file)

    def _lock(self, port: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        return True


@pytest.fixture(scope="session")
def _ports() -> Iterator[_Ports]:
    ports = _Ports()
    yield ports
    ports.close()


@pytest.fixture
def free_port(_ports: _Ports) -> int:
    """A free loopback port below the ephemeral range, which no other test gets."""
    return _ports.take()


@pytest.fixture
def new_port(_ports: _Ports) -> Callable[[], int]:
    """Returns another port like `free_port` with each call."""
    return _ports.take


@pytest.fixture
def bin_env(data_dir: Path) -> Callable[[dict[str, str] | None], dict[str, str]]:
    """Makes the environment of a command: the test's own without python's variables, the test as owner, plus `extra`.

    A value of "" in `extra` removes the variable.
    """

    def make(extra: dict[str, str] | None = None) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        # The command would find the test as its owner anyway, unless the tests run below a coding agent.
        env.setdefault("INTER_SESSION_PPID_OVERRIDE", str(os.getpid()))
        env.update(extra or {})
        return {name: value for name, value in env.items() if value}

    return make


@pytest.fixture
def run_bin(bin_env: Callable[[dict[str, str] | None], dict[str, str]]) -> RunBin:
    """`run_bin(name, *args, env=…, input=…, cwd=…, timeout=…, python=…)` runs `bin/<name>` and returns the result.

    Standard input is empty unless `input` is given. A command that takes too long is killed and fails the test.
    """

    def run(
        name: str,
        *args: str,
        env: dict[str, str] | None = None,
        input: str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float = COMMAND_TIMEOUT_S,
        python: str = sys.executable,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, str(ROOT / "bin" / name), *args],
            input=input or "",
            capture_output=True,
            encoding="utf-8",
            env=bin_env(env),
            cwd=cwd,
            timeout=timeout,
        )

    return run


@pytest.fixture
def start_bin(bin_env: Callable[[dict[str, str] | None], dict[str, str]]) -> Iterator[StartBin]:
    """`start_bin(name, *args, env=…, cwd=…)` starts `bin/<name>` with text pipes; killed when the test ends."""
    with contextlib.ExitStack() as stack:

        def start(
            name: str,
            *args: str,
            env: dict[str, str] | None = None,
            cwd: str | os.PathLike[str] | None = None,
        ) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "bin" / name), *args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                bufsize=1,
                env=bin_env(env),
                cwd=cwd,
            )
            stack.callback(_end, process)
            return process

        yield start


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    # Not communicate(): children of the command may hold its pipes open.
    process.wait(COMMAND_TIMEOUT_S)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _ephemeral_start() -> int:
    try:
        first = int(Path(EPHEMERAL_RANGE).read_text().split()[0])
    except (OSError, ValueError, IndexError):  # not Linux
        first = DEFAULT_EPHEMERAL_START
    return min(max(first, LOWEST_PORT + 1000), DEFAULT_EPHEMERAL_START)


def _can_bind(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _with_variable(name: str, value: str) -> list[psutil.Process]:
    """Other processes that were started with `name=value` in their environment."""
    found = []
    for pid in psutil.pids():
        try:
            if pid != os.getpid() and _has_variable(pid, name, value):
                found.append(psutil.Process(pid))
        except (psutil.Error, OSError):  # another user's, or gone meanwhile
            continue
    return found


def _has_variable(pid: int, name: str, value: str) -> bool:
    if sys.platform != "linux":
        return psutil.Process(pid).environ().get(name) == value
    with open(f"/proc/{pid}/environ", "rb") as file:  # three times faster, at two looks a test
        return f"{name}={value}".encode() in file.read().split(b"\0")


def _kill(processes: list[psutil.Process]) -> list[str]:
    """Kills processes that do not end by themselves within a moment; returns a line for each."""
    end_s = time.monotonic() + SETTLE_TIMEOUT_S
    while (left := _living(processes)) and time.monotonic() < end_s:
        time.sleep(0.01)
    lines = []
    for process in left:
        try:
            lines.append(f"pid {process.pid}: {' '.join(process.cmdline())}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return lines


def _living(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Processes that have not ended. (A zombie has: its parent may take its time.)"""
    return [process for process in processes if not _has_ended(process)]


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _stop_brokers(data: Path) -> list[str]:
    faults = []
    for pid_file in data.glob("server.*.pid"):
        try:
            process = psutil.Process(int(pid_file.read_text()))
            if process.environ().get("INTER_SESSION_DATA_DIR") != str(data):
                continue  # the pid belongs to another process
            process.send_signal(signal.SIGCONT)  # a test may have stopped it
            process.terminate()
            # Not process.wait(): without an init that reaps orphans, the broker stays a zombie for seconds.
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while process.status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > deadline:
                    faults.append(f"the broker (pid {process.pid}) did not end within {STOP_TIMEOUT_S} s of SIGTERM")
                    process.kill()
                    break
                time.sleep(0.005)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, ValueError):
            continue
    return faults
