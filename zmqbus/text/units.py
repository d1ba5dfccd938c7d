"""Durations and sizes as people say them."""

from __future__ import annotations


def format_age(age_s: float) -> str:
    """A duration in seconds, rounded down: `4s`, `4m`, `3h`, `2d`."""
    seconds = max(0, int(age_s))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m"
    if seconds < 86_400:
        return f"{seconds // 3600}h"
    return f"{seconds // 86_400}d"


def format_size(size_bytes: int) -> str:
    """A size: `812 B`, `1.5 KB`, `2.0 MB`; a KB is 1,024 bytes."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    if size_bytes < 1023.95 * 1024:  # from here on it would be rounded to 1024.0 KB
        return f"{size_bytes / 1024:.1f} KB"
    return f"{size_bytes / (1024 * 1024):.1f} MB"
