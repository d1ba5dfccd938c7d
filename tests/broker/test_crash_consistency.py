"""Crash consistency: whenever the broker dies, the next one keeps every guarantee.

Runs are recorded, change by change of the broker's files (`filenet`). Then each prefix of the changes is taken as the
files of a dead broker, and the world of that instant continues with another one. `SOAK=1` tries all prefixes, of more
runs.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.broker.file_changes import DATABASE, FRAME_BYTES, LOG, WAL, Change, Removed, Renamed, lay_out, pick_up, play
from tests.broker.filenet import LATE, Crash, FileNet, Moment, crashes, worlds
from tests.broker.scenario import Scenario
from zmqbus.broker import mailbox
from zmqbus.broker.storage import file, sqlite
from zmqbus.broker.storage.api import Entry
from zmqbus.testing import session_id_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope

AWAY = (session_id_of("bob"), session_id_of("carol"), session_id_of("dave"))
SOAK = "SOAK" in os.environ
SEEDS = range(20 if SOAK else 4)
#: Crashes of one run that are tried at most.
TRIED = 1_000_000 if SOAK else 130


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Lowers limits so that a short run reaches them."""
    monkeypatch.setattr(verbs, "SPILL_BYTES", 300)
    monkeypatch.setattr(sqlite, "SPILL_BYTES", 300)
    monkeypatch.setattr(verbs, "INLINE_BYTES", 300)  # a spilled body shares no batch
    monkeypatch.setattr(file, "CHECKPOINT_PAGES", 12)
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 4)


def recorded(directory: Path, happens: Callable[[Scenario], None], seed: int) -> FileNet:
    """Records a run, and checks that the record is complete."""
    net = FileNet(directory / "run")
    happens(Scenario(net, seed))
    disk: dict[str, bytearray] = {}
    for change in net.recorder.changes:
        play(disk, change)
    assert disk == pick_up(net.directory)
    net.recording = False
    return net


def check_world(crash: Crash, world: FileNet) -> None:
    """Checks the guarantees after a crash: at once, when every client has come back, and after another crash."""
    try:
        world.check_recovered()
        world.come_to_rest()
        world.account()
        world.kill_broker()
        world.check_recovered()
        assert world.store.total() == 0
        world.come_to_rest()
        world.account()
    except AssertionError as error:
        raise AssertionError(f"{crash}: {error}") from error


def sample(found: list[Crash], seed: int) -> list[Crash]:
    if len(found) <= TRIED:
        return found
    return [found[number] for number in sorted(random.Random(seed).sample(range(len(found)), TRIED))]


def everything_once(scenario: Scenario) -> None:
    """Lets every kind of event happen, so that each is followed by crashes."""
    net = scenario.net
    bob = net.live(session_id_of("bob"))
    dave = net.live(session_id_of("dave"))
    assert bob is not None and dave is not None
    scenario.end(bob, bye=True)
    scenario.directed()
    scenario.directed()
    net.step()
    scenario.refused()
    scenario.to_many()
    net.settle()
    scenario.take_some()
    scenario.ask()
    net.settle()
    scenario.take_some()
    scenario.refused()
    scenario.rename()
    dave.stopped = True
    scenario.directed()
    scenario.to_many()
    net.step()
    scenario.end(dave, bye=False)
    net.settle()
    net.advance(1.2)
    scenario.kill()
    scenario.directed()
    scenario.start(session_id_of("bob"))
    net.settle()
    scenario.take_some()
    scenario.to_many()
    net.settle()


@pytest.mark.slow
def test_crashes_of_a_run_with_every_event(tmp_path):
    net = recorded(tmp_path, everything_once, 1)
    for crash, world in worlds(net, sample(crashes(net), 0), tmp_path):
        check_world(crash, world)
    net.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_no_crash_loses_duplicates_or_reorders_messages(tmp_path, seed):
    net = recorded(tmp_path, lambda scenario: scenario.go_on(120), seed)
    for crash, world in worlds(net, sample(crashes(net), seed), tmp_path):
        check_world(crash, world)
    net.come_to_rest()
    net.account()
    net.close()


