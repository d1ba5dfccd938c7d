"""The console's own session: there when it has something to say, gone when nobody looks any more."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import PATIENCE_S
from tests.console.conftest import start_console as start_console  # a fixture
from tests.real.conftest import Bus, wait_until
from zmqbus.client.receipts import Receipt
from zmqbus.console import sender as module
from zmqbus.console.sender import Sender, receipt_json
from zmqbus.errors import NameTaken, NotConnected
from zmqbus.settings import Settings


class FakeBus:
    def __init__(self, name: str) -> None:
        self.name = name
        self.session_id = f"id of {name}"
        self.closed = threading.Event()
        self.forgotten = False

    def send(self, target: str, text: str, *, reply_to: str | None, timeout: float) -> Receipt:
        return Receipt("abcdefgh", "delivered", target, "id", False, 0)

    def messages(self) -> Any:
        yield "a message"
        self.closed.wait()
        raise NotConnected("closed")

    def close(self, *, forget: bool = False) -> None:
        self.forgotten = forget and not self.closed.is_set()
        self.closed.set()


@pytest.fixture
def taken() -> set[str]:
    """Names that others have."""
    return {"console"}


@pytest.fixture
def joined() -> list[FakeBus]:
    return []


@pytest.fixture
def sender(settings: Settings, joined: list[FakeBus], taken: set[str]):
    def connect(name: str, **_: Any) -> FakeBus:
        if name in taken:
            raise NameTaken(f"the name '{name}' is taken")
        joined.append(FakeBus(name))
        return joined[-1]

    sender = Sender(settings, connect)  # type: ignore[arg-type]
    yield sender
    sender.close()
    assert all(bus.closed.is_set() for bus in joined)


def test_it_joins_with_the_first_message_under_a_name_that_is_free(sender: Sender, joined: list[FakeBus]) -> None:
    assert sender.session_id is None and joined == []
    sender.send("auth", "hi", None)
    sender.send("auth", "hi", None)
    assert [bus.name for bus in joined] == ["console-2"]
    assert sender.session_id == "id of console-2"


def test_it_leaves_when_no_page_is_open_and_comes_back(
    sender: Sender, joined: list[FakeBus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STAY_S", 0.01)
    sender.set_pages(1)
    sender.send("auth", "hi", None)
    sender.set_pages(0)
    assert joined[0].closed.wait(PATIENCE_S)
    wait_until(lambda: sender.session_id is None, "it has left", PATIENCE_S)
    sender.send("auth", "hi", None)
    assert len(joined) == 2


def test_it_comes_back_under_the_name_that_it_had(
    sender: Sender, joined: list[FakeBus], taken: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the other name would stay on the list, away."""
    monkeypatch.setattr(module, "STAY_S", 0.01)
    sender.send("auth", "hi", None)
    sender.set_pages(0)
    assert joined[0].closed.wait(PATIENCE_S)
    taken.clear()
    sender.send("auth", "hi", None)
    assert [bus.name for bus in joined] == ["console-2", "console-2"]


def test_at_the_end_it_leaves_for_good(sender: Sender, joined: list[FakeBus], monkeypatch: pytest.MonkeyPatch) -> None:
    sender.send("auth", "hi", None)
    sender.close()
    assert [bus.forgotten for bus in joined] == [True]


@pytest.mark.parametrize("broker", [None, 4711])
def test_at_the_end_it_leaves_for_good_though_it_was_away(
    sender: Sender, joined: list[FakeBus], monkeypatch: pytest.MonkeyPatch, broker: int | None
) -> None:
    monkeypatch.setattr(module, "STAY_S", 0.01)
    monkeypatch.setattr(module, "broker_pid", lambda settings: broker)
    sender.send("auth", "hi", None)
    sender.set_pages(0)
    assert joined[0].closed.wait(PATIENCE_S)
    assert not joined[0].forgotten, "its page may come back"
    sender.close()
    # It comes back to say so; where there is no broker, none is started for it.
    assert [bus.forgotten for bus in joined] == ([False] if broker is None else [False, True])


def test_a_reload_changes_nothing(sender: Sender, joined: list[FakeBus]) -> None:
    sender.send("auth", "hi", None)
    sender.set_pages(0)
    sender.set_pages(1)
    assert not sender.is_leaving and not joined[0].closed.is_set()


def test_where_it_was_ended_it_joins_anew(sender: Sender, joined: list[FakeBus]) -> None:
    sender.send("auth", "hi", None)
    joined[0].closed.set()  # somebody has disconnected it
    assert sender._reader is not None
    sender._reader.join(PATIENCE_S)
    sender.send("auth", "hi", None)
    assert len(joined) == 2


def test_after_the_end_nothing_is_said(sender: Sender) -> None:
    sender.close()
    sender.close()
    with pytest.raises(NotConnected, match="zmqbus console"):
        sender.send("auth", "hi", None)


def test_receipts_for_the_page() -> None:
    assert receipt_json(Receipt("abcdefgh", "queued", "auth", "id", True, 0))["busy"] is True


@pytest.mark.slow
def test_on_a_real_bus(bus: Bus, settings: Settings) -> None:
    auth = bus.listener("auth")
    sender = Sender(settings)
    try:
        receipt = sender.send(auth.session_id, "question: ready?", None)
        # Queued, too: whoever takes longer than the broker's second to take it has it all the same.
        assert receipt.state in ("delivered", "queued") and receipt.to == "auth"
        got = auth.wait_message("question: ready?")
        assert got["name"] == "console"
        answer = bus.send("--to", "console", "--reply-to", str(got["id"]), "--text", "answer: yes", owner=auth)
        assert answer.stdout.startswith(("delivered ", "queued ")), "it takes what it is sent"
        broadcast = sender.broadcast("freeze", project=str(bus.cwd))
        assert broadcast.delivered + broadcast.queued == 1
        assert auth.wait_message("freeze")["name"] == "console"
        nobody = sender.broadcast("nobody", project="/nowhere")
        assert nobody.delivered + nobody.queued == 0
    finally:
        sender.close()
    wait_until(lambda: "console" not in bus.states(), "it has left for good", PATIENCE_S)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_when_the_console_ends_its_session_is_gone(bus: Bus, start_console: Any, signum: int) -> None:
    auth = bus.listener("auth")
    console = start_console()
    status, _, body = console.enter()("POST", "/api/send", {"scope": "session", "to": "auth", "text": "hi"})
    assert status == 200, body
    auth.wait_message("hi")
    assert "console" in bus.states()
    assert console.stop(signum) == (0, "")
    assert set(bus.states()) == {"auth"}


@pytest.mark.slow
def test_it_is_the_same_wherever_it_is_started_and_goes_on_when_that_directory_has_gone(
    bus: Bus, start_console: Any, tmp_path: Path
) -> None:
    """So what a killed one has left is taken over by the next: the same name, in the same project."""
    auth = bus.listener("auth")
    projects = set()
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        console = start_console(cwd=directory)
        directory.rmdir()
        send = {"scope": "session", "to": "auth", "text": f"hi {number}"}
        status, _, body = console.enter()("POST", "/api/send", send)
        assert status == 200, body
        auth.wait_message(f"hi {number}")
        found = json.loads(bus.zmqbus("list", "--all", "--json").stdout)
        projects |= {one["project"] for one in found if one["name"] == "console"}
        console.process.kill()
        console.process.wait(PATIENCE_S)
        wait_until(lambda: bus.states().get("console") == "away", "it is found dead", PATIENCE_S)
    assert projects == {"/"}
