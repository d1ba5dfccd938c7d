"""JSON strings for large bodies: escape, check and unescape megabytes without looking at each character in Python.

`json` takes several times as long for a megabyte as writing it does. `bytes.replace`, `in` and `find` look for single
characters with the processor's vector instructions, so everything here is built from them:

* `escape_body` makes the JSON string of a body. A sender may do that itself, so that the broker only splices the result
  into a line of the log (`record.splice_line`).
* `check_escaped` decides whether the broker may use what a sender has escaped; that takes a third of escaping.
* `decode_body` and `unescape_start` read it back, whole or from its beginning.

Pure: bytes in, bytes out.
"""

from __future__ import annotations

import json
import re
from codecs import escape_decode
from functools import lru_cache
from json.encoder import encode_basestring
from zlib import crc32

from zmqbus.errors import InvalidPayload
from zmqbus.wire.msg_ids import ID_MARK

#: Texts from this size on are worth these ways of escaping and reading.
LARGE_BYTES = 4 * 1024
#: How the mark of message ids is written where it is not an id (see `record`).
HIDDEN_MARK = "z\\u0071"
#: Legal within a JSON string, and line ends to half of the tools that work by lines.
LINE_ENDS = (("\x85", "\\u0085"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))
#: What a JSON string may not hold unescaped and texts are full of. The backslash comes first, since the other escapes
#: add more of it.
COMMON_ESCAPES = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\t", b"\\t"), (b"\r", b"\\r"))
#: What a JSON string may not hold unescaped and texts seldom have.
RARE_CONTROLS = tuple(bytes((code,)) for code in range(32) if code not in b"\n\t\r")

#: What each escape of two characters stands for. The others are rare, except the `u` of hidden marks.
_UNESCAPED = {ord(b"\\"): b"\\", ord(b'"'): b'"', ord(b"n"): b"\n", ord(b"t"): b"\t", ord(b"r"): b"\r", ord(b"/"): b"/"}
#: So many backslashes are looked at one by one, at 0.15 µs each; a text with more goes to the parser, which takes 1 ms
#: for a megabyte.
_MAX_LOOKS = 4_000
#: The mark of ids. It begins with the rarer of its characters, which is found at the speed of memchr, and looks back.
_MARK = rb"%b(?<=%b)" % (ID_MARK[-1].encode(), ID_MARK.encode())
#: A backslash before anything but the one character that stands for another; a second backslash and `u` are among
#: that. A pattern that begins with one plain character is found at the speed of memchr: a megabyte of prose takes
#: 0.4 ms. (Patterns are compiled at their first use: that takes as long, and most commands never need them.)
_RARE_ESCAPE = rb'\\[^nrt"/bf]'
_ESCAPED_QUOTE = rb'\\"'
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
#: Escapes that are so far apart are unescaped one by one, at 0.3 µs each; so are the first few of any text.
_FAR_APART_BYTES = 512
_FEW_ESCAPES = 64
#: So many pieces of this size show what a text is full of.
_SAMPLES = 16
_SAMPLE_BYTES = 2048


def escape_body(fmt: str, body: bytes) -> bytes:
    """The body as it stands in its line, between the quotes: escaped text, or base64 of bytes and values.

    Raises `InvalidPayload` for a text that is not UTF-8.
    """
    if fmt != "text":
        from binascii import b2a_base64  # most commands never need it

        return b2a_base64(body, newline=False)  # in base64, no id in a value can be mistaken for the record's own
    ascii_only = body.isascii()
    if not ascii_only:
        utf8_text(body)
    if any(character in body for character in RARE_CONTROLS):
        escaped = encode_basestring(body.decode())[1:-1].encode()
    else:
        escaped = body
        for character, escape in COMMON_ESCAPES:
            if character in escaped:
                escaped = escaped.replace(character, escape)
    if not ascii_only:
        for line_end, escape_sequence in LINE_ENDS:
            escaped = escaped.replace(line_end.encode(), escape_sequence.encode())
    return hide_marks(escaped)  # guards: journal format [hide_marks(escaped) => escaped]


def hide_marks(text: bytes) -> bytes:
    """A JSON string without `ID_MARK` in it: the same string to every parser, and no match for grep."""
    return text.replace(ID_MARK.encode(), HIDDEN_MARK.encode()) if re.search(_MARK, text) else text


