"""`zmqbus log`, run as a command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.conftest import RunBin, StartBin
from tests.records import RECORD, encode_record, ids, line
from zmqbus.journal.writer import Journal

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 90.0

Log = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def log(run_bin: RunBin) -> Log:
    def run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        return run_bin("zmqbus", "log", *args, **more)  # type: ignore[arg-type]

    return run


@pytest.fixture
def journal(data_dir: Path) -> Iterator[Journal]:
    journal = Journal(str(data_dir / "messages.log"), segment_bytes=1500, keep=100)
    yield journal
    journal.close()


@pytest.fixture
def filled(journal: Journal) -> list[str]:
    """Ten messages in several files, from n0 and n1 in turns, an hour apart; the last is two minutes old."""
    written = ids(10)
    for number, msg_id in enumerate(written):
        record = RECORD._replace(
            msg_id=msg_id,
            ts=time.time() - 120 - 3600 * (9 - number),
            from_name=f"n{number % 2}",
            to=("auth", "#deploys")[number % 2],
            body=f"number {number} fails".encode(),
        )
        journal.append([encode_record(record)])
    return written


def shown(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The ids in the lines."""
    assert done.returncode == 0, done.stderr
    return [text.split()[2] for text in done.stdout.splitlines()]


class Lines:
    """The lines that a process prints, as they come."""

    def __init__(self, stream: IO[str]) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._stream = stream
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for text in self._stream:
            with self._news:
                self.lines.append(text.rstrip("\n"))
                self._news.notify_all()

    def until(self, count: int) -> list[str]:
        with self._news:
            assert self._news.wait_for(lambda: len(self.lines) >= count, PATIENCE_S), self.lines
            return self.lines

    def join(self) -> None:
        self._thread.join(PATIENCE_S)


class TestSelection:
    """Which messages are printed, and in which form."""

    def test_all_messages_oldest_first(self, log: Log, filled: list[str]) -> None:
        done = log()
        assert shown(done) == filled
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d id0000000001 n1 → #deploys: number 1 fails", done.stdout.splitlines()[1]
        )
        assert done.stderr == ""

    @pytest.mark.parametrize(
        ("args", "numbers"),
        [
            (["--from", "n1"], [1, 3, 5, 7, 9]),
            (["--from", RECORD.from_session[:8]], list(range(10))),
            (["--to", "#deploys"], [1, 3, 5, 7, 9]),
            (["--to", "auth", "--limit", "2"], [6, 8]),
            (["--since", "2h30m"], [7, 8, 9]),
            (["--since", "1970-01-01"], list(range(10))),
            (["--grep", "number [23]"], [2, 3]),
            (["--search", "NUMBER -3 fail*", "--limit", "0"], [0, 1, 2, 4, 5, 6, 7, 8, 9]),
            (["--search", '"5 fails"'], [5]),
            (["--search", "number", "--limit", "3", "--from", "n0"], [4, 6, 8]),
            (["--limit", "3"], [7, 8, 9]),
            (["--from", "n0", "--to", "auth", "--since", "4h", "--grep", "8"], [8]),
        ],
        ids=str,
    )
    def test_filters(self, log: Log, filled: list[str], args: list[str], numbers: list[int]) -> None:
        assert shown(log(*args)) == [filled[number] for number in numbers]

    def test_json(self, log: Log, journal: Journal) -> None:
        text = "long ↵ \x1b[31m " * 10_000
        journal.append([line("long00000000", text), encode_record(RECORD._replace(fmt="bytes", body=b"123"))])
        rows = [json.loads(text) for text in log("--json").stdout.splitlines()]
        assert [row["msg_id"] for row in rows] == ["long00000000", RECORD.msg_id]
        assert rows[0]["text"] == text
        assert rows[0].keys() >= {
            "ts",
            "msg_id",
            "kind",
            "from",
            "from_name",
            "from_label",
            "to",
            "to_session_id",
            "text",
        }
        assert (rows[1]["text"], rows[1]["data"]) == ("<3 bytes>", "MTIz")

    def test_long_text_is_whole_on_a_pipe(self, log: Log, journal: Journal) -> None:
        journal.append([line("long00000000", "x" * 100_000)])
        assert log().stdout.endswith(f": {'x' * 100_000}\n")

    def test_at_a_terminal(self, data_dir: Path, journal: Journal, bin_env: Callable[..., dict[str, str]]) -> None:
        """The newest lines, cut to its width, and how to see more."""
        journal.append([line(msg_id, "word " * 100) for msg_id in ids(300)])
        leader, follower = os.openpty()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "bin" / "zmqbus"), "log"],
            stdin=subprocess.DEVNULL,
            stdout=follower,
            stderr=subprocess.PIPE,
            env=bin_env({"COLUMNS": "90"}),
            text=True,
        )
        os.close(follower)
        pieces: list[bytes] = []
        try:
            while piece := os.read(leader, 65536):
                pieces.append(piece)
        except OSError:  # Linux, when the other end is closed
            pass
        os.close(leader)
        assert process.stderr is not None
        with process.stderr:
            hint = process.stderr.read()
        assert process.wait(PATIENCE_S) == 0
        lines = b"".join(pieces).decode().splitlines()
        assert re.findall(r"id\d+", "\n".join(lines)) == ids(200, start=100)
        assert {len(text) for text in lines} <= set(range(80, 91))
        assert all(text.endswith("…") for text in lines)
        assert hint == "(the newest 200 are shown; all: --limit 0; a message whole: zmqbus inbox --msg ID)\n"

    def test_no_log(self, log: Log, data_dir: Path) -> None:
        done = log()
        assert (done.returncode, done.stdout, done.stderr) == (
            0,
            "",
            f"no messages yet: there is no {data_dir}/messages.log\n",
        )

    def test_no_matching_messages(self, log: Log, filled: list[str]) -> None:
        done = log("--from", "n0", "--grep", "number 1 ")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "no matching messages\n")


