"""What a mailbox has under way: items, runs of them, and the window that holds both in order.

A message in a mailbox is an `Item`. But a sender that says much says it in runs (SENDS), and as long as nothing tells
the messages of a run apart, one object stands for all of them: it is journaled, sent and acknowledged as a whole, and
costs a message a tenth of what an item of its own does. Whatever concerns one of them (it is stored, its sender is told
that it waits) takes the run *apart*, once and for good: then each has its `Item`. The first ones of a run can be taken
off it; the rest remains one. And if one is said again, over a new connection, all receipts go there: the connection
that said the run is no more, and its sender repeats whatever it has heard nothing of.

So a run is not in the store, and nobody has been told anything of it. It has gone by the DEALER, or it was published:
then each of its receivers has a run of its own, and they share what each message to many has, its `Tally`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from zmqbus.broker.storage.api import FIELDS_BYTES, Entry
from zmqbus.tuples import NamedTuple
from zmqbus.wire.verbs import Header, Pointer


class Tally:
    """A message to many, until its sender has been told how many took it."""

    __slots__ = ("delivered", "full", "msg_id", "origin", "queued", "remaining", "sender_id", "told", "unsaved")

    def __init__(self, msg_id: str, sender_id: str, origin: bytes, remaining: int) -> None:
        self.msg_id = msg_id
        self.sender_id = sender_id
        self.origin = origin
        self.remaining = remaining
        self.full: tuple[str, ...] = ()  #: names of the sessions that have no room for it
        self.unsaved: tuple[str, ...] = ()  #: names of those for which the disk did not take it
        self.delivered = 0
        self.queued = 0
        self.told = False

    def __repr__(self) -> str:
        return f"<Tally {self.msg_id}: {self.delivered} delivered, {self.queued} queued, {self.remaining} open>"


class Item:
    """A message in one mailbox: its number, the way it went, and whether its sender knows what became of it."""

    __slots__ = (
        "accepted_s",
        "bcast",
        "due",
        "entry",
        "origin",
        "resent",
        "seq",
        "stored",
        "tally",
        "told",
        "weight_bytes",
    )

    def __init__(
        self,
        seq: int,
        entry: Entry,
        accepted_s: float,
        bcast: int = 0,
        origin: bytes = b"",
        tally: Tally | None = None,
        told: bool = False,
        stored: bool = False,
    ) -> None:
        self.seq = seq
        self.entry = entry
        self.accepted_s = accepted_s
        self.bcast = bcast  #: number under which it was published, 0 when it took the DEALER
        self.origin = origin  #: connection to which the receipt goes
        self.tally = tally
        self.told = told
        self.due = False  #: its sender will hear `queued` as soon as the store has committed
        self.stored = stored
        self.weight_bytes = entry.credit_bytes
        self.resent = False  #: published, and sent again by the DEALER, which loses nothing

    @property
    def sender_id(self) -> str:
        return self.entry.from_session

    def __repr__(self) -> str:
        way = f"published as {self.bcast}" if self.bcast else "by DEALER"
        return f"<Item {self.seq} {self.entry.msg_id} {way}{', told' if self.told else ''}>"


class Common(NamedTuple):
    """What the messages of a run have in common; see `store.Entry`."""

    from_session: str
    from_name: str
    from_label: str | None
    scope: int
    target: str
    fmt: int
    ts: float
    steady_s: float

    @property
    def header(self) -> Header:
        return Header(
            self.from_session, self.from_name, self.from_label, self.scope, self.target, self.fmt, None, self.ts
        )


class Run:
    """Messages of one sender to one receiver that were accepted together, as long as nothing tells them apart."""

    __slots__ = (
        "_items",
        "accepted_s",
        "bcast",
        "bodies",
        "common",
        "msg_ids",
        "origin",
        "pointers",
        "seq",
        "size_bytes",
        "tallies",
    )

    def __init__(
        self,
        common: Common,
        msg_ids: Sequence[str],
        bodies: Sequence[bytes],
        pointers: Sequence[Pointer],
        origin: bytes,
        size_bytes: int,
        bcast: int = 0,
        tallies: Sequence[Tally] = (),
    ) -> None:
        self.common = common
        self.msg_ids = msg_ids
        self.bodies = bodies
        self.pointers = pointers
        self.origin = origin  #: connection to which the receipts go
        self.size_bytes = size_bytes  #: of all bodies
        self.bcast = bcast  #: number under which the first was published, 0 when they took the DEALER
        self.tallies = tallies  #: of those to many, one for each
        self.seq = 0  #: number of the first in the mailbox
        self.accepted_s = 0.0  #: when it came into the mailbox
        self._items: dict[str, Item] | None = None

    def __repr__(self) -> str:
        return f"<Run of {len(self)} from {self.seq} on{', apart' if self._items is not None else ''}>"

    def __len__(self) -> int:
        return len(self.msg_ids)

    @property
    def sender_id(self) -> str:
        return self.common.from_session

    @property
    def weight_bytes(self) -> int:
        """Credit that it uses."""
        return self.size_bytes + FIELDS_BYTES * len(self.msg_ids)

    def twin(self) -> Run:
        """The same messages, for another mailbox."""
        return Run(
            self.common,
            self.msg_ids,
            self.bodies,
            self.pointers,
            self.origin,
            self.size_bytes,
            self.bcast,
            self.tallies,
        )

    def take(self, count: int) -> Run:
        """Takes the first `count` off; this one keeps the rest."""
        bodies = self.bodies[:count]
        first = Run(
            self.common,
            self.msg_ids[:count],
            bodies,
            self.pointers[:count],
            self.origin,
            sum(map(len, bodies)),
            self.bcast,
            self.tallies[:count],
        )
        first.seq, first.accepted_s = self.seq, self.accepted_s
        self.msg_ids, self.bodies = self.msg_ids[count:], self.bodies[count:]
        # guards: in-flight window [self.pointers[count:] => self.pointers]
        # guards: in-flight window [self.tallies[count:] => self.tallies]
        self.pointers, self.tallies = self.pointers[count:], self.tallies[count:]
        self.seq += count  # guards: in-flight window
        self.bcast += count if self.bcast else 0  # guards: in-flight window
        self.size_bytes -= first.size_bytes
        return first

    def entries(self) -> Iterator[Entry]:
        """Each message by itself."""
        common = self.common
        for msg_id, body, pointer in zip(self.msg_ids, self.bodies, self.pointers, strict=True):
            yield Entry(
                msg_id,
                common.from_session,
                common.from_name,
                common.from_label,
                common.scope,
                common.target,
                common.fmt,
                None,
                common.ts,
                common.steady_s,
                len(body),
                pointer,
                body,
            )

    def apart(self) -> list[Item]:
        """The items that stand for it from now on."""
        items = [
            Item(
                self.seq + number,
                entry,
                self.accepted_s,
                self.bcast + number if self.bcast else 0,
                self.origin,
                self.tallies[number] if self.tallies else None,
            )
            for number, entry in enumerate(self.entries())
        ]
        self._items = {item.entry.msg_id: item for item in items}
        return items

    def of(self, msg_id: str) -> Item | Run:
        """What stands for this message of it."""
        # guards: in-flight window [if self._items is None else self._items[msg_id] =>]
        return self if self._items is None else self._items[msg_id]


class Window:
    """What is under way to one consumer, oldest first. Its length is that in messages; its items are made when they
    are asked for."""

    __slots__ = ("_count", "_pieces", "_runs")

    def __init__(self) -> None:
        self._pieces: deque[Item | Run] = deque()
        self._count = 0
        self._runs = 0  # pieces that are runs

    def __repr__(self) -> str:
        return f"<Window of {self._count} in {len(self._pieces)}>"

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return iter(self._apart())

    def __getitem__(self, index: int) -> Item:
        return self._apart()[index]

    @property
    def oldest(self) -> Item | Run:
        """What stands for the oldest message. There must be one."""
        return self._pieces[0]

    def append(self, item: Item) -> None:
        """Puts a message behind all others."""
        self._pieces.append(item)
        self._count += 1

    def append_run(self, run: Run) -> None:
        """Puts several there."""
        self._pieces.append(run)
        self._count += len(run)
        self._runs += 1

    def popleft(self) -> Item:
        """Takes the oldest message out, which must be an item."""
        item = self._pieces.popleft()
        assert isinstance(item, Item)
        self._count -= 1
        return item

    def pop_run(self, count: int) -> Run:
        """Takes the first messages of the oldest run out, so many, or all of them."""
        run = self._pieces[0]
        assert isinstance(run, Run)
        if count < len(run):
            run = run.take(count)  # guards: in-flight window [=> self._pieces.popleft(); self._runs -= 1]
        else:
            self._pieces.popleft()
            self._runs -= 1
        self._count -= len(run)
        return run

    def oldest_segment(self) -> int | None:
        """The oldest segment of the journal that any of them points into."""
        pieces = self._pieces
        # The journal only grows: of a run, the first is in the oldest.
        found = (one.pointers[0] if isinstance(one, Run) else one.entry.pointer for one in pieces)
        return min((pointer[0] for pointer in found), default=None)

    def bcasts(self) -> Iterator[int]:
        """The numbers of those that were published."""
        for piece in self._pieces:
            if piece.bcast:
                yield from range(piece.bcast, piece.bcast + (len(piece) if isinstance(piece, Run) else 1))

    def _apart(self) -> deque[Item]:
        """All of it as items."""
        if self._runs:
            self._runs = 0
            pieces, self._pieces = self._pieces, deque()
            for piece in pieces:
                self._pieces.extend(piece.apart() if isinstance(piece, Run) else (piece,))
        return self._pieces  # type: ignore[return-value]  # there is no run among them
