"""Reads messages for the page from the log: pages of the history, one session's messages, and whole texts in parts.

Blocks, so the application calls it in a thread.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from zmqbus.console.views import of_entry, of_record, parse_place, place_text
from zmqbus.errors import InvalidPayload
from zmqbus.journal import reader
from zmqbus.journal.filter import Entry, Wanted
from zmqbus.journal.history import History, Page
from zmqbus.journal.record import JournalError, Record
from zmqbus.journal.segments import Place
from zmqbus.wire import verbs

#: Bytes of the log read for one page of a session's messages.
SESSION_PAGE_BYTES = 16 * 1024 * 1024
#: Characters of a text sent at once. The page appends parts as its reader scrolls.
PART_CHARS = 64 * 1024
#: Long texts kept in memory while a page reads them part by part.
MAX_TEXTS = 2


class MessageReader:
    """Reads messages of one log."""

    def __init__(self, log_path: str) -> None:
        self._path = log_path
        self._texts: OrderedDict[tuple[str, str | None], tuple[dict[str, Any], str]] = OrderedDict()

    def page(self, limit: int, before: Place | None = None, session_id: str | None = None) -> dict[str, Any]:
        """Returns the newest messages before a place; of `session_id` alone, when it is given.

        Raises `JournalError`, `Unauthorized`.
        """
        history = History(self._path)
        if session_id is None:
            return _page_json(history.page(before, limit=limit))
        wanted = _FromOrTo(session_id)
        return _page_json(history.page(before, limit=limit, wanted=wanted, limit_bytes=SESSION_PAGE_BYTES))

    def part(self, msg_id: str, at: str | None, start: int) -> dict[str, Any]:
        """Returns a message and `PART_CHARS` of its text from the character `start` on.

        `at`: where the page has seen it in the log; found without it too. Raises `JournalError` when the message is not
        in the log, `InvalidPayload` for an invalid id.
        """
        shown, text = self._text(msg_id, at)
        part = text[start : start + PART_CHARS]
        more = start + len(part) < len(text)
        return {"message": shown, "from": start, "chars": len(text), "part": part, "more": more}

    def _text(self, msg_id: str, at: str | None) -> tuple[dict[str, Any], str]:
        known = self._texts.get((msg_id, at))
        if known is not None:
            return known
        if not verbs.is_msg_id(msg_id):
            raise InvalidPayload("invalid message id; reload the page")
        record = self._record_at(msg_id, parse_place(at)) or reader.find(self._path, msg_id)
        if record is None:
            raise JournalError("this message is no longer in the log, whose oldest files are deleted in time")
        shown, text = of_record(record)
        shown["at"] = at
        if len(text) > PART_CHARS:
            self._texts[msg_id, at] = shown, text
            while len(self._texts) > MAX_TEXTS:
                self._texts.popitem(last=False)
        return shown, text

    def _record_at(self, msg_id: str, place: Place | None) -> Record | None:
        if place is None:
            return None
        history = History(self._path)
        entry = next((entry for entry in history.at([place]) if entry.msg_id == msg_id), None)
        return None if entry is None else history.record(entry)


class _FromOrTo(Wanted):
    """Selects the messages that a session sent or received alone; `Wanted` would require both at once."""

    def __new__(cls, session_id: str) -> _FromOrTo:
        return super().__new__(cls, sender=session_id)

    def fits(self, entry: Entry) -> bool:
        """See `Wanted.fits`."""
        return self.sender in (entry.from_session, entry.to_session_id)


def _page_json(page: Page) -> dict[str, Any]:
    return {"items": [of_entry(entry) for entry in page.entries], "before": place_text(page.before)}