class TestMistakes:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--from", "n2"], "error: unknown_peer: the log has no message from 'n2'; did you mean n1, n0?"),
            (["--to", "atuh"], "error: unknown_peer: the log has no message to 'atuh'; did you mean auth?"),
            (["--to", "zzzz"], "has no message to 'zzzz'; see the names with: zmqbus list --all"),
            (["--search", "?!"], "error: invalid_payload: a search takes words that have to be there"),
        ],
        ids=str,
    )
    def test_unknown_names_and_words(self, log: Log, filled: list[str], args: list[str], message: str) -> None:
        done = log(*args)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--grep", "("], "error: usage: --grep: invalid regular expression: missing ), unterminated subpattern"),
            (["--since", "soon"], "error: usage: --since: invalid time 'soon'; give an age such as 90s, 30m, 2h or 7d"),
            (["--limit", "-1"], "error: usage: --limit takes a number of messages, 0 for all, not '-1'"),
            (["--limit", "many"], "not 'many'"),
            (["--search", "a", "--follow"], "with --follow, use --grep"),
            (["--form", "n0"], "unrecognized arguments"),
        ],
        ids=str,
    )
    def test_usage(self, log: Log, data_dir: Path, args: list[str], message: str) -> None:
        done = log(*args)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr


class TestDamage:
    def test_log_open_to_others_is_refused(self, log: Log, filled: list[str], data_dir: Path) -> None:
        os.chmod(data_dir / "messages.log", 0o644)
        done = log()
        assert done.returncode == 1
        assert "error: unauthorized:" in done.stderr and "chmod 600" in done.stderr

    def test_damaged_lines_are_ignored_with_a_warning(self, log: Log, filled: list[str], data_dir: Path) -> None:
        path = data_dir / "messages.log"
        path.write_bytes(path.read_bytes() + b"rubbish\n")
        done = log("--limit", "2")
        assert shown(done) == filled[-2:]
        assert done.stderr == "warning: ignoring 1 damaged line of the log; see zmqbus doctor\n"
        path.write_bytes(b"?" + path.read_bytes()[1:])
        done = log()
        assert f"warning: ignoring {path}: its first line is damaged; see zmqbus doctor" in done.stderr

    def test_search_without_its_index_warns(self, log: Log, filled: list[str], data_dir: Path) -> None:
        from zmqbus.journal.search_index import Index

        with Index.open(str(data_dir / "search.sqlite")) as index:
            index.fill(str(data_dir / "messages.log"))
            index._connection.execute("DROP TABLE texts_1")
        done = log("--search", "number")
        assert shown(done) == filled
        assert "warning: searched the log without its index" in done.stderr


class TestFollow:
    def test_follows_over_rotations_until_interrupted(
        self, start_bin: StartBin, journal: Journal, filled: list[str]
    ) -> None:
        """Ctrl-C prints no error."""
        process = start_bin("zmqbus", "log", "--follow", "--limit", "2")
        assert process.stdout is not None and process.stderr is not None
        lines = Lines(process.stdout)
        lines.until(2)
        more = ids(20, start=10)
        for msg_id in more:
            journal.append([line(msg_id, "x" * 300)])
        assert [text.split()[2] for text in lines.until(22)] == filled[-2:] + more
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        lines.join()
        assert process.stderr.read() == ""

    def test_follows_from_before_the_log_exists(self, start_bin: StartBin, data_dir: Path) -> None:
        process = start_bin("zmqbus", "log", "--follow", "--json", "--grep", "this")
        assert process.stdout is not None
        lines = Lines(process.stdout)
        with contextlib.closing(Journal(str(data_dir / "messages.log"))) as log:
            log.append([line("one000000000", "that"), line("two000000000", "this")])
            assert json.loads(lines.until(1)[0])["msg_id"] == "two000000000"
        process.kill()
        process.wait(PATIENCE_S)
        lines.join()

    def test_lost_reader_ends_it(
        self, data_dir: Path, filled: list[str], bin_env: Callable[..., dict[str, str]]
    ) -> None:
        """Also where nothing more is written; and silently."""
        for args in (["--follow"], []):
            reader, writer = os.pipe()
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "bin" / "zmqbus"), "log", *args],
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=subprocess.PIPE,
                env=bin_env(None),
                text=True,
            )
            os.close(writer)
            if args:
                os.read(reader, 100)
            os.close(reader)
            assert process.stderr is not None
            with process.stderr:
                assert process.stderr.read() == ""
            assert process.wait(PATIENCE_S) in (0, 141)
