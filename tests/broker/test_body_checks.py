"""Claims of spooled bodies that are accepted, and those that are refused before any file is opened."""

from __future__ import annotations

from typing import Any

import pytest

from zmqbus.broker.body_checks import Spooled, no_spools, spooled_body
from zmqbus.errors import ProtocolError, Unauthorized
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format

NAME = "a" * 32
SIZE = 70_000
GOOD = Spooled(NAME, SIZE, 0, SIZE, 5)


def check(fmt: int = Format.TEXT, **changes: Any) -> None:
    """Reads a SEND that claims this of its body."""
    file, *numbers = claim = GOOD._replace(**changes)
    send = verbs.Send(0, "bob", fmt, None, False, file, tuple(numbers), ("aaaaaaaaaaaa",), (b"",))
    assert spooled_body(send) == claim


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"length": 6 * SIZE},
        {"offset": verbs.MAX_SPOOL_BYTES, "crc": 2**32 - 1},
        {"fmt": Format.BYTES, "size_bytes": 70_000, "length": 93_336},
        {"fmt": Format.MSGPACK, "size_bytes": 69_999, "length": 93_332},
    ],
)
def test_possible_claims_are_accepted(changes):
    check(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"file": ""},
        {"file": "../messages.log"},
        {"file": "A" * 32},
        {"file": "a" * 31},
        {"file": NAME + "\n"},
        {"file": f"{NAME}/x"},
        {"offset": -1},
        {"offset": verbs.MAX_SPOOL_BYTES + 1},
        {"offset": 2**63},
        {"crc": -1},
        {"crc": 2**32},
        {"length": SIZE - 1},
        {"length": 6 * SIZE + 1},
        {"length": -1},
        {"size_bytes": -1},
        {"size_bytes": verbs.SPILL_BYTES, "length": SIZE},
        {"size_bytes": 2**60, "length": 2**60},
        {"size_bytes": 10 * 2**20, "length": verbs.MAX_SPELLED_BYTES + 1},
        {"fmt": Format.BYTES, "length": SIZE},
    ],
)
def test_impossible_claims_are_refused(changes):
    with pytest.raises(ProtocolError):
        check(**changes)


def test_a_broker_without_files_refuses_every_spooled_body():
    with pytest.raises(Unauthorized):
        no_spools(b"r", GOOD)


@pytest.mark.parametrize("piece", [None, (), (SIZE, 0, SIZE)])
def test_a_file_without_its_four_numbers_is_refused(piece):
    with pytest.raises(ProtocolError):
        spooled_body(verbs.Send(0, "bob", 0, None, False, NAME, piece, ("aaaaaaaaaaaa",), (b"",)))
