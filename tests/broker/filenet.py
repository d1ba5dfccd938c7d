"""A simulated bus on real files whose broker can crash at any change of a file.

Theory of operation
===================

`FileNet` is the simulated network with a real `Journal` and a real `SqliteStore`, whose changes it records
(`file_changes`). A *moment* is everything except the broker: the clients with their sent, confirmed and taken messages,
the wires between them, the clock, and the oracle that knows who must get which message. It is pickled before each
change of a file and after each sending.

So every crash can be replayed: a directory with the first changes, the last of them perhaps in part, and around it the
world of that moment, in which every client has just lost the broker (`FileNet(directory, moment=…)`). `crashes` lists
all crashes of a run.

Three instants are left out: within the transactions that create a new database and turn on its write-ahead log, which
SQLite protects by a rollback journal that is gone when it returns; and within the write of a page header, which the
kernel does not split.
"""

from __future__ import annotations

import io
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.broker.file_changes import DATABASE, LOG, ROLLBACK, Change, Disk, Recorder, Removed, lay_out, play
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

#: Small, so that a short run rotates, and has more segments than are kept for everybody.
SEGMENT_BYTES, KEEP = 4_000, 2
#: Rounds of "settle, take, let time pass" after which a bus that still holds something is stuck.
ROUNDS = 60
#: Name of the only guest.
GUEST = "cron"
#: A session that first connects after the crash.
LATE = session_id_of("late")


# --- the oracle ------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """A message that was sent."""

    order: int
    sender: str  # a process: order is guaranteed for messages over one connection
    surely: frozenset[str]  # sessions that must get it if it was accepted
    perhaps: frozenset[str]  # sessions that may get it
    takers: int | None  # how many of those must get it; None: any number
    body: bytes
    answers: bool  # delivered to the command that awaits it, before the mail in the mailbox


class Oracle:
    """The messages that were sent, their confirmations, and the messages that were taken."""

    def __init__(self) -> None:
        self.sent: dict[str, Sent] = {}
        self.confirmed: dict[str, verbs.Envelope] = {}  #: message id → what its sender was sent about it
        self.refused: set[str] = set()  #: messages that were refused at any time
        self.taken: dict[str, list[str]] = {}  #: session id or guest's name → message ids
        self.personas: dict[str, Persona] = {}
        self.names: dict[str, set[str]] = {}  #: names that a session may have
        self.wanted = ""  #: a name without a session that a message was sent to
        self.textless: set[str] = set()  #: messages that were delivered without their lost text

    def __repr__(self) -> str:
        return f"<Oracle: {len(self.sent)} sent, {sum(map(len, self.taken.values()))} taken>"

    def note_confirmed(self, envelope: verbs.Envelope) -> None:
        """Notes an envelope that the broker sends to a client."""
        match envelope:
            case verbs.Receipt(msg_ids=msg_ids):
                self.confirmed.update(dict.fromkeys(msg_ids, envelope))
            case verbs.Tally(msg_id=msg_id):
                self.confirmed[msg_id] = envelope
            case verbs.Refused(ref=ref) if ref in self.sent:
                self.confirmed[ref] = envelope
                self.refused.add(ref)

    def note_taken(self, who: str, message: Incoming, body: bytes | None) -> None:
        """Notes a message that an application has taken; `body` is None if its text is lost."""
        sent = self.sent.get(message.msg_id)
        assert sent is not None, f"{who} got {message}, which was never sent"
        assert who in sent.perhaps, f"{who} got a message for others: {message}"
        taken = self.taken.setdefault(who, [])
        assert message.msg_id not in taken, f"{who} got {message} twice"
        if body is None:
            self.textless.add(message.msg_id)
        else:
            assert body == sent.body, f"{message} had another text"
        taken.append(message.msg_id)

    def owed(self, who: str) -> set[str]:
        """The messages that must be in this mailbox: they were confirmed as queued, and not taken."""
        owed = set()
        taken = set(self.taken.get(who, ()))
        for msg_id, answer in self.confirmed.items():
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
        """Checks that the messages of each sender are in the order of sending."""
        last: dict[str, int] = {}
        for msg_id in msg_ids:
            sent = self.sent[msg_id]
            if sent.answers:
                continue
            assert last.get(sent.sender, -1) < sent.order, f"to {who}, out of order: {msg_id} of {sent.sender}"
            last[sent.sender] = sent.order


# --- the bus on files -------------------------------------------------------------------------------------------


