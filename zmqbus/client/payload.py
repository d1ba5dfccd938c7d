"""Bodies at the sender and at the receiver: texts to bytes and back, and bodies in the journal.

A body over 64 KiB arrives as a pointer into messages.log, which the receiver reads by itself; so there is one copy of
it on the disk, and the broker does not pass it on.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from zmqbus.client.core import Incoming
from zmqbus.errors import InvalidPayload
from zmqbus.text import display
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import Format, Header, Scope

if TYPE_CHECKING:
    from zmqbus.journal.reader import Reader
    from zmqbus.journal.record import JournalError


#: A text of more bytes or characters is not checked for being blank.
MAX_BLANK = 4096
#: Segments of the journal that a program keeps open. The disk space of a deleted one is not free until it is closed.
MAX_OPEN_SEGMENTS = 2


def from_text(text: str | bytes, *, to_many: bool) -> bytes:
    """Returns the bytes of a text body. Raises `InvalidPayload` if it is not UTF-8, `TextTooLong` over the limit."""
    if isinstance(text, bytes):
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise InvalidPayload(
                f"the text is not UTF-8 ({error.reason} at byte {error.start}); send the file itself with --file"
            ) from None
        body = text
    else:
        try:
            body = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidPayload(
                f"the text holds half a character ({error.reason} at {error.start}); send text that is valid Unicode"
            ) from None
    verbs.check_size(len(body), to_many=to_many)
    return body


def check_not_empty(text: bytes | str) -> None:
    """Raises `InvalidPayload` for a text that shows as nothing, mostly because a variable was not set. A program that
    means "no value" sends `None`, or `b""`."""
    if len(text) > MAX_BLANK or text[:1].isalnum():
        return  # as nearly all texts
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    elif any("\ud800" <= character <= "\udfff" for character in text):
        return  # not empty; `from_text` says that it is not UTF-8
    shown = display.sanitise(text)
    if not shown.strip(f" {display.LINE_END}") or shown.isspace():
        raise InvalidPayload("the text is empty; check the file or the command that it comes from")


def load(message: Incoming | verbs.Work | verbs.Result, log_path: str) -> bytes:
    """Returns the whole body, from the message or from the journal. Raises `JournalError` if it cannot be read."""
    return message.body if message.pointer is None else _read(log_path, message.pointer)


def _read(log_path: str, pointer: tuple[int, ...]) -> bytes:
    from zmqbus.journal import reader  # its import takes 3 ms, and most commands never need it

    return reader.read(log_path, reader.Pointer(*pointer)).body


def damage(msg_id: str, from_name: str, error: JournalError) -> JournalError:
    """Returns the error of a body that cannot be read back, with the message's id and sender."""
    from zmqbus.journal.record import JournalError

    return JournalError(f"the text of message {msg_id} from '{from_name}' cannot be read: {error}")


def readable(message: Incoming, log_path: str) -> tuple[int, bytes, JournalError | None]:
    """Returns the format of a message, its whole body, and None; if its record is damaged, a text in the body's place,
    and the error.

    So a list of messages goes on behind a damaged one, which will never be readable.
    """
    if message.pointer is None:
        return message.header.fmt, message.body, None
    from zmqbus.journal.record import JournalError

    try:
        return message.header.fmt, load(message, log_path), None
    except JournalError as found:
        error = damage(message.msg_id, message.header.from_name, found)
        return Format.TEXT, f"({error})".encode(), error


class Log:
    """The journal, for a program that reads many bodies: its files stay open, which saves a look at the directory and
    at each file for every body. Thread-safe."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._reader: Reader | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Log {self._path}: {self._reader!r}>"

    def load(self, message: Incoming | verbs.Work | verbs.Result) -> bytes:
        """As the function `load`."""
        return message.body if message.pointer is None else self.read(message.pointer)

    def read(self, pointer: tuple[int, ...]) -> bytes:
        """Returns the body at a pointer. Raises `JournalError` if it cannot be read."""
        if not self._lock.acquire(blocking=False):
            return _read(self._path, pointer)  # another thread is reading: do not wait for its disk access
        try:
            if self._closed:
                return _read(self._path, pointer)
            if self._reader is None:
                from zmqbus.journal.reader import Reader

                self._reader = Reader(self._path, max_open=MAX_OPEN_SEGMENTS)
            return self._reader.read(pointer).body
        finally:
            self._lock.release()

    def close(self) -> None:
        """Closes the files; reads still work after that, each with files of its own. Idempotent."""
        with self._lock:
            self._closed = True
            if self._reader is not None:
                self._reader.close()
                self._reader = None


def audience(header: Header | verbs.Previewed) -> str | None:
    """Returns how a message to many was addressed, as its receivers see it: `all`, `#topic`, `%project name`; None for
    a message to this session alone."""
    if header.scope == Scope.ALL:
        return "all"
    if header.scope == Scope.TOPIC:
        return f"#{header.target}"
    if header.scope == Scope.PROJECT:
        return f"%{naming.project_name(header.target)}"
    return None


def as_text(fmt: int, body: bytes) -> str:
    """Returns a body as text for people; see `record.as_text`."""
    from zmqbus.journal import record

    return record.as_text(verbs.FORMAT_WORDS.get(fmt, ""), body)
