"""The real client validates the plugin, installs it from git and a directory, removes it, and asks where it should."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import zmqbus
from tests.real.conftest import HEADER, Owner, wait_until
from tests.realclient.conftest import PLUGIN_ID, URL, Client, Environment, Repository
from tests.realclient.model import ScriptedModel
from tests.realclient.session import bash
from zmqbus.cli import auto_start

pytestmark = [pytest.mark.slow, pytest.mark.realclient]

COMMAND_TIMEOUT_S = 90.0
#: A hook that is slowed down ends without output; one of this many tries is fast enough.
HOOK_TRIES = 50

COMMANDS = ("client.py", "send.py", "list.py", "auto_start.py", "install_deps.py", "zmqbus")


def install(client: Client, source: str | Path, port: int) -> Path:
    """Adds the marketplace, installs the plugin from it, and returns where the client has put it."""
    client.plugin("marketplace", "add", source)
    client.plugin("install", PLUGIN_ID, "--config", f"port={port}")
    row = client.installed()
    assert row is not None
    assert (row["version"], row["enabled"]) == (zmqbus.__version__, True)
    assert client.options() == {"port": port}
    return Path(row["installPath"])


def remove(client: Client) -> None:
    client.plugin("uninstall", PLUGIN_ID)
    assert client.installed() is None
    client.plugin("marketplace", "remove", "zmqbus")
    assert "zmqbus" not in [row["name"] for row in json.loads(client.plugin("marketplace", "list", "--json"))]


def contents(directory: Path) -> dict[str, tuple[bytes, bool]]:
    """Path -> content, and whether it may be run."""
    return {
        str(path.relative_to(directory)): (path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR))
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def run(script: Path, *args: str, env: dict[str, str], input: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", script, *args],
        env=env,
        input=input,
        capture_output=True,
        encoding="utf-8",
        timeout=COMMAND_TIMEOUT_S,
    )


def auto_start_works(place: Path, env: dict[str, str]) -> None:
    monitors = place / "monitors" / "monitors.json"
    before = json.loads(monitors.read_bytes())
    for words, said, when in (
        ("--status", "auto-start is off", auto_start.ON_SKILL),
        ("--on", "auto-start is on", "always"),
        ("--status", "auto-start is on", "always"),
        ("--off", "auto-start is off", auto_start.ON_SKILL),
    ):
        done = run(place / "bin" / "auto_start.py", words, env=env)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(said), done
        assert json.loads(monitors.read_bytes())[0]["when"] == when
    assert json.loads(monitors.read_bytes()) == before


def session_start(place: Path, env: dict[str, str]) -> str:
    """The hook's text for a session that starts."""
    event = json.dumps({"session_id": "abc", "cwd": "/", "hook_event_name": "SessionStart", "source": "startup"})
    for _ in range(HOOK_TRIES):
        done = run(place / "bin" / "hook.py", env=env, input=event)
        assert (done.returncode, done.stderr) == (0, ""), done
        if done.stdout:
            text: str = json.loads(done.stdout)["hookSpecificOutput"]["additionalContext"]
            return text
    pytest.fail("the hook said nothing")


