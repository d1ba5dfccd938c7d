"""Files of sessions that have ended: finding and removing them.

Only one process cleans at a time (`reap.lock`), and it removes nothing that a listener holds: `zmqbus.session.lock` has
the rules. Files of an owner in another place cannot be judged from here. They would pile up where each run has a
container of its own, so those that no listener holds are removed when nothing has touched them for `FOREIGN_KEEP_S`.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress

from zmqbus.errors import NotConnected, Unauthorized
from zmqbus.process import Life, Process, ProcessTable, life_of, this_machine
from zmqbus.security.private_files import is_at, load_json, open_file, try_lock, unlink
from zmqbus.session.owner_files import (
    AGENT,
    FIFO,
    LOCK,
    MAX_RECORD_BYTES,
    OPTIONS,
    SEEN,
    SHOWN,
    STATE,
    TMP,
    WAKE,
    is_held,
    lock_record,
    owner_in,
    path_of,
    pid_of,
)
from zmqbus.session.state import load_state, stems
from zmqbus.settings import Paths

#: How long files of an owner in another place stay once nothing touches them any more. Mail is kept for 7 days, so by
#: then there has long been nothing left to come back for.
FOREIGN_KEEP_S = 30 * 24 * 3600.0


def reap(data_dir: str, table: ProcessTable | None = None) -> list[str]:
    """Removes the files of owners that have died, and returns their names. Files that a listener still holds stay.

    Does nothing while another process cleans. Files that are not private are left for `zmqbus doctor` to report.
    """
    found = stems(data_dir)
    removed: list[str] = []
    cleaning = begin_cleaning(data_dir) if found else None
    if cleaning is None:
        return removed
    try:
        for stem in found:
            try:
                removed += _clean(data_dir, stem, table or this_machine())
            except (Unauthorized, NotConnected):
                continue  # reported by `zmqbus doctor`, and no reason to leave the others
    finally:
        os.close(cleaning)
    return removed


def leftovers(data_dir: str, table: ProcessTable | None = None) -> list[str]:
    """Names the files that `reap` would remove, and state files that a dead listener left. Removes nothing.

    Leaves out files that are not private.
    """
    table = table or this_machine()
    found: list[str] = []
    for stem, suffixes in stems(data_dir).items():
        try:
            if is_held(path_of(data_dir, stem, LOCK)):
                continue
            life = _life(data_dir, stem, table)
        except (Unauthorized, NotConnected):
            continue
        if life is not Life.ENDED:
            suffixes = [suffix for suffix in suffixes if suffix.startswith(STATE) and life is Life.ALIVE]
        found += [stem + suffix for suffix in suffixes]
    return sorted(found)


def elsewhere(data_dir: str) -> list[str]:
    """Stems of the files whose owners cannot be judged from here: they are of a container, or of another machine."""
    found: list[str] = []
    for stem in stems(data_dir):
        with suppress(Unauthorized, NotConnected):
            if _life(data_dir, stem, this_machine()) is Life.UNKNOWN:
                found.append(stem)
    return found


def remove_stale_state(data_dir: str, stem: str) -> bool:
    """Removes the state that a dead listener left; returns whether there was one."""
    cleaning = begin_cleaning(data_dir)
    if cleaning is None:
        return True  # the process that cleans at this moment finds it too
    try:
        return bool(_clean(data_dir, stem))
    finally:
        os.close(cleaning)


def begin_cleaning(data_dir: str) -> int | None:
    """Makes this process the only cleaner until it closes the returned descriptor; None: another one is."""
    path = os.path.join(Paths(data_dir).clients, "reap.lock")
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    if try_lock(fd, path, fcntl.LOCK_EX):
        return fd
    os.close(fd)
    return None


def _clean(data_dir: str, stem: str, table: ProcessTable | None = None) -> list[str]:
    """Removes files that no listener holds: the state; with a `table` all of them, but only if the owner has ended.

    Returns the names of the removed files. The caller is the only cleaner.
    """
    path = path_of(data_dir, stem, LOCK)
    had_lock = os.path.lexists(path)
    fd = open_file(path, os.O_RDWR | os.O_CREAT)  # without the file there would be nothing to exclude a listener with
    made_here = False
    try:
        if not try_lock(fd, path, fcntl.LOCK_SH):
            return []
        made_here = not had_lock
        if table is not None and _life(data_dir, stem, table) is not Life.ENDED:
            return []
        # The lock goes last: as long as it is there, it says whose the other files are.
        suffixes = [STATE, STATE + TMP]
        if table is not None:
            suffixes += [SHOWN, SHOWN + TMP, OPTIONS, OPTIONS + TMP, SEEN, WAKE, AGENT, AGENT + TMP, FIFO, LOCK]
        removed = [suffix for suffix in suffixes if unlink(path_of(data_dir, stem, suffix))]
        return [f"{stem}{suffix}" for suffix in removed if suffix != LOCK or had_lock]
    finally:
        if made_here and is_at(fd, path):
            unlink(path)
        os.close(fd)


def _life(data_dir: str, stem: str, table: ProcessTable) -> Life:
    """Whether the owner of these files lives. An owner that cannot be judged counts as ended when nothing has touched
    its files for `FOREIGN_KEEP_S`."""
    owners = _owners(data_dir, stem)
    lives = {life_of(owner, table) for owner in owners}
    if not owners and stem in (str(pid_of(stem)), f"{pid_of(stem)}-{table.place().tag}"):
        # A listener that has just made its lock file has written nothing yet: any process with this pid may own it.
        entry = table.look(pid_of(stem))
        hidden = entry is None and table.exists(pid_of(stem))
        return Life.ALIVE if hidden or (entry is not None and not entry.ended) else Life.ENDED
    if Life.ALIVE in lives:
        return Life.ALIVE
    if lives == {Life.ENDED}:
        return Life.ENDED
    return Life.ENDED if _untouched_s(data_dir, stem) > FOREIGN_KEEP_S else Life.UNKNOWN


def _owners(data_dir: str, stem: str) -> set[Process]:
    """The owners that the files of this stem name: mostly one."""
    options = load_json(path_of(data_dir, stem, OPTIONS), MAX_RECORD_BYTES)
    state = load_state(data_dir, stem)
    found = (owner_in(lock_record(data_dir, stem), stem), owner_in(options, stem), state.owner if state else None)
    return {owner for owner in found if owner is not None}


def _untouched_s(data_dir: str, stem: str) -> float:
    """For how long nothing has written to the files of this stem."""
    newest_s = 0.0
    for suffix in (LOCK, STATE, OPTIONS, SHOWN, SEEN, WAKE, AGENT):
        with suppress(FileNotFoundError):
            newest_s = max(newest_s, os.stat(path_of(data_dir, stem, suffix), follow_symlinks=False).st_mtime)
    return time.time() - newest_s
