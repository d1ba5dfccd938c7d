"""Runs programs as another user of the machine; skips the test where only root may do that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: A uid that owns nothing. (Not the overflow uid, which stands for users without one.)
NOBODY = 65_533
PATIENCE_S = 90.0


def _command(code: str, arguments: tuple[str, ...]) -> list[str]:
    if os.geteuid() != 0:
        pytest.skip("only root can run programs as another user")
    # Import before changing the user, who may be unable to read the interpreter's files.
    become = (
        "import os, select, socket, sys; ''.encode('idna')\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    )
    return [sys.executable, "-I", "-c", become + code, *arguments]


def as_nobody(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code as another user and waits for its end."""
    done = subprocess.run(_command(code, arguments), capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done
    return done


def start_as_nobody(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts Python code as another user; write it so that it ends when its standard input is closed."""
    return subprocess.Popen(_command(code, arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
