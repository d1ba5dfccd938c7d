"""The file of a session's waiter: which process waits, when it last woke the agent, and what it showed then.

Theory of operation
===================

The waiter (`zmqbus.agents.waiter`) shows mail by ending, and cannot know whether the agent saw it: the agent may die
first. So what it has shown stays unread, and its ids are noted here. They are marked as read when the agent is known to
have gone on: the next hook of the session, its next listener, or its next `zmqbus inbox` does that. If the agent dies
before, the messages are still in the mailbox, and the next session of that name is shown them.

`clients/<owner pid>.wake` (`zmqbus.session.owner_files` has the rule for names) holds a JSON record. It is read and
changed in place under an exclusive lock. Whoever shows mail without a listener, the waiter or a hook, holds that lock
from its last look at what was shown until it has noted what it shows: no message is shown by both. A waiter that has
begun to show keeps the lock until it ends, so the next waiter, which has to take the lock before it ends the one
before it, never interrupts that.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from zmqbus.errors import NotConnected, Unauthorized
from zmqbus.process import Process, has_ended, process_of
from zmqbus.security.private_files import file_error, load_json, open_file, parse_json, try_lock
from zmqbus.session.owner_files import WAKE, OwnerFiles, is_own, record_of

if TYPE_CHECKING:
    from zmqbus.session.shown_log import Shown

#: Seconds between two wakes of an agent.
WAKE_PAUSE_S = 5.0
#: 200 ids of twelve characters, two processes. A larger file was not written by zmqbus.
MAX_BYTES = 64 * 1024
#: The lock is held while some lines are written. A process that holds it this long was stopped in the middle.
PATIENCE_S = 2.0
#: Pause between two tries for the lock, in seconds.
RETRY_S = 0.002
#: What was shown later than so long before a hook began, in seconds, may be unknown to the agent at the hook's event.
MARGIN_S = 0.2


class WakeFile:
    """The record of one session's waiter, locked. A context manager."""

    def __init__(self, files: OwnerFiles, patience_s: float = PATIENCE_S) -> None:
        """Opens and locks the file. Raises `Unauthorized` where others could have written it, `NotConnected` where it
        cannot be made, or stays locked for `patience_s`."""
        self._files = files
        path = files.path(WAKE)
        self._fd = open_file(path, os.O_RDWR | os.O_CREAT)
        deadline_s = time.monotonic() + patience_s
        try:
            while not try_lock(self._fd, path, fcntl.LOCK_EX):
                if time.monotonic() >= deadline_s:
                    raise NotConnected(f"{path} stays locked; find the process that holds it: fuser {path}")
                time.sleep(RETRY_S)
            record = parse_json(os.pread(self._fd, MAX_BYTES, 0))
        except BaseException:
            os.close(self._fd)
            raise
        self._record: dict[str, Any] = record if is_own(record, files) else {}

    def __repr__(self) -> str:
        return f"<WakeFile of owner {self._files.owner.pid}: {self._record}>"

    def __enter__(self) -> WakeFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        os.close(self._fd)

    @property
    def woke_s(self) -> float:
        """When the agent was last woken, in seconds since 1970; 0.0: never."""
        woke_s = self._record.get("woke")
        return float(woke_s) if isinstance(woke_s, (int, float)) else 0.0

    @property
    def shown(self) -> tuple[str, ...]:
        """The ids of the messages that the last waiter has shown, and that are not marked as read."""
        shown = self._record.get("shown")
        return tuple(one for one in shown if isinstance(one, str)) if isinstance(shown, list) else ()

    def take_over(self) -> None:
        """Makes this process the session's waiter, and ends the one before it."""
        before = Process.parse(self._record.get("waiter"))
        self._write(waiter=process_of(os.getpid()).text)
        # guards: waiter: one a session [on]
        if before is not None and before.pid != os.getpid():
            _end(before)

    def is_mine(self) -> bool:
        """Whether this process is the session's waiter."""
        waiter = Process.parse(self._record.get("waiter"))
        return waiter is not None and waiter.is_same(process_of(os.getpid()))

    def note_woken(self, msg_ids: Sequence[str]) -> None:
        """Stores that the agent is woken now, and what it is shown; nothing where a hook marks that as read itself."""
        self._write(woke=round(time.time(), 3), shown=[*self.shown, *msg_ids])

    def take_shown(self, shown: Shown, began_s: float | None = None) -> tuple[str, ...]:
        """Marks what the last waiter has shown as shown for good, and returns the ids.

        `began_s`: when the hook began that proves that the agent knows of it, in seconds since 1970; None: it is
        certain. Nothing is returned where that was too early.
        """
        msg_ids = self.shown
        # guards: waiter [off]
        if not msg_ids or (began_s is not None and began_s - MARGIN_S < self.woke_s):
            return ()
        shown.add_all(msg_ids)
        self._write(shown=[])
        return msg_ids

    def forget_shown(self) -> None:
        """Lets what the last waiter has shown be shown again: the agent may never have seen it."""
        if self.shown:
            self._write(shown=[])

    def _write(self, **changes: object) -> None:
        """Raises `NotConnected` where the disk does not take it."""
        self._record = {**self._record, **changes, **record_of(self._files.owner)}
        data = json.dumps(self._record).encode()
        try:
            written = os.pwrite(self._fd, data, 0)
            os.ftruncate(self._fd, written)
        except OSError as error:
            raise file_error("write", self._files.path(WAKE), error) from error


def has_waiter(files: OwnerFiles) -> bool:
    """Whether a waiter of this session runs, waits for mail, and has shown nothing that is not marked as read.

    Looks at the file without the lock. A file that cannot be used is the doctor's business, and names no waiter.
    """
    try:
        record = load_json(files.path(WAKE), MAX_BYTES)
    except (Unauthorized, NotConnected):
        return False
    if not is_own(record, files) or record.get("shown"):
        return False
    # Until then it sleeps, and a prompt shows the mail sooner.
    woke_s = record.get("woke", 0.0)
    waits = isinstance(woke_s, (int, float)) and time.time() - woke_s > WAKE_PAUSE_S
    waiter = Process.parse(record.get("waiter"))
    return waits and waiter is not None and not has_ended(waiter)


def take_shown(files: OwnerFiles, shown: Shown, began_s: float | None = None) -> tuple[str, ...]:
    """As `WakeFile.take_shown`; nothing where the session never had a waiter, or its file cannot be used."""
    if not os.path.exists(files.path(WAKE)):
        return ()
    with contextlib.suppress(NotConnected, Unauthorized), WakeFile(files) as wake:
        return wake.take_shown(shown, began_s)
    return ()


def _end(process: Process) -> None:
    """Ends this very process, if it lives here; never another one that has got its pid."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except AttributeError:  # not Linux
        descriptor = -1
    except OSError:
        return
    try:
        if not process_of(process.pid).is_same(process) or has_ended(process):
            return
        if descriptor >= 0:
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        else:
            os.kill(process.pid, signal.SIGTERM)
    except OSError:
        return
    finally:
        if descriptor >= 0:
            os.close(descriptor)
