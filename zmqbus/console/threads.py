"""Message threads: a message, the messages that it answers, and the answers to it.

A record names the message that it answers; the log has no index from a message to its answers. So the first request for
a thread scans the log once for answers (other lines are skipped after their first bytes: 100,000 of them take some
0.1 s), and later requests scan only what was appended since.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from typing import Any

from zmqbus.console.views import of_entry, of_record
from zmqbus.journal import reader
from zmqbus.journal.history import History
from zmqbus.journal.lines import lines_forward
from zmqbus.journal.record import JournalError, decode_head
from zmqbus.journal.segments import Place, numbered_segments, open_if_there, read_meta, serial_of

#: Answers kept in the index, the newest: 100 bytes each.
MAX_ANSWERS = 500_000
#: Messages shown of one thread.
MAX_SHOWN = 300
#: Messages followed back to a thread's first one.
MAX_ANCESTORS = 100
#: Bytes of a record before its `reply_to`; names and labels are the longest fields there.
HEAD_BYTES = 4096
_ANSWERS = re.compile(rb'"reply_to":"(?=[^"]{1,60}")')


class ThreadIndex:
    """Finds the thread of a message. Thread-safe."""

    def __init__(self, log_path: str) -> None:
        self._path = log_path
        self._lock = threading.Lock()
        # Message id → places of its answers, oldest first.
        self._answers: OrderedDict[str, list[Place]] = OrderedDict()
        self._count = 0
        self._next = Place(0, 0)  # where the next scan starts

    def __len__(self) -> int:
        """Number of answers in the index."""
        return self._count

    def thread(self, msg_id: str) -> list[dict[str, Any]]:
        """Returns the messages of a message's thread in order, each with its `depth` below the first.

        Empty when there is no such message. Raises `JournalError`, `Unauthorized`.
        """
        with self._lock:
            self._catch_up()
            first = self._root(msg_id)
            if first is None:
                return []
            return self._below(first)

    def _below(self, first: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns a thread's first message and its answers, depth first, so that answers follow their message."""
        history = History(self._path)
        shown = [{**first, "depth": 0}]
        seen = {first["id"]}  # ends circles of answers
        todo = [(place, 1) for place in reversed(self._answers.get(first["id"], []))]
        while todo and len(shown) < MAX_SHOWN:
            place, depth = todo.pop()
            for entry in history.at([place]):
                if entry.msg_id not in seen:
                    seen.add(entry.msg_id)
                    shown.append({**of_entry(entry), "depth": depth})
                    todo += [(child, depth + 1) for child in reversed(self._answers.get(entry.msg_id, []))]
        return shown

    def _root(self, msg_id: str) -> dict[str, Any] | None:
        """Returns the first message of the thread, or the earliest one still in the log."""
        found: dict[str, Any] | None = None
        seen: set[str] = set()
        wanted: str | None = msg_id
        while wanted and wanted not in seen and len(seen) < MAX_ANCESTORS:
            seen.add(wanted)
            record = reader.find(self._path, wanted)
            if record is None:
                break
            found, wanted = of_record(record)[0], record.reply_to
        return found

    def _catch_up(self) -> None:
        """Scans the part of the log that was appended since the last scan."""
        for serial, name in numbered_segments(self._path)[0]:
            if serial < self._next.segment:
                continue
            fd = open_if_there(name)
            if fd is None:
                continue
            try:
                if serial_of(read_meta(fd)) != serial:
                    continue  # renamed by a rotation; the next scan finds it
                begin = self._next.offset if serial == self._next.segment else 0
                for start, length, line in lines_forward(fd, begin):
                    self._next = Place(serial, start + length + 1)
                    if _ANSWERS.search(line, 0, HEAD_BYTES):
                        self._add(Place(serial, start), line)
            except OSError as error:
                raise JournalError(f"{name} cannot be read: {error.strerror}; check its disk") from None
            finally:
                os.close(fd)

    def _add(self, place: Place, line: bytes) -> None:
        head = decode_head(line)
        if head is None or not head.reply_to:
            return
        self._answers.setdefault(head.reply_to, []).append(place)
        self._count += 1
        while self._count > MAX_ANSWERS:
            self._count -= len(self._answers.popitem(last=False)[1])
