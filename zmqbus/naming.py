"""Names, labels, and text made safe to show. Pure: no files, no clock, no state.

**Names** address: sessions, topics and groups share one small alphabet, so that a name can stand in a header, a file
name, a command line and a topic prefix without quoting. **Labels** are for people: any text that is visible and stays
on its line.

**Display.** What a peer wrote is shown to an agent in one line that begins with a header of ours. `sanitise` is what
stands between the two. Its result is a single line, drives no terminal, and holds nothing that a person who looks at
what the agent reads would not see, or that would make what they see run in another order. It removes

* escape sequences: CSI, the strings (OSC, DCS, SOS, PM, APC) with what they carry, and the short ones. A string that
  is never ended loses its introducer only: a stray escape must not swallow the rest of a message;
* control characters, after line ends have become `↵` and tabs spaces;
* format characters (bidi overrides, zero-width ones, tags) and those other characters that are defined to be invisible,
  with two exceptions that ordinary writing needs: a joiner between two visible characters outside ASCII (Persian,
  Indic, emoji families) and a variation selector after a visible character. One of each at most in a place, so
  neither can carry a text of its own;
* surrogates, which cannot be printed, and private-use characters, which mean whatever some font says.

The table of invisible characters is written out rather than asked of `unicodedata`, so that every Python version shows
the same message alike; a test compares it with the interpreter's own.
"""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Iterable

from zmqbus.errors import InvalidLabel, InvalidName

#: Characters in a name. Part of the contract.
MAX_NAME_CHARS = 40
#: Characters in a label, after NFC. Part of the contract.
MAX_LABEL_CHARS = 60
#: Characters of a project's name in a header: a directory's may be 255 long and would leave little of a line of 500.
MAX_PROJECT_NAME_CHARS = 60
#: What a session is called whose directory has no letter or digit that a name could use.
FALLBACK_NAME = "session"
#: Stands for a line end in what is shown.
LINE_END = "↵"

#: No character stands for more than four in NFD, and composing cannot undo more than that: text longer than this many
#: times a limit is over it in NFC too, and need not be normalised to know.
_NFC_SHRINKS_AT_MOST = 4
#: A refused name or label is quoted up to here.
_QUOTED_CHARS = 60
#: So many candidates, the best by a rough measure, are compared thoroughly: it costs up to 60 us each.
_NEAREST_SHORTLIST = 12
#: Under this similarity (difflib's ratio) a name is not "near".
_NEAREST_RATIO = 0.5
#: A shown token is matched in pieces of at most so many, so that a match neither scans nor stacks up without bound.
_PIECE_CHARS = 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_SESSION_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
#: Cc, Cf, Cs, Co, and the separators; see check_label about Cn.
_NOT_IN_LABELS = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"))


def check_name(name: str, what: str = "name") -> str:
    """`name`, if it is a valid name of a session, topic or group (`what` says which); otherwise raises InvalidName."""
    if _NAME.fullmatch(name):
        if what == "name" and is_session_id(name):
            raise InvalidName(f"invalid name {_quoted(name)}: it has the form of a session id; choose another one")
        return name
    fitting = _slug(name[:_QUOTED_CHARS])
    hint = f", for example {fitting}" if fitting else ""
    raise InvalidName(
        f"invalid {what} {_quoted(name)}: use 1 to {MAX_NAME_CHARS} lower-case letters, digits and '-', "
        f"beginning with a letter or digit{hint}"
    )


def is_session_id(text: str) -> bool:
    """Whether this has the form of a session id (a UUID, in lower case), which no session's name may have: a target is
    looked for among the ids first, so an id of the form of a name would get the mail for that name."""
    return _SESSION_ID.fullmatch(text) is not None


def check_label(label: str) -> str:
    """`label` in NFC, if it is a valid label; otherwise raises InvalidLabel. The empty label is valid: it means none.

    Characters that this interpreter's Unicode does not know (Cn) are let through: most are the newer emoji, and a
    label must not be valid on one Python version and invalid on the next.
    """
    if len(label) <= MAX_LABEL_CHARS * _NFC_SHRINKS_AT_MOST:
        text = unicodedata.normalize("NFC", label)
        if len(text) <= MAX_LABEL_CHARS:
            for character in text:
                if character != " " and unicodedata.category(character) in _NOT_IN_LABELS:
                    raise InvalidLabel(
                        f"invalid label {_quoted(label)}: it holds U+{ord(character):04X}; "
                        "leave out control, format, private-use and separator characters other than the plain space"
                    )
            return text
    raise InvalidLabel(f"invalid label {_quoted(label)}: shorten it to {MAX_LABEL_CHARS} characters")


