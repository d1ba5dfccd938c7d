"""From a line to its acknowledgement. (tests/real/test_listener.py covers the rest of the listener.)"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zmqbus.client import core
from zmqbus.process import Process, this_machine
from zmqbus.session.listener import Listener, Plan
from zmqbus.session.lock import ListenerLock
from zmqbus.session.owner_files import files_of
from zmqbus.session.shown_log import Shown
from zmqbus.session.state import Identity
from zmqbus.settings import load
from zmqbus.wire.verbs import Deliver, Format, Header, Scope

OWNER = Process(4711, "1000", *this_machine().place())


class FakeLink:
    """A substitute for the transport and its core, which records calls in order."""

    def __init__(self, events: list[str]) -> None:
        self.core: Any = self
        self._events = events

    def taken(self, ticket: core.Ticket) -> None:
        self._events.append(f"taken {ticket.msg_ids[0]}")

    def acknowledge(self) -> list[core.Effect]:
        self._events.append("acknowledged")
        return []

    def perform(self, effects: list[core.Effect]) -> list[core.Effect]:
        return effects


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def lock(data: str) -> Iterator[ListenerLock]:
    with ListenerLock.acquire(data, OWNER) as lock:
        yield lock


class Stage:
    """A listener with a fake transport, and the pipe that it writes to."""

    def __init__(self, data: str, lock: ListenerLock) -> None:
        self.settings = load(environ={"INTER_SESSION_DATA_DIR": data})
        plan = Plan("auth", True, None, (), (), "/", "/", OWNER, Identity("session", "token", "auth", None))
        self.listener = Listener(self.settings, lock, plan, lambda _: None)
        self.listener._shown.open()
        self.events: list[str] = []
        self.link: Any = FakeLink(self.events)
        self.reader, self.writer = os.pipe()
        self.listener._stdout = self.writer

    def deal(self, number: int, body: bytes = b"x" * 300) -> None:
        hand = arrival(number)
        self.listener._handle(self.link, hand._replace(batch=hand.batch._replace(bodies=(body,))))

    def flush(self) -> None:
        self.listener._flush(self.link)

    def fill(self) -> None:
        """Fills the pipe except for one write."""
        os.set_blocking(self.writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.writer, b"\n" * select.PIPE_BUF)
        os.read(self.reader, select.PIPE_BUF)

    def on_file(self) -> list[int]:
        """Numbers of the messages that other processes of the session know as shown."""
        known = Shown(files_of(self.settings.data_dir, OWNER), "session")
        try:
            return [number for number in range(6) if f"message{number:05}" in known]
        finally:
            known.close()

    def close(self) -> None:
        self.listener._shown.close()
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def stage(data: str, lock: ListenerLock) -> Iterator[Stage]:
    stage = Stage(data, lock)
    yield stage
    stage.close()


def arrival(number: int) -> core.Hand:
    msg_id = f"message{number:05}"
    ticket = core.Ticket("lease", number, (msg_id,), None)
    header = Header("s1", "pay", None, Scope.SESSION, "s2", Format.TEXT, None, 0.0)
    return core.Hand(ticket, Deliver(header, number, 0, 0, -1, None, 300, (msg_id,), (b"x" * 300,)))


class TestAcknowledgement:
    """A message is acknowledged after its line is written, and its id is on file in between."""

    def test_ids_are_stored_right_after_the_lines(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """One write for the lines, one for all ids, then the acknowledgement, even when the lines fill the pipe."""
        stage.fill()
        real = os.write

        def write(fd: int, data: bytes) -> int:
            stage.events.append(f"{'lines' if fd == stage.writer else 'ids'} after {stage.on_file()}")
            return real(fd, data)

        monkeypatch.setattr(os, "write", write)
        for number in range(3):
            stage.deal(number)
        stage.flush()
        assert stage.events == [
            "lines after []",
            "ids after []",
            *(f"taken message{number:05}" for number in range(3)),
            "acknowledged",
        ]
        assert stage.on_file() == [0, 1, 2]
        del stage.events[:]
        stage.deal(3)
        stage.flush()
        assert stage.events == [], "without a reader nothing is written and nothing acknowledged"
        assert stage.on_file() == [0, 1, 2]

    def test_message_that_a_command_has_printed_is_not_shown(self, stage: Stage) -> None:
        """`zmqbus inbox` does not wait until a stopped listener gives back the messages that it holds."""
        for number in range(3):
            stage.deal(number)
        command = Shown(files_of(stage.settings.data_dir, OWNER), "session")
        command.add("message00001")
        command.close()
        stage.flush()
        shown = os.read(stage.reader, 4096).decode()
        assert [f"message{number:05}" in shown for number in range(3)] == [True, False, True]
        assert stage.events[0] == "taken message00001"  # still acknowledged

    def test_partly_written_lines_are_not_acknowledged(self, stage: Stage) -> None:
        stage.fill()
        for number in range(5):
            stage.deal(number, ("あ" * 300).encode())  # more than one write takes
        stage.flush()
        assert stage.listener._unwritten and stage.events == []
        assert stage.on_file() == []
        while os.read(stage.reader, 1 << 20) and stage.listener._unwritten:
            stage.flush()
        assert stage.events[-1] == "acknowledged" and len(stage.events) == 6
        assert stage.on_file() == [0, 1, 2, 3, 4]
