"""The monitors of `claude.py`: a command whose lines become notifications, within the limits of the client.

Each has a thread that reads it. What a limit takes away is told with the rest, so that a test can demand that there was
nothing.
"""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

#: Of a line, and of the lines of one notification, so many UTF-16 units are shown.
LINE_CHARS = 500
NOTIFICATION_CHARS = 3000
#: Notifications in hand at the beginning, and at most.
BUDGET = 10
CHUNK_BYTES = 64 * 1024

#: JSON objects: what is told, what an order is answered with.
Fields = dict[str, Any]
Tell = Callable[[Fields], None]


class Config(NamedTuple):
    """What a session is started with. The times are those of the client; only tests of the harness shorten them."""

    plugin_root: str
    plugin_data: str
    project_dir: str
    scratch: str  #: a directory for files that are the client's own
    options: Mapping[str, str | int | float | bool] = {}  #: those that the user has set
    join_s: float = 0.2  #: lines that come within this time are one notification
    refill_s: float = 2.0  #: one more notification
    flood_s: float = 30.0  #: a monitor that is over its budget for so long is stopped


class Budget:
    """How many notifications a monitor has in hand."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._full_s = 0.0  # when it will be full again
        self._over_since_s: float | None = None

    def take(self, now_s: float) -> bool:
        """Whether one may be shown now."""
        allowed = self._has_one(now_s)
        if allowed:
            self._full_s = max(now_s, self._full_s) + self._config.refill_s
        # One that gets through in the middle of a flood does not end it: there has to be something left after it.
        if self._has_one(now_s):
            self._over_since_s = None
        elif not allowed and self._over_since_s is None:
            self._over_since_s = now_s
        return allowed

    def flooded(self, now_s: float) -> bool:
        """Whether it has been over its budget for too long."""
        return self._over_since_s is not None and now_s - self._over_since_s >= self._config.flood_s

    def _has_one(self, now_s: float) -> bool:
        return self._full_s - now_s <= (BUDGET - 1) * self._config.refill_s


class Monitor:
    """A command whose lines become notifications, and the thread that reads them."""

    def __init__(
        self, name: str, command: str, env: dict[str, str], config: Config, tell: Tell, timeout_s: float | None
    ) -> None:
        self.name = name
        self._config = config
        self._tell = tell
        self._budget = Budget(config)
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._partial = b""  # of a line
        self._lines: list[str] = []  # of a notification that is open
        self._closes_s: float | None = None  # when it will be closed
        self._wake, self._waker = os.pipe()
        self._process = subprocess.Popen(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=env,
            cwd=config.project_dir,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self._stdout = self._process.stdout.fileno()
        self._thread = threading.Thread(target=self._serve, name=name)
        self._thread.start()

    def stop(self) -> None:
        """Kills it if it still runs, and waits until that has been told."""
        if self._waker >= 0:
            os.write(self._waker, b"x")
            self._thread.join()
            os.close(self._wake)
            os.close(self._waker)
            self._waker = -1

    def _serve(self) -> None:
        while (why := self._turn()) is None:
            pass
        # Only the shell is killed. What it has started lives on, with a pipe that has no reader.
        if why != "exit":
            self._process.kill()
        status = self._process.wait()
        while select.select([self._stdout], [], [], 0)[0] and self._read():
            pass
        assert self._process.stdout is not None
        self._process.stdout.close()
        if self._partial:
            self._line(self._partial)
        self._notify()
        self._tell({"event": "ended", "monitor": self.name, "why": why, "status": status, "pid": self.pid})

    def _turn(self) -> str | None:
        """Waits for what happens next, and deals with it; returns why the monitor ends, if it does."""
        now_s = time.monotonic()
        times = [at_s for at_s in (self._deadline_s, self._closes_s) if at_s is not None]
        ready, _, _ = select.select([self._stdout, self._wake], [], [], max(0.0, min(times) - now_s) if times else None)
        now_s = time.monotonic()
        if self._wake in ready:
            return "stopped"
        if self._closes_s is not None and now_s >= self._closes_s:
            self._notify()
            if self._budget.flooded(now_s):
                return "flood"
        if self._deadline_s is not None and now_s >= self._deadline_s:
            return "deadline"
        return "exit" if self._stdout in ready and not self._read() else None

    def _read(self) -> bool:
        """Takes what is there to be read; False at the end of the file."""
        chunk = os.read(self._stdout, CHUNK_BYTES)
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in lines:
            self._line(line)
        return chunk != b""

    def _line(self, line: bytes) -> None:
        self._lines.append(line.decode("utf-8", "replace"))
        if self._closes_s is None:
            self._closes_s = time.monotonic() + self._config.join_s

    def _notify(self) -> None:
        if not self._lines:
            return
        shown = "\n".join(beginning(line, LINE_CHARS) for line in self._lines)
        text = beginning(shown, NOTIFICATION_CHARS)
        suppressed = not self._budget.take(time.monotonic())
        self._tell(
            {
                "event": "notification",
                "monitor": self.name,
                "text": "" if suppressed else text,
                "suppressed": self._lines if suppressed else [],
                "cut": sum(map(len, self._lines)) + len(self._lines) - 1 - len(text),
            }
        )
        self._lines, self._closes_s = [], None


def beginning(text: str, limit: int) -> str:
    """As much of `text` as `limit` UTF-16 units hold."""
    return text.encode("utf-16-le", "surrogatepass")[: 2 * limit].decode("utf-16-le", "ignore")
