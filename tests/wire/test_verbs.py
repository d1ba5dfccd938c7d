"""The codec: what it writes it reads, what it reads it has checked, and all that it raises is ProtocolError."""

from __future__ import annotations

import sys
import threading
import tracemalloc
import uuid
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, get_args, get_origin

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zmqbus.errors import InvalidName, InvalidPayload, ProtocolError, ZmqbusError
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import INLINE_BYTES, MAX_BATCH, MAX_BATCH_BYTES, Scope

INTS = st.integers(-(2**63), 2**64 - 1)
BODIES = st.one_of(
    st.binary(max_size=100),
    st.sampled_from((INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 3 * INLINE_BYTES)).map(bytes),
)


def values(annotation: object, chars: int = 12) -> st.SearchStrategy[Any]:
    """Values that fit a field."""
    if isinstance(annotation, UnionType):
        return st.one_of(*(values(one, chars) for one in get_args(annotation)))
    if annotation is type(None):
        return st.none()
    if get_origin(annotation) is tuple:
        part = get_args(annotation)[0]
        if get_origin(part) is tuple:
            return st.lists(st.tuples(st.text(max_size=5), INTS), max_size=4).map(tuple)
        return st.lists(values(part, chars), max_size=4).map(tuple)
    return {
        int: INTS,
        str: st.text(st.characters(codec="utf-8"), max_size=chars),
        bool: st.booleans(),
        float: st.floats(allow_nan=False),
        bytes: BODIES,
    }[annotation]  # type: ignore[index]


def fields_of(cls: Any) -> Iterator[st.SearchStrategy[Any]]:
    for name, kind in cls.__annotations__.items():
        if kind is verbs.Header:
            yield st.tuples(*fields_of(kind)).map(verbs.Header._make)
        else:
            yield values(kind, min(20, verbs.FIELD_CHARS.get(name, 20)))


def envelopes_of(cls: Any) -> st.SearchStrategy[Any]:
    """Envelopes of a verb; those that hold messages hold one at least, each with an id and a body."""
    if cls._fields[-1:] != ("bodies",):
        return st.tuples(*fields_of(cls)).map(cls._make)
    *fields, _, _ = fields_of(cls)
    messages = st.lists(st.tuples(st.text("ab01", max_size=12), BODIES), min_size=1, max_size=4)
    return st.tuples(*fields, messages).map(lambda drawn: cls(*drawn[:-1], *zip(*drawn[-1], strict=True)))


TO_BROKER = [cls for code, cls in verbs.VERBS.items() if code < 32]
FROM_BROKER = [cls for code, cls in verbs.VERBS.items() if code >= 32]


def messages(verbs: Sequence[Any], max_size: int = 6) -> st.SearchStrategy[list[Any]]:
    # HELLO of another version is a matter of its own.
    return st.lists(st.one_of(*map(envelopes_of, verbs)).map(_present), max_size=max_size)


def _present(envelope: Any) -> Any:
    return envelope._replace(version=verbs.VERSION) if type(envelope) is verbs.Hello else envelope


def decoder(*, from_broker: bool) -> codec.Decoder:
    return codec.Decoder(from_broker=from_broker)


# --- round trips


@pytest.mark.parametrize("cls", verbs.VERBS.values(), ids=lambda cls: cls.__name__)
def test_envelopes_round_trip(cls: Any) -> None:
    from_broker = cls in FROM_BROKER

    @settings(max_examples=30)
    @given(st.lists(envelopes_of(cls).map(_present), max_size=3))
    def check(envelopes: list[Any]) -> None:
        read = decoder(from_broker=from_broker).decode(codec.encode(envelopes))
        assert read == envelopes
        assert [type(one) for one in read] == [type(one) for one in envelopes]

    check()