@pytest.mark.slow
def test_the_runs_contain_every_kind_of_change(tmp_path):
    """Otherwise the tests above would prove nothing."""
    seen: Counter[str] = Counter()
    for seed in range(5):
        net = recorded(tmp_path / str(seed), lambda scenario: scenario.go_on(120), seed)
        for change in net.recorder.changes:
            match change:
                case Removed(name) if name.startswith(LOG):
                    seen["segments deleted"] += 1
                case Renamed(name) if name.startswith(LOG):
                    seen["segments renamed"] += 1
                case Change(name, 0) if name == WAL:
                    seen["write-ahead logs begun"] += 1
                case Change(name, _, data) if name == WAL and len(data) > 2 * FRAME_BYTES:
                    seen["commits of several pages"] += 1
                case Change(name) if name == DATABASE:
                    seen["pages checkpointed"] += 1
        for answer in net.oracle.confirmed.values():
            seen[type(answer).__name__] += 1
            if isinstance(answer, verbs.Receipt):
                seen[verbs.State(answer.state).name] += 1
        seen["spilled"] += sum(len(sent.body) > 300 for sent in net.oracle.sent.values())
        seen["answers"] += sum(sent.answers for sent in net.oracle.sent.values())
        seen["taken by a guest"] += len(net.oracle.taken.get("cron", ()))
        seen["renamed"] += sum(name[-1].isdigit() for names in net.oracle.names.values() for name in names)
        net.close()
    for what in (
        *("segments deleted", "segments renamed", "write-ahead logs begun", "commits of several pages"),
        *("pages checkpointed", "Receipt", "Tally", "Refused", "AWAY", "BUSY", "DELIVERED", "spilled", "answers"),
        *("taken by a guest", "renamed"),
    ):
        assert seen[what], f"{what}: {seen}"


# --- damage -----------------------------------------------------------------------------------------------------


class Mail(NamedTuple):
    """Files of a broker all of whose sessions but one are away with mail; and the world around it."""

    disk: dict[str, bytearray]
    older: dict[str, bytearray]  # the files when half of the mail had been sent
    moment: Moment
    waiting: dict[str, list[Entry]]  # by session

    def ids(self) -> set[str]:
        return {entry.msg_id for entries in self.waiting.values() for entry in entries}

    def hit(self, serial: int, at: int) -> set[str]:
        """Messages in the segment with this serial whose record contains the offset `at`."""
        found = set()
        for entries in self.waiting.values():
            for entry in entries:
                segment, start, length, _ = entry.pointer
                if segment == serial and start <= at < start + length:
                    found.add(entry.msg_id)
        return found


def send_and_leave(scenario: Scenario) -> None:
    net = scenario.net
    alice = net.live(session_id_of("alice"))
    assert alice is not None
    for _ in range(4):
        scenario.send(alice, Scope.SESSION, "bob", {session_id_of("bob")})
    net.settle()
    for name in AWAY:
        member = net.live(name)
        assert member is not None
        net.take(member)
        scenario.end(member, bye=True)
    for number in range(24):
        receiver = AWAY[number % 3]
        if number % 6 == 5:
            scenario.send(alice, Scope.ALL, "", {*AWAY, LATE})
        else:
            scenario.send(alice, Scope.SESSION, receiver, {receiver})
        if number % 5 == 3:
            scenario.refused()
        net.settle()


