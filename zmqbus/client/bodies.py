"""Bodies at their two ends: what an application gives becomes bytes with a format, and back.

A body over 64 KiB arrives as a pointer into messages.log, which the receiver reads by itself; so do the files in which
bodies end up have one copy of it, and the broker does not carry it twice.
"""

from __future__ import annotations

from zmqbus import naming, protocol
from zmqbus.client.core import Incoming
from zmqbus.errors import InvalidPayload
from zmqbus.protocol import Format, Scope

#: The log's words for the formats that can be read.
_WORDS: dict[int, str] = {Format.TEXT: "text", Format.MSGPACK: "msgpack"}


def from_text(text: str | bytes, *, to_many: bool) -> bytes:
    """The bytes of a text body. Raises `InvalidPayload` if it is not UTF-8, `TextTooLong` if it is over the limit."""
    if isinstance(text, bytes):
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise InvalidPayload(
                f"the text is not UTF-8 ({error.reason} at byte {error.start}); send the file itself with --file"
            ) from None
        body = text
    else:
        try:
            body = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidPayload(
                f"the text holds half a character ({error.reason} at {error.start}); send text that is valid Unicode"
            ) from None
    protocol.check_size(len(body), to_many=to_many)
    return body


def load(message: Incoming | protocol.Work | protocol.Result, log_path: str) -> bytes:
    """The whole body, from the message or from the journal. Raises `JournalError` if it is not there."""
    if message.pointer is None:
        return message.body
    from zmqbus import readback  # 3 ms with what it needs, which most commands never do

    return readback.read(log_path, readback.Pointer(*message.pointer)).body


def audience(message: Incoming | protocol.Broadcasts) -> str | None:
    """How a message to many was addressed, as its receivers are shown it: `all`, `#topic`, `%project name`. None: it
    was for this session alone."""
    if message.scope == Scope.ALL:
        return "all"
    if message.scope == Scope.TOPIC:
        return f"#{message.target}"
    if message.scope == Scope.PROJECT:
        return f"%{naming.project_name(message.target)}"
    return None


def as_text(fmt: int, body: bytes) -> str:
    """A body as something to read; see `record.as_text`."""
    from zmqbus import record

    return record.as_text(_WORDS.get(fmt, ""), body)
