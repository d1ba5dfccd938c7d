"""Names of the files that belong to one owner, and the record in them that says which process the owner is.

The files lie in `<data>/clients` and are named after the owner's pid: `4711.lock`, `4711.session`, `4711.shown`,
`4711.options`, `4711.seen`, `4711.wake`, `4711.agent`, `4711.fifo`. A pid is unique only within one place
(`zmqbus.process`), and the directory may be shared with a container or with another machine, where 4711 is another
process. So each record holds the owner's start time and place, and an owner whose plain name is taken by a process that
may live elsewhere uses a name with a tag of its own place: `4711-0a1b2c3d4e5f.lock`. Once files with the tag exist,
they are the owner's for as long as it lives.

A record without a place comes from an earlier release. It belongs to the owner if pid and start time agree, and to
another process otherwise.
"""

from __future__ import annotations

import fcntl
import os
from typing import Any

from zmqbus.process import Place, Process, has_ended
from zmqbus.security.private_files import load_json, open_file, parse_json, try_lock
from zmqbus.settings import Paths
from zmqbus.tuples import NamedTuple

LOCK, STATE, OPTIONS, SHOWN, SEEN, WAKE = ".lock", ".session", ".options", ".shown", ".seen", ".wake"
AGENT, FIFO, TMP = ".agent", ".fifo", ".tmp"
#: A record takes about 1 KiB, or two paths of 4 KiB at most. A larger one was not written by zmqbus.
MAX_RECORD_BYTES = 64 * 1024
#: Matches the name of an owner's file; the group is its stem.
FILE_NAME = (
    r"([1-9][0-9]{0,9}(?:-[0-9a-f]{12})?)"
    r"(?:\.lock|\.seen|\.wake|\.fifo|(?:\.session|\.shown|\.options|\.agent)(?:\.tmp)?)"
)


class OwnerFiles(NamedTuple):
    """The files of one owner: their names begin with `stem`."""

    data_dir: str
    owner: Process
    stem: str

    def path(self, suffix: str) -> str:
        """The path of one of the files."""
        return path_of(self.data_dir, self.stem, suffix)


def files_of(data_dir: str, owner: Process) -> OwnerFiles:
    """The files of this owner. Raises `Unauthorized` where others could have written them."""
    return OwnerFiles(data_dir, owner, stem_of(data_dir, owner))


def record_of(owner: Process) -> dict[str, str]:
    """The fields of a record that identify its owner, beside the pid in the file's name."""
    return {"owner_started": owner.started, **owner.place._asdict()}


def owner_in(record: Any, stem: str) -> Process | None:
    """The owner that a record was written for; None where it does not say."""
    if not isinstance(record, dict) or not isinstance(record.get("owner_started"), str):
        return None
    place = [value if isinstance(value := record.get(field), str) else "" for field in Place._fields]
    return Process(pid_of(stem), record["owner_started"], *place)


def is_own(record: Any, files: OwnerFiles) -> bool:
    """Whether a record was written for the very owner of these files, and not for an earlier process of its pid."""
    found = owner_in(record, files.stem)
    return found is not None and found.is_same(files.owner)


def pid_of(stem: str) -> int:
    """The owner's pid, in whatever place it counts."""
    return int(stem.partition("-")[0])


def path_of(data_dir: str, stem: str, suffix: str) -> str:
    """The path of an owner's file."""
    return os.path.join(Paths(data_dir).clients, stem + suffix)


def stem_of(data_dir: str, owner: Process) -> str:
    """How the names of this owner's files begin. Raises `Unauthorized` where others could have written them."""
    plain = str(owner.pid)
    own = f"{plain}-{owner.place.tag}"
    if any(os.path.lexists(path_of(data_dir, own, suffix)) for suffix in (LOCK, OPTIONS)):
        return own
    for record in (lock_record(data_dir, plain), load_json(path_of(data_dir, plain, OPTIONS), MAX_RECORD_BYTES)):
        if is_anothers(owner_in(record, plain), owner):
            return own  # guards: session files
    return plain


def is_anothers(found: Process | None, owner: Process) -> bool:
    """Whether a record belongs to another process than `owner` that may be alive."""
    return found is not None and not found.is_same(owner) and not has_ended(found)


def lock_record(data_dir: str, stem: str) -> Any:
    """The record in a lock file; None where there is none. Raises `Unauthorized`."""
    try:
        fd = open_file(path_of(data_dir, stem, LOCK), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return parse_json(first_line(fd))
    finally:
        os.close(fd)


def first_line(fd: int) -> bytes:
    """The first line of a lock file; b"" where it has no end."""
    line, newline, _ = os.pread(fd, MAX_RECORD_BYTES, 0).partition(b"\n")
    return line if newline else b""


def is_held(lock_path: str) -> bool:
    """Whether a listener holds this lock."""
    try:
        fd = open_file(lock_path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(fd, lock_path, fcntl.LOCK_SH)
    finally:
        os.close(fd)
