"""The processes of a benchmark: a failure ends the measurement with its reason, and none outlives its parent."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.crew import PeerFailed, actors
from benchmarks.stage import ROOT, environment

MODULE = "tests.benchmarks.players"
DEADLINE_S = 90.0


@pytest.fixture
def environ(tmp_path):
    return environment(str(tmp_path))


def test_actor_that_fails_is_reported_with_its_error(environ):
    with actors((MODULE, "Player", {}), environ=environ) as (player,):
        assert player.do("double", number=2).value == 4
        with pytest.raises(PeerFailed, match="players Player: ValueError: three of four have come"):
            player.do("fail")


def test_actor_that_dies_is_reported_with_its_last_output(environ):
    with (
        actors((MODULE, "Player", {}), environ=environ) as (player,),
        pytest.raises(PeerFailed, match="has ended: the wire is cut"),
    ):
        player.do("die")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_actor_ends_with_its_parent_however_that_ends(environ):
    program = (
        "import os, signal; from benchmarks.crew import Actor\n"
        f"actor = Actor({MODULE!r}, 'Player', {{}}, dict(os.environ)); actor.ready()\n"
        "print(actor.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program]
    parent = subprocess.run(
        command, env=environ | {"PYTHONPATH": ROOT}, capture_output=True, text=True, timeout=DEADLINE_S
    )
    deadline_s = time.monotonic() + DEADLINE_S
    while _is_running(int(parent.stdout)):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
