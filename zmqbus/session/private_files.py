"""Private files of sessions: opened, locked, replaced and read so that a failure says what to do.

What others could read, what belongs to another user and what is a link is refused (`Unauthorized`, by
`security.open_private`). Any other failure of the system is a `NotConnected` that names the file and the cure; only
"no such file" passes through as it is, because there it is an answer.
"""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any

from zmqbus.errors import NotConnected
from zmqbus.security.keys import open_private


def cannot(verb: str, path: str, error: OSError) -> NotConnected:
    """The error to raise for what the system refused."""
    return NotConnected(
        f"cannot {verb} {path}: {error.strerror or error}; make its directory writable and free some space, "
        "or set INTER_SESSION_DATA_DIR to a directory on a local disk"
    )


def open_file(path: str, flags: int) -> int:
    """Opens a private file. Raises FileNotFoundError as it is: here that is an answer, not a fault."""
    try:
        return open_private(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise cannot("open", path, error) from error


def flock(fd: int, path: str, kind: int) -> bool:
    """Tries for a lock, without waiting. False: it is held in a way that excludes this one."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        raise cannot("lock", path, error) from error
    return True


def is_at(fd: int, path: str) -> bool:
    """Is the open file still the one that has this name?"""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def unlink(path: str) -> bool:
    """Removes a file; False: there was none."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise cannot("remove", path, error) from error
    return True


def replace(path: str, data: bytes) -> None:
    """Writes a private file whole, or leaves the old one. The caller is the only one who writes it."""
    draft = path + ".tmp"
    try:
        fd = open_private(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)
        os.replace(draft, path)
    except OSError as error:
        try:
            os.unlink(draft)
        except OSError:
            pass  # the first failure is the one to tell about; a draft that is left is written over
        raise cannot("write", path, error) from error


def load_json(path: str, limit_bytes: int) -> Any:
    """What a private JSON file holds; None where there is none, or it is damaged. Raises Unauthorized."""
    try:
        fd = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        data = b""
        while len(data) <= limit_bytes and (more := os.read(fd, limit_bytes + 1 - len(data))):
            data += more
    except OSError as error:
        raise cannot("read", path, error) from error
    finally:
        os.close(fd)
    return parse(data) if len(data) <= limit_bytes else None


def parse(data: bytes) -> Any:
    """The value that this JSON stands for; None where it is damaged."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # torn, not UTF-8, not JSON, or nested until the parser gives up
        return None
