"""JSON forms for `--json`: one for each kind of object, whichever command prints it.

docs/json.md describes them for people, output.schema.json beside this file for programs; a test validates the output of
every command against the schema. Times are ISO 8601 in UTC with milliseconds, as in messages.log; ages and durations
are numbers whose unit is in their name (`away_s`), sizes likewise (`memory_bytes`). Unknown values are null.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zmqbus.client import payload
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.errors import ZmqbusError
from zmqbus.journal.record import Record, as_text, iso_time
from zmqbus.system.streams import takes_unicode
from zmqbus.text.display import to_json
from zmqbus.wire import verbs

if TYPE_CHECKING:
    from zmqbus.client.core import Incoming
    from zmqbus.journal.filter import Entry
    from zmqbus.wire.verbs import Session


def encode(value: Any) -> str:
    """One value as one line that standard output can encode and that drives no terminal."""
    return to_json(value, ascii_only=not takes_unicode())


def print_json(value: Any) -> None:
    """Prints one value as one line."""
    print(encode(value))


def message(record: Record) -> dict[str, Any]:
    """A whole message, with the keys of messages.log. A value has a readable `text`, and its bytes in `data`."""
    fields = _fields(record, as_text(record.fmt, record.body))
    if record.fmt != "text":
        from binascii import b2a_base64  # rarely needed

        fields["data"] = b2a_base64(record.body, newline=False).decode()
    return fields


def entry(found: Entry, load: Callable[[Entry], Record]) -> dict[str, Any]:
    """A message from an entry of the history; `load` reads its record where the entry holds only its beginning."""
    return _fields(found, found.head) if found.fmt == "text" and found.whole else message(load(found))


def _fields(header: Record | Entry, text: str) -> dict[str, Any]:
    return {
        "ts": iso_time(header.ts),
        "msg_id": header.msg_id,
        "kind": header.kind,
        "from": header.from_session,
        "from_name": header.from_name,
        "from_label": header.from_label,
        "to": header.to,
        "to_session_id": header.to_session_id,
        "reply_to": header.reply_to,
        "fmt": header.fmt,
        "text": text,
    }


def arrived(incoming: Incoming, body: bytes, name: str | None, session_id: str | None) -> dict[str, Any]:
    """A message as the session with this name and id received it."""
    header = incoming.header
    to = payload.audience(header)
    return message(
        Record(
            header.ts,
            incoming.msg_id,
            "message" if to is None else "broadcast",
            header.from_session,
            header.from_name,
            header.from_label,
            (name or "") if to is None else to,
            session_id if to is None else None,
            header.reply_to,
            verbs.FORMAT_WORDS.get(header.fmt, "bytes"),
            body,
        )
    )


def receipt(outcome: Receipt | BroadcastReceipt) -> dict[str, Any]:
    """The receipt of a sent message."""
    if isinstance(outcome, BroadcastReceipt):
        return {"state": "broadcast", **outcome._asdict(), "full": list(outcome.full), "unsaved": list(outcome.unsaved)}
    return outcome._asdict()


def refusal(to: str, error: ZmqbusError) -> dict[str, Any]:
    """The error in place of a receipt where a message could not be sent."""
    return {"state": "failed", "to": to, "error": {"code": error.code, "message": str(error)}}


def session(row: Session) -> dict[str, Any]:
    """A session; `since` is when it got into its state, as in the table."""
    since_ts = row.since if row.state != "away" else time.time() - row.away_s
    return {**row._asdict(), "since": iso_time(since_ts)}
