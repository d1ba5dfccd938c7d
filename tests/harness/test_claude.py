"""The harness itself, with commands of its own in the plugin's place: what it shows and drops, whom it tells what."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.harness.conftest import Claude, Fields, StartClaude
from tests.real.conftest import wait_until

#: Writes what it was started with into the file that it is given.
TELL_SCRIPT = (
    "import json, os, sys; what = [dict(os.environ), os.getcwd(), sys.stdin.read(), sys.argv[2:]]; "
    "open(sys.argv[1], 'w').write(json.dumps(what))"
)
TELL = f'python3 -c "{TELL_SCRIPT}"'


def make_plugin(root: Path, monitors: list[Fields] | None = None, hooks: Fields | None = None) -> Path:
    """A plugin that declares these."""
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
    """A session without a plugin to speak of, which may lose what it likes."""
    return start_claude(plugin=make_plugin(tmp_path / "plugin"), lossy=True)


# --- lines ----------------------------------------------------------------------------------------------------------


def test_what_comes_together_is_one_notification(start_claude: StartClaude, tmp_path: Path) -> None:
    claude = start_claude(plugin=make_plugin(tmp_path / "plugin"), join_s=1000)
    monitor = claude.monitor("printf 'one\\ntwo\\n'; printf 'thr'; printf 'ee\\n'")
    assert claude.wait_ended(monitor)["status"] == 0
    assert [event["text"] for event in notifications(claude)] == ["one\ntwo\nthree"]
    assert claude.lines() == ["one", "two", "three"]


def test_what_comes_later_is_another(claude: Claude, tmp_path: Path) -> None:
    more = tmp_path / "more"
    monitor = claude.monitor(f"echo one; until [ -e '{more}' ]; do sleep 0.01; done; echo two; printf three")
    claude.wait_for("one")
    more.touch()
    claude.wait_ended(monitor)
    assert [event["text"] for event in notifications(claude)] == ["one", "two\nthree"]


def test_long_line_is_cut(claude: Claude) -> None:
    for character, shown in (("x", 500), ("é", 500), ("😀", 250)):
        for excess in (0, 1):
            claude.wait_ended(claude.monitor(f"python3 -c 'print(\"{character}\" * {shown + excess})'"))
            event = notifications(claude)[-1]
            assert (event["text"], event["cut"]) == (character * shown, excess)
    assert len(claude.lost) == 3


def test_long_notification_is_cut(claude: Claude) -> None:
    claude.wait_ended(claude.monitor("python3 -c 'print((\"x\" * 400 + chr(10)) * 10)'"))
    (event,) = claude.lost
    assert len(event["text"]) == 3000 and event["cut"] == 10 * 401 - 3000


# --- the budget -----------------------------------------------------------------------------------------------------

#: Prints a number again and again, each in a notification of its own.
COUNT = "import itertools, time\nfor n in itertools.count(): print(n, flush=True); time.sleep(0.03)"


def test_over_the_budget_it_is_suppressed(start_claude: StartClaude, tmp_path: Path) -> None:
    claude = start_claude(plugin=make_plugin(tmp_path / "plugin"), lossy=True, join_s=0.01, refill_s=1000)
    monitor = claude.monitor(f"exec python3 -c '{COUNT}'")
    wait_until(lambda: len(claude.lost) >= 5, "the budget is used up")
    claude.stop(monitor)
    assert all(event["suppressed"] for event in notifications(claude)[10:]) and not claude.events[9]["suppressed"]
    numbers = claude.lines() + [line for event in claude.lost for line in event["suppressed"]]
    assert numbers == [str(number) for number in range(len(numbers))], "what was not shown is told"


def test_budget_comes_back(start_claude: StartClaude, tmp_path: Path) -> None:
    claude = start_claude(plugin=make_plugin(tmp_path / "plugin"), lossy=True, join_s=0.01, refill_s=0.1)
    monitor = claude.monitor(f"exec python3 -c '{COUNT}'")
    wait_until(lambda: claude.lost and len(claude.lines()) >= 15, "some get through in the middle of it")
    assert claude.stop(monitor)["why"] == "stopped"


def test_flood_stops_the_monitor(start_claude: StartClaude, tmp_path: Path) -> None:
    claude = start_claude(plugin=make_plugin(tmp_path / "plugin"), lossy=True, join_s=0.01, refill_s=0.2, flood_s=0.4)
    ended = claude.wait_ended(claude.monitor(f"exec python3 -c '{COUNT}'"))
    assert (ended["why"], ended["status"]) == ("flood", -signal.SIGKILL)
    assert any(event["text"] for event in notifications(claude)[-10:]), "one that gets through does not end a flood"


def test_each_monitor_has_a_budget_of_its_own(start_claude: StartClaude, tmp_path: Path) -> None:
    claude = start_claude(plugin=make_plugin(tmp_path / "plugin"), lossy=True, join_s=0.01, refill_s=1000)
    flood = claude.monitor(f"exec python3 -c '{COUNT}'")
    wait_until(lambda: claude.lost, "the budget is used up")
    claude.wait_ended(claude.monitor("echo calm"))
    claude.stop(flood)
    assert "calm" in claude.lines()


# --- ends -----------------------------------------------------------------------------------------------------------


def test_deadline_kills_the_monitor(claude: Claude) -> None:
    ended = claude.wait_ended(claude.monitor("echo begun; exec sleep 1000", timeout_ms=500))
    assert (ended["why"], ended["status"]) == ("deadline", -signal.SIGKILL)
    assert claude.lines() == ["begun"]


def test_monitor_is_armed_again(claude: Claude) -> None:
    first = claude.monitor("echo one; exec sleep 1000", timeout_ms=500)
    claude.wait_ended(first)
    second = claude.monitor("echo two; exec sleep 1000")
    claude.wait_for("two")
    assert second != first and claude.lines(second) == ["two"]


def test_child_of_a_killed_shell_lives_on_without_a_reader(claude: Claude) -> None:
    ended = claude.wait_ended(claude.monitor("sleep 1000 & echo $!; wait", timeout_ms=500))
    (line,) = claude.lines()
    child = psutil.Process(int(line))
    try:
        assert child.is_running() and child.pid != ended["pid"]
        assert not psutil.pid_exists(ended["pid"])
        readers = [Path(f"/proc/{claude.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{claude.pid}/fd")]
        assert os.readlink(f"/proc/{child.pid}/fd/1") not in [
            os.readlink(path) for path in readers if path.is_symlink()
        ]
    finally:
        child.kill()


def test_end_of_the_session_kills_its_monitors(claude: Claude) -> None:
    monitor = claude.monitor("echo $$; exec sleep 1000")
    pid = int(claude.wait_for(r"\d+"))
    claude.close()
    assert claude.wait_ended(monitor)["why"] == "stopped"
    assert not psutil.pid_exists(pid) and claude.process.returncode == 0


def test_order_that_cannot_be_carried_out_is_an_answer(claude: Claude) -> None:
    assert "KeyError" in claude.begin("stop", monitor="none").result(10)["error"]
    assert claude.bash("echo still here").stdout == "still here\n"


# --- declared monitors ----------------------------------------------------------------------------------------------


def test_declared_monitors_start_in_time_and_once(start_claude: StartClaude, tmp_path: Path) -> None:
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
    assert claude.skill() == ["lazy"]
    for name in ("eager", "lazy"):
        claude.wait_ended(name)
    assert claude.skill() == [], "one that has ended is not started again"
    assert claude.order("reload")["monitors"] == []
    assert sorted(claude.lines()) == ["eager", "lazy"]


def test_declared_monitor_gets_the_places_in_its_command_only(start_claude: StartClaude, tmp_path: Path) -> None:
    told = tmp_path / "told"
    plugin = make_plugin(
        tmp_path / "my plugin",
        [{"name": "m", "command": f"{TELL} '{told}' '${{CLAUDE_PLUGIN_ROOT}}' '${{CLAUDE_PROJECT_DIR}}'"}],
    )
    claude = start_claude(plugin=plugin, options={"port": 4711})
    claude.wait_ended("m")
    environ, cwd, given, words = json.loads(told.read_text())
    assert words == [str(plugin), str(claude.directory)] and cwd == str(claude.directory)
    assert given == ""
    assert not [name for name in environ if name.startswith(("CLAUDE", "PYTHON"))]
    assert "INTER_SESSION_PPID_OVERRIDE" not in environ and str(plugin) not in environ["PATH"]


# --- shells and hooks -----------------------------------------------------------------------------------------------


def test_shell_of_the_agent(claude: Claude, tmp_path: Path) -> None:
    told = tmp_path / "told"
    done = claude.bash(f"{TELL} '{told}'; echo out; echo err >&2; exit 3", input="given")
    assert done == (3, "out\n", "err\n")
    environ, cwd, given, _ = json.loads(told.read_text())
    assert (cwd, given) == (str(claude.directory), "given")
    assert environ["CLAUDE_PID"] == str(claude.pid)
    assert environ["CLAUDE_CODE_SESSION_ID"] == claude.started["session_id"]
    assert environ["PATH"].endswith(f"{os.pathsep}{tmp_path}/plugin/bin")
    assert "CLAUDE_PLUGIN_ROOT" not in environ


def test_shell_that_takes_too_long(claude: Claude) -> None:
    answer = claude.order("bash", command="echo begun; exec sleep 1000", timeout_s=0.2)
    assert (answer["status"], answer["stdout"]) == (None, "begun\n")


def test_hooks(start_claude: StartClaude, tmp_path: Path) -> None:
    """Each event has its hooks, with and without a shell; the start of the session is an event too."""
    told = tmp_path / "told"
    script = tmp_path / "tell.py"
    script.write_text(TELL_SCRIPT)
    plugin = make_plugin(
        tmp_path / "plugin",
        hooks={
            "SessionStart": [
                {"matcher": "startup|resume", "hooks": [{"type": "command", "command": f"{TELL} '{told}-startup'"}]},
                {"matcher": "clear", "hooks": [{"type": "command", "command": f"{TELL} '{told}-clear'"}]},
            ],
            "Stop": [
                {
                    "hooks": [
                        {
                            "type": "command",
                            "command": "python3",
                            "args": [str(script), f"{told}-stop", "${CLAUDE_PLUGIN_ROOT}/x", "$HOME"],
                            "timeout": 30,
                        },
                        {"type": "command", "command": 'echo \'{"decision": "block"}\'; echo err >&2; exit 2'},
                    ]
                }
            ],
        },
    )
    claude = start_claude(plugin=plugin, options={"port": 4711, "quiet": True})
    assert [hook["status"] for hook in claude.started["hooks"]] == [0]
    environ, cwd, given, _ = json.loads(Path(f"{told}-startup").read_text())
    session_id = claude.started["session_id"]
    assert json.loads(given) == {
        "session_id": session_id,
        "cwd": cwd,
        "hook_event_name": "SessionStart",
        "source": "startup",
    }
    own = {name: value for name, value in environ.items() if name.startswith("CLAUDE")}
    assert Path(own.pop("CLAUDE_ENV_FILE")).parent.is_dir() and Path(own["CLAUDE_PLUGIN_DATA"]).is_dir()
    assert own == {
        "CLAUDE_CODE_SESSION_ID": session_id,
        "CLAUDE_PID": str(claude.pid),
        "CLAUDE_PLUGIN_ROOT": str(plugin),
        "CLAUDE_PLUGIN_DATA": own["CLAUDE_PLUGIN_DATA"],
        "CLAUDE_PROJECT_DIR": str(claude.directory),
        "CLAUDE_PLUGIN_OPTION_PORT": "4711",
        "CLAUDE_PLUGIN_OPTION_QUIET": "true",
    }

    first, second = claude.hook("Stop", stop_hook_active=False)
    assert (first["status"], first["stdout"], first["output"]) == (0, "", None)
    assert second == {
        "status": 2,
        "stdout": '{"decision": "block"}\n',
        "stderr": "err\n",
        "output": {"decision": "block"},
    }
    environ, _, given, words = json.loads(Path(f"{told}-stop").read_text())
    assert words == [f"{plugin}/x", "$HOME"], "no shell reads the arguments"
    assert json.loads(given)["stop_hook_active"] is False and "CLAUDE_ENV_FILE" not in environ
    assert claude.hook("UserPromptSubmit", prompt="hello") == []

    cleared = claude.clear()
    environ, _, given, _ = json.loads(Path(f"{told}-clear").read_text())
    assert len(cleared["hooks"]) == 1 and json.loads(given)["source"] == "clear"
    assert environ["CLAUDE_CODE_SESSION_ID"] == cleared["session_id"] != session_id
    assert claude.bash("echo $CLAUDE_CODE_SESSION_ID").stdout == f"{cleared['session_id']}\n"


def test_hook_that_takes_too_long(start_claude: StartClaude, tmp_path: Path) -> None:
    hook = {"type": "command", "command": "exec sleep 1000", "timeout": 0.2}
    claude = start_claude(plugin=make_plugin(tmp_path / "plugin", hooks={"Stop": [{"hooks": [hook]}]}))
    assert [done["status"] for done in claude.hook("Stop")] == [None]


def test_hook_may_set_variables_for_the_shells(start_claude: StartClaude, tmp_path: Path) -> None:
    hook = {"type": "command", "command": "echo 'export FROM_HOOK=1' >> \"$CLAUDE_ENV_FILE\""}
    claude = start_claude(plugin=make_plugin(tmp_path / "plugin", hooks={"SessionStart": [{"hooks": [hook]}]}))
    assert claude.bash("echo $FROM_HOOK").stdout == "1\n"


# --- the fixture ----------------------------------------------------------------------------------------------------


def test_session_is_a_process_called_claude(claude: Claude) -> None:
    assert psutil.Process(claude.pid).cmdline()[0] == "claude"


def test_killed_session_leaves_its_monitors_without_a_reader(claude: Claude) -> None:
    claude.monitor("trap 'exit 0' PIPE; echo $$; while sleep 0.05; do echo on; done")
    shell = psutil.Process(int(claude.wait_for(r"^\d+$")))
    claude.kill()
    assert claude.process.returncode == -signal.SIGKILL
    wait_until(lambda: not shell.is_running() or shell.status() == psutil.STATUS_ZOMBIE, "it writes to nobody")
