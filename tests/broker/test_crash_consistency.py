"""Whatever instant the broker dies at, the next one finds what was promised.

Runs are recorded, change by change of the broker's files (`crashkit`). Then each prefix of the changes is what a dead
broker has left, and the world as it was at that instant goes on with another one. `SOAK=1` tries all of them, for more
runs.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.broker.crashkit import (
    DATABASE,
    LOG,
    WAL,
    Change,
    End,
    FileNet,
    Play,
    Removed,
    Renamed,
    ends,
    pick_up,
    play,
    worlds,
)
from zmqbus import protocol
from zmqbus.broker import database, dbfile

SOAK = "SOAK" in os.environ
SEEDS = range(40 if SOAK else 4)
#: Deaths that are tried of one run; all of them if there are no more.
TRIED = 1_000_000 if SOAK else 130


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Limits that a short run reaches."""
    monkeypatch.setattr(protocol, "SPILL_BYTES", 300)
    monkeypatch.setattr(database, "SPILL_BYTES", 300)
    monkeypatch.setattr(dbfile, "CHECKPOINT_PAGES", 12)


def recorded(directory: Path, happens: Callable[[Play], None], seed: int) -> FileNet:
    """A run, and proof that all of it was recorded."""
    net = FileNet(directory / "run")
    happens(Play(net, seed))
    disk: dict[str, bytearray] = {}
    for change in net.recorder.changes:
        play(disk, change)
    assert disk == pick_up(net.directory)
    net.recording = False
    return net


def goes_on(end: End, world: FileNet) -> None:
    """What must hold after a death: at once, when everybody has come back, and for the broker after that."""
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
        raise AssertionError(f"{end}: {error}") from error


def some(found: list[End], seed: int) -> list[End]:
    if len(found) <= TRIED:
        return found
    return [found[number] for number in sorted(random.Random(seed).sample(range(len(found)), TRIED))]


def everything_once(play_: Play) -> None:
    """Something of each kind, so that each is followed by each death."""
    net = play_.net
    bob = net.live("bob-session-id")
    dave = net.live("dave-session-id")
    assert bob is not None and dave is not None
    play_.end(bob, bye=True)
    play_.directed()
    play_.directed()
    net.step()
    play_.refused()
    play_.to_many()
    net.settle()
    play_.take_some()
    play_.ask()
    net.settle()
    play_.take_some()
    play_.rename()
    dave.stopped = True
    play_.directed()
    play_.to_many()
    net.step()
    play_.end(dave, bye=False)
    net.settle()
    net.advance(1.2)
    play_.kill()
    play_.directed()
    play_.start("bob-session-id")
    net.settle()
    play_.take_some()
    play_.to_many()
    net.settle()


def test_a_run_in_which_everything_happens_once(tmp_path):
    net = recorded(tmp_path, everything_once, 1)
    for end, world in worlds(net, some(ends(net), 0), tmp_path):
        goes_on(end, world)
    net.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_no_death_loses_doubles_or_reorders_anything(tmp_path, seed):
    net = recorded(tmp_path, lambda play_: play_.go_on(120), seed)
    for end, world in worlds(net, some(ends(net), seed), tmp_path):
        goes_on(end, world)
    net.come_to_rest()
    net.account()
    net.close()


def test_the_runs_have_all_that_can_be_cut(tmp_path):
    """Else the tests above would show nothing."""
    seen: Counter[str] = Counter()
    for seed in range(5):
        net = recorded(tmp_path / str(seed), lambda play_: play_.go_on(120), seed)
        for change in net.recorder.changes:
            match change:
                case Removed(name) if name.startswith(LOG):
                    seen["segments deleted"] += 1
                case Renamed(name) if name.startswith(LOG):
                    seen["segments renamed"] += 1
                case Change(name, 0) if name == WAL:
                    seen["write-ahead logs begun"] += 1
                case Change(name, offset, data) if name == WAL and len(data) > 2 * dbfile_frame():
                    seen["commits of several pages"] += 1
                case Change(name, offset) if name == DATABASE:
                    seen["pages checkpointed"] += 1
        for answer in net.ledger.told.values():
            seen[type(answer).__name__] += 1
            if isinstance(answer, protocol.Receipt):
                seen[protocol.State(answer.state).name] += 1
        seen["spilled"] += sum(len(sent.body) > 300 for sent in net.ledger.sent.values())
        seen["answers"] += sum(sent.answers for sent in net.ledger.sent.values())
        seen["taken by a guest"] += len(net.ledger.taken.get("cron", ()))
        seen["renamed"] += sum(name[-1].isdigit() for names in net.ledger.names.values() for name in names)
        net.close()
    for what in (
        *("segments deleted", "segments renamed", "write-ahead logs begun", "commits of several pages"),
        *("pages checkpointed", "Receipt", "Tally", "Refused", "AWAY", "BUSY", "DELIVERED", "spilled", "answers"),
        *("taken by a guest", "renamed"),
    ):
        assert seen[what], f"{what}: {seen}"


def dbfile_frame() -> int:
    return 4120
