"""States of agents from Claude Code's own list, with a script in place of the program."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.real.conftest import Bus
from tests.real.conftest import bus as bus  # a fixture
from zmqbus.agents import claude_sessions
from zmqbus.agents.claude_sessions import FILE, FRESH_S, fill, parse
from zmqbus.wire.verbs import Session

ROW = Session("auth", None, "", "", "live", 0.0, "one", 1, 0, 0)
OWNER = 4711


class FakeClaude:
    """A `claude` on the PATH that prints an answer, and counts how often it was asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.calls = directory / "calls"

    def says(self, answer: object, *, also: str = "") -> None:
        (self.directory / "answer").write_text(json.dumps(answer))
        program = self.directory / "claude"
        program.write_text(f'#!/bin/sh\necho "$*" >> {self.calls}\n{also}\ncat {self.directory}/answer\n')
        program.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def claude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeClaude:
    directory = tmp_path / "claude-bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    return FakeClaude(directory)


@pytest.fixture
def known(data_dir: Path) -> Path:
    """A data directory with the state file of session `one`."""
    clients = data_dir / "clients"
    clients.mkdir(0o700)
    fields = {
        "session_id": "one", "name": "auth", "label": None, "listener_pid": os.getpid(), "listener_started": "1",
        "host": "127.0.0.1", "port": 9473, "created_at": "x", "token": "t", "owner_pid": OWNER,
        "owner_started": "1", "project": "/", "cwd": "/",
    }  # fmt: skip
    path = clients / f"{OWNER}.session"
    path.write_text(json.dumps(fields))
    path.chmod(0o600)
    return data_dir


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[1]", b'"x"', b"{}", b'[{"pid":true,"status":"idle"}]', b'[{"pid":1,"status":"odd"}]', b"[" * 99_999],
)
def test_answer_of_another_form_is_ignored(data: bytes) -> None:
    assert parse(data) == {}


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ({"status": "busy"}, ("working", "")),
        ({"status": "idle", "waitingFor": "x"}, ("idle", "")),
        ({"status": "waiting", "waitingFor": "permission\n prompt"}, ("blocked", "permission prompt")),
        ({"status": "waiting", "waitingFor": 7}, ("blocked", "")),
    ],
)
def test_unknown_states_are_filled_in(
    claude: FakeClaude, known: Path, listed: dict[str, object], expected: tuple[str, str]
) -> None:
    claude.says([{"pid": 1, "status": "busy"}, {"pid": OWNER, **listed}])
    rows = [ROW, ROW._replace(session_id="two"), ROW._replace(session_id="three", agent="idle")]
    filled = fill(rows, str(known))
    assert [(row.agent, row.agent_detail) for row in filled] == [expected, ("unknown", ""), ("idle", "")]
    assert claude.asked == ["agents --json"]
    assert (known / FILE).stat().st_mode & 0o777 == 0o600


def test_one_answer_serves_for_a_while(claude: FakeClaude, known: Path) -> None:
    claude.says([{"pid": OWNER, "status": "busy"}])
    for _ in range(3):
        (row,) = fill([ROW], str(known))
        assert row.agent == "working"
        os.utime(known / FILE)  # it is as new as it can be, however slow this machine
    assert len(claude.asked) == 1
    claude.says([{"pid": OWNER, "status": "idle"}])
    old_ts = time.time() - FRESH_S - 1
    os.utime(known / FILE, (old_ts, old_ts))
    assert fill([ROW], str(known))[0].agent == "idle"
    assert len(claude.asked) == 2


def test_nobody_is_asked_without_need(claude: FakeClaude, known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claude.says([])
    for rows in ([], [ROW._replace(agent="idle")], [ROW._replace(state="away")], [ROW._replace(session_id="two")]):
        assert fill(rows, str(known)) == rows
    assert claude.asked == []
    monkeypatch.setenv("PATH", "/nowhere")
    assert fill([ROW], str(known)) == [ROW]
    assert not (known / FILE).exists()


@pytest.mark.parametrize("also", ["exit 1", "exec sleep 60"])
def test_failing_program_leaves_the_state_unknown(
    claude: FakeClaude, known: Path, monkeypatch: pytest.MonkeyPatch, also: str
) -> None:
    monkeypatch.setattr(claude_sessions, "PATIENCE_S", 0.3)
    claude.says([{"pid": OWNER, "status": "busy"}], also=also)
    for _ in range(2):
        assert fill([ROW], str(known)) == [ROW]
    assert len(claude.asked) <= 1, "a failure is not repeated at once"


def test_unsafe_file_leaves_the_state_unknown(claude: FakeClaude, known: Path) -> None:
    claude.says([{"pid": OWNER, "status": "busy"}])
    (known / FILE).symlink_to(known / "elsewhere")
    assert fill([ROW], str(known)) == [ROW]


@pytest.mark.slow
def test_list_and_status_show_it(bus: Bus, claude: FakeClaude) -> None:
    auth = bus.listener("auth")
    claude.says([{"pid": auth.owner.pid, "status": "waiting", "waitingFor": "permission prompt"}])
    path = {"PATH": os.environ["PATH"]}
    (row,) = json.loads(bus.zmqbus("list", "--json", env=path).stdout)
    assert (row["agent"], row["agent_detail"], row["agent_s"]) == ("blocked", "permission prompt", 0)
    assert "agent=blocked: permission prompt\n" in bus.zmqbus("status", "auth", env=path).stdout
