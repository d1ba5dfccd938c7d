"""Private files and directories: only the owner may touch them.

The data directory is 0700 and every file in it 0600, and none of them is a link: anyone who may write to the directory
above could have made the link, and "0600" says nothing about its target. Any other file is refused (`Unauthorized`) and
never repaired: its contents may have been read by then, and only the user can say whether that matters. The error names
the command that repairs it.

`open_private` passes any other OSError on. `open_file` and the functions below it raise `NotConnected` instead, with
the file and the remedy; only FileNotFoundError passes through, because there it is an answer.

Every command imports this module, so it imports nothing costly.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from typing import Any

from zmqbus.errors import BrokerUnavailable, NotConnected, Unauthorized

DIR_MODE = 0o700
FILE_MODE = 0o600
#: Any of these bits lets other users in.
_OTHERS = 0o077


def secure_dir(path: str) -> None:
    """Makes sure that `path` is a directory of the user that nobody else can enter.

    Makes it and its missing parents with mode 0700. Raises `Unauthorized` if something exists there that is a link, no
    directory, somebody else's or open to others (it is never changed), or if the directory may not be made;
    `BrokerUnavailable` if the system cannot make it now.
    """
    # lstat follows a link whose name ends with a slash.
    path = path.rstrip("/") or "/"
    try:
        _check(path, os.lstat(path), directory=True)
        return
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _no_dir(path, error) from None
    try:
        _make_dirs(path)
        _check(path, os.lstat(path), directory=True)
    except OSError as error:
        raise _no_dir(path, error) from None


def check_private_dir(path: str) -> None:
    """Raises `Unauthorized` unless `path` is a directory of the user that nobody else can enter.

    Raises FileNotFoundError if there is none.
    """
    _check(path, os.lstat(path), directory=True)


def check_private_file(path: str) -> None:
    """Raises `Unauthorized` unless `path` is a regular file of the user that nobody else can read or write.

    Raises FileNotFoundError if there is none. To open the file, use `open_private`, which checks the file that it has
    opened; by then, the name may mean another file than it did here.
    """
    _check(path, os.lstat(path), directory=False)


def open_private(path: str, flags: int) -> int:
    """Opens a private file with `flags` of `os.open`; returns the descriptor, which other programs do not inherit.

    `O_CREAT` makes the file 0600, whatever the umask. Raises `Unauthorized` for a file that `check_private_file` would
    refuse, before anything in it is changed; any other OSError (no such file, disk full) passes through.
    """
    # O_NOFOLLOW refuses a link as the last part of the path. O_NONBLOCK keeps a FIFO from blocking before it can be
    # recognised, and means nothing to regular files. O_TRUNC has to wait until the owner of the file is known.
    safe = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = os.open(path, (flags | safe) & ~os.O_TRUNC, FILE_MODE)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENXIO):
            raise
        try:
            check_private_file(path)
        except PermissionError:
            _check_above(path)
            raise
        raise Unauthorized(f"{path} cannot be opened: {error.strerror}; make it yours to read and write") from None
    try:
        found = os.fstat(fd)
        _check(path, found, directory=False)
        if flags & os.O_CREAT and found.st_mode & FILE_MODE != FILE_MODE:
            os.fchmod(fd, FILE_MODE)  # a umask like 0777 took away bits that the next reader needs
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_small(path: str, limit_bytes: int) -> bytes:
    """The contents of a small file of the data directory, without a look at its owner: for a hint such as a pid.

    Never waits. Raises OSError; also for a link, a FIFO or a device, and for a file longer than `limit_bytes`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        data = os.read(fd, limit_bytes + 1)
    finally:
        os.close(fd)
    if len(data) > limit_bytes:
        raise OSError(errno.EFBIG, "too large", path)
    return data


def _check(path: str, found: os.stat_result, *, directory: bool) -> None:
    kind, mode = ("directory", DIR_MODE) if directory else ("file", FILE_MODE)
    user = os.geteuid()
    if stat.S_ISLNK(found.st_mode):
        remedy = "remove it"
        if directory:
            remedy += ", or set INTER_SESSION_DATA_DIR to the directory that is meant"
        raise Unauthorized(f"{path} is a symbolic link, which is never followed here; {remedy}")
    if not (stat.S_ISDIR(found.st_mode) if directory else stat.S_ISREG(found.st_mode)):
        raise Unauthorized(f"{path} is not a {kind}; move it out of the way")
    if found.st_uid != user:
        if is_unmapped(found.st_uid):
            raise Unauthorized(
                f"{path} belongs to a user who has no id in this user namespace (uid {found.st_uid} stands for all of "
                "them): this shell is in a sandbox or a container. Run the command outside of it, give the container "
                "the user's own id (podman: --userns=keep-id), or set INTER_SESSION_DATA_DIR to a directory in it"
            )
        raise Unauthorized(
            f"{path} belongs to another user (uid {found.st_uid}, you are {user}); "
            f"if it is to be yours, run: sudo chown {user} {shell_quoted(path)}; "
            "else set INTER_SESSION_DATA_DIR to a directory of your own"
        )
    if found.st_mode & _OTHERS:
        raise Unauthorized(
            f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}); "
            f"run: chmod {mode:o} {shell_quoted(path)}"
        )


