"""The lines of the log: their fields, and hidden ids of other messages."""

from __future__ import annotations

import json
from unittest.mock import patch
from zlib import crc32

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.records import KNOTS, MSG_IDS, RECORD, RECORDS, encode_record, line, records_of
from zmqbus.errors import InvalidPayload
from zmqbus.journal import record as record_module
from zmqbus.journal.large_record import LARGE_BYTES
from zmqbus.journal.record import (
    HEAD_BYTES,
    JournalError,
    SplicedLine,
    decode_ids,
    decode_record,
    encode,
    encode_all,
    is_request_or_answer,
    splice_line,
)

#: Ids as `ids.IdMaker` makes them, and shorter ones.
MARKED_IDS = st.builds(
    lambda before, after: f"{before}zq{after}",
    st.from_regex(r"[a-z0-9]{3,5}", fullmatch=True),
    st.from_regex(r"[a-z0-9]{3,5}", fullmatch=True),
)


@given(RECORDS)
def test_requests_and_answers_are_recognised_by_their_start(record):
    assert is_request_or_answer(encode_record(record)[:HEAD_BYTES]) == (record.kind in ("request", "answer"))


class TestLines:
    def test_line_of_a_message(self):
        assert encode_record(RECORD) == (
            b'{"ts":"2026-01-02T03:04:05.678Z","msg_id":"abc123def456","kind":"message",'
            b'"from":"123e4567-e89b-42d3-a456-426614174000","from_name":"orchestrator","from_label":null,'
            b'"to":"auth","to_session_id":"223e4567-e89b-42d3-a456-426614174000","text":"run the tests"}'
        )

    def test_line_of_a_broadcast_of_bytes(self):
        record = RECORD._replace(
            kind="broadcast", to="all", to_session_id=None, reply_to="zzz99999", from_label="Größe", fmt="bytes"
        )
        fields = json.loads(encode_record(record._replace(body=b"\xff\0")))
        assert fields["reply_to"] == "zzz99999"
        assert (fields["fmt"], fields["text"], fields["data"]) == ("bytes", "", "/wA=")
        assert (fields["to_session_id"], fields["from_label"]) == (None, "Größe")

    @pytest.mark.parametrize(
        ("ts", "text"),
        [
            (0.0, "1970-01-01T00:00:00.000Z"),
            (1767323045.0004, "2026-01-02T03:04:05.000Z"),
            (1767323045.9996, "2026-01-02T03:04:06.000Z"),
            (1767323045.05, "2026-01-02T03:04:05.050Z"),
        ],
    )
    def test_time_is_utc_to_the_millisecond(self, ts, text):
        encoded = encode_record(RECORD._replace(ts=ts))
        assert json.loads(encoded)["ts"] == text
        assert decode_record(encoded).ts == pytest.approx(ts, abs=0.0006)

    @given(RECORDS)
    def test_round_trip(self, record):
        encoded = encode_record(record)
        decoded = decode_record(encoded)
        assert decoded._replace(ts=0) == record._replace(ts=0)
        assert decoded.ts == pytest.approx(record.ts, abs=0.0006)
        assert json.loads(encoded)["msg_id"] == record.msg_id

    @given(RECORDS)
    def test_one_line_to_every_tool(self, record):
        assert len(encode_record(record).decode().splitlines()) == 1

    @given(RECORDS, MARKED_IDS, KNOTS, KNOTS)
    @example(RECORD, "zqzqzqzq", "", "")
    @example(RECORD._replace(from_name="x-auth1zq345"), "auth1zq345", "\\", "zq")
    @example(RECORD, "u0071zq1", "z\\", "z\\u0071")
    @example(RECORD, "aaaazqaa", "q", "z")
    def test_ids_of_other_messages_are_hidden(self, record, other, before, after):
        """In the text, in a name or a label, or in `reply_to`."""
        record = record._replace(
            msg_id="own9zzq99own",
            fmt="text",
            body=f"{before}{other}{after} see {other}, msg={other}".encode(),
            from_label=other,
            to=f"%/home/{other}",
            reply_to=other,
        )
        encoded = encode_record(record)
        assert other.encode() not in encoded
        assert b'"msg_id":"own9zzq99own"' in encoded
        assert decode_record(encoded)._replace(ts=0) == record._replace(ts=0)

    @given(RECORDS, st.none() | MSG_IDS, KNOTS, MSG_IDS)
    @example(RECORD, None, 'a \\"b"\n\r\t', "aaaaaaaa")
    @example(RECORD, None, "\x00\x1f\x7f\b\f\\n", "aaaaaaaa")
    @example(RECORD._replace(from_name="x\u2028"), "aaaaaaaa", "aaaaaaaaa \x85\u2029", "aaaaaaaa")
    def test_large_text_becomes_the_same_line(self, record, reply_to, knot, quoted):
        texts = [knot, f"{knot} msg={quoted} zq{quoted}\n{reply_to}"]
        bodies = [record.body, *(text.encode() for text in texts)]
        for body in bodies:
            made = record._replace(body=body, reply_to=reply_to)
            with patch.object(record_module, "LARGE_BYTES", 0):
                large = encode_record(made)
            with patch.object(record_module, "LARGE_BYTES", 10**9):
                assert encode_record(made) == large

    def test_own_id_stays_visible_in_an_answer_to_itself(self):
        encoded = encode_record(RECORD._replace(msg_id="abzq1234", reply_to="abzq1234", body=b"abzq1234"))
        assert encoded.count(b"abzq1234") == 1

    def test_letters_of_all_scripts_stay_as_they_are(self):
        assert "Größe 値 🎉".encode() in encode_record(RECORD._replace(body="Größe 値 🎉".encode()))

    def test_text_that_is_not_utf8_is_refused(self):
        with pytest.raises(InvalidPayload, match="not UTF-8"):
            encode_record(RECORD._replace(body=b"\xff"))

    @given(
        st.binary(max_size=100)
        | st.sampled_from([b"[]", b"1", b"{}", b"[" * 100_000, b'"\\ud800"'])
        | st.dictionaries(
            st.sampled_from(list(json.loads(line()))),
            st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
            min_size=1,
            max_size=3,
        ).map(lambda wrong: json.dumps({**json.loads(line()), **wrong}).encode())
    )
    def test_damage_raises_only_journal_errors(self, garbage):
        try:
            record = decode_record(garbage)
        except JournalError as error:
            assert "damaged" in str(error)
        else:
            assert all(isinstance(value, str) for value in (record.msg_id, record.from_session, record.to))

    def test_lone_surrogate_is_damage(self):
        with pytest.raises(JournalError):
            decode_record(line().replace(b"run the tests", b"\\ud800"))

    def test_first_line_of_a_segment_is_refused(self):
        with pytest.raises(JournalError):
            decode_record(b'{"kind":"segment","segment":1,"format":1,"created":"2026-01-02T03:04:05Z"}')

    def test_unknown_keys_are_ignored(self):
        assert decode_record(line()[:-1] + b',"later":[1]}') == RECORD


