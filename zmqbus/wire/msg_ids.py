"""Message ids: made by the sender, unique without coordination, and recognisable by their form."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import product

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
MSG_ID_LENGTH = 12
#: Part of every id, and rare elsewhere: two letters that are adjacent in no word, and seldom in base64. By them the log
#: recognises ids in texts (`record`).
ID_MARK = "zq"
_PAIRS = [first + second for first in _DIGITS for second in _DIGITS]


def _base36(number: int, width: int) -> str:
    digits = ""
    for _ in range(width // 2):
        number, pair = divmod(number, 36 * 36)
        digits = _PAIRS[pair] + digits
    return _DIGITS[number % 36] + digits if width % 2 else digits


class IdMaker:
    """Makes message ids: 12 lower-case letters and digits, unique without coordination.

    Five characters are random for each maker, then comes `ID_MARK`, and five count from a random number on (52 random
    bits in all), so that an id costs a sixth of a microsecond and no system call. When the count overflows (60 million)
    a new random part is drawn. Thread-safe.
    """

    _WIDTH = 5

    def __init__(self, entropy: bytes | None = None) -> None:
        self._series = self._draw(entropy or os.urandom(8))

    def _draw(self, drawn: bytes) -> Iterator[str]:
        # guards: journal format [- len(ID_MARK) - self._WIDTH) + ID_MARK => - self._WIDTH)]
        prefix = _base36(int.from_bytes(drawn, "big"), MSG_ID_LENGTH - len(ID_MARK) - self._WIDTH) + ID_MARK
        # Not from zero: two makers that happen to have the same prefix should still differ.
        start = _base36(int.from_bytes(drawn, "little"), self._WIDTH)
        turned = (_DIGITS[at:] + _DIGITS[:at] for at in map(_DIGITS.index, start))
        # All in C, so that `next` is one atomic operation.
        return map("".join, product((prefix,), *turned))

    def __call__(self) -> str:
        while True:
            msg_id = next(self._series, None)
            if msg_id is not None:
                return msg_id
            self._series = self._draw(os.urandom(8))


def is_msg_id(text: str) -> bool:
    """Whether this is a valid message id: 8 to 12 lower-case letters and digits."""
    return 8 <= len(text) <= MSG_ID_LENGTH and text.isascii() and text.isalnum() and text == text.lower()


def are_msg_ids(texts: Sequence[str]) -> bool:
    """Whether these are valid message ids, all different."""
    whole = "".join(texts)
    lengths = set(map(len, texts))
    return (
        all(8 <= length <= MSG_ID_LENGTH for length in lengths)
        and whole.isascii()
        and whole.isalnum()
        and whole == whole.lower()
        and len(set(texts)) == len(texts)  # guards: message limits
    )
