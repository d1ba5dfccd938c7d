"""The suite passes as a background job: SIGINT and SIGHUP ignored by its parent, blocked signals, no terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 180.0

#: Tests that send these signals to programs of the suite.
SENDING = ("tests/real/test_listener.py::test_signal_ends_the_listener_in_order",)

#: Runs its arguments as `nohup … &` does from a shell without a terminal.
AS_BACKGROUND_JOB = """
import os, signal, sys
for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(signum, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_tests_that_send_signals_pass_in_a_background_job() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *SENDING]
    done = subprocess.run(
        [sys.executable, "-c", AS_BACKGROUND_JOB, *pytest_command],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_programs_start_with_default_signals_and_none_blocked() -> None:
    program = (
        "import signal; print([s.name for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN and "
        "s not in (signal.SIGPIPE, signal.SIGXFSZ)], sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout == "[] []\n", done.stderr
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
