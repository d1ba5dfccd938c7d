"""Messages and sessions in the shape in which the page gets them: JSON, with short names for what comes in thousands.

Texts go out as they are. What is dangerous in them is the page's business, which only ever makes text of them, and
shows what is invisible (`assets/text.js`).
"""

from __future__ import annotations

import re
from typing import Any

from zmqbus.journal.history import Entry, Place
from zmqbus.journal.record import Record, as_text
from zmqbus.wire.verbs import Session

#: Characters of a text that a line of a list has.
HEAD_CHARS = 300
_AT = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})", re.ASCII)


def place_text(place: Place | None) -> str | None:
    """A place as the page keeps it, and gives it back."""
    return None if place is None else f"{place.segment}.{place.offset}"


def place_of(text: str | None) -> Place | None:
    """The place that `place_text` has given out; None for what is none, for a page may ask for anything."""
    match = _AT.fullmatch(text or "")
    return None if match is None else Place(int(match[1]), int(match[2]))


def of_entry(entry: Entry) -> dict[str, Any]:
    """A message as a line of a list."""
    whole = entry.whole and len(entry.head) <= HEAD_CHARS
    return {
        "at": place_text(entry.place),
        "id": entry.msg_id,
        "ts": entry.ts,
        "kind": entry.kind,
        "from": entry.from_session,
        "name": entry.from_name,
        "label": entry.from_label,
        "to": entry.to,
        "toId": entry.to_session_id,
        "re": entry.reply_to,
        "fmt": entry.fmt,
        "text": entry.head[:HEAD_CHARS],
        "whole": whole,
        "bytes": len(entry.head.encode("utf-8", "replace")) if entry.whole else entry.length,
    }


def of_record(record: Record) -> tuple[dict[str, Any], str]:
    """The same of a whole record, whose place is not known; and its text."""
    text = as_text(record.fmt, record.body)
    shown = {
        "at": None,
        "id": record.msg_id,
        "ts": record.ts,
        "kind": record.kind,
        "from": record.from_session,
        "name": record.from_name,
        "label": record.from_label,
        "to": record.to,
        "toId": record.to_session_id,
        "re": record.reply_to,
        "fmt": record.fmt,
        "text": text[:HEAD_CHARS],
        "whole": len(text) <= HEAD_CHARS,
        "bytes": len(record.body),
    }
    return shown, text


def of_session(session: Session, listeners: frozenset[str]) -> dict[str, Any]:
    """A session. `listeners`: ids of those whose state files can be read, so that they can be disconnected."""
    return {
        "id": session.session_id,
        "name": session.name,
        "label": session.label,
        "project": session.project,
        "cwd": session.cwd,
        "state": session.state,
        "since": session.since,
        "pid": session.pid,
        "waiting": session.waiting,
        "away": session.away_s,
        "listener": session.session_id in listeners,
    }
