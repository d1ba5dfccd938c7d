"""What each event of an agent's session does on the bus: one table, `EVENTS`.

Theory of operation
===================

* SessionStart stores the plugin's options for the monitor (`zmqbus.session.plugin_options`), and tells the agent who it
  is on the bus and how many messages wait. After `/clear` and `/compact` the agent has forgotten; the bus has not.
* UserPromptSubmit and Stop show the unread messages of a session that has no listener at the moment: in a run without
  monitors (`claude -p`), under a harness that has none, or after a monitor that was not restarted. The session must
  have been on the bus before: by `connect`, or because `INTER_SESSION_NAME` names it.
* Each of the three joins on behalf of a session that `INTER_SESSION_NAME` names and that has not joined yet. The first
  one should; the others make up for a join that failed. A session that the user disconnected is left alone.
* Each tells what the agent does (`zmqbus.session.agent_state`): it is idle after SessionStart and Stop, and works after
  UserPromptSubmit. That it is gone the broker finds out itself.
* UserPromptSubmit and Stop also prove that the agent has seen what the waiter showed it (`zmqbus.session.wake`).

In a session with a terminal, Stop leaves mail to the waiter (`zmqbus.agents.waiter`), which wakes the agent as soon,
and is not waited for. Elsewhere it continues the turn when there is mail, once: where the turn already continues
because of this hook (`stop_hook_active`), mail waits for the next prompt; otherwise two sessions that thank each other
would never end.

The agent waits for hooks, so nothing here imports the client before it has to talk to the broker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from zmqbus.errors import ZmqbusError
from zmqbus.process import Process
from zmqbus.session.agent_state import report_quietly
from zmqbus.session.identity import Caller, Joined, bus_of_away, identify
from zmqbus.session.last_seen import note_seen
from zmqbus.session.owner import handed_on
from zmqbus.session.owner_files import WAKE
from zmqbus.session.wake import WakeFile, has_waiter, take_shown
from zmqbus.settings import Settings, where_am_i
from zmqbus.wire import naming

if TYPE_CHECKING:
    from zmqbus.session.shown_log import Shown

#: The variable in which Claude Code says how it was started, and its value for a session with a terminal.
ENTRYPOINT, TERMINAL = "CLAUDE_CODE_ENTRYPOINT", "cli"
#: How its value begins for a run that ends after its turn (`claude -p`, the SDK).
RUN = "sdk-"


class Exchange:
    """One event, and the process's means to answer it."""

    def __init__(
        self,
        event: Mapping[str, Any],
        answer: Callable[[Mapping[str, Any]], None],
        last: Callable[[], None],
        began_s: float,
    ) -> None:
        """`answer` prints the one output, after which only `last` allows the process some more time. `began_s`: when
        this process began, in seconds since 1970."""
        self.event = event
        self.kind = str(event.get("hook_event_name"))
        self.answer = answer
        self.last = last
        self.began_s = began_s

    def __repr__(self) -> str:
        return f"<Exchange {self.kind}>"

    def add_context(self, text: str) -> None:
        """Prints a text that the agent is shown."""
        self.answer(context(self.kind, text))


def context(kind: str, text: str) -> dict[str, Any]:
    """The output of a hook that adds a text to what the agent is shown."""
    return {"hookSpecificOutput": {"hookEventName": kind, "additionalContext": text}}


def respond(exchange: Exchange) -> None:
    """Does what the event demands. Raises `ImportError` where dependencies are missing, and any `ZmqbusError`."""
    act = EVENTS.get(exchange.kind)
    if act is not None:
        act(exchange)


def _start(exchange: Exchange) -> None:
    caller = identify(warn=_ignore, hands_on=True)
    exchange.add_context(_introduce(caller))
    note_seen(caller.files, exchange.kind)
    joined = caller.joined()
    if joined is not None and exchange.event.get("source") != "compact":  # which happens while it works
        report_quietly(joined.files, "idle")
    from zmqbus.session.leftovers import reap

    reap(caller.settings.data_dir)


