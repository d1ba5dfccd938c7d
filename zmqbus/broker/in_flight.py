"""Accepted messages: the batch that all their receivers share, and its place in one mailbox.

A `Batch` holds messages of one sender that were accepted together and differ only in id and body. A single message is a
batch of one. It is shared by the mailboxes of all its receivers, and by the table of messages without an outcome.

An `InFlight` is a batch, or a part of it, in one mailbox: sent, stored and acknowledged in one piece. What happens to
some of its messages only (the first ones are acknowledged, or credit ends among them) splits it; nothing else does. Its
`Stage` says where its messages are and what their sender has been told; `NEXT_STAGES` lists the legal transitions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from enum import IntEnum

from zmqbus.broker.storage.api import FIELDS_BYTES, Entry
from zmqbus.wire.verbs import Header, Pointer


class BroadcastProgress:
    """A broadcast until its sender has been told how many sessions took it."""

    __slots__ = ("delivered", "full", "msg_id", "queued", "remaining", "told", "unsaved")

    def __init__(self, msg_id: str, remaining: int, full: tuple[str, ...] = ()) -> None:
        self.msg_id = msg_id
        self.remaining = remaining  #: receivers without an outcome
        self.full = full  #: names of the sessions that have no room for it
        self.unsaved: tuple[str, ...] = ()  #: names of those for which the disk did not take it
        self.delivered = 0
        self.queued = 0
        self.told = False

    def __repr__(self) -> str:
        counts = f"{self.delivered} delivered, {self.queued} queued, {self.remaining} open"
        return f"<BroadcastProgress {self.msg_id}: {counts}>"


class Batch:
    """Messages that were accepted together. A message whose body is in the journal alone, or that is an answer or a
    repeat, stands alone."""

    __slots__ = (
        "accepted_s",
        "bodies",
        "header",
        "msg_ids",
        "origin",
        "pointers",
        "progress",
        "repeated",
        "size_bytes",
    )

    def __init__(
        self,
        header: Header,
        msg_ids: Sequence[str],
        bodies: Sequence[bytes],
        pointers: Sequence[Pointer],
        accepted_s: float,
        size_bytes: int,
        origin: bytes = b"",
        repeated: bool = False,
    ) -> None:
        self.header = header
        self.msg_ids = msg_ids
        self.bodies = bodies
        self.pointers = pointers
        self.accepted_s = accepted_s  #: on the steady clock, from which ages are taken
        self.size_bytes = size_bytes  #: of all bodies, wherever they are
        self.origin = origin  #: connection to which the receipts go
        self.repeated = repeated  #: its sender has sent it before, perhaps to a broker that died
        self.progress: Sequence[BroadcastProgress] = ()  #: of broadcasts, one for each message

    def __repr__(self) -> str:
        return f"<Batch of {len(self.msg_ids)} from {self.header.from_name}: {', '.join(self.msg_ids[:3])}>"

    def __len__(self) -> int:
        return len(self.msg_ids)

    @classmethod
    def of_entry(cls, entry: Entry) -> Batch:
        """Returns a stored message as a batch of one."""
        return cls(
            entry.header,
            (entry.msg_id,),
            (entry.body,),
            (entry.pointer,),
            entry.accepted_s,
            entry.size_bytes,
            repeated=entry.repeated,
        )

    def apart(self) -> Iterator[Batch]:
        """Yields each of several messages as a batch of one."""
        for msg_id, body, pointer in zip(self.msg_ids, self.bodies, self.pointers, strict=True):
            yield Batch(self.header, (msg_id,), (body,), (pointer,), self.accepted_s, len(body), self.origin)

    @property
    def sender_id(self) -> str:
        return self.header.from_session

    @property
    def spilled(self) -> bool:
        """Whether the body of its one message is in the journal alone."""
        return len(self.msg_ids) == 1 and len(self.bodies[0]) != self.size_bytes

    def entry(self, at: int) -> Entry:
        """Returns one of its messages as the store keeps it."""
        body = self.bodies[at]
        size_bytes = self.size_bytes if len(self.msg_ids) == 1 else len(body)
        return Entry(self.header, self.msg_ids[at], self.accepted_s, size_bytes, self.pointers[at], body, self.repeated)


class Stage(IntEnum):
    """Where messages in a mailbox are kept, and what their sender has been told. (An integer hashes without a call.)"""

    UNSTORED = 0  #: in memory and the journal only; the sender would repeat them to the next broker
    STORED = 1  #: in the store too; the sender has been told nothing
    DUE = 2  #: the sender hears `queued` after the next commit of the store
    TOLD = 3  #: the sender has been told `queued`
    DONE = 4  #: acknowledged, refused or given up


#: Which stages may follow. STORED to TOLD: the sender was told of the place that they had before.
NEXT_STAGES: dict[Stage, frozenset[Stage]] = {
    Stage.UNSTORED: frozenset((Stage.STORED, Stage.DONE)),
    Stage.STORED: frozenset((Stage.DUE, Stage.TOLD, Stage.DONE)),
    Stage.DUE: frozenset((Stage.TOLD, Stage.DONE)),
    Stage.TOLD: frozenset((Stage.DONE,)),
    Stage.DONE: frozenset(),
}


class InFlight:
    """Neighbouring messages of one batch in one mailbox, as long as the same happens to all of them."""

    __slots__ = ("accepted_s", "batch", "bcast", "count", "seq", "size_bytes", "stage", "start", "weight_bytes")

    def __init__(
        self,
        batch: Batch,
        start: int,
        count: int,
        seq: int,
        accepted_s: float,
        bcast: int = 0,
        stage: Stage = Stage.UNSTORED,
    ) -> None:
        self.batch = batch
        self.start = start  #: index of its first message in the batch
        self.count = count
        self.seq = seq  #: number of the first in the mailbox
        self.accepted_s = accepted_s  #: when they came into the mailbox, monotonic
        self.bcast = bcast  #: number under which the first was published, 0 when they took the DEALER
        self.stage = stage
        if count == len(batch.msg_ids):
            self.size_bytes = batch.size_bytes  #: of their bodies, wherever those are
            self.weight_bytes = FIELDS_BYTES * count + (len(batch.bodies[0]) if count == 1 else batch.size_bytes)
        else:
            self.size_bytes = sum(map(len, batch.bodies[start : start + count]))
            self.weight_bytes = FIELDS_BYTES * count + self.size_bytes  #: credit that they use

    def __repr__(self) -> str:
        way = f"published as {self.bcast}" if self.bcast else "by DEALER"
        return f"<InFlight of {self.count} from {self.seq} {way}, {self.stage.name.lower()}>"

    @property
    def stored(self) -> bool:
        return self.stage in _STORED

    @property
    def told(self) -> bool:
        """Whether their sender has been told of them, or will be told nothing more."""
        return self.stage in _TOLD

    @property
    def msg_ids(self) -> Sequence[str]:
        if self.count == len(self.batch.msg_ids):
            return self.batch.msg_ids
        return self.batch.msg_ids[self.start : self.start + self.count]

    @property
    def bodies(self) -> Sequence[bytes]:
        if self.count == len(self.batch.msg_ids):
            return self.batch.bodies
        return self.batch.bodies[self.start : self.start + self.count]

    @property
    def progress(self) -> Sequence[BroadcastProgress]:
        """The progress of each of them, of broadcasts."""
        return self.batch.progress[self.start : self.start + self.count]

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """Yields each message with its number, as the store keeps it."""
        for offset in range(self.count):
            yield self.seq + offset, self.batch.entry(self.start + offset)

    def enter(self, stage: Stage) -> None:
        """Enters a stage, which must be one that may follow."""
        assert stage in NEXT_STAGES[self.stage], f"{self!r} cannot become {stage.name.lower()}"
        self.stage = stage

    def take(self, count: int) -> InFlight:
        """Splits off the first `count` messages; this one keeps the rest."""
        first = InFlight(self.batch, self.start, count, self.seq, self.accepted_s, self.bcast, self.stage)
        self.start += count
        self.count -= count
        self.seq += count  # guards: in-flight window
        self.bcast += count if self.bcast else 0  # guards: in-flight window
        self.size_bytes -= first.size_bytes
        self.weight_bytes -= first.weight_bytes
        return first


_STORED = frozenset((Stage.STORED, Stage.DUE, Stage.TOLD))
_TOLD = frozenset((Stage.TOLD, Stage.DONE))


class Window:
    """The messages under way to one consumer, oldest first. Its length is the number of messages."""

    __slots__ = ("count", "pieces")

    def __init__(self) -> None:
        self.pieces: deque[InFlight] = deque()  #: read only
        self.count = 0  #: of messages; read only

    def __repr__(self) -> str:
        return f"<Window of {self.count} in {len(self.pieces)}>"

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[InFlight]:
        return iter(self.pieces)

    @property
    def oldest(self) -> InFlight:
        """The piece with the oldest message. There must be one."""
        return self.pieces[0]

    def append(self, piece: InFlight) -> None:
        """Puts messages behind all others."""
        self.pieces.append(piece)
        self.count += piece.count

    def pop(self, count: int) -> InFlight:
        """Takes the oldest messages out: at most `count`, and no more than the oldest piece has."""
        piece = self.pieces[0]
        if count < piece.count:
            piece = piece.take(count)
        else:
            self.pieces.popleft()
        self.count -= piece.count
        return piece

    def oldest_segment(self) -> int | None:
        """The oldest segment of the journal that any of the messages points into."""
        # The journal only grows: of a batch, the first is in the oldest.
        return min((piece.batch.pointers[piece.start][0] for piece in self.pieces), default=None)
