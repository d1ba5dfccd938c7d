"""Messages of the Python API, and values as their bodies.

A body is text, bytes, or any value of msgpack; its format travels with it, so the receiver gets the same value. Two
kinds of values have an extension type of their own: numpy arrays, whose memory is copied once into the body and not at
all out of it, and the errors of remote handlers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeAlias

import msgpack

from zmqbus.client import arguments, payload
from zmqbus.client.events import Batch
from zmqbus.errors import InvalidArgument, InvalidName, InvalidPayload, RemoteError, ZmqbusError

# Loaded now: when a body has to be read from the journal, an update may have deleted the files of this release.
from zmqbus.journal.record import JournalError
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import Format, Header, Scope

#: Acknowledges a message, where that is left to the program.
Acknowledge: TypeAlias = "Callable[[Message], None]"

#: Extension types of msgpack, 0 to 127. They are part of the wire between programs.
EXT_ARRAY = 1
EXT_ERROR = 2
#: ext 32, for arrays of any length: small ones need no second layout.
_EXT_32 = 0xC9
_EXT_HEAD = struct.Struct(">BIb")
#: Bytes of the description in front of an array's memory: some hundred fields.
MAX_DTYPE_BYTES = 16 * 1024
#: Characters of a text or value in the `repr` of a message.
MAX_SHOWN_CHARS = 60
#: Characters of each part of a remote error that travel, from its end, where the cause is.
MAX_ERROR_CHARS = 20_000


class Message:
    """A message, or the answer to a request.

    `body` is the value that was sent: `str`, `bytes`, or a value of msgpack; `text` is the same as text.
    """

    __slots__ = ("_acknowledge", "_age_s", "_header", "_value", "body_bytes", "msg_id")

    def __init__(
        self,
        header: Header,
        msg_id: str,
        body_bytes: bytes,
        age_s: int = -1,
        value: Any = None,
        acknowledge: Acknowledge | None = None,
    ) -> None:
        """For this package only. `value`: the decoded body, or the error of reading it, if known."""
        self._header = header
        self.msg_id = msg_id
        self.body_bytes = body_bytes  #: the body as it travelled
        self._age_s = age_s
        self._value: Any = _UNREAD if value is None else value
        self._acknowledge = acknowledge

    def __repr__(self) -> str:
        return f"<Message {self.msg_id} from {self.sender!r}: {self._shown()}>"

    def _shown(self) -> str:
        """Returns the beginning of the text; of a large value only its size, since decoding it may take long."""
        size = len(self.body_bytes)
        if self.fmt == Format.TEXT:
            text = self.body_bytes[: 4 * MAX_SHOWN_CHARS].decode("utf-8", "replace")
            cut = size > 4 * MAX_SHOWN_CHARS or len(text) > MAX_SHOWN_CHARS
            return f"{text[:MAX_SHOWN_CHARS]!r}{f'… ({size:,} bytes)' if cut else ''}"
        if self.fmt == Format.MSGPACK and size <= 4 * MAX_SHOWN_CHARS:
            try:
                text = repr(self.body)
            except Exception as error:  # the body is an error, or cannot be decoded
                text = f"{type(error).__name__}: {error}"
            return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}… ({size:,} bytes)"
        return f"{size:,} bytes"

    @property
    def sender(self) -> str:
        """Name of the sending session."""
        return self._header.from_name

    @property
    def sender_id(self) -> str:
        """Session id of the sender."""
        return self._header.from_session

    @property
    def sender_label(self) -> str | None:
        """Label of the sending session."""
        return self._header.from_label

    @property
    def to(self) -> str | None:
        """How it was addressed: "all", "#topic", "%project", "@group"; None: to this session alone."""
        header = self._header
        return f"@{header.target}" if header.scope == Scope.GROUP else payload.audience(header)

    @property
    def reply_to(self) -> str | None:
        """Id of the message that this one answers."""
        return self._header.reply_to

    @property
    def sent_ts(self) -> float:
        """When the broker accepted it: wall clock, s."""
        return self._header.ts

    @property
    def age_s(self) -> int | None:
        """How long it was queued, s; None: it was not."""
        return self._age_s if self._age_s >= 0 else None

    @property
    def fmt(self) -> int:
        """The format of its bytes: a `zmqbus.wire.verbs.Format`."""
        return self._header.fmt

    @property
    def body(self) -> Any:
        """The value that was sent. Raises `InvalidPayload` if it cannot be decoded, `RemoteError` if it is one."""
        if self._value is _UNREAD:
            self._value = decode(self.fmt, self.body_bytes)
        if isinstance(self._value, ZmqbusError):
            raise self._value
        return self._value

    @property
    def text(self) -> str:
        """The body as text: a text as it is, a value in Python's notation, bytes as their number. Raises as `body`."""
        if isinstance(self._value, ZmqbusError):  # guards: consumer
            raise self._value
        if self.fmt == Format.TEXT:
            return self.body_bytes.decode("utf-8", "replace")
        if self.fmt == Format.MSGPACK:
            return repr(self.body)
        return payload.as_text(self.fmt, self.body_bytes)

    def ack(self) -> None:
        """Acknowledges this message, if the bus was opened with `ack="manual"`: only then its sender's receipt says
        `delivered`, and it does not come again after a crash. Otherwise does nothing."""
        if self._acknowledge is not None:
            self._acknowledge(self)