def _check_above(path: str) -> None:
    """Raises `Unauthorized` if the lowest visible directory above `path` is not the user's own."""
    while (parent := os.path.dirname(path)) != path:
        path = parent
        try:
            found = os.lstat(path)
        except PermissionError:
            continue
        _check(path, found, directory=True)
        return


def is_unmapped(uid: int) -> bool:
    """Whether this uid stands for all users without an id in this user namespace."""
    try:
        with open("/proc/sys/kernel/overflowuid", "rb") as file:
            if int(file.read(32)) != uid:
                return False
        with open("/proc/self/uid_map", "rb") as file:
            ranges = [[int(word) for word in line.split()] for line in file.read(65536).splitlines()]
    except (OSError, ValueError):
        return False
    # Where all ids are mapped, as in the first namespace, it is an ordinary user.
    return not any(first <= uid < first + count for first, _, count in ranges)


def _make_dirs(path: str) -> None:
    parent = os.path.dirname(path)
    if parent != path and not os.path.isdir(parent):
        # As private as the last one: others who may write to a parent could exchange the directory in it.
        _make_dirs(parent)
    try:
        os.mkdir(path, DIR_MODE)
    except FileExistsError:
        return  # another process was faster; the caller checks the result
    if os.lstat(path).st_mode & DIR_MODE != DIR_MODE:
        os.chmod(path, DIR_MODE)  # the umask took bits away


def _no_dir(path: str, error: OSError) -> Unauthorized | BrokerUnavailable:
    kind = BrokerUnavailable if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else Unauthorized
    return kind(
        f"the directory {path} cannot be made: {error.strerror}; "
        "set INTER_SESSION_DATA_DIR to a directory that you may write to"
    )


def shell_quoted(path: str) -> str:
    """Quotes a path for a POSIX shell, always, so that a command in a sentence has a visible end."""
    return "'" + path.replace("'", "'\"'\"'") + "'"


def file_error(verb: str, path: str, error: OSError) -> NotConnected:
    """The error to raise when the system refuses to open, lock, read, write or remove a private file."""
    return NotConnected(
        f"cannot {verb} {path}: {error.strerror or error}; make its directory writable and free some space, "
        "or set INTER_SESSION_DATA_DIR to a directory on a local disk"
    )


def open_file(path: str, flags: int) -> int:
    """Like `open_private`, but raises `NotConnected` for every OSError except FileNotFoundError."""
    try:
        return open_private(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise file_error("open", path, error) from error


def try_lock(fd: int, path: str, kind: int) -> bool:
    """Tries to flock the file without waiting; False if another lock on it excludes this one."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        raise file_error("lock", path, error) from error
    return True


def is_at(fd: int, path: str) -> bool:
    """Whether the open file is still the one with this name."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def unlink(path: str) -> bool:
    """Removes a file; False if there was none."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise file_error("remove", path, error) from error
    return True


def replace(path: str, data: bytes) -> None:
    """Writes a private file completely, or leaves the old one. Only one process at a time may write it."""
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
            pass  # the first failure is the one to report; the next call overwrites a draft that is left
        raise file_error("write", path, error) from error


def load_json(path: str, limit_bytes: int) -> Any:
    """The value in a private JSON file; None if there is no file or it is damaged. Raises `Unauthorized`."""
    try:
        fd = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        data = b""
        while len(data) <= limit_bytes and (more := os.read(fd, limit_bytes + 1 - len(data))):
            data += more
    except OSError as error:
        raise file_error("read", path, error) from error
    finally:
        os.close(fd)
    return parse_json(data) if len(data) <= limit_bytes else None


def parse_json(data: bytes) -> Any:
    """The value of a JSON text; None if it is damaged."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # torn, not UTF-8, not JSON, or nested until the parser gives up
        return None
