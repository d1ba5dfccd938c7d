"""The screen of `zmqbus watch`: sessions above, messages below, drawn with `rich` on the terminal's alternate screen.

However it ends, the terminal shows again what it showed before: the library restores the first screen and the cursor.
All text goes through `display.sanitise`, and into objects that interpret no markup.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from zmqbus.cli.agent_words import agent_of
from zmqbus.cli.format import MIN_WIDTH, clock, target
from zmqbus.cli.watch import Look, Watcher
from zmqbus.journal.filter import Entry
from zmqbus.system.streams import raw_stdout
from zmqbus.text.display import columns, fit, sanitise
from zmqbus.text.units import format_age
from zmqbus.wire.verbs import Session

#: Messages kept: more than any terminal has lines.
KEPT = 500
#: The largest part of the screen for the sessions.
SHARE = 0.4
#: How often the screen is drawn at least: ages grow.
DRAW_S = 1.0
#: Colours of the states, which are written out as well.
COLOURS = {"live": "green", "busy": "yellow", "away": "bright_black"}
#: Colours of the states of agents. A blocked one waits for a person, so its name is marked, too.
AGENT_COLOURS = {"working": "green", "blocked": "bold red"}
#: The smallest number of lines for the sessions.
MIN_SESSIONS = 3


def show(watcher: Watcher, console: Console | None = None) -> int:
    """Draws the screen until it is interrupted."""
    console = console or Console(file=raw_stdout())
    messages: deque[Entry] = deque(watcher.before, maxlen=KEPT)
    drawn_s = 0.0
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                news = watcher.poll()
                messages.extend(news)
                changed = watcher.refresh() or bool(news)
                now_s = time.monotonic()
                if changed or now_s - drawn_s >= DRAW_S:
                    drawn_s = now_s
                    width, height = console.size
                    live.update(draw(watcher.settings.port, watcher.look, messages, width, height), refresh=True)
                time.sleep(watcher.wait_s)
    finally:
        watcher.close()


def draw(port: int, look: Look, messages: Sequence[Entry], width: int, height: int) -> RenderableType:
    """The whole screen, as lines that fit into it."""
    width = max(width, MIN_WIDTH)
    order = {"live": 0, "busy": 0, "away": 1}
    sessions = sorted(
        look.sessions,
        key=lambda session: (session.agent != "blocked", order.get(session.state, 2), session.name),
    )
    room = max(MIN_SESSIONS, int(height * SHARE))
    shown = sessions if len(sessions) <= room else sessions[: room - 1]
    parts: list[RenderableType] = [_title(port, look, width)]
    if shown:
        parts.append(_table(shown))
    if len(shown) < len(sessions):
        parts.append(_hint(f"… and {len(sessions) - len(shown)} more: zmqbus list --all", width))
    if not sessions and look.fault is None:
        parts.append(_hint("no sessions yet; to join one: zmqbus connect", width))
    parts.append(Rule(style="dim"))
    used = 2 + (1 + len(shown) if shown else 0) + (len(shown) < len(sessions)) + (not sessions and look.fault is None)
    left = max(1, height - used)
    lines = [_message(entry, width) for entry in list(messages)[-left:]]
    parts += lines or [Text("no messages yet", style="dim")]
    return Group(*parts)


def _hint(text: str, width: int) -> Text:
    return Text(fit(text, width), style="dim")


def _title(port: int, look: Look, width: int) -> Text:
    if look.fault is not None:
        return Text(fit(sanitise(look.fault), width), style="bold red")
    counts = {state: sum(session.state == state for session in look.sessions) for state in COLOURS}
    words = [f"{count} {state}" for state, count in counts.items() if count or state == "live"]
    if blocked := sum(session.agent == "blocked" for session in look.sessions):
        words.append(f"{blocked} blocked")
    speed = look.rates.get("accepted", 0.0)
    unread = look.figures.get("unread", 0)
    text = f"zmqbus on port {port}: {', '.join(words)}; {speed:,.1f} messages/s; {unread:,} unread   (Ctrl-C ends)"
    return Text(fit(text, width), style="bold")


def _table(sessions: Sequence[Session]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("NAME", "STATE", "AGENT", "UNREAD", "PROJECT", "LABEL"):
        table.add_column(
            heading,
            no_wrap=True,
            overflow="ellipsis",
            header_style="dim",
            justify="right" if heading == "UNREAD" else "left",
        )
    for session in sessions:
        state = sanitise(session.state, 12) if session.state != "away" else f"away {format_age(session.away_s)}"
        agent_style = AGENT_COLOURS.get(session.agent, "")
        table.add_row(
            Text(sanitise(session.name, 40), style=agent_style if session.agent == "blocked" else ""),
            Text(state, style=COLOURS.get(session.state, "")),
            Text(sanitise(agent_of(session), 40), style=agent_style),
            Text(f"{session.waiting:,}" if session.waiting else "-"),
            Text(sanitise(os.path.basename(session.project) or "-", 40)),
            Text(sanitise(session.label or "-", 60)),
        )
    return table


def _message(entry: Entry, width: int) -> Text:
    """A message as one line: time, sender, receiver, text."""
    sender, receiver = sanitise(entry.from_name, 40), target(entry)
    line = Text(no_wrap=True, end="\n")
    line.append(clock(entry.ts, short=True) + " ", style="dim")
    line.append(sender, style="cyan")
    line.append(" → ", style="dim")
    line.append(receiver, style="magenta" if entry.to_session_id is None else "cyan")
    if entry.reply_to:
        line.append(f" re={sanitise(entry.reply_to, 12)}", style="dim")
    line.append(": ")
    room = max(1, width - columns(line.plain))
    text = sanitise(entry.head, 2 * room)
    cut = not entry.whole or len(entry.head) > 2 * room
    shown = fit(text, room)
    line.append(fit(f"{text} …", room) if cut and shown == text else shown)
    line.truncate(width, overflow="ellipsis")
    return line
