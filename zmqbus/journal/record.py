"""One message as a line of messages.log: JSON, made and read here.

Theory of operation
===================

*One line, one id.* It is part of the contract that `grep -F '<id>' messages.log | tail -1` prints the record of that
message, whatever later messages say of it. So every id has `ID_MARK` in it, two letters that hardly any text has next
to each other. Where a record has them, but for its own id, the second is written as a JSON escape: `z\\u0071` is the
same string to every JSON parser, and no match for grep. Nothing has to be known of which ids there are. No escape of
JSON has either letter in it, so what precedes them cannot make another string of that.

*The short fields first.* They stand in one order, and before the text; so `glance` finds in the first few hundred bytes
between whom a message went, however long it is. It reads them one after the other from the start of the line, and is
therefore not deceived by a name or a text that looks like a field.

A record is made on the broker's hot path: 1 µs for a line of text, where `json.dumps` of a dict takes 6.

*A large body is spelled where there is time.* Escaping a megabyte takes longer than writing it. So a sender may do that
(`spell`), and the broker puts what it was given between its own fields (`spelled_line`), when it has made sure that it
is what it has to be (`check_spelled`), which is a third of the work.
"""

from __future__ import annotations

import json
import re
import time
from codecs import escape_decode
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, Literal
from zlib import crc32

from zmqbus.errors import BrokerUnavailable, InvalidPayload
from zmqbus.journal.checksum import combine
from zmqbus.tuples import NamedTuple
from zmqbus.wire.msg_ids import ID_MARK

#: The fields before the text are a few hundred bytes; with names and labels of nothing but escapes, some thousand.
HEAD_BYTES = 16 * 1024

Kind = Literal["message", "broadcast", "request", "answer"]
_KINDS = ("message", "broadcast", "request", "answer")
BodyFormat = Literal["text", "msgpack", "bytes"]

_HIDDEN_MARK = "z\\u0071"
#: Legal within a JSON string, and line ends to half of the tools that work by lines.
_LINE_ENDS = (("\x85", "\\u0085"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))
#: Texts from this size on are worth another way of quoting.
LARGE_BYTES = 4 * 1024
#: What a JSON string may not hold as it is: what texts are full of, the backslash first,
_COMMON_ESCAPES = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\t", b"\\t"), (b"\r", b"\\r"))
#: and what they seldom have.
_RARE_CONTROLS = tuple(bytes((code,)) for code in range(32) if code not in b"\n\t\r")
#: The one that is left out stands between texts.
_RARE_BUT_NUL = tuple(character for character in _RARE_CONTROLS if character != b"\0")
#: How they are read. What is not here is rare, but for the `u` of ids that are hidden.
_UNESCAPED = {ord(b"\\"): b"\\", ord(b'"'): b'"', ord(b"n"): b"\n", ord(b"t"): b"\t", ord(b"r"): b"\r", ord(b"/"): b"/"}
#: So many occurrences of a character are looked at one by one, at 0.15 µs each; if there are more, whoever looks goes
#: through the whole text in another way, which takes 1 ms for a megabyte.
MAX_LOOKS = 4_000
#: The mark of ids. It begins with the rarer of its characters, looked for at the speed of memchr, and looks back.
_MARK = rb"%b(?<=%b)" % (ID_MARK[-1].encode(), ID_MARK.encode())
#: A backslash before anything but the one character that stands for another; a second backslash and `u` among it. What
#: begins with one plain character is found at the speed of memchr: a megabyte of prose takes 0.4 ms. (Patterns are
#: compiled when they are needed first: that takes as long, and most commands never do.)
_RARE_ESCAPE = rb'\\[^nrt"/bf]'
_ESCAPED_QUOTE = rb'\\"'
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
#: Escapes that are so far apart are taken one by one, at 0.3 µs each; or as many as this.
_FAR_APART_BYTES = 512
_FEW_ESCAPES = 64
#: What a text is full of shows in so many pieces of it, of this size.
_SAMPLES = 16
_SAMPLE_BYTES = 2048
#: A string as JSON writes it, with its quotes; letters of all scripts stay as they are, for grep.
quote: Callable[[str], str] = encode_basestring


class JournalError(BrokerUnavailable):
    """The log cannot be written, or does not hold (any more) what was looked for."""


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


