"""The standard streams of a command, through which nothing goes that a terminal obeys.

A command prints what peers wrote, what the files of the data directory hold, what it was called with, and errors that
quote any of it. Each of these is made safe where its line is put together, because only there is known what may not be
a line end (`display.sanitise`). Below all of them lies this: `guard` replaces standard output and standard error by
streams that put every line through the same function, so that a place that was forgotten, a traceback, or a message of
argparse shows a terminal nothing but text.

What is to drive the terminal (the screen of `watch`), or is to arrive byte for byte (`--raw`), says so: `write_raw`.
"""

from __future__ import annotations

import io
import sys
from typing import TextIO

from zmqbus.display import as_block, sanitise


class SafeOutput(io.TextIOWrapper):
    """A text stream that shows only what `display.sanitise` lets through; newlines and tabs stay."""

    def write(self, text: str) -> int:
        """Writes the text, made safe. Returns the length of what it was given, as streams do."""
        given = len(text)
        if text == "\n" or (text.isascii() and text.isprintable()):
            return super().write(text)
        # What no encoding has (a file name's odd byte) is shown as the stream would show it, and not taken out.
        text = text.encode("utf-8", "backslashreplace").decode()
        super().write("\n".join(_line(line) for line in text.split("\n")))
        return given

    def write_raw(self, text: str) -> int:
        """Writes the text as it is."""
        return super().write(text)


def _line(line: str) -> str:
    return "\t".join(map(sanitise, line.split("\t")))


def guard() -> None:
    """Makes standard output and standard error safe, where they are ordinary streams. Idempotent."""
    sys.stdout = _guarded(sys.stdout)
    sys.stderr = _guarded(sys.stderr)


def _guarded(stream: TextIO) -> TextIO:
    # Exactly the interpreter's own: a test's stand-in, or none at all, stays what it is.
    if type(stream) is not io.TextIOWrapper or stream.closed:
        return stream
    stream.flush()
    return SafeOutput(
        stream.buffer,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def raw_stdout() -> TextIO:
    """Standard output as it was before `guard`, for those who draw on the terminal. Both write to the same file."""
    if isinstance(sys.stdout, SafeOutput) and sys.__stdout__ is not None:
        sys.stdout.flush()
        return sys.__stdout__
    return sys.stdout


def write_raw(text: str) -> None:
    """Writes to standard output what is to arrive as it is."""
    stream = sys.stdout
    (stream.write_raw if isinstance(stream, SafeOutput) else stream.write)(text)


def print_text(text: str, *, raw: bool) -> None:
    """Prints a text of a peer with its lines: safe to show, or with `raw` as it is."""
    write_raw((text if raw else as_block(text)) + "\n")
