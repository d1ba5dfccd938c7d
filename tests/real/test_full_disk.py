"""A full disk: reports stay true, and no process ends because of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import psutil
import pytest

from tests.real.conftest import DEADLINE_S, ROOT, Bus, wait_until

pytestmark = pytest.mark.slow

MOUNT = ["unshare", "--mount", "--map-root-user", "--user"] if os.getuid() else ["unshare", "--mount"]
#: Beginning and end of each script: a file system of a megabyte, and a listener that uses it.
BEGIN = f"""
set -e
mount -t tmpfs -o size=1m,mode=0700 tmpfs "$INTER_SESSION_DATA_DIR"
run() {{ {sys.executable} {ROOT}/bin/"$@"; }}
state() {{ cat "$INTER_SESSION_DATA_DIR"/clients/*.session; }}
fill() {{ dd if=/dev/zero of="$INTER_SESSION_DATA_DIR/ballast" bs=1k 2>/dev/null || true; }}
free() {{ rm "$INTER_SESSION_DATA_DIR/ballast"; }}
{sys.executable} {ROOT}/bin/client.py --name auth & auth=$!  # not by run: the pid would be that of a shell
until run list.py | grep -q auth; do :; done
"""
END = """
kill $auth
wait $auth || true
run zmqbus broker --stop >/dev/null
"""


def play(bus: Bus, script: str) -> tuple[list[str], str]:
    """Runs a script in a mount namespace; returns the lines printed by it and the listener, and standard error."""
    probe = subprocess.run([*MOUNT, "mount", "-t", "tmpfs", "tmpfs", str(bus.data_dir)], capture_output=True)
    if probe.returncode:
        pytest.skip("mounting is not allowed here")
    done = subprocess.run(
        [*MOUNT, "sh", "-c", BEGIN + script + END],
        cwd=bus.cwd,
        env=bus.env(bus.owner()),
        capture_output=True,
        timeout=4 * DEADLINE_S,
    )
    assert done.returncode == 0, done
    return done.stdout.decode().splitlines(), done.stderr.decode()


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_FSIZE"), reason="only Linux sets limits of other processes")
def test_listener_that_cannot_store_its_new_name_goes_on_and_says_so(bus: Bus) -> None:
    """The broker can store the new name, the listener cannot."""
    auth = bus.listener("auth")
    listener = psutil.Process(auth.pid)
    before = listener.rlimit(psutil.RLIMIT_FSIZE)
    listener.rlimit(psutil.RLIMIT_FSIZE, (0, before[1]))
    done = bus.zmqbus("rename", "billing", owner=auth)
    assert (done.returncode, done.stdout) == (0, "renamed auth to billing\n")
    assert done.stderr.startswith("warning: the listener has not written the new name into "), done
    told = auth.wait_for("cannot write ")
    assert told.startswith("[inter-session] cannot write ") and "continues as 'billing', and retries" in told
    bus.deliver("billing", "still here")
    auth.wait_message("still here")
    assert auth.name == "auth"  # the state file, with which its helpers still act as the session
    assert bus.send("--all", "--text-file", "-", owner=auth, input="from it").returncode == 0
    listener.rlimit(psutil.RLIMIT_FSIZE, before)
    wait_until(lambda: auth.name == "billing", "it is written down")
    auth.wait_for("the state of 'billing' is stored now")
    assert sum("cannot write " in line for line in auth.lines) == 1


def test_rename_that_the_broker_cannot_store_is_refused(bus: Bus) -> None:
    lines, errors = play(
        bus,
        """
fill
if run zmqbus rename billing; then echo "renamed?"; fi
kill -0 $auth && echo "the listener lives"
run list.py | grep -q auth && echo "it is auth"
free
run zmqbus rename billing
until state | grep -q '"name": "billing"'; do :; done
run send.py --as me --to billing --text "still here"
""",
    )
    assert re.search(r"^error: broker_unavailable: not renamed: ", errors, re.MULTILINE), errors
    assert lines[:3] == ["the listener lives", "it is auth", "renamed auth to billing"], lines
    assert any(line.startswith("[inter-session msg=") and line.endswith("] still here") for line in lines), lines


def test_session_that_cannot_write_reconnects_to_a_new_broker(bus: Bus) -> None:
    lines, _ = play(
        bus,
        """
fill
kill -9 "$(cat "$INTER_SESSION_DATA_DIR"/server.*.pid)"
free
until run list.py | grep -q auth; do :; done
kill -0 $auth && echo "the listener lives"
""",
    )
    assert "the listener lives" in lines
