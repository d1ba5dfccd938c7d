"""Envelopes to frames, and back.

Coalescing is the first rule of speed here (a sender that has several envelopes for one peer sends one message), and the
second is that small bodies stand *inside* the envelope. Measured over loopback with CURVE on two cores, 100-byte
bodies: a frame for each body carries 150,000 envelopes/s one at a time and 290,000/s at 8 a message, since libzmq
encrypts and allocates every frame by itself; inside the array they reach 280,000/s and 1,000,000/s. A body is opaque
all the same: binary, never unpacked between its two ends.

A SEND, DELIVER or BROADCAST counts for each message in it, wherever messages are counted: a peer cannot have more of
them handled in one go by putting them into one envelope.

A peer's frames are checked against the annotations of `verbs`, field by field, and within bounds that hold before
anything is made of them: the size of the frame, and the parts in it, in total. A message that cannot be read is a
`ProtocolError`, and nothing else is raised; a malformed envelope in it becomes a `Faulty`, and the others are read as
if it were not there. Refused content is never printed: that could be all of it.
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
    MAX_ENVELOPE_MESSAGES,
    MAX_HEADER_BYTES,
    MAX_LIST,
    MAX_PARTS,
    STRINGS,
    TABLE,
    VERSION,
    Envelope,
    Faulty,
    Header,
    Hello,
    Previews,
    Role,
    Send,
    Sessions,
    refs_of,
)

_IDS = ("msg_id", "reply_to")
_CODES: dict[type[Any], int] = {verb.cls: verb.code for verb in TABLE}
_HELLO, _SEND = _CODES[Hello], _CODES[Send]
_FILE = Send._fields.index("file")
#: Long without a body: one to a message, or a few would pass the frame limit. Likewise a SEND whose body is in a file,
#: which the broker reads at once.
_LONG = frozenset((_CODES[Sessions], _CODES[Previews]))
_WITH_BODY = frozenset(verb.code for verb in TABLE if verb.cls._fields[-1:] == ("body",))
_WITH_BODIES = frozenset(verb.code for verb in TABLE if verb.cls._fields[-1:] == ("bodies",))
_HEADER_END = 1 + len(Header._fields)  # in an array that begins with a verb and a header


def _allowed(annotation: object) -> frozenset[type]:
    """Returns the runtime types that a field's annotation admits."""
    members = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    found: set[type] = set()
    for member in members:
        origin = get_origin(member) or member
        assert isinstance(origin, type)
        found.add(origin)
        if origin is float:
            found.add(int)  # msgpack has no way to insist on 1.0
    return frozenset(found)


def wire_fields(cls: type[Any]) -> dict[str, Any]:
    """Returns the names and annotations of a verb's fields as they stand in its array.

    The fields of a header stand in its place. Of verbs that hold messages, the ids and then as many bodies stand at the
    end of the array, which is the shortest form for a batch of one as for any other; the first of each is named here.
    """
    fields: dict[str, Any] = {}
    for name, kind in cls.__annotations__.items():
        if kind is Header:
            fields |= Header.__annotations__
        elif name in ("msg_ids", "bodies") and cls._fields[-1] == "bodies":
            fields[name] = get_args(kind)[0]
        else:
            fields[name] = kind
    return fields


#: Weight in a batch of each number of a list, so that parts are bounded as bytes are: to half of `MAX_PARTS`.
NUMBER_BYTES = 16
_NUMBERS = {
    verb.code: place
    for verb in TABLE
    for place, kind in enumerate(verb.cls.__annotations__.values())
    if kind == tuple[int, ...]
}
_FIELDS = {verb.code: tuple(map(_allowed, wire_fields(verb.cls).values())) for verb in TABLE}
_WITH_HEADER = frozenset(verb.code for verb in TABLE if Header in list(verb.cls.__annotations__.values())[:1])
# The type of a tuple does not tell its elements' type, so they are checked each time: (position, type of the elements).
_PARTS = {
    verb.code: tuple(
        (number, get_args(member)[0])
        for number, kind in enumerate(wire_fields(verb.cls).values(), start=1)
        for member in (get_args(kind) if isinstance(kind, UnionType) else (kind,))
        if get_origin(member) is tuple and get_args(member)[0] in (str, int, bytes)
    )
    for verb in TABLE
}
_PACKER_LIMITS: dict[str, Any] = {
    "use_list": False,
    "max_str_len": MAX_HEADER_BYTES,
    "max_bin_len": INLINE_BYTES,
    "max_map_len": 0,
    "max_ext_len": 0,
}