class _Unread:
    """The value of a body that is not decoded."""


_UNREAD = _Unread()


def encode(value: Any, *, to_many: bool = False) -> tuple[Format, bytes]:
    """Returns the format and the bytes of a value's body.

    `str` is text, `bytes`, `bytearray` and `memoryview` are bytes; anything else goes through msgpack, arrays with the
    buffer protocol and a numpy dtype included. Raises `InvalidPayload` for other values, `TextTooLong` over the limit.
    """
    if isinstance(value, str):
        return Format.TEXT, payload.from_text(value, to_many=to_many)
    if isinstance(value, bytes | bytearray | memoryview):
        fmt, body = Format.BYTES, bytes(value)
    elif _is_array(value):
        fmt, body = Format.MSGPACK, _pack_array(value)
    else:
        fmt, body = Format.MSGPACK, _pack(value)
    verbs.check_size(len(body), to_many=to_many)
    return fmt, body


def decode(fmt: int, body: bytes) -> Any:
    """Returns the value that was given to `encode`, which may be a `RemoteError`. Raises `InvalidPayload`."""
    if fmt == Format.TEXT:
        return body.decode("utf-8", "replace")
    if fmt == Format.BYTES:
        return body
    try:
        if body[:1] == bytes([_EXT_32]) and len(body) > _EXT_HEAD.size and body[_EXT_HEAD.size - 1] == EXT_ARRAY:
            return _read_array(memoryview(body)[_EXT_HEAD.size :])
        return msgpack.unpackb(body, strict_map_key=False, ext_hook=_unpack_ext)
    except InvalidPayload:
        raise
    except Exception as error:  # msgpack raises many kinds of errors for malformed input
        raise InvalidPayload(f"the body cannot be decoded ({error}); its sender has to send a valid value") from None


def encode_error(error: BaseException, trace: str) -> tuple[Format, bytes]:
    """Returns the format and the bytes of a failed handler's answer."""
    kind = type(error).__name__
    try:
        text = str(error)
    except BaseException:  # the exception's own code
        text = "<an exception that cannot be shown>"
    parts = [part[-MAX_ERROR_CHARS:].encode("utf-8", "replace").decode() for part in (kind, text, trace)]
    return Format.MSGPACK, bytes(msgpack.packb(msgpack.ExtType(EXT_ERROR, msgpack.packb(parts))))


def check_message(message: object) -> None:
    """Raises `InvalidArgument` unless it is a `Message`, which can be replied to."""
    if not isinstance(message, Message):
        raise InvalidArgument(
            f"reply() answers a Message, as messages() gives it, not {arguments.shown(message)}; "
            "send to a name with send()"
        )


def scope_and_target(target: str) -> tuple[Scope, str]:
    """Returns scope and target of a target of the Python API: `@group` is one member of a group, any other name one
    session. Raises `InvalidName`."""
    if not isinstance(target, str):
        raise InvalidName(
            f"a target is the name of a session or a @group, not {arguments.shown(target)}; ask several with scatter()"
        )
    if target.startswith("@"):
        return Scope.GROUP, naming.check_name(target[1:], "group")
    return Scope.SESSION, target


