"""docs/protocol.md says what zmqbus/wire/verbs.py does: every table of the page is held against the code."""

from __future__ import annotations

import re
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import pytest

from zmqbus import errors
from zmqbus.broker import (
    admission,
    agent_states,
    connections,
    dedup,
    delivery,
    directory,
    fetch,
    mailbox,
    registry,
    reply_routing,
    retention,
    takeover,
)
from zmqbus.broker import core as broker
from zmqbus.broker.groups import callers, failover, ledger, queues, requests, workers
from zmqbus.broker.sessions import STATE_OF_ROLE
from zmqbus.broker.shell import pressure
from zmqbus.client import core as client
from zmqbus.client import requests as client_requests
from zmqbus.client import seen
from zmqbus.wire import codec, verbs

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "protocol.md").read_text("utf-8")

_HEADING = re.compile(r"^(#{2,4}) (.+)$", re.MULTILINE)
_VERB = re.compile(r"([A-Z]+) \((\d+)\)")


def sections() -> dict[str, str]:
    """Heading → the text up to the next heading of any level."""
    found = list(_HEADING.finditer(PAGE))
    ends = [match.start() for match in found[1:]] + [len(PAGE)]
    return {match[2]: PAGE[match.end() : end] for match, end in zip(found, ends, strict=True)}


