"""Another user of the machine: programs that run as nobody, where the tests may start such."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: Whom nothing belongs to. (Not the one that stands for users without a number.)
NOBODY = 65_533
PATIENCE_S = 90.0


def _command(code: str, arguments: tuple[str, ...]) -> list[str]:
    if os.geteuid() != 0:
        pytest.skip("only root can run programs as another user")
    # Imported first: the interpreter may lie where nobody else can read.
    become = (
        "import os, select, socket, sys; ''.encode('idna')\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    )
    return [sys.executable, "-I", "-c", become + code, *arguments]


def as_nobody(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python as another user, to its end."""
    done = subprocess.run(_command(code, arguments), capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done
    return done


def start_as_nobody(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts it; it ends when its standard input is closed, if it is written so."""
    return subprocess.Popen(_command(code, arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
