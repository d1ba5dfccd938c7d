"""Entries: records without their bodies, and the filter that picks them from the lines of a log.

An `Entry` has the short fields of a record and the beginning of its text; no more of a body is read or held, however
long it is. `Wanted` holds the criteria, and a `LineFilter` applies them to the lines of a log: it rejects most of those
that do not match by their bytes, before anything is parsed.

Only the beginning of a line and its last two characters are looked at. Damage in between shows when the text is read.
"""

from __future__ import annotations

import json
import os
import re
from typing import NamedTuple

from zmqbus.journal.record import HEAD_BYTES, STRING, JournalError, Kind, as_text, decode_head, decode_record, second_of
from zmqbus.journal.segments import META_START, Place

#: Characters of a text that an `Entry` holds: twice the width of the widest terminals.
SUMMARY_CHARS = 500
#: Bytes of a line that are looked at for them: each character may be an escape of 6 bytes.
SUMMARY_BYTES = 6 * SUMMARY_CHARS
#: So many characters of a session id identify it: as many as `list` shows.
MIN_ID_CHARS = 8


class Entry(NamedTuple):
    """A record without its body, with the beginning of its text."""

    place: Place
    length: int  # bytes of its line, without the newline
    ts: float  # wall clock, s since 1970
    msg_id: str
    kind: Kind
    from_session: str
    from_name: str
    from_label: str | None
    to: str  # as it was addressed: a name, "all", "#topic", "%project", "@group"
    to_session_id: str | None  # None for a message to many, and for a request to a group
    reply_to: str | None
    fmt: str  # "text", "msgpack", "bytes"
    head: str  # the first `SUMMARY_CHARS` characters of its text; not sanitised
    whole: bool  # whether that is all of it

    @property
    def after(self) -> Place:
        """Where the next line begins."""
        return Place(self.place.segment, self.place.offset + self.length + 1)


class Wanted(NamedTuple):
    """The criteria of a search. A field that is None matches everything; all others have to match."""

    sender: str | None = None  # a name, or a session id (or 8 of its characters)
    receiver: str | None = None  # likewise, or as it was addressed: "all", "#topic", "%project", "@group"
    since_ts: float | None = None  # wall clock, s since 1970
    pattern: re.Pattern[str] | None = None  # found in the text
    kinds: frozenset[str] | None = None

    def fits(self, entry: Entry) -> bool:
        """Whether the entry matches, without looking at its text."""
        return (
            (self.since_ts is None or entry.ts >= self.since_ts)
            and (self.kinds is None or entry.kind in self.kinds)
            and (self.sender is None or _is(self.sender, entry.from_name, entry.from_session))
            and (self.receiver is None or _is(self.receiver, entry.to, entry.to_session_id))
        )


#: Every message.
ALL = Wanted()


def _is(wanted: str, name: str, session_id: str | None) -> bool:
    if wanted in (name, session_id):
        return True
    return len(wanted) >= MIN_ID_CHARS and session_id is not None and session_id.startswith(wanted)


class LineFilter:
    """`Wanted`, prepared for many lines: most of those that do not match are rejected by their bytes."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._all = wanted == ALL
        self._since = b""
        if wanted.since_ts is not None:
            second, ms = divmod(int(wanted.since_ts * 1000), 1000)
            self._since = f'{{"ts":"{second_of(second)}.{ms:03d}Z'.encode()
        # A pattern without special characters is a substring of the line, unless it is escaped there (see `record`).
        pattern = wanted.pattern
        literal = pattern is not None and not pattern.flags & re.IGNORECASE and _LITERAL.fullmatch(pattern.pattern)
        self._literal = pattern.pattern.encode() if literal and pattern is not None else b""

    def match(self, fd: int, place: Place, length: int, line: bytes) -> Entry | bool:
        """The entry of a line; False: not wanted, True: damaged. `line` may be no more than the beginning of it."""
        if line[: len(self._since)] < self._since and line.startswith(b'{"ts":"'):
            return False
        if (
            self._literal
            and len(line) == length
            and self._literal not in line
            and b"\\u" not in line
            and line.find(_DATA, 0, HEAD_BYTES) < 0
        ):
            return False
        entry = _entry(fd, place, length, line)
        if entry is None:
            return not line.startswith(META_START)
        if self._all:
            return entry
        if not self._wanted.fits(entry):
            return False
        if self._wanted.pattern is None:
            return entry
        text = entry.head
        if not entry.whole:
            try:
                text = text_of(fd, place, length, line)
            except JournalError:
                return True
        return entry if self._wanted.pattern.search(text) else False


_ESCAPE_CHARS = 6
#: Precedes a body that is shown in another form than it has in the log.
_DATA = b'"text":"","data":"'
_LITERAL = re.compile(r"[\w \-,:;=/<>!@%&'#~]+", re.ASCII)
_CONTENT = re.compile(STRING)


def _entry(fd: int, place: Place, length: int, line: bytes) -> Entry | None:
    """The entry of a line; None if it is no record. `line` may be no more than the beginning of it."""
    found = decode_head(line)
    if found is not None:
        if found.fmt == "text":
            head, whole = _beginning(line, found.body_at)
            if len(line) == length and not line.endswith(b'"}'):
                return None
        elif length <= SUMMARY_BYTES:
            try:
                head, whole = text_of(fd, place, length, line), True
            except JournalError:
                return None
        elif found.fmt == "bytes":
            # Only the number of bytes is shown, and it follows from the length and padding of the base64.
            tail = line[-4:] if len(line) == length else os.pread(fd, 4, place.offset + length - 4)
            if not tail.endswith(b'"}'):
                return None
            size = (length - found.body_at - 2) // 4 * 3 - tail.count(b"=")
            head, whole = f"<{size} bytes>", True
        else:
            head, whole = f"<{(length - found.body_at) * 3 // 4} bytes>", False
        return Entry(place, length, *found[:-1], head[:SUMMARY_CHARS], whole and len(head) <= SUMMARY_CHARS)
    # Not made by `encode`; another release may have put the keys in another order.
    try:
        record = decode_record(whole_line(fd, place, length) if len(line) < length else line)
    except JournalError:
        return None
    text = as_text(record.fmt, record.body)
    return Entry(place, length, *record[:-1], text[:SUMMARY_CHARS], len(text) <= SUMMARY_CHARS)


def _beginning(line: bytes, at: int) -> tuple[str, bool]:
    """The beginning of the JSON string at this offset, and whether it is all of it."""
    content = _CONTENT.match(line, at, at + SUMMARY_BYTES)
    assert content is not None  # the pattern matches the empty string
    end = content.end()
    whole = line[end : end + 1] == b'"'
    text = content[0].decode("utf-8", "ignore")  # it may have been cut within a character,
    if "\\" in text:
        for cut in range(_ESCAPE_CHARS):  # or within an escape
            try:
                return str(json.loads(f'"{text[: len(text) - cut]}"')), whole
            except ValueError:
                continue
    return text, whole


def whole_line(fd: int, place: Place, length: int) -> bytes:
    """A line of the file. Raises `JournalError` if it is cut."""
    found = os.pread(fd, length, place.offset)
    if len(found) < length:
        raise JournalError(f"the record at {place.offset} in segment {place.segment} is cut; it was damaged")
    return found


def text_of(fd: int, place: Place, length: int, line: bytes) -> str:
    """The whole text of a record of which `line` is the beginning, or all. Raises `JournalError` if it is damaged."""
    record = decode_record(whole_line(fd, place, length) if len(line) < length else line)
    return as_text(record.fmt, record.body)
