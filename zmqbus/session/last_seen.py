"""When the hooks of a session last ran, for the doctor: a hook that silently does nothing cannot be told from none.

`<data>/clients/<owner pid>.seen` holds the owner, as its other files do, and the time of the last run of each hook. It
is written in place under a lock that nobody waits for: where two hooks run at once, one of them is not noted.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from typing import Any

from zmqbus.errors import NotConnected, Unauthorized
from zmqbus.process import Process
from zmqbus.security.private_files import load_json, open_file, parse_json, try_lock
from zmqbus.session.owner_files import SEEN, OwnerFiles, files_of, is_own, record_of

#: A dozen events, and an owner. A larger file was not written by zmqbus.
MAX_BYTES = 4096


def note_seen(files: OwnerFiles, event: str) -> None:
    """Stores that this hook of the session has just run. Never raises, and makes no directory."""
    path = files.path(SEEN)
    try:
        fd = open_file(path, os.O_RDWR | os.O_CREAT)
    except (OSError, Unauthorized, NotConnected):
        return  # there is no data directory yet, or the doctor has to report it
    try:
        if try_lock(fd, path, fcntl.LOCK_EX):
            seen = _seen_by(parse_json(os.pread(fd, MAX_BYTES, 0)), files)
            data = json.dumps({**record_of(files.owner), "seen": {**seen, event: round(time.time(), 3)}}).encode()
            os.ftruncate(fd, 0)
            os.pwrite(fd, data, 0)
    except (OSError, NotConnected):
        pass  # a full disk, or one without locks
    finally:
        os.close(fd)


def last_seen(data_dir: str, owner: Process) -> dict[str, float]:
    """Event -> when its hook last ran for this owner, in seconds since 1970.

    Raises `Unauthorized` where others could have written the file, `NotConnected` where it cannot be read.
    """
    files = files_of(data_dir, owner)
    return _seen_by(load_json(files.path(SEEN), MAX_BYTES), files)


def _seen_by(record: Any, files: OwnerFiles) -> dict[str, float]:
    """The times in a record of this very owner; none in that of an earlier process with its pid."""
    if not is_own(record, files):
        return {}
    seen = record.get("seen")
    if not isinstance(seen, dict):
        return {}
    return {event: float(when_s) for event, when_s in seen.items() if isinstance(when_s, (int, float))}
