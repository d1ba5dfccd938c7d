"""The checksum of two pieces is that of the whole."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.journal.checksum import combine


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_pieces(first: bytes, second: bytes) -> None:
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@pytest.mark.parametrize("size_bytes", [0, 1, 255, 256, 65_537, 1_048_576, 1_398_104, 16_777_215])
def test_large_second_pieces(size_bytes: int) -> None:
    head, body = b'{"ts":"2026-01-02"', bytes(size_bytes)
    assert combine(zlib.crc32(head), zlib.crc32(body), size_bytes) == zlib.crc32(head + body)


def test_pieces_of_a_stream_one_after_the_other() -> None:
    pieces = [b"one", b"", b"three" * 1000, b"\xff"]
    found = 0
    for piece in pieces:
        found = combine(found, zlib.crc32(piece), len(piece))
    assert found == zlib.crc32(b"".join(pieces))
