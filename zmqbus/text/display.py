"""Text made safe to show: the only place that decides which part of a text terminals, agents and people see.

A peer's text is shown to an agent in one line that begins with a header of ours. `sanitise` returns a single line that
drives no terminal and holds no character that a person who reads the same line would not see, or that would change the
order of what they see. It removes

* escape sequences: CSI, the strings (OSC, DCS, SOS, PM, APC) with what they carry, and the short ones. A string that
  is never ended loses its introducer only: a stray escape must not swallow the rest of a message;
* control characters, after line ends have become `↵` and tabs spaces;
* format characters (bidi overrides, zero-width ones, tags) and the other characters that are defined to be invisible,
  with two exceptions that ordinary writing needs: a joiner between two visible characters outside ASCII (Persian,
  Indic, emoji families) and a variation selector after a visible character. One of each at most in a place, so
  neither can carry a text of its own;
* surrogates, which cannot be printed, and private-use characters, whose meaning depends on the font.

The table of invisible characters is written out instead of taken from `unicodedata`, so that every Python version shows
a message alike; a test compares it with the interpreter's own.

The other functions apply `sanitise`, or the same table, to other shapes of text:

* `sanitise_lines` and `as_block` return several lines, each of them safe.
* `to_json` loses nothing: unsafe characters become JSON escapes (`\\u001b`, `\\u202e`, `\\u2028`).
* `columns`, `fit` and `pad` measure safe text as a terminal does, where a character may be two columns wide, or none.

`zmqbus.system.streams` puts the standard streams of every command through it. Pure, and imports nothing of the package,
so that the errors can use it.
"""

from __future__ import annotations

import functools
import re
from typing import Any

#: Shown in place of a line end.
LINE_END = "↵"
#: A line of a text that begins like this could be taken for a notification of the listener.
HEADER = "[inter-session"
#: Indents a line of a text that could be taken for a line of ours.
INDENT = "    "

#: A visible token is matched in pieces of at most this size, so that no match scans or recurses without bound.
_PIECE_CHARS = 1024

#: ESC, and the 8-bit forms of ESC P, ESC X, ESC [, ESC \, ESC ], ESC ^ and ESC _.
_INTRODUCERS = "\\x1b\\x90\\x98\\x9b-\\x9f"
_LINE_ENDS = "\\n\\v\\f\\r\\x85\\u2028\\u2029"
_JOINERS = "\\u200c\\u200d"
_SELECTORS = "\\ufe00-\\ufe0f"
#: Control characters that are neither introducers nor line ends nor the tab.
_CONTROLS = "\\x00-\\x08\\x0e-\\x1a\\x1c-\\x1f\\x7f-\\x84\\x86-\\x8f\\x91-\\x97\\x99\\x9a"
#: Cf without the joiners, Cs, Co, and what Unicode calls "default ignorable", the selectors above apart.
_INVISIBLE = (
    "\\xad\\u034f\\u0600-\\u0605\\u061c\\u06dd\\u070f\\u0890\\u0891\\u08e2\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f"
    "\\u200b\\u200e\\u200f\\u202a-\\u202e\\u2060-\\u206f\\u3164\\ud800-\\uf8ff\\ufeff\\uffa0\\ufff0-\\ufffb"
    "\\U000110bd\\U000110cd\\U00013430-\\U0001343f\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a"
    "\\U000e0000-\\U000e0fff\\U000f0000-\\U0010ffff"
)
#: Characters that are never shown, except joiners and selectors where they belong.
_SUSPECT = _INTRODUCERS + _CONTROLS + _INVISIBLE + _JOINERS + _SELECTORS
#: A visible character outside ASCII; and any visible one. Not `↵`: what stands next to it must be treated alike before
#: and after a line end has become one, or showing a text twice would change it.
_WIDE = f"[^\\x00-\\x9f{_SUSPECT}{_LINE_ENDS}{LINE_END}]"
_VISIBLE = f"[^\\x00-\\x20\\x80-\\x9f{_SUSPECT}{_LINE_ENDS}{LINE_END}]"

#: Rest of a CSI sequence after its introducer: parameters, intermediates, final.
_CSI = "[0-?]*[ -/]*[@-~]"
#: Rest of a string: what it carries, which the next introducer ends whatever happens, as it does in terminals, and its
#: terminator, BEL or ST. For that first reason no two scans for a terminator overlap, and time stays linear.
_STRING = f"[^\\x07{_INTRODUCERS}]*(?:\\x07|\\x1b\\\\|\\x9c)"
#: One stretch of hidden characters. It begins with a set and looks back to see which kind it has met: re finds a set
#: many times faster than a choice of patterns.
_HIDDEN = (
    f"[{_SUSPECT}]"
    "(?:"
    f"(?<=\\x1b)(?:\\[{_CSI}|[PX\\]^_]{_STRING}|[ -/]*[0-~]|)"  # the last but one: the short, and the incomplete
    f"|(?<=\\x9b){_CSI}"
    f"|(?<=[\\x90\\x98\\x9d-\\x9f]){_STRING}"
    f"|(?<![{_JOINERS}{_SELECTORS}])"  # any other kind is hidden by itself
    f"|(?<=[{_JOINERS}])(?:(?<!{_WIDE}[{_JOINERS}])(?<!{_WIDE}\\ufe0f[{_JOINERS}])|(?!{_WIDE}))"
    f"|(?<=[{_SELECTORS}])(?<!{_VISIBLE}[{_SELECTORS}])"
    ")"
    # After a hidden character there is nothing to join or to vary.
    f"[{_CONTROLS}{_INVISIBLE}{_JOINERS}{_SELECTORS}]*"
)


