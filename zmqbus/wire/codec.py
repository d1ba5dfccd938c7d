"""Envelopes to frames, and back.

Coalescing is the first rule of speed here (whoever has several envelopes for one peer sends one message), and the
second is that small bodies stand *inside* the envelope. Measured over loopback with CURVE on two cores, 100-byte
bodies: a frame for each body carries 150,000 envelopes/s one at a time and 290,000/s at 8 a message, since libzmq
encrypts and allocates every frame by itself; inside the array they reach 280,000/s and 1,000,000/s. A body is opaque
all the same: binary, never unpacked between its two ends.

A run (SENDS, DELIVERS) is as many messages as it has bodies, wherever messages are counted: a peer cannot have more of
them looked at in one go by putting them into one envelope.

What comes from a peer is checked against the annotations of `protocol`, field by field, and within bounds that hold
before anything is made of it: the size of the frame, and the parts in it, in total. A message that cannot be read is a
`ProtocolError`, and nothing else is raised; an envelope in it that is not what it has to be is a `Faulty`, and the
others are read as if it were not there. What is refused is never printed: that could be all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import UnionType
from typing import Any, get_args, get_origin

import msgpack

from zmqbus.errors import ProtocolError
from zmqbus.wire.verbs import (
    INLINE_BYTES,
    LISTS,
    MAX_ARRAY,
    MAX_BATCH,
    MAX_BATCH_BYTES,
    MAX_HEADER_BYTES,
    MAX_LIST,
    MAX_PARTS,
    STRINGS,
    VERBS,
    VERSION,
    Broadcasts,
    Delivers,
    Envelope,
    Faulty,
    Hello,
    Previews,
    Role,
    Sends,
    Sessions,
    Spooled,
    refs_of,
)

_IDS = ("msg_id", "reply_to")
_CODES: dict[type[Any], int] = {cls: code for code, cls in VERBS.items()}
_HELLO = _CODES[Hello]
#: Long without a body: one to a message, or a few would pass the frame limit, or what a broker reads at once.
_LONG = frozenset((_CODES[Sessions], _CODES[Spooled], _CODES[Previews]))
_RUNS = frozenset((_CODES[Sends], _CODES[Delivers], _CODES[Broadcasts]))  # many messages in one
_WITH_BODY = frozenset(code for code, cls in VERBS.items() if cls._fields and cls._fields[-1] == "body")


def _allowed(annotation: object) -> frozenset[type]:
    """The runtime types that a field's annotation admits."""
    members = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    found: set[type] = set()
    for member in members:
        origin = get_origin(member) or member
        assert isinstance(origin, type)
        found.add(origin)
        if origin is float:
            found.add(int)  # msgpack has no way to insist on 1.0
    return frozenset(found)


#: What each number of a list weighs in a batch, so that parts are bounded as bytes are: to half of `MAX_PARTS`.
NUMBER_BYTES = 16
_NUMBERS = {
    code: place
    for code, cls in VERBS.items()
    for place, kind in enumerate(cls.__annotations__.values())
    if kind == tuple[int, ...]
}
_FIELDS = {code: tuple(_allowed(kind) for kind in cls.__annotations__.values()) for code, cls in VERBS.items()}
# The parts of a tuple are not in its type, so they are looked at each time: (position, type of the parts).
_PARTS = {
    code: tuple(
        (number, get_args(member)[0])
        for number, kind in enumerate(cls.__annotations__.values(), start=1)
        for member in (get_args(kind) if isinstance(kind, UnionType) else (kind,))
        if get_origin(member) is tuple and get_args(member)[0] in (str, int, bytes)
    )
    for code, cls in VERBS.items()
}
_PACKER_LIMITS: dict[str, Any] = {
    "use_list": False,
    "max_str_len": MAX_HEADER_BYTES,
    "max_bin_len": INLINE_BYTES,
    "max_map_len": 0,
    "max_ext_len": 0,
}


