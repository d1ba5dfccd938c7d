"""Checks that the data directory and the files in it are the user's alone."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

from zmqbus.doctor.report import Finding, command, fault, ok
from zmqbus.security.private_files import DIR_MODE, FILE_MODE, is_unmapped
from zmqbus.session.owner_files import FIFO
from zmqbus.settings import Settings

#: Files of zmqbus in the data directory, other than the virtual environment.
_OURS = re.compile(
    r"messages\.log(\.[1-9][0-9]*|\.new)?|mailboxes\.sqlite3.*|search\.sqlite(-wal|-shm|-journal)?|broker\.log(\.[0-9]+)?"
    r"|server\.[0-9]+\.(pid|process)|network"
)


def directory(settings: Settings) -> Iterator[Finding]:
    """Checks the data directory itself. Everything in it is checked only when this finds no fault."""
    path = settings.data_dir
    if not os.path.lexists(path):
        yield ok("directory", f"{path} does not exist yet; the first command that needs it makes it")
        return
    found = list(_private("directory", path, directory=True))
    yield from found or [ok("directory", path)]


def permissions(settings: Settings) -> Iterator[Finding]:
    """Checks that all files of zmqbus are private files of the user."""
    paths = settings.paths
    checked = 0
    faults: list[Finding] = []
    for path in (paths.keys, paths.clients, paths.spool):
        if os.path.lexists(path):
            checked += 1
            faults += _private("permissions", path, directory=True)
    names = [
        os.path.join(settings.data_dir, name) for name in sorted(os.listdir(settings.data_dir)) if _OURS.fullmatch(name)
    ]
    for parent in (paths.keys, paths.clients, paths.spool):
        if os.path.isdir(parent) and not os.path.islink(parent):
            names += [os.path.join(parent, name) for name in sorted(os.listdir(parent))]
    for name in names:
        checked += 1
        faults += _private("permissions", name, directory=False)
    yield from faults or [ok("permissions", f"{checked} files and directories are private")]


def _is_of_kind(path: str, mode: int, *, directory: bool) -> bool:
    """Whether it is a directory, a file, or the FIFO by which hooks wake a listener."""
    if directory:
        return stat.S_ISDIR(mode)
    return stat.S_ISFIFO(mode) if path.endswith(FIFO) else stat.S_ISREG(mode)


def _private(check: str, path: str, *, directory: bool) -> Iterator[Finding]:
    """Reports what `security.private_files` would refuse, with the command that fixes it."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return  # removed since it was listed
    user = os.geteuid()
    if stat.S_ISLNK(found.st_mode):
        yield fault(check, f"{path} is a symbolic link, which is never followed", command("rm", path))
    elif not _is_of_kind(path, found.st_mode, directory=directory):
        what = "directory" if directory else "file"
        yield fault(check, f"{path} is not a {what}", command("mv", path, f"{path}.aside"))
    elif found.st_uid != user and is_unmapped(found.st_uid):
        yield fault(
            check,
            f"{path} belongs to a user without an id in this user namespace (uid {found.st_uid}): this shell runs in a "
            "sandbox or a container; run the command outside of it",
        )
    elif found.st_uid != user:
        chown = ("chown",) if user == 0 else ("sudo", "chown")
        yield fault(check, f"{path} belongs to another user (uid {found.st_uid})", command(*chown, str(user), path))
    elif found.st_mode & 0o077:
        mode = DIR_MODE if directory else FILE_MODE
        yield fault(
            check,
            f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}), so it is refused",
            command("chmod", f"{mode:o}", path),
        )