@pytest.mark.parametrize(("verbs", "from_broker"), [(TO_BROKER, False), (FROM_BROKER, True)])
def test_mixed_message_round_trips(verbs: list[Any], from_broker: bool) -> None:
    shared = decoder(from_broker=from_broker)  # what passed once is remembered, and must not let more pass later

    @given(messages(verbs))
    def check(envelopes: list[Any]) -> None:
        assert shared.decode(codec.encode(envelopes)) == envelopes

    check()


@pytest.mark.parametrize("size", [0, INLINE_BYTES, INLINE_BYTES + 1, verbs.MAX_BODY_BYTES])
def test_only_large_bodies_get_a_frame_of_their_own(size: int) -> None:
    send = verbs.Send.one("aaaaaaaaaaaa", 0, "bob", 0, None, False, b"x" * size)
    frames = codec.encode([send, send])
    assert len(frames) == (3 if size > INLINE_BYTES else 1)
    assert decoder(from_broker=False).decode(frames) == [send, send]


def test_message_without_envelopes() -> None:
    assert decoder(from_broker=True).decode(codec.encode([])) == []


# --- garbage


def refuse_or_read(frames: list[bytes], *, from_broker: bool) -> None:
    """Whatever it holds: it is an error of the protocol, or it is envelopes with fields of the right types."""
    try:
        read = decoder(from_broker=from_broker).decode(frames)
    except ProtocolError:
        return
    for envelope in read:
        if type(envelope) is verbs.Faulty:
            continue
        for value, annotation in zip(envelope, type(envelope).__annotations__.values(), strict=True):
            assert fits(value, annotation), envelope


def fits(value: Any, annotation: object) -> bool:
    if annotation is verbs.Header:
        return type(value) is verbs.Header and all(map(fits, value, verbs.Header.__annotations__.values()))
    if isinstance(annotation, UnionType):
        return any(fits(value, one) for one in get_args(annotation))
    if get_origin(annotation) is tuple:
        part = get_args(annotation)[0]
        return type(value) is tuple and (
            get_origin(part) is tuple or all(fits(one, part) for one in value)  # rows are looked at by who shows them
        )
    return type(value) is annotation or (annotation is float and type(value) is int) or value is annotation is None


@given(st.lists(st.binary(max_size=200), max_size=4), st.booleans())
def test_random_bytes_raise_protocol_errors_only(frames: list[bytes], from_broker: bool) -> None:
    refuse_or_read(frames, from_broker=from_broker)


junk = st.recursive(
    st.none() | st.booleans() | INTS | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=50)
@given(st.lists(st.builds(lambda code, rest: [code, *rest], st.integers(0, 64), st.lists(junk, max_size=15))), junk)
def test_msgpack_of_the_wrong_shape(arrays: list[Any], other: Any) -> None:
    for from_broker in (False, True):
        refuse_or_read([msgpack.packb(arrays)], from_broker=from_broker)
        refuse_or_read([msgpack.packb(other)], from_broker=from_broker)


@pytest.mark.parametrize(("verbs", "from_broker"), [(TO_BROKER, False), (FROM_BROKER, True)])
def test_field_of_another_type_is_refused(verbs: list[Any], from_broker: bool) -> None:
    @given(st.one_of(*map(envelopes_of, verbs)).map(_present), st.data())
    def check(envelope: Any, data: st.DataObject) -> None:
        (array,) = msgpack.unpackb(codec.encode([envelope])[0])
        place = data.draw(st.integers(0, len(array) - 1))
        array[place] = data.draw(junk)
        refuse_or_read([msgpack.packb([array])], from_broker=from_broker)

    check()


