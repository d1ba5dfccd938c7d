"""What the commands print with `--json`: one form for each thing, whichever command tells of it.

docs/json.md describes them for people, output.schema.json beside this file for programs; a test holds what every
command prints against the latter. Times are ISO 8601 in UTC with milliseconds, as in messages.log; ages and durations
are numbers whose unit is in their name (`away_s`), sizes likewise (`memory_bytes`). What is not known is null.
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
    """One value as one line, which standard output can write in its encoding, and no terminal obeys."""
    return to_json(value, ascii_only=not takes_unicode())


def print_json(value: Any) -> None:
    """One value, one line."""
    print(encode(value))


def message(record: Record) -> dict[str, Any]:
    """A message: the keys of messages.log, complete. Values have a readable `text`, and themselves in `data`."""
    fields = _fields(record, as_text(record.fmt, record.body))
    if record.fmt != "text":
        from binascii import b2a_base64  # not on everybody's path

        fields["data"] = b2a_base64(record.body, newline=False).decode()
    return fields


def entry(found: Entry, load: Callable[[Entry], Record]) -> dict[str, Any]:
    """The same of an entry of the history; `load` gives its record, and is asked where the entry is not all of it."""
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
    """A message as it came to the session with this name and id."""
    to = payload.audience(incoming)
    return message(
        Record(
            incoming.ts,
            incoming.msg_id,
            "message" if to is None else "broadcast",
            incoming.from_session,
            incoming.from_name,
            incoming.from_label,
            (name or "") if to is None else to,
            session_id if to is None else None,
            incoming.reply_to,
            verbs.FORMAT_WORDS.get(incoming.fmt, "bytes"),
            body,
        )
    )


def receipt(told: Receipt | BroadcastReceipt) -> dict[str, Any]:
    """What became of a message that was sent."""
    if isinstance(told, BroadcastReceipt):
        return {"state": "broadcast", **told._asdict(), "full": list(told.full), "unsaved": list(told.unsaved)}
    return told._asdict()


def refusal(to: str, error: ZmqbusError) -> dict[str, Any]:
    """What stands in the place of a receipt where a message could not be sent."""
    return {"state": "failed", "to": to, "error": {"code": error.code, "message": str(error)}}


def session(row: Session) -> dict[str, Any]:
    """A session; `since` tells since when it has been in its state, as in the table."""
    since_ts = row.since if row.state != "away" else time.time() - row.away_s
    return {**row._asdict(), "since": iso_time(since_ts)}
