"""The owner of a process: rules on fake process tables, then real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.process import FIRST_NAMESPACE, MAX_ANCESTORS, Place, Process, ProcessEntry, ancestors, is_alive
from zmqbus.session import owner
from zmqbus.session.owner import find_owners, looks_like_claude
from zmqbus.settings import load

ME = 900
ROOT = Path(__file__).resolve().parents[2]


class FakeTable:
    """A process table from a chain of command lines, outermost first: pids 100, 101, …, then this process, `ME`."""

    def __init__(self, *chain: list[str]) -> None:
        self.lines: dict[int, list[str]] = {}
        self.entries: dict[int, ProcessEntry] = {}
        self.uids: dict[int, int] = {}
        self.where = Place(FIRST_NAMESPACE, "boot", "machine")
        parent = 0
        for number, cmdline in enumerate(chain):
            parent = self.put(100 + number, parent, cmdline)
        self.put(ME, parent, ["python", "send.py"])

    def put(self, pid: int, parent: int, cmdline: list[str], *, ended: bool = False, uid: int | None = None) -> int:
        self.lines[pid] = cmdline
        self.entries[pid] = ProcessEntry(parent, f"t{pid}", ended)
        self.uids[pid] = os.geteuid() if uid is None else uid
        return pid

    def place(self) -> Place:
        return self.where

    def exists(self, pid: int) -> bool:
        return pid in self.entries

    def look(self, pid: int) -> ProcessEntry | None:
        return self.entries.get(pid)

    def cmdline(self, pid: int) -> list[str]:
        return self.lines.get(pid, [])

    def uid(self, pid: int) -> int | None:
        return self.uids.get(pid)


def owners(table: FakeTable, *, override: int | None = None, claude_pid: str | None = None) -> list[int]:
    environ = {} if claude_pid is None else {"CLAUDE_PID": claude_pid}
    found = find_owners(override, environ, table, ME)
    for process in found:
        entry = table.look(process.pid)
        assert process.started == (entry.started if entry else "")
    return [process.pid for process in found]


INIT, SHELL, CLAUDE = ["/sbin/init"], ["-bash"], ["claude", "--resume"]
WEAK = ["node", "/home/u/src/claude-tools/run.js"]


# --- orphans


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextmanager
def child(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that ends when its standard input does."""
    process = subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


ASK = (
    "import json, os, sys; from zmqbus.session.owner import find_owners;"
    "print(json.dumps([p.pid for p in find_owners(None, os.environ)])); print('psutil' in sys.modules)"
)


def ask_below(name: str, shell_line: str, environ: dict[str, str] | None = None) -> tuple[int, list[int]]:
    """Runs a shell as `name`, and in it a python that finds its owners; returns the shell's pid and theirs."""
    script = f'exec -a {name} sh -c \'echo $$; {shell_line}; true\' "$0" "$1"'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, ASK],
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
        cwd=ROOT,
    )
    pid, found, imported = done.stdout.splitlines()
    if sys.platform == "linux":
        assert imported == "False"  # a helper cannot pay for psutil
    return int(pid), json.loads(found)


class TestClaudeCode:
    """Which command lines are Claude Code."""

    @pytest.mark.parametrize(
        ("cmdline", "verdict"),
        [
            (["claude"], True),
            (["/usr/local/bin/claude", "-p", "x"], True),
            (["/home/u/.local/share/claude/versions/2.1.329"], True),
            (["node", "/usr/local/bin/claude"], True),
            (["/usr/bin/node", "--max-old-space-size=4096", "/usr/bin/claude", "--resume"], True),
            (["node", "-r", "/x/hook.js", "/usr/lib/node_modules/@anthropic-ai/claude-code/cli.js"], True),
            (["node", "/home/u/.claude/local/node_modules/@anthropic-ai/claude-code/cli.js"], True),
            (["bun", "run", "/opt/bin/claude"], True),
            (["node", "/home/u/src/claude-dev/dist/cli.js"], False),
            (["bun", "/opt/Claude/cli.js"], False),
            (["node", "/home/u/.claude/plugins/cache/m/claude-thing/1.0/mcp.js"], None),
            (["node", "-e", "require('/x/claude')"], None),
            (["node", "-r", "/x/claude/hook.js", "/srv/app.js"], None),
            (["node", "--inspect"], None),
            (["node"], None),
            (["bash", "-c", "claude --resume"], None),
            (["bash", "-c", "/home/u/claude/run"], None),
            (["bash", "/usr/local/bin/claude"], None),
            (["python3", "/home/u/.claude/skills/inter-session/bin/client.py"], None),
            (["python3", "/home/u/claude/bin/client.py"], None),
            (["npm exec @anthropic-ai/claude-code"], None),
            (["/Applications/Claude.app/Contents/MacOS/Claude"], None),
            (["claude-wrapper"], None),
            ([""], None),
            ([], None),
        ],
    )
    def test_command_lines(self, cmdline: list[str], verdict: bool | None) -> None:
        assert looks_like_claude(cmdline) is verdict

    @given(st.lists(st.text(max_size=20), max_size=5))
    def test_any_command_line_gets_a_verdict(self, cmdline: list[str]) -> None:
        assert looks_like_claude(cmdline) in (True, False, None)


