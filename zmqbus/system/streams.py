"""The standard streams of a command: a failing output raises one exception, once, at the write that failed.

Python's own streams fail in several ways. A stream that was closed before the start (`>&-`) is None: `print` ignores
the text then, or prints to standard output if standard error is None. A failed write keeps its data and fails again,
unseen, when the interpreter ends. A pipe in non-blocking mode, as node makes them, raises an error that no command
expects. `install` replaces the streams:

* Standard output raises `OutputFailed` at the first write that the system refuses, and drops all later ones.
* Standard error never fails: nobody would see it.
* Neither sends a terminal anything but text. A command makes its texts (of peers, files, arguments, errors) safe where
  it builds the line, because only there is known which line ends are its own. Below that, each line goes through the
  same function (`display.sanitise`), so that no forgotten place, traceback or message of argparse drives the terminal.
  Use `write_raw` for output that is meant to drive it (the screen of `watch`) or has to arrive byte for byte.
* A closed descriptor is replaced by an unusable one, so that no other file is opened under its number.

Valid for python 3.6, like `bootstrap`, which calls `install`.
"""

import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO


class OutputFailed(Exception):
    """Standard output cannot be written. Not an OSError, which commands expect from other files."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(f"cannot write the output: {reason.strerror or reason}")
        self.reason = reason
        self.done = ""  #: what the command has done and could not print, in its own words
        self.hint = "free some space, or see where the output is redirected to"

    @property
    def closed_pipe(self) -> bool:
        """Whether the reader has gone (`… | head`), which is no fault."""
        return isinstance(self.reason, BrokenPipeError)


class _Descriptor(io.FileIO):
    """A standard stream's descriptor, for writing."""

    def __init__(self, descriptor: int, tells: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._tells = tells
        self.failure = None  # type: OSError | None

    def write(self, data: "Any") -> int:
        """Writes as `FileIO` does, but waits where that returns None for lack of room."""
        if self.failure is not None:
            return len(data)
        try:
            while True:
                written = super().write(data)
                if written is not None:
                    return written
                _wait_for_room(self.fileno())
        except OSError as error:
            self.failure = error
            if not self._tells:
                return len(data)
            # guards: safe output: a message not printed stays unread [=> return len(data)]
            raise OutputFailed(error) from None


def _wait_for_room(descriptor: int) -> None:
    import select  # only for pipes that somebody has made non-blocking

    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    poller.poll()


class SafeText(io.TextIOWrapper):
    """A text stream that shows only what `display.sanitise` lets through; newlines and tabs stay."""

    def write(self, text: str) -> int:
        """Writes the text, made safe. Returns the length of what it was given, as streams do."""
        given = len(text)
        # str.isascii is not in python 3.6, which only gets as far as saying that it is too old.
        if text != "\n" and not (text.isprintable() and hasattr(text, "isascii") and text.isascii()):
            from zmqbus.text.display import sanitise  # imported only when needed

            # A surrogate (an odd byte of a file name) is shown as the stream would show it, and not removed.
            text = text.encode("utf-8", "backslashreplace").decode()
            # guards: safe output [map(sanitise, line.split("\t")) => line.split("\t")]
            text = "\n".join("\t".join(map(sanitise, line.split("\t"))) for line in text.split("\n"))
        super().write(text)
        return given

    def write_raw(self, text: str) -> int:
        """Writes the text as it is."""
        return super().write(text)


class _Raw:
    """A `SafeText` as a stream that changes nothing."""

    def __init__(self, stream: SafeText) -> None:
        self._stream = stream
        self.write = stream.write_raw

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._stream, name)


def raw_stdout() -> "Any":
    """Standard output without the filter, to draw on the terminal."""
    return _Raw(sys.stdout) if isinstance(sys.stdout, SafeText) else sys.stdout


def write_raw(text: str) -> None:
    """Writes to standard output without the filter."""
    raw_stdout().write(text)


def print_text(text: str, *, raw: bool) -> None:
    """Prints a text of a peer with its lines: safe to show, or with `raw` as it is."""
    from zmqbus.text.display import as_block

    write_raw((text if raw else as_block(text)) + "\n")


def install() -> None:
    """Replaces the standard streams; those of a test or an embedding program stay, made safe.

    Output is UTF-8 whatever the locale, because agents read that; a character that cannot be encoded is written as an
    escape. PYTHONIOENCODING takes precedence.
    """
    _stand_in(0, os.O_WRONLY)
    _stand_in(1, os.O_RDONLY)
    _stand_in(2, os.O_WRONLY)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding="utf-8")
    sys.stdout = _writer(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _writer(sys.stderr, sys.__stderr__, 2)


def failure() -> "OSError | None":
    """The error of the first failed write to standard output; None if none has failed."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, _Descriptor) else None


def takes_unicode() -> bool:
    """Whether standard output is UTF-8. If not, JSON must be ASCII: the escapes of Python's streams are not JSON."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")


def is_open(descriptor: int) -> bool:
    """Whether a descriptor can be written; false for the replacement of a closed standard output."""
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def _stand_in(descriptor: int, flags: int) -> None:
    """Opens the null device in place of a closed descriptor, in a mode in which using it fails."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, flags)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)


def _writer(stream: "TextIO", original: "TextIO | None", descriptor: int) -> "TextIO":
    chosen = os.environ.get("PYTHONIOENCODING")
    if stream is not original:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding=None if chosen else "utf-8", errors="backslashreplace")
        return stream
    encoding = stream.encoding if chosen and stream is not None else "utf-8"
    raw = _Descriptor(descriptor, tells=descriptor == 1)
    lines = descriptor == 2 or raw.isatty() or getattr(stream, "write_through", False)  # python -u
    return SafeText(io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=lines)
