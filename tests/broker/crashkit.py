"""The broker's two files, change by change: what is on the disk when it dies between any two of them.

Theory of operation
===================

`FileNet` is the simulated network with a real `Journal` and a real `Database` beneath it. Its `Recorder` looks at the
directory after each call that can change a file, and keeps the differences, in the order in which a process makes them:
the log's appended bytes; the pages that a commit appends to the write-ahead log; the pages that a checkpoint then works
into the database; names, where files are begun, renamed or deleted.

A *moment* is all that is not the broker: the clients with what they have sent, been told and taken, the wires between
them, the clock, and the ledger of who must get what. It is pickled before each change of a file and after each sending.

So any death can be played: a directory made of the first changes, the last of them perhaps in part, and around it the
world of that moment, in which everybody has just lost the broker (`FileNet(directory, moment=…)`).
"""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from zmqbus import protocol
from zmqbus.broker import events
from zmqbus.broker.database import Database
from zmqbus.broker.store import Entry
from zmqbus.client.bodies import load
from zmqbus.client.core import Incoming, Persona, Phase
from zmqbus.errors import ZmqbusError
from zmqbus.journal import Journal
from zmqbus.protocol import Role, Scope, State
from zmqbus.readback import recent
from zmqbus.testing import SimClient, SimNet
from zmqbus.testing.simnet import Death

DATABASE, LOG = "mailboxes.sqlite3", "messages.log"
WAL, ROLLBACK = DATABASE + "-wal", DATABASE + "-journal"
#: Of a write-ahead log, and before each page in it.
WAL_HEADER_BYTES, FRAME_HEADER_BYTES, PAGE_BYTES = 32, 24, 4096
FRAME_BYTES = FRAME_HEADER_BYTES + PAGE_BYTES
#: Small, so that a short run has rotations; more segments than are kept without a need.
SEGMENT_BYTES, KEEP = 4_000, 2
#: Rounds of "settle, take, let time pass" after which a bus that still holds something is stuck.
ROUNDS = 60
#: The name that the one guest speaks under.
GUEST = "cron"


