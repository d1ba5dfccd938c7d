"""messages.log: every message, once, in the order of acceptance.

Theory of operation
===================

The log is a list of *segments*, files of JSON lines: `messages.log` is written to, `messages.log.1` is the one before
it, and so on. Each segment begins with a line that gives its *serial*, which rises by one with each rotation, so that a
pointer (serial, offset, length, checksum) holds through any number of renames. The broker is the only writer; anyone
of the user's processes reads, without a lock.

*What the writer keeps to*

* A batch goes into the log whole or not at all. A write that fails is cut off again, and where not even that works, the
  cut is made before the next batch. Only a writer that dies between two bytes of a write leaves a torn line; the next
  one cuts that off, and says so. (Whole lines of such a batch stay. Nobody has been told of them, so their senders send
  them again under the same ids, and of two records with one id the later one counts.)
* Rotation makes the new segment under another name first, so a full disk stops it before anything is renamed. Files are
  renamed upwards from the first free number, and so a rotation that was cut short leaves a gap and loses nothing.
* Nothing is deleted but the oldest segments, and those only when nobody's unread mail points into them. A segment whose
  first line cannot be read may be the one that mail points to, so it is deleted only when no mail is waiting at all.
* If something else has cut, moved or removed the log (`> messages.log`), the writer notices before its next batch and
  begins a segment under a new serial, so that no pointer ever means two things.

*What a reader can rely on*: a record is checked against the length and the checksum of its pointer. Segments only move
upwards, so a reader that looks at them from the newest on meets each, whatever is renamed meanwhile; but for one that
has got a name which was not there when the directory was read. So a reader who has not found it looks again, until two
looks agree.

*One line, one id.* It is part of the contract that `grep -F '<id>' messages.log | tail -1` prints the record of that
message. An answer comes later and names the id too, in `reply_to` and often in its text. So records spell the ids of
*other* messages with their last character as a JSON escape: `abc123de\\u0066` is the same string to every JSON parser,
and no match for grep. The last character, not the first: what precedes a match may be a backslash, which makes the
first a part of an escape (`\\n` + `ever1234`), while no escape reaches the last of eight. Other ids than that of the
answered message are recognised by the `msg=` or `re=` in front, which is how sessions see and quote them.

A record is made on the broker's hot path: 1.5 µs for a line of text, where `json.dumps` of a dict takes 6.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from json.encoder import encode_basestring as _quote
from typing import Any, Literal, NamedTuple

from zmqbus.errors import BrokerUnavailable, InvalidPayload, Unauthorized
from zmqbus.security import open_private, secure_dir

#: A file of this size still opens in an editor, and is read by grep in 20 ms.
SEGMENT_BYTES = 50 * 1024 * 1024
#: Rotated segments that are kept although no mail needs them.
KEEP_SEGMENTS = 5
#: The first line of a segment is under 100 bytes; a longer one is not ours.
MAX_META_BYTES = 256
#: Up to here the lines of a batch are joined for writing. Over it, they are handed to the kernel as they are: a copy of
#: 10 MiB costs more than a longer list.
JOIN_BYTES = 256 * 1024
#: Buffers in one `writev` (IOV_MAX of Linux and macOS).
MAX_BUFFERS = 1024
#: Files are searched in pieces of this size: large enough to be fast, small enough for a helper.
PIECE_BYTES = 1024 * 1024
#: So many surveys a reader makes at most. Before each but the second, a rotation (50 MiB of mail) must have come.
READ_ATTEMPTS = 10

Kind = Literal["message", "broadcast"]
BodyFormat = Literal["text", "msgpack", "bytes"]

_META_START = b'{"kind":"segment","segment":'
_META = re.compile(_META_START + rb'([1-9][0-9]{0,17}),"format":1,"created":"[0-9TZ:.-]{1,40}"\}\n')
_ID = re.compile("[a-z0-9]{8,12}")
_QUOTED_IDS = tuple((mark, re.compile(f"({mark}[a-z0-9]{{7,11}})([a-z0-9])(?![a-z0-9])")) for mark in ("msg=", "re="))
#: Legal within a JSON string, and line ends to half of the tools that work by lines.
_LINE_ENDS = (("\x85", "\\u0085"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))


class JournalError(BrokerUnavailable):
    """The log cannot be written, or does not hold (any more) what was looked for."""


class JournalFull(JournalError):
    """There is no room for the log: on the disk, in the quota, or under the process's limit."""


class Pointer(NamedTuple):
    """Where a record is: `length` bytes from `offset` on, without the newline, in the segment with that serial."""

    segment: int
    offset: int
    length: int
    crc: int  # zlib.crc32 of these bytes


