"""The page of mail that hooks and waiter show."""

from __future__ import annotations

from pathlib import Path

from zmqbus.agents.mail import HEADING, MAX_CHARS, page_of
from zmqbus.wire.verbs import Format, Previewed, Scope


def message(number: int, text: str) -> Previewed:
    body = text.encode()
    return Previewed(
        f"message{number:05}", "id", "bob", None, Scope.SESSION, "", Format.TEXT, None, 1.0, 0, (), len(body), body
    )


def test_lines_follow_the_heading_in_order(tmp_path: Path) -> None:
    page = page_of([message(1, "one"), message(2, "two")], 0, (), str(tmp_path / "messages.log"))
    heading, first, second = page.text.splitlines()
    assert heading == HEADING and first.endswith("] one") and second.endswith("] two")
    assert page.msg_ids == ("message00001", "message00002")


def test_shown_messages_are_left_out_and_not_counted(tmp_path: Path) -> None:
    page = page_of([message(1, "one"), message(2, "two")], 0, {"message00001"}, str(tmp_path / "messages.log"))
    assert page.msg_ids == ("message00002",) and "one" not in page.text and "more messages" not in page.text
    assert page_of([message(1, "one")], 0, {"message00001"}, str(tmp_path / "messages.log")).msg_ids == ()


def test_what_has_no_room_is_counted(tmp_path: Path) -> None:
    waiting = [message(number, "x" * 380) for number in range(200)]
    page = page_of(waiting, 9_800, (), str(tmp_path / "messages.log"))
    assert len(page.text) < MAX_CHARS + 1_000 and 10 < len(page.msg_ids) < 200
    left = 10_000 - len(page.msg_ids)
    assert page.text.endswith(f"[inter-session] {left} more messages waiting; read them with: zmqbus inbox")