def derive_name(cwd: str) -> str:
    """A valid name for a session that works in `cwd`, after the last part of its path."""
    name = _slug(os.path.basename(cwd.rstrip("/"))) or FALLBACK_NAME
    return f"dir-{name}" if is_session_id(name) else name  # which has 36 characters: there is room


def next_name(name: str, n: int) -> str:
    """`<name>-<n>`, with `name` (a valid one) cut so that the result is valid too. `n` is 0 or more."""
    suffix = f"-{n}"
    return name[: MAX_NAME_CHARS - len(suffix)] + suffix


def nearest(name: str, candidates: Iterable[str], limit: int = 3) -> list[str]:
    """At most `limit` of `candidates` that `name` may have been meant for, the likeliest first; none if none is near.

    Near are those that contain `name` or are contained in it, then those spelled alike. Made for a thousand candidates
    while others wait: all of them get a rough look, and only the best few a thorough one.
    """
    wanted = name[: 2 * MAX_NAME_CHARS].lower()
    others = [candidate for candidate in dict.fromkeys(candidates) if candidate]
    if not wanted or limit < 1:
        return []
    found = [candidate for candidate in others if wanted in candidate or candidate in wanted]
    found.sort(key=lambda candidate: (abs(len(candidate) - len(wanted)), candidate))
    if len(found) >= limit:
        return found[:limit]

    import difflib  # only where there is something to suggest; 1 ms to import

    marked = f"\n{wanted}\n"
    pieces = {marked[at : at + width] for at in range(len(marked) - 1) for width in (1, 2)}

    def roughly(candidate: str) -> float:
        text = f"\n{candidate}\n"
        return sum(piece in text for piece in pieces) / (len(wanted) + len(candidate))

    shortlist = sorted(set(others).difference(found), key=lambda candidate: (-roughly(candidate), candidate))
    alike = difflib.get_close_matches(wanted, shortlist[:_NEAREST_SHORTLIST], limit - len(found), _NEAREST_RATIO)
    return found + alike


def project_name(project: str) -> str:
    """What a project is called in a header field: the last part of its path, one word without `]` and quotes."""
    name = os.path.basename(project.rstrip("/"))
    if not name:
        return "root"
    word = re.sub(r'[\s"\[\]]', "_", sanitise(name, MAX_PROJECT_NAME_CHARS))
    return sanitise(word, MAX_PROJECT_NAME_CHARS) or "unnamed"  # a joiner may have lost what it joined


def _slug(text: str) -> str:
    """What remains of `text` as a name; empty when nothing does."""
    # Case folding first, for what it spells out ("ß" is "ss"); then marks come off their letters, and are dropped.
    folded = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(character for character in folded if not unicodedata.combining(character)).lower()
    return _NOT_IN_NAMES.sub("-", plain).strip("-")[:MAX_NAME_CHARS].rstrip("-")


def _quoted(text: str) -> str:
    shown = sanitise(text, _QUOTED_CHARS + 1)
    return f"'{shown}'" if len(shown) <= _QUOTED_CHARS else f"'{shown[: _QUOTED_CHARS - 1]}…'"


# --- Display ---

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
#: Everything that may have to go: none of these is ever shown, joiners and selectors apart, where they belong.
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
#: One stretch of what is not shown. It begins with a set, and tells by looking back what it has met: re looks for a set
#: many times faster than for a choice of patterns.
_HIDDEN = (
    f"[{_SUSPECT}]"
    "(?:"
    f"(?<=\\x1b)(?:\\[{_CSI}|[PX\\]^_]{_STRING}|[ -/]*[0-~]|)"  # the last but one: the short, and the incomplete
    f"|(?<=\\x9b){_CSI}"
    f"|(?<=[\\x90\\x98\\x9d-\\x9f]){_STRING}"
    f"|(?<![{_JOINERS}{_SELECTORS}])"  # any other but these two kinds goes as it is
    f"|(?<=[{_JOINERS}])(?:(?<!{_WIDE}[{_JOINERS}])(?<!{_WIDE}\\ufe0f[{_JOINERS}])|(?!{_WIDE}))"
    f"|(?<=[{_SELECTORS}])(?<!{_VISIBLE}[{_SELECTORS}])"
    ")"
    # After something hidden there is nothing to join or to vary.
    f"[{_CONTROLS}{_INVISIBLE}{_JOINERS}{_SELECTORS}]*"
)


# Compiled when first needed: it takes some ms, and most of what is shown is plain ASCII.
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

    The same as `sanitise(text)[:limit]`, but reads no further than it has to: the head of 10 MiB of text costs what is
    shown of it. Showing a result again changes nothing, except that a joiner which a `limit` left at the end would go.
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