@pytest.mark.parametrize(("verbs", "from_broker"), [(TO_BROKER, False), (FROM_BROKER, True)])
def test_mutated_and_truncated_messages(verbs: list[Any], from_broker: bool) -> None:
    @given(messages(verbs, 3), st.data())
    def check(envelopes: list[Any], data: st.DataObject) -> None:
        frames = codec.encode(envelopes)
        frame = data.draw(st.integers(0, len(frames) - 1))
        place = data.draw(st.integers(0, max(0, len(frames[frame]) - 1)))
        content = frames[frame]
        match data.draw(st.sampled_from(("flip", "cut", "insert", "drop", "twice", "swap"))):
            case "flip":
                if content:
                    frames[frame] = content[:place] + bytes((content[place] ^ data.draw(st.integers(1, 255)),))
                    frames[frame] += content[place + 1 :]
            case "cut":
                frames[frame] = content[:place]
            case "insert":
                frames[frame] = content[:place] + data.draw(st.binary(min_size=1, max_size=3)) + content[place:]
            case "drop":
                del frames[frame]
            case "twice":
                frames.append(content)
            case "swap":
                frames.reverse()
        refuse_or_read(frames, from_broker=from_broker)

    check()


SEND = verbs.Send.one("aaaaaaaaaaaa", 0, "bob", 0, None, False, b"x" * (INLINE_BYTES + 1))


HEADER = verbs.Header("s", "n", None, 0, "", 0, None, 0.5)
FIELDS = (4, 0, "bob", 0, None, False, None, None)  #: of a SEND, but for its messages


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [msgpack.packb(7)],
        [msgpack.packb([7])],
        [msgpack.packb([[]])],
        [msgpack.packb([["4"]])],
        [msgpack.packb([[99]])],
        [msgpack.packb([[True]])],  # == 1, and no HELLO
        [msgpack.packb([[37]])],  # the broker's, said to the broker
        [msgpack.packb([[2, "too much"]])],
        [msgpack.packb([[3, "lease"]])],  # too little
        [msgpack.packb([[4, 4]]), b"body"],  # the verb's number taken for its body
        [msgpack.packb([[5, 1, ["a number?"]]])],
        [msgpack.packb([[5, True, []]])],
        [msgpack.packb([{"verb": 2}])],
        [msgpack.packb([[12, msgpack.ExtType(1, b"")]])],
        [codec.encode([SEND])[0]],  # the body's frame is missing
        [*codec.encode([SEND]), b"one too many"],
        [codec.encode([SEND])[0], b"short"],
        [codec.encode([SEND])[0][:-1], SEND.bodies[0]],
        [b"\x91" * 5_000],  # nested deeper than any stack
        [b"\xdd\xff\xff\xff\xff"],  # an array of four billion
        [b"\x91\x92\x0c\xdb\xff\xff\xff\xff"],  # a string of four gigabytes
        [msgpack.packb([[2]]) + b"\x00"],
        [b"\x91\x92\x0c\xa1\xff"],  # not UTF-8
        [msgpack.packb([[*FIELDS, "aaaaaaaa", 7, b"x", b"y"]])],  # an id that is a number
        [msgpack.packb([[*FIELDS, "aaaaaaaa", "x"]])],  # a text for a body
        [msgpack.packb([[*FIELDS, "aaaaaaaa", None]])],
        [msgpack.packb([[*FIELDS, "aaaaaaaa", "bbbbbbbb", b"x", 2]]), b"y"],  # a frame of another length
        [msgpack.packb([[*FIELDS, "aaaaaaaa", b"x"]]), b"y"],  # a frame that nobody announced
        [msgpack.packb([[*FIELDS]])],  # no messages
        [msgpack.packb([[*FIELDS, "aaaaaaaa", "bbbbbbbb", b"x"]])],  # an id without a body
        [msgpack.packb([[*FIELDS, ["aaaaaaaa"], [b"x"]]])],
        [msgpack.packb([[*FIELDS, "aaaaaaaa", bytes(INLINE_BYTES + 1)]])],
        [msgpack.packb([[4, 0, "bob", None, *FIELDS[4:], "aaaaaaaa", b"x"]])],
        [msgpack.packb([[*FIELDS, *["aaaaaaaa"] * 257, *[b"x"] * 257]])],  # more messages than one may hold
        [msgpack.packb([[*FIELDS, *["aaaaaaaa"] * 1100, *[b"x"] * 1100]])],
    ],
    ids=range(37),
)
def test_malformed_envelopes_are_refused(frames: list[bytes]) -> None:
    assert refused(frames)