class Records(NamedTuple):
    """Texts of one session, alike but for their ids and texts. All ids are what message ids are made of, and all texts
    are UTF-8."""

    ts: float
    msg_ids: Sequence[str]
    kind: Kind
    from_session: str
    from_name: str
    from_label: str | None
    to: str
    to_session_id: str | None
    bodies: Sequence[bytes]

    def apart(self) -> Iterator[Record]:
        """Each by itself."""
        for msg_id, body in zip(self.msg_ids, self.bodies, strict=True):
            yield Record(self.ts, msg_id, *self[2:8], None, "text", body)


class Earlier(NamedTuple):
    """Sender, receiver and place of a message that the journal holds."""

    from_session: str
    to_session_id: str | None
    place: int  #: order among the records: of two messages, the one accepted first has the lower place


def encode_all(records: Iterable[Record | Records | Spelled]) -> list[bytes | Spelled]:
    """Lines of the log, one for each message."""
    lines: list[bytes | Spelled] = []
    for record in records:
        if isinstance(record, Records):
            lines += _encode_alike(record)
        elif isinstance(record, Spelled):
            lines.append(record)
        else:
            lines.append(encode_record(record))
    return lines


def _encode_alike(records: Records) -> list[bytes]:
    """The same as `encode_record` makes of each, in a fifth of the time: what is looked for, or spelled in another way,
    is so in all of them at once. Where any of them holds what is rare, each is made by itself."""
    bodies = records.bodies
    between = _between(*records[2:8])
    texts = b"\0".join(bodies)
    # guards: journal format [texts.isascii() and =>]
    plain = texts.isascii() and between.isascii() and texts.count(b"\0") == len(bodies) - 1
    if not plain or any(character in texts for character in _RARE_BUT_NUL):
        return [encode_record(record) for record in records.apart()]
    for character, escape in _COMMON_ESCAPES:
        if character in texts:
            texts = texts.replace(character, escape)
    texts = _hide_marks(texts)  # guards: journal format
    start = _start(records.ts, "").removesuffix('",').encode()
    middle = f'",{between}"text":"'.encode()
    msg_ids = "\0".join(records.msg_ids).encode().split(b"\0")
    quoted = texts.split(b"\0")
    return [b'%b%b%b%b"}' % (start, msg_id, middle, text) for msg_id, text in zip(msg_ids, quoted, strict=True)]


def encode_record(record: Record) -> bytes:
    """One line of the log, without its newline. Raises `InvalidPayload` for a text that is not UTF-8."""
    ts, msg_id, _, _, _, _, _, _, reply_to, fmt, body = record
    if fmt == "text":
        if len(body) >= LARGE_BYTES:
            return _encode_large(record)
        # guards: journal format [f'"text":{_hide_mark(quote(_text(body)))}' => f'"text":{quote(_text(body))}']
        content = f'"text":{_hide_mark(quote(_text(body)))}'
    else:
        from binascii import b2a_base64  # not on everybody's path

        content = f'"fmt":{quote(fmt)},"text":"","data":"{b2a_base64(body, newline=False).decode()}"'
    rest = f"{_between(*record[2:8])}{_answers(reply_to)}{content}}}"
    if not rest.isascii():
        for character, escape in _LINE_ENDS:
            if character in rest:
                rest = rest.replace(character, escape)
    return f"{_start(ts, msg_id)}{rest}".encode()


def _encode_large(record: Record) -> bytes:
    """The same of a large text, in a quarter of the time: `bytes.replace` and `in` look for single characters with the
    processor's vector instructions, and the text is copied as seldom as can be."""
    return b"".join((_before(record, b'"text":"'), spell(record.fmt, record.body), b'"}'))


def spell(fmt: BodyFormat, body: bytes) -> bytes:
    """A large body as it stands in its line, between the quotes. A sender may make it, and have it put into the line as
    it is (`spelled_line`). Raises `InvalidPayload` for a text that is not UTF-8."""
    if fmt != "text":
        from binascii import b2a_base64  # not on everybody's path

        return b2a_base64(body, newline=False)  # which does not show what text a value holds
    ascii_only = body.isascii()
    if not ascii_only:
        _text(body)
    if any(character in body for character in _RARE_CONTROLS):
        quoted = quote(body.decode())[1:-1].encode()
    else:
        quoted = body
        for character, escape in _COMMON_ESCAPES:
            if character in quoted:
                quoted = quoted.replace(character, escape)
    if not ascii_only:
        for line_end, escaped in _LINE_ENDS:
            quoted = quoted.replace(line_end.encode(), escaped.encode())
    return _hide_marks(quoted)  # guards: journal format [_hide_marks(quoted) => quoted]


