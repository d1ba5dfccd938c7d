"""broker.log: the log of the broker's own events.

Each line has time, pid and level; text from peers (names, targets) is sanitised. The file is private (0600). A file
that has reached `LOG_BYTES` becomes `broker.log.1` before the next line, and the previous one `.2`. A line that cannot
be written is lost, and only that: a full disk must not keep the broker from serving.

The standard library's `logging` with its handlers would take 1.4 MB of the broker's memory.
"""

from __future__ import annotations

import os
import sys
import time

from zmqbus.errors import ZmqbusError
from zmqbus.security.private_files import open_private
from zmqbus.text.display import sanitise

#: Size at which the file is rotated, and number of old files that are kept.
LOG_BYTES = 1024 * 1024
LOGS_KEPT = 2


class Log:
    """Writer of broker.log, for one thread."""

    def __init__(self, path: str, *, echo: bool = False) -> None:
        """Opens or creates the file. With `echo`, each line goes to standard error as well.

        Raises `Unauthorized` for a file that others can read, or that is a link. If it cannot be opened for another
        reason, warns on standard error and tries again with the next line.
        """
        self._path = path
        self._echo = echo
        self._descriptor = -1
        try:
            self._open()
        except OSError as error:
            print(f"warning: no broker.log: {error}", file=sys.stderr)

    def __repr__(self) -> str:
        return f"<Log {self._path}{'' if self._descriptor >= 0 else ', closed'}>"

    def info(self, text: str) -> None:
        """Logs normal operation."""
        self._say("INFO", text)

    def warning(self, text: str) -> None:
        """Logs the failure of something that the broker does not depend on."""
        self._say("WARNING", text)

    def error(self, text: str) -> None:
        """Logs a failure that needs attention."""
        self._say("ERROR", text)

    def close(self) -> None:
        """Closes the file. Idempotent; the next line opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _say(self, level: str, text: str) -> None:
        now_s = time.time()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now_s))
        # A path that is not UTF-8 has lone surrogates: show them as escapes.
        shown = sanitise(text.encode(errors="backslashreplace").decode())
        line = f"{stamp},{int(now_s % 1 * 1000):03} {os.getpid()} {level} {shown}\n"
        if self._echo:
            try:
                sys.stderr.write(line)
                sys.stderr.flush()
            except (OSError, ValueError):
                pass  # standard error is closed
        content = line.encode()
        try:
            if self._descriptor < 0:
                self._open()
            if os.fstat(self._descriptor).st_size + len(content) > LOG_BYTES:
                self._rotate()
            os.write(self._descriptor, content)
        except (OSError, ZmqbusError):
            pass  # the line is lost

    def _open(self) -> None:
        self._descriptor = open_private(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def _rotate(self) -> None:
        self.close()
        names = [self._path, *(f"{self._path}.{number}" for number in range(1, LOGS_KEPT + 1))]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            if os.path.lexists(newer):
                os.replace(newer, older)
        self._open()
