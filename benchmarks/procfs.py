"""Processor time and memory of another process."""

from __future__ import annotations

import os

import psutil


def cpu_s(pid: int) -> float:
    """Returns the processor time of a process's live threads, in seconds: to the nanosecond on Linux, elsewhere to the
    hundredth of a second. Threads that have ended do not count, so it is for servers, whose threads stay."""
    precise_s = 0.0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                precise_s += int(file.read().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        precise_s = 0.0
    if precise_s:
        return precise_s
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def rss_bytes(pid: int) -> int:
    """Returns the resident memory of a process, in bytes."""
    return int(psutil.Process(pid).memory_info().rss)
