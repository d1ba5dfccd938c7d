#!/usr/bin/env python3
"""Drives two sessions in rounds: one implements, the other reviews, until the review approves the work.

    python examples/review_loop.py              # with a simulated implementer and a simulated reviewer
    python examples/review_loop.py --implementer web --reviewer auth --timeout 1800 "add a rate limit to /login"

The agents need not know each other: the program sends the implementer's answer to the reviewer and the reviewer's
remarks back to the implementer, until a review starts with `approved`. The exit status is 0 if the work was approved, 1
if it was not within the rounds or on an error, 4 if a session did not answer in time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # for a checkout; harmless elsewhere

import zmqbus


def review_loop(bus: zmqbus.Bus, implementer: str, reviewer: str, task: str, rounds: int, timeout: float) -> bool:
    """Drives both sessions; returns whether the work was approved. `timeout`: in seconds for each answer."""
    order = f"please do this, and answer with what you did: {task}"
    for number in range(1, rounds + 1):
        print(f"--- round {number}: {implementer} works", flush=True)
        work = bus.ask(implementer, order, timeout=timeout)
        print(work.text)
        print(f"--- {reviewer} reviews", flush=True)
        review = bus.ask(
            reviewer,
            "please review this; begin your answer with `approved`, or say what has to change\n"
            f"task: {task}\n{work.text}",
            timeout=timeout,
        )
        print(review.text)
        if _verdict(review.text).startswith("approved"):
            print(f"--- approved in round {number}")
            return True
        order = f"the reviewer of your work ({task}) asks for changes; please make them:\n{review.text}"
    print(f"--- not approved within {rounds} rounds")
    return False


def _verdict(text: str) -> str:
    """Returns a review without its prefix `answer:` or `done:`."""
    text = text.strip().lower()
    for prefix in ("answer:", "done:", "status:"):
        text = text.removeprefix(prefix).strip()
    return text


# --- the simulated sessions -------------------------------------------------------------------------------------

TASK = "write slug(title): lower case, words joined by single dashes"
#: Successive answers of the implementer.
DRAFTS = (
    'def slug(title):\n    return title.replace(" ", "-")',
    'def slug(title):\n    return title.lower().replace(" ", "-")',
    'def slug(title):\n    return "-".join(title.lower().split())',
)
#: The reviewer's test cases.
CASES = {"Hello World": "hello-world", "two  blanks ": "two-blanks"}


class Implementer:
    """Answers each request with the next draft."""

    def __init__(self) -> None:
        self._drafts = iter(DRAFTS)

    def __call__(self, message: zmqbus.Message) -> str:
        return f"done:\n{next(self._drafts, DRAFTS[-1])}"


def review(message: zmqbus.Message) -> str:
    """Runs the test cases on a draft."""
    names: dict[str, Callable[[str], str]] = {}
    exec(message.text[message.text.index("def slug") :], {}, names)  # safe: only the drafts above
    wrong = [
        f"slug({title!r}) is {names['slug'](title)!r}, and should be {wanted!r}"
        for title, wanted in CASES.items()
        if names["slug"](title) != wanted
    ]
    return "\n".join(wrong) if wrong else "approved: all cases are right"


@contextlib.contextmanager
def simulated_session(role: str, work: Callable[[zmqbus.Message], str]) -> Iterator[str]:
    """Runs a session that answers with `work`; yields its name. Connected without one, it leaves no mailbox behind."""
    stop = threading.Event()
    with zmqbus.connect(topics=role) as bus:
        thread = threading.Thread(target=bus.serve, args=(work,), kwargs={"stop": stop})
        thread.start()
        try:
            yield bus.name
        finally:
            stop.set()
            thread.join()


def main() -> int:
    """Runs the review; returns the exit status."""
    parser = argparse.ArgumentParser(description="Let two sessions implement and review in rounds.")
    parser.add_argument("task", nargs="?", default=TASK)
    parser.add_argument(
        "--implementer", metavar="SESSION", help="the session that implements (default: a simulated one)"
    )
    parser.add_argument("--reviewer", metavar="SESSION", help="the session that reviews (default: a simulated one)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for each answer (default: 1800)")
    options = parser.parse_args()
    if (options.implementer is None) != (options.reviewer is None):
        parser.error("name both sessions, or neither")
    try:
        with contextlib.ExitStack() as stack:
            implementer = options.implementer or stack.enter_context(simulated_session("implementer", Implementer()))
            reviewer = options.reviewer or stack.enter_context(simulated_session("reviewer", review))
            bus = stack.enter_context(zmqbus.connect())
            approved = review_loop(bus, implementer, reviewer, options.task, options.rounds, options.timeout)
    except zmqbus.ZmqbusError as error:
        print(f"error: {error.code}: {error}", file=sys.stderr)
        return 4 if isinstance(error, zmqbus.Timeout) else 1
    except KeyboardInterrupt:
        return 130
    return 0 if approved else 1


if __name__ == "__main__":
    sys.exit(main())
