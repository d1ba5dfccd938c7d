"""Checks the version of Claude Code that the session belongs to, and which parts of the plugin it supports."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence

from zmqbus.doctor.report import Finding, ok, warning
from zmqbus.process import Process, ProcessTable, this_machine
from zmqbus.session.owner import looks_like_claude

Version = tuple[int, int, int]

#: First release with monitors: earlier ones show no line by themselves.
MONITORS: Version = (2, 1, 105)
#: First release that reads the monitors declared in plugin.json.
PLUGIN_MONITORS: Version = (2, 1, 129)
#: Read limit for a package.json, which has some KiB.
MAX_BYTES = 64 * 1024

_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,6})", re.ASCII)
_PACKAGE = "@anthropic-ai/claude-code/"


def client(owners: Sequence[Process], table: ProcessTable | None = None) -> Iterator[Finding]:
    """Checks the client above this process, if it is Claude Code."""
    table = table or this_machine()
    cmdline = table.cmdline(owners[0].pid)
    if not looks_like_claude(cmdline):
        return
    version = version_of(owners[0].pid, cmdline)
    if version is None:
        yield ok("client", f"Claude Code (pid {owners[0].pid}), version unknown")
        return
    says = f"Claude Code {_text(version)}"
    if version < MONITORS:
        yield warning(
            "client",
            f"{says} has no monitors: only the hooks show messages, at each prompt and stop; {_text(MONITORS)} is the "
            "first that shows them on arrival",
            "claude update",
        )
    elif version < PLUGIN_MONITORS:
        yield warning(
            "client",
            f"{says} does not start the plugin's own monitor: the skill starts one with the Monitor tool; "
            f"{_text(PLUGIN_MONITORS)} is the first that does",
            "claude update",
        )
    else:
        yield ok("client", says)


def version_of(pid: int, cmdline: Sequence[str]) -> Version | None:
    """Returns the version of a Claude Code process, from its executable, its package, or its process name."""
    for path in (os.path.realpath(f"/proc/{pid}/exe"), *cmdline[:1]):
        parts = path.split("/")
        if parts[-3:-1] == ["claude", "versions"]:  # the layout of its installer
            return _parsed(parts[-1])
    for path in cmdline:
        root, found, _ = os.path.realpath(path).partition(_PACKAGE)
        if found and (version := _of_package(root + found)) is not None:
            return version
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return _parsed(file.read().strip())  # current releases set their process name to the version
    except OSError:
        return None


def _of_package(directory: str) -> Version | None:
    try:
        with open(os.path.join(directory, "package.json"), "rb") as file:
            return _parsed(str(json.loads(file.read(MAX_BYTES))["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _parsed(text: str) -> Version | None:
    match = _VERSION.match(text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _text(version: Version) -> str:
    return ".".join(map(str, version))
