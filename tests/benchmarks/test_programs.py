"""The benchmark programs, run as users run them: what they print and write, and what they leave behind."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.stage import ROOT

pytestmark = pytest.mark.slow
DEADLINE_S = 180.0
COMMAND = [sys.executable, "-m", "benchmarks", "--quick", "--only", "directed-100b", "--systems", "forwarder"]


def test_benchmarks_print_and_write_figures(tmp_path):
    out = tmp_path / "results.json"
    command = [*COMMAND, "--rounds", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    assert "directed 100 B, pipelined" in done.stdout and "beside: forwarder" in done.stdout
    (figure,) = json.loads(out.read_text())["figures"]
    assert set(figure["values"]) == {"zmqbus", "forwarder"} and figure["ratios"]["forwarder"] > 0


def test_interrupted_benchmarks_leave_nothing_behind(tmp_path):
    token = secrets.token_hex(8)
    environ = os.environ | {"ZMQBUS_BENCH_TEST": token, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [*COMMAND, "--rounds", "1000"], cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    # The program itself, the broker with its two clients, the forwarder with its two.
    _until(lambda: len(_with_token(token)) >= 7)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=DEADLINE_S)[1].decode()
    assert process.returncode == 130, errors
    assert "nothing is written" in errors and "Traceback" not in errors
    _until(lambda: not _with_token(token))
    assert not list(tmp_path.iterdir())


def test_commands_script_runs_from_any_directory(tmp_path):
    script = [sys.executable, os.path.join(ROOT, "benchmarks", "commands.py"), "--rounds", "1", "--idle", "0"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    assert "median of 1 rounds" in done.stdout


def test_fanout_script_with_few_requests(tmp_path):
    few = "fanout.PIPELINED |= {'zmqbus': 500, 'Pool': 500}; fanout.SESSIONS, fanout.SCATTERS = 8, 2"
    program = f"import sys; from benchmarks import fanout; {few}; sys.exit(fanout.main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "--rounds", "1", "--only", "zmqbus,Pool"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    assert "median of 1 rounds" in done.stdout


def _with_token(token: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("ZMQBUS_BENCH_TEST") == token:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def _until(condition) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
