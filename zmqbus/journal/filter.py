"""What the log tells of a message without reading it whole, and which messages somebody wants to see.

An `Entry` has the short fields of a record and the beginning of its text: no more of a body is read or held than a
piece of the file, however long it is. A `Wanted` says what is looked for, and a `Sieve` decides about the lines of a
log: most of those that do not fit are told by their bytes, before anything is parsed.

Only the beginning of a line is looked at, and its last two characters. A record that is damaged in between is found out
by who reads its text.
"""

from __future__ import annotations

import json
import os
import re
from typing import NamedTuple

from zmqbus.journal.reader import META_START
from zmqbus.journal.record import HEAD_BYTES, STRING, JournalError, Kind, as_text, decode_head, decode_record, second_of

#: Characters of a text that an `Entry` holds: what fits the widest of terminals twice.
SUMMARY_CHARS = 500
#: The bytes of a line that are looked at for them: each character may be an escape of 6 bytes.
SUMMARY_BYTES = 6 * SUMMARY_CHARS
#: An id of a session stands for it from so many characters on: what `list` shows of it.
MIN_ID_CHARS = 8


class Place(NamedTuple):
    """Where a line of the log begins. Places sort as their records were accepted."""

    segment: int  # serial
    offset: int  # bytes


class Entry(NamedTuple):
    """A record without its body, but for the beginning of its text."""

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
    """What is looked for. Fields that are None do not matter; all others have to fit."""

    sender: str | None = None  # a name, or a session id (or 8 of its characters)
    receiver: str | None = None  # likewise, or as it was addressed: "all", "#topic", "%project", "@group"
    since_ts: float | None = None  # wall clock, s since 1970
    pattern: re.Pattern[str] | None = None  # to be found in the text
    kinds: frozenset[str] | None = None

    def fits(self, entry: Entry) -> bool:
        """Whether the entry is what is looked for, its text apart."""
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


class Sieve:
    """`Wanted`, made ready for many lines: most of those that do not fit are told by their bytes."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._all = wanted == ALL
        self._since = b""
        if wanted.since_ts is not None:
            second, ms = divmod(int(wanted.since_ts * 1000), 1000)
            self._since = f'{{"ts":"{second_of(second)}.{ms:03d}Z'.encode()
        # A pattern without any special character is a substring, but for ids, which may be escaped (see `record`).
        pattern = wanted.pattern
        literal = pattern is not None and not pattern.flags & re.IGNORECASE and _LITERAL.fullmatch(pattern.pattern)
        self._literal = pattern.pattern.encode() if literal and pattern is not None else b""

    def take(self, fd: int, place: Place, length: int, line: bytes) -> Entry | bool:
        """The entry; False: not wanted. True: damaged. `line` may be no more than the beginning."""
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
#: What precedes a body that is shown in other words than the log has of it.
_DATA = b'"text":"","data":"'
_LITERAL = re.compile(r"[\w \-,:;=/<>!@%&'#~]+", re.ASCII)
_CONTENT = re.compile(STRING)


def _entry(fd: int, place: Place, length: int, line: bytes) -> Entry | None:
    """What a line says; None if it is no record. `line` may be no more than the beginning of it."""
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
            # The end of the base64, and what closes the record, tell how many they are: that is all there is to show.
            tail = line[-4:] if len(line) == length else os.pread(fd, 4, place.offset + length - 4)
            if not tail.endswith(b'"}'):
                return None
            size = (length - found.body_at - 2) // 4 * 3 - tail.count(b"=")
            head, whole = f"<{size} bytes>", True
        else:
            head, whole = f"<{(length - found.body_at) * 3 // 4} bytes>", False
        return Entry(place, length, *found[:-1], head[:SUMMARY_CHARS], whole and len(head) <= SUMMARY_CHARS)
    # Nothing that `encode_record` has made; another release may have put the keys in another order.
    try:
        record = decode_record(whole_line(fd, place, length) if len(line) < length else line)
    except JournalError:
        return None
    text = as_text(record.fmt, record.body)
    return Entry(place, length, *record[:-1], text[:SUMMARY_CHARS], len(text) <= SUMMARY_CHARS)


def _beginning(line: bytes, at: int) -> tuple[str, bool]:
    """The beginning of the JSON string that begins there, and whether it is all of it."""
    content = _CONTENT.match(line, at, at + SUMMARY_BYTES)
    assert content is not None  # it matches the empty string as well
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
