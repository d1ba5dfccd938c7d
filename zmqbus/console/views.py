"""JSON views of messages and sessions for the page, with short keys, since lists hold thousands.

Texts are sent unchanged. The page only ever puts them into text nodes and makes invisible characters visible
(`assets/text.js`).
"""

from __future__ import annotations

import re
from typing import Any

from zmqbus.journal.filter import Entry
from zmqbus.journal.record import Record, as_text
from zmqbus.journal.segments import Place
from zmqbus.wire.verbs import Session

#: Characters of a text in a line of a list.
HEAD_CHARS = 300
_PLACE = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})", re.ASCII)


def place_text(place: Place | None) -> str | None:
    """Encodes a place in the log for the page, which sends it back to continue from there."""
    return None if place is None else f"{place.segment}.{place.offset}"


def parse_place(text: str | None) -> Place | None:
    """Decodes a place that a page has sent back; None for an invalid one."""
    match = _PLACE.fullmatch(text or "")
    return None if match is None else Place(int(match[1]), int(match[2]))


def of_entry(entry: Entry) -> dict[str, Any]:
    """Returns a message of the history as a line of a list."""
    size_bytes = len(entry.head.encode("utf-8", "replace")) if entry.whole else entry.length
    whole = entry.whole and len(entry.head) <= HEAD_CHARS
    return _line(entry, place_text(entry.place), entry.head, whole=whole, size_bytes=size_bytes)


def of_record(record: Record) -> tuple[dict[str, Any], str]:
    """Returns a record as a line of a list, without its place (not known), and its whole text."""
    text = as_text(record.fmt, record.body)
    return _line(record, None, text, whole=len(text) <= HEAD_CHARS, size_bytes=len(record.body)), text


def _line(message: Entry | Record, at: str | None, text: str, *, whole: bool, size_bytes: int) -> dict[str, Any]:
    return {
        "at": at,
        "id": message.msg_id,
        "ts": message.ts,
        "kind": message.kind,
        "from": message.from_session,
        "name": message.from_name,
        "label": message.from_label,
        "to": message.to,
        "toId": message.to_session_id,
        "re": message.reply_to,
        "fmt": message.fmt,
        "text": text[:HEAD_CHARS],
        "whole": whole,
        "bytes": size_bytes,
    }


def of_session(session: Session, listeners: frozenset[str], agent_since_ts: float | None) -> dict[str, Any]:
    """Returns a session. `listeners`: ids of the sessions that the console can disconnect (`Listeners.ids`);
    `agent_since_ts`: when its agent began what it does (None: nothing tells), Unix time in s."""
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
        "agent": session.agent,
        "agentSince": agent_since_ts,
        "agentDetail": session.agent_detail,
        "listener": session.session_id in listeners,
    }
