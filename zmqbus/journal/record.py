"""One message as a line of messages.log: its JSON, encoded and decoded.

Theory of operation
===================

*One line, one id.* It is part of the contract that `grep -F '<id>' messages.log | tail -1` prints the record of that
message, whatever later messages say of it. So every id has `ID_MARK` in it, two letters that hardly any text has next
to each other. Where a record has them outside its own id, the second is written as a JSON escape: `z\\u0071` is the
same string to every JSON parser, and no match for grep. This takes no knowledge of which ids exist. No JSON escape has
either letter in it, so what precedes them cannot change the meaning.

*Short fields first.* They have a fixed order and stand before the text, so `decode_ids` finds in the first few hundred
bytes between which sessions a message went, however long it is. It reads the fields one after the other from the start
of the line, so a name or a text that looks like a field does not deceive it.

A record is encoded on the broker's hot path: 1 µs for a line of text, where `json.dumps` of a dict takes 6.

*Large bodies.* Escaping a megabyte takes longer than writing it. `large_record` does it fast; or the sender does it,
and the broker checks the result (`large_record.check_escaped`) and splices it between its own fields (`splice_line`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, Literal
from zlib import crc32

from zmqbus.errors import BrokerUnavailable
from zmqbus.journal.checksum import combine
from zmqbus.journal.large_record import (
    COMMON_ESCAPES,
    HIDDEN_MARK,
    LARGE_BYTES,
    LINE_ENDS,
    RARE_CONTROLS,
    decode_body,
    escape_body,
    hide_marks,
    utf8_text,
)
from zmqbus.tuples import NamedTuple
from zmqbus.wire.msg_ids import ID_MARK

#: The fields before the text are a few hundred bytes; with names and labels of nothing but escapes, some thousand.
HEAD_BYTES = 16 * 1024

Kind = Literal["message", "broadcast", "request", "answer"]
_KINDS = ("message", "broadcast", "request", "answer")
BodyFormat = Literal["text", "msgpack", "bytes"]

#: The NUL separates the texts that are escaped together.
_RARE_BUT_NUL = tuple(character for character in RARE_CONTROLS if character != b"\0")
#: Escapes a string for JSON, with its quotes; letters of all scripts stay as they are, for grep.
quote: Callable[[str], str] = encode_basestring


class JournalError(BrokerUnavailable):
    """The log cannot be written, or does not hold (any more) what was looked for."""


class Route(NamedTuple):
    """Kind, sender and receiver of messages, as the log names them."""

    kind: Kind
    from_session: str
    from_name: str
    from_label: str | None
    to: str  #: as it was addressed: a name, "all", "#topic", "%project", "@group"
    to_session_id: str | None  #: None for a message to many


class Records(NamedTuple):
    """Messages to be written that differ only in id and body: one, or several that were accepted together."""

    ts: float  #: wall clock, s since 1970; kept to the millisecond
    route: Route
    reply_to: str | None
    fmt: BodyFormat
    msg_ids: Sequence[str]
    bodies: Sequence[bytes]  #: UTF-8 where `fmt` is "text"


class Record(NamedTuple):
    """A message as the log keeps it: what a reader gets. The fields are those of `Route` and `Records`."""

    ts: float
    msg_id: str
    kind: Kind
    from_session: str
    from_name: str
    from_label: str | None
    to: str
    to_session_id: str | None
    reply_to: str | None
    fmt: BodyFormat
    body: bytes


class Earlier(NamedTuple):
    """Sender, receiver and place of a message that the journal holds."""

    from_session: str
    to_session_id: str | None
    place: int  #: order among the records: of two messages, the one accepted first has the lower place


# --- encode -----------------------------------------------------------------------------------------------------


def encode_all(wanted: Iterable[Records | SplicedLine]) -> list[bytes | SplicedLine]:
    """Returns the lines of a wake, in order, without newlines."""
    lines: list[bytes | SplicedLine] = []
    for records in wanted:
        if isinstance(records, SplicedLine):
            lines.append(records)
        else:
            lines += encode(records)
    return lines


def encode(records: Records) -> list[bytes]:
    """Returns the lines of the log, one for each message, without newlines.

    Raises `InvalidPayload` for a text that is not UTF-8. Several plain texts are searched and escaped together, in a
    fifth of the time; where one of them holds a rare character, each is encoded by itself.
    """
    ts, route, reply_to, fmt, msg_ids, bodies = records
    if fmt != "text" or len(bodies) == 1:
        return [_encode_one(records, msg_id, body) for msg_id, body in zip(msg_ids, bodies, strict=True)]
    before_text = f"{_route_fields(route)}{_reply_field(reply_to)}"
    texts = b"\0".join(bodies)
    # guards: journal format [texts.isascii() and =>]
    plain = texts.isascii() and before_text.isascii() and texts.count(b"\0") == len(bodies) - 1
    if not plain or any(character in texts for character in _RARE_BUT_NUL):
        return [_encode_one(records, msg_id, body) for msg_id, body in zip(msg_ids, bodies, strict=True)]
    for character, escape in COMMON_ESCAPES:
        if character in texts:
            texts = texts.replace(character, escape)
    texts = hide_marks(texts)  # guards: journal format
    start = _first_fields(ts, "").removesuffix('",').encode()
    middle = f'",{before_text}"text":"'.encode()
    ids = "\0".join(msg_ids).encode().split(b"\0")
    return [b'%b%b%b%b"}' % (start, msg_id, middle, text) for msg_id, text in zip(ids, texts.split(b"\0"), strict=True)]


def _encode_one(records: Records, msg_id: str, body: bytes) -> bytes:
    fmt = records.fmt
    if fmt == "text":
        if len(body) >= LARGE_BYTES:
            return b"".join((_up_to_body(records, msg_id, b'"text":"'), escape_body(fmt, body), b'"}'))
        # guards: journal format [f'"text":{_hide_mark(quote(utf8_text(body)))}' => f'"text":{quote(utf8_text(body))}']
        content = f'"text":{_hide_mark(quote(utf8_text(body)))}'
    else:
        content = f'"fmt":{quote(fmt)},"text":"","data":"{escape_body(fmt, body).decode()}"'
    rest = f"{_route_fields(records.route)}{_reply_field(records.reply_to)}{content}}}"
    if not rest.isascii():
        for character, escape in LINE_ENDS:
            if character in rest:
                rest = rest.replace(character, escape)
    return f"{_first_fields(records.ts, msg_id)}{rest}".encode()


def _up_to_body(records: Records, msg_id: str, opening: bytes) -> bytes:
    """Returns a line up to its body, which follows upon `opening`."""
    head = f"{_route_fields(records.route)}{_reply_field(records.reply_to)}"
    if not head.isascii():
        for line_end, escape in LINE_ENDS:
            head = head.replace(line_end, escape)
    return b"".join((_first_fields(records.ts, msg_id).encode(), head.encode(), opening))


def _first_fields(ts: float, msg_id: str) -> str:
    return f'{{"ts":"{iso_time(ts)}","msg_id":{quote(msg_id)},'


@lru_cache(maxsize=256)
def _route_fields(route: Route) -> str:
    """Returns the fields that name sender and receiver. Cached: a pair that talks has many messages."""
    label = "null" if route.from_label is None else quote(route.from_label)
    receiver = "null" if route.to_session_id is None else quote(route.to_session_id)
    return _hide_mark(
        f'"kind":"{route.kind}","from":{quote(route.from_session)},"from_name":{quote(route.from_name)},'
        f'"from_label":{label},"to":{quote(route.to)},"to_session_id":{receiver},'
    )


def _reply_field(reply_to: str | None) -> str:
    return "" if reply_to is None else f'"reply_to":{_hide_mark(quote(reply_to))},'


def _hide_mark(text: str) -> str:
    """A short JSON string without `ID_MARK` in it."""
    return text.replace(ID_MARK, HIDDEN_MARK) if "q" in text else text


class SplicedLine:
    """A line whose body is not copied into it before it is written: its three parts, and the CRC-32 of the whole."""

    __slots__ = ("crc", "parts", "size_bytes")

    def __init__(self, head: bytes, body: bytes, body_crc: int) -> None:
        self.parts = head, body, b'"}'
        self.size_bytes = len(head) + len(body) + 2
        self.crc = crc32(b'"}', combine(crc32(head), body_crc, len(body)))

    def __len__(self) -> int:
        return self.size_bytes


def splice_line(records: Records, escaped: bytes, crc: int) -> SplicedLine:
    """Returns the line of one message around its body, which its sender has escaped with `escape_body`.

    `records` has one message, whose body there is not used. `crc` is the CRC-32 of `escaped`; `check_escaped` decides
    whether both may be used.
    """
    fmt = records.fmt
    opening = b'"text":"' if fmt == "text" else f'"fmt":"{fmt}","text":"","data":"'.encode()
    return SplicedLine(_up_to_body(records, records.msg_ids[0], opening), escaped, crc)


# --- decode -----------------------------------------------------------------------------------------------------


def decode_record(line: bytes) -> Record:
    """The record in a line of the log; unknown keys are ignored. Raises `JournalError`."""
    if len(line) >= LARGE_BYTES:
        head = decode_head(line[:HEAD_BYTES])
        large = decode_large(head, line[head.body_at : -2]) if head is not None and line.endswith(b'"}') else None
        if large is not None:
            return large
    try:
        fields = json.loads(line.decode())
        if type(fields) is not dict:
            raise ValueError("not an object")
        return _record_of(fields)
    except KeyError as error:
        raise JournalError(f"a line of the log is no message record: it has no {error}; it was damaged") from None
    except (ValueError, RecursionError) as error:  # ValueError: of json, Unicode, base64 and our own
        raise JournalError(f"a line of the log is no message record: {error}; it was damaged") from None


def _record_of(fields: dict[str, Any]) -> Record:
    fmt, kind = fields.get("fmt", "text"), fields["kind"]
    if fmt not in ("text", "msgpack", "bytes") or kind not in _KINDS:
        raise ValueError("of another kind")
    if fmt == "text":
        body = _typed(fields["text"], str).encode()
    else:
        from binascii import a2b_base64  # most commands never need it

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


def decode_large(head: Head, content: bytes | bytearray) -> Record | None:
    """The record with this head and, between the quotes of its body, this content (the line without its last 2 bytes).

    None where that takes a parser, or where anything is wrong.
    """
    body = decode_body(head.fmt, content)
    return None if body is None else Record(*head[:-1], body)


def is_request_or_answer(head: bytes) -> bool:
    """Whether the record that begins so is a request to a group or its answer, which readers of messages skip."""
    # Time and id come before the kind, and neither can hold a quote.
    start = head[:80]
    return b'"kind":"request"' in start or b'"kind":"answer"' in start


def decode_ids(head: bytes) -> tuple[str, str, str | None] | None:
    """Message id, sender's session and receiver's session of the record that begins so; None if no record does.

    `head` is a line, or the first `HEAD_BYTES` of a longer one; what follows the fields is not looked at.
    """
    match = _head().match(head)
    if match is not None:
        try:
            return _unquoted(match["id"]), _unquoted(match["from"]), _nullable(match["session"])
        except ValueError:
            return None
    # Not made by `encode`; another release may have put the keys in another order.
    try:
        record = decode_record(head)
    except JournalError:
        return None
    return record.msg_id, record.from_session, record.to_session_id


class Head(NamedTuple):
    """The short fields of a record and where its body begins, found without reading the body."""

    ts: float
    msg_id: str
    kind: Kind
    from_session: str
    from_name: str
    from_label: str | None
    to: str
    to_session_id: str | None
    reply_to: str | None
    fmt: BodyFormat
    body_at: int  # where in the line its body begins, as JSON or base64, up to the next quote


def decode_head(head: bytes) -> Head | None:
    """The short fields of the record that begins so; None unless `encode` has made it.

    `head` is a line, or the first `HEAD_BYTES` of a longer one.
    """
    match = _whole_head().match(head)
    if match is None:
        return None
    try:
        return Head(
            _parse_ts(match["ts"].decode()),
            _unquoted(match["id"]),
            match["kind"].decode(),  # type: ignore[arg-type]  # the pattern matches no other
            _unquoted(match["from"]),
            _unquoted(match["name"]),
            _nullable(match["label"]),
            _unquoted(match["to"]),
            _nullable(match["session"]),
            _nullable(match["answers"]),
            match["fmt"].decode() if match["fmt"] else "text",  # type: ignore[arg-type]
            match.end(),
        )
    except ValueError:
        return None


def as_text(fmt: str, body: bytes) -> str:
    """A body for people: a text as it is, values in Python's notation, bytes by their number."""
    if fmt == "text":
        return body.decode("utf-8", "replace")
    if fmt == "msgpack":
        import msgpack  # most commands never need it

        try:
            return repr(msgpack.unpackb(body, strict_map_key=False))
        except Exception:  # whatever msgpack raises for invalid input: shown as bytes
            pass
    return f"<{len(body)} bytes>"


