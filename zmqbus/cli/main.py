"""`zmqbus`: one command that contains all others."""

from __future__ import annotations

import sys
from importlib import import_module

import zmqbus
from zmqbus.text.display import sanitise

#: Subcommand → (module of zmqbus.cli, keyword arguments of its main, description).
COMMANDS: dict[str, tuple[str, dict[str, bool], str]] = {
    "connect": ("connect", {}, "connect this session and print what arrives for it"),
    "send": ("send", {}, "send a text to a session, to several, or to many"),
    "broadcast": ("send", {"broadcast": True}, "send a text to every session, or to a topic"),
    "list": ("list", {}, "show who is on the bus"),
    "status": ("list", {"own": True}, "show this session, or the one named"),
    "wait": ("wait", {}, "wait until a session's agent is idle, blocked, gone; or has answered"),
    "inbox": ("inbox", {}, "print unread messages, or one message whole"),
    "log": ("log", {}, "print the history: filter it, search it, follow it"),
    "watch": ("watch", {}, "show sessions and messages, as they come and go"),
    "doctor": ("doctor", {}, "check the installation, and say how to fix each fault"),
    "stats": ("stats", {}, "show the broker's metrics; also for Prometheus"),
    "rename": ("rename", {}, "give this session another name"),
    "disconnect": ("disconnect", {}, "end this session's listener and free its name"),
    "forget": ("forget", {}, "remove a session that is away, with its unread mail"),
    "broker": ("broker", {}, "start the broker, inspect it, or stop it"),
    "console": ("console", {}, "show the bus on a page in the browser, and send from it"),
    "auto-start": ("auto_start", {}, "set whether the plugin's monitor starts with every session"),
    "install-deps": ("install_deps", {}, "install what zmqbus needs into a virtual environment"),
}


def main(argv: list[str]) -> int:
    """Runs a subcommand."""
    command, *rest = argv or ["--help"]
    if command in ("--version", "-V"):
        print(f"zmqbus {zmqbus.__version__}")
        return 0
    if command in ("--help", "-h", "help"):
        print(_help())
        return 0
    if command not in COMMANDS:
        print(f"error: usage: unknown command '{sanitise(command, 40)}'; see: zmqbus --help", file=sys.stderr)
        return 2
    module, arguments, _ = COMMANDS[command]
    status: int = import_module(f"zmqbus.cli.{module}").main(rest, **arguments)
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {does}" for name, (_, _, does) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: zmqbus COMMAND [option …]",
            "",
            "The message bus for the coding-agent sessions and scripts on this machine.",
            "",
            *lines,
            "",
            "zmqbus COMMAND --help describes a command; zmqbus --version prints the release.",
        ]
    )
