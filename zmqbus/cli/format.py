"""Messages as lines for people, for `log` and `watch`; times as people give them; a pause that notices a closed output.

A message is one line whatever it contains: `display.sanitise` removes terminal controls and invisible characters. At a
terminal it is also no wider than that; a line that is cut ends with `…`.
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

#: Seconds in each unit of a duration.
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[smhd])+")
_PART = re.compile(r"([0-9.]+)([smhd])")
#: Terminals count as at least this wide: a narrower line would show nothing but its time.
MIN_WIDTH = 40
#: The width of a terminal that does not tell it.
DEFAULT_WIDTH = 80
#: Characters shown before a match that would otherwise be cut off.
LEAD_CHARS = 24
#: A character takes no column, one or two. This many characters for each column fill a line.
_SHOWN_CHARS_A_COLUMN = 2


def since(text: str, now_ts: float) -> float:
    """The time that `2h`, `1d12h` or an ISO time means, in s since 1970. Raises ValueError that names the forms."""
    if _DURATION.fullmatch(text):
        return now_ts - sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    iso = text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text
    try:
        return datetime.datetime.fromisoformat(iso).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"invalid time '{sanitise(text, 40)}'; give an age such as 90s, 30m, 2h or 7d, or a time such as "
            "2026-01-31, 2026-01-31T09:30 (here) or 2026-01-31T09:30Z"
        ) from None


def width_of_terminal() -> int | None:
    """The columns of the terminal on standard output; None: it is not a terminal."""
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
    """Local time; `short` omits today's date, and the year."""
    then = time.localtime(ts)
    if not short:
        return time.strftime("%Y-%m-%d %H:%M:%S", then)
    today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if today else "%m-%d %H:%M:%S", then)


def target(entry: Entry) -> str:
    """The receiver of a message, as it is shown."""
    if entry.to.startswith("%"):
        return f"%{project_name(entry.to[1:])}"
    return sanitise(entry.to, 60)


def heading(entry: Entry, *, short: bool) -> str:
    """The part of a line before the text of the message."""
    answers = f" re={sanitise(entry.reply_to, 12)}" if entry.reply_to else ""
    work = "" if entry.kind in ("message", "broadcast") else f" {sanitise(entry.kind, 12)}"
    return (
        f"{clock(entry.ts, short=short)} {sanitise(entry.msg_id, 12)} "
        f"{sanitise(entry.from_name, 60)} → {target(entry)}{work}{answers}: "
    )


def line_of(
    entry: Entry, load: Callable[[Entry], str], width: int | None, pattern: re.Pattern[str] | None = None
) -> tuple[str, bool]:
    """A message as one line for people, and whether it was cut.

    `load` reads the whole text of an entry. It is called only where the line needs that: where it is unbounded, or the
    match of `pattern` is not in the entry's head.
    """
    head = heading(entry, short=width is not None)
    if width is None:
        return head + sanitise(entry.head if entry.whole else load(entry)), False
    room = max(width - columns(head), MIN_WIDTH // 2)
    chars = _SHOWN_CHARS_A_COLUMN * room
    text = sanitise(entry.head, chars)
    whole = entry.whole and len(entry.head) <= chars
    found = pattern.search(text) if pattern is not None else None
    if pattern is not None and (found is None or found.end() > room):
        full = entry.head if entry.whole else load(entry)
        match = pattern.search(full)
        if match is not None and match.start() > LEAD_CHARS and match.end() > room:
            text, whole = "…" + sanitise(full[match.start() - LEAD_CHARS :], chars), False
    shown = fit(text, room)
    if shown == text and not whole:
        shown = fit(text + " …", room)
    return head + shown, shown != text or not whole


def pause(seconds: float) -> bool:
    """Waits; returns True at once when standard output has lost its reader: without a write nothing else shows it."""
    poller = select.poll()
    try:
        poller.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # not a file: a substitute in a test
        time.sleep(seconds)
        return False
    return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poller.poll(seconds * 1000))