#: A JSON string between its quotes. There is only one way to match it, so no string makes it slow.
STRING = rb'[^"\\\x00-\x1f]*(?:\\["\\/bfnrtu][^"\\\x00-\x1f]*)*'


def _fields() -> bytes:
    """The pattern of the fields before the text, as `encode` writes them."""
    kinds = "|".join(_KINDS).encode()
    return (
        rb'\{"ts":"(?P<ts>[0-9]{4}-[0-9T:.-]{1,30}Z)","msg_id":"(?P<id>%s)","kind":"(?P<kind>%s)","from":"(?P<from>%s)",'
        rb'"from_name":"(?P<name>%s)","from_label":(?:null|"(?P<label>%s)"),"to":"(?P<to>%s)",'
        rb'"to_session_id":(?:null|"(?P<session>%s)"),' % (STRING, kinds, *(STRING,) * 5)
    )


# Compiled at first use: it takes 1 ms.
@lru_cache(maxsize=1)
def _head() -> re.Pattern[bytes]:
    return re.compile(_fields() + b'"')


@lru_cache(maxsize=1)
def _whole_head() -> re.Pattern[bytes]:
    body = rb'(?:"fmt":"(?P<fmt>msgpack|bytes)","text":"","data":"|"text":")'
    return re.compile(_fields() + rb'(?:"reply_to":"(?P<answers>%s)",)?' % STRING + body)


def _nullable(string: bytes | None) -> str | None:
    return None if string is None else _unquoted(string)


def _unquoted(string: bytes) -> str:
    text = string.decode()
    return str(json.loads(f'"{text}"')) if "\\" in text else text


def _typed(value: Any, kind: type, *, optional: bool = False) -> Any:
    if type(value) is not kind and not (optional and value is None):
        raise ValueError(f"a field holds {type(value).__name__}, not {kind.__name__}")
    return value


def iso_time(ts: float) -> str:
    """ISO 8601 in UTC with milliseconds."""
    second, ms = divmod(round(ts * 1000), 1000)
    return f"{second_of(second)}.{ms:03d}Z"


@lru_cache(maxsize=2)
def second_of(second: int) -> str:
    """ISO 8601 up to the second. Cached: a second has many messages."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _parse_ts(text: str) -> float:
    import datetime  # 2 ms, and most readers never need it

    if not text.endswith("Z"):
        raise ValueError("a time without its zone")
    return datetime.datetime.fromisoformat(text[:-1] + "+00:00").timestamp()
