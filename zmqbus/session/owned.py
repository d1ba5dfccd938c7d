"""Names of the files that belong to one owner, and who the owner is that a file was written for.

They lie in `<data>/clients` and are named after the owner's pid: `4711.lock`, `4711.session`, `4711.shown`,
`4711.options`. A pid counts in one place only (`zmqbus.process`), and the directory may be shared with a container or
with another machine, where 4711 is somebody else. So each record holds the owner's start time and place, and whoever
finds that the plain name is taken by a process that may still live elsewhere uses a name with a tag of its own place:
`4711-0a1b2c3d4e5f.lock`. Once files with the tag exist they are the owner's, for as long as it lives.

Records without a place were written by an earlier release. They are taken for the owner's own where pid and start time
agree, and are otherwise somebody else's.
"""

from __future__ import annotations

import os
from typing import Any

from zmqbus.process import Place, Process, has_ended
from zmqbus.security.private_files import load_json, open_file, parse_json
from zmqbus.settings import Paths

LOCK, STATE, OPTIONS, SHOWN, TMP = ".lock", ".session", ".options", ".shown", ".tmp"
#: Records of an owner are some 1 KiB, two paths of 4 KiB at most. Larger ones are not ours.
MAX_RECORD_BYTES = 64 * 1024
#: A file of an owner, and its stem.
OWNED = r"([1-9][0-9]{0,9}(?:-[0-9a-f]{12})?)(?:\.lock|(?:\.session|\.shown|\.options)(?:\.tmp)?)"


def record_of(owner: Process) -> dict[str, str]:
    """What a record holds of its owner, beside the pid in the file's name."""
    return {"owner_started": owner.started, **owner.place._asdict()}


def owner_in(record: Any, stem: str) -> Process | None:
    """The owner that a record was written for; None where it does not say."""
    if not isinstance(record, dict) or not isinstance(record.get("owner_started"), str):
        return None
    place = [value if isinstance(value := record.get(field), str) else "" for field in Place._fields]
    return Process(pid_of(stem), record["owner_started"], *place)


def pid_of(stem: str) -> int:
    """The owner's pid, in whatever place it counts."""
    return int(stem.partition("-")[0])


def path_of(data_dir: str, stem: str, suffix: str) -> str:
    """The file of an owner."""
    return os.path.join(Paths(data_dir).clients, stem + suffix)


def stem_of(data_dir: str, owner: Process) -> str:
    """What the names of this owner's files begin with. Raises `Unauthorized` where others could have written them."""
    plain = str(owner.pid)
    own = f"{plain}-{owner.place.tag}"
    if any(os.path.lexists(path_of(data_dir, own, suffix)) for suffix in (LOCK, OPTIONS)):
        return own
    for record in (lock_record(data_dir, plain), load_json(path_of(data_dir, plain, OPTIONS), MAX_RECORD_BYTES)):
        if is_anothers(owner_in(record, plain), owner):
            return own  # guards: session files
    return plain


def is_anothers(found: Process | None, owner: Process) -> bool:
    """Whether a record belongs to another process than `owner`, and one that may live."""
    return found is not None and not found.is_same(owner) and not has_ended(found)


def lock_record(data_dir: str, stem: str) -> Any:
    """What the lock file says; None where it says nothing. Raises Unauthorized."""
    try:
        fd = open_file(path_of(data_dir, stem, LOCK), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return parse_json(head_line(fd))
    finally:
        os.close(fd)


def head_line(fd: int) -> bytes:
    """The first line of a lock file; b"" where it has not been ended."""
    line, newline, _ = os.pread(fd, MAX_RECORD_BYTES, 0).partition(b"\n")
    return line if newline else b""
