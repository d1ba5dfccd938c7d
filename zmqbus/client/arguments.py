"""Checks of the arguments of the Python API.

A call with a bad argument raises an error that names the argument and says what it must be. Unchecked, the error would
come from the code that meets the value first, perhaps in another thread; or there would be none: `scatter("auth", …)`
would ask a, u, t and h.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterable
from typing import Any

from zmqbus.errors import InvalidArgument, InvalidLabel, InvalidName
from zmqbus.text.display import sanitise
from zmqbus.wire import naming
from zmqbus.wire.header import AGENT_STATES, detail_of

#: Characters of a value that an error shows.
MAX_SHOWN = 60
#: The longest wait that threads support: 292 years on most systems, 49 days on some.
MAX_S = threading.TIMEOUT_MAX


def shown(value: object) -> str:
    """Formats a value for an error: shortened, with its type, and safe even if its `repr` raises."""
    try:
        text = repr(value)
    except BaseException:  # the value's own code
        text = "a value that cannot be shown"
    if len(text) > MAX_SHOWN:
        text = f"{text[:MAX_SHOWN]}…"
    return f"{sanitise(text, MAX_SHOWN + 1)} ({type(value).__name__})"


def agent_state(state: object, detail: object) -> tuple[str, str]:
    """Returns a state of an agent and what it waits for, in one line. Raises `InvalidArgument`."""
    if not isinstance(state, str) or state not in AGENT_STATES:
        raise InvalidArgument(f"a state is one of {', '.join(AGENT_STATES)}, not {shown(state)}")
    if not isinstance(detail, str):
        raise InvalidArgument(f"detail is a text, not {shown(detail)}")
    return state, detail_of(detail)


def seconds(value: object, name: str = "timeout") -> float:
    """Returns a number of seconds, 0 or more, and at most what a thread can wait. Raises `InvalidArgument`."""
    if isinstance(value, float) and value >= 0.0:  # not NaN, which compares false
        return min(value, MAX_S)
    number = _number(value, name)
    if number < 0:
        raise InvalidArgument(f"{name} is a number of seconds, 0 or more, not {shown(value)}")
    return number


def seconds_or_none(value: object, name: str = "timeout") -> float | None:
    """Returns a number of seconds, 0 or more; None (no limit) for None and for more than a thread can wait. Raises
    `InvalidArgument`."""
    if value is None:
        return None
    number = seconds(value, f"{name}, if it is given,")
    return None if number >= MAX_S else number


def patience_or_none(value: object, name: str = "timeout") -> float | None:
    """Returns how long to wait for something that may be there already, as the standard library has it: a negative
    number, such as the time left until a deadline, is 0. Otherwise as `seconds_or_none`."""
    if value is None:
        return None
    number = max(0.0, _number(value, f"{name}, if it is given,"))
    return None if number >= MAX_S else number


def _number(value: object, name: str) -> float:
    number = math.nan
    if not isinstance(value, bool) and hasattr(type(value), "__float__"):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            pass
    if math.isnan(number):
        raise InvalidArgument(f"{name} is a number of seconds, not {shown(value)}")
    return min(number, MAX_S)


def flag(value: object, name: str) -> bool:
    """Returns True or False. Anything else raises `InvalidArgument`: a text like "no" would count as true."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name} is True or False, not {shown(value)}")
    return value


def name(value: object, what: str = "name") -> str:
    """Returns the name of a session, topic or group. Raises `InvalidName`."""
    if not isinstance(value, str):
        raise InvalidName(f"a {what} is text, not {shown(value)}")
    return naming.check_name(value) if what == "name" else naming.check_name(value, what)


def names(value: object, what: str, also: Collection[str] = ()) -> tuple[str, ...]:
    """Returns the names of topics or groups, from one name or several; those of `also` need not be valid.

    Raises `InvalidName`, `InvalidArgument`.
    """
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, Iterable):
        raise InvalidArgument(f"{what} is a name, or several in a list, not {shown(value)}")
    return tuple(one if one in also else name(one, what) for one in listed)


def label(value: object) -> str | None:
    """Returns a label, None for None and for "". Raises `InvalidLabel`."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidLabel(f"a label is text, not {shown(value)}")
    return naming.check_label(value) or None


def port(value: object) -> int | None:
    """Returns a port, or None. Raises `InvalidArgument`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65_536):
        raise InvalidArgument(f"port is a number from 1 to 65535, not {shown(value)}")
    return value


def message_id(value: object, name: str = "reply_to") -> str | None:
    """Returns the id of a message, or None. Raises `InvalidArgument`."""
    if value is not None and not isinstance(value, str):
        raise InvalidArgument(f"{name} is the id of a message (its msg_id), not {shown(value)}")
    return value


def targets(value: object) -> list[Any]:
    """Returns several targets in a list. Raises `InvalidArgument`."""
    if isinstance(value, str):
        raise InvalidArgument(
            f"targets is a list of names, not the text {shown(value)}; ask one with request(), or give a list of one"
        )
    if not isinstance(value, Iterable):
        raise InvalidArgument(f"targets is a list of names, not {shown(value)}")
    return list(value)


def futures(value: Any) -> Any:
    """Returns an iterable of futures. Raises `InvalidArgument`."""
    if not isinstance(value, Iterable):
        raise InvalidArgument(f"futures is a list of futures, not {shown(value)}")
    return value


def items(value: object, *kinds: type) -> Any:
    """Returns an iterable of bodies, or an instance of one of `kinds`. Raises `InvalidArgument`, also for a single text
    or bytes, which would be split into characters or numbers."""
    if isinstance(value, str | bytes | bytearray | memoryview):
        raise InvalidArgument(
            f"items are several bodies, not the one {shown(value)}; send that with request(), or give a list of one"
        )
    if not isinstance(value, (Iterable, *kinds)) and not hasattr(type(value), "__getitem__"):
        raise InvalidArgument(f"items are several bodies, in a list or made one by one, not {shown(value)}")
    return value


def count(value: object, name: str) -> int:
    """Returns a number, 1 or more. Raises `InvalidArgument`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(f"{name} is a number, at least 1, not {shown(value)}")
    return value