def encode(envelopes: Sequence[Envelope]) -> list[bytes]:
    """Returns the frames of one message. Bodies over `INLINE_BYTES` leave the array for frames of their own."""
    arrays: list[Sequence[Any]] = []
    frames = [b""]
    envelope: Any
    for envelope in envelopes:
        code = _CODES[envelope.__class__]
        if code in _WITH_BODIES:
            bodies = envelope[-1]
            if max(map(len, bodies)) > INLINE_BYTES:
                frames += [body for body in bodies if len(body) > INLINE_BYTES]
                bodies = map(_inside, bodies)
            if code in _WITH_HEADER:
                arrays.append([code, *envelope[0], *envelope[1:-2], *envelope[-2], *bodies])
            else:
                arrays.append([code, *envelope[:-2], *envelope[-2], *bodies])
        elif code in _WITH_BODY and len(envelope[-1]) > INLINE_BYTES:
            frames.append(envelope[-1])
            arrays.append((code, *envelope[:-1], len(envelope[-1])))
        else:
            arrays.append((code, *envelope))
    frames[0] = msgpack.packb(arrays)
    return frames


def _inside(body: bytes) -> bytes | int:
    """Returns what stands for a body in its array: itself, or the length of its own frame."""
    return body if len(body) <= INLINE_BYTES else len(body)


def batches(envelopes: Iterable[Envelope]) -> Iterator[list[Envelope]]:
    """Cuts what waits for one peer into ZeroMQ messages of at most `MAX_BATCH` messages (an envelope without any counts
    as one) and `MAX_BATCH_BYTES` of bodies."""
    batch: list[Envelope] = []
    size_bytes = count = 0
    envelope: Any
    for envelope in envelopes:
        code = _CODES[envelope.__class__]
        number = 1
        if code in _WITH_BODIES:
            number = len(envelope[-1])  # guards: message limits
            weight_bytes = sum(map(len, envelope[-1]))  # guards: message limits [sum(map(len, envelope[-1])) => 0]
            if code == _SEND and envelope[_FILE] is not None:
                weight_bytes = MAX_BATCH_BYTES
        elif code in _WITH_BODY:
            weight_bytes = len(envelope[-1])
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
    """Frames to envelopes, for one side.

    Checks every field against the annotations. The combinations of field types that passed once are remembered: there
    are few, and a look-up is several times cheaper than the check.
    """

    def __init__(self, *, from_broker: bool) -> None:
        # An array's room is made before its elements are read, and a thousand may be nested.
        self._limits = {**_PACKER_LIMITS, "max_array_len": MAX_ARRAY if from_broker else MAX_LIST}
        self._rules = {verb.code: _Rule(verb.code, verb.cls) for verb in TABLE if verb.from_broker == from_broker}

    def __repr__(self) -> str:
        return f"<Decoder of {len(self._rules)} verbs>"

    def decode(self, frames: Sequence[bytes]) -> list[Envelope]:
        """Returns the envelopes of one message. Raises `ProtocolError` and nothing else, whatever the frames hold."""
        arrays = self._arrays(frames)
        rules = self._rules
        new: Any = tuple.__new__
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
            more = len(array) - rule.length  # fields beyond the first message
            signature = tuple(map(type, array)) if more <= 0 else rule.signature(array)
            fault = None
            if signature not in rule.passed:
                if int in signature[rule.bodies_at :]:
                    array, used = _filled(array, rule.first_body(array), frames, used)
                    signature = rule.signature(array)
                fault = rule.check(signature)
            if fault is None:
                for place, name, limit in rule.strings:
                    value = array[place]
                    if value is not None and len(value) > limit:  # guards: message limits [off]
                        fault = f"{name} of {len(value):,} characters; the limit is {limit:,}"
                if more > 0:
                    fault = rule.check_count(more) or fault
                    count += more // 2
                for at, kind, name, most, each in rule.lists:
                    if array[at]:
                        fault = rule.check_list(array[at], kind, name, most, each) or fault
            if fault is not None:
                envelopes.append(Faulty(rule.cls.__name__.upper(), refs_of(rule.cls, rule.fields(array)), fault))
                continue
            # Not by `_make`, which counts the fields again.
            envelopes.append(new(rule.cls, rule.fields(array)))
        if count > MAX_BATCH:  # guards: message limits [off]
            raise ProtocolError("a message has more than 512 messages in its envelopes")
        if used != len(frames):
            raise ProtocolError("a message has frames that belong to no envelope")
        return envelopes

    def _arrays(self, frames: Sequence[bytes]) -> tuple[Any, ...]:
        try:
            arrays = _unpacked(frames[0], self._limits)
        except ProtocolError:
            raise
        except Exception as error:  # msgpack raises a dozen kinds, RecursionError and UnicodeDecodeError among them
            raise ProtocolError(f"a message does not begin with a msgpack array of envelopes: {error}") from None
        if type(arrays) is not tuple or len(arrays) > MAX_BATCH:
            raise ProtocolError("a message does not begin with an array of at most 512 envelopes")
        return arrays