def _before(record: Record, opening: bytes) -> bytes:
    """The line up to its body, which follows upon `opening`."""
    head = f"{_between(*record[2:8])}{_answers(record.reply_to)}"
    if not head.isascii():
        for line_end, escaped in _LINE_ENDS:
            head = head.replace(line_end, escaped)
    return b"".join((_start(record.ts, record.msg_id).encode(), head.encode(), opening))


def _answers(reply_to: str | None) -> str:
    return "" if reply_to is None else f'"reply_to":{_hide_mark(quote(reply_to))},'


def _hide_mark(text: str) -> str:
    """A JSON string without `ID_MARK` in it."""
    return text.replace(ID_MARK, _HIDDEN_MARK) if "q" in text else text


def _hide_marks(text: bytes) -> bytes:
    """The same of what may be large."""
    return text.replace(ID_MARK.encode(), _HIDDEN_MARK.encode()) if re.search(_MARK, text) else text


class Spelled:
    """A line whose body is not copied into it before it is written: three parts, and the checksum of the whole."""

    __slots__ = ("crc", "parts", "size_bytes")

    def __init__(self, head: bytes, body: bytes, body_crc: int) -> None:
        self.parts = head, body, b'"}'
        self.size_bytes = len(head) + len(body) + 2
        self.crc = crc32(b'"}', combine(crc32(head), body_crc, len(body)))

    def __len__(self) -> int:
        return self.size_bytes

    def __repr__(self) -> str:
        return f"<Spelled line of {self.size_bytes:,} bytes>"


def spelled_line(record: Record, spelled: bytes, crc: int) -> Spelled:
    """The line of a record whose body, left empty here, somebody else has spelled with `spell`; its crc32 is `crc`.
    `check_spelled` says whether it may be used."""
    opening = b'"text":"' if record.fmt == "text" else f'"fmt":"{record.fmt}","text":"","data":"'.encode()
    return Spelled(_before(record, opening), spelled, crc)


def check_spelled(fmt: BodyFormat, spelled: bytes, size_bytes: int, crc: int) -> None:
    """Raises `InvalidPayload` for what somebody has spelled, if it has another checksum than was said, or is no body of
    that size between two quotes of JSON. A megabyte takes 0.6 ms without escapes, 1.1 ms with many of the common
    ones, and 3 ms with rare ones."""
    if crc32(spelled) != crc:  # guards: journal format: do not trust the checksum of a client [off]
        raise _not_spelled("something else than its checksum says")
    if fmt != "text":
        padding = -size_bytes % 3
        if spelled.translate(None, _BASE64) != b"=" * padding or not spelled.endswith(b"=" * padding):
            raise _not_spelled("what is no base64")
        return
    escapes = _count_plain_escapes(spelled)
    if escapes is None:
        size = _size_of_string(spelled)
    else:
        if any(code in spelled for code in range(32)):
            raise _not_spelled("control characters")
        if not spelled.isascii():
            _text(spelled)
        size = len(spelled) - escapes
    if size != size_bytes:
        raise _not_spelled("a text of another size than its sender says")


def _count_plain_escapes(spelled: bytes) -> int | None:
    """How many escapes of two characters there are; None where others may be, or two backslashes in a row, or a bare
    quote: those are for a parser, which takes twice the time."""
    if b"\\" not in spelled:
        return None if b'"' in spelled else 0
    if re.search(_RARE_ESCAPE, spelled) or spelled.endswith(b"\\"):
        return None
    if b'"' in spelled and len(re.findall(_ESCAPED_QUOTE, spelled)) != spelled.count(b'"'):
        return None
    return spelled.count(b"\\")


def _size_of_string(spelled: bytes) -> int:
    """How many bytes of UTF-8 a string of JSON stands for."""
    try:
        text = json.loads(f'"{spelled.decode()}"')  # not the bytes, which might be taken for UTF-16
        return len(text) if text.isascii() else len(text.encode())
    except (ValueError, RecursionError):  # of Unicode and of JSON
        raise _not_spelled("what is no string") from None


def _not_spelled(what: str) -> InvalidPayload:
    return InvalidPayload(
        f"what was put down for the log holds {what}; send it again, or update the program that sends"
    )


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InvalidPayload(f"the text is not UTF-8 ({error.reason}); send it as bytes") from None


