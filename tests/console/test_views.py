"""Views of messages for the page."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.console.conftest import put
from tests.records import RECORD
from zmqbus.console.views import HEAD_CHARS, of_entry, of_record, parse_place, place_text
from zmqbus.journal.history import History
from zmqbus.journal.segments import Place


def test_entry_and_record_have_the_same_view(data_dir: Path) -> None:
    record = RECORD._replace(body="grüße \U0001f600".encode(), reply_to="abcdefgh", from_label="Label")
    put(data_dir, record)
    (entry,) = History(str(data_dir / "messages.log")).page().entries
    view, text = of_entry(entry), of_record(record)
    assert view["at"] == place_text(entry.place)
    assert {**view, "at": None} == text[0]
    assert text[1] == "grüße \U0001f600"
    json.dumps(view)


def test_long_text_is_shortened(data_dir: Path) -> None:
    put(data_dir, RECORD._replace(body=b"x" * 2_000_000), RECORD._replace(body=b"y" * (HEAD_CHARS + 1)))
    for entry in History(str(data_dir / "messages.log")).page().entries:
        view = of_entry(entry)
        assert len(view["text"]) == HEAD_CHARS and not view["whole"]
        assert view["bytes"] >= HEAD_CHARS


@given(st.integers(0, 10**17), st.integers(0, 10**17))
def test_place_round_trip(segment: int, offset: int) -> None:
    assert parse_place(place_text(Place(segment, offset))) == Place(segment, offset)


@given(st.none() | st.text(max_size=40))
def test_invalid_place_is_none(text: str | None) -> None:
    found = parse_place(text)
    assert found is None or place_text(found) is not None
    for wrong in ("", "1", "1.", ".1", "1.2.3.4", "-1.2", "1.x", "1" * 40 + ".1", "١.٢"):
        assert parse_place(wrong) is None