class TestAncestors:
    """The owner is found among the processes above."""

    def test_nearest_claude_wins(self) -> None:
        assert owners(FakeTable(INIT, CLAUDE, SHELL, CLAUDE, SHELL, ["make"])) == [103]

    def test_nested_session_does_not_get_the_outer_owner(self) -> None:
        assert 101 not in owners(FakeTable(INIT, CLAUDE, SHELL, CLAUDE, SHELL))

    def test_certain_match_beats_a_nearer_weak_one(self) -> None:
        assert owners(FakeTable(INIT, CLAUDE, SHELL, WEAK, SHELL)) == [101]

    def test_weak_match_is_taken_where_nothing_is_better(self) -> None:
        assert owners(FakeTable(INIT, SHELL, WEAK, SHELL)) == [102, 101]

    def test_without_claude_the_parent_and_those_above(self) -> None:
        assert owners(FakeTable(INIT, SHELL, ["make"])) == [102, 101]

    def test_first_process_of_a_container_owns_itself(self) -> None:
        assert owners(FakeTable()) == [ME]

    def test_claude_as_first_process_of_a_container(self) -> None:
        table = FakeTable()
        table.put(1, 0, CLAUDE)
        table.put(ME, 1, ["python"])
        assert owners(table) == [1]

    def test_broken_process_tables_end(self) -> None:
        table = FakeTable(SHELL, SHELL)
        table.put(100, 101, SHELL)  # a circle
        assert [p.pid for p in ancestors(ME, table)] == [101, 100]
        deep = FakeTable(*([SHELL] * 500))
        assert len(ancestors(ME, deep)) == MAX_ANCESTORS
        assert ancestors(12345, table) == []


class TestOrphans:
    """The parent has ended."""

    @pytest.mark.parametrize(
        "init",
        [
            ["/sbin/init"],
            ["/usr/lib/systemd/systemd", "--user"],
            ["/usr/bin/tini", "--", "python"],
            ["docker-init", "--", "sh"],
            ["bwrap", "--unshare-all", "sh"],
            ["/usr/bin/containerd-shim-runc-v2", "-id", "x"],
        ],
    )
    def test_init_owns_nothing(self, init: list[str]) -> None:
        table = FakeTable(INIT, init)
        assert owners(table) == [ME], "an orphan owns itself"
        assert owners(FakeTable(INIT, init, SHELL)) == [102]

    def test_pid_1_of_a_machine_is_an_init_whatever_its_name(self) -> None:
        table = FakeTable()
        table.put(1, 0, ["/process_api"])
        table.put(ME, 1, ["python"])
        assert owners(table) == [ME]
        table.where = table.where._replace(namespace="4026532179")
        assert owners(table) == [1], "the program of a container"
        table.lines[1] = ["tini", "--", "bash"]
        assert owners(table) == [ME]

    def test_pid_1_of_a_machine_is_the_owner_if_it_is_an_agent(self) -> None:
        table = FakeTable()
        table.put(1, 0, CLAUDE)
        table.put(ME, 1, ["python"])
        assert owners(table) == [1]

    def test_shell_of_the_terminal_owns_an_orphan(self) -> None:
        """After nohup and `&` the parent has ended, but the kernel session has not."""
        table = FakeTable(INIT, SHELL)
        table.put(ME, 100, ["python"])
        table.entries[ME] = table.entries[ME]._replace(leader=101)
        assert owners(table) == [101]
        table.uids[101] = os.geteuid() + 1
        assert owners(table) == [ME], "a leader of another user"
        table.put(101, 100, SHELL, ended=True)
        assert owners(table) == [ME], "a leader that has ended"
        table.put(101, 0, INIT)
        assert owners(table) == [ME], "an init"
        table.entries[ME] = table.entries[ME]._replace(leader=77)
        assert owners(table) == [ME], "a leader that is gone"
        table.entries[ME] = table.entries[ME]._replace(leader=ME)
        assert owners(table) == [ME], "its own leader, by setsid"

    def test_orphan_finds_the_owner_that_is_handed_on(self) -> None:
        table = FakeTable(INIT, SHELL)
        owner_ = find_owners(None, {}, table, ME)[0]
        environ = owner.handed_on(owner_, {"PATH": "/bin"})
        assert environ == {"PATH": "/bin", "INTER_SESSION_PPID_OVERRIDE": "101"}
        table.put(ME, 100, ["python"])
        assert find_owners(load(environ=environ).owner_pid_override, environ, table, ME) == [owner_]