def the_bus_works(place: Path, port: int, bin_env: Environment) -> None:
    """Checks that hook and monitor use the port that the user has set, and that a message arrives."""
    monitor = json.loads((place / "monitors" / "monitors.json").read_bytes())[0]
    command = monitor["command"].replace("${CLAUDE_PLUGIN_ROOT}", str(place))
    skill = place / "skills" / "inter-session" / "bin"
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    with contextlib.ExitStack() as stack:
        owner, other = Owner(), Owner()
        stack.callback(owner.kill)
        stack.callback(other.kill)
        mine = bin_env({**path, "INTER_SESSION_PPID_OVERRIDE": str(owner.pid)})
        theirs = bin_env({"INTER_SESSION_PPID_OVERRIDE": str(other.pid), "INTER_SESSION_PORT": str(port)})
        hook_env = {**mine, "CLAUDE_PLUGIN_OPTION_PORT": str(port)}

        assert "is not on the bus" in session_start(place, hook_env)
        listener = subprocess.Popen(
            ["sh", "-c", command],
            env={**mine, "INTER_SESSION_NAME": "auth"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        stack.enter_context(listener)
        stack.callback(listener.kill)
        wait_until(
            lambda: f"port={port}\n" in run(place / "bin" / "list.py", "--self", env=mine).stdout,
            "the monitor is on the port that the user has set",
        )
        assert "this session is 'auth' on the bus" in session_start(place, hook_env)

        done = run(skill / "send.py", "--to", "auth", "--as", "web", "--text", "it is installed", env=theirs)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("delivered msg="), done.stdout
        assert listener.stdout is not None
        line = listener.stdout.readline().rstrip("\n")
        match = HEADER.match(line)
        assert match and (match["name"], match["text"]) == ("web", "it is installed"), line
        done = run(skill / "zmqbus", "list", "--json", env=theirs)
        assert [row["name"] for row in json.loads(done.stdout)] == ["auth"]
        assert run(skill / "zmqbus", "disconnect", env=mine).stdout == "disconnected\n"
        assert listener.wait(COMMAND_TIMEOUT_S) == 0


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel() as model:
        yield model


class Agent:
    """Runs of the client without a terminal, in which the scripted model gives one command to the shell.

    There is nobody to ask, so a command that would ask is refused.
    """

    def __init__(self, client: Client, model: ScriptedModel, env: dict[str, str]) -> None:
        self._client = client
        self._model = model
        self._env = env
        self.cwd = client.home / "project"
        self.cwd.mkdir()

    def run(self, command: str, *words: str) -> str:
        """What the model is told of the command's result."""
        self._model.plan(bash(command))
        self._client.run("-p", *words, "go on", cwd=self.cwd, env={**self._env, "ANTHROPIC_BASE_URL": self._model.url})
        assert "<result>" in self._model.shown, "the client has told the model nothing"
        return self._model.shown


@pytest.fixture
def agent(client: Client, model: ScriptedModel, bin_env: Environment, data_dir: Path) -> Agent:
    python = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    wanted = ("INTER_SESSION_DATA_DIR", "INTER_SESSION_PORT", "INTER_SESSION_NO_REEXEC")
    env = {name: value for name, value in bin_env(None).items() if name in wanted}
    return Agent(client, model, {**env, **python})


#: In plan mode the client would ask a server to check each command.
MODES: dict[str, tuple[str, ...]] = {
    "default": (),
    "acceptEdits": (),
    "dontAsk": (),
    "plan": ("--settings", '{"useAutoModeDuringPlan": false}'),
}


class TestApprovals:
    """What the client lets through, with the plugin's hooks, in the modes that need no server of the vendor's."""

    @pytest.mark.parametrize("mode", MODES)
    def test_command_that_only_talks_runs_unasked(self, agent: Agent, copy: Path, mode: str) -> None:
        zmqbus = f'python3 "{copy}/skills/inter-session/bin/zmqbus"'
        words = ("--plugin-dir", str(copy), "--permission-mode", mode, *MODES[mode])
        told = agent.run(f"{zmqbus} send --to auth --text-file - <<'END'\nit's a `question`\nEND", *words)
        assert "error: not_connected: not connected; run /inter-session connect first" in told
        told = agent.run(f"{zmqbus} list > listed", *words)
        assert not (agent.cwd / "listed").exists(), told
        told = agent.run(f"{zmqbus} forget auth --yes", *words)
        assert "unknown_peer" not in told and "broker" not in told, "it was refused and did not run"

    def test_option_switches_approvals_off(self, agent: Agent, client: Client, checkout: Path) -> None:
        client.plugin("marketplace", "add", checkout)
        for value, runs in (("true", True), ("false", False)):
            client.plugin("install", PLUGIN_ID, "--config", f"approve_bus_commands={value}")
            # The client reads the plugin of a local marketplace in place, and tells the agent that path.
            zmqbus = f'python3 "{checkout}/plugin/skills/inter-session/bin/zmqbus"'
            told = agent.run(f"{zmqbus} status", "--permission-mode", "dontAsk")
            assert ("not connected" in told) is runs, told
            client.plugin("uninstall", PLUGIN_ID)


class TestValidation:
    def test_plugin_is_valid(self, client: Client, copy: Path) -> None:
        client.plugin("validate", "--strict", copy)

    def test_plugin_directory_takes_the_plugin(self, client: Client, copy: Path) -> None:
        """The catalog of plugins checks more: an icon, a way to install it, the hosts that it reaches."""
        if "--profile" not in client.plugin("validate", "--help"):
            pytest.skip("this client knows no profile")
        said = client.plugin("validate", "--profile", "directory", "--strict", copy)
        assert "Advice" not in said and "not declared" not in said, said

    def test_marketplace_is_valid(self, client: Client, checkout: Path) -> None:
        client.plugin("validate", "--strict", checkout)

    def test_client_sees_all_parts_of_the_plugin(self, client: Client, copy: Path) -> None:
        """Validation passes for a monitor that the client cannot use; only its list of parts shows that."""
        done = client.call("validate", "--strict", "--json", copy)
        if done.returncode and not done.stdout.startswith("{"):
            pytest.skip(f"this client has no --json: {done.stderr.strip()}")
        report = json.loads(done.stdout)
        if "provides" not in report:
            pytest.skip("this client does not list what a plugin provides")
        provides = report["provides"]
        monitors = json.loads((copy / "monitors" / "monitors.json").read_bytes())
        assert [(row["name"], row["command"]) for row in provides["monitors"]] == [
            (monitor["name"], monitor["command"]) for monitor in monitors
        ]
        hooks = json.loads((copy / "hooks" / "hooks.json").read_bytes())["hooks"]
        declared = [
            (event, hook["command"]) for event, groups in hooks.items() for group in groups for hook in group["hooks"]
        ]
        assert sorted((row["event"], row["command"]) for row in provides["hooks"]) == sorted(declared)
        assert provides["skills"] == ["inter-session:inter-session"]
        assert sorted(provides["bin"]) == sorted([*COMMANDS, "approve.py", "hook.py"])

    def test_client_reports_a_fault(self, client: Client, copy: Path) -> None:
        """The other tests rely on this."""
        path = copy / ".claude-plugin" / "plugin.json"
        manifest = json.loads(path.read_bytes())
        manifest["userConfig"]["port"]["colour"] = "blue"
        path.write_text(json.dumps(manifest))
        assert client.call("validate", "--strict", copy).returncode == 1


class TestInstallation:
    def test_installation_from_git_is_complete(self, from_git: Client, checkout: Path, free_port: int) -> None:
        place = install(from_git, URL, free_port)
        assert place.is_relative_to(from_git.home), "the client's own copy"
        assert [path for path in place.rglob("*") if path.is_symlink()] == []
        for part in (place, place / "skills" / "inter-session"):
            for linked in ("bin", "zmqbus"):
                assert contents(part / linked) == contents(checkout / linked)
            assert (part / "requirements.txt").read_bytes() == (checkout / "requirements.txt").read_bytes()
        skill = Path("skills", "inter-session", "SKILL.md")
        assert (place / skill).read_bytes() == (checkout / "plugin" / skill).read_bytes()
        remove(from_git)

    def test_installation_from_git_works(
        self, from_git: Client, free_port: int, bin_env: Environment, data_dir: Path
    ) -> None:
        place = install(from_git, URL, free_port)
        for bin_dir in (place / "bin", place / "skills" / "inter-session" / "bin"):
            for script in COMMANDS:
                done = run(bin_dir / script, "--help", env=bin_env(None))
                assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: "), script
        auto_start_works(place, bin_env(None))
        the_bus_works(place, from_git.options()["port"], bin_env)
        remove(from_git)

    def test_update_replaces_the_old_version(
        self, from_git: Client, repository: Repository, free_port: int, bin_env: Environment
    ) -> None:
        """The user's options stay; the monitor starts with the skill again, as auto_start.py says."""
        old = install(from_git, URL, free_port)
        done = run(old / "bin" / "auto_start.py", "--on", env=bin_env(None))
        assert "an update of the plugin sets it back to off" in done.stdout
        manifest = repository.work / "plugin" / ".claude-plugin" / "plugin.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_bytes()), "version": "99.0.0"}))
        repository.push()
        from_git.plugin("marketplace", "update", "zmqbus")
        from_git.plugin("update", PLUGIN_ID)
        row = from_git.installed()
        assert row is not None and row["version"] == "99.0.0" and row["enabled"]
        new = Path(row["installPath"])
        assert new != old and contents(new / "bin") == contents(repository.work / "bin")
        assert from_git.options() == {"port": free_port}
        done = run(new / "bin" / "auto_start.py", env=bin_env(None))
        assert done.stdout.startswith("auto-start is off")
        remove(from_git)

    def test_plugin_can_be_disabled_and_enabled(self, from_git: Client, free_port: int) -> None:
        install(from_git, URL, free_port)
        for switch, enabled in (("disable", False), ("enable", True)):
            from_git.plugin(switch, PLUGIN_ID)
            row = from_git.installed()
            assert row is not None and row["enabled"] is enabled
        assert from_git.options() == {"port": free_port}
        remove(from_git)

    def test_installation_from_a_directory(
        self, client: Client, checkout: Path, free_port: int, bin_env: Environment, data_dir: Path
    ) -> None:
        """For a checkout that is being worked on."""
        place = install(client, checkout, free_port)
        for script in COMMANDS:
            done = run(place / "bin" / script, "--help", env=bin_env(None))
            assert (done.returncode, done.stderr) == (0, ""), script
        done = run(place / "bin" / "auto_start.py", "--status", env=bin_env(None))
        assert done.stdout.startswith("auto-start is off")
        said = session_start(place, bin_env({"CLAUDE_PLUGIN_OPTION_PORT": str(free_port)}))
        assert "is not on the bus" in said
        remove(client)
        assert (checkout / "plugin" / ".claude-plugin" / "plugin.json").is_file(), "the client must not remove it"
