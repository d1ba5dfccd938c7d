"""A bus on real files whose broker can have died at any instant.

Theory of operation
===================

`FileNet` is the simulated network with a real `Journal` and a real `SqliteStore` beneath it, whose changes it records
(`crashfiles`). A *moment* is all that is not the broker: the clients with what they have sent, been told and taken, the
wires between them, the clock, and the ledger of who must get what. It is pickled before each change of a file and after
each sending.

So any death can be played: a directory made of the first changes, the last of them perhaps in part, and around it the
world of that moment, in which everybody has just lost the broker (`FileNet(directory, moment=…)`). `ends` lists all
deaths of a run.

Three instants are not gone through: within the transactions that make a new database, and that turn on its write-ahead
log, which SQLite covers by a rollback journal that is gone when it returns; and within a write of what stands before a
page, which the kernel does not cut.
"""

from __future__ import annotations

import io
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.broker.crashfiles import DATABASE, LOG, ROLLBACK, Change, Disk, Recorder, Removed, lay_out, play
from zmqbus.broker import events
from zmqbus.broker.storage.api import Entry
from zmqbus.broker.storage.sqlite import SqliteStore
from zmqbus.client.core import Incoming, Persona, Phase
from zmqbus.client.payload import load
from zmqbus.errors import ZmqbusError
from zmqbus.journal.reader import recent
from zmqbus.journal.writer import Journal
from zmqbus.testing import SimClient, SimNet, session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role, State

#: Small, so that a short run has rotations; more segments than are kept without a need.
SEGMENT_BYTES, KEEP = 4_000, 2
#: Rounds of "settle, take, let time pass" after which a bus that still holds something is stuck.
ROUNDS = 60
#: The name that the one guest speaks under.
GUEST = "cron"
#: The session that nobody knows of while the run is recorded.
LATE = session_id_of("late")


# --- who must get what ------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """A message that somebody has said."""

    order: int
    sender: str  # a process: order is promised to what goes over one connection
    surely: frozenset[str]  # sessions that must get it, if it was accepted
    perhaps: frozenset[str]  # sessions that may get it
    takers: int | None  # how many of those must; None: no matter
    body: bytes
    answers: bool  # it goes to the command that waits for it, and passes by what is in the mailbox


class Ledger:
    """What was sent, what the broker has said about it, and what was taken."""

    def __init__(self) -> None:
        self.sent: dict[str, Sent] = {}
        self.told: dict[str, verbs.Envelope] = {}  #: message id → what the broker has sent to its sender
        self.refused: set[str] = set()  #: messages whose senders were once told that they are not accepted
        self.taken: dict[str, list[str]] = {}  #: session id, or a guest's name → message ids
        self.personas: dict[str, Persona] = {}
        self.names: dict[str, set[str]] = {}  #: names that a session may go by
        self.wanted = ""  #: a name that somebody has sent something to, and nobody has
        self.spoilt: set[str] = set()  #: messages whose receivers were told that the text is lost

    def __repr__(self) -> str:
        return f"<Ledger: {len(self.sent)} sent, {sum(map(len, self.taken.values()))} taken>"

    def note_told(self, envelope: verbs.Envelope) -> None:
        """The broker sends this to somebody."""
        match envelope:
            case verbs.Receipt(msg_ids=msg_ids):
                self.told.update(dict.fromkeys(msg_ids, envelope))
            case verbs.Tally(msg_id=msg_id):
                self.told[msg_id] = envelope
            case verbs.Refused(ref=ref) if ref in self.sent:
                self.told[ref] = envelope
                self.refused.add(ref)

    def note_taken(self, who: str, message: Incoming, body: bytes | None) -> None:
        """An application shows a message; with None, that its text is lost."""
        sent = self.sent.get(message.msg_id)
        assert sent is not None, f"{who} got {message}, which nobody has sent"
        assert who in sent.perhaps, f"{who} got what was not for it: {message}"
        taken = self.taken.setdefault(who, [])
        assert message.msg_id not in taken, f"{who} is shown {message} twice"
        if body is None:
            self.spoilt.add(message.msg_id)
        else:
            assert body == sent.body, f"{message} had another text"
        taken.append(message.msg_id)

    def owed(self, who: str) -> set[str]:
        """The messages that must be in this mailbox: their senders may have heard so, and they were not taken."""
        owed = set()
        taken = set(self.taken.get(who, ()))
        for msg_id, answer in self.told.items():
            match answer:
                case verbs.Receipt(state=state, session_id=receiver) if state != State.DELIVERED:
                    queued = receiver == who
                case verbs.Tally() as tally:
                    full = tally.without
                    queued = who in self.sent[msg_id].surely and not self.names.get(who, set()).intersection(full)
                case _:
                    queued = False
            if queued and msg_id not in taken:
                owed.add(msg_id)
        return owed

    def check_order(self, who: str, msg_ids: list[str]) -> None:
        """From each sender, messages are in the order in which it said them."""
        last: dict[str, int] = {}
        for msg_id in msg_ids:
            sent = self.sent[msg_id]
            if sent.answers:
                continue
            assert last.get(sent.sender, -1) < sent.order, f"to {who}, out of order: {msg_id} of {sent.sender}"
            last[sent.sender] = sent.order