# Compiled at first use: it takes some ms, and most texts are plain ASCII.
@functools.cache
def _hidden() -> re.Pattern[str]:
    return re.compile(_HIDDEN)


@functools.cache
def _token() -> re.Pattern[str]:
    """The decisions of `_hidden` one by one from the left, as groups: hidden, line end, tab, shown."""
    return re.compile(
        f"((?:{_HIDDEN}){{1,{_PIECE_CHARS}}})"
        f"|(\\r\\n|[{_LINE_ENDS}])"
        "|(\\t)"
        f"|([^\\t{_LINE_ENDS}{_SUSPECT}]{{1,{_PIECE_CHARS}}}|[{_JOINERS}{_SELECTORS}])"
    )


def sanitise(text: str, limit: int | None = None) -> str:
    """`text` as one line that is safe to show (see the top of this module); at most the first `limit` characters of it.

    The same as `sanitise(text)[:limit]`, but reads no further than necessary, so the head of 10 MiB of text costs no
    more than its own length. Idempotent, except that a joiner which a `limit` left at the end is removed the next time.
    Never raises; takes time in proportion to the text, whatever it is (2 MiB of prose: some 30 ms). `limit` >= 0.
    """
    if limit is not None and limit < len(text):
        head = text[:limit]
        return head if head.isascii() and head.isprintable() else _head(text, limit)
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", LINE_END)
    for line_end in "\n\r\v\f\x85\u2028\u2029":
        text = text.replace(line_end, LINE_END)
    return _hidden().sub("", text).replace("\t", " ")


def _head(text: str, limit: int) -> str:
    match = _token().match
    parts: list[str] = []
    missing, at, end = limit, 0, len(text)
    while missing > 0 and at < end:
        token = match(text, at)
        assert token is not None  # its four alternatives cover every character
        at = token.end()
        kind = token.lastindex
        if kind == 1:
            continue
        part = LINE_END if kind == 2 else " " if kind == 3 else token[4]
        parts.append(part)
        missing -= len(part)
    return "".join(parts)[:limit]


@functools.cache
def _escaped() -> re.Pattern[str]:
    """Characters that `to_json` escapes: all that are never shown, and every line end except the newline."""
    return re.compile(f"[{_SUSPECT}\\v\\f\\r\\x85\\u2028\\u2029]")


def sanitise_lines(text: str) -> list[str]:
    """The lines of a text, each safe to show, with their tabs; at least one line."""
    return ["\t".join(map(sanitise, line.split("\t"))) for line in text.splitlines()] or [""]


#: Line ends of `str.splitlines`.
_LAST = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")


def as_block(text: str) -> str:
    """A text with its lines, safe to show among our own: a line that looks like our header is indented."""
    if text.isascii() and text.isprintable() and not text.startswith(HEADER):
        return text
    # guards: safe output: no body may look like a header [INDENT + line if line.startswith(HEADER) else =>]
    lines = [INDENT + line if line.startswith(HEADER) else line for line in sanitise_lines(text)]
    return "\n".join(lines) + ("\n" if text[-1:] in _LAST else "")


def to_json(value: Any, *, ascii_only: bool = False) -> str:
    """A value as JSON on one line, complete, without characters that drive a terminal or hide.

    `ascii_only`: for an output that takes nothing else.
    """
    import json  # here and below: callers have loaded it, and the errors, which import this module, need none

    text = json.dumps(value, ensure_ascii=ascii_only)
    # guards: safe output [if text.isascii() and text.isprintable() else _escaped().sub(_escape, text) =>]
    return text if text.isascii() and text.isprintable() else _escaped().sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    import json

    return json.dumps(match[0])[1:-1]  # beyond the basic plane that is two escapes, a surrogate each


# --- columns ---


def columns(text: str) -> int:
    """Columns of a sanitised text on a terminal."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def fit(text: str, width: int) -> str:
    """The part of a sanitised text that fits this many columns, with `…` at the end if it was cut."""
    if len(text) <= width and text.isascii():
        return text
    used = 0
    for at, character in enumerate(text):
        used += _columns_of(character)
        if used > width:
            kept = text[:at]
            while kept and columns(kept) > width - 1:
                kept = kept[:-1]
            return kept + "…"
    return text


def pad(text: str, width: int) -> str:
    """A sanitised text, padded with spaces to this many columns."""
    return text + " " * (width - columns(text))


def _columns_of(character: str) -> int:
    import unicodedata  # imported only when needed

    if character.isascii():
        return 1
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