def encode(envelopes: Sequence[Envelope]) -> list[bytes]:
    """The frames of one message. Bodies over `INLINE_BYTES` leave the array for frames of their own."""
    arrays: list[tuple[Any, ...]] = []
    frames = [b""]
    envelope: Any
    for envelope in envelopes:
        code = _CODES[envelope.__class__]
        if code in _WITH_BODY and len(envelope[-1]) > INLINE_BYTES:
            frames.append(envelope[-1])
            arrays.append((code, *envelope[:-1], len(envelope[-1])))
        elif code == _HELLO and envelope.named:
            arrays.append((code, *envelope[:-1]))  # as before there was that field: an older broker takes it, too
        else:
            arrays.append((code, *envelope))
    frames[0] = msgpack.packb(arrays)
    return frames


def batches(envelopes: Iterable[Envelope]) -> Iterator[list[Envelope]]:
    """Cuts what waits for one peer into messages of at most `MAX_BATCH` envelopes (each message in a run
    counts as one) and `MAX_BATCH_BYTES` of bodies."""
    batch: list[Envelope] = []
    size_bytes = count = 0
    envelope: Any
    for envelope in envelopes:
        code = _CODES[envelope.__class__]
        number = 1
        if code in _WITH_BODY:
            weight_bytes = len(envelope[-1])
        elif code in _RUNS:
            number = len(envelope[-1])  # guards: message limits
            weight_bytes = sum(map(len, envelope[-1]))  # guards: message limits [sum(map(len, envelope[-1])) => 0]
        else:
            weight_bytes = MAX_BATCH_BYTES if code in _LONG else 0
        if code in _NUMBERS:
            weight_bytes += NUMBER_BYTES * len(envelope[_NUMBERS[code]])
        if batch and (count + number > MAX_BATCH or size_bytes + weight_bytes > MAX_BATCH_BYTES):
            yield batch
            batch, size_bytes, count = [], 0, 0
        batch.append(envelope)
        size_bytes += weight_bytes
        count += number
    if batch:
        yield batch


class Decoder:
    """Frames → envelopes, for one side.

    Checks every field against the annotations. The combinations of field types that passed once are remembered: there
    are few, and a look-up is several times cheaper than the check.
    """

    def __init__(self, *, from_broker: bool) -> None:
        # An array's room is made before what is in it is read, and a thousand may stand in each other.
        self._limits = {**_PACKER_LIMITS, "max_array_len": MAX_ARRAY if from_broker else MAX_LIST}
        self._rules = {code: _Rule(code, cls) for code, cls in VERBS.items() if (code >= 32) == from_broker}

    def __repr__(self) -> str:
        return f"<Decoder of {len(self._rules)} verbs>"

    def decode(self, frames: Sequence[bytes]) -> list[Envelope]:
        """The envelopes of one message; raises `ProtocolError` and nothing else, whatever the frames hold."""
        try:
            arrays = _unpacked(frames[0], self._limits)
        except ProtocolError:
            raise
        except Exception as error:  # msgpack raises a dozen kinds, RecursionError and UnicodeDecodeError among them
            raise ProtocolError(f"a message does not begin with a msgpack array of envelopes: {error}") from None
        if type(arrays) is not tuple or len(arrays) > MAX_BATCH:
            raise ProtocolError("a message does not begin with an array of at most 512 envelopes")
        rules = self._rules
        envelopes: list[Envelope] = []
        used = 1
        count = len(arrays)
        for array in arrays:
            rule = rules.get(array[0]) if type(array) is tuple and array and type(array[0]) is int else None
            if rule is None:
                raise ProtocolError("a message has an envelope of an unknown verb")
            if rule.code == _HELLO and array[1:2] != (VERSION,):
                # Another version's HELLO may have other fields; and what follows it, other verbs.
                return [*envelopes, _foreign_hello(array)]
            if rule.code == _HELLO and len(array) == len(Hello._fields):
                array = (*array, True)  # its last field is left out where somebody chose the name
            if rule.with_body and type(array[-1]) is int:
                if used >= len(frames) or len(frames[used]) != array[-1]:
                    raise ProtocolError("a body's frame is missing or has another length than its envelope says")
                array = (*array[:-1], frames[used])
                used += 1
            signature = tuple(map(type, array))
            fault = None if signature in rule.passed else rule.check(signature)
            if fault is None:
                for at, name, limit in rule.strings:
                    value = array[at]
                    if value is not None and len(value) > limit:  # guards: message limits [off]
                        fault = f"{name} of {len(value):,} characters; the limit is {limit:,}"
                if rule.lists:
                    fault = rule.check_lists(array) or fault
            if fault is not None:
                envelopes.append(Faulty(rule.cls.__name__.upper(), refs_of(rule.cls, array[1:]), fault))
                continue
            if rule.is_run:
                count += len(array[-1]) - 1
                if count > MAX_BATCH:  # guards: message limits [off]
                    raise ProtocolError("a message has more than 512 messages in its envelopes")
            # Not by `_make`, which counts the fields again.
            envelopes.append(tuple.__new__(rule.cls, array[1:]))
        if used != len(frames):
            raise ProtocolError("a message has frames that belong to no envelope")
        return envelopes


