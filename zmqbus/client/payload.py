"""Bodies at their two ends: what an application gives becomes bytes with a format, and back.

A body over 64 KiB arrives as a pointer into messages.log, which the receiver reads by itself; so do the files in which
bodies end up have one copy of it, and the broker does not carry it twice.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from zmqbus.client.batch import Batch
from zmqbus.client.core import Incoming
from zmqbus.errors import InvalidPayload
from zmqbus.text import display
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import Format, Scope

if TYPE_CHECKING:
    from zmqbus.journal.reader import Reader
    from zmqbus.journal.record import JournalError


#: A text over so many bytes or characters is not looked at for whether it is blank.
MAX_BLANK = 4096
#: Segments of the log that a program keeps open. A deleted one takes room on the disk for as long.
MAX_OPEN_SEGMENTS = 2


def from_text(text: str | bytes, *, to_many: bool) -> bytes:
    """The bytes of a text body. Raises `InvalidPayload` if it is not UTF-8, `TextTooLong` if it is over the limit."""
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
    """Raises `InvalidPayload` for a text that shows nothing to whoever reads it: mostly a variable that was not set. A
    program that means "no value" sends `None`, or `b""`."""
    if len(text) > MAX_BLANK or text[:1].isalnum():
        return  # as nearly all of them
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    elif any("\ud800" <= character <= "\udfff" for character in text):
        return  # it is not shown, and not empty: whoever makes UTF-8 of it says what is wrong
    shown = display.sanitise(text)
    if not shown.strip(f" {display.LINE_END}") or shown.isspace():
        raise InvalidPayload("the text is empty; say something, or see what it was to be made of")


def load(message: Incoming | verbs.Work | verbs.Result, log_path: str) -> bytes:
    """The whole body, from the message or from the journal. Raises `JournalError` if it is not there."""
    return message.body if message.pointer is None else _read(log_path, message.pointer)


def _read(log_path: str, pointer: tuple[int, ...]) -> bytes:
    from zmqbus.journal import reader  # 3 ms with what it needs, which most commands never do

    return reader.read(log_path, reader.Pointer(*pointer)).body


def damage(msg_id: str, from_name: str, error: JournalError) -> JournalError:
    """The error of a body that cannot be read back, which names the message and who wrote it."""
    from zmqbus.journal.record import JournalError

    return JournalError(f"the text of message {msg_id} from '{from_name}' cannot be read: {error}")


def readable(message: Incoming, log_path: str) -> tuple[int, bytes, JournalError | None]:
    """The format of a message and its whole body; where its record is damaged, a text in its place, and the error that
    says so.

    Whoever shows messages one after the other goes on with the next: a damaged one will never be readable, and what is
    behind it must not wait for it.
    """
    if message.pointer is None:
        return message.fmt, message.body, None
    from zmqbus.journal.record import JournalError

    try:
        return message.fmt, load(message, log_path), None
    except JournalError as found:
        error = damage(message.msg_id, message.from_name, found)
        return Format.TEXT, f"({error})".encode(), error


class Log:
    """The journal, for a program that reads many bodies: its files stay open in between, which saves a look at the
    directory and at each of them for every body. Thread-safe."""

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
        """The body that a pointer leads to. Raises `JournalError` if it is not there."""
        if not self._lock.acquire(blocking=False):
            return _read(self._path, pointer)  # another thread reads: nobody waits for a disk that he does not need
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
        """Closes the files. What is still asked for is read all the same. Idempotent."""
        with self._lock:
            self._closed = True
            if self._reader is not None:
                self._reader.close()
                self._reader = None


def audience(message: Incoming | verbs.Previewed | Batch) -> str | None:
    """How a message to many was addressed, as its receivers are shown it: `all`, `#topic`, `%project name`. None: it
    was for this session alone."""
    if message.scope == Scope.ALL:
        return "all"
    if message.scope == Scope.TOPIC:
        return f"#{message.target}"
    if message.scope == Scope.PROJECT:
        return f"%{naming.project_name(message.target)}"
    return None


def as_text(fmt: int, body: bytes) -> str:
    """A body as something to read; see `record.as_text`."""
    from zmqbus.journal import record

    return record.as_text(verbs.FORMAT_WORDS.get(fmt, ""), body)
