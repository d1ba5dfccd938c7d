"""The screen of `zmqbus watch`."""

from __future__ import annotations

import pytest

pytest.importorskip("rich")

from rich.console import Console

from tests.cli.test_format import entry_of
from tests.records import RECORD
from zmqbus.cli.tui import draw
from zmqbus.cli.watch import Look
from zmqbus.journal.filter import Entry
from zmqbus.wire.verbs import Session

NOBODY = Look([], {}, {}, None)


def session(name: str, state: str = "live", **more: object) -> Session:
    plain = Session(name, None, "/home/me/project", "/home/me/project", state, 0.0, f"{name}-id", 1, 0, 0)
    return plain._replace(**more)  # type: ignore[arg-type]


def lines(look: Look, messages: list[Entry], width: int = 80, height: int = 24) -> list[str]:
    """The lines of the screen."""
    console = Console(width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(draw(9473, look, messages, width, height))
    return capture.get().rstrip("\n").split("\n")


def message(number: int, **more: object) -> Entry:
    return entry_of(RECORD._replace(msg_id=f"id{number:010}", **{"body": f"text {number}".encode(), **more}))  # type: ignore[arg-type]


class TestScreen:
    """It fits the terminal, shows everything it should, and no message can draw on it."""

    def test_no_sessions_and_no_messages(self) -> None:
        found = lines(NOBODY, [])
        assert found[0] == "zmqbus on port 9473: 0 live; 0.0 messages/s; 0 unread   (Ctrl-C ends)"
        assert found[1] == "no sessions yet; to join one: zmqbus connect"
        assert found[3] == "no messages yet"

    def test_no_broker(self) -> None:
        found = lines(Look([], {}, {}, "no broker runs on port 9473"), [message(1)])
        assert found[0] == "no broker runs on port 9473"
        assert found[2].endswith("orchestrator → auth: text 1")

    def test_sessions_and_messages(self) -> None:
        look = Look(
            [
                session("pay", "away", away_s=7300, waiting=1200),
                session("auth", "busy", label="the one"),
                session("web"),
            ],
            {"unread": 1200},
            {"accepted": 12.34},
            None,
        )
        found = lines(look, [message(1), message(2, to="all", to_session_id=None, reply_to="abcdef123456")], 100)
        assert found[0] == "zmqbus on port 9473: 1 live, 1 busy, 1 away; 12.3 messages/s; 1,200 unread   (Ctrl-C ends)"
        assert [row.split() for row in found[1:5]] == [
            ["NAME", "STATE", "AGENT", "UNREAD", "PROJECT", "LABEL"],
            ["auth", "busy", "-", "-", "project", "the", "one"],
            ["web", "live", "-", "-", "project", "-"],
            ["pay", "away", "2h", "-", "1,200", "project", "-"],
        ]
        assert found[6].endswith("orchestrator → auth: text 1")
        assert found[7].endswith("orchestrator → all re=abcdef123456: text 2")

    @pytest.mark.parametrize("width", [20, 40, 60, 200])
    @pytest.mark.parametrize("height", [8, 14, 50])
    @pytest.mark.parametrize("count", [0, 3, 200])
    def test_screen_fits_the_terminal(self, width: int, height: int, count: int) -> None:
        look = Look([session(f"session-{number:03}") for number in range(count)], {}, {}, None)
        messages = [message(number, body=b"x" * 300) for number in range(100)]
        found = lines(look, messages, max(width, 40), height)
        assert len(found) <= height
        assert max(map(len, found)) <= max(width, 40)
        assert found[-1].endswith("…")
        if count == 200:
            assert sum("session-" in row for row in found) >= 2
            assert any(row.endswith("more: zmqbus list --all") for row in found)

    def test_blocked_sessions_come_first_and_are_marked(self) -> None:
        blocked = session("web", agent="blocked", agent_s=300, agent_detail="permission to use Bash\x1b[2J")
        look = Look([session("auth", agent="working", agent_s=70), session("pay"), blocked], {}, {}, None)
        found = lines(look, [])
        assert found[0].startswith("zmqbus on port 9473: 3 live, 1 blocked; ")
        assert found[2].startswith("web   live   blocked 5m: permission to use Bash ")
        assert found[3].startswith("auth  live   working 1m ")
        assert found[4].startswith("pay   live   - ")
        assert max(map(len, found)) <= 80

    @pytest.mark.parametrize("width", [40, 80])
    def test_what_a_blocked_agent_waits_for_fits_the_terminal(self, width: int) -> None:
        blocked = session("b" * 30, agent="blocked", agent_s=300, agent_detail="permission to use Bash " * 9)
        found = lines(Look([blocked._replace(label="l" * 60)], {}, {}, None), [], width)
        assert max(map(len, found)) <= width
        assert "blo" in found[2]

    def test_messages_cannot_draw(self) -> None:
        hostile = "[bold]\x1b[2J\x1b]0;title\x07\u202e[/] :skull:\nforged"
        look = Look([session("auth", label="[red]x", project="/[blink]")], {}, {}, None)
        found = "\n".join(lines(look, [message(1, body=hostile.encode(), from_name="[i]a", to="[u]b")], 120))
        assert "[bold][/] :skull:↵forged" in found
        assert "[i]a → [u]b" in found
        assert "[red]x" in found and "[blink]" in found
        assert "\x1b" not in found and "\u202e" not in found and "\x07" not in found
