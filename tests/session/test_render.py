"""What is shown of a message: the beginning, wherever the body is, and no more is read than that takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from tests.records import RECORD
from zmqbus.client.core import Incoming, Ticket
from zmqbus.journal.reader import Reader
from zmqbus.journal.record import encode_record
from zmqbus.journal.writer import Journal
from zmqbus.session.notify import Note, format_note
from zmqbus.session.render import WHOLE_BYTES, note_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format

MIB = 1024 * 1024


class Stage:
    """A journal, its reader, and messages in it."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "messages.log")
        self.journal = Journal(self.path)
        self.reader = Reader(self.path)

    def note(self, body: bytes, fmt: Format = Format.TEXT, *, here: bytes | None = None, told: bool = True) -> Note:
        """Of a message whose body is in the log; `here`: what of it came along. `told`: with its size."""
        record = RECORD._replace(fmt=verbs.FORMAT_WORDS[fmt], body=body)
        (pointer,) = self.journal.append([encode_record(record)])
        size = len(body) if told else -1
        if here is not None:
            row = verbs.Previewed(
                record.msg_id, "s", "auth", None, 0, "", fmt, None, 1.0, 5, tuple(pointer), size, here
            )
            return note_of(row, self.reader)
        ticket = Ticket("lease", 1, (record.msg_id,), None)
        message = Incoming(
            ticket, record.msg_id, "s", "auth", None, 0, "", fmt, None, 1.0, -1, tuple(pointer), size, b""
        )
        return note_of(message, self.reader)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.reader.close()
    stage.journal.close()


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much each reading asks for."""
    asked: list[int] = []
    real = os.pread

    def pread(fd: int, size: int, at: int) -> bytes:
        asked.append(size)
        return real(fd, size, at)

    monkeypatch.setattr(os, "pread", pread)
    return asked


@pytest.mark.parametrize("letter", ["z", "\x01", '"', "ä", "\U0001f600"])
def test_of_a_large_text_the_beginning_is_read(letter: str, stage: Stage, read_bytes: list[int]) -> None:
    body = ("begins " + letter * MIB).encode()
    note = stage.note(body)
    assert note.text.startswith("begins " + letter) and note.size_bytes == len(body)
    assert sum(read_bytes) < 64 * 1024
    first, second = format_note(note, stage.path)
    assert f" truncated={len(body)}] begins " in first and " cont] full text " in second


def test_a_medium_one_is_read_whole_and_checked(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"x" * (WHOLE_BYTES // 2)
    assert stage.note(body).text == body.decode()
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, size, at).replace(b"xx", b"xy", 1))
    assert stage.note(body).text.startswith("(the text of message ")


def test_a_body_whose_size_is_not_told_is_read_whole(stage: Stage) -> None:
    note = stage.note(b"t" * 100_000, told=False)
    assert (len(note.text), note.size_bytes) == (100_000, 100_000)


def test_a_preview_shows_what_came_along(stage: Stage, read_bytes: list[int]) -> None:
    body = "ä".encode() * 1000
    note = stage.note(body, here=body[:11])  # through the middle of one
    assert (note.text, note.size_bytes, note.age_s) == ("äääää", 2000, 5) and not read_bytes
    assert stage.note(b"", here=b"").text == ""


@pytest.mark.parametrize("fmt", [Format.MSGPACK, Format.BYTES])
def test_of_a_large_value_only_the_size_is_told(fmt: Format, stage: Stage, read_bytes: list[int]) -> None:
    body: bytes = msgpack.packb(b"x" * MIB)
    note = stage.note(body, fmt)
    if fmt == Format.BYTES:  # which are told by their number, and that is all of it
        assert note.text == f"<{len(body)} bytes>" and note.size_bytes == len(note.text)
    else:
        assert note.text == "<a value of 1.0 MB>" and note.size_bytes == len(body)
    assert sum(read_bytes) == 0
    small: bytes = msgpack.packb([1, 2])
    assert stage.note(small, fmt, here=small).text == ("[1, 2]" if fmt is Format.MSGPACK else "<3 bytes>")


def test_a_text_that_is_gone_is_told(stage: Stage) -> None:
    os.truncate(stage.path, 0)
    stage.journal.close()
    os.unlink(stage.path)
    stage.journal = Journal(stage.path)
    ticket = Ticket("lease", 1, ("aaaaaaaaaaaa",), None)
    lost = Incoming(ticket, "aaaaaaaaaaaa", "s", "n", None, 0, "", 0, None, 1.0, -1, (9, 9, 9, 9), MIB, b"")
    assert note_of(lost, stage.reader).text.startswith("(the text of message ")
