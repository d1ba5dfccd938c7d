#!/usr/bin/env python3
"""Lets a CI job ask a session for permission and wait for the answer.

    python examples/ci_gate.py                       # with a simulated session that answers yes
    python examples/ci_gate.py --ask release --timeout 900 "question: may build 1234 go to production?"

In a pipeline on the machine where the session runs:

    python examples/ci_gate.py --ask release "question: may $BUILD go out?" || exit 1

The exit status is 0 if the answer starts with yes (`yes`, `answer: yes, …`), 1 if it does not or on an error, and 4 if
there is no answer in time: only a yes opens the gate. The session has to be connected or to come back in time; the
question waits for it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # for a checkout; harmless elsewhere

import zmqbus

#: An answer that opens the gate.
YES = re.compile(r"\s*(answer:|done:)?\s*yes\b", re.IGNORECASE)


def gate(bus: zmqbus.Bus, session: str, question: str, timeout: float) -> int:
    """Asks the session; returns the job's exit status. `timeout`: in seconds."""
    print(f"asking {session}: {question}", flush=True)
    try:
        answer = bus.ask(session, question, timeout=timeout)
    except zmqbus.Timeout:
        print(f"{session} has not answered within {timeout:g} s; the gate stays closed")
        return 4
    print(f"{answer.sender}: {answer.text}")
    opens = YES.match(answer.text) is not None
    print("the gate is open" if opens else "the gate stays closed")
    return 0 if opens else 1


@contextlib.contextmanager
def simulated_session() -> Iterator[str]:
    """Runs a session that answers yes; yields its name. Connected without a name, it leaves no mailbox behind."""
    stop = threading.Event()

    def decide(message: zmqbus.Message) -> str:
        stop.wait(0.5)
        return "answer: yes, 212 tests passed, and nobody has objected"

    with zmqbus.connect(topics="release") as bus:
        thread = threading.Thread(target=bus.serve, args=(decide,), kwargs={"stop": stop})
        thread.start()
        try:
            yield bus.name
        finally:
            stop.set()
            thread.join()


def main() -> int:
    """Runs the gate; returns the exit status."""
    parser = argparse.ArgumentParser(description="Ask a session, and succeed only if it answers yes.")
    parser.add_argument("question", nargs="?", default="question: may build 1234 go to production?")
    parser.add_argument("--ask", metavar="SESSION", help="the session to ask (default: a simulated one)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds to wait (default: 600)")
    options = parser.parse_args()
    try:
        with contextlib.ExitStack() as stack:
            session = options.ask or stack.enter_context(simulated_session())
            bus = stack.enter_context(zmqbus.connect())
            return gate(bus, session, options.question, options.timeout)
    except zmqbus.ZmqbusError as error:
        print(f"error: {error.code}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
