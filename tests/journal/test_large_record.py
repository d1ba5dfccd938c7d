"""Large bodies: escaped, checked and unescaped as a parser would, in less time."""

from __future__ import annotations

import json
import zlib
from contextlib import nullcontext
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.records import KNOTS, MSG_IDS, RECORD, RECORDS, encode_record, records_of
from zmqbus.errors import InvalidPayload
from zmqbus.journal import large_record
from zmqbus.journal import record as record_module
from zmqbus.journal.large_record import LARGE_BYTES, check_escaped, escape_body, unescape_start
from zmqbus.journal.record import JournalError, decode_record, splice_line

#: Large enough for the code for large bodies.
LONG = "x" * LARGE_BYTES
#: Pieces of JSON strings: every kind of escape, and text that resembles one.
_WHOLE = ['"', "\\", "\\\\", '\\"', "\\n", "\\t", "\\/", "\\b", "\\u0041", "\\u00e9", "\\ud800", "\\u12", "\\uzzzz"]
_SINGLE = ["a", "\n", "\x00", "\x1f", "ß", "\x85", "\u2028", "u", "n"]
JSON_PIECES = st.lists(st.sampled_from([*_WHOLE, *_SINGLE]), max_size=12).map("".join)


def check(fmt: str, escaped: bytes, size_bytes: int) -> None:
    """Checks what a sender has escaped, with the right checksum."""
    check_escaped(fmt, escaped, size_bytes, zlib.crc32(escaped))


class TestLargeLines:
    @given(RECORDS, st.none() | MSG_IDS, KNOTS | JSON_PIECES)
    @example(RECORD._replace(fmt="bytes", body=b""), "aaaaaaaa", "")
    def test_round_trip(self, record, reply_to, knot):
        for fmt, body in (("text", (knot + LONG + knot).encode()), ("bytes", knot.encode() + bytes(range(256)) * 20)):
            made = record._replace(fmt=fmt, body=body, reply_to=reply_to)
            decoded = decode_record(encode_record(made))
            assert decoded._replace(ts=0) == made._replace(ts=0)

    @pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")  # of invalid JSON
    @given(JSON_PIECES, st.booleans())
    @example("\\", False)
    @example('"', False)
    @example('","x":"', False)
    @example('"}{"', False)
    @example('"\\"\\\\\\\\', False)
    def test_decoding_agrees_with_the_parser(self, piece, behind):
        text = LONG + piece if behind else piece + LONG
        start, _, rest = encode_record(RECORD._replace(body=b"@")).partition(b"@")
        made = start + text.encode() + rest
        try:
            with patch.object(record_module, "LARGE_BYTES", 10**9):
                slow = decode_record(made).body
        except JournalError:
            slow = None
        try:
            fast = decode_record(made).body
        except JournalError:
            fast = None
        if slow is None and fast is not None:  # never in the log: the broker checks bodies that a sender has escaped
            with pytest.raises(InvalidPayload):
                check("text", text.encode(), len(fast))
        else:
            assert fast == slow

    def test_many_and_rare_escapes(self):
        for text in ('"\n' * large_record._MAX_LOOKS, f"\x01\b{LONG}", f"\U0001f389{LONG}\\"):
            made = RECORD._replace(body=text.encode() + LONG.encode())
            assert decode_record(encode_record(made)).body == made.body

    @pytest.mark.parametrize("data", [b"not base64!", b"QUJD\xff", b'QU"JD', b"QQ"])
    def test_invalid_base64(self, data):
        start, _, _ = encode_record(RECORD._replace(fmt="bytes", body=b"AAAA")).partition(b"QUFBQQ==")
        made = start + data + b"QUJD" * 2000 + b'"}'
        try:
            with patch.object(record_module, "LARGE_BYTES", 10**9):
                slow = decode_record(made).body
        except JournalError:
            with pytest.raises(JournalError):
                decode_record(made)
        else:
            assert decode_record(made).body == slow


