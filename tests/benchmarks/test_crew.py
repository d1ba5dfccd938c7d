"""Processes that are told what to do: what they answer, and what is said of those that fail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import crew
from benchmarks.crew import PeerFailed, actors
from benchmarks.stage import ROOT, environment

MODULE = "tests.benchmarks.players"
PATIENCE_S = 90.0


@pytest.fixture
def environ(tmp_path):
    return environment(str(tmp_path))


def test_commands_are_carried_out_one_after_the_other(environ):
    with actors((MODULE, "Player", {"start": 5}), environ=environ) as (player,):
        assert player.do("add", number=2).value == 7
        player.begin("add", number=3)
        assert player.finish().value == 10


def test_processor_time_of_a_command_is_told(environ):
    with actors((MODULE, "Player", {"start": 0}), environ=environ) as (player,):
        assert player.do("work", seconds=0.2).cpu_s >= 0.2
        assert player.do("add", number=1).cpu_s < 0.2


def test_one_that_has_something_to_do_meanwhile_does_it(environ):
    with actors((MODULE, "Waiting", {"start": 0}), environ=environ) as (player,):
        assert player.do("add", number=1).value == 101
        assert player.do("add", number=1).value == 202


def test_an_error_is_told_with_its_words(environ):
    with actors((MODULE, "Player", {"start": 0}), environ=environ) as (player,):
        with pytest.raises(PeerFailed, match="players Player: ValueError: three of four have come"):
            player.do("fail")
        with pytest.raises(PeerFailed, match="has ended"):
            player.do("add", number=1)


def test_one_that_dies_is_told_with_its_last_words(environ):
    with (
        actors((MODULE, "Player", {"start": 0}), environ=environ) as (player,),
        pytest.raises(PeerFailed, match="has ended: the wire is cut"),
    ):
        player.do("die")


def test_one_that_does_not_come_up(environ):
    with pytest.raises(PeerFailed, match="OSError: no such server"), actors((MODULE, "Broken", {}), environ=environ):
        pass


def test_one_that_says_nothing_is_given_up_on(environ, monkeypatch):
    with actors((MODULE, "Player", {"start": 0}), environ=environ) as (player,):
        monkeypatch.setattr(crew, "PATIENCE_S", 0.05)
        player.begin("work", seconds=1.0)
        with pytest.raises(PeerFailed, match="has said nothing for"):
            player.finish()


def test_all_are_gone_at_the_end(environ, tmp_path):
    with actors(*[(MODULE, "Player", {"start": 0})] * 2, environ=environ) as crew_:
        processes = [psutil.Process(actor.pid) for actor in crew_]
    assert not any(process.is_running() for process in processes)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_they_end_with_whoever_started_them_however_that_ends(environ, tmp_path: Path):
    program = (
        "import os, json, signal, sys; from benchmarks.crew import Actor\n"
        f"actor = Actor({MODULE!r}, 'Player', {{'start': 0}}, dict(os.environ)); actor.ready()\n"
        "print(actor.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program]
    told = subprocess.run(
        command, env=environ | {"PYTHONPATH": ROOT}, capture_output=True, text=True, timeout=PATIENCE_S
    )
    deadline_s = time.monotonic() + PATIENCE_S
    while _lives(int(told.stdout)):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return os.path.exists(f"/proc/{pid}") and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
