"""Ids of shown messages on file: across processes, replacements, damage and a full disk."""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.client import seen
from zmqbus.errors import Unauthorized
from zmqbus.process import Process, this_machine
from zmqbus.security import private_files
from zmqbus.session import shown_log as shown_module
from zmqbus.session.owner_files import files_of
from zmqbus.session.shown_log import Shown
from zmqbus.wire.verbs import IdMaker, is_msg_id

OWNER = Process(4711, "1000", *this_machine().place())
SESSION = "4f0c6a9e-0000-4000-8000-000000000001"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "clients").mkdir(mode=0o700)
    return str(tmp_path)


@pytest.fixture
def trace() -> list[str]:
    return []


def path_of(data: str) -> Path:
    return Path(data, "clients", f"{OWNER.pid}.shown")


def keeper(data: str, trace: list[str] | None = None, session: str = SESSION) -> Shown:
    """The log as the listener opens it."""
    return Shown(files_of(data, OWNER), session, keeper=True, trace=([] if trace is None else trace).append)


def helper(data: str) -> Shown:
    """The log as a command opens it."""
    return Shown(files_of(data, OWNER), SESSION)


def ids(count: int) -> list[str]:
    return [f"message{number:05}" for number in range(count)]


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits the log to ten ids, and rewrites its file at twenty."""
    monkeypatch.setattr(seen, "REMEMBERED", 10)
    monkeypatch.setattr(shown_module, "COMPACT_BYTES", 20 * 14)


ADD = """
import sys
from zmqbus.session import shown_log
shown_log.COMPACT_BYTES = 2000
files = shown_log.OwnerFiles(sys.argv[1], None, sys.argv[2])
who = shown_log.Shown(files, sys.argv[3], keeper=sys.argv[4] == "keeper")
if sys.argv[4] == "keeper":
    who.open()
print(flush=True)
sys.stdin.readline()
for number in range(1500):
    who.add(f"{sys.argv[4]}{number:05}")
    assert "unknown00001" not in who