class _Rule:
    """How the arrays of one verb are read."""

    __slots__ = ("cls", "code", "is_run", "lists", "passed", "strings", "with_body")

    def __init__(self, code: int, cls: type[Any]) -> None:
        self.code = code
        self.cls = cls
        self.with_body = code in _WITH_BODY
        self.is_run = code in _RUNS
        #: The broker is believed as to lengths: it has the key that says that it is the broker. And ids of messages are
        #: looked at by whoever takes them, all of their characters.
        self.strings = tuple(one for one in STRINGS.get(cls, ()) if one[1] not in _IDS)
        #: (position, type of the parts, name, most parts, most characters of each)
        bounds = {at: (name, most, None if self.is_run else each) for at, name, most, each in LISTS.get(cls, ())}
        self.lists: list[tuple[int, type, str, int, int | None]] = [
            (at, kind, *bounds.get(at, ("", MAX_ARRAY, None))) for at, kind in _PARTS[code]
        ]
        self.passed: set[tuple[type, ...]] = set()  #: types of the verb and its fields

    def check(self, signature: tuple[type, ...]) -> str | None:
        """What is wrong about fields of these types, if the annotations do not admit them; else remembers them."""
        fields = _FIELDS[self.code]
        if len(signature) != len(fields) + 1 or not all(
            kind in kinds for kind, kinds in zip(signature[1:], fields, strict=True)
        ):
            return f"{self.cls.__name__.upper()} with fields of the wrong number or type"
        self.passed.add(signature)
        return None

    def check_lists(self, array: tuple[Any, ...]) -> str | None:
        """What is wrong about the lengths of lists, and about their parts."""
        for at, kind, name, most, each in self.lists:
            parts = array[at]
            if not parts:
                continue
            if set(map(type, parts)) != {kind}:
                return f"{self.cls.__name__.upper()} with a list of something else than {kind.__name__}"
            if len(parts) > most:  # guards: message limits [off]
                return f"{len(parts):,} {name}; the limit is {most:,}"
            if each is not None and max(map(len, parts)) > each:
                return f"one of the {name} has more than {each:,} characters"
        return None


def _unpacked(frame: bytes, limits: dict[str, Any]) -> Any:
    """What a first frame holds. Its parts are at most as many as its bytes, so only in a large one are they counted."""
    if len(frame) <= MAX_PARTS:
        return msgpack.unpackb(frame, **limits)
    if len(frame) > MAX_HEADER_BYTES:
        raise ProtocolError(f"the first frame of a message has {len(frame):,} bytes; the limit is {MAX_HEADER_BYTES:,}")
    left = MAX_PARTS

    def count(array: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal left
        left -= 1 + len(array)
        if left < 0:  # guards: message limits [off]
            raise ProtocolError(f"a message has more than {MAX_PARTS:,} parts")
        return array

    return msgpack.unpackb(frame, list_hook=count, **limits)


def _foreign_hello(array: tuple[Any, ...]) -> Hello:
    """What can be known of the HELLO of another version of the protocol: which one, and of which release."""
    version, release = (*array[1:3], None, None)[:2]
    if type(version) is not int or type(release) is not str:
        raise ProtocolError("HELLO does not begin with the version of its protocol and its release")
    return Hello(version, release, int(Role.OBSERVER), None, None, None, None, "", "", 0, "", (), (), None)
