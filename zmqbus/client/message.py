"""What a program sends and gets: values as bodies, and messages.

A body is text, bytes, or any value that msgpack knows; the format travels with it, so the other end gets back what
was given. Two kinds of values have an extension type of their own: arrays (numpy), whose memory is copied once into the
body and not at all out of it, and what went wrong in a remote handler.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import msgpack

from zmqbus.client import arguments, payload
from zmqbus.client.batch import Batch, age_s
from zmqbus.errors import InvalidArgument, InvalidName, InvalidPayload, RemoteError, ZmqbusError

# `bodies` reads the log with it, when it is too late to load it: an update may delete the files of a release at work.
from zmqbus.journal.record import JournalError
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import Format, Scope

#: What a message is acknowledged with, when that is left to the program.
Acknowledge: TypeAlias = "Callable[[Message], None]"

#: Extension types of msgpack, 0 to 127. They are part of the wire between programs.
EXT_ARRAY = 1
EXT_ERROR = 2
#: ext 32: any length, so an array needs no second layout for small ones.
_EXT_32 = 0xC9
_EXT_HEAD = struct.Struct(">BIb")
#: What describes an array in front of its memory: some hundred fields.
MAX_DTYPE_BYTES = 16 * 1024
#: Characters of a text or value in the `repr` of a message.
MAX_SHOWN_CHARS = 60
#: So much of the end of each part of a remote error travels: its cause is told at the end.
MAX_ERROR_CHARS = 20_000


class About(NamedTuple):
    """What is known of a message beside its body; messages that came together share it."""

    sender: str
    sender_id: str
    fmt: int
    sender_label: str | None = None
    to: str | None = None
    reply_to: str | None = None
    sent_ts: float = 0.0
    age_s: int | None = None


class Message:
    """A message, or the answer to one.

    `body` is what was sent: `str`, `bytes`, or a value; `text` is that as text.
    """

    __slots__ = ("_about", "_acknowledge", "_value", "body_bytes", "msg_id")

    def __init__(
        self,
        *,
        msg_id: str,
        sender: str,
        sender_id: str,
        fmt: int,
        body_bytes: bytes,
        sender_label: str | None = None,
        to: str | None = None,
        reply_to: str | None = None,
        sent_ts: float = 0.0,
        age_s: int | None = None,
        value: Any = None,
        acknowledge: Acknowledge | None = None,
    ) -> None:
        self._about = About(sender, sender_id, fmt, sender_label, to, reply_to, sent_ts, age_s)
        self.msg_id = msg_id
        self.body_bytes = body_bytes  #: the body as it travelled
        self._value: Any = _UNREAD if value is None else value
        self._acknowledge = acknowledge

    @classmethod
    def plain(cls, about: About, msg_id: str, body: bytes) -> Message:
        """One with nothing special about it, of which there are many."""
        message = cls.__new__(cls)
        message._about = about
        message.msg_id = msg_id
        message.body_bytes = body
        message._value = _UNREAD
        message._acknowledge = None
        return message

    def __repr__(self) -> str:
        return f"<Message {self.msg_id} from {self.sender!r}: {self._shown()}>"

    def _shown(self) -> str:
        """The beginning of the text; of a large value its size, since reading it may take its time."""
        size = len(self.body_bytes)
        if self.fmt == Format.TEXT:
            text = self.body_bytes[: 4 * MAX_SHOWN_CHARS].decode("utf-8", "replace")
            cut = size > 4 * MAX_SHOWN_CHARS or len(text) > MAX_SHOWN_CHARS
            return f"{text[:MAX_SHOWN_CHARS]!r}{f'… ({size:,} bytes)' if cut else ''}"
        if self.fmt == Format.MSGPACK and size <= 4 * MAX_SHOWN_CHARS:
            try:
                text = repr(self.body)
            except Exception as error:  # it is one, or cannot be read
                text = f"{type(error).__name__}: {error}"
            return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}… ({size:,} bytes)"
        return f"{size:,} bytes"

    @property
    def sender(self) -> str:
        """Name of the session that sent it."""
        return self._about.sender

    @property
    def sender_id(self) -> str:
        """Its session id."""
        return self._about.sender_id

    @property
    def sender_label(self) -> str | None:
        """Its label."""
        return self._about.sender_label

    @property
    def to(self) -> str | None:
        """To whom it went: "all", "#topic", "%project", "@group"; None: to this session alone."""
        return self._about.to

    @property
    def reply_to(self) -> str | None:
        """Id of the message that this one answers."""
        return self._about.reply_to

    @property
    def sent_ts(self) -> float:
        """When it was accepted: wall clock, s."""
        return self._about.sent_ts

    @property
    def age_s(self) -> int | None:
        """How long it was queued, s; None: it was not."""
        return self._about.age_s

    @property
    def fmt(self) -> int:
        """What its bytes are: a `protocol.Format`."""
        return self._about.fmt

    @property
    def body(self) -> Any:
        """What was sent. Raises `InvalidPayload` where it cannot be read, `RemoteError` where it is one."""
        if self._value is _UNREAD:
            self._value = decode(self.fmt, self.body_bytes)
        if isinstance(self._value, ZmqbusError):
            raise self._value
        return self._value

    @property
    def text(self) -> str:
        """The body as text: a text as it is, a value in Python's notation, bytes by their number. Raises as `body`."""
        if isinstance(self._value, ZmqbusError):  # guards: consumer
            raise self._value
        if self.fmt == Format.TEXT:
            return self.body_bytes.decode("utf-8", "replace")
        if self.fmt == Format.MSGPACK:
            return repr(self.body)
        return payload.as_text(self.fmt, self.body_bytes)

    def ack(self) -> None:
        """Says that the work with this message is done, where the bus was opened with `ack="manual"`: only now its
        sender hears `delivered`, and only now it does not come again after a crash. Otherwise it does nothing."""
        if self._acknowledge is not None:
            self._acknowledge(self)


