"""A program in a terminal of its own: types, reads the screen, and ends every process that it has started."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from pathlib import Path

import psutil
import pyte

COLUMNS, LINES = 160, 50
#: How long a program that is told to end, or killed, may take, s.
END_TIMEOUT_S = 20.0
#: Keyboard protocols that pyte does not know, and would print.
UNKNOWN = re.compile(rb"\x1b\[[<>=?][0-9;]*[uqm]")


class Terminal:
    """Runs `command` until it ends or `close` is called."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path) -> None:
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.log = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(self._master, 65_536):
                with self._lock:
                    self.log += chunk
                    # A screen that cannot be drawn whole is still worth reading.
                    with contextlib.suppress(Exception):
                        self._stream.feed(UNKNOWN.sub(b"", chunk))

    @property
    def screen(self) -> str:
        """What a user would see now, without blank lines."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display if line.strip())

    def write(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def close(self) -> None:
        """Ends the program and all its descendants, by pid."""
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(self.process.pid).children(recursive=True)
            self._end(family)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(END_TIMEOUT_S)
        self._thread.join(END_TIMEOUT_S)
        with contextlib.suppress(OSError):
            os.close(self._master)

    def _end(self, family: list[psutil.Process]) -> None:
        for one in family:
            with contextlib.suppress(psutil.Error):
                one.kill()
        psutil.wait_procs(family, timeout=END_TIMEOUT_S)


def _take_terminal() -> None:
    """Makes standard input the controlling terminal of the new session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
