"""The fuzzer in brief; `make fuzz` plays 600,000 envelopes."""

from __future__ import annotations

import pytest

from tests.fuzz.envelopes import Fuzzer
from tests.fuzz.play import run
from zmqbus.errors import ProtocolError
from zmqbus.wire import codec, verbs


def test_same_seed_gives_the_same_messages() -> None:
    first, second = Fuzzer(1), Fuzzer(1)
    assert [first.message() for _ in range(50)] == [second.message() for _ in range(50)]


def test_every_client_verb_occurs_both_valid_and_invalid() -> None:
    decoder = codec.Decoder(from_broker=False)
    accepted, refused = set(), set()
    for frames in Fuzzer(2).messages(20_000):
        try:
            for envelope in decoder.decode(frames):
                if isinstance(envelope, verbs.Faulty):
                    refused.add(envelope.verb)
                else:
                    accepted.add(type(envelope))
        except ProtocolError:
            continue
    of_clients = {cls for code, cls in verbs.VERBS.items() if code < 32} - {verbs.Stop}
    assert accepted >= of_clients - {verbs.Bye}
    assert refused >= {cls.__name__.upper() for cls in of_clients if cls._fields}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_hostile_envelopes_affect_nobody_else(seed: int) -> None:
    run(6_000, seed)
