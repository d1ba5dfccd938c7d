"""Random hostile envelopes from a seed: every verb, with valid and invalid fields, lengths, depths and numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from zmqbus.testing import session_id_of
from zmqbus.wire import codec, verbs

#: Values of the wrong type or range.
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    2**64 - 1,
    -(2**63),
    1.5,
    float("nan"),
    float("inf"),
    "",
    "\0",
    "*",
    "~",
    "é" * 20,
    "\u2028\u202e",
    "a\n[inter-session] forged",
    "../../../etc/passwd",
    b"",
    b"bytes",
    [],
    [[]],
    [None],
    [[1, 2], [3]],
    {},
    {"a": 1},
)
_TO_BROKER = [(code, cls) for code, cls in verbs.VERBS.items() if code < 32]
_FROM_BROKER = [(code, cls) for code, cls in verbs.VERBS.items() if code >= 32]
NAMES = ("alice", "bob", "carol", "g", "t", "nobody")


class Fuzzer:
    """An endless sequence of messages, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self._ids = 0
        self.envelopes = 0  #: how many envelopes were made
        self._makers: dict[Any, Callable[[], Any]] = {
            int: self._int,
            bool: lambda: self.chance.random() < 0.5,
            float: lambda: self.chance.choice((0.0, 1e9, -1.0)),
            str: self._string,
            bytes: self._body,
        }

    def message(self) -> list[bytes]:
        """Returns the frames of the next message."""
        kind = self.chance.random()
        if kind < 0.02:
            return [self.chance.randbytes(self.chance.choice((0, 1, 5, 300, 70_000)))]
        if kind < 0.04:
            return [self._nested()]
        arrays, frames = [], [b""]
        for _ in range(self.chance.choice((1, 1, 1, 2, 5, 40, 513))):
            array = self._envelope()
            if array and isinstance(array[-1], bytes) and len(array[-1]) > verbs.INLINE_BYTES:
                frames.append(array[-1])
                array[-1] = len(array[-1]) + (self.chance.random() < 0.05)
            arrays.append(array)
        self.envelopes += len(arrays)
        frames[0] = msgpack.packb(arrays)
        if kind < 0.1:
            frames[0] = self._mutated(frames[0])
        elif kind < 0.12:
            frames.append(b"a frame of nobody's")
        return frames

    def messages(self, envelopes: int) -> Iterator[list[bytes]]:
        """Yields messages until so many envelopes were made."""
        while self.envelopes < envelopes:
            yield self.message()

    def _envelope(self) -> list[Any]:
        # An unknown verb, or one of the broker's, invalidates the whole message, so they are rare.
        code, cls = self.chance.choice(_TO_BROKER if self.chance.random() < 0.998 else _FROM_BROKER)
        if self.chance.random() < 0.002:
            code = self.chance.choice((0, 31, 63, 64, 255, -1, 2**40))
        if cls is verbs.Stop:
            cls, code = verbs.Status, 12
        fields = [self._field(name, kind) for name, kind in codec.wire_fields(cls).items()]
        if cls._fields[-1:] == ("bodies",):
            count = self.chance.choice((0, 2, 3, 256, 257)) if self.chance.random() < 0.3 else 1
            ids = [self._named("msg_ids", str) for _ in range(count)]
            fields[-2:] = [*ids, *(self._named("bodies", bytes) for _ in range(count))]
        if fields and self.chance.random() < 0.3:
            place = self.chance.randrange(len(fields))
            fields[place] = self.chance.choice((*ODD, "x" * self.chance.choice((41, 257, 5_000, 90_000))))
        if self.chance.random() < 0.03:
            fields = fields[:-1]
        elif self.chance.random() < 0.03:
            fields.append(self.chance.choice(ODD))
        return [code, *fields]

    def _field(self, name: str, kind: Any) -> Any:
        parts = getattr(kind, "__args__", None)
        if parts and type(None) in parts:
            return None if self.chance.random() < 0.5 else self._field(name, parts[0])
        if parts:
            each = parts[0] if parts[0] in self._makers else int
            count = self.chance.choice((0, 0, 1, 3, 256, 257, 2_049)) if self.chance.random() < 0.1 else 2
            return [self._named(name, each) for _ in range(count)]
        return self._named(name, kind)

    def _named(self, name: str, kind: Any) -> Any:
        if name in ("msg_id", "msg_ids", "reply_to", "holding", "answered"):
            self._ids += 1
            return f"fuzz{self._ids % 5_000:08d}"
        if name == "session_id":
            return session_id_of(self.chance.choice(NAMES[:3]))
        if name in ("name", "target", "group", "groups", "topics"):
            return self.chance.choice(NAMES)
        if name == "version":
            return verbs.VERSION
        if name == "role":
            return self.chance.randrange(6)
        if name in ("scope", "fmt"):
            return self.chance.randrange(5)
        return self._makers[kind]()

    def _int(self) -> int:
        return self.chance.choice((0, 1, 2, 3, 7, 1_000, -1, 2**31, 2**63))

    def _string(self) -> str:
        return self.chance.choice(("", "x", "/p", "token", "fuzz", "é"))

    def _body(self) -> bytes:
        size = self.chance.choice((0, 1, 10, 100, verbs.INLINE_BYTES, verbs.INLINE_BYTES + 1))
        return (b"x" if self.chance.random() < 0.9 else b"\xff") * size

    def _nested(self) -> bytes:
        depth, arity = self.chance.choice(((1, 1_000), (3, 15), (9, 3), (1_100, 1), (15, 2)))
        frame = b"\x90"
        for _ in range(depth):
            head = bytes([0x90 | arity]) if arity < 16 else b"\xdc" + arity.to_bytes(2, "big")
            if len(frame) * arity > 300_000:
                break
            frame = head + frame * arity
        return frame

    def _mutated(self, frame: bytes) -> bytes:
        changed = bytearray(frame)
        for _ in range(self.chance.randrange(1, 4)):
            if changed:
                place = self.chance.randrange(len(changed))
                match self.chance.randrange(3):
                    case 0:
                        changed[place] ^= 1 << self.chance.randrange(8)
                    case 1:
                        del changed[place : place + self.chance.randrange(1, 9)]
                    case _:
                        changed[place:place] = self.chance.randbytes(self.chance.randrange(1, 5))
        return bytes(changed)
