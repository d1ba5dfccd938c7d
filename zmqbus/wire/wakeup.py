"""Turns signals into a descriptor that a poller can wait for.

ZeroMQ's poll goes on after a signal, and an exception raised by a handler could interrupt a write. So a handler only
records the signal; the interpreter itself writes a byte to a pipe, and the pipe ends the poll.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

#: Signals that end a long-lived process in good order: from a harness or an operator, a terminal, a closing terminal.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def is_ignored(number: signal.Signals) -> bool:
    """Whether this process was started with the signal ignored, to outlive it; SIGTERM never counts."""
    return number != signal.SIGTERM and signal.getsignal(number) is signal.SIG_IGN


class Wakeup:
    """A context in which `ENDING` signals make `fd` readable, and `caught` says which one came. Main thread only.

    A signal that is ignored when the context is entered stays ignored: `nohup` or a shell has asked for that, for a
    process in the background. SIGTERM is the exception: otherwise only SIGKILL would end the process.
    """

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self.fd = -1

    def __repr__(self) -> str:
        return f"<Wakeup fd={self.fd} caught={self.caught!r}>"

    def __enter__(self) -> Wakeup:
        self.fd, self._writer = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._writer, False)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # guards: signals: ignored signals stay ignored [if not is_ignored(number) =>]
        self._handlers: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._note) for number in ENDING if not is_ignored(number)
        }
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = signal.Signals(number)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        os.close(self._writer)
        os.close(self.fd)