def _filled(array: tuple[Any, ...], start: int, frames: Sequence[bytes], used: int) -> tuple[tuple[Any, ...], int]:
    """Puts the bodies that have frames of their own in the places of their lengths, from `start` on; `used` frames are
    taken already. Returns the array, and how many frames are taken then."""
    bodies = list(array[start:])
    for at, body in enumerate(bodies):
        if type(body) is int:
            if used >= len(frames) or len(frames[used]) != body:
                raise ProtocolError("a body's frame is missing or has another length than its envelope says")
            bodies[at] = frames[used]
            used += 1
    return (*array[:start], *bodies), used


class _Rule:
    """How the arrays of one verb are checked."""

    __slots__ = ("bodies_at", "cls", "code", "length", "lists", "messages_at", "passed", "strings", "with_header")

    def __init__(self, code: int, cls: type[Any]) -> None:
        self.code = code
        self.cls = cls
        self.with_header = code in _WITH_HEADER
        fields = _FIELDS[code]
        #: Where the ids begin, of verbs that hold messages; else behind any array.
        self.messages_at = len(fields) - 1 if code in _WITH_BODIES else 2 * MAX_ARRAY
        #: Of an array with one message.
        self.length = self.messages_at + 2
        #: From where on a type in the signature is that of a body.
        self.bodies_at = len(fields) if code in _WITH_BODIES | _WITH_BODY else MAX_ARRAY
        #: The broker is trusted as to lengths: it has the key that says that it is the broker. And the broker's core
        #: checks ids of messages, all of their characters.
        self.strings = tuple(one for one in STRINGS.get(cls, ()) if one[1] not in _IDS)
        #: (position, type of the elements, name, most elements, most characters of each)
        bounds = {at: (name, most, each) for at, name, most, each in LISTS.get(cls, ())}
        self.lists: list[tuple[int, type, str, int, int | None]] = [
            (at, kind, *bounds.get(at, ("", MAX_ARRAY, None))) for at, kind in _PARTS[code]
        ]
        self.passed: set[tuple[type, ...]] = set()  #: signatures

    def signature(self, array: tuple[Any, ...]) -> tuple[type, ...]:
        """Returns the types of the verb and its fields. Messages that have the same types have them once."""
        at = self.messages_at
        if len(array) - at <= 2:
            return tuple(map(type, array))
        middle = at + len(array) >> 1
        return (*map(type, array[:at]), *set(map(type, array[at:middle])), *set(map(type, array[middle:])))

    def first_body(self, array: tuple[Any, ...]) -> int:
        """Returns the position of the first body."""
        return min(self.messages_at + len(array) >> 1, len(array) - 1)

    def fields(self, array: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the fields of the envelope."""
        at = self.messages_at
        if at >= len(array):
            return array[1:]
        middle = at + len(array) >> 1
        if self.with_header:
            header = tuple.__new__(Header, array[1:_HEADER_END])
            return (header, *array[_HEADER_END:at], array[at:middle], array[middle:])
        # Unpacking would take twice as long.
        return array[1:at] + (array[at:middle], array[middle:])  # noqa: RUF005

    def check(self, signature: tuple[type, ...]) -> str | None:
        """Returns what is wrong about fields of these types, if the annotations do not admit them; else remembers
        them."""
        fields = _FIELDS[self.code]
        if len(signature) != len(fields) + 1 or not all(
            kind in kinds for kind, kinds in zip(signature[1:], fields, strict=True)
        ):
            return f"{self.cls.__name__.upper()} with fields of the wrong number or type"
        self.passed.add(signature)
        return None

    def check_count(self, more: int) -> str | None:
        """Returns what is wrong about a number of messages, which have so many fields beyond the first message."""
        if more % 2 or more // 2 >= MAX_ENVELOPE_MESSAGES:  # guards: message limits [off]
            return (
                f"{1 + more / 2:,g} messages in one {self.cls.__name__.upper()}; the limit is {MAX_ENVELOPE_MESSAGES}"
            )
        return None

    def check_list(self, parts: tuple[Any, ...], kind: type, name: str, most: int, each: int | None) -> str | None:
        """Returns what is wrong about the length of a list, or about its elements; None if nothing is."""
        if set(map(type, parts)) != {kind}:
            return f"{self.cls.__name__.upper()} with a list of something else than {kind.__name__}"
        if len(parts) > most:  # guards: message limits [off]
            return f"{len(parts):,} {name}; the limit is {most:,}"
        if each is not None and max(map(len, parts)) > each:
            return f"one of the {name} has more than {each:,} characters"
        return None


def _unpacked(frame: bytes, limits: dict[str, Any]) -> Any:
    """Unpacks a first frame. It has at most as many parts as bytes, so only the parts of a large one are counted."""
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
    """Reads the version and the release of a HELLO of another version, all that can be known of it."""
    version, release = (*array[1:3], None, None)[:2]
    if type(version) is not int or type(release) is not str:
        raise ProtocolError("HELLO does not begin with the version of its protocol and its release")
    return Hello(version, release, int(Role.OBSERVER), None, None, None, None, "", "", 0, "", (), (), None, True)
