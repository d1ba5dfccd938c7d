"""The arguments of the Python API, checked where they come in.

An error names the argument and what it has to be, and is raised by the call that has it. Unchecked, it would be one of
whatever code meets it first, in another thread perhaps, or none: `scatter("auth", …)` would ask a, u, t and h.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Any

from zmqbus.errors import InvalidArgument, InvalidLabel, InvalidName
from zmqbus.text.display import sanitise
from zmqbus.wire import naming

#: Characters of a value that an error shows.
MAX_SHOWN = 60
#: The longest wait that threads can: 292 years on most systems, and 49 days on some.
MAX_S = threading.TIMEOUT_MAX


def shown(value: object) -> str:
    """A value in an error: shortened, with its type, and without trusting its code."""
    try:
        text = repr(value)
    except BaseException:  # its own code
        text = "a value that cannot be shown"
    if len(text) > MAX_SHOWN:
        text = f"{text[:MAX_SHOWN]}…"
    return f"{sanitise(text, MAX_SHOWN + 1)} ({type(value).__name__})"


def seconds(value: object, what: str = "timeout") -> float:
    """A number of seconds; what is endless is as long as a thread can wait."""
    if value.__class__ is float and value == value:
        return min(value, MAX_S)
    if isinstance(value, bool) or not hasattr(type(value), "__float__"):
        raise InvalidArgument(f"{what} is a number of seconds, not {shown(value)}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise InvalidArgument(f"{what} is a number of seconds, not {shown(value)}")
    return min(number, MAX_S)


def seconds_or_none(value: object, what: str = "timeout") -> float | None:
    """Likewise, or None: without an end. So is what no thread could wait for."""
    if value is None:
        return None
    number = seconds(value, f"{what}, if it is given,")
    return None if number >= MAX_S else number


def flag(value: object, what: str) -> bool:
    """True or False: a text like "no" would count as true."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"{what} is True or False, not {shown(value)}")
    return value


def name(value: object, what: str = "name") -> str:
    """A name of a session, topic or group. Raises `InvalidName`."""
    if not isinstance(value, str):
        raise InvalidName(f"a {what} is text, not {shown(value)}")
    return naming.check_name(value) if what == "name" else naming.check_name(value, what)


def names(value: object, what: str) -> tuple[str, ...]:
    """Names of topics or groups: one, or several."""
    if isinstance(value, str):
        return (name(value, what),)
    if not isinstance(value, Iterable):
        raise InvalidArgument(f"{what} is a name, or several in a list, not {shown(value)}")
    return tuple(name(one, what) for one in value)


def label(value: object) -> str | None:
    """A label, None where there is none. Raises `InvalidLabel`."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidLabel(f"a label is text, not {shown(value)}")
    return naming.check_label(value) or None


def port(value: object) -> int | None:
    """A port, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65_536):
        raise InvalidArgument(f"port is a number from 1 to 65535, not {shown(value)}")
    return value


def message_id(value: object, what: str = "reply_to") -> str | None:
    """The id of a message, or None."""
    if value is not None and not isinstance(value, str):
        raise InvalidArgument(f"{what} is the id of a message (its msg_id), not {shown(value)}")
    return value


def targets(value: object) -> list[Any]:
    """Several targets, in a list."""
    if isinstance(value, str):
        raise InvalidArgument(
            f"targets is a list of names, not the text {shown(value)}; ask one with request(), or give a list of one"
        )
    if not isinstance(value, Iterable):
        raise InvalidArgument(f"targets is a list of names, not {shown(value)}")
    return list(value)


def futures(value: Any) -> Any:
    """Futures to wait for, in a list."""
    if not isinstance(value, Iterable):
        raise InvalidArgument(f"futures is a list of futures, not {shown(value)}")
    return value


def items(value: object, *kinds: type) -> Any:
    """Bodies, one after the other. A text or bytes would be taken apart into characters or numbers."""
    if isinstance(value, str | bytes | bytearray | memoryview):
        raise InvalidArgument(
            f"items are several bodies, not the one {shown(value)}; send that with request(), or give a list of one"
        )
    if not isinstance(value, (Iterable, *kinds)) and not hasattr(type(value), "__getitem__"):
        raise InvalidArgument(f"items are several bodies, in a list or made one by one, not {shown(value)}")
    return value


def count(value: object, what: str) -> int:
    """A number, 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(f"{what} is a number, at least 1, not {shown(value)}")
    return value