def of_batch(batch: Batch, place: int, log: payload.Log, acknowledge: Acknowledge | None = None) -> Message:
    """Returns a message of a batch. If its body is in the journal and cannot be read there, its `body` and `text` raise
    the `JournalError`."""
    age_s = batch.age_s if batch.__class__ is verbs.Deliver else -1
    message = Message(batch.header, batch.msg_ids[place], batch.bodies[place], age_s, None, acknowledge)
    if batch.pointer is not None:
        try:
            message.body_bytes = log.read(batch.pointer)
        except JournalError as found:
            message._value = payload.damage(message.msg_id, message.sender, found)
    return message


# --- values -----------------------------------------------------------------------------------------------------


def _pack(value: Any) -> bytes:
    try:
        return bytes(msgpack.packb(value, default=_default))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidPayload(
            f"a value of type {type(value).__name__} cannot be sent ({error}); send text, bytes, numbers, lists, "
            "dictionaries of these, or numpy arrays"
        ) from None


def _default(value: Any) -> Any:
    if _is_array(value):
        head, data = _array_parts(value)
        return msgpack.ExtType(EXT_ARRAY, head + bytes(data))
    scalar = getattr(value, "item", None)  # numpy's numbers
    if callable(scalar) and type(value).__module__ == "numpy":
        return scalar()
    raise TypeError(f"no way to send a {type(value).__name__}")


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"


def _array_parts(array: Any) -> tuple[bytes, memoryview]:
    if array.dtype.hasobject:
        raise TypeError("an array of objects has no bytes of its own")
    import numpy  # installed, since the value is an array

    whole = numpy.ascontiguousarray(array)
    head: bytes = msgpack.packb([_describe(array.dtype), array.shape])
    if len(head) > MAX_DTYPE_BYTES:
        raise TypeError(f"its dtype takes {len(head):,} bytes to describe, more than {MAX_DTYPE_BYTES:,}")
    # A view as bytes: `cast` alone refuses dates and structures.
    return head, whole.reshape(-1).view(numpy.uint8).data if whole.size else memoryview(b"")


def _pack_array(array: Any) -> bytes:
    try:
        head, data = _array_parts(array)
    except (TypeError, ValueError) as error:
        raise InvalidPayload(
            f"an array of {str(array.dtype)[:100]} cannot be sent ({error}); convert it first"
        ) from None
    return b"".join([_EXT_HEAD.pack(_EXT_32, len(head) + data.nbytes, EXT_ARRAY), head, data])


def _describe(dtype: Any) -> Any:
    """Returns a dtype as a value for msgpack; a structure by the offsets of its fields: `dtype.descr` has no gaps, and
    not every order."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_describe(base), shape]
    if dtype.names is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    return {
        "names": dtype.names,
        "formats": [_describe(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


def _dtype(description: Any) -> Any:
    """Returns the dtype that was given to `_describe`. Raises as numpy for a malformed description."""
    import numpy

    make: Any = numpy.dtype
    if isinstance(description, list):
        base, shape = description
        return make((_dtype(base), tuple(shape)))
    if isinstance(description, dict):
        aligned = description.pop("aligned")
        description["formats"] = [_dtype(field) for field in description["formats"]]
        return make(description, align=aligned)
    return make(description)


def _read_array(content: memoryview) -> Any:
    try:
        import numpy
    except ImportError:
        raise InvalidPayload("the body is a numpy array; install numpy to read it") from None
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(content[:MAX_DTYPE_BYTES])  # which copies it
    description, shape = unpacker.unpack()
    kind = _dtype(description)
    if kind.hasobject:
        raise InvalidPayload("an array of objects has no bytes of its own")
    return numpy.frombuffer(content[unpacker.tell() :], dtype=kind).reshape(shape)


def _unpack_ext(code: int, data: bytes) -> Any:
    if code == EXT_ARRAY:
        return _read_array(memoryview(data))
    if code == EXT_ERROR:
        kind, text, trace = msgpack.unpackb(data)
        return RemoteError(kind, text, trace)
    return msgpack.ExtType(code, data)
