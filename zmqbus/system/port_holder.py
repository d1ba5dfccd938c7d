"""The program that holds a port, as far as this user may know, for the error message.

The system shows everybody which user has a port open, and each user which of their own processes. Read from /proc and
not by psutil, which a command that meets a held port has not loaded. Without /proc, no program is named.
"""

from __future__ import annotations

import os

#: As /proc/net/tcp writes the state of a socket that takes connections.
_LISTENING = "0A"
#: Loopback and "any address", as the same files write them on machines of either byte order.
_LOCAL = ("0100007F", "7F000001", "00000000", "0" * 32, "0" * 24 + "01000000", "0" * 31 + "1")


def holder_of(port: int) -> str:
    """`python3 (pid 4711)` or `a program of user mallory`; "" if that is unknown, or the port is free. Never raises."""
    found = _socket(port)
    if found is None:
        return ""
    uid, inode = found
    if uid != os.geteuid():
        return f"a program of user {_user(uid)}"
    return _process(f"socket:[{inode}]")


def _socket(port: int) -> tuple[int, str] | None:
    """User and inode of the socket that listens on this port of the loopback."""
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(name, encoding="ascii") as file:
                rows = file.read().splitlines()[1:]
        except (OSError, ValueError):
            continue
        for row in rows:
            fields = row.split()
            address, _, number = fields[1].partition(":")
            if fields[3] == _LISTENING and int(number, 16) == port and address in _LOCAL:
                return int(fields[7]), fields[9]
    return None


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # one of a container, perhaps
        return str(uid)


def _process(socket: str) -> str:
    """The process of this user that has the socket open."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") == socket:
                    with open(f"/proc/{pid}/cmdline", "rb") as arguments:
                        if b"zmqbus.broker.shell.daemon" in arguments.read().split(b"\0"):
                            return f"a zmqbus broker of another data directory (pid {pid})"
                    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                        return f"{file.read().strip()} (pid {pid})"
        except OSError:
            continue  # another user's, or it has ended
    return ""