class FileStore(SqliteStore):
    """A store whose broker can crash: the next one opens a copy of the files."""

    def crash(self) -> None:
        """See `FileNet._start_broker`."""


class Moment(NamedTuple):
    """Everything except the broker, after `position` changes of its files."""

    position: int
    world: bytes


class FileNet(SimNet):
    """A simulated network whose broker writes real files, below `directory`.

    With a `moment`, it continues from there: the broker has just died, and left the files in `directory`. Otherwise it
    begins, and records its changes and moments.
    """

    store: FileStore  # type: ignore[assignment]

    def __init__(self, directory: Path, *, moment: Moment | None = None, lost: int = 0) -> None:
        self.directory = directory
        self.oracle = Oracle()
        self.recorder = Recorder()
        self.recording = moment is None
        self.moments: list[Moment] = []
        self.damage: list[str] = []  #: notices of the broker about its files
        self._lives = 0
        self._moment = moment
        self._lost = lost
        self._open = False
        super().__init__()

    def __repr__(self) -> str:
        return f"<FileNet {self.directory}: {self.recorder!r}, {self.oracle!r}, {self.broker!r}>"

    @property
    def log_path(self) -> str:
        """Path of the broker's journal."""
        return str(self.directory / LOG)

    def _start_broker(self) -> None:
        if self._moment is not None:
            self._load(self._moment.world)
            self._moment = None
        if self._open:
            # A process that dies closes nothing; closing would change the files.
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
                self.oracle.note_confirmed(envelope)
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
                self.oracle,
                self.shown,
                self.living_owners,
                self.clock,
                (self._tokens, self._route_count, self._epochs),
            )
        )
        self.moments.append(Moment(len(self.recorder.changes), file.getvalue()))

    def _load(self, world: bytes) -> None:
        self.clients, self.oracle, self.shown, self.living_owners, self.clock, counts = _Unpickler(
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

    # --- checks

    def live(self, session_id: str) -> SimClient | None:
        """The listener of a session, if it has one."""
        for member in self.clients:
            if member.persona.session_id == session_id and member.persona.role == Role.LISTENER:
                return member
        return None

    def take(self, member: SimClient, count: int | None = None) -> None:
        """Lets an application take messages."""
        who = member.persona.session_id or member.persona.name or ""
        for message in member.take(len(member.handed) if count is None else count):
            self.oracle.note_taken(who, message, self._body(message))

    def _body(self, message: Incoming) -> bytes | None:
        try:
            return load(message, self.log_path)
        except ZmqbusError:
            return None

    def contents(self, session_id: str) -> list[Entry]:
        """Entries in a session's mailbox."""
        found: list[Entry] = []
        key = self.broker.registry.sessions[session_id].mailbox.key
        last = 0
        while rows := self.store.after(key, last, 100):
            found += [entry for _, entry in rows]
            last = rows[-1][0]
        return found

    def check_recovered(self) -> None:
        """Checks a broker that has just started on intact files."""
        oracle = self.oracle
        assert not [text for text in self.damage if "unfinished" not in text], self.damage
        known = self.broker.registry.sessions
        for session_id, names in oracle.names.items():
            member = self.live(session_id)
            if session_id not in known:
                # Its first HELLO was not answered yet.
                assert member is None or member.core.phase is not Phase.READY, f"{session_id} is forgotten"
                assert not oracle.owed(session_id), f"{session_id} is forgotten, and its mail"
                continue
            assert known[session_id].name in names, f"{known[session_id]} is not called {names}"
            entries = self.contents(session_id)
            msg_ids = [entry.msg_id for entry in entries]
            assert len(msg_ids) == len(set(msg_ids)), f"duplicates in the mailbox of {session_id}: {msg_ids}"
            missing = oracle.owed(session_id).difference(msg_ids)
            assert not missing, f"lost for {session_id}: {[(oracle.sent[m], oracle.confirmed[m]) for m in missing]}"
            # A taken message may be there again, behind others, if its sender was not told. It is not shown again.
            taken = oracle.taken.get(session_id, [])
            oracle.check_order(session_id, [msg_id for msg_id in msg_ids if msg_id not in taken])
            for entry in entries:
                sent = oracle.sent[entry.msg_id]
                assert session_id in sent.perhaps, f"{entry} is not for {session_id}"
                body = entry.body if not entry.spilled else self.store._reader.read(entry.pointer).body
                assert body == sent.body, f"{entry} had another text"
                assert entry.msg_id not in oracle.refused, f"{entry} was refused"

    def come_to_rest(self) -> None:
        """Lets every client reconnect, senders repeat unconfirmed messages, and receivers read all mail.

        First, a session takes the name that no session had: a refused message must stay refused.
        """
        if self.oracle.wanted and LATE not in self.oracle.personas:
            self.oracle.personas[LATE] = Persona(Role.LISTENER, LATE, "late-token", self.oracle.wanted, owner="1:1")
            self.oracle.names[LATE] = {self.oracle.wanted}
            late = self._enter(self.oracle.personas[LATE], False)
            self.clients.insert(0, self.clients.pop())
            late.connect()
            self.wake()
        for session_id, persona in self.oracle.personas.items():
            if self.live(session_id) is None:
                name = max(self.oracle.names[session_id])
                self.oracle.names[session_id] = {name}
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
        """Checks that no message is lost, except those in `lost`, and none duplicated or reordered."""
        oracle = self.oracle
        answers: dict[str, object] = dict(oracle.confirmed)
        for member in self.clients:
            answers.update(member.answers)
        taken = {who: Counter(msg_ids) for who, msg_ids in oracle.taken.items()}
        for msg_id, sent in oracle.sent.items():
            takers = {who for who, counts in taken.items() if counts[msg_id]}
            context = f"{sent.order} {msg_id} of {sent.sender}: {answers.get(msg_id)}, taken by {takers}"
            assert takers <= sent.perhaps, context
            match answers.get(msg_id):
                case ZmqbusError() | verbs.Refused():
                    # A guest that has taken its answer may end before the broker knows.
                    assert not takers or takers == {GUEST}, context
                case verbs.Receipt() | verbs.Tally() as answer:
                    full = answer.without if isinstance(answer, verbs.Tally) else ()
                    without = {who for who, names in oracle.names.items() if names.intersection(full)}
                    if msg_id not in lost:
                        assert takers >= sent.surely - without, f"lost: {context}"
                        assert sent.takers in (None, len(takers)), context
                case _:
                    pass  # its sender has ended, or the bus would not have come to rest
            if msg_id in oracle.refused:
                assert not takers or takers == {GUEST}, f"first refused, then accepted: {context}"
        for who, msg_ids in oracle.taken.items():
            oracle.check_order(who, msg_ids)


class Crash(NamedTuple):
    """A crash of the broker after `position` changes of its files, and a part of the next."""

    position: int
    stop: int  # bytes of the next change that were written
    moment: Moment
    lost: int  # messages to each client that were sent but lost on the way

    def __repr__(self) -> str:
        return f"<Crash after {self.position} changes and {self.stop} bytes, {self.lost} lost>"


def crashes(net: FileNet) -> list[Crash]:
    """All crashes of a recorded broker, in order of time."""
    found = []
    covered = False  # by a rollback journal
    unseen = False  # changed under its protection, in steps that were not recorded
    for position in range(len(net.recorder.changes) + 1):
        at = [moment for moment in net.moments if moment.position == position]
        before = [moment for moment in net.moments if moment.position < position][-1:]
        if not unseen:
            # Written changes may have been confirmed or not, and confirmations may have arrived or not.
            found += [Crash(position, 0, moment, lost) for moment in before + at for lost in (0, 1, 1_000)]
        if position == len(net.recorder.changes):
            break
        change = net.recorder.changes[position]
        if change.name == ROLLBACK:
            covered = not isinstance(change, Removed)
        unseen = covered and (unseen or change.name == DATABASE)
        if isinstance(change, Change) and not unseen:
            found += [Crash(position, stop, (before + at)[-1], 0) for stop in change.stops()]
    return found


def worlds(net: FileNet, chosen: list[Crash], directory: Path) -> Iterator[tuple[Crash, FileNet]]:
    """For each of these crashes, in order of time, the world with the next broker."""
    disk: Disk = {}
    done = 0
    for number, crash in enumerate(chosen):
        while done < crash.position:
            play(disk, net.recorder.changes[done])
            done += 1
        files = disk
        if crash.stop:
            files = {name: bytearray(content) for name, content in disk.items()}
            play(files, net.recorder.changes[crash.position], crash.stop)
        world = FileNet(lay_out(files, directory / f"crash{number}"), moment=crash.moment, lost=crash.lost)
        try:
            yield crash, world
        finally:
            world.close()
            for path in directory.glob(f"crash{number}*"):
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
