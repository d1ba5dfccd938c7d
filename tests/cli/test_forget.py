"""`zmqbus forget`: finding the session, and the question before it is removed."""

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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestFind:
    """Which session a name or an id means."""

    @pytest.mark.parametrize(
        ("wanted", "found"),
        [("nightly", "aaaa1111"), ("aaaa", "aaaa1111"), ("auth", "bbbb3333"), ("cccc5555", "cccc5555")],
        ids=["name", "prefix of an id", "a connected session has the name too", "id"],
    )
    def test_session_is_found(self, wanted: str, found: str) -> None:
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
    def test_session_cannot_be_removed(self, wanted: str, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=text) as caught:
            forget.find(ROWS, wanted)
        assert str(caught.value).isprintable()


class TestQuestion:
    """The user is asked before unread mail is removed."""

    @pytest.mark.parametrize(
        ("answer", "agreed"), [("y\n", True), ("YES\n", True), ("\n", False), ("no\n", False), ("", False)]
    )
    def test_question_says_how_much_would_be_removed(
        self, answer: str, agreed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert forget._agreed(row("nightly", "aaaa1111", waiting=3)) is agreed
        said = capsys.readouterr().out
        assert "'nightly'" in said and "3 unread messages would be removed with it. Forget it? [y/N] " in said
        assert ("nothing was removed" in said) is not agreed