class Record(NamedTuple):
    """A message as the log keeps it."""

    ts: float  # wall clock, s since 1970; kept to the millisecond
    msg_id: str
    kind: Kind
    from_session: str
    from_name: str
    from_label: str | None
    to: str  # as it was addressed: a name, "all", "#topic", "%project", "@group"
    to_session_id: str | None  # None for a message to many
    reply_to: str | None
    fmt: BodyFormat
    body: bytes  # UTF-8 where fmt is "text"


# --- records ----------------------------------------------------------------------------------------------------


def encode_record(record: Record) -> bytes:
    """One line of the log, without its newline. Raises `InvalidPayload` for a text that is not UTF-8."""
    ts, msg_id, kind, from_session, from_name, from_label, to, to_session_id, reply_to, fmt, body = record
    if fmt == "text":
        try:
            content = _quote(body.decode())
        except UnicodeDecodeError as error:
            raise InvalidPayload(f"the text is not UTF-8 ({error.reason}); send it as bytes") from None
        content = f'"text":{content}'
    else:
        from binascii import b2a_base64  # not on everybody's path

        content = f'"fmt":{_quote(fmt)},"text":"","data":"{b2a_base64(body, newline=False).decode()}"'
    label = "null" if from_label is None else _quote(from_label)
    receiver = "null" if to_session_id is None else _quote(to_session_id)
    answers = "" if reply_to is None else f'"reply_to":{_quote(reply_to)},'
    rest = (
        f'"kind":"{kind}","from":{_quote(from_session)},"from_name":{_quote(from_name)},"from_label":{label},'
        f'"to":{_quote(to)},"to_session_id":{receiver},{answers}{content}}}'
    )
    if not rest.isascii():
        for character, escape in _LINE_ENDS:
            if character in rest:
                rest = rest.replace(character, escape)
    if reply_to is not None and _ID.fullmatch(reply_to):
        # All of the rest is searched, not the text alone: names can contain an id, and outside of strings JSON has
        # nothing that is as long as one. Again and again, for two occurrences may overlap.
        hidden = _hidden(reply_to)
        while reply_to in rest:
            rest = rest.replace(reply_to, hidden)
    for mark, pattern in _QUOTED_IDS:
        if mark in rest:
            rest = pattern.sub(_hide, rest)
    second, ms = divmod(round(ts * 1000), 1000)
    return f'{{"ts":"{_second(second)}.{ms:03d}Z","msg_id":{_quote(msg_id)},{rest}'.encode()


def decode_record(line: bytes) -> Record:
    """The record that a line of the log holds; keys that it does not know are passed over. Raises `JournalError`."""
    try:
        fields = json.loads(line.decode())
        if type(fields) is not dict:
            raise ValueError("not an object")
        fmt, kind = fields.get("fmt", "text"), fields["kind"]
        if fmt not in ("text", "msgpack", "bytes") or kind not in ("message", "broadcast"):
            raise ValueError("of another kind")
        if fmt == "text":
            body = _typed(fields["text"], str).encode()
        else:
            from binascii import a2b_base64

            body = a2b_base64(_typed(fields["data"], str))
        return Record(
            _parse_ts(_typed(fields["ts"], str)),
            _typed(fields["msg_id"], str),
            kind,
            _typed(fields["from"], str),
            _typed(fields["from_name"], str),
            _typed(fields["from_label"], str, optional=True),
            _typed(fields["to"], str),
            _typed(fields["to_session_id"], str, optional=True),
            _typed(fields.get("reply_to"), str, optional=True),
            fmt,
            body,
        )
    except KeyError as error:
        raise JournalError(f"a line of the log is no message record: it has no {error}; it was damaged") from None
    except (ValueError, RecursionError) as error:  # ValueError: of json, Unicode, base64 and our own
        raise JournalError(f"a line of the log is no message record: {error}; it was damaged") from None


def _typed(value: Any, kind: type, *, optional: bool = False) -> Any:
    if type(value) is not kind and not (optional and value is None):
        raise ValueError(f"a field holds {type(value).__name__}, not {kind.__name__}")
    return value


def _hidden(msg_id: str) -> str:
    return f"{msg_id[:-1]}\\u{ord(msg_id[-1]):04x}"


def _hide(match: re.Match[str]) -> str:
    return f"{match[1]}\\u{ord(match[2]):04x}"


