"""Notes of messages: they show the beginning of a body, wherever it is, and no more of it is read."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.records import RECORD, encode_record
from zmqbus.client.core import Incoming, Ticket
from zmqbus.client.message import encode
from zmqbus.journal.reader import Reader
from zmqbus.journal.writer import Journal
from zmqbus.session.notify import Note, format_note
from zmqbus.session.render import WHOLE_BYTES, note_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format

MIB = 1024 * 1024
HEADER = verbs.Header("s", "auth", None, 0, "", 0, None, 1.0)


class Stage:
    """A journal, its reader, and messages in it."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "messages.log")
        self.journal = Journal(self.path)
        self.reader = Reader(self.path)

    def note(self, body: bytes, fmt: Format = Format.TEXT, *, here: bytes | None = None, sized: bool = True) -> Note:
        """The note of a message whose body is in the log. `here`: the part in the message; `sized`: it has the size."""
        record = RECORD._replace(fmt=verbs.FORMAT_WORDS[fmt], body=body)
        (pointer,) = self.journal.append([encode_record(record)])
        size = len(body) if sized else -1
        if here is not None:
            row = verbs.Previewed(
                record.msg_id, "s", "auth", None, 0, "", fmt, None, 1.0, 5, tuple(pointer), size, here
            )
            return note_of(row, self.reader)
        ticket = Ticket("lease", 1, (record.msg_id,), None)
        message = Incoming(ticket, record.msg_id, HEADER._replace(fmt=fmt), -1, tuple(pointer), size, b"")
        return note_of(message, self.reader)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.reader.close()
    stage.journal.close()


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all reads."""
    asked: list[int] = []
    real = os.pread

    def pread(fd: int, size: int, at: int) -> bytes:
        asked.append(size)
        return real(fd, size, at)

    monkeypatch.setattr(os, "pread", pread)
    return asked


def lines(value: Any) -> list[str]:
    fmt, body = encode(value)
    ticket = Ticket("lease", 1, ("abcd1234",), None)
    message = Incoming(ticket, "abcd1234", HEADER._replace(fmt=fmt), -1, None, len(body), body)
    reader = Reader("/log")  # of which nothing is read
    return format_note(note_of(message, reader), "/log")


class TestNotes:
    """Only as much of a body is read as its line shows."""

    @pytest.mark.parametrize("letter", ["z", "\x01", '"', "ä", "\U0001f600"])
    def test_only_the_beginning_of_a_large_text_is_read(self, letter: str, stage: Stage, read_bytes: list[int]) -> None:
        body = ("begins " + letter * MIB).encode()
        note = stage.note(body)
        assert note.text.startswith("begins " + letter) and note.size_bytes == len(body)
        assert sum(read_bytes) < 64 * 1024
        first, second = format_note(note, stage.path)
        assert f" truncated={len(body)}] begins " in first and " cont] full text " in second

    def test_medium_text_is_read_whole_and_checked(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        body = b"x" * (WHOLE_BYTES // 2)
        assert stage.note(body).text == body.decode()
        real = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, size, at).replace(b"xx", b"xy", 1))
        assert stage.note(body).text.startswith("(the text of message ")

    def test_body_of_unknown_size_is_read_whole(self, stage: Stage) -> None:
        note = stage.note(b"t" * 100_000, sized=False)
        assert (len(note.text), note.size_bytes) == (100_000, 100_000)

    def test_preview_shows_the_part_that_it_contains(self, stage: Stage, read_bytes: list[int]) -> None:
        body = "ä".encode() * 1000
        note = stage.note(body, here=body[:11])  # through the middle of one
        assert (note.text, note.size_bytes, note.age_s) == ("äääää", 2000, 5) and not read_bytes
        assert stage.note(b"", here=b"").text == ""

    @pytest.mark.parametrize("fmt", [Format.MSGPACK, Format.BYTES])
    def test_of_a_large_value_only_the_size_is_shown(self, fmt: Format, stage: Stage, read_bytes: list[int]) -> None:
        body: bytes = msgpack.packb(b"x" * MIB)
        note = stage.note(body, fmt)
        if fmt == Format.BYTES:  # which are told by their number, and that is all of it
            assert note.text == f"<{len(body)} bytes>" and note.size_bytes == len(note.text)
        else:
            assert note.text == "<a value of 1.0 MB>" and note.size_bytes == len(body)
        assert sum(read_bytes) == 0
        small: bytes = msgpack.packb([1, 2])
        assert stage.note(small, fmt, here=small).text == ("[1, 2]" if fmt is Format.MSGPACK else "<3 bytes>")

    def test_missing_text_is_named_in_the_note(self, stage: Stage) -> None:
        os.truncate(stage.path, 0)
        stage.journal.close()
        os.unlink(stage.path)
        stage.journal = Journal(stage.path)
        ticket = Ticket("lease", 1, ("aaaaaaaaaaaa",), None)
        lost = Incoming(ticket, "aaaaaaaaaaaa", HEADER, -1, (9, 9, 9, 9), MIB, b"")
        assert note_of(lost, stage.reader).text.startswith("(the text of message ")


class TestCut:
    @pytest.mark.parametrize(
        "value",
        [
            [0.5] * 60,
            [1.0, 2.0],
            {"weights": [0.25] * 40},
            b"",
            b"x",
            b"\xff" * 1_000_000,
            [b"\0" * 30],
            "é" * 400,
            None,
            2**63,
        ],
        ids=lambda value: repr(value)[:20],
    )
    def test_body_shown_whole_is_not_marked_as_cut(self, value: Any) -> None:
        (line,) = lines(value)
        text = f"<{len(value)} bytes>" if isinstance(value, bytes) else value if isinstance(value, str) else repr(value)
        assert line == f'[inter-session msg=abcd1234 from="auth"] {text}'

    def test_cut_value_has_the_length_of_its_text(self) -> None:
        value = [random.Random(1).random() for _ in range(100)]
        line, where = lines(value)
        assert f" truncated={len(repr(value))}]" in line
        assert (
            where.startswith("[inter-session msg=abcd1234 cont] full text 1.9 KB at /log") or len(repr(value)) != 1995
        )
