"""The examples run as they stand, and say what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.real.conftest import Bus

ROOT = Path(__file__).parents[2]
#: The demo promises to end within 30 s; a crowded machine may take longer.
PATIENCE_S = 90.0

pytestmark = pytest.mark.slow


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S
    )


def outsider_env(home: Path) -> dict[str, str]:
    """What a user has who has never heard of the bus."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("INTER_SESSION_", "CLAUDE"))}
    return {**kept, "HOME": str(home)}


def test_demo_shows_everything_and_leaves_nothing(tmp_path: Path) -> None:
    marker = f"demo-{tmp_path.name}-{os.getpid()}"
    done = run(sys.executable, "examples/demo.py", env={**outsider_env(tmp_path), "ZMQBUS_TEST_MARKER": marker})
    assert done.returncode == 0, done
    for shown in (
        "delivered msg=",
        "broadcast msg=",
        "answer: yes, CI is green   <- what `--wait` printed",
        "gives the whole text: yes",
        " to=#deploys] status: v2.3 is on staging",
        "queued msg=",
        "please update the changelog",
        "none of the 7 processes is left",
    ):
        assert shown in done.stdout, done.stdout
    assert list(tmp_path.iterdir()) == [], "it has written to the user's home"
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ZMQBUS_TEST_MARKER") == marker and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
        except psutil.Error:
            continue
    assert left == []


def test_two_sessions_talk(tmp_path: Path, free_port: int) -> None:
    env = {**outsider_env(tmp_path), "INTER_SESSION_PORT": str(free_port)}
    done = run("bash", "examples/two_sessions.sh", sys.executable, env=env)
    assert done.returncode == 0, done
    assert 'from="bob" "reviewer"] status: I start with the lexer now' in done.stdout
    assert "answer: yes, two remarks in review.md" in done.stdout


def test_announcement_reaches_everybody(bus: Bus) -> None:
    auth = bus.listener("auth")
    done = run(sys.executable, "examples/announce.py", "freeze at 17:00", env=bus.env())
    assert done.returncode == 0, done
    assert done.stdout.startswith("announced to 1 sessions; 0 will hear it later (msg=")
    assert auth.wait_message("freeze at 17:00")["to"] == "all"
    refused = run(sys.executable, "examples/announce.py", "x", "--as", "auth", env=bus.env())
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: invalid_name: 'auth' is the name of a connected session")
