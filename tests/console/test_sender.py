"""The console's own session: joins to send, leaves when no page is open."""

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
from zmqbus.console import sender as sender_module
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
    """Names that other sessions have."""
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


def test_joins_with_the_first_message_under_a_free_name(sender: Sender, joined: list[FakeBus]) -> None:
    assert sender.session_id is None and joined == []
    sender.send("auth", "hi", None)
    sender.send("auth", "hi", None)
    assert [bus.name for bus in joined] == ["console-2"]
    assert sender.session_id == "id of console-2"


def test_leaves_without_a_page_and_comes_back(
    sender: Sender, joined: list[FakeBus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "STAY_S", 0.01)
    sender.set_pages(1)
    sender.send("auth", "hi", None)
    sender.set_pages(0)
    assert joined[0].closed.wait(PATIENCE_S)
    wait_until(lambda: sender.session_id is None, "it has left", PATIENCE_S)
    sender.send("auth", "hi", None)
    assert len(joined) == 2


def test_comes_back_under_its_former_name(
    sender: Sender, joined: list[FakeBus], taken: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the former name would stay listed as away."""
    monkeypatch.setattr(sender_module, "STAY_S", 0.01)
    sender.send("auth", "hi", None)
    sender.set_pages(0)
    assert joined[0].closed.wait(PATIENCE_S)
    taken.clear()
    sender.send("auth", "hi", None)
    assert [bus.name for bus in joined] == ["console-2", "console-2"]


def test_close_forgets_the_session(sender: Sender, joined: list[FakeBus], monkeypatch: pytest.MonkeyPatch) -> None:
    sender.send("auth", "hi", None)
    sender.close()
    assert [bus.forgotten for bus in joined] == [True]


@pytest.mark.parametrize("broker", [None, 4711])
def test_close_forgets_a_session_that_is_away(
    sender: Sender, joined: list[FakeBus], monkeypatch: pytest.MonkeyPatch, broker: int | None
) -> None:
    monkeypatch.setattr(sender_module, "STAY_S", 0.01)
    monkeypatch.setattr(sender_module, "broker_pid", lambda settings: broker)
    sender.send("auth", "hi", None)
    sender.set_pages(0)
    assert joined[0].closed.wait(PATIENCE_S)
    assert not joined[0].forgotten, "a page may come back"
    sender.close()
    # It joins again to be forgotten, but starts no broker for that.
    assert [bus.forgotten for bus in joined] == ([False] if broker is None else [False, True])


def test_reload_keeps_the_session(sender: Sender, joined: list[FakeBus]) -> None:
    sender.send("auth", "hi", None)
    sender.set_pages(0)
    sender.set_pages(1)
    assert not sender.is_leaving and not joined[0].closed.is_set()


def test_rejoins_after_a_disconnect(sender: Sender, joined: list[FakeBus]) -> None:
    sender.send("auth", "hi", None)
    joined[0].closed.set()  # disconnected by another session

    def rejoined() -> bool:
        sender.send("auth", "hi", None)
        return len(joined) == 2

    wait_until(rejoined, "it joins again", PATIENCE_S)


def test_send_after_close_is_refused(sender: Sender) -> None:
    sender.close()
    sender.close()
    with pytest.raises(NotConnected, match="zmqbus console"):
        sender.send("auth", "hi", None)


def test_receipt_json() -> None:
    assert receipt_json(Receipt("abcdefgh", "queued", "auth", "id", True, 0))["busy"] is True


@pytest.mark.slow
def test_sends_and_receives_on_a_real_bus(bus: Bus, settings: Settings) -> None:
    auth = bus.listener("auth")
    sender = Sender(settings)
    try:
        receipt = sender.send(auth.session_id, "question: ready?", None)
        # Queued when the listener takes longer than the broker's second.
        assert receipt.state in ("delivered", "queued") and receipt.to == "auth"
        got = auth.wait_message("question: ready?")
        assert got["name"] == "console"
        answer = bus.send("--to", "console", "--reply-to", str(got["id"]), "--text", "answer: yes", owner=auth)
        assert answer.stdout.startswith(("delivered ", "queued ")), "the console acknowledges answers"
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
def test_session_is_gone_when_the_console_ends(bus: Bus, start_console: Any, signum: int) -> None:
    auth = bus.listener("auth")
    console = start_console()
    status, _, body = console.enter()("POST", "/api/send", {"scope": "session", "to": "auth", "text": "hi"})
    assert status == 200, body
    auth.wait_message("hi")
    assert "console" in bus.states()
    assert console.stop(signum) == (0, "")
    assert set(bus.states()) == {"auth"}


@pytest.mark.slow
def test_session_does_not_depend_on_the_working_directory(bus: Bus, start_console: Any, tmp_path: Path) -> None:
    """So the next console takes over the session of a killed one: same name, same project."""
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