def _start(ts: float, msg_id: str) -> str:
    return f'{{"ts":"{iso_time(ts)}","msg_id":{quote(msg_id)},'


@lru_cache(maxsize=256)
def _between(
    kind: str, from_session: str, from_name: str, from_label: str | None, to: str, to_session_id: str | None
) -> str:
    """The fields that say between whom it goes. Remembered, since two that talk have much to say."""
    label = "null" if from_label is None else quote(from_label)
    receiver = "null" if to_session_id is None else quote(to_session_id)
    return _hide_mark(
        f'"kind":"{kind}","from":{quote(from_session)},"from_name":{quote(from_name)},"from_label":{label},'
        f'"to":{quote(to)},"to_session_id":{receiver},'
    )


def decode_record(line: bytes) -> Record:
    """The record that a line of the log holds; keys that it does not know are passed over. Raises `JournalError`."""
    if len(line) >= LARGE_BYTES:
        head = decode_head(line[:HEAD_BYTES])
        large = decode_large(head, line[head.body_at : -2]) if head is not None and line.endswith(b'"}') else None
        if large is not None:
            return large
    try:
        fields = json.loads(line.decode())
        if type(fields) is not dict:
            raise ValueError("not an object")
        fmt, kind = fields.get("fmt", "text"), fields["kind"]
        if fmt not in ("text", "msgpack", "bytes") or kind not in _KINDS:
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


def decode_large(head: Head, content: bytes | bytearray) -> Record | None:
    """The record that begins with `head`, and has this between the quotes of its body: all of the line, but for the
    last two bytes. Without a parser, which would look at each character; None where it takes one, or where there is
    anything wrong. (What is no JSON within those quotes may get through, as some text; `encode_record` makes none.)"""
    if head.fmt != "text":
        if b'"' in content or b"\\" in content or not content.isascii():
            return None
        from binascii import a2b_base64

        try:
            return Record(*head[:9], head.fmt, a2b_base64(content))
        except ValueError:
            return None
    body: bytes | None
    if b"\\" in content:
        body = _unescaped(content)
    elif b'"' in content:
        return None
    else:
        body = bytes(content)
    if body is not None and not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            return None
    return None if body is None else Record(*head[:9], "text", body)


def decode_start(content: bytes) -> bytes:
    """The text whose beginning, as it stands in its line behind the opening quote, this is: up to the closing quote, or
    to the last character that is whole."""
    match = _string().match(content)
    assert match is not None  # it matches nothing, too
    whole = match[0].decode("utf-8", "ignore")  # the cut may have gone through a character
    try:
        text: str = json.loads(f'"{whole}"')
    except ValueError:  # an escape that there is not; `encode_record` makes none
        text = ""
    return text.encode("utf-8", "replace")  # half of a pair of escapes is left where the cut went between the two


