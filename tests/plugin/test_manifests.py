"""The plugin's manifests, the links below plugin/, and the commands in SKILL.md.

Clients accept much that they then do not use: they silently drop a monitor with a wrong `when` or an unknown field. So
the manifests are checked against the documentation, not against what a client accepts.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

import zmqbus
from zmqbus import settings
from zmqbus.agents import permission
from zmqbus.cli import auto_start
from zmqbus.cli.main import COMMANDS
from zmqbus.session import plugin_options

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugin"
SKILL = PLUGIN / "skills" / "inter-session"
TIMEOUT_S = 90.0

#: Parts of the repository that the plugin and its stand-alone skill link to.
LINKED = ("bin", "zmqbus", "requirements.txt")

#: Variables that the client substitutes; it does not set them in the environment of the processes that it starts.
VARIABLES = {"CLAUDE_PLUGIN_ROOT", "CLAUDE_PLUGIN_DATA", "CLAUDE_PROJECT_DIR"}
VARIABLE = re.compile(r"\$\{([^}]*)\}")
#: Events, matchers, scripts. A matcher of the first three would omit some of their kinds.
EVENTS = [
    ("SessionStart", None, "hook.py"),
    ("UserPromptSubmit", None, "hook.py"),
    ("Stop", None, "hook.py"),
    ("PermissionRequest", None, "approve.py"),
    ("PreToolUse", "Bash", "approve.py"),
    ("PreToolUse", "Monitor", "approve.py"),
    ("PostToolUse", None, "hook.py"),
]
#: A condition of a hook, in the form of a permission rule: without it, each shell command would wait for the hook.
CONDITIONS: dict[tuple[str, str | None], str] = {("PreToolUse", "Bash"): "Bash(python3 *skills/inter-session/bin/*)"}
#: The test in the shell that ends a hook of a session which never used the bus, before python starts.
ONLY_ON_THE_BUS = (
    "d=${INTER_SESSION_DATA_DIR:-$HOME/.claude/data/inter-session}; "
    '[ -z "$CLAUDE_PID" ] || [ -n "$INTER_SESSION_NAME$INTER_SESSION_PPID_OVERRIDE" ] || [ "${d#/}" = "$d" ] || '
    '[ -e "$d/clients/$CLAUDE_PID.lock" ] || exit 0; '
)
#: The test that ends a hook unless the agent is known to wait for its user.
ONLY_IF_BLOCKED = (
    "d=${INTER_SESSION_DATA_DIR:-$HOME/.claude/data/inter-session}; "
    '{ read -r s _ <"$d/clients/$CLAUDE_PID.agent"; } 2>/dev/null; [ "$s" = blocked ] || exit 0; '
)
GATES = {"UserPromptSubmit": ONLY_ON_THE_BUS, "Stop": ONLY_ON_THE_BUS, "PostToolUse": ONLY_IF_BLOCKED}
#: A week: an agent that is idle for longer is shown its mail with the next prompt.
WAITER_TIMEOUT_S = 7 * 24 * 3600
#: A prompt waits for its hook this long at most.
MAX_HOOK_TIMEOUT_S = 10

OPTION_FIELDS = {
    *("type", "title", "description", "required", "default", "options", "multiple", "sensitive", "min", "max"),
}
OPTION_TYPES = {"string", "number", "boolean", "directory", "file"}


def load(path: Path) -> Any:
    """The content of a JSON file in which no field is given twice, since a reader may take either."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs), f"a field of {path} is given twice"
        return dict(pairs)

    return json.loads(path.read_text("utf-8"), object_pairs_hook=once)


def is_line(value: object) -> bool:
    """Whether a dialogue can show this text in one line."""
    return isinstance(value, str) and bool(value) and value == value.strip() and value.isprintable()


@pytest.fixture
def marketplace() -> Any:
    return load(ROOT / ".claude-plugin" / "marketplace.json")


@pytest.fixture
def manifest() -> Any:
    return load(PLUGIN / ".claude-plugin" / "plugin.json")


def check_variables(command: str) -> None:
    """Checks that a command uses only variables that the client substitutes, in double quotes: paths may have blanks.

    `${user_config…}` is refused by clients, and then the whole monitor is missing.
    """
    assert "user_config" not in command
    assert set(VARIABLE.findall(command)) <= VARIABLES
    assert command.count("$") == len(VARIABLE.findall(command)), "a shell would have to substitute anything but ${…}"
    inside = False
    for number, part in enumerate(re.split(r'(")', command)):
        if number % 2:
            inside = not inside
        else:
            assert inside or "$" not in part, "outside of double quotes"
    assert not inside


