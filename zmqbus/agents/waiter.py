"""The waiter: wakes the idle agent of a session without a listener when mail comes.

Theory of operation
===================

Claude Code runs a hook with `asyncRewake` in the background. When it exits with 2, the client shows its standard error
to the agent, as a turn that begins at once. So the plugin's hooks start this process at the end of each turn and at the
start of a session; it waits for mail, prints it, and ends; the end of that turn starts the next one.

* **One a session.** Each Stop starts one more. The newest takes the place of the one before it, which it ends; the
  record of the waiter is locked meanwhile (`zmqbus.session.wake`), so of any number that race exactly one stays.
* **No polling.** It is a helper of its session with a PREVIEW that the broker answers when something is unread, when
  the session's listener connects, and when the session leaves. The client's core repeats it to the next broker. While
  it waits it sends what every client sends (a PING every four seconds), and looks for its owner and its session as
  rarely as a listener does. As for a listener, a broker is started where none runs.
* **The session stays away.** Its senders hear `queued`: what is shown is not acknowledged before the agent is known to
  have gone on.
* **It tells what the agent does** (`zmqbus.session.agent_state`), as the listener does where one runs.
* **At most one wake in five seconds**, however much comes: a waiter lets the rest of that time pass before it asks for
  mail. What has no room is counted in a last line.
* It ends when its owner has ended, its client no longer reads what it prints, the session has left, or a listener runs.
"""

from __future__ import annotations

import math
import os
import select
import sys
import time
from collections.abc import Mapping
from typing import Any

from zmqbus.agents import mail
from zmqbus.client.oneshot import OneShotClient
from zmqbus.process import has_ended
from zmqbus.session import agent_state
from zmqbus.session.identity import Caller, Joined, bus_of_away
from zmqbus.session.last_seen import note_seen
from zmqbus.session.shown_log import Shown
from zmqbus.session.wake import WAKE_PAUSE_S, WakeFile
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Previewed

#: How long a named session may take to join after its start, when a broker has to be started as well.
JOIN_S = 20.0
#: Pause between two looks whether it has joined.
LOOK_S = 0.2
#: How often the broker may say that the session is not away before the waiter believes it and ends; and the pause, in
#: seconds, before it asks again. The command that disconnects a session stores that only after the broker's answer.
DOUBTS = 3
DOUBT_S = 1.0
#: The exit status with which a waiter wakes its agent.
WAKE = 2


class _Over(Exception):
    """Ends the waiter without a wake."""


def wait_for_mail(caller: Caller, event: Mapping[str, Any]) -> int:
    """Waits until there is mail for the session of this process, and prints it on standard error.

    `event` started it. Returns `WAKE` if it has, 0 where there is nothing (more) to wait for. May be ended by the next
    waiter (SIGTERM).
    """
    joined = _await_joined(caller)
    if joined is None:
        return 0
    with WakeFile(joined.files) as wake:
        wake.take_over()
        pause_s = WAKE_PAUSE_S - (time.time() - wake.woke_s)
    note_seen(joined.files, "waiter")
    try:
        with agent_state.Bell(joined.files) as bell:
            # No longer than that, even if the clock was set back.
            # guards: waiter: at most one wake in five seconds [min(pause_s, WAKE_PAUSE_S) => 0.0]
            return _Waiter(caller, joined, bell, has_gone_on(event)).run(min(pause_s, WAKE_PAUSE_S))
    except _Over:
        return 0


def has_gone_on(event: Mapping[str, Any]) -> bool:
    """Whether this event proves that the agent has seen what the last waiter has shown it.

    A session may start before the agent was ever asked to read; only a compaction happens while it works.
    """
    # guards: waiter [event.get("source") == "compact" => True]
    return event.get("hook_event_name") == "Stop" or event.get("source") == "compact"


