"""The header of a message, and the small vocabularies that its fields use.

A message is a header, an id and a body. Messages that were accepted together share one `Header` object, from the
broker's admission to the receiving application.

This module has no `from __future__ import annotations`: the codec reads the annotations at run time.
"""

from enum import IntEnum
from typing import Literal, TypeAlias

from zmqbus.tuples import NamedTuple


class Role(IntEnum):
    """What a connection is on the bus, told in HELLO."""

    LISTENER = 0  #: the process of a session that shows its messages
    PROGRAM = 1  #: a session that is a Python program
    HELPER = 2  #: a short-lived command that acts as a session
    GUEST = 3  #: a script that sends under a name and has no mailbox
    OBSERVER = 4  #: looks, and never sends


class Scope(IntEnum):
    """How a message is addressed."""

    SESSION = 0
    ALL = 1
    PROJECT = 2
    TOPIC = 3
    GROUP = 4


#: Scopes that reach many: numbered, published, counted against the rate limit.
TO_MANY = frozenset((Scope.ALL, Scope.PROJECT, Scope.TOPIC))


class Format(IntEnum):
    """The format of a body."""

    TEXT = 0  #: UTF-8
    MSGPACK = 1
    BYTES = 2


#: The names of the formats in the journal.
FORMAT_WORDS: dict[int, Literal["text", "msgpack", "bytes"]] = {
    Format.TEXT: "text",
    Format.MSGPACK: "msgpack",
    Format.BYTES: "bytes",
}


class State(IntEnum):
    """The outcome of a message, in RECEIPT."""

    DELIVERED = 0  #: the receiving application has taken it
    AWAY = 1  #: queued; the receiver is not connected
    BUSY = 2  #: queued; the receiver is connected and has not taken it within a second


#: What an agent does. `blocked`: it waits for a person; `gone`: its process has ended, or it has left the bus.
AGENT_STATES = ("working", "blocked", "idle", "gone", "unknown")
#: Characters of what a blocked agent waits for.
MAX_DETAIL_CHARS = 200


def detail_of(text: str) -> str:
    """Returns what a blocked agent waits for as one line, cut to `MAX_DETAIL_CHARS`."""
    return " ".join(text.split())[:MAX_DETAIL_CHARS]


#: Topics that the broker itself publishes on; nobody else may. Their names have a form that no other topic has.
SYSTEM_TOPICS = ("sys.sessions", "sys.state")

Pointer: TypeAlias = tuple[int, ...]
"""Where a spilled body's record stands in the journal: (segment, offset, length, crc)."""


class Header(NamedTuple):
    """Sender, address, format and time of messages that were accepted together: all but their ids and bodies."""

    from_session: str
    from_name: str
    from_label: str | None
    scope: int
    target: str  #: "" for SESSION and ALL
    fmt: int
    reply_to: str | None  #: id of the message that this one answers
    ts: float  #: when the broker accepted it: wall clock, s
