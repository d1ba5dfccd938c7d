"""Search in a process of its own, so that no regular expression blocks the console."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.console.conftest import put
from tests.records import RECORD, ids
from zmqbus.console import search as search_module
from zmqbus.console.search import MAX_FOUND, MAX_QUERY_CHARS, Query, run_query, search
from zmqbus.errors import InvalidPayload, Timeout
from zmqbus.settings import Paths


@pytest.fixture
def paths(data_dir: Path) -> Paths:
    texts = ["The login page", "logout", "a CAFÉ", "line\nbreak login again", "nothing"]
    put(data_dir, *(RECORD._replace(msg_id=f"message{n}", body=text.encode()) for n, text in enumerate(texts)))
    return Paths(str(data_dir))


def found(paths: Paths, text: str, mode: str = "words", before: str | None = None) -> list[str]:
    question = {"data_dir": paths.data_dir, "text": text, "mode": mode, "before": before}
    return [item["id"] for item in run_query(question)["items"]]


def test_search_words(paths: Paths) -> None:
    assert found(paths, "login") == ["message3", "message0"]
    assert found(paths, "LOGIN page") == ["message0"]
    assert found(paths, "log") == ["message3", "message1", "message0"], "the last word matches as a prefix"
    assert found(paths, '"login page"') == ["message0"]
    assert found(paths, "cafe") == ["message2"]
    assert found(paths, "login zebra") == []


def test_search_regular_expressions(paths: Paths) -> None:
    assert found(paths, "log(in|out)", "regex") == ["message3", "message1", "message0"]
    assert found(paths, "^logout$", "regex") == ["message1"]
    assert found(paths, "line\\nbreak", "regex") == ["message3"]


def test_search_continues_after_a_page(data_dir: Path) -> None:
    every = ids(MAX_FOUND + 20)
    put(data_dir, *(RECORD._replace(msg_id=msg_id) for msg_id in every))
    for text, mode in (("tests", "words"), ("tests", "regex")):
        question = {"data_dir": str(data_dir), "text": text, "mode": mode, "before": None}
        first = run_query(question)
        assert len(first["items"]) == MAX_FOUND
        second = run_query({**question, "before": first["before"]})
        assert [one["id"] for one in first["items"] + second["items"]] == every[::-1]
        assert second["before"] is None


@pytest.mark.slow
def test_search_in_its_own_process(paths: Paths) -> None:
    assert [item["id"] for item in search(paths, Query("login", "words"))["items"]] == ["message3", "message0"]
    assert [item["id"] for item in search(paths, Query("out", "regex"))["items"]] == ["message1"]


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("(", "regex", "invalid regular expression"),
        ("x{99999999999999}", "regex", "invalid regular expression"),
        ("-", "words", "words"),
        ("!", "words", "words"),
        ("x " * MAX_QUERY_CHARS, "words", "shorten"),
    ],
)
def test_invalid_query(paths: Paths, text: str, mode: str, says: str) -> None:
    with pytest.raises(InvalidPayload, match=says):
        search(paths, Query(text, mode))  # type: ignore[arg-type]


@pytest.mark.slow
def test_endless_regular_expression_is_stopped(data_dir: Path, monkeypatch) -> None:
    put(data_dir, RECORD._replace(body=b"a" * 60 + b"!"))
    monkeypatch.setattr(search_module, "TIMEOUT_S", 2.0)
    with pytest.raises(Timeout, match="simpler"):
        search(Paths(str(data_dir)), Query("^(a+)+$", "regex"))


@pytest.mark.slow
def test_unreadable_log(paths: Paths, data_dir: Path) -> None:
    (data_dir / "messages.log").chmod(0o644)
    with pytest.raises(InvalidPayload, match="chmod"):
        search(paths, Query("login", "words"))
