"""Keeps the search index up to date, beside the broker: when to start a process for it, and that process.

The broker's loop does none of the work: one text of 10 MiB takes 0.4 s to index, and cannot be divided. What it does
is to look at the size of messages.log every few seconds, and to start this module as a process, at the lowest priority,
when the log has grown by 4 MiB. Such a process indexes all that is there, and ends. Nothing depends on it: what is not
indexed yet, a search looks for in the log, which takes 15 ms for 4 MiB. A bus that carries little never sees one.

The process ends when its broker has ended, and no mishap in it reaches the broker: it is said once in broker.log.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from zmqbus.errors import ZmqbusError
from zmqbus.journal.search_index import DamagedIndex, Index, remove
from zmqbus.journal.segments import segments
from zmqbus.settings import Settings, load
from zmqbus.system import children

if TYPE_CHECKING:
    import subprocess

#: The log has to grow by so much before it is worth a process (80 ms of one core) to index that.
GROWTH_BYTES = 4 * 1024 * 1024
#: Between two looks at its size.
LOOK_S = 5.0
#: After a failure (a full disk, most likely) it is left alone for so long.
RETRY_S = 600.0
#: How long a closing broker waits for the process to end: it has been told to, and is in no state to refuse.
END_S = 2.0
#: The lowest priority there is: it gets what nobody else wants.
NICENESS = 19
#: Characters of what the process has to say that are logged.
MAX_WORDS = 500


class Keeper:
    """The broker's part: looks at the log, starts the process, hears how it went. For the loop's thread."""

    def __init__(self, settings: Settings, report: Callable[[str], None]) -> None:
        self._data_dir = settings.data_dir
        self._log_path = settings.paths.log
        self._report = report
        self._process: subprocess.Popen[bytes] | None = None
        self._look_due_s = -1.0  # monotonic; -1: whoever has just started a broker wants other things of it first
        self._inode = 0
        self._seen_bytes = 0  # of the segment with that inode
        self._waiting_bytes = -1  # not indexed, as far as is known; -1: nobody has looked yet
        self._said = ""

    def __repr__(self) -> str:
        state = f"process {self._process.pid}" if self._process else f"{max(self._waiting_bytes, 0):,} bytes wait"
        return f"<Keeper of the search index: {state}>"

    def tick(self, mono_s: float) -> None:
        """To be called every now and then; takes some microseconds, and two milliseconds when it starts a process.
        Never raises."""
        if mono_s < self._look_due_s:
            return
        first, self._look_due_s = self._look_due_s < 0, mono_s + LOOK_S
        if first:
            return
        try:
            if self._process is not None and not self._ended(mono_s):
                return
            if self._look_due_s > mono_s + LOOK_S:
                return  # it has failed
            self._measure()
            if self._waiting_bytes >= GROWTH_BYTES:
                self._start()
        except (OSError, ZmqbusError, ValueError) as error:
            self._fails(mono_s, f"the search index is not kept up to date: {error}")

    def close(self) -> None:
        """Ends the process, if there is one. Idempotent."""
        import subprocess

        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _measure(self) -> None:
        """How much the log has grown."""
        if self._waiting_bytes < 0:
            # What an earlier broker has left may all be indexed; the first process finds out.
            self._waiting_bytes = sum(os.stat(name).st_size for _, _, name in segments(self._log_path)[1:])
        try:
            found = os.stat(self._log_path)
        except FileNotFoundError:
            return
        before = self._seen_bytes if found.st_ino == self._inode else 0
        self._waiting_bytes += max(0, found.st_size - before)
        self._inode, self._seen_bytes = found.st_ino, found.st_size

    def _start(self) -> None:
        import subprocess  # 5 ms, which many a broker never pays

        self._waiting_bytes = 0
        self._process = subprocess.Popen(
            children.command("zmqbus.broker.shell.indexer", str(os.getpid())),
            cwd="/",
            env=children.environ({"INTER_SESSION_DATA_DIR": self._data_dir}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for the broker, which ends it
        )

    def _ended(self, mono_s: float) -> bool:
        assert self._process is not None
        status = self._process.poll()
        if status is None:
            return False
        assert self._process.stdout is not None
        words = self._process.stdout.read().decode("utf-8", "replace").strip()[-MAX_WORDS:]
        self._process.stdout.close()
        self._process = None
        if status:
            self._fails(mono_s, words or f"the process that keeps the search index has ended with status {status}")
        else:
            self._said = ""
        return True

    def _fails(self, mono_s: float, words: str) -> None:
        self._look_due_s = mono_s + RETRY_S
        self._waiting_bytes = max(self._waiting_bytes, GROWTH_BYTES)
        if words != self._said:
            self._said = words
            self._report(words)


def index_all(settings: Settings, goes_on: Callable[[], bool]) -> None:
    """Brings the index up to date, and makes a damaged one anew. Raises `JournalError` or `Unauthorized`."""
    path = settings.paths.search_index
    try:
        with Index.open(path) as index:
            index.fill(settings.paths.log, goes_on)
    except DamagedIndex:
        remove(path)
        with Index.open(path) as index:
            index.fill(settings.paths.log, goes_on)


def main(argv: list[str]) -> int:
    """`python -m zmqbus.broker.shell.indexer PID`: indexes what is there, as long as that process is its parent."""
    parent = int(argv[0])
    os.umask(0o077)
    os.nice(NICENESS)
    try:
        index_all(load(), lambda: os.getppid() == parent)
    except ZmqbusError as error:
        print(error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
