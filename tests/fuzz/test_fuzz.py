"""The fuzzer, for a moment; `make fuzz` plays 600,000 envelopes."""

from __future__ import annotations

import pytest

from tests.fuzz.envelopes import Fuzzer
from tests.fuzz.play import run
from zmqbus.errors import ProtocolError
from zmqbus.wire import codec
from zmqbus.wire import verbs as protocol


def test_the_same_seed_says_the_same() -> None:
    first, second = Fuzzer(1), Fuzzer(1)
    assert [first.message() for _ in range(50)] == [second.message() for _ in range(50)]


def test_every_verb_of_a_client_is_said_as_it_should_be_and_as_it_should_not() -> None:
    decoder = codec.Decoder(from_broker=False)
    taken, refused = set(), set()
    for frames in Fuzzer(2).messages(20_000):
        try:
            for envelope in decoder.decode(frames):
                if isinstance(envelope, protocol.Faulty):
                    refused.add(envelope.verb)
                else:
                    taken.add(type(envelope))
        except ProtocolError:
            continue
    verbs = {cls for code, cls in protocol.VERBS.items() if code < 32} - {protocol.Stop}
    assert taken >= verbs - {protocol.Bye} or taken >= verbs
    assert refused >= {cls.__name__.upper() for cls in verbs if cls._fields}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_hostile_envelopes_cost_nobody_else_anything(seed: int) -> None:
    run(6_000, seed)
