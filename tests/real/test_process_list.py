"""The process list, which other users can read, shows no texts of messages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.real.conftest import Bus, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process hide its arguments"),
]

SECRET = "the door code is 4711 — é"


def words(pid: int) -> list[str]:
    """Returns the arguments in `/proc/<pid>/cmdline`, which every user may read."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")


@pytest.mark.parametrize("form", ["two words", "one word"])
def test_text_is_hidden_while_send_waits(bus: Bus, form: str) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    text = ["--text", SECRET] if form == "two words" else [f"--text={SECRET}"]
    asking = bus.popen("send.py", "--to", "auth", *text, "--wait", "60", owner=pay)
    question = auth.wait_message(SECRET)["id"]
    seen = words(asking.pid)
    assert SECRET not in " ".join(seen) and ("***" in seen or "--text=***" in seen), seen
    assert seen[seen.index("--to") + 1] == "auth" and "60" in seen, seen  # the command is still recognisable
    bus.deliver("pay", "answer: yes", "--reply-to", str(question), owner=auth)
    assert asking.communicate(timeout=90) == (b"answer: yes\n", b"")


def test_label_is_hidden_while_the_listener_runs(bus: Bus) -> None:
    auth = bus.listener("auth", label=SECRET)
    assert SECRET not in " ".join(words(auth.pid)) and "***" in words(auth.pid)
    assert bus.list()[0]["label"] == SECRET


def test_pattern_is_hidden_while_the_log_is_followed(bus: Bus) -> None:
    bus.listener("auth")
    bus.deliver("auth", SECRET)
    following = bus.popen("zmqbus", "log", "--follow", "--grep", SECRET)
    assert following.stdout is not None and SECRET in following.stdout.readline().decode()
    assert SECRET not in " ".join(words(following.pid))


def test_no_started_process_gets_a_text(bus: Bus) -> None:
    auth = bus.listener("auth", label=SECRET)
    bus.deliver("auth", SECRET)
    auth.wait_message(SECRET)
    broker = wait_until(bus.broker_pid, "a broker")
    assert SECRET not in " ".join(words(broker))
