"""The plugin's hooks: `hook.py` answers an event of the session, `hook.py wait` is its waiter.

Theory of operation
===================

Claude Code passes a JSON object on standard input, and reads one from standard output. `zmqbus.agents.hooks` has what
each event does.

*A hook must not disturb the session.* It always exits with 0, within its budget, and never leaves half an output: a
timer ends the process wherever it is, and the output is a single write after everything that can fail or wait. It
starts no broker and waits for none, and where a listener runs it only checks a lock and exits. As in the listener,
messages are recorded as shown and acknowledged after that write.

*The budget counts the time that the process could use.* A limit in real time would expire on a busy machine before
anything was done, at every try. So the budget is counted in ticks of a timer; a process that waits for a processor gets
one tick for all that it has missed: alone on the machine 15 ticks are 0.15 s, on a busy one they take longer by as much
as everything else does. While the process waits for the broker it misses no tick, though the broker may be slowed down;
so it gets as many more ticks as it has been slowed down before.

*The waiter runs in the background* and has no budget (`zmqbus.agents.waiter`). It exits with 2 to wake the agent, and
with 0 otherwise, whatever fails: its errors are nobody's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from zmqbus.agents import hooks
from zmqbus.bootstrap import MISSING
from zmqbus.errors import ZmqbusError

#: Period of the timer in which the budget is counted: short against the budget, long against a tick's cost (5 µs).
TICK_S = 0.01
#: A session is delayed by at most 0.2 s, of which the interpreter's start takes up to 0.05.
BUDGET_TICKS = 15
#: For the work after the output: some ids to a file, some bytes to the broker. A lost acknowledgement does no harm,
#: because the file tells the listener that the message was shown.
AFTERWARDS_TICKS = 5
#: The budget in real time, however busy the machine is. After 10 s (hooks.json) the harness drops the output.
LIMIT_S = 5.0
#: Enough for a long prompt, which the event contains.
MAX_INPUT_BYTES = 32 * 1024 * 1024


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
    """Answers one event, or waits for mail. Returns 0, or 2 if the agent is to be woken."""
    if argv == ["wait"]:
        return _wait()
    began_s = time.time()
    budget = _Budget()
    budget.allow(BUDGET_TICKS)
    try:
        _respond(budget, began_s)
    except Exception as error:  # reported on standard error; the session must not fail
        print(f"inter-session hook: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        budget.suspend()
    return 0


def _wait() -> int:
    """Waits for mail. What fails is told by SessionStart and the doctor; here it would wake the agent.

    A run without a terminal is not waited for: the client would not end for 30 s, until it gives up on this process.
    """
    # guards: waiter: not for claude -p [.startswith(hooks.RUN) => .startswith("none")]
    if os.environ.get(hooks.ENTRYPOINT, "").startswith(hooks.RUN):
        return 0
    try:
        event = _read_event()
        from zmqbus.agents.waiter import wait_for_mail
        from zmqbus.session.identity import identify

        return wait_for_mail(identify(warn=lambda _: None), event)
    except Exception:
        return 0  # guards: waiter: no failure wakes the agent or shows in the session [0 => 2]


def _respond(budget: _Budget, began_s: float) -> None:
    event = _read_event()

    def answer(output: Mapping[str, Any]) -> None:
        budget.suspend()  # once printed, the messages must be recorded as shown
        _print(output)

    exchange = hooks.Exchange(event, answer, lambda: budget.allow(AFTERWARDS_TICKS), began_s)
    try:
        hooks.respond(exchange)
    except (ImportError, ZmqbusError) as error:
        # Report a fault of the set-up once, so that the agent can fix it.
        if exchange.kind == "SessionStart":
            text = MISSING if isinstance(error, ImportError) else f"cannot work: {error}"
            _print(hooks.context(exchange.kind, f"[inter-session] {text}"))


def _read_event() -> dict[str, Any]:
    event = json.loads(sys.stdin.buffer.read(MAX_INPUT_BYTES))
    if not isinstance(event, dict):
        raise ValueError("the event is not a JSON object")
    if isinstance(event.get("cwd"), str) and os.path.isdir(event["cwd"]):
        os.chdir(event["cwd"])
    return event


def _print(output: Mapping[str, Any]) -> None:
    # Unbuffered: a failed buffered write would be repeated at exit, and fail the command there.
    os.write(sys.stdout.fileno(), (json.dumps(output) + "\n").encode())
