"""A lack of file descriptors: explained by the API, the commands and the broker, at any number of free ones."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from zmqbus.errors import BrokerUnavailable
from zmqbus.system import descriptors

ROOT = Path(__file__).resolve().parents[2]
#: Below this python itself does not get as far as a message.
LEAST = 8
#: And with so many everything works.
ENOUGH = 64

API = """
import sys, zmqbus
try:
    with zmqbus.connect(*sys.argv[1:]) as bus:
        print(len(bus.sessions()))
except zmqbus.BrokerUnavailable as error:
    print(error)
"""


def test_reserve_succeeds_with_free_descriptors() -> None:
    before = set(os.listdir("/dev/fd"))
    descriptors.reserve(10, "a test")
    assert set(os.listdir("/dev/fd")) == before


def test_reserve_reports_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = set(os.listdir("/dev/fd"))
    with pytest.raises(BrokerUnavailable) as caught:
        descriptors.reserve(soft + 1, "a test") if soft < 5_000 else _reserve_of_few()
    assert "too few file descriptors" in str(caught.value) and "ulimit -n" in str(caught.value)
    assert set(os.listdir("/dev/fd")) == before


def _reserve_of_few() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 5, hard))
    try:
        descriptors.reserve(500, "a test")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("number", "says"), [(errno.EMFILE, "too few file descriptors"), (errno.ENFILE, "on this machine")]
)
def test_shortage_is_explained(number: int, says: str) -> None:
    with pytest.raises(BrokerUnavailable, match=says), descriptors.explained("a test"):
        raise OSError(number, "too many")


def test_other_errors_pass_through() -> None:
    for error in (OSError(errno.ENOENT, "no file"), ValueError("other")):
        with pytest.raises(type(error)), descriptors.explained("a test"):
            raise error


def limited(count: int, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=90,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("running", [True, False], ids=["broker", "no broker"])
@pytest.mark.parametrize("arguments", [(), ("auth",)], ids=["guest", "session"])
def test_api_explains_any_shortage(
    data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, running: bool, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("INTER_SESSION_PORT", str(free_port))
    worked = 0
    for count in [*range(LEAST, 48, 3 if running else 8), ENOUGH]:
        if running and not worked:
            worked = 1
            assert limited(1024, sys.executable, "-c", API).returncode == 0
        done = limited(count, sys.executable, "-c", API, *arguments)
        assert done.returncode == 0, (count, done)
        assert done.stdout.strip().isdecimal() or "too few file descriptors" in done.stdout, (count, done)
        last = done
    assert last.stdout.strip().isdecimal() or not running


@pytest.mark.slow
def test_commands_and_broker_explain_a_shortage(
    data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTER_SESSION_PORT", str(free_port))
    for count in range(12, 48, 6):
        done = limited(count, sys.executable, "bin/send.py", "--to", "auth", "--text", "x", "--as", "cron")
        assert done.returncode == 1 and done.stdout == "", (count, done.stderr)
        assert done.stderr.startswith("error: broker_unavailable: too few file descriptors"), done.stderr
    script = "import sys; from zmqbus.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = limited(24, sys.executable, "-c", script, "broker", "--foreground")
    assert done.returncode == 1 and "too few file descriptors" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_broker_reports_how_many_sessions_fit(data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTER_SESSION_PORT", str(free_port))
    done = limited(256, sys.executable, "-c", API)
    assert done.stdout == "0\n"
    assert "enough for about 104 sessions" in (data_dir / "broker.log").read_text()
