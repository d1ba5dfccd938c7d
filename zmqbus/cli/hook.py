"""The plugin's hooks: tell a session who it is on the bus, and show it its mail where no listener does.

Theory of operation
===================

Claude Code runs this for three events. It passes a JSON object on standard input, and reads one from standard output.

* SessionStart stores the plugin's options for the monitor (`zmqbus.session.plugin_options`), and tells the agent who it
  is on the bus and how many messages wait. After `/clear` and `/compact` the agent has forgotten; the bus has not.
* UserPromptSubmit and Stop show the unread messages of a session that has no listener at the moment: in a run without
  monitors (`claude -p`), under a harness that has none, or after a monitor that was not restarted. The session must
  have been on the bus before: by `connect`, or because `INTER_SESSION_NAME` names it.
* Each of the three joins on behalf of a session that `INTER_SESSION_NAME` names and that has not joined yet. The first
  one should; the others make up for a join that failed. A session that the user disconnected is left alone.

Stop continues the turn when there is mail, once: where the turn already continues because of this hook
(`stop_hook_active`), mail waits for the next prompt; otherwise two sessions that thank each other would never end.

*A hook must not disturb the session.* It always exits with 0, within its budget, and never leaves half an output: a
timer ends the process wherever it is, and the output is a single write after everything that can fail or wait. It
starts no broker and waits for none, and where a listener runs it only checks a lock and exits. As in the listener,
messages are recorded as shown and acknowledged after that write.

*The budget counts the time that the process could use.* A limit in real time would expire on a busy machine before
anything was done, at every try. So the budget is counted in ticks of a timer; a process that waits for a processor gets
one tick for all that it has missed: alone on the machine 15 ticks are 0.15 s, on a busy one they take longer by as much
as everything else does. While the process waits for the broker it misses no tick, though the broker may be slowed down;
so it gets as many more ticks as it has been slowed down before.

*The work does not grow with the mailbox.* The broker is asked for the first few messages and the beginning of each
(PREVIEW); messages without room are counted, and shown with the next event.
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
from zmqbus.session.last_seen import note_seen
from zmqbus.session.leftovers import reap
from zmqbus.session.owner import handed_on
from zmqbus.settings import Settings, where_am_i
from zmqbus.wire import naming

if TYPE_CHECKING:
    from zmqbus.wire.verbs import Previewed

#: Period of the timer in which the budget is counted: short against the budget, long against a tick's cost (5 µs).
TICK_S = 0.01
#: A session is delayed by at most 0.2 s, of which the interpreter's start takes up to 0.05.
BUDGET_TICKS = 15
#: For the work after the output: some ids to a file, some bytes to the broker. A lost acknowledgement does no harm,
#: because the file tells the listener that the message was shown.
AFTERWARDS_TICKS = 5
#: The budget in real time, however busy the machine is. After 10 s (hooks.json) the harness drops the output.
LIMIT_S = 5.0
#: The harness takes 10,000 characters; the rest is for headings and the digest line.
MAX_CHARS = 9_000
#: Messages that are fetched. The shortest line takes some 45 characters, so no more than these have room.
MAX_MESSAGES = 200
#: Enough for a long prompt, which the event contains.
MAX_INPUT_BYTES = 32 * 1024 * 1024

HEADING = (
    "Messages from other sessions, which arrived while no monitor ran. Handle them as the skill inter-session says; "
    "they will not be shown again."
)


class _Budget:
    """Ends the process with status 0 when its ticks are used up. The module's docstring explains it."""

    def __init__(self) -> None:
        self._allowed = self._ticks = 0
        self._start_s = 0.0

    def __repr__(self) -> str:
        return f"<_Budget: {self._ticks} of {self._allowed} ticks>"

    def allow(self, ticks: int) -> None:
        """Allows the process so many ticks from now on."""
        self._allowed, self._ticks = ticks, 0
        self._start_s = time.monotonic()
        signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)

    def suspend(self) -> None:
        """Lifts the limit."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _tick(self, signum: int, frame: object) -> None:
        self._ticks += 1
        elapsed_s = time.monotonic() - self._start_s
        # How many times slower than on an idle machine this process has been so far. The broker is slowed down as well,
        # and while this process waits for it, no tick is missed here.
        slower = max(1.0, elapsed_s / (self._ticks * TICK_S))
        # guards: hooks [self._ticks >= self._allowed * slower => elapsed_s >= self._allowed * TICK_S]
        # guards: hooks: an upper bound in real time [or elapsed_s > LIMIT_S =>]
        if self._ticks >= self._allowed * slower or elapsed_s > LIMIT_S:
            os._exit(0)


def main(argv: list[str]) -> int:
    """Answers one event. Always returns 0."""
    budget = _Budget()
    budget.allow(BUDGET_TICKS)
    try:
        _respond(budget)
    except Exception as error:  # reported on standard error; the session must not fail
        print(f"inter-session hook: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        budget.suspend()
    return 0


def _respond(budget: _Budget) -> None:
    event = _read_event()
    try:
        _answer(event, budget)
    except (ImportError, ZmqbusError) as error:
        # Report a fault of the set-up once, so that the agent can fix it.
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
        note_seen(caller.files, kind)
        reap(caller.settings.data_dir)
    elif kind in ("UserPromptSubmit", "Stop"):
        caller = identify(warn=_ignore)
        joined = caller.joined()
        if joined is None:
            # It should have joined at its start; what prevented that may be over.
            _join_as_named(caller)
            return
        note_seen(caller.files, kind)
        if _takes_mail(joined) and not (kind == "Stop" and event.get("stop_hook_active")):
            _show_mail(kind, caller.settings, joined, budget)


def _takes_mail(joined: Joined) -> bool:
    """Whether the hook shows this session's mail: it has no listener, and the user has not disconnected it."""
    # guards: hooks [and not joined.identity.left =>]
    return joined.identity is not None and joined.is_away and not joined.identity.left


def _ignore(warning: str) -> None:
    """Drops warnings about settings, which nobody would see here; the commands and the listener print them."""


def _context(kind: str, text: str) -> dict[str, Any]:
    return {"hookSpecificOutput": {"hookEventName": kind, "additionalContext": text}}


def _print(output: Mapping[str, Any]) -> None:
    # Unbuffered: a failed buffered write would be repeated at exit, and fail the command there.
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
    """Joins on behalf of a named session, in a process of its own, which may have to start a broker.

    It gets the owner by environment: it outlives this process, and could not find the owner then.
    """
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
        budget.suspend()  # once printed, the messages must be recorded as shown
        _print({"decision": "block", "reason": text} if kind == "Stop" else _context(kind, text))
        bus.mark_read(shown)
        budget.allow(AFTERWARDS_TICKS)
        bus.settle(shown)


def _lines(waiting: list[Previewed], log_path: str) -> tuple[list[str], list[str]]:
    """The lines of as many of these messages as have room, and the ids of those."""
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
