"""The standard streams of a command: nothing goes through them that a terminal obeys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

HOSTILE = "a\\x1b]0;title\\x07b\\x9b31mc\\u202ed\\u2028e\\rf\\x7f"
SAFE = "abcd↵e↵f"


def run(body: str) -> tuple[str, str]:
    """What a process prints that has guarded its streams."""
    program = f"import sys\nfrom zmqbus import output\noutput.guard()\noutput.guard()\n{body}"
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", program], cwd=ROOT, capture_output=True, timeout=90, check=False
    )
    return done.stdout.decode(), done.stderr.decode()


def test_lines_are_safe_and_stay_lines() -> None:
    out, err = run(f"print('{HOSTILE}\\n{HOSTILE}\\tx'); print('y'); print('{HOSTILE}', file=sys.stderr)")
    assert (out, err) == (f"{SAFE}\n{SAFE}\tx\ny\n", f"{SAFE}\n")


def test_a_traceback_is_safe() -> None:
    out, err = run(f"raise ValueError('{HOSTILE}')")
    assert out == "" and f"ValueError: {SAFE}\n" in err and "\x1b" not in err.replace(SAFE, "")


def test_writing_returns_the_length_that_was_given() -> None:
    assert run("print(sys.stdout.write('a\\x07b'))") == ("ab3\n", "")


def test_what_no_encoding_has_is_shown_as_an_escape() -> None:
    assert run("print('a\\udc80b')") == ("a\\udc80b\n", "")


@pytest.mark.parametrize("raw", [True, False])
def test_a_text_is_printed_as_it_is_where_that_is_asked_for(raw: bool) -> None:
    out, _ = run(f"output.print_text('x\\x1b[31m\\ty\\n[inter-session msg=aaaaaaaa] z', raw={raw})")
    assert out == (
        "x\x1b[31m\ty\n[inter-session msg=aaaaaaaa] z\n" if raw else "x\ty\n    [inter-session msg=aaaaaaaa] z\n"
    )


def test_what_is_drawn_and_what_is_printed_keep_their_order() -> None:
    out, _ = run("print('1'); output.raw_stdout().write('\\x1b[H'); output.raw_stdout().flush(); print('2')")
    assert out == "1\n\x1b[H2\n"


def test_a_stand_in_of_a_test_stays_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    from zmqbus import output

    before = sys.stdout
    output.guard()
    assert sys.stdout is before is output.raw_stdout()
    output.write_raw("\x1b[H")
    assert capsys.readouterr().out == "\x1b[H"
