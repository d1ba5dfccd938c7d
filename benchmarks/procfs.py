"""What another process uses: processor time, and memory."""

from __future__ import annotations

import os

import psutil


def cpu_s(pid: int) -> float:
    """Processor time of the threads that a process has: to the nanosecond where the kernel says so (Linux), else to the
    hundredth of a second. For servers, whose threads do not end: what one that ended has used is not in it."""
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
    """Resident memory of a process."""
    return int(psutil.Process(pid).memory_info().rss)
