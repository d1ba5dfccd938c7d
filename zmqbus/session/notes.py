"""From the message that came to the note that is shown: the two halves that `notify`, which is pure, does not know."""

from __future__ import annotations

from zmqbus import readback  # noqa: F401 (as in `client.messages`: not to be loaded when it is needed)
from zmqbus.client import bodies
from zmqbus.client.core import Incoming
from zmqbus.session.notify import Note


def note_of(message: Incoming, log_path: str) -> Note:
    """What to show of a message. Where its text is in the log and cannot be read there, the note says so."""
    fmt, body, _ = bodies.readable(message, log_path)
    text = bodies.as_text(fmt, body)
    return Note(
        msg_id=message.msg_id,
        from_session=message.from_session,
        from_name=message.from_name,
        from_label=message.from_label,
        text=text,
        reply_to=message.reply_to,
        to=bodies.audience(message),
        age_s=message.age_s if message.age_s >= 0 else None,
        size_bytes=len(body),
        tag=message.ticket,
    )
