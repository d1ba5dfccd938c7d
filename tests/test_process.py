"""Processes identified by pid, start time and place, on a fake table and on those of this system."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zmqbus.process import (
    FIRST_NAMESPACE,
    Life,
    Place,
    Process,
    ProcessEntry,
    ProcessTable,
    ProcTable,
    PsutilTable,
    has_ended,
    is_alive,
    life_of,
    process_of,
    this_machine,
)

ROOT = Path(__file__).resolve().parents[1]
HERE = this_machine().place()
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class TableOf:
    """A table of a place, which shows some pids, hides others, and has zombies."""

    def __init__(
        self, place: Place, shown: dict[int, str], hidden: tuple[int, ...] = (), zombies: tuple[int, ...] = ()
    ) -> None:
        self.where, self.shown, self.hidden, self.zombies = place, shown, hidden, zombies

    def place(self) -> Place:
        return self.where

    def exists(self, pid: int) -> bool:
        return pid in self.shown or pid in self.hidden

    def look(self, pid: int) -> ProcessEntry | None:
        return ProcessEntry(0, self.shown[pid], pid in self.zombies) if pid in self.shown else None

    def cmdline(self, pid: int) -> list[str]:
        return []

    def uid(self, pid: int) -> int | None:
        return None


@contextmanager
def child(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that ends when its standard input does."""
    process = subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_same_pid_other_start_time_is_another_process() -> None:
    table = TableOf(HERE, {100: "t100"})
    here = Process(100, "t100", *HERE)
    assert process_of(100, table) == here
    assert is_alive(here, table)
    assert has_ended(here._replace(started="t99"), table)
    assert has_ended(here, TableOf(HERE, {100: "t100"}, zombies=(100,)))
    assert process_of(101, table) == Process(101, "", *HERE)
    assert has_ended(process_of(101, table), table)


# --- places -----------------------------------------------------------------------------------------------------

#: A machine whose namespace, boot id and machine id are all known.
KNOWN = Place(FIRST_NAMESPACE, "boot", "machine")


@pytest.mark.parametrize(
    ("place", "started", "life"),
    [
        (KNOWN, "t7", Life.ALIVE),
        (KNOWN, "t6", Life.ENDED),
        # A container, with the same pid and even the same start time.
        (KNOWN._replace(namespace="4026539999"), "t7", Life.UNKNOWN),
        (KNOWN._replace(namespace="4026539999"), "t6", Life.UNKNOWN),
        (KNOWN._replace(namespace=""), "t7", Life.UNKNOWN),
        # This machine before its last restart: pids and start times begin again.
        (KNOWN._replace(boot="earlier"), "t7", Life.ENDED),
        (KNOWN._replace(boot="earlier", namespace="4026539999"), "t7", Life.ENDED),
        (KNOWN._replace(boot="?"), "t7", Life.UNKNOWN),
        # Another machine that shares the directory, or a guest of this one.
        (KNOWN._replace(boot="other", machine="other"), "t7", Life.UNKNOWN),
        (KNOWN._replace(boot="other", machine=""), "t7", Life.UNKNOWN),
        # Written by an earlier release.
        (Place(), "t7", Life.ALIVE),
        (Place(), "t6", Life.UNKNOWN),
    ],
)
def test_life_of_a_process_by_its_place(place: Place, started: str, life: Life) -> None:
    process = Process(7, started, *place)
    table = TableOf(KNOWN, {7: "t7"})
    assert life_of(process, table) is life
    assert (is_alive(process, table), has_ended(process, table)) == (life is Life.ALIVE, life is Life.ENDED)


def test_missing_pid_has_ended_only_in_its_own_place() -> None:
    table = TableOf(KNOWN, {})
    assert life_of(Process(7, "t7", *KNOWN), table) is Life.ENDED
    assert life_of(Process(7, "", *KNOWN), table) is Life.ENDED
    assert life_of(Process(7, "t7", *KNOWN._replace(namespace="4026539999")), table) is Life.UNKNOWN
    assert life_of(Process(7, "t7"), table) is Life.UNKNOWN


def test_hidden_process_is_not_ended() -> None:
    """/proc with hidepid, of another namespace, or not mounted."""
    assert life_of(Process(7, "t7", *KNOWN), TableOf(KNOWN, {}, hidden=(7,))) is Life.UNKNOWN


@pytest.mark.parametrize("blind", [KNOWN._replace(namespace=""), Place("", "?", ""), Place("", "?", "machine")])
def test_unknown_own_place_gives_no_verdict(blind: Place) -> None:
    table = TableOf(blind, {})
    for place in (blind, KNOWN, KNOWN._replace(namespace="4026539999"), Place()):
        assert life_of(Process(7, "t7", *place), table) is Life.UNKNOWN


