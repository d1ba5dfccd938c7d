"""The hooks of the plugin: what a session is told at its start, and its mail where no listener shows it.

Theory of operation
===================

Claude Code starts this for three events, hands it a JSON object on standard input, and takes one from standard output.

* SessionStart writes the plugin's options down for the monitor (`zmqbus.session.plugin_options`) and tells the agent
  who it is on the bus and what waits for it. After `/clear` and `/compact` the agent has forgotten; the bus has not.
* UserPromptSubmit and Stop show the unread messages of a session that has no listener at the moment: in a run without
  monitors (`claude -p`), under a harness that has none, or after a monitor that nobody started again. So the session
  has to have been on the bus before: by `connect`, or because `INTER_SESSION_NAME` names it.
* Each of the three joins on behalf of a session that `INTER_SESSION_NAME` names and that has not joined yet. The first
  one should; the others make up for a join that failed. A session that was disconnected is left alone.

Stop goes on with the turn when there is mail, once: where the turn goes on because of this hook already
(`stop_hook_active`) the mail waits for the next prompt, or two sessions that thank each other would never end.

*A hook is a guest in somebody's session.* Whatever happens it ends with 0, within its budget, and without having said
anything half: a timer ends the process where it stands, and the output is one write behind everything that can fail or
wait. It starts no broker, waits for none, and where a listener runs it looks at a lock and leaves. Messages are noted
down as shown and acknowledged after that write, as in the listener.

*The budget counts what the process could use.* A limit on the clock alone would be over before anything was done
wherever the machine is busy, at every try. So it is counted in ticks of a timer, and a process that waits for a
processor gets one tick for all that it has missed: alone on the machine 15 ticks are 0.15 s, in a crowd they are as
much longer as everything else is. While it waits for the broker it misses none, though the broker may; so it gets as
many times more of them as it has been slowed down before.

*The work does not grow with what waits.* The broker is asked for the first few messages and the beginning of each
(PREVIEW); what does not fit is counted, and comes with the next event.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zmqbus.bootstrap import MISSING
from zmqbus.errors import ZmqbusError
from zmqbus.process import Process
from zmqbus.session.identity import Caller, Joined, bus_of_away, identify
from zmqbus.session.leftovers import reap
from zmqbus.session.owner import handed_on
from zmqbus.settings import Settings, where_am_i
from zmqbus.wire import naming

if TYPE_CHECKING:
    from zmqbus.wire.verbs import Previewed

#: Of the timer that the budget is counted in. Short against the budget, long against what a tick costs (5 µs).
TICK_S = 0.01
#: A session is held up for no longer than 0.2 s, of which the interpreter's start takes up to 0.05.
BUDGET_TICKS = 15
#: What there is to do behind the output: some notes on a file, some bytes to the broker. An acknowledgement that does
#: not get through costs nothing, since the note tells the listener that the message was shown.
AFTERWARDS_TICKS = 5
#: However busy the machine is. The harness gives up on a hook after 10 s (hooks.json), and drops what it says.
LIMIT_S = 5.0
#: The harness takes 10,000 characters; headings and the digest line have some of them.
MAX_CHARS = 9_000
#: Messages that are looked at. The shortest line takes some 45 characters, so no more than this many fit.
MAX_MESSAGES = 200
#: A prompt may be long, and nothing of it matters here.
MAX_INPUT_BYTES = 32 * 1024 * 1024

HEADING = (
    "Messages from other sessions, which arrived while no monitor ran. Handle them as the skill inter-session says; "
    "they will not be shown again."
)


class _Budget:
    """Ends the process, with 0, when its ticks are used up. See the top of this module."""

    def __init__(self) -> None:
        self._allowed = self._ticks = 0
        self._start_s = 0.0

    def __repr__(self) -> str:
        return f"<_Budget: {self._ticks} of {self._allowed} ticks>"

    def allow(self, ticks: int) -> None:
        """The process may go on for so many ticks from now on."""
        self._allowed, self._ticks = ticks, 0
        self._start_s = time.monotonic()
        signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)

    def suspend(self) -> None:
        """It may go on for as long as it needs."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _tick(self, signum: int, frame: object) -> None:
        self._ticks += 1
        elapsed_s = time.monotonic() - self._start_s
        # How many times slower than alone on the machine this process has been so far. The broker is in the same crowd,
        # and while it is waited for, no tick is missed here.
        slower = max(1.0, elapsed_s / (self._ticks * TICK_S))
        # guards: hooks [self._ticks >= self._allowed * slower => elapsed_s >= self._allowed * TICK_S]
        # guards: hooks: an upper bound in real time [or elapsed_s > LIMIT_S =>]
        if self._ticks >= self._allowed * slower or elapsed_s > LIMIT_S:
            os._exit(0)