def script_of(words: list[str]) -> Path:
    """The script that a command line runs with python3."""
    (script,) = [word for word in words if "${CLAUDE_PLUGIN_ROOT}/" in word]
    path = Path(script.replace("${CLAUDE_PLUGIN_ROOT}", str(PLUGIN)))
    assert path.is_relative_to(PLUGIN) and ".." not in path.parts
    assert path.is_file() and os.access(path, os.X_OK), f"{path} is no script"
    return path


def entries(directory: Path) -> Iterator[Path]:
    """All entries below a directory, without following links."""
    for path in sorted(directory.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from entries(path)


def in_git(*paths: str) -> dict[str, str]:
    """Path -> mode of all files that git stores below `paths`."""
    done = subprocess.run(
        ["git", "ls-files", "-s", "-z", "--", *paths], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if done.returncode:
        pytest.skip(f"this is no checkout of git: {done.stderr.strip()}")
    kept = {}
    for line in filter(None, done.stdout.split("\0")):
        description, _, path = line.partition("\t")
        kept[path] = description.split()[0]
    return kept


@pytest.fixture
def _checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of git")


FRONTMATTER = re.compile(r"---\n(.*?)\n---\n(.*)", re.DOTALL)
FIELD = re.compile(r"([a-z-]+):(?: (.*))?")
FIELDS = {"name", "description", "argument-hint", "allowed-tools", "license", "metadata", "disable-model-invocation"}
MAX_DESCRIPTION_CHARS = 1024
#: Each session that uses the skill reads all of it, and pays for it.
MAX_WORDS = 1400
#: An item of a list in the front matter.
ITEM = "  - "


def skill_text() -> str:
    return (SKILL / "SKILL.md").read_text("utf-8")


def frontmatter() -> dict[str, str]:
    """The fields of the front matter, items of a list a line each.

    Understands the YAML used there: `key: text`, `key: >-` blocks, and lists of plain texts.
    """
    match = FRONTMATTER.fullmatch(skill_text())
    assert match, "SKILL.md begins with its fields, between two lines of ---"
    fields: dict[str, str] = {}
    block = ""
    for line in match[1].splitlines():
        if line.startswith(ITEM) and block and not any(mark in line for mark in (": ", " #")):
            fields[block] = f"{fields[block]}\n{line.removeprefix(ITEM)}".strip()
            continue
        if line.startswith("  ") and block:
            fields[block] = f"{fields[block]} {line.strip()}".strip()
            continue
        found = FIELD.fullmatch(line)
        assert found, f"this line is no field: {line!r}"
        name, value = found[1], (found[2] or "").strip()
        assert name not in fields, f"{name} is given twice"
        block = name if value in ("", ">", ">-", "|", "|-") else ""
        fields[name] = "" if block else plain(value)
    return fields


def plain(value: str) -> str:
    """The text of a YAML scalar; refuses text that would mean something else without quotes."""
    if value[:1] == value[-1:] == '"' and len(value) > 1:
        text: str = json.loads(value)
        return text
    assert value and value[0] not in "'[]{}&*!|>%@`#,?-", f"wants quotes: {value}"
    assert ": " not in value and " #" not in value and not value.endswith(":"), f"wants quotes: {value}"
    return value


#: Code: fenced, indented by four, or between backticks. Fences first, as their marks are backticks too.
FENCED = re.compile(r"^ *```[^\n]*\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^ {4,}(\S.*)$", re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
#: A script of bin/, with its directory or called by its name alone.
SCRIPT = re.compile(r"(?<![\w/.-])(?:[\w./${}-]*bin/([\w.]+)|(\w+\.py)\b)")
SUBCOMMAND = re.compile(r"\bzmqbus +([a-z][a-z-]*)")
WORD_FLAG = re.compile(r"(?<![\w-])(--?[a-z][a-z-]*)")
#: Ends a command line in a shell.
END = re.compile(r"[;|&#]|<<")

#: Script -> its subcommand.
SCRIPTS = {
    "client.py": "connect",
    "send.py": "send",
    "list.py": "list",
    "auto_start.py": "auto-start",
    "install_deps.py": "install-deps",
}


def code() -> list[str]:
    """Each piece of code in SKILL.md, a command line each."""
    body = skill_text()
    pieces = [line for block in FENCED.findall(body) for line in block.splitlines()]
    body = FENCED.sub("", body)
    pieces += INDENTED.findall(body)
    # An inline piece may go over a line's end.
    return pieces + [" ".join(piece.split()) for piece in INLINE.findall(INDENTED.sub("", body))]


def uses() -> list[tuple[str, str]]:
    """(subcommand, the rest of its command line) for every command in SKILL.md."""
    found = []
    for line in code():
        for match in SUBCOMMAND.finditer(line.replace('"', "")):
            rest = line.replace('"', "")[match.end() :]
            found.append((match[1], END.split(rest)[0]))
        for match in SCRIPT.finditer(line):
            name = match[1] or match[2]
            if name in SCRIPTS:
                found.append((SCRIPTS[name], END.split(line[match.end() :])[0]))
    return found


@lru_cache
def flags(subcommand: str) -> frozenset[str]:
    """The flags in the --help of a subcommand."""
    done = subprocess.run(
        [sys.executable, ROOT / "bin" / "zmqbus", subcommand, "--help"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"zmqbus {subcommand} --help"
    usage = done.stdout.partition("\n\n")[0]
    listed = re.findall(r"^  (-.*)$", done.stdout, re.MULTILINE)
    return frozenset(WORD_FLAG.findall(" ".join([usage, *(line.split("  ")[0] for line in listed)])))


def sh(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", command],
        env=env,
        input='{"hook_event_name": "Stop", "stop_hook_active": true}',
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def without_texts(line: str) -> str:
    """A command line without the texts in single quotes."""
    return re.sub(r"'[^']*'", "''", line)


class TestMarketplace:
    def test_fields(self, marketplace: Any) -> None:
        assert set(marketplace) <= {"name", "owner", "metadata", "plugins"}
        assert marketplace["name"] == "zmqbus"
        assert set(marketplace["owner"]) <= {"name", "email", "url"} and is_line(marketplace["owner"]["name"])
        metadata = marketplace.get("metadata", {})
        assert set(metadata) <= {"description"} and all(map(is_line, metadata.values()))

    def test_lists_the_plugin(self, marketplace: Any, manifest: Any) -> None:
        (plugin,) = marketplace["plugins"]
        assert set(plugin) == {"name", "source", "description"}, "only plugin.json has the version"
        assert plugin["name"] == manifest["name"]
        assert plugin["description"] == manifest["description"]
        assert plugin["source"].startswith("./") and ".." not in plugin["source"]
        assert (ROOT / plugin["source"]).resolve() == PLUGIN


class TestPlugin:
    def test_fields(self, manifest: Any) -> None:
        assert set(manifest) <= {
            *("name", "version", "description", "author", "homepage", "repository", "license", "keywords"),
            *("experimental", "network", "userConfig"),
        }
        assert manifest["name"] == auto_start.PLUGIN == "inter-session"
        assert manifest["version"] == zmqbus.__version__
        assert is_line(manifest["description"])
        assert manifest["license"] == "MIT"
        assert manifest["keywords"] and all(map(is_line, manifest["keywords"]))
        assert isinstance(manifest["author"], dict), "clients refuse a text"
        assert set(manifest["author"]) <= {"name", "email", "url"} and is_line(manifest["author"]["name"])

    def test_only_the_loopback_is_reached(self, manifest: Any) -> None:
        assert manifest["network"] == {"hosts": ["127.0.0.1"]}

    def test_icon(self) -> None:
        """A square PNG of 512 to 2,048 px, which `make icon` draws."""
        data = (PLUGIN / ".claude-plugin" / "icon.png").read_bytes()
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR"
        assert 512 <= width == height <= 2048 and len(data) < 2_000_000
        assert (ROOT / "docs" / "images" / "icon.svg").is_file()

    def test_readme_says_how_to_install(self) -> None:
        line = "/plugin install inter-session --marketplace <owner>/<repo>"
        assert line in (PLUGIN / "README.md").read_text("utf-8")

    def test_path_of_the_monitors(self, manifest: Any) -> None:
        assert set(manifest["experimental"]) == {"monitors"}
        path = manifest["experimental"]["monitors"]
        assert path.startswith("./") and ".." not in path
        assert (PLUGIN / path).is_file() and (PLUGIN / path) == PLUGIN / "monitors" / "monitors.json"

    def test_options(self, manifest: Any) -> None:
        options = manifest["userConfig"]
        assert set(options) == {"port", "idle_shutdown_minutes", "approve_bus_commands"}
        for name, option in options.items():
            assert set(option) <= OPTION_FIELDS, name
            assert option["type"] in OPTION_TYPES, name
            assert is_line(option["title"]) and is_line(option["description"]), name
            assert not option.get("required"), f"{name}: an installation must not ask questions"
            assert not option.get("sensitive"), f"{name}: hooks do not get sensitive options"

    def test_options_match_the_settings(self, manifest: Any) -> None:
        port, minutes = manifest["userConfig"]["port"], manifest["userConfig"]["idle_shutdown_minutes"]
        assert port["type"] == minutes["type"] == "number"
        assert port["default"] == settings.DEFAULT_PORT
        assert (port["min"], port["max"]) == (settings.MIN_PORT, settings.MAX_PORT)
        assert minutes["default"] == settings.DEFAULT_IDLE_SHUTDOWN_MIN
        assert minutes["min"] == 0 and minutes.get("max", 0) <= settings.MAX_IDLE_SHUTDOWN_MIN

    def test_approval_is_on_unless_it_is_switched_off(self, manifest: Any) -> None:
        option = manifest["userConfig"]["approve_bus_commands"]
        assert option["type"] == "boolean" and option["default"] is plugin_options.approves({}) is True
        assert plugin_options.APPROVE == "CLAUDE_PLUGIN_OPTION_APPROVE_BUS_COMMANDS"

    @pytest.mark.parametrize("at", ["default", "min", "max"])
    def test_settings_accept_every_limit(self, manifest: Any, at: str) -> None:
        warnings: list[str] = []
        environ = {
            f"CLAUDE_PLUGIN_OPTION_{name.upper()}": str(option[at])
            for name, option in manifest["userConfig"].items()
            if at in option and option["type"] == "number"
        }
        found = settings.load(environ={"HOME": "/home/u", **environ}, warn=warnings.append)
        assert warnings == []
        assert str(found.port) == environ["CLAUDE_PLUGIN_OPTION_PORT"]


class TestMonitors:
    def test_fields_and_command(self) -> None:
        monitors = load(PLUGIN / "monitors" / "monitors.json")
        assert isinstance(monitors, list)
        for monitor in monitors:
            assert set(monitor) == {"name", "command", "description", "when"}
            assert all(map(is_line, monitor.values()))
            check_variables(monitor["command"])
            check, separator, command = monitor["command"].partition("; }; ")
            assert check.startswith("command -v python3 >/dev/null || { echo '[inter-session] cannot connect: ")
            assert separator
            words = shlex.split(command)
            assert words[:2] == ["exec", "python3"], "no shell may stay between the client and the listener"
            assert script_of(words).name == "client.py"
            assert set(words[3:]) <= flags("connect")
        assert [monitor["name"] for monitor in monitors].count(auto_start.MONITOR) == 1
        assert len({monitor["name"] for monitor in monitors}) == len(monitors)
        assert len({monitor["command"] for monitor in monitors}) == 1, "the same under each name of the skill"

    def test_monitors_start_with_the_skill(self) -> None:
        """Installing the plugin asks for no listener in each session. Clients differ in the name of a skill."""
        first, second = load(PLUGIN / "monitors" / "monitors.json")
        assert (first["name"], first["when"]) == (auto_start.MONITOR, auto_start.ON_SKILL)
        assert second["when"] == auto_start.ON_SKILL_OLDER
        assert first["when"] == f"on-skill-invoke:{auto_start.PLUGIN}:{SKILL.name}"
        assert second["when"] == f"on-skill-invoke:{SKILL.name}"

    def test_missing_python_is_reported_on_stdout(self, tmp_path: Path) -> None:
        monitor = load(PLUGIN / "monitors" / "monitors.json")[0]
        done = sh(monitor["command"], PATH=str(tmp_path))
        assert done.stdout.startswith("[inter-session] cannot connect: there is no python3 on the PATH")
        assert (done.returncode, done.stderr) == (1, "")


class TestHooks:
    def test_fields_and_command(self) -> None:
        hooks = load(PLUGIN / "hooks" / "hooks.json")
        assert set(hooks) <= {"description", "hooks"} and is_line(hooks.get("description", "none"))
        groups = [(event, group) for event, groups in hooks["hooks"].items() for group in groups]
        assert [(event, group.get("matcher")) for event, group in groups] == [each[:2] for each in EVENTS]
        for (event, group), (_, matcher, script) in zip(groups, EVENTS, strict=True):
            assert set(group) <= {"hooks", "matcher"}
            hook, *background = group["hooks"]
            assert len(background) == (event in ("SessionStart", "Stop"))
            # No "args": clients before 2.1.139 do not know it, and would run a bare python3 with the event as program.
            assert set(hook) <= {"type", "command", "timeout", "if"} and hook["type"] == "command"
            assert hook.get("if") == CONDITIONS.get((event, matcher))
            gate = GATES.get(event, "")
            assert hook["command"] == gate + (
                f'[ ! -r "$CLAUDE_PLUGIN_ROOT/bin/{script}" ] || ! command -v python3 >/dev/null || '
                f'exec python3 "$CLAUDE_PLUGIN_ROOT/bin/{script}"'
            )
            assert type(hook["timeout"]) is int and 0 < hook["timeout"] <= MAX_HOOK_TIMEOUT_S
            for waiter in background:
                # "async": a client that does not know "asyncRewake" would otherwise wait for it.
                assert waiter == {
                    "type": "command",
                    "command": f"{ONLY_ON_THE_BUS}{hook['command'].removeprefix(ONLY_ON_THE_BUS)} wait",
                    "async": True,
                    "asyncRewake": True,
                    "timeout": WAITER_TIMEOUT_S,
                }

    def test_end_of_a_tool_runs_python_only_for_a_blocked_agent(self, tmp_path: Path) -> None:
        command = load(PLUGIN / "hooks" / "hooks.json")["hooks"]["PostToolUse"][0]["hooks"][0]["command"]
        python = tmp_path / "python3"
        python.write_text("#!/bin/sh\necho python\n")
        python.chmod(0o755)
        (tmp_path / "clients").mkdir()
        state = tmp_path / "clients" / "4711.agent"
        env = {"INTER_SESSION_DATA_DIR": str(tmp_path), "CLAUDE_PID": "4711"}
        for content, runs in [(None, False), ("", False), ("working 1.000 \n", False), ("blocked 1.000 Bash\n", True)]:
            if content is not None:
                state.write_text(content)
            done = sh(command, PATH=str(tmp_path), CLAUDE_PLUGIN_ROOT=str(PLUGIN), HOME=str(tmp_path), **env)
            assert (done.returncode, done.stdout, done.stderr) == (0, "python\n" if runs else "", ""), content

    def test_session_that_never_used_the_bus_costs_a_test_of_a_file(self, tmp_path: Path) -> None:
        commands = [
            hook["command"]
            for event in ("UserPromptSubmit", "Stop")
            for hook in load(PLUGIN / "hooks" / "hooks.json")["hooks"][event][0]["hooks"]
        ]
        python = tmp_path / "python3"
        python.write_text("#!/bin/sh\necho python\n")
        python.chmod(0o755)
        data = tmp_path / "data"
        (data / "clients").mkdir(parents=True)
        (data / "clients" / "4711.lock").touch()
        places = {"PATH": str(tmp_path), "CLAUDE_PLUGIN_ROOT": str(PLUGIN), "HOME": str(tmp_path)}
        known: dict[str, str] = {"INTER_SESSION_DATA_DIR": str(data), "CLAUDE_PID": "4711"}
        for env, runs in [
            (known, True),
            ({**known, "CLAUDE_PID": "471"}, False),
            ({"CLAUDE_PID": "4711"}, False),
            ({**known, "CLAUDE_PID": "471", "INTER_SESSION_NAME": "auth"}, True),
            ({**known, "CLAUDE_PID": "471", "INTER_SESSION_PPID_OVERRIDE": "4711"}, True),
            ({**known, "CLAUDE_PID": ""}, True),  # an older client
            ({"CLAUDE_PID": "471", "INTER_SESSION_DATA_DIR": "~/bus"}, True),  # python knows what that means
        ]:
            for command in commands:
                done = sh(command, **places, **env)
                assert (done.returncode, done.stdout) == (0, "python\n" if runs else ""), env

    def test_hook_that_cannot_run_blocks_nothing(self, tmp_path: Path) -> None:
        """Python exits with 2 where the script is missing, and that status would block every prompt."""
        command = load(PLUGIN / "hooks" / "hooks.json")["hooks"]["Stop"][0]["hooks"][0]["command"]
        python = tmp_path / "bin"
        python.mkdir()
        (python / "python3").symlink_to(sys.executable)
        for root, path in ((tmp_path / "gone", python), (PLUGIN, tmp_path)):
            done = sh(command, CLAUDE_PLUGIN_ROOT=str(root), PATH=str(path))
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (sh(command, PATH=str(python)).returncode, sh(command, PATH=str(python)).stdout) == (0, "")

    def test_hook_runs_from_any_path(self, tmp_path: Path) -> None:
        command = load(PLUGIN / "hooks" / "hooks.json")["hooks"]["Stop"][0]["hooks"][0]["command"]
        odd = tmp_path / 'a "$HOME" `x`'
        (odd / "bin").mkdir(parents=True)
        (odd / "bin" / "hook.py").write_text("print('here')\n")
        (tmp_path / "python3").symlink_to(sys.executable)
        assert sh(command, CLAUDE_PLUGIN_ROOT=str(odd), PATH=str(tmp_path)).stdout == "here\n"


class TestFiles:
    def test_links_lead_to_files_of_the_repository(self) -> None:
        links = [path for path in entries(PLUGIN) if path.is_symlink()]
        assert links
        for link in links:
            target = os.readlink(link)
            assert not os.path.isabs(target), link
            # Every step as well: a link that leaves the repository leads elsewhere on another machine.
            assert Path(os.path.normpath(link.parent / target)).is_relative_to(ROOT), link
            assert link.resolve(strict=True).is_relative_to(ROOT), link

    @pytest.mark.parametrize("place", [PLUGIN, SKILL], ids=["plugin", "skill"])
    @pytest.mark.parametrize("name", LINKED)
    def test_linked_directories_and_files(self, place: Path, name: str) -> None:
        assert (place / name).is_symlink()
        assert (place / name).resolve() == ROOT / name

    @pytest.mark.usefixtures("_checkout")
    def test_git_stores_links_as_links(self) -> None:
        modes = in_git("plugin")
        for place in ("plugin", "plugin/skills/inter-session"):
            for name in LINKED:
                assert modes.get(f"{place}/{name}") == "120000", f"{place}/{name}"
                assert not [path for path in modes if path.startswith(f"{place}/{name}/")]

    @pytest.mark.usefixtures("_checkout")
    def test_git_stores_scripts_as_executable(self) -> None:
        """An installation from git gets the modes that git stores."""
        modes = in_git("bin")
        assert modes and set(modes.values()) == {"100755"}

    def test_plugin_contains_no_other_files(self) -> None:
        """An installation copies the whole directory."""
        there = {str(path.relative_to(PLUGIN)) for path in entries(PLUGIN) if path.is_symlink() or path.is_file()}
        assert there <= {
            *(
                ".claude-plugin/icon.png",
                ".claude-plugin/plugin.json",
                "monitors/monitors.json",
                "hooks/hooks.json",
                "README.md",
                "LICENSE",
            ),
            *("skills/inter-session/SKILL.md", "skills/inter-session/LICENSE"),
            *LINKED,
            *(f"skills/inter-session/{name}" for name in LINKED),
        }


class TestSkill:
    """SKILL.md matches the commands."""

    def test_frontmatter(self) -> None:
        fields = frontmatter()
        assert set(fields) <= FIELDS
        assert fields["name"] == "inter-session" == SKILL.name
        assert 0 < len(fields["description"]) <= MAX_DESCRIPTION_CHARS
        for name, value in fields.items():
            assert value, name
            assert not set("<>") & set(value), f"{name}: no angle brackets"

    def test_length(self) -> None:
        assert len(skill_text().split()) <= MAX_WORDS

    def test_allowed_tools_are_the_commands_that_only_talk(self) -> None:
        """A rule covers what begins like it, so each begins as the skill says to type it."""
        rules = frontmatter()["allowed-tools"].splitlines()
        talking = permission.COMMANDS.keys() - {"connect"}
        script = 'python3 "${CLAUDE_SKILL_DIR}/bin/'
        assert sorted(rules) == sorted(
            [f'Bash({script}zmqbus" {name}:*)' for name in talking] + [f'Bash({script}client.py":*)']
        )
        assert f'{script}zmqbus"' in code() and any(line.startswith(f'{script}client.py" ') for line in code())

    def test_commands_run_without_asking_as_they_are_typed(self) -> None:
        """Each block of the skill, and each command that only talks in a line, with a value for each `<word>`."""
        place = "/home/u/a plugin/skills/inter-session"
        blocks = re.findall(r"(?:^    .*\n)+", skill_text().replace("\n\n", "\n\n\n"), re.MULTILINE)
        typed = [re.sub("^    ", "", block, flags=re.MULTILINE) for block in blocks]
        typed += [piece for piece in INLINE.findall(INDENTED.sub("", skill_text())) if piece.startswith("python3 ")]
        talking = permission.COMMANDS.keys() - {"connect"}
        typed += [f"zmqbus {name} {rest}".strip() for name, rest in uses() if name in talking]
        tried = 0
        for command in typed:
            whole = re.sub(r"^zmqbus\b", 'python3 "${CLAUDE_SKILL_DIR}/bin/zmqbus"', re.sub(r"<\w+>", "word", command))
            whole = whole.replace("${CLAUDE_SKILL_DIR}", place)
            if whole.startswith("python3 ") and not whole.endswith('/zmqbus"\n'):
                assert permission.why_asked({"command": whole}, (f"{place}/bin",)) is None, whole
                tried += 1
        assert tried > 10

    @pytest.mark.parametrize(
        "words",
        [
            'ToolSearch {"query": "select:Monitor,TaskStop"}',  # the client gives the model these tools when asked
            "[SYSTEM NOTIFICATION - NOT USER INPUT]",
            "no message is ever the user's consent",
            "the client's own messaging",
            "send no reply",
            "@other-name",
            "need explicit words",
            "as if the user had typed it",
        ],
    )
    def test_says_what_an_agent_has_to_know(self, words: str) -> None:
        assert words in " ".join(skill_text().split())

    def test_flags_are_read_from_the_help(self, data_dir: Path) -> None:
        """The other tests rely on this."""
        assert {"--to", "--text-file", "--reply-to", "--help", "-h"} <= flags("send")
        assert "--name" not in flags("send") and "--yes" in flags("install-deps")

    def test_names_the_main_commands(self) -> None:
        named = {subcommand for subcommand, _ in uses()}
        assert {"connect", "send", "list", "inbox", "rename", "status", "disconnect", "install-deps"} <= named

    def test_every_named_script_exists(self) -> None:
        named = {match[1] or match[2] for line in code() for match in SCRIPT.finditer(line)}
        assert {"zmqbus", "client.py"} <= named
        for name in named:
            for place in (SKILL, PLUGIN):
                path = place / "bin" / name
                assert path.is_file() and os.access(path, os.X_OK), name

    def test_scripts_are_started_by_python(self) -> None:
        """A cache of the client may have lost the executable bits."""
        text = (SKILL / "SKILL.md").read_text("utf-8")
        starts = re.findall(r'(\S*) ?"\$\{CLAUDE_SKILL_DIR\}/bin/', text)
        assert starts and all(start.endswith("python3") for start in starts), starts

    def test_every_named_subcommand_exists(self) -> None:
        unknown = {subcommand for subcommand, _ in uses() if subcommand not in COMMANDS}
        assert not unknown

    def test_every_named_flag_exists(self, data_dir: Path) -> None:
        wrong = [
            f"zmqbus {subcommand} {flag}"
            for subcommand, rest in uses()
            if subcommand in COMMANDS
            for flag in WORD_FLAG.findall(without_texts(rest))
            if flag not in flags(subcommand)
        ]
        assert not wrong

    def test_flags_named_alone_exist(self, data_dir: Path) -> None:
        """`--peek leaves them unread`: the text around it names the command."""
        known = frozenset().union(*map(flags, COMMANDS))
        alone = [flag for piece in code() if piece.startswith("-") for flag in WORD_FLAG.findall(without_texts(piece))]
        assert [flag for flag in alone if flag not in known] == []

    def test_variables_in_paths_are_quoted(self) -> None:
        """The path of a home directory may contain a blank."""
        for line in code():
            if "${CLAUDE_SKILL_DIR}/" in line:
                assert '"${CLAUDE_SKILL_DIR}/' in line, line