class TestVariables:
    """The override, and CLAUDE_PID."""

    def test_override_wins_even_when_dead(self) -> None:
        table = FakeTable(INIT, CLAUDE)
        assert owners(table, override=100, claude_pid="101") == [100]
        assert owners(table, override=77) == [77]
        assert find_owners(77, {}, table) == [Process(77, "", *table.where)]
        assert not is_alive(Process(77, "", *table.where), table)

    def test_claude_pid_names_an_ancestor_with_another_command_line(self) -> None:
        assert owners(FakeTable(INIT, ["embedded-agent"], SHELL), claude_pid="101") == [101]

    def test_claude_pid_nearer_than_a_certain_match(self) -> None:
        assert owners(FakeTable(INIT, CLAUDE, SHELL, ["embedded-agent"], SHELL), claude_pid="103") == [103]

    def test_claude_pid_beats_a_nearer_weak_match(self) -> None:
        assert owners(FakeTable(INIT, ["embedded-agent"], SHELL, WEAK), claude_pid="101") == [101]

    def test_claude_pid_inherited_from_an_outer_session_yields(self) -> None:
        table = FakeTable(INIT, CLAUDE, SHELL, CLAUDE, SHELL)
        assert owners(table, claude_pid="101") == [103]
        # Also through a tmux whose server is no longer below the session that started it.
        table = FakeTable(INIT, ["tmux"], SHELL, CLAUDE, SHELL)
        table.put(500, 1, CLAUDE)
        assert owners(table, claude_pid="500") == [103]

    def test_claude_pid_counts_for_an_orphan(self) -> None:
        table = FakeTable(INIT)
        table.put(500, 1, ["embedded-agent"])
        assert owners(table, claude_pid="500") == [500]

    @pytest.mark.parametrize(
        "text", ["", "0", "-1", "+5", "1e3", "٥٠٠", "x", "99999999999999999999", "500 ", "500\n", "777"]
    )
    def test_invalid_claude_pid_is_ignored(self, text: str) -> None:
        table = FakeTable(INIT, SHELL)
        table.put(500, 1, CLAUDE)
        assert owners(table, claude_pid=text) == [101]

    def test_claude_pid_of_a_zombie_or_another_user_is_ignored(self) -> None:
        table = FakeTable(INIT, SHELL)
        table.put(500, 1, CLAUDE, ended=True)
        table.put(501, 1, CLAUDE, uid=os.geteuid() + 1)
        assert owners(table, claude_pid="500") == [101]
        assert owners(table, claude_pid="501") == [101]


class TestRealProcesses:
    def test_ancestors_begin_with_the_parent(self) -> None:
        chain = ancestors()
        assert chain[0].pid == os.getppid()
        assert all(is_alive(process) for process in chain)
        assert ancestors(chain[0].pid) == chain[1:]

    def test_process_called_claude_owns_its_children(self) -> None:
        pid, found = ask_below("claude", '"$0" -c "$1"')
        assert found == [pid]

    def test_process_called_claude_owns_through_shells(self) -> None:
        pid, found = ask_below("/opt/bin/claude", 'sh -c "\\"\\$0\\" -c \\"\\$1\\"; true" "$0" "$1"')
        assert found == [pid]

    def test_claude_pid(self) -> None:
        with child("cat") as process:
            pid, found = ask_below("shell", '"$0" -c "$1"', {"CLAUDE_PID": str(process.pid)})
            inherited = found == [process.pid]
            under_claude = [p.pid for p in owner.find_owners(None, {})] == found  # these tests may run in a session
            assert inherited or under_claude
            pid, found = ask_below("claude", '"$0" -c "$1"', {"CLAUDE_PID": str(process.pid)})
            assert found == [pid]

    @LINUX
    def test_finding_owners_is_cheap(self) -> None:
        took_s = []
        for _ in range(50):
            before_s = time.perf_counter()
            owner.find_owners(None, {"CLAUDE_PID": str(os.getpid())})
            took_s.append(time.perf_counter() - before_s)
        assert min(took_s) < 0.002  # some 20 us for each process above us
