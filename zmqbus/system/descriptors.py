"""File descriptors: check that enough are free before libzmq takes them, and explain a shortage.

A bus takes about a dozen. With fewer, libzmq fails in the middle of a connection or ends the whole process (it asserts
that its poll set can be made), and neither tells the user what to do. So check first (`reserve`) before opening a
connection; `explained` words later failures in the same way.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from zmqbus.errors import BrokerUnavailable

#: Errors of the system when this process, or all of them together, may open no more files.
SHORTAGE = (errno.EMFILE, errno.ENFILE)


def reserve(count: int, what: str) -> None:
    """Raises `BrokerUnavailable` unless so many files can be opened now; the message says that `what` needs them."""
    found: list[int] = []
    try:
        for _ in range(count):
            found.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno not in SHORTAGE:
            raise
        raise shortage(what, error, f"{count} more, and finds {len(found)}") from None
    finally:
        for descriptor in found:
            os.close(descriptor)


def shortage(what: str, error: Exception, count: str = "more") -> BrokerUnavailable:
    """The error for an operation that failed for lack of descriptors."""
    if getattr(error, "errno", None) == errno.ENFILE:
        return BrokerUnavailable(f"too many files are open on this machine; {what} needs {count}: end some programs")
    limit = os.sysconf("SC_OPEN_MAX")  # not by `resource`: its import would take a descriptor
    return BrokerUnavailable(
        f"too few file descriptors: this process may have {limit} files open, and {what} needs {count}; raise the "
        "limit (ulimit -n 1024), or close files, and buses, that are not needed any more"
    )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns a lack of descriptors, reported by the system or by libzmq, into the error of `shortage`."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) not in SHORTAGE:
            raise
        raise shortage(what, error) from error
