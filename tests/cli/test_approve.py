"""The plugin's answer to a permission request, as the client gets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from zmqbus.cli import approve
from zmqbus.process import process_of
from zmqbus.session import plugin_options
from zmqbus.session.last_seen import last_seen

TIMEOUT_S = 90.0
PLUGIN = ROOT / "plugin"
ALLOW = {"hookSpecificOutput": {"hookEventName": "PermissionRequest", "decision": {"behavior": "allow"}}}
SEND = f"python3 \"{PLUGIN}/skills/inter-session/bin/zmqbus\" send --to auth --text-file - <<'END'\nit's `here`\nEND"

Ask = Callable[..., "dict[str, Any] | None"]


@pytest.fixture
def ask(data_dir: Path, bin_env: Callable[[dict[str, str] | None], dict[str, str]]) -> Ask:
    """`ask(command)` runs the hook, and returns its output; None: the user is asked."""

    def call(command: object, env: dict[str, str] | None = None, event: bytes | None = None) -> dict[str, Any] | None:
        said = {"hook_event_name": "PermissionRequest", "tool_name": "Bash", "tool_input": {"command": command}}
        done = subprocess.run(
            [sys.executable, "-B", str(PLUGIN / "bin" / "approve.py")],
            env=bin_env(env),
            input=json.dumps(said).encode() if event is None else event,
            capture_output=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done
        return json.loads(done.stdout) if done.stdout else None

    return call


class TestAnswer:
    def test_bus_command_is_allowed(self, ask: Ask) -> None:
        assert ask(SEND) == ALLOW
        assert ask(f"python3 '{PLUGIN}/bin/list.py' --all") == ALLOW

    @pytest.mark.parametrize("command", ["ls", "zmqbus list", f"{SEND}\nls", f"{PLUGIN}/bin/zmqbus forget x", 7])
    def test_other_commands_get_no_decision(self, ask: Ask, command: object) -> None:
        assert ask(command) is None

    @pytest.mark.parametrize(
        ("value", "on"), [("true", True), (" ", True), ("false", False), ("0", False), ("x", False)]
    )
    def test_option_switches_it_off(self, ask: Ask, value: str, on: bool) -> None:
        assert (ask(SEND, {plugin_options.APPROVE: value}) is not None) is on

    @pytest.mark.parametrize(
        "event",
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b"\xff",
            b'{"hook_event_name": "PermissionRequest", "tool_name": "Bash"}',
            b'{"hook_event_name": "PermissionRequest", "tool_name": "Bash", "tool_input": {"command": "ls',
            b"[" * 100_000,
        ],
    )
    def test_event_that_cannot_be_read(self, ask: Ask, event: bytes) -> None:
        assert ask(None, event=event) is None

    @pytest.mark.parametrize(
        ("kind", "tool"),
        [
            ("PermissionRequest", "Write"),
            ("PermissionRequest", "Monitor"),
            ("PreToolUse", "Write"),
            ("Stop", "Bash"),
            ([], {}),
        ],
    )
    def test_other_tools_and_events(self, ask: Ask, kind: object, tool: object) -> None:
        event = {"hook_event_name": kind, "tool_name": tool, "tool_input": {"command": SEND}}
        assert ask(None, event=json.dumps(event).encode()) is None

    def test_bus_command_is_allowed_before_modes_that_do_not_ask(self, ask: Ask) -> None:
        event = {"hook_event_name": "PreToolUse", "tool_name": "Bash", "tool_input": {"command": SEND}}
        answer = ask(None, event=json.dumps(event).encode())
        assert answer is not None and answer["hookSpecificOutput"]["permissionDecision"] == "allow"
        event["tool_input"] = {"command": f"{SEND}\nls"}
        assert ask(None, event=json.dumps(event).encode()) is None

    @pytest.mark.parametrize(
        ("command", "runs"),
        [
            (f'python3 "{PLUGIN}/skills/inter-session/bin/client.py" --name auth', True),
            (f'python3 "{PLUGIN}/skills/inter-session/bin/client.py" --name auth | grep msg', False),
            ("tail -f log", False),
        ],
    )
    def test_listener_is_started_without_asking(self, ask: Ask, command: str, runs: bool) -> None:
        given = {"command": command, "description": "messages", "timeout_ms": 1_800_000, "persistent": True}
        event = {"hook_event_name": "PreToolUse", "tool_name": "Monitor", "tool_input": given}
        answer = ask(None, event=json.dumps(event).encode())
        assert (answer is not None) is runs
        if answer is not None:
            assert answer["hookSpecificOutput"]["hookEventName"] == "PreToolUse"
            assert answer["hookSpecificOutput"]["permissionDecision"] == "allow"

    def test_closed_output(self, data_dir: Path, bin_env: Callable[[dict[str, str] | None], dict[str, str]]) -> None:
        line = f"{sys.executable} -B {PLUGIN}/bin/approve.py >&-"
        event = {"hook_event_name": "PermissionRequest", "tool_name": "Bash", "tool_input": {"command": SEND}}
        done = subprocess.run(
            ["sh", "-c", line],
            env=bin_env(None),
            input=json.dumps(event).encode(),
            capture_output=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0 and b"Traceback" not in done.stderr

    def test_run_is_noted_for_the_doctor(self, ask: Ask, data_dir: Path) -> None:
        (data_dir / "clients").mkdir(mode=0o700, parents=True)
        ask("ls", {"INTER_SESSION_PPID_OVERRIDE": str(os.getpid())})
        assert last_seen(str(data_dir), process_of(os.getpid())).keys() == {"PermissionRequest"}

    def test_nothing_is_written_before_the_bus_is_used(self, ask: Ask, data_dir: Path) -> None:
        assert ask(SEND) == ALLOW
        assert not (data_dir / "clients").exists()


class TestDirectories:
    def test_directories_of_a_plugin(self) -> None:
        expected = ["/p/bin", "/p/skills/inter-session/bin"]
        assert approve.directories_of("/p/bin/approve.py", {}) == expected
        found = approve.directories_of("/p/bin/approve.py", {"CLAUDE_PLUGIN_ROOT": "/link/to/p/"})
        assert found == [*expected, "/link/to/p/bin", "/link/to/p/skills/inter-session/bin"]

    def test_every_directory_of_the_plugin_has_the_scripts(self) -> None:
        for directory in approve.directories_of(str(PLUGIN / "bin" / "approve.py"), {}):
            assert os.access(os.path.join(directory, "zmqbus"), os.X_OK)
