"""Lines of a log file, forwards and backwards, read in pieces: a segment is large, and may be cut while it is read.

Files are not mapped into memory, because a file that is cut meanwhile would kill the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from zmqbus.journal.record import HEAD_BYTES

#: Files are read in pieces of this size: large enough to be fast, small enough for a short-lived command.
PIECE_BYTES = 1024 * 1024
#: The end of a line that is longer than its head is looked for in pieces of this size.
_END_BYTES = 64 * 1024


def lines_forward(fd: int, start: int) -> Iterator[tuple[int, int, bytes]]:
    """The complete lines from `start` on: offset, length without the newline, and bytes.

    A line that does not fit a piece comes with its first `HEAD_BYTES` only. A line without its newline yet is left out.
    """
    while piece := os.pread(fd, PIECE_BYTES, start):
        whole = piece.rfind(b"\n")
        if whole >= 0:
            for line in piece[:whole].split(b"\n"):
                yield start, len(line), line
                start += len(line) + 1
            continue
        end = find_newline(fd, start + len(piece), PIECE_BYTES)
        if end < 0:
            return
        yield start, end - start, piece[:HEAD_BYTES]
        start = end + 1


def lines_backward(fd: int, floor: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """The complete lines between `floor` and `end`, the last one first, as `lines_forward` yields them."""
    end = find_backward(fd, end, b"\n", floor) + 1
    while end > floor:
        start = max(floor, end - PIECE_BYTES)
        piece = os.pread(fd, end - start, start)
        if len(piece) < end - start:
            return  # cut meanwhile
        first, *others = piece[:-1].split(b"\n")
        at = end
        for line in reversed(others):
            at -= len(line) + 1
            yield at, len(line), line
        end = start + len(first) + 1
        if others:
            continue  # the first line may have begun before the piece, so it is left to the next one
        line_start = find_backward(fd, start, b"\n", floor) + 1
        if not line_start:
            if floor and os.pread(fd, 1, floor - 1) != b"\n":
                return
            line_start = floor
        length = end - 1 - line_start
        yield line_start, length, first if line_start == start else os.pread(fd, min(HEAD_BYTES, length), line_start)
        end = line_start


def line_at(fd: int, start: int) -> tuple[int, bytes] | None:
    """Length of the line that begins at `start`, and its bytes (of a long one the first `HEAD_BYTES`); None: no end."""
    head = os.pread(fd, HEAD_BYTES, start)
    length = head.find(b"\n")
    if length >= 0:
        return length, head[:length]
    end = find_newline(fd, start + len(head), _END_BYTES)
    return None if end < 0 else (end - start, head)


def whole_line_at(fd: int, start: int) -> bytes | None:
    """The line that begins at `start`, without its newline; None if it is unfinished."""
    end = find_newline(fd, start, PIECE_BYTES)
    return None if end < 0 else os.pread(fd, end - start, start)


def find_newline(fd: int, start: int, piece_bytes: int) -> int:
    """Offset of the first newline from `start` on; -1 if there is none."""
    while piece := os.pread(fd, piece_bytes, start):
        found = piece.find(b"\n")
        if found >= 0:
            return start + found
        start += len(piece)
    return -1


def find_backward(fd: int, end: int, needle: bytes, floor: int = 0) -> int:
    """Offset of the last `needle` between `floor` and `end`; -1 if there is none."""
    overlap = len(needle) - 1
    piece_bytes = max(PIECE_BYTES, 2 * len(needle))
    while end > floor:
        start = max(floor, end - piece_bytes)
        at = os.pread(fd, end - start, start).rfind(needle)
        if at >= 0:
            return start + at
        end = start + overlap if start > floor else floor
    return -1