def test_system_without_namespaces_uses_its_table() -> None:
    table = TableOf(Place(), {7: "t7"})
    assert life_of(Process(7, "t7"), table) is Life.ALIVE
    assert life_of(Process(7, "t6"), table) is Life.ENDED
    assert life_of(Process(8, "t8"), table) is Life.ENDED
    assert life_of(Process(8, "t8", *KNOWN), table) is Life.UNKNOWN


@pytest.mark.parametrize(
    "process", [Process(7, "t7", *KNOWN), Process(7, "1700000000.123"), Process(1, "", "", "?", ""), process_of(1)]
)
def test_text_round_trip(process: Process) -> None:
    assert Process.parse(process.text) == process
    assert len(process.text) < 100


def test_text_of_an_earlier_release_and_invalid_text() -> None:
    assert Process.parse("4711:1000") == Process(4711, "1000")
    texts = ["", "x", "0:1", "-1:1", "4711", "4711:1:2", "4711:1:2:3:4:5", "99999999999:1", "4711:1\n"]
    for text in (*texts, None, 5, b"1:1"):
        assert Process.parse(text) is None


def test_same_process() -> None:
    here = Process(7, "t7", *KNOWN)
    assert here.is_same(here)
    assert here.is_same(Process(7, "t7")) and Process(7, "t7").is_same(here)
    assert not here.is_same(Process(7, "t6"))
    for other in (KNOWN._replace(namespace="4026539999"), KNOWN._replace(boot="x"), KNOWN._replace(machine="")):
        assert not here.is_same(Process(7, "t7", *other))


# --- real processes ---------------------------------------------------------------------------------------------


def test_this_machine_knows_this_process() -> None:
    entry = this_machine().look(os.getpid())
    assert entry is not None and entry.parent == os.getppid() and not entry.ended
    assert is_alive(process_of(os.getpid()))


@LINUX
def test_both_tables_agree() -> None:
    proc, psutil_table = ProcTable(), PsutilTable()
    for pid in (os.getpid(), os.getppid()):
        here, there = proc.look(pid), psutil_table.look(pid)
        assert here is not None and there is not None
        assert (here.parent, here.ended) == (there.parent, there.ended)
        assert proc.cmdline(pid) == psutil_table.cmdline(pid)
        assert proc.uid(pid) == psutil_table.uid(pid)


@pytest.mark.parametrize("table", [pytest.param(ProcTable(), marks=LINUX), PsutilTable()])
def test_real_process_that_ends(table: ProcessTable) -> None:
    with child("cat") as process:
        me = process_of(process.pid, table)
        assert me.started and is_alive(me, table)
        assert not is_alive(me._replace(started=me.started + "0"), table)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now, and left one
        entry = table.look(process.pid)
        assert entry is not None and entry.ended
        assert not is_alive(me, table)
        process.wait()
        assert table.look(process.pid) is None
        assert table.cmdline(process.pid) == []
        assert table.uid(process.pid) is None
        assert process_of(process.pid, table) == Process(process.pid, "", *HERE)


@LINUX
@pytest.mark.parametrize("name", ["a) S 1 (b", ") ) )", "x y", "a\nb"])
def test_process_names_that_look_like_fields(name: str) -> None:
    rename = "import sys; open('/proc/self/comm', 'w').write(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with child(sys.executable, "-c", rename, name) as process:
        assert process.stdout is not None
        process.stdout.readline()
        entry = ProcTable().look(process.pid)
        assert entry is not None
        assert entry.parent == os.getpid()
        assert abs(float(entry.started) / os.sysconf("SC_CLK_TCK") - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60


@LINUX
def test_place_is_that_of_this_kernel() -> None:
    place = ProcTable().place()
    assert place.namespace and place.namespace == os.readlink("/proc/self/ns/pid")[5:-1]
    assert place.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    machine_id = Path("/etc/machine-id")
    if machine_id.exists() and len(machine_id.read_text().strip()) == 32:
        assert place.machine and place.machine not in machine_id.read_text()
    assert PsutilTable().place() == place


def test_existence_by_signal_0() -> None:
    table = this_machine()
    assert table.exists(os.getpid())
    with child("cat") as process:
        assert table.exists(process.pid)
        process.kill()
        process.wait()
        assert not table.exists(process.pid)
    assert table.exists(2**40), "an impossible pid does not count as ended"
