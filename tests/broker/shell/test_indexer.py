"""The indexer: when it is started, and that its failures do not affect the broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.records import ids, line
from zmqbus.broker.shell import indexer
from zmqbus.broker.shell.indexer import IndexerLauncher, index_all
from zmqbus.journal.search_index import Index
from zmqbus.journal.search_query import Search
from zmqbus.journal.writer import Journal
from zmqbus.process import is_alive, process_of
from zmqbus.settings import Settings, load
from zmqbus.system import children

PATIENCE_S = 90.0


@pytest.fixture
def settings(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(indexer, "GROWTH_BYTES", 10_000)
    return load()


@pytest.fixture
def log(settings: Settings) -> Iterator[Journal]:
    log = Journal(settings.paths.log)
    yield log
    log.close()


class Ticking:
    """A launcher with a manual clock."""

    def __init__(self, settings: Settings) -> None:
        self.logged: list[str] = []
        self.launcher = IndexerLauncher(settings, self.logged.append)
        self.now_s = 1000.0
        self.launcher.tick(self.now_s)

    @property
    def pid(self) -> int | None:
        process = self.launcher._process
        return None if process is None else process.pid

    def look(self, later_s: float = indexer.LOOK_S) -> None:
        self.now_s += later_s
        self.launcher.tick(self.now_s)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
            self.look()


@pytest.fixture
def ticking(settings: Settings) -> Iterator[Ticking]:
    ticking = Ticking(settings)
    yield ticking
    ticking.launcher.close()


def grow(log: Journal, size: int, word: str = "apple") -> None:
    log.append([line(ids(1)[0], f"{word} {'x' * size}")])


def indexed(settings: Settings, word: str) -> int:
    index = Index.open_existing(settings.paths.search_index)
    if index is None:
        return 0
    with index:
        return sum(1 for serial in index.segments() for _ in index.matches(serial, word, 2**62))


def test_a_process_starts_when_the_journal_has_grown(settings: Settings, log: Journal, ticking: Ticking) -> None:
    grow(log, 3_000)
    ticking.look()
    assert ticking.pid is None
    grow(log, 8_000)
    ticking.look()
    assert ticking.pid is not None
    ticking.until(lambda: ticking.pid is None)
    assert indexed(settings, "apple") == 2
    grow(log, 3_000)
    ticking.look()
    assert ticking.pid is None
    assert ticking.logged == []


def test_the_journal_is_measured_every_few_seconds_only(log: Journal, ticking: Ticking) -> None:
    ticking.look()
    grow(log, 20_000)
    ticking.look(1.0)
    assert ticking.pid is None
    ticking.look()
    assert ticking.pid is not None


def test_the_journal_of_an_earlier_broker_is_indexed(settings: Settings, log: Journal) -> None:
    grow(log, 20_000)
    ticking = Ticking(settings)
    assert ticking.pid is None  # the first tick is skipped
    ticking.look()
    assert ticking.pid is not None
    ticking.until(lambda: ticking.pid is None)
    assert indexed(settings, "apple") == 1


def test_rotation_counts_as_growth(settings: Settings) -> None:
    log = Journal(settings.paths.log, segment_bytes=1)
    ticking = Ticking(settings)
    ticking.look()
    for _ in range(3):
        grow(log, 4_000)
        ticking.look()
    assert ticking.pid is not None
    ticking.launcher.close()
    log.close()


def test_closing_ends_the_process(log: Journal, ticking: Ticking) -> None:
    grow(log, 20_000)
    ticking.look()
    assert ticking.pid is not None
    process = process_of(ticking.pid)
    ticking.launcher.close()
    assert not is_alive(process)
    ticking.launcher.close()


def test_a_failure_is_logged_once_and_retried(settings: Settings, log: Journal, ticking: Ticking) -> None:
    os.mkdir(settings.paths.search_index, 0o700)
    grow(log, 20_000)
    ticking.until(lambda: bool(ticking.logged))
    assert len(ticking.logged) == 1
    assert "search.sqlite is not a file; move it out of the way" in ticking.logged[0]
    ticking.look()
    assert ticking.pid is None  # not retried yet
    ticking.look(indexer.RETRY_S)
    assert ticking.pid is not None
    ticking.until(lambda: ticking.pid is None)
    assert len(ticking.logged) == 1
    os.rmdir(settings.paths.search_index)
    ticking.look(indexer.RETRY_S)
    ticking.until(lambda: ticking.pid is None)
    assert indexed(settings, "apple") == 1


def test_a_killed_process_is_logged(
    log: Journal, ticking: Ticking, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    endless = tmp_path / "python"  # the real one might finish before it is killed
    endless.write_text("#!/bin/sh\nexec sleep 600\n")
    endless.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(endless))
    grow(log, 20_000)
    ticking.look()
    assert ticking.pid is not None
    os.kill(ticking.pid, signal.SIGKILL)
    ticking.until(lambda: bool(ticking.logged))
    assert ticking.logged == ["the indexer of the search index has ended with status -9"]


def test_a_process_that_cannot_be_started_is_logged(
    log: Journal, ticking: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    grow(log, 20_000)
    ticking.look()
    assert len(ticking.logged) == 1
    assert "No such file" in ticking.logged[0]


def test_an_unreadable_journal_is_logged(settings: Settings, log: Journal) -> None:
    grow(log, 20_000)
    os.chmod(settings.paths.log, 0o644)
    ticking = Ticking(settings)
    ticking.look()
    assert len(ticking.logged) == 1
    assert "chmod 600" in ticking.logged[0]


def test_a_damaged_index_is_rebuilt(settings: Settings, log: Journal) -> None:
    grow(log, 20_000)
    index_all(settings, lambda: True)
    path = settings.paths.search_index
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (os.stat(path).st_size - 4096))
    index_all(settings, lambda: True)
    assert indexed(settings, "apple") == 1


@pytest.mark.parametrize("lives", [True, False])
def test_the_process_ends_with_its_broker(settings: Settings, log: Journal, lives: bool) -> None:
    """An orphan leaves the rest to the next process."""
    grow(log, 20_000)
    parent = os.getpid() if lives else os.getppid()
    done = subprocess.run(
        children.command("zmqbus.broker.shell.indexer", str(parent)),
        env=children.environ(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert indexed(settings, "apple") == lives
    assert len(list(Search(settings.paths.log, settings.paths.search_index, "apple").entries())) == 1
