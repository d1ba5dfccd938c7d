"""The worker group of a soak run, and visitors from other namespaces. See `crew` for senders and receivers.

A visitor runs in a container that shares the data directory and the network, in another PID namespace, where the pids
of all others mean other processes or none. It joins through its hooks, as an agent's session does, and runs the
commands; none of that may touch files of a process that it cannot see. A hermit has a network namespace of its own: it
learns that no broker can be reached, and starts none.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from tests.real.conftest import ROOT
from tests.soak.schedule import Deed
from tests.soak.stage import Stage

#: Pause before a worker is restarted, s.
PAUSE_S = (0.05, 0.5)
#: The command that makes a container. Only other users than root need a user namespace.
_USERS = () if os.geteuid() == 0 else ("--user", "--map-root-user")
UNSHARE = ("unshare", *_USERS, "--pid", "--fork", "--mount-proc")
UNSHARE_NETWORK = ("unshare", *_USERS, "--net")
#: No agent runs in the container: the parent of the command owns the session.
VISITS = (
    ("hook.py", "SessionStart"),
    ("hook.py", "UserPromptSubmit"),
    ("hook.py", "Stop"),
    ("client.py", "--away", "--name", "visitor"),
    ("zmqbus", "list", "--all"),
    ("zmqbus", "doctor"),
    ("hook.py", "SessionStart"),
)
#: A command without a network reports that within the time in which it would have looked for a broker, s.
HERMIT_S = 30.0


def can_unshare() -> bool:
    """Whether this system allows new namespaces."""
    with contextlib.suppress(OSError):
        return all(not subprocess.run([*how, "true"], capture_output=True).returncode for how in _WAYS)
    return False


_WAYS = (UNSHARE, UNSHARE_NETWORK)


class Worker:
    """A worker of the group (`labour`), restarted as long as the run lasts."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self._stage = stage
        self._lives = 0
        self._start_at_s = 0.0

    def look_after(self, now_s: float) -> None:
        """Restarts the process if it has ended."""
        if self.process is not None and self.process.poll() is not None:
            if self.process.returncode != -signal.SIGKILL:
                self._stage.failures.append(f"the worker {self.name} ended with {self.process.returncode}")
            self.process = None
            self._start_at_s = now_s + self._stage.chance.uniform(*PAUSE_S)
        if self.process is None and now_s >= self._start_at_s:
            self._lives += 1
            notes = self._stage.notes / f"{self.name}.{self._lives}.labour"
            self.process = self._stage.popen(["-m", "tests.soak.labour", "work", str(notes)], self._stage.env())
            self._stage.note("start", self.name, self.process.pid)

    def hit(self, deed: Deed) -> bool:
        """Carries out a deed; see `crew`."""
        if deed.what == "stop":
            return self._stage.stop(self.name, self.process, deed.value)
        return self._stage.kill(self.name, self.process)

    def close(self) -> None:
        """Kills it: it may hold its interpreter."""
        if self.process is not None:
            self.process.kill()
            self._stage.end(self.process)


class Requester:
    """The process that sends requests to the group (`labour`), for the whole run."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.name = name
        self._stage = stage
        command = ["-m", "tests.soak.labour", "ask", str(stage.notes / f"{name}.labour"), str(stage.setup.seed)]
        self.process = stage.popen(command, stage.env(), stdin=subprocess.PIPE)
        self.ended = False

    def look_after(self, now_s: float) -> None:
        """Reports a failure if it has ended."""
        if not self.ended and self.process.poll() is not None:
            self.ended = True
            if self.process.returncode or not self._stage.calm:
                self._stage.failures.append(f"the requester {self.name} ended with {self.process.returncode}")

    def hit(self, deed: Deed) -> bool:
        """Carries out a deed; "hold" makes the worker of one of the next requests hold its interpreter."""
        if deed.what == "stop":
            return self._stage.stop(self.name, self.process, deed.value)
        assert self.process.stdin is not None
        self._stage.note("hold", self.name, self.process.pid, f"for {deed.value:.1f} s")
        with contextlib.suppress(OSError):
            self.process.stdin.write(f"hold {deed.value:.3f}\n".encode())
            self.process.stdin.flush()
        return True

    def rest(self) -> None:
        """Lets it wait for its last answers, and end."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def close(self) -> None:
        """Ends the process."""
        if not self.ended:
            self.process.kill()
        self._stage.end(self.process)