class TestEscapedBySender:
    @given(RECORDS, st.none() | MSG_IDS, KNOTS)
    def test_spliced_line_equals_the_encoded_record(self, record, reply_to, knot):
        body = (knot + LONG + knot).encode()
        made = record._replace(body=body, reply_to=reply_to)
        escaped = escape_body(made.fmt, made.body)
        check(made.fmt, escaped, len(body))
        line = splice_line(records_of(made), escaped, zlib.crc32(escaped))
        whole = b"".join(line.parts)
        assert whole == encode_record(made)
        assert (line.crc, line.size_bytes, len(line)) == (zlib.crc32(whole), len(whole), len(whole))
        assert line.parts[1] is escaped

    @given(JSON_PIECES, st.booleans())
    @example("\\", True)
    @example('\\\\"', False)
    @example('\\\\\\"', False)
    @example('"}\n{"', False)
    @example('\x00"\x00,', False)
    @example("\\" * 64, True)
    @example("\\" * 65, True)
    @example("\\" * 65 + '"', True)
    @example("\\" * 66 + '"', True)
    @example('\\"' * 5000, True)
    @example('\\"' * 5000 + '"', True)
    def test_accepts_exactly_the_valid_json_strings(self, piece, behind):
        escaped = (LONG + piece if behind else piece + LONG).encode()
        try:
            text = json.loads('"' + escaped.decode() + '"').encode()
        except ValueError:  # of JSON; or half a character
            text = None
        if text is None:
            with pytest.raises(InvalidPayload):
                check("text", escaped, len(escaped))
            return
        check("text", escaped, len(text))
        line = splice_line(records_of(RECORD), escaped, zlib.crc32(escaped))
        assert json.loads(b"".join(line.parts))["text"].encode() == text
        for size, crc in ((len(text) + 1, zlib.crc32(escaped)), (len(text), zlib.crc32(escaped) ^ 1)):
            with pytest.raises(InvalidPayload):
                check_escaped("text", escaped, size, crc)

    @pytest.mark.parametrize("at", [0, 256 * 1024 - 1, 256 * 1024, 512 * 1024])
    @pytest.mark.parametrize("code", range(32))
    def test_control_character_at_any_offset_is_refused(self, code, at):
        escaped = bytearray(b"x" * (2 * 256 * 1024 + 1))
        escaped[at] = code
        with pytest.raises(InvalidPayload, match="control characters"):
            check("text", bytes(escaped), len(escaped))

    @pytest.mark.parametrize("fmt", ["text", "bytes", "msgpack"])
    @pytest.mark.parametrize("bad", [b"\n", b'"', b"\\", b"\xff", b'a","text":"b', b"\\ud800", b"\\z", b"\0"])
    def test_invalid_content_is_refused(self, fmt, bad):
        escaped = LONG.encode() + bad
        for size in (len(escaped), len(escaped) - 1, len(escaped) // 4 * 3):
            with pytest.raises(InvalidPayload):
                check(fmt, escaped, size)

    @pytest.mark.parametrize("bad", [b"QQ=A", b"QQ==", b"Q===", b"====", b"QQ-_"])
    @pytest.mark.parametrize("size", [31, 32, 33])
    def test_padding_of_base64_only_at_its_end(self, bad, size):
        with nullcontext() if (bad, size) == (b"QQ==", 31) else pytest.raises(InvalidPayload):
            check("bytes", b"QUJD" * 10 + bad, size)

    def test_bytes_become_base64(self):
        assert escape_body("bytes", b"\xff\0") == b"/wA="
        check("bytes", b"/wA=", 2)
        check("msgpack", b"", 0)

    @pytest.mark.parametrize("size", [0, 70_000])
    @pytest.mark.parametrize("looks", [0, 1, 1000])
    def test_ids_among_similar_letters_are_hidden(self, looks, size):
        text = "q" + "quiz " * looks + "x" * size + "abc1zq3e abczq3df"
        escaped = escape_body("text", text.encode())
        assert b"abc1zq3e" not in escaped and b"abczq3df" not in escaped
        assert json.loads(b'"' + escaped + b'"') == text


class TestUnescapeStart:
    @given(KNOTS | JSON_PIECES, st.data())
    def test_any_prefix_gives_a_prefix_of_the_text(self, text, data):
        body = text.encode()
        escaped = escape_body("text", body) + b'"}'
        cut = data.draw(st.integers(0, len(escaped)))
        found = unescape_start(escaped[:cut]).decode()
        assert text.startswith(found)
        assert len(found) >= cut // 6 - 2 or found == text

    def test_ends_at_the_closing_quote(self):
        assert unescape_start(b'a\\"b\\u00e4","next":"x') == 'a"bä'.encode()

    @pytest.mark.parametrize("content", [b"", b'"', b"\\", b"\\u12", b"\\q", b"\n", b"\xff"])
    def test_invalid_string_gives_nothing(self, content):
        assert unescape_start(content) == b""

    def test_half_a_surrogate_pair_at_the_cut(self):
        assert unescape_start(b"a\\ud83d\\ude") == b"a?"
