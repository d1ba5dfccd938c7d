"""Floods of messages: the limits of the client suppress nothing, and all messages can be read in order.

The limits are the real ones. `start_claude` fails a session in which a notification was suppressed or cut.
"""

from __future__ import annotations

import pytest

from tests.harness.conftest import Connect, Script
from tests.real.conftest import HEADER, LONG_DEADLINE_S, wait_until

pytestmark = pytest.mark.slow


def test_burst_is_shown_or_counted(connect: Connect, script: Script) -> None:
    auth = connect("auth")
    texts = [f"number {number};" for number in range(200)]
    script("auth", texts)
    auth.wait_for("more messages waiting from 1 sessions; read them with: zmqbus inbox", timeout=LONG_DEADLINE_S)
    rest = auth.unread()
    script("auth", ["the end"])
    auth.wait_message("the end", timeout=LONG_DEADLINE_S)
    assert auth.texts()[:-1] + rest == texts


def test_stream_stays_within_the_budget(connect: Connect, script: Script) -> None:
    """Four a second, for longer than the budget lasts: all are shown without asking."""
    auth = connect("auth")
    texts = [f"number {number};" for number in range(28)]
    script("auth", texts, pause_s=0.25)
    auth.wait_message(texts[-1], timeout=LONG_DEADLINE_S)
    assert auth.texts() == texts


def test_long_messages_are_shown_whole_lines(connect: Connect, script: Script) -> None:
    auth = connect("auth")
    texts = [f"number {number}; " + "x" * 1000 for number in range(20)]
    script("auth", texts)
    auth.wait_message("number 19;", timeout=LONG_DEADLINE_S)
    wait_until(lambda: len(auth.lines()) == 40, "each has its two lines")
    for text, line, cont in zip(texts, auth.lines()[::2], auth.lines()[1::2], strict=True):
        match = HEADER.match(line)
        assert match is not None and text.startswith(match["text"]), line
        assert cont.startswith(f"[inter-session msg={match['id']} cont] full text ")


def test_lines_that_just_fit(connect: Connect, script: Script) -> None:
    """Lengths are counted as by the client, in UTF-16 units: six such lines would be one unit over 3,000."""
    auth = connect("auth")
    room = 500 - len('[inter-session msg=aaaaaaaaaaaa from="script"] ')
    texts = [str(number) + "😀" * ((room - 1) // 2) for number in range(6)]
    script("auth", [*texts, "6" + "😀" * 399])
    auth.wait_for(" cont]")
    assert auth.texts()[:-1] == texts
    assert ("6" + "😀" * 399).startswith(auth.texts()[-1])