def refused(frames: list[bytes], reader: codec.Decoder | None = None) -> bool:
    """Whether nothing of it is taken: as a whole, or each envelope for itself."""
    try:
        read = (reader or decoder(from_broker=False)).decode(frames)
    except ProtocolError:
        return True
    return set(map(type, read)) == {verbs.Faulty}


def test_pointer_is_made_of_numbers() -> None:
    reader = decoder(from_broker=True)
    deliver = verbs.Deliver(HEADER, 1, 0, 0, -1, (1, 2, 3, 4), 0, ("aaaaaaaaaaaa",), (b"",))
    assert reader.decode(codec.encode([deliver])) == [deliver]
    assert refused(codec.encode([deliver._replace(pointer=(1, 2, "3", 4))]), reader)  # type: ignore[arg-type]


def test_accepted_shape_does_not_admit_others() -> None:
    reader = decoder(from_broker=False)
    assert reader.decode([msgpack.packb([[5, 1, [2, 3]]])]) == [verbs.Ack(1, (2, 3))]
    assert refused([msgpack.packb([[5, 1, [2, None]]])], reader)
    assert refused([msgpack.packb([[5, 1]])], reader)


# --- limits


LISTS = (tuple[str, ...], tuple[int, ...], tuple[int, ...] | None, tuple[bytes, ...])


def full_of(cls: Any) -> Any:
    """An envelope whose strings and lists are all as long as they may be."""
    values: list[Any] = [
        verbs.VERSION if cls is verbs.Hello and at == 0 else _longest(name, kind)
        for at, (name, kind) in enumerate(cls.__annotations__.items())
    ]
    full = cls._make(values)
    return full._replace(msg_ids=full.msg_ids[: len(full.bodies)]) if cls is verbs.Send else full


def _longest(name: str, kind: Any) -> Any:
    if kind in (str, str | None):
        return "x" * verbs.FIELD_CHARS[name]
    parts = verbs.FIELD_PARTS.get(name, verbs.MAX_LIST)
    return {
        int: 1,
        float: 1.0,
        bool: True,
        bytes: b"x",
        tuple[int, ...]: (1,) * parts,
        tuple[int, ...] | None: (1,) * parts,
        tuple[bytes, ...]: (b"x",) * parts,
        tuple[str, ...]: ("x" * verbs.FIELD_CHARS.get(name, 0),) * parts,
    }[kind]


@pytest.mark.parametrize("cls", TO_BROKER, ids=lambda cls: cls.__name__)
def test_field_limits_hold_on_both_sides(cls: Any) -> None:
    """A field at its limit passes on both sides; one character more fails on both, naming the message."""
    longest = full_of(cls)
    verbs.check_fields(longest)
    reader = decoder(from_broker=False)
    assert reader.decode(codec.encode([longest])) == [longest]
    beside = verbs.Bye()
    for at, kind in enumerate(cls.__annotations__.values()):
        value = longest[at]
        longer: list[Any] = []
        if kind in (str, str | None):
            longer = [value + "x", "\N{SNOWMAN}" * (len(value) + 1)]
        elif kind in LISTS:
            longer = [value * 17]  # more than any list may have
            if len(value) == verbs.FIELD_PARTS.get(list(cls.__annotations__)[at], verbs.MAX_LIST):
                longer.append((*value, value[0]))
            if kind == tuple[str, ...]:
                longer.append((*value[1:], value[0] + "x"))
        for one in longer:
            envelope = cls._make((*longest[:at], one, *longest[at + 1 :]))
            with pytest.raises(ZmqbusError, match="limit is"):
                verbs.check_fields(envelope)
            name = list(cls.__annotations__)[at]
            if name in ("msg_id", "reply_to") or (cls is verbs.Send and name in ("msg_ids", "bodies")):
                continue  # the broker's core checks each of their characters; ids and bodies are counted together
            try:
                faulty, after = reader.decode(codec.encode([envelope, beside]))
            except ProtocolError:
                assert kind in LISTS  # over what an array may have
                continue
            assert isinstance(faulty, verbs.Faulty) and after == beside
            expected = verbs.refs_of(cls, longest)
            if at > 0:
                assert faulty.refs == expected
            assert len(faulty.reason) < 200