class Visitors:
    """A container, and the commands run in it, one after the other."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._number = 0
        self._visit: subprocess.Popen[bytes] | None = None
        self._hermit: subprocess.Popen[bytes] | None = None
        self._hermit_until_s = 0.0
        # It ends with this process, which holds its standard input.
        self._container = subprocess.Popen(
            [*UNSHARE, sys.executable, "-S", "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def idle(self) -> bool:
        """Whether no command is running."""
        return self._visit is None and self._hermit is None

    def look_after(self, now_s: float) -> None:
        """Checks the result of a visit that has ended."""
        if self._visit is not None and self._visit.poll() is not None:
            _, err = self._visit.communicate()
            if b"Traceback" in err:
                self._stage.failures.append(f"visit {self._number}: {err.decode(errors='replace')[-800:]}")
            self._visit = None
        if self._hermit is not None:
            if self._hermit.poll() is not None:
                out, err = self._hermit.communicate()
                if self._hermit.returncode != 1 or not err.startswith(b"error: "):
                    self._stage.failures.append(f"send without a network: {self._hermit.returncode} {out!r} {err!r}")
                self._hermit = None
            elif now_s > self._hermit_until_s:
                self._stage.failures.append(f"send without a network says nothing within {HERMIT_S:g} s")
                self._hermit.kill()
                self._hermit_until_s = float("inf")

    def hit(self, deed: Deed) -> bool:
        """Carries out a deed; see `crew`."""
        return self._seclude() if deed.what == "seclude" else self._go(deed)

    def close(self) -> None:
        """Ends the container, and with it everything started in it."""
        for process in (self._visit, self._hermit):
            self._stage.end(process)
        assert self._container.stdin is not None
        self._container.stdin.close()
        self._container.wait()

    def _go(self, deed: Deed) -> bool:
        inside = self._inside()
        if self._visit is not None or inside is None:
            return False
        script, *arguments = VISITS[self._number % len(VISITS)]
        self._number += 1
        enter = ["nsenter", f"--target={inside}", "--pid", "--mount"]
        if _USERS:
            enter += ["--user", "--preserve-credentials"]
        self._visit = self._popen([*enter, sys.executable, str(ROOT / "bin" / script), *arguments])
        self._stage.note("visit", "container", self._visit.pid, f"{script} {' '.join(arguments)}")
        if script == "hook.py":
            assert self._visit.stdin is not None
            event = {"hook_event_name": arguments[0], "session_id": "visitor", "cwd": str(self._stage.base / "work")}
            with contextlib.suppress(OSError):
                self._visit.stdin.write(json.dumps(event).encode())
        assert self._visit.stdin is not None
        self._visit.stdin.close()
        self._visit.stdin = None
        return True

    def _seclude(self) -> bool:
        if self._hermit is not None:
            return False
        send = [sys.executable, str(ROOT / "bin" / "send.py"), "--as", "hermit", "--to", "r1", "--text", "nobody hears"]
        self._hermit = self._popen([*UNSHARE_NETWORK, *send])
        self._hermit_until_s = time.monotonic() + HERMIT_S
        self._stage.note("seclude", "hermit", self._hermit.pid)
        return True

    def _inside(self) -> int | None:
        """The process that keeps the container alive."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._container.pid).children():
                return int(child.pid)
        return None

    def _popen(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        env = self._stage.env()
        del env["INTER_SESSION_PPID_OVERRIDE"]
        return subprocess.Popen(
            command,
            env=env,
            cwd=self._stage.base / "work",
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
