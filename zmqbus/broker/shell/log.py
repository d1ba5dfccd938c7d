"""broker.log: what the broker has to say to whoever looks into it later.

A line each, with time, pid and level; what peers chose (names, targets) is made safe to show in it. The file is the
user's own (0600); one that has its size becomes `broker.log.1` before the next line, and the one that was that, `.2`. A
line that cannot be written is lost, and only that: a disk without room must not keep the broker from serving.

The standard library's `logging` would do it, and with its handlers take 1.4 MB of the broker's memory for it.
"""

from __future__ import annotations

import os
import sys
import time

from zmqbus.errors import ZmqbusError
from zmqbus.security.private_files import open_private
from zmqbus.text.display import sanitise

#: A file of this size is rotated, and this many old ones are kept.
LOG_BYTES = 1024 * 1024
LOGS_KEPT = 2


class Log:
    """For one thread."""

    def __init__(self, path: str, *, echo: bool = False) -> None:
        """Opens or makes the file. `echo`: each line goes to standard error as well.

        Raises `Unauthorized` for a file that others could read, or that is a link. One that cannot be opened for
        another reason is named on standard error, and tried again with the next line."""
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
        """What is as it should be."""
        self._say("INFO", text)

    def warning(self, text: str) -> None:
        """What the broker does not depend on, and does not work."""
        self._say("WARNING", text)

    def error(self, text: str) -> None:
        """What somebody should look at."""
        self._say("ERROR", text)

    def close(self) -> None:
        """Idempotent; a line that comes after it opens the file again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _say(self, level: str, text: str) -> None:
        now_s = time.time()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now_s))
        # Half a character, of a path that is not UTF-8, is shown as an escape before what is unsafe is taken out.
        shown = sanitise(text.encode(errors="backslashreplace").decode())
        line = f"{stamp},{int(now_s % 1 * 1000):03} {os.getpid()} {level} {shown}\n"
        if self._echo:
            try:
                sys.stderr.write(line)
                sys.stderr.flush()
            except (OSError, ValueError):
                pass  # whoever looked on has gone
        content = line.encode()
        try:
            if self._descriptor < 0:
                self._open()
            if os.fstat(self._descriptor).st_size + len(content) > LOG_BYTES:
                self._rotate()
            os.write(self._descriptor, content)
        except (OSError, ZmqbusError):
            pass  # see above

    def _open(self) -> None:
        self._descriptor = open_private(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def _rotate(self) -> None:
        self.close()
        names = [self._path, *(f"{self._path}.{number}" for number in range(1, LOGS_KEPT + 1))]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            if os.path.lexists(newer):
                os.replace(newer, older)
        self._open()