class TestDecodeIds:
    @given(RECORDS)
    @example(RECORD._replace(from_name='","to_session_id":"x","text":"', body=b'"to_session_id":"x"'))
    @example(RECORD._replace(to_session_id=None, to='\\","to_session_id":"x",'))
    @example(RECORD._replace(from_session="\\", to_session_id='"', msg_id="\x01\x85é"))
    def test_equals_decode_record(self, record):
        assert decode_ids(encode_record(record)) == (record.msg_id, record.from_session, record.to_session_id)

    @given(RECORDS)
    def test_head_is_enough(self, record):
        encoded = encode_record(record._replace(fmt="text", body=b'"to_session_id":"x",' * 2000))
        assert len(encoded) > HEAD_BYTES
        assert decode_ids(encoded[:HEAD_BYTES]) == (record.msg_id, record.from_session, record.to_session_id)

    def test_head_holds_the_longest_fields(self):
        """Names of 40 characters, labels of 60, ids of 36, and each of them a character that takes the most room."""
        worst = "\x01"
        record = RECORD._replace(from_session=36 * worst, from_name=40 * worst, from_label=60 * worst, to=40 * worst)
        assert 10 * encode_record(record).index(b'"text"') < HEAD_BYTES

    def test_keys_in_another_order(self):
        fields = json.loads(line())
        encoded = json.dumps(dict(reversed(fields.items()))).encode()
        assert decode_ids(encoded) == (RECORD.msg_id, RECORD.from_session, RECORD.to_session_id)

    @pytest.mark.parametrize("mark", [b'"kind":"message"', b'"from":"', b'"to":', b'"ts":"2026'])
    def test_line_that_is_damaged_in_its_head(self, mark):
        assert decode_ids(line().replace(mark, mark[:-1] + b"\xff")) is None

    @pytest.mark.parametrize("damage", [b"\xff", b"\\u12", b"\\x", b"\x01"])
    @pytest.mark.parametrize("value", [RECORD.msg_id, RECORD.from_session, RECORD.to_session_id])
    def test_string_that_is_damaged(self, value, damage):
        assert decode_ids(line().replace(value.encode(), damage)) is None

    @given(st.integers(1, len(line()) - 1))
    def test_line_that_begins_in_the_middle(self, start):
        assert decode_ids(line()[start:]) is None

    @given(st.binary(max_size=100) | st.sampled_from([b"[" * 100_000, b'{"ts":"' + b'\\"' * HEAD_BYTES]))
    def test_garbage(self, garbage):
        assert decode_ids(garbage) is None

    def test_unterminated_strings_take_no_time(self):
        """Each string can be matched in one way only, or this would take for ever."""
        head = line().split(b'"from_name"')[0] + b'"from_name":"' + b"\\\\a" * (HEAD_BYTES // 2)
        assert decode_ids(head) is None


#: Pieces of texts: line ends, characters that JSON escapes, ids that grep must not find, and plain characters.
PIECES = st.sampled_from(
    [
        *("a", " ", "\n", "\r", "\t", '"', "\\", "\\n", "\x01", "\x08", "\x7f", "\x85", "\u2028", "\u2029", "é", "🚀"),
        *("=", "msg=", "re=", "msg=abcdefgh", "re=abcdefgh12", "msg=abcdefgh msg=bcdefgh1", "abc123def456", "}", "{"),
    ]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=8).map("".join),
    st.text(max_size=20),
    st.sampled_from(("x" * (LARGE_BYTES - 1), "x" * LARGE_BYTES, '"\\' * LARGE_BYTES, "é" * LARGE_BYTES)),
)
NAMES = st.sampled_from(("alice", "orchestrator", "Größe \u2028", 'a "b" \\', "msg=abcdefgh", "re=abcdefgh1"))


