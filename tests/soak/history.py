"""What happened in a chaos run, as its witnesses tell it: who said what, what was answered, what was shown, what was
done to whom.

Every message says in its text which one it is: `s0.2003:417>r4 130 …` is number 417 of run 2003 of the sender s0, for
r4, 130 bytes long. A *run* is one connection of one process: within it, order is promised. The rest of the text repeats
this label, so that a receiver can tell whether it has been shown the whole, or the true beginning.

All instants are seconds of the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from tests.real.conftest import HEADER

#: Where a message to all is for.
EVERYONE = "*"

_TEXT = re.compile(r"(?P<label>[a-z0-9]+\.\d+:\d+)>(?P<target>[a-z0-9-]+|\*) (?P<size>\d+) ")
#: Where something that was printed begins. No text of a message contains either.
_BEGINNING = re.compile(r"\[inter-session |\{\"msg_id\": ")


class Sent(NamedTuple):
    """A message, noted before it left."""

    label: str  #: what it is called everywhere here: `<sender>.<run>:<number>`
    msg_id: str  #: "" where only the command knew it
    target: str  #: a receiver's name, or EVERYONE
    size_bytes: int
    at_s: float

    @property
    def run(self) -> str:
        """The sender and its run: `s0.2003`."""
        return self.label.partition(":")[0]

    @property
    def sender(self) -> str:
        """The sender without its run: `s0`."""
        return self.label.partition(".")[0]

    @property
    def number(self) -> int:
        """The place of the message in its run."""
        return int(self.label.partition(":")[2])


class Answer(NamedTuple):
    """What its sender was told about a message. None of these: the sender does not know."""

    label: str
    kind: str  #: "delivered", "queued", "tally" or "refused"
    detail: str  #: of queued: away or busy; of refused: the code, and the text
    at_s: float
    delivered: int = 0  #: of a tally
    queued: int = 0
    full: tuple[str, ...] = ()  #: names of the receivers that it is not for


class Shown(NamedTuple):
    """A message that a receiver has been shown. Those of one receiver stand in their order."""

    receiver: str
    label: str  #: "" where the text names none
    msg_id: str
    at_s: float  #: when the harness had read it: some milliseconds late
    pid: int  #: the process that showed it
    by: str  #: "listener" or "inbox"
    queued: bool  #: marked as one that waited
    fault: str  #: "" or what is wrong with the text


class Blow(NamedTuple):
    """Something that was done to a process, or happened to it."""

    at_s: float
    what: str  #: "kill", "stop", "go on", "expire", "close", "cut", "start", "end", …
    whom: str  #: "broker", "s0", "r3", "inbox of r3", …
    pid: int
    detail: str = ""


class History(NamedTuple):
    """All of it."""

    receivers: tuple[str, ...]
    sent: list[Sent]
    answers: list[Answer]
    shown: list[Shown]
    blows: list[Blow]
    own: dict[str, str]  #: sender → the receiver as which it speaks, and which its broadcasts are not for


# --- texts ------------------------------------------------------------------------------------------------------


def make_text(label: str, target: str, size_bytes: int) -> str:
    """A text of `size_bytes` characters, all of them ASCII; longer where that leaves no room for what must be said."""
    head = f"{label}>{target} {size_bytes} "
    if size_bytes <= len(head):
        return f"{label}>{target} 0 "
    filler = f"{label} "
    return head + (filler * ((size_bytes - len(head)) // len(filler) + 1))[: size_bytes - len(head)]


def read_text(text: str, *, cut: bool) -> tuple[str, str, str]:
    """Label, target and fault ("": none) of a text that was shown; `cut`: it may be the beginning only."""
    match = _TEXT.match(text if text.endswith(" ") else f"{text} ")
    if match is None:
        return "", "", "it names no message"
    whole = make_text(match["label"], match["target"], int(match["size"]))
    # The blank at the end of a line is not something that a line has to keep.
    sound = whole.startswith(text) if cut else whole.rstrip() == text.rstrip()
    return match["label"], match["target"], "" if sound else "it is not the text that was sent"


# --- what was printed -------------------------------------------------------------------------------------------


def read_line(receiver: str, line: str, at_s: float, pids: dict[str, int]) -> tuple[list[Shown], list[str]]:
    """What one line of a receiver's output shows; and what in it is no message.

    Listener and inbox write into one pipe, so that their order is known. One that was killed may have left half a line,
    to which the next one's is joined: the pieces are told apart here. Half an object was not shown.
    """
    starts = [match.start() for match in _BEGINNING.finditer(line)]
    if not starts or starts[0]:
        starts.insert(0, 0)
    shown: list[Shown] = []
    rest: list[str] = []
    for start, end in zip(starts, [*starts[1:], len(line)], strict=True):
        piece = line[start:end]
        if (match := HEADER.match(piece)) is not None:
            label, _, fault = read_text(match["text"], cut=match["truncated"] is not None)
            queued = match["queued"] is not None
            shown.append(Shown(receiver, label, match["id"], at_s, pids.get("listener", 0), "listener", queued, fault))
        elif piece.startswith("{") and (item := _object(piece)) is not None:
            label, _, fault = read_text(item["text"], cut=False)
            shown.append(Shown(receiver, label, item["msg_id"], at_s, pids.get("inbox", 0), "inbox", True, fault))
        elif piece and " cont] " not in piece:
            rest.append(piece)
    return shown, rest


def _object(piece: str) -> dict[str, Any] | None:
    try:
        item: dict[str, Any] = json.loads(piece)
    except ValueError:
        return None
    return item if isinstance(item.get("text"), str) and isinstance(item.get("msg_id"), str) else None


# --- what a sender has noted ------------------------------------------------------------------------------------


def read_notes(sender: str, text: str) -> tuple[list[Sent], list[Answer], list[Blow]]:
    """The file of one sending process (`player.Notes`). A last line without an end was cut off by a kill."""
    sent: list[Sent] = []
    answers: list[Answer] = []
    blows: list[Blow] = []
    labels: dict[str, str] = {}
    for line in text.split("\n")[:-1]:
        kind, at, rest = line.split(" ", 2)
        at_s = float(at)
        words = rest.split(" ")
        if kind == "s":
            label, msg_id, target, size = words
            sent.append(Sent(label, msg_id, target, int(size), at_s))
            labels[msg_id] = label
        elif kind == "d":
            answers.append(Answer(labels[words[0]], "delivered", "", at_s))
        elif kind == "q":
            answers.append(Answer(labels[words[0]], "queued", words[1], at_s))
        elif kind == "b":
            msg_id, delivered, queued, full = words
            names = () if full == "-" else tuple(full.split(","))
            answers.append(Answer(labels[msg_id], "tally", "", at_s, int(delivered), int(queued), names))
        elif kind == "e":
            answers.append(Answer(labels[words[0]], "refused", " ".join(words[1:]), at_s))
        else:
            blows.append(Blow(at_s, {"x": "gave up", "o": "connected"}.get(kind, kind), sender, 0, rest))
    return sent, answers, blows