# --- the bus on files -------------------------------------------------------------------------------------------


class FileStore(SqliteStore):
    """A database whose broker can die: the next one opens a copy of the files."""

    def crash(self) -> None:
        """See `FileNet._start_broker`."""


class Moment(NamedTuple):
    """Everything but the broker, while its files had seen so many changes."""

    position: int
    world: bytes


class FileNet(SimNet):
    """A simulated network whose broker writes real files, below `directory`.

    With a `moment`, it goes on from there: the broker has just died, and left the files that are in `directory`.
    Otherwise, it begins, and records (`changes`, `moments`).
    """

    store: FileStore  # type: ignore[assignment]

    def __init__(self, directory: Path, *, moment: Moment | None = None, lost: int = 0) -> None:
        self.directory = directory
        self.ledger = Ledger()
        self.recorder = Recorder()
        self.recording = moment is None
        self.moments: list[Moment] = []
        self.damage: list[str] = []  #: what the broker has said about its files
        self._lives = 0
        self._moment = moment
        self._lost = lost
        self._open = False
        super().__init__()

    def __repr__(self) -> str:
        return f"<FileNet {self.directory}: {self.recorder!r}, {self.ledger!r}, {self.broker!r}>"

    @property
    def log_path(self) -> str:
        """Path of the log that the broker writes."""
        return str(self.directory / LOG)

    def _start_broker(self) -> None:
        if self._moment is not None:
            self._load(self._moment.world)
            self._moment = None
        if self._open:
            # A process that dies closes nothing; closing would tidy the files up.
            before, self._lives = self.directory, self._lives + 1
            self.directory = before.with_name(f"{before.name}-life{self._lives}")
            shutil.copytree(before, self.directory)
            self.close()
        elif not self.directory.exists():
            self.directory.mkdir(mode=0o700, parents=True)
        if self.recording:
            self.recorder.move_to(self.directory)
            self._note_moment()
            with self.recorder.each_call():
                self._open_files()
                super()._start_broker()
        else:
            self._open_files()
            super()._start_broker()
        self._earlier.update(recent(self.log_path, records=20_000, limit_bytes=1 << 27))
        self._note_damage()

    def _open_files(self) -> None:
        self._log = Journal(self.log_path, segment_bytes=SEGMENT_BYTES, keep=KEEP)
        if self._log.recovered:
            self.damage.append(self._log.recovered)
        self.store = FileStore(str(self.directory / DATABASE), self.log_path)
        self._open = True
        self._note_damage()

    def _note_damage(self) -> None:
        self.damage += self.store.notices
        self.store.notices.clear()

    def close(self) -> None:
        """Closes the files."""
        if self._open:
            self._open = False
            self._log.close()
            self.store.close()

    # --- the broker's shell

    def _write_journal(self) -> None:
        if not self._records:
            return
        records, self._records = self._records, []
        self._note_moment()
        if self.recording:
            with self.recorder.each_call():
                pointers = self._log.append(records, oldest_needed=self.broker.oldest_segment)
        else:
            pointers = self._log.append(records, oldest_needed=self.broker.oldest_segment)
        self._do(self.broker.handle(self.clock.now, events.Journaled([tuple(pointer) for pointer in pointers])))

    def _commit(self) -> None:
        if self.store.pending:
            self._note_moment()
        super()._commit()
        if self.recording:
            self.recorder.observe()
        self._note_damage()

    def _send_all(self) -> None:
        sends = bool(self._outbox or self._channels)
        for envelopes in self._outbox.values():
            for envelope in envelopes:
                self.ledger.note_told(envelope)
        super()._send_all()
        if sends:
            self._note_moment()

    # --- moments

    def _note_moment(self) -> None:
        if not self.recording:
            return
        file = io.BytesIO()
        _Pickler(file, self).dump(
            (
                self.clients,
                self.ledger,
                self.shown,
                self.living_owners,
                self.clock,
                (self._tokens, self._route_count, self._epochs),
            )
        )
        self.moments.append(Moment(len(self.recorder.changes), file.getvalue()))

    def _load(self, world: bytes) -> None:
        self.clients, self.ledger, self.shown, self.living_owners, self.clock, counts = _Unpickler(
            io.BytesIO(world), self
        ).load()
        self._tokens, self._route_count, self._epochs = counts
        self.clients = [
            member for member in self.clients if member.core.phase is not Phase.CLOSED
        ]  # else it is leaving
        for member in self.clients:
            if member.core.phase in (Phase.GREETING, Phase.READY):
                for queue in (member.down, member.published):
                    for _ in range(min(self._lost, len(queue))):
                        queue.pop()
                member.up.clear()
                member.filters = []
                member.orphaned = True
        self.clock.steady_s = self.clock.wall_s

    # --- what has to hold

    def live(self, session_id: str) -> SimClient | None:
        """The process of a session that has its mailbox, if it has one."""
        for member in self.clients:
            if member.persona.session_id == session_id and member.persona.role == Role.LISTENER:
                return member
        return None

    def take(self, member: SimClient, count: int | None = None) -> None:
        """An application takes messages, and shows them."""
        who = member.persona.session_id or member.persona.name or ""
        for message in member.take(len(member.handed) if count is None else count):
            self.ledger.note_taken(who, message, self._body(message))

    def _body(self, message: Incoming) -> bytes | None:
        try:
            return load(message, self.log_path)
        except ZmqbusError:
            return None

    def contents(self, session_id: str) -> list[Entry]:
        """What is in a session's mailbox."""
        found: list[Entry] = []
        key = self.broker.registry.sessions[session_id].mailbox.key
        last = 0
        while rows := self.store.after(key, last, 100):
            found += [entry for _, entry in rows]
            last = rows[-1][0]
        return found

    def check_recovered(self) -> None:
        """What must be true of a broker that has just come up on sound files."""
        ledger = self.ledger
        assert not [text for text in self.damage if "unfinished" not in text], self.damage
        known = self.broker.registry.sessions
        for session_id, names in ledger.names.items():
            member = self.live(session_id)
            if session_id not in known:
                # Its first HELLO was not answered.
                assert member is None or member.core.phase is not Phase.READY, f"{session_id} is forgotten"
                assert not ledger.owed(session_id), f"{session_id} is forgotten, and its mail"
                continue
            assert known[session_id].name in names, f"{known[session_id]} is not called {names}"
            entries = self.contents(session_id)
            msg_ids = [entry.msg_id for entry in entries]
            assert len(msg_ids) == len(set(msg_ids)), f"twice in the mailbox of {session_id}: {msg_ids}"
            missing = ledger.owed(session_id).difference(msg_ids)
            assert not missing, f"lost for {session_id}: {[(ledger.sent[m], ledger.told[m]) for m in missing]}"
            # What was taken may be there again, behind others: its sender was not told. It will not be shown.
            taken = ledger.taken.get(session_id, [])
            ledger.check_order(session_id, [msg_id for msg_id in msg_ids if msg_id not in taken])
            for entry in entries:
                sent = ledger.sent[entry.msg_id]
                assert session_id in sent.perhaps, f"{entry} is not for {session_id}"
                body = entry.body if not entry.spilled else self.store._reader.read(entry.pointer).body
                assert body == sent.body, f"{entry} had another text"
                assert entry.msg_id not in ledger.refused, f"{entry} was refused"

    def come_to_rest(self) -> None:
        """Everybody comes back, senders repeat what they were not told, and receivers read all there is.

        Before anybody, somebody comes under the name that nobody had: what was refused has to stay so.
        """
        if self.ledger.wanted and LATE not in self.ledger.personas:
            self.ledger.personas[LATE] = Persona(Role.LISTENER, LATE, "late-token", self.ledger.wanted, owner="1:1")
            self.ledger.names[LATE] = {self.ledger.wanted}
            late = self._enter(self.ledger.personas[LATE], False)
            self.clients.insert(0, self.clients.pop())
            late.connect()
            self.wake()
        for session_id, persona in self.ledger.personas.items():
            if self.live(session_id) is None:
                name = max(self.ledger.names[session_id])
                self.ledger.names[session_id] = {name}
                self._enter(persona._replace(name=name, pid=persona.pid + 10_000), True)
        for member in self.clients:
            member.stopped = False
            if member.core.phase is Phase.OFFLINE:
                member.connect()
        for _ in range(ROUNDS):
            self.settle()
            for member in self.clients:
                self.take(member)
            self.advance(0.5)
            if not self.store.total() and not any(member.core.unconfirmed for member in self.clients):
                break
        else:
            raise AssertionError(f"does not come to rest: {self!r}")

    def account(self, *, lost: frozenset[str] = frozenset()) -> None:
        """Lost, duplicated, reordered: nothing, but for what is known to be `lost`."""
        ledger = self.ledger
        answers: dict[str, object] = dict(ledger.told)
        for member in self.clients:
            answers.update(member.answers)
        taken = {who: Counter(msg_ids) for who, msg_ids in ledger.taken.items()}
        for msg_id, sent in ledger.sent.items():
            takers = {who for who, counts in taken.items() if counts[msg_id]}
            said = f"{sent.order} {msg_id} of {sent.sender}: {answers.get(msg_id)}, taken by {takers}"
            assert takers <= sent.perhaps, said
            match answers.get(msg_id):
                case ZmqbusError() | verbs.Refused():
                    # A guest that has shown its answer, and ended before that was known, cannot be asked any more.
                    assert not takers or takers == {GUEST}, said
                case verbs.Receipt() | verbs.Tally() as answer:
                    full = answer.without if isinstance(answer, verbs.Tally) else ()
                    without = {who for who, names in ledger.names.items() if names.intersection(full)}
                    if msg_id not in lost:
                        assert takers >= sent.surely - without, f"lost: {said}"
                        assert sent.takers in (None, len(takers)), said
                case _:
                    pass  # its sender has ended, or the bus would not have come to rest
            if msg_id in ledger.refused:
                assert not takers or takers == {GUEST}, f"first refused, then accepted: {said}"
        for who, msg_ids in ledger.taken.items():
            ledger.check_order(who, msg_ids)


