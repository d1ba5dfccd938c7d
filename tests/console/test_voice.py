"""The console's own session: there when it has something to say, gone when nobody looks any more."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.console.conftest import PATIENCE_S
from tests.real.conftest import Bus, wait_until
from zmqbus.client.receipts import Receipt
from zmqbus.console import voice as module
from zmqbus.console.voice import Voice, receipt_json
from zmqbus.errors import NameTaken, NotConnected
from zmqbus.settings import Settings


class FakeBus:
    def __init__(self, name: str) -> None:
        self.name = name
        self.session_id = f"id of {name}"
        self.closed = threading.Event()

    def send(self, target: str, text: str, *, reply_to: str | None, timeout: float) -> Receipt:
        return Receipt("abcdefgh", "delivered", target, "id", False, 0)

    def messages(self) -> Any:
        yield "a message"
        self.closed.wait()
        raise NotConnected("closed")

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def joined() -> list[FakeBus]:
    return []


@pytest.fixture
def voice(settings: Settings, joined: list[FakeBus]):
    taken = {"console"}

    def connect(name: str, **_: Any) -> FakeBus:
        if name in taken:
            raise NameTaken(f"the name '{name}' is taken")
        joined.append(FakeBus(name))
        return joined[-1]

    voice = Voice(settings, connect)  # type: ignore[arg-type]
    yield voice
    voice.close()
    assert all(bus.closed.is_set() for bus in joined)


def test_it_joins_with_the_first_message_under_a_name_that_is_free(voice: Voice, joined: list[FakeBus]) -> None:
    assert voice.session_id is None and joined == []
    voice.send("auth", "hi", None)
    voice.send("auth", "hi", None)
    assert [bus.name for bus in joined] == ["console-2"]
    assert voice.session_id == "id of console-2"


def test_it_leaves_when_no_page_is_open_and_comes_back(
    voice: Voice, joined: list[FakeBus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STAY_S", 0.01)
    voice.watched_by(1)
    voice.send("auth", "hi", None)
    voice.watched_by(0)
    assert joined[0].closed.wait(PATIENCE_S)
    wait_until(lambda: voice.session_id is None, "it has left", PATIENCE_S)
    voice.send("auth", "hi", None)
    assert len(joined) == 2


def test_a_reload_changes_nothing(voice: Voice, joined: list[FakeBus]) -> None:
    voice.send("auth", "hi", None)
    voice.watched_by(0)
    voice.watched_by(1)
    assert voice._leaving is None and not joined[0].closed.is_set()


def test_where_it_was_ended_it_joins_anew(voice: Voice, joined: list[FakeBus]) -> None:
    voice.send("auth", "hi", None)
    joined[0].closed.set()  # somebody has disconnected it
    assert voice._reader is not None
    voice._reader.join(PATIENCE_S)
    voice.send("auth", "hi", None)
    assert len(joined) == 2


def test_after_the_end_nothing_is_said(voice: Voice) -> None:
    voice.close()
    voice.close()
    with pytest.raises(NotConnected, match="zmqbus console"):
        voice.send("auth", "hi", None)


def test_receipts_for_the_page() -> None:
    assert receipt_json(Receipt("abcdefgh", "queued", "auth", "id", True, 0))["busy"] is True


@pytest.mark.slow
def test_on_a_real_bus(bus: Bus, settings: Settings) -> None:
    auth = bus.listener("auth")
    voice = Voice(settings)
    try:
        receipt = voice.send(auth.session_id, "question: ready?", None)
        # Queued, too: whoever takes longer than the broker's second to take it has it all the same.
        assert receipt.state in ("delivered", "queued") and receipt.to == "auth"
        got = auth.wait_message("question: ready?")
        assert got["name"] == "console"
        answer = bus.send("--to", "console", "--reply-to", str(got["id"]), "--text", "answer: yes", owner=auth)
        assert answer.stdout.startswith(("delivered ", "queued ")), "it takes what it is sent"
        broadcast = voice.broadcast("freeze", project=str(bus.cwd))
        assert broadcast.delivered + broadcast.queued == 1
        assert auth.wait_message("freeze")["name"] == "console"
        nobody = voice.broadcast("nobody", project="/nowhere")
        assert nobody.delivered + nobody.queued == 0
    finally:
        voice.close()
    wait_until(lambda: bus.states().get("console") in (None, "away"), "it has left", PATIENCE_S)
