"""The log, followed for the pages that are open."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import PATIENCE_S, put
from tests.records import RECORD, ids
from zmqbus.console.log_tail import JUMP_BYTES, MAX_ENTRIES, LogTail
from zmqbus.journal.record import Record


class Heard:
    def __init__(self) -> None:
        self.events: queue.Queue[tuple[str, Any]] = queue.Queue()

    def __call__(self, kind: str, data: Any) -> None:
        self.events.put((kind, data))

    def until(self, msg_id: str) -> tuple[list[str], bool]:
        """Ids up to this one, and whether there was a gap."""
        found: list[str] = []
        gap = False
        while msg_id not in found:
            kind, data = self.events.get(timeout=PATIENCE_S)
            assert kind == "messages", (kind, data)
            assert len(data["items"]) <= MAX_ENTRIES
            found += [item["id"] for item in data["items"]]
            gap = gap or data["gap"]
        return found, gap


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def tail(data_dir: Path, heard: Heard):
    tail = LogTail(str(data_dir / "messages.log"), heard)
    tail.start()
    yield tail
    tail.close()
    assert not tail.is_running


def message(msg_id: str, size: int = 10) -> Record:
    return RECORD._replace(msg_id=msg_id, body=b"x" * size)


def test_what_comes_is_told_and_what_was_there_is_not(data_dir: Path, tail: LogTail, heard: Heard) -> None:
    put(data_dir, message("before01"))
    tail.set_pages(1)
    tail.follow()
    put(data_dir, message("message1"), message("message2"))
    assert heard.until("message2") == (["message1", "message2"], False)


def test_without_a_page_the_log_is_left_alone(data_dir: Path, tail: LogTail, heard: Heard) -> None:
    tail.set_pages(1)
    tail.follow()
    put(data_dir, message("message1"))
    heard.until("message1")
    tail.set_pages(0)
    put(data_dir, message("unseen01"))
    tail.set_pages(1)
    tail.follow()
    put(data_dir, message("message2"))
    # Whether it had stopped in time or not: what is told goes on without a hole, and comes to the newest.
    found, gap = heard.until("message2")
    assert found in (["message2"], ["unseen01", "message2"]) and not gap


def test_rotation_removal_and_a_log_that_begins_later(data_dir: Path, tail: LogTail, heard: Heard) -> None:
    tail.set_pages(1)
    tail.follow()
    put(data_dir, message("message1"))
    heard.until("message1")
    put(data_dir, message("message2"))
    (data_dir / "messages.log").rename(data_dir / "messages.log.1")
    put(data_dir, message("message3"), segment=2)
    assert heard.until("message3")[0][-2:] == ["message2", "message3"]


def test_of_a_flood_the_newest_are_told_and_that_there_were_more(data_dir: Path, tail: LogTail, heard: Heard) -> None:
    put(data_dir)
    tail.set_pages(1)
    tail.follow()
    count = 2 * JUMP_BYTES // 400
    every = ids(count)
    put(data_dir, *(message(msg_id, 400) for msg_id in every))
    found, gap = heard.until(every[-1])
    # How many looks fell into the writing is not known. Each took what one may, in order, and the last the newest.
    assert gap and len(found) < count
    assert found == [one for one in every if one in found] and found[-1] == every[-1]


def test_a_message_that_is_larger_than_a_jump(data_dir: Path, tail: LogTail, heard: Heard) -> None:
    put(data_dir, message("before01"))
    tail.set_pages(1)
    tail.follow()
    put(data_dir, message("large001", 3 * JUMP_BYTES), message("small001"))
    assert heard.until("small001") == (["large001", "small001"], False)


def test_a_log_that_others_can_read_is_told_as_trouble(data_dir: Path, tail: LogTail, heard: Heard) -> None:
    put(data_dir, message("before01"))
    tail.set_pages(1)
    tail.follow()
    (data_dir / "messages.log").rename(data_dir / "gone")
    (data_dir / "messages.log").touch(0o644)
    (data_dir / "messages.log").chmod(0o644)
    kind, data = heard.events.get(timeout=PATIENCE_S)
    assert kind == "trouble" and "chmod" in data["text"]


def test_closing_twice_and_before_the_start(data_dir: Path, heard: Heard) -> None:
    tail = LogTail(str(data_dir / "messages.log"), heard)
    tail.close()
    tail.close()