# --- files ------------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """Bytes that were written to a file; one that is new begins empty."""

    name: str
    offset: int
    data: bytes
    size: int  # of the file afterwards

    def stops(self) -> list[int]:
        """How much of it may be there when its process is killed: each write that it is made of; and, of each, what the
        kernel has taken, page by page of its own cache. A line of the log may be cut anywhere."""
        end = len(self.data)
        edges = set(range(PAGE_BYTES - self.offset % PAGE_BYTES, end, PAGE_BYTES))
        if self.name == WAL:
            # SQLite writes what stands before a page, and then the page.
            frames = range(WAL_HEADER_BYTES - self.offset if self.offset == 0 else 0, end, FRAME_BYTES)
            edges.update(frames, (at + FRAME_HEADER_BYTES for at in frames))
        elif self.name.startswith(LOG):
            lines = [0, *(at + 1 for at, byte in enumerate(self.data) if byte == 0x0A)]
            edges.update(lines, (line + 1 for line in lines), (line - 1 for line in lines))
            edges.update((low + high) // 2 for low, high in zip(lines, lines[1:], strict=False))
        return sorted(edge for edge in edges if 0 < edge < end)


class Renamed(NamedTuple):
    """A file got another name."""

    name: str
    to: str


class Removed(NamedTuple):
    """A file is gone."""

    name: str


AnyChange = Change | Renamed | Removed
Disk = dict[str, bytearray]


def play(disk: Disk, change: AnyChange, upto: int | None = None) -> None:
    """Makes a change; `upto`: no more of it than so many bytes."""
    if isinstance(change, Removed):
        del disk[change.name]
    elif isinstance(change, Renamed):
        disk[change.to] = disk.pop(change.name)
    else:
        content = disk.setdefault(change.name, bytearray())
        data = change.data[:upto]
        content[change.offset : change.offset + len(data)] = data
        if upto is None:
            del content[change.size :]


def lay_out(disk: Disk, directory: Path) -> Path:
    """Makes a data directory with these files."""
    directory.mkdir(mode=0o700)
    for name, content in disk.items():
        path = directory / name
        path.touch(0o600)
        path.write_bytes(content)
    return directory


def pick_up(directory: Path) -> Disk:
    """The files of a data directory."""
    return {name: bytearray((directory / name).read_bytes()) for name in sorted(os.listdir(directory))}


class Recorder:
    """Keeps the changes of the files in a directory."""

    #: Through these a file is changed by other code than SQLite's.
    CALLS = ("open", "rename", "unlink", "link", "ftruncate", "write", "writev")

    def __init__(self) -> None:
        self.changes: list[AnyChange] = []
        self._known: dict[str, tuple[int, bytes]] = {}  # name → inode, content
        self._directory: Path | None = None

    def __repr__(self) -> str:
        return f"<Recorder: {len(self.changes)} changes>"

    def move_to(self, directory: Path) -> None:
        """From now on these files are looked at; they are what the others were."""
        self._directory = directory
        found = self._look()
        for name in found.keys() | self._known.keys():
            assert name in found and name in self._known and found[name][1]==self._known[name][1], (name, name in found, name in self._known, len(found.get(name,(0,b''))[1]), len(self._known.get(name,(0,b''))[1]))
        self._known = found

    def _look(self) -> dict[str, tuple[int, bytes]]:
        assert self._directory is not None
        found = {}
        for name in os.listdir(self._directory):
            # SQLite holds locks on some of them, which this gives up. Nobody else is here to respect them.
            with open(self._directory / name, "rb") as file:
                found[name] = os.fstat(file.fileno()).st_ino, file.read()
        return found

    def observe(self) -> None:
        """Notes what has changed since the last look."""
        before, now = self._known, self._look()
        if now == before:
            return
        self._known = now
        inodes = {inode: name for name, (inode, _) in now.items()}
        contents: dict[str, bytes] = {}
        for name, (inode, content) in before.items():
            to = inodes.get(inode)
            if to == name:
                contents[name] = content
            elif to is not None and name not in now and to not in before:
                self.changes.append(Renamed(name, to))
                contents[to] = content
        for name in sorted(now, key=_write_order):
            if name not in contents and name in before:
                self.changes.append(Removed(name))  # another file has got its name
            self._compare(name, contents.get(name), now[name][1])
        for name in before.keys() - now.keys():
            if before[name][0] not in inodes:
                self.changes.append(Removed(name))

    def _compare(self, name: str, old: bytes | None, new: bytes) -> None:
        if old == new:
            return
        if old is None:
            self.changes.append(Change(name, 0, new, len(new)))
            return
        if name == DATABASE:
            # A checkpoint writes page by page, and not all of them.
            for at in range(0, len(new), PAGE_BYTES):
                page = new[at : at + PAGE_BYTES]
                if page != old[at : at + PAGE_BYTES]:
                    self.changes.append(Change(name, at, page, max(len(old), at + len(page))))
            if len(new) < len(old):
                self.changes.append(Change(name, len(new), b"", len(new)))
            return
        start = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        end = len(new)
        while len(old) == len(new) and end > start and old[end - 1] == new[end - 1]:
            end -= 1
        if name == WAL:
            # Written over from its start after a checkpoint: bytes that were the same before are written, too.
            start = 0 if start < WAL_HEADER_BYTES else start - (start - WAL_HEADER_BYTES) % FRAME_BYTES
            end = min(len(new), end + -(end - WAL_HEADER_BYTES) % FRAME_BYTES)
        self.changes.append(Change(name, start, new[start:end], len(new)))

    @contextmanager
    def each_call(self) -> Iterator[None]:
        """Looks after each call and each statement of SQL."""
        observe, looks = self.observe, True

        class Watched(sqlite3.Connection):
            def execute(self, *arguments: Any) -> sqlite3.Cursor:
                cursor = super().execute(*arguments)
                looks and observe()
                return cursor

            def close(self) -> None:
                super().close()
                looks and observe()

        connect = sqlite3.connect
        with pytest.MonkeyPatch.context() as patch:
            for name in self.CALLS:
                patch.setattr(os, name, self._observed(getattr(os, name)))
            patch.setattr(sqlite3, "connect", lambda *args, **named: connect(*args, factory=Watched, **named))
            yield
        looks = False
        observe()

    def _observed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def observed(*args: Any, **named: Any) -> Any:
            result = call(*args, **named)
            if call is not _OPEN or args[1] & os.O_CREAT:
                self.observe()
            return result

        return observed


_OPEN = os.open


def _write_order(name: str) -> int:
    """Within one call: the log is written before the database is committed, and a checkpoint comes after the commit."""
    return 0 if name.startswith(LOG) else 1 if name == WAL else 2


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
        self.told: dict[str, protocol.Envelope] = {}  #: message id → what the broker has sent to its sender
        self.taken: dict[str, list[str]] = {}  #: session id, or a guest's name → message ids
        self.personas: dict[str, Persona] = {}
        self.names: dict[str, set[str]] = {}  #: names that a session may go by
        self.spoilt: set[str] = set()  #: messages whose receivers were told that the text is lost

    def __repr__(self) -> str:
        return f"<Ledger: {len(self.sent)} sent, {sum(map(len, self.taken.values()))} taken>"

    def note_told(self, envelope: protocol.Envelope) -> None:
        """The broker sends this to somebody."""
        match envelope:
            case protocol.Receipt(msg_ids=msg_ids):
                self.told.update(dict.fromkeys(msg_ids, envelope))
            case protocol.Tally(msg_id=msg_id):
                self.told[msg_id] = envelope
            case protocol.Refused(ref=ref) if ref in self.sent:
                self.told[ref] = envelope

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
                case protocol.Receipt(state=state, session_id=receiver) if state != State.DELIVERED:
                    queued = receiver == who
                case protocol.Tally(full=full):
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


class FileStore(Database):
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
        self.clients = [member for member in self.clients if member.core.phase is not Phase.CLOSED]  # else it is leaving
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
            ledger.check_order(session_id, msg_ids)
            for entry in entries:
                sent = ledger.sent[entry.msg_id]
                assert session_id in sent.perhaps, f"{entry} is not for {session_id}"
                body = entry.body if not entry.spilled else self.store._reader.read(entry.pointer).body
                assert body == sent.body, f"{entry} had another text"
                assert not isinstance(ledger.told.get(entry.msg_id), protocol.Refused), entry

    def come_to_rest(self) -> None:
        """Everybody comes back, senders repeat what they were not told, and receivers read all there is."""
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
                case ZmqbusError() | protocol.Refused():
                    # A guest that has shown its answer, and ended before that was known, cannot be asked any more.
                    assert not takers or takers == {GUEST}, said
                case protocol.Receipt() | protocol.Tally() as answer:
                    full = answer.full if isinstance(answer, protocol.Tally) else ()
                    without = {who for who, names in ledger.names.items() if names.intersection(full)}
                    if msg_id not in lost:
                        assert takers >= sent.surely - without, f"lost: {said}"
                        assert sent.takers in (None, len(takers)), said
                case _:
                    pass  # its sender has ended, or the bus would not have come to rest
            if isinstance(ledger.told.get(msg_id), protocol.Refused):
                assert isinstance(answers[msg_id], ZmqbusError | protocol.Refused), f"accepted after all: {said}"
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
    creating = False  # SQLite's rollback journal is written in more steps than were seen
    for position in range(len(net.recorder.changes) + 1):
        at = [moment for moment in net.moments if moment.position == position]
        before = [moment for moment in net.moments if moment.position < position][-1:]
        if not creating:
            # What has been written may have been told of or not, and who was told may have heard it or not.
            found += [End(position, 0, moment, lost) for moment in before + at for lost in (0, 1, 1_000)]
        if position == len(net.recorder.changes):
            break
        change = net.recorder.changes[position]
        if change.name == ROLLBACK:
            creating = not isinstance(change, Removed) and creating
        creating = creating or (change.name == DATABASE and _rolls_back(net.recorder.changes, position))
        if isinstance(change, Change) and not creating:
            found += [End(position, stop, (before + at)[-1], 0) for stop in change.stops()]
    return found


def _rolls_back(changes: list[AnyChange], position: int) -> bool:
    """Whether a change of the database is covered by a rollback journal."""
    for change in reversed(changes[:position]):
        if change.name == ROLLBACK:
            return not isinstance(change, Removed)
    return False


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


# --- what happens -----------------------------------------------------------------------------------------------


class Play:
    """Things that happen to a few sessions, a helper and a guest; what, `chance` decides."""

    NAMES = ("alice", "bob", "carol", "dave")
    TOPIC, GROUP = "deploys", "workers"

    def __init__(self, net: FileNet, seed: int) -> None:
        self.net = net
        self.chance = random.Random(seed)
        self._renames = 0
        self._processes = 0
        for name in self.NAMES:
            self.start(f"{name}-session-id")

    def __repr__(self) -> str:
        return f"<Play on {self.net!r}>"

    # --- who is there

    def start(self, session_id: str) -> SimClient:
        """A process of this session comes."""
        self._processes += 1
        ledger = self.net.ledger
        name = session_id.partition("-")[0]
        ledger.names.setdefault(session_id, {name})
        persona = Persona(
            role=Role.LISTENER,
            session_id=session_id,
            token=f"{name}-token",
            name=max(ledger.names[session_id]),
            cwd="/p",
            project="/p",
            pid=1000 + self._processes,
            owner="1:1",
            topics=(self.TOPIC,) if name != "dave" else (),
            groups=(self.GROUP,) if name != "alice" else (),
        )
        ledger.personas[session_id] = persona
        return self.net._enter(persona, True)

    def end(self, member: SimClient, *, bye: bool) -> None:
        """A process ends, in good order or not."""
        member.stopped = False
        if bye and member.core.phase is Phase.READY:
            member.bye()
            self.net.wake()
        member.disconnect()
        self.net.clients.remove(member)

    def listeners(self) -> list[SimClient]:
        return [member for member in self.net.clients if member.persona.role == Role.LISTENER]

    # --- messages

    def next_id(self) -> str:
        """The id of the next message; a client of the network may have those of one that has gone."""
        return f"message{len(self.net.ledger.sent):04d}"

    def send(self, member: SimClient, scope: Scope, target: str, perhaps: set[str], **more: Any) -> str:
        """Says something; `perhaps`: the sessions that may get it."""
        ledger = self.net.ledger
        who = f"{member.persona.name} {member.persona.pid}"
        order = len(ledger.sent)
        body = b"%d %s" % (order, b"x" * self.chance.choice((0, 0, 30, 200, protocol.SPILL_BYTES + 1)))
        known = self.net.broker.registry.sessions
        takers = 1 if scope == Scope.GROUP else None
        surely = perhaps & set(known) if scope in protocol.TO_MANY else perhaps if takers is None else set()
        msg_id = self.next_id()
        ledger.sent[msg_id] = Sent(order, who, frozenset(surely), frozenset(perhaps), takers, body, "reply_to" in more)
        member.send(target, body, scope=scope, msg_id=msg_id, **more)
        return msg_id

    def directed(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            member = self.chance.choice(self.listeners() or [self.start("alice-session-id")])
            other = self.chance.choice([one for one in self.net.ledger.names if one != member.persona.session_id])
            target = other if self.chance.random() < 0.5 else max(self.net.ledger.names[other])
            self.send(member, Scope.SESSION, target, {other})

    def to_many(self) -> None:
        member = self.chance.choice(self.listeners() or [self.start("alice-session-id")])
        others = set(self.net.ledger.names) - {member.persona.session_id or ""}
        kind = self.chance.randrange(3)
        if kind == 0:
            self.send(member, Scope.TOPIC, self.TOPIC, others - {"dave-session-id"})
        elif kind == 1:
            self.send(member, Scope.GROUP, self.GROUP, others - {"alice-session-id"})
        else:
            self.send(member, Scope.ALL, "", others)

    def refused(self) -> None:
        member = self.chance.choice(self.listeners() or [self.start("alice-session-id")])
        self.send(member, Scope.SESSION, "nobody-at-all", set())

    def ask(self) -> None:
        """A helper, or a guest, asks; somebody answers, by and by."""
        if any(member.persona.role in (Role.HELPER, Role.GUEST) for member in self.net.clients):
            return
        there = [member for member in self.listeners() if not member.stopped]
        if len(there) < 2:
            return
        asker, other = self.chance.sample(there, 2)
        if self.chance.random() < 0.5:
            member, who = self.net.helper(asker), asker.persona.session_id or ""
            name = max(self.net.ledger.names[who])
        else:
            member, who = self.net.guest(GUEST), GUEST
            name = GUEST
        question = self.next_id()
        receiver = other.persona.session_id or ""
        member._do(member.core.await_answer(question))
        self.send(member, Scope.SESSION, receiver, {receiver})
        self.some_steps()
        self.send(other, Scope.SESSION, name, {who}, reply_to=question)

    def take_some(self) -> None:
        for member in list(self.net.clients):
            if self.chance.random() < 0.6:
                self.net.take(member, self.chance.randint(1, 5))
        for member in list(self.net.clients):
            if member.persona.role in (Role.HELPER, Role.GUEST) and member.history and not member.handed:
                self.end(member, bye=True)  # it has its answer

    # --- mishaps

    def come_or_go(self) -> None:
        session_id = self.chance.choice(list(self.net.ledger.names))
        member = self.net.live(session_id)
        if member is None:
            self.start(session_id)
        else:
            self.end(member, bye=self.chance.random() < 0.5)

    def stand_still(self) -> None:
        member = self.chance.choice(self.listeners() or [self.start("alice-session-id")])
        member.stopped = not member.stopped

    def cut(self) -> None:
        member = self.chance.choice(self.listeners() or [self.start("alice-session-id")])
        if not member.stopped:
            member.disconnect()
            member.connect()

    def rename(self) -> None:
        member = self.chance.choice(self.listeners() or [self.start("alice-session-id")])
        session_id = member.persona.session_id or ""
        if member.core.phase is not Phase.READY or member.stopped:
            return
        self._renames += 1
        name = f"{session_id.partition('-')[0]}-{self._renames:03d}"
        names = self.net.ledger.names[session_id]
        names.add(name)
        member.request(protocol.Rename(f"r{self._renames}", name))
        self.net.settle()
        if f"r{self._renames}" in member.responses:
            names.intersection_update({name})

    def some_steps(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            self.net.step()

    def some_time(self) -> None:
        self.net.advance(self.chance.choice((0.3, 1.2)))

    def kill(self) -> None:
        self.net.kill_broker(self.chance.choice(list(Death)), self.chance.randrange(4))

    def go_on(self, count: int) -> None:
        """Lets so many things happen."""
        things: dict[Callable[[], None], int] = {
            self.directed: 8,
            self.to_many: 3,
            self.refused: 1,
            self.ask: 3,
            self.take_some: 5,
            self.come_or_go: 3,
            self.stand_still: 1,
            self.cut: 1,
            self.rename: 1,
            self.some_steps: 6,
            self.net.settle: 2,
            self.some_time: 2,
            self.kill: 1,
        }
        for thing in self.chance.choices(list(things), list(things.values()), k=count):
            thing()
