"""What a process uses."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil

from benchmarks import procfs


def test_processor_time_grows_with_work():
    before_s = procfs.cpu_s(os.getpid())
    until_s = time.process_time() + 0.1
    while time.process_time() < until_s:
        pass
    assert procfs.cpu_s(os.getpid()) - before_s >= 0.09


def test_one_that_sleeps_uses_none():
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        before_s = procfs.cpu_s(process.pid)
        assert procfs.cpu_s(process.pid) - before_s < 0.05
        assert 1_000_000 < procfs.rss_bytes(process.pid) < 1_000_000_000
        process.stdin.close()


def test_without_schedstat_the_kernel_s_other_count_is_taken(monkeypatch):
    def refuse(path: str) -> list[str]:
        raise OSError

    monkeypatch.setattr("benchmarks.procfs.os.listdir", refuse)
    times = psutil.Process().cpu_times()
    assert procfs.cpu_s(os.getpid()) >= times.user + times.system