def _prompt(exchange: Exchange) -> None:
    found = _joined(exchange, "working")
    # Where a waiter waits, there is no mail: it would have shown it.
    if found is not None and found[1].takes_mail and not has_waiter(found[1].files):
        _show_mail(exchange, *found)


def _stop(exchange: Exchange) -> None:
    found = _joined(exchange, "idle")
    if found is None or not found[1].takes_mail:
        return
    # guards: hooks [exchange.event.get("stop_hook_active") => False]
    if os.environ.get(ENTRYPOINT) == TERMINAL or exchange.event.get("stop_hook_active"):
        _confirm_shown(exchange, *found)
    else:
        _show_mail(exchange, *found)


def _tool_done(exchange: Exchange) -> None:
    """The user has approved what the agent was blocked by; the shell of hooks.json runs this in no other case."""
    _joined(exchange, "working")


#: Name of the event -> what is done.
EVENTS: Mapping[str, Callable[[Exchange], None]] = {
    "SessionStart": _start,
    "UserPromptSubmit": _prompt,
    "PostToolUse": _tool_done,
    "Stop": _stop,
}


def _joined(exchange: Exchange, state: str) -> tuple[Settings, Joined] | None:
    """The session that the event is of, whose agent is now in this state; None: it is not on the bus, or is only just
    joining."""
    caller = identify(warn=_ignore)
    joined = caller.joined()
    if joined is None:
        # It should have joined at its start; what prevented that may be over.
        _join_as_named(caller)
        return None
    note_seen(caller.files, exchange.kind)
    report_quietly(joined.files, state)
    return caller.settings, joined


def _ignore(warning: str) -> None:
    """Drops warnings about settings, which nobody would see here; the commands and the listener print them."""


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
    if joined is not None and joined.takes_mail:
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


def _confirm_shown(exchange: Exchange, settings: Settings, joined: Joined) -> None:
    """Marks as read what the waiter has shown."""
    if not os.path.exists(joined.files.path(WAKE)):
        return
    msg_ids = take_shown(joined.files, _shown(joined), exchange.began_s)
    if msg_ids:
        with bus_of_away(settings, joined, starts=False) as bus:
            bus.settle(msg_ids)


def _show_mail(exchange: Exchange, settings: Settings, joined: Joined) -> None:
    """Prints the unread messages that there is room for, and marks them read.

    Starts no broker: messages wait in the mailbox for the next one. Raises `BrokerUnavailable` if none runs.
    """
    from zmqbus.agents import mail

    with bus_of_away(settings, joined, starts=False) as bus:
        waiting, more = bus.preview(mail.MAX_MESSAGES, mail.HEAD_BYTES)
        if not waiting:
            return
        wake = _wake_file(joined)
        try:
            shown = _shown(joined)
            taken = wake.take_shown(shown, exchange.began_s) if wake is not None else ()
            unconfirmed = wake.shown if wake is not None else ()
            seen = {message.msg_id for message in waiting if message.msg_id in shown or message.msg_id in unconfirmed}
            page = mail.page_of(waiting, more, seen, settings.paths.log)
            if page.msg_ids:
                exchange.answer(
                    {"decision": "block", "reason": page.text}
                    if exchange.kind == "Stop"
                    else context(exchange.kind, page.text)
                )
                bus.mark_read(page.msg_ids)
                report_quietly(joined.files, "working")  # after Stop as well, which continues the turn
                exchange.last()
        finally:
            if wake is not None:
                wake.close()
        if taken or page.msg_ids:
            bus.settle([*taken, *page.msg_ids])


def _wake_file(joined: Joined) -> WakeFile | None:
    """The record of the session's waiter, locked; None where it cannot be used."""
    try:
        return WakeFile(joined.files)
    except ZmqbusError:  # the doctor reports files like that; the mail is shown all the same
        return None


def _shown(joined: Joined) -> Shown:
    from zmqbus.session.shown_log import Shown

    assert joined.identity is not None
    return Shown(joined.files, joined.identity.session_id)
