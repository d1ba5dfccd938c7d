"""Monitors of the played client: commands whose lines become notifications, within the client's limits.

Each monitor has a thread that reads its output. Output that a limit removes is reported as well, so that a test can
demand that there was none.
"""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

#: The limits of a line and of a notification, in UTF-16 units.
LINE_CHARS = 500
NOTIFICATION_CHARS = 3000
#: The budget of notifications, full at the start.
BUDGET = 10
CHUNK_BYTES = 64 * 1024

#: JSON objects: events, and answers to orders.
Fields = dict[str, Any]
Tell = Callable[[Fields], None]


class Config(NamedTuple):
    """The parameters of a session. The times are the client's; only tests of the harness shorten them."""

    plugin_root: str
    plugin_data: str
    project_dir: str
    scratch: str  #: a directory for the client's own files
    options: Mapping[str, str | int | float | bool] = {}  #: plugin options set by the user
    join_s: float = 0.2  #: lines within this time are one notification
    refill_s: float = 2.0  #: the time after which the budget grows by one
    flood_s: float = 30.0  #: a monitor over its budget for so long is stopped


class Budget:
    """The notification budget of a monitor."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._full_s = 0.0  # when the budget will be full again
        self._over_since_s: float | None = None

    def take(self, now_s: float) -> bool:
        """Takes one notification from the budget; returns False if it is used up."""
        allowed = self._has_one(now_s)
        if allowed:
            self._full_s = max(now_s, self._full_s) + self._config.refill_s
        # A notification that gets through during a flood does not end it: some budget has to be left after it.
        if self._has_one(now_s):
            self._over_since_s = None
        elif not allowed and self._over_since_s is None:
            self._over_since_s = now_s
        return allowed

    def flooded(self, now_s: float) -> bool:
        """Whether the monitor has been over its budget for too long."""
        return self._over_since_s is not None and now_s - self._over_since_s >= self._config.flood_s

    def _has_one(self, now_s: float) -> bool:
        return self._full_s - now_s <= (BUDGET - 1) * self._config.refill_s


class Monitor:
    """A command whose lines become notifications, and its reading thread."""

    def __init__(
        self, name: str, command: str, env: dict[str, str], config: Config, tell: Tell, timeout_s: float | None
    ) -> None:
        self.name = name
        self._config = config
        self._tell = tell
        self._budget = Budget(config)
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._partial = b""  # the beginning of a line
        self._lines: list[str] = []  # the lines of the open notification
        self._closes_s: float | None = None  # when the open notification will be closed
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
        """Kills the command if it still runs, and waits until that was reported."""
        if self._waker >= 0:
            os.write(self._waker, b"x")
            self._thread.join()
            os.close(self._wake)
            os.close(self._waker)
            self._waker = -1

    def _serve(self) -> None:
        while (why := self._turn()) is None:
            pass
        # Only the shell is killed. Its children live on, with a pipe without a reader.
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
        """Waits for the next event and handles it; returns the reason if the monitor ends."""
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
        """Reads available output; returns False at the end of the file."""
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
    """Returns as much of `text` as fits `limit` UTF-16 units."""
    return text.encode("utf-16-le", "surrogatepass")[: 2 * limit].decode("utf-16-le", "ignore")
