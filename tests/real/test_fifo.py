"""A FIFO in the place of a file of the data directory: no command waits for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.real.conftest import Bus

pytestmark = pytest.mark.slow

#: Far longer than a command takes, s; a reader of a FIFO would wait forever.
PATIENCE_S = 60.0
COMMANDS = (
    ("list.py",),
    ("zmqbus", "inbox"),
    ("zmqbus", "log"),
    ("zmqbus", "doctor"),
    ("zmqbus", "broker", "--status"),
)


@pytest.fixture
def left(bus: Bus) -> tuple[Bus, list[Path]]:
    """A used bus without running processes, and all of its files, relative to the data directory."""
    auth = bus.listener("auth", label="kept")
    bus.deliver("auth", "shown")
    auth.wait_message("shown")
    auth.stop()
    bus.deliver("auth", "waits")
    assert bus.zmqbus("broker", "--stop").returncode == 0
    files = [path for path in sorted(bus.data_dir.rglob("*")) if path.is_file() and not path.is_symlink()]
    (bus.data_dir / f"server.{bus.port}.pid").touch(0o600)
    return bus, [path.relative_to(bus.data_dir) for path in (*files, bus.data_dir / f"server.{bus.port}.pid")]


def test_no_command_waits_for_a_fifo(left: tuple[Bus, list[Path]], tmp_path: Path) -> None:
    bus, files = left
    assert {"messages.log", "mailboxes.sqlite3", f"server.{bus.port}.pid"} <= {path.name for path in files}
    kept = tmp_path / "kept"
    shutil.copytree(bus.data_dir, kept)
    owner = next(int(path.name.partition(".")[0]) for path in files if path.suffix == ".lock")
    files = [path for path in files if path.suffix != ".key"]  # read together with their secret halves
    env = {"INTER_SESSION_PPID_OVERRIDE": str(owner)}
    for file in files:
        place = bus.data_dir / file
        place.unlink()
        os.mkfifo(place, 0o600)
        for script, *args in COMMANDS:
            done = bus.run(script, *args, env=env, timeout=PATIENCE_S)
            assert "Traceback" not in done.stderr, (file, script, args, done.stderr)
        event = json.dumps({"hook_event_name": "UserPromptSubmit"})
        done = bus.run("hook.py", input=event, env=env, timeout=PATIENCE_S)
        assert done.returncode == 0 and "Traceback" not in done.stderr, (file, done)
        stopped = bus.zmqbus("broker", "--stop", timeout=PATIENCE_S)
        assert "Traceback" not in stopped.stderr, (file, stopped)
        place.unlink(missing_ok=True)
        for path in bus.data_dir.iterdir():  # restored: a broker may have set files aside
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(kept, bus.data_dir, dirs_exist_ok=True)