class _Unread:
    """The value of a body that nobody has asked for."""


_UNREAD = _Unread()


def encode(value: Any, *, to_many: bool = False) -> tuple[Format, bytes]:
    """A value as a body: its format and its bytes.

    `str` is text, `bytes`, `bytearray` and `memoryview` are bytes; anything else goes through msgpack, arrays with the
    buffer protocol and a numpy dtype included. Raises `InvalidPayload` for what none of these takes, `TextTooLong` over
    the limit.
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
    """The value that `encode` was given; a `RemoteError` where the body is one. Raises `InvalidPayload`."""
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
    except Exception as error:  # whatever msgpack raises for what is not msgpack
        raise InvalidPayload(f"the body is no value that can be read ({error}); its sender has to mend it") from None


def encode_error(error: BaseException, trace: str) -> tuple[Format, bytes]:
    """The answer of a handler that failed."""
    kind = type(error).__name__
    try:
        text = str(error)
    except BaseException:  # its own code
        text = "<an exception that cannot be shown>"
    parts = [part[-MAX_ERROR_CHARS:].encode("utf-8", "replace").decode() for part in (kind, text, trace)]
    return Format.MSGPACK, bytes(msgpack.packb(msgpack.ExtType(EXT_ERROR, msgpack.packb(parts))))


def check_message(message: object) -> None:
    """Raises `InvalidArgument` for what is none, and so cannot be replied to."""
    if not isinstance(message, Message):
        raise InvalidArgument(
            f"reply() answers a Message, as messages() gives it, not {arguments.shown(message)}; "
            "send to a name with send()"
        )


def scope_and_target(target: str) -> tuple[Scope, str]:
    """Who is meant by a target of the Python API: `@group` is one of a group, everything else one session."""
    if not isinstance(target, str):
        raise InvalidName(
            f"a target is the name of a session or a @group, not {arguments.shown(target)}; ask several with scatter()"
        )
    if target.startswith("@"):
        return Scope.GROUP, naming.check_name(target[1:], "group")
    return Scope.SESSION, target


def of_batch(
    about: About, batch: Batch, place: int, log: payload.Log, acknowledge: Acknowledge | None = None
) -> Message:
    """A message of a batch that came through the mailbox. Where its body is in the log and cannot be read there, asking
    for it raises the `JournalError`."""
    message = Message.plain(about, batch.msg_ids[place], batch.bodies[place])
    message._acknowledge = acknowledge
    if batch.pointer is not None:
        try:
            message.body_bytes = log.read(batch.pointer)
        except JournalError as found:
            message._value = payload.damage(message.msg_id, about.sender, found)
    return message


def about(batch: Batch) -> About:
    """What the messages of a batch share."""
    waited_s = age_s(batch)
    return About(
        batch.from_name,
        batch.from_session,
        batch.fmt,
        batch.from_label,
        None if batch.scope == Scope.SESSION else _audience(batch),
        batch.reply_to,
        batch.ts,
        waited_s if waited_s >= 0 else None,
    )


def _audience(batch: Batch) -> str | None:
    return f"@{batch.target}" if batch.scope == Scope.GROUP else payload.audience(batch)


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
    import numpy  # whoever has an array has it

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
    """A dtype for msgpack. A structure by where its fields are: `dtype.descr` has no gaps, and not every order."""
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
    """The dtype that `_describe` was given. Raises whatever numpy does for what is none."""
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
