"""The played client applies the limits of the real one; otherwise "nothing was suppressed" would prove nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.harness.conftest import Claude, Fields, StartClaude
from tests.real.conftest import wait_until

#: Writes its environment, directory, standard input and arguments to the file that it is given.
REPORT_SCRIPT = (
    "import json, os, sys; report = [dict(os.environ), os.getcwd(), sys.stdin.read(), sys.argv[2:]]; "
    "open(sys.argv[1], 'w').write(json.dumps(report))"
)
REPORT = f'python3 -c "{REPORT_SCRIPT}"'
#: Prints a number again and again, each in a notification of its own.
COUNT = "import itertools, time\nfor n in itertools.count(): print(n, flush=True); time.sleep(0.03)"


def make_plugin(root: Path, monitors: list[Fields] | None = None, hooks: Fields | None = None) -> Path:
    """A plugin that declares these monitors and hooks."""
    for name, content in (("monitors", monitors), ("hooks", {"hooks": hooks} if hooks else None)):
        (root / name).mkdir(parents=True, exist_ok=True)
        if content is not None:
            (root / name / f"{name}.json").write_text(json.dumps(content))
    (root / "bin").mkdir()
    return root


def notifications(claude: Claude) -> list[Fields]:
    return [event for event in claude.events if event["event"] == "notification"]


@pytest.fixture
def claude(start_claude: StartClaude, tmp_path: Path) -> Claude:
    """A session with an empty plugin, which may lose notifications."""
    return start_claude(plugin=make_plugin(tmp_path / "plugin"), lossy=True)


class TestNotifications:
    def test_lines_that_come_together_are_one_notification(self, start_claude: StartClaude, tmp_path: Path) -> None:
        claude = start_claude(plugin=make_plugin(tmp_path / "plugin"), join_s=1000)
        monitor = claude.monitor("printf 'one\\ntwo\\n'; printf 'thr'; printf 'ee\\n'")
        assert claude.wait_ended(monitor)["status"] == 0
        assert [event["text"] for event in notifications(claude)] == ["one\ntwo\nthree"]

    def test_long_line_is_cut(self, claude: Claude) -> None:
        for character, shown in (("x", 500), ("😀", 250)):
            for excess in (0, 1):
                claude.wait_ended(claude.monitor(f"python3 -c 'print(\"{character}\" * {shown + excess})'"))
                event = notifications(claude)[-1]
                assert (event["text"], event["cut"]) == (character * shown, excess)
        assert len(claude.lost) == 2

    def test_long_notification_is_cut(self, claude: Claude) -> None:
        claude.wait_ended(claude.monitor("python3 -c 'print((\"x\" * 400 + chr(10)) * 10)'"))
        (event,) = claude.lost
        assert len(event["text"]) == 3000 and event["cut"] == 10 * 401 - 3000


class TestBudget:
    def test_notifications_over_the_budget_are_suppressed(self, start_claude: StartClaude, tmp_path: Path) -> None:
        claude = start_claude(plugin=make_plugin(tmp_path / "plugin"), lossy=True, join_s=0.01, refill_s=1000)
        monitor = claude.monitor(f"exec python3 -c '{COUNT}'")
        wait_until(lambda: len(claude.lost) >= 5, "the budget is used up")
        claude.stop(monitor)
        assert all(event["suppressed"] for event in notifications(claude)[10:]) and not claude.events[9]["suppressed"]
        numbers = claude.lines() + [line for event in claude.lost for line in event["suppressed"]]
        assert numbers == [str(number) for number in range(len(numbers))], "suppressed lines are reported"

    def test_budget_refills(self, start_claude: StartClaude, tmp_path: Path) -> None:
        claude = start_claude(plugin=make_plugin(tmp_path / "plugin"), lossy=True, join_s=0.01, refill_s=0.1)
        monitor = claude.monitor(f"exec python3 -c '{COUNT}'")
        wait_until(lambda: claude.lost and len(claude.lines()) >= 15, "some get through in between")
        assert claude.stop(monitor)["why"] == "stopped"

    def test_monitor_over_the_budget_for_long_is_stopped(self, start_claude: StartClaude, tmp_path: Path) -> None:
        plugin = make_plugin(tmp_path / "plugin")
        claude = start_claude(plugin=plugin, lossy=True, join_s=0.01, refill_s=0.2, flood_s=0.4)
        ended = claude.wait_ended(claude.monitor(f"exec python3 -c '{COUNT}'"))
        assert (ended["why"], ended["status"]) == ("flood", -signal.SIGKILL)
        assert any(event["text"] for event in notifications(claude)[-10:]), "one that gets through does not end a flood"


class TestEnds:
    def test_deadline_kills_the_shell_and_leaves_its_child_without_a_reader(self, claude: Claude) -> None:
        ended = claude.wait_ended(claude.monitor("sleep 1000 & echo $!; wait", timeout_ms=500))
        assert (ended["why"], ended["status"]) == ("deadline", -signal.SIGKILL)
        (line,) = claude.lines()
        child = psutil.Process(int(line))
        try:
            assert child.is_running() and not psutil.pid_exists(ended["pid"])
            open_files = [Path(f"/proc/{claude.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{claude.pid}/fd")]
            assert os.readlink(f"/proc/{child.pid}/fd/1") not in [
                os.readlink(path) for path in open_files if path.is_symlink()
            ]
        finally:
            child.kill()

    def test_end_of_the_session_kills_its_monitors(self, claude: Claude) -> None:
        monitor = claude.monitor("echo $$; exec sleep 1000")
        pid = int(claude.wait_for(r"\d+"))
        claude.close()
        assert claude.wait_ended(monitor)["why"] == "stopped"
        assert not psutil.pid_exists(pid) and claude.process.returncode == 0


class TestEnvironment:
    def test_declared_monitors_start_once(self, start_claude: StartClaude, tmp_path: Path) -> None:
        plugin = make_plugin(
            tmp_path / "plugin",
            [
                {"name": "eager", "command": "echo eager", "description": "", "when": "always"},
                {"name": "lazy", "command": "echo lazy", "description": "", "when": "on-skill-invoke:inter-session"},
                {"name": "other", "command": "echo other", "description": "", "when": "on-skill-invoke:other"},
            ],
        )
        claude = start_claude(plugin=plugin)
        assert claude.started["monitors"] == ["eager"]
        assert claude.skill("inter-session") == ["lazy"]
        for name in ("eager", "lazy"):
            claude.wait_ended(name)
        assert claude.skill("inter-session") == [], "an ended one is not started again"

    def test_declared_monitor_gets_no_variable_of_the_client(self, start_claude: StartClaude, tmp_path: Path) -> None:
        report = tmp_path / "report"
        command = f"{REPORT} '{report}' '${{CLAUDE_PLUGIN_ROOT}}' '${{CLAUDE_PROJECT_DIR}}'"
        plugin = make_plugin(tmp_path / "my plugin", [{"name": "m", "command": command}])
        claude = start_claude(plugin=plugin, options={"port": 4711})
        claude.wait_ended("m")
        environ, cwd, given, arguments = json.loads(report.read_text())
        assert arguments == [str(plugin), str(claude.directory)] and cwd == str(claude.directory)
        assert given == ""
        assert not [name for name in environ if name.startswith(("CLAUDE", "PYTHON"))]
        assert "INTER_SESSION_PPID_OVERRIDE" not in environ and str(plugin) not in environ["PATH"]

    def test_shell_of_the_agent_names_the_session(self, claude: Claude, tmp_path: Path) -> None:
        report = tmp_path / "report"
        done = claude.bash(f"{REPORT} '{report}'; echo out; echo err >&2; exit 3", input="given")
        assert done == (3, "out\n", "err\n")
        environ, cwd, given, _ = json.loads(report.read_text())
        assert (cwd, given) == (str(claude.directory), "given")
        assert environ["CLAUDE_PID"] == str(claude.pid)
        assert environ["CLAUDE_CODE_SESSION_ID"] == claude.started["session_id"]
        assert environ["PATH"].endswith(f"{os.pathsep}{tmp_path}/plugin/bin")
        assert psutil.Process(claude.pid).cmdline()[0] == "claude"

    def test_hooks_get_event_options_and_session(self, start_claude: StartClaude, tmp_path: Path) -> None:
        report = tmp_path / "report"
        startup = {"type": "command", "command": f"{REPORT} '{report}'"}
        block = {"type": "command", "command": 'echo \'{"decision": "block"}\'; echo err >&2; exit 2'}
        export = {"type": "command", "command": "echo 'export FROM_HOOK=1' >> \"$CLAUDE_ENV_FILE\""}
        plugin = make_plugin(
            tmp_path / "plugin",
            hooks={
                "SessionStart": [{"matcher": "startup|resume", "hooks": [startup, export]}],
                "Stop": [{"hooks": [block]}],
            },
        )
        claude = start_claude(plugin=plugin, options={"port": 4711, "quiet": True})
        environ, cwd, given, _ = json.loads(report.read_text())
        session_id = claude.started["session_id"]
        event = {"session_id": session_id, "cwd": cwd, "hook_event_name": "SessionStart", "source": "startup"}
        assert json.loads(given) == event
        own = {name: value for name, value in environ.items() if name.startswith("CLAUDE")}
        assert Path(own.pop("CLAUDE_ENV_FILE")).parent.is_dir() and Path(own.pop("CLAUDE_PLUGIN_DATA")).is_dir()
        assert own == {
            "CLAUDE_CODE_SESSION_ID": session_id,
            "CLAUDE_PID": str(claude.pid),
            "CLAUDE_PLUGIN_ROOT": str(plugin),
            "CLAUDE_PROJECT_DIR": str(claude.directory),
            "CLAUDE_PLUGIN_OPTION_PORT": "4711",
            "CLAUDE_PLUGIN_OPTION_QUIET": "true",
        }
        assert claude.bash("echo $FROM_HOOK").stdout == "1\n"
        output = {"stdout": '{"decision": "block"}\n', "output": {"decision": "block"}}
        assert claude.hook("Stop") == [{"status": 2, "stderr": "err\n", **output}]
        assert claude.hook("UserPromptSubmit", prompt="hello") == []