def main(argv: list[str]) -> int:
    """Answers one event. Returns 0 whatever happens."""
    budget = _Budget()
    budget.allow(BUDGET_TICKS)
    try:
        _respond(budget)
    except Exception as error:  # a fault here is told where somebody looks for it, and is none of the session's
        print(f"inter-session hook: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        budget.suspend()
    return 0


def _respond(budget: _Budget) -> None:
    event = _read_event()
    try:
        _answer(event, budget)
    except (ImportError, ZmqbusError) as error:
        # Of what is wrong with the set-up the agent hears once, and can mend it.
        if event.get("hook_event_name") == "SessionStart":
            text = MISSING if isinstance(error, ImportError) else f"cannot work: {error}"
            _print(_context("SessionStart", f"[inter-session] {text}"))


def _read_event() -> dict[str, Any]:
    event = json.loads(sys.stdin.buffer.read(MAX_INPUT_BYTES))
    if not isinstance(event, dict):
        raise ValueError("the event is not a JSON object")
    if isinstance(event.get("cwd"), str) and os.path.isdir(event["cwd"]):
        os.chdir(event["cwd"])
    return event


def _answer(event: Mapping[str, Any], budget: _Budget) -> None:
    kind = event.get("hook_event_name")
    if kind == "SessionStart":
        caller = identify(warn=_ignore, hands_on=True)
        _print(_context(kind, _introduce(caller)))
        reap(caller.settings.data_dir)
    elif kind in ("UserPromptSubmit", "Stop"):
        caller = identify(warn=_ignore)
        joined = caller.joined()
        if joined is None:
            # It should have joined at its start; what prevented that may be over.
            _join_as_named(caller)
        elif _takes_mail(joined) and not (kind == "Stop" and event.get("stop_hook_active")):
            _show_mail(kind, caller.settings, joined, budget)


def _takes_mail(joined: Joined) -> bool:
    """Whether the hook shows this session's mail: it has no listener, and the user has not disconnected it."""
    # guards: hooks [and not joined.identity.left =>]
    return joined.identity is not None and joined.is_away and not joined.identity.left


def _ignore(warning: str) -> None:
    """The commands and the listener warn of wrong settings; here nobody would see it."""


def _context(kind: str, text: str) -> dict[str, Any]:
    return {"hookSpecificOutput": {"hookEventName": kind, "additionalContext": text}}


def _print(output: Mapping[str, Any]) -> None:
    # Not into a buffer: what could not be written would be tried again at the end, and fail the command there.
    os.write(sys.stdout.fileno(), (json.dumps(output) + "\n").encode())


# --- at the start


def _introduce(caller: Caller) -> str:
    """Who the session is on the bus, and what waits for it. Raises `ImportError` where the dependencies are missing."""
    joined = caller.joined()
    joins = joined is None and _join_as_named(caller)  # before anything slow
    import zmqbus.client.oneshot  # noqa: F401  (imports all that is needed to join)

    if joins:
        return (
            f"inter-session: this session joins the bus as '{caller.settings.name}'. Until it has a monitor "
            "(/inter-session connect) unread messages are shown with each prompt."
        )
    state, files, _ = caller.session()
    if state is not None and files is not None:
        waits = _waiting(caller.settings, Joined(files, state.identity, held=True))
        return f"inter-session: this session is '{state.name}' on the bus (session_id={state.session_id}).{waits}"
    name = joined.identity.name if joined is not None and joined.identity is not None else None
    if joined is not None and _takes_mail(joined):
        return (
            f"inter-session: this session is '{name}' on the bus, and has no monitor at the moment; unread messages "
            f"are shown with each prompt. To start one: /inter-session connect.{_waiting(caller.settings, joined)}"
        )
    if joined is not None and joined.identity is not None and joined.identity.left:
        return (
            f"inter-session: this session was '{name}' on the bus of this machine's sessions and is disconnected; "
            "/inter-session connect joins it again."
        )
    cwd = where_am_i().cwd
    return (
        "inter-session: this session is not on the bus of this machine's sessions; /inter-session connect joins it"
        + (f" as '{naming.derive_name(cwd)}'." if cwd else " under a name: /inter-session connect <name>.")
    )


def _waiting(settings: Settings, joined: Joined) -> str:
    """A sentence about unread messages; "" if there are none, or no broker answers."""
    try:
        with bus_of_away(settings, joined, starts=False) as bus:
            count = bus.meet().waiting
    except ZmqbusError:
        return ""
    if not count:
        return ""
    return f" {count} unread message{'s wait' if count > 1 else ' waits'}: zmqbus inbox"


def _join_as_named(caller: Caller) -> bool:
    """Joins under the name in the settings; False: they have none. Raises `InvalidName`."""
    if caller.settings.name is None:
        return False
    naming.check_name(caller.settings.name)
    _join(caller.owner)
    return True


def _join(owner: Process) -> None:
    """Joins on behalf of a session that was given a name, in a process of its own: it may have to start a broker. It
    outlives this one, and could not find its owner then; so it is told."""
    import subprocess

    script = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "client.py")
    subprocess.Popen(
        [sys.executable, script, "--away"],
        env=handed_on(owner, os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


# --- mail


def _show_mail(kind: str, settings: Settings, joined: Joined, budget: _Budget) -> None:
    """Prints the unread messages that there is room for, and marks them read.

    Starts no broker: messages wait in the mailbox for the next one. Raises `BrokerUnavailable` if none runs.
    """
    from zmqbus.session.render import HEAD_BYTES

    with bus_of_away(settings, joined, starts=False) as bus:
        waiting, more = bus.preview(MAX_MESSAGES, HEAD_BYTES)
        lines, shown = _lines(waiting, settings.paths.log)
        if not shown:
            return
        more += len(waiting) - len(shown)
        if more:
            lines.append(f"[inter-session] {more} more messages waiting; read them with: zmqbus inbox")
        text = "\n".join([HEADING, *lines])
        budget.suspend()  # from here on it is said, and has to be noted as said
        _print({"decision": "block", "reason": text} if kind == "Stop" else _context(kind, text))
        bus.mark_read(shown)
        budget.allow(AFTERWARDS_TICKS)
        bus.settle(shown)


def _lines(waiting: list[Previewed], log_path: str) -> tuple[list[str], list[str]]:
    """The lines of the first of these messages, as many as there is room for; and the ids of those."""
    from zmqbus.journal.reader import Reader
    from zmqbus.session.notify import format_note
    from zmqbus.session.render import note_of

    lines: list[str] = []
    shown: list[str] = []
    chars = 0
    log = Reader(log_path)
    try:
        for message in waiting:
            note = format_note(note_of(message, log), log_path)
            chars += sum(len(line) + 1 for line in note)
            if chars > MAX_CHARS:
                break
            lines += note
            shown.append(message.msg_id)
    finally:
        log.close()
    return lines, shown
