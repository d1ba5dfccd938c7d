"""What can happen to the broker, and what it can do: the words between the core and its shell.

Everything the core learns is one of the events, time included; everything it wants done is one of the effects, in the
order in which it has to become visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from zmqbus.broker.metrics import Metrics
from zmqbus.errors import ZmqbusError
from zmqbus.journal.record import Record, Records, SplicedLine
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Pointer


class Instant(NamedTuple):
    """Now."""

    mono_s: float  #: for every interval within one run
    wall_s: float  #: for what people read; jumps when the clock is set
    steady_s: float  #: the wall clock of the broker's start, plus what has passed since, sleep included: for ages


# --- events -----------------------------------------------------------------------------------------------------


class Received(NamedTuple):
    """One message from a connection."""

    route: bytes
    envelopes: list[verbs.Envelope]


class Malformed(NamedTuple):
    """A message that could not be decoded."""

    route: bytes
    reason: str


class Unreachable(NamedTuple):
    """The ROUTER knows no such route, or the peer behind it does not read."""

    route: bytes


class Marked(NamedTuple):
    """A client's subscriptions are in force."""

    lease: str


class Unmarked(NamedTuple):
    """A client's SUB connection has gone."""

    lease: str


class Journaled(NamedTuple):
    """What was staged has been written; a pointer for each record, in order."""

    pointers: Sequence[Pointer]


class JournalFailed(NamedTuple):
    """What was staged has not been written."""

    reason: str


class Committed(NamedTuple):
    """What the store was told so far is safe."""


class CommitFailed(NamedTuple):
    """It is not; the store keeps it and tries again with the next commit."""

    reason: str


class Tick(NamedTuple):
    """Time has passed."""


Event: TypeAlias = (
    Received | Malformed | Unreachable | Marked | Unmarked | Journaled | JournalFailed | Committed | CommitFailed | Tick
)

# --- effects ----------------------------------------------------------------------------------------------------


class Reply(NamedTuple):
    """Send over the ROUTER."""

    route: bytes
    envelope: verbs.Envelope


class Publish(NamedTuple):
    """Send over the PUB."""

    channel: bytes
    envelope: verbs.Envelope


class Append(NamedTuple):
    """Write to the journal before anything that follows becomes visible."""

    record: Record | Records | SplicedLine


class Note(NamedTuple):
    """A line for broker.log."""

    text: str


class Halt(NamedTuple):
    """The broker is asked to end."""


Effect: TypeAlias = Reply | Publish | Append | Note | Halt


class Outbox:
    """Where the parts of the core put their effects, in order."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self.appended = 0  #: records since the journal's last answer
        self.counts = Metrics()

    def __repr__(self) -> str:
        return f"<Outbox of {len(self._effects)}>"

    def put(self, effect: Effect) -> None:
        """Adds an effect behind the others."""
        self._effects.append(effect)

    def append(self, record: Record | SplicedLine) -> int:
        """Has a record, or a line that is made already, written. Returns its place among those of the wake, which the
        journal's answer will have, too: more than one part of the core writes."""
        self._effects.append(Append(record))
        self.appended += 1
        return self.appended - 1

    def append_all(self, records: Records) -> None:
        """Has several written."""
        self._effects.append(Append(records))
        self.appended += len(records.msg_ids)

    def reply(self, route: bytes, envelope: verbs.Envelope) -> None:
        """Says something to one connection."""
        self._effects.append(Reply(route, envelope))

    def refuse(self, route: bytes, ref: str, error: ZmqbusError) -> None:
        """Tells one connection that something is not done, and why. `ref`: see `protocol.Refused`."""
        code = getattr(error, "wire_code", error.code)
        self.counts.refuse(code)
        self._effects.append(Reply(route, verbs.Refused(ref, code, str(error))))

    def refuse_all(self, route: bytes, refs: Sequence[str], error: ZmqbusError) -> None:
        """Likewise of an envelope that holds several messages."""
        for ref in refs:
            self.refuse(route, ref, error)

    def note(self, text: str) -> None:
        """A line for broker.log."""
        self._effects.append(Note(text))

    def take(self) -> list[Effect]:
        """Empties it."""
        effects, self._effects = self._effects, []
        return effects
