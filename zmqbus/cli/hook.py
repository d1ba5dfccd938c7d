"""The hooks of the plugin: what a session is told at its start, and its mail where no listener shows it.

Theory of operation
===================

Claude Code starts this for three events, hands it a JSON object on standard input, and takes one from standard output.

* SessionStart writes the plugin's options down for the monitor (`zmqbus.session.options`) and tells the agent who it is
  on the bus and what waits for it. After `/clear` and `/compact` the agent has forgotten; the bus has not.
* UserPromptSubmit and Stop show the unread messages of a session that has no listener at the moment: in a run without
  monitors (`claude -p`), under a harness that has none, or after a monitor that nobody started again. So the session
  has to have been on the bus before: by `connect`, or because `INTER_SESSION_NAME` names it, in which case
  SessionStart joins on its behalf.

Stop goes on with the turn when there is mail, once: where the turn goes on because of this hook already
(`stop_hook_active`) the mail waits for the next prompt, or two sessions that thank each other would never end.

*A hook is a guest in somebody's session.* Whatever happens it ends with 0, within `BUDGET_S` of its start, and without
having said anything half: a timer ends the process where it stands, and the output is one write behind everything that
can fail or wait. It starts no broker, waits for none, and where a listener runs it looks at a lock and leaves. Messages
are noted down as shown and acknowledged after that write, as in the listener.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zmqbus import naming
from zmqbus.bootstrap import MISSING
from zmqbus.errors import BrokerUnavailable, ZmqbusError
from zmqbus.process import Process
from zmqbus.session import options
from zmqbus.session.owner import find_owners, handed_on
from zmqbus.session.state import Identity, find_away, find_session, reap
from zmqbus.settings import Settings, load, where_am_i

if TYPE_CHECKING:
    from zmqbus.client.command import CommandBus

#: A session is held up for no longer than 0.2 s, of which the interpreter's start takes up to 0.05.
BUDGET_S = 0.15
#: What there is to do behind the output: some notes on a file, some bytes to the broker. An acknowledgement that does
#: not get through costs nothing, since the note tells the listener that the message was shown.
AFTERWARDS_S = 0.05
#: The harness takes 10,000 characters; headings and the digest line have some of them.
MAX_CHARS = 9_000
#: A prompt may be long, and nothing of it matters here.
MAX_INPUT_BYTES = 32 * 1024 * 1024

HEADING = (
    "Messages from other sessions, which arrived while no monitor ran. Handle them as the skill inter-session says; "
    "they will not be shown again."
)


def main(argv: list[str]) -> int:
    """Answers one event. Returns 0 whatever happens."""
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, BUDGET_S)
    try:
        _respond()
    except Exception as error:  # a fault here is told where somebody looks for it, and is none of the session's
        print(f"inter-session hook: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


def _respond() -> None:
    event = _read_event()
    try:
        _answer(event)
    except (ImportError, ZmqbusError) as error:
        # Of what is wrong with the set-up the agent hears once, and can mend it.
        if event.get("hook_event_name") == "SessionStart":
            text = MISSING if isinstance(error, ImportError) else f"cannot work: {error}"
            _print(_context("SessionStart", f"[inter-session] {text}"))


def _give_up(signum: int, frame: object) -> None:
    os._exit(0)


def _read_event() -> dict[str, Any]:
    event = json.loads(sys.stdin.buffer.read(MAX_INPUT_BYTES))
    if not isinstance(event, dict):
        raise ValueError("the event is not a JSON object")
    if isinstance(event.get("cwd"), str) and os.path.isdir(event["cwd"]):
        os.chdir(event["cwd"])
    return event


def _answer(event: Mapping[str, Any]) -> None:
    plain = load(warn=_ignore)
    owner, *others = find_owners(plain.owner_pid_override, os.environ)
    kind = event.get("hook_event_name")
    if kind == "SessionStart":
        options.hand_on(plain.data_dir, owner, os.environ)
        _print(_context(kind, _introduce(load(warn=_ignore), owner, others)))
        reap(plain.data_dir)
    elif kind == "UserPromptSubmit" or (kind == "Stop" and not event.get("stop_hook_active")):
        away = find_away(plain.data_dir, owner, others)
        if away is not None:
            settings = load(environ=options.with_options(plain.data_dir, owner, os.environ), warn=_ignore)
            _show_mail(kind, settings, *away)


def _ignore(warning: str) -> None:
    """The commands and the listener warn of wrong settings; here nobody would see it."""


def _context(kind: str, text: str) -> dict[str, Any]:
    return {"hookSpecificOutput": {"hookEventName": kind, "additionalContext": text}}


def _print(output: Mapping[str, Any]) -> None:
    # Not into a buffer: what could not be written would be tried again at the end, and fail the command there.
    os.write(sys.stdout.fileno(), (json.dumps(output) + "\n").encode())


# --- at the start


def _introduce(settings: Settings, owner: Process, others: list[Process]) -> str:
    """Who the session is on the bus, and what waits for it. Raises ImportError where the dependencies are missing."""
    import zmqbus.cli.common  # noqa: F401  (with it comes all that is needed to join)

    state, _ = find_session(settings.data_dir, owner, others)
    if state is not None:
        waits = _waiting(settings, state.owner, state.identity)
        return f"inter-session: this session is '{state.name}' on the bus (session_id={state.session_id}).{waits}"
    away = find_away(settings.data_dir, owner, others)
    if away is not None:
        return (
            f"inter-session: this session is '{away[1].name}' on the bus, and has no monitor at the moment; unread "
            f"messages are shown with each prompt. To start one: /inter-session connect.{_waiting(settings, *away)}"
        )
    if settings.name is not None:
        name = naming.check_name(settings.name)
        _join(owner)
        return (
            f"inter-session: this session joins the bus as '{name}'. Until it has a monitor (/inter-session connect) "
            "unread messages are shown with each prompt."
        )
    cwd = where_am_i().cwd
    return (
        "inter-session: this session is not on the bus of this machine's sessions; /inter-session connect joins it"
        + (f" as '{naming.derive_name(cwd)}'." if cwd else " under a name: /inter-session connect <name>.")
    )


def _waiting(settings: Settings, owner: Process, identity: Identity) -> str:
    """A sentence about unread messages; "" if there are none, or nobody can tell."""
    try:
        with _bus(settings, owner, identity) as bus:
            count = bus.meet().waiting
    except ZmqbusError:
        return ""
    if not count:
        return ""
    return f" {count} unread message{'s wait' if count > 1 else ' waits'}: zmqbus inbox"


def _bus(settings: Settings, owner: Process, identity: Identity) -> CommandBus:
    """A bus on which to act as the session; starts no broker. Raises `BrokerUnavailable` if none runs."""
    from zmqbus.cli import common
    from zmqbus.client import launch

    settings = settings._replace(port=identity.port or settings.port)
    if launch.broker_pid(settings) is None:
        raise BrokerUnavailable("no broker runs; whatever has arrived waits in the mailbox for the next one")
    return common.act_as(settings, owner, identity, *where_am_i())


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


def _show_mail(kind: str, settings: Settings, owner: Process, identity: Identity) -> None:
    """Prints what waits, as far as there is room, and marks it read."""
    from zmqbus import protocol
    from zmqbus.session.notes import note_of
    from zmqbus.session.notify import format_note

    log_path = settings.paths.log
    with _bus(settings, owner, identity) as bus:
        waiting = []
        more = 0
        for item in bus.unread(peek=True):
            if isinstance(item, protocol.Fetched):
                more = item.left
            else:
                waiting.append(item)
        lines: list[str] = []
        chars = shown = 0
        for message in waiting:
            note = format_note(note_of(message, log_path), log_path)
            chars += sum(len(line) + 1 for line in note)
            if chars > MAX_CHARS:
                break
            lines += note
            shown += 1
        if not shown:
            return
        more += len(waiting) - shown
        if more:
            lines.append(f"[inter-session] {more} more messages waiting; read them with: zmqbus inbox")
        text = "\n".join([HEADING, *lines])
        signal.setitimer(signal.ITIMER_REAL, 0)  # from here on it is said, and has to be noted as said
        _print({"decision": "block", "reason": text} if kind == "Stop" else _context(kind, text))
        bus.mark_read([message.msg_id for message in waiting[:shown]])
        signal.setitimer(signal.ITIMER_REAL, AFTERWARDS_S)
        bus.settle()
