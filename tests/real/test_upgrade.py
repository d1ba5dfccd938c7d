"""Another release beside this one: an update of the plugin while sessions and their broker run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgpack
import psutil
import pytest
import zmq

from tests.real.conftest import ROOT, Bus, ListenerProcess, wait_until
from zmqbus.wire import verbs

pytestmark = pytest.mark.slow


def release(tmp_path: Path, version: str, *, protocol: int | None = None) -> Path:
    """Copies bin/ and the package, with another version number, to a directory of its own as an update does."""
    root = tmp_path / version
    for part in ("bin", "zmqbus"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    change(root / "zmqbus" / "__init__.py", '__version__ = "0.1.0"', f'__version__ = "{version}"')
    if protocol is not None:
        change(root / "zmqbus" / "wire" / "verbs.py", f"\nVERSION = {verbs.VERSION}\n", f"\nVERSION = {protocol}\n")
    return root


def packages(tmp_path: Path) -> dict[str, str]:
    """An environment with the dependencies, without the installed zmqbus."""
    site = tmp_path / "site"
    if not site.exists():
        site.mkdir()
        for module in (zmq, msgpack, psutil):
            directory = Path(str(module.__file__)).parent
            (site / directory.name).symlink_to(directory)
            for libraries in directory.parent.glob(f"py{directory.name}.libs"):  # libraries of the pyzmq wheel
                (site / libraries.name).symlink_to(libraries)
    return {"PYTHONPATH": str(site)}


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path} has changed: adapt this test"
    path.write_text(text.replace(old, new))


#: The interpreter below the virtual environment that the tests run in.
PYTHON = os.path.realpath(sys.executable)


def listener(bus: Bus, root: Path, name: str) -> ListenerProcess:
    """Starts a listener of that release."""
    owner = bus.owner()
    process = subprocess.Popen(
        [PYTHON, str(root / "bin" / "client.py"), "--name", name],
        env=bus.env(owner, packages(root.parent)),
        cwd=bus.cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    found = ListenerProcess(bus, process, owner)
    bus._stack.callback(found.close)
    return found.wait_connected()


def run(bus: Bus, root: Path, script: str, *args: str, owner: ListenerProcess | None = None) -> tuple[int, str, str]:
    """Runs a command of that release; returns exit status, output and errors."""
    done = subprocess.run(
        [PYTHON, str(root / "bin" / script), *args],
        env=bus.env(owner or bus.stranger, packages(root.parent)),
        cwd=bus.cwd,
        input=b"",
        capture_output=True,
        timeout=90,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def broker_release(bus: Bus, root: Path) -> str:
    _, out, _ = run(bus, root, "zmqbus", "broker", "--status")
    return next((line for line in out.splitlines() if line.startswith("release=")), "")


def test_broker_of_a_removed_release_serves_the_next_one(bus, tmp_path):
    """It has all it needs in memory, since its files may be deleted with the old release."""
    old, new = release(tmp_path, "0.1.1"), release(tmp_path, "0.2.0")
    before = listener(bus, old, "before")
    shutil.rmtree(old)
    after = listener(bus, new, "after")
    assert broker_release(bus, new) == "release=0.1.1"
    for sender, to, receiver in ((after, "before", before), (before, "after", after)):
        status, out, err = run(bus, new, "send.py", "--to", to, "--text", f"to {to}", owner=sender)
        assert (status, err) == (0, "") and out.startswith("delivered msg="), out
        receiver.wait_message(f"to {to}")
    long = "z" * 200_000
    (tmp_path / "long").write_text(long)
    assert run(bus, new, "send.py", "--as", "script", "--to", "before", "--text-file", str(tmp_path / "long"))[0] == 0
    before.wait_message("zzz")
    assert run(bus, new, "send.py", "--all", "--text", "all of you", owner=after)[1].startswith("broadcast msg=")
    before.wait_message("all of you")
    assert run(bus, new, "zmqbus", "rename", "later", owner=after)[0] == 0
    wait_until(lambda: {row["name"] for row in bus.list()} == {"before", "later"}, "it is renamed")
    before.stop(signal.SIGKILL)
    wait_until(lambda: [row["name"] for row in bus.list()] == ["later"], "it is off the list")
    assert run(bus, new, "send.py", "--to", "before", "--text", "kept", owner=after)[1].startswith("queued msg=")
    assert "kept" in run(bus, new, "zmqbus", "inbox", owner=before)[1]
    after.stop()
    assert run(bus, new, "zmqbus", "broker", "--stop")[:2][0] == 0


def test_listener_of_a_removed_release_finds_the_next_broker(bus, tmp_path):
    """It can no longer start a broker, and waits for another process to do so."""
    old, new = release(tmp_path, "0.1.1"), release(tmp_path, "0.2.0")
    before = listener(bus, old, "before")
    shutil.rmtree(old)
    broker = int(next(bus.data_dir.glob("server.*.pid")).read_text())
    os.kill(broker, signal.SIGKILL)
    assert run(bus, new, "zmqbus", "broker")[0] == 0
    assert broker_release(bus, new) == "release=0.2.0"
    wait_until(lambda: [row["name"] for row in bus.list()] == ["before"], "it is back")
    assert run(bus, new, "send.py", "--as", "script", "--to", "before", "--text", "again")[0] == 0
    before.wait_message("again")


def test_other_protocol_is_refused_with_the_process_to_end(bus, tmp_path):
    new = release(tmp_path, "9.0.0", protocol=verbs.VERSION + 1)
    listening = bus.listener("auth")
    status, out, err = run(bus, new, "send.py", "--as", "script", "--to", "auth", "--text", "x")
    assert (status, out) == (1, "")
    assert "broker_unavailable" in err and "release 9.0.0" in err and "release 0.1.0" in err
    assert "zmqbus broker --stop" in err
    assert listening.status is None
