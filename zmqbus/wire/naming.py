"""Checks, derives and suggests names and labels. Pure: no files, no clock, no state.

**Names** are addresses: sessions, topics and groups share one small alphabet, so that a name needs no quoting in a
header, a file name, a command line or a topic prefix. **Labels** are for people: any visible text on one line.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

from zmqbus.errors import InvalidLabel, InvalidName
from zmqbus.text.display import sanitise
from zmqbus.wire.header import SYSTEM_TOPICS

#: Characters in a name. Part of the contract.
MAX_NAME_CHARS = 40
#: Characters in a label, after NFC. Part of the contract.
MAX_LABEL_CHARS = 60
#: Characters of a project's name in a header: a directory's may be 255 long and would leave little of a line of 500.
MAX_PROJECT_NAME_CHARS = 60
#: Name of a session whose directory has no letter or digit that a name could use.
FALLBACK_NAME = "session"

#: NFD decomposes a character into at most four, and NFC cannot undo more than that: text longer than this many times a
#: limit exceeds it in NFC too, and need not be normalised.
_NFC_SHRINKS_AT_MOST = 4
#: Characters of a refused name or label that its error quotes.
_QUOTED_CHARS = 60
#: Candidates, the best by a rough measure, that are compared thoroughly: that costs up to 60 us each.
_NEAREST_SHORTLIST = 12
#: Least similarity (difflib's ratio) of a suggested name.
_NEAREST_RATIO = 0.5

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_SESSION_ID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
#: Control, format, surrogate and private-use characters, and separators; see check_label about Cn.
_NOT_IN_LABELS = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"))


def check_topic(name: str) -> str:
    """Returns the name of a topic that a session may join: any valid one, or one of the bus's own (`sys.state`)."""
    return name if name in SYSTEM_TOPICS else check_name(name, "topic")


def check_name(name: str, what: str = "name") -> str:
    """Returns `name` if it is a valid name of a session, topic or group (`what`); otherwise raises InvalidName."""
    if _NAME.fullmatch(name):
        if what == "name" and is_session_id(name):  # guards: sessions [off]
            raise InvalidName(f"invalid name {_quoted(name)}: it has the form of a session id; choose another one")
        return name
    if what == "topic" and name in SYSTEM_TOPICS:
        raise InvalidName(f"only the bus itself writes to {name}; join it to hear of the sessions")
    fitting = _slug(sanitise(name, _QUOTED_CHARS))
    hint = f", for example {fitting}" if fitting else ""
    raise InvalidName(
        f"invalid {what} {_quoted(name)}: use 1 to {MAX_NAME_CHARS} lower-case letters, digits and '-', "
        f"beginning with a letter or digit{hint}"
    )


def is_session_id(text: str) -> bool:
    """Whether a text has the form of a session id: a UUID in lower case.

    No session's name may have it: targets are looked up among the ids first, so such a name would lose its mail to the
    session of that id.
    """
    return len(text) == 36 and re.fullmatch(_SESSION_ID, text) is not None


def check_label(label: str) -> str:
    """Returns `label` in NFC if it is valid; otherwise raises InvalidLabel. The empty label is valid: it means none.

    Characters unknown to this interpreter's Unicode (Cn) are allowed: most are newer emoji, and a label must not be
    valid on one Python version and invalid on another.
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
    """Returns a valid name for a session that works in `cwd`, made from the last part of its path."""
    name = _slug(os.path.basename(cwd.rstrip("/"))) or FALLBACK_NAME
    return f"dir-{name}" if is_session_id(name) else name  # an id has 36 characters, so there is room


def next_name(name: str, n: int) -> str:
    """Returns `<name>-<n>`, with the valid name shortened so that the result is valid too. `n` is 0 or more."""
    suffix = f"-{n}"
    return name[: MAX_NAME_CHARS - len(suffix)] + suffix


def nearest(name: str, candidates: Iterable[str], limit: int = 3) -> list[str]:
    """Returns at most `limit` of `candidates` that are similar to `name`, the likeliest first.

    First come those that contain `name` or are contained in it, then similar spellings. The cost stays small for a
    thousand candidates: all are compared roughly, and only the best few thoroughly.
    """
    wanted = name[: 2 * MAX_NAME_CHARS].lower()
    others = [candidate for candidate in dict.fromkeys(candidates) if candidate]
    if not wanted or limit < 1:
        return []
    found = [candidate for candidate in others if wanted in candidate or candidate in wanted]
    found.sort(key=lambda candidate: (abs(len(candidate) - len(wanted)), candidate))
    if len(found) >= limit:
        return found[:limit]

    import difflib  # imported only if needed: it takes 1 ms

    marked = f"\n{wanted}\n"
    pieces = {marked[at : at + width] for at in range(len(marked) - 1) for width in (1, 2)}

    def roughly(candidate: str) -> float:
        text = f"\n{candidate}\n"
        return sum(piece in text for piece in pieces) / (len(wanted) + len(candidate))

    shortlist = sorted(set(others).difference(found), key=lambda candidate: (-roughly(candidate), candidate))
    alike = difflib.get_close_matches(wanted, shortlist[:_NEAREST_SHORTLIST], limit - len(found), _NEAREST_RATIO)
    return found + alike


def project_name(project: str) -> str:
    """Returns a project's name for a header field: the last part of its path, one word without `]` and quotes."""
    name = os.path.basename(project.rstrip("/"))
    if not name:
        return "root"
    word = re.sub(r'[\s"\[\]]', "_", sanitise(name, MAX_PROJECT_NAME_CHARS))
    return sanitise(word, MAX_PROJECT_NAME_CHARS) or "unnamed"  # shortening may leave a joiner without its neighbours


def _slug(text: str) -> str:
    """Reduces `text` to the characters of a name; empty if none remains."""
    # First case folding, which expands letters ("ß" to "ss"); then marks are separated from their letters, and dropped.
    folded = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(character for character in folded if not unicodedata.combining(character)).lower()
    return _NOT_IN_NAMES.sub("-", plain).strip("-")[:MAX_NAME_CHARS].rstrip("-")


def _quoted(text: str) -> str:
    shown = sanitise(text, _QUOTED_CHARS + 1)
    return f"'{shown}'" if len(shown) <= _QUOTED_CHARS else f"'{shown[: _QUOTED_CHARS - 1]}…'"
