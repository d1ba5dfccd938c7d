"""The real client: installed once into a cache, with an empty home, no account, and a scripted model on the loopback.

Where npm or the package is not to be had, the tests with the mark `realclient` are skipped and say why.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.realclient.install import Unavailable, installed
from tests.realclient.session import KEY, Session, trust

ROOT = Path(__file__).resolve().parents[2]
PLUGIN_ID = "inter-session@zmqbus"
#: The client refuses file:// URLs; git turns this one into a path, and nothing leaves the machine.
URL = "https://zmqbus.invalid/zmqbus.git"

#: The parts of the repository that an installation needs, with the targets of links.
NEEDED = (".claude-plugin", "LICENSE", "README.md", "bin", "plugin", "requirements.txt", "zmqbus")

CLIENT_TIMEOUT_S = 90.0

Environment = Callable[["dict[str, str] | None"], "dict[str, str]"]


def clean_env(home: Path) -> dict[str, str]:
    """The environment of the client."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        # Marks processes that still run when the tests end.
        "ZMQBUS_TEST_RUN": os.environ.get("ZMQBUS_TEST_RUN", ""),
    }


@pytest.fixture(scope="session")
def program() -> Path:
    """The client's program. Skips where it is not to be had, or fails if ZMQBUS_CLIENT_REQUIRED is set."""
    try:
        return installed()
    except Unavailable as error:
        if os.environ.get("ZMQBUS_CLIENT_REQUIRED"):
            pytest.fail(str(error))
        pytest.skip(str(error))


