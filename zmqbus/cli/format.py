"""What `log` and `watch` share: messages as lines for people, times as people give them, and an output that may end.

A line for people is one line whatever the message holds: `display.sanitise` takes out what drives a terminal or cannot
be seen. At a terminal it is also no wider than that; a cut one ends with `…`.
"""

from __future__ import annotations

import datetime
import os
import re
import select
import sys
import time
from collections.abc import Callable

from zmqbus.journal.filter import Entry
from zmqbus.text.display import columns, fit, sanitise
from zmqbus.wire.naming import project_name

#: Seconds in the units that a duration is given in.
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[smhd])+")
_PART = re.compile(r"([0-9.]+)([smhd])")
#: No terminal is narrower: a line would hold nothing but its time.
MIN_WIDTH = 40
#: Where nobody knows the width.
DEFAULT_WIDTH = 80
#: So much of a text is shown in front of what was looked for, where that would else be cut off.
LEAD_CHARS = 24
#: A character takes one column at least or none; so many of a text are enough for a line.
_SHOWN_CHARS_A_COLUMN = 2


def since(text: str, now_ts: float) -> float:
    """The time (s since 1970) that `2h`, `1d12h` or an ISO time means. Raises ValueError with what it may be."""
    if _DURATION.fullmatch(text):
        return now_ts - sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    iso = text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text
    try:
        return datetime.datetime.fromisoformat(iso).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"'{sanitise(text, 40)}' is no time; give an age such as 90s, 30m, 2h or 7d, or a time such as "
            "2026-01-31, 2026-01-31T09:30 (here) or 2026-01-31T09:30Z"
        ) from None


def width_of_terminal() -> int | None:
    """Columns of the terminal that standard output is; None: it is none."""
    try:
        if not sys.stdout.isatty():
            return None
        columns = os.environ.get("COLUMNS", "")
        return max(
            MIN_WIDTH, int(columns) if columns.isdecimal() else os.get_terminal_size(sys.stdout.fileno()).columns
        )
    except (OSError, ValueError):
        return DEFAULT_WIDTH


def clock(ts: float, *, short: bool) -> str:
    """Local time; `short` leaves out a date of today, and the year."""
    then = time.localtime(ts)
    if not short:
        return time.strftime("%Y-%m-%d %H:%M:%S", then)
    today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if today else "%m-%d %H:%M:%S", then)


def target(entry: Entry) -> str:
    """Whom a message is addressed to, as it is shown."""
    if entry.to.startswith("%"):
        return f"%{project_name(entry.to[1:])}"
    return sanitise(entry.to, 60)


def heading(entry: Entry, *, short: bool) -> str:
    """What stands before the text of a message."""
    answers = f" re={sanitise(entry.reply_to, 12)}" if entry.reply_to else ""
    work = "" if entry.kind in ("message", "broadcast") else f" {sanitise(entry.kind, 12)}"
    return (
        f"{clock(entry.ts, short=short)} {sanitise(entry.msg_id, 12)} "
        f"{sanitise(entry.from_name, 60)} → {target(entry)}{work}{answers}: "
    )


def line_of(
    entry: Entry, load: Callable[[Entry], str], width: int | None, looked_for: re.Pattern[str] | None = None
) -> tuple[str, bool]:
    """A message as one line for people, and whether it was cut.

    `load` gives the whole text of an entry; it is asked for that only where the line needs it: where the line has no
    bound, or what was looked for is further on.
    """
    head = heading(entry, short=width is not None)
    if width is None:
        return head + sanitise(entry.head if entry.whole else load(entry)), False
    room = max(width - columns(head), MIN_WIDTH // 2)
    chars = _SHOWN_CHARS_A_COLUMN * room
    text = sanitise(entry.head, chars)
    whole = entry.whole and len(entry.head) <= chars
    found = looked_for.search(text) if looked_for is not None else None
    if looked_for is not None and (found is None or found.end() > room):
        full = entry.head if entry.whole else load(entry)
        match = looked_for.search(full)
        if match is not None and match.start() > LEAD_CHARS and match.end() > room:
            text, whole = "…" + sanitise(full[match.start() - LEAD_CHARS :], chars), False
    shown = fit(text, room)
    if shown == text and not whole:
        shown = fit(text + " …", room)
    return head + shown, shown != text or not whole


def pause(seconds: float) -> bool:
    """Waits; True at once when whoever reads standard output has gone: nothing may ever be written that would tell."""
    poller = select.poll()
    try:
        poller.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no file: a test's stand-in
        time.sleep(seconds)
        return False
    return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poller.poll(seconds * 1000))
