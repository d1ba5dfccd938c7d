"""What is shown whole is not marked as cut, whatever the body is."""

from __future__ import annotations

import random
from typing import Any

import pytest

from zmqbus.client.core import Incoming, Ticket
from zmqbus.client.message import encode
from zmqbus.journal.reader import Reader
from zmqbus.session.notify import format_note
from zmqbus.session.render import note_of
from zmqbus.wire.verbs import Scope


def lines(value: Any) -> list[str]:
    fmt, body = encode(value)
    ticket = Ticket("lease", 1, ("abcd1234",), None)
    message = Incoming(
        ticket, "abcd1234", "id", "auth", None, Scope.SESSION, "", fmt, None, 1.0, -1, None, len(body), body
    )
    reader = Reader("/log")  # of which nothing is read
    return format_note(note_of(message, reader), "/log")


@pytest.mark.parametrize(
    "value",
    [
        [0.5] * 60,
        [1.0, 2.0],
        {"weights": [0.25] * 40},
        b"",
        b"x",
        b"\xff" * 1_000_000,
        [b"\0" * 30],
        "é" * 400,
        None,
        2**63,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_shown_whole_is_not_marked_as_cut(value: Any) -> None:
    (line,) = lines(value)
    text = f"<{len(value)} bytes>" if isinstance(value, bytes) else value if isinstance(value, str) else repr(value)
    assert line == f'[inter-session msg=abcd1234 from="auth"] {text}'


def test_what_is_cut_says_how_long_its_text_is() -> None:
    value = [random.Random(1).random() for _ in range(100)]
    line, where = lines(value)
    assert f" truncated={len(repr(value))}]" in line
    assert where.startswith("[inter-session msg=abcd1234 cont] full text 1.9 KB at /log") or len(repr(value)) != 1995
