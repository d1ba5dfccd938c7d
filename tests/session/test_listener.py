"""What stands between a line and its acknowledgement. (All else about listeners: tests/real/test_listener.py.)"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zmqbus.client import core
from zmqbus.process import Process
from zmqbus.protocol import Format, Scope
from zmqbus.session.listener import Listener, Plan
from zmqbus.session.shown import Shown
from zmqbus.session.state import Identity, ListenerLock
from zmqbus.settings import load

OWNER = Process(4711, "1000")


class FakeLink:
    """Stands for the link and its core; says what was asked of it, in order."""

    def __init__(self, events: list[str]) -> None:
        self.core: Any = self
        self._events = events

    def taken(self, ticket: core.Ticket) -> None:
        self._events.append(f"taken {ticket.msg_id}")

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


def arrival(number: int) -> core.Hand:
    msg_id = f"message{number:05}"
    ticket = core.Ticket("lease", number, msg_id, None)
    return core.Hand(
        core.Incoming(
            ticket, msg_id, "s1", "pay", None, Scope.SESSION, "s2", Format.TEXT, None, 0.0, -1, None, b"x" * 300
        )
    )


def test_the_ids_are_on_file_next_to_the_lines(data: str, lock: ListenerLock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One write for the lines, one for all ids behind it, and then the acknowledgement: also when the lines have filled
    the pipe, and there is no room for more."""
    settings = load(environ={"INTER_SESSION_DATA_DIR": data})
    identity = Identity("session", "token", "auth", None)
    plan = Plan("auth", True, None, (), (), "/", "/", OWNER, identity)
    listener = Listener(settings, lock, plan, lambda _: None)
    listener._shown.open()
    events: list[str] = []
    link: Any = FakeLink(events)
    reader, writer = os.pipe()
    real = os.write

    def write(fd: int, data: bytes) -> int:
        known = Shown(settings.data_dir, OWNER.pid, "session")
        on_file = [number for number in range(4) if f"message{number:05}" in known]
        known.close()
        events.append(f"{'lines' if fd == writer else 'ids'} after {on_file}")
        return real(fd, data)

    try:
        listener._stdout = writer
        os.set_blocking(writer, False)
        try:  # room for one flush and nothing behind it
            while True:
                real(writer, b"\n" * 4096)
        except BlockingIOError:
            os.read(reader, 4096)
        monkeypatch.setattr(os, "write", write)
        for number in range(3):
            listener._deal(link, arrival(number))
        listener._flush(link)
        assert events == [
            "lines after []",
            "ids after []",
            *(f"taken message{number:05}" for number in range(3)),
            "acknowledged",
        ]
        assert all(f"message{number:05}" in Shown(settings.data_dir, OWNER.pid, "session") for number in range(3))
        del events[:]
        listener._deal(link, arrival(3))
        listener._flush(link)
        assert events == [], "nobody reads, so nothing is written, and nothing acknowledged"
        assert "message00003" not in Shown(settings.data_dir, OWNER.pid, "session")
    finally:
        listener._shown.close()
        os.close(reader)
        os.close(writer)


def test_what_a_command_has_printed_in_the_meantime_is_not_shown(data: str, lock: ListenerLock) -> None:
    """A listener that is stopped cannot give back what it holds, and `zmqbus inbox` does not wait for it."""
    settings = load(environ={"INTER_SESSION_DATA_DIR": data})
    plan = Plan("auth", True, None, (), (), "/", "/", OWNER, Identity("session", "token", "auth", None))
    listener = Listener(settings, lock, plan, lambda _: None)
    listener._shown.open()
    events: list[str] = []
    link: Any = FakeLink(events)
    reader, writer = os.pipe()
    command = Shown(settings.data_dir, OWNER.pid, "session")
    try:
        listener._stdout = writer
        for number in range(3):
            listener._deal(link, arrival(number))
        command.add("message00001")
        listener._flush(link)
        shown = os.read(reader, 4096).decode()
        assert [f"message{number:05}" in shown for number in range(3)] == [True, False, True]
        assert events[0] == "taken message00001"  # it is acknowledged all the same
    finally:
        command.close()
        listener._shown.close()
        os.close(reader)
        os.close(writer)


def test_lines_that_are_half_out_are_not_acknowledged(data: str, lock: ListenerLock) -> None:
    settings = load(environ={"INTER_SESSION_DATA_DIR": data})
    plan = Plan("auth", True, None, (), (), "/", "/", OWNER, Identity("session", "token", "auth", None))
    listener = Listener(settings, lock, plan, lambda _: None)
    listener._shown.open()
    events: list[str] = []
    link: Any = FakeLink(events)
    reader, writer = os.pipe()
    try:
        listener._stdout = writer
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"\n" * select.PIPE_BUF)
        os.read(reader, select.PIPE_BUF)  # room for one write, and the flush needs two
        for number in range(5):
            hand = arrival(number)
            listener._deal(link, hand._replace(message=hand.message._replace(body=("あ" * 300).encode())))
        listener._flush(link)
        assert listener._unwritten and events == []
        assert "message00000" not in Shown(settings.data_dir, OWNER.pid, "session")
        while os.read(reader, 1 << 20) and listener._unwritten:
            listener._flush(link)
        assert events[-1] == "acknowledged" and len(events) == 6
    finally:
        listener._shown.close()
        os.close(reader)
        os.close(writer)
