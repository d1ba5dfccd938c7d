"""Turns an arrived message into the note to show: reads its text, which `notify`, being pure, cannot.

A line shows some 400 characters of a text, so only the beginning of a large text is read. For a large value only the
size is shown, because its beginning cannot be decoded by itself.
"""

from __future__ import annotations

from zmqbus.client import payload
from zmqbus.client.core import Incoming
from zmqbus.journal.reader import Reader
from zmqbus.journal.record import JournalError
from zmqbus.session.notify import Note
from zmqbus.text.units import format_size
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format

#: The part of a text that is read: 400 characters of at most four bytes, and some more that are not shown (colours).
HEAD_BYTES = 4096
#: Bodies up to this size are read from the log as a whole, which checks them: that takes a third of a millisecond.
WHOLE_BYTES = 256 * 1024


def note_of(message: Incoming | verbs.Previewed, log: Reader) -> Note:
    """The note that shows a message. Where its text cannot be read from the log, the note says so."""
    header = message if isinstance(message, verbs.Previewed) else message.header
    try:
        text, size_bytes = _beginning(message, header.fmt, log)
    except JournalError as error:
        text = f"({payload.damage(message.msg_id, header.from_name, error)})"
        size_bytes = len(text.encode())
    return Note(
        msg_id=message.msg_id,
        from_session=header.from_session,
        from_name=header.from_name,
        from_label=header.from_label,
        text=text,
        reply_to=header.reply_to,
        to=payload.audience(header),
        age_s=message.age_s if message.age_s >= 0 else None,
        size_bytes=size_bytes,
        tag=message.ticket if isinstance(message, Incoming) else message.msg_id,
    )


def _beginning(message: Incoming | verbs.Previewed, fmt: int, log: Reader) -> tuple[str, int]:
    """The beginning of the body, as text, and the size of the whole."""
    here = message.body if isinstance(message, Incoming) else message.head
    size_bytes = message.size_bytes
    if message.pointer is not None and not here and size_bytes:  # only in the log
        if size_bytes <= WHOLE_BYTES:  # or unknown: then it went to many, and is no larger
            here = log.read(message.pointer).body
            size_bytes = len(here)
        elif fmt == Format.TEXT:
            here = log.read_head(message.pointer, message.msg_id, HEAD_BYTES)
    if fmt == Format.TEXT:
        # A cut text may end in the middle of a character.
        return here.decode("utf-8", "ignore" if len(here) < size_bytes else "replace"), size_bytes
    if len(here) < size_bytes and fmt == Format.MSGPACK:
        return f"<a value of {format_size(size_bytes)}>", size_bytes
    text = f"<{size_bytes} bytes>" if len(here) < size_bytes else payload.as_text(fmt, here)
    # The size of the text: a value has another length in Python's notation than on the wire.
    return text, len(text.encode("utf-8", "surrogatepass"))
