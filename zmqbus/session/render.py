"""From the message that came to the note that is shown: the two halves that `notify`, which is pure, does not know.

A line shows some 400 characters of a text, so of a large one only the beginning is read. Of a value that is as large,
only the size is told: no beginning of it can be read by itself.
"""

from __future__ import annotations

from zmqbus.client import payload
from zmqbus.client.core import Incoming
from zmqbus.journal.reader import Reader
from zmqbus.journal.record import JournalError
from zmqbus.session.notify import Note, format_size
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format

#: So much of a text is looked at: 400 characters of four bytes at most, and as much again that is not shown (colours).
HEAD_BYTES = 4096
#: Bodies up to this size are read whole where they are in the log, which checks them: that takes a third of a
#: millisecond.
WHOLE_BYTES = 256 * 1024


def note_of(message: Incoming | verbs.Previewed, log: Reader) -> Note:
    """What to show of a message. Where its text is in the log and cannot be read there, the note says so."""
    try:
        text, size_bytes = _beginning(message, log)
    except JournalError as error:
        text = f"({payload.damage(message.msg_id, message.from_name, error)})"
        size_bytes = len(text.encode())
    return Note(
        msg_id=message.msg_id,
        from_session=message.from_session,
        from_name=message.from_name,
        from_label=message.from_label,
        text=text,
        reply_to=message.reply_to,
        to=payload.audience(message),
        age_s=message.age_s if message.age_s >= 0 else None,
        size_bytes=size_bytes,
        tag=message.ticket if isinstance(message, Incoming) else message.msg_id,
    )


def _beginning(message: Incoming | verbs.Previewed, log: Reader) -> tuple[str, int]:
    """As much of the body as may be shown, as text, and the size of all of it."""
    here = message.body if isinstance(message, Incoming) else message.head
    size_bytes = message.size_bytes
    if message.pointer is not None and not here and size_bytes:  # it is in the log alone
        if size_bytes <= WHOLE_BYTES:  # or not told: then it went to many, and is no larger
            here = log.read(message.pointer).body
            size_bytes = len(here)
        elif message.fmt == Format.TEXT:
            here = log.read_head(message.pointer, message.msg_id, HEAD_BYTES)
    if message.fmt == Format.TEXT:
        # The end of a beginning may be half of a character.
        return here.decode("utf-8", "ignore" if len(here) < size_bytes else "replace"), size_bytes
    if len(here) < size_bytes and message.fmt == Format.MSGPACK:
        return f"<a value of {format_size(size_bytes)}>", size_bytes
    text = f"<{size_bytes} bytes>" if len(here) < size_bytes else payload.as_text(message.fmt, here)
    # Of the text: a value is shorter or longer in Python's notation than on the wire, and is not cut for that.
    return text, len(text.encode("utf-8", "surrogatepass"))