@lru_cache(maxsize=2)
def _second(second: int) -> str:
    """ISO 8601 up to the second. Remembered, since a second has many messages."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _parse_ts(text: str) -> float:
    import datetime  # 2 ms, and most readers never need it

    if not text.endswith("Z"):
        raise ValueError("a time without its zone")
    return datetime.datetime.fromisoformat(text[:-1] + "+00:00").timestamp()


# --- the writer -------------------------------------------------------------------------------------------------


class Journal:
    """The log, open for writing. One process at a time may have it so; the broker's election sees to that.

    Opening it takes up an existing log where it ends. Raises `Unauthorized` for files that are links or open to others,
    and `JournalError` if the log cannot be opened or begun.
    """

    def __init__(self, path: str, *, segment_bytes: int = SEGMENT_BYTES, keep: int = KEEP_SEGMENTS) -> None:
        self._path = path
        self._segment_bytes = segment_bytes
        self._keep = keep
        self._closed = False
        self._fd = -1
        self._torn = False  # a failed write could not be cut off
        self._serial = 0
        self._start = 0  # where the first record of the segment is
        self._size = 0
        #: What was found damaged, and what has been done about it; None if the log was in order.
        self.recovered: str | None = None
        secure_dir(os.path.dirname(path))
        try:
            self._open()
        except OSError as error:
            raise self._failed(error) from None

    def __repr__(self) -> str:
        state = f"segment {self._serial}, {self._size:,} bytes" if self._fd >= 0 else "closed"
        return f"<Journal {self._path}: {state}>"

    @property
    def segment(self) -> int:
        """Serial of the segment that is written to."""
        return self._serial

    def append(
        self, lines: Sequence[bytes], *, oldest_needed: int | Callable[[], int | None] | None = None
    ) -> list[Pointer]:
        """Writes these lines (of `encode_record`) and returns where each of them is; all of them or none.

        `oldest_needed` is the lowest serial that unread mail points to, None where there is no such mail; or a function
        that finds it out, which is called only when a rotation is about to delete a segment.

        Raises `JournalFull` or another `JournalError` if they cannot be written. The log is as before then, and takes
        the next batch as soon as there is room.
        """
        if not lines:
            return []
        total_bytes = sum(map(len, lines)) + len(lines)
        if self._closed:
            raise JournalError("the journal is closed; open another one")
        try:
            self._ready()
            if self._size > self._start and self._size + total_bytes > self._segment_bytes:
                self._rotate(oldest_needed)
            self._write(lines, total_bytes)
        except OSError as error:
            raise self._failed(error) from None
        except Unauthorized as error:
            # Somebody has changed the permissions of a segment. To the senders of this batch, it cannot be written.
            raise JournalError(str(error)) from None
        pointers = []
        offset = self._size
        for line in lines:
            length = len(line)
            pointers.append(Pointer(self._serial, offset, length, zlib.crc32(line)))
            offset += length + 1
        self._size = offset
        return pointers

    def close(self) -> None:
        """Closes the file. What was written stays; nothing can be appended any more. Idempotent."""
        self._closed = True
        self._forget()

    def _failed(self, error: OSError) -> JournalError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return JournalFull(
                f"there is no room to write {self._path} ({error.strerror}); make room on its disk, then send again"
            )
        return JournalError(f"{self._path} cannot be written: {error.strerror}; see to its disk, then send again")

    def _forget(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _ready(self) -> None:
        """Makes sure that the descriptor is the log's, and that the log is as it was left. 2 µs a batch."""
        if self._fd < 0:
            self._open()
            return
        if self._torn:
            os.ftruncate(self._fd, self._size)
            self._torn = False
        ours = os.fstat(self._fd)
        try:
            named = os.lstat(self._path)
            moved = (named.st_ino, named.st_dev) != (ours.st_ino, ours.st_dev)
        except FileNotFoundError:
            moved = True
        if not moved and ours.st_size == self._size:
            return
        self._forget()
        if not moved and ours.st_size > self._size:
            # What was added is no record that anybody was told of. It stays, and does no harm.
            self._report(f"something else has written to {self._path}")
            self._open()
            return
        self._report(f"{self._path} was {'moved or removed' if moved else 'cut'}; another segment was begun")
        self._open(resume=False)

    def _open(self, *, resume: bool = True) -> None:
        """Takes up the log where it ends; begins a segment if there is none, or none that could be gone on with."""
        fd = open_private(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            size = os.fstat(fd).st_size
            head = os.pread(fd, MAX_META_BYTES, 0)
            serial = _serial_of(head)
            if serial is not None and resume:
                end = _find_back(fd, size, b"\n") + 1
                if end < size:
                    os.ftruncate(fd, end)
                    self._report(f"cut off an unfinished record ({size - end:,} bytes) at the end of {self._path}")
                self._serial, self._start, self._size = serial, head.index(b"\n") + 1, end
            elif serial is None and size < MAX_META_BYTES and b"\n" not in head and _is_start_of_meta(head):
                if size:
                    os.ftruncate(fd, 0)
                    self._report(f"began {self._path} anew, which had no more than an unfinished first line")
                self._serial, self._start = self._begin(fd)
                self._size = self._start
            else:
                if serial is None:
                    self._report(f"put {self._path} aside, which does not begin as a segment does, and began a new one")
                self._rotate(None, delete=False)
                return
            self._fd, fd = fd, -1
        finally:
            if fd >= 0:
                os.close(fd)

    def _report(self, text: str) -> None:
        self.recovered = text if self.recovered is None else f"{self.recovered}; {text}"

    def _begin(self, fd: int) -> tuple[int, int]:
        """Writes the first line of a new segment into an empty file; returns its serial and where records start."""
        serial = max(self._serial, _newest(_survey(self._path))) + 1
        meta = _META_START + b'%d,"format":1,"created":"%sZ"}\n' % (serial, _second(int(time.time())).encode())
        if os.write(fd, meta) != len(meta):
            # What it took is recognised as an unfinished first line.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return serial, len(meta)

    def _rotate(self, oldest_needed: int | Callable[[], int | None] | None, *, delete: bool = True) -> None:
        new_path = self._path + ".new"
        fd = open_private(new_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
        try:
            # If this fails, nothing has been renamed, and the segment that was written to goes on.
            serial, start = self._begin(fd)
            number = 1
            while os.path.lexists(f"{self._path}.{number}"):
                number += 1
            # If one of these fails, the next batch opens the log anew, and takes up whatever it finds.
            self._forget()
            for to in range(number, 1, -1):
                os.rename(f"{self._path}.{to - 1}", f"{self._path}.{to}")
            os.rename(self._path, f"{self._path}.1")
            os.rename(new_path, self._path)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._serial, self._start, self._size = fd, serial, start, start
        if delete:
            self._delete_old(oldest_needed)

    def _delete_old(self, oldest_needed: int | Callable[[], int | None] | None) -> None:
        old = [(serial, name) for number, serial, name in _survey(self._path) if number > self._keep]
        if not old:
            return
        needed = oldest_needed() if callable(oldest_needed) else oldest_needed
        for serial, name in old:
            if needed is None or 0 < serial < needed:
                try:
                    os.unlink(name)
                except OSError:
                    # Too much is kept, which is no reason to refuse mail. The next rotation tries again.
                    pass

    def _write(self, lines: Sequence[bytes], total_bytes: int) -> None:
        """One write for all, where the kernel takes it in one. On failure, the file has its old size again."""
        buffers: list[bytes]
        if total_bytes > JOIN_BYTES and 2 * len(lines) <= MAX_BUFFERS:
            buffers = [part for line in lines for part in (line, b"\n")]
        else:
            buffers = [b"\n".join((*lines, b""))]
        try:
            written = os.writev(self._fd, buffers)
            if written < total_bytes:
                # A disk that has become full takes a part first. To go on is the way to hear why.
                left = memoryview(b"".join(buffers))[written:]
                while left:
                    left = left[os.write(self._fd, left) :]
        except BaseException:
            try:
                os.ftruncate(self._fd, self._size)
            except OSError:
                self._torn = True  # `_ready` does it before the next batch
            raise


# --- readers ----------------------------------------------------------------------------------------------------


def segments(path: str) -> list[tuple[int, str]]:
    """The segments of the log at `path`, newest first: serial and file name. Serial 0: its first line is unreadable."""
    return [(serial, name) for _, serial, name in _survey(path)]


def read(path: str, pointer: Sequence[int]) -> Record:
    """The record that a pointer of the log at `path` points to.

    Raises `JournalError` if its segment is gone or not there yet, or if the record is not what the pointer says.
    """
    if len(pointer) != 4:
        raise JournalError(f"{pointer!r:.80} is no pointer into {path}; the broker is of another release: restart it")
    segment, offset, length, crc = pointer
    line = _pread_segment(path, segment, offset, length)
    if len(line) != length or zlib.crc32(line) != crc:
        raise JournalError(
            f"the record at {offset} in segment {segment} of {path} is damaged; ask its sender to send it again"
        )
    return decode_record(line)


def find(path: str, msg_id: str) -> Record | None:
    """The newest record of this message, in whichever segment; None if there is none.

    Lines that are damaged or unfinished are passed over. Raises `Unauthorized` for files that are open to others.
    """
    # A quote within a string is escaped, so this occurs nowhere but where it is a key.
    needle = b'"msg_id":' + _quote(msg_id).encode() + b","
    searched: set[int] = set()
    for survey in _surveys(path):
        for _, _, name in survey:
            fd = _open_if_there(name)
            if fd is None:
                continue
            try:
                serial = _serial_of(os.pread(fd, MAX_META_BYTES, 0)) or 0
                record = None if serial and serial in searched else _find_in(fd, needle, msg_id)
                searched.add(serial)
            finally:
                os.close(fd)
            if record is not None:
                return record
    return None


def _find_in(fd: int, needle: bytes, msg_id: str) -> Record | None:
    end = os.fstat(fd).st_size
    while (at := _find_back(fd, end, needle)) >= 0:
        start = _find_back(fd, at, b"\n") + 1
        line = _read_line(fd, start)
        if line is not None:
            try:
                record = decode_record(line)
            except JournalError:
                record = None  # an older record of the same message may be whole
            if record is not None and record.msg_id == msg_id:
                return record
        end = start
    return None


def _pread_segment(path: str, segment: int, offset: int, length: int) -> bytes:
    newest = 0
    for survey in _surveys(path):
        newest = _newest(survey)
        for _, serial, name in survey:
            fd = _open_if_there(name) if serial == segment else None
            if fd is None:
                continue
            try:
                # The name may mean another file than it did in the survey; the descriptor will not.
                if _serial_of(os.pread(fd, MAX_META_BYTES, 0)) != segment:
                    continue
                # Not more than there is: the length comes from elsewhere, and memory would be taken for it.
                room = os.fstat(fd).st_size - offset
                return os.pread(fd, length, offset) if offset >= 0 and 0 < length <= room else b""
            finally:
                os.close(fd)
    if segment > newest:
        raise JournalError(f"segment {segment} of {path} is not there yet (the newest is {newest}); try again")
    raise JournalError(f"segment {segment} of {path} is gone; ask for the message to be sent again")


def _surveys(path: str) -> Iterator[list[tuple[int, int, str]]]:
    """Surveys for a search, until one is like the one before it: then nothing was renamed while that was searched, nor
    had got a new name between the reading of the directory and the opening of the files."""
    before = None
    for _ in range(READ_ATTEMPTS):
        survey = _survey(path)
        if survey == before:
            return
        yield survey
        before = survey


def _survey(path: str) -> list[tuple[int, int, str]]:
    """What there is of the log, newest first: number in the file name (0: none), serial (0: unreadable), file name."""
    directory, base = os.path.split(path)
    prefix = base + "."
    try:
        names = os.listdir(directory or ".")
    except FileNotFoundError:
        return []
    numbers = [0] if base in names else []
    for name in names:
        suffix = name[len(prefix) :] if name.startswith(prefix) else ""
        if suffix.isascii() and suffix.isdigit() and suffix[0] != "0":
            numbers.append(int(suffix))
    found = []
    for number in sorted(numbers):
        name = f"{path}.{number}" if number else path
        fd = _open_if_there(name)
        if fd is not None:
            try:
                found.append((number, _serial_of(os.pread(fd, MAX_META_BYTES, 0)) or 0, name))
            finally:
                os.close(fd)
    return found


def _newest(survey: list[tuple[int, int, str]]) -> int:
    return max((serial for _, serial, _ in survey), default=0)


def _open_if_there(name: str) -> int | None:
    try:
        return open_private(name, os.O_RDONLY)
    except FileNotFoundError:
        return None  # renamed since the directory was read


def _is_start_of_meta(head: bytes) -> bool:
    return _META_START.startswith(head) or head.startswith(_META_START)


def _serial_of(head: bytes) -> int | None:
    """The serial of the segment that begins with these bytes; None if none does."""
    match = _META.match(head)
    return int(match[1]) if match else None


def _find_back(fd: int, end: int, needle: bytes) -> int:
    """Where `needle` occurs last before `end`; -1 if it does not.

    In pieces, for a segment is large; and not mapped into memory, for one that is cut meanwhile would kill the reader.
    """
    overlap = len(needle) - 1
    piece_bytes = max(PIECE_BYTES, 2 * len(needle))
    while end > 0:
        start = max(0, end - piece_bytes)
        at = os.pread(fd, end - start, start).rfind(needle)
        if at >= 0:
            return start + at
        end = start + overlap if start else 0
    return -1


def _read_line(fd: int, start: int) -> bytes | None:
    """The line that begins at `start`, without its newline; None if it is unfinished."""
    pieces: list[bytes] = []
    while piece := os.pread(fd, PIECE_BYTES, start):
        end = piece.find(b"\n")
        if end >= 0:
            pieces.append(piece[:end])
            return b"".join(pieces)
        pieces.append(piece)
        start += len(piece)
    return None
