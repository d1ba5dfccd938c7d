"""Following the log for open pages."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import PATIENCE_S, put
from tests.records import RECORD, ids
from zmqbus.console.log_tail import JUMP_BYTES, MAX_ENTRIES, LogTail
from zmqbus.journal.record import Record


class Events:
    """Collects published events."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue()

    def __call__(self, kind: str, data: Any) -> None:
        self._queue.put((kind, data))

    def get(self) -> tuple[str, Any]:
        return self._queue.get(timeout=PATIENCE_S)

    def until(self, msg_id: str) -> tuple[list[str], bool]:
        """Returns the published ids up to this one, and whether there was a gap."""
        found: list[str] = []
        gap = False
        while msg_id not in found:
            kind, data = self.get()
            assert kind == "messages", (kind, data)
            assert len(data["items"]) <= MAX_ENTRIES
            found += [item["id"] for item in data["items"]]
            gap = gap or data["gap"]
        return found, gap


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def tail(data_dir: Path, events: Events):
    tail = LogTail(str(data_dir / "messages.log"), events)
    tail.start()
    yield tail
    tail.close()
    assert not tail.is_running


def message(msg_id: str, size: int = 10) -> Record:
    return RECORD._replace(msg_id=msg_id, body=b"x" * size)


def test_publishes_new_messages_only(data_dir: Path, tail: LogTail, events: Events) -> None:
    put(data_dir, message("before01"))
    tail.set_pages(1)
    tail.follow()
    put(data_dir, message("message1"), message("message2"))
    assert events.until("message2") == (["message1", "message2"], False)


def test_pauses_without_a_page(data_dir: Path, tail: LogTail, events: Events) -> None:
    tail.set_pages(1)
    tail.follow()
    put(data_dir, message("message1"))
    events.until("message1")
    tail.set_pages(0)
    put(data_dir, message("unseen01"))
    tail.set_pages(1)
    tail.follow()
    put(data_dir, message("message2"))
    # Whether or not the tail had paused in time, the published messages are contiguous and reach the newest.
    found, gap = events.until("message2")
    assert found in (["message2"], ["unseen01", "message2"]) and not gap


def test_follows_a_new_log_and_its_rotation(data_dir: Path, tail: LogTail, events: Events) -> None:
    tail.set_pages(1)
    tail.follow()
    put(data_dir, message("message1"))
    events.until("message1")
    put(data_dir, message("message2"))
    (data_dir / "messages.log").rename(data_dir / "messages.log.1")
    put(data_dir, message("message3"), segment=2)
    assert events.until("message3")[0][-2:] == ["message2", "message3"]


def test_flood_is_published_with_a_gap(data_dir: Path, tail: LogTail, events: Events) -> None:
    put(data_dir)
    tail.set_pages(1)
    tail.follow()
    count = 2 * JUMP_BYTES // 400
    every = ids(count)
    put(data_dir, *(message(msg_id, 400) for msg_id in every))
    found, gap = events.until(every[-1])
    # The number of polls during the write varies. Each takes up to its limit in order, the last one the newest.
    assert gap and len(found) < count
    assert found == [one for one in every if one in found] and found[-1] == every[-1]


def test_message_larger_than_a_jump(data_dir: Path, tail: LogTail, events: Events) -> None:
    put(data_dir, message("before01"))
    tail.set_pages(1)
    tail.follow()
    put(data_dir, message("large001", 3 * JUMP_BYTES), message("small001"))
    assert events.until("small001") == (["large001", "small001"], False)


def test_unreadable_log_is_reported(data_dir: Path, tail: LogTail, events: Events) -> None:
    put(data_dir, message("before01"))
    tail.set_pages(1)
    tail.follow()
    (data_dir / "messages.log").rename(data_dir / "gone")
    (data_dir / "messages.log").touch(0o644)
    (data_dir / "messages.log").chmod(0o644)
    kind, data = events.get()
    assert kind == "trouble" and "chmod" in data["text"]


def test_close_twice_and_before_start(data_dir: Path, events: Events) -> None:
    tail = LogTail(str(data_dir / "messages.log"), events)
    tail.close()
    tail.close()
