"""The fuzz target of the decoder, run without a fuzzer on its seeds and on mutations of them."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import codec_target
from zmqbus.errors import ProtocolError
from zmqbus.wire import codec, verbs

SEEDS = list(codec_target.seeds())


def test_valid_seeds_cover_every_verb() -> None:
    decoded: set[type] = set()
    for seed in SEEDS:
        from_broker, frames = codec_target.unpack(seed)
        codec_target.check(seed)
        with suppress(ProtocolError):  # a list with a body that needs a frame of its own
            decoded.update(map(type, codec.Decoder(from_broker=from_broker).decode(frames)))
    assert decoded >= set(verbs.VERBS.values())


@pytest.mark.parametrize("frames", [[b""], [b"\x90"], [b"\x90", b"x" * 70_000], [b"", b"", b"1"]])
@pytest.mark.parametrize("from_broker", [False, True])
def test_packed_frames_are_unpacked_again(frames: list[bytes], from_broker: bool) -> None:
    assert codec_target.unpack(codec_target.pack(frames, from_broker=from_broker)) == (from_broker, frames)


@given(st.binary(max_size=200))
def test_every_input_is_a_message(data: bytes) -> None:
    _, frames = codec_target.unpack(data)
    assert frames
    codec_target.check(data)


@given(st.sampled_from(SEEDS), st.randoms(use_true_random=False))
def test_mutated_seeds_raise_nothing_but_protocol_errors(seed: bytes, chance: random.Random) -> None:
    data = bytearray(seed)
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(min(len(data), 200))] = chance.randrange(256)
    codec_target.check(bytes(data))


def test_seeds_are_written_into_a_corpus(tmp_path: Path) -> None:
    codec_target.write_seeds(tmp_path / "corpus")
    assert sorted(path.read_bytes() for path in (tmp_path / "corpus").iterdir()) == sorted(SEEDS)
