"""Claims of SPOOLED that are accepted, and those that are refused before any file is opened."""

from __future__ import annotations

import pytest

from zmqbus.broker.body_checks import check_spooled, no_spools
from zmqbus.errors import ProtocolError, Unauthorized
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format

NAME = "a" * 32
SIZE = 70_000
GOOD = verbs.Spooled("aaaaaaaaaaaa", 0, "bob", Format.TEXT, None, SIZE, NAME, 0, SIZE, 5)


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
    check_spooled(GOOD._replace(**changes))


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
        check_spooled(GOOD._replace(**changes))


def test_a_broker_without_files_refuses_every_spooled_body():
    with pytest.raises(Unauthorized):
        no_spools(b"r", GOOD)