class Client:
    """The client with a home of its own."""

    def __init__(self, program: Path, home: Path) -> None:
        self.program = program
        self.home = home

    def run(self, *args: str | Path, cwd: Path, env: dict[str, str]) -> None:
        """Runs the client itself, with a model that `env` leads to."""
        key = {"ANTHROPIC_API_KEY": KEY}
        done = subprocess.run(
            [self.program, *args],
            env={**clean_env(self.home), **key, **env},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=CLIENT_TIMEOUT_S,
        )
        assert done.returncode == 0, f"claude {args}: {done.stdout}{done.stderr}"

    def background(self, *args: str, cwd: Path, env: dict[str, str]) -> str:
        """Starts a background session; returns what the client says."""
        done = subprocess.run(
            [self.program, "--bg", *args],
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=CLIENT_TIMEOUT_S,
        )
        assert done.returncode == 0, f"claude --bg {args}: {done.stdout}{done.stderr}"
        return done.stdout

    def call(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs `claude plugin …`."""
        return subprocess.run(
            [self.program, "plugin", *args],
            env=clean_env(self.home),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=CLIENT_TIMEOUT_S,
        )

    def plugin(self, *args: str | Path) -> str:
        """Runs `claude plugin …`, which must succeed; returns its output."""
        done = self.call(*args)
        assert done.returncode == 0, f"claude plugin {args}: {done.stdout}{done.stderr}"
        return done.stdout

    def installed(self) -> dict[str, Any] | None:
        """The entry of this plugin in `plugin list`."""
        rows = json.loads(self.plugin("list", "--json"))
        return next((row for row in rows if row["id"] == PLUGIN_ID), None)

    def options(self) -> Any:
        """The options of the plugin that the user has set."""
        kept = json.loads((self.home / ".claude" / "settings.json").read_bytes())
        return kept.get("pluginConfigs", {}).get(PLUGIN_ID, {}).get("options", {})


@pytest.fixture
def client(program: Path, tmp_path: Path) -> Client:
    home = tmp_path / "home of the client"
    home.mkdir()
    return Client(program, home)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the parts of the working tree that an installation needs."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *NEEDED],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    if listed.returncode or not listed.stdout:
        pytest.skip(f"this is no checkout of git: {listed.stderr.strip()}")
    place = tmp_path_factory.mktemp("checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if not os.path.lexists(ROOT / name):
            continue  # removed, and not yet committed as such
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name, follow_symlinks=False)
    return place


class Repository:
    """A bare repository to clone, and the work tree from which it is pushed."""

    def __init__(self, checkout: Path, place: Path) -> None:
        self.work = place / "work"
        self.bare = place / "zmqbus.git"
        self._env = {**clean_env(place), "GIT_CONFIG_NOSYSTEM": "1"}
        shutil.copytree(checkout, self.work, symlinks=True)
        self._git("init", "--quiet", "--initial-branch=main")
        self._git("init", "--quiet", "--initial-branch=main", "--bare", self.bare)
        self.push()

    def push(self) -> None:
        """Commits the whole work tree and pushes it."""
        identity = ("-c", "user.name=zmqbus", "-c", "user.email=zmqbus@zmqbus.invalid", "-c", "commit.gpgsign=false")
        self._git("add", "--all", "--force")
        self._git(*identity, "commit", "--quiet", "--message=all of it")
        self._git("push", "--quiet", self.bare, "main")

    def _git(self, *words: str | Path) -> None:
        subprocess.run(["git", *words], cwd=self.work, env=self._env, check=True, capture_output=True)


@pytest.fixture
def repository(checkout: Path, tmp_path: Path) -> Repository:
    place = tmp_path / "git"
    place.mkdir()
    return Repository(checkout, place)


@pytest.fixture
def from_git(client: Client, repository: Repository) -> Client:
    """A client for which `URL` leads to the repository."""
    config = client.home / ".gitconfig"
    config.write_text(f'[url "{repository.bare.as_uri()}"]\n\tinsteadOf = {URL}\n[safe]\n\tdirectory = *\n')
    return client


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The plugin with files in place of links, as an installation has it."""
    place = tmp_path / "plugin"
    shutil.copytree(ROOT / "plugin", place, ignore=shutil.ignore_patterns("__pycache__"))
    return place


class Users:
    """Sessions of one user: one home, one data directory, one port; each in a directory of its own or of another."""

    def __init__(self, client: Client, env: dict[str, str], place: Path) -> None:
        self._client = client
        self.env = {**clean_env(client.home), "ANTHROPIC_API_KEY": KEY, **env}
        self._place = place
        self.sessions: list[Session] = []
        #: The words that each session starts with, for a plugin that is not installed.
        self.words: tuple[str, ...] = ()

    def directory(self, name: str) -> Path:
        """A directory below the test's own that the user trusts."""
        path = self._place / name
        path.mkdir(exist_ok=True)
        trust(self._client.home, path)
        return path

    def start(
        self, directory: str, *words: str, mode: str = "manual", env: dict[str, str] | None = None, ready: bool = True
    ) -> Session:
        """Starts a session in a directory of that name, and, with `ready`, waits for its prompt."""
        cwd = self.directory(directory)
        command = (*self.words, "--permission-mode", mode, *words)
        session = Session(self._client.program, command, {**self.env, **(env or {})}, cwd)
        self.sessions.append(session)
        if ready:
            session.until_ready()
        return session

    def connect(self, name: str, *words: str, directory: str = "", mode: str = "manual") -> Session:
        """Starts a session that connects as `name` by the plugin's skill, with its monitor."""
        session = self.start(directory or name, *words, mode=mode)
        session.type(f"/inter-session:inter-session connect {name}")
        session.shown(r"auto-named|taken; using")
        session.run(f"{session.zmqbus} rename {name}", "named")
        return session

    def run(self, *words: str, input: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a bus command of the user's in a shell outside of any session."""
        return subprocess.run(
            [sys.executable, ROOT / "bin" / "zmqbus", *words],
            env={**self.env, "INTER_SESSION_PPID_OVERRIDE": str(os.getpid())},
            input=input,
            capture_output=True,
            encoding="utf-8",
            timeout=CLIENT_TIMEOUT_S,
        )

    def python(self, code: str) -> str:
        """Runs a program that uses the bus; returns its output."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**self.env, "PYTHONPATH": str(ROOT), "INTER_SESSION_PPID_OVERRIDE": str(os.getpid())},
            capture_output=True,
            encoding="utf-8",
            timeout=CLIENT_TIMEOUT_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        for session in self.sessions:
            session.close()
        # Background sessions and their helpers are no children of a terminal.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == str(self._client.home):
                    process.kill()


@pytest.fixture
def users(
    client: Client, bin_env: Environment, free_port: int, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Users]:
    """Sessions with neither plugin nor skill yet. When the test fails, the report holds their screens."""
    python = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    wanted = ("INTER_SESSION_DATA_DIR", "INTER_SESSION_NO_REEXEC")
    env = {name: value for name, value in bin_env(None).items() if name in wanted}
    users = Users(client, {**env, **python, "INTER_SESSION_PORT": str(free_port)}, tmp_path)
    try:
        yield users
    finally:
        for number, session in enumerate(users.sessions):
            request.node.add_report_section("teardown", f"session {number}", session.report)
        users.close()


@pytest.fixture
def plugin_users(users: Users, copy: Path) -> Users:
    """As `users`, with the plugin of this tree."""
    users.words = ("--plugin-dir", str(copy))
    return users
