"""What the processes of a soak run share: directory, environment, broker, and the record of what was done to them."""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from tests.real.conftest import ROOT, has_ended
from tests.soak.history import Answer, Blow, Sent, Shown
from tests.soak.schedule import Setup

#: A process that has not ended this long after SIGTERM is killed, and the run has failed.
END_S = 30.0
#: A broker that lost its election, or was just killed, is gone within this.
LEAVE_S = 10.0
LOOK_S = 0.01
#: Settings of the user, and of a surrounding test run, that must not reach the processes.
PRIVATE_PREFIXES = ("INTER_SESSION_", "CLAUDE", "PYTHON")


class Stage:
    """Starts processes and records what happens to them. `calm`: the schedule is over."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.chance = random.Random(f"{setup.seed} at run time")
        self.base = setup.base
        self.data_dir = setup.base / "data"
        self.notes = setup.base / "notes"
        for name in ("data", "home", "work", "notes"):
            (setup.base / name).mkdir(mode=0o700)
        self.selector = selectors.DefaultSelector()  # the data of a key is its callback
        self.calm = False
        self.sent: list[Sent] = []
        self.answers: list[Answer] = []
        self.shown: list[Shown] = []
        self.blows: list[Blow] = []
        self.failures: list[str] = []
        self.lines: list[str] = []  #: printed lines that are not messages
        self._errors = open(setup.base / "stderr.log", "ab")  # noqa: SIM115 (closed with the stage)
        self._timers: list[tuple[float, Callable[[], None]]] = []

    # --- time

    def step(self, timeout_s: float) -> None:
        """Waits up to `timeout_s` for input, and runs the callbacks that are ready or due."""
        for key, _ in self.selector.select(timeout_s):
            key.data()
        now_s = time.monotonic()
        due = [timer for timer in self._timers if timer[0] <= now_s]
        self._timers = [timer for timer in self._timers if timer[0] > now_s]
        for _, act in due:
            act()

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Calls `act` after a delay, or as soon as the schedule is over."""
        self._timers.append((time.monotonic() + seconds, act))

    def calm_down(self) -> None:
        """Ends the schedule: continues stopped processes, and drops deeds that wait for another try."""
        self.calm = True
        timers, self._timers = self._timers, []
        for _, act in timers:
            act()

    # --- what happens

    def note(self, what: str, whom: str, pid: int, detail: str = "") -> None:
        """Records what was done to a process, or happened to it."""
        self.blows.append(Blow(time.monotonic(), what, whom, pid, detail))

    def kill(self, whom: str, process: subprocess.Popen[bytes] | None) -> bool:
        """Sends SIGKILL. Returns False if the process is not running."""
        if process is None or process.poll() is not None:
            return False
        process.kill()
        self.note("kill", whom, process.pid)
        return True

    def stop(self, whom: str, process: subprocess.Popen[bytes] | None, seconds: float) -> bool:
        """Sends SIGSTOP, and SIGCONT later. Returns False if the process is not running."""
        if process is None or process.poll() is not None:
            return False
        self.note("stop", whom, process.pid, f"for {seconds:.1f} s")
        process.send_signal(signal.SIGSTOP)
        self.later(seconds, lambda: process.send_signal(signal.SIGCONT))
        return True

    def cut(self, whom: str, process: subprocess.Popen[bytes] | None) -> bool:
        """Resets all connections of a process on a bad wire. Returns False if the process is not running."""
        if process is None or process.poll() is not None:
            return False
        self.note("cut", whom, process.pid)
        process.send_signal(signal.SIGUSR1)
        return True

    # --- processes

    def env(self, owner: subprocess.Popen[bytes] | None = None) -> dict[str, str]:
        """The environment of a process of the session of `owner`, or of no session."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE_PREFIXES)}
        return env | {
            "HOME": str(self.base / "home"),
            "INTER_SESSION_DATA_DIR": str(self.data_dir),
            "INTER_SESSION_PORT": str(self.setup.port),
            "INTER_SESSION_PPID_OVERRIDE": str(owner.pid if owner else os.getpid()),
            "INTER_SESSION_IDLE_MINUTES": "2",  # in case this process is killed
            "INTER_SESSION_OWNER_CHECK_INTERVAL_S": "1",
            "PYTHONPATH": str(ROOT),
        }

    def popen(
        self,
        command: list[str],
        env: dict[str, str],
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        stderr: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts python with these arguments; its standard error goes to `stderr.log`."""
        # The signal that resets a wire is blocked from the start, so that an early one waits.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        try:
            # A session of its own: Ctrl-C reaches this process alone, which then ends the others in order.
            return subprocess.Popen(
                [sys.executable, *command],
                env=env,
                cwd=self.base / "work",
                start_new_session=True,
                stdin=stdin,
                stdout=stdout,
                stderr=self._errors.fileno() if stderr is None else stderr,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def start_owner(self) -> subprocess.Popen[bytes]:
        """Starts a process that ends with this one, which holds its standard input."""
        return subprocess.Popen(
            [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Runs `bin/<script>` to its end."""
        return subprocess.run(
            [sys.executable, str(ROOT / "bin" / script), *arguments],
            env=self.env(),
            cwd=self.base / "work",
            capture_output=True,
            timeout=END_S,
        )

    def end(self, process: subprocess.Popen[bytes] | None) -> None:
        """Terminates a process, waits for its end, and closes its pipes."""
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.failures.append(f"still there {END_S:g} s after SIGTERM: {process.args!r}")
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    # --- the broker

    def broker(self) -> psutil.Process | None:
        """Returns the running broker of this run. (A pid written inside the container is another process here.)"""
        try:
            pid = int((self.data_dir / f"server.{self.setup.port}.pid").read_text())
        except (OSError, ValueError):
            return None
        if self._is_broker(pid):
            return psutil.Process(pid)
        return next((process for process in psutil.process_iter() if self._is_broker(process.pid)), None)

    def _is_broker(self, pid: int) -> bool:
        try:
            process = psutil.Process(pid)
            return (
                "zmqbus.broker.shell.daemon" in process.cmdline()
                and process.environ().get("INTER_SESSION_DATA_DIR") == str(self.data_dir)
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except (OSError, ValueError, psutil.Error):
            return False

    def hit_broker(self, what: str, seconds: float) -> bool:
        """Kills or stops the broker. Returns False if none is running."""
        broker = self.broker()
        if broker is None:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            if what == "kill":
                self.note("kill", "broker", broker.pid)
                broker.kill()
            else:
                self.note("stop", "broker", broker.pid, f"for {seconds:.1f} s")
                broker.suspend()
                self.later(seconds, lambda: _go_on(broker))
        return True

    # --- the end

    def close(self) -> None:
        """Ends the broker, and reports processes left over and errors printed."""
        if (broker := self.broker()) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                _go_on(broker)
                broker.terminate()
            self._await_end(broker, END_S, "the broker is still there after SIGTERM")
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("INTER_SESSION_DATA_DIR") == str(self.data_dir):
                    self._await_end(process, LEAVE_S, "left running")
        self.selector.close()
        self._errors.close()
        for path in (self.base / "stderr.log", self.data_dir / "broker.log"):
            if path.exists() and "Traceback" in (text := path.read_text("utf-8", "replace")):
                self.failures.append(f"{path.name} has a traceback: {text[text.index('Traceback') :][:2000]}")

    def _await_end(self, process: psutil.Process, timeout_s: float, complaint: str) -> None:
        end_s = time.monotonic() + timeout_s
        while not has_ended(process):  # not wait(): init may take seconds to reap an orphan
            if time.monotonic() > end_s:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.failures.append(f"{complaint}: {process.pid} {' '.join(process.cmdline())}")
                    process.kill()
                return
            time.sleep(LOOK_S)


def _go_on(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()
