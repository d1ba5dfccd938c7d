"""Events and effects: the interface between the broker's core and its shell.

All input of the core, time included, is an event; all its output is an effect, in the order in which it has to become
visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from zmqbus.broker.metrics import Metrics
from zmqbus.errors import ZmqbusError
from zmqbus.journal.record import Records, SplicedLine
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Pointer


class Instant(NamedTuple):
    """The current time, by three clocks."""

    mono_s: float  #: monotonic: for intervals within one run
    wall_s: float  #: wall clock: for timestamps that people read; jumps when the clock is set
    steady_s: float  #: wall clock at the broker's start plus the time since, sleep included: for ages


# --- events -----------------------------------------------------------------------------------------------------


class Received(NamedTuple):
    """The envelopes of one message from a connection."""

    route: bytes
    envelopes: list[verbs.Envelope]


class Malformed(NamedTuple):
    """A message that could not be decoded."""

    route: bytes
    reason: str


class Unreachable(NamedTuple):
    """The ROUTER has no connection of this route, or its peer does not read."""

    route: bytes


class Marked(NamedTuple):
    """A client's presence subscription has arrived: all its subscriptions are in force."""

    lease: str


class Unmarked(NamedTuple):
    """A client's presence subscription is gone, and so is its SUB connection."""

    lease: str


class Journaled(NamedTuple):
    """The appended records have been written; a pointer for each, in order."""

    pointers: Sequence[Pointer]


class JournalFailed(NamedTuple):
    """The appended records could not be written."""

    reason: str


class Committed(NamedTuple):
    """All changes of the store so far are committed."""


class CommitFailed(NamedTuple):
    """The changes could not be committed; the store keeps them and tries again with the next commit."""

    reason: str


class Tick(NamedTuple):
    """Time has passed."""


Event: TypeAlias = (
    Received | Malformed | Unreachable | Marked | Unmarked | Journaled | JournalFailed | Committed | CommitFailed | Tick
)

# --- effects ----------------------------------------------------------------------------------------------------


class Reply(NamedTuple):
    """Send an envelope to one connection, over the ROUTER."""

    route: bytes
    envelope: verbs.Envelope


class Publish(NamedTuple):
    """Send an envelope to a channel, over the PUB."""

    channel: bytes
    envelope: verbs.Envelope


class Append(NamedTuple):
    """Write records to the journal before any later effect becomes visible."""

    records: Records | SplicedLine


class Note(NamedTuple):
    """Write a line to broker.log."""

    text: str


class Halt(NamedTuple):
    """End the broker."""


Effect: TypeAlias = Reply | Publish | Append | Note | Halt


class Outbox:
    """Collects the effects of the core's parts, in order."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self.appended = 0  #: records since the journal's last answer
        self.counts = Metrics()

    def __repr__(self) -> str:
        return f"<Outbox of {len(self._effects)}>"

    def put(self, effect: Effect) -> None:
        """Adds an effect."""
        self._effects.append(effect)

    def append(self, records: Records | SplicedLine) -> int:
        """Has messages, or a finished line, written to the journal.

        Returns the index of the first among the records of the wake, which is also that of its pointer in `Journaled`:
        several parts of the core write.
        """
        first = self.appended
        self._effects.append(Append(records))
        self.appended += 1 if records.__class__ is SplicedLine else len(records.msg_ids)  # type: ignore[union-attr]
        return first

    def reply(self, route: bytes, envelope: verbs.Envelope) -> None:
        """Sends an envelope to one connection."""
        self._effects.append(Reply(route, envelope))

    def refuse(self, route: bytes, ref: str, error: ZmqbusError) -> None:
        """Sends an error to one connection. `ref` names the envelope or message that is refused (`verbs.Refused`)."""
        code = getattr(error, "wire_code", error.code)
        self.counts.refuse(code)
        self._effects.append(Reply(route, verbs.Refused(ref, code, str(error))))

    def refuse_all(self, route: bytes, refs: Sequence[str], error: ZmqbusError) -> None:
        """Refuses several messages of one connection with the same error."""
        for ref in refs:
            self.refuse(route, ref, error)

    def note(self, text: str) -> None:
        """Writes a line to broker.log."""
        self._effects.append(Note(text))

    def take(self) -> list[Effect]:
        """Returns all collected effects, and removes them."""
        effects, self._effects = self._effects, []
        return effects