def _unescaped(text: bytes | bytearray) -> bytes | None:
    """What a string of JSON stands for; None if that takes a parser, or if it is no string."""
    if text.count(b"\\", 0, _SAMPLE_BYTES) > _SAMPLE_BYTES // _FAR_APART_BYTES:
        return _unescaped_many(text)
    parts: list[bytes | bytearray] = []
    start = 0
    quotes = text.find(b'"')  # where the next one is
    for _ in range(max(_FEW_ESCAPES, len(text) // _FAR_APART_BYTES)):
        at = text.find(b"\\", start)
        if at < 0:
            at = len(text)
        if 0 <= quotes < at:
            return None  # it is not escaped
        parts.append(text[start:at])
        if at == len(text):
            return b"".join(parts)
        escaped = text[at + 1 : at + 2]
        if escaped == b"u":
            digits = text[at + 2 : at + 6]
            if len(digits) < 4 or not digits.isalnum():
                return None
            try:
                parts.append(chr(int(digits, 16)).encode())
            except ValueError:  # no digits, or half a character
                return None
            start = at + 6
            continue
        meant = _UNESCAPED.get(escaped[0]) if escaped else None
        if meant is None:
            return None
        parts.append(meant)
        start = at + 2
        if quotes == at + 1:
            quotes = text.find(b'"', start)
    return _unescaped_many(text)


def _unescaped_many(text: bytes | bytearray) -> bytes | None:
    """The same for texts with many escapes (lines, most of the time), at a third of what a parser takes.

    Python's own escapes are JSON's but for `\\u` and `\\/`, which it leaves as they are. So where a backslash is left
    it was escaped itself, unless one of these two follows. Python may warn of them, so texts that are seen to have
    them are not tried.
    """
    step = len(text) // _SAMPLES + 1
    samples = (text[at : at + _SAMPLE_BYTES] for at in range(0, len(text), step))
    if any(b"\\u" in sample or b"\\/" in sample for sample in samples):
        return None
    try:
        plain: bytes = escape_decode(text)[0]
    except (ValueError, Warning):
        return None
    at = -1
    for _ in range(MAX_LOOKS):
        at = plain.find(b"\\", at + 1)
        if at < 0:
            return plain
        if plain[at + 1 : at + 2] in (b"u", b"/"):
            return None
    return None


def is_of_work(head: bytes) -> bool:
    """Whether the record that begins so is a request to a group, or the answer to one: there may be very many, and who
    looks for messages passes them over."""
    # Time and id come before the kind, and neither can hold a quote.
    start = head[:80]
    return b'"kind":"request"' in start or b'"kind":"answer"' in start


def glance(head: bytes) -> tuple[str, str, str | None] | None:
    """Id, sender's and receiver's session of the record that begins so; None if no record does.

    `head` is a line, or the first `HEAD_BYTES` of a longer one. What comes after the fields is not looked at.
    """
    match = _head().match(head)
    if match is not None:
        try:
            return _unquoted(match["id"]), _unquoted(match["from"]), _nullable(match["session"])
        except ValueError:
            return None
    # Nothing that `encode_record` has made; another release may have put the keys in another order.
    try:
        record = decode_record(head)
    except JournalError:
        return None
    return record.msg_id, record.from_session, record.to_session_id


class Head(NamedTuple):
    """The short fields of a record, and where its body begins: what can be told without reading that."""

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
    """The short fields of the record that begins so; None if none does, or if `encode_record` has not made it.

    `head` is a line, or the first `HEAD_BYTES` of a longer one.
    """
    match = _whole_head().match(head)
    if match is None:
        return None
    try:
        return Head(
            _parse_ts(match["ts"].decode()),
            _unquoted(match["id"]),
            match["kind"].decode(),  # type: ignore[arg-type]  # the pattern takes no other
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
    """A body as something to read: a text as it is, values in Python's notation, bytes by their number."""
    if fmt == "text":
        return body.decode("utf-8", "replace")
    if fmt == "msgpack":
        import msgpack  # not on everybody's path

        try:
            return repr(msgpack.unpackb(body, strict_map_key=False))
        except Exception:  # whatever msgpack raises for what is not msgpack: it is shown as bytes
            pass
    return f"<{len(body)} bytes>"


#: What a JSON string may hold between its quotes. There is one way only to match it, so no string makes it slow.
STRING = rb'[^"\\\x00-\x1f]*(?:\\["\\/bfnrtu][^"\\\x00-\x1f]*)*'


def _fields() -> bytes:
    """A pattern for the fields before the text, as `encode_record` writes them."""
    kinds = "|".join(_KINDS).encode()
    return (
        rb'\{"ts":"(?P<ts>[0-9]{4}-[0-9T:.-]{1,30}Z)","msg_id":"(?P<id>%s)","kind":"(?P<kind>%s)","from":"(?P<from>%s)",'
        rb'"from_name":"(?P<name>%s)","from_label":(?:null|"(?P<label>%s)"),"to":"(?P<to>%s)",'
        rb'"to_session_id":(?:null|"(?P<session>%s)"),' % (STRING, kinds, *(STRING,) * 5)
    )


# Made when they are needed, for that takes 1 ms.
@lru_cache(maxsize=1)
def _head() -> re.Pattern[bytes]:
    return re.compile(_fields() + b'"')


@lru_cache(maxsize=1)
def _string() -> re.Pattern[bytes]:
    return re.compile(rb'(?:[^"\\\x00-\x1f]+|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')


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
    """ISO 8601 in UTC with milliseconds, as times are told to programs."""
    second, ms = divmod(round(ts * 1000), 1000)
    return f"{second_of(second)}.{ms:03d}Z"


@lru_cache(maxsize=2)
def second_of(second: int) -> str:
    """ISO 8601 up to the second. Remembered, since a second has many messages."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _parse_ts(text: str) -> float:
    import datetime  # 2 ms, and most readers never need it

    if not text.endswith("Z"):
        raise ValueError("a time without its zone")
    return datetime.datetime.fromisoformat(text[:-1] + "+00:00").timestamp()
