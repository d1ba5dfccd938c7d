"""Names and labels. Pure: no files, no clock, no state.

**Names** address: sessions, topics and groups share one small alphabet, so that a name can stand in a header, a file
name, a command line and a topic prefix without quoting. **Labels** are for people: any text that is visible and stays
on its line.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

from zmqbus.errors import InvalidLabel, InvalidName
from zmqbus.text.display import sanitise

#: Characters in a name. Part of the contract.
MAX_NAME_CHARS = 40
#: Characters in a label, after NFC. Part of the contract.
MAX_LABEL_CHARS = 60
#: Characters of a project's name in a header: a directory's may be 255 long and would leave little of a line of 500.
MAX_PROJECT_NAME_CHARS = 60
#: What a session is called whose directory has no letter or digit that a name could use.
FALLBACK_NAME = "session"

#: No character stands for more than four in NFD, and composing cannot undo more than that: text longer than this many
#: times a limit is over it in NFC too, and need not be normalised to know.
_NFC_SHRINKS_AT_MOST = 4
#: A refused name or label is quoted up to here.
_QUOTED_CHARS = 60
#: So many candidates, the best by a rough measure, are compared thoroughly: it costs up to 60 us each.
_NEAREST_SHORTLIST = 12
#: Under this similarity (difflib's ratio) a name is not "near".
_NEAREST_RATIO = 0.5

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_SESSION_ID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
#: Cc, Cf, Cs, Co, and the separators; see check_label about Cn.
_NOT_IN_LABELS = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"))


def check_name(name: str, what: str = "name") -> str:
    """`name`, if it is a valid name of a session, topic or group (`what` says which); otherwise raises InvalidName."""
    if _NAME.fullmatch(name):
        if what == "name" and is_session_id(name):  # guards: sessions [off]
            raise InvalidName(f"invalid name {_quoted(name)}: it has the form of a session id; choose another one")
        return name
    fitting = _slug(sanitise(name, _QUOTED_CHARS))
    hint = f", for example {fitting}" if fitting else ""
    raise InvalidName(
        f"invalid {what} {_quoted(name)}: use 1 to {MAX_NAME_CHARS} lower-case letters, digits and '-', "
        f"beginning with a letter or digit{hint}"
    )


def is_session_id(text: str) -> bool:
    """Whether this has the form of a session id (a UUID, in lower case), which no session's name may have: a target is
    looked for among the ids first, so an id of the form of a name would get the mail for that name."""
    return len(text) == 36 and re.fullmatch(_SESSION_ID, text) is not None


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
