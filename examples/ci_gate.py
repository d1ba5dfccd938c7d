#!/usr/bin/env python3
"""A CI job asks a session whether it may go on, and waits for the word.

    python examples/ci_gate.py                       # plays it, with a session of its own that looks at the tests
    python examples/ci_gate.py --ask release --timeout 900 "question: may build 1234 go to production?"

In a pipeline on the machine where the session runs:

    python examples/ci_gate.py --ask release "question: may $BUILD go out?" || exit 1

The exit status is 0 where the answer begins with yes (`yes`, `answer: yes, …`), 1 where it does not or something went
wrong, and 4 where none came in time: only a yes opens the gate. The session has to be there or to come back in
time; the question waits for it.
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
    """Asks, and returns the exit status of the job."""
    print(f"asking {session}: {question}", flush=True)
    try:
        answer = bus.ask(session, question, timeout=timeout)
    except zmqbus.Timeout:
        print(f"{session} has not answered within {timeout:g} s; the gate stays shut")
        return 4
    print(f"{answer.sender}: {answer.text}")
    opens = YES.match(answer.text) is not None
    print("the gate is open" if opens else "the gate stays shut")
    return 0 if opens else 1


@contextlib.contextmanager
def played() -> Iterator[str]:
    """A session that stands for the one who decides; its name. It is connected without one, so that nothing stays."""
    over = threading.Event()

    def decide(message: zmqbus.Message) -> str:
        over.wait(0.5)
        return "answer: yes, 212 tests passed, and nobody has objected"

    with zmqbus.connect(topics="release") as bus:
        thread = threading.Thread(target=bus.serve, args=(decide,), kwargs={"stop": over})
        thread.start()
        try:
            yield bus.name
        finally:
            over.set()
            thread.join()


def main() -> int:
    """The job."""
    parser = argparse.ArgumentParser(description="Ask a session, and succeed only if it says yes.")
    parser.add_argument("question", nargs="?", default="question: may build 1234 go to production?")
    parser.add_argument("--ask", metavar="SESSION", help="who decides (default: one that this program plays)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds to wait (default: 600)")
    options = parser.parse_args()
    try:
        with contextlib.ExitStack() as stack:
            session = options.ask or stack.enter_context(played())
            bus = stack.enter_context(zmqbus.connect())
            return gate(bus, session, options.question, options.timeout)
    except zmqbus.ZmqbusError as error:
        print(f"error: {error.code}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
