"""`zmqbus forget`: which session is meant, and what is said before it goes."""

from __future__ import annotations

import io

import pytest

from zmqbus.cli import forget
from zmqbus.errors import Ambiguous, Unauthorized, UnknownPeer
from zmqbus.wire.verbs import Session


def row(name: str, session_id: str, *, state: str = "away", waiting: int = 0) -> Session:
    return Session(name, None, "/work/app", "/work/app", state, 0.0, session_id, 1, waiting, 60)


ROWS = [
    row("nightly", "aaaa1111"),
    row("auth", "bbbb2222", state="live"),
    row("auth", "bbbb3333"),
    row("main", "cccc4444"),
    row("main", "cccc5555"),
    row("pay", "dddd6666", state="busy"),
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("nightly", "aaaa1111"), ("aaaa", "aaaa1111"), ("auth", "bbbb3333"), ("cccc5555", "cccc5555")],
    ids=["name", "prefix of an id", "a connected one has the name too", "id"],
)
def test_which_is_meant(wanted: str, found: str) -> None:
    assert forget.find(ROWS, wanted).session_id == found


@pytest.mark.parametrize(
    ("wanted", "error", "text"),
    [
        ("nightl", UnknownPeer, "nearest: nightly"),
        ("aaa", UnknownPeer, "zmqbus list --all"),
        ("main", Ambiguous, "cccc4444 .*cccc5555 .*give the id"),
        ("pay", Unauthorized, "is connected.*zmqbus disconnect"),
        ("bbbb2222", Unauthorized, "is connected"),
        ("\x1b[31m", UnknownPeer, "no session"),
    ],
)
def test_which_cannot_be(wanted: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        forget.find(ROWS, wanted)
    assert str(caught.value).isprintable()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "agreed"), [("y\n", True), ("YES\n", True), ("\n", False), ("no\n", False), ("", False)]
)
def test_it_says_how_much_it_is_and_asks(
    answer: str, agreed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert forget._agreed(row("nightly", "aaaa1111", waiting=3)) is agreed
    said = capsys.readouterr().out
    assert "'nightly'" in said and "3 unread messages would be removed with it. Forget it? [y/N] " in said
    assert ("nothing was removed" in said) is not agreed
