"""Messages as single lines no wider than the terminal, their JSON, and times as people give them."""

from __future__ import annotations

import base64
import datetime
import json
import os
import re
import sys
import time

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.records import RECORD, RECORDS, encode_record
from zmqbus.cli import format, jsonform
from zmqbus.journal.filter import ALL, Entry, LineFilter
from zmqbus.journal.record import Record
from zmqbus.journal.segments import Place
from zmqbus.text import display
from zmqbus.text.display import sanitise

NOW = 1_800_000_000.0


def entry_of(record: Record) -> Entry:
    fd = os.open(os.devnull, os.O_RDONLY)
    line = encode_record(record)
    found = LineFilter(ALL).match(fd, Place(1, 0), len(line), line)
    os.close(fd)
    assert isinstance(found, Entry)
    return found


def line_of(record: Record, width: int | None, looked_for: re.Pattern[str] | None = None) -> tuple[str, bool]:
    return format.line_of(entry_of(record), lambda entry: record.body.decode(), width, looked_for)


class TestTimes:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604_800), ("1d12h", 129_600), ("0.5h", 1800), ("0s", 0)],
    )
    def test_ages(self, text: str, seconds: float) -> None:
        assert format.since(text, NOW) == NOW - seconds

    def test_iso_times(self) -> None:
        utc = datetime.datetime(2026, 1, 31, 9, 30, tzinfo=datetime.timezone.utc).timestamp()
        assert format.since("2026-01-31T09:30Z", NOW) == utc
        assert format.since("2026-01-31T10:30+01:00", NOW) == utc
        assert format.since("2026-01-31T09:30", NOW) == datetime.datetime(2026, 1, 31, 9, 30).timestamp()
        assert format.since("2026-01-31", NOW) == datetime.datetime(2026, 1, 31).timestamp()

    @pytest.mark.parametrize(
        "text", ["", "2", "2w", "h", "-2h", "2h ago", "yesterday", "2026-13-01", "1e5s", "9" * 400 + "-01"]
    )
    def test_invalid_time_names_the_valid_forms(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"invalid time .*; give an age such as 90s, 30m, 2h or 7d"):
            format.since(text, NOW)

    def test_clock(self) -> None:
        now = time.time()
        while re.fullmatch(r"\d\d:\d\d:\d\d", format.clock(now, short=True)) is None:
            assert time.localtime(now)[:3] != time.localtime()[:3], "only when midnight has just passed"
            now = time.time()
        assert re.fullmatch(r"\d\d-\d\d \d\d:\d\d:\d\d", format.clock(now - 3 * 86400, short=True))
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", format.clock(now, short=False))


class TestLines:
    @given(RECORDS, st.integers(format.MIN_WIDTH, 200))
    def test_line_fits_the_terminal(self, record: Record, width: int) -> None:
        line, cut = line_of(record._replace(fmt="text", body=b"x" * len(record.body)), width)
        heading = format.heading(entry_of(record), short=True)
        room = max(width - display.columns(heading), format.MIN_WIDTH // 2)
        assert display.columns(line) <= display.columns(heading) + room
        assert sanitise(line) == line
        assert cut == (len(record.body) > room)

    @given(st.text(max_size=100), st.integers(2, 60))
    def test_short_text_is_not_cut(self, text: str, columns: int) -> None:
        text = sanitise(text)
        fitting = display.fit(text, columns)
        assert display.columns(fitting) <= columns
        assert fitting == text if display.columns(text) <= columns else fitting.endswith("…")

    def test_wide_characters_take_two_columns(self) -> None:
        assert display.fit("漢字漢字", 8) == "漢字漢字"
        assert display.fit("漢字漢字", 7) == "漢字漢…"
        assert display.fit("漢字漢字", 6) == "漢字…"
        assert display.fit("e\u0301" * 8, 8) == "e\u0301" * 8

    def test_hostile_text_is_sanitised(self) -> None:
        text = "red \x1b[31m\x1b]0;title\x07 \u202egnp.exe\nforged\r\n\x9b2J"
        for width in (None, 120):
            line, _ = line_of(RECORD._replace(body=text.encode(), from_name="a\nb"), width)
            assert "\x1b" not in line and "\n" not in line and "\u202e" not in line and "\x9b" not in line
            assert line.endswith("red  gnp.exe↵forged↵")

    def test_unbounded_line_holds_the_whole_text(self) -> None:
        text = "word " * 1000
        line, cut = line_of(RECORD._replace(body=text.encode()), None)
        assert line.endswith(text)
        assert not cut

    def test_match_is_shown(self) -> None:
        text = "x" * 700 + " needle " + "y" * 700
        line, cut = line_of(RECORD._replace(body=text.encode()), 100, re.compile("needle"))
        assert "needle" in line and cut
        line, _ = line_of(RECORD._replace(body=b"a needle " + text.encode()), 100, re.compile("needle"))
        assert ": a needle x" in line

    def test_headings(self) -> None:
        entry = entry_of(RECORD._replace(reply_to="abcdef123456", kind="answer"))
        assert format.heading(entry, short=False).endswith(" abc123def456 orchestrator → auth answer re=abcdef123456: ")
        assert format.target(entry_of(RECORD._replace(to="%/home/me/my project"))) == "%my_project"
        assert format.target(entry_of(RECORD._replace(to="#deploys"))) == "#deploys"


class TestJson:
    @given(RECORDS)
    def test_message_is_complete(self, record: Record) -> None:
        fields = jsonform.entry(entry_of(record), lambda entry: record)
        log = json.loads(encode_record(record))
        assert fields.items() >= {key: value for key, value in log.items() if key not in ("text", "data")}.items()
        if record.fmt == "text":
            assert fields["text"] == log["text"]
        else:
            assert base64.b64decode(fields["data"]) == record.body

    def test_value_is_also_readable(self) -> None:
        record = RECORD._replace(fmt="msgpack", body=msgpack.packb({"a": 1}))
        assert jsonform.entry(entry_of(record), lambda entry: record)["text"] == "{'a': 1}"


class TestOutput:
    def test_file_has_no_width(self, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
        with open(os.path.join(tmp_path, "file"), "w") as file:
            monkeypatch.setattr(sys, "stdout", file)
            assert format.width_of_terminal() is None

    def test_width_of_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        leader, follower = os.openpty()
        with os.fdopen(follower, "w") as terminal:
            monkeypatch.setattr(sys, "stdout", terminal)
            monkeypatch.setenv("COLUMNS", "123")
            assert format.width_of_terminal() == 123
            monkeypatch.setenv("COLUMNS", "7")
            assert format.width_of_terminal() == format.MIN_WIDTH
            monkeypatch.delenv("COLUMNS")
            assert format.width_of_terminal() is not None
        os.close(leader)

    def test_pause_ends_when_the_reader_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as pipe:
            monkeypatch.setattr(sys, "stdout", pipe)
            assert format.pause(0.001) is False
            os.close(reader)
            assert format.pause(60.0) is True