def test_every_client_field_has_a_limit() -> None:
    for cls in TO_BROKER:
        for name, kind in cls.__annotations__.items():
            if kind in (str, str | None, tuple[str, ...]):
                assert name in verbs.FIELD_CHARS, (cls, name)


def test_unencodable_envelope_is_not_sent() -> None:
    with pytest.raises(InvalidName, match="not valid Unicode"):
        verbs.check_target("p\udcffy")
    with pytest.raises(InvalidPayload, match="ref is not valid Unicode"):
        verbs.check_fields(verbs.Status("\udcff"))


def test_invalid_envelope_is_refused_alone() -> None:
    good = SEND._replace(msg_ids=("bbbbbbbbbbbb",))
    for bad in (
        SEND._replace(target="x" * 5_000),
        SEND._replace(target="x" * 100_000),
        SEND._replace(scope="all"),  # type: ignore[arg-type]
    ):
        read = decoder(from_broker=False).decode(codec.encode([bad, good]))
        assert read[1:] == [good]
        assert isinstance(read[0], verbs.Faulty) and read[0].refs == SEND.msg_ids
    read = decoder(from_broker=False).decode(codec.encode([several(3)._replace(target="x" * 5_000), good]))
    assert read[1:] == [good]
    assert isinstance(read[0], verbs.Faulty) and read[0].refs == several(3).msg_ids


