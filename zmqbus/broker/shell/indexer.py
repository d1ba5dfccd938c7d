"""Updates the search index in a separate process, which the broker starts when the journal has grown.

The broker's loop does none of the indexing: one text of 10 MiB takes 0.4 s, and cannot be divided. The loop only looks
at the size of messages.log every few seconds, and starts this module as a process at the lowest priority when the
journal has grown by 4 MiB. The process indexes all of the journal, and ends. Nothing depends on it: a search reads the
part that is not indexed yet, which takes 15 ms for 4 MiB. A bus with little traffic never starts one.

The process ends when its broker has ended. Its failures do not affect the broker: each is logged once in broker.log.
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

#: Growth of the journal that is worth a process (80 ms of one core).
GROWTH_BYTES = 4 * 1024 * 1024
#: Pause between two looks at its size.
LOOK_S = 5.0
#: Pause after a failure, most likely a full disk.
RETRY_S = 600.0
#: How long a closing broker waits for the terminated process before it kills it.
END_S = 2.0
#: The lowest priority.
NICENESS = 19
#: Characters of the process's output that are logged.
MAX_LOGGED = 500


class IndexerLauncher:
    """Starts the indexer when it is due, and logs its failures. For the loop's thread."""

    def __init__(self, settings: Settings, report: Callable[[str], None]) -> None:
        self._data_dir = settings.data_dir
        self._log_path = settings.paths.log
        self._report = report
        self._process: subprocess.Popen[bytes] | None = None
        self._look_due_s = -1.0  # monotonic; -1: skip the first tick, a new broker has more urgent work
        self._inode = 0
        self._seen_bytes = 0  # of the segment with that inode
        self._waiting_bytes = -1  # not indexed yet, at most; -1: not measured yet
        self._reported = ""  # the failure that was logged last

    def __repr__(self) -> str:
        state = f"process {self._process.pid}" if self._process else f"{max(self._waiting_bytes, 0):,} bytes wait"
        return f"<IndexerLauncher: {state}>"

    def tick(self, mono_s: float) -> None:
        """Looks at the journal and the process, if it is time. Never raises.

        Takes some microseconds, and two milliseconds when it starts a process.
        """
        if mono_s < self._look_due_s:
            return
        first, self._look_due_s = self._look_due_s < 0, mono_s + LOOK_S
        if first:
            return
        try:
            if self._process is not None and not self._ended(mono_s):
                return
            if self._look_due_s > mono_s + LOOK_S:
                return  # the process has failed, and is retried later
            self._measure()
            if self._waiting_bytes >= GROWTH_BYTES:
                self._start()
        except (OSError, ZmqbusError, ValueError) as error:
            self._fail(mono_s, f"cannot update the search index: {error}")

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
        """Measures the growth of the journal."""
        if self._waiting_bytes < 0:
            # All of an earlier broker's journal may be indexed; the first process finds out.
            self._waiting_bytes = sum(os.stat(name).st_size for _, _, name in segments(self._log_path)[1:])
        try:
            found = os.stat(self._log_path)
        except FileNotFoundError:
            return
        before = self._seen_bytes if found.st_ino == self._inode else 0
        self._waiting_bytes += max(0, found.st_size - before)
        self._inode, self._seen_bytes = found.st_ino, found.st_size

    def _start(self) -> None:
        import subprocess  # 5 ms, which many brokers never need

        self._waiting_bytes = 0
        self._process = subprocess.Popen(
            children.command("zmqbus.broker.shell.indexer", str(os.getpid())),
            cwd="/",
            env=children.environ({"INTER_SESSION_DATA_DIR": self._data_dir}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the broker, which ends the process
        )

    def _ended(self, mono_s: float) -> bool:
        assert self._process is not None
        status = self._process.poll()
        if status is None:
            return False
        assert self._process.stdout is not None
        output = self._process.stdout.read().decode("utf-8", "replace").strip()[-MAX_LOGGED:]
        self._process.stdout.close()
        self._process = None
        if status:
            self._fail(mono_s, output or f"the indexer of the search index has ended with status {status}")
        else:
            self._reported = ""
        return True

    def _fail(self, mono_s: float, reason: str) -> None:
        self._look_due_s = mono_s + RETRY_S
        self._waiting_bytes = max(self._waiting_bytes, GROWTH_BYTES)
        if reason != self._reported:
            self._reported = reason
            self._report(reason)


def index_all(settings: Settings, may_continue: Callable[[], bool]) -> None:
    """Updates the index, or rebuilds a damaged one, while `may_continue`. Raises `JournalError` or `Unauthorized`."""
    path = settings.paths.search_index
    try:
        with Index.open(path) as index:
            index.fill(settings.paths.log, may_continue)
    except DamagedIndex:
        remove(path)
        with Index.open(path) as index:
            index.fill(settings.paths.log, may_continue)


def main(argv: list[str]) -> int:
    """`python -m zmqbus.broker.shell.indexer PID`: updates the index as long as that process is its parent."""
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
