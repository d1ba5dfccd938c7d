"""Follows the message log while a page is open, and publishes new messages to the pages.

Theory of operation
===================

Following the log costs the broker nothing but processor time, and that is bounded. Every `POLL_S` one poll (two system
calls) looks for new messages and publishes them as one event. When messages arrive faster than anybody can read, a poll
reads only the newest `MAX_ENTRIES`, marks the event with a gap, and the next poll waits for `BUSY_POLL_S`: at 50,000
messages a second the console reads some 400 of them. A page fetches the messages of a gap like any page of the history.

`follow` is called before the first read of the history, so no message is missed between the two. The page drops
messages that it gets from both by their place in the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from zmqbus.console.background import BackgroundTask
from zmqbus.console.views import of_entry
from zmqbus.errors import ZmqbusError
from zmqbus.journal.filter import Entry
from zmqbus.journal.history import History
from zmqbus.journal.tail import Follower

#: Between two polls. A message has to reach the page within 100 ms; 25 polls take 1 ms of each second.
POLL_S = 0.04
#: After a poll that left messages out.
BUSY_POLL_S = 0.25
#: Messages of one poll: a page has room for 40.
MAX_ENTRIES = 100
#: When the log has grown by more than this since the last poll, read only its end. 100 messages are a tenth of it.
JUMP_BYTES = 256 * 1024
#: Pause after a failure (a disk that does not answer, a file that others can read).
RETRY_S = 2.0


class LogTail(BackgroundTask):
    """Follows the log in a thread of its own."""

    def __init__(self, log_path: str, publish: Callable[[str, Any], None]) -> None:
        """`publish(event, data)` sends an event to all pages."""
        super().__init__("console log tail")
        self._path = log_path
        self._publish = publish
        self._history = History(log_path)
        self._follower: Follower | None = None  # guarded by the condition's lock

    def follow(self) -> None:
        """Follows the log from its present end on, while a page is open. Raises why the log cannot be read."""
        with self._changed:
            if self._follower is None and not self._closed:
                self._follower = Follower(self._path, self._history.end())
            self._changed.notify_all()

    def _has_work(self) -> bool:
        return self._pages > 0 and self._follower is not None

    def _must_hurry(self) -> bool:
        return not self._pages  # more pages do not shorten the pause after a failure

    def _release(self) -> None:
        with self._changed:
            follower, self._follower = self._follower, None
        if follower is not None:
            follower.close()

    def _work(self) -> float:
        with self._changed:
            follower = self._follower
        if follower is None:
            return POLL_S
        try:
            gap, entries = self._poll(follower)
        except ZmqbusError as error:
            self._publish("trouble", {"text": f"the log cannot be read: {error}"})
            return RETRY_S
        if entries:
            self._publish("messages", {"items": [of_entry(entry) for entry in entries], "gap": gap})
        return BUSY_POLL_S if gap or len(entries) >= MAX_ENTRIES else POLL_S

    def _poll(self, follower: Follower) -> tuple[bool, list[Entry]]:
        """Reads new messages, oldest first; the flag says whether older new ones were left out."""
        if not self._is_far_behind(follower):
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

    def _is_far_behind(self, follower: Follower) -> bool:
        # A log that was rotated seems to have shrunk; `Follower.poll` handles it.
        try:
            return os.stat(self._path).st_size - follower.place.offset > JUMP_BYTES
        except OSError:
            return False