def nested(size_bytes: int, arity: int) -> bytes:
    """Small arrays in small arrays, as many as fit."""
    leaf = b"\x90"
    while len(leaf) < 200:
        leaf = bytes([0x90 | arity]) + leaf * arity
    row = b"\xdc" + verbs.MAX_LIST.to_bytes(2, "big") + leaf * verbs.MAX_LIST
    count = max(1, size_bytes // len(row))
    return b"\xdc" + count.to_bytes(2, "big") + row * count


@pytest.mark.parametrize(
    "frame",
    [
        nested(verbs.MAX_FRAME_BYTES - 100_000, 2),
        nested(verbs.MAX_FRAME_BYTES - 100_000, 15),
        nested(verbs.MAX_HEADER_BYTES, 1),
        nested(verbs.MAX_HEADER_BYTES, 3),
        (b"\x92" * 1_000 + b"\x90" * 2_000) * 32,
        (b"\xdc\x07\xff" + b"\xcd\xff\xff" * 1_300) * 1023,
        b"\xdc\x08\x00" * 1023,
        (b"\xdc\x08\x00" + b"\xcd\xff\xff" * 1_300) * 1023,
        msgpack.packb([[12, ["ab"] * 4000]] * 300),
    ],
    ids=range(9),
)
def test_parts_of_a_message_are_bounded(frame: bytes) -> None:
    """Neither memory nor the error text grows with the input."""
    tracemalloc.start()
    try:
        try:
            read = decoder(from_broker=False).decode([frame])
        except ProtocolError as error:
            reason = str(error)
        else:
            (faulty,) = read
            assert isinstance(faulty, verbs.Faulty)
            reason = faulty.reason
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(reason) < 200
    assert peak < 64 * 1024 * 1024, f"{peak >> 20} MiB"


def test_largest_batches_are_within_the_bounds() -> None:
    header = verbs.Header("s" * 36, "n" * 40, "l" * 60, 1, "", 0, None, 1.5)
    cast = verbs.Broadcast(header, "e" * 16, 1, 0, (70_000,) * 1_000, None, ("a" * 12,), (b"x",))
    for batch in codec.batches([cast] * MAX_BATCH):
        assert decoder(from_broker=True).decode(codec.encode(batch)) == batch


def test_inline_body_is_limited() -> None:
    array = [*FIELDS, "aaaaaaaaaaaa"]
    reader = decoder(from_broker=False)
    assert len(reader.decode([msgpack.packb([[*array, bytes(INLINE_BYTES)]])])) == 1
    with pytest.raises(ProtocolError):
        reader.decode([msgpack.packb([[*array, bytes(INLINE_BYTES + 1)]])])


def test_batch_size_is_limited() -> None:
    reader = decoder(from_broker=False)
    assert len(reader.decode(codec.encode([verbs.Bye()] * MAX_BATCH))) == MAX_BATCH
    with pytest.raises(ProtocolError):
        reader.decode(codec.encode([verbs.Bye()] * (MAX_BATCH + 1)))


def test_largest_body_is_below_the_frame_limit() -> None:
    assert verbs.MAX_BROADCAST_BYTES < verbs.MAX_BODY_BYTES < verbs.MAX_FRAME_BYTES
    # A full batch of small messages whose strings are all as long as they may be.
    send = full_of(verbs.Send)._replace(msg_ids=("a" * 12,), bodies=(bytes(INLINE_BYTES),))
    header = verbs.Header("s" * 40, "n" * 40, "l" * 60, 2**63, "t" * 4_096, 2**63, "r" * 40, 1.5)
    numbers = (2**63,) * 3
    deliver = verbs.Deliver(header, *numbers, 2**63, (2**31,) * 4, 2**63, ("a" * 12,), (bytes(2_048),))
    for one in (send, send._replace(bodies=(bytes(2_048),)), deliver):
        for batch in codec.batches([one] * MAX_BATCH):
            (frame,) = codec.encode(batch)
            assert len(frame) <= verbs.MAX_HEADER_BYTES < verbs.MAX_FRAME_BYTES


def several(count: int, size_bytes: int = 1) -> verbs.Send:
    ids = tuple(f"message{n:05d}" for n in range(count))
    return verbs.Send(0, "bob", 0, None, False, None, None, ids, (bytes(size_bytes),) * count)


def test_each_message_of_an_envelope_counts() -> None:
    """Or one ZeroMQ message could hold a hundred thousand, all of which are handled in one go."""
    reader = decoder(from_broker=False)
    full = [several(verbs.MAX_ENVELOPE_MESSAGES)] * (MAX_BATCH // verbs.MAX_ENVELOPE_MESSAGES)
    assert reader.decode(codec.encode(full)) == full
    for more in (verbs.Bye(), several(1), several(verbs.MAX_ENVELOPE_MESSAGES)):
        with pytest.raises(ProtocolError, match="more than 512 messages"):
            reader.decode(codec.encode([*full, more]))
        assert codec.encode([more, *full])  # the encoder leaves it to `batches`
    with pytest.raises(ProtocolError, match="more than 512 messages"):
        reader.decode(codec.encode([several(2)] * MAX_BATCH))


def test_largest_envelope_is_below_the_frame_limit() -> None:
    largest = several(verbs.MAX_ENVELOPE_MESSAGES, INLINE_BYTES)
    assert sum(map(len, largest.bodies)) <= MAX_BATCH_BYTES
    assert len(codec.encode([largest])) == 1
    assert decoder(from_broker=False).decode(codec.encode([largest])) == [largest]


# --- batches


@given(st.lists(st.one_of(st.just(verbs.Bye()), BODIES.map(lambda body: SEND._replace(bodies=(body,)))), max_size=30))
def test_batches_lose_nothing(envelopes: list[Any]) -> None:
    assert [one for batch in codec.batches(envelopes) for one in batch] == envelopes


def test_batches_are_limited_by_number_and_size() -> None:
    assert list(map(len, codec.batches([verbs.Bye()] * (2 * MAX_BATCH + 1)))) == [MAX_BATCH, MAX_BATCH, 1]
    third = SEND._replace(bodies=(bytes(MAX_BATCH_BYTES // 3),))
    assert list(map(len, codec.batches([third] * 7))) == [3, 3, 1]
    assert list(map(len, codec.batches([several(verbs.MAX_ENVELOPE_MESSAGES)] * 5))) == [2, 2, 1]
    assert list(map(len, codec.batches([several(verbs.MAX_ENVELOPE_MESSAGES, INLINE_BYTES), several(1)]))) == [1, 1]
    huge = SEND._replace(bodies=(bytes(verbs.MAX_BODY_BYTES),))
    assert list(map(len, codec.batches([third, huge, third]))) == [1, 1, 1]
    assert list(codec.batches([])) == []


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(1, verbs.MAX_ENVELOPE_MESSAGES), st.sampled_from((0, 100, INLINE_BYTES))).map(
                lambda r: several(*r)
            ),
            st.just(verbs.Bye()),
            st.sampled_from((1, INLINE_BYTES + 1, MAX_BATCH_BYTES)).map(
                lambda size: SEND._replace(bodies=(bytes(size),))
            ),
        ),
        max_size=12,
    )
)
def test_batches_of_large_envelopes_are_within_the_bounds(envelopes: list[Any]) -> None:
    reader = decoder(from_broker=False)
    cut = list(codec.batches(envelopes))
    assert [one for batch in cut for one in batch] == envelopes
    for batch in cut:
        bodies = [getattr(one, "bodies", (b"",)) for one in batch]
        assert sum(map(len, bodies)) <= MAX_BATCH
        assert sum(len(body) for several in bodies for body in several) <= MAX_BATCH_BYTES or len(batch) == 1
        assert reader.decode(codec.encode(batch)) == batch


def test_two_pages_of_sessions_never_share_a_message() -> None:
    page = verbs.Sessions("r", (), True)
    batches = list(codec.batches([verbs.Bye(), page, page, verbs.Done("r", ""), page]))
    assert [sum(isinstance(one, verbs.Sessions) for one in batch) for batch in batches].count(1) == 3


# --- versions


@given(st.integers(-9, 99).filter(lambda number: number != verbs.VERSION), st.lists(st.none() | INTS | st.text()))
def test_hello_of_another_version_is_recognised(version: int, rest: list[Any]) -> None:
    (hello,) = decoder(from_broker=False).decode([msgpack.packb([[1, version, "9.9", *rest], ["what", "follows"]])])
    assert isinstance(hello, verbs.Hello)
    assert (hello.version, hello.release) == (version, "9.9")


# --- ids


def test_ids_are_unique_with_twelve_letters_and_digits() -> None:
    makers = [verbs.IdMaker() for _ in range(10)]
    ids = [make() for make in makers for _ in range(1_000)]
    assert len(set(ids)) == len(ids)
    assert all(len(one) == 12 and verbs.is_msg_id(one) for one in ids)


@given(st.binary(min_size=1, max_size=8))
def test_ids_have_full_width_for_any_entropy(entropy: bytes) -> None:
    make = verbs.IdMaker(entropy)
    first, second = make(), make()
    assert first != second and first[:7] == second[:7]
    assert all(len(one) == 12 and verbs.is_msg_id(one) for one in (first, second))


def test_counter_wraps_without_a_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs.IdMaker, "_WIDTH", 1)
    make = verbs.IdMaker(b"\x07\0\0\0\0\0\0\0")
    ids = [make() for _ in range(37)]
    assert len({one[:11] for one in ids[:36]}) == 1
    assert len(set(ids)) == 37
    assert ids[36][:11] != ids[0][:11]  # a new random part


