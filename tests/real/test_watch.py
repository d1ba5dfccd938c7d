"""`zmqbus watch`: a line for each event; at a terminal a screen, with the terminal restored afterwards."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import ROOT, Bus, wait_until
from zmqbus.cli.watch import Seen, changes, in_words
from zmqbus.doctor.installation import install_command
from zmqbus.settings import load

pytestmark = pytest.mark.slow

PATIENCE_S = 90.0


class Reading:
    """Reads the output of a process as it comes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.data = b""

    def more(self) -> str:
        while select.select([self._descriptor], [], [], 0)[0]:
            try:
                piece = os.read(self._descriptor, 65536)
            except OSError:  # on Linux, when the other end of a terminal is closed
                break
            if not piece:
                break
            self.data += piece
        return self.data.decode("utf-8", "replace")

    def wait(self, pattern: str) -> None:
        wait_until(lambda: re.search(pattern, self.more(), re.MULTILINE), f"{pattern} in {self.data!r}", PATIENCE_S)


def plain(bus: Bus) -> tuple[subprocess.Popen[bytes], Reading]:
    process = bus.popen("zmqbus", "watch", owner=bus.stranger)
    assert process.stdout is not None
    return process, Reading(process.stdout.fileno())


def test_lines(bus: Bus) -> None:
    process, seen = plain(bus)
    seen.wait(rf"^\d\d:\d\d:\d\d \* no broker runs on port {bus.port}; the next session starts one$")
    assert bus.broker_pid() is None, "watching starts none"
    auth = bus.listener("auth")
    seen.wait(r"\* a broker answers$")
    seen.wait(r"\* auth is live$")
    bus.deliver("auth", "hello\x1b[31m there\nforged")
    seen.wait(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [a-z0-9]+ [a-z0-9-]+ → auth: hello there↵forged$")
    auth.stop()
    seen.wait(r"\* auth is away$")
    bus.signal_broker(signal.SIGKILL)
    seen.wait(r"(?s)auth is away.*\* no broker runs")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_broker_that_hangs(bus: Bus) -> None:
    bus.listener("auth")
    process, seen = plain(bus)
    seen.wait(r"\* auth is live$")
    bus.signal_broker(signal.SIGSTOP)
    seen.wait(r"\* the broker on port \d+ does not answer within 0.5 s; see: zmqbus doctor$")
    bus.signal_broker(signal.SIGCONT)
    seen.wait(r"(?s)does not answer.*\* a broker answers$")
    process.kill()


def test_history_comes_first_and_a_closed_output_ends_it(bus: Bus) -> None:
    bus.listener("auth")
    bus.deliver("auth", "before")
    process, seen = plain(bus)
    seen.wait(r"→ auth: before$")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(PATIENCE_S) in (0, 141)


class Terminal:
    """Runs `zmqbus watch` at a terminal."""

    def __init__(self, bus: Bus, *args: str, env: dict[str, str] | None = None) -> None:
        self.leader, follower = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "bin" / "zmqbus"), "watch", *args],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env={**bus.env(bus.stranger), "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **(env or {})},
            cwd=bus.cwd,
            start_new_session=True,
        )
        os.close(follower)
        self.seen = Reading(self.leader)

    def end(self, signum: int) -> str:
        self.process.send_signal(signum)
        deadline_s = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            self.seen.more()
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        text = self.seen.more()
        os.close(self.leader)
        return text


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_terminal_is_restored(bus: Bus, signum: int, status: int) -> None:
    pytest.importorskip("rich")
    bus.listener("auth")
    terminal = Terminal(bus)
    terminal.seen.wait(r"1 live")
    bus.deliver("auth", "hello there")
    terminal.seen.wait(r"hello there")
    text = terminal.end(signum)
    assert terminal.process.returncode == status
    assert "Traceback" not in text
    # The alternate screen and the cursor are both restored at the end.
    assert text.rindex("\x1b[?1049l") > text.rindex("\x1b[?1049h")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_missing_rich_is_reported_with_a_cure(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ModuleNotFoundError('No module named rich', name='rich')\n")
    bus.listener("auth")
    terminal = Terminal(bus, env={"PYTHONPATH": str(tmp_path)})
    terminal.seen.wait(r"\* auth is live")
    text = terminal.end(signal.SIGINT)
    assert f"(for a screen with the sessions on it: {install_command(load(), 'watch')})" in text
    assert terminal.process.returncode == 130


def test_plain_at_a_terminal(bus: Bus) -> None:
    bus.listener("auth")
    bus.deliver("auth", "word " * 100)
    terminal = Terminal(bus, "--plain")
    terminal.seen.wait(r"\* auth is live")
    lines = [text for text in terminal.end(signal.SIGINT).splitlines() if "word" in text]
    assert [len(text) for text in lines] == [100]
    assert lines[0].endswith("…")


def test_changes_of_sessions_are_shown() -> None:
    before = {"1": Seen("auth", "live"), "2": Seen("pay", "live"), "3": Seen("web", "live"), "4": Seen("old", "live")}
    after = {"1": Seen("auth", "live"), "2": Seen("pay", "away"), "3": Seen("site", "live"), "5": Seen("new", "busy")}
    words = [in_words(change) for change in changes(before, after)]
    assert words == ["pay is away", "web is now site", "new is busy", "old has left"]


def test_changes_of_agents_are_shown() -> None:
    before = {
        "1": Seen("auth", "live", "working"),
        "2": Seen("pay", "live", "blocked", "Bash"),
        "3": Seen("web", "live"),
    }
    after = {
        "1": Seen("auth", "live", "blocked", "permission\x1b[2J for Bash"),
        "2": Seen("pay", "live", "blocked", "Bash"),
        "3": Seen("web", "live"),
        "4": Seen("new", "live", "idle"),
    }
    words = [in_words(change) for change in changes(before, after)]
    assert words == ["auth's agent is blocked: permission for Bash", "new is live", "new's agent is idle"]
    words = [in_words(change) for change in changes(after, {**after, "4": Seen("new", "live")})]
    assert words == ["new's agent no longer tells what it does"]


def test_usage(bus: Bus) -> None:
    done: Any = bus.zmqbus("watch", "--everything")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unrecognized arguments: --everything" in done.stderr
