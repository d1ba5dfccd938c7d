"""Values as bodies and back, and bodies that nobody made as values."""

from __future__ import annotations

import math
import pickle
from typing import Any

import msgpack
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus import errors
from zmqbus.client import message as messages
from zmqbus.client import payload
from zmqbus.client.message import Message, decode, encode, encode_error, of_batch, scope_and_target
from zmqbus.journal import record
from zmqbus.wire import limits
from zmqbus.wire.verbs import Deliver, Format, Header, Scope

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=5),
    max_leaves=20,
)


class Odd(Exception):
    """One that cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def message(fmt: int, body: bytes, **more: Any) -> Message:
    header = Header("auth-id", "auth", None, Scope.SESSION, "", fmt, None, 1.0)
    return Message(header, "aaaaaaaaaa01", body, **more)


def incoming(**changes: Any) -> Message:
    """A message of a batch; `changes` in its header or in the batch."""
    header = Header("sid", "auth", "Auth", Scope.SESSION, "bob", 0, None, 5.0)
    header = header._replace(**{name: value for name, value in changes.items() if name in Header._fields})
    batch = Deliver(header, 1, 0, 0, -1, None, 2, ("aaaaaaaaaa01",), (b"hi",))
    batch = batch._replace(**{name: value for name, value in changes.items() if name in Deliver._fields})
    return of_batch(batch, 0, payload.Log("log"))


# --- values


@given(VALUES)
def test_a_value_comes_back_as_it_was(value):
    assert decode(*encode(value)) == value


@pytest.mark.parametrize("value", [b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), memoryview(b"bbyytteess")[::2]])
def test_bytes_are_bytes(value):
    assert encode(value) == (Format.BYTES, b"bytes")
    assert decode(Format.BYTES, b"bytes") == b"bytes"


def test_text_is_text():
    assert encode("grüße") == (Format.TEXT, "grüße".encode())
    assert decode(Format.TEXT, b"half \xc3") == "half �"


def test_a_number_that_is_none_stays_one():
    assert math.isnan(decode(*encode(math.nan)))


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        object(),
        [object()],
        lambda: 0,
        2**70,
        1j,
        ["\ud800"],
        numpy.array([object()]),
        {"deep": [numpy.array([None])]},
        numpy.ma.array([1, 2], mask=[False, True]),
        numpy.datetime64("2020-01-01"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_sent_is_an_error_that_says_what_can(value):
    with pytest.raises(errors.InvalidPayload, match=r"cannot be sent \(.*; (send text, bytes, numbers|convert it)"):
        encode(value)


def test_half_a_character_is_no_text():
    with pytest.raises(errors.InvalidPayload, match="valid Unicode"):
        encode("\ud800")


def test_a_value_that_holds_itself_cannot_be_sent():
    value: list[Any] = []
    value.append(value)
    with pytest.raises(errors.InvalidPayload, match="recursion"):
        encode(value)


@pytest.mark.parametrize("make", [str, bytes, list, numpy.array])
def test_the_limits_hold_for_all_kinds(make, monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 64)
    monkeypatch.setattr(limits, "MAX_BROADCAST_BYTES", 16)
    value = {str: "x" * 40, bytes: b"x" * 40, list: ["x" * 40], numpy.array: numpy.zeros(40, "u1")}[make]
    encode(value)
    with pytest.raises(errors.TextTooLong):
        encode(value, to_many=True)
    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 32)
    with pytest.raises(errors.TextTooLong):
        encode(value)


# --- arrays

ALIGNED = numpy.dtype([("a", "u1"), ("b", "f8")], align=True)
OVERLAPPING = numpy.dtype({"names": ["a", "b"], "formats": ["u1", "u4"], "offsets": [4, 0], "itemsize": 16})
ARRAYS: dict[str, Any] = {
    "floats": numpy.arange(6.0).reshape(2, 3),
    "big-endian": numpy.arange(6, dtype=">i4"),
    "complex": numpy.array([1 + 2j]),
    "half": numpy.zeros(3, "f2"),
    "long": numpy.zeros(2, numpy.longdouble),
    "bool": numpy.array([True, False]),
    "bytes": numpy.array([b"ab", b"c"]),
    "text": numpy.array(["ab", "ü"]),
    "void": numpy.zeros(2, "V8"),
    "date": numpy.array(["2020-01-01", "NaT"], "M8[D]"),
    "span": numpy.array([1], "m8[ns]"),
    "empty": numpy.zeros(0),
    "empty in one direction": numpy.zeros((0, 3)),
    "0-d": numpy.array(3.5),
    "32-d": numpy.zeros((1,) * 32),
    "with steps": numpy.arange(20).reshape(4, 5)[::2, ::2],
    "backwards": numpy.arange(5)[::-1],
    "transposed": numpy.arange(6).reshape(2, 3).T,
    "fortran": numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
    "broadcast": numpy.broadcast_to(numpy.arange(3), (2, 3)),
    "structured": numpy.array([(1, 2.0)], dtype=[("a", "<i4"), ("b", ">f8")]),
    "with parts": numpy.zeros(2, dtype=[("a", "<i4", (2, 3))]),
    "nested": numpy.zeros(2, dtype=[("a", [("b", "<i4"), ("c", "S3")], (2,)), ("d", "<f4")]),
    "aligned": numpy.zeros(2, dtype=ALIGNED),
    "overlapping": numpy.zeros(2, dtype=OVERLAPPING),
    "titles": numpy.zeros(2, dtype=[(("title", "name"), "<i4")]),
    "many fields": numpy.zeros(1, dtype=[(f"field_{number}", "<f8") for number in range(300)]),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a value"])
def test_an_array_comes_back_as_it_was(name, inside):
    array = ARRAYS[name]
    found = decode(*encode({"x": [array, 1]}))["x"][0] if inside else decode(*encode(array))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == numpy.ascontiguousarray(array).tobytes()


def test_an_array_is_a_view_of_the_body():
    fmt, body = encode(numpy.arange(1000))
    found = decode(fmt, body)
    base = found
    while isinstance(base, numpy.ndarray):
        base = base.base
    assert base.obj is body
    assert not found.flags.writeable


def test_numpys_numbers_are_numbers():
    assert decode(*encode([numpy.int64(3), numpy.float32(0.5), numpy.bool_(True), numpy.str_("a")])) == [
        3,
        0.5,
        True,
        "a",
    ]


def test_a_dtype_that_takes_too_long_to_tell_is_refused_where_it_is_sent():
    array = numpy.zeros(1, dtype=[(f"field_{number}", "<f8") for number in range(2000)])
    with pytest.raises(errors.InvalidPayload, match="dtype takes") as caught:
        encode(array)
    assert len(str(caught.value)) < 500


def test_an_array_without_numpy_is_an_error_that_says_so(monkeypatch):
    fmt, body = encode(numpy.arange(3))
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    with pytest.raises(errors.InvalidPayload, match="install numpy"):
        decode(fmt, body)
    with pytest.raises(errors.InvalidPayload, match="install numpy"):
        decode(*encode_nested(body))


def encode_nested(body: bytes) -> tuple[int, bytes]:
    return Format.MSGPACK, msgpack.packb([msgpack.unpackb(body)])


# --- bodies that nobody made


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_an_error(body):
    for fmt in (0, 1, 2, 3, 99):
        try:
            decode(fmt, body)
        except errors.InvalidPayload as error:
            assert "sender has to send a valid value" in str(error)


@given(st.sampled_from([1, 2, 3, 127]), st.binary(max_size=100) | VALUES.map(msgpack.packb))
def test_any_extension_is_a_value_or_an_error(code, data):
    for body in (
        msgpack.packb(msgpack.ExtType(code, data)),
        b"\xc9" + len(data).to_bytes(4, "big") + bytes([code]) + data,
    ):
        try:
            decode(Format.MSGPACK, body)
        except errors.InvalidPayload:
            pass


DTYPES = st.recursive(
    st.sampled_from(["<f8", ">i4", "|V0", "O", "|O", "U9999999999", "M8[ns]", "", ",,", "f8,(2)i4", "x" * 99, 7, None]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries(
            {"names": st.lists(st.text(max_size=2), max_size=2), "formats": st.lists(inner, max_size=2)},
            optional={
                "offsets": st.lists(st.integers(-9, 2**40), max_size=2),
                "itemsize": st.integers(-1, 2**40),
                "aligned": st.booleans(),
                "titles": st.lists(st.none() | st.text(max_size=2), max_size=2),
            },
        )
    ),
    max_leaves=5,
)


@given(DTYPES, st.lists(st.integers(-2, 2**62), max_size=4) | st.none() | st.just("shape"), st.binary(max_size=64))
def test_any_head_of_an_array_is_an_array_or_an_error(dtype, shape, memory):
    content = msgpack.packb([dtype, shape]) + memory
    for body in (
        msgpack.packb(msgpack.ExtType(messages.EXT_ARRAY, content)),
        b"\xc9" + len(content).to_bytes(4, "big") + bytes([messages.EXT_ARRAY]) + content,
    ):
        try:
            array = decode(Format.MSGPACK, body)
        except errors.InvalidPayload:
            continue
        assert not array.dtype.hasobject
        assert array.nbytes <= len(memory)


def test_depth_without_end_is_an_error():
    with pytest.raises(errors.InvalidPayload):
        decode(Format.MSGPACK, b"\x91" * 100_000)
    dtype: Any = "<f8"
    for _ in range(400):
        dtype = [dtype, [1]]
    with pytest.raises(errors.InvalidPayload):
        decode(
            Format.MSGPACK, msgpack.packb(msgpack.ExtType(messages.EXT_ARRAY, msgpack.packb([dtype, [1]]) + b"x" * 8))
        )


# --- what went wrong elsewhere


def test_an_error_arrives_as_one():
    found = decode(*encode_error(ValueError("no such file"), "Traceback …\nValueError: no such file"))
    assert isinstance(found, errors.RemoteError)
    assert (found.kind, found.text) == ("ValueError", "no such file")
    assert found.traceback.startswith("Traceback")
    assert str(found) == "ValueError: no such file"
    again = pickle.loads(pickle.dumps(found))
    assert (again.kind, again.text, again.traceback) == (found.kind, found.text, found.traceback)


def test_the_end_of_a_long_error_arrives():
    found = decode(*encode_error(ValueError("x" * 50_000 + "the end"), "y" * 50_000 + "its cause\ud800"))
    assert len(found.text) == len(found.traceback) == messages.MAX_ERROR_CHARS
    assert found.text.endswith("the end") and found.traceback.endswith("its cause?")


def test_an_error_that_cannot_be_shown_arrives_too():
    assert "cannot be shown" in decode(*encode_error(Odd(), "trace")).text


# --- messages


def test_a_messages_body_and_text():
    assert message(Format.TEXT, b"hi").body == message(Format.TEXT, b"hi").text == "hi"
    assert (message(Format.BYTES, b"hi").body, message(Format.BYTES, b"hi").text) == (b"hi", "<2 bytes>")
    value = message(*encode({"a": 1}))
    assert (value.body, value.text) == ({"a": 1}, "{'a': 1}")
    assert value.body is value.body  # read once


def test_unreadable_body_raises_on_access():
    broken = message(Format.MSGPACK, b"\xc1")
    with pytest.raises(errors.InvalidPayload):
        _ = broken.body
    with pytest.raises(errors.RemoteError):
        _ = message(*encode_error(ValueError("x"), "")).body


@pytest.mark.parametrize(
    ("fmt", "body", "shown"),
    [
        (Format.TEXT, b"run the tests", "'run the tests'"),
        (Format.TEXT, b"a\nb", r"'a\nb'"),
        (Format.TEXT, b"x" * 61, f"'{'x' * 60}'… (61 bytes)"),
        (Format.TEXT, b"x" * 1_000_000, f"'{'x' * 60}'… (1,000,000 bytes)"),
        (Format.BYTES, b"secret", "6 bytes"),
        (Format.MSGPACK, msgpack.packb({"a": 1}), "{'a': 1}"),
        (Format.MSGPACK, msgpack.packb([0] * 1_000), "1,003 bytes"),
        (Format.MSGPACK, b"\xc1", "InvalidPayload: the body cannot be"),
    ],
)
def test_repr_shows_the_beginning_of_the_body(fmt, body, shown):
    assert repr(message(fmt, body)).startswith(f"<Message aaaaaaaaaa01 from 'auth': {shown}")
    assert len(repr(message(fmt, body))) < 200


def test_ack_is_passed_on_or_nothing():
    message(0, b"").ack()
    acked: list[Message] = []
    one = message(0, b"", acknowledge=acked.append)
    one.ack()
    assert acked == [one]


@pytest.mark.parametrize(
    ("changes", "to"),
    [
        ({}, None),
        ({"scope": Scope.ALL}, "all"),
        ({"scope": Scope.TOPIC, "target": "deploys"}, "#deploys"),
        ({"scope": Scope.PROJECT, "target": "/home/me/shop"}, "%shop"),
        ({"scope": Scope.GROUP, "target": "workers"}, "@workers"),
    ],
)
def test_how_a_message_was_addressed(changes, to):
    found = incoming(**changes)
    assert (found.to, found.sender, found.sender_label, found.age_s) == (to, "auth", "Auth", None)
    assert incoming(age_s=7).age_s == 7


def test_body_gone_from_the_log_raises_on_access(monkeypatch):
    def load(*_: object) -> bytes:
        raise record.JournalError("the segment is gone")

    monkeypatch.setattr(payload.Log, "read", load)
    found = incoming(pointer=(1, 2, 3))
    with pytest.raises(record.JournalError, match="gone"):
        _ = found.body


@pytest.mark.parametrize("target", ["@", "@Bad Name", None, 7, b"auth"])
def test_invalid_targets(target):
    with pytest.raises(errors.InvalidName):
        scope_and_target(target)


def test_targets():
    assert scope_and_target("@workers") == (Scope.GROUP, "workers")
    assert scope_and_target("auth") == (Scope.SESSION, "auth")


@pytest.mark.parametrize("fmt", [Format.TEXT, Format.MSGPACK, Format.BYTES])
def test_a_body_that_cannot_be_read_back_is_an_error_and_never_an_empty_text(fmt: Format) -> None:
    damaged = message(fmt, b"", value=record.JournalError("the record is damaged"))
    for read in (lambda: damaged.text, lambda: damaged.body):
        with pytest.raises(record.JournalError, match="the record is damaged"):
            read()