@pytest.mark.parametrize("text", ["a" * 8, "0" * 12, "abc123de"])
def test_message_ids(text: str) -> None:
    assert verbs.is_msg_id(text)


@pytest.mark.parametrize("text", ["", "a" * 7, "a" * 13, "ABCDEFGH", "abc-1234", "abcdefg\n", "abcdéfgh", "٣" * 8])
def test_invalid_message_ids(text: str) -> None:
    assert not verbs.is_msg_id(text)


@given(
    st.lists(
        st.one_of(
            st.text(st.sampled_from("ab19zé٣ǅAß\n-"), min_size=7, max_size=13),
            st.text(st.sampled_from("ab"), min_size=8, max_size=8),
            st.text(st.sampled_from("abcdefghijkl0123456789"), min_size=8, max_size=12),
        ),
        min_size=1,
        max_size=6,
    )
)
@example(["abcdefgh", "abcdefgh"])
@example(["abcdefghabcdefgh", ""])
@example(["abcdefg", "abcdefghi"])
@example(["abcdefgh", "ABCDEFGH"])
@example(["abcdefgh", "abcdefg\n"])
def test_check_of_many_ids_equals_single_checks(texts: list[str]) -> None:
    assert verbs.are_msg_ids(texts) == (all(map(verbs.is_msg_id, texts)) and len(set(texts)) == len(texts))


