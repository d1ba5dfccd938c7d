"""CRC-32 of two concatenated pieces from the checksums of each: what `zlib` has in C, and Python offers from 3.15 on.

The sender of a large body has its checksum, and the broker that of the fields that it writes around it. The checksum
of the line follows from both without another pass over the body. For 1 MiB that saves 0.27 of 2.67 ms of the broker's
processor time (medians of 7 interleaved runs of 150 messages), which is more than the 5 % that the guard of the
benchmarks allows.

A CRC-32 is the remainder of the message, as a polynomial over GF(2), by `_POLYNOMIAL`; appending `length` bytes
multiplies the remainder by x^(8·length). The highest bit stands for x^0, as everywhere in `zlib`.
"""

from __future__ import annotations

from functools import lru_cache

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31
#: Cached powers: a stream of bodies has a few lengths only.
_REMEMBERED = 256


def _times(a: int, b: int) -> int:
    """The product of two polynomials, modulo that of the checksum."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(maxsize=_REMEMBERED)
def _power(length: int) -> int:
    """x^(8·length): by squaring, some 20 multiplications for a megabyte."""
    power, square = _ONE, _ONE >> 8
    while length:
        if length & 1:
            power = _times(square, power)
        square = _times(square, square)
        length >>= 1
    return power


def combine(first: int, second: int, second_bytes: int) -> int:
    """`zlib.crc32(a + b)`, from `crc32(a)`, `crc32(b)` and the length of b. Takes 3 µs; 50 µs for a new length."""
    return _times(_power(second_bytes), first) ^ second
