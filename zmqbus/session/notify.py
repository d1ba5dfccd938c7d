"""The lines that a session is shown, and when each may be written.

Pure: no clock, files or sockets. The listener passes messages and times in, and writes the lines that come out.

Lines
=====

A message is one line of at most `LINE_CHARS`, header and text, or two where the text does not fit. All of it comes from
a peer, so nothing in it may end the line, close the header or hide: texts go through `sanitise`, a label loses its
quotes and brackets, and all other fields are one word each. Each field has a largest length, together some 330
characters: there is always room for text.

Length is counted as the harness counts it, in UTF-16 units (most emoji are two); only the 400 characters of a text are
characters. The harness cuts the rest of a line silently, so its measure counts.

Pacing
======

The harness joins lines that come within 200 ms into one notification, shows 3,000 characters of it, and has a budget of
ten notifications that grows by one every 2 s; over the budget it drops lines. This bus never drops a message, so
`Pacer` stays inside the budget:

* A flush has at most `FLUSH_LINES` lines and `FLUSH_CHARS` characters. Lines that have arrived together go out
  together, in order of arrival, and the two lines of one message are never separated.
* Flushes that follow each other within `SPACING_S` are a train: the harness may join them into one notification, so
  they share the bounds of one flush. Lines that no longer fit wait until that time has passed since the last flush.
  All others go out at once: no line is held back in the hope that more will come.
* There may be `BURST` flushes in a row, then one every `REFILL_S`.
* Where more than `MANY` messages wait when a flush may go out, it is a digest: one line that counts them. The messages
  stay unread, for `zmqbus inbox`. Later messages stay behind them, to keep the order; a new digest gives the new count,
  at most every `DIGEST_S`. This ends when the caller has taken all of them back with `forget`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

from zmqbus.text.display import sanitise
from zmqbus.text.units import format_age, format_size
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.naming import MAX_LABEL_CHARS, MAX_NAME_CHARS

#: Longest line that the harness shows whole.
LINE_CHARS = 500
#: Longest text of a message in its line.
TEXT_CHARS = 400
#: Longest id shown. Valid ids have at most 12 characters; the beginning of another one still identifies its message.
ID_CHARS = 24
#: Longest `to=`: a topic has at most 40; of a project's name the beginning is enough.
TO_CHARS = 64

#: Lines and characters (newlines included) of one flush: the harness shows 3,000 characters of a notification.
FLUSH_LINES = 6
FLUSH_CHARS = 2800
#: Flushes in a burst: two fewer than the harness allows, for other programs' lines and for clocks that disagree.
BURST = 8
#: After a burst there may be one flush in this time, as in the harness.
REFILL_S = 2.0
#: Twice the 200 ms within which the harness joins, since it may read late by a whole window before it joins two
#: flushes. Lines that wait for this are still shown, and acknowledged, well within a second.
SPACING_S = 0.4
#: More messages than this are counted instead of shown: four to eight flushes, as many as a burst can carry.
MANY = 24
#: Time between two digests, which interrupt the agent for nothing but a new number.
DIGEST_S = 30.0
#: A message that waited here for this long (the budget was used up) gets `queued=`, as if it had waited in the broker.
WAITED_S = 5.0

_NOT_IN_ID = re.compile(r"[^A-Za-z0-9_-]")
_NOT_IN_TO = re.compile(r'[\s"\[\]]')
#: Replaces quotes and brackets, at which a reader might see the end of the label or the header.
_IN_LABEL = str.maketrans('"[]', "'()")


class Note(NamedTuple):
    """One message to show."""

    msg_id: str
    from_session: str
    from_name: str
    from_label: str | None
    text: str  #: the whole, or a beginning with more than TEXT_CHARS characters that can be shown
    reply_to: str | None
    to: str | None  #: "all", "#topic", "%project name"; None: sent to this session alone
    age_s: float | None  #: how long it was queued; None: it was not queued
    size_bytes: int  #: of the whole text in UTF-8
    tag: object  #: the caller's, to acknowledge once the lines have been written


class Flush(NamedTuple):
    """Lines to write now, in one write; acknowledge the tags afterwards, in order."""

    lines: tuple[str, ...]
    tags: tuple[object, ...]


def format_note(note: Note, log_path: str) -> list[str]:
    """The one or two lines that show a message, without newlines; each at most `LINE_CHARS` long."""
    return _lines(_excerpt(note), log_path, note.age_s)


def notice_text(notice: verbs.Notice) -> str:
    """A notice of `sys.sessions` or `sys.state` in words."""
    about = {"renamed": f"renamed from {notice.detail}"}.get(notice.change, notice.change)
    detail = f" ({notice.detail})" if notice.detail and notice.change != "renamed" else ""
    return f"{notice.topic}: {notice.name} {about}{detail}"


def bus_line(text: str) -> str:
    """A line about the bus itself, at most `LINE_CHARS` long."""
    return _fit(f"[inter-session] {sanitise(text, LINE_CHARS)}", LINE_CHARS)


# --- lines ------------------------------------------------------------------------------------------------------


class _Excerpt(NamedTuple):
    """A note with only as much text as its line can show, so that a long text is not kept until then."""

    note: Note  # its text is sanitised, and one character longer than can be shown where there is more of it
    partial: bool  # the caller gave only a part of the text


def _excerpt(note: Note) -> _Excerpt:
    shown = sanitise(note.text, TEXT_CHARS + 1)
    # Encoding shows whether the text was whole. Not needed for a text that is cut anyway, which spares the long ones.
    partial = len(shown) <= TEXT_CHARS and len(note.text.encode("utf-8", "surrogatepass")) < note.size_bytes
    return _Excerpt(note._replace(text=shown), partial)


def _lines(excerpt: _Excerpt, log_path: str, age_s: float | None) -> list[str]:
    note, text = excerpt.note, excerpt.note.text
    header = _header(note, age_s)
    room = LINE_CHARS - _units(header) - 2  # "] "
    if not excerpt.partial and len(text) <= TEXT_CHARS and _units(text) <= room:
        return [f"{header}] {text}"]
    header += f" truncated={note.size_bytes}"
    room = LINE_CHARS - _units(header) - 2
    return [f"{header}] {_fit(text[:TEXT_CHARS], room)}", _where(note, log_path)]


def _header(note: Note, age_s: float | None) -> str:
    header = f'[inter-session msg={_id(note.msg_id)} from="{_label(note.from_name, MAX_NAME_CHARS)}"'
    label = _label(note.from_label or "", MAX_LABEL_CHARS)
    if label:
        header += f' "{label}"'
    if note.reply_to is not None:
        header += f" re={_id(note.reply_to)}"
    if note.to is not None:
        header += f" to={_fit(_NOT_IN_TO.sub('_', sanitise(note.to, TO_CHARS)), TO_CHARS)}"
    if age_s is not None:
        header += f" queued={format_age(age_s)}"
    return header


def _where(note: Note, log_path: str) -> str:
    """The second line: where the whole text is."""
    msg_id = _id(note.msg_id)
    start = f"[inter-session msg={msg_id} cont] full text {format_size(note.size_bytes)}"
    line = f"{start} at {log_path}"
    # A path that is cut or sanitised leads nowhere; name the command that prints the text instead.
    if sanitise(log_path) == log_path and _units(line) <= LINE_CHARS:
        return line
    return f"{start}; read it with: zmqbus inbox --msg {msg_id}"


def _id(msg_id: str) -> str:
    return _NOT_IN_ID.sub("_", msg_id[:ID_CHARS])


def _label(label: str, limit: int) -> str:
    return _fit(sanitise(label, limit).translate(_IN_LABEL), limit)


def _units(text: str) -> int:
    """Length in UTF-16 units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _fit(text: str, limit: int) -> str:
    """The longest beginning of `text` within `limit` UTF-16 units."""
    if _units(text) <= limit:
        return text
    # "ignore" drops half of a surrogate pair at the end.
    return text.encode("utf-16-le", "surrogatepass")[: 2 * limit].decode("utf-16-le", "ignore")


