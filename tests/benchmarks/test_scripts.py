"""The two that also run by themselves."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks import commands, fanout
from benchmarks.stage import ROOT


def test_a_command_is_held_against_the_yardstick_of_its_round():
    found = commands.Found(times_s={commands.YARDSTICK_NAME: [1.0, 10.0, 1.0], "send": [2.0, 20.0, 3.0]})
    assert found.ratio("send") == 2.0


def test_who_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(fanout, "SYSTEMS", {"there": ("json", None), "absent": ("no_such_module", None)})
    told: list[str] = []
    assert fanout.available(["there", "absent"], told.append) == ["there"]
    assert told == ["absent is left out: no_such_module is not installed"]


def test_a_stage_is_this_process_s_own_for_a_while():
    before, here = dict(os.environ), os.getcwd()
    with fanout.on_stage():
        assert os.environ["HOME"] == os.getcwd() != here
    assert dict(os.environ) == before and os.getcwd() == here


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["commands.py", "--rounds", "1", "--idle", "0"], ["fanout.py", "--rounds", "1", "--only", "zmqbus,Pool"]],
    ids=lambda command: command[0],
)
def test_they_run_by_themselves(command, tmp_path):
    script = [sys.executable, os.path.join(ROOT, "benchmarks", command[0]), *command[1:]]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "median of 1 rounds" in done.stdout