def test_empty_list_of_ids_is_invalid() -> None:
    """A run has one at least."""
    assert not verbs.are_msg_ids([])


def test_ids_are_unique_across_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the count runs over under their hands."""
    monkeypatch.setattr(verbs.IdMaker, "_WIDTH", 2)
    make = verbs.IdMaker()
    before = sys.getswitchinterval()
    made: list[list[str]] = [[] for _ in range(4)]
    start = threading.Barrier(len(made))

    def draw(ids: list[str]) -> None:
        start.wait(90)
        ids += [make() for _ in range(10_000)]

    threads = [threading.Thread(target=draw, args=(ids,)) for ids in made]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    ids = [one for several in made for one in several]
    assert len(ids) == 40_000 == len(set(ids))
    assert all(len(one) == 12 and verbs.is_msg_id(one) for one in ids)


def test_session_ids_are_random_uuids() -> None:
    ids = [verbs.new_session_id() for _ in range(100)]
    assert len(set(ids)) == 100
    for text in ids:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)


def test_tokens_are_128_bits() -> None:
    assert {len(verbs.new_token()) for _ in range(10)} == {32}
    assert len({verbs.new_token() for _ in range(100)}) == 100


# --- channels

paths = st.text(st.characters(codec="utf-8"), max_size=10)


@given(st.lists(st.tuples(st.sampled_from((Scope.PROJECT, Scope.TOPIC)), paths.filter(lambda path: "\0" not in path))))
def test_no_channel_is_a_prefix_of_another(targets: list[tuple[Scope, str]]) -> None:
    channels = {verbs.channel(scope, target) for scope, target in targets}
    channels |= {verbs.name_channel(target) for _, target in targets} | {verbs.EVERYONE}
    for one in channels:
        assert [other for other in channels if other.startswith(one)] == [one]


def test_channels() -> None:
    assert verbs.channel(Scope.ALL, "whatever") == verbs.EVERYONE
    assert verbs.channel(Scope.PROJECT, "/a") == b"//a\0"
    assert verbs.channel(Scope.TOPIC, "a") == b"#a\0"
    assert verbs.name_channel("a") == b"@a\0"


@given(paths)
def test_mark_sorts_after_every_other_filter(target: str) -> None:
    mark = verbs.mark_channel("0")
    assert mark.startswith(verbs.MARK)
    others = (verbs.channel(Scope.PROJECT, target), verbs.channel(Scope.TOPIC, target))
    assert all(other < mark for other in (*others, verbs.name_channel(target), verbs.EVERYONE))
