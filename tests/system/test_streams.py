"""The standard streams of a command, mostly in processes of their own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from zmqbus.system import streams

ROOT = Path(__file__).resolve().parents[2]
IMPORT = "from zmqbus.system import streams\n"


def run(code: str, redirection: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """A program that has installed the streams, started by a shell with a redirection."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [
            "sh",
            "-c",
            f'exec "$0" -c "$1" {redirection}',
            sys.executable,
            IMPORT + code,
        ],
        env={**environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=90,
    )


FAILS = """
import sys
streams.install()
try:
    print("x" * 10_000)
    sys.stdout.flush()
except streams.OutputFailed as failed:
    print(failed, failed.closed_pipe, streams.failure() is failed.reason, file=sys.stderr)
print("y" * 10_000)
sys.stdout.flush()
"""


@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", b"No space left on device"), (">&-", b"Bad file descriptor")]
)
def test_fails_once_and_drops_later_writes(redirection: str, reason: bytes) -> None:
    done = run(FAILS, redirection)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"cannot write the output: " + reason + b" False True\n"


def test_no_traceback_at_interpreter_exit() -> None:
    """After `failure` has been asked for, or not: Python flushes once more by itself."""
    code = "import sys\nstreams.install()\nprint('x')\ntry:\n    sys.stdout.flush()\nexcept streams.OutputFailed: pass"
    done = run(code, ">/dev/full")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_standard_error_never_fails(redirection: str) -> None:
    code = "import sys\nstreams.install()\nprint('e' * 100_000, file=sys.stderr, flush=True)\nprint('out')"
    done = run(code, redirection)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        b"out\n",
        b"",
    )  # standard error does not go to standard output


def test_closed_descriptors_are_not_reused() -> None:
    code = """
import os, sys
streams.install()
assert os.open(os.devnull, os.O_RDONLY) > 2
try:
    sys.stdin.buffer.read()
except OSError as error:
    print(error.errno)
"""
    done = run(code, "<&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"%d\n" % errno.EBADF, b"")


def test_is_open() -> None:
    code = "import sys\nstreams.install()\nprint(streams.is_open(1), file=sys.stderr)"
    assert run(code).stderr == b"True\n"
    assert run(code, ">/dev/full").stderr == b"True\n"
    assert run(code, ">&-").stderr == b"False\n"


def test_non_blocking_pipe_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    got: list[bytes] = []

    def waits(descriptor: int, wait: Any = streams._wait_for_room) -> None:
        if thread.ident is None:
            thread.start()
        wait(descriptor)

    def read() -> None:
        while piece := os.read(reader, 65536):
            got.append(piece)

    monkeypatch.setattr(streams, "_wait_for_room", waits)
    stream: Any = streams._writer(sys.stdout, sys.stdout, writer)
    thread = threading.Thread(target=read)
    stream.write("x" * 1_000_000)  # it does not fit the pipe
    stream.flush()
    assert thread.ident is not None  # it has waited
    stream.detach()
    os.close(writer)
    thread.join(90)
    os.close(reader)
    assert b"".join(got) == b"x" * 1_000_000


@pytest.mark.parametrize(
    ("env", "written", "unicode"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "é\U0001f389".encode(), True),
        ({"PYTHONIOENCODING": "ascii"}, b"\\xe9\\U0001f389", False),
        ({"PYTHONIOENCODING": "latin-1"}, b"\xe9\\U0001f389", False),
    ],
)
def test_encodings(env: dict[str, str], written: bytes, unicode: bool) -> None:
    code = "import sys\nstreams.install()\nprint(chr(0xe9) + chr(0x1f389), streams.takes_unicode())"
    done = run(code, env=env)
    assert (done.stdout, done.stderr) == (written + f" {unicode}\n".encode(), b"")


def test_replaced_stream_stays(capsys: pytest.CaptureFixture[str]) -> None:
    stdout, stderr = sys.stdout, sys.stderr
    streams.install()
    assert (sys.stdout, sys.stderr) == (stdout, stderr)
    assert streams.failure() is None


# --- nothing that a terminal obeys

HOSTILE = "a\\x1b]0;title\\x07b\\x9b31mc\\u202ed\\u2028e\\rf\\x7f"
SAFE = "abcd↵e↵f"


def shown(body: str) -> tuple[str, str]:
    """The output of a process with the streams installed."""
    done = run(f"import sys\nstreams.install()\n{body}")
    return done.stdout.decode(), done.stderr.decode()


def test_lines_are_made_safe() -> None:
    out, err = shown(f"print('{HOSTILE}\\n{HOSTILE}\\tx'); print('y'); print('{HOSTILE}', file=sys.stderr)")
    assert (out, err) == (f"{SAFE}\n{SAFE}\tx\ny\n", f"{SAFE}\n")


def test_traceback_is_made_safe() -> None:
    out, err = shown(f"raise ValueError('{HOSTILE}')")
    assert out == "" and f"ValueError: {SAFE}\n" in err and "\x1b" not in err.replace(SAFE, "")


def test_write_returns_the_given_length() -> None:
    assert shown("print(sys.stdout.write('a\\x07b'))") == ("ab3\n", "")


def test_surrogates_are_written_as_escapes() -> None:
    assert shown("print('a\\udc80b')") == ("a\\udc80b\n", "")


@pytest.mark.parametrize("raw", [True, False])
def test_print_text_raw(raw: bool) -> None:
    out, _ = shown(f"streams.print_text('x\\x1b[31m\\ty\\n[inter-session msg=aaaaaaaa] z', raw={raw})")
    assert out == (
        "x\x1b[31m\ty\n[inter-session msg=aaaaaaaa] z\n" if raw else "x\ty\n    [inter-session msg=aaaaaaaa] z\n"
    )


def test_raw_and_filtered_writes_keep_their_order() -> None:
    out, _ = shown("print('1'); streams.raw_stdout().write('\\x1b[H'); streams.raw_stdout().flush(); print('2')")
    assert out == "1\n\x1b[H2\n"


def test_raw_writes_reach_a_replaced_stream(capsys: pytest.CaptureFixture[str]) -> None:
    assert streams.raw_stdout() is sys.stdout
    streams.write_raw("\x1b[H")
    assert capsys.readouterr().out == "\x1b[H"