def utf8_text(body: bytes) -> str:
    """Decodes a text. Raises `InvalidPayload` if it is not UTF-8."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InvalidPayload(f"the text is not UTF-8 ({error.reason}); send it as bytes") from None


# --- check ------------------------------------------------------------------------------------------------------


def check_escaped(fmt: str, escaped: bytes, size_bytes: int, crc: int) -> None:
    """Raises `InvalidPayload` unless `escaped` has this CRC-32 and is the JSON string of a body of this size.

    A megabyte takes 0.6 ms without escapes, 1.1 ms with many of the common ones, and 3 ms with rare ones.
    """
    if crc32(escaped) != crc:  # guards: journal format: do not trust the checksum of a client [off]
        raise _invalid("does not match its checksum")
    if fmt != "text":
        padding = -size_bytes % 3
        if escaped.translate(None, _BASE64) != b"=" * padding or not escaped.endswith(b"=" * padding):
            raise _invalid("is not base64")
        return
    escapes = _count_plain_escapes(escaped)
    if escapes is None:
        size = _size_of_string(escaped)
    else:
        if any(code in escaped for code in range(32)):
            raise _invalid("holds control characters")
        if not escaped.isascii():
            utf8_text(escaped)
        size = len(escaped) - escapes
    if size != size_bytes:
        raise _invalid("has another size than its sender says")


def _count_plain_escapes(escaped: bytes) -> int | None:
    """Count the escapes of two characters.

    None where there may be others, two backslashes in a row or a bare quote: only a parser can tell, in twice the time.
    """
    if b"\\" not in escaped:
        return None if b'"' in escaped else 0
    if re.search(_RARE_ESCAPE, escaped) or escaped.endswith(b"\\"):
        return None
    if b'"' in escaped and len(re.findall(_ESCAPED_QUOTE, escaped)) != escaped.count(b'"'):
        return None
    return escaped.count(b"\\")


def _size_of_string(escaped: bytes) -> int:
    """Parse a JSON string and return its size in bytes of UTF-8."""
    try:
        text = json.loads(f'"{escaped.decode()}"')  # from a str: json might take the bytes for UTF-16
        return len(text) if text.isascii() else len(text.encode())
    except (ValueError, RecursionError):  # of Unicode and of JSON
        raise _invalid("is not a JSON string") from None


def _invalid(fault: str) -> InvalidPayload:
    return InvalidPayload(f"the body in the spool file {fault}; send it again, or update the program that sends")


# --- read back --------------------------------------------------------------------------------------------------


def decode_body(fmt: str, content: bytes | bytearray) -> bytes | None:
    """The body that stands between the quotes as `content`, without a parser; None where only a parser can decide.

    Content that `escape_body` cannot have made may come through as some text.
    """
    if fmt != "text":
        return _decode_base64(content)
    if b"\\" in content:
        body = _unescape(content)
    else:
        body = None if b'"' in content else bytes(content)
    return body if body is None or _is_utf8(body) else None


def _decode_base64(content: bytes | bytearray) -> bytes | None:
    if b'"' in content or b"\\" in content or not content.isascii():
        return None
    from binascii import a2b_base64

    try:
        return a2b_base64(content)
    except ValueError:
        return None


def _is_utf8(body: bytes) -> bool:
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def unescape_start(content: bytes) -> bytes:
    """Unescape the beginning of a text: up to its closing quote, or to the last whole character of `content`."""
    match = _string().match(content)
    assert match is not None  # the pattern matches the empty string
    whole = match[0].decode("utf-8", "ignore")  # the cut may have gone through a character
    try:
        text: str = json.loads(f'"{whole}"')
    except ValueError:  # an escape that JSON does not have; `escape_body` makes none
        text = ""
    return text.encode("utf-8", "replace")  # a cut between the two escapes of a pair leaves half a character


@lru_cache(maxsize=1)
def _string() -> re.Pattern[bytes]:
    return re.compile(rb'(?:[^"\\\x00-\x1f]+|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')


def _unescape(text: bytes | bytearray) -> bytes | None:
    """Unescape a JSON string; None if that takes a parser, or if it is no string."""
    if text.count(b"\\", 0, _SAMPLE_BYTES) > _SAMPLE_BYTES // _FAR_APART_BYTES:
        return _unescape_many(text)
    return _unescape_few(text, max(_FEW_ESCAPES, len(text) // _FAR_APART_BYTES))


def _unescape_few(text: bytes | bytearray, limit: int) -> bytes | None:
    """Unescape a text with few escapes one by one; with more than `limit`, leave it to `_unescape_many`."""
    parts: list[bytes | bytearray] = []
    start = 0
    next_quote = text.find(b'"')
    for _ in range(limit):
        at = text.find(b"\\", start)
        if at < 0:
            at = len(text)
        if 0 <= next_quote < at:
            return None  # an unescaped quote
        parts.append(text[start:at])
        if at == len(text):
            return b"".join(parts)
        found = _escape_at(text, at)
        if found is None:
            return None
        meant, start = found
        parts.append(meant)
        if next_quote == at + 1:
            next_quote = text.find(b'"', start)
    return _unescape_many(text)


def _escape_at(text: bytes | bytearray, at: int) -> tuple[bytes, int] | None:
    """What the escape at this backslash stands for, and where it ends; None if it is none, or half a character."""
    kind = text[at + 1 : at + 2]
    if kind != b"u":
        meant = _UNESCAPED.get(kind[0]) if kind else None
        return None if meant is None else (meant, at + 2)
    digits = text[at + 2 : at + 6]
    if len(digits) < 4 or not digits.isalnum():
        return None
    try:
        return chr(int(digits, 16)).encode(), at + 6
    except ValueError:  # no digits, or half of a pair
        return None


def _unescape_many(text: bytes | bytearray) -> bytes | None:
    """Unescape a text with many escapes (most are lines), in a third of a parser's time.

    Python's own escapes are those of JSON except `\\u` and `\\/`, which it leaves as they are. So a backslash that is
    left was escaped itself, unless one of these two follows it. Python may warn of these two, so texts whose samples
    have them are not tried.
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
    for _ in range(_MAX_LOOKS):
        at = plain.find(b"\\", at + 1)
        if at < 0:
            return plain
        if plain[at + 1 : at + 2] in (b"u", b"/"):
            return None
    return None
