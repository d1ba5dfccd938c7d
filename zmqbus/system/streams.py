"""The standard streams of a command: an output that fails does so once, in one way, and where it is noticed.

Python's own streams fail in several ways. A stream that was closed before the start (`>&-`) is None: `print` says
nothing then, or, told to print to a standard error that is None, prints to standard output. A write that fails keeps
its data and fails again when the interpreter ends, behind everybody's back. A pipe in non-blocking mode, as node makes
them, raises what no command expects. `install` replaces them:

* Standard output raises `OutputFailed` at the first write that the system refuses, and swallows all that follows.
* Standard error never fails: there is nobody left to tell.
* Neither shows a terminal anything but text. What a command prints (of peers, files, arguments, errors) is made safe
  where its line is put together, because only there is known what may not be a line end. Below all of it, each line
  goes through the same function (`display.sanitise`), so that a place that was forgotten, a traceback or a message of
  argparse drives no terminal. What is to drive it (the screen of `watch`), or to arrive byte for byte, says so:
  `write_raw`.
* A descriptor that is closed gets a stand-in that cannot be used, so that no other file is opened under its number.

Readable for python 3.6, like `bootstrap`, which is the one that calls `install`.
"""

import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO


class OutputFailed(Exception):
    """Standard output cannot be written to. Not an OSError, which commands expect of other files."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(f"cannot write the output: {reason.strerror or reason}")
        self.reason = reason
        self.done = ""  #: what the command has done and could not say, in its own words
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
        """Writes as `FileIO` does; waits where that would say that there is no room at the moment."""
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
            from zmqbus.text.display import sanitise  # where there is something to look at

            # What no encoding has (a file name's odd byte) is shown as the stream would show it, and not taken out.
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
    """Standard output for those who draw on the terminal: nothing of what is written to this is taken out."""
    return _Raw(sys.stdout) if isinstance(sys.stdout, SafeText) else sys.stdout


def write_raw(text: str) -> None:
    """Writes to standard output what is to arrive as it is."""
    raw_stdout().write(text)


def print_text(text: str, *, raw: bool) -> None:
    """Prints a text of a peer with its lines: safe to show, or with `raw` as it is."""
    from zmqbus.text.display import as_block

    write_raw((text if raw else as_block(text)) + "\n")


def install() -> None:
    """Replaces the standard streams; those that a test or an embedding program has put there stay, made safe.

    Output is UTF-8 whatever the locale says, because that is what agents read, and no character can break it: what
    cannot be encoded is written as an escape. PYTHONIOENCODING wins: whoever sets it knows why.
    """
    _stand_in(0, os.O_WRONLY)
    _stand_in(1, os.O_RDONLY)
    _stand_in(2, os.O_WRONLY)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding="utf-8")
    sys.stdout = _writer(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _writer(sys.stderr, sys.__stderr__, 2)


def failure() -> "OSError | None":
    """What the system said to the first write to standard output that failed; None: none has."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, _Descriptor) else None


def takes_unicode() -> bool:
    """Whether standard output is written in UTF-8. Elsewhere JSON has to bring its own escapes: those that Python puts
    in the place of what cannot be encoded are none to JSON."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")


def is_open(descriptor: int) -> bool:
    """Whether a descriptor can be written to at all; a stand-in for a closed standard output cannot."""
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def _stand_in(descriptor: int, flags: int) -> None:
    """Opens the null device where the descriptor is closed, so that using it fails."""
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