"""


operations = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 2), st.lists(st.integers(0, 60), min_size=1, max_size=5)),
    st.tuples(st.just("ask"), st.integers(0, 2), st.integers(0, 60)),
    st.tuples(st.just("restart"), st.integers(0, 2), st.none()),
    st.tuples(st.just("garbage"), st.none(), st.binary(max_size=20).filter(lambda data: b"\n" not in data)),
)


class TestMemory:
    """Ids outlive the process, and all processes of the session know them."""

    def test_next_listener_knows_the_ids(self, data: str) -> None:
        first = keeper(data)
        first.open()
        first.add("message00001")
        first.add_all(["message00002", "message00003"])
        again = keeper(data)
        again.open()
        assert len(again) == 3
        assert [msg_id in again for msg_id in ids(5)] == [False, True, True, True, False]

    def test_killed_listener_has_stored_every_id(self, data: str) -> None:
        code = (
            "import os, sys, zmqbus.session.shown_log as s\n"
            f"files = s.OwnerFiles({data!r}, None, '{OWNER.pid}')\n"
            f"shown = s.Shown(files, {SESSION!r}, keeper=True); shown.open()\n"
            "shown.add('message00001'); os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=90).returncode == -9
        assert "message00001" in keeper(data)

    def test_new_ids_are_one_write_and_known_ids_none(self, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
        listener = keeper(data)
        listener.open()
        written: list[bytes] = []

        def write(fd: int, record: bytes) -> int:
            written.append(record)
            return len(record)

        monkeypatch.setattr(os, "write", write)
        listener.add_all(ids(3))
        listener.add("message00001")
        assert written == [b"\nmessage00000\n\nmessage00001\n\nmessage00002\n"]

    def test_checking_an_unchanged_file_reads_nothing(self, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
        listener = keeper(data)
        listener.add_all(ids(10))
        assert "unknown00001" not in listener
        for call in ("open_file", "_whole_lines"):
            monkeypatch.setattr(shown_module, call, lambda *_: pytest.fail("not needed"))
        assert "unknown00001" not in listener
        assert "message00003" in listener

    def test_file_is_private_and_names_its_session(self, data: str) -> None:
        old = os.umask(0)
        try:
            listener = keeper(data)
            listener.open()
        finally:
            os.umask(old)
        listener.add("message00001")
        assert stat.S_IMODE(path_of(data).stat().st_mode) == 0o600
        assert path_of(data).read_text() == f"{SESSION}\n\nmessage00001\n"

    def test_command_opens_nothing_before_the_first_check(self, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(shown_module, "open_file", lambda *_: pytest.fail("not needed"))
            command = helper(data)
            assert len(command) == 0 and "not open" in repr(command)
        assert "message00001" not in command
        command.add("message00001")
        assert not path_of(data).exists(), "only the listener creates the file"
        assert "message00001" in command

    def test_commands_and_listener_share_the_ids(self, data: str) -> None:
        listener, inbox, answer = keeper(data), helper(data), helper(data)
        listener.open()
        listener.add("message00001")
        assert "message00001" in inbox
        inbox.add("message00002")
        assert "message00002" in listener and "message00002" in answer
        answer.add("message00003")
        assert "message00003" in inbox and "message00003" in listener
        assert len(listener) == 3

    def test_checking_many_ids_reads_what_others_added(
        self, data: str, trace: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listener, command = keeper(data, trace), helper(data)
        listener.open()
        assert listener.isdisjoint(ids(3))
        command.add("message00002")
        assert not listener.isdisjoint(ids(3)) and listener.isdisjoint(["message00007"])
        monkeypatch.setattr(listener, "_refresh", full_disk)
        assert not listener.isdisjoint(ids(3))  # known ids need no file
        assert len(trace) == 1

    def test_file_of_another_session_counts_as_absent(self, data: str) -> None:
        before = keeper(data, session="another")
        before.add("message00001")
        content = path_of(data).read_bytes()
        command = helper(data)
        assert "message00001" not in command
        command.add("message00002")
        assert path_of(data).read_bytes() == content, "only the listener replaces the file"
        listener = keeper(data)
        listener.open()
        assert "message00001" not in listener
        listener.add("message00003")
        assert path_of(data).read_text().split() == [SESSION, "message00003"]

    def test_removed_file_is_rewritten_with_all_known_ids(self, data: str) -> None:
        listener = keeper(data)
        listener.add_all(ids(3))
        path_of(data).unlink()
        assert "unknown00001" not in listener  # a check
        assert all(msg_id in keeper(data) for msg_id in ids(3))

    def test_truncated_file_is_rewritten_with_all_known_ids(self, data: str) -> None:
        listener = keeper(data)
        listener.add_all(ids(3))
        assert "unknown00001" not in listener
        path_of(data).write_bytes(b"")
        assert "unknown00001" not in listener
        assert all(msg_id in keeper(data) for msg_id in ids(3))

    def test_closed_file_is_opened_again(self, data: str) -> None:
        listener = keeper(data)
        listener.add("message00001")
        listener.close()
        listener.close()
        listener.add("message00002")
        assert "message00001" in listener
        assert path_of(data).read_text().count("message00002") >= 1

    @given(st.lists(operations, max_size=40), st.integers(50, 400))
    def test_behaves_like_one_shared_set(self, steps: list[tuple[str, Any, Any]], compact_bytes: int) -> None:
        with tempfile.TemporaryDirectory() as data, pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(shown_module, "COMPACT_BYTES", compact_bytes)
            os.mkdir(os.path.join(data, "clients"), 0o700)
            makers = [keeper, helper, helper]
            all_of_them = [make(data) for make in makers]
            all_of_them[0].open()
            model: set[int] = set()
            for what, who, argument in steps:
                if what == "add":
                    all_of_them[who].add_all([f"message{number:05}" for number in argument])
                    model.update(argument)
                elif what == "ask":
                    assert (f"message{argument:05}" in all_of_them[who]) == (argument in model)
                elif what == "restart":
                    all_of_them[who].close()
                    all_of_them[who] = makers[who](data)
                else:
                    with path_of(data).open("ab") as file:
                        file.write(argument)
            for one in all_of_them:
                assert {number for number in range(61) if f"message{number:05}" in one} == model
                one.close()

    def test_id_rule_is_that_of_the_protocol(self) -> None:
        make = IdMaker()
        for text in ["a" * 7, "a" * 8, "a" * 12, "a" * 13, "A" * 8, "١" * 8, "a-bcdefgh", make()]:
            assert bool(re.findall(shown_module._ID, f"\n{text}\n")) == is_msg_id(text), text


class TestDamage:
    """No damage and no full disk stops a listener or a command."""

    def test_every_prefix_can_be_read_and_appended_to(self, data: str) -> None:
        whole = f"{SESSION}\n\nmessage00000\n\nmessage00001\n".encode()
        for length in range(len(whole)):
            path_of(data).write_bytes(whole[:length])
            path_of(data).chmod(0o600)
            for who in (helper(data), keeper(data)):
                assert ("message00000" in who) == (length >= whole.index(b"message00000\n") + 13)
                assert "message00001" not in who
            who.add("message00002")
            assert "message00002" in helper(data), f"torn after {length} bytes"

    @pytest.mark.parametrize(
        "garbage",
        [b"\xff\xfe", b"\0" * 100, b"message", b"MESSAGE00001", b"x" * 100_000, b" message00001", b"\r", "ü".encode()],
    )
    def test_garbled_lines_are_ignored(self, data: str, garbage: bytes) -> None:
        listener = keeper(data)
        listener.add("message00000")
        with path_of(data).open("ab") as file:
            file.write(garbage + b"\n" + garbage)
        listener.add("message00002")
        again = keeper(data)
        again.open()
        assert "message00000" in again and "message00002" in again
        assert len(again) == 2

    def test_oversized_file_is_read_from_its_end(self, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shown_module, "MAX_READ_BYTES", 1000)
        listener = keeper(data)
        listener.add("message00000")
        with path_of(data).open("ab") as file:
            file.write(b"x" * 5000)
        listener.add("message00001")
        command = helper(data)
        assert "message00001" in command and "message00000" not in command

    def test_links_and_files_open_to_others_are_refused(self, data: str, tmp_path: Path) -> None:
        target = tmp_path / "elsewhere"
        target.write_text(f"{SESSION}\n\nmessage00001\n")
        target.chmod(0o600)
        before = target.read_bytes()
        path_of(data).symlink_to(target)
        with pytest.raises(Unauthorized, match="symbolic link"):
            keeper(data).open()
        command = helper(data)
        assert "message00001" not in command
        command.add("message00002")
        assert "message00002" in command
        path_of(data).unlink()
        os.link(target, path_of(data))
        target.chmod(0o644)
        with pytest.raises(Unauthorized, match="open to other users"):
            keeper(data).open()
        command.add("message00003")
        assert target.read_bytes() == before

    def test_link_that_replaces_the_file_is_not_followed(self, data: str, tmp_path: Path, trace: list[str]) -> None:
        listener = keeper(data, trace)
        listener.add("message00001")
        target = tmp_path / "elsewhere"
        target.write_text(f"{SESSION}\n\nmessage00002\n")
        path_of(data).unlink()
        path_of(data).symlink_to(target)
        assert "message00002" not in listener
        listener.add("message00003")
        assert "message00003" in listener
        assert "message00003" not in target.read_text()
        assert len(trace) == 1 and "symbolic link" in trace[0]

    def test_full_disk_is_traced_and_ids_are_kept_in_memory(
        self, data: str, trace: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listener = keeper(data, trace)
        listener.open()
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full_disk)
            listener.add("message00001")
            listener.add("message00002")
            assert "message00001" in listener
        assert len(trace) == 1 and "No space left" in trace[0]
        listener.add("message00003")
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full_disk)
            listener.add("message00004")
        assert len(trace) == 2, "traced again, since a write succeeded in between"
        assert [msg_id in keeper(data) for msg_id in ids(5)] == [False, False, False, True, False]

    def test_record_cut_by_a_full_disk_does_not_damage_the_next(
        self, data: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listener, command = keeper(data), helper(data)
        listener.open()
        real = os.write
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda fd, record: real(fd, record[:5]))
            listener.add("message00001")
        command.add("message00002")
        again = keeper(data)
        assert "message00002" in again and "message00001" not in again

    def test_file_that_cannot_be_created_is_created_later(
        self, data: str, trace: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listener = keeper(data, trace)
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full_disk)
            listener.open()
            listener.add("message00001")
            assert "message00001" in listener and len(trace) == 1
            assert os.listdir(path_of(data).parent) == []
        listener.add("message00002")
        assert [msg_id in keeper(data) for msg_id in ids(3)] == [False, True, True]


class TestCompaction:
    """The keeper replaces the file while others append to it."""

    @pytest.mark.usefixtures("small")
    def test_newest_ids_are_kept_and_the_file_stays_small(self, data: str) -> None:
        listener = keeper(data)
        listener.open()
        for number, msg_id in enumerate(ids(200)):
            assert msg_id not in listener
            listener.add(msg_id)
            assert [known for known in ids(200) if known in listener] == ids(number + 1)[-10:]
            assert path_of(data).stat().st_size < len(SESSION) + 22 * 14
        again = keeper(data)
        again.open()
        assert [msg_id for msg_id in ids(200) if msg_id in again] == ids(200)[-10:]

    @pytest.mark.usefixtures("small")
    def test_only_the_listener_rewrites_a_large_file(self, data: str) -> None:
        path_of(data).write_text(f"{SESSION}\n" + "".join(f"\n{msg_id}\n" for msg_id in ids(100)))
        path_of(data).chmod(0o600)
        size = path_of(data).stat().st_size
        assert "message00099" in helper(data)
        assert path_of(data).stat().st_size == size
        listener = keeper(data)
        listener.open()
        assert path_of(data).read_text().split() == [SESSION, *ids(100)[-10:]]
        assert os.listdir(path_of(data).parent) == [path_of(data).name]

    @pytest.mark.usefixtures("small")
    @pytest.mark.parametrize("after", [False, True], ids=["before the replacement", "after it"])
    def test_id_added_while_the_file_is_replaced_is_kept(
        self, data: str, after: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listener, command = keeper(data), helper(data)
        listener.open()
        assert "command00000" not in command  # now it has the old file open
        listener.add_all(ids(30))
        real = private_files.replace
        replaced: list[int] = []

        def replace_meanwhile(path: str, content: bytes) -> None:
            replaced.append(1)
            if not after:
                command.add("command00001")
            real(path, content)
            if after:
                command.add("command00001")

        monkeypatch.setattr(shown_module, "replace", replace_meanwhile)
        assert "unknown00001" not in listener
        assert replaced == [1]
        assert "command00001" in listener
        assert "command00001" in keeper(data)
        listener.add("message00098")
        assert "message00098" in command

    @pytest.mark.usefixtures("small")
    def test_id_written_to_the_old_file_is_repeated_in_the_new_one(
        self, data: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The file is replaced twice between the command's write and its check."""
        listener, command = keeper(data), helper(data)
        listener.open()
        assert "command00000" not in command
        listener.add_all(ids(30))
        real = os.write

        def write_then_pause(fd: int, record: bytes) -> int:
            monkeypatch.setattr(os, "write", real)
            for _ in range(2):
                listener.add_all([f"between{next(numbers):05}" for _ in range(30)])
                assert "unknown00001" not in listener
            return real(fd, record)  # into a file that no process reads again

        numbers = itertools.count()
        monkeypatch.setattr(os, "write", write_then_pause)
        command.add("command00001")
        assert "command00001" in listener and "command00001" in keeper(data)

    @pytest.mark.usefixtures("small")
    def test_file_that_cannot_be_rewritten_is_appended_to(
        self, data: str, trace: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listener = keeper(data, trace)
        listener.add_all(ids(30))

        def fails(path: str, content: bytes) -> None:
            raise OSError(errno.EACCES, "Permission denied")

        with monkeypatch.context() as patched:
            patched.setattr(shown_module, "replace", fails)
            assert "unknown00001" not in listener
            assert len(trace) == 1 and "not rewritten" in trace[0]
            listener.add("message00098")
            assert "unknown00001" not in listener
            assert len(trace) == 1, "not retried with each message"
        assert "message00098" in helper(data)

    @pytest.mark.slow
    def test_processes_append_while_the_file_is_replaced(self, data: str) -> None:
        keeper(data).open()
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", ADD, data, str(OWNER.pid), SESSION, name],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in ("keeper", "inbox", "answer")
        ]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "\n"
        before = path_of(data).stat().st_ino
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=90)
            assert process.returncode == 0
        assert path_of(data).stat().st_ino != before
        again = helper(data)
        for name in ("keeper", "inbox", "answer"):
            missing = [number for number in range(1500) if f"{name}{number:05}" not in again]
            assert not missing, name
