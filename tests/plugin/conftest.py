"""Copies of the plugin, and a way to run their scripts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 90.0
#: No site-packages, and so no dependencies.
WITHOUT = ("-S", "-I", "-B")

Environment = Callable[["dict[str, str] | None"], "dict[str, str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def copied(source: Path, place: Path) -> Path:
    """A copy with files in place of links, without compiled modules."""
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
    return place


@pytest.fixture
def run(bin_env: Environment) -> Run:
    """`run(script, *args)` runs a script to its end; `without=True`: with no package but the standard library."""

    def call(
        script: Path, *args: str, without: bool = False, input: str = "", **more: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *(WITHOUT if without else ["-B"]), str(script), *args],
            env=bin_env(None),
            input=input,
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
            **more,
        )

    return call
