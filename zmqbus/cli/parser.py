"""How the commands read their arguments: argparse, with errors like all others. See `plain` for what comes before."""

from __future__ import annotations

import argparse
import os
from typing import Any, NoReturn

from zmqbus.display import sanitise

USAGE = 2


class _Formatter(argparse.HelpFormatter):
    """Help as wide as the terminal says it is in COLUMNS. (Left to itself, argparse imports `shutil` to ask the
    terminal, for every option that is added: 2 ms of a command that lives for 50.)"""

    def __init__(self, prog: str, *arguments: Any, **more: Any) -> None:
        columns = os.environ.get("COLUMNS", "")
        super().__init__(prog, width=int(columns) - 2 if columns.isdecimal() else 98)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like all others, with the usage behind them."""

    def __init__(self, command: str, description: str, **more: Any) -> None:
        super().__init__(
            prog=f"zmqbus {command}", description=description, allow_abbrev=False, formatter_class=_Formatter, **more
        )

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: usage: {sanitise(message)}\n{self.format_usage()}")

    def add_port(self) -> None:
        self.add_argument("--port", metavar="P", help="port of the broker (default 9473, or INTER_SESSION_PORT)")