def table(text: str) -> list[list[str]]:
    """The cells of the one table in a section, without its head."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 2 or not rows, rows
    assert not rows or set(rows[1]) <= set("|-"), rows[1]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


SECTIONS = sections()
VERBS = {match[1]: (int(match[2]), text) for title, text in SECTIONS.items() if (match := _VERB.fullmatch(title))}


def in_words(annotation: object) -> str:
    """How the page calls the type of a field."""
    if isinstance(annotation, UnionType):
        first, last = get_args(annotation)
        assert last is type(None)
        return f"{in_words(first)} or nil"
    if annotation is verbs.Header:
        return "header"
    if get_origin(annotation) is tuple:
        part = get_args(annotation)[0]
        return "list of list" if get_origin(part) is tuple else f"list of {in_words(part)}"
    assert isinstance(annotation, type)
    return "body" if annotation is bytes else annotation.__name__


def number(text: str) -> float:
    return float(text)


def test_all_verbs_are_there_with_their_numbers() -> None:
    assert {name: code for name, (code, _) in VERBS.items()} == {
        cls.__name__.upper(): code for code, cls in verbs.VERBS.items()
    }


def test_the_verbs_stand_in_the_order_of_their_numbers() -> None:
    codes = [code for code, _ in VERBS.values()]
    assert codes == sorted(codes)
    for code in codes:
        assert 1 <= code <= 31 or 32 <= code <= 63


@pytest.mark.parametrize("cls", verbs.VERBS.values(), ids=lambda cls: cls.__name__)
def test_the_fields_of_a_verb(cls: Any) -> None:
    _, text = VERBS[cls.__name__.upper()]
    assert [(field, kind) for field, kind, _ in table(text)] == [
        (field, in_words(kind)) for field, kind in cls.__annotations__.items()
    ]


def test_the_row_of_a_list() -> None:
    assert [(field, kind) for field, kind, _ in table(SECTIONS["6.3 A row of SESSIONS"])] == [
        (field, in_words(kind)) for field, kind in _annotations(verbs.Session)
    ]


def test_the_header() -> None:
    assert [(field, kind) for field, kind, _ in table(SECTIONS["3.4 The header"])] == [
        (field, in_words(kind)) for field, kind in _annotations(verbs.Header)
    ]


def test_the_row_of_a_preview() -> None:
    assert [(field, kind) for field, kind, _ in table(SECTIONS["6.4 A row of PREVIEWS"])] == [
        (field, in_words(kind)) for field, kind in _annotations(verbs.Previewed)
    ]


def _annotations(cls: type) -> list[tuple[str, object]]:
    return list(cls.__annotations__.items())


def test_types_are_all_explained() -> None:
    explained = {row[0] for row in table(SECTIONS["3.1 Types"])}
    used = {row[1] for _, text in VERBS.values() for row in table(text)}
    assert used == explained


def test_limits() -> None:
    documented = {name: number(value) for name, value, _ in table(SECTIONS["3.2 Limits"])}
    defined = {
        name: value
        for name, value in vars(verbs).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, int)
    }
    assert defined.pop("VERSION") == 3
    assert "`VERSION` is 3" in SECTIONS["14. Versions"]
    assert defined.pop("MSG_ID_LENGTH") == 12
    assert documented == defined


def test_limits_of_fields() -> None:
    assert {name: number(value) for name, value in table(SECTIONS["3.3 Fields"])} == verbs.FIELD_CHARS
    batch = verbs.MAX_ENVELOPE_MESSAGES
    assert {"topics": 256, "groups": 256, "bodies": batch, "piece": 4, "states": 8} == verbs.FIELD_PARTS
    assert "256 parts (`topics`, `groups`), `MAX_ENVELOPE_MESSAGES` (`msg_ids` and `bodies` of SEND)" in PAGE
    assert "4 (`piece`), 8 (`states`)" in PAGE
    assert codec.NUMBER_BYTES == 16


def test_bounds_of_a_mailbox() -> None:
    for name, value, _ in table(SECTIONS["8.1 Numbers and window"]):
        assert getattr(mailbox, name) == number(value), name


def test_bounds_of_requests() -> None:
    rows = table(SECTIONS["9. Requests and work"])
    assert {name: number(value) for name, value, _ in rows} == {
        name: value
        for module in (callers, ledger, queues, workers)
        for name, value in vars(module).items()
        if name.startswith(("MAX_", "REMEMBERED_"))
    }


def test_timers() -> None:
    documented = {name: number(value) for name, value, _ in table(SECTIONS["12. Timers"])}
    defined = {
        name: value
        for module in (
            broker,
            connections,
            directory,
            delivery,
            admission,
            agent_states,
            reply_routing,
            fetch,
            retention,
            takeover,
            failover,
            requests,
        )
        for name, value in vars(module).items()
        if name.endswith("_S") and name.isupper() and not name.endswith("_TICK_S")  # the shell's, not the wire's
    }
    assert documented == {"PING_S": client.PING_S, **defined}


def test_other_numbers_of_the_prose() -> None:
    assert (admission.BROADCASTS_PER_MINUTE, reply_routing.MAX_WAITS) == (60, 1000)
    assert (fetch.MAX_FETCHES, directory.LISTS_AT_ONCE, directory.LISTS_A_SECOND) == (4, 50, 10)
    assert (fetch.MAX_PREVIEWS, fetch.PREVIEW_MESSAGES, fetch.PREVIEW_HEAD_BYTES) == (16, 250, 4096)
    assert (admission.GUEST_BROADCASTS_PER_MINUTE, directory.PAGE_BYTES, pressure.MAX_SUBSCRIBING_BYTES) == (
        120,
        2**16,
        2**17,
    )
    assert (directory.ANSWERS_AT_ONCE_BYTES, directory.ANSWERS_A_SECOND_BYTES) == (4 * 2**20, 2**20)
    assert (client.WINDOW_MESSAGES, client.WINDOW_BYTES) == (1000, 20 * 1024 * 1024)
    assert (dedup.REMEMBERED_OUTCOMES, seen.REMEMBERED) == (20_000, 10_000)
    assert (registry.MAX_SUCCEEDED, takeover.ROUND_SESSIONS) == (10_000, 200)
    assert (client_requests.REMEMBERED_ANSWERS, client_requests.REMEMBERED_BYTES) == (1000, 16 * 1024 * 1024)
    for phrase in ("60 times within any minute", "AWAIT 1,000 answers", "1,000 messages or 20 MiB", "20,000 messages"):
        assert phrase in PAGE


@pytest.mark.parametrize(
    ("title", "enumeration"),
    [
        ("5.1 Role", verbs.Role),
        ("5.2 Scope", verbs.Scope),
        ("5.3 Format", verbs.Format),
        ("5.4 State", verbs.State),
    ],
)
def test_small_vocabularies(title: str, enumeration: Any) -> None:
    assert {name: int(value) for name, value, _ in table(SECTIONS[title])} == {
        member.name: member.value for member in enumeration
    }


def test_verbs_of_each_connection_state() -> None:
    text = SECTIONS["4.1 Which verb in which state"]
    rows = table(text)
    assert [row[0] for row in rows] == [verb.name for verb in verbs.TABLE if not verb.from_broker]
    states = [cell.strip() for cell in text.strip().splitlines()[2].strip("|").split("|")][2:]
    assert sorted(states) == sorted({state.name for state in STATE_OF_ROLE.values()})
    for name, unregistered, *cells in rows:
        verb = next(verb for verb in verbs.TABLE if verb.name == name)
        assert unregistered == ("yes" if verb.unregistered else "expired"), name
        for state, cell in zip(states, cells, strict=True):
            for role in (role for role in verbs.Role if STATE_OF_ROLE[role].name == state):
                assert cell == ("yes" if role in verb.roles else "no"), (name, state)


def test_codes() -> None:
    assert {code for code, _ in table(SECTIONS["13. Codes"])} == set(errors.BY_CODE)


def test_channels() -> None:
    rows = dict(table(SECTIONS["10. Channels and marks"]))
    assert rows["everyone"] == "`*` NUL" and verbs.EVERYONE == b"*\0"
    assert rows["project"] == "`/` path NUL" and verbs.channel(verbs.Scope.PROJECT, "x") == b"/x\0"
    assert rows["topic"] == "`#` topic NUL" and verbs.channel(verbs.Scope.TOPIC, "x") == b"#x\0"
    assert rows["a session's own name"] == "`@` name NUL" and verbs.name_channel("x") == b"@x\0"
    assert rows["mark"] == "`~` lease NUL" and verbs.mark_channel("x") == b"~x\0"


def test_table_reader_finds_all_tables() -> None:
    assert len(VERBS) == len(verbs.TABLE)
    assert table("| a | b |\n|---|---|\n| 1 | |\n| 2 | x y |\n") == [["1", ""], ["2", "x y"]]
    assert table("no table") == []