class TestBatches:
    """Messages that are encoded together give the same lines as one by one."""

    @given(st.lists(st.tuples(MSG_IDS, TEXTS), max_size=12), RECORDS)
    @example([("abcdefgh", "a\nb"), ("bcdefghi", "")], RECORD)
    @example([("abcdefgh", ""), ("bcdefghi", ""), ("cdefghij", "")], RECORD)
    @example([("abzqefgh", "see abzqefgh"), ("bczqfghi", "x")], RECORD._replace(reply_to="abzqefgh"))
    @example([("abcdefgh", "x"), ("bcdefghi", "a\u2028b")], RECORD)
    @example([("abzqefgh", "z"), ("bczqfghi", "qz")], RECORD._replace(fmt="bytes"))
    def test_each_line_is_that_of_a_single_message(self, messages, record):
        msg_ids = [msg_id for msg_id, _ in messages]
        bodies = [text.encode() for _, text in messages]
        records = records_of(record)._replace(msg_ids=msg_ids, bodies=bodies)
        assert encode(records) == [
            encode_record(record._replace(msg_id=msg_id, body=body))
            for msg_id, body in zip(msg_ids, bodies, strict=True)
        ]

    @given(st.lists(st.one_of(RECORDS, st.binary(max_size=20)), max_size=5))
    def test_order_among_spliced_lines(self, parts):
        wanted = [
            splice_line(records_of(RECORD), part, crc32(part)) if isinstance(part, bytes) else records_of(part)
            for part in parts
        ]
        lines = encode_all(wanted)
        assert [line for line in lines if isinstance(line, SplicedLine)] == [
            one for one in wanted if isinstance(one, SplicedLine)
        ]
        assert [b"" if isinstance(line, SplicedLine) else line for line in lines] == [
            b"" if isinstance(part, bytes) else encode_record(part) for part in parts
        ]
