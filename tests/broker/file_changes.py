"""Records the changes that a process makes to the files of a directory, and replays them elsewhere.

The `Recorder` looks at the directory after each call that can change a file, and keeps the differences in the order in
which the process makes them: bytes appended to the journal; pages that a commit appends to the write-ahead log; pages
that a checkpoint then writes into the database; names of files that are created, renamed or deleted.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

DATABASE, LOG = "mailboxes.sqlite3", "messages.log"
WAL, ROLLBACK = DATABASE + "-wal", DATABASE + "-journal"
#: Sizes of the header of a write-ahead log, of the header of a page in it, and of a page.
WAL_HEADER_BYTES, FRAME_HEADER_BYTES, PAGE_BYTES = 32, 24, 4096
FRAME_BYTES = FRAME_HEADER_BYTES + PAGE_BYTES


class Change(NamedTuple):
    """Bytes written to a file; a new file begins empty."""

    name: str
    offset: int
    data: bytes
    size: int  # of the file afterwards

    def stops(self) -> list[int]:
        """Lengths at which a kill of the process may truncate it.

        These are the boundaries of its writes, and of the kernel's pages within each write. A line of the journal may
        be truncated anywhere.
        """
        end = len(self.data)
        edges = set(range(PAGE_BYTES - self.offset % PAGE_BYTES, end, PAGE_BYTES))
        if self.name == WAL:
            # SQLite writes the header of a page, and then the page.
            frames = range(WAL_HEADER_BYTES - self.offset if self.offset == 0 else 0, end, FRAME_BYTES)
            edges.update(frames, (at + FRAME_HEADER_BYTES for at in frames))
        elif self.name.startswith(LOG):
            lines = [0, *(at + 1 for at, byte in enumerate(self.data) if byte == 0x0A)]
            edges.update(lines, (line + 1 for line in lines), (line - 1 for line in lines))
            edges.update((low + high) // 2 for low, high in pairwise(lines))
        return sorted(edge for edge in edges if 0 < edge < end)


class Renamed(NamedTuple):
    """A file was renamed."""

    name: str
    to: str


class Removed(NamedTuple):
    """A file was deleted."""

    name: str


AnyChange = Change | Renamed | Removed
Disk = dict[str, bytearray]


def play(disk: Disk, change: AnyChange, upto: int | None = None) -> None:
    """Applies a change, or only its first `upto` bytes."""
    if isinstance(change, Removed):
        del disk[change.name]
    elif isinstance(change, Renamed):
        disk[change.to] = disk.pop(change.name)
    else:
        content = disk.setdefault(change.name, bytearray())
        data = change.data[:upto]
        content[change.offset : change.offset + len(data)] = data
        if upto is None:
            del content[change.size :]


def lay_out(disk: Disk, directory: Path) -> Path:
    """Writes these files into a new data directory."""
    directory.mkdir(mode=0o700)
    for name, content in disk.items():
        path = directory / name
        path.touch(0o600)
        path.write_bytes(content)
    return directory


def pick_up(directory: Path) -> Disk:
    """Reads the files of a data directory."""
    return {name: bytearray((directory / name).read_bytes()) for name in sorted(os.listdir(directory))}


class Recorder:
    """Records the changes of the files in a directory."""

    #: Calls through which code other than SQLite changes files.
    CALLS = ("open", "rename", "unlink", "link", "ftruncate", "write", "writev")

    def __init__(self) -> None:
        self.changes: list[AnyChange] = []
        self._known: dict[str, tuple[int, bytes]] = {}  # name → inode, content
        self._directory: Path | None = None

    def __repr__(self) -> str:
        return f"<Recorder: {len(self.changes)} changes>"

    def move_to(self, directory: Path) -> None:
        """Continues with the files in another directory, which must equal the ones before."""
        self._directory = directory
        found = self._look()
        assert _contents(found) == _contents(self._known), "a change was not recorded"
        self._known = found

    def _look(self) -> dict[str, tuple[int, bytes]]:
        assert self._directory is not None
        found = {}
        for name in os.listdir(self._directory):
            # This releases the locks that SQLite holds on the files; no other process is there to respect them.
            with open(self._directory / name, "rb") as file:
                found[name] = os.fstat(file.fileno()).st_ino, file.read()
        return found

    def observe(self) -> None:
        """Records the changes since the last look."""
        before, now = self._known, self._look()
        if now == before:
            return
        self._known = now
        inodes = {inode: name for name, (inode, _) in now.items()}
        contents: dict[str, bytes] = {}
        for name, (inode, content) in before.items():
            to = inodes.get(inode)
            if to == name:
                contents[name] = content
            elif to is not None and name not in now and to not in before:
                self.changes.append(Renamed(name, to))
                contents[to] = content
        for name in sorted(now, key=lambda name: _write_order(name, now[name][1])):
            if name not in contents and name in before:
                self.changes.append(Removed(name))  # another file has taken its name
            self._compare(name, contents.get(name), now[name][1])
        for name in before.keys() - now.keys():
            if before[name][0] not in inodes:
                self.changes.append(Removed(name))

    def _compare(self, name: str, old: bytes | None, new: bytes) -> None:
        if old == new:
            return
        if old is None:
            self.changes.append(Change(name, 0, new, len(new)))
            return
        if name == DATABASE:
            # A checkpoint writes single pages.
            for at in range(0, len(new), PAGE_BYTES):
                page = new[at : at + PAGE_BYTES]
                if page != old[at : at + PAGE_BYTES]:
                    self.changes.append(Change(name, at, page, max(len(old), at + len(page))))
            if len(new) < len(old):
                self.changes.append(Change(name, len(new), b"", len(new)))
            return
        start = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        end = len(new)
        while len(old) == len(new) and end > start and old[end - 1] == new[end - 1]:
            end -= 1
        if name == WAL:
            # After a checkpoint the log is overwritten from its start, including bytes that stay the same.
            start = 0 if start < WAL_HEADER_BYTES else start - (start - WAL_HEADER_BYTES) % FRAME_BYTES
            end = min(len(new), end + -(end - WAL_HEADER_BYTES) % FRAME_BYTES)
        self.changes.append(Change(name, start, new[start:end], len(new)))

    @contextmanager
    def each_call(self) -> Iterator[None]:
        """Looks at the files after each call and each SQL statement."""
        observe, looks = self.observe, True

        class Watched(sqlite3.Connection):
            def execute(self, *arguments: Any) -> sqlite3.Cursor:
                cursor = super().execute(*arguments)
                looks and observe()
                return cursor

            def executemany(self, sql: str, rows: Iterable[Any]) -> sqlite3.Cursor:
                cursor = self.cursor()
                for row in rows:
                    cursor.execute(sql, row)
                    looks and observe()
                return cursor

            def close(self) -> None:
                super().close()
                looks and observe()

        connect = sqlite3.connect
        with pytest.MonkeyPatch.context() as patch:
            for name in self.CALLS:
                patch.setattr(os, name, self._observed(getattr(os, name)))
            patch.setattr(sqlite3, "connect", lambda *args, **named: connect(*args, factory=Watched, **named))
            yield
        looks = False
        observe()

    def _observed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def observed(*args: Any, **named: Any) -> Any:
            result = call(*args, **named)
            if call is not _OPEN or args[1] & os.O_CREAT:
                self.observe()
            return result

        return observed


_OPEN = os.open


def _contents(found: dict[str, tuple[int, bytes]]) -> dict[str, bytes]:
    return {name: content for name, (_, content) in found.items()}


def _write_order(name: str, content: bytes) -> int:
    """Order of changes within one call: journal, commit to the write-ahead log, checkpoint, truncation of that log."""
    return 0 if name.startswith(LOG) else 1 if name == WAL and content else 3 if name == WAL else 2
