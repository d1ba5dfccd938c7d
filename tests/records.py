"""Records for the tests of the log: a plain one, strategies for all others, and ways to write them."""

from __future__ import annotations

from hypothesis import strategies as st

from zmqbus.journal.filter import Entry
from zmqbus.journal.record import Record, Records, Route, encode
from zmqbus.journal.writer import Journal

RECORD = Record(
    ts=1767323045.678,
    msg_id="abc123def456",
    kind="message",
    from_session="123e4567-e89b-42d3-a456-426614174000",
    from_name="orchestrator",
    from_label=None,
    to="auth",
    to_session_id="223e4567-e89b-42d3-a456-426614174000",
    reply_to=None,
    fmt="text",
    body=b"run the tests",
)


def records_of(record: Record) -> Records:
    """The record as the broker would give it to be written."""
    route = Route(*(getattr(record, field) for field in Route._fields))
    return Records(record.ts, route, record.reply_to, record.fmt, (record.msg_id,), (record.body,))


def encode_record(record: Record) -> bytes:
    """The line of the log of one record."""
    (line,) = encode(records_of(record))
    return line


def line(msg_id: str = "abc123def456", text: str = "run the tests") -> bytes:
    return encode_record(RECORD._replace(msg_id=msg_id, body=text.encode()))


def ids(count: int, start: int = 0) -> list[str]:
    return [f"id{number:010}" for number in range(start, start + count)]


def write(log: Journal, count: int, start: int = 0) -> list[str]:
    """Appends so many messages one by one; returns their ids."""
    written = ids(count, start)
    for msg_id in written:
        log.append([line(msg_id, f"number {msg_id}")])
    return written


def ids_of(entries: list[Entry]) -> list[str]:
    return [entry.msg_id for entry in entries]


TEXTS = st.text(max_size=200)
#: Few letters, among them those of escapes, so that ids turn up in texts, overlap, and follow backslashes.
KNOTS = st.text(st.sampled_from('aanu0\\"\n\b\x01\x85 =msgre'), max_size=60)
MSG_IDS = st.text(st.sampled_from("abnu01"), min_size=8, max_size=12) | st.sampled_from(["aaaaaaaa", "u0001aaa"])
RECORDS = st.builds(
    Record,
    ts=st.integers(0, 4_000_000_000_000).map(lambda ms: ms / 1000),
    msg_id=MSG_IDS,
    kind=st.sampled_from(["message", "broadcast", "request", "answer"]),
    from_session=TEXTS,
    from_name=TEXTS,
    from_label=st.none() | TEXTS,
    to=TEXTS,
    to_session_id=st.none() | TEXTS,
    reply_to=st.none() | MSG_IDS | TEXTS,
    fmt=st.just("text"),
    body=(TEXTS | KNOTS).map(str.encode),
) | st.builds(
    RECORD._replace,
    fmt=st.sampled_from(["msgpack", "bytes"]),
    body=st.binary(max_size=200),
)