def _await_joined(caller: Caller) -> Joined | None:
    """The session of this process, if it has no listener and has not left; one that is named may still be joining."""
    deadline_s = time.monotonic() + (JOIN_S if caller.settings.name is not None else 0.0)
    while True:
        joined = caller.joined()
        if joined is not None and joined.takes_mail:
            return joined
        # The process that joins holds the lock as well, but stores no state.
        joins = joined is None or (joined.held and caller.session().state is None)
        if not joins or time.monotonic() >= deadline_s:
            return None
        time.sleep(LOOK_S)


class _Waiter:
    """Waits for the mail of one session."""

    def __init__(self, caller: Caller, joined: Joined, bell: agent_state.Bell, has_gone_on: bool) -> None:
        assert joined.identity is not None
        self._caller = caller
        self._settings = caller.settings
        self._joined = joined
        self._bell = bell
        self._has_gone_on = has_gone_on
        self._told: tuple[str | None, agent_state.AgentState | None] = (None, None)  # to which broker, and what
        self._bus: OneShotClient | None = None
        self._shown = Shown(joined.files, joined.identity.session_id)
        self._stderr = sys.stderr.fileno()
        self._next_look_s = -math.inf

    def __repr__(self) -> str:
        return f"<Waiter of owner {self._joined.files.owner.pid}>"

    def run(self, pause_s: float) -> int:
        """Returns `WAKE` once it has shown mail, at least `pause_s` from now.

        Raises `_Over` where nothing more is to be waited for.
        """
        self._look()
        with bus_of_away(self._settings, self._joined, patient=True) as self._bus:
            self._bus.watch(self._stderr, hang_up=True)
            if self._bell.fd >= 0:
                self._bus.watch(self._bell.fd)
            self._bus.pause(pause_s, self._look)
            with WakeFile(self._joined.files) as wake:
                if self._has_gone_on:
                    wake.take_shown(self._shown)
                else:
                    wake.forget_shown()
            for _ in range(DOUBTS):
                waiting, more = self._bus.await_preview(mail.MAX_MESSAGES, mail.HEAD_BYTES, self._look)
                if waiting and self._show(waiting, more):
                    return WAKE
                self._next_look_s = -math.inf
                time.sleep(DOUBT_S)
                self._look()
        return 0

    def _tell_state(self) -> None:
        """Tells the broker what the agent does, as its hooks have stored it, and each new broker again."""
        self._bell.answered()
        state = agent_state.read(self._joined.files)
        if self._bus is None or self._bus.epoch is None or state is None or self._told == (self._bus.epoch, state):
            return
        self._told = (self._bus.epoch, state)
        self._bus.tell(lambda ref: verbs.SetState(ref, state.state, state.since_ts, state.detail))

    def _look(self) -> float:
        """Checks that there is still somebody to wake, and tells what it does; returns seconds until the next check.

        Raises `_Over`.
        """
        poller = select.poll()
        poller.register(self._stderr, 0)
        if poller.poll(0):  # guards: waiter: the client has ended [off]
            raise _Over
        self._tell_state()
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + self._settings.owner_check_interval_s
            joined = self._caller.joined()
            # guards: waiter [has_ended(self._joined.files.owner) => False]
            if has_ended(self._joined.files.owner) or joined is None or not joined.takes_mail:
                raise _Over
        return self._next_look_s - now_s

    def _show(self, waiting: list[Previewed], more: int) -> bool:
        """Prints the messages that nobody has shown meanwhile. The lock is kept until this process has ended."""
        wake = WakeFile(self._joined.files)
        joined = self._caller.joined()
        # guards: waiter: a listener shows them itself [not joined.takes_mail => False]
        if joined is None or not joined.takes_mail or not wake.is_mine():
            raise _Over
        self._shown.news()
        page = mail.page_of(waiting, more, {*self._shown, *wake.shown}, self._settings.paths.log)
        if not page.msg_ids:
            with wake:
                return False
        data = (page.text + "\n").encode()
        while data:
            data = data[os.write(self._stderr, data) :]
        agent_state.report_quietly(self._joined.files, "working")  # no hook tells of a turn that begins like this
        self._tell_state()
        wake.note_woken(page.msg_ids)  # guards: waiter: not shown again by the hooks
        return True
