"""Command-line parsing: argparse, with errors in the form of all others. (`send_args` has a faster way.)"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from zmqbus.text.display import sanitise

USAGE = 2


def seconds(least_s: float, most_s: float) -> Callable[[str], float]:
    """A type of argument: a number of seconds in this range."""

    def parse(text: str) -> float:
        try:
            value = float(text) if text.isascii() and "_" not in text else -1.0
        except ValueError:
            value = -1.0
        if not least_s <= value <= most_s:  # false for a NaN, too
            raise argparse.ArgumentTypeError(
                f"'{sanitise(text, 40)}' is not a number of seconds from {least_s:g} to {most_s:,.0f}"
            )
        return value

    return parse


class _Formatter(argparse.HelpFormatter):
    """Help as wide as COLUMNS says. (argparse itself imports `shutil` to ask the terminal, for every option that is
    added: 2 ms of a command that lives for 50.)"""

    def __init__(self, prog: str, *arguments: Any, **more: Any) -> None:
        columns = os.environ.get("COLUMNS", "")
        super().__init__(prog, width=int(columns) - 2 if columns.isdecimal() else 98)


class _Once(argparse.Action):
    """Stores a value. A second, different one is an error: argparse would use the last, and a message for two sessions
    would reach one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: str | None = None
    ) -> None:
        given: dict[str, Any] = namespace.__dict__.setdefault("_given", {})
        if given.setdefault(self.dest, value) != value:
            parser.error(f"{option or self.dest} is given twice; give it once")
        setattr(namespace, self.dest, value)


class Parser(argparse.ArgumentParser):
    """An argument parser that prints errors in the form of all others, followed by the usage."""

    def __init__(self, command: str, description: str, **more: Any) -> None:
        super().__init__(
            prog=f"zmqbus {command}", description=description, allow_abbrev=False, formatter_class=_Formatter, **more
        )
        self._arguments: list[str] = []
        self.register("action", None, _Once)
        self.register("action", "store", _Once)

    def parse_args(self, arguments: Sequence[str] | None = None) -> Any:  # type: ignore[override]
        self._arguments = list(sys.argv[1:] if arguments is None else arguments)
        options = super().parse_args(self._arguments)
        options.__dict__.pop("_given", None)
        return options

    def error(self, message: str) -> NoReturn:
        if message.endswith(" required") or " required: " in message:
            # The missing option may be there, misspelt; argparse looks for unknown options last.
            unknown = self._unknown_flags()
            if unknown:
                message = f"unrecognized arguments: {' '.join(unknown)}"
        self.exit(USAGE, f"error: usage: {sanitise(message)}\n{self.format_usage()}")

    def _unknown_flags(self) -> list[str]:
        """The long options that this command does not have."""
        arguments = self._arguments[: self._arguments.index("--")] if "--" in self._arguments else self._arguments
        names = (text.partition("=")[0] for text in arguments if text.startswith("--") and " " not in text)
        return [name for name in names if name not in self._option_string_actions]

    def add_port(self) -> None:
        self.add_argument("--port", metavar="P", help="port of the broker (default 9473, or INTER_SESSION_PORT)")
