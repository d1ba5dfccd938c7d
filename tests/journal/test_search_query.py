"""Searches: the query language, and that index, unindexed log and both together find the same."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.records import RECORD, encode_record, ids, line
from zmqbus.errors import InvalidPayload
from zmqbus.journal import search_query
from zmqbus.journal.filter import Wanted
from zmqbus.journal.record import JournalError
from zmqbus.journal.search_index import Index
from zmqbus.journal.search_query import MAX_TERMS, Search, parse
from zmqbus.journal.segments import Place
from zmqbus.journal.writer import Journal

TEXTS = [
    "the login failed",
    "login OK",
    "test_login in src/auth.py failed",
    "Le résumé est prêt",
    "RESUME the work",
    "failed to login",
    "ключ не найден",
    'he said "login failed"\nand left',
    "nothing of that",
    "loginfailed",
]


@pytest.fixture(params=["no index", "half", "all", "damaged"])
def index_path(request: pytest.FixtureRequest, tmp_path: Path, path: str) -> Iterator[str]:
    """A log of `TEXTS` over several segments, and an index of none, some, or all of it."""
    index = str(tmp_path / "search.sqlite")
    log = Journal(path, segment_bytes=700, keep=100)
    for number, (msg_id, text) in enumerate(zip(ids(len(TEXTS)), TEXTS, strict=True)):
        log.append([encode_record(RECORD._replace(msg_id=msg_id, body=text.encode(), from_name=f"n{number % 2}"))])
        if request.param == "half" and number == 4:
            with Index.open(index) as filled:
                filled.fill(path)
    if request.param in ("all", "damaged"):
        with Index.open(index) as filled:
            filled.fill(path)
            if request.param == "damaged":
                filled._connection.execute("DROP TABLE texts_2")
    log.close()
    yield index


def search(path: str, index_path: str, words: str) -> list[str]:
    return [entry.head for entry in Search(path, index_path, words).entries()][::-1]


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("login", [0, 1, 2, 5, 7]),
        ("LOGIN", [0, 1, 2, 5, 7]),
        ("login failed", [0, 2, 5, 7]),
        ('"login failed"', [0, 7]),
        ('"login failed', [0, 7]),
        ("login -failed", [1]),
        ("login* -login", [9]),
        ("log*", [0, 1, 2, 5, 7, 9]),
        ("test_login", [2]),
        ("src/auth.py", [2]),
        ("auth.py:", [2]),
        ("resume", [3, 4]),
        ("Résumé", [3, 4]),
        ("ключ", [6]),
        ("КЛЮЧ -найти", [6]),
        ("left OR right", []),
        ("login AND failed", [7]),
        ('-"to login" login', [0, 1, 2, 7]),
        ("ogin", []),
        ("absent", []),
        ("( login", [0, 1, 2, 5, 7]),
    ],
)
def test_words(path: str, index_path: str, words: str, numbers: list[int]) -> None:
    assert search(path, index_path, words) == [TEXTS[number] for number in numbers]


def test_pages_hold_everything_once(path: str, index_path: str) -> None:
    found: list[str] = []
    before: Place | None = None
    while True:
        page = Search(path, index_path, "login").page(before, limit=2)
        found += [entry.head for entry in page.entries]
        before = page.before
        if before is None:
            break
        assert len(page.entries) == 2
    assert found[::-1] == search(path, index_path, "login")
    assert len(found) == 5


def test_criteria_narrow_a_search(path: str, index_path: str) -> None:
    wanted = Wanted(sender="n0", pattern=re.compile("failed$"))
    found = [entry.head for entry in Search(path, index_path, "login").entries(wanted=wanted)]
    assert found == ["test_login in src/auth.py failed", "the login failed"]
    assert list(Search(path, index_path, "login").entries(wanted=Wanted(since_ts=4e9))) == []


def test_fault_of_the_index_is_reported(path: str, index_path: str, request: pytest.FixtureRequest) -> None:
    found = Search(path, index_path, "login")
    assert len(list(found.entries())) == 5
    assert (found.fault is not None) == ("damaged" in request.node.name)


def test_index_of_another_log_is_ignored(path: str, index_path: str, tmp_path: Path) -> None:
    for name in tmp_path.glob("messages.log*"):
        name.unlink()
    log = Journal(path)
    log.append([line("other0000000", "quite another login, " + "x" * 2000)])
    log.close()
    assert [entry.msg_id for entry in Search(path, index_path, "login").entries()] == ["other0000000"]


@given(st.lists(st.text(st.sampled_from("aAbé_ \n\"-'\\ıß"), max_size=8), max_size=6), st.text('abeé_"* -', max_size=6))
def test_index_and_log_find_the_same(tmp_path_factory: pytest.TempPathFactory, texts: list[str], words: str) -> None:
    directory = tmp_path_factory.mktemp("log")
    directory.chmod(0o700)
    path, index = str(directory / "messages.log"), str(directory / "search.sqlite")
    try:
        parse(words)
    except InvalidPayload:
        return
    log = Journal(path)
    if texts:
        log.append([line(msg_id, text) for msg_id, text in zip(ids(len(texts)), texts, strict=True)])
    log.close()
    without = search(path, index, words)
    with Index.open(index) as filled:
        filled.fill(path)
    assert search(path, index, words) == without


def test_quoted_id_is_found(path: str) -> None:
    """The log spells it with an escape, so that grep does not."""
    log = Journal(path)
    log.append([encode_record(RECORD._replace(reply_to="abcdef123456", body=b"re=abcdef123456 is done"))])
    log.close()
    assert len(search(path, os.devnull + "-none", "abcdef123456")) == 1


@pytest.mark.parametrize("words", ["", "  ", "-", '""', "-login", "?!", '"'])
def test_query_without_a_word_is_refused(path: str, words: str) -> None:
    with pytest.raises(InvalidPayload, match="takes words"):
        Search(path, "", words)


def test_query_with_too_many_words_is_refused(path: str) -> None:
    parse(" ".join(["word"] * MAX_TERMS))
    with pytest.raises(InvalidPayload, match="at most"):
        parse(" ".join(["word"] * (MAX_TERMS + 1)))


def test_sqlite_without_fts5_is_reported(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Journal(path)
    log.append([line("one000000000", "login")])
    log.close()
    monkeypatch.setattr(search_query, "TOKENIZE", "missing")  # fails where FTS5 itself would be missing
    with pytest.raises(JournalError, match=r"cannot search texts: .*; use --grep"):
        list(Search(path, "", "login").entries())