@pytest.fixture
def mail(tmp_path) -> Mail:
    net = recorded(tmp_path, send_and_leave, 3)
    older: dict[str, bytearray] = {}
    for change in net.recorder.changes[: len(net.recorder.changes) // 2]:
        play(older, change)
    mail = Mail(
        pick_up(net.directory), older, net.moments[-1], {session_id: net.contents(session_id) for session_id in AWAY}
    )
    net.close()
    assert {LOG, LOG + ".1", LOG + ".2", DATABASE, WAL} <= set(mail.disk), "too little for these tests"
    return mail


@contextmanager
def world_on(directory: Path, mail: Mail, disk: dict[str, bytearray]) -> Iterator[FileNet]:
    """The world with a broker that has started on these files."""
    directory = directory / "damaged"
    world = FileNet(lay_out(disk, directory), moment=mail.moment)
    try:
        yield world
    finally:
        world.close()
        shutil.rmtree(directory)


def check_new_mail(world: FileNet, mail: Mail) -> None:
    """Checks that new messages arrive, and that old ones are neither duplicated nor altered (`Oracle.note_taken`).

    Messages without their text must be named in the broker's notices.
    """
    scenario = Scenario(world, 7)
    world.settle()
    alice = world.live(session_id_of("alice"))
    assert alice is not None
    known = set(AWAY) & set(world.broker.registry.sessions)
    for receiver in sorted(known):
        scenario.send(alice, Scope.SESSION, receiver, {receiver})
    scenario.send(alice, Scope.ALL, "", {*AWAY, LATE})
    world.come_to_rest()
    world.account(lost=frozenset(mail.ids()))
    assert world.oracle.textless <= mail.ids()
    said = " ".join(world.damage)
    unnamed = [msg_id for msg_id in world.oracle.textless if msg_id not in said]
    assert not unnamed or " more" in said, f"{unnamed} are lost without a notice: {said}"


@pytest.mark.slow
@pytest.mark.parametrize("stored", [True, False], ids=["a row points to it", "no row points to it"])
def test_a_torn_tail_of_the_journal(tmp_path, mail, stored):
    """The last record is torn at each byte, as by a kill (no row points to it) or a power failure (one does)."""
    content = mail.disk[LOG]
    (last,) = mail.hit(3, len(content) - 2)
    start = content.rindex(b"\n", 0, len(content) - 1) + 1
    cuts = range(start, len(content))
    for cut in cuts if SOAK else (*cuts[:2], *cuts[2:-2:23], *cuts[-2:]):
        disk = {**mail.disk, LOG: content[:cut]}
        if not stored:
            disk[DATABASE], disk[WAL] = without(mail.disk, last, tmp_path)
        with world_on(tmp_path, mail, disk) as world:
            said = " ".join(world.damage)
            assert ("cut off an unfinished record" in said) == (cut > start), f"cut at {cut}: {said}"
            assert (last in said) == stored, f"cut at {cut}: {said}"
            check_new_mail(world, mail)
            assert world.oracle.textless == ({last} if stored else set()), f"cut at {cut}"
            missing = set() if stored else {last}
            for session_id, entries in mail.waiting.items():
                got = set(world.oracle.taken[session_id])
                assert {entry.msg_id for entry in entries} - got <= missing


def without(disk: dict[str, bytearray], msg_id: str, directory: Path) -> tuple[bytearray, bytearray]:
    """The database without this message, and an empty write-ahead log."""
    path = lay_out(disk, directory / "edited") / DATABASE
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM owed WHERE msg_id = ?", (msg_id,))
    connection.commit()
    connection.close()
    content = bytearray(path.read_bytes())
    shutil.rmtree(directory / "edited")
    return content, bytearray()


@pytest.mark.slow
@pytest.mark.parametrize("name, serial", [(LOG, 3), (LOG + ".1", 2), (LOG + ".2", 1)])
def test_a_flipped_bit_in_the_journal(tmp_path, mail, name, serial):
    content = mail.disk[name]
    chance = random.Random(serial)
    first_line = content.index(b"\n") + 1
    places = list(range(len(content)))
    if not SOAK:
        places = sorted({*chance.sample(places, 20), *chance.sample(range(first_line), 4), len(content) - 1})
    for at in places:
        disk = {**mail.disk, name: bytearray(content)}
        disk[name][at] ^= 1 << chance.randrange(8)
        hit = mail.hit(serial, at)
        if at == len(content) - 1 and name == LOG:
            hit = mail.hit(serial, at - 1)  # the last record has lost its end
        with world_on(tmp_path, mail, disk) as world:
            assert all(msg_id in " ".join(world.damage) for msg_id in hit), f"{at}: {hit}, {world.damage}"
            check_new_mail(world, mail)
            for session_id, entries in mail.waiting.items():
                assert {entry.msg_id for entry in entries} <= set(world.oracle.taken[session_id]), f"at {at}"
            if at < first_line:
                continue  # the segment cannot be found by its serial; its messages are named
            assert world.oracle.textless == hit, f"at {at}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [DATABASE, WAL])
def test_a_flipped_bit_in_the_database(tmp_path, mail, name):
    """SQLite's write-ahead log has checksums; of the database itself only the structure is checked.

    A letter in a row may change unnoticed, but never the text of a message, which the journal has.
    """
    disk = dict(mail.disk)
    if name == DATABASE:
        disk[DATABASE], disk[WAL] = without(disk, "", tmp_path)  # all in one file
    content = disk[name]
    chance = random.Random(5)
    used = [at for at, byte in enumerate(content) if byte]
    for at in used if SOAK else chance.sample(used, 60):
        disk[name] = bytearray(content)
        disk[name][at] ^= 1 << chance.randrange(8)
        with world_on(tmp_path, mail, disk) as world:
            sent = world.oracle.sent
            found = [entry for who in world.broker.registry.sessions for entry in world.contents(who)]
            for entry in found:
                if entry.body:
                    assert entry.body == sent[entry.msg_id].body, f"at {at}: {entry}"
            expected = sum(map(len, mail.waiting.values()))
            assert world.damage or world.store.total() == expected, f"at {at}: mail was lost without a notice"
            if name == WAL:
                check_new_mail(world, mail)
                kept = [path.read_bytes() for path in world.directory.glob("*damaged*")]
                assert kept == [bytes(disk[WAL])] * len(kept), "the copy of the log differs"


def _gone(*names: str) -> Callable[[Mail], dict[str, bytearray]]:
    return lambda mail: {name: content for name, content in mail.disk.items() if name not in names}


def _older(*names: str) -> Callable[[Mail], dict[str, bytearray]]:
    """These files in their older state; with LOG, all segments."""

    def mixed(mail: Mail) -> dict[str, bytearray]:
        both = {*mail.disk, *mail.older}
        wanted = {name for name in both if name in names or (name.startswith(names) and name != WAL)}
        now = {name: content for name, content in mail.disk.items() if name not in wanted}
        return now | {name: content for name, content in mail.older.items() if name in wanted}

    return mixed


@pytest.mark.slow
@pytest.mark.parametrize(
    "files, is_noticed",
    [
        (_gone(LOG, LOG + ".1", LOG + ".2"), True),
        (_gone(LOG + ".1"), True),
        (lambda mail: mail.disk | {LOG: bytearray()}, True),
        (_older(LOG), True),
        (_gone(DATABASE), True),
        (lambda mail: mail.disk | {DATABASE: bytearray()}, True),
        # These cannot be noticed: an earlier broker may have left such files.
        (_gone(WAL), False),
        (_gone(DATABASE, WAL), False),
        (_gone(DATABASE, WAL, LOG, LOG + ".1", LOG + ".2"), False),
        (_older(DATABASE, WAL, LOG), False),
        (_older(DATABASE, WAL), False),
        (_older(DATABASE), False),
        (_older(WAL), False),
        (lambda mail: mail.disk | {LOG + ".1": mail.disk[LOG + ".2"], LOG + ".2": mail.disk[LOG + ".1"]}, False),
    ],
    ids=[
        "no log",
        "a segment gone",
        "the log emptied",
        "an older log",
        "no database",
        "the database emptied",
        "no write-ahead log",
        "no database, no write-ahead log",
        "nothing",
        "all older",
        "an older database",
        "an older database, and not its write-ahead log",
        "an older write-ahead log",
        "segments under each other's names",
    ],
)
def test_missing_older_or_swapped_files(tmp_path, mail, files, is_noticed):
    with world_on(tmp_path, mail, files(mail)) as world:
        if is_noticed:
            assert world.damage
        if DATABASE not in files(mail) and WAL in files(mail):
            kept = [path.read_bytes() for path in world.directory.glob("*damaged*")]
            assert kept == [bytes(mail.disk[WAL])]
        for session_id in AWAY:
            if session_id in world.broker.registry.sessions:
                found = [entry.msg_id for entry in world.contents(session_id)]
                world.oracle.check_order(session_id, found)
        check_new_mail(world, mail)
