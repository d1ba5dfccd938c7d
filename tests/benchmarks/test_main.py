"""The program: what it writes, and that nothing is left of it when it is interrupted."""

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
PATIENCE_S = 90.0
COMMAND = [sys.executable, "-m", "benchmarks", "--quick", "--only", "directed-100b", "--systems", "forwarder"]


def test_it_measures_prints_and_writes(tmp_path):
    out = tmp_path / "results.json"
    command = [*COMMAND, "--rounds", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert "directed 100 B, pipelined" in done.stdout and "beside: forwarder" in done.stdout
    (figure,) = json.loads(out.read_text())["figures"]
    assert set(figure["values"]) == {"zmqbus", "forwarder"} and figure["ratios"]["forwarder"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(tmp_path, number):
    token = secrets.token_hex(8)
    environ = os.environ | {"ZMQBUS_BENCH_TEST": token, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [*COMMAND, "--rounds", "1000"], cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    # All of them: the broker, its two programs, the forwarder with its two, and the program itself.
    _until(lambda: len(_with_token(token)) >= 7)
    process.send_signal(number)
    told = process.communicate(timeout=PATIENCE_S)[1].decode()
    assert process.returncode == 130, told
    assert "nothing is written" in told and "Traceback" not in told
    _until(lambda: not _with_token(token))
    assert not list(tmp_path.iterdir())


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
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
