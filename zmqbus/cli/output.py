"""What all commands print: results, errors, and a question before something is changed.

Exit statuses: 0 done; 1 a failure, printed as `error: <code>: <what happened; what to do>` on standard error with
nothing on standard output; 2 wrong usage (`cli.parser`, and `errors.InvalidOption`); 4 no answer in time. `bootstrap`
handles an output that cannot be written.
"""

from __future__ import annotations

import sys

from zmqbus.errors import InvalidOption, Timeout, ZmqbusError
from zmqbus.system.streams import OutputFailed, write_raw

FAILED = 1
USAGE = 2
NO_ANSWER = 4


def fail(error: ZmqbusError) -> int:
    """Prints an error on standard error; returns the exit status."""
    print(f"error: {error.code}: {error}", file=sys.stderr)
    if isinstance(error, InvalidOption):
        return USAGE
    return NO_ANSWER if isinstance(error, Timeout) else FAILED


def tell(lines: str, done: str | None = None, *, raw: bool = False) -> None:
    """Prints at once what a command has done; `raw`: without making it safe for a terminal.

    Where that cannot be written, the error reports `done` (default: the lines), so that nobody repeats the command.
    """
    try:
        write_raw(f"{lines}\n") if raw else print(lines)
        sys.stdout.flush()
    except OutputFailed as failed:
        failed.done = done if done is not None else lines.replace("\n", "; ")
        raise


def confirm(question: str, *, refusal: str, unchanged: str) -> bool:
    """Asks the person at the terminal; prints `unchanged` where the answer is not yes.

    `refusal` is the error to print where there is no terminal to ask on.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        print(f"error: {refusal}; pass --yes to go ahead", file=sys.stderr)
        return False
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
        print()
    if answer.strip().lower() in ("y", "yes"):
        return True
    print(unchanged)
    return False