# --- pacing -----------------------------------------------------------------------------------------------------


class _Held(NamedTuple):
    excerpt: _Excerpt
    came_s: float


class Pacer:
    """Holds messages until they may be shown. All times are seconds of one monotonic clock."""

    def __init__(self, log_path: str) -> None:
        """`log_path`: the log that contains the whole of a text that was cut."""
        self._log_path = log_path
        self._announced: deque[str] = deque()
        self._held: deque[_Held] = deque()
        self._last_s = float("-inf")  # of the last flush
        self._train_lines = self._train_chars = 0  # written in flushes that the harness may join
        self._refilled_s = float("-inf")  # when the budget is full again
        self._digest_s: float | None = None  # when the last digest was written; None: messages are being shown
        self._is_digest_old = False  # a message came after the last digest

    def __repr__(self) -> str:
        digest = ", behind a digest" if self._digest_s is not None else ""
        return f"<Pacer: {len(self._held)} waiting{digest}, {len(self._announced)} announced>"

    def add(self, now_s: float, note: Note) -> None:
        """Adds a message. Of a long text only the part that can be shown is kept."""
        self._held.append(_Held(_excerpt(note), now_s))
        self._is_digest_old = True

    def announce(self, line: str) -> None:
        """Adds a line about the bus, made by `bus_line`. Such lines go first, and count like all others."""
        self._announced.append(_fit(sanitise(line, LINE_CHARS), LINE_CHARS))

    def forget(self, which: Callable[[object], bool] | None = None) -> list[object]:
        """Drops the held messages whose tag `which` picks (default: all), and returns their tags in order.

        For messages that were read elsewhere or went back to the broker. When none is held any more, the next ones are
        shown again.
        """
        dropped = [held.excerpt.note.tag for held in self._held if which is None or which(held.excerpt.note.tag)]
        if which is None:
            self._held.clear()
        else:
            self._held = deque(held for held in self._held if not which(held.excerpt.note.tag))
        if not self._held:
            self._digest_s = None
        return dropped

    def waiting(self) -> int:
        """How many messages are held."""
        return len(self._held)

    def next_deadline(self, now_s: float) -> float | None:
        """When the next flush is due, `now_s` at the earliest; None: not before `add` or `announce`."""
        due_s = self._due_s(now_s)
        return None if due_s is None else max(now_s, due_s)

    def next_flush(self, now_s: float) -> Flush | None:
        """The next flush; None: none is due. Its messages are no longer held, and it counts against the budget."""
        due_s = self._due_s(now_s)
        if due_s is None or now_s < due_s:
            return None
        if now_s >= self._last_s + SPACING_S:
            self._train_lines = self._train_chars = 0
        lines: list[str] = []
        tags: list[object] = []
        while self._announced and self._add_to_train(lines, [self._announced[0]]):
            self._announced.popleft()
        if not self._is_counting():
            while self._held and self._add_to_train(lines, self._lines_of(self._held[0], now_s)):
                tags.append(self._held.popleft().excerpt.note.tag)
        elif self._digest_due_s() <= now_s and self._add_to_train(lines, [self._digest()]):
            self._digest_s, self._is_digest_old = now_s, False
        self._last_s = now_s
        self._refilled_s = max(now_s, self._refilled_s) + REFILL_S
        return Flush(tuple(lines), tuple(tags))

    def _add_to_train(self, lines: list[str], more: list[str]) -> bool:
        """Adds lines that belong together to a flush, if the train has room for them."""
        if not self._fits(more):
            return False
        lines += more
        self._train_lines += len(more)
        self._train_chars += _cost(*more)
        return True

    def _fits(self, more: list[str]) -> bool:
        return self._train_lines + len(more) <= FLUSH_LINES and self._train_chars + _cost(*more) <= FLUSH_CHARS

    def _is_counting(self) -> bool:
        """Whether messages are counted instead of shown."""
        return self._digest_s is not None or len(self._held) > MANY

    def _due_s(self, now_s: float) -> float | None:
        """When the next flush is due, perhaps in the past; None: there is nothing to flush."""
        # The budget is stored as the time at which it is full again: each flush adds one refill to that, and budget is
        # left while that time is less than BURST refills away. So no fractions are summed up that could drift.
        due_s = self._refilled_s - (BURST - 1) * REFILL_S
        if self._announced:
            first = [self._announced[0]]
        elif self._held and not self._is_counting():
            first = self._lines_of(self._held[0], now_s)
        elif self._held and self._is_digest_old:
            first = [self._digest()]
            due_s = max(due_s, self._digest_due_s())
        else:
            return None
        return due_s if self._fits(first) else max(due_s, self._last_s + SPACING_S)

    def _digest_due_s(self) -> float:
        if self._digest_s is None:
            return float("-inf")
        return self._digest_s + DIGEST_S if self._is_digest_old else float("inf")

    def _digest(self) -> str:
        sessions = len({held.excerpt.note.from_session for held in self._held})
        return bus_line(
            f"{len(self._held)} more messages waiting from {sessions} sessions; read them with: zmqbus inbox"
        )

    def _lines_of(self, held: _Held, now_s: float) -> list[str]:
        age_s, here_s = held.excerpt.note.age_s, now_s - held.came_s
        if age_s is not None:
            age_s += here_s
        elif here_s >= WAITED_S:
            age_s = here_s
        return _lines(held.excerpt, self._log_path, age_s)


def _cost(*lines: str) -> int:
    """Characters of these lines in a flush, newlines included."""
    return sum(_units(line) + 1 for line in lines)
