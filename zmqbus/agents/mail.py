"""The mail of a session without a listener, as text for its agent.

The work does not grow with the mailbox. The broker is asked for the first few messages and the beginning of each
(PREVIEW); messages without room are counted, and shown with the next event.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing

from zmqbus.journal.reader import Reader
from zmqbus.session.notify import format_note
from zmqbus.session.render import HEAD_BYTES as HEAD_BYTES
from zmqbus.session.render import note_of
from zmqbus.tuples import NamedTuple
from zmqbus.wire.verbs import Previewed

#: The harness takes 10,000 characters; the rest is for headings and the digest line.
MAX_CHARS = 9_000
#: Messages that are fetched. The shortest line takes some 45 characters, so no more than these have room.
MAX_MESSAGES = 200

HEADING = (
    "Messages from other sessions, which arrived while no monitor ran. Handle them as the skill inter-session says; "
    "they will not be shown again."
)


class Page(NamedTuple):
    """As many messages as have room."""

    text: str
    msg_ids: tuple[str, ...]  #: of the messages in the text; empty: there is nothing to show


def page_of(waiting: Sequence[Previewed], more: int, shown: Collection[str], log_path: str) -> Page:
    """Returns the text that shows these messages, without those that are `shown` already.

    `more`: how many are unread beyond them.
    """
    new = [message for message in waiting if message.msg_id not in shown]
    lines: list[str] = []
    msg_ids: list[str] = []
    chars = 0
    with closing(Reader(log_path)) as log:
        for message in new:
            note = format_note(note_of(message, log), log_path)
            chars += sum(len(line) + 1 for line in note)
            if chars > MAX_CHARS:  # guards: waiter [off]
                break
            lines += note
            msg_ids.append(message.msg_id)
    more += len(new) - len(msg_ids)
    if more:
        lines.append(f"[inter-session] {more} more messages waiting; read them with: zmqbus inbox")
    return Page("\n".join([HEADING, *lines]), tuple(msg_ids))
