"""Hiding arguments from the process list, as another user sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zmqbus.system import cmdline

ROOT = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process do this")


def shown(*arguments: str, hidden: str = "sys.argv[1:]") -> list[bytes]:
    """The arguments in the process list of a process that has hidden some of them."""
    program = (
        "import sys; from zmqbus.system.cmdline import hide; arguments = list(sys.argv); "
        f"assert hide({hidden}) is True; assert sys.argv == arguments; print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-X", "utf8", "-c", program, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        assert process.stdout.readline() == b"\n"
        seen = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.stdin.close()
    assert process.returncode == 0
    return [word for word in seen[seen.index(program.encode()) + len(program) :].split(b"\0") if word]


@linux
@pytest.mark.parametrize("secret", ["the pin is 4711", "é漢 \U0001f600", "a=b=c", "x", "s" * 100_000, "two\nlines"])
def test_hidden_text_is_not_in_the_process_list(secret: str) -> None:
    mask = b"***"[: len(secret.encode())]
    assert shown("--to", "auth", "--text", secret, hidden="[sys.argv[4]]") == [b"--to", b"auth", b"--text", mask]
    assert shown(f"--text={secret}", "-x", hidden="[sys.argv[1][7:]]") == [b"--text=" + mask, b"-x"]


@linux
def test_repeated_text_is_hidden_everywhere() -> None:
    assert shown("secret", "--a", "secret", hidden="['secret']") == [b"***", b"--a", b"***"]


@linux
def test_other_arguments_stay() -> None:
    assert shown("--to", "auth", hidden="[None, '']") == [b"--to", b"auth"]


def test_nothing_to_hide() -> None:
    assert cmdline.hide([None, ""])


def test_unsupported_system_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    assert not cmdline.hide(["a text"])
