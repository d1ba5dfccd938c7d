"""The history of a soak run: messages sent, receipts, messages shown, and what was done to the processes.

Each message names itself in its text: `s0.2003:417>r4 130 …` is number 417 of run 2003 of the sender s0, for r4, 130
bytes long. A *run* is one connection of one process: within it, order is promised. The rest of the text repeats the
label, so that the text shown can be checked, or its beginning if it was cut.

All times are seconds of the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from tests.real.conftest import HEADER

#: The target of a broadcast.
EVERYONE = "*"

_TEXT = re.compile(r"(?P<label>[a-z0-9]+\.\d+:\d+)>(?P<target>[a-z0-9-]+|\*) (?P<size>\d+) ")
#: How a line of the listener or an object of the inbox begins. No text of a message contains either.
_BEGINNING = re.compile(r"\[inter-session |\{\"msg_id\": ")


class Sent(NamedTuple):
    """A message, noted before it was sent."""

    label: str  #: `<sender>.<run>:<number>`
    msg_id: str  #: "" if only the command knew it
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
        """The number of the message in its run."""
        return int(self.label.partition(":")[2])


class Answer(NamedTuple):
    """The receipt, tally or refusal that a sender got for a message."""

    label: str
    kind: str  #: "delivered", "queued", "tally" or "refused"
    detail: str  #: for queued: away or busy; for refused: code and text
    at_s: float
    delivered: int = 0  #: for a tally
    queued: int = 0
    full: tuple[str, ...] = ()  #: receivers whose mailboxes were full


class Shown(NamedTuple):
    """A message as a receiver showed it, in the order of that receiver."""

    receiver: str
    label: str  #: "" if the text names no message
    msg_id: str
    at_s: float  #: when the harness had read it, some milliseconds after the write
    pid: int  #: of the process that showed it
    by: str  #: "listener" or "inbox"
    queued: bool  #: whether it was marked `queued=`
    fault: str  #: "" or the fault of the text


class Blow(NamedTuple):
    """An event of a process: something done to it, or its start or end."""

    at_s: float
    what: str  #: "kill", "stop", "go on", "expire", "close", "cut", "start", "end", …
    whom: str  #: "broker", "s0", "r3", "inbox of r3", …
    pid: int
    detail: str = ""


class History(NamedTuple):
    """The whole history of a run."""

    receivers: tuple[str, ...]
    sent: list[Sent]
    answers: list[Answer]
    shown: list[Shown]
    blows: list[Blow]
    own: dict[str, str]  #: sender → the receiver as which it sends, and which its broadcasts do not reach


# --- texts ------------------------------------------------------------------------------------------------------


def make_text(label: str, target: str, size_bytes: int) -> str:
    """Returns an ASCII text of `size_bytes` characters, or a longer one if the label does not fit."""
    head = f"{label}>{target} {size_bytes} "
    if size_bytes <= len(head):
        return f"{label}>{target} 0 "
    filler = f"{label} "
    return head + (filler * ((size_bytes - len(head)) // len(filler) + 1))[: size_bytes - len(head)]


def read_text(text: str, *, cut: bool) -> tuple[str, str, str]:
    """Returns label, target and fault ("": none) of a text; `cut`: it may be only the beginning."""
    match = _TEXT.match(text if text.endswith(" ") else f"{text} ")
    if match is None:
        return "", "", "it names no message"
    whole = make_text(match["label"], match["target"], int(match["size"]))
    # A line may lose its final blank.
    sound = whole.startswith(text) if cut else whole.rstrip() == text.rstrip()
    return match["label"], match["target"], "" if sound else "it is not the text that was sent"


# --- what was printed -------------------------------------------------------------------------------------------


def read_line(receiver: str, line: str, at_s: float, pids: dict[str, int]) -> tuple[list[Shown], list[str]]:
    """Returns the messages in one line of a receiver's output, and the pieces of it that are not messages.

    Listener and inbox write to one pipe, which gives their order. After half a line of a killed process the next line
        follows directly; the pieces are separated here. Half an object counts as not shown.
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
    """Parses the notes of a sending process (`player.Notes`). A last line without a line end was torn by a kill."""
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
