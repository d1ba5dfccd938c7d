#!/usr/bin/env python3
"""Asks several sessions the same thing, and takes their answers as they come, up to a deadline.

    python examples/fan_out.py                  # plays it with three sessions of its own, of which one is too slow
    python examples/fan_out.py --to auth,pay,docs --timeout 600 "please run the tests of your part"

An agent that is asked sees the text in its conversation, and answers it when it is done. Who has not answered by the
deadline is a straggler: the request is withdrawn, the others' answers are there, and the exit status is 4.
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

#: What each of the sessions that this program plays takes for its work, s.
PLAYED = {"auth": 0.2, "pay": 0.6, "docs": 30.0}
PLAYED_TIMEOUT_S = 1.5


def gather(bus: zmqbus.Bus, targets: list[str], text: str, timeout: float) -> list[str]:
    """Asks all of them, prints what comes, and returns who has not answered."""
    print(f"asking {', '.join(targets)}: {text}")
    began_s = time.monotonic()
    stragglers = []
    for reply in zmqbus.as_completed(bus.scatter(targets, text, timeout=timeout)):
        try:
            said = reply.result().text
        except zmqbus.Timeout:
            said = "(no answer in time)"
            stragglers.append(reply.target)
        except zmqbus.ZmqbusError as error:  # no such session, say; the others' answers come all the same
            said = f"({error.code}: {error})"
            stragglers.append(reply.target)
        print(f"{time.monotonic() - began_s:6.1f} s  {reply.target:<14} {said}", flush=True)
    answered = len(targets) - len(stragglers)
    print(f"{answered} of {len(targets)} answered" + (f"; without: {', '.join(stragglers)}" if stragglers else ""))
    return stragglers


@contextlib.contextmanager
def played(role: str, takes_s: float) -> Iterator[str]:
    """A session that stands for an agent; its name. It is connected without one, so that nothing of it stays."""
    over = threading.Event()

    def work(message: zmqbus.Message) -> str:
        over.wait(takes_s)
        return f"done: {message.text}: all green"

    with zmqbus.connect(topics=role) as bus:
        thread = threading.Thread(target=bus.serve, args=(work,), kwargs={"stop": over})
        thread.start()
        try:
            yield bus.name
        finally:
            over.set()
            thread.join()


def main() -> int:
    """Scatters, gathers, prints."""
    parser = argparse.ArgumentParser(description="Ask several sessions at once.")
    parser.add_argument("text", nargs="?", default="please run the tests of your part")
    parser.add_argument("--to", help="the sessions, separated by commas (default: three that this program plays)")
    parser.add_argument("--timeout", type=float, help="seconds until the deadline (default: 120)")
    options = parser.parse_args()
    try:
        with contextlib.ExitStack() as stack:
            if options.to:
                targets = options.to.split(",")
                timeout = options.timeout or 120.0
            else:
                targets = [stack.enter_context(played(role, takes_s)) for role, takes_s in PLAYED.items()]
                timeout = options.timeout or PLAYED_TIMEOUT_S
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