class End(NamedTuple):
    """A death of the broker: after so many changes of its files, and a part of the next."""

    position: int
    stop: int  # bytes of the next change; 0: nothing of it
    moment: Moment
    lost: int  # messages to each client that were sent, and got no further

    def __repr__(self) -> str:
        return f"<End after {self.position} changes and {self.stop} bytes, {self.lost} lost>"


def ends(net: FileNet) -> list[End]:
    """Every way in which the broker that has been recorded can have died, in the order of time."""
    found = []
    covered = False  # by a rollback journal
    unseen = False  # changed under its cover, in steps that were not seen
    for position in range(len(net.recorder.changes) + 1):
        at = [moment for moment in net.moments if moment.position == position]
        before = [moment for moment in net.moments if moment.position < position][-1:]
        if not unseen:
            # What has been written may have been told of or not, and who was told may have heard it or not.
            found += [End(position, 0, moment, lost) for moment in before + at for lost in (0, 1, 1_000)]
        if position == len(net.recorder.changes):
            break
        change = net.recorder.changes[position]
        if change.name == ROLLBACK:
            covered = not isinstance(change, Removed)
        unseen = covered and (unseen or change.name == DATABASE)
        if isinstance(change, Change) and not unseen:
            found += [End(position, stop, (before + at)[-1], 0) for stop in change.stops()]
    return found


def worlds(net: FileNet, chosen: list[End], directory: Path) -> Iterator[tuple[End, FileNet]]:
    """For each of these ends, in the order of time, the world with the next broker."""
    disk: Disk = {}
    done = 0
    for number, end in enumerate(chosen):
        while done < end.position:
            play(disk, net.recorder.changes[done])
            done += 1
        files = disk
        if end.stop:
            files = {name: bytearray(content) for name, content in disk.items()}
            play(files, net.recorder.changes[end.position], end.stop)
        world = FileNet(lay_out(files, directory / f"end{number}"), moment=end.moment, lost=end.lost)
        try:
            yield end, world
        finally:
            world.close()
            for path in directory.glob(f"end{number}*"):
                shutil.rmtree(path)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, net: SimNet) -> None:
        super().__init__(file, 5)
        self._net = net

    def persistent_id(self, thing: object) -> str | None:
        return "net" if thing is self._net else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, net: SimNet) -> None:
        super().__init__(file)
        self._net = net

    def persistent_load(self, _: str) -> SimNet:
        return self._net
