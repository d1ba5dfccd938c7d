"""What a pid stands for, on a fake table and on those of this system."""

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
    Process,
    ProcessEntry,
    ProcessTable,
    ProcTable,
    PsutilTable,
    is_alive,
    process_of,
    this_machine,
)

ROOT = Path(__file__).resolve().parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class OneProcess:
    """A table with one process, whose pid is 100."""

    def __init__(self, *, ended: bool = False) -> None:
        self.ended = ended

    def look(self, pid: int) -> ProcessEntry | None:
        return ProcessEntry(0, "t100", self.ended) if pid == 100 else None

    def cmdline(self, pid: int) -> list[str]:
        return []

    def uid(self, pid: int) -> int | None:
        return os.geteuid()


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
    table = OneProcess()
    assert process_of(100, table) == Process(100, "t100")
    assert is_alive(Process(100, "t100"), table)
    assert not is_alive(Process(100, "t99"), table)
    assert not is_alive(Process(100, "t100"), OneProcess(ended=True))


def test_no_such_process_is_never_alive() -> None:
    table = OneProcess()
    assert process_of(101, table) == Process(101, "")
    assert not is_alive(Process(101, ""), table)


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
def test_real_process_dies(table: ProcessTable) -> None:
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
        assert process_of(process.pid, table) == Process(process.pid, "")


@LINUX
@pytest.mark.parametrize("name", ["a) S 1 (b", ") ) )", "x y", "a\nb"])
def test_names_that_look_like_the_fields_after_them(name: str) -> None:
    rename = "import sys; open('/proc/self/comm', 'w').write(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with child(sys.executable, "-c", rename, name) as process:
        assert process.stdout is not None
        process.stdout.readline()
        entry = ProcTable().look(process.pid)
        assert entry is not None
        assert entry.parent == os.getpid()
        assert abs(float(entry.started) / os.sysconf("SC_CLK_TCK") - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60


def test_module_is_cheap_to_import() -> None:
    code = "import sys, zmqbus.process; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=True, cwd=ROOT
    )
    heavy = {"psutil", "pathlib", "dataclasses", "uuid", "subprocess", "shutil", "logging", "socket", "asyncio"}
    assert not heavy & set(done.stdout.split())
