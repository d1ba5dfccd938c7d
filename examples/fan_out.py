#!/usr/bin/env python3
"""Asks several sessions the same question and prints their answers as they arrive, up to a deadline.

    python examples/fan_out.py                  # with three simulated sessions, of which one is too slow
    python examples/fan_out.py --to auth,pay,docs --timeout 600 "please run the tests of your part"

An agent sees the text in its conversation and answers it when it is done. A session that has not answered by the
deadline is a straggler: its request is withdrawn, the others' answers have been printed, and with `--to` the exit
status is 4.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # for a checkout; harmless elsewhere

import zmqbus

#: Simulated sessions: role → time for an answer, in s.
SIMULATED = {"auth": 0.2, "pay": 0.6, "docs": 30.0}
SIMULATED_TIMEOUT_S = 1.5


def gather(bus: zmqbus.Bus, targets: list[str], text: str, timeout: float) -> list[str]:
    """Asks all targets, prints their answers, and returns the targets without one. `timeout`: in seconds."""
    print(f"asking {', '.join(targets)}: {text}")
    began_s = time.monotonic()
    stragglers = []
    for reply in zmqbus.as_completed(bus.scatter(targets, text, timeout=timeout)):
        try:
            answer = reply.result().text
        except zmqbus.Timeout:
            answer = "(no answer in time)"
            stragglers.append(reply.target)
        except zmqbus.ZmqbusError as error:  # such as an unknown session; the others still answer
            answer = f"({error.code}: {error})"
            stragglers.append(reply.target)
        print(f"{time.monotonic() - began_s:6.1f} s  {reply.target:<14} {answer}", flush=True)
    answered = len(targets) - len(stragglers)
    print(f"{answered} of {len(targets)} answered" + (f"; without: {', '.join(stragglers)}" if stragglers else ""))
    return stragglers


@contextlib.contextmanager
def simulated_session(role: str, work_s: float) -> Iterator[str]:
    """Runs a session that answers after `work_s`; yields its name. Without a name, it leaves no mailbox."""
    stop = threading.Event()

    def work(message: zmqbus.Message) -> str:
        stop.wait(work_s)
        return f"done: {message.text}: all green"

    with zmqbus.connect(topics=role) as bus:
        thread = threading.Thread(target=bus.serve, args=(work,), kwargs={"stop": stop})
        thread.start()
        try:
            yield bus.name
        finally:
            stop.set()
            thread.join()


def main() -> int:
    """Runs the fan-out; returns the exit status."""
    parser = argparse.ArgumentParser(description="Ask several sessions at once.")
    parser.add_argument("text", nargs="?", default="please run the tests of your part")
    parser.add_argument("--to", help="the sessions, separated by commas (default: three simulated ones)")
    parser.add_argument("--timeout", type=float, help="seconds until the deadline (default: 120)")
    options = parser.parse_args()
    try:
        with contextlib.ExitStack() as stack:
            if options.to:
                targets = options.to.split(",")
                timeout = options.timeout or 120.0
            else:
                targets = [stack.enter_context(simulated_session(role, work_s)) for role, work_s in SIMULATED.items()]
                timeout = options.timeout or SIMULATED_TIMEOUT_S
            with zmqbus.connect() as bus:
                stragglers = gather(bus, targets, options.text, timeout)
    except zmqbus.ZmqbusError as error:
        print(f"error: {error.code}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 4 if stragglers and options.to else 0


if __name__ == "__main__":
    sys.exit(main())
