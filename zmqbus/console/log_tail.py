"""The messages, as they come: the log is followed as long as a page is open, and told to the pages.

Theory of operation
===================

The follower reads the log, so it costs the broker nothing but the processor's time; and that is bounded here. The log
is looked at every `LOOK_S`, two system calls. What has come goes to the pages as one event. Where more comes than
anybody could read, only the newest `MAX_ENTRIES` of each look are read at all, the event says that there is a gap, and
the next look waits for `BUSY_LOOK_S`: at 50,000 messages a second the console reads some 400 of them. The page can
fetch what is in a gap like any other page of the history.

`attend` comes before the page's first look at the history: so nothing falls between the two. What is in both, the page
knows by its place.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from zmqbus.console.views import of_entry
from zmqbus.errors import ZmqbusError
from zmqbus.journal.history import Entry, Follower, History

#: Between two looks at the log. With the way to the page it has to stay under 100 ms; 25 looks are 1 ms of a second.
LOOK_S = 0.04
#: After a look that found more than it took.
BUSY_LOOK_S = 0.25
#: Messages that one look takes: a page has room for 40.
MAX_ENTRIES = 100
#: The log has grown by more than this since the last look: that is not read, but jumped over. 100 messages are a tenth.
JUMP_BYTES = 256 * 1024
#: After a failure (a disk that does not answer, a file that others can read), tried again.
RETRY_S = 2.0


class Flow:
    """Follows the log, in a thread of its own."""

    def __init__(self, log_path: str, publish: Callable[[str, Any], None]) -> None:
        self._path = log_path
        self._publish = publish
        self._history = History(log_path)
        self._changed = threading.Condition()
        # These belong to the condition's lock.
        self._pages = 0
        self._follower: Follower | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="console flow")

    def start(self) -> None:
        """Begins; nothing is read before a page attends."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread. Idempotent."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def attend(self) -> None:
        """From now on nothing is missed, as long as a page is open. Raises what the log cannot be read for."""
        with self._changed:
            if self._follower is None and not self._ended:
                self._follower = Follower(self._path, self._history.end())
            self._changed.notify_all()

    def watched_by(self, pages: int) -> None:
        """So many pages are open; with none, the log is left alone."""
        with self._changed:
            self._pages = pages
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or (self._pages > 0 and self._follower is not None))
                if self._ended:
                    self._leave()
                    return
            wait_s = self._turn()
            with self._changed:
                # Not woken by more pages: those who wait for the log wait for time to pass.
                self._changed.wait_for(lambda: self._ended or not self._pages, wait_s)
                if not self._pages:
                    self._leave()

    def _leave(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None

    def _turn(self) -> float:
        """One look at the log; returns how long to wait before the next."""
        with self._changed:
            follower = self._follower
        if follower is None:
            return LOOK_S
        try:
            gap, entries = self._look(follower)
        except ZmqbusError as error:
            self._publish("trouble", {"text": f"the log cannot be read: {error}"})
            return RETRY_S
        if entries:
            self._publish("messages", {"items": [of_entry(entry) for entry in entries], "gap": gap})
        return BUSY_LOOK_S if gap or len(entries) >= MAX_ENTRIES else LOOK_S

    def _look(self, follower: Follower) -> tuple[bool, list[Entry]]:
        """What has come, the oldest first; and whether something before it was left out."""
        if not self._is_far(follower):
            entries = follower.poll()
            return len(entries) > MAX_ENTRIES, entries[-MAX_ENTRIES:]
        before = follower.place
        page = self._history.page(limit=MAX_ENTRIES)
        entries = [entry for entry in reversed(page.entries) if entry.place >= before]
        if not entries:
            return False, follower.poll()
        follower.close()
        with self._changed:
            self._follower = Follower(self._path, entries[-1].after)
        return len(entries) == MAX_ENTRIES and entries[0].place > before, entries

    def _is_far(self, follower: Follower) -> bool:
        """Whether the log has run away. (A file that was exchanged looks as if it had shrunk: `poll` sees to it.)"""
        try:
            return os.stat(self._path).st_size - follower.place.offset > JUMP_BYTES
        except OSError:
            return False
